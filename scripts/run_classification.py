"""
Land cover from few labels: trains a model on the training area of a labelled scene and maps the test area.

    python scripts/run_classification.py --data_dir potsdam --train_area 0,64,0,96 --test_area 64,128,96,160 \\
        --model hsst --model_name_or_path outputs/hsst --output_dir outputs/land_cover
    python scripts/run_classification.py --data_dir potsdam --model random-forest --output_dir outputs/forest
    python scripts/run_classification.py --data_dir . --images SCENE.tif --labels points.geojson \\
        --class_column cover --model auto --model_name_or_path model_cards/hsst-enmap --output_dir outputs/points

--data_dir is a folder as LabelledScene reads it (images/ and labels/). Without areas, blocks of the scene are dealt to
training, validation and test. The output folder holds `all_results.json`, `confusion_matrix.csv` and `.png`,
`land_cover_map.png`, and the model with its processor, for `AutoModelForSemanticSegmentation.from_pretrained`.

--model auto is for few labels: by cross-validation it takes what classifies single pixels best, spectra or the
features of --model_name_or_path or both, with ridge, logistic regression, SVM or a random forest; tests it on all
labels, in --folds that are apart in space; and trains it on all of them, for `predict_scene.py`. Of many labels
--labels_per_class draws some.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_loading.files import checksums, fingerprint, only_writer, write_json, written_into
from datasets_loading.land_cover_metric import FEW_PIXELS, land_cover_scores
from datasets_loading.splits import SPLITS, draw_labels
from hsst.support.command_line import (
    HelpFormatter,
    add_reading_arguments,
    check_least,
    check_source,
    one_line_errors,
)
from hsst.support.matched_classes import parse_merges
from hsst.support.reports import plot_confusion, plot_land_cover_map, without_folders, write_confusion_csv
from hsst.support.training_settings import (
    MODELS,
    STATISTICS,
    FineTuningSettings,
    ModelOptions,
    check_model,
    settings_for,
)

# What needs torch or `datasets` is imported where it is used: help and refusals need not wait for it
if TYPE_CHECKING:
    from datasets_loading.labelled_data import LabelledBuilder, LabelledData
    from hsst.experiments.baselines import Outcome
    from hsst.support.few_labels import Choice, LabelledPixels

DATASETS = ("enmap_dfc", "houston2018")

RESULTS = "all_results.json"
LABEL_ARGUMENTS = ("class_column", "image_variable", "label_variable", "scale", "nodata", "radiance")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a labelled scene; `load_data` reads it."""
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", type=Path, help="folder of labelled images, or of the files of --dataset")
    data.add_argument("--dataset", choices=DATASETS, help="a known data set with its own split")
    data.add_argument(
        "--dataset_config", help="configuration of --dataset, e.g. paper for the paper's tiles of enmap_dfc"
    )
    data.add_argument("--images", default="images", help="folder of images, or image, in --data_dir")
    data.add_argument(
        "--labels",
        default="labels",
        help="folder of labels, label raster, or vector file of points or polygons, in --data_dir",
    )
    data.add_argument("--class_column", help="column of a vector file of labels that holds the classes")
    data.add_argument(
        "--class_names", help="names of the label values 1, 2, ..., or VALUE=NAME of each, separated by commas"
    )
    data.add_argument(
        "--unlabelled",
        type=int,
        nargs="*",
        metavar="VALUE",
        help="label values that mean no label (0; 255 always does)",
    )
    data.add_argument("--image_variable", help="array of a MATLAB or NumPy file of an image that holds several")
    data.add_argument("--label_variable", help="array of a MATLAB or NumPy file of labels that holds several")
    add_reading_arguments(data, with_variable=False)
    data.add_argument("--block_size", type=int, default=64, help="side of the blocks of a split, in pixels")
    data.add_argument("--split_seed", type=int, default=0, help="of dealing blocks")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of models and their training; `options_of` and `settings_of` read them."""
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", help="checkpoint of a pre-trained HSST")
    model.add_argument(
        "--adapt_bands",
        action="store_true",
        help="adapt the checkpoint by wavelength where the data lack bands of it (another sensor)",
    )
    model.add_argument("--config_overrides", help="settings to change, e.g. hidden_size=48,num_spatial_layers=2")
    model.add_argument("--window_size", type=int, help="side of a window in pixels (the checkpoint's, 8, or 7)")
    model.add_argument(
        "--head_type", choices=("mean", "concat"), help="what HSST's head sees of the blocks (the configuration's)"
    )
    model.add_argument("--dropout", type=float, help="of HSST's attention and layers (the configuration's)")
    model.add_argument(
        "--statistics",
        choices=STATISTICS,
        help="standardize by mean and deviation of the training area (default from scratch), of the checkpoint "
        "(default for its model), or of each area by its own",
    )
    training = parser.add_argument_group("training")
    for setting in fields(FineTuningSettings):
        if setting.name == "seed":
            continue
        # Not given, so that each model's own settings count; the help says what stands in its place
        text = setting.metadata["help"] + stated_setting(setting.name)
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": None}
        if setting.type == "bool":
            options["action"] = "store_true"
        else:
            options["type"] = {"int": int, "float": float, "str": str}[str(setting.type).split(" |")[0]]
            options["choices"] = setting.metadata.get("choices")
        training.add_argument(f"--{setting.name}", **options)
    add_merge_argument(training, " (with --head_start checkpoint)")


def stated_setting(name: str) -> str:
    """What a setting of fine-tuning is where it is not given: for the default model, and for others by their names."""
    values: dict[Any, list[str]] = {}
    for model, entry in MODELS.items():
        if entry.kind in ("hsst", "network"):
            values.setdefault(getattr(settings_for(model, {}), name), []).append(model)
    first, *others = values
    if first in (None, False):
        return ""
    texts = [str(first), *(f"{value} for {', '.join(values[value])}" for value in others)]
    return f" ({'; '.join(texts)})"


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    split = parser.add_argument_group("split")
    for name in SPLITS:
        split.add_argument(
            f"--{name}_area",
            nargs="+",
            metavar="AREA",
            help="rectangles [SCENE,]ROW,ROW,COLUMN,COLUMN, from the first to before the last, or names of scenes",
        )
    split.add_argument("--validation_share", type=float, default=0.0, help="share of training labels to validate on")
    split.add_argument("--split_file", help="a split that datasets_loading.splits.write_split wrote")


def parse_area(text: str) -> Any:
    """A rectangle [SCENE,]ROW,ROW,COLUMN,COLUMN as numbers, or the name of a scene."""
    parts = text.split(",")
    if len(parts) == 1:
        return text
    try:
        sides = tuple(int(part) for part in parts[-4:])
    except ValueError:
        sides = ()
    if len(parts) not in (4, 5) or len(sides) != 4:
        raise ValueError(f"expected an area as [SCENE,]ROW,ROW,COLUMN,COLUMN or the name of a scene, got {text}")
    return (*parts[:-4], *sides)


def load_data(
    arguments: argparse.Namespace, window_size: int, areas: Mapping[str, Any] | str | None = None
) -> LabelledData:
    """The scenes and split that the arguments name, for windows of at most `window_size` pixels; areas are those of
    each split or "test", as LabelledScene takes them. ValueError where files cannot be used, or the split leaks."""
    settings: dict[str, Any] = {"window_size": window_size, "block_size": arguments.block_size}
    settings |= {"seed": arguments.split_seed, "validation_share": getattr(arguments, "validation_share", 0.0)}
    settings["split_file"] = getattr(arguments, "split_file", None)
    if arguments.data_dir is None:
        raise ValueError("--data_dir: expected a folder of files, got none")
    if arguments.dataset is not None:
        if areas:
            raise ValueError(f"--train_area: expected none for {arguments.dataset}, which has its own split, got some")
        return build_known(arguments.dataset, arguments.dataset_config, arguments.data_dir, settings)
    if arguments.dataset_config is not None:
        raise ValueError(f"--dataset_config: expected none without --dataset, got {arguments.dataset_config}")
    if arguments.class_names is not None:
        settings["class_names"] = parse_class_names(arguments.class_names)
    settings |= {name: value for name in LABEL_ARGUMENTS if (value := getattr(arguments, name)) is not None}
    if arguments.unlabelled is not None:
        settings["unlabelled"] = tuple(arguments.unlabelled)
    if arguments.wavelengths is not None:
        settings["wavelengths"] = str(arguments.wavelengths.resolve())
    if areas:
        settings["split"] = areas
    from datasets_loading.labelled_scene import LabelledScene

    builder = LabelledScene(
        data_dir=str(arguments.data_dir), images=arguments.images, labels=arguments.labels, **settings
    )
    return builder.data


def parse_class_names(text: str) -> list[str] | dict[int, str]:
    """Names in the order of their values, or a name for each value: "water,soil" or "11=water,42=soil"."""
    names = [name.strip() for name in text.split(",")]
    pairs = [re.fullmatch(r"(-?\d+)\s*=\s*(.+)", name) for name in names]
    return {int(pair[1]): pair[2] for pair in pairs if pair} if all(pairs) else names


def build_known(dataset: str, config_name: str | None, data_dir: Path, settings: Mapping[str, Any]) -> LabelledData:
    """A known data set in one of its configurations, its default one where none is named."""
    from datasets_loading.enmap_dfc import EnMAPDFC
    from datasets_loading.houston2018 import Houston2018

    builders: tuple[type[LabelledBuilder], ...] = (EnMAPDFC, Houston2018)
    builder = dict(zip(DATASETS, builders, strict=True))[dataset]
    names = [config.name for config in builder.BUILDER_CONFIGS]
    if config_name is not None and config_name not in names:
        raise ValueError(f"--dataset_config: expected {' or '.join(names) or 'none'} for {dataset}, got {config_name}")
    return builder(config_name=config_name, data_dir=str(data_dir), **settings).data


def areas_of(arguments: argparse.Namespace) -> dict[str, list[Any]] | None:
    """Areas of each split, None where none is given."""
    given = {name: getattr(arguments, f"{name}_area") for name in SPLITS}
    areas = {name: [parse_area(text) for text in texts] for name, texts in given.items() if texts}
    missing = [name for name in ("train", "test") if name not in areas]
    if areas and missing:
        raise ValueError(f"--{missing[0]}_area: expected an area beside the others, got none")
    return areas or None


def add_merge_argument(parser: Any, condition: str = "") -> None:
    parser.add_argument(
        "--merge",
        action="append",
        default=[],
        metavar="CLASS=NAME,...",
        help=f"a class of the labels, and the classes of the model that stand for it{condition}",
    )


def options_of(arguments: argparse.Namespace) -> ModelOptions:
    overrides = {}
    if arguments.config_overrides:
        from hsst.support.model_sources import parse_overrides

        overrides = parse_overrides(arguments.config_overrides, has_dropout=True)
    return ModelOptions(
        checkpoint=arguments.model_name_or_path,
        config_overrides=overrides,
        window_size=arguments.window_size,
        dropout=arguments.dropout,
        head_type=arguments.head_type,
        statistics=arguments.statistics,
        adapt_bands=arguments.adapt_bands,
        merged=parse_merges(arguments.merge),
    )


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of fine-tuning that the user gave."""
    names = FineTuningSettings.__annotations__
    return {name: value for name, value in vars(arguments).items() if name in names and value is not None}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", choices=("auto", *MODELS), default="hsst", help="what to train")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results and model, made if missing")
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, windows, augmentation and the choice of labels"
    )
    add_data_arguments(parser)
    add_split_arguments(parser)
    budget = parser.add_argument_group("labels")
    budget.add_argument("--label_fraction", type=float, help="share of the training labels of each class to use")
    budget.add_argument("--labels_per_class", type=int, help="number of training labels of each class to use")
    budget.add_argument("--folds", type=int, default=5, help="parts that --model auto tests in, one after another")
    add_training_arguments(parser)
    return parser.parse_args()


