"""
Masked pre-training on tiles in a safetensors file, on one device: for machines with torch and transformers alone.

    python scripts/experiments/export_tiles.py --data_dir products --output tiles.safetensors
    python scripts/experiments/run_mim_tensors.py --tiles tiles.safetensors --validation_tiles other.safetensors \\
        --steps 3000 --config_overrides visible_only=true --output_dir outputs/hsst

scripts/run_mim.py is the way with checkpoints, several processes and figures; both share `hsst.support.pretraining`.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm
from transformers import get_wsd_schedule

from datasets_loading.files import only_writer, write_json, written_into
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors
from hsst.support.model_sources import load_model, parse_overrides, read_config, read_processor
from hsst.support.pretraining import FiniteWatch, earlier_run, masked_loss, masks_for, parameter_groups, step_seed
from hsst.support.reports import without_folders
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, use_fast_layers
from modeling_hsst.configuration_hsst import MASK_TYPES
from modeling_hsst.image_processing_hsst import holds_data
from modeling_hsst.modeling_hsst_masked import absolute_error_sums
from modeling_hsst.scene_prediction_hsst import SMALLEST_DEVIATION

VALIDATION_WINDOWS = 256


@dataclass(eq=False)
class TileTensors:
    """Stored numbers, int16 (tiles, bands, rows, columns), with the model's bands."""

    tiles: torch.Tensor
    scale: float
    nodata: int

    @classmethod
    def read(cls, path: Path, config: HSSTConfig) -> "TileTensors":
        """
        Reads a file of export_tiles.py, its bands picked by the wavelengths of a configuration. ValueError where it is
        not such a file, lacks a wavelength, or its tiles are smaller than a window.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about, tiles = file.metadata() or {}, file.get_tensor("tiles")
            scale, nodata = float(about["scale"]), int(about["nodata"])
            centers = [float(center) for center in json.loads(about["wavelengths"])]
            if tiles.dtype != torch.int16 or tiles.ndim != 4 or min(tiles.shape[2:]) < max(config.window_size):
                raise ValueError(f"{tiles.dtype} {tuple(tiles.shape)} for windows of {config.window_size} pixels")
            if not 0 < scale < float("inf") or tiles.shape[1] != len(centers):
                raise ValueError(f"a scale {scale:g}, and {len(centers)} wavelengths of {tiles.shape[1]} bands")
            bands = HSSTImageProcessor(wavelengths=config.wavelengths).match_wavelengths(centers)
            return cls(tiles[:, bands], scale, nodata)
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: expected a file of export_tiles.py with the model's bands: {error}") from None

    def windows(self, count: int, side: int, seed: int) -> torch.Tensor:
        """Windows at random places, turned and flipped at random, (count, bands, side, side) on the tiles' device."""
        generator, (number, _, rows, columns) = torch.Generator().manual_seed(seed), self.tiles.shape
        highest = (number, rows - side + 1, columns - side + 1, 8)
        tile, row, column, turn = (torch.randint(end, (count,), generator=generator) for end in highest)
        cut = [
            self.tiles[n, :, r : r + side, c : c + side] for n, r, c in torch.stack([tile, row, column], 1).tolist()
        ]
        flipped = [window.flip(-1) if way > 3 else window for window, way in zip(cut, turn.tolist(), strict=True)]
        return torch.stack([window.rot90(int(way), (-2, -1)) for window, way in zip(flipped, turn, strict=True)])

    def processor(self, wavelengths: Any) -> HSSTImageProcessor:
        """A processor with mean and deviation of each band over pixels with data."""
        pixels = self.tiles.transpose(0, 1).flatten(1)
        pixels = pixels[:, holds_data(pixels, self.nodata).all(dim=0)]
        if not pixels.shape[1]:
            raise ValueError("--tiles: expected pixels with data in all bands of the model, got none")
        bands = [(band.double() / self.scale).clamp(*HSSTImageProcessor.clip_range) for band in pixels]
        return HSSTImageProcessor(
            image_mean=[band.mean().item() for band in bands],
            image_std=[max(band.std(correction=0).item(), SMALLEST_DEVIATION) for band in bands],
            **{"wavelengths": wavelengths, "scale": self.scale, "nodata": self.nodata},
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="file to train on")
    parser.add_argument("--validation_tiles", type=Path, required=True, help="file that is never trained on")
    parser.add_argument("--model_name_or_path", help="checkpoint to go on from, with its processor")
    parser.add_argument("--config_overrides", help="settings other than the published ones, of a new model")
    parser.add_argument(
        "--mask_types", nargs="+", choices=MASK_TYPES, default=["even", "tube", "grid"], help="in turn"
    )
    parser.add_argument("--steps", type=int, required=True, help="steps in all")
    parser.add_argument("--batch_size", type=int, default=64, help="windows in a step")
    parser.add_argument(
        "--learning_rate", type=float, default=3e-3, help="it rises, stays, and falls in the last quarter"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--seed", type=int, default=0, help="of weights, windows and masks")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    return parser.parse_args()


@torch.no_grad()
def validate(model: Any, processor: HSSTImageProcessor, source: TileTensors, mask_type: str) -> dict[str, float]:
    """Mean absolute error of hidden values, in standard deviations of their bands, of the model and of two predictors
    without training. Windows and masks are the same every time."""
    pixels = source.windows(VALIDATION_WINDOWS, model.config.window_size[0], step_seed(2**40, 0))
    sums = torch.zeros(4, dtype=torch.float64)
    for number, part in enumerate(pixels.split(64)):
        values, valid = processor.standardize(part, scale=source.scale, nodata=source.nodata)
        mask = masks_for(model.config, len(part), number, mask_type=mask_type).to(values.device)
        filled = model(values, mask, valid, mask_type=mask_type).reconstruction.float()
        sums += absolute_error_sums(values.cpu(), filled.cpu(), mask.cpu(), valid.cpu(), model.config)
    return dict(zip(("error", "band_mean", "visible_mean"), (sums[:3] / sums[3].clamp(min=1)).tolist(), strict=True))


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    source, overrides = arguments.model_name_or_path, arguments.config_overrides
    if source and overrides:
        raise ValueError("--config_overrides: expected none beside --model_name_or_path, got both")
    if source:
        config: Any = read_config(source, "--model_name_or_path")
        model: Any = load_model(HSSTForMaskedImageModeling, source, config)
    else:
        config = HSSTConfig(**(parse_overrides(overrides) if overrides else {}))
        model = HSSTForMaskedImageModeling(config)
    use_fast_layers(model.to(arguments.device).train())
    training, others = (TileTensors.read(path, config) for path in (arguments.tiles, arguments.validation_tiles))
    for tiles in (training, others):
        tiles.tiles = tiles.tiles.to(arguments.device)
    processor = read_processor(source, config) if source else training.processor(config.wavelengths)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=arguments.learning_rate, betas=(0.9, 0.95))
    steps, kinds, started = arguments.steps, arguments.mask_types, time.perf_counter()
    schedule = get_wsd_schedule(optimizer, steps // 20, steps // 4, num_training_steps=steps)

    def errors() -> dict[str, dict[str, float]]:
        model.eval()
        name = arguments.validation_tiles.name
        found = {f"{name}/{kind}": validate(model, processor, others, kind) for kind in kinds}
        model.train()
        return found

    history = [{"step": 0, "validation": errors()}]
    device = torch.device(arguments.device)
    watch = FiniteWatch(device)
    for step in tqdm(range(steps), desc="training", unit="step"):
        drawn = step_seed(arguments.seed, step)
        torch.manual_seed(drawn)
        pixels = training.windows(arguments.batch_size, config.window_size[0], drawn)
        windows = processor.standardize(pixels, scale=training.scale, nodata=training.nodata)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            loss = masked_loss(model, config, *windows, drawn, kinds[drawn % len(kinds)])
        loss.backward()
        watch.add(step + 1, loss, torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0), None)
        if bad := watch.first_bad(wait=step + 1 == steps):
            raise ValueError(f"expected a finite loss and gradient, got {bad[1]} at step {bad[0]}")
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    history.append({"step": steps, "validation": errors(), "loss": loss.item()})
    ratios = [masks_for(config, 16, 0, mask_type=kind).float().mean().item() for kind in kinds]
    seen = steps * arguments.batch_size
    results = {
        **{"steps": steps, "windows_seen": seen, "windows_by_source": {arguments.tiles.name: seen}},
        **{"history": history, "training_tiles": len(training.tiles), "validation_tiles": len(others.tiles)},
        "realised_mask_ratio": sum(ratios) / len(ratios),
        "run": without_folders(vars(arguments)),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": model.num_parameters(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **earlier_run(source),
    }
    with written_into(arguments.output_dir, last="model.safetensors") as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_json(partial / "all_results.json", results)
    print(f"{seen:,} windows in {results['seconds']:,.0f} s: {history[-1]}\n{arguments.output_dir}")


def main() -> None:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    with one_line_errors("run_mim_tensors.py"), only_writer(arguments.output_dir):
        check_least(arguments, 1, "steps", "batch_size")
        check_least(arguments, 0, "learning_rate", "seed")
        if (arguments.output_dir / "model.safetensors").exists():
            raise ValueError(f"{arguments.output_dir}: expected no other run in the output folder, found its model")
        train(arguments)


if __name__ == "__main__":
    main()
