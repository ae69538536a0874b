"""The cards of published models, made from result files: no number in them was typed.

`pretrained_card` is for models of `scripts/run_mim.py`, `land_cover_card` for those of
`scripts/run_classification.py`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from hsst.experiments.label_efficiency import label_efficiency_table
from hsst.experiments.other_labels import other_labels_table
from hsst.experiments.reconstruction_tables import MODEL, reconstruction_table
from hsst.experiments.sensor_comparison import sensor_table
from hsst.support.training_sources import TRAINING_SOURCES, sources_table
from modeling_hsst import HSSTConfig

RECONSTRUCTION_FIGURE = "reconstruction.png"
SPECTRA_FIGURE = "reconstruction_spectra.png"
MAP_FIGURE = "land_cover_map.png"
OTHER_LABELS_FIGURE = "other_labels_map.png"
CONFUSION_FIGURE = "confusion_matrix.png"

STATUS_OF_PLACEHOLDER = """\
> **A placeholder.** These weights come from the demonstration of the package: a small model, trained for minutes on
> one simulated scene. They show that loading works; they are not for use on real data. Trained weights will take their
> place under the same name.

"""

CITATION = """\
## Citation
```bibtex
@inproceedings{scheibenreif2023masked,
  title = {Masked Vision Transformers for Hyperspectral Image Classification},
  author = {Scheibenreif, Linus and Mommert, Michael and Borth, Damian},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops (EarthVision)},
  year = {2023},
}
```
"""

ABOUT = """\
HSST is a vision transformer for hyperspectral images: blockwise patch embeddings and attention factorised into space
and spectrum, pre-trained by masked image modelling, after *Masked Vision Transformers for Hyperspectral Image
Classification* (Scheibenreif, Mommert and Borth, CVPR EarthVision 2023). This is a new implementation with weights of
its own, not the authors' checkpoint.
"""


@dataclass(frozen=True)
class Evaluations:
    """Results of other commands, as their files hold them; what is None was not measured and is not in the card.

    Attributes:
        reconstruction: of `scripts/experiments/evaluate_reconstruction.py`.
        label_efficiency: of `scripts/experiments/run_label_efficiency.py`.
        sensors: of `scripts/experiments/compare_sensors.py`.
        other_labels: of `scripts/experiments/evaluate_land_cover.py`, for land-cover models.
    """

    reconstruction: Mapping[str, Any] | None = None
    label_efficiency: Mapping[str, Any] | None = None
    sensors: Mapping[str, Any] | None = None
    other_labels: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class CardSettings:
    """What a card says beside results.

    Attributes:
        repository: OWNER/NAME on the Hub.
        sources: keys of `TRAINING_SOURCES` that the weights were trained on.
        is_final: leave out the note that the weights are a placeholder.
        base: OWNER/NAME of the model that was fine-tuned.
        tags: of the metadata.
    """

    repository: str
    sources: Sequence[str]
    is_final: bool = False
    base: str | None = None
    tags: Sequence[str] = field(default=("hyperspectral", "remote-sensing", "EnMAP"))

    @property
    def name(self) -> str:
        return self.repository.split("/")[-1]


def pretrained_card(
    config: HSSTConfig, results: Mapping[str, Any], settings: CardSettings, evaluations: Evaluations = Evaluations()
) -> str:
    """The card of a pre-trained model.

    Args:
        config: its configuration.
        results: `all_results.json` of its pre-training.
        settings: names and sources.
        evaluations: further results.
    """
    mask_types = ", ".join(results["run"].get("mask_types") or [config.mask_type])
    runs = training_runs(results)
    steps = " + ".join(f"{run['steps']:,}" for run in runs)
    parts = [
        metadata(settings, "image-feature-extraction", [*settings.tags, "masked-image-modeling"]),
        f"# {settings.name}\n\n{'' if settings.is_final else STATUS_OF_PLACEHOLDER}{ABOUT}",
        f"""\
## Load
With the package (`pip install .` in a clone of its repository):

