"""How fast a scene becomes a map, from its file to the finished map, as `predict_scene.py` makes one."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.windows import Window

from datasets_loading.scenes import Scene
from hsst.experiments.speed import describe, now
from hsst.support.reports import write_whole
from hsst.support.scene_maps import MapOptions, write_scene_maps
from modeling_hsst import ENMAP_WAVELENGTHS, HSSTConfig, HSSTForSemanticSegmentation, HSSTImageProcessor
from modeling_hsst.scene_prediction_hsst import ScenePart, ScenePredictor

NUM_CLASSES = 8
"""Classes of the model without weights."""


class CroppedScene:
    """A rectangle of a scene, as a scene.

    Args:
        scene: the whole scene.
        rows: rows of the whole scene.
        columns: columns of the whole scene.
    """

    def __init__(self, scene: Scene | CroppedScene, rows: slice, columns: slice) -> None:
        self._scene = scene
        self._row, self._column = rows.start, columns.start
        self.shape = rows.stop - rows.start, columns.stop - columns.start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scene, name)

    @property
    def transform(self) -> Affine | None:
        """From (column, row) of the crop to coordinates."""
        whole = self._scene.transform
        return None if whole is None else whole @ Affine.translation(self._column, self._row)

    def _moved(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        return (
            slice(rows.start + self._row, rows.stop + self._row),
            slice(columns.start + self._column, columns.stop + self._column),
        )

    def read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        """Stored numbers of chosen bands, int16 (bands, height, width)."""
        return self._scene.read(*self._moved(rows, columns), bands)

    def read_excluded(self, rows: slice, columns: slice, kinds: Sequence[str]) -> np.ndarray:
        """Pixels of any of these kinds, bool (height, width)."""
        return self._scene.read_excluded(*self._moved(rows, columns), kinds)


def crop_middle(scene: Scene, size: int) -> CroppedScene:
    """The middle of a scene.

    Args:
        scene: the whole scene.
        size: side in pixels; a side of the scene that is shorter stays as it is.

    Raises:
        ValueError: the size is not positive.
    """
    if size < 1:
        raise ValueError(f"--crop: expected at least 1 pixel, got {size}")
    rows, columns = (
        slice((length - side) // 2, (length - side) // 2 + side)
        for length, side in ((length, min(size, length)) for length in scene.shape)
    )
    return CroppedScene(scene, rows, columns)


def write_repeated(path: str | Path, scene: Scene, times: int) -> Path:
    """
    Writes a scene as a GeoTIFF in which it is laid side by side and mirrored, so that edges meet: a large scene made
    of a small one.

    Args:
        path: GeoTIFF to write, uncompressed int16 with all bands, tagged with their wavelengths and widths in nm.
        scene: the scene.
        times: copies along each side.

    Returns:
        The path.

    Raises:
        ValueError: the number of copies is not positive.
        OSError: the file cannot be written.
    """
    if times < 1:
        raise ValueError(f"--repeat: expected at least 1, got {times}")
    height, width = scene.shape
    num_bands = len(scene.valid_bands)

    def write(partial: Path) -> None:
        with rasterio.open(
            partial,
            "w",
            driver="GTiff",
            count=num_bands,
            height=times * height,
            width=times * width,
            dtype="int16",
            nodata=scene.nodata,
            crs=scene.crs,
            transform=scene.transform,
            tiled=True,
            blockxsize=256,
            blockysize=256,
            bigtiff="if_safer",
        ) as dataset:
            for key, values in (("wavelength", scene.wavelengths), ("fwhm", scene.fwhm)):
                for band, value in enumerate([] if values is None else values, start=1):
                    dataset.update_tags(band, **{key: f"{value:.4f}", "wavelength_units": "Nanometers"})
            for top in range(0, height, 256):
                rows = slice(top, min(top + 256, height))
                pixels = scene.read(rows, slice(0, width), range(num_bands))
                for copy_row in range(times):
                    mirrored = copy_row % 2 == 1
                    row = copy_row * height + (height - rows.stop if mirrored else rows.start)
                    upright = pixels[:, ::-1] if mirrored else pixels
                    for copy_column in range(times):
                        part = upright[:, :, ::-1] if copy_column % 2 else upright
                        dataset.write(part, window=Window(copy_column * width, row, width, len(part[0])))

    try:
        return write_whole(path, write)
    except RasterioError as error:
        raise OSError(f"{path}: expected a file that can be written, got: {error.__cause__ or error}") from None


def model_without_weights(
    scene: Scene, config_overrides: dict[str, Any] | None = None
) -> tuple[HSSTForSemanticSegmentation, HSSTImageProcessor]:
    """A model of the published size with random weights and its processor: for EnMAP's bands, or else the scene's."""
    bands = np.flatnonzero(scene.valid_bands)
    if scene.wavelengths is None:
        num_channels, wavelengths = len(scene.valid_bands), None
    else:
        given = scene.wavelengths[bands].tolist()
        try:
            HSSTImageProcessor(wavelengths=list(ENMAP_WAVELENGTHS)).match_wavelengths(given)
            num_channels, wavelengths = len(ENMAP_WAVELENGTHS), list(ENMAP_WAVELENGTHS)
        except ValueError:
            num_channels, wavelengths = len(given), given
    settings = {
        "num_channels": num_channels,
        "wavelengths": wavelengths,
        "spectral_positions": None,
        "num_labels": NUM_CLASSES,
        **(config_overrides or {}),
    }
    torch.manual_seed(0)
    model = HSSTForSemanticSegmentation(HSSTConfig(**settings))
    processor = HSSTImageProcessor(
        wavelengths=wavelengths, image_mean=[0.2] * num_channels, image_std=[0.1] * num_channels
    )
    return model, processor


def measure_scene(
    open_file: Callable[[], Scene],
    predictor: ScenePredictor,
    folder: str | Path,
    *,
    crop: int | None = None,
    turns: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Measures mapping a scene: opening, reading, predicting, and writing the map with its quick look and areas.

    Args:
        open_file: opens the scene anew for each turn.
        predictor: the model on its device, with stride and batch size.
        folder: where maps are written for as long as it takes, on the disk that is to be measured.
        crop: side of the middle of the scene that is mapped, in pixels; all of it by default.
        turns: how often it is mapped.
        progress: show progress bars.

    Returns:
        What was measured, ready for JSON: medians over the turns, and `turns` themselves.
    """
    device = predictor.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # Libraries are loaded, and choose their ways and buffers, at the first map
    _map_once(open_file, predictor, folder, 2 * max(predictor.window), progress=False)
    rows = [_map_once(open_file, predictor, folder, crop, progress=progress) for _ in range(turns)]
    with open_file() as scene:
        shape, name = (scene if crop is None else crop_middle(scene, crop)).shape, scene.name
        description = predictor.select_bands(scene).description
    seconds = statistics.median(row["seconds"] for row in rows)
    return {
        "part": "scene",
        "scene": name,
        "shape": list(shape),
        "num_mapped": rows[0]["num_mapped"],
        "bands": description,
        "window": list(predictor.window),
        "stride": predictor.stride,
        "batch_size": predictor.batch_size,
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "precision": str(predictor.model.dtype).removeprefix("torch."),
        "seconds": seconds,
        "pixels_per_second": rows[0]["num_mapped"] / seconds,
        "share_in_model": statistics.median(row["seconds_in_model"] / row["seconds"] for row in rows),
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
        "turns": rows,
        "machine": describe(device),
    }


