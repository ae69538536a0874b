"""The run of `run_mim.py`: data, model and optimizer of one pre-training, its loop, validations and checkpoints."""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType, ProjectConfiguration
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import SchedulerType, get_scheduler
from transformers.utils import SAFE_WEIGHTS_NAME

from datasets_loading.files import fingerprint, only_writer, write_json, write_text, written_into, written_whole
from datasets_loading.tiles import Tiles
from datasets_loading.windows import (
    EpochSampler,
    GridWindows,
    GroupedSampler,
    RandomWindows,
    tile_to_windows,
    windows_to_tile,
)
from hsst.support.checkpoints import HISTORY, Checkpoint, latest_checkpoint, step_folders
from hsst.support.command_line import StopRequest, leave_signals_to_parent
from hsst.support.figures import plot_reconstruction
from hsst.support.model_sources import OTHER_PARTS, load_model
from hsst.support.pretraining import FiniteWatch, in_other_light, masked_loss, masks_for, parameter_groups, step_seed
from hsst.support.pretraining_data import (
    check_same_bands,
    check_tile_sizes,
    choose_bands,
    load_tiles,
    make_config,
    make_processor,
    processor_of_checkpoint,
)
from hsst.support.reports import without_folders
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, use_fast_layers
from modeling_hsst.hub_hsst import export_for_hub
from modeling_hsst.modeling_hsst_masked import absolute_error_sums, hidden_values

