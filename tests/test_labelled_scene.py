"""Anyone's labelled scene: GeoTIFF, ENVI, MATLAB and product files, tiles of one scene, classes, splits, bad input."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from datasets.distributed import split_dataset_by_node
from rasterio.vrt import WarpedVRT
from scipy.io import savemat
from small_benchmarks import (
    assert_builder_holds_its_promises,
    assert_one_clear_line,
    patchy_labels,
    shifted,
    striped_cube,
    write_raster,
)
from small_products import HEIGHT, TRANSFORM, WIDTH, small_cube, small_quality, write_small_product

from datasets_loading.labelled_data import read_cube
from datasets_loading.labelled_scene import LabelledScene
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import NO_SPLIT, UNLABELLED, split_by_blocks, write_split
from datasets_loading.wavelengths import read_wavelength_file

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SHARED = Path(os.environ.get("HSST_SHARED", Path(__file__).parents[2] / "shared"))
POTSDAM = SHARED / "data" / "enmap_potsdam"

SIZE = 48
CENTERS = (450.0, 550.0, 650.0, 1650.0)
FILE_ORDER = (2, 3, 0, 1)


def values() -> np.ndarray:
    """Label values 0 (none), 1, 2 and 3 of the whole scene, uint8 (48, 48)."""
    return patchy_labels(SIZE, SIZE, [0, 1, 2, 3])


def classes() -> np.ndarray:
    return np.where(values() == 0, UNLABELLED, values() - 1).astype(np.uint8)


def tagged(band: int) -> dict[str, str]:
    return {"wavelength": str(CENTERS[FILE_ORDER[band]])}


def write_image(path: Path, image: np.ndarray, **profile: Any) -> Path:
    """A GeoTIFF with its bands out of order and tagged."""
    return write_raster(path, image[list(FILE_ORDER)], **{"nodata": -32768, "band_tags": tagged, **profile})


def write_scene(folder: Path) -> Path:
    write_image(folder / "images" / "scene.tif", striped_cube(SIZE, SIZE))
    write_raster(folder / "labels" / "scene.tif", values())
    return folder


def write_tiles(folder: Path, side: int = 16, **profile: Any) -> Path:
    """The scene in tiles, named by column and row, without the one in the middle."""
    for row in range(0, SIZE, side):
        for column in range(0, SIZE, side):
            if (row, column) == (16, 16):
                continue
            part = np.s_[row : row + side, column : column + side]
            name = f"tile_{column}_{row}.tif"
            grid = {"transform": shifted(row, column), **profile}
            write_image(folder / "images" / name, striped_cube(SIZE, SIZE)[:, *part].astype(np.float32), **grid)
            write_raster(folder / "labels" / name, values()[part].astype(np.float32), **grid)
    return folder


def builder(folder: Path, cache: Path, **settings: Any) -> LabelledScene:
    return LabelledScene(
        data_dir=str(folder), cache_dir=str(cache), **{"block_size": 12, "window_size": 4, "tile_size": 16, **settings}
    )


# Files


def test_geotiff(tmp_path: Path):
    scene_builder = builder(write_scene(tmp_path / "files"), tmp_path)
    (scene,) = scene_builder.data.scenes
    np.testing.assert_array_equal(scene.cube, striped_cube(SIZE, SIZE))
    np.testing.assert_array_equal(scene.labels, classes())
    np.testing.assert_array_equal(scene_builder.data.wavelengths, CENTERS)
    assert scene_builder.data.class_names == ("class 1", "class 2", "class 3")
    assert (scene.name, scene.transform) == ("scene", TRANSFORM)
    assert_builder_holds_its_promises(scene_builder, window_size=4)


@pytest.mark.parametrize("units", ["Nanometers", "Micrometers"])
@pytest.mark.parametrize("name", ["scene.img", "scene", "scene.bsq"])
def test_envi(tmp_path: Path, units: str, name: str):
    """Reflectance x 5000 as the header says, band after band, nodata 0."""
    folder = tmp_path / "files"
    cube = striped_cube(SIZE, SIZE)[list(FILE_ORDER)].astype(np.uint16) + 2
    cube[:, 0, 0] = 0
    (folder / "images").mkdir(parents=True)
    cube.tofile(folder / "images" / name)
    factor = 1 if units == "Nanometers" else 1000
    (folder / "images" / "scene.hdr").write_text(
        f"ENVI\nsamples = {SIZE}\nlines = {SIZE}\nbands = 4\nheader offset = 0\ndata type = 12\ninterleave = bsq\n"
        f"byte order = 0\ndata ignore value = 0\nreflectance scale factor = 5000\nwavelength units = {units}\n"
        f"wavelength = {{{', '.join(str(CENTERS[band] / factor) for band in FILE_ORDER)}}}\n"
    )
    write_raster(folder / "labels" / "scene.tif", values(), crs=None, transform=None)
    data = builder(folder, tmp_path).data
    expected = 2 * (striped_cube(SIZE, SIZE).astype(np.int64) + 2)
    expected[:, 0, 0] = ENMAP.nodata
    np.testing.assert_array_equal(data.scenes[0].cube, expected)
    np.testing.assert_allclose(data.wavelengths, CENTERS)


def test_matlab(tmp_path: Path):
    """Files of two folders' files side by side, as they are shared on the web: (height, width, bands), no tags."""
    image = np.moveaxis(striped_cube(SIZE, SIZE) / 10000.0, 0, -1)
    image[3, 4] = np.nan
    savemat(tmp_path / "salinas.mat", {"salinas": image, "wl": np.array([CENTERS])})
    savemat(tmp_path / "salinas_gt.mat", {"salinas_gt": values()})
    (tmp_path / "bands.txt").write_text("\n".join(f"{center}, 10" for center in CENTERS))
    settings = {"images": "salinas.mat", "labels": "salinas_gt.mat", "wavelengths": "bands.txt", "scale": 1.0}
    data = builder(tmp_path, tmp_path / "cache", **settings).data
    expected = striped_cube(SIZE, SIZE)
    expected[:, 3, 4] = ENMAP.nodata
    np.testing.assert_array_equal(data.scenes[0].cube, expected)
    np.testing.assert_array_equal(data.wavelengths, CENTERS)
    unscaled = builder(tmp_path, tmp_path / "cache", **{**settings, "scale": None})
    assert_one_clear_line(lambda: unscaled.data, "salinas.mat", "reflectance x 10000", "fractions")


