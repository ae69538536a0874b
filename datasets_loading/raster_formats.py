"""Readers of the formats that any software writes, each a `RasterFile`: what is stored, and what is stated about it.

`GdalFile` reads GeoTIFF, ENVI and JPEG 2000 through the raster library; `ArrayFile` reads arrays of MATLAB, NumPy,
HDF5 and NetCDF files. None of them is read whole where the format allows parts to be read.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from datasets_loading.raster_file import (
    LARGEST_TEXT,
    ProductError,
    RasterFile,
    Stated,
    check_fits,
    check_hdf5,
    fail,
    leads_outside,
    parse_xml,
    raster_errors,
    read_text_file,
)
from datasets_loading.stac_items import explain_failure, opening_settings, prepare_remote
from datasets_loading.wavelengths import SIDECAR_NAME, read_wavelength_file, to_nanometers

RASTER_CACHE_MEGABYTES = 64
"""What the raster library may keep of blocks it has read: its own default is a share of the machine's memory."""

DRIVERS = ["GTiff", "ENVI", "JP2OpenJPEG"]
"""What the raster library may open. Its other formats fetch addresses or other files that a text file names."""
_ENVI_DATA_ENDINGS = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".bin", ".raw", ".cube", ".pix", ".hyspex")
_NO_ENVI_DATA = ".hdr .xml .txt .csv .png .jpg .jpeg .json .prj .ovr .msk .md5 .tif".split()
_SIDE_FILES = (".hdr", ".tfw", ".wld", ".prj", ".imd", ".rpb", "_rpc.txt", "_mtl.txt")
_RADIANCE = re.compile(
    r"radiance|[uµ]?w[\s*/^.(-]*(c?m[\s*/^.-]*-?2|c?m\^?2).*sr|(^|[^a-z])rdn([^a-z]|$)|^(1/)?sr\s*(\^?-1)?$", re.I
)
ARRAY_ENDINGS = (".mat", ".npy", ".npz", ".h5", ".hdf5", ".hdf", ".he5", ".nc")
_WAVELENGTH_NAMES = re.compile(r"(band_?)?(wavelengths?(_3d)?|wl|wvl|cent(er|re)_?wavelengths?)(_?(nm|um))?", re.I)
_WAVELENGTH_IN_NAME = re.compile(
    r"(?<![\w.,-])(\d+(?:\.\d+)?) ?(nm|nanomet(?:er|re)s?|[uµμ]m|micromet(?:er|re)s?|microns?)\b", re.I
)
"""As in "418.24 nm" or "band 1 (418.24 Nanometers)", which GDAL and xarray give to bands as names."""
_WIDTH_NAMES = re.compile(r"(band_?)?fwhms?(_?(nm|um))?", re.I)
_OLDER_FORMATS = {
    b"CDF": "classic NetCDF (nccopy -k nc4 converts it, or gdal_translate to GeoTIFF)",
    b"\x0e\x03\x13\x01": "HDF4 (h4toh5 converts it, or gdal_translate to GeoTIFF)",
}
_MOST_LISTED = 8
_Arrays = dict[str, tuple[tuple[int, ...], str]]
"""Shape and type of each array of a file, by name."""
_EASTINGS = ("x", "lon", "longitude", "easting")
_MOST_DEFLATED = 1100
"""What deflating can make of a byte, at most."""
_LARGEST_NPY_HEADER = 10_000
_ABOUT = re.compile("(data_?)?units?|(TIFFTAG_IMAGE)?DESCRIPTION|long_?name|quantity", re.I)
"""Tags of a GeoTIFF that say what its numbers are."""
_GOOD_NAMES = re.compile(r"bbl|good_?(wavelengths?|bands?)", re.I)
_VAPOUR_RANGE = re.compile("Band_Window_[0-9]_Nanometers")
"""In which water vapour leaves no light, as NEON states it beside the array."""
_NO_IMAGE = re.compile(r"uncertaint|(^|_)unc(_|$)|quality|mask(?!ed)|flag", re.I)
_UNCERTAINTY = re.compile(r"uncertaint(y|ies)\W*$|(^|_)unc(_|$)", re.I)
"""What an array is called that holds no image, and how a description ends of an image of uncertainties."""
_FILLS = ("missing_value", "fillvalue", "data_ignore_value")
_NUMBERS = (*_FILLS, "scale_factor", "add_offset")
"""Attributes of arrays, however they are spelled: "_FillValue", "Scale_Factor", "data ignore value"."""
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"
"""Begins the name of what NetCDF puts for a dimension without coordinates: an array of zeros."""
_EOS_GRID = re.compile(
    r'GridName="(?P<name>[^"]+)"\s+XDim=(?P<width>\d+)\s+YDim=(?P<height>\d+)\s+'
    r"UpperLeftPointMtrs=\((?P<left>[^,()]+),(?P<top>[^,()]+)\)\s+LowerRightMtrs=\((?P<right>[^,()]+),(?P<bottom>[^,()]+)\)"
    r"(\s+Projection=HE5_GCTP_UTM\s+ZoneCode=(?P<zone>-?\d+))?"
)
"""A grid in the structure that HDF-EOS5 files state, as those of Tanager."""