def versions() -> dict[str, str]:
    """Of what results depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}


def identity(
    arguments: argparse.Namespace, data: LabelledData, settings: Any, options: ModelOptions
) -> dict[str, Any]:
    """What makes two runs the same: arguments, and what is in the files that they name."""
    from hsst.support.model_sources import weight_files

    arrays = [array for scene in data.scenes for array in (scene.cube, scene.labels, data.split.codes[scene.name])]
    run = {"model": arguments.model, "settings": asdict(settings), "options": asdict(options)}
    run["data_dir"] = str(arguments.data_dir)
    run["data"] = fingerprint(f"{data.class_names} {data.wavelengths}", *arrays)[:16]
    if options.checkpoint is not None:
        run["weights"] = fingerprint(*checksums(weight_files(options.checkpoint)).values())[:16]
    names = ("dataset", "dataset_config", "label_fraction", "labels_per_class")
    run |= {name: getattr(arguments, name) for name in names}
    # Results go to others with the model
    return json.loads(json.dumps(without_folders(run)))


def is_finished(folder: Path, run: Mapping[str, Any]) -> bool:
    """Whether a folder holds all files of this very run, as they were written."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        files: dict[str, str] = results["files"]
        return results["run"] == run and checksums(folder / name for name in files) == files
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def write_results(arguments: argparse.Namespace, data: LabelledData, outcome: Outcome, run: Mapping[str, Any]) -> None:
    """The files of the output folder, `all_results.json` at the end, with the checksums of the others."""
    from hsst.experiments.baselines import save_network
    from hsst.support.few_labels import Description, processor_settings, save_classifier
    from hsst.support.pretraining import earlier_run

    earlier = earlier_run(arguments.model_name_or_path)
    scores = land_cover_scores(outcome.confusion)
    title = MODELS[arguments.model].title
    summary = f"overall accuracy {scores['overall_accuracy']:.1%}, average {scores['average_accuracy']:.1%}"
    with written_into(arguments.output_dir, last=RESULTS) as folder:
        write_confusion_csv(folder / "confusion_matrix.csv", outcome.confusion, data.class_names)
        plot_confusion(folder / "confusion_matrix.png", outcome.confusion, data.class_names, f"{title}: {summary}")
        plot_land_cover_map(folder / "land_cover_map.png", data, outcome.maps, f"Test area, {title}: {summary}")
        if outcome.parameters is not None:
            save_network(outcome, folder)
        elif MODELS[arguments.model].kind == "pixels" and arguments.model != "knn":  # whose tree cannot be checked
            seen = processor_settings(outcome.processor)
            names = list(data.class_names)
            description = Description("spectra", "as_they_are", names, len(outcome.bands), seen)
            save_classifier(folder, outcome.model, description)
        counts = {split: data.class_counts(split).tolist() for split in SPLITS}
        results = {
            **scores,
            "class_names": list(data.class_names),
            "labelled_pixels": counts,
            "bands": len(outcome.bands),
            "adaptation": None if outcome.adaptation is None else str(outcome.adaptation),
            "parameters": outcome.parameters,
            "train_seconds": round(outcome.train_seconds, 2),
            "predict_seconds": round(outcome.predict_seconds, 2),
            "training": None if outcome.training is None else asdict(outcome.training),
            "chosen_settings": outcome.chosen,
            "split": data.split.settings,
            **(earlier if "labelled_pixels" in earlier.get("earlier", {}) else {}),  # of fine-tuning
            "run": run,
            "files": checksums(sorted(folder.iterdir())),
            "versions": versions(),
        }
        write_json(folder / RESULTS, without_folders(results))
    folder = arguments.output_dir
    print(f"{title}: {summary}\nResults: {folder / RESULTS}\nMap: {folder / 'land_cover_map.png'}")


