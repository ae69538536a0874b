"""What a model is pre-trained on: tiles, the bands of its configuration among theirs, and the processor for them."""

import argparse
from pathlib import Path

import numpy as np
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from datasets_loading.corpus import is_corpus, is_saved_dataset, read_corpus
from datasets_loading.tiles import Tiles, read_tile_set
from hsst.support.command_line import reading_of
from hsst.support.model_sources import parse_overrides, read_config, read_processor
from modeling_hsst import HSSTConfig, HSSTImageProcessor
from modeling_hsst.scene_prediction_hsst import SMALLEST_DEVIATION


def load_tiles(arguments: argparse.Namespace, progress: bool) -> tuple[Tiles, Tiles]:
    """Tiles to train and to validate on."""

    def read_folder(folder: Path) -> Tiles:
        if arguments.streaming or is_corpus(folder) or is_saved_dataset(folder):
            return read_corpus(folder, streaming=arguments.streaming)
        return read_tile_set(folder, arguments.tile_size, progress=progress, **reading_of(arguments))

    if arguments.dataset_name is not None:
        tiles = read_corpus(arguments.dataset_name, streaming=arguments.streaming)
    else:
        tiles = read_folder(arguments.train_dir)
    if arguments.validation_dir is not None:
        return tiles, read_folder(arguments.validation_dir)
    if not 0 < arguments.train_val_split < 1:
        raise ValueError(f"--train_val_split: expected a share between 0 and 1, got {arguments.train_val_split}")
    if len(tiles) < 2:
        source = arguments.train_dir or arguments.dataset_name
        raise ValueError(
            f"{source}: expected at least 2 tiles to train and validate on, got {len(tiles)}; give more, a smaller "
            "--tile_size or a --validation_dir"
        )
    count = min(max(round(arguments.train_val_split * len(tiles)), 1), len(tiles) - 1)
    order = np.random.default_rng(arguments.seed).permutation(len(tiles))
    return tiles.select(sorted(order[count:])), tiles.select(sorted(order[:count]))


def make_config(arguments: argparse.Namespace, tiles: Tiles) -> HSSTConfig:
    """The configuration that the arguments and the data ask for."""
    source = arguments.model_name_or_path or arguments.config_name_or_path
    if source:
        flag = "--model_name_or_path" if arguments.model_name_or_path else "--config_name_or_path"
        settings = read_config(source, flag).to_dict()
    else:
        settings = HSSTConfig().to_dict()
    if arguments.config_overrides:
        overrides = parse_overrides(arguments.config_overrides, has_dropout=True)
        if "num_channels" in overrides and arguments.bands == "valid":
            raise ValueError("--config_overrides: num_channels follows from the tiles with --bands valid")
        settings |= overrides
    for name in ("image_size", "patch_size", "mask_type", "mask_ratio", "mask_patch_size"):
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    settings["hidden_dropout_prob"] = settings["attention_probs_dropout_prob"] = arguments.dropout
    if arguments.bands == "valid":
        num_before, settings["num_channels"] = settings["num_channels"], int(tiles.valid_bands.sum())
        wavelengths = None if tiles.wavelengths is None else tiles.wavelengths[tiles.valid_bands].tolist()
        before = settings.get("wavelengths")
        same = (
            before and wavelengths and len(before) == len(wavelengths) and np.allclose(before, wavelengths, atol=0.01)
        )
        others = num_before != settings["num_channels"]
        if before and wavelengths and not others:
            others = np.abs(np.subtract(before, wavelengths)).max() > HSSTImageProcessor.wavelength_tolerance
        if (settings.get("block_bands") and not same) or (arguments.model_name_or_path and others):
            raise ValueError(
                f"--bands valid: expected the {num_before} bands of {source}, got {settings['num_channels']} others: "
                "adapt it to them first (load_for_wavelengths, save_pretrained), with its processor"
            )
        settings["wavelengths"] = wavelengths
        if not same:
            # They follow from the bands
            settings |= {"block_centers": None, "spectral_positions": None}
    if not source:
        settings["spectral_positions"] = None
    own_settings = [name for name in HSSTConfig.__annotations__ if not name.startswith("_") and name != "model_type"]
    return HSSTConfig(**{name: settings[name] for name in own_settings})


