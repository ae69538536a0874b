"""
Masked pre-training of HSST on tiles in safetensors files: for machines with torch, transformers and safetensors alone.

    python scripts/experiments/export_tiles.py --data_dir products --output tiles.safetensors
    python scripts/experiments/run_mim_tensors.py --tiles tiles.safetensors --validation_tiles other.safetensors \\
        --output_dir outputs/hsst --config_overrides visible_only=true,position_embedding_type=wavelength

Where the package is not installed, `PYTHONPATH=.` in its folder serves. One device, without a launcher; masks of
several kinds in turn (--mask_types). A run that was interrupted goes on with --resume, exactly, and may then be given
another number of --steps as long as its learning rate has not begun to fall. The output folder holds the model, its
processor and `all_results.json` with the whole history, that of the checkpoint it goes on from included.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from hsst.experiments.tensor_training import (
    Pretraining,
    PretrainingSettings,
    describe,
    generator_of,
    masks_of,
    pretrain,
)
from hsst.experiments.tile_tensors import TileTensors, band_statistics, read_weighted
from hsst.support.command_line import one_line_errors
from hsst.support.model_sources import parse_overrides
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor
from modeling_hsst.masking_hsst import MASK_TYPES


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tiles",
        action="append",
        required=True,
        metavar="FILE[=WEIGHT]",
        help="tiles to train on, and how often windows come from them (1); may be given several times",
    )
    parser.add_argument(
        "--validation_tiles", action="append", required=True, metavar="FILE", help="tiles that are never trained on"
    )
    parser.add_argument("--model_name_or_path", help="checkpoint to go on from, with its processor")
    parser.add_argument("--config_overrides", help="settings other than the published ones, e.g. visible_only=true")
    parser.add_argument(
        "--mask_types", default="even,tube,grid", help="kinds of masks, of which each step takes one (even,tube,grid)"
    )
    parser.add_argument("--validation_mask_types", default="unit,tube,grid", help="(unit,tube,grid)")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument(
        "--max_seconds", type=float, help="shorten the run to about so many seconds of training, in good order"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--warmup_steps", type=int, default=200)
    parser.add_argument("--decay_share", type=float, default=0.25, help="last share of the steps, of a falling rate")
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--gain", type=float, default=0.0, help="spread of a random factor on each window (0)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA where there is a GPU")
    parser.add_argument("--num_threads", type=int, help="of the CPU (all cores)")
    parser.add_argument("--validation_steps", type=int, default=1000)
    parser.add_argument("--save_steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output_dir, if there is one")
    arguments = parser.parse_args()
    for name in ("steps", "batch_size", "validation_steps", "save_steps", "num_threads"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    for name in ("learning_rate", "warmup_steps", "weight_decay", "gain", "seed"):
        if getattr(arguments, name) is not None and not getattr(arguments, name) >= 0:
            parser.error(f"--{name}: expected at least 0, got {getattr(arguments, name)}")
    if arguments.max_seconds is not None and not arguments.max_seconds > 0:
        parser.error(f"--max_seconds: expected more than 0, got {arguments.max_seconds}")
    if not 0 <= arguments.decay_share <= 1:
        parser.error(f"--decay_share: expected a share from 0 to 1, got {arguments.decay_share}")
    for flag in ("mask_types", "validation_mask_types"):
        unknown = [kind for kind in getattr(arguments, flag).split(",") if kind not in MASK_TYPES]
        if unknown:
            parser.error(f"--{flag}: expected kinds among {', '.join(MASK_TYPES)}, got {unknown[0]}")
    return arguments


def train(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    mask_types = tuple(arguments.mask_types.split(","))
    validation_mask_types = arguments.validation_mask_types.split(",")
    torch.manual_seed(arguments.seed)
    if arguments.model_name_or_path:
        if arguments.config_overrides:
            raise ValueError("--config_overrides: expected none beside --model_name_or_path, got both")
        model = HSSTForMaskedImageModeling.from_pretrained(arguments.model_name_or_path)
    else:
        overrides = parse_overrides(arguments.config_overrides) if arguments.config_overrides else {}
        model = HSSTForMaskedImageModeling(HSSTConfig(**overrides))
    config: HSSTConfig = model.config
    if config.wavelengths is None:
        raise ValueError("--config_overrides: expected a configuration with `wavelengths`, to find the bands by")
    for kind in {*mask_types, *validation_mask_types}:
        masks_of(config, kind, 1, generator_of(0))  # raises where the kind does not fit the window
    sources = [read_weighted(text, "--tiles").with_bands(config.wavelengths) for text in arguments.tiles]
    validation = [
        TileTensors.read(name).with_bands(config.wavelengths).to(device) for name in arguments.validation_tiles
    ]
    for source in (*sources, *validation):
        if min(source.tiles.shape[2:]) < max(config.window_size):
            raise ValueError(
                f"{source.name}: expected tiles of at least {config.window_size[0]}x{config.window_size[1]} pixels, "
                f"the size of a window, got {source.tiles.shape[2]}x{source.tiles.shape[3]}"
            )
        if (source.scale, source.nodata) != (sources[0].scale, sources[0].nodata):
            raise ValueError(
                f"{source.name}: expected the scale {sources[0].scale} and nodata value {sources[0].nodata} of the "
                f"first tiles, got {source.scale} and {source.nodata}"
            )
    settings = PretrainingSettings(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_steps=arguments.warmup_steps,
        decay_share=arguments.decay_share,
        weight_decay=arguments.weight_decay,
        mask_types=mask_types,
        gain=arguments.gain,
        precision=arguments.precision,
        compile=arguments.compile,
        seed=arguments.seed,
    )
    description = describe(settings, config, sources)
    sources = [source.to(device) for source in sources]
    if arguments.model_name_or_path:
        processor = HSSTImageProcessor.from_pretrained(arguments.model_name_or_path)
    else:
        mean, deviation = band_statistics(sources, HSSTImageProcessor.clip_range)
        processor = HSSTImageProcessor(
            image_mean=mean,
            image_std=deviation,
            wavelengths=config.wavelengths,
            scale=sources[0].scale,
            nodata=sources[0].nodata,
        )
    results = pretrain(
        Pretraining(model, processor, sources, settings, device),
        validation=validation,
        validation_mask_types=validation_mask_types,
        output_dir=arguments.output_dir,
        description={
            **description,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            **earlier_run(arguments.model_name_or_path),
        },
        validation_steps=arguments.validation_steps,
        save_steps=arguments.save_steps,
        resume=arguments.resume,
        max_seconds=arguments.max_seconds,
    )
    print(f"{results['windows_seen']:,} windows in {results['seconds']:,.0f} s: {arguments.output_dir}")


def earlier_run(checkpoint: str | None) -> dict[str, Any]:
    """What is told of the training of a checkpoint, where that is in its folder, as `earlier`."""
    path = Path(checkpoint or "") / "all_results.json"
    if not checkpoint or not path.is_file():
        return {}
    return {"earlier": json.loads(path.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    parsed = parse_arguments()
    with one_line_errors("run_mim_tensors.py"):
        train(parsed)
