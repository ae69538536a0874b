"""The simulator: equal bytes for equal seeds, layers that agree, spectra and noise as physics has them."""

import functools
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import datasets_loading.simulation.scene
from datasets_loading.enmap_product import EnMAPProduct
from datasets_loading.sensors import ENMAP, ENMAP_DETECTORS, ENMAP_WATER_VAPOUR_BANDS
from datasets_loading.simulation.atmosphere import illumination, noise_model, simulate_clouds
from datasets_loading.simulation.landscape import value_noise, voronoi_cells
from datasets_loading.simulation.materials import CANOPIES, CLASS_NAMES, SOILS, WATERS
from datasets_loading.simulation.scene import (
    UNLABELLED,
    SimulatedScene,
    labels_path,
    simulate_scene,
    write_scene,
)
from datasets_loading.simulation.spectra import (
    SpectralLibrary,
    SunAndView,
    simulate_spectral_library,
)

ROOT = Path(__file__).parent.parent
VEGETATION = ("broadleaf forest", "needleleaf forest", "meadow", "maize", "green cereal", "beet and potato")


@pytest.fixture(scope="module")
def library() -> SpectralLibrary:
    return simulate_spectral_library(np.random.default_rng(3), ENMAP, SunAndView(35.0), spectra_per_material=16)


@pytest.fixture(scope="module")
def scene() -> SimulatedScene:
    return simulate_scene(72, 64, seed=11, cloud_cover=0.15, haze_cover=0.2, cirrus_cover=0.2, workers=2)


@pytest.fixture(scope="module")
def clear_scene() -> SimulatedScene:
    time = datetime(2023, 6, 20, 10, 30, tzinfo=UTC)
    return simulate_scene(
        64, 64, seed=5, cloud_cover=0.0, haze_cover=0.0, cirrus_cover=0.0, swath=False, acquisition_time=time
    )


def band(wavelength: float) -> int:
    return int(np.abs(np.array(ENMAP.wavelengths) - wavelength).argmin())


def spectra(library: SpectralLibrary, *materials: str) -> np.ndarray:
    return np.concatenate([library.reflectance[library.spectra_of(material)] for material in materials])


def band_depth(reflectance: np.ndarray, center: float, left: float, right: float) -> np.ndarray:
    """Depth of an absorption below the straight line between its shoulders, as a share of that line."""
    share = (center - left) / (right - left)
    line = (1 - share) * reflectance[:, band(left)] + share * reflectance[:, band(right)]
    return 1.0 - reflectance[:, band(center)] / line


# Spectra


def test_reflectance_is_physical(library: SpectralLibrary) -> None:
    assert library.reflectance.dtype == np.float32
    assert library.reflectance.min() >= 0.0
    assert library.reflectance.max() <= 1.0
    assert np.isfinite(library.reflectance).all()
    assert set(np.unique(library.classes)) == set(range(len(CLASS_NAMES)))


def test_green_vegetation(library: SpectralLibrary) -> None:
    plants = spectra(library, *VEGETATION)
    red, near_infrared = plants[:, band(665)], plants[:, band(865)]
    vegetation_index = (near_infrared - red) / (near_infrared + red)
    assert np.median(vegetation_index) > 0.75
    assert vegetation_index.min() > 0.35
    wavelengths = np.array(ENMAP.wavelengths)
    edge = (wavelengths > 660) & (wavelengths < 780)
    steepest = wavelengths[edge][np.gradient(plants[:, edge], wavelengths[edge], axis=1).argmax(axis=1)]
    assert 695 < np.median(steepest) < 735
    assert (plants[:, band(550)] > plants[:, band(665)]).mean() > 0.9
    assert (band_depth(plants, 1200, 1080, 1280) > 0).all()


def test_dry_plants_absorb_at_2100_nm_and_green_ones_less(library: SpectralLibrary) -> None:
    dry = band_depth(spectra(library, "straw and stubble"), 2100, 2030, 2210)
    green = band_depth(spectra(library, "maize"), 2100, 2030, 2210)
    assert np.median(dry) > 0.04
    assert np.median(green) < 0.5 * np.median(dry)


