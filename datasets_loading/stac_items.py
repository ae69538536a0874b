"""STAC items of the archive that serves EnMAP: bands, gains and grid of a scene, and where its files are.

Follows items of the collection ENMAP_HSI_L2A at https://geoservice.dlr.de/eoc/ogc/stac/v1. They keep to STAC 1.0 with
the extensions eo and proj, but for wavelengths, which are nm, and numbers that are strings. Files are served to
registered users: a login stands in `~/.netrc`, or in a cookie (`GDAL_HTTP_COOKIE`), and is never part of an address.
"""

from __future__ import annotations

import json
import netrc
import os
import re
import time
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

import numpy as np

from datasets_loading.raster_file import fail, leads_outside, to_count, to_elevation, to_time
from datasets_loading.wavelengths import to_nanometers

LARGEST_ITEM = 5_000_000
"""Bytes that an item may have; those of the archive have about 65,000."""

TIMEOUT_SECONDS = 30
RETRY_PAUSES = (1, 2, 4)
"""Seconds before a server that is busy (5xx) or silent is asked again."""

REMOTE_SETTINGS = {
    # A busy archive is asked again, and a silent one is not waited for
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": str(TIMEOUT_SECONDS),
    "GDAL_HTTP_LOW_SPEED_TIME": str(TIMEOUT_SECONDS),
}

OPENING_SETTINGS = {
    # Nothing else in the folder of a COG is asked for. In the whole process this would hide headers and masks of files
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}


@dataclass(eq=False)
class Item:
    """A STAC item.

    Attributes:
        source: path or address of its JSON.
        content: the JSON.
    """

    source: str
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["id"])

    @property
    def level(self) -> str:
        return str(self.content["properties"].get("processing:level") or "").upper()

    @property
    def acquisition_time(self) -> datetime:
        """Start of the acquisition, in UTC."""
        properties = self.content["properties"]
        text = str(properties.get("start_datetime") or properties.get("datetime"))
        return to_time(text, "a time in properties/datetime", self.source)

    @property
    def sun_elevation(self) -> float:
        """Degrees above the horizon."""
        properties = self.content["properties"]
        stated = [properties.get(name) for name in ("view:sun_elevation", "enmap:sunElevationAngle")]
        text = str(stated[0] if stated[0] is not None else stated[1])
        return to_elevation(text, "degrees in view:sun_elevation", self.source)

    def number(self, name: str) -> float | None:
        """A property that is a number, which the archive may write as a string; None where it states none."""
        try:
            number = float(self.content["properties"].get(name))
        except (TypeError, ValueError):
            return None
        return number if np.isfinite(number) else None

    def location(self, asset: str) -> str:
        """Where the raster library finds an asset: a file of its name beside the item, or its address; "" for none."""
        content = self.content["assets"].get(asset)
        address = content.get("href") if isinstance(content, dict) else None
        if not address or not isinstance(address, str):
            return ""
        if is_address(self.source):
            return f"/vsicurl/{urljoin(self.source, address)}"
        beside = Path(self.source).parent / address.split("?")[0].rsplit("/", 1)[-1]
        if beside.is_file():
            return str(beside)
        if is_address(address):
            return f"/vsicurl/{address}"
        if leads_outside(address):
            fail(self.source, f"an address, or a file in the folder of the item, as {asset}", repr(address))
        return str(Path(self.source).parent / address)

    def image(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
        """
        Of the spectral image, in the order of the file: centers and widths of the bands in nm, gain and offset
        (reflectance = stored number * gain + offset), float64 (bands,) each; and its (height, width) in pixels.

        Raises:
            ProductError: the item lacks it, or states something else than numbers.
        """
        content = self.content["assets"].get("image")
        if not isinstance(content, dict):
            fail(self.source, "an asset 'image'", f"{', '.join(self.content['assets']) or 'none'}")
        bands, shape = content.get("eo:bands") or [], content.get("proj:shape")
        are_bands = isinstance(bands, list) and bands and all(isinstance(band, dict) for band in bands)
        if not are_bands or not isinstance(shape, list) or len(shape) != 2:
            fail(self.source, "eo:bands and proj:shape of the asset 'image'", "an item without")

        def numbers(key: str, default: float | None = None) -> np.ndarray:
            return np.array([self._number(band.get(key, default), f"a {key} in each band") for band in bands])

        centers, widths, _ = to_nanometers(
            numbers("center_wavelength"), numbers("full_width_half_max"), "nm", self.source
        )
        gain, offset = numbers("enmap:gain_of_band", 1e-4), numbers("enmap:offset_of_band", 0.0)
        if widths is None:
            fail(self.source, "a positive full_width_half_max in each band", "0 in all")
        height, width = (to_count(side, "whole numbers in proj:shape", self.source) for side in shape)
        return centers, widths, gain, offset, (height, width)

    def _number(self, value: Any, expected: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            fail(self.source, expected, repr(value))
        return number


def is_address(path: str | Path) -> bool:
    """Whether a path is an address of the web; as a Path it has lost one of its slashes."""
    return re.match(r"https?:/", str(path)) is not None


def is_stac_item(path: str | Path) -> bool:
    """Whether a path or address is that of a STAC item, by its name."""
    return is_address(path) or Path(path).suffix.lower() == ".json"


def read_item(path: str | Path) -> Item:
    """Reads an item from a file or an address.

    Raises:
        ProductError: there is nothing, the answer is a web page, or it is no STAC item.
    """
    source = re.sub(r"^(https?:)/+", r"\1//", str(path)) if is_address(path) else str(path)
    try:
        if is_address(source):
            content = _fetch(source)
        else:
            with Path(source).open("rb") as file:
                content = file.read(LARGEST_ITEM + 1)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", "") or error
        fail(source, "a STAC item", f"none ({reason})")
    if len(content) > LARGEST_ITEM:
        fail(source, f"a STAC item of at most {LARGEST_ITEM:,} bytes", "more")
    if looks_like_a_page(content):
        fail(source, "a STAC item", "a web page: the login was refused, or the address is that of a page for people")
    try:
        item = json.loads(content)
    except (ValueError, RecursionError) as error:
        fail(source, "a STAC item (JSON)", f"something else ({error})")
    return to_item(source, item)


def to_item(source: str, content: Any) -> Item:
    """The item that JSON is, read from `source`; raises ProductError where it is none."""
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("assets"), dict)
        or not isinstance(content.get("properties"), dict)
        or "id" not in content
    ):
        fail(source, "a STAC item with id, properties and assets", "JSON of another kind")
    return Item(source, content)


