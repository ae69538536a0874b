"""
Compare features of a frozen HSST with spectra on real places, with few labels and splits that are disjoint in space.

    python scripts/experiments/real_places.py --data_dir data --output_dir outputs/places

Single pixels. In each place half of its parts in space (blocks, fields, plots; the official mask where there is one)
are for training, drawn anew with each seed; a few pixels of each class are drawn from them, and all pixels of the
other parts are predicted. Every classifier chooses its preparation of the spectra and its penalty by cross-validation
among the drawn pixels, in folds of parts. Each row goes into rows.jsonl as soon as it is computed, and is not computed
again; real_places.json holds the scores, and real_places.md the table.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import transformers
from rasterio.features import rasterize
from scipy.io import loadmat
from scipy.ndimage import uniform_filter
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm.auto import tqdm

from datasets_loading.files import append_row, fingerprint, only_writer, read_rows, write_json, write_text
from datasets_loading.scenes import open_scene
from hsst.experiments.pixel_networks import PixelNetwork
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors
from hsst.support.feature_transformer import HSSTFeatures
from hsst.support.features import load_encoder
from hsst.support.few_labels import (
    HEADS,
    LINEAR,
    PREPARATIONS,
    SLOW_WITH_MANY_FEATURES,
    SURROUNDINGS,
    Head,
    as_they_are,
    tuned,
    unit_norm,
    voting,
)
from hsst.support.figures import save_figure
from hsst.support.reports import markdown_table
from modeling_hsst import HSSTModel

CNN, FINE_TUNING = "1-D CNN", "fine-tuning"
"""Networks that are trained on the drawn pixels, beside the classifiers of scikit-learn."""
ALL_HEADS = (*HEADS, CNN, FINE_TUNING)

AND_SPECTRA = " and spectra"
"""Ends the name of inputs that are features of a model beside spectra, of which classifiers vote."""

TEST_PIXELS = 4000  # at most, drawn by class from a test area


@dataclass(frozen=True)
class Place:
    """
    Labeled pixels of a place.

    Attributes:
        name: for people.
        spectra: float32 (pixels, bands), reflectance or radiance.
        wavelengths: band centers in nm (bands,), ascending.
        classes: int64 (pixels,).
        parts: which part of the place each pixel lies in, int64 (pixels,): pixels of one part stay together.
        training: pixels that may be trained on, bool (pixels,), where the place's makers say so.
        means: mean spectra of the pixels' surroundings of `SURROUNDINGS` pixels, float32 (pixels, bands), where there
            is an image.
    """

    name: str
    spectra: np.ndarray
    wavelengths: np.ndarray
    classes: np.ndarray
    parts: np.ndarray
    training: np.ndarray | None = None
    means: np.ndarray | None = None


def blocks(rows: np.ndarray, columns: np.ndarray, side: float) -> np.ndarray:
    """The number of the square block of a side that each row and column lies in."""
    places = np.stack([np.floor(rows / side), np.floor(columns / side)], axis=1)
    return np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)


def of_cube(
    name: str,
    cube: np.ndarray,
    wavelengths: np.ndarray,
    classes: np.ndarray,
    side: int,
    training: np.ndarray | None = None,
) -> Place:
    """The labeled pixels (class above 0) of an image (rows, columns, bands), in blocks of `side` pixels."""
    rows, columns = np.nonzero(classes > 0)
    parts = blocks(rows, columns, side)
    mask = None if training is None else training[rows, columns]
    cube = cube.astype(np.float32)
    means = surroundings(cube)[rows, columns]
    return Place(name, cube[rows, columns], wavelengths, classes[rows, columns], parts, mask, means)


def surroundings(cube: np.ndarray) -> np.ndarray:
    """The mean spectrum around each pixel of an image (rows, columns, bands); edges are continued."""
    return uniform_filter(cube, (SURROUNDINGS, SURROUNDINGS, 0), mode="nearest")


def potsdam(folder: Path) -> Place:
    """EnMAP over Potsdam: ten tiles in two areas."""
    spectra, means, classes, parts, wavelengths = [], [], [], [], np.empty(0)
    for number, path in enumerate(sorted((folder / "enmap_potsdam" / "images").glob("*.tif"))):
        with open_scene(path) as image:
            bands = np.flatnonzero(image.valid_bands)
            bands = bands[np.unique(np.asarray(image.wavelengths)[bands], return_index=True)[1]]
            wavelengths = np.asarray(image.wavelengths)[bands]
            pixels = image.read(slice(0, image.shape[0]), slice(0, image.shape[1]), bands) / image.scale
        with rasterio.open(folder / "enmap_potsdam" / "labels" / path.name) as labels:
            codes = labels.read(1).astype(np.int64)
        has_data = (pixels > -1).all(axis=0) & (pixels != 0).any(axis=0)
        rows, columns = np.nonzero((codes > 0) & has_data)
        spectra.append(pixels[:, rows, columns].T)
        near = surroundings(np.where(has_data, pixels, 0.0).transpose(1, 2, 0))
        share = surroundings(has_data[:, :, None].astype(np.float32))
        means.append((near[rows, columns] / share[rows, columns]).astype(np.float32))
        classes.append(codes[rows, columns])
        parts.append(number * 1000 + blocks(rows, columns, 16))
    joined = np.concatenate(spectra).astype(np.float32)
    labels_and_parts = np.concatenate(classes), np.concatenate(parts)
    return Place("Potsdam", joined, wavelengths, *labels_and_parts, means=np.concatenate(means))


def franschhoek(folder: Path) -> Place:
    """Airborne, 3 m, nine kinds of vegetation and ground, in windows of 3x3; blocks of 2 km."""
    data = np.load(folder / "labelled" / "franschhoek" / "pixsample_1126.npz")
    spectra = data["patches"][:, 1, 1].astype(np.float32) / 10000
    parts = blocks(data["y"], data["x"], 2000.0)
    means = data["patches"].mean(axis=(1, 2), dtype=np.float32) / 10000
    return Place("Franschhoek", spectra, data["wavelength_nm"].astype(float), data["label"], parts, means=means)


def houston(folder: Path) -> Place:
    """CASI over Houston 2013: the pixels of its training fields."""
    data = np.load(folder / "labelled" / "houston2013_train_pixels" / "data.npz")
    wavelengths = data["wavelength_nm"].astype(float)
    return Place("Houston 2013", data["X"], wavelengths, data["y"].astype(np.int64), data["field"].astype(np.int64))


def indian_pines(folder: Path) -> Place:
    """AVIRIS radiance, with the official training mask."""
    data = np.load(folder / "labelled" / "indian_pines_crop" / "data.npz")
    mask, wavelengths = data["official_train"].astype(bool), data["wavelength_nm"].astype(float)
    return of_cube("Indian Pines", data["cube"] / 10000.0, wavelengths, data["gt"].astype(np.int64), 10, mask)


def samson(folder: Path) -> Place:
    """Classes are the largest of three shares that were derived from the image itself."""
    data = np.load(folder / "labelled" / "samson" / "data.npz")
    return of_cube("Samson", data["cube"], data["wavelength_nm"].astype(float), data["gt"].astype(np.int64), 12)


def aviris(folder: Path, kept: np.ndarray) -> np.ndarray:
    """Band centers of AVIRIS in nm, of those that a file kept; the two spectrometers overlap."""
    return np.loadtxt(folder / "aviris" / "aviris_wavelengths.txt")[kept, 1] * 1000


def sorted_bands(cube: np.ndarray, wavelengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bands by wavelength, each once."""
    order = np.unique(wavelengths, return_index=True)[1]
    return cube[..., order], wavelengths[order]


