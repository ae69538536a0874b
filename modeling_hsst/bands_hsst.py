"""
Which band of one sensor stands for which of another: matching by wavelength, spacing, and spectral resampling.

Band centers and widths (full width at half maximum) are in nm. Nothing but NumPy is needed, so that the data package
imports it, too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))

# Narrower responses than this share of the largest weight change nothing that can be measured
NEGLIGIBLE_WEIGHT = 1e-2

WIDTH_OF_LONE_BAND = 10.0

SAMPLES_PER_BAND = 16

GRID_STEP = 0.1
REACH_IN_SIGMAS = 3.0
# Centers that are as far apart as they are wide, but for the last digit of a file
SLACK = 1.02


def match_bands(wanted: np.ndarray, given: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """
    Pairs bands one to one, those that are nearest to each other first, in the order of their wavelengths.

    Args:
        wanted: band centers in nm, float64 (wanted,), in any order.
        given: band centers in nm, float64 (given,), in any order.
        reach: greatest distance in nm at which a given band may stand in for a wanted one, float64 (given,).

    Returns:
        The given band of each wanted one, int64 (wanted,); -1 where none within reach is left.
    """
    distances = np.abs(wanted[:, None] - given[None, :])
    matched = np.full(len(wanted), -1)
    free = np.ones(len(given), dtype=bool)
    wanted_bands, given_bands = np.nonzero(distances <= reach)
    for pair in np.argsort(distances[wanted_bands, given_bands], kind="stable"):
        if matched[wanted_bands[pair]] < 0 and free[given_bands[pair]]:
            matched[wanted_bands[pair]] = given_bands[pair]
            free[given_bands[pair]] = False
    if (matched >= 0).all():
        # Bands that both wanted the same one may have crossed over
        ordered = np.empty_like(matched)
        ordered[np.argsort(wanted)] = matched[np.argsort(given[matched])]
        if (np.abs(given[ordered] - wanted) <= reach[ordered]).all():
            return ordered
    return matched


def describe_shared_band(
    wanted: np.ndarray, given: np.ndarray, matched: np.ndarray, numbers: np.ndarray | None = None
) -> str:
    """
    What to say of the first band without a partner of its own in `match_bands`; band centers in nm. `numbers` are
    those of the given bands in their image, where they are not 0, 1, 2, ...
    """
    alone = int(np.flatnonzero(matched < 0)[0])
    shared = int(np.abs(given - wanted[alone]).argmin())
    owner = np.flatnonzero(matched == shared)
    number = shared if numbers is None else int(numbers[shared])
    band = f"image band {number} ({given[shared]:.2f} nm)"
    count = int((matched < 0).sum())
    others = f" {count - 1} other bands have the same problem." if count > 1 else ""
    if not len(owner):
        return f"The model band at {wanted[alone]:.2f} nm has no image band of its own near {band}.{others}"
    first = f"{wanted[owner[0]]:.2f} and {wanted[alone]:.2f} nm"
    return f"Two model bands ({first}) both match {band}; each needs its own.{others}"


def nearest_spacing(centers: ArrayLike) -> np.ndarray:
    """Distance of each of ascending band centers to the nearest other one, (bands,); 10 nm where there is no other."""
    centers = np.asarray(centers)
    if len(centers) < 2:
        return np.full(len(centers), WIDTH_OF_LONE_BAND)
    steps = np.diff(centers)
    return np.minimum(np.append(steps[:1], steps), np.append(steps, steps[-1:]))


def widest_spacing(centers: np.ndarray) -> np.ndarray:
    """Distance in nm of each band to its farther neighbor in wavelength, where it is not a gap; (bands,)."""
    if len(centers) < 2:
        return np.full(len(centers), np.inf)
    order = np.argsort(centers)
    steps = np.diff(centers[order])
    steps = np.minimum(steps, 2 * np.median(steps))
    spacing = np.empty(len(centers))
    spacing[order] = np.maximum(np.append(steps, 0), np.append(0, steps))
    return spacing


def response_weights(wanted: np.ndarray, given: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """
    Weights (wanted, given) of Gaussian responses with these centers and full widths at half maximum (nm), the given
    bands weighing by the spectrum that each stands for.
    """
    exponents = -0.5 * ((given - wanted[:, None]) / (widths[:, None] / FWHM_PER_SIGMA)) ** 2
    # Relative to the nearest band, so that a response in a gap does not vanish
    weights = np.exp(exponents - exponents.max(axis=1, keepdims=True)) * widest_spacing(given)
    weights[weights < NEGLIGIBLE_WEIGHT * weights.max(axis=1, keepdims=True)] = 0.0
    return weights / weights.sum(axis=1, keepdims=True)


def gaussian_response(grid: np.ndarray, centers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Weights (grid, bands) by which spectra on a fine grid (nm) become bands of these centers and widths."""
    weights = np.exp(-0.5 * ((grid[:, None] - centers) / (widths / FWHM_PER_SIGMA)) ** 2)
    weights[weights < 1e-6] = 0.0
    return weights / weights.sum(axis=0)