def run_auto(arguments: argparse.Namespace) -> None:
    """--model auto: what classifies single pixels best, tested in folds and trained on all labels."""
    for name, given in (
        *((f"{split}_area", getattr(arguments, f"{split}_area")) for split in SPLITS),
        ("split_file", arguments.split_file),
        *((name, value) for name, value in given_settings(arguments).items() if name != "seed"),
        *((name, getattr(arguments, name)) for name in ("config_overrides", "window_size", "head_type", "statistics")),
        ("label_fraction", arguments.label_fraction),
    ):
        if given:
            raise ValueError(f"--{name}: expected none with --model auto, which chooses by itself")
    check_least(arguments, 2, "folds")
    check_least(arguments, 1, "labels_per_class")
    from hsst.support.few_labels import LabelledPixels, choose, inputs_of, score_in_folds
    from hsst.support.model_sources import read_config, weight_files

    model = arguments.model_name_or_path
    if model is not None:
        read_config(model, "--model_name_or_path")
    data = load_data(arguments, 1, None if arguments.dataset else "test")
    pixels = LabelledPixels.of(data, arguments.block_size, arguments.labels_per_class, arguments.seed)
    if model is not None and pixels.wavelengths is None:
        raise ValueError(
            f"--model_name_or_path: the labelled scenes have no wavelengths, which features of {model} need"
        )
    run = {"model": "auto", "folds": arguments.folds, "seed": arguments.seed, "block_size": arguments.block_size}
    run["data"] = fingerprint(f"{data.class_names}", pixels.spectra, pixels.classes, pixels.parts)[:16]
    if model is not None:
        run["weights"] = fingerprint(*checksums(weight_files(model)).values())[:16]
    with only_writer(arguments.output_dir):
        if is_finished(arguments.output_dir, run):
            print(f"Finished before: {arguments.output_dir / RESULTS}")
            return
        variants = inputs_of(pixels, model)
        tested = score_in_folds(variants, pixels, len(data.class_names), arguments.folds, arguments.seed)
        given = variants, pixels.classes, pixels.parts, arguments.seed
        choice = choose(*given)
        temperature = choice.temperature(*given, pixels.places)
        write_auto(arguments, data, pixels, tested, choice, temperature, run)


