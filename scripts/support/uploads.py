"""Files of strangers as scenes: laid side by side, and refused in one line before anything is computed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from datasets_loading.raster_file import ProductError, fail
from datasets_loading.scenes import Scene, find_scenes, open_scene
from datasets_loading.stac_items import read_item
from datasets_loading.wavelengths import SIDECAR_NAME

LARGEST_UPLOAD = 2 * 1024**3
"""Bytes of the files of one scene together."""

NO_OPTIONS = (
    "This page takes spectral images that state their own wavelengths and scale: an ENVI header as 'wavelength' and "
    "'reflectance scale factor', a GeoTIFF as tags 'wavelength' and scales of its bands. `hsst predict` can be told."
)

LARGEST_SIDE = 2048
"""Pixels along the longer side of a scene."""

ARCHIVE = "download.geoservice.dlr.de"
"""The one host that items may refer to: a server must not fetch whatever strangers name."""


def gather_upload(files: Sequence[str | Path] | None, folder: Path) -> Path:
    """
    Lays the files of a visitor side by side in an empty folder, and gives the scene among them. ProductError where
    there are none, they are too large together, or they are several scenes.
    """
    paths = [Path(file) for file in files or ()]
    if not paths:
        fail("upload", "a GeoTIFF, an ENVI image with its header, or a STAC item", "no file")
    size = sum(path.stat().st_size for path in paths)
    if size > LARGEST_UPLOAD:
        fail("upload", f"at most {LARGEST_UPLOAD / 1024**3:g} GB", f"{size / 1024**3:.1f} GB")
    for path in paths:
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copyfile(path, folder / path.name)
    found = [path for path in map(Path, find_scenes([folder / "*"])) if path.name != SIDECAR_NAME]
    items = [path for path in found if path.suffix.lower() == ".json"]  # whose files may lie beside
    scenes = items or found
    if len(scenes) != 1:
        fail("upload", "the files of one scene", ", ".join(path.name for path in scenes) or "none")
    if items:
        check_addresses(items[0])
    return scenes[0]


def check_addresses(path: Path) -> None:
    """Raises ProductError where a STAC item refers to files that lie neither beside it nor in the archive."""
    item = read_item(path)
    for name in item.content["assets"]:
        address = item.location(name)
        parts = urlsplit(address.removeprefix("/vsicurl/"))
        if address.startswith("/vsicurl/") and (parts.scheme, parts.hostname) != ("https", ARCHIVE):
            fail(
                path, f"files beside the item, or at https://{ARCHIVE}", f"{name} at {parts.scheme}://{parts.hostname}"
            )


def open_checked(path: str | Path) -> Scene:
    """
    Opens a scene that is small enough for the page. ProductError where the file is no scene, damaged or without
    wavelengths, or larger than the page computes.
    """
    scene = open_scene(path)
    try:
        height, width = scene.shape
        if max(scene.shape) > LARGEST_SIDE:
            limit = f"at most {LARGEST_SIDE} x {LARGEST_SIDE} pixels on this page"
            fail(scene.name, limit, f"{height} x {width}; map it with `hsst predict`")
        if scene.wavelengths is None:
            fail(scene.name, f"wavelengths, in the file, its header or {SIDECAR_NAME} beside it", "none")
        return scene
    except ProductError:
        scene.close()
        raise


@contextmanager
def without_folder(folder: Path) -> Iterator[None]:
    """
    Errors about files of a visitor name them without the folder that they were laid in, and in place of options of the
    command line, which the page has not, what the files can state.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error).replace(f"{folder}/", "")
        # The parts of the line that name an option
        without_options = re.sub(r" ?\([^()]*--[a-z][^()]*\)|[:;,] (?!expected|got)[^:;,]*--[a-z][^:;,]*", "", message)
        raise ProductError(message if without_options == message else f"{without_options}. {NO_OPTIONS}") from None
