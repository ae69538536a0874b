"""
Lay out a trained model as a folder to publish: weights, configuration, processor, figures and card.

    python scripts/build_model_card.py --model outputs/hsst --sources simulated neon --reconstruction outputs/rec \\
        --label_efficiency outputs/labels --sensors outputs/sensors --output model_cards/hsst-enmap --final
    python scripts/build_model_card.py --model outputs/land_cover --output model_cards/hsst-enmap-landcover --final

--model is the output folder of run_mim.py, or of run_classification.py for a land-cover model. Every number of the
card comes from result files, which lie beside it. Weights that were trained on sources whose terms do not allow it
get no card.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from hsst.support.command_line import one_line_errors
from hsst.support.model_cards import (
    CONFUSION_FIGURE,
    MAP_FIGURE,
    OTHER_LABELS_FIGURE,
    RECONSTRUCTION_FIGURE,
    SPECTRA_FIGURE,
    CardSettings,
    Evaluations,
    land_cover_card,
    pretrained_card,
    without_folders,
)
from hsst.support.model_sources import read_config, reading
from hsst.support.reports import write_json, write_whole
from hsst.support.training_sources import check_sources, publishable_sources
from modeling_hsst import (
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
)

REPOSITORY = "hsg-aiml/hsst-enmap"
MODEL_CLASSES: tuple[Any, ...] = (HSSTForMaskedImageModeling, HSSTForSemanticSegmentation, HSSTForImageClassification)
# Argument, result file in the folder that it names, and the command that writes it
EVALUATIONS = {
    "reconstruction": ("reconstruction.json", "evaluate_reconstruction.py"),
    "label_efficiency": ("label_efficiency.json", "run_label_efficiency.py"),
    "sensors": ("sensors.json", "compare_sensors.py"),
    "other_labels": ("other_labels.json", "evaluate_land_cover.py"),
}
OF_PRETRAINED = ("reconstruction",)
OF_LAND_COVER = ("other_labels",)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="output folder of run_mim.py or run_classification.py"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to publish with publish.py")
    parser.add_argument("--repository", help=f"its name on the Hub ({REPOSITORY}, or {REPOSITORY}-landcover)")
    parser.add_argument("--base", default=REPOSITORY, help=f"name of the model that was fine-tuned ({REPOSITORY})")
    parser.add_argument(
        "--sources",
        nargs="+",
        default=["simulated"],
        help=f"what the weights were trained on, in all: {', '.join(publishable_sources())} (simulated)",
    )
    for name, (file_name, command) in EVALUATIONS.items():
        parser.add_argument(f"--{name}", type=Path, help=f"output folder of {command} ({file_name})")
    parser.add_argument("--final", action="store_true", help="leave out the note that these weights are a placeholder")
    return parser.parse_args()


def read_results(folder: Path, name: str, command: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder}: expected a finished run of {command} with {name}, found none")
    try:
        return without_folders(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None


def figure(folder: Path, pattern: str, command: str) -> Path:
    """The last figure of a name."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise ValueError(f"{folder}: expected a figure {pattern} of {command}, found none")
    return found[-1]


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("build_model_card.py"):
        check_sources(arguments.sources, "--sources")
        results = read_results(arguments.model, "all_results.json", "run_mim.py or run_classification.py")
        architecture = (read_config(str(arguments.model), "--model").architectures or ["nothing"])[0]
        classes = {model_class.__name__: model_class for model_class in MODEL_CLASSES}
        if architecture not in classes:
            raise ValueError(f"--model {arguments.model}: expected one of {', '.join(classes)}, got {architecture}")
        is_pretrained = architecture == "HSSTForMaskedImageModeling"
        given = {name: folder for name in EVALUATIONS if (folder := getattr(arguments, name)) is not None}
        kinds = ("a pre-trained model", "one fine-tuned for land cover")
        for name in given:
            if name in (OF_LAND_COVER if is_pretrained else OF_PRETRAINED):
                wanted, got = reversed(kinds) if is_pretrained else kinds
                raise ValueError(f"--{name}: expected {wanted}, got {got}")
        evaluations = {name: read_results(folder, *EVALUATIONS[name]) for name, folder in given.items()}
        with reading(str(arguments.model)):
            model = classes[architecture].from_pretrained(arguments.model)
        processor = HSSTImageProcessor.from_pretrained(arguments.model)
        settings = CardSettings(
            repository=arguments.repository or (REPOSITORY if is_pretrained else f"{REPOSITORY}-landcover"),
            sources=list(dict.fromkeys(arguments.sources)),
            is_final=arguments.final,
            base=None if is_pretrained else arguments.base,
        )
        if is_pretrained:
            figures = {RECONSTRUCTION_FIGURE: figure(arguments.model / "figures", "*.png", "run_mim.py")}
            if "reconstruction" in given:
                command = EVALUATIONS["reconstruction"][1]
                figures[SPECTRA_FIGURE] = figure(given["reconstruction"], SPECTRA_FIGURE, command)
            card = pretrained_card(model.config, results, settings, Evaluations(**evaluations))
        else:
            names = (MAP_FIGURE, CONFUSION_FIGURE)
            figures = {name: figure(arguments.model, name, "run_classification.py") for name in names}
            if "other_labels" in given:
                command = EVALUATIONS["other_labels"][1]
                figures[OTHER_LABELS_FIGURE] = figure(given["other_labels"], OTHER_LABELS_FIGURE, command)
            card = land_cover_card(model.config, results, settings, Evaluations(**evaluations), processor.scale)
        model.save_pretrained(arguments.output)
        processor.save_pretrained(arguments.output)
        for name, path in figures.items():
            if path.resolve() != (arguments.output / name).resolve():
                shutil.copyfile(path, arguments.output / name)
        # Results of an earlier card that this one does not tell
        told = {*figures, *(EVALUATIONS[name][0] for name in evaluations)}
        for name in {
            SPECTRA_FIGURE,
            OTHER_LABELS_FIGURE,
            *(file_name for file_name, _ in EVALUATIONS.values()),
        } - told:
            (arguments.output / name).unlink(missing_ok=True)
        for name, content in evaluations.items():
            write_json(arguments.output / EVALUATIONS[name][0], content)
        write_json(arguments.output / "all_results.json", results)
        write_whole(arguments.output / "README.md", lambda path: path.write_text(card, encoding="utf-8"))
    print(f"Folder to publish: {arguments.output}")


if __name__ == "__main__":
    main()
