"""
Turn a published MaskedSST checkpoint (.pth of its pre-training or fine-tuning scripts) into a folder for the Auto
classes.

    python scripts/convert_maskedsst_checkpoint.py --checkpoint pretrained.pth --output outputs/maskedsst

The variant is found from the weights' names and shapes and the settings in the file. Nothing in the file is executed:
it is read with PyTorch's `weights_only` unpickler, with an inert record in place of every unknown class.
The files hold no band statistics: --processor names a folder with the `preprocessor_config.json` of the data.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_loading.files import only_writer, written_into
from hsst.support.command_line import HelpFormatter, one_line_errors

# What needs torch is imported where it is used: help and refusals need not wait for it
if TYPE_CHECKING:
    import torch

    from modeling_hsst import HSSTConfig, HSSTPreTrainedModel


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="file written by the published scripts")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--processor", type=Path, help="folder with the preprocessor_config.json to put beside the weights"
    )
    return parser.parse_args()


class InertRecord(dict):
    """Stands in for a class that is not known here: takes whatever it is built from and does nothing with it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> InertRecord:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


def read_published_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    Weights and settings of a published pre-training or fine-tuning file, without running anything in it. ValueError
    where the file is not a checkpoint of the published scripts, or tries to call something on loading.
    """
    import torch
    from torch import serialization

    expected = "expected a PyTorch file with `model_state_dict` and `config`, as the published scripts write it"
    try:
        check_unpacked_size(Path(path))
        unknown = serialization.get_unsafe_globals_in_checkpoint(path)
        records = [(type("InertRecord", (InertRecord,), {}), name) for name in unknown]
        with serialization.safe_globals(records):  # type: ignore[arg-type]
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: {expected}, got {error.strerror or error}.") from error
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: {expected}, but it could not be read safely: {reason_of(error)}") from error
    if not isinstance(checkpoint, dict) or not {"model_state_dict", "config"} <= checkpoint.keys():
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"{path}: {expected}, got {found}.")
    weights, settings = checkpoint["model_state_dict"], checkpoint["config"]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()
    ):
        raise ValueError(f"{path}: {expected}, but `model_state_dict` does not hold tensors by name.")
    for name, tensor in weights.items():
        # Others take more memory, once they are computed with, than the file has bytes
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"{path}: {expected}, but `{name}` is no plain tensor.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: expected finite weights, got NaN or infinity in `{name}`.")
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: {expected}, but `config` holds {type(settings).__name__} in place of settings.")
    return dict(weights), {**dict(settings), **vars(settings)} if isinstance(settings, InertRecord) else dict(settings)


def check_unpacked_size(path: Path) -> None:
    """Raises ValueError where a file would take more memory than it has bytes; PyTorch packs none of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is no ZIP file ({error})") from None
    if unpacked > path.stat().st_size:
        raise ValueError(f"{unpacked:,} bytes are packed into {path.stat().st_size:,}")


def reason_of(error: Exception) -> str:
    """What an error of `torch.load` says of the file, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if re.search("unsupported|UnpicklingError|blocked|GLOBAL", line, re.IGNORECASE)]
    return (telling or lines or [type(error).__name__])[0]


def check_settings(settings: dict[str, Any], is_pretraining: bool) -> None:
    """Raises ValueError where a published setting that is needed is not of its kind, KeyError where it is missing."""
    needed = ["band_patch_size", "patch_size", "image_size", "transformer_n_heads"]
    needed += ["n_bands"] if "n_bands" in settings else []
    needed += ["mim_mask_patch_size"] if is_pretraining and "mim_masking_ratio" in settings else []
    for name in needed:
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"expected the setting `{name}` to be a number of 1 or more, got {value!r}")


def model_from_published(weights: dict[str, torch.Tensor], settings: dict[str, Any]) -> HSSTPreTrainedModel:
    """
    An HSST model with published weights: masked image modeling, semantic segmentation or image classification,
    whichever the weights' names and shapes say. Of the settings, `transformer_n_heads`, `band_patch_size`,
    `patch_size` and `image_size` are needed; the rest is found in the weights. ValueError where one is missing or
    senseless, or the weights are of an unknown variant.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from modeling_hsst import HSSTForImageClassification, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation

    is_pretraining = "mask_token" in weights
    encoder_prefix = "encoder." if is_pretraining else ""
    try:
        check_settings(settings, is_pretraining)
        config = config_from_published(weights, settings, encoder_prefix)
        state_dict = rename_published_weights(weights, config, encoder_prefix)
    except KeyError as error:
        raise ValueError(
            f"The published checkpoint lacks {error}, which its variant cannot be told without."
        ) from error
    except (IndexError, ArithmeticError, RuntimeError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The published checkpoint is of an unknown variant: {reason}") from error
    if is_pretraining:
        model: HSSTPreTrainedModel = HSSTForMaskedImageModeling(config)
    elif config.head_type == "center":
        model = HSSTForImageClassification(config)
    else:
        model = HSSTForSemanticSegmentation(config)
    dtype = next(iter(state_dict.values())).dtype
    try:
        torch.nn.Module.to(model, dtype=dtype).load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"The published weights do not fit their settings: {' '.join(str(error).split())}") from error
    return model.eval()


