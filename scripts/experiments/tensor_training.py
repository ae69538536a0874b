"""Masked pre-training on tile tensors: one loop on one device, exact to resume.

Masked image modelling of Scheibenreif et al. (2023), with masks of several kinds in turn, so that the weights
reconstruct under any of them. All that is random in a step follows from the seed and the number of the step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hsst.experiments.tile_tensors import TileTensors, WindowPlaces, cut_windows, draw_places
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, draw_mask
from modeling_hsst.modeling_hsst import HSSTLayer, HSSTPatchEmbeddings
from modeling_hsst.reconstruction_hsst import absolute_error_sums

STATE_NAME = "training_state.pt"
VALIDATION_SEED = 2**40


@dataclass(frozen=True)
class PretrainingSettings:
    """How a model is pre-trained.

    Attributes:
        steps: optimisation steps.
        batch_size: windows in a step.
        learning_rate: highest one; it rises for `warmup_steps`, stays, and falls to nothing in a last share of the
            steps. What comes before that share does not depend on `steps`, so that a run can be prolonged.
        warmup_steps: steps of rising.
        decay_share: last share of the steps, in which the learning rate falls.
        weight_decay: of weight matrices; not of biases, norms, tokens and positions.
        max_grad_norm: gradients are clipped to this norm.
        mask_types: kinds of masks, of which each step takes one at random.
        gain: standard deviation of the logarithm of a factor on the reflectance of each window: other illumination.
        precision: "float32" or "bfloat16" (autocast).
        compile: whether the layers are compiled.
        seed: of weights, windows and masks.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 0
    decay_share: float = 0.25
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    mask_types: tuple[str, ...] = ("even", "tube", "grid")
    gain: float = 0.0
    precision: str = "float32"
    compile: bool = False
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        rising = (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0
        falling = (self.steps - step) / max(1, self.steps - self.decay_start)
        return self.learning_rate * min(rising, falling, 1.0)

    @property
    def decay_start(self) -> int:
        """First step in which the learning rate falls."""
        return self.steps - round(self.decay_share * self.steps)


def generator_of(*numbers: int) -> torch.Generator:
    """A source of randomness on the CPU that follows from some numbers."""
    state = 0
    for number in numbers:
        state = (state * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    generator = torch.Generator().manual_seed(state)
    torch.rand(8, generator=generator)
    return generator


def masks_of(config: HSSTConfig, mask_type: str, count: int, generator: torch.Generator) -> torch.Tensor:
    """Masks of one kind with the ratio and squares of the configuration, bool (count, tokens)."""
    return draw_mask(
        count,
        config.num_blocks,
        config.grid_size,
        mask_type=mask_type,
        mask_ratio=config.mask_ratio,
        mask_patch_size=config.mask_patch_size,
        generator=generator,
    )


def realised_mask_ratio(config: HSSTConfig, mask_types: Sequence[str]) -> float:
    """Share of the tokens that masks really hide, mean over their kinds."""
    shares = [masks_of(config, kind, 16, generator_of(0)).float().mean() for kind in mask_types]
    return float(torch.stack(shares).mean())


def compile_layers(model: torch.nn.Module) -> None:
    """
    Compiles embeddings and each layer on their own: layers of a kind share what is compiled, so that masks of several
    kinds take seconds, not minutes, to get ready.
    """
    # Encoder and decoder, space and spectrum, each kind of mask, training and validation
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for layer in model.modules():
        if isinstance(layer, (HSSTLayer, HSSTPatchEmbeddings)):
            layer.compile(fullgraph=True, dynamic=False)


@dataclass(frozen=True)
class DrawnStep:
    """What is drawn for a step, on the CPU: kind of the masks, places of the windows, their gain, and the masks."""

    step: int
    kind: str
    places: list[WindowPlaces]
    gain: torch.Tensor | None
    mask: torch.Tensor


class Pretraining:
    """A run: model, optimiser, and how far it has come."""

    def __init__(
        self,
        model: HSSTForMaskedImageModeling,
        processor: HSSTImageProcessor,
        sources: Sequence[TileTensors],
        settings: PretrainingSettings,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).train()  # type: ignore[arg-type]
        self.config: HSSTConfig = model.config
        self.processor, self.settings, self.device = processor, settings, device
        self.sources = list(sources)
        self.completed_steps = 0
        self.seconds = 0.0
        self.windows_by_source = [0] * len(self.sources)
        named = list(model.named_parameters())
        decays = {name: parameter.ndim > 1 and not name.endswith(("bias", "_embeddings")) for name, parameter in named}
        groups = [
            {"params": [p for n, p in named if decays[n] is decayed], "weight_decay": weight_decay}
            for decayed, weight_decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True, betas=(0.9, 0.95))
        self.drawer = ThreadPoolExecutor(1)
        self.next_draw: Future[DrawnStep] | None = None
        self.are_whole = all(source.is_whole for source in self.sources)
        if settings.compile:
            compile_layers(model)

    def draw(self, step: int) -> DrawnStep:
        """All that is random in the windows and masks of one step."""
        settings = self.settings
        generator = generator_of(settings.seed, step)
        kind = settings.mask_types[int(torch.randint(len(settings.mask_types), (1,), generator=generator))]
        places = draw_places(self.sources, settings.batch_size, self.config.window_size[0], generator)
        gain = None
        if settings.gain:
            gain = torch.exp(settings.gain * torch.randn(settings.batch_size, 1, 1, 1, generator=generator))
        mask = masks_of(self.config, kind, settings.batch_size, generator)
        # A copy of other memory would wait until the GPU has done what it was given
        mask = mask.pin_memory() if self.device.type == "cuda" else mask
        return DrawnStep(step, kind, places, gain, mask)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
        """Windows, their valid pixels, masks, and the kind of the masks, of one step."""
        drawn = self.draw(step) if self.next_draw is None else self.next_draw.result()
        if drawn.step != step:
            drawn = self.draw(step)
        if self.device.type != "cpu":
            # While the device works on this step
            self.next_draw = self.drawer.submit(self.draw, step + 1)
        windows = cut_windows(self.sources, drawn.places, self.config.window_size[0])
        numbers = [len(place.tile) for place in drawn.places]
        self.windows_by_source = [total + n for total, n in zip(self.windows_by_source, numbers, strict=True)]
        scale = self.sources[0].scale
        if drawn.gain is not None:
            empty = windows == self.processor.nodata
            windows = (windows * drawn.gain.to(self.device)).masked_fill(empty, self.processor.nodata)
        values, valid = self.processor.standardize(windows, scale=scale)
        return values, valid, drawn.mask.to(self.device, non_blocking=True), drawn.kind

    def step(self) -> torch.Tensor:
        """One optimisation step; its loss, on the device."""
        values, valid, mask, kind = self.batch(self.completed_steps)
        # Dropout, where there is any
        dropout_seed = generator_of(self.settings.seed, self.completed_steps, 1)
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=dropout_seed)))
        # Windows of whole swaths need no mask, and no attention mask then. A look at them would wait for a GPU
        is_whole = self.are_whole if self.device.type != "cpu" else bool(valid.all())
        pixel_mask = None if is_whole else valid
        with self.autocast():
            loss = self.model(values, bool_masked_pos=mask, pixel_mask=pixel_mask, mask_type=kind).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.completed_steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.completed_steps += 1
        return loss.detach()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    @torch.no_grad()
    def validate(
        self, sources: Sequence[TileTensors], mask_types: Sequence[str], windows_each: int = 256, batch_size: int = 64
    ) -> dict[str, dict[str, float]]:
        """
        Mean absolute error of hidden values, in standard deviations of their bands, of the model and of two predictors
        without training, by source and kind of mask. Windows and masks are the same every time.
        """
        self.model.eval()
        side = self.config.window_size[0]
        results = {}
        for number, source in enumerate(sources):
            for kind in mask_types:
                sums = torch.zeros(4, dtype=torch.float64)
                for start in range(0, windows_each, batch_size):
                    generator = generator_of(VALIDATION_SEED, number, start)
                    count = min(batch_size, windows_each - start)
                    windows = cut_windows([source], draw_places([source], count, side, generator), side)
                    values, valid = self.processor.standardize(windows, scale=source.scale)
                    mask = masks_of(self.config, kind, count, generator).to(self.device)
                    # Batches of other sizes, too few to compile anything for
                    with self.autocast(), torch.compiler.set_stance("force_eager"):
                        outputs = self.model(values, mask, valid, mask_type=kind)
                    reconstruction = outputs.reconstruction.float()
                    sums += absolute_error_sums(
                        values.cpu(), reconstruction.cpu(), mask.cpu(), valid.cpu(), self.config
                    )
                error, band_mean, visible_mean = (sums[:3] / sums[3].clamp(min=1)).tolist()
                results[f"{source.name}/{kind}"] = {
                    "error": error,
                    "band_mean": band_mean,
                    "visible_mean": visible_mean,
                }
        self.model.train()
        return results

    def save_state(self, folder: Path, description: Mapping[str, Any]) -> None:
        """Writes all that a resumed run needs, under a temporary name first."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "completed_steps": self.completed_steps,
            "seconds": self.seconds,
            "windows_by_source": self.windows_by_source,
            "description": json.dumps(description),
        }
        partial = folder / f".{STATE_NAME}.partial"
        torch.save(state, partial)
        partial.replace(folder / STATE_NAME)

    def load_state(self, folder: Path, description: Mapping[str, Any]) -> None:
        """
        Goes on where `save_state` stopped.

        Raises:
            ValueError: the run there was another one; the message names the first difference.
        """
        state = torch.load(folder / STATE_NAME, map_location=self.device, weights_only=True)
        found, wanted = json.loads(state["description"]), json.loads(json.dumps(description))
        steps = found["settings"].pop("steps")
        wanted["settings"].pop("steps")
        before = replace(self.settings, steps=steps)
        if self.settings.steps != steps and state["completed_steps"] > min(
            before.decay_start, self.settings.decay_start
        ):
            raise ValueError(
                f"--steps: a run of {steps:,} steps can have another number while its learning rate does not fall, "
                f"but {state['completed_steps']:,} steps are done, got {self.settings.steps:,}"
            )
        for name in wanted:
            if found.get(name) != wanted[name]:
                raise ValueError(
                    f"{folder}: a resumed run must have the arguments of the interrupted one, but {name} was "
                    f"{found.get(name)} and is {wanted[name]}"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.completed_steps, self.seconds = state["completed_steps"], state["seconds"]
        self.windows_by_source = list(state["windows_by_source"])


def describe(settings: PretrainingSettings, config: HSSTConfig, sources: Sequence[TileTensors]) -> dict[str, Any]:
    """What makes two runs the same, as JSON can hold it."""
    return {
        "settings": asdict(settings),
        "model": {name: value for name, value in config.to_dict().items() if name != "transformers_version"},
        "data": [
            {"name": s.name, "tiles": list(s.tiles.shape), "weight": s.weight, "sha256": s.sha256} for s in sources
        ],
    }


def pretrain(
    run: Pretraining,
    *,
    validation: Sequence[TileTensors],
    validation_mask_types: Sequence[str],
    output_dir: Path,
    description: Mapping[str, Any],
    validation_steps: int,
    save_steps: int,
    resume: bool = False,
    max_seconds: float | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Trains to the end; model, processor and `all_results.json` are written at every save.

    Args:
        run: what is trained.
        validation: tiles that are never trained on.
        validation_mask_types: kinds of masks to validate with.
        output_dir: folder; made if need be.
        description: of the run (`describe`).
        validation_steps: steps between two validations.
        save_steps: steps between two saves.
        resume: go on from the state in `output_dir`, where there is one.
        max_seconds: shorten the run so that it ends after about so many seconds of training, its learning rate having
            fallen to nothing; it is then the run that fewer steps would have been.
        progress: show a progress bar.

    Returns:
        What `all_results.json` holds.

    Raises:
        ValueError: the folder holds a state and `resume` is not given, or another run's; or the loss became infinite.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    history: list[dict[str, Any]] = []
    results_path = output_dir / "all_results.json"
    if (output_dir / STATE_NAME).exists():
        if not resume:
            raise ValueError(
                f"{output_dir}: expected no other run in the output folder, found {STATE_NAME}; give another "
                "--output_dir, or go on with --resume"
            )
        run.load_state(output_dir, description)
        history = json.loads(results_path.read_text())["history"]
    settings = run.settings
    losses: list[torch.Tensor] = []
    bar = tqdm(total=settings.steps, initial=run.completed_steps, desc="training", unit="step", disable=not progress)

    def look() -> None:
        errors = run.validate(validation, validation_mask_types)
        entry: dict[str, Any] = {"step": run.completed_steps, "validation": errors}
        if losses:
            entry["loss"] = torch.stack(losses).float().mean().item()
            losses.clear()
            if not math.isfinite(entry["loss"]):
                raise ValueError(f"--learning_rate: expected one with a finite loss, got {settings.learning_rate}")
        history.append(entry)
        shown = ", ".join(f"{name} {values['error']:.3f}" for name, values in errors.items())
        bar.write(f"step {run.completed_steps}: loss {entry.get('loss', math.nan):.4f}; validation {shown}")

    def save() -> dict[str, Any]:
        run.save_state(output_dir, description)
        run.model.save_pretrained(output_dir)
        run.processor.save_pretrained(output_dir)
        results = {
            "steps": run.completed_steps,
            "training_tiles": sum(len(source.tiles) for source in run.sources),
            "validation_tiles": sum(len(source.tiles) for source in validation),
            "realised_mask_ratio": realised_mask_ratio(run.config, settings.mask_types),
            "run": asdict(settings),
            "windows_seen": run.completed_steps * settings.batch_size,
            "windows_by_source": {
                source.name: count for source, count in zip(run.sources, run.windows_by_source, strict=True)
            },
            "seconds": round(run.seconds, 1),
            "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
            "encoder_parameters": sum(parameter.numel() for parameter in run.model.hsst.parameters()),
            "history": history,
            **description,
        }
        partial = results_path.with_name(f".{results_path.name}.partial")
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(results_path)
        return results

    if not history:
        look()
    while run.completed_steps < settings.steps:
        started = time.perf_counter()
        losses.append(run.step())
        is_late = max_seconds is not None and run.seconds > (1 - settings.decay_share) * max_seconds
        if is_late and run.completed_steps < settings.decay_start:
            steps = round(run.completed_steps / max(1 - settings.decay_share, 1e-9))
            run.settings = settings = replace(settings, steps=steps)
            description = {**description, "settings": asdict(settings)}
            bar.total = steps
        if run.completed_steps % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1].item():.4f}")
        run.seconds += time.perf_counter() - started
        bar.update()
        done = run.completed_steps == settings.steps
        if run.completed_steps % validation_steps == 0 or done:
            look()
        if run.completed_steps % save_steps == 0 and not done:
            save()
    bar.close()
    return save()
