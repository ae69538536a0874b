"""
Compare a land-cover model, as it is, with labels of other classes than its own, none of which it has seen.

    python scripts/experiments/other_labels.py --data_dir potsdam --model model_cards/hsst-enmap-landcover \\
        --class_names "roof,pavement,low vegetation,tree,soil,water" \\
        --merge "tree=broadleaf forest,needleleaf forest" --title "Real EnMAP tiles" --output_dir outputs/potsdam

Data are images and labels as run_classification.py takes them; all of them are for test. --merge says which classes of
the model stand for a class of the labels; others stand for the class of their own name, or for none, and are wrong
wherever they are predicted. The output folder holds `other_labels.json`, `confusion_matrix.png`,
`confusion_matrix_area.png` and `other_labels_map.png`: bands are standardised as the model was trained, and once more
by mean and deviation of the scenes' own pixels, labelled or not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets_loading.files import write_json
from datasets_loading.labelled_data import LabelledData
from datasets_loading.land_cover_metric import land_cover_scores
from datasets_loading.splits import UNLABELLED, all_for_test
from hsst.experiments.baselines import load_config, load_pixel_classifier, starting_point
from hsst.experiments.label_efficiency import quiet_libraries
from hsst.run_classification import add_data_arguments, add_merge_argument, load_data
from hsst.support.command_line import HelpFormatter, one_line_errors
from hsst.support.fine_tuning import AreaTensors, confusion_of, on_device, predict
from hsst.support.matched_classes import matched_classes, parse_merges
from hsst.support.reports import markdown_table, plot_confusion, plot_land_cover_map
from hsst.support.training_settings import PRECISIONS, FineTuningSettings, ModelOptions
from modeling_hsst import adapt_to_wavelengths

OTHER = "none of these"
"""Name of the classes of a model that stand for none of the labels'."""


def map_other_labels(
    checkpoint: str,
    data: LabelledData,
    merged: Mapping[str, Sequence[str]],
    settings: FineTuningSettings,
    *,
    adapt_bands: bool = False,
    area_statistics: bool = False,
    progress: bool = False,
) -> tuple[np.ndarray, LabelledData, dict[str, np.ndarray]]:
    """
    Maps all of some labelled scenes with a land-cover model as it is, standardised by mean and deviation of their own
    pixels with `area_statistics`, without a look at labels.

    Returns:
        Counts by reference and prediction, int64 (classes + 1, classes + 1), the last class `OTHER`; the data with
        that class, all in the test area; and the classes of each scene, uint8 (rows, columns), 255 = none.

    Raises:
        ValueError: classes or bands of data and model do not fit.
    """
    model = load_pixel_classifier(checkpoint)
    id2label: Any = model.config.id2label
    names = [id2label[number] for number in range(len(id2label))]
    stands_for = matched_classes(names, data.class_names, merged)
    if min(stands_for) == len(data.class_names):
        raise ValueError(f"{checkpoint}: expected a class that stands for one of the labels', got {', '.join(names)}")
    start = starting_point(data, ModelOptions(checkpoint, adapt_bands=adapt_bands))
    assert start.processor is not None  # there is a checkpoint
    if start.adaptation is not None and data.wavelengths is not None:
        model = adapt_to_wavelengths(model, data.wavelengths[start.bands].tolist(), return_report=True)[0]
    if OTHER in data.class_names:
        raise ValueError(f"expected no class of the labels with the name {OTHER!r}, got {', '.join(data.class_names)}")
    data = replace(data, class_names=(*data.class_names, OTHER), split=all_for_test(data.labels))
    of_model = replace(data, class_names=tuple(names))
    window_size = min(model.config.window_size)
    area = AreaTensors.of(of_model, "test", start.processor, start.bands, window_size, own_statistics=area_statistics)
    table = np.full(256, UNLABELLED, np.uint8)
    table[: len(stands_for)] = stands_for
    maps = predict(on_device(model, settings).eval(), area, settings, progress=progress)
    maps = {name: table[classes] for name, classes in maps.items()}
    return confusion_of(maps, replace(area, data=data)), data, maps


