"""Models as users name them: a folder or a repository of the Hub, and settings to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForMaskedImageModeling, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, use_fast_layers


def read_config(source: str, flag: str) -> PreTrainedConfig:
    """The configuration in a folder or a repository of the Hub; ValueError where it is in neither."""
    folder = Path(source)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{flag}: expected the folder of a model, but {source} is a file")
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{flag}: expected a model in {source}, found no {CONFIG_NAME}")
    missing = f"{flag}: expected a folder or the name of a repository of the Hub, but there is no folder {source}"
    if not folder.is_dir() and (folder.is_absolute() or source.startswith((".", "~")) or len(folder.parts) > 2):
        raise ValueError(f"{missing}, and repositories have names like owner/model")
    try:
        return AutoConfig.from_pretrained(source)
    except StrictDataclassError as error:
        raise ValueError(f"{source}: {error}") from error
    except OSError as error:
        if folder.is_dir():
            raise
        raise ValueError(f"{missing}, and the Hub gave none: {error}") from error


def parse_overrides(overrides: str, has_dropout: bool = False) -> dict[str, Any]:
    """
    `name=value,name=value` as settings of the types that the configuration has by default.

    Args:
        overrides: the text.
        has_dropout: whether the program has a flag `--dropout`, which sets dropout in place of this.

    Raises:
        ValueError: a setting is unknown, of another type, or has a flag of its own.
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
    return settings


@contextmanager
def reading(source: str) -> Iterator[None]:
    """What reading damaged or unfitting weights raises, as a ValueError that names them."""
    try:
        yield
    except (RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{source}: {error}") from error


def load_masked_model(source: str) -> HSSTForMaskedImageModeling:
    """The pre-trained model of --model, with fast layers, ready to reconstruct."""
    architecture = (read_config(source, "--model").architectures or ["nothing"])[0]
    if architecture != "HSSTForMaskedImageModeling":
        raise ValueError(f"--model {source}: expected a pre-trained HSSTForMaskedImageModeling, got {architecture}")
    with reading(source):
        model = AutoModelForMaskedImageModeling.from_pretrained(source)
    return use_fast_layers(model.eval())
