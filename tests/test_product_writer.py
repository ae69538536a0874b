"""Products that are written: the official layout, equal bytes for equal input, and nothing half-written."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from small_products import BANDS, CLOUD, EMPTY_BAND, FIRST_COLUMN, HEIGHT, NAME, WIDTH, part, small_cube, small_quality
from small_products import write_small_product as write

import datasets_loading.simulation.product_writer

OFFICIAL_PARTS = [
    "METADATA.XML",
    "QL_PIXELMASK.TIF",
    "QL_QUALITY_CIRRUS.TIF",
    "QL_QUALITY_CLASSES.TIF",
    "QL_QUALITY_CLOUD.TIF",
    "QL_QUALITY_CLOUDSHADOW.TIF",
    "QL_QUALITY_HAZE.TIF",
    "QL_QUALITY_SNOW.TIF",
    "QL_QUALITY_TESTFLAGS.TIF",
    "QL_SWIR.TIF",
    "QL_VNIR.TIF",
    "SPECTRAL_IMAGE.TIF",
]


def test_files_have_their_official_names(tmp_path: Path):
    folder = write(tmp_path)
    assert folder == tmp_path / NAME
    assert sorted(file.name for file in folder.iterdir()) == [f"{NAME}-{part}" for part in OFFICIAL_PARTS]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_archive_holds_one_folder_of_the_same_files(tmp_path: Path):
    archive = write(tmp_path / "archive", as_zip=True)
    folder = write(tmp_path / "folder")
    assert archive.name == f"{NAME}.ZIP"
    with zipfile.ZipFile(archive) as content:
        assert content.testzip() is None
        assert {entry.date_time for entry in content.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert content.namelist() == [f"{NAME}/{NAME}-{part}" for part in OFFICIAL_PARTS]
        for file in folder.iterdir():
            assert content.read(f"{NAME}/{file.name}") == file.read_bytes()


@pytest.mark.parametrize("as_zip", [False, True])
def test_equal_input_gives_equal_bytes(tmp_path: Path, as_zip: bool):
    first, second = write(tmp_path / "first", as_zip=as_zip), write(tmp_path / "second", as_zip=as_zip)
    other = write(tmp_path / "other", as_zip=as_zip, cube=small_cube(seed=1))

    def content(product: Path) -> list[bytes]:
        return [file.read_bytes() for file in ([product] if as_zip else sorted(product.iterdir()))]

    assert content(first) == content(second) != content(other)


def test_spectral_image_is_tiled_compressed_and_georeferenced(tmp_path: Path):
    with rasterio.open(part(write(tmp_path), "SPECTRAL_IMAGE")) as dataset:
        assert dataset.profile["tiled"] and dataset.compression.value == "DEFLATE"
        assert (dataset.dtypes[0], dataset.nodata, dataset.crs.to_epsg()) == ("int16", -32768, 32633)
        assert dataset.res == (30.0, 30.0)
        np.testing.assert_array_equal(dataset.read(), small_cube())


def test_metadata_has_the_elements_of_the_official_one(tmp_path: Path):
    root = ElementTree.parse(part(write(tmp_path), "METADATA")).getroot()
    assert root.tag == "level_X"
    text = {path: root.findtext(path) for path in ("metadata/name", "specific/datatakeID", "specific/tileID")}
    assert list(text.values()) == [f"{NAME}-METADATA.XML", "0000006195", "003"]
    assert root.findtext("specific/vnirProductQuality/expectedChannelsList") == "1,2,3,5,6"
    assert root.findtext("specific/swirProductQuality/expectedChannelsList") == "4,7,8,9,10,11,12"
    assert (root.findtext("specific/numberOfVNIRBands"), root.findtext("specific/numberOfSWIRBands")) == ("5", "7")
    assert float(root.findtext("specific/sunElevationAngle/center", "")) == 38.5
    assert float(root.findtext("specific/qualityFlag/sceneSZA", "")) == 51.5
    assert root.findtext("base/temporalCoverage/startTime") == "2022-12-03T17:20:49.250000Z"
    assert (root.findtext("specific/widthOfOrthoScene"), root.findtext("specific/heightOfOrthoScene")) == (
        "170",
        "150",
    )
    corners = {point.findtext("frame"): point for point in root.findall("base/spatialCoverage/boundingPolygon/point")}
    assert float(corners["upper_left"].findtext("latitude", "")) == pytest.approx(52.42, abs=0.01)
    assert float(corners["upper_left"].findtext("longitude", "")) == pytest.approx(13.03, abs=0.01)


def test_percentages_are_shares_of_the_scene_within_the_swath(tmp_path: Path):
    quality = small_quality()
    quality["cloud"][:, :FIRST_COLUMN] = 1
    root = ElementTree.parse(part(write(tmp_path, quality=quality), "METADATA")).getroot()
    in_scene = HEIGHT * (WIDTH - FIRST_COLUMN)
    rows, columns = CLOUD
    cloud = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert root.findtext("specific/qualityFlag/cloudCover") == str(round(100 * cloud / in_scene))
    assert root.findtext("specific/qualityFlag/waterCover") == "50"
    assert root.findtext("specific/qualityFlag/cirrusCover") == "1"


def test_band_statistics_are_reflectance_with_the_official_values_for_an_empty_band(tmp_path: Path):
    root = ElementTree.parse(part(write(tmp_path, gain=0.0002, offset=0.01), "METADATA")).getroot()
    bands = root.findall("product/bandStatistics/bandID")
    assert [band.get("number") for band in bands] == [str(number) for number in range(1, len(BANDS) + 1)]
    empty = bands[EMPTY_BAND]
    assert (empty.findtext("mean"), empty.findtext("stdDeviation")) == ("-1000000", "0")
    stored = small_cube()[2, :, FIRST_COLUMN:].astype(np.float64)
    assert float(bands[2].findtext("mean", "")) == pytest.approx(stored.mean() * 0.0002 + 0.01, rel=1e-5)
    assert float(bands[2].findtext("stdDeviation", "")) == pytest.approx(stored.std() * 0.0002, rel=1e-5)


def test_layers_that_are_not_given_are_clear(tmp_path: Path):
    folder = write(tmp_path, quality={})
    with rasterio.open(part(folder, "QL_QUALITY_CLASSES")) as dataset:
        classes = dataset.read(1)
    assert (classes[:, :FIRST_COLUMN] == 3).all() and (classes[:, FIRST_COLUMN:] == 1).all()
    with rasterio.open(part(folder, "QL_QUALITY_CLOUD")) as dataset:
        assert not dataset.read().any()


def test_pixel_mask_marks_nodata(tmp_path: Path):
    with rasterio.open(part(write(tmp_path), "QL_PIXELMASK")) as dataset:
        mask = dataset.read()
    assert (mask[2, 10, 100], mask[3, 10, 0], mask[EMPTY_BAND, 10, 100]) == (0, 255, 255)


def test_quick_looks_show_each_detector(tmp_path: Path):
    folder = write(tmp_path)
    for detector in ("VNIR", "SWIR"):
        with rasterio.open(part(folder, f"QL_{detector}")) as dataset:
            assert (dataset.count, dataset.dtypes[0]) == (3, "uint8")
            assert np.ptp(dataset.read(1)[:, FIRST_COLUMN:]) > 200
            assert not dataset.read()[:, :, :FIRST_COLUMN].any()


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets_loading.simulation.product_writer, "_stretched", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_existing_product_stays(tmp_path: Path):
    write(tmp_path)
    write(tmp_path)  # the same once more
    with pytest.raises(ValueError, match=f"{NAME}: expected nothing, or what is written there"):
        write(tmp_path, cube=small_cube(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    with rasterio.open(part(tmp_path, "SPECTRAL_IMAGE")) as dataset:
        np.testing.assert_array_equal(dataset.read(), small_cube())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cube": small_cube().astype(np.float32)}, "expected an int16 cube"),
        ({"fwhm": [7.0]}, "each of 12 bands"),
        ({"detectors": ["VNIR"] * 11 + ["TIR"]}, "expected detectors"),
        ({"quality": {"clouds": np.zeros((HEIGHT, WIDTH))}}, "got 'clouds'"),
        ({"quality": {"cloud": np.zeros((HEIGHT, HEIGHT))}}, r"expected a layer cloud of \(150, 170\)"),
    ],
)
def test_contradictory_arguments_are_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_name_without_datatake_is_accepted(tmp_path: Path):
    root = ElementTree.parse(part(write(tmp_path, name="demo"), "METADATA")).getroot()
    assert root.findtext("metadata/name") == "demo-METADATA.XML"
    assert root.find("specific/datatakeID") is None
