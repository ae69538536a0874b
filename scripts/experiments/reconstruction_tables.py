"""How well hidden values are reconstructed, beside predictors that need no network.

The strongest of them is the mean of a Gaussian: mean and covariance of all bands are estimated from pixels, and what
is hidden in a pixel follows from what is visible in it (conditional mean). It knows everything that is linear within
a spectrum and nothing of the neighbours, which a model sees as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from datasets_loading.files import written_whole
from datasets_loading.tiles import Tiles
from datasets_loading.windows import GridWindows
from hsst.support.figures import INPUT_COLOUR, RECONSTRUCTION_COLOUR
from modeling_hsst import HSSTForMaskedImageModeling, HSSTImageProcessor, draw_mask
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


@dataclass(frozen=True)
class GaussianSpectrum:
    """Mean and covariance of all bands of a pixel, in standardised values.

    Attributes:
        mean: float64 (bands,).
        covariance: float64 (bands, bands).
        num_pixels: pixels that they were estimated from.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    num_pixels: int

    @classmethod
    def estimate(cls, spectra: Iterator[torch.Tensor] | Sequence[torch.Tensor], num_bands: int) -> GaussianSpectrum:
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
        """What is hidden, given what is visible of the same pixel.

        Args:
            values: standardised spectra (pixels, bands); what is hidden is not looked at.
            hidden: bool of the same shape.
            ridge: added to the variances, in shares of their mean.

        Returns:
            Predictions of all bands, float64 (pixels, bands); the mean where a pixel shows no band.
        """
        covariance = self.covariance + ridge * self.covariance.diagonal().mean() * torch.eye(
            len(self.mean), dtype=torch.float64
        )
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
    """Linear interpolation along the spectrum between the visible bands of each pixel, constant beyond the outermost.

    Args:
        values: reflectance or standardised values (pixels, bands); what is hidden is not looked at.
        hidden: bool of the same shape.
        wavelengths: band centres in nm, ascending (bands,).
        fallback: values (bands,) of pixels that show no band.

    Returns:
        Values of all bands, float64 (pixels, bands).
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
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Mean absolute errors of hidden values, in standard deviations of each band (those of the processor).

    Args:
        model: the model, in evaluation mode.
        processor: its processor.
        tiles: tiles to score, covered by windows from their upper left corner.
        gaussians: for each name, one Gaussian for each tile.
        source: where the tiles come from, for errors.
        mask_type: which tokens are hidden together; squares are those of the model's configuration.
        mask_ratio: share of the tokens to hide.
        draws: masks of each window.
        seed: of the masks.
        batch_size: windows at once.
        progress: show a progress bar.

    Returns:
        Errors as JSON can hold them, and spectra of some pixels: reflectance (pixels, bands) by predictor, with
        "truth", and bool "hidden".

    Raises:
        ValueError: the tiles lack bands of the model, hold no valid pixel, or the masks do not fit its windows.
    """
    config = model.config
    bands = bands_of_model(tiles, processor, source)
    wavelengths = torch.tensor(processor.wavelengths)
    windows = GridWindows(tiles, config.window_size, bands=bands)
    tile_of_window = torch.tensor([place[0] for place in windows.places])
    generator = torch.Generator().manual_seed(seed)
    fallback = processor.to_reflectance(torch.zeros(len(bands), 1, 1)).flatten()
    names = [MODEL, INTERPOLATION, STANDARDISED_INTERPOLATION, VISIBLE_MEAN, BAND_MEAN]
    names += [f"{GAUSSIAN}{name} @ {ridge:g}" for name in gaussians for ridge in RIDGES]
    sums = torch.zeros(len(tiles), len(names), len(bands), dtype=torch.float64)
    counts = torch.zeros(len(tiles), len(bands), dtype=torch.float64)
    hidden_tokens = num_tokens = 0
    examples: list[dict[str, torch.Tensor]] = []
    for _ in range(draws):
        loader = DataLoader(windows, batch_size=batch_size)
        for batch in tqdm(loader, desc=f"{mask_type} masks", disable=not progress):
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
            visible_mean = visible_band_mean(values, hidden, valid)
            truth, flat_hidden, model_values, mean_values = (
                part.permute(0, 2, 3, 1).flatten(0, 2)[flat_valid]
                for part in (values, hidden, reconstruction, visible_mean)
            )
            reflectance = in_reflectance(truth, processor)
            interpolated = interpolate_spectra(reflectance, flat_hidden, wavelengths, fallback)
            predictions = [model_values, standardised(interpolated, processor)]
            predictions.append(interpolate_spectra(truth, flat_hidden, wavelengths, torch.zeros(len(bands))))
            predictions += [mean_values, torch.zeros_like(truth)]
            for by_tile in gaussians.values():
                for ridge in RIDGES:
                    predictions.append(_of_each_tile(by_tile, tile_numbers, truth, flat_hidden, ridge))
            for number, prediction in enumerate(predictions):
                errors = (prediction.double() - truth).abs() * flat_hidden
                sums[:, number].index_add_(0, tile_numbers, errors)
            counts.index_add_(0, tile_numbers, flat_hidden.double())
            if len(truth):
                examples.append(_examples(names, predictions, truth, flat_hidden, processor))
    if not counts.sum():
        raise ValueError(f"{source}: expected hidden values of valid pixels to score, got none")
    chosen = _best_ridges(names, sums)
    result = _result(tiles, names, sums, counts, chosen, region_of_bands(wavelengths.tolist()))
    result |= {"hidden": hidden_tokens / num_tokens, "windows": len(windows), "draws": draws, "seed": seed}
    spectra = {key: torch.cat([example[key] for example in examples]).numpy() for key in examples[0]}
    renamed = {"truth": "truth", "hidden": "hidden", **{names[number]: title for title, number in chosen.items()}}
    return result, _different_pixels({title: spectra[name] for name, title in renamed.items()})


