"""
Corpora of tiles as Hugging Face datasets.

A corpus has a column `image`, int16 (bands, height, width) of stored numbers (reflectance x 10000, nodata -32768), a
column `wavelengths` with the band centres in nm, ascending, and optionally `name`.
"""

import numpy as np
from datasets import DatasetDict, load_dataset, load_from_disk

from datasets_loading.sensors import ENMAP
from datasets_loading.tiles import TileSet


def read_corpus(name: str, split: str = "train") -> TileSet:
    """
    Tiles of a corpus, in memory.

    Args:
        name: dataset of the Hub, a folder of Parquet shards, or a folder written by `Dataset.save_to_disk`.
        split: split to read.

    Raises:
        ValueError: the data set cannot be found, lacks a column, or its tiles differ in their bands.
    """
    try:
        dataset = load_dataset(name, split=split)
    except ValueError:  # load_dataset's way of saying that this is a folder of save_to_disk
        saved = load_from_disk(name)
        dataset = saved[split] if isinstance(saved, DatasetDict) else saved
    missing = {"image", "wavelengths"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"{name}: expected columns `image` and `wavelengths`, got {', '.join(dataset.column_names)}"
        )
    dataset = dataset.with_format("numpy", dtype=np.int16, columns=["image"], output_all_columns=True)
    tiles: list[np.ndarray] = []
    names: list[str] = []
    wavelengths = np.asarray(dataset[0]["wavelengths"], dtype=np.float64)
    for number, row in enumerate(dataset):
        given = np.asarray(row["wavelengths"], dtype=np.float64)
        if given.shape != wavelengths.shape or np.abs(given - wavelengths).max() > 1.0:
            raise ValueError(f"{name}: expected the {len(wavelengths)} bands of the first tile, tile {number} has others")
        tiles.append(row["image"])
        names.append(str(row.get("name", number)))
    valid_bands = np.all([(tile != ENMAP.nodata).any(axis=(1, 2)) for tile in tiles], axis=0)
    return TileSet(tiles=tiles, wavelengths=wavelengths, fwhm=None, names=names, valid_bands=valid_bands)
