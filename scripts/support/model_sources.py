"""Models as users name them: a folder or a repository of the Hub, and settings to change."""

import json
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)
from transformers.utils import logging as transformers_logging

from hsst.support.command_line import check_source, missing_source
from modeling_hsst import (
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
    use_fast_layers,
)
from modeling_hsst.hub_hsst import load_whole

LARGEST_FILE = 2**24
"""Bytes of a file of settings: those of 10,000 bands are a megabyte."""

LARGEST_SIZE = 2**16
"""Of one size in a configuration, and of a list: what is made of them before there are weights stays small."""

LARGEST_WINDOW = 2**9
"""Side of a model's windows in pixels: tables of fixed positions, which are in no file, grow with its square."""

ADAPTER = "adapter_config.json"
ELSEWHERE = ("quantization_config", "transformers_weights", "configuration_files", "attn_implementation", "auto_class")
"""Settings that have transformers read other files, or run other code, than a model of HSST has."""

FLOATS = ("F64", "F32", "F16", "BF16")
OTHER_PARTS = ("head.", "decoder", "hidden_tokens.", "hsst.embeddings.mask_token")
"""How names of weights begin that an encoder does without."""


def read_config(source: str, flag: str) -> HSSTConfig:
    """The configuration in a folder or a repository of the Hub; ValueError where it is in neither, or damaged."""
    folder = Path(source)
    check_source(source, flag)
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{flag}: expected a model in {source}, found no {CONFIG_NAME}")
    if not folder.is_dir():
        stay_offline_without_network()
    try:
        path = Path(str(cached_file(source, CONFIG_NAME)))
    except OSError as error:
        raise ValueError(f"{missing_source(source, flag)}, and the Hub gave none: {error}") from error
    settings = read_settings(path)
    if settings.get("model_type") != HSSTConfig.model_type:
        raise ValueError(f"{path}: expected a model of type hsst, got {settings.get('model_type')}")
    for name in ELSEWHERE:
        if settings.get(name) is not None:
            raise ValueError(f"{path}: expected no `{name}`, which models of type hsst do not have, got one")
    for name in (*HSSTConfig.__annotations__, "num_labels", "id2label"):
        value = settings.get(name)
        largest = LARGEST_WINDOW if name == "image_size" else LARGEST_SIZE
        numbers = value if isinstance(value, list) else [value]
        if isinstance(value, (list, dict)) and len(value) > LARGEST_SIZE:
            raise ValueError(f"{path}: expected `{name}` of at most {LARGEST_SIZE} entries, got {len(value)}")
        sizes = [number for number in numbers if isinstance(number, int)]
        if sizes and max(sizes) > largest:
            raise ValueError(f"{path}: expected `{name}` of at most {largest}, got {max(sizes)}")
    if not isinstance(kind := settings.get("dtype", settings.get("torch_dtype")), str | None):
        raise ValueError(f"{path}: expected `dtype` to be the name of a type, got {some(kind)}")
    with reading(str(path)):
        config = HSSTConfig.from_dict(settings)
    names: Any = config.id2label
    if set(names) != set(range(len(names))) or not all(
        isinstance(name, str) and name.isprintable() for name in names.values()
    ):
        raise ValueError(f"{path}: expected `id2label` with a name for each class from 0, got {some(names)}")
    if not config.architectures or not all(isinstance(name, str) for name in config.architectures):
        config.architectures = ["nothing"]
    return config


def stay_offline_without_network() -> None:
    """Where the Hub's address is unknown, only its cache is looked into: the client tries for half a minute a file."""
    if getproxies():
        return  # which may know it
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except socket.gaierror:
        constants.HF_HUB_OFFLINE = True


def some(value: object) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]} ..."


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of settings."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: expected at most {LARGEST_FILE:,} bytes of settings, got {path.stat().st_size:,}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(settings).__name__}")
    return settings


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is none of its numbers")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refuse(text)


def read_processor(source: str, config: HSSTConfig | None = None) -> HSSTImageProcessor:
    """
    The image processor beside a model's weights. ValueError where there is none, it is damaged, or it is of other
    bands than `config`.
    """
    found = find_file(source, IMAGE_PROCESSOR_NAME)
    if found is None:
        raise ValueError(f"{source}: expected an image processor beside the model, found no {IMAGE_PROCESSOR_NAME}")
    settings = read_settings(found)
    kind = settings.get("image_processor_type")
    if kind != HSSTImageProcessor.__name__:
        raise ValueError(f"{found}: expected the type {HSSTImageProcessor.__name__}, got {some(kind)}")
    with reading(str(found)):
        processor = HSSTImageProcessor.from_dict(settings)
    if config is None:
        return processor
    if processor.num_bands not in (None, config.num_channels):
        raise ValueError(
            f"{found}: expected statistics of the model's {config.num_channels} bands, got {processor.num_bands}"
        )
    pairs = zip(processor.wavelengths or (), config.wavelengths or (), strict=False)
    farthest = max((abs(own - model) for own, model in pairs), default=0.0)
    if farthest > processor.wavelength_tolerance:
        raise ValueError(f"{found}: expected the wavelengths of {CONFIG_NAME}, got others, by up to {farthest:.1f} nm")
    return processor


def find_file(source: str, name: str) -> Path | None:
    """A file of a folder, or of a repository of the Hub, which is fetched; None where there is none."""
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


@contextmanager
def reading(source: str) -> Iterator[None]:
    """What reading damaged or unfitting settings or weights raises, as a ValueError that names them."""
    try:
        yield
    except (
        *(RuntimeError, SafetensorError, StrictDataclassError, ValueError, TypeError),
        *(AttributeError, LookupError, ArithmeticError),
    ) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, (LookupError, AttributeError)) else str(error)
        raise ValueError(reason if reason.startswith(source) else f"{source}: {reason}") from error


