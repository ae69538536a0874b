"""
Write a model as ONNX, and check that it computes the same.

    python scripts/export_onnx.py --model model_cards/hsst-enmap-landcover --output land_cover.onnx

The input is `pixel_values`, float32 (batch, bands, height, width): standardized values, as the image processor of the
model gives them. The output is `logits`, float32 (batch, classes, height, width) of models that classify pixels, or
`features`, (batch, blocks * positions, width), of those without a head. Batches of up to 512 windows, of the
model's size. Needs
`pip install "hsst[onnx]"`.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

from datasets_loading.files import written_whole
from hsst.support.command_line import HelpFormatter, one_line_errors

BATCHES = (1, 3)
LARGEST_BATCH = 512
"""Larger ones are computed in parts by the model, which an ONNX graph cannot decide on."""

LARGEST_DIFFERENCE = 1e-4
"""Of the outputs on random windows, in their standard deviation."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or name on the Hub, of a model of any kind")
    parser.add_argument("--output", type=Path, required=True, help="file to write (.onnx)")
    return parser.parse_args()


def export(source: str, output: Path) -> float:
    """
    Exports a model, and returns the largest difference of its outputs from the model's, in their standard deviation.
    ValueError where there is no such model, a package is missing, or the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it, and says so late
        import torch
    except ImportError as error:
        raise ValueError(f'expected the package {error.name}, got none: pip install "hsst[onnx]"') from None
    from hsst.support.features import load_encoder
    from hsst.support.model_sources import load_classifier, read_config

    config = read_config(source, "model")
    has_head = any("Classification" in name or "Segmentation" in name for name in config.architectures or ())
    model = load_classifier(source).eval() if has_head else load_encoder(source)[0]
    model.set_attn_implementation("eager")  # plain products, which every runtime has

    class Outputs(torch.nn.Module):
        """One input, one output: what programs without transformers expect."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=pixel_values, return_dict=True)[0]

    wrapped = Outputs().eval()
    shape = (config.num_channels, *config.window_size)
    generator = torch.Generator().manual_seed(0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), written_whole(output) as partial:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            wrapped,
            (torch.randn(2, *shape, generator=generator),),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=["logits" if has_head else "features"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", max=LARGEST_BATCH)}},
        )
        assert program is not None
        program.save(partial)
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        largest = 0.0
        for batch in BATCHES:
            windows = torch.randn(batch, *shape, generator=generator)
            with torch.inference_mode():
                expected = wrapped(windows)
            found = torch.as_tensor(session.run(None, {"pixel_values": windows.numpy()})[0])
            if found.shape != expected.shape:
                raise ValueError(f"{output}: expected outputs {tuple(expected.shape)}, got {tuple(found.shape)}")
            largest = max(largest, float((found - expected).abs().max() / expected.std()))
        if not largest <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"{output}: expected the model's outputs to {LARGEST_DIFFERENCE}, got {largest:.1e} apart"
            )
    return largest


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("export_onnx.py"):
        if arguments.output.suffix != ".onnx":
            raise ValueError(f"--output: expected a file ending in .onnx, got {arguments.output}")
        largest = export(arguments.model, arguments.output)
        size = arguments.output.stat().st_size / 1e6
        print(f"{arguments.output}: {size:.1f} MB; outputs differ by {largest:.1e} standard deviations at most")


if __name__ == "__main__":
    main()
