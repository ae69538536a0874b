"""Measure how fast the parts of the package are, on this machine.

    python scripts/experiments/benchmark_speed.py train --output_dir outputs/speed
    python scripts/experiments/benchmark_speed.py inference --output_dir outputs/speed
    python scripts/experiments/benchmark_speed.py curves --train_dir tiles --output_dir outputs/speed
    python scripts/experiments/benchmark_speed.py data --data_dir corpus --output_dir outputs/speed
    python scripts/experiments/benchmark_speed.py scene --scene SCENE --output_dir outputs/speed

`train`, `inference`: the model beside the plain reference, in every precision and form that the device can do.
`curves`: losses of the same training in every precision, laid over each other.
`data`: reading tiles of a corpus (prepare_enmap.py) as GeoTIFF files one by one, by number and as a stream, in one
process and two; and what a batch costs beside a training step of the published configuration.
`scene`: a scene (as predict_scene.py takes it) to its map, with a model, or with one of the published size and random
weights. Variants take turns; figures are medians. Prints a table, and writes it as JSON with a chart.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hsst.experiments.speed import write_result
from hsst.support.command_line import one_line_errors

if TYPE_CHECKING:
    from datasets_loading.enmap_corpus import CorpusTiles

BATCH_SIZE = 16
GPU_BATCH_SIZE = 256
"""The plain form in float32 takes more than 100 MB for a window."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    data = parts.add_parser("data", help="reading tiles")
    data.add_argument("--data_dir", type=Path, required=True, help="corpus written by prepare_enmap.py")
    data.add_argument("--output_dir", type=Path, required=True, help="folder for data_speed.json and data_speed.png")
    data.add_argument("--num_tiles", type=int, default=128, help="tiles to read (128)")
    data.add_argument("--turns", type=int, default=5, help="times each variant is measured (5)")
    data.set_defaults(run=benchmark_data)
    for part, help_text in (("train", "training steps"), ("inference", "predictions")):
        model = parts.add_parser(part, help=help_text)
        model.add_argument(
            "--output_dir", type=Path, required=True, help=f"folder for {part}_speed_DEVICE.json and .png"
        )
        model.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA where there is a GPU")
        model.add_argument("--batch_size", type=int, help="windows in a batch (CPU 16, GPU 256)")
        model.add_argument("--turns", type=int, default=5, help="times each variant is measured (5)")
        model.add_argument("--num_threads", type=int, help="of the CPU (all cores)")
        model.add_argument("--variants", help="names of those to measure, separated by ; (all)")
        model.add_argument(
            "--config_overrides", help="settings other than the published ones, e.g. num_spatial_layers=2"
        )
        model.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
        model.add_argument("--kernels", action="store_true", help="list the kernels that take longest (GPU)")
        model.set_defaults(run=benchmark_model)
    curves = parts.add_parser("curves", help="losses in every precision")
    curves.add_argument("--train_dir", type=Path, required=True, help="folder of products, tiles or shards")
    curves.add_argument(
        "--output_dir", type=Path, required=True, help="folder for loss_curves.json and loss_curves.png"
    )
    curves.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA where there is a GPU")
    curves.add_argument("--num_steps", type=int, default=500)
    curves.add_argument("--batch_size", type=int, default=8)
    curves.add_argument(
        "--tile_size", type=int, default=64, help="side of the tiles cut from products, in pixels (64)"
    )
    curves.add_argument("--config_overrides", help="settings other than the published ones")
    curves.set_defaults(run=benchmark_curves)
    scene = parts.add_parser("scene", help="a scene to its map")
    scene.add_argument("--scene", type=Path, required=True, help="EnMAP product, GeoTIFF or ENVI image")
    scene.add_argument("--model", help="folder, or name on the Hub, of a fine-tuned model (random weights)")
    scene.add_argument(
        "--output_dir", type=Path, required=True, help="folder for scene_speed_DEVICE.json and .png, and for maps"
    )
    scene.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA where there is a GPU")
    scene.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="(float32)")
    scene.add_argument("--stride", type=int, help="pixels between windows (half a window; 1 for single pixels)")
    scene.add_argument("--crop", type=int, help="map the middle of the scene only, so many pixels wide and high")
    scene.add_argument(
        "--repeat", type=int, help="map a GeoTIFF of so many copies of the scene along each side, mirrored"
    )
    scene.add_argument("--batch_size", type=int, help="windows in a batch (CPU 64, GPU 1024)")
    scene.add_argument("--turns", type=int, default=1, help="times the scene is mapped (1)")
    scene.add_argument("--num_threads", type=int, help="of the CPU (all cores)")
    scene.add_argument("--config_overrides", help="settings of the model with random weights")
    scene.set_defaults(run=benchmark_scene)
    arguments = parser.parse_args()
    for name in (
        "stride",
        "crop",
        "repeat",
        "num_tiles",
        "turns",
        "batch_size",
        "num_threads",
        "num_steps",
        "tile_size",
    ):
        if getattr(arguments, name, None) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    return arguments


