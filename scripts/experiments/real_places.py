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
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import transformers
from rasterio.features import rasterize
from scipy.io import loadmat
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm.auto import tqdm

from datasets_loading.files import fingerprint, only_writer, write_json, write_text
from datasets_loading.scenes import open_scene
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors
from hsst.support.feature_transformer import HSSTFeatures
from hsst.support.features import load_encoder
from hsst.support.few_labels import HEADS, PREPARATIONS, SLOW_WITH_MANY_FEATURES, tuned
from hsst.support.figures import save_figure
from hsst.support.reports import markdown_table
from modeling_hsst import HSSTModel

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
    """

    name: str
    spectra: np.ndarray
    wavelengths: np.ndarray
    classes: np.ndarray
    parts: np.ndarray
    training: np.ndarray | None = None


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
    return Place(name, cube[rows, columns].astype(np.float32), wavelengths, classes[rows, columns], parts, mask)


def potsdam(folder: Path) -> Place:
    """EnMAP over Potsdam: ten tiles in two areas."""
    spectra, classes, parts, wavelengths = [], [], [], np.empty(0)
    for number, path in enumerate(sorted((folder / "enmap_potsdam" / "images").glob("*.tif"))):
        with open_scene(path) as image:
            bands = np.flatnonzero(image.valid_bands)
            bands = bands[np.unique(np.asarray(image.wavelengths)[bands], return_index=True)[1]]
            wavelengths = np.asarray(image.wavelengths)[bands]
            pixels = image.read(slice(0, image.shape[0]), slice(0, image.shape[1]), bands) / image.scale
        with rasterio.open(folder / "enmap_potsdam" / "labels" / path.name) as labels:
            codes = labels.read(1).astype(np.int64)
        rows, columns = np.nonzero((codes > 0) & (pixels > -1).all(axis=0) & (pixels != 0).any(axis=0))
        spectra.append(pixels[:, rows, columns].T)
        classes.append(codes[rows, columns])
        parts.append(number * 1000 + blocks(rows, columns, 16))
    joined = np.concatenate(spectra).astype(np.float32)
    return Place("Potsdam", joined, wavelengths, np.concatenate(classes), np.concatenate(parts))


def franschhoek(folder: Path) -> Place:
    """Airborne, 3 m, nine kinds of vegetation and ground; blocks of 2 km."""
    data = np.load(folder / "labelled" / "franschhoek" / "pixsample_1126.npz")
    spectra = data["patches"][:, 1, 1].astype(np.float32) / 10000
    parts = blocks(data["y"], data["x"], 2000.0)
    return Place("Franschhoek", spectra, data["wavelength_nm"].astype(float), data["label"], parts)


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
    spectra, classes, parts = [], [], []
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
            classes.append(codes[rows, columns])
            parts.append(np.full(len(rows), number))
    all_classes, all_parts = np.concatenate(classes).astype(np.int64), np.concatenate(parts)
    common = [code for code in np.unique(all_classes) if len(np.unique(all_parts[all_classes == code])) >= 5]
    kept = np.isin(all_classes, common)
    joined = np.concatenate(spectra).astype(np.float32)[kept]
    return Place("NEON trees", joined, wavelengths, all_classes[kept], all_parts[kept])


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
    """
    Pixels to train on, `num_labels` of each class or what there is, and to test on, from other parts.

    Raises:
        ValueError: the place has no parts that could be kept apart.
    """
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows that were computed before; a last line that was cut is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("place", "inputs", "head", "labels", "seed", "data"))


def compute(arguments: argparse.Namespace, output: Path) -> list[dict[str, Any]]:
    """All rows, those of `rows.jsonl` and new ones."""
    path = output / "rows.jsonl"
    rows = read_rows(path)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    done = {row_key(row) for row in rows}
    sources = {"untrained": untrained(arguments.model[0], output / "untrained")}
    sources |= {Path(source).name: source for source in arguments.model}
    for key in arguments.places:
        place = PLACES[key](arguments.data_dir)
        for name in ("spectra", *sources):
            heads = [head for head in arguments.heads if name == "spectra" or head not in SLOW_WITH_MANY_FEATURES]
            state = "" if name == "spectra" else fingerprint((Path(sources[name]) / "model.safetensors").read_bytes())
            data = fingerprint(place.spectra, place.classes, place.parts, state)[:12]
            wanted = [
                {"place": place.name, "inputs": name, "head": head, "labels": labels, "seed": seed, "data": data}
                for labels in arguments.labels
                for seed in range(arguments.seeds)
                for head in heads
            ]
            wanted = [row for row in wanted if row_key(row) not in done]
            variants = inputs_of(place, sources.get(name)) if wanted else []
            with open(path, "a", encoding="utf-8") as file:
                for row in tqdm(wanted, desc=f"{place.name}, {name}", unit="row", disable=None):
                    row |= run(place, variants, row["head"], row["labels"], row["seed"])
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    rows.append(row)
    return rows


def inputs_of(place: Place, source: str | None) -> list[np.ndarray]:
    """What classifiers see of the pixels: features of a model, or without one the spectra in several preparations."""
    if source is None:
        return [prepare(place.spectra) for prepare in PREPARATIONS]
    return [HSSTFeatures(source, place.wavelengths, scale=1.0).fit_transform(place.spectra)]


def run(place: Place, variants: Sequence[np.ndarray], head: str, num_labels: int, seed: int) -> dict[str, Any]:
    """One row: scores of a head that was tuned and trained on few pixels."""
    training, test = split(place, num_labels, seed)
    ours = [variant[training] for variant in variants]
    best = tuned(head, ours, place.classes[training], place.parts[training], seed)
    predicted = best.classifier.predict(variants[best.preparation][test])
    return {
        "macro_f1": float(f1_score(place.classes[test], predicted, average="macro")),
        "average_accuracy": float(balanced_accuracy_score(place.classes[test], predicted)),
        "preparation": PREPARATIONS[best.preparation].__name__ if len(variants) > 1 else "",
        "settings": best.settings,
        "training_pixels": len(training),
        "test_pixels": len(test),
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Mean macro F1 of each place, inputs and head; the best head of each; and what inputs gain over the best head on
    spectra, whichever that is for a place in the end, over places and seeds, with an interval by bootstrap over both.
    """
    budgets = sorted({row["labels"] for row in rows})
    places = list(dict.fromkeys(row["place"] for row in rows))
    inputs = list(dict.fromkeys(row["inputs"] for row in rows))
    scores: list[dict[str, Any]] = []
    best: dict[tuple[str, str, int], dict[int, float]] = {}
    for place in places:
        for name in inputs:
            for labels in budgets:
                of_heads: dict[str, dict[int, float]] = {}
                for row in rows:
                    if (row["place"], row["inputs"], row["labels"]) == (place, name, labels):
                        of_heads.setdefault(row["head"], {})[row["seed"]] = row["macro_f1"]
                if not of_heads:
                    continue
                head = max(of_heads, key=lambda head: float(np.mean(list(of_heads[head].values()))))
                best[place, name, labels] = of_heads[head]
                means = {head: float(np.mean(list(values.values()))) for head, values in of_heads.items()}
                scores.append({"place": place, "inputs": name, "labels": labels, "best": head, "macro_f1": means})
    gains = []
    for name in inputs[1:]:
        for reference in ("spectra", "untrained"):
            for labels in budgets:
                if name == reference:
                    continue
                pairs = [
                    np.array([best[place, name, labels][seed] - others[seed] for seed in sorted(others)])
                    for place in places
                    if (others := best.get((place, reference, labels))) and (place, name, labels) in best
                ]
                if pairs:
                    gains.append({"inputs": name, "to": reference, "labels": labels, **gain(pairs)})
    return {"scores": scores, "gains": gains}


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