def salinas(folder: Path) -> Place:
    """AVIRIS radiance over fields of vegetables."""
    cube = loadmat(folder / "aviris" / "SalinasA_corrected.mat")["salinasA_corrected"] / 10000.0
    classes = loadmat(folder / "aviris" / "SalinasA_gt.mat")["salinasA_gt"].astype(np.int64)
    dropped = {*range(107, 112), *range(153, 167), 223}
    kept = np.array([band for band in range(224) if band not in dropped])
    cube, wavelengths = sorted_bands(cube, aviris(folder, kept))
    return of_cube("Salinas-A", cube, wavelengths, classes, 10)


def jasper_ridge(folder: Path) -> Place:
    """AVIRIS; classes are the largest of four shares that were derived from the image itself."""
    data = loadmat(folder / "aviris" / "jasperRidge2_R198.mat")
    side = int(data["nRow"][0, 0])
    cube = data["Y"].reshape(198, side, -1, order="F").transpose(1, 2, 0) / float(data["maxValue"][0, 0])
    shares = data["A"].reshape(4, side, -1, order="F")
    cube, wavelengths = sorted_bands(cube, aviris(folder, data["SlectBands"][:, 0].astype(int) - 1))
    return of_cube("Jasper Ridge", cube, wavelengths, shares.argmax(axis=0) + 1, 12)


