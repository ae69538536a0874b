"""
How well a pre-trained model reconstructs hidden values of tiles left out of its training, beside linear interpolation
along the spectrum, means of what is visible, and Gaussians conditioned on the visible bands of each pixel.

    python scripts/experiments/reconstruction.py --model outputs/hsst --tiles potsdam/images \\
        --training_tiles corpus \\
        --block "north-west=tile_64_*,tile_96_*,tile_128_*" --block "centre-east=tile_160_*,tile_192_*" \\
        --output_dir outputs/reconstruction

The strongest predictor without a network is the mean of a Gaussian: mean and covariance of all bands are estimated
from pixels, and what is hidden in a pixel follows from what is visible in it (conditional mean). It has everything
that is linear within a spectrum and nothing of the neighbors, which a model sees as well. --training_tiles gives one
Gaussian, of the spectra that the model was trained on. Blocks give another, of the same scene: the tiles of each block
are scored with the mean and covariance of the other blocks' pixels. The output folder holds `reconstruction.json` and
the table `reconstruction.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from datasets_loading.corpus import is_corpus, read_corpus
from datasets_loading.files import write_json, write_text
from datasets_loading.tiles import Tiles, read_tile_set
from datasets_loading.windows import GridWindows
from hsst.support.command_line import HelpFormatter, one_line_errors, parse_named
from hsst.support.model_sources import load_masked_model, read_processor
from hsst.support.reports import markdown_table
from modeling_hsst import HSSTForMaskedImageModeling, HSSTImageProcessor, draw_mask
from modeling_hsst.configuration_hsst import MASK_TYPES
from modeling_hsst.modeling_hsst_masked import hidden_values, visible_band_mean

REGIONS: dict[str, tuple[tuple[float, float], ...]] = {
    "VNIR": ((400.0, 680.0), (780.0, 1000.0)),
    "red edge": ((680.0, 780.0),),
    "SWIR1": ((1000.0, 1850.0),),
    "SWIR2": ((1850.0, 2500.0),),
}
"""Wavelengths in nm, from the first to before the last, of each spectral region."""

MODEL, INTERPOLATION = "model", "interpolation of standardised values"
VISIBLE_MEAN, BAND_MEAN = "visible mean", "band mean"
PREDICTOR_TITLES = {
    MODEL: "this model",
    "interpolation": "linear interpolation along the spectrum",  # of reflectance, in results of 0.1.0
    INTERPOLATION: "the same of standardised values",
    VISIBLE_MEAN: "mean of the window's visible tokens of the same band",
    BAND_MEAN: "mean of the band over the training tiles",
}
GAUSSIAN = "Gaussian, "
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""What is added to the variances of a Gaussian, in shares of their mean; the best for the tiles scored is taken."""

MAX_TRAINING_TILES = 400
"""Of a folder, spread evenly: what a Gaussian is estimated from."""

Predictor = tuple[str, float | None]
"""A predictor's name, with the ridge of a Gaussian."""