def places_table(result: Mapping[str, Any]) -> str:
    """Markdown of a result file: the best head of each inputs in each place, and the gains."""
    entries = result["scores"]
    inputs = list(dict.fromkeys(entry["inputs"] for entry in entries))
    budgets = sorted({entry["labels"] for entry in entries})
    found = {(entry["place"], entry["inputs"], entry["labels"]): entry for entry in entries}
    rows = []
    for place in dict.fromkeys(entry["place"] for entry in entries):
        for labels in budgets:
            values = [found.get((place, name, labels)) for name in inputs]
            means = [None if value is None else value["macro_f1"][value["best"]] for value in values]
            top = max(mean for mean in means if mean is not None)
            cells = [
                ""
                if value is None or mean is None
                else f"{'**' if mean == top else ''}{mean:.3f}{'**' if mean == top else ''} ({value['best']})"
                for value, mean in zip(values, means, strict=True)
            ]
            rows.append([place, str(labels), *cells])
    header = ["macro F1", "labels per class", *("best on spectra" if name == "spectra" else name for name in inputs)]
    return f"{markdown_table(header, rows)}\n\n{gains_table(result)}"


def gains_table(result: Mapping[str, Any], inputs: Sequence[str] | None = None) -> str:
    """Markdown of what inputs gain on average over places."""
    lines = [
        [
            f"{entry['inputs']} over {'the best on spectra' if entry['to'] == 'spectra' else 'the untrained network'}",
            str(entry["labels"]),
            f"{100 * entry['mean']:+.1f} ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f})",
            f"{entry['better']} of {entry['places']}",
        ]
        for entry in result["gains"]
        if inputs is None or entry["inputs"] in inputs
    ]
    return markdown_table(["points of macro F1", "labels per class", "mean (95 % interval)", "better in"], lines)