```python
import modeling_hsst
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{settings.repository}")
model = AutoModel.from_pretrained("{settings.repository}")
# image: stored numbers (reflectance x 10000), (bands, height, width), with the band centres in nm
inputs = processor(image, wavelengths=wavelengths)
features = model(**inputs).last_hidden_state  # (windows, blocks * positions, width)
```

Without it, with torch, pillow and transformers 5.18 or newer alone: the same with `trust_remote_code=True` for both,
which runs the code of this repository. The other Auto classes load from here as well:
`AutoModelForMaskedImageModeling` reconstructs hidden tokens, `AutoModelForSemanticSegmentation`,
`AutoModelForImageClassification` and `AutoBackbone` start from the encoder, the first two with a new head to
fine-tune. For other sensors: `modeling_hsst.load_for_wavelengths`.
""",
        """\
## Intended use
Surface reflectance of EnMAP L2A products, or of images with the same bands: as the start of a land-cover model where
labels are few, as features of pixels and windows, and to fill in hidden or missing bands. Check it on your own labels,
on an area apart from those that you trained on, before anything is decided by its output.

Not for radiance or unitless numbers as they are, not for thermal or panchromatic images, and not for bands that the
processor does not find by wavelength: adapt the model to another sensor, or resample the image.
""",
        model_section(config, results["parameters"])
        + f"| masks in training | {mask_types}, {results['realised_mask_ratio']:.0%} of the tokens |\n",
        training_section(
            settings,
            f"""\
| | |
|---|---|
| tiles | {results["training_tiles"]:,} to train, {results["validation_tiles"]:,} to validate |
| windows seen | {sum(run["windows_seen"] for run in runs):,} in {steps} steps |
| seed | {", then ".join(str(run["run"]["seed"]) for run in runs)} |
| versions | {", then ".join(dict.fromkeys(versions(run) for run in runs))} |

`all_results.json` holds every setting of the training.
""",
        ),
        f"""\
## Reconstruction
Mean absolute error of the hidden values of the validation tiles, in standard deviations of each band:

{validation_table(results)}

![Input, what the model sees, its reconstruction, and spectra]({RECONSTRUCTION_FIGURE})
""",
    ]
    parts += evaluation_sections(evaluations)
    # Runs on tile tensors are given their validation tiles, others set some of the training's apart
    parts += [limits_section(settings, evaluations, has_own_validation="windows_by_source" in results), CITATION]
    return "\n".join(parts)


def training_runs(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs that weights come from, earliest first: each went on from the one before."""
    return [*training_runs(results["earlier"]), results] if "earlier" in results else [results]


def validation_table(results: Mapping[str, Any]) -> str:
    """Errors of the validation tiles before and after pre-training, as Markdown: of run_mim.py with one kind of mask,
    of run_mim_tensors.py with several, for each file of tiles."""
    columns = ("", "this model", "before training", "mean of the band", "mean of the window's visible tokens")
    header = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    if "history" in results:
        first = training_runs(results)[0]["history"][0]["validation"]
        last = results["history"][-1]["validation"]
        rows: list[tuple[Any, ...]] = [
            (
                "{}, {} masks".format(*name.replace(".safetensors", "").rsplit("/", 1)),
                values["error"],
                first[name]["error"],
                values["band_mean"],
                values["visible_mean"],
            )
            for name, values in last.items()
        ]
    else:
        names = ("eval_loss", "start_eval_loss", "eval_band_mean_loss", "eval_visible_mean_loss")
        rows = [("validation tiles", *(results.get(name) for name in names))]
    cells = [
        [name, *("not measured" if value is None else f"{value:.3f}" for value in values)] for name, *values in rows
    ]
    return "\n".join([header, *(f"| {' | '.join(row)} |" for row in cells)])


