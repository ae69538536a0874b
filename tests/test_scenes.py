"""Scenes of every format with one face: bands, scales, nodata, what is excluded, and what is refused."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from small_products import CLOUD, EMPTY_BAND, FWHM, WAVELENGTHS, part, small_cube, write_small_product

from datasets_loading.raster_file import ProductError
from datasets_loading.scenes import EXCLUDABLE, find_scenes, open_scene

TRANSFORM = Affine(30.0, 0.0, 500000.0, 0.0, -30.0, 5800000.0)
CENTERS = np.array([500.0, 700.0, 600.0, 800.0])
ALL = slice(0, 20), slice(0, 24)


def numbers(dtype="int16"):
    cube = np.random.default_rng(0).integers(100, 9000, (4, 20, 24)).astype(dtype)
    cube[:, 0, 0] = -32768 if dtype != "uint16" else 0
    return cube


def write_image(path, cube, tagged=True, driver="GTiff", **profile):
    profile = {"nodata": -32768, "crs": "EPSG:32633", "transform": TRANSFORM, **profile}
    with rasterio.open(
        path, "w", driver=driver, count=len(cube), height=20, width=24, dtype=cube.dtype, **profile
    ) as dataset:
        dataset.write(cube)
        if tagged:
            for band, center in enumerate(CENTERS, 1):
                dataset.update_tags(band, wavelength=f"{center}", fwhm="9.5", wavelength_units="Nanometers")
    return path


def test_product(tmp_path):
    product = write_small_product(tmp_path)
    with open_scene(product) as scene:
        assert scene.product is not None
        assert scene.shape == (150, 170) and scene.block_shape == (128, 128)
        np.testing.assert_allclose(scene.wavelengths, WAVELENGTHS)
        np.testing.assert_allclose(scene.fwhm, FWHM)
        assert np.flatnonzero(~scene.valid_bands).tolist() == [EMPTY_BAND]
        part = scene.read(slice(3, 9), slice(60, 80), [2, 0])
        np.testing.assert_array_equal(part, small_cube()[[2, 0], 3:9, 60:80])
        assert scene.crs.to_epsg() == 32633 and scene.transform.a == 30
        assert "2022-12-03" in scene.metadata["acquired"]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("outside", (slice(0, 150), slice(0, 40))),
        ("cloud", CLOUD),
        ("shadow", (slice(100, 110), slice(100, 120))),
        ("haze", (slice(5, 10), slice(50, 60))),
        ("cirrus", (slice(20, 40), slice(50, 60))),
        ("snow", (slice(140, 150), slice(140, 170))),
        ("water", (slice(75, 150), slice(40, 170))),
    ],
)
def test_product_excludes_each_kind_alone(tmp_path, kind, place):
    expected = np.zeros((150, 170), dtype=bool)
    expected[place] = True
    with open_scene(write_small_product(tmp_path)) as scene:
        excluded = scene.read_excluded(slice(0, 150), slice(0, 170), [kind])
        np.testing.assert_array_equal(excluded, expected)
        np.testing.assert_array_equal(scene.read_excluded(slice(2, 50), slice(30, 99), [kind]), expected[2:50, 30:99])
        assert not scene.read_excluded(slice(0, 150), slice(0, 170), []).any()
        with pytest.raises(ValueError, match="exclude: expected kinds among outside, cloud, .*, got clouds"):
            scene.read_excluded(slice(0, 150), slice(0, 170), ["clouds"])
    assert kind in EXCLUDABLE


def test_gain_and_offset_of_a_product_give_the_common_scale(tmp_path):
    with open_scene(write_small_product(tmp_path, gain=0.0002, offset=0.01)) as scene:
        values = scene.read(slice(0, 8), slice(30, 60), [1])
    stored = small_cube()[[1], 0:8, 30:60].astype(int)
    np.testing.assert_array_equal(values, np.where(stored == -32768, -32768, stored * 2 + 100))


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "float32"])
def test_geotiff_bands_ascend_by_their_tags(tmp_path, dtype):
    cube = numbers(dtype)
    with open_scene(write_image(tmp_path / "a.tif", cube, nodata=0 if dtype == "uint16" else -32768)) as scene:
        assert scene.product is None
        assert scene.wavelengths.tolist() == [500, 600, 700, 800] and scene.fwhm.tolist() == [9.5] * 4
        values = scene.read(*ALL, [0, 1, 2, 3])
        assert values.dtype == np.int16 and (values[:, 0, 0] == -32768).all()
        np.testing.assert_array_equal(values[:, 1:], cube[[0, 2, 1, 3], 1:].astype(np.int16))
        assert scene.transform == TRANSFORM and scene.valid_bands.all()
        assert not scene.read_excluded(*ALL, EXCLUDABLE).any()


def test_reflectance_needs_a_scale(tmp_path):
    path = write_image(tmp_path / "a.tif", (numbers("float32") / 10000).astype("float32"), nodata=-3.2768)
    with pytest.raises(ProductError, match="fractions"):
        open_scene(path)
    with open_scene(path, scale=1.0) as scene:
        np.testing.assert_array_equal(scene.read(*ALL, [0]), numbers()[[0]])


def test_scale_and_offset_of_the_file_are_applied(tmp_path):
    path = write_image(tmp_path / "a.tif", numbers() // 2)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0002,) * 4, (0.0,) * 4
    with open_scene(path, nodata=-16384) as scene:
        np.testing.assert_array_equal(scene.read(*ALL, [0])[0, 1:], (numbers()[0] // 2 * 2)[1:])
        assert scene.read(*ALL, [0])[0, 0, 0] == -32768


@pytest.mark.parametrize("opened", ["cube.hdr", "cube.img"])
def test_envi(tmp_path, opened):
    write_image(tmp_path / "cube.img", numbers(), tagged=False, driver="ENVI")
    header = tmp_path / "cube.hdr"
    lines = "wavelength units = Micrometers\nwavelength = {0.5, 0.7, 0.6, 0.8}\nfwhm = {0.01, 0.03, 0.02, 0.04}\n"
    header.write_text(header.read_text() + lines)
    with open_scene(tmp_path / opened) as scene:
        np.testing.assert_allclose(scene.wavelengths, [500, 600, 700, 800])
        np.testing.assert_allclose(scene.fwhm, [10, 20, 30, 40])
        np.testing.assert_array_equal(scene.read(*ALL, [0, 1, 2, 3]), numbers()[[0, 2, 1, 3]])
        assert scene.crs.to_epsg() == 32633


def test_wavelengths_from_a_file_or_beside_the_image(tmp_path):
    path = write_image(tmp_path / "a.tif", numbers(), tagged=False)
    with open_scene(path) as scene:
        assert scene.wavelengths is None and scene.fwhm is None
    given = tmp_path / "given.csv"
    given.write_text("500, 8\n700, 9\n600, 10\n800, 11\n")
    with open_scene(path, wavelengths=given) as scene:
        assert scene.wavelengths.tolist() == [500, 600, 700, 800] and scene.fwhm.tolist() == [8, 10, 9, 11]
    (tmp_path / "wavelengths.txt").write_text("501\n701\n601\n801\n")
    with open_scene(path) as scene:
        assert scene.wavelengths.tolist() == [501, 601, 701, 801] and scene.fwhm is None


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("500\n600\n", "got 2"),
        ("5000\n6000\n7000\n8000\n", "300 to 2600 nm"),
        ("a\nb\nc\nd\n", "line 2: expected a wavelength"),
    ],
)
def test_bad_wavelength_files(tmp_path, content, word):
    path = write_image(tmp_path / "a.tif", numbers(), tagged=False)
    (tmp_path / "given.txt").write_text(content)
    with pytest.raises(ProductError, match=word):
        open_scene(path, wavelengths=tmp_path / "given.txt")
    with pytest.raises(ProductError, match="missing.txt"):
        open_scene(path, wavelengths=tmp_path / "missing.txt")


def test_empty_bands_are_found_also_where_data_are_rare(tmp_path):
    cube = np.full((4, 20, 24), -32768, dtype=np.int16)
    cube[[0, 1, 3], 13, 17] = 500
    cube[[0, 3], 0, 0] = 400
    with open_scene(write_image(tmp_path / "a.tif", cube)) as scene:
        assert scene.valid_bands.tolist() == [True, False, True, True]  # 600 nm stands third in the file
    with open_scene(write_image(tmp_path / "b.tif", np.full_like(cube, -32768))) as scene:
        assert scene.valid_bands.all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_without_georeference(tmp_path):
    with open_scene(write_image(tmp_path / "a.tif", numbers(), crs=None, transform=None)) as scene:
        assert scene.crs is None and scene.transform is None


def test_what_is_no_scene(tmp_path):
    (tmp_path / "text.tif").write_text("no raster")
    for name in ("text.tif", "missing.tif", "missing.hdr", "missing.zip"):
        with pytest.raises(ProductError, match=name.split(".")[0]):
            open_scene(tmp_path / name)
    duplicate = write_image(tmp_path / "twice.tif", numbers())
    with rasterio.open(duplicate, "r+") as dataset:
        dataset.update_tags(2, wavelength="500")
    with pytest.raises(ProductError, match="more than once"):
        open_scene(duplicate)


def test_a_quality_layer_is_no_scene(tmp_path):
    product = write_small_product(tmp_path)
    with pytest.raises(
        ProductError, match="expected the product's SPECTRAL_IMAGE or METADATA.XML, got its QL_QUALITY_"
    ):
        open_scene(part(product, "QL_QUALITY_CLOUD"))


def test_patterns(tmp_path):
    write_image(tmp_path / "cube.img", numbers(), tagged=False, driver="ENVI")
    for name in ("b.tif", "a.tif", ".a.partial.tif"):
        write_image(tmp_path / name, numbers())
    assert find_scenes([tmp_path / "*.tif"]) == [tmp_path / "a.tif", tmp_path / "b.tif"]
    assert find_scenes([tmp_path / "b.tif", str(tmp_path / "*.tif")]) == [tmp_path / "b.tif", tmp_path / "a.tif"]
    assert find_scenes([tmp_path / "cube.*"]) == [tmp_path / "cube.img"]
    assert find_scenes([tmp_path / "cube.hdr"]) == [tmp_path / "cube.hdr"]
    with pytest.raises(ProductError, match="nothing"):
        find_scenes([tmp_path / "nothing*.ZIP"])
