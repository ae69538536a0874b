"""A land-cover model beside labels of other classes than its own, none of which it has seen.

Each class of the model stands for one of the labels': the one of its name, or the one it is merged into. What stands
for none is wrong wherever it is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from datasets_loading.labelled_data import LabelledData
from datasets_loading.splits import UNLABELLED, all_for_test
from hsst.experiments.baselines import ModelOptions, load_pixel_classifier, starting_point
from hsst.experiments.matched_classes import matched_classes
from hsst.support.fine_tuning import AreaTensors, FineTuningSettings, confusion_of, on_device, predict
from modeling_hsst import adapt_to_wavelengths

OTHER = "none of these"
"""What classes of a model are called that stand for none of the labels'."""


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
    """Maps all of some labelled scenes with a land-cover model as it is.

    Args:
        checkpoint: folder or Hub name of an HSST that labels every pixel.
        data: scenes with labels of other classes; their split is not looked at.
        merged: see `matched_classes`.
        settings: how to predict.
        adapt_bands: adapt the model to the bands of the data where these lack some of its own.
        area_statistics: standardise all scenes by mean and deviation of their own pixels, in place of the model's. No
            label is looked at for that.
        progress: show a progress bar.

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
    """Markdown of a result file of `evaluate_land_cover.py`: classes, what stands for them, and accuracy with
    the model's mean and deviation of each band, and with those of the scenes."""
    ways = result, result["area_statistics"]
    rows = [
        "| class | classes of the model that stand for it | pixels | accuracy | standardised by the scenes' pixels |",
        "|---|---|---|---|---|",
    ]
    for number, name in enumerate(result["class_names"]):
        accuracies = [way["accuracy_per_class"][number] for way in ways]
        if accuracies[0] is not None:
            stand = ", ".join(result["stand_for"].get(name, [])) or "none"
            texts = " | ".join(f"{accuracy:.1%}" for accuracy in accuracies)
            rows.append(f"| {name} | {stand} | {result['labelled_pixels'][number]:,} | {texts} |")
    total = sum(result["labelled_pixels"])
    texts = " | ".join(f"{way['overall_accuracy']:.1%}; average {way['average_accuracy']:.1%}" for way in ways)
    rows.append(f"| all | | {total:,} | {texts} |")
    return "\n".join(rows)


def trials_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of results of `evaluate_land_cover.py` on the same labels, each with its name, `trial`."""
    rows = [
        "| model | overall accuracy | average | standardised by the scenes' pixels: overall accuracy | average |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        scores = [
            f"{way[score]:.1%}"
            for way in (result, result["area_statistics"])
            for score in ("overall_accuracy", "average_accuracy")
        ]
        rows.append(f"| {result['trial']} | {' | '.join(scores)} |")
    return "\n".join(rows)