def config_from_published(
    weights: dict[str, torch.Tensor], settings: dict[str, Any], encoder_prefix: str = ""
) -> HSSTConfig:
    """The configuration that published weights belong to."""
    from modeling_hsst import HSSTConfig

    encoder = {
        name.removeprefix(encoder_prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(encoder_prefix)
    }

    def count(pattern: str) -> int:
        """How many numbers the group of `pattern` takes among the weights' names."""
        return len({match.group(1) for name in encoder if (match := re.match(pattern, name))})

    stack = r"spatial_spectral_transformer\.{}\.layers\.(\d+)\."
    first_stack, second_stack = count(stack.format(1)), count(stack.format(3))
    has_sincos = "channel_embed" in encoder
    band_patch_size, patch_size = settings["band_patch_size"], settings["patch_size"]
    num_blocks = count(r"to_patch_embedding\.blockwise_embed\.(\d+)\.")
    blockwise = num_blocks > 0
    positions = (settings["image_size"] // patch_size) ** 2
    if not blockwise:
        num_blocks = (
            encoder["channel_embed"].shape[1] if has_sincos else encoder["pos_embedding"].shape[1] // positions
        )
    # Before a model of these sizes is built: they may be anything, and memory is not
    table = encoder["pos_embed"] if has_sincos else encoder["pos_embedding"]
    tokens = positions if has_sincos else positions * num_blocks + 1
    if table.shape[1] != tokens:
        raise ValueError(
            f"The published weights do not fit their settings: expected {tokens} position embeddings for windows of "
            f"{settings['image_size']} pixels in patches of {patch_size}, got {table.shape[1]}"
        )
    num_channels = settings.get("n_bands", num_blocks * band_patch_size)
    if -(-num_channels // band_patch_size) != num_blocks:
        num_channels = num_blocks * band_patch_size

    layer = "spatial_spectral_transformer.1.layers.0."
    num_heads = settings["transformer_n_heads"]
    hidden_size = encoder[layer + "0.norm.weight"].shape[0]
    arguments: dict[str, Any] = {
        "hidden_size": hidden_size,
        # With a single stack the published model is the spectral-only one
        "num_spatial_layers": first_stack if second_stack else 0,
        "num_spectral_layers": second_stack or first_stack,
        "num_attention_heads": num_heads,
        "head_dim": encoder[layer + "0.fn.to_qkv.weight"].shape[0] // (3 * num_heads),
        "intermediate_size": encoder[layer + "1.fn.net.0.weight"].shape[0],
        "image_size": settings["image_size"],
        "patch_size": patch_size,
        "num_channels": num_channels,
        "band_patch_size": band_patch_size,
        "position_embedding_type": "sincos" if has_sincos else "learned",
        "blockwise_patch_embedding": blockwise,
        "blockwise_decoder": "to_pixels.weight" not in weights,
    }
    if num_channels != 200 or settings.get("dataset", "enmap") != "enmap":
        arguments["wavelengths"] = None  # only the 200 EnMAP bands are the configuration's default
    # Fine-tuning files carry these settings too, of whatever run came before
    if "mask_token" in weights and "mim_masking_ratio" in settings:
        arguments["mask_ratio"] = settings["mim_masking_ratio"]
        arguments["mask_patch_size"] = settings["mim_mask_patch_size"]
        square_masks = settings["mim_mask_patch_size"] > 1
        arguments["mask_type"] = ("tube" if settings.get("tube_masking") else "block") if square_masks else "unit"
    if "mask_token" not in weights:
        final = "mlp_head.2" if "mlp_head.2.weight" in encoder else "mlp_head.1"
        outputs = encoder[final + ".weight"].shape[0]
        if final == "mlp_head.2":
            arguments.update(head_type="center", num_labels=outputs)
        else:
            head_type = "mean" if encoder["mlp_head.0.weight"].shape[0] == hidden_size else "concat"
            arguments.update(head_type=head_type, num_labels=outputs // patch_size**2)
    return HSSTConfig(**arguments)


# Published names and the names here; the two stacks of layers are told apart by the configuration
LAYER_NAMES = {
    "0.norm": "layernorm_before",
    "0.fn.to_qkv": "attention.qkv_proj",
    "0.fn.to_out.0": "attention.o_proj",
    "1.norm": "layernorm_after",
    "1.fn.net.0": "mlp.fc1",
    "1.fn.net.3": "mlp.fc2",
}
EMBEDDING_NAMES = {
    "pos_embedding": "position_embeddings.position_embeddings",
    "pos_embed": "position_embeddings.spatial_embeddings",
    "channel_embed": "position_embeddings.spectral_embeddings",
    "to_patch_embedding.pre_norm.weight": "patch_embeddings.layernorm_before.weight",
    "to_patch_embedding.pre_norm.bias": "patch_embeddings.layernorm_before.bias",
    "to_patch_embedding.post_norm.weight": "patch_embeddings.layernorm_after.weight",
    "to_patch_embedding.post_norm.bias": "patch_embeddings.layernorm_after.bias",
    # one linear layer for all blocks
    "to_patch_embedding.to_patch.1.weight": "patch_embeddings.layernorm_before.weight",
    "to_patch_embedding.to_patch.1.bias": "patch_embeddings.layernorm_before.bias",
    "to_patch_embedding.embed.1.weight": "patch_embeddings.layernorm_after.weight",
    "to_patch_embedding.embed.1.bias": "patch_embeddings.layernorm_after.bias",
}


def rename_published_weights(
    weights: dict[str, torch.Tensor], config: HSSTConfig, encoder_prefix: str = ""
) -> dict[str, torch.Tensor]:
    """
    Published weights under their names here, the linear layers of the blocks stacked. The classification head that
    published pre-training files carry without using it is left out.
    """
    import torch

    first_stack = "spatial_layers" if config.num_spatial_layers else "spectral_layers"
    renamed: dict[str, torch.Tensor] = {}
    stacked: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in weights.items():
        short = name.removeprefix(encoder_prefix)
        if match := re.fullmatch(r"spatial_spectral_transformer\.([13])\.layers\.(\d+)\.(.+)\.(weight|bias)", short):
            stack, index, part, kind = match.groups()
            layers = first_stack if stack == "1" else "spectral_layers"
            renamed[f"hsst.{layers}.{index}.{LAYER_NAMES[part]}.{kind}"] = tensor
        elif match := re.fullmatch(r"to_patch_embedding\.(?:blockwise_embed\.(\d+)|embed\.0)\.(weight|bias)", short):
            key = f"hsst.embeddings.patch_embeddings.{match.group(2)}"
            stacked.setdefault(key, {})[int(match.group(1) or 0)] = tensor
        elif match := re.fullmatch(r"to_pixels\.(?:layers\.(\d+)\.)?(weight|bias)", name):
            stacked.setdefault(f"decoder.{match.group(2)}", {})[int(match.group(1) or 0)] = tensor
        elif short in EMBEDDING_NAMES:
            renamed[f"hsst.embeddings.{EMBEDDING_NAMES[short]}"] = tensor
        elif name == "mask_token":
            renamed["hsst.embeddings.mask_token"] = tensor.flatten()
        elif match := re.fullmatch(r"mlp_head\.([012])\.(weight|bias)", short):
            if not encoder_prefix:
                renamed[f"head.{'layernorm' if match.group(1) == '0' else 'classifier'}.{match.group(2)}"] = tensor
        elif not name.startswith(("patch_to_emb.", "to_patch.")):  # second names of the shared patch embedding
            raise ValueError(f"The published checkpoint holds a weight of an unknown name: {name}.")
    for key, tensors in stacked.items():
        renamed[key] = torch.stack([tensors[index] for index in range(len(tensors))])
    return renamed


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("convert_maskedsst_checkpoint.py"):
        if arguments.output.exists() and not arguments.output.is_dir():
            raise ValueError(f"--output: expected a folder, but {arguments.output} is a file")
        from transformers.utils import CONFIG_NAME

        from hsst.support.model_sources import read_processor

        weights, settings = read_published_checkpoint(arguments.checkpoint)
        try:
            model = model_from_published(weights, settings)
        except ValueError as error:
            raise ValueError(f"{arguments.checkpoint}: {error}") from error
        processor = read_processor(str(arguments.processor), model.config) if arguments.processor else None
        with only_writer(arguments.output), written_into(arguments.output, last=CONFIG_NAME) as folder:
            model.save_pretrained(folder)
            if processor is not None:
                processor.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} with {parameters:,} parameters: {arguments.output}")


if __name__ == "__main__":
    main()
