"""Products as the archive of EnMAP serves them: its file names, its STAC items, its login, its failures."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_server import (
    LOGIN_PAGE,
    Archive,
    archive_process,
    assert_is_small_product,
    assert_refused,
    closed_port,
    cog,
    log_in,
    read_clouds,
    read_scene,
    read_tiles,
    set_plain_environment,
    small_item,
    write_archive_files,
    write_image,
    write_item,
)
from small_products import (
    ACQUISITION_TIME,
    FWHM,
    HEIGHT,
    NAME,
    WAVELENGTHS,
    WIDTH,
    edit_metadata,
    part,
    small_cube,
)

from datasets_loading.enmap_product import EnMAPProduct, find_products
from datasets_loading.scenes import EXCLUDABLE, find_scenes, open_scene
from datasets_loading.sensors import ENMAP
from datasets_loading.stac_items import REMOTE_SETTINGS
from datasets_loading.tiles import find_sources

SHARED = Path(os.environ.get("HSST_SHARED", Path(__file__).parents[2] / "shared"))
REAL_ITEMS = SHARED / "data" / "enmap_stac"

OTHER = NAME.replace("DT0000006195", "DT0000006196")
WITHOUT_FRACTION = ACQUISITION_TIME.replace(microsecond=0)
IMAGE = f"/files/{NAME}-SPECTRAL_IMAGE_COG.TIF"
CLOUD = f"/files/{NAME}-QL_QUALITY_CLOUD_COG.TIF"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_plain_environment(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def new_archive() -> Iterator[Callable[[], Archive]]:
    with archive_process() as new:
        yield new


@pytest.fixture
def archive(new_archive: Callable[[], Archive]) -> Archive:
    return new_archive()


# Files and folders


@pytest.mark.parametrize("image", ["TIF", "tif", "tiff"])
@pytest.mark.parametrize("metadata", ["METADATA.XML", "METADATA.XML.XML", "METADATA.xml", "metadata.xml.xml"])
def test_names_that_the_archive_gives(tmp_path: Path, metadata: str, image: str):
    write_archive_files(tmp_path / "scene", metadata=metadata, image=image)
    for path in (part(tmp_path / "scene", "SPECTRAL_IMAGE_COG"), tmp_path / "scene" / f"{NAME}-{metadata}"):
        assert_is_small_product(path)
        assert EnMAPProduct.open(path).missing_layers == ()
    assert_is_small_product(tmp_path / "scene")
    assert find_products(tmp_path) == [tmp_path / "scene" / f"{NAME}-{metadata}"]
    tiles = read_tiles(tmp_path)
    assert tiles.names == [f"{NAME}_x00064_y00064"]
    np.testing.assert_array_equal(tiles[0], small_cube()[:, 64:128, 64:128])


def test_several_scenes_in_one_folder(tmp_path: Path):
    write_archive_files(tmp_path)
    write_archive_files(tmp_path, OTHER, metadata="METADATA.XML.XML")
    assert_is_small_product(tmp_path / f"{NAME}-METADATA.XML")
    assert_is_small_product(tmp_path / f"{NAME}-SPECTRAL_IMAGE_COG.TIF")
    with open_scene(tmp_path / f"{OTHER}-SPECTRAL_IMAGE_COG.TIF") as scene:
        assert scene.name == OTHER
    assert_refused(tmp_path, "2: open them one by one")
    assert read_tiles(tmp_path).names == [f"{NAME}_x00064_y00064", f"{OTHER}_x00064_y00064"]
    scenes = find_scenes([tmp_path / "*.*"])
    assert scenes == [tmp_path / f"{NAME}-METADATA.XML", tmp_path / f"{OTHER}-METADATA.XML.XML"]


@pytest.mark.parametrize("metadata", ["METADATA.XML", "METADATA.XML.XML"])
def test_nested_folders_of_an_order_and_their_zip(tmp_path: Path, metadata: str):
    order = tmp_path / "dims_op_oc_oc-en_700000001_1"
    write_archive_files(order / "ENMAP.HSI.L2A" / NAME, metadata=metadata)
    archive = Path(shutil.make_archive(str(tmp_path / "zips" / "download"), "zip", tmp_path, order.name))
    for path in (order, order / "ENMAP.HSI.L2A", archive):
        assert_is_small_product(path)
    for path in (order, archive.parent, archive):
        assert read_tiles(path).names == [f"{NAME}_x00064_y00064"]


def test_linked_folders_are_found_once_each(tmp_path: Path):
    write_archive_files(tmp_path / "elsewhere" / "scene")
    data = tmp_path / "data"
    write_archive_files(data / "own", OTHER)
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "second_link").symlink_to(tmp_path / "elsewhere" / "scene")
    (data / "own" / "loop").symlink_to(data)
    expected = [data / "link" / "scene" / f"{NAME}-METADATA.XML", data / "own" / f"{OTHER}-METADATA.XML"]
    assert find_products(data) == find_sources(data).products == expected
    assert len(read_tiles(data)) == 2
    assert_is_small_product(data / "link")


def test_archives_that_must_be_unpacked(tmp_path: Path):
    write_archive_files(tmp_path / "order" / NAME)
    (tmp_path / "tar").mkdir()
    packed = tmp_path / "tar" / "dims_op_oc_1.tar.gz"
    with tarfile.open(packed, "w:gz") as content:
        content.add(tmp_path / "order", NAME)
    assert_refused(packed, "unpack it first", packed.name)
    assert_refused(packed.parent, f"unpack {packed.name} first")
    assert_refused(packed.parent, f"unpack {packed.name} first", read=read_tiles)
    (tmp_path / "zip").mkdir()
    for inner in (packed, Path(shutil.make_archive(str(tmp_path / "inner"), "zip", tmp_path / "order"))):
        outer = tmp_path / "zip" / "outer.zip"
        with zipfile.ZipFile(outer, "w") as content:
            content.write(inner, f"download/{inner.name}")
        assert_refused(outer, f"unpack {inner.name} first")
        assert_refused(outer.parent, f"unpack {inner.name} first", read=read_tiles, where=outer)
    for ending in ("7z", "rar"):
        other = tmp_path / f"scene.{ending}"
        other.write_bytes(b"7z\xbc\xaf\x27\x1c")
        assert_refused(other, "unpack it first")


@pytest.mark.filterwarnings("ignore:.*taken as clear")
def test_image_and_metadata_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_archive_files(tmp_path / "all")
    (tmp_path / "scene").mkdir()
    for name in ("SPECTRAL_IMAGE_COG", "METADATA"):
        shutil.copy(part(tmp_path / "all", name), tmp_path / "scene")
    with open_scene(tmp_path / "scene") as scene:
        assert "quality layers missing, taken as clear: classes, cloud, cloud_shadow, haze" in caplog.text
        np.testing.assert_array_equal(scene.read(), small_cube())
        with pytest.warns(UserWarning, match="no quality layer 'cloud', taken as clear"):
            excluded = scene.read_excluded(kinds=EXCLUDABLE)
        np.testing.assert_array_equal(excluded, (small_cube() == ENMAP.nodata).all(axis=0))
    with pytest.warns(UserWarning, match="taken as clear"):
        tiles = read_tiles(tmp_path / "scene")
    assert tiles.names == [f"{NAME}_x00064_y00000", f"{NAME}_x00064_y00064"]


def test_the_spectral_image_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cube = np.random.default_rng(0).integers(100, 5000, (224, 20, 24), dtype=np.int16)
    cube[:, 0, 0] = cube[130:135] = ENMAP.nodata
    image = write_image(tmp_path / f"{NAME}-SPECTRAL_IMAGE_COG.TIF", cube)
    with open_scene(image) as scene:
        np.testing.assert_array_equal(scene.read(), cube)
        np.testing.assert_array_equal(scene.wavelengths, ENMAP.wavelengths)
        np.testing.assert_array_equal(np.flatnonzero(~scene.valid_bands), np.arange(130, 135))
    (line,) = caplog.messages
    assert "METADATA.XML is missing: EnMAP's nominal bands" in line and line.startswith(str(image))
    caplog.clear()
    tiles = read_tiles(tmp_path)
    np.testing.assert_array_equal(tiles[0], cube)
    assert "nominal bands" in caplog.text
    write_image(image, cube[:223])
    assert_refused(image, "224 bands", "METADATA.XML", "223 bands")
    assert_refused(tmp_path, "223 bands", read=read_tiles, where=image)


@pytest.mark.parametrize("second", ["SPECTRAL_IMAGE.TIF", "SPECTRAL_IMAGE.bsq", "QL_QUALITY_CLOUD.tif"])
def test_two_files_for_one_part(tmp_path: Path, second: str):
    write_archive_files(tmp_path)
    first = f"{NAME}-{second.split('.')[0]}_COG.TIF"
    shutil.copy(tmp_path / first, tmp_path / f"{NAME}-{second}")
    metadata = tmp_path / f"{NAME}-METADATA.XML"
    for path in (tmp_path, metadata):
        assert_refused(path, first, f"{NAME}-{second}", "move one away")
    assert_refused(tmp_path, "move one away", read=read_tiles, where=metadata)


@pytest.mark.parametrize("level", ["L1B", "L1C"])
def test_radiance_is_refused_unless_asked_for(tmp_path: Path, level: str):
    by_metadata, by_name = tmp_path / "a", tmp_path / "b"
    write_archive_files(by_metadata)
    edit_metadata(by_metadata, "(<processingLevel>)[^<]*", rf"\g<1>{level}")
    write_archive_files(by_name, NAME.replace("L2A", level))
    for tag in ("processingLevel", "level", "code"):
        edit_metadata(by_name, f"<{tag}>[^<]*</{tag}>", "")
    for folder in (by_metadata, by_name):
        for path in (folder, part(folder, "METADATA")):
            assert_refused(path, level, "radiance", "--radiance")
        assert_refused(folder, "--radiance", read=read_tiles)
        np.testing.assert_array_equal(read_scene(folder, radiance=True), small_cube())
        np.testing.assert_array_equal(read_tiles(folder, radiance=True)[0], small_cube()[:, 64:128, 64:128])
    # Of an image alone the name is all there is
    (tmp_path / "alone").mkdir()
    cube = np.random.default_rng(0).integers(100, 5000, (224, 20, 24), dtype=np.int16)
    image = write_image(tmp_path / "alone" / part(by_name, "SPECTRAL_IMAGE_COG").name, cube)
    assert_refused(image, level, "radiance", "--radiance")
    assert_refused(image.parent, level, "--radiance", read=read_tiles)
    np.testing.assert_array_equal(read_scene(image, radiance=True), cube)
    np.testing.assert_array_equal(read_tiles(image.parent, radiance=True)[0], cube)


def test_the_water_mode_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_archive_files(tmp_path / "scene")
    with open_scene(tmp_path / "scene"):
        assert not caplog.messages
    water = "Water_Mode</correctionType><waterReflectanceProduct>underwater</waterReflectanceProduct>"
    edit_metadata(tmp_path / "scene", "(<correctionType>)[^<]*</correctionType>", rf"\g<1>{water}")
    for read in (open_scene, read_tiles):
        caplog.clear()
        read(tmp_path / "scene")
        (line,) = caplog.messages
        assert "Water_Mode" in line and "water reflectance (underwater)" in line
    assert_is_small_product(tmp_path / "scene")


# Items of the catalogue


@pytest.mark.skipif(not REAL_ITEMS.is_dir(), reason="needs items of the catalogue")
def test_real_items():
    for path in sorted(REAL_ITEMS.glob("*.json")):
        product = EnMAPProduct.open(path)
        content = json.loads(path.read_text())
        assert product.name == path.stem
        assert product.num_bands == 224 and (np.diff(product.wavelengths) > 0).all()
        np.testing.assert_allclose(product.wavelengths[[0, -1]], [418.416, 2445.3], atol=1)
        assert (product.gain == 0.0001).all() and not product.offset.any()
        assert product.shape == tuple(content["assets"]["image"]["proj:shape"]) and min(product.shape) > 1000
        assert f"{product.acquisition_time:%Y%m%dT%H%M%S}Z" in product.name
        assert product.sun_elevation == float(content["properties"]["enmap:sunElevationAngle"])
        assert product.missing_layers == ()


def test_item_beside_its_files(tmp_path: Path):
    folder = write_archive_files(tmp_path / "scene")
    part(folder, "METADATA").unlink()
    item = write_item(folder / f"{NAME}.json", small_item())
    for path in (item, part(folder, "SPECTRAL_IMAGE_COG"), write_item(folder / "other name.JSON", small_item())):
        assert_is_small_product(path)
        assert EnMAPProduct.open(path).missing_layers == ()
    assert read_tiles(item).names == [f"{NAME}_x00064_y00064"]
    (folder / "other name.JSON").unlink()
    assert_is_small_product(folder)
    assert read_tiles(tmp_path / "scene").names == [f"{NAME}_x00064_y00064"]
    assert_is_small_product(write_item(item, small_item(**{"processing:level": "L1C"})), radiance=True)


@pytest.mark.parametrize("kind", ["address", "path", "file", "relative"])
def test_item_of_files_in_the_archive(tmp_path: Path, archive: Archive, kind: str):
    address = archive.add_small_product(tmp_path)
    if kind == "relative":
        archive.files |= {"/item.json": json.dumps(small_item("./files")).encode()}
    item = write_item(tmp_path / "item.json", archive.files["/item.json"])
    assert_is_small_product({"path": Path(address), "file": item}.get(kind, address))
    assert find_scenes([address]) == [EnMAPProduct.open(Path(address)).path] == [address]


def test_a_window_is_read_without_the_rest_of_the_scene(tmp_path: Path, archive: Archive):
    cube = np.random.default_rng(0).integers(0, 10000, (12, 512, 512), dtype=np.int16)
    item = small_item(archive.address("/files"), shape=(512, 512))
    image = item["assets"]["image"]["href"].removeprefix(archive.host)
    archive.files |= {image: cog(cube, tmp_path), "/item.json": json.dumps(item).encode()}
    with open_scene(archive.address("/item.json")) as scene:
        values = scene.read(slice(140, 200), slice(300, 380), [3, 7])
    np.testing.assert_array_equal(values, cube[[3, 7], 140:200, 300:380])
    assert 0 < archive.bytes_sent[image] < len(archive.files[image]) / 6
    # Neither the folder nor files beside the image are asked for
    assert {request.path for request in archive.requests} == {image, "/item.json"}


def test_bands_without_data_are_found_in_an_overview(tmp_path: Path, archive: Archive):
    cube = np.random.default_rng(0).integers(0, 10000, (12, 512, 512), dtype=np.int16)
    cube[8] = -32768
    item = small_item(archive.address("/files"), shape=(512, 512))
    image = item["assets"]["image"]["href"].removeprefix(archive.host)
    archive.files |= {image: cog(cube, tmp_path), "/item.json": json.dumps(item).encode()}
    with open_scene(archive.address("/item.json")) as scene:
        assert np.flatnonzero(~scene.valid_bands).tolist() == [8]
    assert archive.bytes_sent[image] < len(archive.files[image]) / 3


def test_layers_that_an_item_lacks_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    item = small_item()
    item["assets"] |= {"quality_cloud": None, "quality_haze": "haze.TIF", "quality_snow": {"href": None}}
    product = EnMAPProduct.open(write_item(tmp_path / "item.json", item))
    assert product.missing_layers == ("cloud", "haze", "snow")
    assert "quality layers missing, taken as clear: cloud, haze, snow" in caplog.text


def test_bands_gains_and_order_are_those_of_the_item(tmp_path: Path):
    folder = write_archive_files(tmp_path / "scene", order=np.arange(12)[::-1])
    item = small_item()
    bands = item["assets"]["image"]["eo:bands"][::-1]
    for band in bands:
        band |= {"enmap:gain_of_band": "0.0002", "enmap:offset_of_band": "-0.05"}
        band["center_wavelength"] = str(band["center_wavelength"])
    item["assets"]["image"] |= {"eo:bands": bands, "proj:shape": [str(HEIGHT), str(WIDTH)]}
    with open_scene(write_item(folder / "item.json", item)) as scene:
        np.testing.assert_array_equal(scene.wavelengths, WAVELENGTHS)
        np.testing.assert_array_equal(scene.fwhm, FWHM)
        expected = np.where(small_cube() == ENMAP.nodata, ENMAP.nodata, small_cube() * 2 - 500)
        np.testing.assert_array_equal(scene.read(), expected)


@pytest.mark.parametrize(
    ("properties", "time", "elevation"),
    [
        ({"view:sun_elevation": None, "start_datetime": None, "eo:cloud_cover": None}, WITHOUT_FRACTION, 38.5),
        ({"view:sun_elevation": "40.25", "enmap:sunElevationAngle": None}, ACQUISITION_TIME, 40.25),
        ({"start_datetime": "2022-12-03T19:20:49+02:00"}, WITHOUT_FRACTION, 38.5),
    ],
)
def test_numbers_as_strings_and_null(tmp_path: Path, properties: dict[str, Any], time: Any, elevation: float):
    product = EnMAPProduct.open(write_item(tmp_path / "item.json", small_item(**properties)))
    assert product.acquisition_time == time and product.sun_elevation == elevation


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("assets", None, "JSON of another kind"),
        ("assets", {}, "an asset 'image', got none"),
        ("assets/image", None, "an asset 'image'"),
        ("assets/image/href", None, "SPECTRAL_IMAGE.TIF, got none"),
        ("assets/image/eo:bands", None, "eo:bands"),
        ("assets/image/eo:bands", [], "eo:bands"),
        ("assets/image/eo:bands", ["blue", "green"], "eo:bands"),
        ("assets/image/eo:bands", {"1": 418.4}, "eo:bands"),
        ("assets/image/proj:shape", None, "proj:shape"),
        ("assets/image/proj:shape", [150], "proj:shape"),
        ("assets/image/proj:shape", [150, "wide"], "proj:shape, got 'wide'"),
        ("assets/image/eo:bands/4/center_wavelength", None, "a center_wavelength in each band, got None"),
        ("assets/image/eo:bands/4/center_wavelength", "red", "a center_wavelength in each band, got 'red'"),
        ("assets/image/eo:bands/4/center_wavelength", WAVELENGTHS[3], "wavelengths that differ"),
        ("assets/image/eo:bands/4/center_wavelength", 0.55, "300 to 2600 nm"),
        ("assets/image/eo:bands/4/full_width_half_max", 0, "a positive width"),
        ("assets/image/eo:bands/4/full_width_half_max", None, "a full_width_half_max in each band, got None"),
        ("assets/image/eo:bands/4/enmap:gain_of_band", None, "a enmap:gain_of_band in each band, got None"),
        ("assets/image/eo:bands", [{"center_wavelength": 550, "full_width_half_max": 0}], "width"),
        ("properties", None, "JSON of another kind"),
        ("properties/start_datetime", "yesterday", "got 'yesterday'"),
        ("properties", {"processing:level": "L2A", "enmap:sunElevationAngle": "38.5"}, "properties/datetime"),
        ("properties/view:sun_elevation", "high", "degrees"),
        ("properties", {"datetime": "2022-12-03T17:20:49Z"}, "degrees"),
        ("properties/processing:level", "L1C", "--radiance"),
        ("id", NAME.replace("2A", "1B"), "level L1B"),
    ],
)
def test_defective_items(tmp_path: Path, place: str, value: Any, words: str):
    folder = write_archive_files(tmp_path / "scene")
    item = small_item()
    if place == "id":
        item["properties"]["processing:level"] = None
    *parents, name = place.split("/")
    target: Any = item
    for parent in parents:
        target = target[int(parent) if parent.isdigit() else parent]
    target[name] = value
    assert_refused(write_item(folder / "item.json", item), words)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (LOGIN_PAGE, "a web page"),
        (b" " * 10_000_000 + b"{}", "at most 5,000,000 bytes"),
        (b"", "JSON"),
        (json.dumps(small_item()).encode()[:-100], "JSON"),
        (b"\x89PNG\r\n\x1a\n", "JSON"),
        (b"[" * 200_000, "JSON"),
        (b"null", "JSON of another kind"),
        (b'{"a": 1}', "JSON of another kind"),
        (json.dumps({"type": "FeatureCollection", "features": [small_item()]}).encode(), "JSON of another kind"),
    ],
)
def test_what_is_no_item(tmp_path: Path, archive: Archive, content: bytes, word: str):
    archive.files |= {"/item.json": content}
    assert_refused(archive.address("/item.json"), word)
    assert_refused(write_item(tmp_path / "item.json", content), word)


def test_no_item_at_the_address(tmp_path: Path, archive: Archive):
    assert_refused(archive.address("/absent.json"), "Not Found")
    assert_refused(Path(archive.address("/absent.json")), "Not Found", where=archive.address("/absent.json"))
    assert_refused(f"{closed_port()}/item.json", "refused")
    assert_refused(archive.address("/two words.json"), "a STAC item")
    assert_refused("https://", "a STAC item")
    assert_refused(tmp_path / "absent.json", "No such file")
    archive.failures = {"/item.json": [502] * 9}
    assert_refused(archive.address("/item.json"), "Bad Gateway")


# Logins, and what goes wrong on the way


@pytest.mark.parametrize("way", ["cookie", "netrc", "home"])
def test_login(tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch, way: str):
    item = archive.add_small_product(tmp_path)
    archive.cookie, archive.login = "session=opensesame", ("student", "opensesame")
    log_in(monkeypatch, tmp_path, way, "opensesame")
    assert_is_small_product(item)
    # The catalogue is open to all, and is sent no login
    catalogue = [request for request in archive.requests if request.path == "/item.json"]
    assert catalogue and not any(request.cookie or request.authorization for request in catalogue)


@pytest.mark.parametrize("way", ["none", "cookie", "netrc", "home"])
def test_refused_login(
    tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
):
    item = archive.add_small_product(tmp_path)
    archive.cookie, archive.login = "session=opensesame", ("student", "opensesame")
    log_in(monkeypatch, tmp_path, way, "wrongsecret")
    words = "a web page: the login was refused", "~/.netrc", "GDAL_HTTP_COOKIE"
    message = assert_refused(item, *words, where=archive.address(IMAGE))
    assert "wrongsecret" not in message + caplog.text and "student" not in message + caplog.text


@pytest.mark.parametrize("way", ["cookie", "netrc", "home"])
def test_a_login_is_not_sent_on_to_another_host(
    tmp_path: Path, new_archive: Callable[[], Archive], monkeypatch: pytest.MonkeyPatch, way: str
):
    archive, sign_on = new_archive(), new_archive()
    item = archive.add_small_product(tmp_path)
    sign_on.files = {"/login.html": LOGIN_PAGE}
    archive.redirections = {IMAGE: sign_on.address("/login.html").replace("127.0.0.1", "localhost")}
    log_in(monkeypatch, tmp_path, way, "wrongsecret")
    assert_refused(item, "the login was refused", where=archive.address(IMAGE))
    sent = [request for request in archive.requests if request.path == IMAGE]
    assert all(request.cookie or request.authorization for request in sent) and sign_on.requests
    # The raster library itself sends its cookie on; the request that looks for the reason, the last one, does not
    assert not any(request.authorization for request in sign_on.requests) and not sign_on.requests[-1].cookie


def test_a_busy_archive_is_asked_again(tmp_path: Path, archive: Archive):
    item = archive.add_small_product(tmp_path)
    archive.failures = {IMAGE: [502, 502], CLOUD: [503, 502]}
    assert_is_small_product(item)
    assert [request.status for request in archive.requests if request.path == IMAGE][:2] == [502, 502]
    assert archive.failures == {IMAGE: [], CLOUD: []}


def test_files_that_the_archive_does_not_give(tmp_path: Path, new_archive: Callable[[], Archive]):
    item = (archive := new_archive()).add_small_product(tmp_path)
    archive.failures = {IMAGE: [502] * 40, CLOUD: [401] * 40}
    assert "netrc" not in assert_refused(item, "(Bad Gateway)", where=archive.address(IMAGE))
    assert_refused(item, "(Unauthorized): a login", "~/.netrc", read=read_clouds, where=archive.address(CLOUD))
    item = (archive := new_archive()).add_small_product(tmp_path)
    archive.files = {path: content for path, content in archive.files.items() if path != CLOUD}
    assert_refused(item, "Not Found", read=read_clouds, where=archive.address(CLOUD))
    host = closed_port()
    moved = write_item(tmp_path / "moved.json", small_item(f"{host}/files"))
    assert_refused(moved, "refused", where=host + IMAGE)


def test_files_of_another_size_or_kind_than_the_item_states(tmp_path: Path, archive: Archive):
    item = archive.add_small_product(tmp_path)
    archive.files |= {IMAGE: cog(small_cube()[:, :100], tmp_path)}
    archive.files |= {CLOUD: b"no raster"}
    assert_refused(item, "150 x 170 pixels", "100 x 170", where=archive.address(IMAGE))
    assert_refused(item, read=read_clouds, where=archive.address(CLOUD))


def test_a_connection_that_breaks_off(tmp_path: Path, archive: Archive):
    item = archive.add_small_product(tmp_path)
    archive.cut_from = len(archive.files[IMAGE]) // 2
    assert_refused(item, where=archive.address(IMAGE))


def test_a_server_that_falls_silent(tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GDAL_HTTP_TIMEOUT")
    assert float(REMOTE_SETTINGS["GDAL_HTTP_LOW_SPEED_TIME"]) <= 60
    monkeypatch.setitem(REMOTE_SETTINGS, "GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setitem(REMOTE_SETTINGS, "GDAL_HTTP_MAX_RETRY", "1")
    item = archive.add_small_product(tmp_path)
    archive.silent_from = len(archive.files[IMAGE]) // 2
    start = time.monotonic()
    assert_refused(item, where=archive.address(IMAGE))
    assert time.monotonic() - start < 15


def test_local_files_are_read_as_before_after_remote_ones(tmp_path: Path, archive: Archive):
    cube = np.random.default_rng(0).integers(100, 9000, (12, 20, 24), dtype=np.int16)
    envi = write_image(tmp_path / "scene.bsq", cube, driver="ENVI")
    assert_is_small_product(archive.add_small_product(tmp_path))
    np.testing.assert_array_equal(read_scene(envi), cube)
    assert_is_small_product(write_archive_files(tmp_path / "scene"))