def neon_trees(folder: Path) -> Place:
    """Airborne, 1 m: pixels in the middle of crowns, of species that stand in five plots or more."""
    pyogrio, shapely = (importlib.import_module(name) for name in ("pyogrio", "shapely"))
    root = folder / "neon_trees"
    with open(root / "wavelengths_369_nm.csv", encoding="utf-8") as file:
        wavelengths = np.array([float(row["wavelength_nm"]) for row in csv.DictReader(file)])
    with open(root / "Field" / "train_data.csv", encoding="utf-8") as file:
        species = {row["indvdID"]: row["taxonID"] for row in csv.DictReader(file)}
    names = sorted(set(species.values()))
    spectra, means, classes, parts = [], [], [], []
    for number, path in enumerate(sorted((root / "HSI").glob("*.tif"))):
        with rasterio.open(path) as image:
            pixels, transform, bounds = image.read(), image.transform, tuple(image.bounds)
        site = path.stem.split("_")[0]
        meta, _, outlines, fields = pyogrio.raw.read(root / "ITC" / f"train_{site}.shp", bbox=bounds)
        identities = fields[list(meta["fields"]).index("indvdID")]
        crowns = [
            (crown, names.index(species[identity]) + 1)
            for outline, identity in zip(outlines, identities, strict=True)
            # A pixel at the edge of a crown shows what is beside it, too
            if identity in species and not (crown := shapely.from_wkb(outline).buffer(-0.5)).is_empty
        ]
        if crowns:
            codes = rasterize(crowns, out_shape=pixels.shape[1:], transform=transform)
            rows, columns = np.nonzero((codes > 0) & (pixels > 0).all(axis=0))
            spectra.append(pixels[:, rows, columns].T / 10000.0)
            means.append(surroundings(pixels.transpose(1, 2, 0) / np.float32(10000))[rows, columns])
            classes.append(codes[rows, columns])
            parts.append(np.full(len(rows), number))
    all_classes, all_parts = np.concatenate(classes).astype(np.int64), np.concatenate(parts)
    common = [code for code in np.unique(all_classes) if len(np.unique(all_parts[all_classes == code])) >= 5]
    kept = np.isin(all_classes, common)
    joined = np.concatenate(spectra).astype(np.float32)[kept]
    around = np.concatenate(means)[kept]
    return Place("NEON trees", joined, wavelengths, all_classes[kept], all_parts[kept], means=around)


PLACES: dict[str, Callable[[Path], Place]] = {
    "potsdam": potsdam,
    "franschhoek": franschhoek,
    "houston": houston,
    "indian_pines": indian_pines,
    "salinas": salinas,
    "samson": samson,
    "jasper_ridge": jasper_ridge,
    "neon_trees": neon_trees,
}


