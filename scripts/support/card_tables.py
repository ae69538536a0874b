"""
Tables of result files that cards and docs show, as Markdown. The programs that measured them are in commit bd54004:
reconstruction.py, sensors.py and other_labels.py of scripts/experiments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsst.support.reports import described, markdown_table, percent

MODEL = "model"
PREDICTOR_TITLES = {
    MODEL: "this model",
    "interpolation": "linear interpolation along the spectrum",
    "interpolation of standardised values": "the same of standardised values",
    "visible mean": "mean of the window's visible tokens of the same band",
    "band mean": "mean of the band over the training tiles",
}
SCRATCH, RESAMPLED, ADAPTED = "scratch", "resampled", "adapted"
WAYS = {SCRATCH: "from scratch", RESAMPLED: "resampled to EnMAP", ADAPTED: "adapted"}
"""The ways to a model of another sensor."""

COMPARED = {
    "overall_accuracy": ("difference", "differences", "of_scenes"),
    "average_accuracy": ("average_difference", "average_differences", "average_of_scenes"),
}
"""Scores of `sensors.json`, with its names of differences without labels, of those with labels, and of the scores of
each scene without labels."""


def title_of(predictor: str) -> str:
    """A predictor as people name it."""
    if predictor.startswith("Gaussian, "):
        return f"Gaussian conditional mean, estimated from {predictor.removeprefix('Gaussian, ')}"
    return PREDICTOR_TITLES[predictor]


def reconstruction_table(result: Mapping[str, Any]) -> str:
    """Markdown of `reconstruction.json`: one table for each type of masks."""
    parts = []
    for mask_type, masks in result["masks"].items():
        errors = {
            name: {"all bands": entry["overall"], **entry["regions"]} for name, entry in masks["predictors"].items()
        }
        best = {region: min(entry[region] for entry in errors.values()) for region in errors[MODEL]}
        rows = []
        for name, entry in errors.items():
            texts = {region: f"{error:.3f}" for region, error in entry.items()}
            cells = [f"**{text}**" if entry[region] == best[region] else text for region, text in texts.items()]
            ratio, to_model = masks["model_to"].get(name), ""
            if ratio is not None:
                between = "" if ratio["low"] is None else f" ({ratio['low']:.2f}–{ratio['high']:.2f})"
                to_model = f"{ratio['ratio']:.2f}{between}"
            rows.append([title_of(name), *cells, to_model])
        header = [f"{mask_type} masks, {masks['hidden']:.0%} hidden", *best, "model's error to it"]
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def sensor_table(result: Mapping[str, Any], score: str = "overall_accuracy") -> str:
    """Markdown of `sensors.json`: a score (one of `COMPARED`) in percent, the best in bold."""
    rows = []
    without_labels, with_labels, of_scenes = COMPARED[score]
    for sensor in result["sensors"]:
        # What the first cell says, the score of each way, and the differences of the adapted one to the others
        lines: list[tuple[str, dict[str, Any], list[str]]] = []
        if unlabelled := sensor.get("unlabelled"):
            number, of_way = unlabelled["scenes"], unlabelled.get("ways", {})
            if not of_way or not all(of_scenes in values for values in of_way.values()):
                raise ValueError(f"{sensor['title']}: expected a result of this version of sensors.py")
            all_scenes = {way: values[score] for way, values in of_way.items()}
            labels = f"none ({number} scenes)" if number > 1 else "none"
            lines.append((labels, all_scenes, ["–", percent(unlabelled[without_labels])]))
            if number > 1:
                first = {way: described(values[of_scenes][:1]) or {} for way, values in of_way.items()}
                own = percent(described([first[ADAPTED]["mean"] - first[RESAMPLED]["mean"]]))
                lines.append(("none, the scene of the labels", first, ["–", own]))
        for number, entry in enumerate(sensor["ways"][ADAPTED]):
            of_ways = {way: sensor["ways"][way][number][score] for way in WAYS}
            texts = [percent(sensor[with_labels][other][entry["budget"]]) for other in (SCRATCH, RESAMPLED)]
            lines.append((f"{entry['budget_title']} ({entry['labels']:,.0f})", of_ways, texts))
        for labels, of_ways, differences in lines:
            best = max(scores["mean"] for scores in of_ways.values())
            cells = [percent(of_ways.get(way), way in of_ways and of_ways[way]["mean"] == best) for way in WAYS]
            if sensor["filled_bands"]:
                cells[list(WAYS).index(RESAMPLED)] += " *"
            title = sensor["title"] + ("" if sensor["is_reflectance"] else " (radiance)")
            rows.append([title, labels, *cells, *differences])
    header = ["sensor", "labels", *WAYS.values(), "adapted – from scratch", "adapted – resampled"]
    note = "\n\n\\* Bands of the model that the sensor does not cover hold their mean."
    return markdown_table(header, rows) + (note if any(each["filled_bands"] for each in result["sensors"]) else "")


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