def test_water_is_dark_in_the_shortwave_infrared(library: SpectralLibrary) -> None:
    water = spectra(library, *WATERS)
    assert np.median(water[:, band(1650)]) < 0.01
    assert water[:, band(1650)].max() < 0.05
    assert (water[:, band(560)] > water[:, band(865)]).mean() > 0.95


def test_soils_rise_and_have_clay_and_carbonate(library: SpectralLibrary) -> None:
    soils = spectra(library, *SOILS)
    assert (soils[:, band(1650)] > 1.5 * soils[:, band(450)]).all()
    assert (band_depth(spectra(library, "clay pit"), 2205, 2140, 2260) > 0.01).mean() > 0.9
    assert np.median(band_depth(spectra(library, "limestone"), 2340, 2250, 2430)) > 0.03
    assert np.median(band_depth(spectra(library, "loamy soil"), 2205, 2140, 2260)) > 0.02
    assert np.median(band_depth(spectra(library, "limestone"), 2205, 2140, 2260)) < 0.02


def test_snow_is_bright_in_the_visible_and_dark_in_the_shortwave_infrared(library: SpectralLibrary) -> None:
    snow = spectra(library, "snow")
    assert (snow[:, band(550)] > 0.8).all()
    assert (snow[:, band(1600)] < 0.3).all()


def test_the_leaf_area_index_of_canopies_differs_between_spectra(library: SpectralLibrary) -> None:
    for name in CANOPIES:
        assert spectra(library, name)[:, band(865)].std() > 0.005, name


# Landscape


def test_noise_has_unit_variance_and_cells_partition_the_plane() -> None:
    generator = np.random.default_rng(0)
    assert value_noise(generator, (600, 500), 8.0).std() == pytest.approx(1.0, rel=0.1)
    owner, border = voronoi_cells(generator, (200, 300), 20.0, None, workers=2)
    assert border.min() >= 0.0
    assert 60 < len(np.unique(owner)) < 300
    inner = (owner[1:-1, 1:-1] == owner[1:-1, 2:]) & (owner[1:-1, 1:-1] == owner[2:, 1:-1])
    assert border[1:-1, 1:-1][~inner].max() < 2.0


def test_slopes_facing_the_sun_are_brighter() -> None:
    # Rows run southwards: a surface that falls with the row faces south, where the sun stands.
    falling = -np.arange(40, dtype=np.float32)[:, None] * 6.0 * np.ones((1, 40), dtype=np.float32)
    assert illumination(falling, 40.0, 180.0, correction=0.0)[20, 20] > 1.05
    assert illumination(-falling, 40.0, 180.0, correction=0.0)[20, 20] < 0.95
    level = np.zeros((40, 40), dtype=np.float32)
    np.testing.assert_allclose(illumination(level, 40.0, 180.0, correction=0.0), 1.0, rtol=1e-5)
    wall = level.copy()
    wall[:, 20] = 100.0
    light = illumination(wall, 60.0, 90.0, correction=0.0)  # the sun in the east: shadow falls west
    assert light[20, 17] == 0.0
    assert light[20, 24] == 1.0


def test_cloud_shadows_lie_on_the_side_away_from_the_sun() -> None:
    clouds = simulate_clouds(
        np.random.default_rng(2),
        96,
        96,
        cloud_cover=0.2,
        haze_cover=0.0,
        cirrus_cover=0.0,
        sun_zenith=45.0,
        sun_azimuth=90.0,
    )
    shadow, cloud = clouds.shadow, clouds.opacity
    overlaps = [float((shadow[:, shift:] * cloud[:, : 96 - shift]).sum()) for shift in range(96)]
    assert overlaps[0] == pytest.approx(float((shadow * cloud).sum()))
    westward = [float((shadow[:, : 96 - shift] * cloud[:, shift:]).sum()) for shift in range(80)]
    shift = int(np.argmax(westward))
    assert 700 / 30 - 1 < shift < 2200 / 30 + 1
    np.testing.assert_allclose(shadow[:, : 96 - shift], 0.92 * cloud[:, shift:], atol=1e-5)


