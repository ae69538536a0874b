"""The one door for images: every file becomes a `Raster`, which gives reflectance and says where there is none.

    with open_raster("scene.hdr") as raster:
        reflectance, valid = raster.read(Window(0, 0, 64, 64))  # float32 and bool, (bands, height, width)

Bands are in ascending wavelength wherever wavelengths are known. What a file states about its numbers counts; what it
does not state is decided over a sample of the whole image, said in a line (`Raster.notes`), and refused where the
numbers can be read in two ways. Formats are read by `GdalFile` (GeoTIFF, ENVI, JPEG 2000), `ArrayFile` (MATLAB, NumPy,
HDF5) and `datasets_loading.spectrometers` (PRISMA, EMIT, DESIS).
"""

from __future__ import annotations

import logging
import math
import numbers
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from datasets_loading.raster_file import Closing, RasterFile, Stated, available_memory, fail
from datasets_loading.raster_formats import ARRAY_ENDINGS, ArrayFile, GdalFile, envi_data
from datasets_loading.sensors import ENMAP
from datasets_loading.spectrometers import open_spectrometer
from datasets_loading.wavelengths import SIDECAR_NAME, read_wavelength_file, to_nanometers

logger = logging.getLogger(__name__)


USUAL_FILLS = (-9999.0, -32768.0, 65535.0)
"""Stored numbers that mean no data in many files that do not declare it. So does anything below -1e30."""

_LOWEST_REFLECTANCE, _HIGHEST_REFLECTANCE = -0.5, 4.0
_LOWEST_INFRARED = 0.25
_FEW_PIXELS = 16
_LARGEST_SAMPLE = 4_000_000
_SAMPLE_WINDOWS, _SAMPLE_SIDE = 5, 16
_SAMPLED_PIXELS = 256


