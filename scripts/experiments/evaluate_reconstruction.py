"""
How well a pre-trained model reconstructs hidden values of tiles left out of its training, beside linear interpolation
along the spectrum, means of what is visible, and Gaussians conditioned on the visible bands of each pixel.

    python scripts/experiments/evaluate_reconstruction.py --model outputs/hsst --tiles potsdam/images \\
        --training_tiles corpus \\
        --block "north-west=tile_64_*,tile_96_*,tile_128_*" --block "centre-east=tile_160_*,tile_192_*" \\
        --output_dir outputs/reconstruction

--training_tiles gives one Gaussian, of the spectra that the model was trained on. Blocks give another, of the same
scene: the tiles of each block are scored with the mean and covariance of the other blocks' pixels. The output folder
holds `reconstruction.json`, the table `reconstruction.md`, and `reconstruction_spectra.png`.
"""

import argparse
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForMaskedImageModeling

from datasets_loading.corpus import is_corpus, read_corpus
from datasets_loading.files import write_json, write_text
from datasets_loading.tiles import Tiles, read_tile_set
from hsst.experiments.reconstruction_tables import (
    GaussianSpectrum,
    evaluate_reconstruction,
    plot_reconstructed_spectra,
    reconstruction_table,
    standardised_spectra,
)
from hsst.experiments.run_mim_tensors import TileTensors
from hsst.support.command_line import one_line_errors
from hsst.support.model_sources import read_config, reading
from modeling_hsst import HSSTForMaskedImageModeling, HSSTImageProcessor
from modeling_hsst.configuration_hsst import MASK_TYPES


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or name on the Hub, of a pre-trained model")
    parser.add_argument("--tiles", type=Path, required=True, help="folder of tiles or products to score")
    parser.add_argument(
        "--training_tiles",
        nargs="+",
        metavar="PATH",
        help="the training's folder of tiles, products or shards, or its safetensors files as FILE or FILE=WEIGHT",
    )
    parser.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="NAME=PATTERN,...",
        help="tiles of one area, by patterns of their names; give at least two",
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--name", help="of the tiles in the figure's title (their folder's)")
    parser.add_argument(
        "--tile_size", type=int, default=64, help="side of the tiles cut from products, in pixels (64)"
    )
    parser.add_argument("--mask_types", nargs="+", choices=MASK_TYPES, default=["unit", "tube", "grid"])
    parser.add_argument("--mask_ratio", type=float, default=0.7, help="share of the tokens to hide (0.7)")
    parser.add_argument("--draws", type=int, default=1, help="masks of each window (1)")
    parser.add_argument(
        "--max_training_tiles", type=int, default=400, help="training tiles to estimate the Gaussian from (400)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks (0)")
    return parser.parse_args()


def read_folder(folder: Path, tile_size: int) -> Tiles:
    return read_corpus(folder) if is_corpus(folder) else read_tile_set(folder, tile_size)


def load_model(name: str) -> tuple[HSSTForMaskedImageModeling, HSSTImageProcessor]:
    architecture = (read_config(name, "--model").architectures or ["nothing"])[0]
    if architecture != "HSSTForMaskedImageModeling":
        raise ValueError(f"--model {name}: expected a pre-trained HSSTForMaskedImageModeling, got {architecture}")
    with reading(name):
        model = AutoModelForMaskedImageModeling.from_pretrained(name)
    return model.eval(), HSSTImageProcessor.from_pretrained(name)