def spectral_weights(
    wavelengths: Sequence[float] | np.ndarray,
    fwhm: Sequence[float] | np.ndarray | None,
    target_wavelengths: Sequence[float] | np.ndarray,
    target_fwhm: Sequence[float] | np.ndarray,
) -> np.ndarray:
    """Weights by which bands of one sensor become those of another, float64 (target bands, bands); rows sum to 1.

    A target band is the mean of the spectrum under a Gaussian. The spectrum is taken as straight between the centers
    of the source's bands, so that a straight spectrum keeps its values whatever the spacing, and a target narrower
    than the source is an interpolation. What the source's own bands have blurred already is taken off the width.

    Args:
        wavelengths: band centers of the source in nm, ascending (bands,).
        fwhm: full width at half maximum of its bands in nm (bands,), or None: the distance to the nearest other one.
        target_wavelengths: band centers wanted, in nm (target bands,).
        target_fwhm: full width at half maximum of the bands wanted, in nm (target bands,).

    Raises:
        ValueError: a target band lies, with half its width, beyond the source's range or in a gap of it.
    """
    centers = np.asarray(wavelengths, dtype=np.float64)
    targets, target_widths = np.asarray(target_wavelengths, np.float64), np.asarray(target_fwhm, np.float64)
    if len(centers) < 2 or (np.diff(centers) <= 0).any():
        raise ValueError(f"wavelengths: expected at least two in ascending order, got {centers.tolist()[:10]}")
    widths = nearest_spacing(centers) if fwhm is None else np.asarray(fwhm, dtype=np.float64)

    missing = uncovered_bands(centers, widths, targets, target_widths)
    if len(missing):
        named = ", ".join(f"{targets[band]:.1f}" for band in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"expected bands that cover half a width around each of the {len(targets)} bands wanted, got "
            f"{len(centers)} bands from {centers[0]:.1f} to {centers[-1]:.1f} nm, which leave out {len(missing)}: "
            f"{named} nm"
        )

    source_widths = np.interp(targets, centers, widths)
    blur = np.sqrt(np.maximum(target_widths**2 - source_widths**2, 0.0)) / FWHM_PER_SIGMA
    weights = np.zeros((len(targets), len(centers)))
    for target, (center, deviation) in enumerate(zip(targets, blur, strict=True)):
        reach = max(REACH_IN_SIGMAS * deviation, GRID_STEP)
        places = center + np.arange(-np.ceil(reach / GRID_STEP), np.ceil(reach / GRID_STEP) + 1) * GRID_STEP
        response = np.exp(-0.5 * ((places - center) / max(deviation, GRID_STEP / 10)) ** 2)
        # Beyond the ends the last bands stand for the rest, which is less than half the response
        places = np.clip(places, centers[0], centers[-1])
        left = np.clip(np.searchsorted(centers, places, side="right") - 1, 0, len(centers) - 2)
        share = (places - centers[left]) / (centers[left + 1] - centers[left])
        np.add.at(weights[target], left, response * (1.0 - share))
        np.add.at(weights[target], left + 1, response * share)
        # A band that contributes next to nothing must not make a pixel invalid
        weights[target, weights[target] < 1e-3 * weights[target].max()] = 0.0
    return weights / weights.sum(axis=1, keepdims=True)


def uncovered_bands(
    wavelengths: np.ndarray, fwhm: np.ndarray, target_wavelengths: np.ndarray, target_fwhm: np.ndarray
) -> np.ndarray:
    """Indices of target bands of which a part within half a width is farther from every source band than the wider
    of both half widths: beyond the source's range, or in a gap of it. Arguments as in `spectral_weights`."""
    missing = []
    for band, (center, width) in enumerate(zip(target_wavelengths, target_fwhm, strict=True)):
        places = center + np.linspace(-0.5, 0.5, 21) * width
        distances = np.abs(places[:, None] - wavelengths)
        nearest = distances.argmin(axis=1)
        allowed = SLACK * np.maximum(fwhm[nearest], width) / 2
        beyond = center < wavelengths[0] or center > wavelengths[-1]
        if beyond or (distances.min(axis=1) > allowed).any():
            missing.append(band)
    return np.array(missing, dtype=np.int64)


def interpolation_weights(
    centers: ArrayLike, widths: ArrayLike, target_centers: ArrayLike, target_widths: ArrayLike
) -> np.ndarray:
    """
    Weights (targets, bands) that give the values of target bands from those of bands of ascending centers.

    Of the lines between the band centers, level beyond the first and the last, each is the mean over that part of a
    target's width by which it exceeds the width of the bands there. Where target bands are bands, these are taken as
    they are.
    """
    centers, widths = np.asarray(centers), np.asarray(widths)
    target_centers, target_widths = np.asarray(target_centers), np.asarray(target_widths)
    if len(centers) < 2:
        return np.ones((len(target_centers), 1))
    upper, share = between(centers, target_centers)
    own_widths = (1 - share) * widths[upper - 1] + share * widths[upper]
    offsets = (np.arange(SAMPLES_PER_BAND) + 0.5) / SAMPLES_PER_BAND - 0.5
    samples = target_centers[:, None] + offsets * np.maximum(target_widths - own_widths, 0.0)[:, None]
    upper, share = between(centers, samples)
    weights = np.zeros((*samples.shape, len(centers)))
    np.put_along_axis(weights, (upper - 1)[..., None], (1 - share)[..., None], axis=2)
    np.put_along_axis(weights, upper[..., None], share[..., None], axis=2)
    return weights.mean(axis=1)


def between(centers: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each place the band above it, and how far it lies from the band below to that one, 0 to 1."""
    upper = np.searchsorted(centers, places).clip(1, len(centers) - 1)
    below, above = centers[upper - 1], centers[upper]
    return upper, ((places - below) / (above - below)).clip(0.0, 1.0)


__all__ = [
    "describe_shared_band",
    "gaussian_response",
    "interpolation_weights",
    "match_bands",
    "nearest_spacing",
    "response_weights",
    "spectral_weights",
    "uncovered_bands",
    "widest_spacing",
]