def land_cover_card(
    config: HSSTConfig,
    results: Mapping[str, Any],
    settings: CardSettings,
    evaluations: Evaluations = Evaluations(),
    processor_scale: float = 10000.0,
) -> str:
    """The card of a model that was fine-tuned for land cover.

    Args:
        config: its configuration.
        results: `all_results.json` of its fine-tuning.
        settings: names and sources, of the pre-training as well.
        evaluations: on other sensors and labels; others are of pre-trained models.
        processor_scale: stored number of a reflectance of 1.
    """
    dense = config.head_type != "center"
    auto_class = "AutoModelForSemanticSegmentation" if dense else "AutoModelForImageClassification"
    names = list(results["class_names"])
    counts = results["labelled_pixels"]
    rows = []
    for number, name in enumerate(names):
        accuracy = results["accuracy_per_class"][number]
        shown = "–" if accuracy is None else f"{accuracy:.1%}"
        rows.append(f"| {number} | {name} | {counts['train'][number]:,} | {counts['test'][number]:,} | {shown} |")
    table = "\n".join(rows)
    runs = training_runs(results)
    steps = " + ".join(f"{run['training']['steps']:,}" for run in runs)
    went_on = ", of which one run went on from the other" if len(runs) > 1 else ""
    limits = (
        "Trained and tested on simulated scenes: the numbers above say how well it tells simulated classes apart, and "
        "nothing\nabout real ones."
        if evaluations.other_labels is None
        else "Trained on simulated scenes: how well it tells simulated classes apart says little of real ones, as "
        "labels of other\nclasses show above."
    )
    untrained = [
        name for number, name in enumerate(names) if not any(run["labelled_pixels"]["train"][number] for run in runs)
    ]
    if untrained:
        limits += f"\nNo pixel of {' and '.join(untrained)} was trained on: where a map shows it, it means nothing."
    by_scene = (
        ""
        if evaluations.other_labels is None
        else '\n`--scene_statistics` standardises a scene by mean and deviation of its own pixels: "On other labels", '
        "below, says\nwhat that changes.\n"
    )
    purposes = {"train": "to train", "validation": "to validate", "test": "to test"}
    pixels = {split: [f"{sum(run['labelled_pixels'][split]):,}" for run in runs] for split in purposes}
    labelled = ", ".join(
        f"{' + '.join(pixels[split] if split == 'train' else pixels[split][-1:])} {purpose}"
        for split, purpose in purposes.items()
    )
    parts = [
        metadata(settings, "image-segmentation" if dense else "image-classification", [*settings.tags, "land-cover"]),
        f"# {settings.name}\n\n{'' if settings.is_final else STATUS_OF_PLACEHOLDER}"
        f"Land cover of EnMAP scenes in {len(names)} classes"
        + (f": `{settings.base}`, fine-tuned on simulated scenes.\n\n" if settings.base else ".\n\n")
        + ABOUT,
        f"""\
## Load
Map a whole scene (an EnMAP L2A product, a GeoTIFF or an ENVI image of any size), from a clone of the package's
repository:

```bash
python scripts/predict_scene.py SCENE --model {settings.repository} --output map.tif --html
```
{by_scene}
In Python, with the package (`pip install .` in a clone of its repository):

```python
import modeling_hsst
from transformers import AutoImageProcessor, {auto_class}, pipeline

classify = pipeline("hyperspectral-scene-classification", model="{settings.repository}")
# image: stored numbers (reflectance x {processor_scale:g}), (bands, height, width), with the band centres in nm
classes = classify(image, wavelengths=wavelengths)["classes"]

processor = AutoImageProcessor.from_pretrained("{settings.repository}")
model = {auto_class}.from_pretrained("{settings.repository}")
```

Without it, with torch, pillow and transformers 5.18 or newer alone: processor and model load with
`trust_remote_code=True`, which runs the code of this repository, and take windows of
{"x".join(map(str, config.window_size))} pixels.
""",
        """\
## Intended use
A first map of a scene of EnMAP surface reflectance, and a start for fine-tuning on labels of one's own. Its labels
are simulated: check it against labels of the place before anything is decided by a map. Not for other sensors as it
is (adapt it: `modeling_hsst.load_for_wavelengths`), not for radiance, and not for classes that are not among its own.
""",
        model_section(config, results["parameters"])
        + f"| head | {'a class for each pixel of a window' if dense else 'a class for the centre pixel'} |\n",
        training_section(
            settings,
            f"""\
Labels are those of the simulated scenes: the land cover that covers most of each pixel.

| | |
|---|---|
| labelled pixels | {labelled} |
| steps | {steps} |
| seed | {results["run"]["settings"]["seed"]} |
| versions | {versions(results)} |

`all_results.json` holds every setting of the training{went_on}.
""",
        ),
        f"""\
## Results
On the test area, which was neither trained on nor used to choose anything:

| overall accuracy | average accuracy | macro F1 |
|---|---|---|
| {results["overall_accuracy"]:.1%} | {results["average_accuracy"]:.1%} | {results["macro_f1"]:.1%} |

| class | name | training pixels{" of the last run" if len(runs) > 1 else ""} | test pixels | accuracy |
|---|---|---|---|---|
{table}

![Test area in true colour, reference and prediction]({MAP_FIGURE})
![Confusion matrix]({CONFUSION_FIGURE})
""",
        *([] if evaluations.other_labels is None else [other_labels_section(evaluations.other_labels)]),
        *([] if evaluations.label_efficiency is None else [few_labels_section(evaluations.label_efficiency)]),
        *([] if evaluations.sensors is None else [sensors_section(evaluations.sensors)]),
        f"""\
## Limits
{limits}
Simulated spectra lack effects that real scenes have, and classes of the real world have edges that a simulation does
not draw. A pixel of 30 m holds more than one class. Clouds and their shadows are left out by `predict_scene.py`
where a product marks them, haze with `--exclude outside cloud shadow haze`; elsewhere they get the class that they
look like.
""",
        CITATION,
    ]
    return "\n".join(parts)