# Noise


@pytest.mark.parametrize(("wavelength", "ratio"), [(495.0, 500.0), (2200.0, 150.0)])
def test_noise_meets_the_specification(wavelength: float, ratio: float) -> None:
    model = noise_model(ENMAP, ENMAP_DETECTORS, sun_zenith=30.0)
    deviation = model.deviation(np.full(ENMAP.num_bands, 0.3, dtype=np.float32))
    assert 0.3 / deviation[band(wavelength)] == pytest.approx(ratio, rel=0.02)


def test_noise_grows_with_the_signal_and_towards_low_sun() -> None:
    high, low = (noise_model(ENMAP, ENMAP_DETECTORS, sun_zenith=zenith) for zenith in (30.0, 65.0))
    dark, bright = (np.full(ENMAP.num_bands, value, dtype=np.float32) for value in (0.02, 0.4))
    assert (high.deviation(bright) > high.deviation(dark)).all()
    assert (bright / high.deviation(bright) > dark / high.deviation(dark)).all()
    assert (low.deviation(bright) > high.deviation(bright)).all()
    window = [band(wavelength) for wavelength in (650, 1050, 1650, 2200, 2400)]
    ratios = (bright / high.deviation(bright))[window]
    assert (np.diff(ratios) < 0).all()


def test_noise_in_the_cube_is_that_of_the_model() -> None:
    """Ground is smooth over three neighboring bands without gases: how far the middle one is off is noise."""
    scene = simulate_scene(64, 64, seed=5, cloud_cover=0.0, haze_cover=0.0, cirrus_cover=0.0, swath=False)
    window = [band(wavelength) for wavelength in (2150.0, 2158.0, 2166.0)]
    first, middle, last = (scene.cube[number].astype(np.float64) / ENMAP.scale for number in window)
    # Subtracting each column's mean takes stripes away, and the second difference the ground.
    bend = middle - (first + last) / 2
    bend -= np.median(bend, axis=0)
    expected = scene.noise.deviation(np.full(ENMAP.num_bands, 0.15, dtype=np.float32))[window[1]] * np.sqrt(1.5)
    measured = 1.4826 * np.median(np.abs(bend))
    assert measured == pytest.approx(float(expected), rel=0.35)


# Scenes


def test_shapes_and_types(scene: SimulatedScene) -> None:
    assert scene.cube.shape == (224, 72, 64)
    assert scene.cube.dtype == np.int16
    assert scene.labels.shape == (72, 64)
    assert scene.labels.dtype == np.uint8
    assert scene.crs.to_epsg() in range(32601, 32661)
    assert (scene.transform.a, scene.transform.e) == (30.0, -30.0)
    assert scene.acquisition_time.tzinfo is not None
    assert 15.0 <= scene.sun_elevation <= 80.0


def test_nodata_lies_off_the_swath_and_in_the_water_vapour_bands(scene: SimulatedScene) -> None:
    outside = scene.quality["classes"] == 3
    assert 0.15 < outside.mean() < 0.4
    empty = np.isin(np.arange(224), ENMAP_WATER_VAPOUR_BANDS)
    assert (scene.cube[empty] == ENMAP.nodata).all()
    assert (scene.cube[~empty][:, outside] == ENMAP.nodata).all()
    assert (scene.cube[~empty][:, ~outside] >= 0).all()
    assert (scene.labels[outside] == UNLABELLED).all()
    for layer in ("cloud", "cloud_shadow", "haze", "cirrus", "snow"):
        assert not scene.quality[layer][outside].any()


