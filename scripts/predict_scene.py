"""Map the land cover of whole scenes with a fine-tuned model, or write the features that any model gives.

    python scripts/predict_scene.py SCENE --model outputs/finetuned --output map.tif
    accelerate launch scripts/predict_scene.py 'scenes/*.ZIP' --model outputs/finetuned --output maps
    python scripts/predict_scene.py SCENE --model model_cards/hsst-enmap --features --output features.tif

A scene is an EnMAP L2A product (folder, ZIP, or files as the archive serves them), a STAC item of one (file or
address), a product of PRISMA, EMIT, DESIS, NEON or Tanager, or an image (GeoTIFF, ENVI, JPEG 2000, MATLAB, NumPy,
HDF5, NetCDF). Beside the map of classes stand the area of each class (_areas.csv, _areas.json) and a quick look
(.png). Several scenes go into a folder, dealt to the processes of `accelerate launch`; a finished scene is not done
again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_loading.files import check_writable, fingerprint, only_writer
from datasets_loading.scenes import find_scenes, name_of, open_scene
from hsst.support.command_line import (
    HelpFormatter,
    add_scene_arguments,
    check_source,
    one_line_errors,
    reading_of,
    shown,
)

# What needs torch is imported where it is used: help and refusals need not wait for it
if TYPE_CHECKING:
    from modeling_hsst import HSSTImageProcessor, HSSTModel
    from modeling_hsst.scene_prediction_hsst import ScenePredictor

LAUNCHED = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("scenes", nargs="+", metavar="SCENE", help="scenes, or patterns of them in quotes")
    parser.add_argument("--model", required=True, help="folder, or name on the Hub, of a fine-tuned model")
    parser.add_argument(
        "--output", type=Path, required=True, help="GeoTIFF to write (.tif); a folder for several scenes"
    )
    parser.add_argument(
        "--features",
        nargs="?",
        const="mean",
        choices=("mean", "blocks"),
        help="write features in place of a map: the mean over spectral blocks (mean), or those of all blocks",
    )
    parser.add_argument("--window", type=int, help="side of the windows for features in pixels (the model's)")
    parser.add_argument("--stride", type=int, help="pixels between windows (half a window; 1 for single pixels)")
    parser.add_argument("--batch_size", type=int, default=64, help="windows that the model sees at once")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of its numbers")
    add_scene_arguments(parser, "that get no class")
    parser.add_argument(
        "--scene_statistics",
        action="store_true",
        help="standardize each scene by mean and deviation of its own pixels, in place of the model's",
    )
    parser.add_argument("--probabilities", choices=("uint8", "float32"), help="write probabilities of the classes")
    parser.add_argument("--confidence", action="store_true", help="write the probability of the class")
    parser.add_argument("--html", action="store_true", help="write a page to look at, which needs no network")
    parser.add_argument("--overwrite", action="store_true", help="do scenes again that have a map")
    return parser.parse_args()


def map_paths(scenes: list[Path | str], output: Path) -> dict[Path | str, Path]:
    """The map of each scene."""
    if output.suffix.lower() in (".tif", ".tiff"):
        if len(scenes) > 1:
            raise ValueError(f"--output: expected a folder for {len(scenes)} scenes, got the file {output}")
        return {scenes[0]: not_the_scene(output, scenes[0])}
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: expected a .tif or a folder, got the file {output}")
    maps: dict[Path | str, Path] = {}
    for scene in scenes:
        path = output / f"{name_of(Path(scene))}.tif"
        if path in maps.values():
            raise ValueError(f"{scene}: expected scenes with different names, got {path.stem} more than once")
        maps[scene] = not_the_scene(path, scene)
    return maps


def not_the_scene(path: Path, scene: Path | str) -> Path:
    if path.resolve() == Path(scene).resolve():
        raise ValueError(f"--output: expected another place than that of the scene, got {path}")
    return path


def warn(message: str) -> None:
    print(f"predict_scene.py: warning: {shown(message)}", file=sys.stderr, flush=True)


def predict(arguments: argparse.Namespace, scene_path: Path | str, map_path: Path, predictor: ScenePredictor) -> str:
    """Maps one scene, and says in a line how that went."""
    from hsst.support.reports import without_folders
    from hsst.support.scene_maps import MapOptions, is_finished, scene_identity, write_scene_maps

    options = MapOptions(arguments.probabilities, arguments.confidence, arguments.html)
    reading = reading_of(arguments)
    settings = {
        "scene": Path(scene_path).resolve().name,
        "scene_files": scene_identity(Path(scene_path)),
        # Of a file, what is in it: where it lies is nobody's business
        **{
            name: fingerprint(value.read_bytes())[:16] if isinstance(value, Path) else str(value)
            for name, value in reading.items()
        },
        **predictor.settings,
        "class_names": predictor.class_names,
        "window": list(predictor.window),
        "probabilities": options.probabilities,
    }
    if not arguments.overwrite and is_finished(map_path, options, settings):
        return f"{map_path}: finished before"
    started = time.perf_counter()
    with open_scene(scene_path, **reading) as scene:
        selection = predictor.select_bands(scene)
        print(shown(f"{scene.name}: {selection.description}"), flush=True)
        if scene.transform is None:
            warn(f"{scene.name}: no georeference, so the map has none and areas are in pixels")
        # Only products know more than where data are missing
        kinds = predictor.exclude if scene.product is not None else ()
        metadata = {
            "model": without_folders(arguments.model),
            "windows": f"{predictor.window[0]}x{predictor.window[1]}, every {predictor.stride} pixels",
            "bands": selection.description,
            "standardized by": "the scene's own pixels" if predictor.scene_statistics else "the model's statistics",
            "left out": ", ".join((*kinds, "pixels without data")),
        }
        summary = write_scene_maps(
            predictor.predict(scene, progress=os.environ.get("LOCAL_RANK", "0") == "0"),
            scene,
            map_path,
            predictor.class_names,
            options=options,
            wavelengths=predictor.processor.wavelengths,
            settings=settings,
            metadata=metadata,
        )
    if not summary.num_mapped:
        warn(f"{scene.name}: no pixel with data, so the map holds no class")
    seconds = time.perf_counter() - started
    return (
        f"{map_path}: {summary.num_mapped:,} of {summary.num_pixels:,} pixels in {seconds:.1f} s "
        f"({summary.num_pixels / seconds:,.0f} pixels/s)"
    )


def write_features(
    arguments: argparse.Namespace,
    scene_path: Path | str,
    path: Path,
    encoder: HSSTModel,
    processor: HSSTImageProcessor,
) -> str:
    """Writes the features of one scene, and says in a line how that went."""
    from hsst.support.features import scene_features, write_scene_features
    from hsst.support.scene_maps import scene_identity, settings_text, stated_settings

    started = time.perf_counter()
    with open_scene(scene_path, **reading_of(arguments)) as scene:
        features = scene_features(
            encoder,
            processor,
            scene,
            pooling=arguments.features,
            window=arguments.window,
            stride=arguments.stride,
            exclude=arguments.exclude,
            resample=arguments.resample,
        )
        settings = {
            "scene_files": scene_identity(Path(scene_path)),
            **features.settings,
            "features": arguments.features,
            "window": list(features.window),
        }
        if not arguments.overwrite and path.exists():
            if stated_settings(path) != settings_text(settings):
                raise FileExistsError(f"{path}: expected no file yet or one from the same settings (--overwrite)")
            if path.with_suffix(".png").is_file():
                return f"{path}: finished before"
        print(shown(f"{scene.name}: {features.select_bands(scene).description}"), flush=True)
        count = write_scene_features(features, scene, path, settings)
    return f"{path}: {features.num_outputs} features of {count:,} pixels in {time.perf_counter() - started:.1f} s"


def work_of(arguments: argparse.Namespace, local_rank: int) -> Callable[[Path | str, Path], str]:
    """Loads the model, and gives what is to be done with each scene and the path to write to."""
    import torch
    from transformers.utils import logging as transformers_logging

    from hsst.support.features import load_encoder
    from hsst.support.few_labels import PixelPredictor, is_classifier
    from hsst.support.model_sources import load_classifier, read_processor
    from modeling_hsst.scene_prediction_hsst import ScenePredictor

    transformers_logging.set_verbosity_error()
    place: dict[str, Any] = {
        "device": f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu",
        "dtype": getattr(torch, arguments.precision),
    }
    if arguments.features:
        encoder, processor = load_encoder(arguments.model)
        torch.nn.Module.to(encoder, **place)
        return lambda scene, path: write_features(arguments, scene, path, encoder, processor)
    predictor: ScenePredictor
    if is_classifier(arguments.model):
        if arguments.scene_statistics:
            raise ValueError("--scene_statistics: expected a network, got a classifier of scikit-learn")
        predictor = PixelPredictor(arguments.model, exclude=arguments.exclude, resample=arguments.resample, **place)
        return lambda scene, path: predict(arguments, scene, path, predictor)
    model = load_classifier(arguments.model)
    predictor = ScenePredictor(
        torch.nn.Module.to(model, **place),
        read_processor(arguments.model, model.config),
        stride=arguments.stride,
        batch_size=arguments.batch_size,
        exclude=arguments.exclude,
        resample=arguments.resample,
        scene_statistics=arguments.scene_statistics,
    )
    return lambda scene, path: predict(arguments, scene, path, predictor)


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("predict_scene.py"):
        about_maps = ("probabilities", "confidence", "html", "scene_statistics")
        given = [f"--{name}" for name in about_maps if getattr(arguments, name)]
        if arguments.features and given:
            raise ValueError(f"--features: expected no flag of maps, got {', '.join(given)}")
        if not arguments.features and arguments.window is not None:
            raise ValueError("--window: expected with --features only; a map is made with the model's windows")
        # What launchers tell a process; scenes are dealt out without a word between processes
        rank, num_processes, local_rank = (int(os.environ.get(name, n)) for name, n in LAUNCHED)
        if not 0 <= rank < num_processes:
            raise ValueError(f"RANK: expected from 0 on and below WORLD_SIZE={num_processes}, got {rank}")
        maps = map_paths(find_scenes(arguments.scenes), arguments.output)
        for folder in {path.parent for path in maps.values()}:
            check_writable(folder)  # the model takes its time to load
        check_source(arguments.model, "--model")
        work = work_of(arguments, local_rank)
        own = list(maps.items())[rank::num_processes]
        failures = []
        for scene_path, map_path in own:
            try:
                with only_writer(map_path.parent, f".{map_path.stem}.lock"):
                    print(shown(work(scene_path, map_path)), flush=True)
            except (ValueError, OSError) as error:
                if len(maps) == 1:
                    raise
                failures.append(f"{scene_path}: {error}")
                warn(failures[-1])
        if failures:
            raise ValueError(f"{len(failures)} of {len(own)} scenes failed, the first: {failures[0]}")


if __name__ == "__main__":
    main()