SEED = 0
NUM_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class GaussianSpectrum:
    """Mean (bands,) and covariance (bands, bands) of all bands of a pixel, in standardised values, float64, and the
    number of pixels that they were estimated from."""

    mean: torch.Tensor
    covariance: torch.Tensor
    num_pixels: int

    @classmethod
    def estimate(cls, spectra: Iterable[torch.Tensor], num_bands: int) -> GaussianSpectrum:
        """From standardised spectra (pixels, bands), a part at a time."""
        count = 0
        total = torch.zeros(num_bands, dtype=torch.float64)
        products = torch.zeros(num_bands, num_bands, dtype=torch.float64)
        for part in spectra:
            part = part.double()
            count += len(part)
            total += part.sum(dim=0)
            products += part.T @ part
        if count < 2:
            raise ValueError(f"expected at least 2 pixels to estimate a covariance from, got {count}")
        mean = total / count
        # Standardised values are near 0 and 1 in mean and deviation: nothing cancels
        return cls(mean, products / count - torch.outer(mean, mean), count)

    def conditional_mean(self, values: torch.Tensor, hidden: torch.Tensor, ridge: float) -> torch.Tensor:
        """
        What is hidden in standardised spectra (pixels, bands), given what is visible of the same pixel: predictions of
        all bands, float64 (pixels, bands), the mean where a pixel shows no band. `ridge` is added to the variances, in
        shares of their mean.
        """
        ridges = (ridge * self.covariance.diagonal().mean()).expand(len(self.mean))
        covariance = self.covariance + torch.diag(ridges)
        predictions = self.mean.expand(len(values), -1).clone()
        num_visible = (~hidden).sum(dim=1)
        for count in num_visible.unique().tolist():
            # Pixels that show equally many bands make systems of one size
            rows = (num_visible == count).nonzero().flatten()
            for part in rows.split(max(1, 2_000_000 // max(1, count * len(self.mean)))):
                if not count:
                    continue
                visible = (~hidden[part]).nonzero()[:, 1].view(len(part), count)
                system = covariance[visible[:, :, None], visible[:, None, :]]
                deviations = values[part].double().gather(1, visible) - self.mean[visible]
                factor = torch.linalg.cholesky(system)
                solved = torch.cholesky_solve(deviations.unsqueeze(2), factor)
                # Without the ridge: it stands for noise, which is not predicted
                predictions[part] += (self.covariance[visible].transpose(1, 2) @ solved).squeeze(2)
        return predictions


def interpolate_spectra(values: torch.Tensor, hidden: torch.Tensor, wavelengths: torch.Tensor) -> torch.Tensor:
    """
    Linear interpolation along the spectrum between the visible bands of each pixel, constant beyond the outermost, of
    standardised values (pixels, bands) at ascending wavelengths: float64 (pixels, bands), 0, which is the mean, where
    a pixel shows no band.
    """
    values, wavelengths = values.double(), wavelengths.double()
    num_bands = values.shape[1]
    bands = torch.arange(num_bands).expand_as(values)
    before = torch.where(hidden, -1, bands).cummax(dim=1).values
    after = torch.where(hidden, num_bands, bands).flip(1).cummin(dim=1).values.flip(1)
    left = torch.where(before < 0, after, before).clamp(max=num_bands - 1)
    right = torch.where(after >= num_bands, before, after).clamp(min=0)
    distance = (wavelengths[right] - wavelengths[left]).clamp(min=1e-9)
    share = ((wavelengths[bands] - wavelengths[left]) / distance).clamp(0.0, 1.0)
    interpolated = values.gather(1, left) * (1.0 - share) + values.gather(1, right) * share
    return interpolated.masked_fill(hidden.all(dim=1, keepdim=True), 0.0)


def region_of_bands(wavelengths: Sequence[float]) -> dict[str, np.ndarray]:
    """Indices of the bands in each spectral region that has any, int64."""
    centres = np.asarray(wavelengths)
    regions = {
        name: np.flatnonzero(np.any([(low <= centres) & (centres < high) for low, high in ranges], axis=0))
        for name, ranges in REGIONS.items()
    }
    return {name: bands for name, bands in regions.items() if len(bands)}


def bands_of_model(tiles: Tiles, processor: HSSTImageProcessor, source: str) -> list[int]:
    """Indices of the model's bands in tiles; ValueError, with `source`, where one is missing or holds no data."""
    if tiles.wavelengths is None or processor.wavelengths is None:
        unknown = "tiles" if tiles.wavelengths is None else "model"
        raise ValueError(f"{source}: expected wavelengths of tiles and model, got none of the {unknown}")
    try:
        return processor.match_wavelengths(tiles.wavelengths, tiles.valid_bands)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def standardised_spectra(
    tiles: Tiles, processor: HSSTImageProcessor, source: str, numbers: Sequence[int] | None = None
) -> Iterator[torch.Tensor]:
    """Standardised spectra (pixels, bands) of the valid pixels of tiles, those of `numbers` or all, tile by tile."""
    bands = bands_of_model(tiles, processor, source)
    for number in range(len(tiles)) if numbers is None else numbers:
        pixels = torch.from_numpy(np.ascontiguousarray(tiles[number][bands])).unsqueeze(0)
        values, valid = processor.standardize(pixels, scale=tiles.scale, nodata=tiles.nodata)
        yield values[0].flatten(1).T[valid[0].flatten()]


@torch.inference_mode()
def evaluate_reconstruction(
    model: HSSTForMaskedImageModeling,
    processor: HSSTImageProcessor,
    tiles: Tiles,
    gaussians: Mapping[str, Sequence[GaussianSpectrum]],
    *,
    source: str,
    mask_type: str = "unit",
    mask_ratio: float = 0.7,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Mean absolute errors of hidden values, in standard deviations of each band (those of the processor), over windows
    that cover the tiles, as JSON can hold them. For each name there is one Gaussian for each tile. Errors of tiles
    name their `source`.
    """
    config, bands = model.config, bands_of_model(tiles, processor, source)
    windows = GridWindows(tiles, config.window_size, bands=bands)
    tile_of_window = torch.tensor([place[0] for place in windows.places])
    generator = torch.Generator().manual_seed(SEED)
    counts = torch.zeros(len(tiles), len(bands), dtype=torch.float64)
    sums: dict[Predictor, torch.Tensor] = {}
    hidden_tokens = num_tokens = 0
    for batch in tqdm(DataLoader(windows, batch_size=32), desc=f"{mask_type} masks", disable=not progress):
        values, valid = processor.standardize(batch["pixels"], scale=tiles.scale, nodata=tiles.nodata)
        mask = draw_mask(
            len(values),
            config.num_blocks,
            config.grid_size,
            mask_type=mask_type,
            mask_ratio=mask_ratio,
            mask_patch_size=config.mask_patch_size if mask_type in ("block", "tube") else 1,
            generator=generator,
        )
        hidden_tokens, num_tokens = hidden_tokens + int(mask.sum()), num_tokens + mask.numel()
        # "unit" fits masks of any kind where only visible tokens are encoded
        reconstruction = model(values, mask, valid, mask_type="unit").reconstruction
        hidden = hidden_values(mask, values, config)
        # From here on pixels in a row: (pixels, bands)
        flat_valid = valid.flatten()
        tile_numbers = tile_of_window[batch["window_index"]].repeat_interleave(valid[0].numel())[flat_valid]
        truth, flat_hidden, model_values, mean_values = (
            part.permute(0, 2, 3, 1).flatten(0, 2)[flat_valid]
            for part in (values, hidden, reconstruction, visible_band_mean(values, hidden, valid))
        )
        predictions: dict[Predictor, torch.Tensor] = {
            (MODEL, None): model_values,
            (INTERPOLATION, None): interpolate_spectra(truth, flat_hidden, torch.tensor(processor.wavelengths)),
            (VISIBLE_MEAN, None): mean_values,
            (BAND_MEAN, None): torch.zeros_like(truth),
        }
        for (name, of_tiles), ridge in product(gaussians.items(), RIDGES):
            predicted = predictions[GAUSSIAN + name, ridge] = torch.empty_like(truth).double()
            for gaussian in dict.fromkeys(of_tiles):
                rows = torch.tensor([other is gaussian for other in of_tiles])[tile_numbers]
                predicted[rows] = gaussian.conditional_mean(truth[rows], flat_hidden[rows], ridge)
        for predictor, prediction in predictions.items():
            errors = (prediction.double() - truth).abs() * flat_hidden
            sums.setdefault(predictor, torch.zeros_like(counts)).index_add_(0, tile_numbers, errors)
        counts.index_add_(0, tile_numbers, flat_hidden.double())
    if not counts.sum():
        raise ValueError(f"{source}: expected hidden values of valid pixels to score, got none")
    # Of each Gaussian the ridge with the smallest error, whatever that favours
    chosen: dict[str, Predictor] = {}
    for name in dict.fromkeys(name for name, _ in sums):
        chosen[name] = min((each for each in sums if each[0] == name), key=lambda each: sums[each].sum().item())
    regions = region_of_bands(processor.wavelengths or [])
    predictors = {name: _errors(sums[predictor], counts, regions) for name, predictor in chosen.items()}
    for name, (_, best_ridge) in chosen.items():
        if best_ridge is not None:
            predictors[name]["ridge"] = best_ridge
    scored = counts.sum(dim=1) > 0
    by_tile = {name: sums[predictor].sum(dim=1)[scored].numpy() for name, predictor in chosen.items()}
    return {
        "predictors": predictors,
        "model_to": {name: _ratio(by_tile[MODEL], errors) for name, errors in by_tile.items() if name != MODEL},
        "tiles": [name for name, is_scored in zip(tiles.names, scored.tolist(), strict=True) if is_scored],
        "values": int(counts.sum()),
        **{"hidden": hidden_tokens / num_tokens, "windows": len(windows), "seed": SEED},
    }


def _errors(sums: torch.Tensor, counts: torch.Tensor, regions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Mean errors of a predictor overall and by region, from sums and counts (tiles, bands)."""
    of_bands, num = sums.sum(dim=0), counts.sum(dim=0)
    return {
        "overall": (of_bands.sum() / num.sum()).item(),
        "regions": {
            name: (of_bands[bands].sum() / num[bands].sum().clamp(min=1)).item() for name, bands in regions.items()
        },
    }


def _ratio(of_model: np.ndarray, of_other: np.ndarray) -> dict[str, float | None]:
    """Ratio of two errors by tile, with its 95 % interval by resampling tiles; None for fewer than three tiles."""
    low = high = None
    if len(of_model) >= 3:
        drawn = np.random.default_rng(0).integers(len(of_model), size=(NUM_RESAMPLES, len(of_model)))
        low, high = np.percentile(of_model[drawn].sum(axis=1) / of_other[drawn].sum(axis=1), [2.5, 97.5]).tolist()
    return {"ratio": float(of_model.sum() / of_other.sum()), "low": low, "high": high}


def title_of(predictor: str) -> str:
    """A predictor as people name it."""
    if predictor.startswith(GAUSSIAN):
        return f"Gaussian conditional mean, estimated from {predictor.removeprefix(GAUSSIAN)}"
    return PREDICTOR_TITLES[predictor]


def reconstruction_table(result: Mapping[str, Any]) -> str:
    """Markdown of `reconstruction.json`: one table for each type of masks."""
    parts = []
    for mask_type, masks in result["masks"].items():
        errors = {
            name: {"all bands": entry["overall"], **entry["regions"]} for name, entry in masks["predictors"].items()
        }
        best = {region: min(entry[region] for entry in errors.values()) for region in errors[MODEL]}
        rows = []
        for name, entry in errors.items():
            texts = {region: f"{error:.3f}" for region, error in entry.items()}
            cells = [f"**{text}**" if entry[region] == best[region] else text for region, text in texts.items()]
            ratio, to_model = masks["model_to"].get(name), ""
            if ratio is not None:
                between = "" if ratio["low"] is None else f" ({ratio['low']:.2f}–{ratio['high']:.2f})"
                to_model = f"{ratio['ratio']:.2f}{between}"
            rows.append([title_of(name), *cells, to_model])
        header = [f"{mask_type} masks, {masks['hidden']:.0%} hidden", *best, "model's error to it"]
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def read_folder(folder: Path, tile_size: int) -> Tiles:
    return read_corpus(folder) if is_corpus(folder) else read_tile_set(folder, tile_size)


def blocks_of_tiles(names: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """Name of the block of each tile, by `NAME=PATTERN,...`."""
    patterns = {name: listed.split(",") for name, listed in parse_named("block", "NAME=PATTERN,...", blocks).items()}
    if len(patterns) < 2:
        raise ValueError(f"--block: expected at least 2 blocks, got {len(patterns)}")
    found = []
    for tile in names:
        matching = [name for name, listed in patterns.items() if any(fnmatch(tile, each.strip()) for each in listed)]
        if len(matching) != 1:
            raise ValueError(f"--block: expected each tile in one block, got {len(matching)} for {tile}")
        found += matching
    lacking = [name for name in patterns if name not in found]
    if lacking:
        raise ValueError(f"--block: expected tiles in each block, got none in {lacking[0]}")
    return found


def make_gaussians(
    arguments: argparse.Namespace, tiles: Tiles, processor: HSSTImageProcessor
) -> dict[str, list[GaussianSpectrum]]:
    """The Gaussian of each tile, for each way of estimating it."""
    gaussians: dict[str, list[GaussianSpectrum]] = {}
    num_bands = len(processor.wavelengths or [])
    if arguments.training_tiles is not None:
        training, source = read_folder(arguments.training_tiles, arguments.tile_size), str(arguments.training_tiles)
        numbers = np.unique(np.linspace(0, len(training) - 1, min(len(training), MAX_TRAINING_TILES)).astype(int))
        spectra = standardised_spectra(training, processor, source, numbers.tolist())
        gaussians["the model's training tiles"] = [GaussianSpectrum.estimate(spectra, num_bands)] * len(tiles)
    if arguments.block:
        blocks = blocks_of_tiles(tiles.names, arguments.block)
        of_block = {}
        for block in dict.fromkeys(blocks):
            others = [number for number, name in enumerate(blocks) if name != block]
            spectra = standardised_spectra(tiles, processor, str(arguments.tiles), others)
            of_block[block] = GaussianSpectrum.estimate(spectra, num_bands)
        gaussians["other tiles of the same scene"] = [of_block[block] for block in blocks]
    return gaussians


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or name on the Hub, of a pre-trained model")
    parser.add_argument("--tiles", type=Path, required=True, help="folder of tiles or products to score")
    parser.add_argument("--training_tiles", type=Path, help="the training's folder of tiles, products or shards")
    parser.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="NAME=PATTERN,...",
        help="tiles of one area, by patterns of their names; give at least two",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    parser.add_argument(
        "--mask_types", nargs="+", choices=MASK_TYPES, default=["unit", "tube", "grid"], help="kinds of masks"
    )
    parser.add_argument("--mask_ratio", type=float, default=0.7, help="share of the tokens to hide")
    parser.add_argument("--tile_size", type=int, default=64, help="side of tiles cut from products, in pixels")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("reconstruction.py"):
        model = load_masked_model(arguments.model)
        processor = read_processor(arguments.model, model.config)
        tiles, source = read_folder(arguments.tiles, arguments.tile_size), str(arguments.tiles)
        gaussians = make_gaussians(arguments, tiles, processor)
        given = {"source": source, "mask_ratio": arguments.mask_ratio, "progress": True}
        result = {
            "masks": {
                kind: evaluate_reconstruction(model, processor, tiles, gaussians, mask_type=kind, **given)
                for kind in dict.fromkeys(arguments.mask_types)
            },
            "gaussian_pixels": {
                name: sorted({gaussian.num_pixels for gaussian in by_tile}) for name, by_tile in gaussians.items()
            },
            "bands": len(processor.wavelengths or []),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "model": Path(arguments.model).name,
            "mask_ratio": arguments.mask_ratio,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        table = reconstruction_table(result)
        write_text(arguments.output_dir / "reconstruction.md", table + "\n")
        path = write_json(arguments.output_dir / "reconstruction.json", result)
    print(f"{table}\n\nResults: {path}")


if __name__ == "__main__":
    main()