# What reads files is imported where it is needed: the model's speed can be measured with torch and transformers alone


def benchmark_data(arguments: argparse.Namespace) -> None:
    from datasets_loading.enmap_corpus import read_corpus
    from hsst.experiments.data_speed import measure_reading, plot_reading

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=arguments.output_dir) as workplace:
        result = measure_reading(arguments.data_dir, workplace, num_tiles=arguments.num_tiles, turns=arguments.turns)
        result["training"] = data_beside_training(
            read_corpus(arguments.data_dir, streaming=True), workplace, arguments
        )
    result["command"] = shlex.join(["python", *sys.argv])
    print(f"{'':32} processes  tiles/s     MB/s   x GeoTIFF  x uncompressed  MB of memory")
    for rate in result["rates"]:
        peak = result["peak_memory_mb"][rate["way"]]
        print(
            f"{rate['way']:32} {rate['num_processes']:9} {rate['tiles_per_second']:8,.0f} "
            f"{rate['megabytes_per_second']:8,.0f} {rate['ratio']:11.1f} {rate['ratio_to_uncompressed']:15.1f} "
            f"{'?' if peak is None else format(peak, '13,.0f')}"
        )
    for way, rate in result["windows_per_second"].items():
        print(f"training windows, {way}, one process: {rate:,.0f} per second")
    for way, training in result["training"]["ways"].items():
        print(
            f"a batch of {BATCH_SIZE} windows, {way}: {1000 * training['data_seconds']:.1f} ms, "
            f"{training['share']:.1%} of a training step"
        )
    write_result(arguments.output_dir / "data_speed.json", result)
    plot_reading(arguments.output_dir / "data_speed.png", result)
    print(arguments.output_dir / "data_speed.png")


def chosen_device(arguments: argparse.Namespace) -> torch.device:
    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected a GPU that CUDA can use, found none")
    return torch.device(name)


def benchmark_model(arguments: argparse.Namespace) -> None:
    from hsst.experiments.speed import inference_variants, measure, plot_speed, training_variants
    from hsst.support.model_sources import parse_overrides

    device = chosen_device(arguments)
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    variants = (training_variants if arguments.part == "train" else inference_variants)(device.type)
    if arguments.variants is not None:
        names = [name.strip() for name in arguments.variants.split(";")]
        unknown = sorted(set(names) - {variant.name for variant in variants})
        if unknown:
            known = "; ".join(variant.name for variant in variants)
            raise ValueError(f"--variants: expected names among {known}, got {'; '.join(unknown)}")
        variants = [variant for variant in variants if variant.name in names]
    result = measure(
        arguments.part,
        parse_overrides(arguments.config_overrides) if arguments.config_overrides else {},
        arguments.batch_size or (GPU_BATCH_SIZE if device.type == "cuda" else BATCH_SIZE),
        device,
        turns=arguments.turns,
        variants=variants,
        with_memory=not arguments.no_memory,
        with_kernels=arguments.kernels,
    )
    result["command"] = shlex.join(["python", *sys.argv])
    for row in result["rows"]:
        ratio = f"{row['ratio']:6.2f}x" if "ratio" in row else ""
        memory = row.get("megabytes_per_window")
        memory_text = "" if memory is None else f"{memory:6.1f} MB a window"
        print(
            f"{row['variant']['name']:48} {row['windows_per_second']:10,.1f} windows/s {ratio:8} "
            f"{row['share_of_matrix_rate']:5.0%} of matrix rate  {memory_text}"
        )
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    stem = f"{arguments.part}_speed_{device.type}"
    write_result(arguments.output_dir / f"{stem}.json", result)
    print(plot_speed(arguments.output_dir / f"{stem}.png", result))


def benchmark_curves(arguments: argparse.Namespace) -> None:
    from hsst.experiments.loss_curves import measure_curves, plot_curves
    from hsst.support.model_sources import parse_overrides

    device = chosen_device(arguments)
    result = measure_curves(
        arguments.train_dir,
        parse_overrides(arguments.config_overrides) if arguments.config_overrides else {},
        device,
        num_steps=arguments.num_steps,
        batch_size=arguments.batch_size,
        tile_size=arguments.tile_size,
    )
    result["command"] = shlex.join(["python", *sys.argv])
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_result(arguments.output_dir / "loss_curves.json", result)
    print(plot_curves(arguments.output_dir / "loss_curves.png", result))