RESULTS_NAME = "all_results.json"
# Launches in which no process has the whole model
PARTED_MODELS = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers state how many processes they started."""

# What a resumed run must share with the interrupted one to be the same run
ARGUMENTS_OF_A_RUN = (
    "train_dir dataset_name streaming validation_dir train_val_split tile_size windows_per_tile bands "
    "wavelengths scale nodata radiance variable "
    "model_name_or_path config_name_or_path config_overrides image_size patch_size mask_type mask_types mask_ratio "
    "mask_patch_size dropout per_device_train_batch_size learning_rate weight_decay num_train_epochs max_train_steps "
    "gradient_accumulation_steps lr_scheduler_type num_warmup_steps decay_share gain max_grad_norm seed "
    "recompute_statistics"
).split()


def tile_worth_showing(tiles: Sequence[np.ndarray], names: Sequence[str], nodata: int) -> tuple[np.ndarray, str]:
    """Of the tiles with the most valid pixels the one with the greatest contrast, and its name."""

    def worth(tile: np.ndarray) -> tuple[float, float]:
        valid = (tile != nodata).all(axis=0)
        return round(float(valid.mean()), 1), float(tile[:, valid].std(axis=1).mean()) if valid.any() else 0.0

    best = max(range(len(tiles)), key=lambda number: worth(tiles[number]))
    return tiles[best], names[best]


@dataclass
class Progress:
    """Where a run stands, with losses and windows of this process alone; a checkpoint holds it."""

    completed_steps: int = 0
    validated_step: int = -1  # the last one after which the model was validated
    start_results: dict[str, float] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    losses: list[torch.Tensor] = field(default_factory=list)  # since they were last logged
    windows: list[torch.Tensor] = field(default_factory=list)  # numbers of those taken in this epoch

    def tensors(self, accelerator: Accelerator) -> dict[str, torch.Tensor]:
        """Losses and windows of all processes, (processes, number)."""
        kept = {"losses": torch.tensor([]), "windows": torch.tensor([], dtype=torch.int64)}
        if self.losses:
            kept["losses"] = accelerator.gather(torch.stack(self.losses)[None])
        if self.windows:
            kept["windows"] = accelerator.gather(torch.cat(self.windows)[None])
        return kept

    def restore(self, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
        """Takes up what a checkpoint holds; ValueError where that is not what a run holds."""
        for name in ("completed_steps", "validated_step", "start_results", "results"):
            value = checkpoint.state["progress"][name]
            numbers = [value] if name.endswith(("step", "steps")) else list({**value}.values())
            if not all(isinstance(number, (int, float)) for number in numbers):
                raise ValueError(f"expected numbers as {name}, got {value}")
            setattr(self, name, value)
        losses, windows = checkpoint.progress["losses"], checkpoint.progress["windows"]
        if (losses.dtype, windows.dtype) != (torch.float32, torch.int64) or {losses.ndim, windows.ndim} - {1, 2}:
            raise ValueError(f"expected losses and numbers of windows, got {losses.dtype} and {windows.dtype}")
        losses, windows = losses.to(accelerator.device), windows.to(accelerator.device)
        if losses.numel():
            same_number = len(losses) == accelerator.num_processes
            self.losses = list((losses[accelerator.process_index] if same_number else losses.mean(dim=0)).unbind())
        # Those of another number of processes cannot be dealt out again: the epoch's count begins anew
        if len(windows) == accelerator.num_processes:
            self.windows = [windows[accelerator.process_index]]


def run_description(arguments: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """What makes two runs the same, as JSON gives it back."""
    description = {name: getattr(arguments, name) for name in ARGUMENTS_OF_A_RUN}
    description = {name: str(value) if isinstance(value, Path) else value for name, value in description.items()}
    if isinstance(description["nodata"], float) and math.isnan(description["nodata"]):
        description["nodata"] = "nan"  # which is equal to itself, and JSON
    description["num_processes"] = accelerator.num_processes
    description["mixed_precision"] = accelerator.mixed_precision
    if arguments.streaming:
        description["dataloader_num_workers"] = arguments.dataloader_num_workers  # tiles are dealt to them
    return description


def find_checkpoint(
    arguments: argparse.Namespace, description: Mapping[str, Any], say: Callable[[str], object]
) -> tuple[Path, Checkpoint] | None:
    """The checkpoint to go on from, after a look whether it belongs to this run; None to begin."""
    if arguments.resume_from_checkpoint is None:
        return None
    if arguments.resume_from_checkpoint == "latest":
        found = latest_checkpoint(arguments.output_dir, say)
    else:
        folder = Path(arguments.resume_from_checkpoint)
        found = folder, Checkpoint.read(folder)
    if found is None:
        return None
    folder, checkpoint = found
    changed = [name for name, value in description.items() if value != checkpoint.run.get(name)]
    if changed:
        differences = ", ".join(
            f"{name} was {checkpoint.run.get(name)} and is {description[name]}" for name in sorted(changed)
        )
        if not arguments.allow_changed_run:
            raise ValueError(
                f"{folder}: a resumed run must have the arguments of the interrupted one, but {differences}; "
                "--allow_changed_run goes on all the same"
            )
        say(f"another run from here on: {differences}")
    return found


def is_finished(arguments: argparse.Namespace, description: Mapping[str, Any]) -> bool:
    """Whether the output folder holds what this very run ends with, undamaged."""
    folder: Path = arguments.output_dir
    try:
        results = json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8"))
        weights = fingerprint((folder / SAFE_WEIGHTS_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return results.get("run") == without_folders(description) and results.get("weights_sha256") == weights


def check_output_dir(arguments: argparse.Namespace, checkpoint: Path | None) -> None:
    """Raises ValueError where a new run would be mixed with another one's checkpoints or model."""
    folder: Path = arguments.output_dir
    goes_on_here = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if arguments.overwrite_output_dir or goes_on_here:
        return
    left = [path.name for path in (*step_folders(folder)[::-1], folder / SAFE_WEIGHTS_NAME) if path.exists()]
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
    for checkpoint in step_folders(folder):
        shutil.rmtree(checkpoint)
    for figure in (folder / "figures").glob("reconstruction_step_*.png"):
        figure.unlink()
    (folder / HISTORY).unlink(missing_ok=True)


def create_repository(name: str, token: str | None) -> None:
    """Makes the repository to push to, before hours of training: a wrong name or token is found now."""
    try:
        HfApi(token=token).create_repo(name, exist_ok=True)
    except Exception as error:  # huggingface_hub lets through what its HTTP library raises, which is not one for ever
        raise ValueError(f"--push_to_hub: the repository {name} cannot be written: {error}") from error