def _fetch(address: str) -> bytes:
    """The answer of a server, which is asked again where it is busy or silent."""
    request = urllib.request.Request(address, headers={"Accept": "application/geo+json, application/json"})
    for pause in (*RETRY_PAUSES, None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return answer.read(LARGEST_ITEM + 1)
        except (HTTPError, URLError, TimeoutError) as error:
            is_silent = isinstance(getattr(error, "reason", error), TimeoutError)
            if pause is None or not (is_silent or getattr(error, "code", 0) >= 500):
                raise
            time.sleep(pause)
    raise AssertionError


def looks_like_a_page(content: bytes) -> bool:
    """Whether bytes begin like a web page, as the answer to a refused login does, with status 200."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower().startswith((b"<html", b"<!doctype", b"<head"))


def prepare_remote(location: str) -> None:
    """Settings under which the raster library reads an address; what the environment sets already stays."""
    if location.startswith("/vsicurl/"):
        for name, value in REMOTE_SETTINGS.items():
            os.environ.setdefault(name, value)


def opening_settings(location: str) -> dict[str, str]:
    """Settings that hold while the raster library opens an address; what the environment sets already stays."""
    if not location.startswith("/vsicurl/"):
        return {}
    return {name: value for name, value in OPENING_SETTINGS.items() if name not in os.environ}


def explain_failure(location: str) -> str | None:
    """Why an address gave no raster, where its answer shows it; None where it does not."""
    if not location.startswith("/vsicurl/"):
        return None
    address = location.removeprefix("/vsicurl/")
    try:
        request = urllib.request.Request(address)
        for name, value in login_headers(address).items():
            request.add_unredirected_header(name, value)  # another host is sent no login
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read(512)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        hint = ": a login for its host may be missing in ~/.netrc" if getattr(error, "code", 0) in (401, 403) else ""
        return f"no answer ({reason}){hint}"
    if looks_like_a_page(content):
        return (
            "a web page: the login was refused, or none was given; put user and password for the host into ~/.netrc, "
            "or a cookie into GDAL_HTTP_COOKIE"
        )
    return None


def login_headers(address: str) -> dict[str, str]:
    """Headers with what the raster library would send: the cookie of the environment, or the login of `~/.netrc`."""
    headers = {}
    if os.environ.get("GDAL_HTTP_COOKIE"):
        headers["Cookie"] = os.environ["GDAL_HTTP_COOKIE"]
    try:
        login = netrc.netrc(os.environ.get("GDAL_HTTP_NETRC_FILE")).authenticators(urlsplit(address).hostname or "")
    except (OSError, netrc.NetrcParseError):
        login = None
    if login is not None:
        headers["Authorization"] = "Basic " + b64encode(f"{login[0]}:{login[2]}".encode()).decode()
    return headers
