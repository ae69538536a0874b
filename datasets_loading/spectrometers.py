"""Readers of the official files of three imaging spectrometers: PRISMA, EMIT and DESIS.

* `PrismaFile`: PRISMA Products Specification Document (ASI, issue 2.3): HDF-EOS5, levels L1, L2B, L2C and L2D.
* `EmitFile`: EMIT L2A and L1B Product User Guides (NASA LP DAAC): NetCDF4, which is HDF5.
* `DesisFile`: DESIS Product Guide and L2A ATBD (DLR): GeoTIFF with METADATA.xml, levels L1B, L1C and L2A.

Each is a `RasterFile`: numbers as stored, bands in the order of the file, and what the file states about them. HDF5 is
read with h5py. `open_spectrometer` finds the reader that a path needs.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from datasets_loading.raster_file import (
    ProductError,
    RasterFile,
    Stated,
    check_hdf5,
    fail,
    parse_xml,
    read_text_file,
    to_number,
)
from datasets_loading.raster_formats import GdalFile, import_h5py, is_hdf5
from datasets_loading.wavelengths import to_nanometers

_PRISMA_NAME = re.compile(r"PRS_L(1|2B|2C|2D)_.+\.he5", re.I)
_PRISMA_SWATH = re.compile(r"PRS_(L1|L2B|L2C|L2D)_HCO")
_EMIT_NAME = re.compile(r"EMIT_L\d\w*_.+\.nc4?", re.I)
_DESIS_NAME = re.compile(
    r"(?P<prefix>DESIS-HSI-(?P<level>L\d\w)-.+)-"
    r"((?P<image>SPECTRAL_IMAGE(_COG)?\.tiff?)|(?P<metadata>METADATA(\.xml)+))",
    re.I,
)
_HDF5_EXTENSIONS = (".he5", ".h5", ".hdf5", ".nc", ".nc4")

_PRISMA_PIXEL = 30.0  # meters
_PRISMA_LARGEST_NUMBER = 65535
_DESIS_NODATA = -32768.0

# Limits on what a header may declare: no sensor comes near, and a damaged or hostile file must not take the memory.
_MOST_BANDS = 10_000

# Sensor lines that one step of the orthorectification holds, in bytes.
_STRIP_BYTES = 2**25


class _Hdf5File(RasterFile):
    """What the readers of HDF5 share."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        try:
            with self._errors():
                self._describe()
            assert self.stated.wavelengths is not None
            centers, widths, _ = to_nanometers(self.stated.wavelengths, self.stated.fwhm, "nm", self.path)
            self.stated.wavelengths, self.stated.fwhm = centers, widths
        except ProductError:
            self.close()
            raise

    @abstractmethod
    def _describe(self) -> None:
        """Sets `shape`, `dtype`, `block_shape` and `stated`, or raises ProductError."""

    @abstractmethod
    def _read_numbers(self, bands: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Stored numbers of some bands in a window inside the image, (bands, height, width)."""

    def read(self, bands: Sequence[int], rows: slice, columns: slice) -> np.ndarray:
        chosen = np.arange(self.shape[0])[np.asarray(bands, dtype=np.int64)]
        if not chosen.size:
            return np.empty((0, rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        with self._errors():
            return self._read_numbers(chosen, rows, columns)

    def _open(self) -> Any:
        # HDF5 gives a child the file that its parent has open rather than open it again: drop that one first
        self.close()
        with self._errors():
            # Reading needs no lock, and file systems of clusters may refuse one.
            return import_h5py(self.path).File(self.path, "r", locking="best-effort")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns an error of h5py into a ProductError of one line, which names the file."""
        try:
            yield
        except ProductError:
            raise
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            reason = str(error.args[-1] if error.args else type(error).__name__)
            fail(self.path, "a whole, readable HDF5 file", reason.replace(str(self.path), self.path.name))

    def _dataset(self, name: str, shape: tuple[int | None, ...]) -> Any:
        """A dataset of numbers whose shape agrees with `shape`, where None stands for any size."""
        dataset = self._handle().get(name)
        # A group has no shape, and an empty dataset has None.
        if getattr(dataset, "shape", None) is None:
            fail(self.path, f"a dataset {name}", "none")
        agrees = len(dataset.shape) == len(shape) and all(
            size > 0 and wanted in (None, size) for size, wanted in zip(dataset.shape, shape, strict=True)
        )
        if not agrees or dataset.dtype.kind not in "uif":
            wanted_shape = ", ".join("any" if size is None else str(size) for size in shape)
            fail(self.path, f"numbers of shape ({wanted_shape}) in {name}", f"{dataset.dtype} of {dataset.shape}")
        check_hdf5(dataset, self._handle(), self.path)
        return dataset

    def _numbers(self, name: str, count: int) -> np.ndarray:
        """Finite numbers of an attribute of the file, float64 (count,)."""
        attributes = self._handle().attrs
        if name not in attributes:
            fail(self.path, f"an attribute {name}", "none")
        numbers = np.atleast_1d(np.asarray(attributes[name]))
        if numbers.shape != (count,) or numbers.dtype.kind not in "uif" or not np.isfinite(numbers).all():
            fail(self.path, f"{count} finite numbers in the attribute {name}", f"{numbers.dtype} of {numbers.shape}")
        return numbers.astype(np.float64)

    def _text(self, name: str) -> str:
        """An attribute of the file as text; empty where there is none."""
        value = self._handle().attrs.get(name, "")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class PrismaFile(_Hdf5File):
    """A PRISMA product (`PRS_L2D_….he5`): VNIR bands, then SWIR bands, in the order of the file.

    The cubes are uint16 (lines, bands, samples); wavelengths descend, and the two detectors overlap near 950 nm. Bands
    of wavelength 0 were not acquired and are left out. At level 2, value = minimum + number * (maximum - minimum) /
    65535 with limits for each detector, and 0 marks a value that could not be retrieved; at level 1, radiance = number
    / factor - offset, and 0 is a radiance. Radiance is in W m-2 sr-1 um-1. L2D lies on a UTM grid of 30 m, north up;
    outside the swath its sun zenith is 0, which is its mask. L1, L2B and L2C are in sensor geometry.

    The pixel error matrices mark single bands of a pixel (invalid at L1, negative, saturated), so they are no mask.

    Raises:
        ProductError: h5py is missing, or the file is damaged or no PRISMA product with both cubes.
    """

    def _describe(self) -> None:
        swath, level = self._find_swath()
        self._cubes: list[str] = []
        parts = []
        size: tuple[int | None, int | None] = (None, None)
        for detector in ("Vnir", "Swir"):
            name = f"{swath}/Data Fields/{detector.upper()}_Cube"
            cube = self._dataset(name, (size[0], None, size[1]))
            if cube.dtype != np.uint16:
                fail(self.path, f"uint16 in {name}", str(cube.dtype))
            size = cube.shape[0], cube.shape[2]
            centers = self._numbers(f"List_Cw_{detector}", cube.shape[1])
            widths = self._numbers(f"List_Fwhm_{detector}", cube.shape[1])
            scaling = np.array([len(self._cubes), *self._scaling(detector, level)])[:, None]
            places = np.flatnonzero(centers > 0)
            columns = np.stack([places, centers[places], widths[places]])
            parts.append(np.concatenate([columns, np.repeat(scaling, len(places), axis=1)]))
            self._cubes.append(name)
        places, wavelengths, fwhm, detectors, gain, offset = np.concatenate(parts, axis=1)
        if not len(wavelengths):
            fail(self.path, "bands with a wavelength", "wavelength 0 for all")
        # Of each band: its cube, and its place there.
        self._detectors, self._places = detectors.astype(np.int64), places.astype(np.int64)
        self.shape, self.dtype = (len(wavelengths), cube.shape[0], cube.shape[2]), np.dtype(np.uint16)
        self.block_shape = (cube.chunks[0], cube.chunks[2]) if cube.chunks else (1, cube.shape[2])
        angle = f"{swath}/Geometric Fields/Solar_Zenith_Angle"
        self._mask = angle if level == "L2D" and angle in self._handle() else None
        if self._mask:
            self._dataset(self._mask, self.shape[1:])
        self.stated = Stated(
            wavelengths=wavelengths,
            fwhm=fwhm,
            gain=gain,
            offset=offset,
            nodata=None if level == "L1" else 0.0,
            quantity="reflectance" if level in ("L2C", "L2D") else "radiance",
            name=self.path.stem,
            metadata={
                "sensor": "PRISMA",
                "processing_level": level,
                "acquisition_time": self._text("Product_StartTime"),
                "sun_zenith": self._text("Sun_zenith_angle"),
            },
        )
        if level == "L2D":
            self._georeference()

    def _find_swath(self) -> tuple[str, str]:
        """Path of the swath of the hyperspectral cubes, and the level that its name states."""
        names = _names(self._handle(), "HDFEOS/SWATHS")
        for name in names:
            match = _PRISMA_SWATH.fullmatch(name)
            if match:
                return f"HDFEOS/SWATHS/{name}", match[1]
        fail(self.path, "PRISMA's hyperspectral cubes (HDFEOS/SWATHS/PRS_L2D_HCO)", ", ".join(names[:8]) or "none")

    def _scaling(self, detector: str, level: str) -> tuple[float, float]:
        """Gain and offset of a detector."""
        if level == "L1":
            factor, offset = (self._numbers(f"{name}_{detector}", 1)[0] for name in ("ScaleFactor", "Offset"))
            if factor <= 0:
                fail(self.path, f"a ScaleFactor_{detector} above 0", f"{factor:g}")
            return 1 / factor, -offset
        low, high = (self._numbers(f"L2Scale{detector}{limit}", 1)[0] for limit in ("Min", "Max"))
        if high <= low:
            fail(self.path, f"an L2Scale{detector}Max above L2Scale{detector}Min", f"{high:g} and {low:g}")
        return (high - low) / _PRISMA_LARGEST_NUMBER, low

    def _georeference(self) -> None:
        """Sets the CRS and the transform.

        Readers disagree on the point of a pixel that a corner is. EnMAP-Box and prismaread take the center, where the
        corners lie one pixel less than the size apart; where they lie the whole size apart they are the image's.
        """
        code = int(self._numbers("Epsg_Code", 1)[0])
        try:
            self.stated.crs = CRS.from_epsg(code)
        except CRSError:
            fail(self.path, "an EPSG code in Epsg_Code", str(code))
        # UL and LR name the corners of the grid in most products; of all four the outermost always do.
        further = [corner for corner in ("UR", "LL") if f"Product_{corner}corner_easting" in self._handle().attrs]
        northings, eastings = (
            [self._numbers(f"Product_{corner}corner_{axis}", 1)[0] for corner in ("UL", "LR", *further)]
            for axis in ("northing", "easting")
        )
        pixels = np.array([np.ptp(northings), np.ptp(eastings)]) / _PRISMA_PIXEL
        outer = np.abs(pixels - self.shape[1:]).max() < 0.05
        if not outer and np.abs(pixels + 1 - self.shape[1:]).max() >= 0.05:
            self.stated.notes.append(
                f"corners {pixels[0]:g} x {pixels[1]:g} pixels apart, image of {self.shape[1]} x {self.shape[2]}: "
                "the upper left one is taken as the center of the first pixel"
            )
        shift = 0 if outer else _PRISMA_PIXEL / 2
        west, north = min(eastings) - shift, max(northings) + shift
        self.stated.transform = Affine(_PRISMA_PIXEL, 0, west, 0, -_PRISMA_PIXEL, north)

    def _read_numbers(self, bands: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        numbers = np.empty((len(bands), rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        for detector, name in enumerate(self._cubes):
            own = np.flatnonzero(self._detectors[bands] == detector)
            if own.size:
                cube = self._handle()[name]
                numbers[own] = _read_cube(cube, self._places[bands[own]], rows, columns, band_axis=1)
        return numbers

    def read_mask(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Pixels inside the swath, bool (height, width); None in sensor geometry or without the sun's angle."""
        if self._mask is None:
            return None
        with self._errors():
            return self._handle()[self._mask][rows, columns] != 0


class EmitFile(_Hdf5File):
    """An EMIT product (`EMIT_L2A_RFL_….nc`, `EMIT_L1B_RAD_….nc`).

    The cube is float32 (downtrack, crosstrack, bands): reflectance, or radiance in uW cm-2 sr-1 nm-1. It is in sensor
    geometry; the lookup table `location/glt_x` and `glt_y` gives, for each pixel of a north-up grid, its crosstrack
    and downtrack position, counted from 1, and 0 where the grid has none. `geotransform` (in GDAL's order, from the
    corner of the first pixel) and `spatial_ref` describe that grid. `good_wavelengths` is 0 in the water vapour
    windows, where reflectance was not computed.

    Args:
        orthorectified: pixels on the grid of the lookup table, each a copy of the nearest one; otherwise the sensor's
            own pixels, without coordinates.

    Raises:
        ProductError: h5py is missing, or the file is damaged or holds neither reflectance nor radiance.
    """

    def __init__(self, path: str | Path, orthorectified: bool = True) -> None:
        self.orthorectified = orthorectified
        super().__init__(path)

    def _describe(self) -> None:
        names = _names(self._handle(), "/")
        self._cube = next((name for name in ("reflectance", "radiance") if name in names), "")
        if not self._cube:
            fail(self.path, "a dataset reflectance or radiance", ", ".join(names[:8]) or "none")
        cube = self._dataset(self._cube, (None, None, None))
        *self._sensor_size, count = cube.shape
        self.dtype = cube.dtype
        good = "good_wavelengths" in _names(self._handle(), "sensor_band_parameters")
        self.stated = Stated(
            wavelengths=self._band_parameter("wavelengths", count),
            fwhm=self._band_parameter("fwhm", count),
            good_bands=self._band_parameter("good_wavelengths", count) > 0 if good else None,
            gain=np.ones(count),
            offset=np.zeros(count),
            nodata=float(np.ravel(cube.attrs.get("_FillValue", -9999.0))[0]),
            quantity=self._cube,
            name=self.path.stem,
            metadata={
                "sensor": "EMIT",
                "processing_level": "L2A" if self._cube == "reflectance" else "L1B",
                "acquisition_time": self._text("time_coverage_start"),
                "geometry": "orthorectified" if self.orthorectified else "sensor",
            },
        )
        if not self.orthorectified:
            self.shape = (count, *cube.shape[:2])
            self.block_shape = cube.chunks[:2] if cube.chunks else (1, cube.shape[1])
            return
        height, width = self._dataset("location/glt_x", (None, None)).shape
        for name in ("location/glt_x", "location/glt_y"):
            if self._dataset(name, (height, width)).dtype.kind == "f":
                fail(self.path, f"whole numbers in {name}", "fractions")
        self.shape = (count, height, width)
        # A row of the grid crosses many sensor lines, a square crosses few.
        self.block_shape = (min(256, height), min(256, width))
        self.stated.transform = Affine.from_gdal(*self._numbers("geotransform", 6))
        try:
            self.stated.crs = CRS.from_wkt(self._text("spatial_ref"))
        except CRSError:
            fail(self.path, "a coordinate reference system in the attribute spatial_ref", "none")

    def _band_parameter(self, name: str, count: int) -> np.ndarray:
        """One number for each band, float64 (count,)."""
        dataset = self._dataset(f"sensor_band_parameters/{name}", (count,))
        if count > _MOST_BANDS:
            fail(self.path, f"at most {_MOST_BANDS} bands", str(count))
        values = dataset[:].astype(np.float64)
        if not np.isfinite(values).all():
            fail(self.path, f"finite numbers in {dataset.name}", "others")
        return values

    def _read_numbers(self, bands: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        cube = self._handle()[self._cube]
        if not self.orthorectified:
            return _read_cube(cube, bands, rows, columns, band_axis=2)
        samples, lines = (self._handle()[f"location/glt_{axis}"][rows, columns].ravel() for axis in "xy")
        numbers = np.full((len(bands), len(samples)), self.stated.nodata, self.dtype)
        pixels = np.flatnonzero((samples > 0) & (lines > 0))
        samples, lines = samples[pixels].astype(np.int64) - 1, lines[pixels].astype(np.int64) - 1
        for part in self._strips(samples, lines, len(bands)):
            top, left = lines[part].min(), samples[part].min()
            window = slice(top, lines[part].max() + 1), slice(left, samples[part].max() + 1)
            strip = _read_cube(cube, bands, *window, band_axis=2)
            numbers[:, pixels[part]] = strip[:, lines[part] - top, samples[part] - left]
        return numbers.reshape(len(bands), rows.stop - rows.start, columns.stop - columns.start)

    def _strips(self, samples: np.ndarray, lines: np.ndarray, bands: int) -> Iterator[np.ndarray]:
        """Indices of the pixels that a strip of sensor lines holds: one strip at a time is in memory."""
        if not lines.size:
            return
        size = lines.max() + 1, samples.max() + 1
        if size[0] > self._sensor_size[0] or size[1] > self._sensor_size[1]:
            expected = f"a lookup table within {self._sensor_size[0]} lines and {self._sensor_size[1]} samples"
            fail(self.path, expected, f"{size[0]} and {size[1]}")
        height = max(1, _STRIP_BYTES // ((int(np.ptp(samples)) + 1) * bands * self.dtype.itemsize))
        order = np.argsort(lines, kind="stable")
        strips = lines[order] // height
        yield from np.split(order, np.flatnonzero(np.diff(strips)) + 1)


class DesisFile(GdalFile):
    """A DESIS product (`DESIS-HSI-L2A-DT…-SPECTRAL_IMAGE.tif` beside `…-METADATA.xml`), 235 bands, 400 to 1000 nm.

    Value = number * gain + offset, which METADATA.xml states for each band: reflectance at level 2A, and radiance in
    mW cm-2 sr-1 um-1 at L1B and L1C. -32768 is no data. L1B is in sensor geometry.

    Args:
        path: the image, the metadata, or a folder with one product in it or in a folder below.

    Raises:
        ProductError: no or several products, a part is missing or damaged, or the two disagree.
    """

    drivers = ["GTiff"]  # another format under this name is none of DESIS

    def __init__(self, path: str | Path) -> None:
        self.path, metadata, level = _find_desis(Path(path))
        super().__init__(str(self.path), with_wavelengths=False)
        root = parse_xml(read_text_file(metadata, "a METADATA.xml"), metadata)
        # Elements named "band" stand under the orientation of the sensor as well.
        elements = root.findall("specific/bandCharacterisation/band")
        if not elements:
            fail(metadata, "a list of bands (specific/bandCharacterisation/band)", "none")

        def values(tag: str) -> np.ndarray:
            texts = (element.findtext(tag) for element in elements)
            return np.array([to_number(text, f"a {tag} in each band", metadata) for text in texts])

        order = np.argsort(values("bandNumber"))
        if not np.diff(values("bandNumber")[order]).all():
            fail(metadata, "a bandNumber of its own in each band", "one that two bands have")
        if self.shape[0] != len(order):
            fail(self.path, f"{len(order)} bands as in {metadata.name}", str(self.shape[0]))
        centers, widths = values("wavelengthCenterOfBand")[order], values("wavelengthWidthOfBand")[order]
        wavelengths, fwhm, _ = to_nanometers(centers, widths, "nm", self.path)
        self.stated = Stated(
            wavelengths=wavelengths,
            fwhm=fwhm,
            gain=values("gainOfBand")[order],
            offset=values("offsetOfBand")[order],
            nodata=_DESIS_NODATA if self.stated.nodata is None else self.stated.nodata,
            quantity="reflectance" if level == "L2A" else "radiance",
            crs=self.stated.crs,
            transform=self.stated.transform if self.stated.crs else None,
            notes=self.stated.notes,
            name=re.sub(r"-METADATA(\.xml)+$", "", metadata.name, flags=re.I),
            metadata={
                "sensor": "DESIS",
                "processing_level": level,
                "acquisition_time": root.findtext("base/temporalCoverage/startTime", "").strip(),
                "sun_zenith": root.findtext("specific/sunZenithAngle", "").strip(),
            },
        )


def open_spectrometer(path: str | Path, orthorectified: bool = True) -> RasterFile | None:
    """A reader of a PRISMA, EMIT or DESIS product (also a folder of one); None where the path is none of these.

    EMIT comes on its map grid or in sensor geometry. Raises ProductError where the product cannot be used.
    """
    if is_prisma(path):
        return PrismaFile(path)
    if is_emit(path):
        return EmitFile(path, orthorectified)
    return DesisFile(path) if is_desis(path) else None


def is_prisma(path: str | Path) -> bool:
    """Whether a file is a PRISMA product by its name or, where it was renamed, by its swaths."""
    swaths = _hdf5_names(Path(path), "HDFEOS/SWATHS")
    return bool(_PRISMA_NAME.fullmatch(Path(path).name)) or any(_PRISMA_SWATH.fullmatch(name) for name in swaths)


def is_emit(path: str | Path) -> bool:
    """Whether a file is an EMIT product by its name or, where it was renamed, by its datasets."""
    names = _hdf5_names(Path(path), "/")
    renamed = "sensor_band_parameters" in names and ("reflectance" in names or "radiance" in names)
    return bool(_EMIT_NAME.fullmatch(Path(path).name)) or renamed


def is_desis(path: str | Path) -> bool:
    """Whether a file is the image or the metadata of a DESIS product by its name, or a folder holds one."""
    path = Path(path)
    return bool(_desis_metadata(path)) if path.is_dir() else bool(_DESIS_NAME.fullmatch(path.name))


def _names(file: Any, group: str) -> list[str]:
    """Names in a group of an open HDF5 file; none where there is no such group."""
    members = file.get(group)
    return list(members.keys()) if hasattr(members, "keys") else []


def _hdf5_names(path: Path, group: str) -> list[str]:
    """Names in a group of an HDF5 file; none where the file is another, is damaged, or h5py is missing."""
    try:
        if path.suffix.lower() not in _HDF5_EXTENSIONS or not path.is_file() or not is_hdf5(path):
            return []
        with import_h5py(path).File(path, "r", locking="best-effort") as file:
            return _names(file, group)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError):
        return []


def _read_cube(dataset: Any, bands: np.ndarray, rows: slice, columns: slice, band_axis: int) -> np.ndarray:
    """Bands of a window of an HDF5 cube in any order, (bands, height, width), by as few reads as they have runs."""
    distinct, places = np.unique(bands, return_inverse=True)
    parts = []
    for run in np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1):
        window = [rows, columns]
        window.insert(band_axis, slice(int(run[0]), int(run[-1]) + 1))
        parts.append(np.moveaxis(dataset[tuple(window)], band_axis, 0))
    numbers = np.concatenate(parts)
    return numbers if np.array_equal(distinct, bands) else numbers[places]


def _desis_metadata(folder: Path) -> list[Path]:
    """METADATA.xml of the DESIS products in a folder or in a folder below, sorted."""
    files = (file for pattern in ("DESIS-*", "*/DESIS-*") for file in folder.glob(pattern) if file.is_file())
    matches = ((file, _DESIS_NAME.fullmatch(file.name)) for file in files)
    return sorted(file for file, match in matches if match and match["metadata"])


def _find_desis(path: Path) -> tuple[Path, Path, str]:
    """Image and metadata of a product, and the level that their names state."""
    if path.is_dir():
        found = _desis_metadata(path)
        if len(found) != 1:
            fail(path, "one DESIS-HSI-…-METADATA.xml", f"{len(found)}: open them one by one" if found else "none")
        path = found[0]
    own = _DESIS_NAME.fullmatch(path.name)
    if own is None:
        fail(path, "DESIS-HSI-…-SPECTRAL_IMAGE.tif or DESIS-HSI-…-METADATA.xml", "another name")
    parts = {}
    for file in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
        match = _DESIS_NAME.fullmatch(file.name)
        if match and match["prefix"].lower() == own["prefix"].lower():
            parts["image" if match["image"] else "metadata"] = file
    for part, name in (("image", "SPECTRAL_IMAGE.tif"), ("metadata", "METADATA.xml")):
        if part not in parts:
            fail(path.parent, f"a file {own['prefix']}-{name}", "none")
    # The path itself is kept where a folder holds a part twice, such as a COG beside the image.
    parts["image" if own["image"] else "metadata"] = path
    return parts["image"], parts["metadata"], own["level"].upper()


__all__ = ["DesisFile", "EmitFile", "PrismaFile", "is_desis", "is_emit", "is_prisma", "open_spectrometer"]
