"""Tiles as plain tensors in safetensors files, and windows cut from them on the device that trains.

A file holds `tiles`, int16 (tiles, bands, rows, columns) of stored numbers, and states its band centres, scale and
nodata value in its metadata. `export_tiles.py` makes such files from products, GeoTIFF tiles and corpora.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modeling_hsst import HSSTImageProcessor

TENSOR_NAME = "tiles"


@dataclass(eq=False)
class TileTensors:
    """Tiles of one size with the same bands.

    Attributes:
        tiles: stored numbers, int16 (tiles, bands, rows, columns).
        wavelengths: band centres in nm.
        scale: stored number of a reflectance of 1.
        nodata: stored number of a pixel without data.
        name: where they come from.
        weight: share of the windows that come from here, among all such tensors.
    """

    tiles: torch.Tensor
    wavelengths: list[float]
    scale: float
    nodata: int
    name: str
    weight: float = 1.0

    @classmethod
    def read(cls, path: str | Path, weight: float = 1.0) -> TileTensors:
        """Reads a file of tiles.

        Raises:
            ValueError: it is not one; the message names what is missing.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                missing = [name for name in ("wavelengths", "scale", "nodata") if name not in metadata]
                if TENSOR_NAME not in file.keys() or missing:
                    raise ValueError(
                        f"{path}: expected a tensor `{TENSOR_NAME}` with wavelengths, scale and nodata in its "
                        f"metadata, as export_tiles.py writes them, got {', '.join(file.keys()) or 'no tensor'}"
                    )
                tiles = file.get_tensor(TENSOR_NAME)
        except (SafetensorError, FileNotFoundError, IsADirectoryError) as error:
            raise ValueError(f"{path}: expected a safetensors file of tiles: {error}") from None
        wavelengths = json.loads(metadata["wavelengths"])
        if tiles.dtype != torch.int16 or tiles.ndim != 4 or tiles.shape[1] != len(wavelengths) or not len(tiles):
            raise ValueError(
                f"{path}: expected int16 tiles (tiles, {len(wavelengths)} bands, rows, columns), got {tiles.dtype} "
                f"{tuple(tiles.shape)}"
            )
        return cls(tiles, wavelengths, float(metadata["scale"]), int(metadata["nodata"]), path.name, weight)

    def save(self, path: str | Path) -> None:
        """Writes a file of tiles, under a temporary name first."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        metadata = {
            "wavelengths": json.dumps(self.wavelengths),
            "scale": repr(self.scale),
            "nodata": repr(self.nodata),
        }
        try:
            save_file({TENSOR_NAME: self.tiles.contiguous()}, partial, metadata)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Checksum of the stored numbers."""
        return hashlib.sha256(self.tiles.cpu().contiguous().numpy().data).hexdigest()

    def with_bands(self, wavelengths: Sequence[float]) -> TileTensors:
        """The same tiles with the bands of a model only, found by wavelength.

        Raises:
            ValueError: a band is missing.
        """
        try:
            bands = HSSTImageProcessor(wavelengths=list(wavelengths)).match_wavelengths(self.wavelengths)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        tiles = self.tiles if bands == list(range(len(self.wavelengths))) else self.tiles[:, bands]
        return TileTensors(tiles, list(wavelengths), self.scale, self.nodata, self.name, self.weight)

    def to(self, device: torch.device | str) -> TileTensors:
        return TileTensors(self.tiles.to(device), self.wavelengths, self.scale, self.nodata, self.name, self.weight)

    @property
    def is_whole(self) -> bool:
        """Whether every pixel of every tile holds data."""
        return not any(bool((part == self.nodata).any()) for part in self.tiles.split(16))

    def chunks(self, size: int = 16) -> Iterator[torch.Tensor]:
        """Tiles in pieces, as reflectance, float32 (tiles, bands, pixels), NaN without data."""
        for part in self.tiles.split(size):
            reflectance = part.flatten(2).float() / self.scale
            empty = (part.flatten(2) == self.nodata).any(dim=1, keepdim=True)
            yield reflectance.masked_fill(empty, torch.nan)


def read_weighted(text: str, argument: str) -> TileTensors:
    """Tiles of `FILE` or `FILE=WEIGHT`.

    Raises:
        ValueError: the weight is none, or the file; the message names the argument.
    """
    name, separator, weight = text.partition("=")
    try:
        value = float(weight) if separator else 1.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{argument}: expected FILE or FILE=WEIGHT with a weight above 0, got {text}")
    return TileTensors.read(name, value)