def test_clouds_are_bright_and_their_shadows_dark(scene: SimulatedScene) -> None:
    blue = scene.cube[band(450)].astype(np.float32)
    near_infrared = scene.cube[band(865)].astype(np.float32)
    cloud, shadow = scene.quality["cloud"] > 0, scene.quality["cloud_shadow"] > 0
    land = (scene.quality["classes"] == 1) & ~cloud & ~shadow
    assert 0.05 < cloud.mean() < 0.35
    assert not (cloud & shadow).any()
    assert np.median(blue[cloud]) > 3 * np.median(blue[land])
    assert np.median(near_infrared[shadow]) < 0.75 * np.median(near_infrared[land])
    assert set(np.unique(scene.quality["cirrus"])) <= {0, 1, 2, 3}
    assert scene.quality["cirrus"].any()
    assert scene.quality["haze"].any()
    assert (scene.labels[cloud] == UNLABELLED).all()


def test_without_clouds_and_swath_every_pixel_has_data_and_a_label(clear_scene: SimulatedScene) -> None:
    assert clear_scene.clear.all()
    assert (clear_scene.labels < len(CLASS_NAMES)).all()
    has_data = ~np.isin(np.arange(224), clear_scene.empty_bands)
    assert (clear_scene.cube[has_data] != ENMAP.nodata).all()


def test_labels_are_the_dominant_fractions(clear_scene: SimulatedScene) -> None:
    fractions = clear_scene.class_fractions
    np.testing.assert_allclose(fractions.sum(axis=0), 1.0, atol=1e-4)
    np.testing.assert_array_equal(clear_scene.labels, fractions.argmax(axis=0))
    largest = fractions.max(axis=0)
    assert 0.02 < (largest < 0.6).mean() < 0.7, "some pixels are mixed, not all"
    water = fractions[CLASS_NAMES.index("water")] > 0.5
    np.testing.assert_array_equal(clear_scene.quality["classes"] == 2, water)
    assert len(np.unique(clear_scene.labels)) >= 4


def test_pixels_look_like_their_labels(clear_scene: SimulatedScene) -> None:
    red, near_infrared = (clear_scene.cube[band(wavelength)] / 1e4 for wavelength in (665, 865))
    vegetation_index = (near_infrared - red) / (near_infrared + red + 1e-3)
    forest = np.isin(clear_scene.labels, [CLASS_NAMES.index(f"{kind} forest") for kind in ("broadleaf", "needleleaf")])
    built = np.isin(clear_scene.labels, [CLASS_NAMES.index(name) for name in ("roof", "pavement", "bare soil")])
    assert forest.sum() > 20
    assert np.median(vegetation_index[forest]) > 0.65
    if built.sum() > 20:
        assert np.median(vegetation_index[built]) < np.median(vegetation_index[forest]) - 0.2


def test_the_version_of_the_processor_decides_the_empty_bands() -> None:
    scene = simulate_scene(16, 16, seed=1, swath=False, processor_version="010302")
    assert scene.empty_bands == tuple(range(129, 135))
    empty = (scene.cube == ENMAP.nodata).all(axis=(1, 2))
    assert np.flatnonzero(empty).tolist() == list(range(129, 135))
    assert "_V010302_" in scene.name


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_workers(few_spectra: None, tmp_path: Path) -> None:
    def digests(folder: Path, seed: int, workers: int) -> dict[str, str]:
        product = write_scene(simulate_scene(40, 48, seed=seed, workers=workers), folder)
        files = [*sorted(product.iterdir()), labels_path(folder, product.name)]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    first = digests(tmp_path / "first", 7, 1)
    assert digests(tmp_path / "second", 7, 3) == first
    assert list(digests(tmp_path / "third", 8, 1).values()) != list(first.values())


def test_a_scene_is_written_once_more_beside_the_labels_of_earlier_versions(tmp_path: Path) -> None:
    scene = simulate_scene(40, 48, seed=7)
    product, labels = write_scene(scene, tmp_path), labels_path(tmp_path, scene.name)
    grid = {"crs": scene.crs, "transform": scene.transform, "height": 40, "width": 48}
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": UNLABELLED, "compress": "deflate"}
    with rasterio.open(labels, "w", **profile, **grid) as dataset:
        dataset.write(scene.labels, 1)
        dataset.set_band_description(1, "land cover")
        dataset.update_tags(1, **{f"class_{number}": name for number, name in enumerate(scene.class_names)})
    earlier = labels.read_bytes()
    assert write_scene(scene, tmp_path) == product and labels.read_bytes() == earlier


