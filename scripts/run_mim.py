"""
Masked pre-training of HSST on hyperspectral tiles, with the flags of transformers' run_mim_no_trainer.py.

    accelerate launch scripts/run_mim.py --train_dir products --output_dir outputs/hsst
    accelerate launch --mixed_precision bf16 scripts/run_mim.py --train_dir tiles --mask_type unit --mask_ratio 0.7 ...
    torchrun --nproc_per_node 2 scripts/run_mim.py ...

--train_dir is a folder of EnMAP L2A products (folders or ZIPs), GeoTIFF tiles, or a corpus (prepare_enmap.py). Only
a corpus may be larger than memory; with --streaming it is read without a copy of it in the cache of `datasets`. The
output folder holds the model and its image processor, `all_results.json`, `log_history.jsonl`, and a reconstruction
figure from every validation.
"""

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForMaskedImageModeling, SchedulerType, get_scheduler

from datasets_loading.corpus import CorpusTiles
from datasets_loading.files import write_json
from datasets_loading.windows import (
    EpochSampler,
    GridWindows,
    GroupedSampler,
    RandomWindows,
    tile_to_windows,
    windows_to_tile,
)
from hsst.support.command_line import add_reading_arguments, one_line_errors
from hsst.support.figures import plot_reconstruction
from hsst.support.pretraining import in_other_light, kind_of_step, masks_for, parameter_groups, step_seed
from hsst.support.pretraining_data import (
    check_same_bands,
    check_tile_sizes,
    choose_bands,
    load_tiles,
    make_config,
    make_processor,
    processor_of_checkpoint,
)
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, use_fast_layers
from modeling_hsst.configuration_hsst import MASK_TYPES
from modeling_hsst.hub_hsst import export_for_hub
from modeling_hsst.modeling_hsst_masked import absolute_error_sums, hidden_values