def _map_once(
    open_file: Callable[[], Scene],
    predictor: ScenePredictor,
    folder: str | Path,
    crop: int | None,
    progress: bool,
) -> dict[str, float]:
    """Seconds of one map, those in the model, and the pixels with a class in it; the map is thrown away."""
    device = predictor.model.device
    in_model = [0.0]
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=folder) as workplace:
        started = now(device)
        with open_file() as scene:
            seen = scene if crop is None else crop_middle(scene, crop)
            summary = write_scene_maps(
                _timed(predictor.predict(seen, progress=progress), in_model),
                seen,  # type: ignore[arg-type]
                Path(workplace) / "map.tif",
                predictor.class_names,
                options=MapOptions(),
                wavelengths=predictor.processor.wavelengths,
            )
        seconds = now(device) - started
    return {"seconds": seconds, "seconds_in_model": in_model[0], "num_mapped": summary.num_mapped}


def _timed(parts: Iterator[ScenePart], seconds: list[float]) -> Iterator[ScenePart]:
    for part in parts:
        seconds[0] += part.seconds_in_model
        yield part


def peak_memory_mb() -> float | None:
    """The most memory that this process has held so far, in MB (10^6 bytes); None where it cannot be read."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def plot_scene(path: str | Path, result: dict[str, Any]) -> Path:
    """A bar for each turn: seconds in the model, and what is left for reading, blending and writing."""
    from matplotlib.figure import Figure

    rows = result["turns"]
    figure = Figure(figsize=(9, 0.5 * len(rows) + 2.0), layout="constrained")
    axes = figure.subplots()
    in_model = [row["seconds_in_model"] for row in rows]
    rest = [row["seconds"] - row["seconds_in_model"] for row in rows]
    axes.barh(range(len(rows)), in_model, color="tab:blue", height=0.6, label="in the model")
    axes.barh(range(len(rows)), rest, left=in_model, color="0.75", height=0.6, label="reading, blending, writing")
    for number, row in enumerate(rows):
        share = row["seconds_in_model"] / row["seconds"]
        text = f" {row['seconds']:,.1f} s, {share:.0%} in the model"
        axes.text(row["seconds"], number, text, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [f"turn {number + 1}" for number in range(len(rows))])
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 / len(rows) - 0.15), ncols=2, frameon=False, fontsize=9)
    height, width = result["shape"]
    machine, memory = result["machine"], result["peak_memory_mb"]
    memory_text = "" if memory is None else f", {memory:,.0f} MB at most"
    axes.set_title(
        f"{height} x {width} pixels to a map, a window every {result['stride']} pixels: "
        f"{result['pixels_per_second']:,.0f} pixels/s{memory_text}\n"
        f"{machine['device']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}, {result['precision']}, "
        f"{result['parameters']:,} parameters",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    return write_whole(path, lambda partial: figure.savefig(partial, dpi=150, metadata={"Software": None}))