def test_a_product_is_read_as_it_was_simulated(scene: SimulatedScene, tmp_path: Path) -> None:
    path = write_scene(scene, tmp_path, as_zip=True)
    assert path.suffix == ".ZIP"
    with EnMAPProduct.open(path) as product:
        np.testing.assert_array_equal(product.read(), scene.cube)
        np.testing.assert_array_equal(product.read_outside(), scene.quality["classes"] == 3)
        np.testing.assert_array_equal(product.read_cloud(), scene.quality["cloud"] == 1)
        np.testing.assert_array_equal(product.read_cloud_shadow(), scene.quality["cloud_shadow"] == 1)
        np.testing.assert_array_equal(product.read_haze(), scene.quality["haze"] == 1)
        np.testing.assert_array_equal(product.read_cirrus_level(), scene.quality["cirrus"])
        np.testing.assert_array_equal(np.flatnonzero(~product.valid_bands), scene.empty_bands)
        assert product.sun_elevation == pytest.approx(scene.sun_elevation, abs=1e-3)
        assert product.crs == scene.crs
        assert product.transform == scene.transform
    with rasterio.open(labels_path(tmp_path, scene.name)) as dataset:
        np.testing.assert_array_equal(dataset.read(1), scene.labels)
        assert dataset.nodata == UNLABELLED
        assert dataset.tags(1)["class_10"] == "water"


def test_bad_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="8 x 8"):
        simulate_scene(4, 64, seed=0)
    with pytest.raises(ValueError, match="cloud_cover"):
        simulate_scene(16, 16, seed=0, cloud_cover=1.5)
    with pytest.raises(ValueError, match="seed"):
        simulate_scene(16, 16, seed=-1)
    with pytest.raises(ValueError, match="010111"):
        simulate_scene(16, 16, seed=0, processor_version="9")


@pytest.mark.parametrize(
    "arguments", [["--size", "4"], ["--cloud_cover", "2"], ["--num_scenes", "0"], ["--seed", "-3"], ["--size", "big"]]
)
def test_script_says_in_one_line_what_is_wrong(arguments: list[str], run_script: Any, tmp_path: Path) -> None:
    output = tmp_path / "products"
    finished = run_script("simulate_enmap.py", "--output_dir", output, *arguments)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert not output.exists()


@pytest.fixture
def few_spectra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four spectra of each material, for tests that look at files."""
    few = functools.partial(simulate_spectral_library, spectra_per_material=4)
    monkeypatch.setattr(datasets_loading.simulation.scene, "simulate_spectral_library", few)


def test_script_writes_products(few_spectra: None, run_script: Any, tmp_path: Path) -> None:
    def simulate(num_scenes: int, width: int, seed: int) -> Any:
        sizes = "--num_scenes", num_scenes, "--height", 32, "--width", width, "--seed", seed
        return run_script("simulate_enmap.py", "--output_dir", tmp_path, *sizes, "--zip")

    assert simulate(2, 40, 3).returncode == 0
    archives = sorted(tmp_path.glob("*.ZIP"))
    assert len(archives) == 2
    assert all(labels_path(tmp_path, archive.stem).exists() for archive in archives)
    with EnMAPProduct.open(archives[0]) as product:
        assert product.shape == (32, 40)
    # Killed between the product and its labels, the same command makes what is missing and leaves nothing unfinished
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    labels_path(tmp_path, archives[1].stem).unlink()
    (tmp_path / ".a.partial").mkdir()
    assert simulate(1, 40, 4).returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content
    other = simulate(1, 33, 4)
    assert other.returncode == 2 and "expected nothing, or what is written there" in other.stderr
    assert "Traceback" not in other.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content