# What a resumed run must share with the interrupted one to be the same run
ARGUMENTS_OF_A_RUN = (
    "train_dir dataset_name streaming validation_dir train_val_split tile_size windows_per_tile bands "
    "wavelengths scale nodata radiance variable "
    "model_name_or_path config_name_or_path config_overrides image_size patch_size mask_type mask_types mask_ratio "
    "mask_patch_size dropout per_device_train_batch_size learning_rate weight_decay num_train_epochs max_train_steps "
    "gradient_accumulation_steps lr_scheduler_type num_warmup_steps decay_share gain max_grad_norm seed "
    "recompute_statistics"
).split()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help="dataset of the Hub, or corpus, with a column `image` of tiles")
    data.add_argument("--train_dir", type=Path, help="folder of EnMAP L2A products, images or a corpus to train on")
    data.add_argument("--validation_dir", type=Path, help="folder of products, tiles or a corpus to validate on")
    data.add_argument(
        "--streaming", action="store_true", help="read a corpus as it is, not through a copy in the Arrow cache"
    )
    data.add_argument(
        "--train_val_split", type=float, default=0.15, help="share of the training tiles to validate on instead (0.15)"
    )
    add_reading_arguments(data)
    data.add_argument("--tile_size", type=int, default=64, help="side of the tiles cut from products, in pixels (64)")
    data.add_argument(
        "--windows_per_tile", type=int, help="windows an epoch takes from each tile (as many as tile it)"
    )
    data.add_argument(
        "--bands",
        choices=("config", "valid"),
        default="config",
        help="the bands of the configuration, found by wavelength (default), or all that hold data",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_name_or_path", help="checkpoint to go on from; the band statistics of its processor are kept"
    )
    model.add_argument(
        "--recompute_statistics",
        action="store_true",
        help="standardise with the statistics of the training tiles, not with those of the checkpoint",
    )
    model.add_argument(
        "--config_name_or_path", help="configuration to train from scratch (default: the published one)"
    )
    model.add_argument("--config_overrides", help="settings to change, e.g. hidden_size=48,num_spatial_layers=2")
    model.add_argument("--image_size", type=int, help="side of a window in pixels")
    model.add_argument("--patch_size", type=int, help="side of a spatial patch in pixels")
    model.add_argument("--mask_type", choices=MASK_TYPES, help="which tokens are hidden together")
    model.add_argument(
        "--mask_types", nargs="+", choices=MASK_TYPES, help="several kinds of masks, of which each step takes one"
    )
    model.add_argument("--mask_ratio", type=float, help="share of the tokens to hide")
    model.add_argument("--mask_patch_size", type=int, help="side of the squares of block and tube masks, in positions")
    model.add_argument("--dropout", type=float, default=0.1, help="of attention weights and layers (the paper's 0.1)")
    training = parser.add_argument_group("training")
    training.add_argument("--per_device_train_batch_size", type=int, default=64)
    training.add_argument("--per_device_eval_batch_size", type=int, default=64)
    training.add_argument("--learning_rate", type=float, default=8e-3)
    training.add_argument("--weight_decay", type=float, default=0.05)
    training.add_argument("--num_train_epochs", type=int, default=100)
    training.add_argument("--max_train_steps", type=int, help="overrides --num_train_epochs")
    training.add_argument("--gradient_accumulation_steps", type=int, default=1)
    training.add_argument("--lr_scheduler_type", type=SchedulerType, default=SchedulerType.COSINE)
    training.add_argument("--num_warmup_steps", type=int, help="default: 5 %% of the steps")
    training.add_argument(
        "--decay_share",
        type=float,
        default=0.25,
        help="last share of the steps, in which warmup_stable_decay falls",
    )
    training.add_argument(
        "--gain", type=float, default=0.0, help="spread of a random factor on each window's reflectance (0)"
    )
    training.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm")
    training.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), help="default: the launcher's")
    training.add_argument("--dataloader_num_workers", type=int, default=0)
    training.add_argument("--seed", type=int, default=0)
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True)
    output.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="start anew in a folder with another run: its checkpoints and figures are removed, its model is replaced",
    )
    output.add_argument("--checkpointing_steps", help="save the whole state every N steps, or every `epoch`")
    output.add_argument("--resume_from_checkpoint", help="a folder saved so, or `latest`")
    output.add_argument(
        "--validation_steps", type=int, help="validate every N steps (default: at the end of an epoch)"
    )
    output.add_argument("--with_tracking", action="store_true", help="log to the trackers of --report_to")
    output.add_argument("--report_to", default="all", help="tensorboard, wandb, ... or all that are installed")
    output.add_argument("--push_to_hub", action="store_true")
    output.add_argument("--hub_model_id", help="repository to push to")
    output.add_argument("--hub_token", help="token of the Hub (default: the one stored on this machine)")
    arguments = parser.parse_args()
    if (arguments.train_dir is None) == (arguments.dataset_name is None):
        parser.error("expected one of --train_dir and --dataset_name")
    if arguments.push_to_hub and arguments.hub_model_id is None:
        parser.error("--push_to_hub needs --hub_model_id")
    if arguments.recompute_statistics and arguments.model_name_or_path is None:
        parser.error("--recompute_statistics needs --model_name_or_path; without it they are computed anyway")
    if arguments.overwrite_output_dir and arguments.resume_from_checkpoint is not None:
        parser.error("--overwrite_output_dir starts anew and --resume_from_checkpoint goes on: expected one of them")
    ones = "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps tile_size"
    ones += " windows_per_tile num_train_epochs max_train_steps validation_steps image_size patch_size mask_patch_size"
    zeros = "gain learning_rate weight_decay num_warmup_steps max_grad_norm dropout dataloader_num_workers seed"
    for minimum, names in ((1, ones), (0, zeros)):
        for name in names.split():
            value = getattr(arguments, name)
            if value is not None and not value >= minimum:
                parser.error(f"--{name}: expected at least {minimum}, got {value}")
    if not 0 <= arguments.decay_share <= 1:
        parser.error(f"--decay_share: expected a share from 0 to 1, got {arguments.decay_share}")
    steps = arguments.checkpointing_steps
    if steps is not None and steps != "epoch" and not (steps.isdigit() and int(steps) > 0):
        parser.error(f"--checkpointing_steps: expected a number of steps or `epoch`, got {steps}")
    return arguments