def split(place: Place, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels to train on, `num_labels` of each class or what there is, and to test on, from other parts; ValueError
    where the place has no parts that could be kept apart."""
    if len(np.unique(place.parts)) < 2:
        raise ValueError(f"{place.name}: expected parts that can be kept apart, got one")
    generator = np.random.default_rng(seed)
    if place.training is None:
        splitter = StratifiedGroupKFold(2, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, second = next(splitter.split(place.spectra, place.classes, place.parts))
    else:
        first, second = np.flatnonzero(place.training), np.flatnonzero(~place.training)
    shared = np.intersect1d(place.classes[first], place.classes[second])
    training, test = [], []
    for code in shared:
        ours, theirs = first[place.classes[first] == code], second[place.classes[second] == code]
        training.append(generator.choice(ours, min(num_labels, len(ours)), replace=False))
        share = max(1, round(TEST_PIXELS * len(theirs) / len(second)))
        test.append(generator.choice(theirs, min(share, len(theirs)), replace=False))
    return np.concatenate(training), np.concatenate(test)


def untrained(source: str, folder: Path) -> str:
    """A folder with the same model, its weights random."""
    encoder, processor = load_encoder(source)
    torch.manual_seed(0)
    HSSTModel(encoder.config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("place", "inputs", "window", "head", "labels", "seed", "data"))


def compute(arguments: argparse.Namespace, output: Path) -> list[dict[str, Any]]:
    """All rows, those of `rows.jsonl` and new ones."""
    path = output / "rows.jsonl"
    rows = read_rows(path)
    done = {row_key(row) for row in rows}
    sources: dict[str, str | None] = {"spectra": None}
    sources |= {"untrained": untrained(arguments.model[0], output / "untrained")}
    sources |= {Path(source).name: source for source in arguments.model}
    for key in arguments.places:
        place = PLACES[key](arguments.data_dir)
        for (name, source), window in product(sources.items(), arguments.windows):
            if window > 1 and place.means is None:
                continue
            heads = heads_for(place, source, window)
            voting_heads = {head: HEADS[head] for head in LINEAR} if source is not None else {}
            state = "" if source is None else fingerprint((Path(source) / "model.safetensors").read_bytes())
            data = fingerprint(place.spectra, place.classes, place.parts, state)[:12]
            wanted = [
                {"place": place.name, "inputs": inputs, "window": window, "data": data}
                | {"head": head, "labels": labels, "seed": seed}
                for labels in arguments.labels
                for seed in range(arguments.seeds)
                for inputs, of_inputs in ((name, heads), (name + AND_SPECTRA, voting_heads))
                for head in of_inputs
                if head in arguments.heads
            ]
            wanted = [row for row in wanted if row_key(row) not in done]
            is_frozen = any(row["head"] in HEADS for row in wanted)
            variants = inputs_of(place, source, window) if is_frozen else {}
            spectra = inputs_of(place, None, window) if voting_heads else {}
            for row in tqdm(wanted, desc=f"{place.name}, {name}, {window}", unit="row", disable=None):
                seen = variants if row["head"] in HEADS else network_inputs(place, row["head"])
                beside = spectra if row["inputs"] != name else None
                row |= run(place, seen, heads[row["head"]], row["labels"], row["seed"], beside)
                append_row(path, row)
                rows.append(row)
    return rows


def inputs_of(place: Place, source: str | None, window: int) -> dict[str, np.ndarray]:
    """
    What classifiers may see of the pixels, by name: features of a model, or without one the spectra in several
    preparations; with a window also those of the mean spectrum around each pixel, and both side by side.
    """
    if source is None:
        views: dict[str, Callable[[np.ndarray], np.ndarray]] = {view.__name__: view for view in PREPARATIONS}
    else:
        views = {"": HSSTFeatures(source, place.wavelengths, scale=1.0).fit(place.spectra).transform}
    seen = {name: view(place.spectra) for name, view in views.items()}
    if window > 1 and place.means is not None:
        means = {name: view(place.means) for name, view in views.items()}
        seen |= {f"{name}, mean": values for name, values in means.items()}
        last = next(reversed(views))
        seen[f"{last}, pixel and mean"] = np.hstack([seen[last], means[last]])
    return seen


def heads_for(place: Place, source: str | None, window: int) -> dict[str, Head]:
    """Classifiers of a model's features and its fine-tuning, or without a model those of spectra."""
    if source is None:
        network = Head(PixelNetwork, tuple({"learning_rate": rate} for rate in (1e-3, 3e-3)), "as they are")
        return HEADS if window > 1 else HEADS | {CNN: network}
    build = partial(PixelNetwork, source, place.wavelengths, steps=40)
    network = Head(build, tuple({"learning_rate": rate} for rate in (1e-5, 1e-4)), "as they are")
    frozen = {name: head for name, head in HEADS.items() if name not in SLOW_WITH_MANY_FEATURES}
    return frozen if window > 1 else frozen | {FINE_TUNING: network}


def network_inputs(place: Place, head: str) -> dict[str, np.ndarray]:
    """What a network may be given: it standardizes by itself, and finds derivatives by itself."""
    preparations = (as_they_are, unit_norm) if head == CNN else (as_they_are,)
    return {prepare.__name__: prepare(place.spectra) for prepare in preparations}


def run(
    place: Place,
    variants: Mapping[str, np.ndarray],
    head: Head,
    num_labels: int,
    seed: int,
    spectra: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """One row: scores of a head tuned and trained on few pixels; with `spectra`, it votes with one on these."""
    training, test = split(place, num_labels, seed)
    given = place.classes[training], place.parts[training], seed
    best = tuned(head, [values[training] for values in variants.values()], *given)
    name = list(variants)[best.preparation]
    seen = variants[name]
    if spectra is not None:
        ours = {
            "spectra": [values[training] for values in spectra.values()],
            "features": [values[training] for values in variants.values()],
        }
        best = voting(tuned(head, ours["spectra"], *given), best, ours, *given)
        name = list(spectra)[best.preparation]
        seen = np.hstack([spectra[name], seen])
    predicted = best.classifier.predict(seen[test])
    return {
        "macro_f1": float(f1_score(place.classes[test], predicted, average="macro")),
        "average_accuracy": float(balanced_accuracy_score(place.classes[test], predicted)),
        "preparation": name,
        "settings": best.settings,
        "training_pixels": len(training),
        "test_pixels": len(test),
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Mean macro F1 of each place, inputs, window and head, and of the seeds that all inputs and heads `shared`; the best
    of the heads that have the most seeds; and what inputs gain over the best head on spectra that saw the same window,
    whichever that is for a place in the end, over places and seeds, with an interval by bootstrap over both; and what
    `surroundings` gain over the pixel alone, each with the best head of those that saw both.
    """
    of_heads: dict[tuple[Any, ...], dict[str, dict[int, float]]] = {}
    for row in rows:
        key = row["place"], row["inputs"], row["window"], row["labels"]
        of_heads.setdefault(key, {}).setdefault(row["head"], {})[row["seed"]] = row["macro_f1"]
    scores: list[dict[str, Any]] = []
    best: dict[tuple[Any, ...], dict[int, float]] = {}
    for key, heads in of_heads.items():
        shared = set.intersection(
            *(
                set(of_seeds)
                for other, of_others in of_heads.items()
                if (other[0], *other[2:]) == (key[0], *key[2:])
                for of_seeds in of_others.values()
            )
        )
        most = max(map(len, heads.values()))
        chosen = max((head for head in heads if len(heads[head]) == most), key=lambda head: mean_of(heads[head]))
        best[key] = heads[chosen]
        names = dict(zip(("place", "inputs", "window", "labels"), key, strict=True))
        means = {head: mean_of(of_seeds) for head, of_seeds in heads.items()}
        of_shared = {head: mean_of(of_seeds, shared) for head, of_seeds in heads.items()}
        scores.append({**names, "best": chosen, "macro_f1": means, "shared": of_shared})
    places, inputs, windows, budgets = (list(dict.fromkeys(column)) for column in zip(*of_heads, strict=True))
    gains = []
    for name, window, to, labels in product(inputs[1:], windows, ("spectra", "untrained"), sorted(budgets)):
        # The control of features beside spectra is the untrained network beside spectra
        reference = to + AND_SPECTRA if to == "untrained" and name.endswith(AND_SPECTRA) else to
        pairs = [
            np.array([ours[seed] - others[seed] for seed in sorted(set(ours) & set(others))])
            for place in places
            if (others := best.get((place, reference, window, labels)))
            and (ours := best.get((place, name, window, labels)))
        ]
        if pairs and name != reference:
            gains.append({"inputs": name, "window": window, "to": reference, "labels": labels, **gain(pairs)})
    surroundings = []
    for name, labels in product(inputs, sorted(budgets)):
        pairs = []
        for place in places:
            alone, around = (of_heads.get((place, name, window, labels), {}) for window in (1, SURROUNDINGS))
            both = [head for head in alone if head in around]
            if both:
                seeds = set.intersection(*(set(of_seeds[head]) for of_seeds in (alone, around) for head in both))
                best_alone, best_around = (
                    max((of_seeds[head] for head in both), key=lambda found: mean_of(found, seeds))
                    for of_seeds in (alone, around)
                )
                pairs.append(np.array([best_around[seed] - best_alone[seed] for seed in sorted(seeds)]))
        if pairs:
            surroundings.append(
                {"inputs": name, "window": SURROUNDINGS, "to": "pixel", "labels": labels, **gain(pairs)}
            )
    return {"scores": scores, "gains": gains, "surroundings": surroundings}


def mean_of(of_seeds: Mapping[int, float], seeds: Iterable[int] | None = None) -> float:
    """The mean over seeds, some or all."""
    return float(np.mean([of_seeds[seed] for seed in (of_seeds if seeds is None else seeds)]))


def gain(pairs: Sequence[np.ndarray], draws: int = 10_000) -> dict[str, Any]:
    """Mean of differences (seeds,) of places, 95 % interval by bootstrap over places and seeds, and how many gain."""
    generator = np.random.default_rng(0)
    means = np.empty(draws)
    for draw in range(draws):
        chosen = generator.integers(len(pairs), size=len(pairs))
        means[draw] = np.mean([generator.choice(pairs[place], len(pairs[place])).mean() for place in chosen])
    low, high = np.percentile(means, [2.5, 97.5])
    better = sum(float(pair.mean()) > 0 for pair in pairs)
    mean = float(np.mean([pair.mean() for pair in pairs]))
    return {"mean": mean, "low": float(low), "high": float(high), "better": better, "places": len(pairs)}


def places_table(result: Mapping[str, Any], window: int = 1) -> str:
    """Markdown of a result file: the best head of each inputs in each place, and the gains."""
    entries = [entry for entry in result["scores"] if entry["window"] == window]
    inputs = list(dict.fromkeys(entry["inputs"] for entry in entries))
    found = {(entry["place"], entry["inputs"], entry["labels"]): entry for entry in entries}
    rows = []
    for place, labels in sorted_pairs(entries):
        values = [found[place, name, labels] for name in inputs]
        means = [value["macro_f1"][value["best"]] for value in values]
        cells = [
            f"{'**' if mean == max(means) else ''}{mean:.3f}{'**' if mean == max(means) else ''} ({value['best']})"
            for value, mean in zip(values, means, strict=True)
        ]
        rows.append([place, str(labels), *cells])
    header = ["macro F1", "labels per class", *("best on spectra" if name == "spectra" else name for name in inputs)]
    return markdown_table(header, rows)


def heads_table(result: Mapping[str, Any]) -> str:
    """Markdown of the mean over places of every head on single pixels, on the seeds that all heads have."""
    means: dict[tuple[str, str], dict[int, list[float]]] = {}
    for entry in result["scores"]:
        for head, value in entry["shared"].items() if entry["window"] == 1 else ():
            means.setdefault((entry["inputs"], head), {}).setdefault(entry["labels"], []).append(value)
    budgets = sorted({entry["labels"] for entry in result["scores"]})
    rows = [
        [*names, *(f"{np.mean(of_budgets[labels]):.3f}" for labels in budgets)] for names, of_budgets in means.items()
    ]
    return markdown_table(["inputs", "head", *(f"macro F1, {labels} labels per class" for labels in budgets)], rows)


def sorted_pairs(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Places in their order, each with its numbers of labels in ascending order."""
    places = list(dict.fromkeys(entry["place"] for entry in entries))
    return [(place, labels) for place in places for labels in sorted({entry["labels"] for entry in entries})]


OVER = {
    "pixel": "the pixel alone",
    "spectra": "the best on spectra",
    "untrained": "the untrained network",
    "untrained" + AND_SPECTRA: "the untrained network" + AND_SPECTRA,
}


def gains_table(result: Mapping[str, Any], inputs: Sequence[str] | None = None, of: str = "gains") -> str:
    """Markdown of what inputs, some with and without spectra beside them or all, gain on average over places."""
    lines = [
        [
            f"{entry['inputs']} over {OVER[entry['to']]}",
            "pixel" if entry["window"] == 1 else f"{entry['window']}x{entry['window']}",
            str(entry["labels"]),
            f"{100 * entry['mean']:+.1f} ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f})",
            f"{entry['better']} of {entry['places']}",
        ]
        for entry in result[of]
        if inputs is None or entry["inputs"].removesuffix(AND_SPECTRA) in inputs
    ]
    return markdown_table(
        ["points of macro F1", "sees", "labels per class", "mean (95 % interval)", "better in"], lines
    )


def plot_gains(path: Path, result: Mapping[str, Any]) -> Path:
    """
    What each inputs gain over the best on spectra, place by place: a color for each model, filled of single pixels,
    hollow of windows.
    """
    from matplotlib.figure import Figure

    entries = result["scores"]
    budgets = sorted({entry["labels"] for entry in entries})
    series = [
        (name, window)
        for name, window in dict.fromkeys((entry["inputs"], entry["window"]) for entry in entries)
        if name != "spectra"
    ]
    places = list(dict.fromkeys(entry["place"] for entry in entries))
    found = {(entry["place"], entry["inputs"], entry["window"], entry["labels"]): entry for entry in entries}
    names = list(dict.fromkeys(name for name, _ in series))
    models = list(dict.fromkeys(name.removesuffix(AND_SPECTRA) for name in names))
    figure = Figure(figsize=(4.6 * len(budgets), 0.6 * len(places) + 1.8), layout="constrained")
    for axis, labels in zip(
        figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0], budgets, strict=True
    ):
        for number, (name, window) in enumerate(series):
            gained, heights = [], []
            for height, place in enumerate(places):
                ours, spectra = (found.get((place, who, window, labels)) for who in (name, "spectra"))
                if ours and spectra:
                    gained.append(100 * (ours["macro_f1"][ours["best"]] - spectra["macro_f1"][spectra["best"]]))
                    heights.append(height + 0.6 * ((number + 0.5) / len(series) - 0.5))
            color = f"C{models.index(name.removesuffix(AND_SPECTRA))}"
            style = {"color": color, "marker": "osD^v*Px"[names.index(name) % 8], "linestyle": "none"}
            seen = "" if window == 1 else f", {window}x{window}"
            filling = color if window == 1 else "none"
            axis.plot(gained, heights, label=f"{name}{seen}", markerfacecolor=filling, **style)
        axis.axvline(0, color="0.5", linewidth=1)
        axis.set_title(f"{labels} labels per class")
        axis.set_xlabel("points of macro F1 over the best on spectra")
        axis.grid(axis="x", color="0.9")
    axis.set_yticks(range(len(places)), places)
    axis.invert_yaxis()
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 4), frameon=False
    )
    return save_figure(path, figure)