def other_labels_table(result: Mapping[str, Any]) -> str:
    """Markdown of `other_labels.json`: classes, what stands for them, and accuracy with the model's mean and deviation
    of each band, and with those of the scenes."""
    ways = result, result["area_statistics"]
    header = (
        "class",
        "classes of the model that stand for it",
        "pixels",
        "accuracy",
        "standardised by the scenes' pixels",
    )
    rows = []
    for number, name in enumerate(result["class_names"]):
        accuracies = [way["accuracy_per_class"][number] for way in ways]
        if accuracies[0] is not None:
            stand = ", ".join(result["stand_for"].get(name, [])) or "none"
            pixels = f"{result['labelled_pixels'][number]:,}"
            rows.append([name, stand, pixels, *(f"{accuracy:.1%}" for accuracy in accuracies)])
    overall = [f"{way['overall_accuracy']:.1%}; average {way['average_accuracy']:.1%}" for way in ways]
    return markdown_table(header, [*rows, ["all", "", f"{sum(result['labelled_pixels']):,}", *overall]])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a land-cover model")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    parser.add_argument("--title", default="Labels", help="what the figures call the data")
    add_data_arguments(parser)
    add_merge_argument(parser)
    parser.add_argument("--adapt_bands", action="store_true", help="adapt the model where the data lack bands of it")
    parser.add_argument("--stride", type=int, help="pixels between windows (half a window)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the model")
    parser.add_argument("--use_cpu", action="store_true", help="stay on the CPU")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    output = arguments.output_dir
    with one_line_errors("other_labels.py"):
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output}: expected a folder for the results, got a file")
        merged = parse_merges(arguments.merge)
        config = load_config(arguments.model)
        given = {"stride": arguments.stride, "precision": arguments.precision}
        settings = FineTuningSettings(**given, use_cpu=arguments.use_cpu)
        labelled = load_data(arguments, min(config.window_size), None if arguments.dataset else "test")
        options = {"adapt_bands": arguments.adapt_bands, "progress": True}
        matrix, data, maps = map_other_labels(arguments.model, labelled, merged, settings, **options)
        area_matrix, _, area_maps = map_other_labels(
            arguments.model, labelled, merged, settings, area_statistics=True, **options
        )
        id2label: Any = config.id2label
        names = [id2label[number] for number in range(len(id2label))]
        stand_for: dict[str, list[str]] = {}
        for name, number in zip(names, matched_classes(names, labelled.class_names, merged), strict=True):
            stand_for.setdefault(data.class_names[number], []).append(name)
        result = {
            **land_cover_scores(matrix),
            "title": arguments.title,
            "model": Path(arguments.model).name,
            "class_names": list(data.class_names),
            "stand_for": stand_for,
            "labelled_pixels": matrix.sum(axis=1).tolist(),
            "confusion_matrix": matrix.tolist(),
            "area_statistics": {**land_cover_scores(area_matrix), "confusion_matrix": area_matrix.tolist()},
            **given,
        }
        for counts, scores, name, how in (
            (matrix, result, "confusion_matrix.png", ""),
            (area_matrix, result["area_statistics"], "confusion_matrix_area.png", ", standardised by own pixels"),
        ):
            about = f"overall accuracy {scores['overall_accuracy']:.1%}, average {scores['average_accuracy']:.1%}"
            plot_confusion(output / name, counts, data.class_names, f"{arguments.title}{how}\n{about}")
        others = {"standardised by own pixels": area_maps}
        title = f"{arguments.title}, none of them trained on"
        plot_land_cover_map(output / "other_labels_map.png", data, maps, title, others=others)
        path = write_json(output / "other_labels.json", result)
    print(f"{other_labels_table(result)}\n\nResults: {path}")


if __name__ == "__main__":
    main()