class GdalFile(RasterFile):
    """A GeoTIFF, ENVI image or JPEG 2000 as a `RasterFile`.

    Args:
        location: the file, or a path of GDAL's file systems.
        with_wavelengths: whether to look for wavelengths in it: where others are given, its own may be wrong.
    """

    drivers = DRIVERS

    def __init__(self, location: str, with_wavelengths: bool = True):
        super().__init__()
        self._with_wavelengths = with_wavelengths
        self.location = location
        _check_side_files(location)
        dataset = self.dataset
        spare = _check_is_whole(dataset, location)
        # GDAL's option ALPHA=YES marks the second or fourth of many bands, which is one of the spectrum
        self._alpha = dataset.count if dataset.count > 1 and dataset.colorinterp[-1] == ColorInterp.alpha else None
        self._file_bands = [band for band in dataset.indexes if band != self._alpha]
        flags = [flag for kinds in dataset.mask_flag_enums for flag in kinds]
        self._has_mask = self._alpha is None and MaskFlags.per_dataset in flags
        self.shape = len(self._file_bands), dataset.height, dataset.width
        types = {dataset.dtypes[band - 1] for band in self._file_bands}
        if any(kind.startswith("complex") for kind in types):
            fail(location, "whole or real numbers", f"numbers of type {', '.join(sorted(types))}")
        self.dtype = np.result_type(*(np.dtype(kind) for kind in types))
        self.block_shape = dataset.block_shapes[0]
        together = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
        check_fits(location, float(math.prod(self.block_shape)) * self.dtype.itemsize * together, "blocks of a size")
        num_pages = len(dataset.subdatasets) if dataset.driver == "GTiff" else 0
        if num_pages and dataset.count == 1:
            advice = "as Pillow and ImageJ write: make them bands of one page"
            fail(location, "one page in a GeoTIFF", f"{num_pages} pages of one band, {advice}")
        self.stated = self._read_stated(dataset)
        if spare:
            self.stated.notes.append(f"it goes on for {spare:,} bytes after the image that its ENVI header describes")
        if num_pages:
            self.stated.notes.append(f"the first of its {num_pages} pages is read")

    @property
    def dataset(self) -> DatasetReader:
        """The open file of this process."""
        return self._handle()

    def _open(self) -> DatasetReader:
        # Read before the first block is kept, by the raster library itself
        os.environ.setdefault("GDAL_CACHEMAX", str(RASTER_CACHE_MEGABYTES))
        prepare_remote(self.location)
        try:
            # `rasterio.open` takes one driver only
            with raster_errors(self.location), rasterio.Env(**opening_settings(self.location)):
                return DatasetReader(self.location, driver=self.drivers)
        except ProductError:
            reason = explain_failure(self.location)
            if reason is None:
                _check_byte_order_mark(Path(self.location))
                raise
            fail(self.location, "a GeoTIFF", reason)

    def read(self, bands: Sequence[int], rows: slice, columns: slice) -> np.ndarray:
        file_bands = [self._file_bands[band] for band in bands]
        if not file_bands:
            return np.empty((0, rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        with raster_errors(self.location):
            return self.dataset.read(file_bands, window=Window.from_slices(rows, columns))

    def read_reduced(self) -> np.ndarray | None:
        """All bands of a remote image as its smallest overview has them; None where that would save nothing."""
        if not self.location.startswith("/vsicurl/"):
            return None
        with raster_errors(self.location):
            factors = self.dataset.overviews(self._file_bands[0])
            if not factors:
                return None
            size = (-(-side // factors[-1]) for side in self.shape[1:])
            return self.dataset.read(self._file_bands, out_shape=(len(self._file_bands), *size))

    def read_mask(self, rows: slice, columns: slice) -> np.ndarray | None:
        if self._alpha is None and not self._has_mask:
            return None
        with raster_errors(self.location):
            window = Window.from_slices(rows, columns)
            if self._alpha is not None:
                return self.dataset.read(self._alpha, window=window) > 0
            return self.dataset.read_masks(self._file_bands[0], window=window) > 0

    def _read_stated(self, dataset: DatasetReader) -> Stated:
        header = dataset.tags(ns="ENVI")
        # The library takes a list of another length for none, and text for 0
        for key in ("data_gain_values", "data_offset_values"):
            _header_numbers(header, key, dataset.count, self.location)
        ignored = header.get("data_ignore_value", "").strip("{} ")
        if ignored.lower().lstrip("+-") not in ("", "nan") and np.isnan(_number(ignored)):
            fail(self.location, "a number as 'data ignore value' in its ENVI header", repr(ignored))
        places = np.array(self._file_bands) - 1
        scales, offsets = np.array(dataset.scales)[places], np.array(dataset.offsets)[places]
        own = not (np.all(scales == 1) and not offsets.any())
        stated = Stated(gain=scales if own else None, offset=offsets if own else None)
        to_reflectance = _header_numbers(header, "data_reflectance_gain_values", dataset.count, self.location)
        if to_reflectance is not None:
            shift = _header_numbers(header, "data_reflectance_offset_values", dataset.count, self.location)
            stated.gain, stated.quantity = to_reflectance[places], "reflectance"
            stated.offset = np.zeros(len(places)) if shift is None else shift[places]
        factor = _header_numbers(header, "reflectance_scale_factor", 1, self.location)
        if factor is not None:
            if not (np.isfinite(factor[0]) and factor[0] > 0):
                fail(self.location, "a positive reflectance scale factor", f"{factor[0]:g}")
            # ENVI: gain and offset come first, and the factor then divides what they give
            gain = scales if stated.gain is None else stated.gain
            shift = offsets if stated.offset is None else stated.offset
            stated.gain, stated.offset, stated.quantity = gain / factor[0], shift / factor[0], "reflectance"
        nodata = np.array([np.nan if value is None else value for value in dataset.nodatavals])[places]
        if dataset.driver == "ENVI" and ignored:
            nodata[:] = _number(ignored)  # the library takes {-9999} for 0
        if not np.isnan(nodata).all():
            stated.nodata = float(nodata[0]) if (nodata == nodata[0]).all() else nodata
        tags = [dataset.tags(band) for band in self._file_bands]
        stated.good_bands = _good_bands(header, tags, len(tags), self.location)
        if self._with_wavelengths:
            centers, widths, unit = self._stated_wavelengths(dataset, header, tags)
            if centers is not None:
                stated.wavelengths, stated.fwhm, stated.notes = to_nanometers(centers, widths, unit, self.location)
        if dataset.transform.is_degenerate:
            stated.notes.append("its pixels have no size, and its place on Earth is left out")
        elif not dataset.transform.is_identity:
            stated.transform, stated.crs = dataset.transform, dataset.crs
            if dataset.crs and not (dataset.crs.is_projected or dataset.crs.is_geographic):
                # As "Arbitrary" in ENVI headers: such coordinates lie nowhere on Earth
                stated.transform = stated.crs = None
                stated.notes.append("its local coordinate system is left out")
        elif dataset.gcps[0]:
            stated.notes.append("its ground control points are left out (gdalwarp lays it on a map by them)")
        if ColorInterp.alpha in dataset.colorinterp[:-1]:
            marked = dataset.colorinterp.index(ColorInterp.alpha) + 1
            stated.notes.append(f"band {marked} is marked as alpha and read as one of the spectrum")
        texts = [dataset.units[0] or "", header.get("description", ""), header.get("data_units", "")]
        texts += [text for tag in (dataset.tags(), *tags[:1]) for name, text in tag.items() if _ABOUT.fullmatch(name)]
        # Files of AVIRIS say so in their names alone
        texts += re.findall("(?<![a-z])rdn(?![a-z])", Path(self.location).name.lower())
        stated.quantity = stated.quantity or _quantity_in(texts)
        stated.metadata = {"format": str(dataset.driver)}
        return stated

    def _stated_wavelengths(
        self, dataset: DatasetReader, header: dict[str, str], tags: Sequence[dict[str, str]]
    ) -> tuple[np.ndarray | None, np.ndarray | None, str | None]:
        """Centers, widths and unit: from an ENVI header, tags or GDAL's own domain IMAGERY or names of the bands."""
        count = dataset.count
        centers = _header_numbers(header, "wavelength", count, self.location)
        if centers is not None:
            places = np.array(self._file_bands) - 1
            widths = _header_numbers(header, "fwhm", count, self.location)
            return centers[places], None if widths is None else widths[places], header.get("wavelength_units")
        imagery = [dataset.tags(band, ns="IMAGERY") for band in self._file_bands]
        tags = [{name.lower(): text for name, text in tag.items()} for tag in tags]
        of_centers, of_widths = (
            next((name for tag in tags for name in tag if names.fullmatch(name)), "")
            for names in (_WAVELENGTH_NAMES, _WIDTH_NAMES)
        )
        for source, key, width_key, unit in (
            (tags, of_centers, of_widths, _unit_in_name(of_centers)),
            (imagery, "CENTRAL_WAVELENGTH_UM", "FWHM_UM", "um"),
        ):
            texts = [tag.get(key) for tag in source]
            if not any(texts):
                continue
            if not all(texts):
                on_all = f"the tag {key} on all of its {len(texts)} bands"
                fail(self.location, on_all, f"it on {sum(map(bool, texts))}")
            units = {tag.get("wavelength_units", tag.get("wavelength_unit", "")) for tag in source}
            if unit is None and len(units) > 1:
                fail(self.location, "one unit of wavelengths", ", ".join(sorted(units)))
            widths_text = [tag.get(width_key) for tag in source]
            widths = self._to_numbers(widths_text, width_key) if all(widths_text) else None
            return self._to_numbers(texts, key), widths, unit or units.pop()
        # Names are for people: a file of wavelengths beside the image was put there for programs
        has_sidecar = os.path.lexists(Path(self.location).with_name(SIDECAR_NAME))
        named = [_WAVELENGTH_IN_NAME.findall(dataset.descriptions[band - 1] or "") for band in self._file_bands]
        if not has_sidecar and all(len(found) == 1 for found in named) and len({unit for ((_, unit),) in named}) == 1:
            return np.array([float(number) for ((number, _),) in named]), None, named[0][0][1]
        return None, None, None

    def _to_numbers(self, texts: Sequence[str | None], key: str) -> np.ndarray:
        numbers_ = np.array([_number(text) for text in texts])
        if np.isnan(numbers_).any():
            band = int(np.flatnonzero(np.isnan(numbers_))[0])
            fail(self.location, f"a number in the tag {key} of each band", f"{texts[band]!r} in band {band + 1}")
        return numbers_


class ArrayFile(RasterFile):
    """An array of a MATLAB, NumPy, HDF5 or NetCDF file as a `RasterFile`.

    Its bands are the axis that is as long as the file's own list of wavelengths, or those given. In MATLAB files
    without any they are the last axis, (height, width, bands), as is the usage; other files have none.
    """

    def __init__(self, path: Path, variable: str | None = None, wavelengths: Any = None, dimensions: int = 3):
        super().__init__()
        self.path = path
        arrays = _list_arrays(path)
        self.variable = _choose_array(path, arrays, variable, dimensions)
        shape, dtype = arrays[self.variable]
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.stated = Stated(metadata={"format": f"{path.suffix.lower().lstrip('.').upper()} array"})
        if len(arrays) > 1:
            self.stated.metadata["array"] = self.variable
        if dimensions == 2:
            self.axis, self.shape = -1, (1, shape[0], shape[1])
        else:
            good = self._state_bands(arrays, wavelengths is None)
            known = self._length_of(wavelengths)
            self.axis = self._band_axis(shape, known)
            if good is not None and len(good) == shape[self.axis]:
                self.stated.good_bands = good
            self._state_attributes(shape[self.axis])
            self._state_grid()
            height, width = (length for axis, length in enumerate(shape) if axis != self.axis)
            self.shape = (shape[self.axis], height, width)
            if variable is None and len(_images_among(arrays, dimensions)) > 1:
                self.stated.notes.append(f"of several arrays, {self.variable} is taken")
            if self.stated.transform is None and any(
                name.split("/")[-1].lower() in ("lat", "latitude") and own_shape == self.shape[1:]
                for name, (own_shape, _) in arrays.items()
            ):
                self.stated.notes.append("latitudes and longitudes of its pixels are no grid and left out")
        self.block_shape = min(self.shape[1], 64), self.shape[2]

    def _state_bands(self, arrays: _Arrays, with_wavelengths: bool) -> np.ndarray | None:
        """
        Puts in wavelengths and widths that are attributes of the array or arrays of the file; gives its list of good
        bands.
        """
        shape = arrays[self.variable][0]
        with _array_errors(self.path):
            attributes = dict(getattr(self._handle(), "attrs", {}))

        def find(names: re.Pattern[str]) -> tuple[np.ndarray, str | None] | None:
            for name, values in attributes.items():
                if names.fullmatch(name) and np.size(values) in shape and np.asarray(values).dtype.kind in "iufb":
                    return np.ravel(values).astype(np.float64), _unit_in_name(name)
            for name, (own_shape, own_dtype) in arrays.items():
                is_line = math.prod(own_shape) == max(own_shape, default=0) and math.prod(own_shape) in shape
                if names.fullmatch(name.split("/")[-1]) and is_line and np.dtype(own_dtype).kind in "iufb":
                    array = _read_array(self.path, name)
                    unit = _unit_of(array) or _unit_in_name(name)
                    return np.asarray(array).reshape(-1).astype(np.float64), unit
            return None

        centers, widths, good = find(_WAVELENGTH_NAMES), find(_WIDTH_NAMES), find(_GOOD_NAMES)
        if centers is not None and with_wavelengths:
            fits = widths is not None and widths[0].shape == centers[0].shape
            self.stated.wavelengths, self.stated.fwhm, self.stated.notes = to_nanometers(
                centers[0], widths[0] if widths is not None and fits else None, centers[1], self.path
            )
        if good is None and self.stated.wavelengths is not None:
            beside = getattr(getattr(self._handle(), "parent", None), "attrs", {})
            ranges = [
                np.ravel(beside[name])
                for name in beside
                if _VAPOUR_RANGE.fullmatch(name) and np.size(beside[name]) == 2
            ]
            inside = [(self.stated.wavelengths > low) & (self.stated.wavelengths < high) for low, high in ranges]
            return ~np.logical_or.reduce(inside) if inside else None
        return None if good is None else good[0] > 0

    def _state_attributes(self, num_bands: int) -> None:
        """
        Scale, offset, fill value and quantity by the CF conventions or those of NEON, where an HDF5 array carries
        them.
        """
        array = self._handle()
        attributes = getattr(array, "attrs", {})
        spelled = {name.strip("_").lower().replace(" ", "_"): name for name in attributes}
        held = {}
        for plain, name in ((plain, spelled[plain]) for plain in _NUMBERS if plain in spelled):
            values = stated = np.ravel(attributes[name])
            if values.dtype.kind in "SUO":
                values = np.array([_number(_text(value)) for value in values])
            is_bad = values.dtype.kind not in "iuf" or values.size not in (1, num_bands)
            if is_bad or (plain not in _FILLS and np.isnan(values).any()):
                fail(self.path, f"one number as {name}, or one for each of {num_bands} bands", f"{stated.tolist()}")
            held[plain] = values
        fills = [plain for plain in _FILLS if plain in held]
        if str(attributes.get("_Unsigned")).lower() == "true" and self.dtype.kind == "i":
            self.dtype = np.dtype(f"u{self.dtype.itemsize}")
            held |= {plain: held[plain].astype(self.dtype) for plain in fills}
        for plain in fills:
            self.stated.nodata = float(held[plain][0])
        if "scale_factor" in held or "add_offset" in held:
            gain = np.asarray(held.get("scale_factor", [1.0]), dtype=np.float64)
            if "scale_factor" not in attributes:  # NEON's divides, as 10000; that of others multiplies, as 0.0001
                gain = np.where(gain > 1, 1 / np.maximum(gain, 1), gain)
            self.stated.gain, self.stated.offset = gain, np.asarray(held.get("add_offset", [0.0]), dtype=np.float64)
        self.stated.called = self.variable.split("/")[-1] if self.path.suffix.lower() != ".npy" else ""
        texts = self.stated.called, _unit_of(array), _text(attributes.get("long_name"))
        self.stated.quantity = _quantity_in([text for text in texts if text])

    def _state_grid(self) -> None:
        """
        CRS and transform by the CF conventions, where a NetCDF array has coordinates (or GDAL's `GeoTransform`), or as
        NEON and HDF-EOS state them.
        """
        array = self._handle()
        if not hasattr(array, "attrs"):
            return
        # Arithmetic of xarray drops the attribute, and keeps what it names
        usual = next((name for name in ("spatial_ref", "crs") if name in array.parent), "")
        mapping = (_text(array.attrs.get("grid_mapping")) or usual).split(":")[0]
        rows, columns = (_scales_of(array, axis)[:1] for axis in range(3) if axis != self.axis)
        try:
            about: Any = {}
            if mapping:
                about = (array.parent[mapping] if mapping in array.parent else array.file[mapping]).attrs
            wkt = _text(about.get("crs_wkt", about.get("spatial_ref")))
            axes = [*rows, *columns]
            in_degrees = [_direction_of(axis) for axis in axes] == ["n", "e"]
            if wkt or in_degrees:
                if any(found.name.split("/")[-1].lower() in _EASTINGS for found in rows):
                    raise ValueError("columns before rows")
                crs = CRS.from_wkt(wkt) if wkt else CRS.from_epsg(4326)
                self.stated.transform = self._grid_of(rows, columns, _text(about.get("GeoTransform")))
                self.stated.crs = crs
            elif own := _neon_group(array.parent):
                self.stated.crs, self.stated.transform = _neon_place(own)
            elif grid := re.fullmatch("/HDFEOS/GRIDS/([^/]+)/Data Fields/[^/]+", array.name):
                self.stated.crs, self.stated.transform = _eos_place(array, grid[1])
            elif mapping or len(axes) == 2:
                raise ValueError(f"{mapping or 'coordinates'} without crs_wkt")
        except (CRSError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            self.stated.notes.append(f"its place on Earth is not understood and left out ({reason[:100]})")

    def _grid_of(self, rows: list[Any], columns: list[Any], given: str | None) -> Affine:
        """The transform by the coordinates of rows and columns and by GDAL's `GeoTransform`, of which one may miss."""
        height, width = (length for axis, length in enumerate(self._handle().shape) if axis != self.axis)
        transform = None
        if given:
            transform = Affine.from_gdal(*map(float, given.split()))
            # GDAL writes the last row first, and states the transform of the image that it reads north up
            if rows and _first_and_step(*rows)[1] * transform.e < 0:
                transform = transform @ Affine(1, 0, 0, 0, -1, height)
            if not (rows and columns and transform.is_rectilinear):
                return transform
        (left, right), (top, down) = map(_first_and_step, (*columns, *rows))
        own = Affine(right, 0, left - right / 2, 0, down, top - down / 2)
        if transform is None:
            return own
        # xarray cuts the coordinates with the image, and leaves the transform as it was
        ends = [np.subtract(own @ corner, transform @ corner) for corner in ((0, 0), (width, height))]
        if np.abs(ends).max() <= 0.5 * min(abs(right), abs(down)):
            return transform
        self.stated.notes.append("its GeoTransform is that of another image, its coordinates count")
        return own

    def _length_of(self, wavelengths: Any) -> int | None:
        if isinstance(wavelengths, (str, Path)):
            return len(read_wavelength_file(wavelengths)[0])
        if wavelengths is not None:
            return len(wavelengths)
        if self.stated.wavelengths is not None:
            return len(self.stated.wavelengths)
        sidecar = self.path.with_name(SIDECAR_NAME)
        return len(read_wavelength_file(sidecar)[0]) if sidecar.is_file() else None

    def _band_axis(self, shape: tuple[int, ...], known: int | None) -> int:
        size, is_matlab = " x ".join(map(str, shape)), self.path.suffix.lower() == ".mat"
        if is_matlab and known in (None, shape[2]):
            return 2
        if known is None:
            advice = "none, so that its band axis is unknown: give --wavelengths, or wavelengths.txt beside it"
            fail(self.path, f"the wavelengths of an array of {size}", advice)
        fitting = [axis for axis in (2, 0, 1) if shape[axis] == known]
        if len(fitting) != 1:
            found = f"no axis in an array of {size}"
            if fitting:
                found = f"{len(fitting)} axes in an array of {size}: leave out a row or column of pixels"
            fail(self.path, f"one axis of {known} bands as there are wavelengths", found)
        return fitting[0]

    def read(self, bands: Sequence[int], rows: slice, columns: slice) -> np.ndarray:
        array = self._handle()
        if self.axis < 0:
            return np.asarray(array[rows, columns])[None].astype(self.dtype, copy=False)
        chosen = np.asarray(bands, dtype=np.int64)
        # HDF5 takes one list of indices, in ascending order
        low, high = (int(chosen.min()), int(chosen.max()) + 1) if len(chosen) else (0, 0)
        place: list[slice] = [rows, columns]
        place.insert(self.axis, slice(low, high))
        with _array_errors(self.path):
            part = np.moveaxis(np.asarray(array[tuple(place)]), self.axis, 0)[chosen - low]
        return part.astype(self.dtype, copy=False)

    def close(self) -> None:
        self._handles.clear()  # arrays, which are not closed themselves

    def _open(self) -> Any:
        self.close()  # what a parent process has open, HDF5 would give again
        return _read_array(self.path, self.variable)


def envi_data(header: Path) -> Path:
    """The data file that an ENVI header describes: `scene.hdr` that of `scene`, `scene.img`, `scene.BSQ`, ...

    Raises:
        ProductError: the file is no ENVI header, or there is no data file, or several, beside it.
    """
    with header.open("rb") as file:
        first = file.read(200).lstrip(b"\xef\xbb\xbf").lstrip()
    if not first.startswith(b"ENVI"):
        fail(header, "an ENVI header, which begins with the word ENVI", repr(first[:20].decode("latin-1")))
    stem = header.with_suffix("").name.lower()
    beside = {
        file.name.lower()[len(stem) :]: file
        for file in sorted(header.parent.iterdir())
        if file.name.lower().startswith(stem) and file.is_file() and file != header
    }
    for ending in _ENVI_DATA_ENDINGS:
        if ending in beside:
            return beside[ending]
    possible = [ending for ending in beside if re.fullmatch(r"\.[^.]+", ending) and ending not in _NO_ENVI_DATA]
    others = [beside[ending] for ending in possible]
    if len(others) != 1:
        held = ", ".join(file.name for file in others) or "none"
        fail(header, f"the data of this ENVI header beside it, {stem}.img or alike", held)
    return others[0]


def _check_byte_order_mark(path: Path) -> None:
    """Refuses an ENVI header with the mark that Windows' editors put before UTF-8: the library then sees no header."""
    for header in (path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr")):
        if header.is_file() and read_text_file(header, "an ENVI header").startswith(b"\xef\xbb\xbf"):
            expected = "an ENVI header, which begins with the word ENVI"
            fail(header, expected, "a byte order mark: save it without (UTF-8)")


def _check_side_files(location: str) -> None:
    """Refuses files beside an image that the library reads whole however large, skips where damaged, or follows."""
    if location.startswith("/vsi"):
        return
    path = Path(location)
    for ending in _SIDE_FILES:
        for beside in (path.with_name(path.stem + ending), path.with_name(path.stem + ending.upper())):
            if os.path.lexists(beside) and beside != path and beside.stat().st_size > LARGEST_TEXT:
                fail(beside, f"a text beside an image, at most {LARGEST_TEXT:,} bytes", f"{beside.stat().st_size:,}")
    beside = Path(f"{location}.aux.xml")
    if os.path.lexists(beside):
        for element in parse_xml(read_text_file(beside, "what is stated beside an image"), beside).iter("MDI"):
            name = (element.text or "").removeprefix(":::BASE:::")
            if element.get("key", "").endswith("_FILE") and leads_outside(name):
                fail(beside, "names of files in its folder", repr(name))


def _check_is_whole(dataset: DatasetReader, location: str) -> int:
    """
    Refuses a file that ends before its header says: the library would read zeros, or fail at the end of a map. Gives
    the bytes that follow the image in an ENVI file: with another size in its header, it may be another image.
    """
    if location.startswith("/vsi"):
        return 0
    try:
        size = Path(location).stat().st_size
        header = dataset.tags(ns="ENVI")
        if dataset.driver == "ENVI":
            _check_envi_header(dataset)
        if dataset.driver == "ENVI" and header.get("file_compression", "0").strip() in ("", "0"):
            sizes = sum(np.dtype(kind).itemsize for kind in dataset.dtypes) * dataset.width * dataset.height
            start = _number(header.get("header_offset", "0").strip() or "0")
            if not (np.isfinite(start) and start >= 0):
                fail(location, "a number as 'header offset' in its ENVI header", repr(header["header_offset"]))
            sizes += int(start)
            if size < sizes:
                fail(location, f"{sizes:,} bytes as its ENVI header declares", f"{size:,}: it was cut off")
            return size - sizes
        elif dataset.driver == "GTiff":
            if _end_of_tags(Path(location)) > size:
                fail(location, "a whole GeoTIFF", f"one that was cut off at {size:,} bytes")
            rows, columns = (
                -(-length // block) - 1 for length, block in zip(dataset.shape, dataset.block_shapes[0], strict=True)
            )
            for band in {1, dataset.count}:
                for column, row in ((0, 0), (columns, rows)):
                    start, length = (
                        dataset.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=band)
                        for what in ("OFFSET", "SIZE")
                    )
                    if start and length and int(start) + int(length) > size:
                        fail(location, "a whole GeoTIFF", f"one that was cut off at {size:,} bytes")
    except (OSError, struct.error):
        pass
    return 0


def _check_envi_header(dataset: DatasetReader) -> None:
    """Refuses an ENVI header that ends within an entry, or with sizes that are none: the library takes both."""
    for name in dataset.files:
        if name.lower().endswith(".hdr"):
            text = read_text_file(Path(name), "an ENVI header").decode("latin-1").rstrip()
            for key, value in re.findall(r"^(lines|samples|bands|header offset)[ \t]*=[ \t]*(.*?)\s*$", text, re.M):
                if not value.isdigit():  # the library takes text for 0, and fractions for what is before the point
                    fail(name, f"a whole number as '{key}'", repr(value[:40]))
            last = text.splitlines()[-1]
            if text.rfind("{") > text.rfind("}") or not re.search("[=};]", last):
                fail(name, "a whole ENVI header", f"one that ends with {last[-40:]!r}")


def _end_of_tags(path: Path) -> int:
    """The last byte that the first directory of a TIFF names: of tags beyond the end the library takes no notice."""
    sizes = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
    with path.open("rb") as file:
        order = "<" if file.read(2) == b"II" else ">"
        big = struct.unpack(f"{order}H", file.read(2))[0] == 43
        offset, count, inside = ("Q", "Q", 8) if big else ("I", "H", 4)
        file.seek(8 if big else 4)
        file.seek(struct.unpack(f"{order}{offset}", file.read(inside))[0])
        (number,) = struct.unpack(f"{order}{count}", file.read(struct.calcsize(f"{order}{count}")))
        layout = f"{order}HH{offset}{offset}"
        ends = [0]
        for _, kind, length, place in struct.iter_unpack(layout, file.read(number * struct.calcsize(layout))):
            length *= sizes.get(kind, 1)
            ends.append(place + length if length > inside else 0)
    return max(ends)


def _header_numbers(header: dict[str, str], key: str, count: int, where: str) -> np.ndarray | None:
    """`count` numbers of a list in an ENVI header, float64 (count,); None where it has none."""
    text = header.get(key)
    if text is None or not text.strip("{} \t\r\n"):
        return None
    fields = [field.strip() for field in text.strip().strip("{}").rstrip(", \t\r\n").split(",")]
    values = np.array([_number(field) for field in fields])
    named = key.replace("_", " ")
    if len(values) != count:
        fail(where, f"{count} numbers under '{named}' in its ENVI header", f"{len(values)}")
    if np.isnan(values).any():
        fail(where, f"numbers under '{named}' in its ENVI header", repr(fields[int(np.isnan(values).argmax())]))
    return values


def _good_bands(header: dict[str, str], tags: Sequence[dict[str, str]], count: int, where: str) -> np.ndarray | None:
    """Bands that `bbl`, the list of bad bands, keeps, bool (bands,)."""
    listed = _header_numbers(header, "bbl", count, where)
    if listed is None and any("bbl" in tag for tag in tags):
        listed = np.array([_number(tag.get("bbl", "1")) for tag in tags])
    return None if listed is None else listed > 0


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _list_arrays(path: Path) -> _Arrays:
    """The arrays of a file, of which nothing is read."""
    ending = path.suffix.lower()
    with _array_errors(path):
        if ending == ".npy":
            with path.open("rb") as file:
                _read_npy_header(file)
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return {path.stem: (array.shape, array.dtype.str)}
        if ending == ".npz":
            arrays = {}
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if entry.filename.endswith(".npy"):
                        with archive.open(entry) as member:
                            shape, dtype = _read_npy_header(member)
                        arrays[entry.filename[:-4]] = (shape, dtype.str)
            return arrays
        if ending == ".mat" and not is_hdf5(path):
            from scipy.io import whosmat

            kinds = {"single": "f4", "double": "f8", "logical": "u1"}
            kinds |= {f"int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)}
            kinds |= {f"uint{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)}
            return {name: (shape, kinds[kind]) for name, shape, kind in whosmat(path) if kind in kinds}
        with path.open("rb") as file:
            start = file.read(4)
        for signature, older in _OLDER_FORMATS.items():
            if start.startswith(signature):
                fail(path, "HDF5 or NetCDF 4", older)
        h5py, arrays = import_h5py(path), {}
        with h5py.File(path) as file:

            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.dtype.kind in "iufb" and not name.startswith("#"):
                    if (_text(item.attrs.get("NAME")) or "").startswith(_NO_VARIABLE):
                        return
                    arrays[name] = (item.shape[::-1] if ending == ".mat" else item.shape, item.dtype.str)

            file.visititems(visit)
        return arrays


def _read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array; NumPy itself would ask for as much memory as the header says it takes."""
    is_longer = np.lib.format.read_magic(file)[0] > 1
    stated = file.read(4 if is_longer else 2)
    length = int.from_bytes(stated, "little")
    if length > _LARGEST_NPY_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    reader = np.lib.format.read_array_header_2_0 if is_longer else np.lib.format.read_array_header_1_0
    shape, _, dtype = reader(io.BytesIO(stated + file.read(length)))
    return shape, dtype


def _images_among(arrays: _Arrays, dimensions: int) -> list[str]:
    """Names of the arrays that may be an image, or labels with two dimensions."""
    # Everything has at least two dimensions in MATLAB: a line of numbers is no image, and three bytes are a picture
    return [
        name
        for name, (shape, dtype) in arrays.items()
        if len(shape) == dimensions
        and sorted(shape)[-2] > 1
        and not (dimensions == 3 and 3 in shape and np.dtype(dtype) == np.uint8)
    ]


def _choose_array(path: Path, arrays: _Arrays, variable: str | None, dimensions: int) -> str:
    listed = [f"{name} {shape}" for name, (shape, _) in arrays.items()]
    more = len(listed) - _MOST_LISTED
    held = ", ".join(listed[:_MOST_LISTED] + [f"{more} more"] * (more > 0)) or "no numbers"
    if variable is not None:
        if variable not in arrays or len(arrays[variable][0]) != dimensions:
            fail(path, f"an array {variable} with {dimensions} dimensions", f"{held}")
        return variable
    fitting = _images_among(arrays, dimensions)
    if dimensions == 3:
        fitting = [name for name in fitting if not _NO_IMAGE.search(name.split("/")[-1])] or fitting
        fitting = [name for name in fitting if min(arrays[name][0]) > 1] or fitting
    if len(fitting) != 1:
        flag = "--variable, of labelled scenes --image_variable" if dimensions == 3 else "--label_variable"
        fail(path, f"one array with {dimensions} dimensions", f"{len(fitting)} ({held}): name it ({flag})")
    return fitting[0]


def _read_array(path: Path, name: str) -> Any:
    """An array of a file, mapped or opened rather than read where the format allows it."""
    ending = path.suffix.lower()
    with _array_errors(path):
        if ending == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if ending == ".npz" or (ending == ".mat" and not is_hdf5(path)):
            shape, dtype = _list_arrays(path)[name]
            needed = math.prod(shape) * np.dtype(dtype).itemsize
            if needed > _MOST_DEFLATED * path.stat().st_size:
                fail(path, f"an array {name} that its bytes can hold", f"one declared as {shape}")
            check_fits(path, needed, f"an array {name}")
            if ending == ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    return archive[name]
            from scipy.io import loadmat

            return np.asarray(loadmat(path, variable_names=[name])[name])
        file = import_h5py(path).File(path)
        array = file[name]
        check_hdf5(array, file, path)
        return _Transposed(array) if ending == ".mat" else array


def _text(value: Any) -> str | None:
    """An attribute of an HDF5 file as text, perhaps an array of one, None where it is something else."""
    value = np.ravel(value)[0] if isinstance(value, np.ndarray) and value.size == 1 else value
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text if isinstance(text, str) else None


def _unit_of(array: Any) -> str | None:
    """The unit that an HDF5 or NetCDF array states, None where it states none."""
    stated = (_text(value) for name, value in getattr(array, "attrs", {}).items() if name.lower() in ("unit", "units"))
    return next(filter(None, stated), None)


def _unit_in_name(name: str) -> str | None:
    """As of `wavelength_nm`."""
    return next((unit for unit in ("nm", "um") if name.lower().endswith(unit)), None)


def _scales_of(array: Any, axis: int) -> list[Any]:
    """The arrays of coordinates along an axis of an HDF5 array; none where the file has lost them."""
    try:
        scales = [*array.dims[axis].values()]
        return [scale for scale in scales if not (_text(scale.attrs.get("NAME")) or "").startswith(_NO_VARIABLE)]
    except (RuntimeError, OSError):
        return []


def _direction_of(coordinates: Any) -> str | None:
    """Gives "n" for latitudes and "e" for longitudes in degrees, by their unit or else their name; None for others."""
    unit = (_unit_of(coordinates) or "").lower()
    if stated := re.fullmatch("degrees?_?(n|north|e|east)", unit):
        return stated[1][0]
    name = re.fullmatch("(lat)(itude)?|(lon)(gitude)?", coordinates.name.split("/")[-1].lower())
    return ("n" if name[1] else "e") if name and unit in ("", "deg", "degree", "degrees") else None


def _first_and_step(coordinates: Any) -> tuple[float, float]:
    """The first of evenly spaced coordinates, and the step between them; ValueError where they are not."""
    unit = _unit_of(coordinates) or ""
    if re.match("k|rad", unit, re.I):
        raise ValueError(f"coordinates in {unit}")
    values = np.asarray(coordinates[()], dtype=np.float64).reshape(-1)
    steps = np.diff(values)
    # Degrees in 32 bits are rounded by a hundredth of a small pixel
    rounding = 2 * np.finfo(coordinates.dtype).eps * np.abs(values).max() if coordinates.dtype.kind == "f" else 0
    is_even = len(steps) and steps[0] and np.abs(steps - steps[0]).max() <= max(0.01 * abs(steps[0]), rounding)
    if not (is_even and abs(steps[0]) > rounding):  # as of NaN
        raise ValueError("coordinates that are not evenly spaced")
    return float(values[0]), float((values[-1] - values[0]) / len(steps))


def _neon_group(parent: Any) -> Any:
    """Where a file of NEON states the place of its image, in files before 2016 beside it; None in others."""
    return parent.get("Metadata/Coordinate_System", parent if "map info" in parent else None)


def _neon_place(group: Any) -> tuple[CRS, Affine]:
    """Where an image of NEON lies, by its code and the line `map info` of an ENVI header, which it has as well."""
    texts = {
        name.lower().replace("_", " "): _text(item[()]) or ""
        for name, item in group.items()
        if getattr(item, "size", 0) == 1  # the image itself may stand beside them
    }
    info, code = texts["map info"], texts.get("epsg code")
    turned = re.search(r"rotation\s*=\s*(-?[\d.]+)", info)
    if turned and float(turned[1]):
        raise ValueError("a grid that is turned")
    column, row, left, top, width, height = map(float, info.split(",")[1:7])
    to_corner = Affine(width, 0, left, 0, -height, top) @ Affine.translation(1 - column, 1 - row)
    crs = CRS.from_wkt(texts["coordinate system string"]) if code is None else CRS.from_epsg(int(code))
    return crs, to_corner


def _eos_place(array: Any, name: str) -> tuple[CRS, Affine]:
    """Where a grid of an HDF-EOS5 file lies, by its structure, and by `epsg_code` where the grid has it."""
    structure = _text(array.file["HDFEOS INFORMATION/StructMetadata.0"][()]) or ""
    found = next((grid for grid in _EOS_GRID.finditer(structure) if grid["name"] == name), None)
    code = array.parent.parent.attrs.get("epsg_code")
    if found is None or (code is None and found["zone"] is None):
        raise ValueError(f"the structure of the grid {name}")
    width, height = int(found["width"]), int(found["height"])
    if (height, width) not in (array.shape[:2], array.shape[1:]):
        raise ValueError(f"a grid of {height} x {width} pixels")
    zone = int(found["zone"] or 0)
    left, top, right, bottom = (float(found[side]) for side in ("left", "top", "right", "bottom"))
    crs = CRS.from_epsg(int(np.ravel(code)[0]) if code is not None else (32600 if zone > 0 else 32700) + abs(zone))
    return crs, Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)


class _Transposed:
    """An HDF5 array with its axes reversed, as MATLAB means them."""

    def __init__(self, array: Any):
        self._array = array

    def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray:
        return self._array[place[::-1]].T

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._array[()].T, dtype=dtype)


@contextmanager
def _array_errors(path: Path) -> Iterator[None]:
    """Turns whatever libraries raise over a damaged file into a ProductError of one line."""
    try:
        yield
    except (ProductError, MemoryError):
        raise
    except Exception as error:  # struct, zlib, zipfile, scipy and HDF5 all have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        fail(path, f"a whole file of numbers ({path.suffix.lower()})", f"one that is not ({reason})")


def import_h5py(path: Path) -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError:
        fail(path, "the package h5py to read it", "none: pip install h5py")


def is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        # A MATLAB 7.3 file has a header of 512 bytes before it
        return b"\x89HDF\r\n\x1a\n" in (file.read(8), file.seek(512) and file.read(8))


def _quantity_in(texts: Sequence[str]) -> str | None:
    """Whether units, names and descriptions speak of radiance or of uncertainty."""
    if any(map(_UNCERTAINTY.search, texts)):
        return "uncertainty"
    is_radiance = any("reflectance" not in text.lower() and _RADIANCE.search(text) for text in texts)
    return "radiance" if is_radiance else None
