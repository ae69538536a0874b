"""
Lay out a trained model as a folder to publish: weights, configuration, processor, figures and card.

    python scripts/build_model_card.py --model outputs/hsst --sources simulated neon --reconstruction outputs/rec \\
        --label_efficiency outputs/labels --sensors outputs/sensors --output model_cards/hsst-enmap --final
    python scripts/build_model_card.py --model outputs/land_cover --output model_cards/hsst-enmap-landcover --final

--model is the output folder of run_mim.py, or of run_classification.py for a land-cover model. The card is
scripts/support/model_card.md, filled in from result files, which lie beside it; no number in it was typed. Weights
that were trained on sources whose terms do not allow it get no card.
"""

import argparse
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from datasets_loading.files import only_writer, write_json, write_text, written_into
from hsst.publish import CARD_NAME, check_sources, training_sources
from hsst.support.card_tables import MODEL, other_labels_table, reconstruction_table, sensor_table
from hsst.support.command_line import HelpFormatter, one_line_errors
from hsst.support.reports import markdown_table, without_folders

REPOSITORY = "hsg-aiml/hsst-enmap"
TEMPLATE = Path(__file__).parent / "support" / "model_card.md"
MODEL_CLASSES = ("HSSTForMaskedImageModeling", "HSSTForSemanticSegmentation", "HSSTForImageClassification")
# Argument, the command whose result file of this name it takes, the kind of model that it is about, and its figure
EVALUATIONS = {
    "reconstruction": ("reconstruction.py of commit bd54004", "a pre-trained model", "reconstruction_spectra.png"),
    "label_efficiency": ("label_efficiency.py", None, None),
    "real_places": ("real_places.py", None, None),
    "sensors": ("sensors.py of commit bd54004", None, None),
    "other_labels": ("other_labels.py of commit bd54004", "one fine-tuned for land cover", "other_labels_map.png"),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="output folder of run_mim.py or run_classification.py"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to publish with publish.py")
    parser.add_argument("--repository", help=f"its name on the Hub ({REPOSITORY}, or {REPOSITORY}-landcover)")
    parser.add_argument("--base", default=REPOSITORY, help="name of the model that was fine-tuned")
    parser.add_argument("--sources", nargs="+", default=["simulated"], help="what the weights were trained on, in all")
    for name, (command, *_) in EVALUATIONS.items():
        parser.add_argument(f"--{name}", type=Path, help=f"output folder of {command} ({name}.json)")
    parser.add_argument("--final", action="store_true", help="leave out the note that these weights are a placeholder")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("build_model_card.py"):
        check_sources(arguments.sources, "--sources")
        results = read_results(arguments.model, "all_results", "run_mim.py or run_classification.py")
        # Here, for help and refusals need not wait for torch
        import modeling_hsst
        from hsst.support.model_sources import load_model, read_config, read_processor

        config = read_config(str(arguments.model), "--model")
        architecture = (config.architectures or ["nothing"])[0]
        if architecture not in MODEL_CLASSES:
            expected = ", ".join(MODEL_CLASSES)
            raise ValueError(f"--model {arguments.model}: expected one of {expected}, got {architecture}")
        land_cover = architecture != "HSSTForMaskedImageModeling"
        if land_cover:
            figures = {
                name: find_figure(arguments.model, name, "run_classification.py")
                for name in ("land_cover_map.png", "confusion_matrix.png")
            }
        else:
            figures = {"reconstruction.png": find_figure(arguments.model / "figures", "*.png", "run_mim.py")}
        evaluations = {}
        for name, (command, kind, picture) in EVALUATIONS.items():
            folder = getattr(arguments, name)
            if folder is None:
                continue
            if kind is not None and land_cover != (name == "other_labels"):
                got = "one fine-tuned for land cover" if land_cover else "a pre-trained model"
                raise ValueError(f"--{name}: expected {kind}, got {got}")
            evaluations[name] = read_results(folder, name, command)
            if picture is not None:
                figures[picture] = find_figure(folder, picture, command)
        model = load_model(getattr(modeling_hsst, architecture), str(arguments.model), config)
        processor = read_processor(str(arguments.model), config)
        repository = arguments.repository or (f"{REPOSITORY}-landcover" if land_cover else REPOSITORY)
        card = model_card(
            model.config,
            results,
            list(dict.fromkeys(arguments.sources)),
            repository,
            arguments.base if land_cover else None,
            arguments.final,
            evaluations,
            processor.scale,
        )
        with only_writer(arguments.output), written_into(arguments.output, last=CARD_NAME) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            for name, path in figures.items():
                shutil.copyfile(path, folder / name)
            for name, content in {**evaluations, "all_results": results}.items():
                write_json(folder / f"{name}.json", content)
            write_text(folder / CARD_NAME, card)
        # Results of an earlier card that this one does not show
        for name, (_, _, picture) in EVALUATIONS.items():
            if name not in evaluations:
                for file_name in (f"{name}.json", picture or f"{name}.json"):
                    (arguments.output / file_name).unlink(missing_ok=True)
    print(f"Folder to publish: {arguments.output}")


def read_results(folder: Path, name: str, command: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{folder}: expected a finished run of {command} with {path.name}, found none")
    try:
        return without_folders(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None


def find_figure(folder: Path, pattern: str, command: str) -> Path:
    """The last figure of a name."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise ValueError(f"{folder}: expected a figure {pattern} of {command}, found none")
    return found[-1]


def model_card(
    config: Any,
    results: Mapping[str, Any],
    sources: Sequence[str],
    repository: str,
    base: str | None = None,
    final: bool = True,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    scale: float = 10000.0,
) -> str:
    """
    The card of a model, `scripts/support/model_card.md` filled in.

    Args:
        results: `all_results.json` of its pre-training, or of its fine-tuning.
        sources: keys of `training_sources` that the weights were trained on.
        repository, base: OWNER/NAME on the Hub of the model, and of the one that was fine-tuned for land cover.
        final: leave out the note that the weights are a placeholder.
        evaluations: result files by their keys in `EVALUATIONS`; what is missing was not measured.
        scale: stored number of a reflectance of 1.
    """
    from hsst.experiments.label_efficiency import label_efficiency_table
    from hsst.experiments.real_places import gains_table

    evaluations = evaluations or {}
    runs, land_cover = training_runs(results), "accuracy_per_class" in results
    dense = config.head_type != "center"
    name = repository.split("/")[-1]
    values: dict[str, Any] = {
        **{key: evaluations.get(key) for key in EVALUATIONS},
        **{"config": config, "results": results, "runs": runs, "land_cover": land_cover, "final": final},
        **{"name": name, "repository": repository, "base": base, "sources": list(sources), "scale": f"{scale:g}"},
        "auto_class": "AutoModelForSemanticSegmentation" if dense else "AutoModelForImageClassification",
        "window": "x".join(map(str, config.window_size)),
        "versions": [", ".join(f"{name} {version}" for name, version in run["versions"].items()) for run in runs],
        "sources_table": sources_table(sources),
        "attributions": [text for source in sources if (text := training_sources()[source].get("attribution"))],
    }
    data: dict[str, Any] = {"tags": ["hyperspectral", "remote-sensing", "EnMAP"], "base_model": base}
    if land_cover:
        values |= land_cover_values(results, runs)
        data["tags"].append("land-cover")
        data["pipeline_tag"] = "image-segmentation" if dense else "image-classification"
        data |= {"model_name": name, "eval_results": evaluation_results(results, data["pipeline_tag"])}
    else:
        data["tags"].append("masked-image-modeling")
        data["pipeline_tag"] = "image-feature-extraction"
        values |= {
            "mask_types": results["run"].get("mask_types") or [config.mask_type],
            "steps": " + ".join(f"{run['steps']:,}" for run in runs),
            "validation_table": validation_table(results),
            # Runs on tile tensors are given their validation tiles, others set some of the training's apart
            "own_validation": "windows_by_source" in results,
        }
    if values["reconstruction"]:
        masks = values["reconstruction"]["masks"]
        values |= {
            "reconstruction_table": reconstruction_table(values["reconstruction"]),
            "real_tiles": len(next(iter(masks.values()))["tiles"]),
            "behind": [
                mask_type
                for mask_type, entry in masks.items()
                if min(entry["predictors"], key=lambda name: entry["predictors"][name]["overall"]) != MODEL
            ],
        }
    if values["label_efficiency"]:
        values["label_efficiency_table"] = label_efficiency_table(values["label_efficiency"])
        values["about_few_labels"] = about_few_labels(values["label_efficiency"])
    if values["real_places"]:
        values["gains_table"] = gains_table(values["real_places"], [name])
    if values["sensors"]:
        values["sensor_table"] = sensor_table(values["sensors"])
    if values["other_labels"]:
        values["other_labels_table"] = other_labels_table(values["other_labels"])
    metadata = ModelCardData(
        license="apache-2.0", library_name="transformers", training_sources=list(sources), **data
    ).to_yaml()
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values)
    return str(ModelCard(f"---\n{metadata}\n---\n\n{text}\n"))


def land_cover_values(results: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the card of a land-cover model says of its labels."""
    names, counts = list(results["class_names"]), results["labelled_pixels"]
    pixels = {split: [f"{sum(run['labelled_pixels'][split]):,}" for run in runs] for split in counts}
    return {
        "classes": list(zip(names, counts["train"], counts["test"], results["accuracy_per_class"], strict=True)),
        "labelled_pixels": f"{' + '.join(pixels['train'])} to train, {pixels['validation'][-1]} to validate, "
        f"{pixels['test'][-1]} to test",
        "steps": " + ".join(f"{run['training']['steps']:,}" for run in runs),
        "untrained": [
            name
            for number, name in enumerate(names)
            if not any(run["labelled_pixels"]["train"][number] for run in runs)
        ],
    }


def evaluation_results(results: Mapping[str, Any], task: str) -> list[EvalResult]:
    """Scores of the test area as the Hub shows them beside the card."""
    scores = {"overall_accuracy": "Overall accuracy", "average_accuracy": "Average accuracy", "macro_f1": "Macro F1"}
    data: dict[str, Any] = {"dataset_type": "simulated-enmap", "dataset_name": "Simulated EnMAP scenes, test area"}
    return [
        EvalResult(task_type=task, metric_type=score, metric_name=title, metric_value=results[score], **data)
        for score, title in scores.items()
    ]


def training_runs(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs that weights come from, earliest first: each went on from the one before."""
    return [*training_runs(results["earlier"]), results] if "earlier" in results else [results]


def validation_table(results: Mapping[str, Any]) -> str:
    """Errors of the validation tiles before and after pre-training, as Markdown: of run_mim.py with one kind of mask,
    of run_mim_tensors.py with several, for each file of tiles."""
    columns = ("", "this model", "before training", "mean of the band", "mean of the window's visible tokens")
    if "history" in results:
        first = training_runs(results)[0]["history"][0]["validation"]
        rows: list[tuple[Any, ...]] = [
            (
                "{}, {} masks".format(*name.replace(".safetensors", "").rsplit("/", 1)),
                values["error"],
                first[name]["error"],
                values["band_mean"],
                values["visible_mean"],
            )
            for name, values in results["history"][-1]["validation"].items()
        ]
    else:
        names = ("eval_loss", "start_eval_loss", "eval_band_mean_loss", "eval_visible_mean_loss")
        rows = [("validation tiles", *(results.get(name) for name in names))]
    cells = [
        [name, *("not measured" if value is None else f"{value:.3f}" for value in values)] for name, *values in rows
    ]
    return markdown_table(columns, cells)


def sources_table(used: Sequence[str] | None = None) -> str:
    """Markdown: every source with its terms and the decision; with `used`, also whether these weights saw it."""
    columns = ["source", "terms", "weights may be published", "why"]
    columns = columns[:2] + ["used here"] + columns[2:] if used is not None else columns
    rows = []
    for name, source in training_sources().items():
        cells = [source["title"], source["terms"]]
        cells += ["yes" if name in used else "no"] if used is not None else []
        cells += ["yes" if source["publishable"] else "**no**", source["reason"]]
        rows.append(cells)
    return markdown_table(columns, rows)


def about_few_labels(summary: Mapping[str, Any]) -> str:
    """How a land-cover model took part in a comparison with models that have seen no simulated label."""
    options, settings = ((summary.get("experiment") or {}).get(name) or {} for name in ("options", "settings"))
    about = f'"{summary["results"][0]["title"]}" is this model, its classifier included'
    if settings.get("learning_rate") is not None:
        about += f", trained on with a learning rate of {settings['learning_rate']:g}"
    merged = "; ".join(f"{name}: {', '.join(others)}" for name, others in (options.get("merged") or {}).items())
    if merged:
        about += f". A class that several of its own stand for starts with the mean of their scores ({merged})"
    about += ". The others have seen no simulated label"
    if untrained := summary.get("untrained_classes"):
        about += (
            f". Of {' and '.join(untrained)} there is no training pixel in a direction, where only a model that knows "
            "it beforehand finds it: see the average without"
        )
    return textwrap.fill(f"{about}.", 118, break_on_hyphens=False)


if __name__ == "__main__":
    main()
