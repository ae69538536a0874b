"""One simulated product in every layout that its users have: portal, archive, other spectrometers, other software."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from spectrometer_files import DESIS_NAME, EMIT_NAME, PRISMA_NAME, write_desis, write_emit, write_prisma

from datasets_loading.enmap_product import EnMAPProduct

LAYOUTS = (
    "portal folder",
    "portal ZIP",
    "portal nested",
    "archive",
    "archive together",
    "PRISMA",
    "EMIT",
    "DESIS",
    "ENVI",
    "GeoTIFF",
)


def write_layout(layout: str, product: Path, folder: Path) -> Path:
    """
    Lays a product (a folder) out anew in a folder of its own.

    Args:
        layout: one of `LAYOUTS`.
        product: the folder of the product.
        folder: where to; made.

    Returns:
        What a user would open.
    """
    folder.mkdir(parents=True)
    name = product.name
    if layout == "portal folder":
        return Path(shutil.copytree(product, folder / name))
    if layout == "portal ZIP":
        path = folder / f"{name}.ZIP"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(product.iterdir()):
                archive.write(file, f"{name}/{file.name}")
        return path
    if layout == "portal nested":
        shutil.copytree(product, folder / "dims_op_oc_oc-en_700296116_1" / "ENMAP.HSI.L2A" / name)
        return folder / "dims_op_oc_oc-en_700296116_1"
    if layout.startswith("archive"):
        # Rasters become ..._COG.TIF, and the metadata has its ending twice
        for file in product.iterdir():
            if file.suffix == ".TIF":
                shutil.copy(file, folder / f"{file.stem}_COG.TIF")
            else:
                shutil.copy(file, folder / f"{file.name}.XML")
        return folder if layout == "archive" else folder / f"{name}-SPECTRAL_IMAGE_COG.TIF"
    with EnMAPProduct.open(product) as opened:
        image = opened.read(), opened.wavelengths, opened.fwhm, opened.transform, opened.crs.to_string()
    stored, wavelengths, fwhm, transform, crs = image
    if layout == "PRISMA":
        return write_prisma(folder / PRISMA_NAME, *image)
    if layout == "EMIT":
        return write_emit(folder / EMIT_NAME, *image)
    if layout == "DESIS":
        return write_desis(folder / DESIS_NAME, *image)
    profile = {"count": len(stored), "height": stored.shape[1], "width": stored.shape[2], "dtype": "int16"}
    profile |= {"crs": crs, "transform": transform, "nodata": -32768}
    path = folder / ("scene.img" if layout == "ENVI" else "scene.tif")
    with rasterio.open(path, "w", driver="ENVI" if layout == "ENVI" else "GTiff", **profile) as dataset:
        dataset.write(stored)
        if layout == "GeoTIFF":
            for number, (center, width) in enumerate(zip(wavelengths, fwhm, strict=True), start=1):
                dataset.update_tags(number, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=center / 1e3, FWHM_UM=width / 1e3)
    if layout == "ENVI":
        header = folder / "scene.hdr"
        lines = [
            "reflectance scale factor = 10000",
            "wavelength units = Micrometers",
            f"wavelength = {{{', '.join(map(repr, (np.asarray(wavelengths) / 1e3).tolist()))}}}",
            f"fwhm = {{{', '.join(map(repr, (np.asarray(fwhm) / 1e3).tolist()))}}}",
        ]
        header.write_text(header.read_text() + "\n".join(lines) + "\n")
        return header
    return path