def weight_files(source: str) -> list[Path]:
    """The files of a model's weights; ValueError where there are none in safetensors."""
    path = find_file(source, SAFE_WEIGHTS_NAME)
    files = [path] if path is not None else []
    if path is None and (index := find_file(source, SAFE_WEIGHTS_INDEX_NAME)) is not None:
        names = read_settings(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index}: expected a `weight_map` of names, got {some(names)}")
        for name in sorted(set(names.values())):
            part = find_file(source, name) if name == Path(name).name else None
            if part is None:
                raise ValueError(f"{index}: expected weights in files beside it, found no {name}")
            files.append(part)
    if not files:
        raise ValueError(f"{source}: expected weights in {SAFE_WEIGHTS_NAME}, found none")
    return files


def stored_tensors(source: str) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor of a model's weights, from the headers of its files."""
    tensors = {}
    for file in weight_files(source):
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a dictionary)
                    part = weights.get_slice(name)
                    tensors[name] = part.get_dtype(), part.get_shape()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: expected weights in safetensors, got: {error}") from error
        if others := [name for name, (kind, _) in tensors.items() if kind not in FLOATS]:
            raise ValueError(f"{file}: expected weights of type {', '.join(FLOATS)}, got others in {some(others)}")
    return tensors


def check_sizes(model_class: Any, source: str, config: HSSTConfig, new: tuple[str, ...] = ()) -> None:
    """
    Compares what a model would take with the headers of its weights, before memory is asked for. ValueError where the
    configuration describes a larger model than there are weights for.
    """
    if (Path(source) / ADAPTER).exists():
        raise ValueError(f"{source}: expected a whole model, got an adapter of one ({ADAPTER})")
    stored = stored_tensors(source)
    described = config.num_hidden_layers + 2 * config.decoder_depth
    if described > len(stored):
        raise ValueError(
            f"{source}: expected the {described} layers of the configuration, got a file of {len(stored)} tensors"
        )
    with reading(source), torch.device("meta"):
        state = model_class(config).state_dict()
    numbers = sum(tensor.numel() for name, tensor in state.items() if not name.startswith(new))
    there = sum(math.prod(shape) for _, shape in stored.values())
    if numbers > there:
        raise ValueError(f"{source}: expected the {numbers:,} weights of the configuration, got a file of {there:,}")


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' report of weights that are new or left out, of which `load_whole` refuses those that no
    program expects, and without a progress bar, which models this small do not need."""
    verbosity, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bar:
            transformers_logging.enable_progress_bar()


def load_model(
    model_class: Any, source: str, config: HSSTConfig, *, new: tuple[str, ...] = (), unused: tuple[str, ...] = ()
) -> Any:
    """
    A model with all its weights; no code that lies beside them is run, and no pickle read. `new` and `unused` are how
    names of weights begin, as for `load_whole`. ValueError where weights are missing, damaged, of other sizes than the
    configuration says, or not finite.
    """
    check_sizes(model_class, source, config, new)
    with reading(source), quietly():
        return load_whole(model_class, source, new=new, unused=unused, config=config, use_safetensors=True)


def parse_overrides(overrides: str, has_dropout: bool = False) -> dict[str, Any]:
    """
    `name=value,name=value` as settings of the types that the configuration has by default. ValueError where one is
    unknown, of another type, or is dropout where the program `has_dropout` as a flag of its own.
    """
    defaults = HSSTConfig()
    settings: dict[str, Any] = {}
    for item in overrides.split(","):
        name, separator, value = item.partition("=")
        name, value = name.strip(), value.strip()
        default = getattr(defaults, name, None) if name in HSSTConfig.__annotations__ else None
        if HSSTConfig.__annotations__.get(name) == int | None:
            default = 0  # sizes of the decoder, that follow the encoder's by default
        if not separator or not isinstance(default, (bool, int, float, str)):
            raise ValueError(f"--config_overrides: expected name=value with a setting of HSSTConfig, got {item}")
        if has_dropout and name.endswith("dropout_prob"):
            raise ValueError(f"--config_overrides: {name} is set by --dropout")
        if isinstance(default, bool):
            if value.lower() not in ("true", "false"):
                raise ValueError(f"--config_overrides: expected true or false for {name}, got {value}")
            settings[name] = value.lower() == "true"
        else:
            try:
                settings[name] = type(default)(value)
            except ValueError:
                kind = type(default).__name__
                raise ValueError(f"--config_overrides: expected {name} to be of type {kind}, got {value}") from None
            if name == "hidden_size" and settings[name] < 1:  # which HSSTConfig leaves to transformers
                raise ValueError(f"--config_overrides: expected hidden_size of at least 1, got {value}")
    return settings


def load_masked_model(source: str) -> HSSTForMaskedImageModeling:
    """The pre-trained model of --model, with fast layers, ready to reconstruct."""
    config = read_config(source, "--model")
    architecture = (config.architectures or ["nothing"])[0]
    if architecture != "HSSTForMaskedImageModeling":
        raise ValueError(f"--model {source}: expected a pre-trained HSSTForMaskedImageModeling, got {architecture}")
    return use_fast_layers(load_model(HSSTForMaskedImageModeling, source, config).eval())


def load_classifier(source: str) -> Any:
    """The fine-tuned model of --model, of the class it was saved from."""
    config = read_config(source, "--model")
    architecture = (config.architectures or ["nothing"])[0]
    classes = {entry.__name__: entry for entry in (HSSTForSemanticSegmentation, HSSTForImageClassification)}
    if architecture not in classes:
        expected = f"a model with a classification head ({' or '.join(classes)})"
        raise ValueError(f"{source}: expected {expected}, got {architecture}; fine-tune it first")
    return load_model(classes[architecture], source, config)
