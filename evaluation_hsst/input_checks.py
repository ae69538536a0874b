"""What is wrong with a user's files, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import rasterio

from datasets_loading.enmap_product import ProductError, raster_errors
from datasets_loading.labelled_data import envi_data


def check_finite(paths: Iterable[Path]) -> None:
    """Checks that images hold numbers, or the nodata value that they declare.

    Readers take NaN for nodata, and a pixel that lacks one band is lost with its label: where a file did not declare
    it so, that is more likely a mistake. Bands that hold nothing else are ignored, as readers leave them out.

    Args:
        paths: images; those that are neither GeoTIFF nor ENVI (`.tif`, `.tiff`, `.hdr`) are left out.

    Raises:
        ProductError: a band holds NaN or infinity beside numbers; the message says in how many pixels.
    """
    for path in paths:
        if path.suffix.lower() not in (".tif", ".tiff", ".hdr"):
            continue
        data_path = envi_data(path) if path.suffix.lower() == ".hdr" else path
        with raster_errors(str(data_path)), rasterio.open(data_path) as dataset:
            if np.dtype(dataset.dtypes[0]).kind != "f" or (dataset.nodata is not None and np.isnan(dataset.nodata)):
                continue
            bad = np.zeros(dataset.shape, dtype=bool)
            for band in range(1, dataset.count + 1):
                infinite = ~np.isfinite(dataset.read(band))
                bad |= infinite & ~infinite.all()
        if bad.any():
            raise ProductError(
                f"{path}: expected numbers or the nodata value that the file declares, got NaN or infinity in "
                f"{int(bad.sum())} pixels: declare it (gdal_edit.py -a_nodata nan)"
            )