def blocks_of_tiles(names: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """Name of the block of each tile, by `NAME=PATTERN,...`; each tile must be in one block."""
    patterns = {}
    for text in blocks:
        name, separator, listed = text.partition("=")
        if not separator or not listed:
            raise ValueError(f"--block: expected NAME=PATTERN,..., got {text}")
        patterns[name] = [pattern.strip() for pattern in listed.split(",")]
    if len(patterns) < 2:
        raise ValueError(f"--block: expected at least 2 blocks, got {len(patterns)}")
    found = []
    for tile in names:
        matching = [name for name, listed in patterns.items() if any(fnmatch(tile, pattern) for pattern in listed)]
        if len(matching) != 1:
            raise ValueError(f"--block: expected each tile in one block, got {len(matching)} for {tile}")
        found.append(matching[0])
    lacking = [name for name in patterns if name not in found]
    if lacking:
        raise ValueError(f"--block: expected tiles in each block, got none in {lacking[0]}")
    return found


def training_spectra(
    arguments: argparse.Namespace, processor: HSSTImageProcessor
) -> Iterator[torch.Tensor] | list[torch.Tensor]:
    """Standardised spectra (pixels, bands) of training tiles; safetensors files in the proportion of their weights."""
    paths = arguments.training_tiles
    if not any(is_tensor_file(path) for path in paths):
        if len(paths) > 1:
            raise ValueError(f"--training_tiles: expected one folder, or safetensors files, got {len(paths)} folders")
        training = read_folder(Path(paths[0]), arguments.tile_size)
        return standardised_spectra(training, processor, paths[0], spread(len(training), arguments.max_training_tiles))
    folders = [path for path in paths if not is_tensor_file(path)]
    if folders:
        raise ValueError(f"--training_tiles: expected safetensors files only beside one, got {folders[0]}")
    sources = []
    for path in paths:
        tensors = TileTensors.read(path, list(processor.wavelengths or []))
        numbers = spread(len(tensors.tiles), arguments.max_training_tiles)
        values, valid = processor.standardize(tensors.tiles[numbers], scale=tensors.scale, nodata=tensors.nodata)
        sources.append((values.permute(0, 2, 3, 1)[valid], tensors.weight))
    # As many pixels of each as its share of the training's windows allows
    total = min(len(spectra) / weight for spectra, weight in sources)
    return [spectra[spread(len(spectra), round(total * weight))] for spectra, weight in sources]


def is_tensor_file(path: str) -> bool:
    return path.partition("=")[0].endswith(".safetensors")


def spread(length: int, most: int) -> list[int]:
    """Up to so many numbers below a length, spread evenly."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int)).tolist()


def make_gaussians(
    arguments: argparse.Namespace, tiles: Tiles, processor: HSSTImageProcessor
) -> dict[str, list[GaussianSpectrum]]:
    """The Gaussian of each tile, for each way of estimating it."""
    gaussians: dict[str, list[GaussianSpectrum]] = {}
    num_bands = len(processor.wavelengths or [])
    if arguments.training_tiles is not None:
        spectra = training_spectra(arguments, processor)
        gaussians["the model's training tiles"] = [GaussianSpectrum.estimate(spectra, num_bands)] * len(tiles)
    if arguments.block:
        blocks = blocks_of_tiles(tiles.names, arguments.block)
        of_block = {}
        for block in dict.fromkeys(blocks):
            others = [number for number, name in enumerate(blocks) if name != block]
            spectra = standardised_spectra(tiles, processor, str(arguments.tiles), others)
            of_block[block] = GaussianSpectrum.estimate(spectra, num_bands)
        gaussians["other tiles of the same scene"] = [of_block[block] for block in blocks]
    return gaussians


def main() -> None:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("evaluate_reconstruction.py"):
        for name in ("draws", "max_training_tiles"):
            if getattr(arguments, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
        model, processor = load_model(arguments.model)
        tiles = read_folder(arguments.tiles, arguments.tile_size)
        gaussians = make_gaussians(arguments, tiles, processor)
        masks, spectra = {}, {}
        for mask_type in dict.fromkeys(arguments.mask_types):
            masks[mask_type], spectra[mask_type] = evaluate_reconstruction(
                model,
                processor,
                tiles,
                gaussians,
                source=str(arguments.tiles),
                mask_type=mask_type,
                mask_ratio=arguments.mask_ratio,
                draws=arguments.draws,
                seed=arguments.seed,
                progress=True,
            )
        by_band = {
            mask_type: {name: errors.pop("by_band") for name, errors in result["predictors"].items()}
            for mask_type, result in masks.items()
        }
        result = {
            "masks": masks,
            "gaussian_pixels": {
                name: sorted({gaussian.num_pixels for gaussian in by_tile}) for name, by_tile in gaussians.items()
            },
            "bands": len(processor.wavelengths or []),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "model": Path(arguments.model).name,
            "mask_ratio": arguments.mask_ratio,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        first = next(iter(masks))
        plot_reconstructed_spectra(
            arguments.output_dir / "reconstruction_spectra.png",
            spectra[first],
            by_band[first],
            processor.wavelengths or [],
            f"{arguments.name or arguments.tiles.name}: {first} masks, {masks[first]['hidden']:.0%} of the tokens "
            "hidden",
        )
        table = reconstruction_table(result)
        write_text(arguments.output_dir / "reconstruction.md", table + "\n")
        path = write_json(arguments.output_dir / "reconstruction.json", result)
    print(f"{table}\n\nResults: {path}")


if __name__ == "__main__":
    main()