def plot_gains(path: Path, result: Mapping[str, Any]) -> Path:
    """What each inputs gain over the best on spectra, place by place."""
    from matplotlib.figure import Figure

    entries = result["scores"]
    budgets = sorted({entry["labels"] for entry in entries})
    inputs = [name for name in dict.fromkeys(entry["inputs"] for entry in entries) if name != "spectra"]
    places = list(dict.fromkeys(entry["place"] for entry in entries))
    found = {(entry["place"], entry["inputs"], entry["labels"]): entry for entry in entries}
    figure = Figure(figsize=(4.6 * len(budgets), 0.5 * len(places) + 1.6), layout="constrained")
    for axis, labels in zip(
        figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0], budgets, strict=True
    ):
        for number, (name, marker) in enumerate(zip(inputs, "osD^v*Px" * 4, strict=False)):
            gained = [
                100 * (ours["macro_f1"][ours["best"]] - spectra["macro_f1"][spectra["best"]])
                for place in places
                if (ours := found[place, name, labels]) and (spectra := found[place, "spectra", labels])
            ]
            axis.plot(gained, np.arange(len(places)) + 0.12 * (number - len(inputs) / 2), marker, label=name)
        axis.axvline(0, color="0.5", linewidth=1)
        axis.set_title(f"{labels} labels per class")
        axis.set_xlabel("points of macro F1 over the best on spectra")
        axis.grid(axis="x", color="0.9")
    axis.set_yticks(range(len(places)), places)
    axis.invert_yaxis()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(inputs), frameon=False)
    return save_figure(path, figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the places")
    parser.add_argument("--model", nargs="+", default=["model_cards/hsst-enmap"], help="folders of models to compare")
    parser.add_argument("--places", nargs="+", choices=tuple(PLACES), default=tuple(PLACES), help="(all)")
    parser.add_argument("--heads", nargs="+", choices=tuple(HEADS), default=tuple(HEADS), help="(all)")
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
            write_text(arguments.output_dir / "real_places.md", places_table(result) + "\n")
            plot_gains(arguments.output_dir / "real_places.png", result)
    print(places_table(result))


if __name__ == "__main__":
    main()