class Run:
    """One pre-training on one of its processes: what it trains, on what, and where it stands."""

    def __init__(self, arguments: argparse.Namespace, accelerator: Accelerator, description: dict[str, Any]) -> None:
        """Reads the data, makes model, processor and optimizer, and looks whether they fit each other."""
        self.arguments, self.accelerator, self.description = arguments, accelerator, description
        self.progress, self.is_main = Progress(), accelerator.is_main_process
        self.history_file = arguments.output_dir / HISTORY
        self.watch = FiniteWatch(accelerator.device, scaled=accelerator.scaler is not None)
        with accelerator.main_process_first():
            self.training_tiles, validation_tiles = load_tiles(arguments, progress=self.is_main)
        self.config = make_config(arguments, self.training_tiles)
        self.kinds: list[str] = arguments.mask_types or [self.config.mask_type]
        bands = self._common_bands(validation_tiles)
        model = self._make_model()
        self.processor = self._make_processor(bands)
        self._cut_windows(validation_tiles, bands)
        training_loader = self._make_loaders()
        optimizer = torch.optim.AdamW(parameter_groups(model, arguments.weight_decay), lr=arguments.learning_rate)
        prepared = accelerator.prepare(model, optimizer, training_loader)
        self.model, self.optimizer, self.training_loader = prepared
        self._plan_steps()
        self.model.train()

    def _common_bands(self, validation_tiles: Tiles) -> list[int]:
        """The model's bands in the training tiles, once it is sure that the validation tiles have the same."""
        bands = choose_bands(self.config, self.training_tiles, self.arguments)
        if validation_tiles.num_bands != self.training_tiles.num_bands:
            raise ValueError(
                f"{self.arguments.validation_dir}: expected the {self.training_tiles.num_bands} bands of the training "
                f"tiles, got {validation_tiles.num_bands}"
            )
        check_same_bands(self.arguments, self.training_tiles, validation_tiles, bands)
        return bands

    def _make_model(self) -> HSSTForMaskedImageModeling:
        source = self.arguments.model_name_or_path
        model = load_to_continue(source, self.config) if source else HSSTForMaskedImageModeling(self.config)
        use_fast_layers(model)
        for kind in (*self.kinds, self.config.mask_type):  # validation takes the last
            masks_for(self.config, 1, 0, mask_type=kind)  # raises where the mask does not fit the window
        return model

    def _make_processor(self, bands: list[int]) -> HSSTImageProcessor:
        source, before = self.arguments.model_name_or_path, None
        if source and not self.arguments.recompute_statistics:
            before = processor_of_checkpoint(source)
            if before is None:
                self.accelerator.print(f"{source}: no band statistics; taken from the training tiles")
        return make_processor(self.config, self.training_tiles, bands, before)

    def _cut_windows(self, validation_tiles: Tiles, bands: list[int]) -> None:
        """Makes the windows of training and validation, and chooses the tile that figures show."""
        arguments, window_size = self.arguments, self.config.window_size
        source = arguments.train_dir or arguments.dataset_name
        check_tile_sizes(source, self.training_tiles, window_size)
        check_tile_sizes(arguments.validation_dir or source, validation_tiles, window_size)
        per_tile = {"windows_per_tile": arguments.windows_per_tile, "seed": arguments.seed}
        self.training_windows = RandomWindows(self.training_tiles, window_size, bands=bands, **per_tile)
        self.validation_windows = GridWindows(validation_tiles, window_size, bands=bands)
        windows_at_once = arguments.per_device_train_batch_size * self.accelerator.num_processes
        self.windows_per_step = windows_at_once * arguments.gradient_accumulation_steps
        if len(self.training_windows) < self.windows_per_step:
            raise ValueError(
                f"{source}: expected at least the {self.windows_per_step} windows of one step in an epoch, got "
                f"{len(self.training_windows)} ({len(self.training_tiles)} tiles, "
                f"{self.training_windows.windows_per_tile} windows each); raise --windows_per_tile or lower "
                "--per_device_train_batch_size"
            )
        candidates = validation_tiles.select(range(min(32, len(validation_tiles))))
        shown = [tile[bands] for tile in candidates]
        self.tile_to_show = tile_worth_showing(shown, candidates.names, candidates.nodata)

    def _make_loaders(self) -> DataLoader:
        """The loader of training, which is still to be prepared; that of validation deals windows out by itself."""
        arguments, accelerator, tiles = self.arguments, self.accelerator, self.training_tiles
        self.sampler: EpochSampler | GroupedSampler = EpochSampler(len(self.training_windows), arguments.seed)
        if tiles.groups_at_once is not None:
            readers_per_process = max(1, arguments.dataloader_num_workers) if arguments.streaming else 1
            self.sampler = GroupedSampler(
                tiles.groups,
                self.training_windows.windows_per_tile,
                arguments.seed,
                groups_at_once=tiles.groups_at_once,
                batch_size=arguments.per_device_train_batch_size,
                num_consumers=accelerator.num_processes * readers_per_process,
            )
        own = range(accelerator.process_index, len(self.validation_windows), accelerator.num_processes)
        self.validation_loader: DataLoader = DataLoader(
            torch.utils.data.Subset(self.validation_windows, own), batch_size=arguments.per_device_eval_batch_size
        )
        return DataLoader(
            self.training_windows,
            batch_size=arguments.per_device_train_batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=arguments.dataloader_num_workers,
            worker_init_fn=leave_signals_to_parent,
        )

    def _plan_steps(self) -> None:
        """Counts the steps and makes the schedule of the learning rate over them."""
        arguments, num_windows = self.arguments, len(self.training_windows)
        self.steps_per_epoch = len(self.training_loader) // arguments.gradient_accumulation_steps
        left_out = num_windows - self.steps_per_epoch * self.windows_per_step
        if left_out:
            self.accelerator.print(f"{left_out} of {num_windows} windows, too few for a step, are left out each epoch")
        self.total_steps = self.steps_per_epoch * arguments.num_train_epochs
        if arguments.max_train_steps is not None:
            self.total_steps = arguments.max_train_steps
        warmup_steps = arguments.num_warmup_steps
        warmup_steps = round(0.05 * self.total_steps) if warmup_steps is None else warmup_steps
        decay = {}
        if arguments.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            decay = {"num_decay_steps": round(arguments.decay_share * self.total_steps)}
        # Not prepared, and stepped once a step: a prepared scheduler steps once for each process
        self.scheduler: LRScheduler = get_scheduler(
            arguments.lr_scheduler_type, self.optimizer, warmup_steps, self.total_steps, decay
        )

    def restore(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint; ValueError where it is of another model or run."""
        try:
            checkpoint.restore(self.accelerator.unwrap_model(self.model), self.optimizer.optimizer)
            self.progress.restore(checkpoint, self.accelerator)
            step = self.progress.completed_steps
            if type(step) is not int or not 0 < step <= self.total_steps:
                raise ValueError(f"expected a step of 1 to {self.total_steps}, got {step}")
            scaler = checkpoint.state["scaler"]
            if self.accelerator.scaler is not None and scaler is not None:
                self.accelerator.scaler.load_state_dict(scaler)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder}: expected a checkpoint of this run, got another one: {error}") from None
        # The learning rate follows from the step, also where the run is now longer than it was
        position = {"last_epoch": step - 1, "_step_count": step + 1}
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **position})
        self.scheduler.step()

    def save_checkpoint(self) -> Path:
        """Saves where the run stands, as `step_N`."""
        progress = {name: value for name, value in vars(self.progress).items() if not isinstance(value, list)}
        scaler = self.accelerator.scaler
        tensors = self.progress.tensors(self.accelerator)
        folder = self.arguments.output_dir / f"step_{self.progress.completed_steps}"
        if self.is_main:
            Checkpoint(
                model=self.accelerator.unwrap_model(self.model).state_dict(),
                moments=self.optimizer.state_dict()["state"],
                progress=tensors,
                state={"progress": progress, "scaler": scaler and scaler.state_dict()},
                run=self.description,
                history=self.history_file.read_text(encoding="utf-8"),
            ).save(folder)
        self.accelerator.wait_for_everyone()
        return folder

    def log(self, values: dict[str, Any]) -> None:
        step = self.progress.completed_steps
        self.accelerator.log(values, step=step)
        if self.is_main:
            with self.history_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def train(self, stop: StopRequest) -> float:
        """Trains to the last step, and returns how many seconds that took."""
        progress = self.progress
        self.bar = tqdm(
            total=self.total_steps,
            initial=progress.completed_steps,
            desc="training",
            disable=not self.is_main,
            unit="step",
        )
        started = time.perf_counter()
        with self.bar:
            # After a checkpoint, too: the run may have been stopped while it validated
            stops = self.validate_if_due(stop)
            if progress.completed_steps == 0:
                progress.start_results = progress.results
                if stops:
                    stop.grant("nothing was trained yet")
            while progress.completed_steps < self.total_steps:
                self.train_epoch(stop)
        return time.perf_counter() - started

    def train_epoch(self, stop: StopRequest) -> None:
        """Trains to the end of the epoch."""
        progress, accumulation = self.progress, self.arguments.gradient_accumulation_steps
        epoch, step_in_epoch = divmod(progress.completed_steps, self.steps_per_epoch)
        loader = self.training_loader
        if step_in_epoch:
            loader = self.accelerator.skip_first_batches(loader, step_in_epoch * accumulation)
        else:
            progress.windows.clear()
        # The loader, too: it resets its epoch counter when it is rebuilt
        parts: tuple[Any, ...] = (loader, self.sampler, self.training_windows)
        for part in parts:
            part.set_epoch(epoch)
        batches: list[dict[str, torch.Tensor]] = []
        for batch in loader:
            batches.append(batch)
            self.train_batch(batch, len(batches) - 1, batches)
            if not self.accelerator.sync_gradients:
                continue
            batches = []
            self.scheduler.step()
            progress.completed_steps += 1
            self.bar.update()
            self.finish_step(epoch, stop)
            if progress.completed_steps >= self.total_steps or progress.completed_steps % self.steps_per_epoch == 0:
                return

    def train_batch(self, batch: dict[str, torch.Tensor], number: int, batches: list[dict[str, torch.Tensor]]) -> None:
        """Takes the gradient of a batch, and the optimizer's step after the last of the `batches` of a step."""
        arguments, accelerator = self.arguments, self.accelerator
        micro_step = self.progress.completed_steps * arguments.gradient_accumulation_steps + number
        drawn = step_seed(arguments.seed, micro_step, accelerator.process_index)
        torch.manual_seed(drawn)
        with accelerator.accumulate(self.model):
            pixels = batch["pixels"]
            if arguments.gain:
                pixels = in_other_light(pixels, self.processor.nodata, arguments.gain)
            kind = None
            if arguments.mask_types:
                # The same kind on every process, or those with less to encode would wait
                shared = step_seed(arguments.seed, micro_step)
                kind = arguments.mask_types[shared % len(arguments.mask_types)]
            loss = masked_loss(self.model, self.config, *self.processor.standardize(pixels), drawn, kind)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # 0 clips nothing, as in transformers' Trainer; as a norm it would leave nothing to learn from
                norm = accelerator.clip_grad_norm_(self.model.parameters(), arguments.max_grad_norm or math.inf)
                self.watch.add(self.progress.completed_steps + 1, loss, norm, batches)
                self.require_finite()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.progress.losses.append(loss.detach())
        self.progress.windows.append(batch["window_index"])

    def require_finite(self, wait: bool = False) -> None:
        """Raises ValueError after a step whose loss or gradient was not finite, and writes what it was taken on."""
        bad = self.watch.first_bad(wait)
        if bad is None:
            return
        step, found, batches = bad
        rank = self.accelerator.process_index
        windows = torch.cat([batch["window_index"] for batch in batches]).tolist()
        tiles = [self.training_tiles.names[w // self.training_windows.windows_per_tile] for w in windows]
        micro_steps = [(step - 1) * self.arguments.gradient_accumulation_steps + n for n in range(len(batches))]
        about = {
            "step": step,
            "found": found,
            "seeds": [step_seed(self.arguments.seed, number, rank) for number in micro_steps],
            "windows": windows,
            "tiles": tiles,
            "epoch": (step - 1) // self.steps_per_epoch,
        }
        path = self.arguments.output_dir / f"not_finite_step_{step}_process_{rank}.safetensors"
        pixels = torch.cat([batch["pixels"] for batch in batches])
        with written_whole(path) as partial:
            save_file({"pixels": pixels.cpu().contiguous()}, partial, {"about": json.dumps(about)})
        raise ValueError(
            f"expected a finite loss and gradient, got {found} at step {step}; what it was taken on is in {path}, and "
            "the checkpoints before are whole"
        )

    def finish_step(self, epoch: int, stop: StopRequest) -> None:
        """What belongs to a step after its update: logs, validation, checkpoint; and a stop that was asked for."""
        progress, step = self.progress, self.progress.completed_steps
        is_last = step == self.total_steps
        ends_epoch = is_last or step % self.steps_per_epoch == 0
        if step % 10 == 0 or is_last:
            mean_loss = self.accelerator.reduce(torch.stack(progress.losses).mean(), reduction="mean").item()
            progress.losses.clear()
            self.bar.set_postfix(loss=f"{mean_loss:.4f}", epoch=epoch + 1)
            self.log({"loss": mean_loss, "learning_rate": self.scheduler.get_last_lr()[0], "epoch": epoch + 1})
        if ends_epoch:
            windows = self.accelerator.gather(torch.cat(progress.windows))
            tiles = windows // self.training_windows.windows_per_tile
            counts = {"distinct_windows": len(windows.unique()), "distinct_tiles": len(tiles.unique())}
            self.log({"windows": len(windows), **counts})
        stops = self.validate_if_due(stop) or self.all_stop(stop)
        every = self.arguments.checkpointing_steps
        due = ends_epoch if every == "epoch" else every is not None and step % int(every) == 0
        if due or stops:
            self.require_finite(wait=True)
            folder = self.save_checkpoint()
        if stops:
            stop.grant(f"saved {folder}; the same command with --resume_from_checkpoint latest goes on from there")

    def all_stop(self, stop: StopRequest) -> bool:
        """Whether a process was asked to stop: then all do, after the same step."""
        if self.accelerator.num_processes == 1:
            return stop.made
        # An answer that a GPU has to give is waited for, so there it is asked for now and then only
        if self.accelerator.device.type != "cpu" and self.progress.completed_steps % 10:
            return False
        asked = torch.tensor(float(stop.made), device=self.accelerator.device)
        return self.accelerator.reduce(asked, reduction="sum").item() > 0

    def validate_if_due(self, stop: StopRequest) -> bool:
        """
        Validates the model and draws a figure, where that belongs to this step and was not done. Returns whether a
        process was asked to stop before that was done.
        """
        progress, step, every = self.progress, self.progress.completed_steps, self.arguments.validation_steps
        ends_epoch = step % self.steps_per_epoch == 0
        due = step == self.total_steps or step == 0 or (step % every == 0 if every else ends_epoch)
        if not due or progress.validated_step == step:
            return False
        results = self.validate(stop)
        if results is None:
            return True
        progress.results, progress.validated_step = results, step
        self.log(results)
        if self.is_main:
            self.draw_figure()
            self.bar.write(
                f"step {step}: validation loss {results['eval_loss']:.4f} (band mean "
                f"{results['eval_band_mean_loss']:.4f}, mean of visible tokens "
                f"{results['eval_visible_mean_loss']:.4f})"
            )
        self.accelerator.wait_for_everyone()
        return False

    def figure_path(self) -> Path:
        return self.arguments.output_dir / "figures" / f"reconstruction_step_{self.progress.completed_steps:07d}.png"

    @torch.no_grad()
    def draw_figure(self) -> None:
        """The reconstruction of a whole tile, window by window."""
        config, processor, (tile, name) = self.config, self.processor, self.tile_to_show
        model = self.accelerator.unwrap_model(self.model)
        height, width = config.window_size
        # At most 64 x 64 pixels: more would only be harder to see
        size = min(64, tile.shape[1]) // height * height, min(64, tile.shape[2]) // width * width
        windows = tile_to_windows(tile[:, : size[0], : size[1]], config.window_size).to(self.accelerator.device)
        model.eval()
        pixel_values, pixel_mask = processor.standardize(windows)
        mask = masks_for(config, len(pixel_values), self.arguments.seed).to(self.accelerator.device)
        with self.accelerator.autocast():
            reconstruction = model(pixel_values, bool_masked_pos=mask, pixel_mask=pixel_mask).reconstruction.float()
        model.train()
        hidden = hidden_values(mask, pixel_values, config)
        stack = (processor.to_reflectance(pixel_values), processor.to_reflectance(reconstruction), hidden)
        tile_values, tile_reconstruction, tile_hidden = (windows_to_tile(w.cpu(), size).numpy() for w in stack)
        hidden_share, steps = f"{mask.float().mean():.0%}", f"{self.progress.completed_steps:,}"
        plot_reconstruction(
            self.figure_path(),
            reflectance=tile_values,
            reconstruction=tile_reconstruction,
            hidden=tile_hidden,
            valid=windows_to_tile(pixel_mask.cpu().unsqueeze(1), size)[0].numpy(),
            wavelengths=config.wavelengths,
            title=f"{name}\n{config.mask_type} masks, {hidden_share} of the tokens hidden, after {steps} steps",
        )

    @torch.no_grad()
    def validate(self, stop: StopRequest | None = None) -> dict[str, float] | None:
        """
        Mean absolute error of the hidden values (in standard deviations of their band) of the validation windows, for
        the model and for two predictors without training. Windows and masks are the same every time. None where a
        process was asked to stop.
        """
        accelerator, config, seed = self.accelerator, self.config, self.arguments.seed
        # Without its wrapper, for processes may have different numbers of batches and must not wait for each other
        model = accelerator.unwrap_model(self.model)
        model.eval()
        sums = torch.zeros(5, dtype=torch.float64)
        for batch in tqdm(
            self.validation_loader, desc="validation", unit="batch", leave=False, disable=not self.is_main
        ):
            if stop is not None and stop.made:
                sums[4] = 1
                break
            pixel_values, pixel_mask = self.processor.standardize(batch["pixels"].to(accelerator.device))
            # A mask for each window from its own number, so that it does not depend on batches or processes
            masks = [masks_for(config, 1, step_seed(seed, int(index), 0)) for index in batch["window_index"]]
            mask = torch.cat(masks).to(accelerator.device)
            with accelerator.autocast():
                outputs = model(pixel_values, bool_masked_pos=mask, pixel_mask=pixel_mask)
            # On the CPU, for not every device knows float64 (Apple's does not)
            sums[:4] += absolute_error_sums(
                pixel_values.cpu(), outputs.reconstruction.float().cpu(), mask.cpu(), pixel_mask.cpu(), config
            )
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
        model.train()
        if sums[4]:
            return None
        loss, band_mean, visible_mean = (sums[:3] / sums[3].clamp(min=1)).tolist()
        return {"eval_loss": loss, "eval_band_mean_loss": band_mean, "eval_visible_mean_loss": visible_mean}

    def save(self, seconds: float, steps_timed: int) -> None:
        """Saves model, processor and results, and pushes them where that was asked for."""
        self.accelerator.wait_for_everyone()
        if not self.is_main:
            return
        arguments, model = self.arguments, self.accelerator.unwrap_model(self.model)
        ratios = [masks_for(self.config, 64, 0, mask_type=kind).float().mean().item() for kind in self.kinds]
        with written_into(arguments.output_dir, last=SAFE_WEIGHTS_NAME) as partial:
            model.save_pretrained(partial)
            self.processor.save_pretrained(partial)
            results = {
                **self.progress.results,
                **{f"start_{name}": value for name, value in self.progress.start_results.items()},
                "steps": self.total_steps,
                "windows_seen": self.total_steps * self.windows_per_step,
                "training_tiles": len(self.training_tiles),
                "validation_tiles": len(self.validation_windows.tiles),
                "validation_windows": len(self.validation_windows),
                "realised_mask_ratio": float(np.mean(ratios)),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "seconds": round(seconds, 1),
                "steps_timed": steps_timed,
                "run": without_folders(self.description),
                "weights_sha256": fingerprint((partial / SAFE_WEIGHTS_NAME).read_bytes()),
                "versions": {
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "accelerate": accelerate.__version__,
                },
            }
            write_json(partial / RESULTS_NAME, results)
        print(f"Model and processor: {arguments.output_dir}\nReconstruction: {self.figure_path()}")
        if arguments.push_to_hub:
            try:
                with TemporaryDirectory() as folder:  # which also loads where this package is not installed
                    export_for_hub(model, self.processor, folder)
                    message, name = "Model and processor of run_mim.py", arguments.hub_model_id
                    HfApi(token=arguments.hub_token).upload_folder(
                        repo_id=name, folder_path=folder, commit_message=message
                    )
            except Exception as error:  # as in create_repository
                raise ValueError(
                    f"the model is saved in {arguments.output_dir}, but pushing it to {arguments.hub_model_id} "
                    f"failed: {error}"
                ) from error


def load_to_continue(source: str, config: HSSTConfig) -> HSSTForMaskedImageModeling:
    """A model with the encoder of another one; a decoder, and a bias of distances that it did not have, are new."""
    layers = range(config.num_spatial_layers)
    biases = tuple(f"hsst.spatial_layers.{layer}.attention.position_bias" for layer in layers)
    return load_model(HSSTForMaskedImageModeling, source, config, new=(*OTHER_PARTS, *biases), unused=OTHER_PARTS)


def check_trackers(name: str) -> None:
    """Raises ValueError where a tracker is asked for that is not installed: accelerate would go on without it."""
    known, installed = LoggerType.list(), [str(tracker) for tracker in get_available_trackers()]
    if name not in known:
        raise ValueError(f"--report_to: expected one of {', '.join(known)}, got {name}")
    if name not in ("all", *installed):
        raise ValueError(f"--report_to {name}: it is not installed (installed: {', '.join(installed) or 'none'})")


def check_processes(accelerator: Accelerator) -> None:
    """Raises ValueError where a launcher started more processes than accelerate sees: each would train a model."""
    for name in WORLD_SIZES:
        launched = os.environ.get(name, "")
        if launched.isdigit() and int(launched) > accelerator.num_processes:
            raise ValueError(
                f"{name}={launched}, but accelerate sees {accelerator.num_processes} process, so each would train a "
                f"model of its own into the same folder; on CPUs start them with `ACCELERATE_USE_CPU=true torchrun "
                f"--nproc_per_node {launched} ...`"
            )


def pretrain(arguments: argparse.Namespace) -> None:
    """The whole run."""
    check_trackers(arguments.report_to)
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=arguments.report_to if arguments.with_tracking else None,
        project_config=ProjectConfiguration(project_dir=str(arguments.output_dir)),
    )
    if accelerator.distributed_type in PARTED_MODELS:
        raise ValueError(
            f"expected a launch with the whole model on each device, got {accelerator.distributed_type.value}, whose "
            "parts a checkpoint would lack"
        )
    check_processes(accelerator)
    accelerate.utils.set_seed(arguments.seed)
    description = run_description(arguments, accelerator)

    def say(message: str) -> None:
        if accelerator.is_main_process:
            print(f"run_mim.py: {message}", file=sys.stderr, flush=True)

    with only_writer(arguments.output_dir) if accelerator.is_main_process else nullcontext():
        if arguments.resume_from_checkpoint == "latest" and is_finished(arguments, description):
            accelerator.print(f"Finished before: {arguments.output_dir}")
            return
        found = find_checkpoint(arguments, description, say)
        check_output_dir(arguments, found and found[0])
        run = Run(arguments, accelerator, description)
        if found is not None:
            run.restore(*found)
            accelerator.print(f"Resumed from {found[0]} after step {run.progress.completed_steps}")
        if arguments.push_to_hub and accelerator.is_main_process:
            create_repository(arguments.hub_model_id, arguments.hub_token)
        if arguments.with_tracking:
            tracked = {key: value for key, value in description.items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("hsst_mim", tracked)
        if accelerator.is_main_process:
            if found is None:
                remove_earlier_run(arguments.output_dir)
            write_text(run.history_file, "" if found is None else found[1].history)
        accelerator.wait_for_everyone()
        start_step = run.progress.completed_steps
        with StopRequest() as stop:
            seconds = run.train(stop)
        run.save(seconds, run.total_steps - start_step)
    accelerator.end_training()
    if accelerator.num_processes > 1:
        # Gloo's thread still lets go of the last collective. The group is freed on return, and whoever frees it joins
        # that thread while it waits for the interpreter's lock: forever
        time.sleep(0.5)