@torch.no_grad()
def validate(
    model: torch.nn.Module,
    loader: DataLoader,
    processor: HSSTImageProcessor,
    config: HSSTConfig,
    accelerator: Accelerator,
    seed: int,
) -> dict[str, float]:
    """
    Mean absolute error of the hidden values (in standard deviations of their band) of the validation windows, for the
    model and for two predictors without training. Windows and masks are the same every time.
    """
    # Without its wrapper, for processes may have different numbers of batches here and must not wait for each other
    model = accelerator.unwrap_model(model)
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for batch in loader:
        pixel_values, pixel_mask = processor.standardize(batch["pixels"].to(accelerator.device))
        # A mask for each window from its own number, so that it does not depend on batches or processes
        mask = torch.cat([masks_for(config, 1, step_seed(seed, int(index), 0)) for index in batch["window_index"]]).to(
            accelerator.device
        )
        with accelerator.autocast():
            outputs = model(pixel_values, bool_masked_pos=mask, pixel_mask=pixel_mask)
        # On the CPU, for not every device knows float64 (Apple's does not)
        sums += absolute_error_sums(
            pixel_values.cpu(), outputs.reconstruction.float().cpu(), mask.cpu(), pixel_mask.cpu(), config
        )
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
    model.train()
    loss, band_mean, visible_mean = (sums[:3] / sums[3].clamp(min=1)).tolist()
    return {"eval_loss": loss, "eval_band_mean_loss": band_mean, "eval_visible_mean_loss": visible_mean}


def tile_worth_showing(tiles: Sequence[np.ndarray], names: Sequence[str], nodata: int) -> tuple[np.ndarray, str]:
    """Of the tiles with the most valid pixels the one with the greatest contrast, and its name."""

    def worth(tile: np.ndarray) -> tuple[float, float]:
        valid = (tile != nodata).all(axis=0)
        return round(float(valid.mean()), 1), float(tile[:, valid].std(axis=1).mean()) if valid.any() else 0.0

    best = max(range(len(tiles)), key=lambda number: worth(tiles[number]))
    return tiles[best], names[best]


@torch.no_grad()
def draw_figure(
    path: Path,
    model: torch.nn.Module,
    tile: np.ndarray,
    name: str,
    processor: HSSTImageProcessor,
    config: HSSTConfig,
    accelerator: Accelerator,
    seed: int,
    label: str,
) -> Path:
    """The reconstruction of a whole tile, window by window."""
    height, width = config.window_size
    # At most 64 x 64 pixels: more would only be harder to see
    rows, columns = min(64, tile.shape[1]) // height, min(64, tile.shape[2]) // width
    size = rows * height, columns * width
    tile = tile[:, : size[0], : size[1]]
    model.eval()
    pixel_values, pixel_mask = processor.standardize(tile_to_windows(tile, config.window_size).to(accelerator.device))
    mask = masks_for(config, len(pixel_values), seed).to(accelerator.device)
    with accelerator.autocast():
        reconstruction = model(pixel_values, bool_masked_pos=mask, pixel_mask=pixel_mask).reconstruction.float()
    model.train()
    hidden = hidden_values(mask, pixel_values, config)
    stack = (processor.to_reflectance(pixel_values), processor.to_reflectance(reconstruction), hidden)
    tile_values, tile_reconstruction, tile_hidden = (windows_to_tile(w.cpu(), size).numpy() for w in stack)
    return plot_reconstruction(
        path,
        reflectance=tile_values,
        reconstruction=tile_reconstruction,
        hidden=tile_hidden,
        valid=windows_to_tile(pixel_mask.cpu().unsqueeze(1), size)[0].numpy(),
        wavelengths=config.wavelengths,
        title=f"{name}\n{config.mask_type} masks, {mask.float().mean():.0%} of the tokens hidden, {label}",
    )


class Progress:
    """Where a run stands; saved and restored with its checkpoints."""

    def __init__(self) -> None:
        self.completed_steps = 0
        self.start_results: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"completed_steps": self.completed_steps, "start_results": self.start_results}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.completed_steps = state["completed_steps"]
        self.start_results = state.get("start_results", {})


