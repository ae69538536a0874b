"""Bad corpora: damaged, of another program, and of somebody who wants more than to be read; and bad sources of one."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from small_products import NAME, edit_metadata, small_cube, write_small_product

from datasets_loading.corpus import SCHEMA, SUMMARY_KEY, CutSettings, prepare_corpus, read_corpus
from datasets_loading.files import fingerprint
from faults.harness import Fault, good_folder
from faults.readers import damages
from hsst import prepare_enmap

Change = Callable[[Path], object]

OTHER = NAME.replace("_003_", "_004_")
SIZE = 16
FILES = ("settings.json", "band_statistics.json", f"data/{NAME}.parquet")


@cache
def good() -> Path:
    """A folder with two products, and a corpus of them, made once."""
    folder = good_folder()
    quality = {"cloud": np.zeros((2 * SIZE, 3 * SIZE), dtype=np.uint8)}
    for number, name in enumerate((NAME, OTHER)):
        cube = small_cube(number)[:, : 2 * SIZE, 50 : 50 + 3 * SIZE]
        write_small_product(folder / "products", name, cube=cube, quality=quality)
    prepare_corpus(folder / "products", folder / "corpus", CutSettings(SIZE), progress=False)
    return folder


def copied(change: Change, part: str = "corpus") -> Change:
    """The good products and their corpus, or the products only, one of which is changed."""

    def make(folder: Path) -> None:
        shutil.copytree(good() / "products", folder / "products")
        if part == "corpus":
            shutil.copytree(good() / "corpus", folder / "corpus")
        change(folder / part)

    return make


def understand(folder: Path) -> str:
    """All tiles and statistics of a corpus, as a digest."""
    tiles = read_corpus(folder / "corpus", streaming=True)
    moments = tiles.moments
    assert moments is not None
    places = [values for values in (tiles.wavelengths, tiles.fwhm, moments.mean, moments.std) if values is not None]
    return fingerprint(*tiles, *places, "".join(tiles.names))


@cache
def good_digest() -> str:
    return understand(good())


def prepare(folder: Path, output: str = "corpus") -> str:
    """Prepares the products once more, as the program does, and reads the corpus."""
    sys.argv = ["prepare_enmap.py", "--data_dir", "products", "--output_dir", output, "--tile_size", str(SIZE)]
    prepare_enmap.main()
    (folder / output).rename(folder / "corpus") if output != "corpus" else None
    return understand(folder)


def prepare_rest(folder: Path) -> str:
    """Prepares products one of which is bad, and counts the tiles of the other."""
    sys.argv = ["prepare_enmap.py", "--data_dir", "products", "--output_dir", "out/corpus", "--tile_size", str(SIZE)]
    prepare_enmap.main()
    return str(len(read_corpus(folder / "out" / "corpus", streaming=True)))


def in_json(name: str, key: str, value: object) -> Change:
    """An entry of a file of a corpus."""

    def change(corpus: Path) -> None:
        content = json.loads((corpus / name).read_text())
        content[key] = value
        (corpus / name).write_text(json.dumps(content))

    return change


def in_parquet(change: Callable[[dict[str, list], dict[str, object]], object]) -> Change:
    """The rows of a Parquet file as columns, and what it says of its source."""

    def apply(corpus: Path) -> None:
        path = corpus / FILES[-1]
        with pq.ParquetFile(path) as file:
            columns, summary = file.read().to_pydict(), json.loads(file.metadata.metadata[SUMMARY_KEY.encode()])
        change(columns, summary)
        schema = SCHEMA.with_metadata({SUMMARY_KEY: json.dumps(summary)})
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), path)

    return apply


def in_summary(key: str, value: object) -> Change:
    return in_parquet(lambda _, summary: summary.update({key: value}))


def in_row(key: str, value: object) -> Change:
    return in_parquet(lambda rows, _: rows[key].__setitem__(0, value))


def senseless() -> Iterator[tuple[str, Change]]:
    """What checksums would say nothing against."""
    numbers = {
        "num_tiles": (0, -1, 2.5, "2", None, 10**30),
        "scale": (0, -1, None, "a", float("inf")),
        "nodata": (0, None, "a", 1e9),
        "clip_range": ([1, 0], [0], None, ["a", "b"], [0, float("nan")]),
        "valid_bands": ([], [True], None, "a", ["yes"] * 12, [[True]] * 12),
    }
    for key, values in numbers.items():
        for value in values:
            yield f"{key} {value!r}", in_json("band_statistics.json", key, value)
    for key in ("wavelengths", "fwhm", "mean", "std"):
        lists = ([-1.0] * 12, [0.0] * 12, [1e400] * 12, [500.0], "a", [], [None] * 12, [["a"]] * 12)
        for value in lists[1 if key == "mean" else 0 :]:
            if not (key == "mean" and value == [0.0] * 12):
                yield f"{key} {str(value)[:20]}", in_json("band_statistics.json", key, value)
    for key in ("num_tiles", "num_pixels", "num_skipped"):
        for value in (-1, "a", None, 1.5):
            yield (
                f"source: {key} {value!r}",
                in_parquet(lambda _, summary, key=key, value=value: summary.update({key: value})),
            )
    for key in ("wavelengths", "fwhm", "valid_bands", "minimum", "statistics", "files", "errors"):
        for value in ([], "a", 5, [10**9] * 12, {"count": [1], "mean": [], "sum_of_squared_deviations": []}):
            if not (key in ("files", "errors") and value == []):
                yield f"source: {key} {str(value)[:20]}", in_summary(key, value)
    for key in ("height", "width"):
        for value in (-1, 0, 2**31 - 1, 17):
            yield (
                f"row: {key} {value}",
                in_parquet(lambda rows, _, key=key, value=value: rows[key].__setitem__(0, value)),
            )
    yield "row: an image of no bytes", in_parquet(lambda rows, _: rows["image"].__setitem__(0, b""))
    yield "row: no image", in_parquet(lambda rows, _: rows["image"].__setitem__(0, None))
    yield "row: no name", in_parquet(lambda rows, _: rows["name"].__setitem__(0, None))
    yield "row: no height", in_parquet(lambda rows, _: rows["height"].__setitem__(0, None))
    for name, text in (("brackets", "[" * 100_000), ("a list", "[]")):
        yield f"statistics: {name}", lambda corpus, text=text: (corpus / FILES[1]).write_text(text)


def settings() -> Iterator[tuple[str, Change]]:
    """What prepare_enmap.py reads of a corpus before it adds to it."""
    for key, values in {
        "num_bands": (0.5, "a", None, -1),
        "wavelengths": ("a", [1.0], [[1]] * 12, [-5.0] * 12, 5),
        "first_source": (5, None, []),
        "tile_size": (32, "a", None),
        "max_cloud": (0.5, "a"),
    }.items():
        for value in values:
            yield f"{key} {str(value)[:20]}", in_json("settings.json", key, value)
    yield "a list", lambda corpus: (corpus / "settings.json").write_text("[]")
    yield "of another program", lambda corpus: (corpus / "settings.json").write_text('{"editor.fontSize": 12}')
    yield "brackets", lambda corpus: (corpus / "settings.json").write_text("[" * 100_000)


def bad_sources() -> Iterator[tuple[str, Change]]:
    """Products that cannot be used beside one that can."""
    metadata = (
        ("a time zone", "<startTime>[^<]*", "<startTime>0001-01-01T00:00:00+23:59"),
        ("the name ..", "(<metadata>.*?<name>)[^<]*", r"\g<1>../../x"),
        ("no height", "<heightOfOrthoScene>[^<]*", "<heightOfOrthoScene>0"),
        ("much height", "<heightOfOrthoScene>[^<]*", "<heightOfOrthoScene>1000000000"),
        ("a gain", "<GainOfBand>[^<]*", "<GainOfBand>0"),
        ("a width", "<FWHMOfBand>[^<]*", "<FWHMOfBand>-1"),
        ("a sun", "(<sunElevationAngle>.*?<center[^>]*>)[^<]*", r"\g<1>400"),
        ("no end", "</[a-zA-Z_]*>\\s*$", ""),
    )
    for what, pattern, replacement in metadata:
        change = partial(edit_metadata, pattern=pattern, replacement=replacement)
        yield what, lambda products, change=change: change(products / OTHER)
    for what, layout in (("one strip", {"blockysize": 40_000}), ("one tile", {"tiled": True, "blockysize": 39_936})):
        yield f"a sparse image in {what}", partial(replace_by_sparse, layout=layout)
    for part in ("METADATA.XML", "SPECTRAL_IMAGE.TIF", "QL_QUALITY_CLOUD.TIF"):
        for damage, change, is_same in damages():
            if part.startswith("QL") and damage.startswith(("a folder", "a link")):
                continue  # a layer that is missing is taken as clear, with a warning
            if is_same and damage not in ("missing", "a link to nothing", "a byte less"):
                name = f"{OTHER}/{OTHER}-{part}"
                yield f"{part} {damage}", lambda products, change=change, name=name: change(products / name)


def replace_by_sparse(products: Path, layout: dict[str, object]) -> None:
    """An image that declares a thousand times what it holds, in place of a product."""
    shutil.rmtree(products / OTHER)
    size = {"count": 12, "height": 40_000, "width": 40_000, "dtype": "int16", "interleave": "pixel"}
    layout = {**layout, "blockxsize": 39_936} if "tiled" in layout else layout
    with rasterio.open(
        products / "sparse.tif", "w", driver="GTiff", SPARSE_OK="TRUE", BIGTIFF="YES", **size, **layout
    ):
        pass


def faults() -> Iterator[Fault]:
    """All of them."""
    for name in FILES:
        for damage, change, is_same in damages():
            make = copied(lambda corpus, change=change, name=name: change(corpus / name))
            if is_same:
                yield Fault(f"{name}: {damage}", "corpus, damaged", make, understand, good_digest(), "corpus")
    for what, change in senseless():
        # What a source says of itself is checked, and not used where the statistics of all are there
        yield Fault(what, "corpus, senseless", copied(change), understand, None, "corpus")
    for what, change in settings():
        yield Fault(what, "corpus, added to", copied(change), prepare, None, "corpus")
    for what, change in bad_sources():
        yield Fault(what, "a bad source of two", copied(change, "products"), prepare_rest, "6", "products")