def test_matlab_with_several_arrays(tmp_path: Path):
    image = np.moveaxis(striped_cube(SIZE, SIZE), 0, -1)
    savemat(tmp_path / "scene.mat", {"radiance": image * 2, "reflectance": image, "gt": values(), "mask": values()})
    settings = {"images": "scene.mat", "labels": "scene.mat", "image_variable": "reflectance", "label_variable": "gt"}
    data = builder(tmp_path, tmp_path / "cache", **settings).data
    np.testing.assert_array_equal(data.scenes[0].cube, striped_cube(SIZE, SIZE))
    assert data.wavelengths is None
    del settings["image_variable"]
    assert_one_clear_line(lambda: builder(tmp_path, tmp_path, **settings).data, "radiance (48, 48, 4)", "got 2")


def test_products_with_labels_beside_them(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The layout that simulated scenes are written in: class names as tags, counted from 0; clouds have no labels."""
    folder = tmp_path / "files"
    product = write_small_product(folder)
    names = ("vegetation", "soil", "water")
    labels = patchy_labels(HEIGHT, WIDTH, [0, 1, 2, 255])
    path = write_raster(folder / f"{product.name}_labels.tif", labels, nodata=255)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, **{f"class_{number}": name for number, name in enumerate(names)})
    scene_builder = builder(folder, tmp_path, images=".", labels=".", block_size=24, tile_size=64)
    (scene,) = scene_builder.data.scenes
    np.testing.assert_array_equal(scene.cube, small_cube())
    assert scene_builder.data.class_names == names
    quality = small_quality()
    hidden = (quality["cloud"] | quality["cloud_shadow"]).astype(bool)
    np.testing.assert_array_equal(scene.labels, np.where(scene.valid & ~hidden, labels, UNLABELLED))
    lost = (hidden & (labels != UNLABELLED)).sum()
    assert f"{lost} labelled pixels in cloud or shadow, taken as unlabelled" in caplog.text and lost > 100
    assert_builder_holds_its_promises(scene_builder, window_size=4)


# Tiles of one scene


@pytest.mark.parametrize("georeferenced", [True, False])
def test_tiles_are_laid_side_by_side(tmp_path: Path, georeferenced: bool):
    profile = {} if georeferenced else {"crs": None, "transform": None}
    scene_builder = builder(write_tiles(tmp_path / "files", **profile), tmp_path)
    (scene,) = scene_builder.data.scenes
    middle = np.s_[16:32, 16:32]
    expected, labels = striped_cube(SIZE, SIZE), classes()
    expected[:, *middle], labels[middle] = ENMAP.nodata, UNLABELLED
    np.testing.assert_array_equal(scene.cube, expected)
    np.testing.assert_array_equal(scene.labels, labels)
    assert scene.name == "tile_0_0"
    assert scene.transform == (TRANSFORM if georeferenced else None)
    rows = assert_builder_holds_its_promises(scene_builder, window_size=4)
    for row in rows["train"]:
        assert row["name"] == f"tile_0_0_x{row['column']:05d}_y{row['row']:05d}"
        image = np.array(row["image"])
        shown = expected[:, row["row"] : row["row"] + 16, row["column"] : row["column"] + 16]
        kept = image != ENMAP.nodata
        np.testing.assert_array_equal(image[kept], shown[kept])


def test_first_tile_below_another_lies_right(tmp_path: Path):
    """The order of names is not that of places: tile_0_16 comes before tile_16_0."""
    folder = tmp_path / "files"
    for name, row, column in (("a", 16, 0), ("b", 0, 16)):
        write_image(folder / "images" / f"{name}.tif", striped_cube(16, 16), transform=shifted(row, column))
        write_raster(folder / "labels" / f"{name}.tif", values()[:16, :16], transform=shifted(row, column))
    (scene,) = builder(folder, tmp_path, block_size=8, window_size=2).data.scenes
    assert scene.name == "b" and scene.shape == (32, 32) and scene.transform == TRANSFORM
    np.testing.assert_array_equal(scene.cube[:, 16:, :16], striped_cube(16, 16))
    np.testing.assert_array_equal(scene.cube[:, :16, 16:], striped_cube(16, 16))
    assert (scene.cube[:, :16, :16] == ENMAP.nodata).all()


def test_tiles_far_apart_are_scenes(tmp_path: Path):
    folder = tmp_path / "files"
    for name, column in (("west", 0), ("east", SIZE + 500)):
        grid = {"transform": shifted(0, column)}
        write_image(folder / "images" / f"{name}.tif", striped_cube(SIZE, SIZE), **grid)
        write_raster(folder / "labels" / f"{name}_labels.tif", values(), **grid)
    split = {"train": ["west"], "test": ["east"]}
    scene_builder = builder(folder, tmp_path, split=split, validation_share=0.2)
    data = scene_builder.data
    assert [scene.name for scene in data.scenes] == ["east", "west"]
    assert set(np.unique(data.split.codes["east"])) == {2}
    assert set(np.unique(data.split.codes["west"])) == {0, 1, NO_SPLIT}
    assert_builder_holds_its_promises(scene_builder, window_size=4)


def test_overlapping_and_equal_tiles_are_refused(tmp_path: Path):
    folder = tmp_path / "files"
    for name, row in (("a", 0), ("b", 10)):
        write_image(folder / "images" / f"{name}.tif", striped_cube(16, 16), transform=shifted(row, 0))
        write_raster(folder / "labels" / f"{name}.tif", values()[:16, :16], transform=shifted(row, 0))
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "b: ", "96 pixels")


# Classes and splits


def test_class_names_by_value(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    data = builder(folder, tmp_path, class_names={0: "sea", 3: "land"}, unlabelled=(1, 2)).data
    assert data.class_names == ("sea", "land")
    expected = np.array([0, UNLABELLED, UNLABELLED, 1], dtype=np.uint8)[values()]
    np.testing.assert_array_equal(data.scenes[0].labels, expected)


def test_areas(tmp_path: Path):
    areas = {"train": [(0, 48, 0, 24)], "validation": [(0, 24, 24, 48)], "test": [("scene", 24, 48, 24, 48)]}
    scene_builder = builder(write_scene(tmp_path / "files"), tmp_path, split=areas)
    rows = assert_builder_holds_its_promises(scene_builder, window_size=4)
    assert set(rows) == {"train", "validation", "test"}
    assert (scene_builder.data.split.codes["scene"][24:, 24:] == 2).all()


def test_split_file(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    labels = {"scene": classes()}
    path = write_split(split_by_blocks(labels, block_size=16, buffer=2, seed=9), tmp_path / "mine.json", labels)
    data = builder(folder, tmp_path, split_file=str(path)).data
    np.testing.assert_array_equal(
        data.split.codes["scene"], split_by_blocks(labels, block_size=16, buffer=2, seed=9).codes["scene"]
    )
    leaking = write_split(split_by_blocks(labels, block_size=16, buffer=0), tmp_path / "leaking.json", labels)
    assert_one_clear_line(lambda: builder(folder, tmp_path, split_file=str(leaking)).data, "touched", "4 x 4")


def test_rows_of_a_split_hide_the_others(tmp_path: Path):
    scene_builder = builder(write_scene(tmp_path / "files"), tmp_path)
    codes = scene_builder.data.split.codes["scene"]
    for code, name in ((0, "train"), (2, "test")):
        for row in scene_builder.as_streaming_dataset(split=name):
            part = codes[row["row"] : row["row"] + 16, row["column"] : row["column"] + 16]
            shown = (np.array(row["image"]) != ENMAP.nodata).all(axis=0)
            np.testing.assert_array_equal(shown, np.isin(part, (code, NO_SPLIT)))
            assert (part[np.array(row["label"]) != UNLABELLED] == code).all()


def test_changed_files_are_read_anew(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    first = builder(folder, tmp_path / "cache")
    first.download_and_prepare()
    write_image(folder / "images" / "scene.tif", striped_cube(SIZE, SIZE, seed=1))
    second = builder(folder, tmp_path / "cache")
    assert first.cache_dir != second.cache_dir
    second.download_and_prepare()
    images = [made.as_dataset(split="train")[0]["image"] for made in (first, second)]
    assert images[0] != images[1]


def test_changed_labels_elsewhere_and_behind_a_link_are_read_anew(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("images", "labels"):
        (linked / name).symlink_to(folder / name)
    elsewhere = write_raster(tmp_path / "maps" / "map.tif", values())
    makers = (
        lambda: builder(folder, tmp_path / "cache", labels=str(elsewhere)),
        lambda: builder(linked, tmp_path / "cache"),
    )
    before = [make().cache_dir for make in makers]
    assert before == [make().cache_dir for make in makers]
    for path in (elsewhere, folder / "labels" / "scene.tif"):
        write_raster(path, np.minimum(values(), 2), dtype="uint16")
        assert makers[path != elsewhere]().cache_dir not in before


def test_workers_read_for_themselves(tmp_path: Path):
    scene_builder = builder(write_scene(tmp_path / "files"), tmp_path)
    assert scene_builder.data.scenes
    message = pickle.dumps(scene_builder)
    assert len(message) < 20_000
    np.testing.assert_array_equal(pickle.loads(message).data.scenes[0].cube, striped_cube(SIZE, SIZE))
    scene_builder.download_and_prepare(num_proc=2)
    assert len(scene_builder.as_dataset(split="train")) == len(list(scene_builder.as_streaming_dataset(split="train")))


def test_nodes_share_the_stream(tmp_path: Path):
    streamed = builder(write_scene(tmp_path / "files"), tmp_path).as_streaming_dataset(split="train")
    shares = [[row["name"] for row in split_dataset_by_node(streamed, rank, 2)] for rank in (0, 1)]
    assert min(map(len, shares)) > 0
    assert sorted(shares[0] + shares[1]) == sorted(row["name"] for row in streamed)


# Bad input


def test_missing_files_are_named(tmp_path: Path):
    assert_one_clear_line(lambda: LabelledScene(cache_dir=str(tmp_path)).data, "data_dir", "images/")
    assert_one_clear_line(lambda: builder(tmp_path / "nowhere", tmp_path).data, tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_one_clear_line(lambda: builder(empty, tmp_path).data, empty / "images", "got nothing there")
    folder = write_tiles(tmp_path / "files")
    (folder / "labels" / "tile_16_0.tif").unlink()
    assert_one_clear_line(
        lambda: builder(folder, tmp_path).data, folder / "labels" / "tile_16_0.tif", "got no such file"
    )
    mistyped = builder(folder, tmp_path, labels="points.geojson")
    assert_one_clear_line(lambda: mistyped.data, f"{folder / 'points.geojson'}: expected labels")
    (folder / "images").rename(folder / "pictures")
    (folder / "images").mkdir()
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, folder / "images", "got none")


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"crs": "EPSG:32632"}, ("EPSG:32633", "EPSG:32632", "gdalwarp")),
        ({"transform": shifted(3, 0)}, ("begins +3.00 rows and +0.00 columns away",)),
        ({"transform": shifted(0, 0, 10.0)}, ("pixels of 10",)),
    ],
)
def test_labels_on_another_grid_are_refused(tmp_path: Path, profile: dict[str, Any], words: tuple[str, ...]):
    folder = write_scene(tmp_path / "files")
    path = write_raster(folder / "labels" / "scene.tif", values(), **profile)
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, path, *words)


def test_labels_of_another_size_without_a_place_are_refused(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    path = write_raster(folder / "labels" / "scene.tif", values()[:40], crs=None, transform=Affine.identity())
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, path, "48 x 48", "40 x 48")


@pytest.mark.parametrize("crs", [None, "EPSG:4326"])
def test_finer_labels_are_laid_on_the_image(tmp_path: Path, caplog: pytest.LogCaptureFixture, crs: str | None):
    """As of a land-cover map of 10 m, which reaches beyond the image: the most frequent value counts."""
    folder = write_scene(tmp_path / "files")
    fine = np.pad(values(), 2, constant_values=9).repeat(3, axis=0).repeat(3, axis=1)
    fine[::3, ::3] = 7
    fine[:, 60:62] = 9  # two thirds of a column of the image's pixels
    expected = classes()
    expected[:, 18] = UNLABELLED
    grid = {"transform": shifted(-2, -2) @ Affine.scale(1 / 3), "nodata": 9}
    path = write_raster(folder / "labels" / "scene.tif", fine, **grid)
    if crs:
        with rasterio.open(path) as source, WarpedVRT(source, crs=crs) as turned:
            warped, grid = turned.read(1), {"crs": crs, "transform": turned.transform, "nodata": 9}
        write_raster(path, warped, **grid)
    (scene,) = builder(folder, tmp_path, class_names={1: "a", 2: "b", 3: "c", 7: "d"}).data.scenes
    same = scene.labels == expected
    # Between two grids a pixel of 10 m falls to one side or the other
    assert same.all() if crs is None else same.mean() > 0.97
    assert "laid on the pixels of scene: the most frequent value in each" in caplog.text


def test_coarser_labels_are_laid_on_the_image(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_scene(tmp_path / "files")
    coarse = values()[: SIZE // 2, 1::2]
    write_raster(folder / "labels" / "scene.tif", coarse, transform=TRANSFORM @ Affine.scale(2))
    (scene,) = builder(folder, tmp_path).data.scenes
    expected = np.where(coarse == 0, UNLABELLED, coarse - 1).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(scene.labels, expected)
    assert "the value at the center of each; 2304 of 2304 have one" in caplog.text


@pytest.mark.parametrize("how", ["nodata", "nan", "mask"])
def test_pixels_with_mostly_no_label_on_a_finer_map_have_none(tmp_path: Path, how: str):
    folder = write_scene(tmp_path / "files")
    fine = (values() + 1).repeat(3, axis=0).repeat(3, axis=1).astype(np.float32)
    without = np.zeros(fine.shape, dtype=bool)
    without[:, 60:62] = True  # two thirds of a column of the image's pixels
    without[:, 90] = True  # one third
    if how != "mask":
        fine[without] = np.nan if how == "nan" else -9
    path = folder / "labels" / "scene.tif"
    write_raster(path, fine, transform=TRANSFORM @ Affine.scale(1 / 3), nodata=-9 if how == "nodata" else None)
    if how == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(~without)
    (scene,) = builder(folder, tmp_path).data.scenes
    expected = values()
    expected[:, 20] = UNLABELLED
    np.testing.assert_array_equal(scene.labels, expected)


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 180])
def test_finer_labels_lie_right_under_a_turned_image(tmp_path: Path, angle: float):
    """As airborne images are: half-planes of labels, whose edge is far from the centers of most pixels."""
    folder = tmp_path / "files"
    turned = TRANSFORM @ Affine.translation(24, 24) @ Affine.rotation(angle) @ Affine.translation(-24, -24)
    write_image(folder / "images" / "scene.tif", striped_cube(SIZE, SIZE), transform=turned)
    grid = TRANSFORM @ Affine.translation(-20, -20) @ Affine.scale(1 / 3)
    columns, rows = np.meshgrid(np.arange(264) + 0.5, np.arange(264) + 0.5)
    write_raster(folder / "labels" / "scene.tif", np.uint8(1 + (columns > 127) + 2 * (rows > 140)), transform=grid)
    (scene,) = builder(folder, tmp_path, split="test").data.scenes
    columns, rows = ~grid @ turned @ np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    far = (abs(columns - 127) > 2.2) & (abs(rows - 140) > 2.2)
    np.testing.assert_array_equal(scene.labels[far], ((columns > 127) + 2 * (rows > 140))[far])


def test_one_raster_of_labels_serves_several_images(tmp_path: Path):
    folder = write_tiles(tmp_path / "files")
    path = write_raster(folder / "all.tif", values())
    (scene,) = builder(folder, tmp_path, labels="all.tif").data.scenes
    expected = classes()
    expected[16:32, 16:32] = UNLABELLED
    np.testing.assert_array_equal(scene.labels, expected)
    write_raster(path, values(), crs=None, transform=Affine.identity())
    refused = lambda: builder(folder, tmp_path, labels="all.tif").data
    assert_one_clear_line(refused, path, "a folder of labels for several images", "no place of the labels")
    write_raster(path, values()[:16, :16])
    for image in (folder / "images").iterdir():
        part = striped_cube(SIZE, SIZE)[:, :16, :16]
        write_image(image, part, crs=None, transform=Affine.identity())
    assert_one_clear_line(refused, path, "all to say where they lie", "no place of tile_0_0")
    savemat(folder / "all.mat", {"a": values()[:16, :16], "b": values()[:16, :16]})
    arrays = builder(folder, tmp_path, labels="all.mat", label_variable="a")
    assert_one_clear_line(lambda: arrays.data, "all.mat", "a folder of labels for several images")
    write_tiles(folder)
    write_raster(path, values(), transform=shifted(1000, 1000))
    assert_one_clear_line(refused, path, "at least 2 classes", "got none")


@pytest.mark.parametrize("name", ["map.tif", "map.img", "map.hdr"])
def test_a_map_that_lies_among_the_images_is_none_of_them(tmp_path: Path, name: str):
    folder = tmp_path / "files"
    write_image(folder / "scene.tif", striped_cube(SIZE, SIZE))
    fine = values().repeat(3, axis=0).repeat(3, axis=1)
    grid = TRANSFORM @ Affine.scale(1 / 3)
    if name == "map.tif":
        write_raster(folder / name, fine, transform=grid)
    else:
        write_raster(folder / "map.img", fine, transform=grid, driver="ENVI")
    (scene,) = builder(folder, tmp_path, images=".", labels=name).data.scenes
    np.testing.assert_array_equal(scene.labels, classes())


def test_another_name_for_the_same_crs_is_accepted(tmp_path: Path):
    folder = tmp_path / "files"
    write_image(folder / "images" / "scene.tif", striped_cube(SIZE, SIZE), crs="EPSG:32633")
    write_raster(folder / "labels" / "scene.tif", values(), crs="EPSG:25833")
    assert builder(folder, tmp_path).data.scenes


def test_unknown_label_values_are_refused(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    count = int((values() == 3).sum())
    two_names = builder(folder, tmp_path, class_names=["one", "two"])
    assert_one_clear_line(lambda: two_names.data, "scene.tif", "among 0, 1, 2,", f"got 3 in {count} pixels")
    write_raster(folder / "labels" / "scene.tif", values() / 2)
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "whole numbers", ".5")


def test_fewer_than_two_classes_are_refused(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    write_raster(folder / "labels" / "scene.tif", np.minimum(values(), 1))
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "at least 2 classes", "only class 1")


def test_images_with_other_bands_are_refused(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    for name, centers, bands in (("other", (451.5, 550, 650, 1650), 4), ("short", CENTERS, 3)):
        image = write_raster(
            folder / "images" / f"z{name}.tif",
            striped_cube(SIZE, SIZE, bands),
            band_tags=lambda band, own=centers: {"wavelength": str(own[band])},
        )
        write_raster(folder / "labels" / f"z{name}.tif", values())
        word = "450 nm in band 0" if name == "other" else "expected 4 bands"
        assert_one_clear_line(lambda: builder(folder, tmp_path).data, f"z{name}", word)
        image.unlink()


def test_damaged_files_are_refused(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    image = folder / "images" / "scene.tif"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, image)
    (tmp_path / "damaged.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    assert_one_clear_line(lambda: read_cube(tmp_path / "damaged.mat"), "damaged.mat")
    (tmp_path / "lonely.hdr").write_text("ENVI\n")
    assert_one_clear_line(lambda: read_cube(tmp_path / "lonely.hdr"), "lonely.hdr", "lonely.img")
    empty = write_image(tmp_path / "empty.tif", np.full((4, 8, 8), -32768, dtype=np.int16))
    assert_one_clear_line(lambda: read_cube(empty), "nodata in all 64 pixels")


def test_vector_classes_that_mean_none_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_scene(tmp_path / "files")
    with rasterio.open(folder / "images" / "scene.tif") as dataset:
        transform = dataset.transform
    lines = ["x,y,cover"]
    for number, cover in enumerate([0, 255, -9999, 1, 2] * 40):
        x, y = transform @ (number % 48 + 0.5, 10 * (number // 48) + 0.5)
        lines.append(f"{x},{y},{cover}")
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    settings = {"labels": "points.csv", "class_column": "cover"}
    data = builder(folder, tmp_path / "cache", **settings).data
    assert data.class_names == ("1", "2") and set(np.unique(data.scenes[0].labels)) == {0, 1, UNLABELLED}
    assert "read as unlabelled: -9999, 0, 255" in caplog.text
    data = builder(folder, tmp_path / "other", **settings, unlabelled=(2,)).data
    assert data.class_names == ("0", "1")


def test_an_envi_classification_names_its_classes(tmp_path: Path):
    folder = write_scene(tmp_path / "files")
    labels = folder / "labels" / "scene.tif"
    with rasterio.open(labels) as dataset:
        numbers, profile = dataset.read(), dataset.profile
    labels.unlink()
    envi = {name: profile[name] for name in ("count", "height", "width", "dtype", "crs", "transform")}
    with rasterio.open(folder / "labels" / "scene.img", "w", driver="ENVI", **envi) as dataset:
        dataset.write(numbers)
    names = ["Unclassified", *(f"kind {value}" for value in range(1, int(numbers.max()) + 1))]
    with (folder / "labels" / "scene.hdr").open("a") as header:
        header.write(f"classes = {len(names)}\nclass names = {{{', '.join(names)}}}\n")
    for name in ("labels", "labels/scene.hdr", "labels/scene.img"):
        assert builder(folder, tmp_path / name.replace("/", "_"), labels=name).data.class_names == tuple(names[1:])


@pytest.mark.parametrize("name", ["points.xlsx", "points.kml"])
def test_tables_and_vector_files_that_are_not_read_say_what_to_do(tmp_path: Path, name: str):
    folder = write_scene(tmp_path / "files")
    (folder / name).write_bytes(b"PK\x03\x04")
    assert_one_clear_line(lambda: builder(folder, tmp_path / "cache", labels=name).data, name, "CSV", "GeoPackage")


def test_pixels_with_nan_in_a_band_lose_their_label_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_scene(tmp_path / "files")
    image = striped_cube(SIZE, SIZE).astype(np.float32)
    image[1, 3, 4:7] = np.nan
    write_image(folder / "images" / "scene.tif", image)
    (scene,) = builder(folder, tmp_path).data.scenes
    assert (scene.labels[3, 4:7] == 255).all() and not scene.valid[3, 4:7].any() and scene.valid.sum() == 48 * 48 - 3
    assert "labelled pixels lack data" in caplog.text


@pytest.mark.parametrize(
    ("text", "word"), [("4500\n5500\n", "4500 to 5500"), ("a\n", "got none"), ("", "got none"), ("450\nx\n", "line 2")]
)
def test_bad_wavelengths_are_refused(tmp_path: Path, text: str, word: str):
    path = tmp_path / "bands.txt"
    path.write_text(text)
    assert_one_clear_line(lambda: read_wavelength_file(path), path, word)


def test_wavelengths_have_to_fit(tmp_path: Path):
    path = write_raster(tmp_path / "scene.tif", striped_cube(8, 8))
    assert_one_clear_line(lambda: read_cube(path, wavelengths=[400, 500]), "4 bands", "got 2")
    assert_one_clear_line(lambda: read_cube(path, wavelengths=[400, 500, 500, 600]), "500 nm more than once")
    (tmp_path / "wavelengths.txt").write_text("650 10\n550 10\n450 10\n850 20\n")
    np.testing.assert_array_equal(read_cube(path).wavelengths, [450, 550, 650, 850])
    np.testing.assert_array_equal(read_cube(path).image[0], striped_cube(8, 8)[2])


@pytest.mark.parametrize(
    ("split", "word"),
    [
        ("random", "got random"),
        ({"training": ["scene"]}, "got training"),
        ({"train": ["scene"], "test": ["scene"]}, "2304 pixels of scene in both train and test"),
        ({"train": ["east"]}, "got east"),
        ({"train": [(0, 10)]}, "first row"),
        ({"train": [(0, 48, 0, 30)], "test": [(0, 48, 29, 48)]}, "48 pixels of scene in both"),
    ],
)
def test_bad_splits_are_refused(tmp_path: Path, split: Any, word: str):
    folder = write_scene(tmp_path / "files")
    assert_one_clear_line(lambda: builder(folder, tmp_path, split=split).data, word)


# Real tiles


@pytest.mark.skipif(not POTSDAM.is_dir(), reason="the shared Potsdam tiles are not here")
def test_potsdam(tmp_path: Path):
    names = ["roof", "pavement", "low vegetation", "tree", "soil", "water"]
    split = {"train": [(0, 64, 0, 96)], "test": [(64, 128, 96, 160)]}
    settings = {"class_names": names, "split": split, "window_size": 16, "tile_size": 32}
    scene_builder = builder(POTSDAM, tmp_path, **settings)
    data = scene_builder.data
    assert data.class_counts("train").tolist() == [113, 295, 1226, 806, 45, 0]
    assert data.class_counts("test").tolist() == [251, 430, 140, 194, 38, 36]
    (scene,) = data.scenes
    assert scene.shape == (128, 160) and scene.transform == Affine(30, 0, 364095, 0, -30, 5809965)
    with rasterio.open(POTSDAM / "images" / "tile_160_96.tif") as dataset:
        (order,) = [np.argsort([float(dataset.tags(band)["wavelength"]) for band in dataset.indexes])]
        np.testing.assert_array_equal(scene.cube[:, 96:, 96:128], dataset.read()[order].astype(np.int16))
    assert data.valid_bands.sum() == 218
    assert_builder_holds_its_promises(scene_builder, window_size=16)