def band_statistics(sources: Sequence[TileTensors], clip_range: Sequence[float]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the reflectance of each band over pixels with data, by the sources' weights.

    Raises:
        ValueError: a source has no pixel with data.
    """
    total_weight = sum(source.weight for source in sources)
    first = torch.zeros(len(sources[0].wavelengths), dtype=torch.float64)
    second = torch.zeros_like(first)
    for source in sources:
        sums = torch.zeros(3, len(first), dtype=torch.float64)
        for reflectance in source.chunks():
            values = reflectance.clamp(*clip_range).double().transpose(1, 2).flatten(0, 1)
            values = values[~values.isnan().any(dim=1)]
            sums[:2] += torch.stack([values.sum(0), values.square().sum(0)]).cpu()
            sums[2] += len(values)
        if sums[2, 0] == 0:
            raise ValueError(f"{source.name}: expected pixels with data in all bands of the model, got none")
        share = source.weight / total_weight
        first += share * sums[0] / sums[2]
        second += share * sums[1] / sums[2]
    deviation = (second - first.square()).clamp(min=0).sqrt().clamp(min=1e-4)
    return first.tolist(), deviation.tolist()


def turned(windows: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Square windows (batch, bands, rows, columns), each turned or flipped in one of eight ways (batch,)."""
    turns = turns.view(-1, 1, 1, 1)
    windows = torch.where(turns % 2 == 1, windows.flip(-1), windows)
    windows = torch.where(turns // 2 % 2 == 1, windows.flip(-2), windows)
    return torch.where(turns // 4 == 1, windows.transpose(-1, -2), windows)


@dataclass(frozen=True)
class WindowPlaces:
    """Where windows of one source lie, int64 (windows,) on the CPU each: tile, first row and column, and turn."""

    tile: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    turns: torch.Tensor


def draw_places(
    sources: Sequence[TileTensors], count: int, side: int, generator: torch.Generator
) -> list[WindowPlaces]:
    """
    Random places of windows, turned and flipped at random, for each source.

    Args:
        sources: where windows come from, as often as their weights say.
        count: number of windows.
        side: of a window in pixels.
        generator: on the CPU, so that every device draws the same windows.
    """
    weights = torch.tensor([source.weight for source in sources], dtype=torch.float64)
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    numbers = torch.bincount(chosen, minlength=len(sources)).tolist()
    places = []
    for source, number in zip(sources, numbers, strict=True):
        num_tiles, _, rows, columns = source.tiles.shape
        highest = (num_tiles, rows - side + 1, columns - side + 1, 8)
        places.append(WindowPlaces(*(torch.randint(end, (number,), generator=generator) for end in highest)))
    return places


def cut_windows(sources: Sequence[TileTensors], places: Sequence[WindowPlaces], side: int) -> torch.Tensor:
    """The windows of places in their sources, int16 (count, bands, side, side), on the tiles' device."""
    parts = []
    for source, place in zip(sources, places, strict=True):
        cut = slice_windows if source.tiles.device.type == "cpu" else gather_windows
        windows = cut(source.tiles, place.tile, place.row, place.column, side)
        parts.append(turned(windows, place.turns.to(windows.device, non_blocking=True)))
    return torch.cat(parts)


def slice_windows(
    tiles: torch.Tensor, tile: torch.Tensor, row: torch.Tensor, column: torch.Tensor, side: int
) -> torch.Tensor:
    """Windows (count, bands, side, side) of tiles by number and first pixel (count,), one by one, for processors."""
    places = zip(tile.tolist(), row.tolist(), column.tolist(), strict=True)
    cut = [tiles[t, :, r : r + side, c : c + side] for t, r, c in places]
    return torch.stack(cut) if cut else tiles[:0, :, :side, :side]


def gather_windows(
    tiles: torch.Tensor, tile: torch.Tensor, row: torch.Tensor, column: torch.Tensor, side: int
) -> torch.Tensor:
    """The same at once, for GPUs; places are on the CPU."""
    along = torch.arange(side)
    places = (tile[:, None, None], row[:, None, None] + along[:, None], column[:, None, None] + along)
    index = tuple(place.to(tiles.device, non_blocking=True) for place in places)
    return tiles.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)
