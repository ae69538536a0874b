"""Classes of a model, and the classes of labels that they stand for: those of their name, or others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hsst.support.command_line import parse_named


def parse_merges(texts: Sequence[str]) -> dict[str, list[str]]:
    """For each class of the labels the classes of a model that stand for it, from arguments CLASS=NAME,..."""
    named = parse_named("merge", "CLASS=NAME,...", [text.rstrip(" ,") for text in texts])
    return {name: [other.strip() for other in others.split(",") if other.strip()] for name, others in named.items()}


def matched_classes(
    model_classes: Sequence[str], label_classes: Sequence[str], merged: Mapping[str, Sequence[str]]
) -> list[int]:
    """
    For each class of a model the number of the label class that it stands for, `len(label_classes)` for none: the one
    of its name, or the one that `merged` names it for. ValueError where a name is unknown, or stands for two classes.
    """
    stands_for: dict[str, str] = {}
    for label_class, names in merged.items():
        if label_class not in label_classes:
            raise ValueError(
                f"--merge: expected a class of the labels ({', '.join(label_classes)}), got {label_class}"
            )
        for name in names:
            if name not in model_classes:
                raise ValueError(
                    f"--merge {label_class}: expected classes of the model ({', '.join(model_classes)}), got {name}"
                )
            if name in stands_for:
                raise ValueError(
                    f"--merge: {name}: expected one class that it stands for, got {stands_for[name]}, {label_class}"
                )
            stands_for[name] = label_class
    numbers = {name: number for number, name in enumerate(label_classes)}
    return [numbers.get(stands_for.get(name, name), len(label_classes)) for name in model_classes]
