"""What the code computes, frozen before it is restructured.

    python tests/golden/make.py                    writes golden.json beside this file
    python tests/golden/make.py --check            computes all of it anew, prints each difference, exits with 1 on any
    python tests/golden/make.py --check --exact    the same bit for bit, on a machine like the one that wrote the file

Each section is a function below; `comparison.py` says when it counts as the same.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import small_benchmarks
import small_land_cover
import small_products
from golden.comparison import differences, floats, picture, sha256, summary

import datasets_loading.splits as splitting
import modeling_hsst as modeling
from datasets_loading.corpus import CutSettings, prepare_corpus, read_corpus
from datasets_loading.enmap_product import EnMAPProduct
from datasets_loading.labelled_data import read_cube
from datasets_loading.scenes import open_scene
from datasets_loading.simulation.scene import SimulatedScene, labels_path, simulate_scene, write_scene
from datasets_loading.tiles import read_tile_set
from hsst.experiments.baselines import run_model
from hsst.support.scene_maps import MapOptions, write_scene_maps
from hsst.support.training_settings import MODELS, FineTuningSettings, ModelOptions
from modeling_hsst.configuration_hsst import MASK_TYPES, HSSTConfig
from modeling_hsst.image_processing_hsst import HSSTImageProcessor
from modeling_hsst.scene_prediction_hsst import ScenePredictor

GOLDEN = Path(__file__).with_name("golden.json")
CARDS = Path(__file__).resolve().parents[2] / "model_cards"
Found = dict[str, Any]

CLASSES = ("Model", "ForMaskedImageModeling", "ForImageClassification", "ForSemanticSegmentation", "Backbone")
# Of sizes for which the fast way pays; the bands do not fill the last block
SIZES = {"num_channels": 15, "band_patch_size": 4, "image_size": 4, "mask_patch_size": 2, "num_labels": 3}
WIDTHS = {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 16, "intermediate_size": 16}
DEPTHS = {"num_spatial_layers": 2, "num_spectral_layers": 1, "initializer_range": 0.2}
SMALL: dict[str, Any] = {**SIZES, **WIDTHS, **DEPTHS}
WAVELENGTHS = [500.0 + 90 * band for band in range(15)]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as published": {},
    "visible only": {"visible_only": True, "decoder_hidden_size": 12, "decoder_num_attention_heads": 1},
    "by wavelength": {"position_embedding_type": "wavelength", "wavelengths": WAVELENGTHS, "head_type": "concat"},
    "all else": {"position_embedding_type": "sincos", "block_bands": [[0, 1, 2, 3], [14, 12, 10, 8]], "qkv_bias": True}
    | dict.fromkeys(("normalize_token_values", "blockwise_patch_embedding", "blockwise_decoder"), False)
    | {"num_decoder_layers": 1, "num_spatial_layers": 0, "patch_size": 2},
}


def windows(generator: np.random.Generator, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (windows, bands, height, width), each of one noisy spectrum, and a mask that hides some pixels."""
    spectra = generator.standard_normal((*shape[:2], 1, 1)).cumsum(axis=1) / shape[1] ** 0.5
    values = spectra + 0.2 * generator.standard_normal(shape)
    return torch.from_numpy(values).float(), torch.from_numpy(generator.random((shape[0], *shape[2:])) > 0.2)


def in_both_ways(*models: Any) -> Iterator[str]:
    """Names the way in which the models compute, plain and fast."""
    for way in ("plain", "fast"):
        for model in models:
            model.set_attn_implementation("sdpa" if way == "fast" else "eager")
            if way == "fast":
                modeling.use_fast_layers(model)
        yield way


@cache
def simulated_scene() -> SimulatedScene:
    return simulate_scene(26, 32, seed=1, cloud_cover=0.1, haze_cover=0.2, cirrus_cover=0.1, workers=1)


def weights() -> Found:
    """Names, shapes and types of all weights, and what they are initialized with."""
    found: Found = {}
    for name, changes in CONFIGURATIONS.items():
        for kind in CLASSES:
            torch.manual_seed(0)
            model = getattr(modeling, f"HSST{kind}")(HSSTConfig(**{**SMALL, **changes}))
            state = sorted(model.state_dict().items())
            names = [(key, tuple(value.shape), str(value.dtype)) for key, value in state]
            values = torch.cat([value.flatten() for _, value in state])
            found[f"{name}: {kind}"] = {"names": sha256(names), "tensors": len(names), **summary(values)}
    return found


