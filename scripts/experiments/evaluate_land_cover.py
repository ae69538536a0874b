"""
Hold a land-cover model, as it is, against labels of other classes than its own.

    python scripts/experiments/evaluate_land_cover.py --data_dir potsdam --model model_cards/hsst-enmap-landcover \\
        --class_names "roof,pavement,low vegetation,tree,soil,water" \\
        --merge "tree=broadleaf forest,needleleaf forest" --title "Real EnMAP tiles" --output_dir outputs/potsdam

Data are images and labels as run_classification.py takes them; all of them are for test. --merge says which classes of
the model stand for a class of the labels; others stand for the class of their own name, or for none. The output folder
holds `other_labels.json`, `confusion_matrix.png`, `confusion_matrix_area.png` and `other_labels_map.png`: bands are
standardised as the model was trained, and once more by mean and deviation of the scenes' own pixels, labelled or not.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import transformers

from datasets_loading.files import write_json
from datasets_loading.land_cover_metric import land_cover_scores
from hsst.experiments.baselines import load_config
from hsst.experiments.matched_classes import matched_classes, parse_merges
from hsst.experiments.other_labels import map_other_labels, other_labels_table
from hsst.run_classification import add_data_arguments, add_merge_argument, load_data
from hsst.support.command_line import one_line_errors
from hsst.support.fine_tuning import PRECISIONS, FineTuningSettings
from hsst.support.reports import plot_confusion, plot_land_cover_map


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a land-cover model")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--title", default="Labels", help="what the figures call the data (Labels)")
    parser.add_argument(
        "--remark", help="a sentence on the data that a card shall say, e.g. what they have served for"
    )
    add_data_arguments(parser)
    add_merge_argument(parser)
    parser.add_argument("--adapt_bands", action="store_true", help="adapt the model where the data lack bands of it")
    parser.add_argument("--stride", type=int, help="pixels between windows (half a window)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the model (float32)")
    parser.add_argument("--use_cpu", action="store_true", help="stay on the CPU")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    transformers.utils.logging.set_verbosity_error()
    with one_line_errors("evaluate_land_cover.py"):
        if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
            raise ValueError(f"{arguments.output_dir}: expected a folder for the results, got a file")
        merged = parse_merges(arguments.merge)
        config = load_config(arguments.model)
        settings = FineTuningSettings(
            stride=arguments.stride, precision=arguments.precision, use_cpu=arguments.use_cpu
        )
        given = load_data(arguments, min(config.window_size), None if arguments.dataset else "test")
        (matrix, data, maps), (area_matrix, _, area_maps) = (
            map_other_labels(
                arguments.model,
                given,
                merged,
                settings,
                adapt_bands=arguments.adapt_bands,
                area_statistics=area_statistics,
                progress=True,
            )
            for area_statistics in (False, True)
        )
        id2label: Any = config.id2label
        names = [id2label[number] for number in range(len(id2label))]
        stand_for: dict[str, list[str]] = {}
        for name, number in zip(names, matched_classes(names, given.class_names, merged), strict=True):
            stand_for.setdefault(data.class_names[number], []).append(name)
        scores, area_scores = land_cover_scores(matrix), land_cover_scores(area_matrix)
        result = {
            **scores,
            "title": arguments.title,
            "remark": arguments.remark,
            "model": Path(arguments.model).name,
            "class_names": list(data.class_names),
            "stand_for": stand_for,
            "labelled_pixels": matrix.sum(axis=1).tolist(),
            "confusion_matrix": matrix.tolist(),
            "area_statistics": {**area_scores, "confusion_matrix": area_matrix.tolist()},
            "stride": arguments.stride,
            "precision": arguments.precision,
        }
        for counts, way, end in ((matrix, scores, ""), (area_matrix, area_scores, "_area")):
            summary = f"overall accuracy {way['overall_accuracy']:.1%}, average {way['average_accuracy']:.1%}"
            own = ", standardised by their own pixels" if end else ""
            plot_confusion(
                arguments.output_dir / f"confusion_matrix{end}.png",
                counts,
                data.class_names,
                f"{arguments.title}{own}\n{summary}",
            )
        plot_land_cover_map(
            arguments.output_dir / "other_labels_map.png",
            data,
            maps,
            f"{arguments.title}, none of them trained on",
            others={"standardised by own pixels": area_maps},
        )
        path = write_json(arguments.output_dir / "other_labels.json", result)
    print(f"{other_labels_table(result)}\n\nResults: {path}")


if __name__ == "__main__":
    main()