def choose_bands(config: HSSTConfig, tiles: Tiles, arguments: argparse.Namespace) -> list[int]:
    """Indices of the configuration's bands in the tiles; they must hold data."""
    if arguments.bands == "valid":
        return np.flatnonzero(tiles.valid_bands).tolist()
    source = arguments.train_dir or arguments.dataset_name
    advice = "; --bands valid takes all bands that hold data"
    if arguments.model_name_or_path:
        advice = "; adapt the model to the bands of the tiles first (load_for_wavelengths, save_pretrained)"
    if config.wavelengths is None or tiles.wavelengths is None:
        if tiles.num_bands != config.num_channels:
            raise ValueError(
                f"{source}: expected tiles of the {config.num_channels} bands of the configuration, got "
                f"{tiles.num_bands}, and no wavelengths to pick them by{advice}"
            )
        bands = list(range(tiles.num_bands))
    else:
        finder = HSSTImageProcessor(wavelengths=config.wavelengths)
        try:
            bands = finder.match_wavelengths(tiles.wavelengths, tiles.valid_bands)
        except ValueError as error:
            raise ValueError(f"{source}: {error}{advice}") from error
    empty = [band for band in bands if not tiles.valid_bands[band]]
    if empty:
        raise ValueError(
            f"{source}: expected data in every band of the configuration, but {len(empty)} hold none in some tile or "
            f"product (the first is band {empty[0]} in ascending wavelength){advice}"
        )
    return bands


def check_same_bands(arguments: argparse.Namespace, training: Tiles, validation: Tiles, bands: list[int]) -> None:
    """Raises ValueError where the validation tiles have other bands than the training tiles, or bands without data."""
    source = arguments.validation_dir
    if training.wavelengths is not None and validation.wavelengths is not None:
        distances = np.abs(training.wavelengths - validation.wavelengths)
        if distances.max() > HSSTImageProcessor.wavelength_tolerance:
            band = int(distances.argmax())
            raise ValueError(
                f"{source}: expected the wavelengths of the training tiles, got {validation.wavelengths[band]:.1f} nm "
                f"where they have {training.wavelengths[band]:.1f} nm"
            )
    empty = [band for band in bands if not validation.valid_bands[band]]
    if empty:
        raise ValueError(
            f"{source}: expected data in every band of the model, but {len(empty)} hold none in some tile or product "
            f"(the first is band {empty[0]} in ascending wavelength)"
        )
    if (training.scale, training.nodata) != (validation.scale, validation.nodata):
        raise ValueError(
            f"{source}: expected the scale {training.scale} and nodata value {training.nodata} of the training tiles, "
            f"got {validation.scale} and {validation.nodata}"
        )


def make_processor(
    config: HSSTConfig, tiles: Tiles, bands: list[int], checkpoint: HSSTImageProcessor | None = None
) -> HSSTImageProcessor:
    """The processor of these tiles, with the statistics of a checkpoint's, or else of the training pixels."""
    if checkpoint is not None:
        statistics = statistics_of_checkpoint(checkpoint, config)
    else:
        low, high = HSSTImageProcessor.clip_range
        mean, std = (values[bands] for values in tiles.band_statistics(low, high))
        statistics = {"image_mean": mean.tolist(), "image_std": np.maximum(std, SMALLEST_DEVIATION).tolist()}
    picks_bands = bands != list(range(tiles.num_bands))
    return HSSTImageProcessor(
        **statistics,
        wavelengths=config.wavelengths,
        band_indices=bands if picks_bands else None,
        num_source_bands=tiles.num_bands if picks_bands else None,
        scale=tiles.scale,
        nodata=tiles.nodata,
    )


def processor_of_checkpoint(name: str) -> HSSTImageProcessor | None:
    """The processor beside a checkpoint's weights; None where it has none, or one without statistics."""
    if cached_file(name, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is None:
        return None
    processor = read_processor(name)
    return None if processor.image_mean is None or processor.image_std is None else processor


def statistics_of_checkpoint(processor: HSSTImageProcessor, config: HSSTConfig) -> dict[str, list[float]]:
    """Mean, standard deviation and clip range of a checkpoint's processor for each band of the configuration."""
    advice = "; --recompute_statistics takes those of the training tiles"
    if processor.wavelengths is not None and config.wavelengths is not None:
        try:
            places = HSSTImageProcessor(wavelengths=config.wavelengths).match_wavelengths(processor.wavelengths)
        except ValueError as error:
            raise ValueError(f"--model_name_or_path: statistics of the checkpoint: {error}{advice}") from error
    elif processor.num_bands == config.num_channels:
        places = list(range(config.num_channels))
    else:
        raise ValueError(
            f"--model_name_or_path: expected statistics of {config.num_channels} bands beside the checkpoint, got "
            f"{processor.num_bands}{advice}"
        )
    assert processor.image_mean is not None and processor.image_std is not None  # processor_of_checkpoint looks
    return {
        "image_mean": [processor.image_mean[place] for place in places],
        "image_std": [processor.image_std[place] for place in places],
        "clip_range": list(processor.clip_range),
    }


def check_tile_sizes(source: Path | str, tiles: Tiles, window_size: tuple[int, int]) -> None:
    """Raises ValueError where a tile is smaller than a window."""
    too_small = np.flatnonzero((tiles.shapes < np.array(window_size)).any(axis=1))
    if too_small.size:
        first = int(too_small[0])
        height, width = tiles.shapes[first]
        raise ValueError(
            f"{source}: expected tiles of at least {window_size[0]}x{window_size[1]} pixels, the size of a window, "
            f"got {height}x{width} in {tiles.names[first]}"
        )
