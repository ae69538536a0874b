"""From predictions of a scene, part by part, to its files: maps, areas, a quick look and a page for people."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from datasets_loading.files import checksums, fingerprint
from datasets_loading.scenes import Scene
from hsst.support.map_writer import class_map_writer, probability_steps, probability_writer
from hsst.support.scene_report import SceneSummary, plot_quick_look, write_areas, write_areas_json, write_page
from modeling_hsst.scene_prediction_hsst import ScenePart

SETTINGS_TAG = "prediction_settings"

DATA_ENDINGS = ("", ".hdr", ".dat", ".img", ".bsq", ".bil", ".bip", ".raw")
"""Of the files that one of a pair of ENVI files may belong to."""


@dataclass(frozen=True)
class MapOptions:
    """What is written beside the map of classes, its areas and its quick look."""

    probabilities: str | None = None  # type of the raster of class probabilities, "uint8" or "float32"
    confidence: bool = False  # probability of the most probable class
    page: bool = False  # in HTML


def output_paths(path: Path, options: MapOptions) -> dict[str, Path]:
    """The files of a scene by what they hold; `path` is that of the map of classes."""
    endings = {"areas_csv": "_areas.csv", "areas_json": "_areas.json", "quick_look": ".png"}
    if options.probabilities:
        endings["probabilities"] = "_probabilities.tif"
    if options.confidence:
        endings["confidence"] = "_confidence.tif"
    if options.page:
        endings["page"] = ".html"
    return {"classes": path, **{kind: path.with_name(path.stem + ending) for kind, ending in endings.items()}}


def is_finished(path: Path, options: MapOptions, settings: Mapping[str, object]) -> bool:
    """
    Whether all files of a scene are there, from the same settings, as they were written: `_areas.json`, which is
    written last, holds their checksums. FileExistsError where they are from other settings.
    """
    if not path.exists():
        return False
    if stated_settings(path) != settings_text(settings):
        raise FileExistsError(f"{path}: expected no map yet or one from the same settings, got another (--overwrite)")
    files = output_paths(path, options)
    try:
        stated = json.loads(files.pop("areas_json").read_text(encoding="utf-8"))["files"]
        for side_file in (path.with_name(path.name + ".aux.xml"), path.with_suffix(".qml")):
            ElementTree.parse(side_file)  # programs add statistics to them
        return checksums(files.values()).items() <= stated.items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ElementTree.ParseError):
        return False


def scene_identity(path: Path) -> str:
    """
    What is a scene's own: names, sizes and times of its files, which for one file are those that begin with its name,
    as a header does.
    """
    files = path.rglob("*") if path.is_dir() else [path, *(path.with_suffix(ending) for ending in DATA_ENDINGS)]
    known = {file.name: file.stat() for file in files if file.is_file()}
    return fingerprint(*(f"{name} {known[name].st_size} {known[name].st_mtime_ns}\n" for name in sorted(known)))[:16]


def stated_settings(path: Path) -> str | None:
    """The settings that a map was made with, as it states them; None where there is none or it states none."""
    try:
        with rasterio.open(path) as dataset:
            return dataset.tags().get(SETTINGS_TAG)
    except RasterioError:
        return None


def settings_text(settings: Mapping[str, object]) -> str:
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def write_scene_maps(
    parts: Iterable[ScenePart],
    scene: Scene,
    path: str | Path,
    class_names: Sequence[str],
    *,
    options: MapOptions = MapOptions(),  # noqa: B008
    wavelengths: Sequence[float] | np.ndarray | None = None,
    settings: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SceneSummary:
    """Writes the files of a scene while its parts come in; writing overlaps whatever makes the next part.

    The map of classes appears when all rasters and pictures are whole, the areas after it, with the checksums of all
    files; an error leaves no file of the rasters behind.
    What stood beside a map from other settings and is not written again goes with it.

    `path` is the GeoTIFF of the map of classes; the other files stand beside it (`output_paths`). Wavelengths are band
    centers in nm of the `pixels` of the parts, settings are for `is_finished`, and metadata for people.
    """
    paths = output_paths(Path(path), options)
    replaces = paths["classes"].exists() and stated_settings(paths["classes"]) != settings_text(settings or {})
    for file in paths.values():
        # Those that are written last would say so after hours
        if file.is_dir():
            raise IsADirectoryError(f"{file}: expected a file that can be written, got a folder")
    summary = SceneSummary(scene, class_names, wavelengths, metadata or {})
    tags = {SETTINGS_TAG: settings_text(settings or {}), "scene": scene.name}
    given: dict[str, Any] = {"crs": scene.crs, "transform": scene.transform, "tags": tags}
    layers: list[tuple[Callable[[slice, slice, np.ndarray], None], Callable[[ScenePart], np.ndarray]]] = []
    with ExitStack() as stack:
        # Entered first, finished last
        writer = class_map_writer(paths["classes"], scene.shape, class_names, **given)
        layers.append((stack.enter_context(writer), lambda part: part.classes))
        if options.probabilities:
            file, kind = paths["probabilities"], options.probabilities
            writer = probability_writer(file, scene.shape, class_names, dtype=kind, **given)
            stored: Callable[[np.ndarray], np.ndarray] = probability_steps if kind == "uint8" else np.asarray
            layers.append((stack.enter_context(writer), lambda part: stored(part.probabilities)))
        if options.confidence:
            writer = probability_writer(paths["confidence"], scene.shape, ["confidence"], dtype="uint8", **given)
            layers.append((stack.enter_context(writer), lambda part: probability_steps(part.confidence)))

        def write(part: ScenePart) -> None:
            for layer, values_of in layers:
                layer(part.rows, part.columns, values_of(part))
            summary.update(part.rows, part.columns, part.classes, part.confidence, part.pixels)

        pending: Future[None] | None = None
        thread = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="map writer"))
        for part in parts:
            if pending is not None:
                pending.result()
            pending = thread.submit(write, part)
        if pending is not None:
            pending.result()
        plot_quick_look(paths["quick_look"], summary)
        if "page" in paths:
            write_page(paths["page"], summary)
    if replaces:
        everything = output_paths(paths["classes"], MapOptions("uint8", confidence=True, page=True))
        for file in set(everything.values()) - set(paths.values()):
            file.unlink(missing_ok=True)
    write_areas(paths["areas_csv"], summary)
    write_areas_json(paths["areas_json"], summary, checksums(paths[kind] for kind in paths if kind != "areas_json"))
    return summary