def report(result: Mapping[str, Any]) -> str:
    """All tables of a result file."""
    windows = sorted({entry["window"] for entry in result["scores"]})
    tables = [places_table(result, window) for window in windows]
    tables += [gains_table(result), gains_table(result, of="surroundings"), heads_table(result)]
    return "\n\n".join(tables)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the places")
    parser.add_argument("--model", nargs="+", default=["model_cards/hsst-enmap"], help="folders of models to compare")
    parser.add_argument("--places", nargs="+", choices=tuple(PLACES), default=tuple(PLACES), help="(all)")
    parser.add_argument("--heads", nargs="+", choices=ALL_HEADS, default=ALL_HEADS, help="(all)")
    parser.add_argument(
        "--windows",
        nargs="+",
        type=int,
        choices=(1, SURROUNDINGS),
        default=(1, SURROUNDINGS),
        help="1 for pixels alone, 5 for the mean spectrum around them as well (all)",
    )
    parser.add_argument("--labels", nargs="+", type=int, default=[5, 20], help="pixels of each class")
    parser.add_argument("--seeds", type=int, default=10, help="(10)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("real_places.py"):
        check_least(arguments, 1, "seeds")
        with only_writer(arguments.output_dir):
            rows = compute(arguments, arguments.output_dir)
            settings = {"models": [Path(source).name for source in arguments.model], "seeds": arguments.seeds}
            result = {"settings": settings, **summarize(rows)}
            write_json(arguments.output_dir / "real_places.json", result)
            write_text(arguments.output_dir / "real_places.md", report(result) + "\n")
            plot_gains(arguments.output_dir / "real_places.png", result)
    print(report(result))


if __name__ == "__main__":
    main()