def in_reflectance(values: torch.Tensor, processor: HSSTImageProcessor) -> torch.Tensor:
    """Standardised spectra (pixels, bands) as reflectance."""
    return processor.to_reflectance(values.T.unsqueeze(2)).squeeze(2).T


def standardised(reflectance: torch.Tensor, processor: HSSTImageProcessor) -> torch.Tensor:
    """Reflectance (pixels, bands) as standardised spectra."""
    shape = (len(reflectance), -1)
    mean = torch.zeros(1) if processor.image_mean is None else torch.tensor(processor.image_mean)
    deviation = torch.ones(1) if processor.image_std is None else torch.tensor(processor.image_std)
    return ((reflectance - mean.double()) / deviation.double()).view(shape)


def _of_each_tile(
    gaussians: Sequence[GaussianSpectrum],
    tile_numbers: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    ridge: float,
) -> torch.Tensor:
    """Conditional means (pixels, bands), each pixel's by the Gaussian of its tile."""
    predictions = torch.empty(values.shape, dtype=torch.float64)
    distinct = {id(gaussian): gaussian for gaussian in gaussians}
    keys = torch.tensor([list(distinct).index(id(gaussian)) for gaussian in gaussians])
    for number, gaussian in enumerate(distinct.values()):
        rows = keys[tile_numbers] == number
        if rows.any():
            predictions[rows] = gaussian.conditional_mean(values[rows], hidden[rows], ridge)
    return predictions


def _best_ridges(names: Sequence[str], sums: torch.Tensor) -> dict[str, int]:
    """Number of each predictor by its title: of each Gaussian the ridge with the smallest error."""
    totals = sums.sum(dim=(0, 2)).tolist()
    best: dict[str, int] = {}
    for number, name in enumerate(names):
        title = name.split(" @ ")[0]
        if title not in best or totals[number] < totals[best[title]]:
            best[title] = number
    return best