def metadata(settings: CardSettings, pipeline_tag: str, tags: Sequence[str]) -> str:
    """The YAML block that the Hub reads."""
    lines = ["---", "license: apache-2.0", "library_name: transformers", f"pipeline_tag: {pipeline_tag}", "tags:"]
    lines += [f"  - {tag}" for tag in tags]
    if settings.base:
        lines.append(f"base_model: {settings.base}")
    lines += ["training_sources:", *(f"  - {name}" for name in settings.sources), "---", ""]
    return "\n".join(lines)


def model_section(config: HSSTConfig, parameters: int) -> str:
    """A table of the architecture, to which rows can be added."""
    wavelengths = config.wavelengths
    bands = f"{config.num_channels} bands"
    bands += (
        ", of unknown wavelengths" if wavelengths is None else f", {wavelengths[0]:.0f} to {wavelengths[-1]:.0f} nm"
    )
    return f"""\
## Model
| | |
|---|---|
| parameters | {parameters:,} |
| input | {bands}, windows of {"x".join(map(str, config.window_size))} pixels |
| tokens | {config.num_blocks} spectral blocks x {config.num_positions} positions |
| layers | {config.num_spatial_layers} spatial, {config.num_spectral_layers} spectral, width {config.hidden_size} |
| positions | {config.position_embedding_type} |
"""


def training_section(settings: CardSettings, facts: str) -> str:
    """Sources with their licences and what was not used, and how to name them."""
    used = [TRAINING_SOURCES[name] for name in settings.sources]
    named = "".join(f"\n{source.attribution}\n" for source in used if source.attribution)
    return f"""\
## Training data and licences
{sources_table(settings.sources)}

Nothing else was used: no pixel of a satellite, no labels but those named here, and none of the tiles that results
below were measured on. Simulated scenes lie in the northern mid-latitudes, from April to October; other climates and
winter are not among them.
{named}
{facts}"""


def evaluation_sections(evaluations: Evaluations) -> list[str]:
    """A section for everything that was measured."""
    parts = []
    if evaluations.reconstruction is not None:
        result = evaluations.reconstruction
        tiles = len(next(iter(result["masks"].values()))["tiles"])
        parts.append(
            f"""\
### On real tiles
Mean absolute error of hidden values of {tiles} real EnMAP tiles that no training has seen, in standard deviations of
each band, beside predictors that need no network. The Gaussian knows mean and covariance of all bands, and takes what
is hidden in a pixel from what is visible in it; its ridge is the best of several for these tiles. The last column is
the model's error divided by that of the row, with its 95 % interval over tiles.

{reconstruction_table(result)}

![Spectra of four pixels with hidden bands, true and filled in, and the error of every band]({SPECTRA_FIGURE})

*EnMAP data (c) DLR, shown as a picture of results.*
"""
        )
    if evaluations.label_efficiency is not None:
        parts.append(label_efficiency_section(evaluations.label_efficiency))
    if evaluations.sensors is not None:
        parts.append(sensors_section(evaluations.sensors))
    return parts


