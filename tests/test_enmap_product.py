"""Reading EnMAP products: every layout that is around, and one clear line for every defect."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from small_products import (
    ACQUISITION_TIME,
    DETECTORS,
    EMPTY_BAND,
    FIRST_COLUMN,
    FWHM,
    HEIGHT,
    NAME,
    TRANSFORM,
    WAVELENGTHS,
    WIDTH,
    edit_metadata,
    part,
    small_cube,
    small_quality,
    write_small_product,
)

from datasets_loading.enmap_product import EnMAPProduct, find_products
from datasets_loading.raster_file import ProductError
from datasets_loading.sensors import ENMAP, ENMAP_DETECTORS
from datasets_loading.tiles import find_sources

SHARED = Path(os.environ.get("HSST_SHARED", Path(__file__).parents[2] / "shared"))
OFFICIAL = SHARED / "data" / "enmap_l2a_product"
needs_official_files = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the official EnMAP sample files")

VNIR_FIRST = np.array([band for detector in ("VNIR", "SWIR") for band in range(12) if DETECTORS[band] == detector])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_product(tmp_path)


def assert_is_small_product(product: EnMAPProduct) -> None:
    assert product.name == NAME
    np.testing.assert_array_equal(product.wavelengths, WAVELENGTHS)
    np.testing.assert_array_equal(product.read(), small_cube())
    np.testing.assert_array_equal(product.read_cloud(), small_quality()["cloud"] == 1)


def assert_one_line(error: pytest.ExceptionInfo[ProductError], path: Path | str) -> None:
    """One line that names the file and says what was expected and what came."""
    message = str(error.value)
    assert message.startswith(str(path)), message
    assert re.search(": expected .+, got .+", message), message
    assert "\n" not in message and "/vsizip" not in message


# Metadata


def test_metadata(folder: Path):
    product = EnMAPProduct.open(folder)
    assert product.name == NAME
    assert product.num_bands == 12
    np.testing.assert_array_equal(product.wavelengths, WAVELENGTHS)
    np.testing.assert_array_equal(product.fwhm, FWHM)
    np.testing.assert_array_equal(product.gain, np.full(12, 0.0001))
    np.testing.assert_array_equal(product.offset, np.zeros(12))
    np.testing.assert_array_equal(product.file_bands, np.arange(1, 13))
    assert product.detectors == DETECTORS
    assert product.shape == (HEIGHT, WIDTH)
    assert product.acquisition_time == ACQUISITION_TIME
    assert product.sun_elevation == 38.5
    assert product.crs.to_epsg() == 32633
    assert product.transform == TRANSFORM
    assert product.missing_layers == ()
    np.testing.assert_array_equal(np.flatnonzero(~product.valid_bands), [EMPTY_BAND])


def test_opening_reads_no_raster(folder: Path):
    for raster in folder.glob("*.TIF"):
        raster.write_bytes(b"")
    product = EnMAPProduct.open(folder)
    assert product.shape == (HEIGHT, WIDTH)
    assert product.valid_bands.sum() == 11
    with pytest.raises(ProductError):
        product.read()


def test_bands_are_ascending_whatever_the_order_of_the_file(tmp_path: Path):
    folder = write_small_product(tmp_path, order=VNIR_FIRST, gain=0.0002)
    with rasterio.open(part(folder, "SPECTRAL_IMAGE")) as dataset:
        assert not np.array_equal(dataset.read(), small_cube())
    with EnMAPProduct.open(folder) as product:
        doubled = np.where(small_cube() == -32768, -32768, small_cube() * 2)
        np.testing.assert_array_equal(product.read(), doubled)
        assert product.detectors == DETECTORS
        np.testing.assert_array_equal(VNIR_FIRST[product.file_bands - 1], np.arange(12))
        np.testing.assert_array_equal(np.flatnonzero(~product.valid_bands), [EMPTY_BAND])


def test_detectors_of_a_reordered_copy_that_kept_the_official_channel_lists(tmp_path: Path):
    folder = write_small_product(tmp_path, order=VNIR_FIRST)
    for detector in ("VNIR", "SWIR"):
        channels = ",".join(str(band + 1) for band in range(12) if DETECTORS[band] == detector)
        tag = f"{detector.lower()}ProductQuality"
        list_tag = "expectedChannelsList"
        edit_metadata(folder, rf"(<{tag}>.*?<{list_tag}>)[\d,]*", rf"\g<1>{channels}")
    assert EnMAPProduct.open(folder).detectors == DETECTORS


def test_detectors_are_unknown_without_channel_lists(folder: Path):
    for _ in range(2):
        edit_metadata(folder, r"<expectedChannelsList>[\d,]*</expectedChannelsList>", "")
    assert set(EnMAPProduct.open(folder).detectors) == {"unknown"}


def test_time_zones_are_turned_into_utc(folder: Path):
    edit_metadata(folder, r"(<startTime>)[^<]*", r"\g<1>2022-12-03T19:20:49+02:00")
    assert EnMAPProduct.open(folder).acquisition_time == datetime(2022, 12, 3, 17, 20, 49, tzinfo=UTC)


def test_times_without_a_zone_are_utc(folder: Path, monkeypatch: pytest.MonkeyPatch):
    edit_metadata(folder, r"(<startTime>)[^<]*", r"\g<1>2022-12-03T17:20:49")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert EnMAPProduct.open(folder).acquisition_time == datetime(2022, 12, 3, 17, 20, 49, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_name_comes_from_the_files_where_the_metadata_state_none(folder: Path):
    edit_metadata(folder, r"<name>[^<]*</name>", "")
    assert EnMAPProduct.open(folder).name == NAME


def test_valid_bands_come_from_the_pixels_where_no_statistics_are_stated(folder: Path):
    edit_metadata(folder, "<bandStatistics>.*</bandStatistics>", "")
    np.testing.assert_array_equal(np.flatnonzero(~EnMAPProduct.open(folder).valid_bands), [EMPTY_BAND])


# Layouts


def test_zip_is_read_without_unpacking(tmp_path: Path):
    archive = write_small_product(tmp_path, as_zip=True)
    with EnMAPProduct.open(archive) as product:
        assert_is_small_product(product)
        assert product.valid_bands.sum() == 11
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("name", ["any name", "Café {1}.data", "download.zip.part"])
def test_names_of_folders_and_archives_do_not_matter(tmp_path: Path, name: str):
    folder = write_small_product(tmp_path / "a").rename(tmp_path / name)
    nested = tmp_path / "b" / name / "deeper"
    shutil.copytree(folder, nested / "no product name")
    archive = tmp_path / f"{name}.archive"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for file in folder.iterdir():
            content.write(file, f"outer/{name}/{file.name}")
    for path in (folder, tmp_path / "b" / name, archive, part(folder, "METADATA")):
        with EnMAPProduct.open(path) as product:
            assert_is_small_product(product)


def test_catalogue_names(folder: Path):
    for file in folder.iterdir():
        if file.suffix == ".XML":
            file.rename(file.with_name(f"{NAME}-METADATA.xml"))
        elif "SPECTRAL" in file.name:
            file.rename(file.with_name(f"{NAME}-SPECTRAL_IMAGE_COG.tiff"))
        else:
            file.rename(file.with_name(f"{file.stem}_COG.TIF"))
    with EnMAPProduct.open(folder) as product:
        assert_is_small_product(product)
        assert product.missing_layers == ()


@pytest.mark.parametrize("interleave", ["BSQ", "BIL", "BIP"])
@pytest.mark.parametrize("zipped", [False, True])
def test_spectral_image_in_the_envi_format(tmp_path: Path, folder: Path, interleave: str, zipped: bool):
    image = part(folder, "SPECTRAL_IMAGE")
    with rasterio.open(image) as source:
        profile = {
            key: source.profile[key] for key in ("width", "height", "count", "dtype", "nodata", "crs", "transform")
        }
        envi = image.with_suffix(f".{interleave}")
        with rasterio.open(envi, "w", driver="ENVI", interleave=interleave.lower(), **profile) as destination:
            destination.write(source.read())
    image.unlink()
    path = folder
    if zipped:
        path = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, folder.name))
    with EnMAPProduct.open(path) as product:
        assert_is_small_product(product)


def test_spectral_image_in_jpeg2000(folder: Path):
    image = part(folder, "SPECTRAL_IMAGE")
    try:
        with rasterio.open(image) as source:
            profile = {key: source.profile[key] for key in ("width", "height", "count", "dtype", "crs", "transform")}
            options = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
            with rasterio.open(image.with_suffix(".JP2"), "w", **options, **profile) as destination:
                destination.write(source.read())
    except rasterio.errors.RasterioError:
        pytest.skip("rasterio was built without JPEG2000")
    image.unlink()
    with EnMAPProduct.open(folder) as product:
        assert_is_small_product(product)


def test_files_of_another_product_and_archivers_twins_are_left_alone(tmp_path: Path, folder: Path):
    other = write_small_product(tmp_path, name="OTHER", cube=small_cube(seed=1))
    for file in other.iterdir():
        file.rename(folder / file.name)
        (folder / f"._{file.name}").write_bytes(b"\0")
    with pytest.raises(ProductError, match="expected one METADATA.XML, got 2") as error:
        EnMAPProduct.open(folder)
    assert_one_line(error, folder)
    with EnMAPProduct.open(folder / f"{NAME}-METADATA.XML") as product:
        assert_is_small_product(product)


def test_a_folder_of_many_products_is_not_listed_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(4):
        for file in write_small_product(tmp_path / "products", NAME.replace("6195", f"000{number}")).iterdir():
            file.rename(flat / file.name)
    os.utime(flat, (0, 0))
    listings = []
    for name in ("listdir", "scandir"):
        list_folder = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, found=list_folder: listings.append(path) or found(path))
    found = find_sources(flat).products
    assert len({EnMAPProduct.open(path).name for path in found}) == 4
    assert len(listings) == 2  # by the walk, and by product


def test_files_that_come_later_are_seen(folder: Path):
    layer, metadata = part(folder, "QL_QUALITY_CLOUD"), part(folder, "METADATA")
    layer.rename(layer.with_suffix(".hidden"))
    assert EnMAPProduct.open(metadata).missing_layers == ("cloud",)
    layer.with_suffix(".hidden").rename(layer)
    assert EnMAPProduct.open(metadata).missing_layers == ()


def test_find_products_lists_folders_and_archives_sorted_without_unfinished_ones(tmp_path: Path):
    write_small_product(tmp_path / "b")
    write_small_product(tmp_path / "a" / "deep", as_zip=True)
    shutil.copytree(tmp_path / "b" / NAME, tmp_path / ".writing-1" / NAME)
    assert find_products(tmp_path) == [
        tmp_path / "a" / "deep" / f"{NAME}.ZIP",
        tmp_path / "b" / NAME / f"{NAME}-METADATA.XML",
    ]


# Pixels


def test_windows_of_chosen_bands(tmp_path: Path):
    with EnMAPProduct.open(write_small_product(tmp_path, order=VNIR_FIRST)) as product:
        image = product.read(Window(30, 100, 64, 50), [7, 2, 4])
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image, small_cube()[[7, 2, 4], 100:150, 30:94])


def test_reflectance_uses_gain_and_offset_and_has_nan_for_nodata(tmp_path: Path):
    with EnMAPProduct.open(write_small_product(tmp_path, gain=0.0002, offset=-0.05)) as product:
        reflectance = product.raster.read(Window(30, 0, 20, 10), [3, EMPTY_BAND])[0]
    assert reflectance.dtype == np.float32
    assert np.isnan(reflectance[:, :, : FIRST_COLUMN - 30]).all() and np.isnan(reflectance[1]).all()
    expected = small_cube()[3, :10, FIRST_COLUMN:50] * 0.0002 - 0.05
    np.testing.assert_allclose(reflectance[0, :, FIRST_COLUMN - 30 :], expected, rtol=1e-6)


@pytest.mark.parametrize("window", [Window(-1, 0, 10, 10), Window(0, 0, WIDTH + 1, 10), Window(0, HEIGHT, 5, 5)])
def test_window_beyond_the_scene(folder: Path, window: Window):
    with EnMAPProduct.open(folder) as product, pytest.raises(ValueError, match="inside 150 x 170 pixels"):
        product.read(window)


def test_quality_layers(tmp_path: Path):
    folder = write_small_product(tmp_path, order=VNIR_FIRST)
    layers = small_quality()
    window = Window(20, 0, 100, 120)
    rows, columns = window.toslices()
    with EnMAPProduct.open(folder) as product:
        masks = {
            "cloud": product.read_cloud(window),
            "cloud_shadow": product.read_cloud_shadow(window),
            "haze": product.read_haze(window),
            "snow": product.read_snow(window),
        }
        for name, mask in masks.items():
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, layers[name][rows, columns] == 1)
        np.testing.assert_array_equal(product.read_cirrus_level(window), layers["cirrus"][rows, columns])
        np.testing.assert_array_equal(product.read_outside(window), layers["classes"][rows, columns] == 3)


def test_background_is_inside_the_scene(folder: Path):
    with rasterio.open(part(folder, "QL_QUALITY_CLASSES"), "r+") as dataset:
        classes = dataset.read(1)
        classes[60:70, 60:70] = 0
        dataset.write(classes, 1)
    with EnMAPProduct.open(folder) as product:
        assert not product.read_outside()[60:70, 60:70].any()


def test_missing_layers_are_reported_and_not_fatal(folder: Path, caplog: pytest.LogCaptureFixture):
    for name in ("QL_QUALITY_CLOUD", "QL_QUALITY_CLASSES", "QL_QUALITY_CIRRUS", "QL_PIXELMASK"):
        part(folder, name).unlink()
    with EnMAPProduct.open(folder) as product:
        assert product.missing_layers == ("classes", "cloud", "cirrus", "pixel_mask")
        assert "classes, cloud, cirrus, pixel_mask" in caplog.text
        window = Window(0, 0, 90, 10)
        with pytest.warns(UserWarning, match="no quality layer 'cloud'"):
            assert not product.read_cloud().any()
        with pytest.warns(UserWarning, match="no quality layer 'cirrus'"):
            assert product.read_cirrus_level(window).shape == (10, 90)
        with pytest.warns(UserWarning, match="no quality layer 'classes'"):
            np.testing.assert_array_equal(product.read_outside(), small_quality()["classes"] == 3)
        np.testing.assert_array_equal(product.read_haze(), small_quality()["haze"] == 1)


def test_grid_comes_from_the_classes_where_the_spectral_image_is_damaged(folder: Path):
    part(folder, "SPECTRAL_IMAGE").write_bytes(b"")
    product = EnMAPProduct.open(folder)
    assert product.transform == TRANSFORM
    part(folder, "QL_QUALITY_CLASSES").unlink()
    with pytest.raises(ProductError) as error:
        _ = EnMAPProduct.open(folder).crs
    assert_one_line(error, part(folder, "SPECTRAL_IMAGE"))


def _read_in_child(product: EnMAPProduct, queue: multiprocessing.Queue) -> None:
    values = product.read(Window(64, 64, 8, 8))
    # Two processes with one file position would get each other's blocks: the child must have opened its own.
    queue.put((values, list(product._files["SPECTRAL_IMAGE"]._handles)[-1] == os.getpid()))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_product_can_be_used_by_another_process(folder: Path, start: str):
    product = EnMAPProduct.open(folder)
    expected = product.read(Window(64, 64, 8, 8))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(product)).read(Window(64, 64, 8, 8)), expected)
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    process = context.Process(target=_read_in_child, args=(product, queue))
    process.start()
    values, opened_its_own = queue.get(timeout=60)
    process.join()
    np.testing.assert_array_equal(values, expected)
    assert opened_its_own


def test_closed_product_opens_its_rasters_again(folder: Path):
    product = EnMAPProduct.open(folder)
    product.read(bands=[0])
    product.close()
    np.testing.assert_array_equal(product.read(bands=[0]), small_cube()[:1])


# Defects


def test_nothing_at_the_path(tmp_path: Path):
    with pytest.raises(ProductError, match="got nothing there") as error:
        EnMAPProduct.open(tmp_path / "absent")
    assert_one_line(error, tmp_path / "absent")


@pytest.mark.parametrize("as_zip", [False, True])
def test_no_metadata(tmp_path: Path, folder: Path, as_zip: bool):
    part(folder, "METADATA").unlink()
    path = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, folder.name)) if as_zip else folder
    with pytest.raises(ProductError, match="expected one METADATA.XML, got none") as error:
        EnMAPProduct.open(path)
    assert_one_line(error, path)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        ("</level_X>", "", "expected well-formed XML"),
        (".*", "", "expected well-formed XML"),
        ("<bandCharacterisation>.*</bandCharacterisation>", "", "expected a list of bands .*, got none"),
        (
            "<wavelengthCenterOfBand>647.341</wavelengthCenterOfBand>",
            "",
            "a wavelengthCenterOfBand in band 3, got none",
        ),
        (">647.341</wavelengthCenterOfBand>", ">red</wavelengthCenterOfBand>", "in band 3, got 'red'"),
        (">647.341</wavelengthCenterOfBand>", ">nan</wavelengthCenterOfBand>", "in band 3, got 'nan'"),
        (
            ">647.341</wavelengthCenterOfBand>",
            ">550.525</wavelengthCenterOfBand>",
            "differ, got 550.525 nm more than once",
        ),
        (">647.341</wavelengthCenterOfBand>", ">-1</wavelengthCenterOfBand>", "300 to 2600 nm, got -1 to"),
        ("<FWHMOfBand>[^<]*</FWHMOfBand>", "", "a FWHMOfBand in band 1, got none"),
        ("<GainOfBand>[^<]*</GainOfBand>", "<GainOfBand/>", "a GainOfBand in band 1, got none"),
        ('bandID number="3"', 'bandID number="2"', "bands numbered from 1 to 12, each once, got 1, 2, 2, 4"),
        ('bandID number="3"', "bandID", "a band's number, got none"),
        ("<widthOfOrthoScene>170</widthOfOrthoScene>", "", "widthOfOrthoScene in pixels, got none"),
        ("<startTime>[^<]*", "<startTime>yesterday", "startTime, got 'yesterday'"),
        ("<center [^>]*>[^<]*</center>", "", "sunElevationAngle/center, got none"),
        ("<mean>[^<]*", "<mean>low", "bandStatistics, got 'low'"),
    ],
)
def test_defective_metadata(folder: Path, pattern: str, replacement: str, message: str):
    edit_metadata(folder, pattern, replacement)
    with pytest.raises(ProductError, match=message) as error:
        EnMAPProduct.open(folder)
    assert_one_line(error, part(folder, "METADATA"))


def test_entities_are_neither_expanded_nor_fetched(folder: Path):
    secret = folder.parent / "secret"
    secret.write_text("418.24")
    declaration = f'<!DOCTYPE level_X [<!ENTITY secret SYSTEM "file://{secret}"><!ENTITY a "aaaaaaaaaa">]><level_X>'
    edit_metadata(folder, "<level_X>", declaration)
    edit_metadata(folder, "(<comment>)[^<]*", r"\g<1>&a;")
    with pytest.raises(ProductError, match="got a document type declaration") as error:
        EnMAPProduct.open(folder)
    assert_one_line(error, part(folder, "METADATA"))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.95])
def test_truncated_spectral_image_raises_when_it_is_read(folder: Path, share: float):
    image = part(folder, "SPECTRAL_IMAGE")
    content = image.read_bytes()
    image.write_bytes(content[: int(share * len(content))])
    product = EnMAPProduct.open(folder)
    with pytest.raises(ProductError, match="expected a whole") as error:
        product.read()
    assert_one_line(error, image)


def test_garbage_inside_a_block_raises_when_it_is_read(folder: Path):
    image = part(folder, "SPECTRAL_IMAGE")
    content = bytearray(image.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes([255]) * 2000
    image.write_bytes(content)
    product = EnMAPProduct.open(folder)
    with pytest.raises(ProductError, match="expected a whole, readable raster") as error:
        product.read()
    assert_one_line(error, image)


def test_damaged_quality_layer_raises_when_it_is_read(folder: Path):
    part(folder, "QL_QUALITY_CLOUD").write_bytes(b"")
    product = EnMAPProduct.open(folder)
    assert product.missing_layers == ()
    product.read(bands=[0])
    with pytest.raises(ProductError) as error:
        product.read_cloud()
    assert_one_line(error, part(folder, "QL_QUALITY_CLOUD"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_archive(tmp_path: Path, share: float):
    archive = write_small_product(tmp_path, as_zip=True)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ProductError, match="expected a whole ZIP") as error:
        EnMAPProduct.open(archive)
    assert_one_line(error, archive)


def test_damaged_raster_in_an_archive(tmp_path: Path, folder: Path):
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, folder.name))
    content = bytearray(archive.read_bytes())
    start = content.rfind(f"{NAME}-SPECTRAL_IMAGE.TIF".encode(), 0, content.find(b"PK\x01\x02")) + 5000
    content[start : start + 20000] = bytes(20000)
    archive.write_bytes(content)
    product = EnMAPProduct.open(archive)
    with pytest.raises(ProductError) as error:
        product.read()
    assert_one_line(error, f"{archive}/{folder.name}/{NAME}-SPECTRAL_IMAGE.TIF")


def test_missing_spectral_image(folder: Path):
    part(folder, "SPECTRAL_IMAGE").unlink()
    product = EnMAPProduct.open(folder)
    with pytest.raises(ProductError, match="expected a file .*-SPECTRAL_IMAGE.TIF, got none") as error:
        product.read()
    assert_one_line(error, folder)


def replace_image(folder: Path, other: Path, name: str = "SPECTRAL_IMAGE") -> Path:
    return part(other, name).replace(part(folder, name))


def test_other_number_of_bands_than_in_the_metadata(tmp_path: Path, folder: Path):
    few = {"cube": small_cube()[:10], "wavelengths": WAVELENGTHS[:10], "fwhm": FWHM[:10], "detectors": DETECTORS[:10]}
    image = replace_image(folder, write_small_product(tmp_path / "few", **few))
    with pytest.raises(ProductError, match="expected 12 bands as in METADATA.XML, got 10") as error:
        EnMAPProduct.open(folder).read()
    assert_one_line(error, image)


def test_other_size_than_in_the_metadata(tmp_path: Path, folder: Path):
    small = {"cube": small_cube()[:, :100], "quality": {}}
    image = replace_image(folder, write_small_product(tmp_path / "small", **small))
    with pytest.raises(ProductError, match="expected 150 x 170 pixels as in METADATA.XML, got 100 x 170") as error:
        EnMAPProduct.open(folder).read()
    assert_one_line(error, image)


def test_raster_whose_own_wavelengths_contradict_the_metadata(folder: Path):
    image = part(folder, "SPECTRAL_IMAGE")
    with rasterio.open(image, "r+") as dataset:
        for band, wavelength in enumerate(WAVELENGTHS[VNIR_FIRST], start=1):
            dataset.update_tags(band, wavelength=f"{wavelength / 1000}", wavelength_units="Micrometers")
    with pytest.raises(ProductError, match="expected .* nm in band .* in the raster's own tags") as error:
        EnMAPProduct.open(folder).read()
    assert_one_line(error, image)


# Official files


@needs_official_files
@pytest.mark.parametrize("unpacked", [False, True])
def test_official_qualification_product(tmp_path: Path, unpacked: bool):
    path = OFFICIAL / "enmap_L2A_gtif_qualification.zip"
    if unpacked:
        shutil.unpack_archive(path, tmp_path)
        path = tmp_path
    with EnMAPProduct.open(path) as product:
        assert product.name == "ENMAP01-____L2A-DT0000326721_20170626T102020Z_001_V000204_20200406T201930Z"
        assert product.num_bands == 218
        assert (product.detectors.count("VNIR"), product.detectors.count("SWIR")) == (88, 130)
        assert (product.wavelengths[0], product.wavelengths[78], product.detectors[78]) == (423.03, 904.78, "SWIR")
        assert (np.diff(product.wavelengths) > 0).all()
        assert product.valid_bands.all()
        assert product.shape == (1212, 1128)
        assert product.sun_elevation == 63.038384
        assert product.acquisition_time == datetime(2017, 6, 26, 10, 20, 20, 999936, tzinfo=UTC)
        assert product.missing_layers == ()
        assert product.crs.to_epsg() == 32632
        assert product.read_outside().sum() == 409811
        with pytest.raises(ProductError, match="SPECTRAL_IMAGE.TIF: expected a whole, readable raster"):
            product.read(bands=[0])


@needs_official_files
def test_in_flight_product_as_another_reader_sees_it(tmp_path: Path):
    seen = json.loads((OFFICIAL / "ENMAP01-____L2A-DT0000001049.json").read_text())["expectedContent"]
    cube = np.zeros((224, 4, 4), dtype=np.int16)
    bands = {"wavelengths": ENMAP.wavelengths, "fwhm": ENMAP.fwhm, "detectors": ENMAP_DETECTORS}
    folder = write_small_product(tmp_path, cube=cube, quality={}, **bands)
    edit_metadata(folder, "(<widthOfOrthoScene>)4", rf"\g<1>{seen['sceneWidth']}")
    edit_metadata(folder, "(<heightOfOrthoScene>)4", rf"\g<1>{seen['sceneHeight']}")
    product = EnMAPProduct.open(folder)
    spectral = [band for band in seen["bands"] if "surface reflectance" in band.get("description", "")]
    assert len(spectral) == product.num_bands == 224
    assert product.shape == (spectral[0]["bandHeight"], spectral[0]["bandWidth"]) == (1216, 1259)
    # The other reader numbers its bands as the product does, and names the detector of each.
    numbers = np.array([int(band["name"].removeprefix("band_")) for band in spectral])
    detectors = dict(zip(numbers, (band["description"].split()[0] for band in spectral), strict=True))
    assert [detectors[number] for number in product.file_bands] == list(product.detectors)
    seen_wavelengths = np.sort([float(band["spectralWavelength"]) for band in spectral])
    np.testing.assert_allclose(product.wavelengths, seen_wavelengths, atol=0.2)
    layers = {coding["name"].removeprefix("QUALITY_") for coding in seen["flagCodings"]}
    ours = {
        file.stem.split("-QL_")[1].removeprefix("QUALITY_")
        for file in folder.glob("*-QL_*")
        if "IR.TIF" not in file.name
    }
    assert layers == ours