def write_auto(
    arguments: argparse.Namespace,
    data: LabelledData,
    pixels: LabelledPixels,
    tested: Mapping[str, Any],
    choice: Choice,
    temperature: float,
    run: Mapping[str, Any],
) -> None:
    """The files of --model auto, `all_results.json` at the end, and what they say in a few lines."""
    from hsst.support.few_labels import Description, processor_settings, save_classifier
    from modeling_hsst import HSSTImageProcessor

    wavelengths = None if pixels.wavelengths is None else pixels.wavelengths.tolist()
    description = Description(
        class_names=list(data.class_names),
        num_bands=len(pixels.bands),
        processor=processor_settings(HSSTImageProcessor(wavelengths=wavelengths, clip_range=(-10.0, 10.0))),
        temperature=temperature,
        **choice.description(),
    )
    names = {"as_they_are": "", "unit_norm": " of unit norm", "both": " as they are and of unit norm"}
    names["with_derivatives"] = " as they are, of unit norm, and derivatives"
    around = {"pixel": "", "mean": " of surroundings", "pixel and mean": " of pixels and surroundings"}
    of_spectra = f"spectra{around[description.spectra_of]}{names[description.preparation]}"
    seen = choice.inputs.replace("features", f"features{around[description.features_of]}")
    title = f"{choice.head} on {seen.replace('spectra', of_spectra)}"
    reach = tested["interval"]["overall_accuracy"]
    between = "" if reach is None else f", 95 % interval over folds {reach[0]:.1%} to {reach[1]:.1%}"
    matrix = np.asarray(tested["confusion_matrix"])
    summary = (
        f"overall accuracy {tested['overall_accuracy']:.1%} ({matrix.sum()} pixels in {len(tested['folds'])} "
        f"folds{between}), macro F1 {tested['macro_f1']:.1%}"
    )
    with written_into(arguments.output_dir, last=RESULTS) as folder:
        write_confusion_csv(folder / "confusion_matrix.csv", matrix, data.class_names)
        plot_confusion(folder / "confusion_matrix.png", matrix, data.class_names, summary)
        model = None if choice.inputs == "spectra" else arguments.model_name_or_path
        save_classifier(folder, choice.tuned.classifier, description, model)
        results = {
            **tested,
            "class_names": list(data.class_names),
            "labelled_pixels": np.bincount(pixels.classes, minlength=len(data.class_names)).tolist(),
            "bands": len(pixels.bands),
            "chosen": title,
            "chosen_settings": choice.tuned.settings,
            "scores_of_choice": choice.scores,
            "run": run,
            "files": checksums(sorted(folder.iterdir())),
            "versions": versions(),
        }
        write_json(folder / RESULTS, without_folders(results))
    counts = zip(data.class_names, tested["support_per_class"], strict=True)
    rare = [f"{name} ({count})" for name, count in counts if count < FEW_PIXELS]
    if rare:
        print(f"warning: fewer than {FEW_PIXELS} test pixels, so that their scores say little: {', '.join(rare)}")
    print(f"{title}, chosen by cross-validation among {len(choice.scores)}\nTested apart in space: {summary}")
    print(f"Results: {arguments.output_dir / RESULTS}")
    print(f"Map: hsst predict SCENE --model {shlex.quote(str(arguments.output_dir))} --output map.tif")


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with one_line_errors("run_classification.py"):
        check_source(arguments.model_name_or_path, "--model_name_or_path")
        if arguments.model == "auto":
            run_auto(arguments)
            return
        options = options_of(arguments)
        settings: FineTuningSettings = settings_for(arguments.model, given_settings(arguments))
        check_model(arguments.model, settings, options)
        if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
            raise ValueError(f"{arguments.output_dir}: expected a folder for the results, got a file")
        from transformers.utils import logging as transformers_logging

        from hsst.experiments.baselines import (
            check_classes,
            choose_window_size,
            load_config,
            run_model,
            warn_of_untrained_classes,
        )

        transformers_logging.set_verbosity_error()
        base = None if options.checkpoint is None else load_config(options.checkpoint)
        options = replace(options, window_size=choose_window_size(settings, options, base))
        assert options.window_size is not None
        data = load_data(arguments, options.window_size, areas_of(arguments))
        budget = {"fraction": arguments.label_fraction, "per_class": arguments.labels_per_class}
        if any(value is not None for value in budget.values()):
            data = data.with_labels(draw_labels(data.labels, data.split, **budget, seed=arguments.seed))
        check_classes(data)
        warn_of_untrained_classes(data)
        run = identity(arguments, data, settings, options)
        with only_writer(arguments.output_dir):
            if is_finished(arguments.output_dir, run):
                print(f"Finished before: {arguments.output_dir / RESULTS}")
                return
            if MODELS[arguments.model].needs_checkpoint and settings.head_start == "random":
                print(f"{options.checkpoint}: the encoder's weights are taken, the classifier starts from new ones")
            outcome = run_model(arguments.model, data, settings, options, progress=True)
            if outcome.adaptation is not None:
                print(f"Adapted {options.checkpoint} to {len(outcome.bands)} bands: {outcome.adaptation}")
            write_results(arguments, data, outcome, run)


if __name__ == "__main__":
    main()