def losses() -> Found:
    """Losses of 50 steps of pre-training, with masks of all types, and pixels without data in every other step."""
    found: Found = {}
    for name in ("as published", "visible only"):
        torch.manual_seed(0)
        model = modeling.HSSTForMaskedImageModeling(HSSTConfig(**{**SMALL, **CONFIGURATIONS[name]}))
        start = {key: value.clone() for key, value in model.state_dict().items()}
        values, mask = windows(np.random.default_rng(0), 8, 15, 4, 4)
        for way in in_both_ways(model):
            model.load_state_dict(start)
            # Unlike Adam, it sees how large gradients are
            optimizer, steps = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9), []
            torch.manual_seed(1)
            for step in range(50):
                pixel_mask, mask_type = mask if step % 2 else None, MASK_TYPES[step % len(MASK_TYPES)]
                optimizer.zero_grad()
                loss = model(values, pixel_mask=pixel_mask, mask_type=mask_type).loss
                loss.backward()
                optimizer.step()
                steps.append(loss.item())
            found[f"{name}: {way}"] = floats(steps)
    return found


@torch.no_grad()
def logits() -> Found:
    """What the models of `model_cards/` make of two windows."""
    values, mask = windows(np.random.default_rng(0), 2, 200, 8, 8)
    pretrained = modeling.HSSTForMaskedImageModeling.from_pretrained(CARDS / "hsst-enmap").eval()
    classifier = modeling.HSSTForSemanticSegmentation.from_pretrained(CARDS / "hsst-enmap-landcover").eval()
    found: Found = {}
    for way in in_both_ways(pretrained, classifier):
        for pixels, pixel_mask in (("all pixels", None), ("some pixels", mask)):
            torch.manual_seed(0)
            outputs = {
                "hidden states": pretrained.hsst(values, pixel_mask).last_hidden_state,
                "reconstruction": pretrained(values, pixel_mask=pixel_mask).reconstruction,
                "logits": classifier(values, pixel_mask=pixel_mask).logits,
            }
            found |= {f"{name} of {pixels}: {way}": summary(output) for name, output in outputs.items()}
    return found


def tiles() -> Found:
    """Tiles of a small product, by way of a corpus and without one, and of a GeoTIFF with its bands in reverse."""
    wavelengths, part = small_products.WAVELENGTHS[::-1], small_products.small_cube()[::-1, 50:80, 30:70]
    tags = lambda band: {"wavelength": str(wavelengths[band]), "wavelength_units": "nanometers"}
    with TemporaryDirectory() as place:
        folder = Path(place)
        small_products.write_small_product(folder / "products")
        prepare_corpus(folder / "products", folder / "corpus", CutSettings(tile_size=32), progress=False)
        corpus = read_corpus(folder / "corpus", streaming=True)
        directly = read_tile_set(folder / "products", 32, progress=False)
        tile = read_cube(small_benchmarks.write_raster(folder / "tile.tif", part, band_tags=tags, nodata=-32768))
        means, deviations = (moments[corpus.valid_bands] for moments in corpus.band_statistics(-0.02, 1.0))
        return {
            "number": len(corpus),
            "images": sha256(sorted((name, sha256(image)) for name, image in zip(corpus.names, corpus, strict=True))),
            "images without a corpus": sha256(sorted(map(sha256, directly))),
            "valid bands": str(corpus.valid_bands.astype(int)),
            "means": floats(means),
            "deviations": floats(deviations),
            "GeoTIFF": sha256(tile.image, tile.wavelengths),
        }


def splits() -> Found:
    """Codes of splits of all kinds, and labels drawn from one."""
    classes, seeds = [0, 1, 2, 3, 255, 255], {"north": 0, "south": 1}
    labels = {name: small_benchmarks.patchy_labels(40, 60, classes, seed) for name, seed in seeds.items()}
    areas = {"train": [splitting.Area("north", 0, 40, 0, 30)], "test": [splitting.Area("north", 0, 40, 33, 60)]}
    made = {
        "blocks": splitting.split_by_blocks(labels, block_size=8, buffer=2),
        "areas": splitting.split_by_areas(labels, areas, buffer=2),
        "scenes": splitting.split_by_scenes(labels, {"train": ["north"], "test": ["south"]}, buffer=2),
    }
    made["validation"] = splitting.with_validation(made["areas"], labels, share=0.3, block_size=8)
    found: Found = {"drawn": sha256(*splitting.draw_labels(labels, made["areas"], per_class=5).values())}
    with TemporaryDirectory() as folder:
        for kind, split in made.items():
            written = json.loads(splitting.write_split(split, Path(folder) / "split.json", labels).read_text())
            found[kind] = {entry["name"]: entry["codes_sha256"] for entry in written["scenes"]}
    return found