def benchmark_scene(arguments: argparse.Namespace) -> None:
    from transformers import AutoImageProcessor

    from datasets_loading.scenes import open_scene
    from hsst.experiments.scene_speed import measure_scene, model_without_weights, plot_scene, write_repeated
    from hsst.support.model_sources import parse_overrides
    from modeling_hsst.pipeline_hsst import HSSTAutoModelForSceneClassification
    from modeling_hsst.scene_prediction_hsst import ScenePredictor

    device = chosen_device(arguments)
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    if arguments.model is not None and arguments.config_overrides:
        raise ValueError("--config_overrides: expected no --model, whose configuration cannot be changed, got both")
    model: Any
    if arguments.model is None:
        overrides = parse_overrides(arguments.config_overrides) if arguments.config_overrides else {}
        with open_scene(arguments.scene) as scene:
            model, processor = model_without_weights(scene, overrides)
    else:
        model = HSSTAutoModelForSceneClassification.from_pretrained(arguments.model)
        processor = AutoImageProcessor.from_pretrained(arguments.model)
    model.to(device=device, dtype=getattr(torch, arguments.precision))
    predictor = ScenePredictor(
        model,
        processor,
        stride=arguments.stride,
        batch_size=arguments.batch_size or (1024 if device.type == "cuda" else 64),
        exclude=("outside", "cloud", "shadow"),
    )
    with open_scene(arguments.scene) as scene:
        print(f"{scene.name}: {predictor.select_bands(scene).description}", flush=True)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=arguments.output_dir) as workplace:
        path = arguments.scene
        if arguments.repeat is not None:
            with open_scene(arguments.scene) as scene:
                path = write_repeated(Path(workplace) / f"{scene.name}.tif", scene, arguments.repeat)
        result = measure_scene(
            lambda: open_scene(path),
            predictor,
            arguments.output_dir,
            crop=arguments.crop,
            turns=arguments.turns,
        )
    result["model"] = arguments.model
    result["repeat"] = arguments.repeat
    result["command"] = shlex.join(["python", *sys.argv])
    height, width = result["shape"]
    memory = [
        f"{result[name]:,.0f} MB of {place}"
        for name, place in (("peak_memory_mb", "memory"), ("peak_gpu_memory_mb", "GPU memory"))
        if result[name] is not None
    ]
    print(
        f"{height}x{width} pixels, stride {result['stride']}: {result['seconds']:,.1f} s, "
        f"{result['pixels_per_second']:,.0f} pixels/s, {result['share_in_model']:.0%} of it in the model; at most "
        f"{' and '.join(memory) or 'an unknown amount of memory'}"
    )
    write_result(arguments.output_dir / f"scene_speed_{device.type}.json", result)
    print(plot_scene(arguments.output_dir / f"scene_speed_{device.type}.png", result))


def data_beside_training(tiles: CorpusTiles, workplace: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What getting a batch costs beside a training step of the published configuration, on the CPU."""
    # Here, for reading processes import this file too, and transformers takes seconds
    import numpy as np

    from hsst.experiments.data_speed import measure_data_share
    from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor

    config = HSSTConfig(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    bands = np.flatnonzero(tiles.valid_bands).tolist()
    try:
        bands = HSSTImageProcessor(wavelengths=config.wavelengths).match_wavelengths(
            [] if tiles.wavelengths is None else tiles.wavelengths.tolist()
        )
    except ValueError:  # not EnMAP's bands: all that there are
        config = HSSTConfig(num_channels=len(bands), hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    low, high = HSSTImageProcessor.clip_range
    mean, std = (values[bands] for values in tiles.band_statistics(low, high))
    processor = HSSTImageProcessor(image_mean=mean.tolist(), image_std=np.maximum(std, 1e-4).tolist())
    model = HSSTForMaskedImageModeling(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        pixel_values, pixel_mask = inputs
        model(pixel_values, pixel_mask=pixel_mask).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    ways = measure_data_share(
        workplace, bands, processor.standardize, train, batch_size=BATCH_SIZE, turns=arguments.turns
    )
    return {
        "batch_size": BATCH_SIZE,
        "bands": len(bands),
        "parameters": model.num_parameters(),
        "torch_threads": torch.get_num_threads(),
        "ways": ways,
    }


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("benchmark_speed.py"):
        arguments.run(arguments)


if __name__ == "__main__":
    main()