def run_description(arguments: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """What makes two runs the same."""
    description = {name: getattr(arguments, name) for name in ARGUMENTS_OF_A_RUN}
    description = {name: str(value) if isinstance(value, Path) else value for name, value in description.items()}
    description["lr_scheduler_type"] = arguments.lr_scheduler_type.value
    description["num_processes"] = accelerator.num_processes
    description["mixed_precision"] = accelerator.mixed_precision
    if arguments.streaming:
        description["dataloader_num_workers"] = arguments.dataloader_num_workers  # tiles are dealt to them
    return description


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """What the writers of tensors raise on a full disk, as OSErrors that name the place."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{path} could not be written: {error}") from error


def save_checkpoint(accelerator: Accelerator, output_dir: Path, name: str, description: dict[str, Any]) -> None:
    """Saves the whole state under a temporary name and renames it when every process has written its part."""
    final, partial = output_dir / name, output_dir / f".{name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    with write_errors(final):
        try:
            accelerator.save_state(str(partial))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "run.json").write_text(json.dumps(description, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    accelerator.wait_for_everyone()


def find_checkpoint(arguments: argparse.Namespace, description: dict[str, Any]) -> Path | None:
    """The checkpoint to resume from, after a look whether it belongs to this run."""
    if arguments.resume_from_checkpoint is None:
        return None
    if arguments.resume_from_checkpoint == "latest":
        checkpoints = [path for path in arguments.output_dir.glob("step_*") if (path / "run.json").is_file()]
        if not checkpoints:
            raise ValueError(f"{arguments.output_dir}: expected a checkpoint (step_N) to resume from, found none")
        checkpoint = max(checkpoints, key=lambda path: int(path.name.removeprefix("step_")))
    else:
        checkpoint = Path(arguments.resume_from_checkpoint)
        if not (checkpoint / "run.json").is_file():
            raise ValueError(f"{checkpoint}: expected a checkpoint of run_mim.py with its run.json, found none")
    saved = json.loads((checkpoint / "run.json").read_text())
    # What a checkpoint of an earlier version does not say cannot be compared
    changed = sorted(
        name
        for name, value in description.items()
        # As text, for the nodata value NaN is not equal to itself
        if json.dumps(value) != json.dumps(saved.get(name, value))
    )
    if changed:
        differences = ", ".join(f"{name} was {saved.get(name)} and is {description[name]}" for name in changed)
        raise ValueError(
            f"{checkpoint}: a resumed run must have the arguments of the interrupted one, but {differences}"
        )
    return checkpoint


def check_output_dir(arguments: argparse.Namespace, checkpoint: Path | None) -> None:
    """Raises ValueError where a new run would be mixed with another one's checkpoints or model."""
    folder: Path = arguments.output_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir: expected a folder, but {folder} is a file")
    goes_on_here = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if arguments.overwrite_output_dir or goes_on_here:
        return
    left = [path.name for path in (*sorted(folder.glob("step_*")), folder / "model.safetensors") if path.exists()]
    if left:
        raise ValueError(
            f"{folder}: expected no other run in the output folder, found {left[0]}; give another --output_dir, go on "
            "with --resume_from_checkpoint latest, or start anew with --overwrite_output_dir"
        )


def remove_earlier_run(folder: Path) -> None:
    """
    Removes checkpoints, figures and log of an earlier run, which would be taken for this one's. Its model and results
    stay until those of this run replace them.
    """
    for checkpoint in (*folder.glob("step_*"), *folder.glob(".step_*.partial")):
        shutil.rmtree(checkpoint)
    for figure in (folder / "figures").glob("reconstruction_step_*.png"):
        figure.unlink()
    (folder / "log_history.jsonl").unlink(missing_ok=True)


def cut_history(path: Path, last_step: int) -> None:
    """Removes what was logged after a step, and a line that was not finished."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except ValueError:
            continue
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept))
    partial.replace(path)


def save_model(model: HSSTForMaskedImageModeling, processor: HSSTImageProcessor, folder: Path) -> None:
    """Saves under a temporary name first; the weights come last, so that a folder with weights is complete."""
    with write_errors(folder / "model.safetensors"), TemporaryDirectory(prefix=".model-", dir=folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for file in sorted(Path(partial).iterdir(), key=lambda file: file.suffix == ".safetensors"):
            file.replace(folder / file.name)


def create_repository(name: str, token: str | None) -> None:
    """Makes the repository to push to, before hours of training: a wrong name or token is found now."""
    try:
        HfApi(token=token).create_repo(name, exist_ok=True)
    except Exception as error:  # huggingface_hub lets through what its HTTP library raises, which is not one for ever
        raise ValueError(f"--push_to_hub: the repository {name} cannot be written: {error}") from error


def push(model: HSSTForMaskedImageModeling, processor: HSSTImageProcessor, name: str, token: str | None) -> None:
    """Uploads a model as a repository that also loads where this package is not installed."""
    with TemporaryDirectory() as folder:
        export_for_hub(model, processor, folder)
        HfApi(token=token).upload_folder(
            repo_id=name, folder_path=folder, commit_message="Model and processor of run_mim.py"
        )


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("run_mim.py"):
        pretrain(arguments)


def pretrain(arguments: argparse.Namespace) -> None:
    """The whole run."""
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=arguments.report_to if arguments.with_tracking else None,
        project_config=ProjectConfiguration(project_dir=str(arguments.output_dir)),
    )
    accelerate.utils.set_seed(arguments.seed)
    is_main = accelerator.is_main_process
    description = run_description(arguments, accelerator)
    checkpoint = find_checkpoint(arguments, description)
    check_output_dir(arguments, checkpoint)

    with accelerator.main_process_first():
        training_tiles, validation_tiles = load_tiles(arguments, progress=is_main)
    config = make_config(arguments, training_tiles)
    bands = choose_bands(config, training_tiles, arguments)
    if validation_tiles.num_bands != training_tiles.num_bands:
        raise ValueError(
            f"{arguments.validation_dir}: expected the {training_tiles.num_bands} bands of the training tiles, "
            f"got {validation_tiles.num_bands}"
        )
    check_same_bands(arguments, training_tiles, validation_tiles, bands)
    if arguments.model_name_or_path:
        try:
            model = AutoModelForMaskedImageModeling.from_pretrained(arguments.model_name_or_path, config=config)
        except RuntimeError as error:
            raise ValueError(
                f"{arguments.model_name_or_path}: the weights do not fit the settings: {error}"
            ) from error
    else:
        model = HSSTForMaskedImageModeling(config)
    use_fast_layers(model)
    for kind in arguments.mask_types or [config.mask_type]:
        masks_for(config, 1, 0, mask_type=kind)  # raises where the mask does not fit the window
    processor_before = None
    if arguments.model_name_or_path and not arguments.recompute_statistics:
        processor_before = processor_of_checkpoint(arguments.model_name_or_path)
        if processor_before is None:
            accelerator.print(f"{arguments.model_name_or_path}: no band statistics; taken from the training tiles")
    processor = make_processor(config, training_tiles, bands, processor_before)
    source = arguments.train_dir or arguments.dataset_name
    check_tile_sizes(source, training_tiles, config.window_size)
    check_tile_sizes(arguments.validation_dir or source, validation_tiles, config.window_size)
    training_windows = RandomWindows(
        training_tiles,
        config.window_size,
        bands=bands,
        windows_per_tile=arguments.windows_per_tile,
        seed=arguments.seed,
    )
    validation_windows = GridWindows(validation_tiles, config.window_size, bands=bands)
    windows_per_step = (
        arguments.per_device_train_batch_size * accelerator.num_processes * arguments.gradient_accumulation_steps
    )
    if len(training_windows) < windows_per_step:
        raise ValueError(
            f"{source}: expected at least the {windows_per_step} windows of one step in an epoch, got "
            f"{len(training_windows)} ({len(training_tiles)} tiles, {training_windows.windows_per_tile} windows "
            "each); raise --windows_per_tile or lower --per_device_train_batch_size"
        )

    candidates = validation_tiles.select(range(min(32, len(validation_tiles))))
    shown = tile_worth_showing([tile[bands] for tile in candidates], candidates.names, candidates.nodata)
    sampler: EpochSampler | GroupedSampler = EpochSampler(len(training_windows), arguments.seed)
    if isinstance(training_tiles, CorpusTiles):
        readers_per_process = max(1, arguments.dataloader_num_workers) if arguments.streaming else 1
        sampler = GroupedSampler(
            training_tiles.groups,
            training_windows.windows_per_tile,
            arguments.seed,
            groups_at_once=training_tiles.groups_at_once,
            batch_size=arguments.per_device_train_batch_size,
            num_consumers=accelerator.num_processes * readers_per_process,
        )
    training_loader = DataLoader(
        training_windows,
        batch_size=arguments.per_device_train_batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=arguments.dataloader_num_workers,
    )
    share = accelerator.num_processes, accelerator.process_index
    validation_loader = DataLoader(
        torch.utils.data.Subset(validation_windows, range(share[1], len(validation_windows), share[0])),
        batch_size=arguments.per_device_eval_batch_size,
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments.weight_decay), lr=arguments.learning_rate)
    model, optimizer, training_loader = accelerator.prepare(model, optimizer, training_loader)

    steps_per_epoch = len(training_loader) // arguments.gradient_accumulation_steps
    left_out = len(training_windows) - steps_per_epoch * windows_per_step
    if left_out:
        accelerator.print(
            f"{left_out} of {len(training_windows)} windows, too few for a step, are left out each epoch"
        )
    total_steps = steps_per_epoch * arguments.num_train_epochs
    if arguments.max_train_steps is not None:
        total_steps = arguments.max_train_steps
    warmup_steps = arguments.num_warmup_steps
    warmup_steps = round(0.05 * total_steps) if warmup_steps is None else warmup_steps
    # Not prepared, and stepped once a step: a prepared scheduler steps once for each process
    decay = {}
    if arguments.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
        decay = {"num_decay_steps": round(arguments.decay_share * total_steps)}
    scheduler = get_scheduler(arguments.lr_scheduler_type, optimizer, warmup_steps, total_steps, decay)
    progress = Progress()
    accelerator.register_for_checkpointing(scheduler, progress)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        accelerator.print(f"Resumed from {checkpoint} after step {progress.completed_steps}")

    if arguments.push_to_hub and is_main:
        create_repository(arguments.hub_model_id, arguments.hub_token)
    try:
        if arguments.with_tracking:
            tracked = {key: value for key, value in description.items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("hsst_mim", tracked)
    except ImportError as error:
        raise ValueError(f"--report_to {arguments.report_to}: {error}") from error
    history_file = arguments.output_dir / "log_history.jsonl"
    if is_main:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            remove_earlier_run(arguments.output_dir)
        cut_history(history_file, progress.completed_steps)
    accelerator.wait_for_everyone()

    def log(values: dict[str, Any]) -> None:
        accelerator.log({k: v for k, v in values.items() if k != "step"}, step=values["step"])
        if is_main:
            with history_file.open("a") as file:
                file.write(json.dumps(values) + "\n")

    def validate_and_show() -> dict[str, float]:
        step = progress.completed_steps
        results = validate(model, validation_loader, processor, config, accelerator, arguments.seed)
        log({"step": step, **results})
        if is_main:
            figure = arguments.output_dir / "figures" / f"reconstruction_step_{step:07d}.png"
            unwrapped = accelerator.unwrap_model(model)
            label = f"after {step:,} steps"
            draw_figure(figure, unwrapped, *shown, processor, config, accelerator, arguments.seed, label)
            bar.write(
                f"step {step}: validation loss {results['eval_loss']:.4f} (band mean "
                f"{results['eval_band_mean_loss']:.4f}, mean of visible tokens "
                f"{results['eval_visible_mean_loss']:.4f})"
            )
        accelerator.wait_for_everyone()
        return results

    model.train()
    bar = tqdm(total=total_steps, initial=progress.completed_steps, desc="training", disable=not is_main, unit="step")
    start_step, started = progress.completed_steps, time.perf_counter()
    if checkpoint is None:
        progress.start_results = validate_and_show()
    results: dict[str, float] | None = None
    running: list[torch.Tensor] = []
    while progress.completed_steps < total_steps:
        epoch, step_in_epoch = divmod(progress.completed_steps, steps_per_epoch)
        loader = training_loader
        if step_in_epoch:
            loader = accelerator.skip_first_batches(
                training_loader, step_in_epoch * arguments.gradient_accumulation_steps
            )
        # The loader, too: it resets its epoch counter when it is rebuilt
        for part in (loader, sampler, training_windows):
            part.set_epoch(epoch)
        seen: list[torch.Tensor] = []
        for number, batch in enumerate(loader):
            micro_step = progress.completed_steps * arguments.gradient_accumulation_steps
            micro_step += number % arguments.gradient_accumulation_steps
            drawn = step_seed(arguments.seed, micro_step, accelerator.process_index)
            torch.manual_seed(drawn)
            with accelerator.accumulate(model):
                pixels, masks = batch["pixels"], {}
                if arguments.gain:
                    pixels = in_other_light(pixels, processor.nodata, arguments.gain)
                pixel_values, pixel_mask = processor.standardize(pixels)
                if arguments.mask_types:
                    # The same kind on every process, or those with less to encode would wait
                    kind = kind_of_step(arguments.mask_types, step_seed(arguments.seed, micro_step))
                    drawn_masks = masks_for(config, len(pixels), drawn, mask_type=kind).to(pixels.device)
                    masks = {"bool_masked_pos": drawn_masks, "mask_type": kind}
                loss = model(pixel_values, pixel_mask=pixel_mask, **masks).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            running.append(loss.detach())
            seen.append(batch["window_index"])
            if not accelerator.sync_gradients:
                continue
            scheduler.step()
            progress.completed_steps += 1
            step = progress.completed_steps
            bar.update()
            if step % 10 == 0 or step == total_steps:
                mean_loss = accelerator.reduce(torch.stack(running).mean(), reduction="mean").item()
                running.clear()
                bar.set_postfix(loss=f"{mean_loss:.4f}", epoch=epoch + 1)
                log({"step": step, "loss": mean_loss, "learning_rate": scheduler.get_last_lr()[0], "epoch": epoch + 1})
                if not math.isfinite(mean_loss):
                    raise SystemExit(f"run_mim.py: error: the loss became {mean_loss} at step {step}")
            if arguments.checkpointing_steps not in (None, "epoch") and step % int(arguments.checkpointing_steps) == 0:
                save_checkpoint(accelerator, arguments.output_dir, f"step_{step}", description)
            results = None
            if arguments.validation_steps and step % arguments.validation_steps == 0:
                results = validate_and_show()
            if step >= total_steps or step % steps_per_epoch == 0:
                break
        windows = accelerator.gather(torch.cat(seen))
        log(
            {
                "step": progress.completed_steps,
                "windows": len(windows),
                "distinct_windows": len(windows.unique()),
                "distinct_tiles": len((windows // training_windows.windows_per_tile).unique()),
            }
        )
        if arguments.checkpointing_steps == "epoch":
            save_checkpoint(accelerator, arguments.output_dir, f"step_{progress.completed_steps}", description)
        if not arguments.validation_steps and results is None:
            results = validate_and_show()
    if results is None:
        results = validate_and_show()
    bar.close()
    trained_seconds = time.perf_counter() - started

    accelerator.wait_for_everyone()
    if is_main:
        unwrapped = accelerator.unwrap_model(model)
        save_model(unwrapped, processor, arguments.output_dir)
        figure = arguments.output_dir / "figures" / f"reconstruction_step_{progress.completed_steps:07d}.png"
        write_json(
            arguments.output_dir / "all_results.json",
            {
                **results,
                **{f"start_{name}": value for name, value in progress.start_results.items()},
                "steps": total_steps,
                "windows_seen": total_steps * windows_per_step,
                "training_tiles": len(training_tiles),
                "validation_tiles": len(validation_tiles),
                "validation_windows": len(validation_windows),
                "realised_mask_ratio": float(
                    np.mean(
                        [
                            masks_for(config, 64, 0, mask_type=kind).float().mean().item()
                            for kind in arguments.mask_types or [config.mask_type]
                        ]
                    )
                ),
                "parameters": sum(parameter.numel() for parameter in unwrapped.parameters()),
                "seconds": round(trained_seconds, 1),
                "steps_timed": total_steps - start_step,
                "run": description,
                "versions": {
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "accelerate": accelerate.__version__,
                },
            },
        )
        print(f"Model and processor: {arguments.output_dir}\nReconstruction: {figure}")
        if arguments.push_to_hub:
            try:
                push(unwrapped, processor, arguments.hub_model_id, arguments.hub_token)
            except Exception as error:  # as in create_repository
                raise ValueError(
                    f"the model is saved in {arguments.output_dir}, but pushing it to {arguments.hub_model_id} "
                    f"failed: {error}"
                ) from error
    accelerator.end_training()
    if accelerator.distributed_type != DistributedType.NO and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
