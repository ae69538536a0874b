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
are scored with the mean and covariance of the other blocks' pixels. The output folder holds `reconstruction.json`, the
table `reconstruction.md`, and `reconstruction_spectra.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForMaskedImageModeling

from datasets_loading.corpus import is_corpus, read_corpus
from datasets_loading.files import write_json, write_text
from datasets_loading.tiles import Tiles, read_tile_set
from datasets_loading.windows import GridWindows
from hsst.experiments.run_mim_tensors import TileTensors
from hsst.support.command_line import one_line_errors
from hsst.support.figures import INPUT_COLOUR, RECONSTRUCTION_COLOUR
from hsst.support.model_sources import read_config, reading
from hsst.support.reports import save_figure
from modeling_hsst import HSSTForMaskedImageModeling, HSSTImageProcessor, draw_mask, use_fast_layers
from modeling_hsst.configuration_hsst import MASK_TYPES
from modeling_hsst.modeling_hsst_masked import hidden_values, visible_band_mean

REGIONS: dict[str, tuple[tuple[float, float], ...]] = {
    "VNIR": ((400.0, 680.0), (780.0, 1000.0)),
    "red edge": ((680.0, 780.0),),
    "SWIR1": ((1000.0, 1850.0),),
    "SWIR2": ((1850.0, 2500.0),),
}
"""Wavelengths in nm, from the first to before the last, of each spectral region."""

MODEL, INTERPOLATION, STANDARDISED_INTERPOLATION = "model", "interpolation", "interpolation of standardised values"
VISIBLE_MEAN, BAND_MEAN = "visible mean", "band mean"
PREDICTOR_TITLES = {
    MODEL: "this model",
    INTERPOLATION: "linear interpolation along the spectrum",
    STANDARDISED_INTERPOLATION: "the same of standardised values",
    VISIBLE_MEAN: "mean of the window's visible tokens of the same band",
    BAND_MEAN: "mean of the band over the training tiles",
}
GAUSSIAN = "Gaussian, "
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""What is added to the variances of a Gaussian, in shares of their mean; the best for the tiles scored is taken."""

NUM_RESAMPLES = 2000
NUM_SPECTRA = 4
GAUSSIAN_COLOURS = ("#1b6ca8", "#2f8f3e", "#9b5de5")
INTERPOLATION_COLOUR = "#f4a100"


@dataclass(frozen=True, eq=False)
class GaussianSpectrum:
    """Mean (bands,) and covariance (bands, bands) of all bands of a pixel, in standardised values, float64, and the
    number of pixels that they were estimated from."""

    mean: torch.Tensor
    covariance: torch.Tensor
    num_pixels: int

    @classmethod
    def estimate(cls, spectra: Iterable[torch.Tensor], num_bands: int) -> GaussianSpectrum:
        """From standardised spectra (pixels, bands), a part at a time.

        Raises:
            ValueError: there are fewer than two spectra.
        """
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


def interpolate_spectra(
    values: torch.Tensor, hidden: torch.Tensor, wavelengths: torch.Tensor, fallback: torch.Tensor
) -> torch.Tensor:
    """
    Linear interpolation along the spectrum between the visible bands of each pixel, constant beyond the outermost, of
    values (pixels, bands) at ascending wavelengths: float64 (pixels, bands), `fallback` (bands,) where a pixel shows
    no band.
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
    return torch.where(hidden.all(dim=1, keepdim=True), fallback.double(), interpolated)


def region_of_bands(wavelengths: Sequence[float]) -> dict[str, np.ndarray]:
    """Indices of the bands in each spectral region that has any, int64."""
    centres = np.asarray(wavelengths)
    regions = {
        name: np.flatnonzero(np.any([(low <= centres) & (centres < high) for low, high in ranges], axis=0))
        for name, ranges in REGIONS.items()
    }
    return {name: bands for name, bands in regions.items() if len(bands)}


def bands_of_model(tiles: Tiles, processor: HSSTImageProcessor, source: str) -> list[int]:
    """Indices of the model's bands in tiles.

    Raises:
        ValueError: wavelengths are unknown, or a band of the model is missing or holds no data; names `source`.
    """
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
    draws: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    Mean absolute errors of hidden values, in standard deviations of each band (those of the processor), over windows
    that cover the tiles, each with so many draws of its mask. For each name there is one Gaussian for each tile.

    Returns:
        Errors as JSON can hold them, and spectra of some pixels: reflectance (pixels, bands) by predictor, with
        "truth", and bool "hidden".

    Raises:
        ValueError: the tiles lack bands of the model, hold no valid pixel, or the masks do not fit its windows; the
            message names `source`.
    """
    config, bands = model.config, bands_of_model(tiles, processor, source)
    wavelengths = torch.tensor(processor.wavelengths)
    windows = GridWindows(tiles, config.window_size, bands=bands)
    tile_of_window = torch.tensor([place[0] for place in windows.places])
    generator = torch.Generator().manual_seed(seed)
    fallback = processor.to_reflectance(torch.zeros(len(bands), 1, 1)).flatten()
    counts = torch.zeros(len(tiles), len(bands), dtype=torch.float64)
    sums: dict[str, torch.Tensor] = {}
    hidden_tokens = num_tokens = 0
    examples: list[dict[str, torch.Tensor]] = []
    for _ in range(draws):
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
            reflectance = in_reflectance(truth, processor)
            interpolated = interpolate_spectra(reflectance, flat_hidden, wavelengths, fallback)
            predictions = {
                MODEL: model_values,
                INTERPOLATION: standardised(interpolated, processor),
                STANDARDISED_INTERPOLATION: interpolate_spectra(truth, flat_hidden, wavelengths, 0 * fallback),
                VISIBLE_MEAN: mean_values,
                BAND_MEAN: torch.zeros_like(truth),
            }
            for name, of_tiles in gaussians.items():
                for ridge in RIDGES:
                    predicted = predictions[f"{GAUSSIAN}{name} @ {ridge:g}"] = torch.empty_like(truth).double()
                    for gaussian in dict.fromkeys(of_tiles):
                        rows = torch.tensor([other is gaussian for other in of_tiles])[tile_numbers]
                        predicted[rows] = gaussian.conditional_mean(truth[rows], flat_hidden[rows], ridge)
            for name, prediction in predictions.items():
                errors = (prediction.double() - truth).abs() * flat_hidden
                sums.setdefault(name, torch.zeros_like(counts)).index_add_(0, tile_numbers, errors)
            counts.index_add_(0, tile_numbers, flat_hidden.double())
            if len(truth):
                rows = example_rows(flat_hidden)
                spectra = {name: in_reflectance(part[rows], processor) for name, part in predictions.items()}
                truth_of_rows = in_reflectance(truth[rows], processor)
                examples.append({**spectra, "truth": truth_of_rows, "hidden": flat_hidden[rows]})
    if not counts.sum():
        raise ValueError(f"{source}: expected hidden values of valid pixels to score, got none")
    # Of each Gaussian the ridge with the smallest error, whatever that favours
    chosen: dict[str, str] = {}
    for name in sorted(sums, key=lambda name: sums[name].sum().item()):
        chosen.setdefault(name.partition(" @ ")[0], name)
    chosen = {title: chosen[title] for title in dict.fromkeys(name.partition(" @ ")[0] for name in sums)}
    predictors = {}
    for title, name in chosen.items():
        predictors[title] = _errors(sums[name], counts, region_of_bands(wavelengths.tolist()))
        if title.startswith(GAUSSIAN):
            predictors[title]["ridge"] = float(name.partition(" @ ")[2])
    scored = counts.sum(dim=1) > 0
    by_tile = {title: sums[name].sum(dim=1)[scored].numpy() for title, name in chosen.items()}
    result = {
        "predictors": predictors,
        "model_to": {title: _ratio(by_tile[MODEL], by_tile[title]) for title in chosen if title != MODEL},
        "tiles": [name for name, is_scored in zip(tiles.names, scored.tolist(), strict=True) if is_scored],
        "values": int(counts.sum()),
        **{"hidden": hidden_tokens / num_tokens, "windows": len(windows), "draws": draws, "seed": seed},
    }
    shown = {"truth": "truth", "hidden": "hidden", **chosen}
    spectra_of = {title: torch.cat([part[name] for part in examples]).numpy() for title, name in shown.items()}
    rows_shown = different_rows(spectra_of["truth"])
    return result, {title: values[rows_shown] for title, values in spectra_of.items()}


def in_reflectance(values: torch.Tensor, processor: HSSTImageProcessor) -> torch.Tensor:
    """Standardised spectra (pixels, bands) as reflectance."""
    return processor.to_reflectance(values.T.unsqueeze(2)).squeeze(2).T


def standardised(reflectance: torch.Tensor, processor: HSSTImageProcessor) -> torch.Tensor:
    """Reflectance (pixels, bands) as standardised spectra."""
    mean = torch.zeros(1) if processor.image_mean is None else torch.tensor(processor.image_mean)
    deviation = torch.ones(1) if processor.image_std is None else torch.tensor(processor.image_std)
    return (reflectance - mean.double()) / deviation.double()


def _errors(sums: torch.Tensor, counts: torch.Tensor, regions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Mean errors of a predictor overall, by region and by band, from sums and counts (tiles, bands)."""
    of_bands, num = sums.sum(dim=0), counts.sum(dim=0)
    return {
        "overall": (of_bands.sum() / num.sum()).item(),
        "regions": {
            name: (of_bands[bands].sum() / num[bands].sum().clamp(min=1)).item() for name, bands in regions.items()
        },
        "by_band": (of_bands / num.clamp(min=1)).tolist(),
    }


def _ratio(of_model: np.ndarray, of_other: np.ndarray) -> dict[str, float | None]:
    """Ratio of two errors by tile, with its 95 % interval by resampling tiles; None for fewer than three tiles."""
    low = high = None
    if len(of_model) >= 3:
        drawn = np.random.default_rng(0).integers(len(of_model), size=(NUM_RESAMPLES, len(of_model)))
        low, high = np.percentile(of_model[drawn].sum(axis=1) / of_other[drawn].sum(axis=1), [2.5, 97.5]).tolist()
    return {"ratio": float(of_model.sum() / of_other.sum()), "low": low, "high": high}


def example_rows(hidden: torch.Tensor, count: int = 32) -> torch.Tensor:
    """Numbers of pixels spread over a batch, those with a typical share of hidden bands preferred."""
    share = hidden.double().mean(dim=1)
    partly = ((share > 0.4) & (share < 0.85)).nonzero().flatten()
    rows = partly if len(partly) else torch.arange(len(hidden))
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]


def different_rows(truth: np.ndarray, count: int = NUM_SPECTRA) -> list[int]:
    """Numbers of pixels unlike each other: the most ordinary one, then each time the one farthest from all before."""
    rows = [int(np.abs(truth - np.median(truth, axis=0)).mean(axis=1).argmin())]
    nearest = np.full(len(truth), np.inf)
    while len(rows) < min(count, len(truth)):
        nearest = np.minimum(nearest, np.abs(truth - truth[rows[-1]]).mean(axis=1))
        rows.append(int(nearest.argmax()))
    return rows


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
        rows = [f"| {mask_type} masks, {masks['hidden']:.0%} hidden | {' | '.join(best)} | model's error to it |"]
        rows.append("|---|" + "---|" * (len(best) + 1))
        for name, entry in errors.items():
            texts = {region: f"{error:.3f}" for region, error in entry.items()}
            cells = [f"**{text}**" if entry[region] == best[region] else text for region, text in texts.items()]
            ratio, text = masks["model_to"].get(name), ""
            if ratio is not None:
                between = "" if ratio["low"] is None else f" ({ratio['low']:.2f}–{ratio['high']:.2f})"
                text = f"{ratio['ratio']:.2f}{between}"
            rows.append(f"| {title_of(name)} | {' | '.join(cells)} | {text} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def plot_reconstructed_spectra(
    path: str | Path,
    spectra: Mapping[str, np.ndarray],
    by_band: Mapping[str, Sequence[float]],
    wavelengths: Sequence[float],
    title: str,
) -> Path:
    """Draws `spectra` (of `evaluate_reconstruction`) as they are and as each predictor completes them, and the errors
    of every band by predictor."""
    centres = np.asarray(wavelengths)
    gaussians = [name for name in spectra if name.startswith(GAUSSIAN)]
    styles = {MODEL: (RECONSTRUCTION_COLOUR, 1.7), INTERPOLATION: (INTERPOLATION_COLOUR, 1.0)}
    styles |= {name: (colour, 1.1) for name, colour in zip(gaussians, GAUSSIAN_COLOURS, strict=False)}
    figure = Figure(figsize=(13.5, 11), layout="constrained")
    axes = figure.subplots(3, 2)
    figure.suptitle(title, fontsize=12)
    gaps = np.flatnonzero(np.diff(centres) > 60) + 1
    for row, axis in enumerate(axes.flat[:NUM_SPECTRA]):
        if row >= len(spectra["truth"]):
            axis.axis("off")
            continue
        hidden = spectra["hidden"][row]
        for part in np.split(np.arange(len(centres)), gaps):
            axis.plot(centres[part], spectra["truth"][row][part], color=INPUT_COLOUR, lw=2.0, zorder=2)
            for name, (colour, width) in styles.items():
                values = np.where(hidden[part], spectra[name][row][part], np.nan)
                axis.plot(centres[part], values, color=colour, lw=width, zorder=4 if name == MODEL else 3)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            axis.axvspan(centres[first], centres[last - 1], color="#000000", alpha=0.06, lw=0)
        axis.set_ylabel("reflectance")
        axis.set_title(f"pixel {row + 1}: {hidden.mean():.0%} of the bands hidden (grey)", fontsize=10)
        axis.set_ylim(bottom=min(0.0, float(spectra["truth"][row].min())))
    bottom = figure.add_subplot(axes[2, 0].get_gridspec()[2, :])
    for axis in axes[2]:
        axis.remove()
    for name, (colour, width) in {**styles, VISIBLE_MEAN: ("#888888", 1.0)}.items():
        for number, part in enumerate(np.split(np.arange(len(centres)), gaps)):
            label = None if number else title_of(name)
            bottom.plot(centres[part], np.asarray(by_band[name])[part], color=colour, lw=width, label=label)
    bottom.plot([], [], color=INPUT_COLOUR, lw=2.0, label="true spectrum (above)")
    bottom.set_yscale("log")
    bottom.set_xlabel("wavelength (nm)")
    bottom.set_ylabel("mean absolute error\n(standard deviations)")
    bottom.legend(fontsize=8, ncols=2)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(path, figure)


def read_folder(folder: Path, tile_size: int) -> Tiles:
    return read_corpus(folder) if is_corpus(folder) else read_tile_set(folder, tile_size)


def load_model(name: str) -> tuple[HSSTForMaskedImageModeling, HSSTImageProcessor]:
    """
    Raises:
        ValueError: there is no pre-trained model of that name.
    """
    architecture = (read_config(name, "--model").architectures or ["nothing"])[0]
    if architecture != "HSSTForMaskedImageModeling":
        raise ValueError(f"--model {name}: expected a pre-trained HSSTForMaskedImageModeling, got {architecture}")
    with reading(name):
        model = AutoModelForMaskedImageModeling.from_pretrained(name)
    return use_fast_layers(model.eval()), HSSTImageProcessor.from_pretrained(name)


def blocks_of_tiles(names: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """Name of the block of each tile, by `NAME=PATTERN,...`.

    Raises:
        ValueError: an argument is not written so, or a tile is in no block or in several.
    """
    patterns = {}
    for text in blocks:
        name, separator, listed = text.partition("=")
        if not separator or not listed:
            raise ValueError(f"--block: expected NAME=PATTERN,..., got {text}")
        patterns[name] = [pattern.strip() for pattern in listed.split(",")]
    if len(patterns) < 2:
        raise ValueError(f"--block: expected at least 2 blocks, got {len(patterns)}")
    found = []
    for tile in names:
        matching = [name for name, listed in patterns.items() if any(fnmatch(tile, pattern) for pattern in listed)]
        if len(matching) != 1:
            raise ValueError(f"--block: expected each tile in one block, got {len(matching)} for {tile}")
        found.append(matching[0])
    lacking = [name for name in patterns if name not in found]
    if lacking:
        raise ValueError(f"--block: expected tiles in each block, got none in {lacking[0]}")
    return found


def training_spectra(arguments: argparse.Namespace, processor: HSSTImageProcessor) -> Iterable[torch.Tensor]:
    """Standardised spectra (pixels, bands) of training tiles; safetensors files in the proportion of their weights.

    Raises:
        ValueError: there are several folders, or folders beside files, or files cannot be used.
    """
    paths = arguments.training_tiles
    if not any(is_tensor_file(path) for path in paths):
        if len(paths) > 1:
            raise ValueError(f"--training_tiles: expected one folder, or safetensors files, got {len(paths)} folders")
        training = read_folder(Path(paths[0]), arguments.tile_size)
        return standardised_spectra(training, processor, paths[0], spread(len(training), arguments.max_training_tiles))
    folders = [path for path in paths if not is_tensor_file(path)]
    if folders:
        raise ValueError(f"--training_tiles: expected safetensors files only beside one, got {folders[0]}")
    sources = []
    for path in paths:
        try:
            tensors = TileTensors.read(path, list(processor.wavelengths or []))
        except ValueError as error:
            raise ValueError(f"--training_tiles {error}") from None
        numbers = spread(len(tensors.tiles), arguments.max_training_tiles)
        values, valid = processor.standardize(tensors.tiles[numbers], scale=tensors.scale, nodata=tensors.nodata)
        sources.append((values.permute(0, 2, 3, 1)[valid], tensors.weight))
    # As many pixels of each as its share of the training's windows allows
    total = min(len(spectra) / weight for spectra, weight in sources)
    return [spectra[spread(len(spectra), round(total * weight))] for spectra, weight in sources]


def is_tensor_file(path: str) -> bool:
    return path.partition("=")[0].endswith(".safetensors")


def spread(length: int, most: int) -> list[int]:
    """Up to so many numbers below a length, spread evenly."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int)).tolist()


def make_gaussians(
    arguments: argparse.Namespace, tiles: Tiles, processor: HSSTImageProcessor
) -> dict[str, list[GaussianSpectrum]]:
    """The Gaussian of each tile, for each way of estimating it."""
    gaussians: dict[str, list[GaussianSpectrum]] = {}
    num_bands = len(processor.wavelengths or [])
    if arguments.training_tiles is not None:
        spectra = training_spectra(arguments, processor)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or name on the Hub, of a pre-trained model")
    parser.add_argument("--tiles", type=Path, required=True, help="folder of tiles or products to score")
    parser.add_argument(
        "--training_tiles",
        nargs="+",
        metavar="PATH",
        help="the training's folder of tiles, products or shards, or its safetensors files as FILE or FILE=WEIGHT",
    )
    parser.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="NAME=PATTERN,...",
        help="tiles of one area, by patterns of their names; give at least two",
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--name", help="of the tiles in the figure's title (their folder's)")
    parser.add_argument("--mask_types", nargs="+", choices=MASK_TYPES, default=["unit", "tube", "grid"])
    for name, default, text in (
        ("tile_size", 64, "side of the tiles cut from products, in pixels"),
        ("mask_ratio", 0.7, "share of the tokens to hide"),
        ("draws", 1, "masks of each window"),
        ("max_training_tiles", 400, "training tiles to estimate the Gaussian from"),
        ("seed", 0, "of the masks"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} ({default})")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("reconstruction.py"):
        for name in ("draws", "max_training_tiles"):
            if getattr(arguments, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
        model, processor = load_model(arguments.model)
        tiles = read_folder(arguments.tiles, arguments.tile_size)
        gaussians = make_gaussians(arguments, tiles, processor)
        masks, spectra = {}, {}
        for mask_type in dict.fromkeys(arguments.mask_types):
            masks[mask_type], spectra[mask_type] = evaluate_reconstruction(
                model,
                processor,
                tiles,
                gaussians,
                source=str(arguments.tiles),
                mask_type=mask_type,
                mask_ratio=arguments.mask_ratio,
                draws=arguments.draws,
                seed=arguments.seed,
                progress=True,
            )
        by_band = {
            mask_type: {name: errors.pop("by_band") for name, errors in result["predictors"].items()}
            for mask_type, result in masks.items()
        }
        result = {
            "masks": masks,
            "gaussian_pixels": {
                name: sorted({gaussian.num_pixels for gaussian in by_tile}) for name, by_tile in gaussians.items()
            },
            "bands": len(processor.wavelengths or []),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "model": Path(arguments.model).name,
            "mask_ratio": arguments.mask_ratio,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        first = next(iter(masks))
        plot_reconstructed_spectra(
            arguments.output_dir / "reconstruction_spectra.png",
            spectra[first],
            by_band[first],
            processor.wavelengths or [],
            f"{arguments.name or arguments.tiles.name}: {first} masks, {masks[first]['hidden']:.0%} of the tokens "
            "hidden",
        )
        table = reconstruction_table(result)
        write_text(arguments.output_dir / "reconstruction.md", table + "\n")
        path = write_json(arguments.output_dir / "reconstruction.json", result)
    print(f"{table}\n\nResults: {path}")


if __name__ == "__main__":
    main()