def _result(
    tiles: Tiles,
    names: Sequence[str],
    sums: torch.Tensor,
    counts: torch.Tensor,
    chosen: Mapping[str, int],
    regions: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Errors by predictor: overall, by region, by band, by tile; and the model's in relation to the others'."""
    predictors: dict[str, dict[str, Any]] = {}
    scored = counts.sum(dim=1) > 0
    for title, number in chosen.items():
        of_predictor = sums[:, number]
        predictors[title] = {
            "overall": (of_predictor.sum() / counts.sum()).item(),
            "regions": {
                name: (of_predictor[:, bands].sum() / counts[:, bands].sum().clamp(min=1)).item()
                for name, bands in regions.items()
            },
            "by_band": (of_predictor.sum(dim=0) / counts.sum(dim=0).clamp(min=1)).tolist(),
        }
        if title.startswith(GAUSSIAN):
            predictors[title]["ridge"] = float(names[number].split(" @ ")[1])
    by_tile = sums.sum(dim=2)[scored]
    ratios = {}
    for title, number in chosen.items():
        if title != MODEL:
            low, high = _ratio_interval(by_tile[:, chosen[MODEL]].numpy(), by_tile[:, number].numpy())
            ratio = (by_tile[:, chosen[MODEL]].sum() / by_tile[:, number].sum()).item()
            ratios[title] = {"ratio": ratio, "low": low, "high": high}
    return {
        "predictors": predictors,
        "model_to": ratios,
        "tiles": [name for name, is_scored in zip(tiles.names, scored.tolist(), strict=True) if is_scored],
        "values": int(counts.sum()),
    }


def _ratio_interval(of_model: np.ndarray, of_other: np.ndarray) -> tuple[float | None, float | None]:
    """95 % interval of the ratio of two errors, by drawing tiles anew; None for fewer than three tiles."""
    if len(of_model) < 3:
        return None, None
    draws = np.random.default_rng(0).integers(len(of_model), size=(NUM_RESAMPLES, len(of_model)))
    low, high = np.percentile(of_model[draws].sum(axis=1) / of_other[draws].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _examples(
    names: Sequence[str],
    predictions: Sequence[torch.Tensor],
    truth: torch.Tensor,
    hidden: torch.Tensor,
    processor: HSSTImageProcessor,
    count: int = 32,
) -> dict[str, torch.Tensor]:
    """Reflectance of pixels spread over a batch, those with a typical share of hidden bands preferred."""
    share = hidden.double().mean(dim=1)
    partly = ((share > 0.4) & (share < 0.85)).nonzero().flatten()
    rows = partly if len(partly) else torch.arange(len(truth))
    rows = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]
    spectra = {name: in_reflectance(values[rows], processor) for name, values in zip(names, predictions, strict=True)}
    return {**spectra, "truth": in_reflectance(truth[rows], processor), "hidden": hidden[rows]}


def _different_pixels(spectra: Mapping[str, np.ndarray], count: int = NUM_SPECTRA) -> dict[str, np.ndarray]:
    """Pixels unlike each other: the most ordinary one, then each time the one farthest from all before."""
    truth = spectra["truth"]
    distances = np.abs(truth - np.median(truth, axis=0)).mean(axis=1)
    rows = [int(distances.argmin())]
    nearest = np.full(len(truth), np.inf)
    while len(rows) < min(count, len(truth)):
        nearest = np.minimum(nearest, np.abs(truth - truth[rows[-1]]).mean(axis=1))
        rows.append(int(nearest.argmax()))
    return {name: values[rows] for name, values in spectra.items()}


def title_of(predictor: str) -> str:
    """A predictor as people name it."""
    if predictor.startswith(GAUSSIAN):
        return f"Gaussian conditional mean, estimated from {predictor.removeprefix(GAUSSIAN)}"
    return PREDICTOR_TITLES[predictor]


def reconstruction_table(result: Mapping[str, Any]) -> str:
    """Markdown of a result file of `evaluate_reconstruction.py`: one table for each type of masks."""
    parts = []
    for mask_type, masks in result["masks"].items():
        predictors = masks["predictors"]
        regions = list(predictors[MODEL]["regions"])
        columns = [(None, "all bands"), *((name, name) for name in regions)]
        best = {name: min(_error(errors, name) for errors in predictors.values()) for name, _ in columns}
        header = f"{mask_type} masks, {masks['hidden']:.0%} hidden"
        rows = [f"| {header} | {' | '.join(title for _, title in columns)} | model's error to it |"]
        rows.append("|---|" + "---|" * (len(columns) + 1))
        for predictor, errors in predictors.items():
            cells = []
            for name, _ in columns:
                error = _error(errors, name)
                cells.append(f"**{error:.3f}**" if error == best[name] else f"{error:.3f}")
            ratio = masks["model_to"].get(predictor)
            text = ""
            if ratio is not None:
                between = "" if ratio["low"] is None else f" ({ratio['low']:.2f}–{ratio['high']:.2f})"
                text = f"{ratio['ratio']:.2f}{between}"
            rows.append(f"| {title_of(predictor)} | {' | '.join(cells)} | {text} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _error(errors: Mapping[str, Any], region: str | None) -> float:
    return errors["overall"] if region is None else errors["regions"][region]


def plot_reconstructed_spectra(
    path: str | Path,
    spectra: Mapping[str, np.ndarray],
    by_band: Mapping[str, Sequence[float]],
    wavelengths: Sequence[float],
    title: str,
) -> Path:
    """Draws spectra of some pixels as they are and as each predictor completes them, and the errors of every band.

    Args:
        path: PNG file to write.
        spectra: reflectance (pixels, bands) by predictor, with "truth", and bool "hidden".
        by_band: mean absolute error of each band by predictor, in standard deviations.
        wavelengths: band centres in nm.
        title: what the figure shows.
    """
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
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110)
    return Path(path)
