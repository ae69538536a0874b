"""Small PRISMA, EMIT and DESIS products for the tests, in the layouts of the official files.

All writers take the same image: `stored`, int16 (bands, height, width), reflectance x 10000 with -32768 where there
is no data; `wavelengths` and `fwhm` in nm, (bands,), ascending; a north-up `transform`; and a `crs`. What they write
can be read back as exactly these stored numbers; a writer fails where its format is too coarse for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

NODATA = -32768
PRISMA_NAME = "PRS_L2D_STD_20230407100729_20230407100733_0001.he5"
EMIT_NAME = "EMIT_L2A_RFL_001_20230407T100729_2309707_005.nc"
DESIS_NAME = "DESIS-HSI-L2A-DT0884573241_001-20200601T234520-V0210"
UNUSED_BANDS = 2
"""Bands of wavelength 0 that each detector of a PRISMA product has."""


def write_prisma(
    path: str | Path,
    stored: np.ndarray,
    wavelengths: np.ndarray,
    fwhm: np.ndarray,
    transform: Affine,
    crs: str,
    *,
    level: str = "L2D",
    corners: str = "centers",
    sun_zenith: bool = True,
    chunks: tuple[int, int, int] | None = None,
) -> Path:
    """Writes a PRISMA product: bands up to 1000 nm in the VNIR cube, the others in the SWIR cube, both descending.

    The unused bands, first in VNIR and last in SWIR, hold 65535, so that a reader that takes one is found out.

    Args:
        path: the `.he5` file.
        stored, wavelengths, fwhm, transform, crs: the image; the pixels are 30 m wide.
        level: "L1", "L2B", "L2C" or "L2D"; at L1 the numbers are radiance x 100, taken from reflectance x 10000.
        corners: what the corners are: "centers" of the corner pixels, "outer" corners of the image, or "odd" points.
        sun_zenith: writes the angles whose value 0 marks pixels outside the swath.
        chunks: of the cubes (lines, bands, samples); contiguous without.
    """
    import h5py

    _, height, width = stored.shape
    known = stored != NODATA
    path = Path(path)
    with h5py.File(path, "w") as file:
        swath = file.create_group(f"HDFEOS/SWATHS/PRS_{level}_HCO")
        attributes: dict[str, Any] = {
            "Processing_Level": np.bytes_(level[1:]),
            "Product_StartTime": np.bytes_("2023-04-07T10:07:29.123"),
            "Sun_zenith_angle": np.float32(35.5),
        }
        for detector, own in (("Vnir", wavelengths <= 1000), ("Swir", wavelengths > 1000)):
            chosen = np.flatnonzero(own)[::-1]
            values = stored[chosen] / 1e4
            if level == "L1":
                attributes[f"ScaleFactor_{detector}"], attributes[f"Offset_{detector}"] = (
                    np.float32(100),
                    np.float32(0),
                )
                numbers = np.maximum(stored[chosen], 0).astype(np.uint16)
            else:
                # Below the lowest reflectance, because the number 0 is no data.
                low = np.float32(min(-0.1, values[known[chosen]].min(initial=0) - 0.01))
                high = np.float32(max(1.2, values[known[chosen]].max(initial=0) + 0.01))
                gain, offset = (float(high) - float(low)) / 65535, float(low)
                numbers = np.where(known[chosen], np.rint((values - offset) / gain), 0).astype(np.uint16)
                again = np.rint((numbers * gain + offset) * 1e4)
                assert (again == stored[chosen])[known[chosen]].all(), "the reflectance spans too much for 65535 steps"
                attributes[f"L2Scale{detector}Min"], attributes[f"L2Scale{detector}Max"] = low, high
            unused = np.full((UNUSED_BANDS, height, width), 65535, np.uint16)
            none = np.zeros(UNUSED_BANDS)
            order = 1 if detector == "Vnir" else -1
            cube = np.concatenate([unused, numbers][::order]).transpose(1, 0, 2)  # (lines, bands, samples)
            centers = np.concatenate([none, wavelengths[chosen]][::order])
            attributes[f"List_Cw_{detector}"] = centers.astype(np.float32)
            attributes[f"List_Fwhm_{detector}"] = np.concatenate([none, fwhm[chosen]][::order]).astype(np.float32)
            attributes[f"List_Cw_{detector}_Flags"] = (centers > 0).astype(np.uint8)
            name = f"Data Fields/{detector.upper()}_Cube"
            swath.create_dataset(name, data=cube, chunks=chunks, compression="gzip" if chunks else None)
        if level == "L2D":
            attributes["Epsg_Code"] = np.int64(CRS.from_user_input(crs).to_epsg())
            inset = {"centers": 0.5, "outer": 0.0, "odd": 3.0}[corners]
            for corner, column, row in (("UL", 0, 0), ("UR", 1, 0), ("LL", 0, 1), ("LR", 1, 1)):
                east = transform.c + transform.a * (column * width + inset * (1 - 2 * column))
                north = transform.f + transform.e * (row * height + inset * (1 - 2 * row))
                attributes[f"Product_{corner}corner_easting"] = np.float64(east)
                attributes[f"Product_{corner}corner_northing"] = np.float64(north)
        if sun_zenith:
            angles = np.where(known.any(axis=0), 35.5, 0).astype(np.float32)
            swath.create_dataset("Geometric Fields/Solar_Zenith_Angle", data=angles)
        file.attrs.update(attributes)
    return path


def write_emit(
    path: str | Path,
    stored: np.ndarray,
    wavelengths: np.ndarray,
    fwhm: np.ndarray,
    transform: Affine,
    crs: str,
    *,
    good_wavelengths: np.ndarray | None = None,
    quarter_turns: int = 0,
    gaps: np.ndarray | None = None,
    radiance: bool = False,
    chunks: tuple[int, int, int] | None = None,
) -> Path:
    """Writes an EMIT product whose orthorectified image is the image given.

    Args:
        path: the `.nc` file.
        stored, wavelengths, fwhm, transform, crs: the image.
        good_wavelengths: bands that are to be used, bool (bands,); all by default.
        quarter_turns: the sensor's image is the given one turned so many times; the lookup table turns it back.
        gaps: pixels that the lookup table leaves empty, bool (height, width).
        radiance: as at L1B: the dataset is `radiance`, and no good wavelengths are stated.
        chunks: of the cube (downtrack, crosstrack, bands); contiguous without.
    """
    import h5py

    path = Path(path)
    bands, height, width = stored.shape
    reflectance = np.where(stored == NODATA, -9999.0, stored / 1e4).astype(np.float32)
    assert (np.rint(reflectance.astype(np.float64) * 1e4) == stored)[stored != NODATA].all()
    pixels = np.rot90(np.arange(height * width).reshape(height, width), quarter_turns)  # (downtrack, crosstrack)
    places = np.empty((2, height * width), dtype=np.int32)
    places[:, pixels.ravel()] = np.indices(pixels.shape).reshape(2, -1) + 1
    down, across = places.reshape(2, height, width) * (1 if gaps is None else ~gaps)
    with h5py.File(path, "w") as file:
        name = "radiance" if radiance else "reflectance"
        cube = np.rot90(reflectance, quarter_turns, axes=(1, 2)).transpose(1, 2, 0)
        dataset = file.create_dataset(name, data=cube, chunks=chunks, compression="gzip" if chunks else None)
        dataset.attrs["_FillValue"] = np.array([-9999.0], dtype=np.float32)
        for axis, table in (("x", across), ("y", down)):
            file.create_dataset(f"location/glt_{axis}", data=table.astype(np.int32))
        parameters = file.create_group("sensor_band_parameters")
        parameters["wavelengths"] = np.asarray(wavelengths, dtype=np.float32)
        parameters["fwhm"] = np.asarray(fwhm, dtype=np.float32)
        if not radiance:
            good = np.ones(bands) if good_wavelengths is None else good_wavelengths
            parameters["good_wavelengths"] = np.asarray(good, dtype=np.float32)
        file.attrs["geotransform"] = np.array(transform.to_gdal())
        file.attrs["spatial_ref"] = CRS.from_user_input(crs).to_wkt()
        file.attrs["time_coverage_start"] = "2023-04-07T10:07:29+0000"
    return path


def write_desis(
    folder: str | Path,
    stored: np.ndarray,
    wavelengths: np.ndarray,
    fwhm: np.ndarray,
    transform: Affine,
    crs: str,
    *,
    gain: float | np.ndarray = 0.0001,
    offset: float | np.ndarray = 0.0,
    name: str = DESIS_NAME,
    declare_nodata: bool = True,
) -> Path:
    """Writes a DESIS product and returns its folder.

    Args:
        folder: is made; the files lie in it.
        stored, wavelengths, fwhm, transform, crs: the image.
        gain, offset: of each band or of all: number in the file = (reflectance - offset) / gain, rounded.
        name: of the product, which states its level: reflectance at L2A.
        declare_nodata: -32768 in the header of the image.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bands, height, width = stored.shape
    gains, offsets = (np.full(bands, value) if np.ndim(value) == 0 else np.asarray(value) for value in (gain, offset))
    known = stored != NODATA
    numbers = np.rint((stored / 1e4 - offsets[:, None, None]) / gains[:, None, None])
    again = np.rint((numbers * gains[:, None, None] + offsets[:, None, None]) * 1e4)
    assert (again == stored)[known].all() and np.abs(numbers[known]).max(initial=0) <= 32767, "gain or offset unfit"
    profile = {"driver": "GTiff", "dtype": "int16", "count": bands, "height": height, "width": width}
    with rasterio.open(
        folder / f"{name}-SPECTRAL_IMAGE.tif",
        "w",
        **profile,
        transform=transform,
        crs=crs,
        nodata=NODATA if declare_nodata else None,
        interleave="pixel",
    ) as dataset:
        dataset.write(np.where(known, numbers, NODATA).astype(np.int16))
    elements = (
        "".join(
            f"<band><bandNumber>{band + 1}</bandNumber>"
            f"<wavelengthCenterOfBand>{wavelengths[band]:.6f}</wavelengthCenterOfBand>"
            f"<wavelengthWidthOfBand>{fwhm[band]:.6f}</wavelengthWidthOfBand>"
            "<response>0.1, 0.9, 0.1</response><wavelengths>399, 402, 405</wavelengths>"
            f"<gainOfBand>{float(gains[band])}</gainOfBand><offsetOfBand>{float(offsets[band])}</offsetOfBand></band>\n"
            for band in range(bands)
        )
        .replace("np.float64(", "")
        .replace(")", "")
    )
    # As in real metadata, "band" stands under the orientation of the sensor, too.
    (folder / f"{name}-METADATA.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<hsi_doc>\n'
        f"<metadata><name>{name}</name></metadata>\n"
        "<base><temporalCoverage><startTime>2020-06-01T23:45:20.000Z</startTime></temporalCoverage></base>\n"
        "<specific><sunZenithAngle>35.5</sunZenithAngle>\n"
        f"<bandCharacterisation>\n{elements}</bandCharacterisation>\n"
        "<interiorOrientation><band><bandNumber>1</bandNumber></band></interiorOrientation>\n"
        "</specific>\n</hsi_doc>\n"
    )
    return folder