class Raster(Closing):
    """An image with one face, made by `open_raster`. Use it as a context manager, or call `close`.

    It may be pickled and used after a fork; one object must not be used by two threads at a time.

    Attributes:
        path, name: what was opened, and the name of the image.
        wavelengths, fwhm: band centers, ascending, and full widths at half maximum in nm, float64 (bands,), or None
            where they are unknown.
        good_bands: bands that the file does not mark as bad, bool (bands,).
        shape: (bands, height, width).
        block_shape: (height, width) of the blocks in which the file is stored.
        crs, transform: coordinate reference system, and from (column, row) to its coordinates; or None.
        gain, offset: reflectance = stored number * gain + offset, float64 (bands,) each.
        scale_note: where these come from, for people.
        notes: what was assumed where the file states nothing, a phrase each.
        metadata: what the file says about itself, for people.
    """

    def __init__(
        self,
        file: RasterFile,
        path: str | Path,
        *,
        scale: float | None = None,
        offset: float | None = None,
        nodata: float | None = None,
        radiance: bool = False,
        trusted: bool = False,
    ):
        """`trusted`: the format defines what its numbers mean, so that no sample needs to be read."""
        self.path, self._file = path, file
        self._held: list[tuple[Window, np.ndarray]] | None = None
        stated = file.stated
        num_bands, self.height, self.width = file.shape
        self.shape = file.shape
        self.block_shape = file.block_shape
        self.name = stated.name or Path(path).stem
        self.crs, self.transform, self.metadata = stated.crs, stated.transform, stated.metadata
        self.notes = list(stated.notes)
        self._told: set[str] = set()
        self._order = np.arange(num_bands) if stated.wavelengths is None else np.argsort(stated.wavelengths)
        self.wavelengths = None if stated.wavelengths is None else stated.wavelengths[self._order]
        self.fwhm = None if stated.fwhm is None else stated.fwhm[self._order]
        good = np.ones(num_bands, dtype=bool) if stated.good_bands is None else stated.good_bands
        self.good_bands = good[self._order]
        for name, value in (("scale", scale), ("offset", offset), ("nodata", nodata)):
            _check_number(name, value, path)
        self._no_fills = nodata is not None and bool(np.isnan(nodata))
        self._nodata = stated.nodata if nodata is None else None if self._no_fills else nodata
        if nodata is not None and stated.nodata is not None and not np.array_equal(stated.nodata, nodata):
            self.notes.append(f"its declared nodata {_range(stated.nodata)} is overruled")
        if self._nodata is not None and np.dtype(file.dtype) == np.float32:
            with np.errstate(over="ignore"):  # a number as the file can hold it
                self._nodata = np.asarray(self._nodata, dtype=np.float32).astype(np.float64)[()]
        self._trusted = trusted and scale is None and stated.quantity == "reflectance"
        if stated.quantity == "uncertainty":
            fail(path, "reflectance", "uncertainty by what it states")
        if stated.quantity == "radiance" and not radiance:
            fail(
                path,
                "reflectance",
                "radiance by what it states: correct it for the atmosphere first, or take it as it is (--radiance) "
                "for a model that was trained on such",
            )
        gain, shift, self.scale_note = self._settle_numbers(scale, offset, radiance)
        self.gain, self.offset = gain[self._order], shift[self._order]
        self._fills = self._implausible_fills(gain, shift)
        if not self._trusted:
            self._look_for_fills()
        factor = self.gain * ENMAP.scale
        self._is_stored = bool(np.allclose(factor, 1, rtol=1e-6) and not self.offset.any())

    @property
    def num_bands(self) -> int:
        return self.shape[0]

    def read(
        self, window: Window | None = None, bands: Sequence[int] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reflectance, float32 (bands, height, width), NaN where it is unknown; and where it is known, bool.

        By default of the whole image and all bands, which count in ascending wavelength.

        Raises:
            ProductError: the file is damaged, or the whole image does not fit into memory.
            ValueError: the window reaches beyond the image.
        """
        chosen, values, valid = self._read(window, bands, bytes_per_number=8)
        with np.errstate(invalid="ignore", over="ignore"):
            reflectance = values.astype(np.float32, copy=False)
            reflectance *= self.gain[chosen, None, None].astype(np.float32)
            reflectance += self.offset[chosen, None, None].astype(np.float32)
        reflectance[~valid] = np.nan
        return reflectance, valid

    def read_stored(self, window: Window | None = None, bands: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """The same as reflectance x 10000, int16 (bands, height, width), -32768 where it is unknown.

        A reflectance that this cannot hold (above 3.2767) is no reflectance, and is unknown, too.
        """
        plain = np.dtype(self._file.dtype) == np.int16 and self._is_stored
        if plain and self.good_bands.all() and not isinstance(self._nodata, np.ndarray):
            # As most products are: their numbers are taken as they are, without a copy
            window = self._checked(window, 2 * (self.num_bands if bands is None else len(bands)))
            chosen = self._chosen(bands)
            values = self._numbers(self._order[chosen], window)
            without = self._without_data(values, window)
            if self._nodata not in (None, ENMAP.nodata):
                values[_equal(values, self._nodata)] = ENMAP.nodata
            if without is not None:
                values[without] = ENMAP.nodata
            return values
        chosen, values, valid = self._read(window, bands, bytes_per_number=4)
        stored = np.full(values.shape, ENMAP.nodata, dtype=np.int16)
        beyond = 0
        for number, band in enumerate(chosen):  # band by band: no copy of all in a wider type
            inside = valid[number]
            numbers_ = values[number][inside].astype(np.float64)
            numbers_ = np.rint(numbers_ * (self.gain[band] * ENMAP.scale) + self.offset[band] * ENMAP.scale)
            fits = np.abs(numbers_) <= np.iinfo(np.int16).max
            beyond += int((~fits).sum())
            stored[number][inside] = np.where(fits, numbers_, ENMAP.nodata).astype(np.int16)
        if beyond:
            self._tell(f"numbers beyond 3.2767 treated as no data, first in {beyond:,} numbers of a part")
        return stored

    @cached_property
    def valid_bands(self) -> np.ndarray:
        """Bands that hold data, bool (bands,): not marked as bad, and not one number (or no data) everywhere.

        Raises:
            ProductError: the file is damaged.
        """
        ranges = _BandRanges(self.num_bands)
        reduced = self._file.read_reduced() if isinstance(self._file, GdalFile) else None
        if reduced is not None:
            values = reduced[self._order]
            ranges.update(np.arange(self.num_bands), values, self._hold_data(values, self._order))
        else:
            for window, _ in self._parts:
                ranges.update(np.arange(self.num_bands), *self.read(window))
        # A sample may lie beside the data of a band; an overview shows all of it
        for band in np.flatnonzero(self.good_bands & ~ranges.differ) if reduced is None else ():
            for window in row_windows((self.height, self.width), max(256, self.block_shape[0])):
                ranges.update(np.array([band]), *self.read(window, [int(band)]))
                if ranges.differ[band]:
                    break
        # One number in a few pixels may be data; in many it is a filling
        valid = self.good_bands & (ranges.differ | ((ranges.count > 0) & (ranges.count < _FEW_PIXELS)))
        return valid if valid.any() else self.good_bands.copy()

    def tell(self) -> None:
        """Writes what was assumed, if anything, to the log in one line."""
        if self.notes:
            logger.warning("%s: %s", self.path, "; ".join(self.notes))

    def close(self) -> None:
        """Closes the file; a later reading opens it again."""
        self._file.close()
        self._held = None

    def _chosen(self, bands: Sequence[int] | np.ndarray | None) -> np.ndarray:
        return np.arange(self.num_bands) if bands is None else np.asarray(bands, dtype=np.int64)

    def _checked(self, window: Window | None, bytes_per_pixel: int) -> Window:
        """The window, if it lies in the image and fits into memory."""
        window = inside(window, self.shape[1:], self.name)
        needed = bytes_per_pixel * int(window.width) * int(window.height)
        if needed > 1e8 and needed > available_memory():
            fail(
                self.path,
                f"an image that fits into the {available_memory() / 1e9:.1f} GB of free memory",
                f"{self.num_bands} bands of {self.height} x {self.width} pixels: cut it, or choose fewer bands",
            )
        return window

    def _read(
        self, window: Window | None, bands: Sequence[int] | np.ndarray | None, bytes_per_number: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bands, their numbers as stored (bands, height, width), and which of them are data, bool."""
        chosen = self._chosen(bands)
        window = self._checked(window, len(chosen) * (np.dtype(self._file.dtype).itemsize + bytes_per_number))
        file_bands = self._order[chosen]
        values = self._numbers(file_bands, window)
        without = self._without_data(values, window)
        valid = self._hold_data(values, file_bands)
        if without is not None:
            valid &= ~without
        valid[~self.good_bands[chosen]] = False
        return chosen, values, valid

    def _hold_data(self, values: np.ndarray, file_bands: np.ndarray) -> np.ndarray:
        """Which numbers (bands, height, width) of some bands are not the nodata value, bool."""
        if isinstance(self._nodata, np.ndarray):
            return values != self._nodata[file_bands, None, None]
        if self._nodata is None:
            return np.ones(values.shape, dtype=bool)
        return ~_equal(values, self._nodata)

    def _without_data(self, values: np.ndarray, window: Window) -> np.ndarray | None:
        """Numbers that are no data for another reason than the nodata value, bool; None where there are none."""
        without = None
        mask = self._file.read_mask(*window.toslices())
        if mask is not None and not mask.all():
            without = np.broadcast_to(~mask, values.shape).copy()
        if values.dtype.kind in "fc":
            unknown = ~np.isfinite(values)
            if not self._no_fills:
                unknown |= values < -1e30
            if unknown.any():
                without = unknown if without is None else without | unknown
        for fill in self._fills:
            filled = _equal(values, fill)
            if filled.any():
                share = filled.mean()
                self._tell(
                    f"{fill:g} taken for no data, first in {share:.1%} of a part; --nodata overrules", f"{fill:g} "
                )
                without = filled if without is None else without | filled
        return without

    def _tell(self, note: str, key: str | None = None) -> None:
        """Writes to the log, once, what only reading could show."""
        key = key or note[:24]
        if key not in self._told and not any(said.startswith(key) for said in self.notes):
            self._told.add(key)
            logger.warning("%s: %s", self.path, note)

    def _implausible_fills(self, gain: np.ndarray, shift: np.ndarray) -> list[float]:
        """Usual fills that can be stored, are not declared, and would be no reflectance."""
        if self._no_fills or self._trusted:
            return []
        dtype = np.dtype(self._file.dtype)
        limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(np.float32)
        fills = []
        for fill in USUAL_FILLS:
            reflectance = fill * gain + shift
            implausible = ((reflectance < _LOWEST_REFLECTANCE) | (reflectance > _HIGHEST_REFLECTANCE)).all()
            declared = self._nodata is not None and bool((np.asarray(self._nodata) == fill).all())
            if limits.min <= fill <= limits.max and implausible and not declared:
                fills.append(fill)
        return fills

    @property
    def _parts(self) -> list[tuple[Window, np.ndarray]]:
        """Windows spread over the image with their stored numbers, in the order of the file: all of a small image."""
        if self._held is None:
            every_band = np.arange(self.num_bands)
            windows = list(self._sample_windows())
            self._held = [(window, self._file.read(every_band.tolist(), *window.toslices())) for window in windows]
            if len(windows) > 1 and not any(self._may_be_data(values).any() for _, values in self._held):
                self._held += self._first_data(every_band)
        return self._held

    def _first_data(self, every_band: np.ndarray) -> list[tuple[Window, np.ndarray]]:
        """A part of a large image whose sample holds no data: pixels of the first rows that do."""
        some = every_band[:: max(1, self.num_bands // 8)]
        for window in row_windows((self.height, self.width), _SAMPLE_SIDE):
            found = self._may_be_data(self._file.read(some.tolist(), *window.toslices())).any(axis=(0, 1))
            if found.any():
                column = int(np.argmax(found)) // _SAMPLE_SIDE * _SAMPLE_SIDE
                part = Window(column, window.row_off, min(_SAMPLE_SIDE, self.width - column), window.height)
                return [(part, self._file.read(every_band.tolist(), *part.toslices()))]
        return []

    def _may_be_data(self, values: np.ndarray) -> np.ndarray:
        """Numbers that are neither the nodata value nor a usual fill, bool."""
        fills = () if self._no_fills else USUAL_FILLS
        nodata = () if self._nodata is None else np.unique(self._nodata)
        without = [_equal(values, float(number)) for number in (*fills, *nodata)]
        return np.isfinite(values) & ~np.logical_or.reduce([*without, values < -1e30])

    def _sample_windows(self) -> Iterator[Window]:
        if self.num_bands * self.height * self.width <= _LARGEST_SAMPLE:
            yield Window(0, 0, self.width, self.height)
            return
        # Not across the edges of blocks, all of which would have to be decoded
        rows, columns = (
            np.unique(np.linspace(0, max(length - _SAMPLE_SIDE, 0), _SAMPLE_WINDOWS) // _SAMPLE_SIDE * _SAMPLE_SIDE)
            for length in (self.height, self.width)
        )
        for row in rows.astype(int).tolist():
            for column in columns.astype(int).tolist():
                size = min(_SAMPLE_SIDE, self.width - column), min(_SAMPLE_SIDE, self.height - row)
                yield Window(column, row, *size)

    def _numbers(self, file_bands: np.ndarray, window: Window) -> np.ndarray:
        """A copy of the stored numbers of some bands, (bands, height, width); from memory where they are there."""
        for held, values in self._held or ():
            row, column = window.row_off - held.row_off, window.col_off - held.col_off
            if min(row, column) >= 0 and row + window.height <= held.height and column + window.width <= held.width:
                return values[file_bands, row : row + window.height, column : column + window.width]
        return self._file.read(file_bands.tolist(), *window.toslices())

    @cached_property
    def _sample(self) -> np.ndarray:
        """Stored numbers that may be data, in the file's order, float64 (bands, pixels), NaN elsewhere."""
        parts = []
        for window, values in self._parts:
            step = max(1, values[0].size * len(self._parts) // _SAMPLED_PIXELS)
            part = values.reshape(self.num_bands, -1)[:, ::step].astype(np.float64)
            mask = self._file.read_mask(*window.toslices())
            if mask is not None:
                part[:, ~mask.reshape(-1)[::step]] = np.nan
            parts.append(part)
        sample = np.concatenate(parts, axis=1)
        sample[~np.isfinite(sample)] = np.nan
        if self._nodata is not None:
            nodata = np.asarray(self._nodata, dtype=np.float64)
            sample[sample == (nodata[:, None] if nodata.ndim else nodata)] = np.nan
        good = np.empty(self.num_bands, dtype=bool)
        good[self._order] = self.good_bands
        sample[~good] = np.nan
        return sample

    @cached_property
    def _sample_without_fills(self) -> np.ndarray:
        if self._no_fills:
            return self._sample
        fills = [self._sample == fill for fill in USUAL_FILLS]
        return np.where(np.logical_or.reduce([*fills, self._sample < -1e30]), np.nan, self._sample)

    def _settle_numbers(
        self, scale: float | None, offset: float | None, radiance: bool
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Gain and offset that give reflectance, float64 (bands,) each in the order of the file, and where from."""
        stated, ones = self._file.stated, np.ones(self.num_bands)
        gain = ones if stated.gain is None else ones * stated.gain
        shift = 0.0 * ones if stated.offset is None else ones * stated.offset
        if not (np.isfinite(gain).all() and np.isfinite(shift).all() and (gain > 0).all()):
            bad = gain[~(np.isfinite(gain) & (gain > 0))]
            fail(self.path, "a finite scale above 0 in each band", f"{bad[0] if len(bad) else 'an offset NaN'}")
        own = f"gain {_range(gain)}, offset {_range(shift)}"
        if scale is not None:
            if scale <= 0:
                fail(self.path, "a positive scale", f"{scale:g}")
            if stated.quantity is not None or not np.allclose(gain, 1) or shift.any():
                self.notes.append(f"what it states ({own}) is overruled by the given scale {scale:g}")
            gain, shift, source = ones / scale, 0.0 * ones, f"given: reflectance x {scale:g}"
        elif self._trusted:
            source = f"stated: {own}"
        else:
            factor, source = self._decide(gain, shift, radiance)
            gain, shift = gain / factor, shift / factor
        if offset is not None:
            shift = ones * offset
        return gain, shift, source

    def _decide(self, gain: np.ndarray, shift: np.ndarray, radiance: bool) -> tuple[float, str]:
        """What number * gain + offset has to be divided by to be reflectance (or radiance), and where that is from."""
        stated = self._file.stated
        own = f"gain {_range(gain)}, offset {_range(shift)}"
        is_scaled = not np.allclose(gain, 1)
        quantity = stated.quantity or ("radiance" if radiance else "reflectance" if is_scaled else None)
        high = self._typical_highest(gain, shift)
        if high is None:  # no pixel holds data: nothing can be read wrongly
            return (1.0, f"stated: {own}") if quantity is not None else (ENMAP.scale, "no pixel with data")
        falls = self._infrared_to_green
        doubt = "its spectra fall towards 2200 nm as radiance does, or as those of water and snow do"
        largest = 3.2767 if quantity == "radiance" else _HIGHEST_REFLECTANCE
        if quantity is not None and high <= largest and (high > 2e-3 or quantity == "radiance"):
            # A gain alone may also be one of radiance
            if stated.quantity is None and not radiance and falls is not None and falls < _LOWEST_INFRARED / 2:
                self.notes.append(doubt)
            return 1.0, f"stated: {own}"
        has_fractions = self._has_fractions
        fraction_like = quantity is None and has_fractions and high <= _HIGHEST_REFLECTANCE
        named = "reflectance" in stated.called.lower() and "radiance" not in stated.called.lower()
        if fraction_like and (named or (falls or 0) > _LOWEST_INFRARED):
            by_name = f" of {stated.called}" if named else ""
            self.notes.append(f"no scale stated: fractions up to {high:.3g}{by_name} read as reflectance from 0 to 1")
            return 1.0, "assumed: reflectance x 1"
        fill, times = self._likely_fill
        # A fill far above all other numbers would decide what they are
        unscaled = (quantity is None or (quantity == "radiance" and not is_scaled)) and times < 100
        if unscaled and 255 < high <= 20_000 and np.dtype(self._file.dtype).itemsize > 1:
            what = quantity or "reflectance"
            dark = ", which is dark (--scale 1000 if it is reflectance x 1000)" if high < 1000 else ""
            self.notes.append(f"no scale stated: numbers up to {high:,.0f} read as {what} x 10000{dark}")
            if falls is not None and falls < _LOWEST_INFRARED / 2 and not radiance:
                self.notes.append(doubt)
            return ENMAP.scale, f"assumed: {what} x 10000"

        def advised(divisor: float) -> str:
            # The given scale takes the place of what the file states
            return f"--scale {divisor / float(np.median(gain)):g}"

        if quantity == "radiance":
            reading = "which needs a scale (--scale) that makes it at most 3.2767"
        elif high <= _HIGHEST_REFLECTANCE and (has_fractions or quantity is not None):
            reading = f"which may be reflectance from 0 to 1 ({advised(1)}), radiance, or something else"
        elif high <= 255:
            dark = f"dark reflectance x 10000 ({advised(10000)})"
            reading = f"which may be percent ({advised(100)}), 8 bits ({advised(255)}) or {dark}"
        else:
            reading = "which may be reflectance x another scale (--scale), or radiance"
        if fill is not None:
            reading += f"; where {fill:.9g}, far above all others, means no data, say so (--nodata {fill:.9g})"
        kind = "fractions" if fraction_like else f"numbers of {np.dtype(self._file.dtype)}"
        after = "" if quantity is None else f" after its {own}"
        fail(
            self.path,
            "stored numbers (reflectance x 10000), or the scale that makes them reflectance",
            f"{kind} up to {high:.4g}{after}, {reading}",
        )

    @cached_property
    def _likely_fill(self) -> tuple[float | None, float]:
        """The highest number and how many times the next one it is, where it is twice that and occurs often."""
        known = self._sample_without_fills[np.isfinite(self._sample_without_fills)]
        highest = float(known.max(initial=0))
        others = known[known < highest]
        if self._no_fills or highest <= 0 or not others.size or known.size - others.size < 0.005 * known.size:
            return None, 1.0
        times = highest / max(float(others.max()), 1e-9)
        return (highest, times) if times >= 2 else (None, 1.0)

    @property
    def _has_fractions(self) -> bool:
        known = self._sample_without_fills[np.isfinite(self._sample_without_fills)]
        return bool((known != np.rint(known)).any())

    @cached_property
    def _infrared_to_green(self) -> float | None:
        """Ratio of the numbers around 2200 nm to those around 550 nm, the median of the sample's pixels.

        Sunlight is twenty times as weak at 2200 nm: radiance falls with it, reflectance does not but for water, snow
        and clouds. None where the image has no bands there.
        """
        if self._file.stated.wavelengths is None:
            return None
        means = []
        for low, high in ((2080, 2320), (480, 620)):
            bands = (self._file.stated.wavelengths > low) & (self._file.stated.wavelengths < high)
            values = self._sample_without_fills[bands]
            known = np.isfinite(values)
            with np.errstate(invalid="ignore"):
                means.append(np.where(known, values, 0).sum(axis=0) / known.sum(axis=0))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = means[0] / means[1]
        ratios = ratios[np.isfinite(ratios)]
        return float(np.median(ratios)) if ratios.size else None

    def _typical_highest(self, gain: np.ndarray, shift: np.ndarray) -> float | None:
        """What all but half a percent of the sample stay below, usual fills left out; notes bands far beyond it."""
        values = self._sample_without_fills * gain[:, None] + shift[:, None]
        known = np.isfinite(values)
        if not known.any():
            return None
        high = float(np.percentile(values[known], 99.5))
        highest = np.where(known, values, -np.inf).max(axis=1)
        median = float(np.median(highest[np.isfinite(highest)]))
        beyond = np.flatnonzero(highest > 100 * max(abs(median), abs(high), 1e-6))
        if len(beyond):
            self.notes.append(
                f"{len(beyond)} bands hold numbers a hundred times those of the others, the first is "
                f"band {beyond[0] + 1} of the file, up to {highest[beyond[0]]:g}"
            )
        return high

    def _look_for_fills(self) -> None:
        """Notes undeclared fills by their count in the sample, and pixels that hold 0 in every band."""
        sample = self._sample
        huge = sample < -1e30
        found = [(fill, sample == fill) for fill in self._fills]
        if huge.any() and not self._no_fills:
            found.append((sample[huge].min(), huge))
            sample = np.where(huge, np.nan, sample)
        for fill, places in found:
            share = float(places.mean()) if sample.size else 0.0
            if share:
                self.notes.append(f"{fill:g} treated as no data ({share:.1%} of the numbers; --nodata nan: data)")
        self._check_lowest()
        known = np.isfinite(sample)
        if self.num_bands >= 10 and not self._no_fills:
            empty = float((known.any(axis=0) & ((sample == 0) | ~known).all(axis=0)).mean()) if sample.size else 0.0
            if empty:
                self.notes.append(f"{empty:.1%} of the pixels hold 0 in every band and are read as data (--nodata 0)")

    def _check_lowest(self) -> None:
        """Refuses numbers far below 0, and notes a lowest number that occurs again and again, as fills do."""
        values = self._sample_without_fills
        known = values[np.isfinite(values)]
        if not known.size:
            return
        gain, shift = np.empty(self.num_bands), np.empty(self.num_bands)
        gain[self._order], shift[self._order] = self.gain, self.offset
        lowest, count = float(known.min()), int((known == known.min()).sum())
        with np.errstate(invalid="ignore"):
            below = float((values * gain[:, None] + shift[:, None] < _LOWEST_REFLECTANCE).sum() / known.size)
        if below > 1e-3 and not self._no_fills:
            fail(
                self.path,
                f"reflectance above {_LOWEST_REFLECTANCE:g}",
                f"{below:.1%} of the numbers below it, the lowest is {lowest:g}: --nodata {lowest:g} leaves that out, "
                "--nodata nan takes all as data",
            )
        ends = [(lowest, "lowest")] if lowest < 0 and count > 0.005 * known.size else []
        if self._likely_fill[0] is not None:
            ends.append((self._likely_fill[0], "highest by far"))
        for number, end in ends:
            share = float((known == number).mean())
            self.notes.append(
                f"{share:.1%} of the numbers are {number:g}, the {end}, and read as data (--nodata {number:g})"
            )

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if not name.startswith("_sample")}
        return {**kept, "_held": None}


class _BandRanges:
    """Lowest and highest number of each band so far, and how many; a window may be seen twice."""

    def __init__(self, num_bands: int):
        self.lowest, self.highest = np.full(num_bands, np.inf), np.full(num_bands, -np.inf)
        self.count = np.zeros(num_bands, dtype=np.int64)

    def update(self, bands: np.ndarray, values: np.ndarray, valid: np.ndarray) -> None:
        self.lowest[bands] = np.minimum(self.lowest[bands], np.where(valid, values, np.inf).min(axis=(1, 2)))
        self.highest[bands] = np.maximum(self.highest[bands], np.where(valid, values, -np.inf).max(axis=(1, 2)))
        self.count[bands] += valid.sum(axis=(1, 2))

    @property
    def differ(self) -> np.ndarray:
        """Bands with more than one number, bool (bands,)."""
        return self.lowest < self.highest


def open_raster(
    path: str | Path,
    wavelengths: Sequence[float] | np.ndarray | str | Path | None = None,
    fwhm: Sequence[float] | np.ndarray | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    variable: str | None = None,
    *,
    radiance: bool = False,
    orthorectified: bool = True,
    num_bands: int | None = None,
    usual: Stated | None = None,
) -> Raster:
    """Opens an image of any format.

    Args:
        path: a GeoTIFF, an ENVI image (header or data), JPEG 2000, MATLAB, NumPy (`.npy`, `.npz`), HDF5 or NetCDF
            file, or a product of PRISMA, EMIT or DESIS.
        wavelengths: band centers in nm in the order of the file, or a file of them (`read_wavelength_file`). By
            default what the file states, or else `wavelengths.txt` beside it.
        fwhm: full width at half maximum of each band in nm.
        scale: stored number that means a reflectance of 1, where the file does not state it, or wrongly.
        offset: reflectance of the stored number 0.
        nodata: stored number of a pixel without data, in place of the one that the file states; NaN for none. The
            usual fills, where they cannot be reflectance, are no data beside it. NaN and infinity always are.
        variable: array of a MATLAB, `.npz`, HDF5 or NetCDF file that holds several.
        radiance: take radiance as it is, which is refused otherwise.
        orthorectified: lay an image in sensor geometry on its map grid where it brings a lookup table (EMIT).
        num_bands: how many bands from the first one on are spectral ones; by default all.
        usual: what is usual for files of this kind, in place of what the file does not state; its notes are said.

    Raises:
        ProductError: the file is missing, damaged, shorter than it declares or of another kind; wavelengths do not fit
            its bands; or its numbers can be read in two ways.
    """
    path = Path(path)
    if not path.exists():
        fail(path, "an image", "no such file")
    spectrometer = open_spectrometer(path, orthorectified)
    file = _open_file(path, variable, wavelengths) if spectrometer is None else spectrometer
    if not all(file.shape):
        fail(path, "an image with pixels", f"{file.shape[0]} bands of {file.shape[1]} x {file.shape[2]} pixels")
    if np.dtype(file.dtype).kind not in "iuf":
        fail(path, "whole or real numbers", f"numbers of type {file.dtype}")
    if num_bands is not None:
        file = _first_bands(file, num_bands, path)
    _state_wavelengths(file.stated, file.shape[0], path, wavelengths, fwhm)
    if usual is not None:
        own = vars(file.stated)
        fitting = {name: value for name, value in vars(usual).items() if np.size(value) in (1, file.shape[0])}
        own |= {name: value for name, value in fitting.items() if own.get(name) is None}
        file.stated.notes += usual.notes
    return Raster(
        file, path, scale=scale, offset=offset, nodata=nodata, radiance=radiance, trusted=spectrometer is not None
    )


def _open_file(path: Path, variable: str | None, wavelengths: Any) -> RasterFile:
    if path.is_dir():
        fail(path, "an image", "a folder")
    if path.suffix.lower() in ARRAY_ENDINGS:
        return ArrayFile(path, variable, wavelengths)
    return GdalFile(str(envi_data(path) if path.suffix.lower() == ".hdr" else path), wavelengths is None)


def _state_wavelengths(
    stated: Stated,
    num_bands: int,
    path: Path,
    wavelengths: Sequence[float] | np.ndarray | str | Path | None,
    fwhm: Sequence[float] | np.ndarray | None,
) -> None:
    """Puts in wavelengths that were given, or stand in a file beside the image."""
    if wavelengths is None and stated.wavelengths is None:
        sidecar = path.with_name(SIDECAR_NAME)
        wavelengths = sidecar if os.path.lexists(sidecar) else None
    if isinstance(wavelengths, (str, Path)):
        stated.wavelengths, stated.fwhm, notes = read_wavelength_file(wavelengths, num_bands)
        stated.notes += notes
    elif wavelengths is not None:
        given = np.asarray(wavelengths, dtype=np.float64)
        if given.shape != (num_bands,):
            fail(path, f"a wavelength for each of its {num_bands} bands", f"{given.size}")
        stated.wavelengths, _, notes = to_nanometers(given, None, "nm", path)
    if fwhm is not None:
        widths = np.asarray(fwhm, dtype=np.float64)
        if widths.shape != (num_bands,) or not (np.isfinite(widths) & (widths > 0)).all():
            fail(path, f"a positive width for each of its {num_bands} bands", f"{widths.size} from {widths.min():g}")
        stated.fwhm = widths


def inside(window: Window | None, shape: tuple[int, int], name: str) -> Window:
    """The window, by default all of an image (height, width); ValueError where it reaches beyond it."""
    height, width = shape
    if window is None:
        return Window(0, 0, width, height)
    right, bottom = window.col_off + window.width, window.row_off + window.height
    if not (0 <= window.col_off <= right <= width and 0 <= window.row_off <= bottom <= height):
        raise ValueError(f"{name}: expected a window inside {height} x {width} pixels, got {window}")
    return window


def row_windows(shape: tuple[int, int], rows: int) -> Iterator[Window]:
    """Windows of `rows` rows and full width that cover an image from top to bottom; the last one may be lower."""
    height, width = shape
    for row in range(0, height, rows):
        yield Window(0, row, width, min(rows, height - row))


def _equal(values: np.ndarray, number: float) -> np.ndarray:
    """Where values are a number, bool; whole numbers are compared as such, without a copy in a wider type."""
    if values.dtype.kind == "f":
        return values == values.dtype.type(number)
    limits = np.iinfo(values.dtype)
    if float(number).is_integer() and limits.min <= number <= limits.max:
        return values == values.dtype.type(int(number))
    return np.zeros(values.shape, dtype=bool)


def _range(values: np.ndarray | float) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _check_number(name: str, value: Any, where: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail(where, f"a number as {name}", repr(value)[:40])
    if name != "nodata" and not math.isfinite(value):
        fail(where, f"a finite {name}", f"{value}")


def _first_bands(file: RasterFile, num_bands: int, path: Path) -> RasterFile:
    """The file with its first bands only: what follows them is no spectrum."""
    if file.shape[0] < num_bands:
        fail(path, f"at least {num_bands} bands", f"{file.shape[0]}")
    file.shape = (num_bands, *file.shape[1:])
    stated = file.stated
    for name in ("wavelengths", "fwhm", "good_bands", "gain", "offset"):
        values = getattr(stated, name)
        setattr(stated, name, None if values is None else values[:num_bands])
    if isinstance(stated.nodata, np.ndarray):
        stated.nodata = stated.nodata[:num_bands]
    return file