def class_map() -> Found:
    """The map of a simulated product, and what lies beside it."""
    card = CARDS / "hsst-enmap-landcover"
    model = modeling.HSSTForSemanticSegmentation.from_pretrained(card)
    modeling.use_fast_layers(model)
    processor = HSSTImageProcessor.from_pretrained(card)
    predictor = ScenePredictor(model, processor, stride=6, exclude=("outside", "cloud"))
    with TemporaryDirectory() as place:
        path = Path(place) / "map.tif"
        with open_scene(write_scene(simulated_scene(), place)) as scene:
            options = MapOptions(probabilities="float32")
            write_scene_maps(predictor.predict(scene), scene, path, predictor.class_names, options=options)
        areas = json.loads(path.with_name("map_areas.json").read_text())
        with rasterio.open(path) as dataset, rasterio.open(path.with_name("map_probabilities.tif")) as beside:
            classes, probabilities = dataset.read(1), beside.read()
    return {
        "classes": " ".join(row["name"] for row in areas["classes"]),
        "mapped pixels": picture(classes),
        "pixels without class": areas["pixels_without_class"],
        "mean probabilities": floats(np.nanmean(probabilities, axis=(1, 2))),
        "hectares": floats([sum(row["area_ha"] for row in areas["classes"])]),
        "bits": {"map": sha256(classes), "areas": sha256(areas["classes"])},
    }


def simulation() -> Found:
    """A simulated product and its labels, as they lie on the disk."""
    with TemporaryDirectory() as folder:
        with EnMAPProduct.open(write_scene(simulated_scene(), folder)) as product:
            cube, name, bands = product.read(), product.name, product.valid_bands
            covers = product.read_cloud(), product.read_cloud_shadow(), product.read_haze()
        with rasterio.open(labels_path(folder, name)) as dataset:
            labels = dataset.read(1)
    spectra = cube[bands][:, labels != 255]
    return {
        "name": name,
        "shape": str(cube.shape),
        "labelled pixels": picture(labels),
        "covered pixels": picture(np.tensordot([1, 2, 4], np.array(covers), axes=1)),
        "means": floats(spectra.mean(axis=1)),
        "deviations": floats(spectra.std(axis=1)),
        "bits": {"image": sha256(cube), "labels": sha256(labels)},
    }


def confusion() -> Found:
    """Confusion matrices of all models that are compared, and mean losses of those that are trained in steps."""
    found: Found = {}
    cube, labels = small_land_cover.small_cube(noise=700)
    data = small_land_cover.small_data(cube=cube, labels=labels)
    settings = FineTuningSettings(max_steps=12, batch_size=4, learning_rate=1e-2, stride=5, use_cpu=True)
    with TemporaryDirectory() as folder:
        pretrained = ModelOptions(str(small_land_cover.write_small_checkpoint(Path(folder))))
        untrained = ModelOptions(None, small_land_cover.TINY, window_size=5)
        for name, entry in MODELS.items():
            outcome = run_model(name, data, settings, pretrained if entry.needs_checkpoint else untrained)
            loss = {} if outcome.training is None else {"loss": floats([outcome.training.loss])}
            found[name] = {"confusion": str(outcome.confusion.tolist()), **loss}
    return found


SECTIONS: dict[str, Callable[[], Found]] = dict(
    weights=weights, losses=losses, logits=logits, tiles=tiles, splits=splits, map=class_map, simulation=simulation
) | {"confusion": confusion}


def compute(section: str) -> Found:
    """A section in one thread, so that sums are taken in the same order on however many processors."""
    threads = torch.get_num_threads()
    try:
        with threadpool_limits(1), torch.random.fork_rng(devices=[]):
            torch.set_num_threads(1)
            return SECTIONS[section]()
    finally:
        torch.set_num_threads(threads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden.json instead of writing it")
    parser.add_argument("--exact", action="store_true", help="compare every bit")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    found = {section: compute(section) for section in SECTIONS}
    if not arguments.check:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    lines = list(differences(json.loads(GOLDEN.read_text(encoding="utf-8")), found, arguments.exact))
    print("\n".join(lines) or "no differences")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
