"""Writes a cube as a product in the official EnMAP level 2A file format.

Follows the EnMAP HSI Level 2A Product Specification (DLR, EN-PCV-ICD-2009) and the nesting of a METADATA.XML of the
ground segment, so that readers of EnMAP products accept simulated ones. Equal input gives equal bytes.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import xy as pixel_coordinates
from rasterio.warp import transform as transform_coordinates

from datasets_loading.enmap_product import CLASS_LAND, CLASS_OUTSIDE, CLASS_WATER, EMPTY_BAND_MEAN, QUALITY_LAYERS
from datasets_loading.files import written_folder, written_whole
from datasets_loading.sensors import ENMAP

SECONDS_PER_LINE = 0.0044
"""Time EnMAP takes for one line of 30 m, in seconds."""

QUICK_LOOK_WAVELENGTHS = {"VNIR": (847.1, 671.21, 548.06), "SWIR": (2201.0, 1645.3, 1051.3)}
"""Wavelengths in nm that the official quick looks show as red, green and blue."""

_PIXEL_MASK_NODATA = 255
# Fixed, so that an archive of equal files has equal bytes.
_ARCHIVE_TIME = (1980, 1, 1, 0, 0, 0)


def write_enmap_product(
    parent: str | Path,
    name: str,
    cube: np.ndarray,
    *,
    wavelengths: Sequence[float] | np.ndarray,
    fwhm: Sequence[float] | np.ndarray,
    detectors: Sequence[str],
    transform: Affine,
    crs: CRS | str,
    acquisition_time: datetime,
    sun_elevation: float,
    quality: Mapping[str, np.ndarray],
    gain: float = 0.0001,
    offset: float = 0.0,
    as_zip: bool = False,
) -> Path:
    """Writes the folder `parent/name`, or the archive `parent/name.ZIP`, which appears only when it is whole.

    Args:
        parent: folder to write into; made where it does not exist.
        name: name of the product, as `ENMAP01-____L2A-DT0000000001_20220701T103000Z_001_V010000_20220702T000000Z`.
        cube: stored numbers, int16 (bands, height, width), -32768 where there are no data.
        wavelengths, fwhm: band centers and full widths at half maximum in nm (bands,), in the order of the cube.
        detectors: "VNIR" or "SWIR" for each band.
        transform: from (column, row) to coordinates in meters.
        crs: projected coordinate reference system.
        acquisition_time: start of the acquisition; taken as UTC where it has no time zone.
        sun_elevation: sun elevation at the center of the scene in degrees.
        quality: layers by their names in `QUALITY_LAYERS` less "pixel_mask", integer or bool (height, width). A layer
            that is not given is written as clear; "classes" as land where any band holds data, else as outside.
        gain, offset: reflectance = stored number * gain + offset.

    Raises:
        ValueError: the arguments contradict each other, a layer is unknown, or there is another product of this name;
            the same one is written once more.
        OSError: it cannot be written; nothing half-written is left.
    """
    _check(cube, wavelengths, fwhm, detectors, quality)
    parent = Path(parent)
    layers = _complete_layers(cube, quality)

    def fill(folder: Path) -> None:
        grid = {"crs": CRS.from_user_input(crs), "transform": transform}
        write_raster(folder / f"{name}-SPECTRAL_IMAGE.TIF", cube, nodata=ENMAP.nodata, **grid)
        for layer, values in layers.items():
            write_raster(folder / f"{name}-{QUALITY_LAYERS[layer]}.TIF", values[None].astype(np.uint8), **grid)
        mask = np.where(cube == ENMAP.nodata, _PIXEL_MASK_NODATA, 0).astype(np.uint8)  # no pixel is defective
        write_raster(folder / f"{name}-{QUALITY_LAYERS['pixel_mask']}.TIF", mask, nodata=_PIXEL_MASK_NODATA, **grid)
        for detector in QUICK_LOOK_WAVELENGTHS:
            bands = _quick_look_bands(detector, wavelengths, detectors)
            if bands:
                quick_look = np.stack([_stretched(cube[band]) for band in bands])
                write_raster(folder / f"{name}-QL_{detector}.TIF", quick_look, nodata=0, **grid)
        metadata = _Metadata("level_X")
        metadata.describe(name, acquisition_time, cube.shape, **grid)
        metadata.state_quality(layers, sun_elevation)
        metadata.list_bands(cube, wavelengths, fwhm, detectors, gain, offset)
        metadata.list_files(name, folder)
        metadata.write(folder / f"{name}-METADATA.XML")

    if not as_zip:
        with written_folder(parent / name) as folder:
            fill(folder)
            check_no_other(parent / name, folder)
        return parent / name
    target = parent / f"{name}.ZIP"
    with (
        written_whole(target) as archive,
        tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=parent) as workplace,
    ):
        fill(Path(workplace))
        _archive(Path(workplace), name, archive)
        check_no_other(target, archive)
    return target


def check_no_other(target: Path, made: Path) -> None:
    """Raises ValueError where there is a file or folder already, and it is not the same."""
    if not os.path.lexists(target):
        return
    names = sorted(path.name for path in made.iterdir()) if made.is_dir() else []
    if made.is_dir() and target.is_dir():
        is_same = sorted(path.name for path in target.iterdir()) == names
        is_same = is_same and not any(filecmp.cmpfiles(target, made, names, shallow=False)[1:])
    else:
        is_same = target.is_file() and made.is_file() and filecmp.cmp(target, made, shallow=False)
    if not is_same:
        raise ValueError(f"{target}: expected nothing, or what is written there, got something else")


def _check(
    cube: np.ndarray,
    wavelengths: Sequence[float] | np.ndarray,
    fwhm: Sequence[float] | np.ndarray,
    detectors: Sequence[str],
    quality: Mapping[str, np.ndarray],
) -> None:
    if cube.dtype != np.int16 or cube.ndim != 3:
        raise ValueError(f"expected an int16 cube (bands, height, width), got {cube.dtype} {cube.shape}")
    lengths = {len(cube), len(wavelengths), len(fwhm), len(detectors)}
    if len(lengths) > 1:
        raise ValueError(f"expected a wavelength, a width and a detector for each of {len(cube)} bands, got {lengths}")
    if set(detectors) - set(QUICK_LOOK_WAVELENGTHS):
        raise ValueError(f'expected detectors "VNIR" or "SWIR", got {sorted(set(detectors))}')
    known_layers = set(QUALITY_LAYERS) - {"pixel_mask"}
    for layer, values in quality.items():
        if layer not in known_layers:
            raise ValueError(f"expected quality layers among {sorted(known_layers)}, got {layer!r}")
        if values.shape != cube.shape[1:]:
            raise ValueError(f"expected a layer {layer} of {cube.shape[1:]} pixels, got {values.shape}")


def _complete_layers(cube: np.ndarray, quality: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    layers = {}
    for layer in QUALITY_LAYERS:
        if layer in quality:
            layers[layer] = np.asarray(quality[layer])
        elif layer == "classes":
            has_data = np.zeros(cube.shape[1:], dtype=bool)
            for band in cube:
                has_data |= band != ENMAP.nodata
            layers[layer] = np.where(has_data, CLASS_LAND, CLASS_OUTSIDE)
        elif layer != "pixel_mask":
            layers[layer] = np.zeros(cube.shape[1:], dtype=np.uint8)
    return layers


def write_raster(
    path: Path,
    values: np.ndarray,
    crs: CRS | None,
    transform: Affine | None,
    nodata: Any = None,
    tags: Mapping[str, Any] | None = None,
    band_tags: Sequence[Mapping[str, Any]] = (),
    block_size: int = 128,
) -> None:
    """Writes (bands, height, width) as a tiled GeoTIFF: the fastest compression that every reader of TIFF knows."""
    profile = {
        "driver": "GTiff",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "nodata": nodata,
        "crs": crs,
        "transform": transform,
        "tiled": True,
        "blockxsize": block_size,
        "blockysize": block_size,
        "interleave": "band",
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 2,
        "num_threads": "all_cpus",
        # GDAL only switches to BigTIFF by itself where it knows the size beforehand, so not for compressed files.
        "bigtiff": "if_safer",
        "photometric": "minisblack",
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(values)
        for band, own in enumerate((tags or {}, *band_tags)):  # those of band 0 are the file's
            if own:
                dataset.update_tags(band, **own)


def _quick_look_bands(
    detector: str, wavelengths: Sequence[float] | np.ndarray, detectors: Sequence[str]
) -> tuple[int, ...]:
    bands = [band for band, name in enumerate(detectors) if name == detector]
    if not bands:
        return ()
    distances = np.abs(np.asarray(wavelengths)[bands, None] - QUICK_LOOK_WAVELENGTHS[detector])
    return tuple(bands[nearest] for nearest in distances.argmin(axis=0))


def _stretched(band: np.ndarray) -> np.ndarray:
    """A band between its 2nd and 98th percentile as 1-255, uint8 (height, width), and 0 without data."""
    has_data = band != ENMAP.nodata
    if not has_data.any():
        return np.zeros(band.shape, dtype=np.uint8)
    low, high = np.percentile(band[has_data], (2, 98))
    share = np.clip((band - low) / max(high - low, 1.0), 0.0, 1.0)
    return np.where(has_data, np.rint(1 + 254 * share), 0).astype(np.uint8)


def _archive(folder: Path, name: str, archive_path: Path) -> None:
    with zipfile.ZipFile(archive_path, "w") as archive:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{name}/{file.name}", date_time=_ARCHIVE_TIME)
            # Rasters are compressed already; stored as they are, any window of them can be read from the archive.
            entry.compress_type = zipfile.ZIP_DEFLATED if file.suffix == ".XML" else zipfile.ZIP_STORED
            entry.external_attr = 0o644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as destination:
                shutil.copyfileobj(source, destination, 1 << 20)


class _Metadata:
    """METADATA.XML in the making. Elements are given by their path; what does not exist on the way is made."""

    def __init__(self, root: str) -> None:
        self.root = ElementTree.Element(root)

    def element(self, path: str) -> ElementTree.Element:
        element = self.root
        for tag in path.split("/"):
            child = element.find(tag)
            element = ElementTree.SubElement(element, tag) if child is None else child
        return element

    def set(self, path: str, value: object, **attributes: str) -> None:
        element = self.element(path)
        element.text = str(value)
        element.attrib.update(attributes)

    def append(self, path: str, tag: str, values: Mapping[str, object], **attributes: str) -> None:
        element = ElementTree.SubElement(self.element(path), tag, attributes)
        for name, value in values.items():
            ElementTree.SubElement(element, name).text = str(value)

    def write(self, path: Path) -> None:
        ElementTree.indent(self.root)
        path.write_bytes(ElementTree.tostring(self.root, encoding="utf-8") + b"\n")

    def describe(
        self, name: str, acquisition_time: datetime, cube_shape: tuple[int, ...], crs: CRS, transform: Affine
    ) -> None:
        bands, height, width = cube_shape
        start = acquisition_time.replace(tzinfo=acquisition_time.tzinfo or UTC).astimezone(UTC)
        stop = start + timedelta(seconds=SECONDS_PER_LINE * height)
        self.set("metadata/schema/processingLevel", "L2A")
        self.set("metadata/name", f"{name}-METADATA.XML")
        self.set("metadata/comment", "Simulated product in the EnMAP L2A file format")
        self.set("processing/terrainCorrection", "Yes")
        self.set("processing/productFormat", "GeoTIFF+Metadata")
        self.set("processing/mapProjection", "UTM_Zone_of_Scene_Center")
        self.set("processing/correctionType", "Land_Mode")
        self._outline("base/spatialCoverage/boundingPolygon", start, stop, height, width, crs, transform)
        self.set("base/temporalCoverage/startTime", _time(start))
        self.set("base/temporalCoverage/stopTime", _time(stop))
        self.set("base/format", "ENMAP_L2A")
        self.set("base/level", "L2A")
        self.set("specific/mission", "EnMAP")
        self.set("specific/satelliteID", "01")
        self.set("specific/sensor", "HSI")
        identifiers = re.search(r"-DT(\d+)_[^_]*_(\d+)_", name)
        if identifiers:
            self.set("specific/datatakeID", identifiers[1])
            self.set("specific/tileID", identifiers[2])
        self.set("specific/pixelSize", f"{transform.a:g}")
        self.set("specific/code", "L2A")
        self.set("specific/pixelSizeOfOrthoScene", f"{transform.a:g}")
        self.set("specific/widthOfOrthoScene", width)
        self.set("specific/heightOfOrthoScene", height)
        self.set("product/image/merge/channels", bands)
        self.set("product/image/merge/name", f"{name}-SPECTRAL_IMAGE.TIF")
        self.set("product/image/merge/dimension/columns", width)
        self.set("product/image/merge/dimension/rows", height)
        self.set("product/ortho/projection", crs.to_string())
        self.set("product/ortho/resolution", f"{transform.a:g}")

    def _outline(
        self, path: str, start: datetime, stop: datetime, height: int, width: int, crs: CRS, transform: Affine
    ) -> None:
        corners = {
            "upper_left": (0, 0, start),
            "lower_left": (0, height, stop),
            "lower_right": (width, height, stop),
            "upper_right": (width, 0, start),
            "center": (width / 2, height / 2, start + (stop - start) / 2),
        }
        for frame, (column, row, time) in corners.items():
            x, y = pixel_coordinates(transform, row, column, offset="ul")
            longitudes, latitudes = transform_coordinates(crs, "EPSG:4326", [x], [y])[:2]
            values = {
                "frame": frame,
                "latitude": f"{latitudes[0]:.7f}",
                "longitude": f"{longitudes[0]:.7f}",
                "utcTime": _time(time),
            }
            self.append(path, "point", values)

    def state_quality(self, layers: Mapping[str, np.ndarray], sun_elevation: float) -> None:
        in_scene = layers["classes"] != CLASS_OUTSIDE

        def percentage(mask: np.ndarray) -> int:
            return round(100 * float((mask & in_scene).sum()) / max(int(in_scene.sum()), 1))

        flags = "specific/qualityFlag"
        self.set(f"{flags}/overallQuality", 0)
        self.set(f"{flags}/sceneSZA", f"{90 - sun_elevation:.6f}")
        self.set(f"{flags}/cloudCover", percentage(layers["cloud"] == 1))
        self.set(f"{flags}/hazeCover", percentage(layers["haze"] == 1))
        self.set(f"{flags}/cirrusCover", percentage(layers["cirrus"] > 0))
        self.set(f"{flags}/snowCover", percentage(layers["snow"] == 1))
        self.set(f"{flags}/waterCover", percentage(layers["classes"] == CLASS_WATER))
        self.set(f"{flags}/cloudShadow", percentage(layers["cloud_shadow"] == 1))
        self.set("specific/sunElevationAngle/center", f"{sun_elevation:.6f}", unit="DEG")

    def list_bands(
        self,
        cube: np.ndarray,
        wavelengths: Sequence[float] | np.ndarray,
        fwhm: Sequence[float] | np.ndarray,
        detectors: Sequence[str],
        gain: float,
        offset: float,
    ) -> None:
        for detector in ("VNIR", "SWIR"):
            channels = [str(band) for band, name in enumerate(detectors, start=1) if name == detector]
            quality = f"specific/{detector.lower()}ProductQuality"
            self.set(f"{quality}/numChannelsExpected", len(channels))
            self.set(f"{quality}/expectedChannelsList", ",".join(channels))
            self.set(f"{quality}/numChannelsMissing", 0)
            self.set(f"specific/numberOf{detector}Bands", len(channels))
        for number, (band, wavelength, width) in enumerate(zip(cube, wavelengths, fwhm, strict=True), start=1):
            characterisation = {
                "wavelengthCenterOfBand": float(wavelength),
                "FWHMOfBand": float(width),
                "GainOfBand": float(gain),
                "OffsetOfBand": float(offset),
            }
            self.append("specific/bandCharacterisation", "bandID", characterisation, number=str(number))
            mean, deviation = _mean_and_deviation(band, gain, offset)
            statistics = {"waveLength": float(wavelength), "mean": mean, "stdDeviation": deviation}
            self.append("product/bandStatistics", "bandID", statistics, number=str(number))

    def list_files(self, name: str, folder: Path) -> None:
        files = sorted(folder.iterdir())
        self.set("base/size", sum(file.stat().st_size for file in files))
        for number, file in enumerate(files, start=1):
            values = {"name": file.name, "size": file.stat().st_size // 1024, "format": "binary"}
            self.append("product/productFileInformation", "file", values, number=str(number))


def _mean_and_deviation(band: np.ndarray, gain: float, offset: float) -> tuple[str, str]:
    stored = band[band != ENMAP.nodata]
    if stored.size == 0:
        return str(EMPTY_BAND_MEAN), "0"
    return f"{stored.mean(dtype=np.float64) * gain + offset:.6g}", f"{stored.std(dtype=np.float64) * abs(gain):.6g}"


def _time(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
