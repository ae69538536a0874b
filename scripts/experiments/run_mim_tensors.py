"""
Masked pre-training on tiles in safetensors files, on one device: for machines with torch and transformers alone.

    python scripts/experiments/export_tiles.py --data_dir products --output tiles.safetensors
    python scripts/experiments/run_mim_tensors.py --tiles tiles.safetensors=3 --tiles crops.safetensors --steps 3000 \\
        --validation_tiles other.safetensors --config_overrides visible_only=true --output_dir outputs/hsst

Windows are cut on the device, masks of several kinds take turns, and the learning rate rises, stays and falls.
scripts/run_mim.py is the way with checkpoints, several processes and figures; both share `hsst.support.pretraining`.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm
from transformers import get_wsd_schedule
from transformers.utils import SAFE_WEIGHTS_NAME

from datasets_loading.files import only_writer, write_json, written_into
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors
from hsst.support.model_sources import load_model, parse_overrides, read_config, read_processor
from hsst.support.pretraining import (
    NotFinite,
    earlier_run,
    in_other_light,
    masks_for,
    parameter_groups,
    step_seed,
    train_steps,
    without_places,
    write_batch,
)
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, use_fast_layers
from modeling_hsst.configuration_hsst import MASK_TYPES
from modeling_hsst.modeling_hsst_masked import absolute_error_sums
from modeling_hsst.scene_prediction_hsst import SMALLEST_DEVIATION

VALIDATION_WINDOWS = 256


@dataclass(eq=False)
class TileTensors:
    """Tiles of one file: stored numbers, int16 (tiles, bands, rows, columns), with the model's bands."""

    name: str
    tiles: torch.Tensor
    scale: float
    nodata: int
    weight: float = 1.0

    @classmethod
    def read(cls, text: str, wavelengths: list[float]) -> "TileTensors":
        """Reads `FILE` or `FILE=WEIGHT` of export_tiles.py, its bands picked by wavelength (nm).

        Raises:
            ValueError: it is not such a file, it lacks a wavelength, or the weight is none.
        """
        path, separator, weight = text.partition("=")
        try:
            with safe_open(path, framework="pt") as file:
                about, tiles = file.metadata() or {}, file.get_tensor("tiles")
            centers = [float(center) for center in json.loads(about["wavelengths"])]
            scale, nodata = float(about["scale"]), int(about["nodata"])
            share = float(weight) if separator else 1.0
            if not (0 < scale < math.inf and 0 < share < math.inf):
                raise ValueError(f"a scale {scale:g} and a weight {share:g}")
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{text}: expected FILE or FILE=WEIGHT with tiles of export_tiles.py: {error}") from None
        if tiles.dtype != torch.int16 or tiles.ndim != 4 or tiles.shape[1] != len(centers):
            got = f"{tiles.dtype} {tuple(tiles.shape)}"
            raise ValueError(f"{text}: expected int16 tiles of {len(centers)} bands, got {got}")
        try:
            bands = HSSTImageProcessor(wavelengths=wavelengths).match_wavelengths(centers)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(Path(path).name, tiles[:, bands], scale, nodata, share)

    def windows(self, count: int, side: int, generator: torch.Generator) -> torch.Tensor:
        """Windows at random places, turned and flipped at random, (count, bands, side, side) on the tiles' device."""
        number, _, rows, columns = self.tiles.shape
        highest = (number, rows - side + 1, columns - side + 1, 8)
        tile, row, column, turn = (torch.randint(end, (count,), generator=generator) for end in highest)
        along = torch.arange(side)
        places = tile[:, None, None], row[:, None, None] + along[:, None], column[:, None, None] + along
        index = tuple(place.to(self.tiles.device) for place in places)
        windows = self.tiles.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)
        turn = turn.to(windows.device).view(-1, 1, 1, 1)
        windows = torch.where(turn % 2 == 1, windows.flip(-1), windows)
        windows = torch.where(turn // 2 % 2 == 1, windows.flip(-2), windows)
        return torch.where(turn // 4 == 1, windows.transpose(-1, -2), windows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--tiles", action="append", required=True, metavar="FILE[=WEIGHT]", help="to train on; repeat")
    parser.add_argument("--validation_tiles", action="append", required=True, metavar="FILE", help="never trained on")
    parser.add_argument("--model_name_or_path", help="checkpoint to go on from, with its processor")
    parser.add_argument("--config_overrides", default="", help="settings other than the published ones")
    parser.add_argument(
        "--mask_types",
        nargs="+",
        choices=MASK_TYPES,
        default=["even", "tube", "grid"],
        help="kinds of masks, of which each step takes one",
    )
    parser.add_argument(
        "--validation_mask_types",
        nargs="+",
        choices=MASK_TYPES,
        default=["unit", "tube", "grid"],
        help="kinds of masks to validate with",
    )
    parser.add_argument("--steps", type=int, required=True, help="steps in all")
    parser.add_argument("--batch_size", type=int, default=64, help="windows in a step")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="the largest of the schedule")
    parser.add_argument("--warmup_steps", type=int, default=200, help="steps in which the learning rate rises")
    parser.add_argument("--decay_share", type=float, default=0.25, help="last share of the steps, of a falling rate")
    parser.add_argument("--weight_decay", type=float, default=0.05, help="of weight matrices")
    parser.add_argument("--gain", type=float, default=0.0, help="spread of a random factor on each window")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--validation_steps", type=int, default=1000, help="steps between two validations")
    parser.add_argument("--seed", type=int, default=0, help="of weights, windows and masks")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    return parser.parse_args()


def make_processor(sources: list[TileTensors], wavelengths: list[float]) -> HSSTImageProcessor:
    """A processor with mean and deviation of each band over pixels with data, by the sources' weights."""
    total, moments = sum(source.weight for source in sources), torch.zeros(2, len(wavelengths), dtype=torch.float64)
    for source in sources:
        sums, count = torch.zeros_like(moments), 0
        for part in source.tiles.split(16):
            pixels = part.transpose(0, 1).flatten(1)
            pixels = pixels[:, (pixels != source.nodata).all(dim=0)]
            values = (pixels.double() / source.scale).clamp(*HSSTImageProcessor.clip_range)
            sums += torch.stack([values.sum(1), values.square().sum(1)]).cpu()
            count += pixels.shape[1]
        if not count:
            raise ValueError(f"{source.name}: expected pixels with data in all bands of the model, got none")
        moments += source.weight / total * sums / count
    deviation = (moments[1] - moments[0].square()).clamp(min=0).sqrt().clamp(min=SMALLEST_DEVIATION)
    return HSSTImageProcessor(
        image_mean=moments[0].tolist(),
        image_std=deviation.tolist(),
        wavelengths=wavelengths,
        scale=sources[0].scale,
        nodata=sources[0].nodata,
    )


@torch.no_grad()
def validate(
    model: Any, processor: HSSTImageProcessor, sources: list[TileTensors], mask_types: list[str], batch_size: int
) -> dict[str, dict[str, float]]:
    """Mean absolute error of hidden values, in standard deviations of their bands, by source and kind of mask, of the
    model and of two predictors without training. Windows and masks are the same every time."""
    model.eval()
    results = {}
    for number, source in enumerate(sources):
        for kind in mask_types:
            sums = torch.zeros(4, dtype=torch.float64)
            for start in range(0, VALIDATION_WINDOWS, batch_size):
                seed, count = step_seed(2**40, number, start), min(batch_size, VALIDATION_WINDOWS - start)
                pixels = source.windows(count, model.config.window_size[0], torch.Generator().manual_seed(seed))
                values, valid = processor.standardize(pixels)
                mask = masks_for(model.config, count, seed, mask_type=kind).to(values.device)
                filled = model(values, mask, valid, mask_type=kind).reconstruction.float()
                sums += absolute_error_sums(values.cpu(), filled.cpu(), mask.cpu(), valid.cpu(), model.config)
            error, band_mean, visible_mean = (sums[:3] / sums[3].clamp(min=1)).tolist()
            name = f"{source.name}/{kind}"
            results[name] = {"error": error, "band_mean": band_mean, "visible_mean": visible_mean}
    model.train()
    return results


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    device, kinds, size = torch.device(arguments.device), arguments.mask_types, arguments.batch_size
    if (arguments.output_dir / "model.safetensors").exists():
        raise ValueError(f"{arguments.output_dir}: expected no other run in the output folder, found its model")
    if arguments.model_name_or_path and arguments.config_overrides:
        raise ValueError("--config_overrides: expected none beside --model_name_or_path, got both")
    model: Any
    if arguments.model_name_or_path:
        start = read_config(arguments.model_name_or_path, "--model_name_or_path")
        model = load_model(HSSTForMaskedImageModeling, arguments.model_name_or_path, start)
    else:
        overrides = parse_overrides(arguments.config_overrides) if arguments.config_overrides else {}
        model = HSSTForMaskedImageModeling(HSSTConfig(**overrides))
    use_fast_layers(model)
    config = model.config
    if config.wavelengths is None:
        raise ValueError("--config_overrides: expected a configuration with `wavelengths`, to find the bands by")
    for kind in {*kinds, *arguments.validation_mask_types}:
        masks_for(config, 1, 0, mask_type=kind)  # raises where the kind does not fit the window
    sources = [TileTensors.read(text, config.wavelengths) for text in arguments.tiles]
    validation = [TileTensors.read(text, config.wavelengths) for text in arguments.validation_tiles]
    for source in (*sources, *validation):
        if min(source.tiles.shape[2:]) < max(config.window_size):
            window, shape = ("x".join(map(str, size)) for size in (config.window_size, source.tiles.shape[2:]))
            raise ValueError(f"{source.name}: expected tiles of at least {window} pixels, a window, got {shape}")
        if (source.scale, source.nodata) != (sources[0].scale, sources[0].nodata):
            raise ValueError(
                f"{source.name}: expected the scale {sources[0].scale} and nodata value {sources[0].nodata} of the "
                f"first tiles, got {source.scale} and {source.nodata}"
            )
        source.tiles = source.tiles.to(device)
    if arguments.model_name_or_path:
        processor = read_processor(arguments.model_name_or_path, config)
    else:
        processor = make_processor(sources, config.wavelengths)
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, arguments.weight_decay), lr=arguments.learning_rate, betas=(0.9, 0.95)
    )
    steps, decay_steps = arguments.steps, round(arguments.decay_share * arguments.steps)
    schedule = get_wsd_schedule(optimizer, arguments.warmup_steps, decay_steps, num_training_steps=steps)
    history: list[dict[str, Any]] = []
    losses: list[torch.Tensor] = []
    seen, started = [0] * len(sources), time.perf_counter()
    weights = np.array([source.weight for source in sources])

    def look(step: int) -> None:
        errors = validate(model, processor, validation, arguments.validation_mask_types, size)
        history.append({"step": step, "validation": errors})
        if losses:
            history[-1]["loss"] = torch.stack(losses).mean().item()
            losses.clear()
        tqdm.write(f"step {step}: " + ", ".join(f"{name} {entry['error']:.3f}" for name, entry in errors.items()))

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        generator, side = torch.Generator().manual_seed(seed), config.window_size[0]
        counts = np.random.default_rng(seed).multinomial(size, weights / weights.sum()).tolist()
        for number, count in enumerate(counts):
            seen[number] += count
        parts = [source.windows(count, side, generator) for source, count in zip(sources, counts, strict=True)]
        pixels = torch.cat(parts)
        if arguments.gain:
            pixels = in_other_light(pixels, processor.nodata, arguments.gain)
        return *processor.standardize(pixels), {"pixels": pixels, "seed": seed, "windows_by_source": counts}

    look(0)
    settings = {"seed": arguments.seed, "mask_types": kinds, "precision": arguments.precision}
    trained = train_steps(model, optimizer, schedule, draw, steps, **settings)
    try:
        for step, loss in enumerate(bar := tqdm(trained, desc="training", unit="step", total=steps), start=1):
            losses.append(loss)
            if step % 20 == 0 or step == steps:
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if step % arguments.validation_steps == 0 or step == steps:
                look(step)
    except NotFinite as error:
        path = arguments.output_dir / f"not_finite_step_{error.step}.safetensors"
        write_batch(path, error.of.pop("pixels"), {"step": error.step, "found": error.found, **error.of})
        raise ValueError(f"{error}; what it was taken on: {path}") from None
    run = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    ratios = [masks_for(config, 16, 0, mask_type=kind).float().mean().item() for kind in kinds]
    results = {
        "steps": steps,
        "training_tiles": sum(len(source.tiles) for source in sources),
        "validation_tiles": sum(len(source.tiles) for source in validation),
        "realised_mask_ratio": float(np.mean(ratios)),
        "run": without_places(run),
        "windows_seen": steps * size,
        "windows_by_source": dict(zip([source.name for source in sources], seen, strict=True)),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": model.num_parameters(),
        "encoder_parameters": model.hsst.num_parameters(),
        "history": history,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **earlier_run(arguments.model_name_or_path),
    }
    with written_into(arguments.output_dir, last=SAFE_WEIGHTS_NAME) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_json(partial / "all_results.json", results)
    print(f"{steps * size:,} windows in {results['seconds']:,.0f} s: {arguments.output_dir}")


def main() -> None:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    with one_line_errors("run_mim_tensors.py"), only_writer(arguments.output_dir):
        check_least(arguments, 1, "steps", "batch_size", "validation_steps")
        check_least(arguments, 0, "learning_rate", "warmup_steps", "weight_decay", "gain", "seed", "decay_share")
        train(arguments)


if __name__ == "__main__":
    main()
