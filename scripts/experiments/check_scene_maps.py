"""Measure whether the map of a scene is what its windows say.

    python scripts/experiments/check_scene_maps.py SCENE \\
        --model outputs/finetuned --output outputs/scene_agreement.json

Maps the middle of a scene with windows side by side, beside the model called for one window at a time and beside the
same model in bfloat16; and, with the windows of predict_scene.py and without overlap, the same pixels cut so that all
windows lie elsewhere.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.utils import logging as transformers_logging

import modeling_hsst  # noqa: F401
from datasets_loading.scenes import open_scene
from hsst.experiments.scene_agreement import measure_agreement
from hsst.support.command_line import one_line_errors
from hsst.support.model_sources import read_config, reading
from hsst.support.reports import write_json
from modeling_hsst.pipeline_hsst import HSSTAutoModelForSceneClassification
from modeling_hsst.scene_prediction_hsst import ScenePredictor


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, metavar="SCENE")
    parser.add_argument("--model", required=True, help="folder, or name on the Hub, of a fine-tuned model")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--crop", type=int, default=256, help="side of what is mapped, in pixels (256)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    with one_line_errors("check_scene_maps.py"):
        if arguments.output.suffix.lower() != ".json":
            raise ValueError(f"--output: expected a .json, got {arguments.output}")
        read_config(arguments.model, "--model")
        with reading(arguments.model):
            model: Any = HSSTAutoModelForSceneClassification.from_pretrained(arguments.model)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        processor = AutoImageProcessor.from_pretrained(arguments.model)
        with open_scene(arguments.scene) as scene:
            predictor = ScenePredictor(model, processor, exclude=("outside", "cloud", "shadow"))
            result = measure_agreement(scene, predictor, crop=arguments.crop)
        result["command"] = shlex.join(["python", *sys.argv])
        write_json(arguments.output, result)
    single = result["single_windows"]
    print(
        f"{single['windows']} windows by themselves: same class at {single['same_class']:.3%} of {single['pixels']:,} "
        f"pixels, probabilities at most {single['largest_difference']:.1e} apart"
    )
    for row in result["shifted"]:
        print(
            f"stride {row['stride']}, shifted by {row['shift']}: same class at {row['everywhere']['same_class']:.2%}, "
            f"{row['inside']['same_class']:.2%} a window away from the edges"
        )
    half = result["half_precision"]
    print(f"in {half['precision']}: same class at {half['same_class']:.3%} of {half['pixels']:,} pixels")
    print(arguments.output)


if __name__ == "__main__":
    main()