def few_labels_section(summary: Mapping[str, Any]) -> str:
    """The same of a land-cover model, beside models that have seen no simulated label."""
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
    about = textwrap.fill(f"{about}.", 118, break_on_hyphens=False)
    return label_efficiency_section(summary, f"\n{about}")


def label_efficiency_section(summary: Mapping[str, Any], about_the_start: str = "") -> str:
    """What a model is worth as the start for a few labels of one's own, beside other models."""
    return f"""\
## Land cover from few labels
Percent, mean over seeds with its 95 % interval; the best of each budget in bold. Trained on one area and tested on
another ({"; ".join(summary["directions"])}).{about_the_start}

{label_efficiency_table(summary)}
"""


def other_labels_section(result: Mapping[str, Any]) -> str:
    """What a land-cover model is worth on labels of other classes."""
    remark = f"{result['remark']}\n\n" if result.get("remark") else ""
    return f"""\
## On other labels
{result["title"]}: labels of other classes than the model's, none of which it has seen. Each of its classes stands for
one of theirs, or for none. Bands are standardised as the model was trained, and by mean and deviation of the pixels of
these scenes:

{other_labels_table(result)}

{remark}![The area in true colour, reference and both predictions]({OTHER_LABELS_FIGURE})
"""


def sensors_section(sensors: Mapping[str, Any]) -> str:
    """What a model is worth on other sensors."""
    knows_classes = any(sensor.get("unlabelled") for sensor in sensors["sensors"])
    start = (
        "The last two start with this model's classifier, and are compared without labels of the sensor, too, over "
        "scenes in\nplace of seeds.\n"
        if knows_classes
        else ""
    )
    return f"""\
## Other sensors
Overall accuracy in percent, mean over seeds with its 95 % interval, on blocks apart from those trained on: the same
architecture from scratch, the image resampled to this model's bands, and this model adapted to the sensor.
{start}
{sensor_table(sensors)}
"""


def limits_section(settings: CardSettings, evaluations: Evaluations, has_own_validation: bool = False) -> str:
    """What the numbers do not say, as far as they were measured; validation tiles may be of other scenes, or not."""
    sentences = []
    if not has_own_validation:
        sentences.append(
            "Validation tiles are cut from the same scenes as the training tiles: their errors say nothing of other "
            "places, seasons or sensors."
        )
    if evaluations.reconstruction is None:
        sentences.append("Reconstruction of real tiles was not measured.")
    else:
        sentences.append("The real tiles are cut from few scenes, so that intervals over tiles are too narrow.")
        if "simulated" in settings.sources:
            sentences.append(
                "The simulation was tuned on the real tiles of Potsdam (`docs/simulation.md` of the package): nothing "
                "was trained on them, but they are no wholly independent test of what was trained on simulated scenes."
            )
        behind = [
            mask_type
            for mask_type, masks in evaluations.reconstruction["masks"].items()
            if min(masks["predictors"], key=lambda name: masks["predictors"][name]["overall"]) != MODEL
        ]
        if behind:
            sentences.append(
                f"Under {', '.join(behind)} masks, a predictor without a network is better than this model."
            )
    if evaluations.label_efficiency is None:
        sentences.append("What it is worth for land cover from few labels was not measured.")
    if evaluations.sensors is None:
        sentences.append("What it is worth on other sensors was not measured.")
    if list(settings.sources) == ["simulated"]:
        sentences.append("It has seen simulated pixels only, which lack effects that real scenes have.")
    return "## Limits\n" + "\n".join(f"* {sentence}" for sentence in sentences) + "\n"


def versions(results: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in results["versions"].items())


def without_folders(value: Any) -> Any:
    """A result file's content with absolute paths cut to their last part: they mean nothing on another machine."""
    if isinstance(value, Mapping):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
