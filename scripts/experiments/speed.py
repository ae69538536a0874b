"""How fast the model trains and predicts, beside the plain reference and beside what the machine can do.

Variants of the same model take turns on the same inputs in one process, so that ratios between them hold on a machine
that does other things too; a time is the median of its turns. The rate of plain matrix products is measured in the
same turns. Arithmetic is counted analytically, always that of the published form of the model (projections unfolded,
all products once in the forward and twice in the backward pass), so that doing with less of it counts as speed.
"""

import json
import logging
import multiprocessing
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm

from hsst.experiments.plain_reference import plain_reference
from hsst.experiments.tensor_training import compile_layers
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation, draw_mask
from modeling_hsst.configuration_hsst import HSSTDecoderConfig
from modeling_hsst.masking_hsst import COUNTED_MASK_TYPES, visible_counts

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Variant:
    """
    One way to compute the model.

    Attributes:
        name: what tables and charts call it.
        plain: the plain reference in place of the model of this package.
        precision: `"float32"`, `"tf32"` (CUDA only) or `"bfloat16"`: autocast in training, all in it in inference.
        attention: attention implementation of transformers (`"sdpa"` folds projections on processors).
        compiled: `"layers"` where each layer is compiled on its own, a mode of `torch.compile` where the whole model
            is, or None for eager.
        dropout: of attention weights and layers.
        visible_only: only visible tokens are encoded (training).
        decoder_hidden_size: width of the decoder then.
        decoder_num_attention_heads: heads of the decoder then.
        checkpointing: activations of a layer are computed again in the backward pass rather than kept.
        batch_factor: batches are so many times as large as those of others.
        baseline: name of the variant that this one's ratio is taken to.
    """

    name: str
    plain: bool = False
    precision: str = "float32"
    attention: str = "sdpa"
    compiled: str | None = None
    dropout: float = 0.0
    visible_only: bool = False
    decoder_hidden_size: int | None = None
    decoder_num_attention_heads: int | None = None
    checkpointing: bool = False
    batch_factor: int = 1
    baseline: str = "plain"


def training_variants(device_type: str) -> list[Variant]:
    """What training is measured in on a processor or a GPU."""
    variants = [
        Variant("plain", plain=True),
        Variant("plain, dropout 0.1", plain=True, dropout=0.1, baseline="plain, dropout 0.1"),
        Variant("float32, eager attention", attention="eager"),
        Variant("float32"),
        Variant("float32, dropout 0.1", dropout=0.1, baseline="plain, dropout 0.1"),
        Variant("float32, gradient checkpointing", checkpointing=True),
    ]
    narrow: dict[str, Any] = {"decoder_hidden_size": 48, "decoder_num_attention_heads": 4}
    if device_type == "cuda":
        fast: dict[str, Any] = {"precision": "bfloat16", "batch_factor": 4}
        layers: dict[str, Any] = {**fast, "compiled": "layers"}
        return [
            *variants,
            Variant("tf32", precision="tf32"),
            Variant("tf32, compiled layers", precision="tf32", compiled="layers"),
            Variant("bfloat16", **fast),
            Variant("bfloat16, eager attention", attention="eager", precision="bfloat16"),
            Variant("bfloat16, compiled layers", **layers),
            Variant("bfloat16, compiled layers, dropout 0.1", dropout=0.1, baseline="plain, dropout 0.1", **layers),
            Variant("bfloat16, compiled", compiled="default", **fast),
            Variant("bfloat16, compiled, graphs", compiled="reduce-overhead", **fast),
            Variant("bfloat16, compiled layers, visible only", visible_only=True, **layers),
            Variant("bfloat16, compiled layers, visible only, narrow decoder", visible_only=True, **narrow, **layers),
            Variant(
                "bfloat16, compiled, visible only, narrow decoder",
                visible_only=True,
                compiled="default",
                **narrow,
                **fast,
            ),
        ]
    return [
        *variants,
        Variant("bfloat16", precision="bfloat16"),
        Variant("float32, visible only", visible_only=True),
        Variant("float32, visible only, narrow decoder", visible_only=True, **narrow),
        Variant("bfloat16, visible only", precision="bfloat16", visible_only=True),
    ]


def inference_variants(device_type: str) -> list[Variant]:
    """What inference is measured in on a processor or a GPU."""
    variants = [
        Variant("plain", plain=True),
        Variant("float32, eager attention", attention="eager"),
        Variant("float32"),
        Variant("bfloat16", precision="bfloat16"),
    ]
    if device_type == "cuda":
        fast: dict[str, Any] = {"precision": "bfloat16", "batch_factor": 4}
        variants[-1] = Variant("bfloat16", **fast)
        variants += [
            Variant("tf32, compiled layers", precision="tf32", compiled="layers"),
            Variant("bfloat16, compiled layers", compiled="layers", **fast),
            Variant("bfloat16, compiled", compiled="default", **fast),
            Variant("bfloat16, compiled, graphs", compiled="reduce-overhead", **fast),
        ]
    return variants


def layer_flops(config: Any, sequences: int, length: int) -> int:
    """Floating-point operations of one transformer layer, forward, on so many sequences of a length."""
    width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
    per_token = 2 * width * 3 * inner + 2 * 2 * length * inner + 2 * inner * width
    per_token += 2 * 2 * width * config.intermediate_size
    return sequences * length * per_token


def layer_traffic(config: Any) -> tuple[int, int]:
    """
    Bytes that a layer compiled in bfloat16 moves for each token, forward and backward: the least for kernels that end
    at matrix products and attention, each tensor being read and written once by each of them.

    Residuals and what LayerNorms see are float32. Forward: two LayerNorms, joint projection, attention, projection,
    two layers of the MLP with its activation, two additions. Backward: a product for the gradient of its input and one
    for that of its weights for each matrix product, attention with its weights computed again, and the same otherwise.
    """
    width, inner, middle = config.hidden_size, config.num_attention_heads * config.head_dim, config.intermediate_size
    return 40 * width + 16 * inner + 8 * middle, 48 * width + 30 * inner + 14 * middle


def stack_flops(config: Any, spatial: int, spectral: int, blocks: int, positions: int) -> int:
    """The same of so many spatial and spectral layers on a grid of blocks and positions."""
    return spatial * layer_flops(config, blocks, positions) + spectral * layer_flops(config, positions, blocks)


def forward_flops(config: HSSTConfig, kind: str) -> int:
    """
    Floating-point operations (a multiplication and an addition each count) of the matrix products of one window.

    Args:
        config: of the model.
        kind: `"masked"` for masked image modelling, all tokens decoded; `"segmentation"` for the dense classifier.
    """
    blocks, positions = config.num_blocks, config.num_positions
    values = config.band_patch_size * config.patch_size**2
    flops = 2 * blocks * positions * values * config.hidden_size
    spatial, spectral = (blocks, positions), (blocks, positions)  # blocks and positions that the layers see
    if kind == "masked" and config.visible_only and config.mask_type in COUNTED_MASK_TYPES:
        seen_blocks, seen_positions = visible_counts(
            blocks,
            config.grid_size,
            mask_type=config.mask_type,
            mask_ratio=config.mask_ratio,
            mask_patch_size=config.mask_patch_size,
        )
        is_even = config.mask_type == "even"
        spatial = (blocks if is_even else seen_blocks), seen_positions
        spectral = seen_blocks, (positions if is_even else seen_positions)
    flops += stack_flops(config, config.num_spatial_layers, 0, *spatial)
    flops += stack_flops(config, 0, config.num_spectral_layers, *spectral)
    if kind == "segmentation":
        return flops + 2 * positions * config.hidden_size * (config.num_labels or 0) * config.patch_size**2
    decoder: Any = HSSTDecoderConfig(config) if config.visible_only else config
    if config.visible_only:
        flops += 2 * spatial[0] * spatial[1] * config.hidden_size * decoder.hidden_size
    flops += stack_flops(decoder, config.decoder_depth, config.decoder_depth, blocks, positions)
    return flops + 2 * blocks * positions * decoder.hidden_size * values


def make_model(variant: Variant, settings: dict[str, Any], kind: str, device: torch.device) -> nn.Module:
    """The model of a variant, its weights the same as those of all others of its kind."""
    settings = settings | {
        "hidden_dropout_prob": variant.dropout,
        "attention_probs_dropout_prob": variant.dropout,
    }
    if kind == "masked":
        settings |= {
            "visible_only": variant.visible_only,
            "decoder_hidden_size": variant.decoder_hidden_size,
            "decoder_num_attention_heads": variant.decoder_num_attention_heads,
        }
    config = HSSTConfig(**settings)
    torch.manual_seed(0)
    ours: HSSTForMaskedImageModeling | HSSTForSemanticSegmentation
    if kind == "masked":
        ours = HSSTForMaskedImageModeling(config)
    else:
        ours = HSSTForSemanticSegmentation(config)
        # At their initial values the logits of all classes are nearly the same
        torch.manual_seed(1)
        nn.init.normal_(ours.head.classifier.weight, std=0.3)
    ours.set_attn_implementation(variant.attention)
    if variant.checkpointing:
        ours.gradient_checkpointing_enable()
    model: nn.Module = plain_reference(ours) if variant.plain else ours
    model = nn.Module.to(model, device).train(kind == "masked")
    if kind == "segmentation" and variant.precision == "bfloat16":
        model = model.to(torch.bfloat16)
    if variant.compiled == "layers":
        compile_layers(model)
    elif variant.compiled is not None:
        mode = None if variant.compiled == "default" else variant.compiled
        model.compile(mode=mode, fullgraph=True, dynamic=False)
    return model


def set_tf32(variant: Variant) -> None:
    """Whether CUDA may round the inputs of float32 products to tf32."""
    torch.set_float32_matmul_precision("high" if variant.precision == "tf32" else "highest")


class TrainingStep:
    """One step of masked pre-training of a variant: loss, gradients, and AdamW."""

    def __init__(self, variant: Variant, settings: dict[str, Any], batch_size: int, device: torch.device):
        self.variant, self.device = variant, device
        self.model = make_model(variant, settings, "masked", device)
        config: HSSTConfig = self.model.config  # type: ignore[assignment]
        self.batch_size = batch_size * variant.batch_factor
        self.flops = 3 * self.batch_size * forward_flops(config, "masked")
        generator = torch.Generator().manual_seed(0)
        height, width = config.window_size
        self.pixel_values = torch.randn(batch_size, config.num_channels, height, width, generator=generator).to(device)
        self.mask = draw_mask(
            batch_size,
            config.num_blocks,
            config.grid_size,
            mask_type=config.mask_type,
            mask_ratio=config.mask_ratio,
            mask_patch_size=config.mask_patch_size,
            generator=generator,
        ).to(device)
        # The same windows again, for the losses of all variants to be comparable
        self.pixel_values = self.pixel_values.repeat(variant.batch_factor, 1, 1, 1)
        self.mask = self.mask.repeat(variant.batch_factor, 1)
        fused = None if variant.plain else True
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=fused)

    def forward(self) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.precision == "bfloat16"):
            outputs = self.model(self.pixel_values, bool_masked_pos=self.mask)
        return outputs[0] if self.variant.plain else outputs.loss

    def __call__(self) -> torch.Tensor:
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def stages(self) -> dict[str, float]:
        """Seconds of the parts of one step."""
        started = now(self.device)
        loss = self.forward()
        predicted = now(self.device)
        loss.backward()
        differentiated = now(self.device)
        self.optimizer.step()
        self.optimizer.zero_grad()
        ended = now(self.device)
        return {
            "forward": predicted - started,
            "backward": differentiated - predicted,
            "optimizer": ended - differentiated,
        }


class InferenceStep:
    """Logits of one batch of windows from a variant."""

    def __init__(self, variant: Variant, settings: dict[str, Any], batch_size: int, device: torch.device):
        self.variant, self.device = variant, device
        self.model = make_model(variant, settings | {"num_labels": 8}, "segmentation", device).eval()
        config: HSSTConfig = self.model.config  # type: ignore[assignment]
        self.batch_size = batch_size * variant.batch_factor
        self.flops = self.batch_size * forward_flops(config, "segmentation")
        height, width = config.window_size
        generator = torch.Generator().manual_seed(0)
        self.pixel_values = torch.randn(batch_size, config.num_channels, height, width, generator=generator).to(device)
        if variant.precision == "bfloat16":
            self.pixel_values = self.pixel_values.to(torch.bfloat16)
        self.pixel_values = self.pixel_values.repeat(variant.batch_factor, 1, 1, 1)

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        outputs = self.model(self.pixel_values)
        return outputs if self.variant.plain else outputs.logits


def now(device: torch.device) -> float:
    """The time, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Time of one call, from so many in a row."""
    started = now(device)
    for _ in range(repeats):
        function()
    return (now(device) - started) / repeats


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A square matrix product that a device does at its best rate, and its floating-point operations."""
    side = 8192 if device.type == "cuda" else 1024
    left = torch.randn(side, side, device=device, dtype=dtype)
    result = torch.empty_like(left)
    return lambda: torch.mm(left, left, out=result), 2.0 * side**3


def copy_rate(device: torch.device) -> float:
    """Gigabytes per second that a device moves from its memory to its memory, those read and those written counted."""
    source = torch.empty(2**32, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device, 10) / 1e9


def kernel_table(step: Callable[[], object], longest: int = 20) -> list[dict[str, Any]]:
    """The kernels that take longest in one step on a GPU: their names, how often they run, seconds, share of all."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in recorded.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(kernel.self_device_time_total for kernel in kernels)
    kernels.sort(key=lambda kernel: -kernel.self_device_time_total)
    return [
        {
            "kernel": kernel.key[:120],
            "calls": kernel.count,
            "seconds": kernel.self_device_time_total / 1e6,
            "share": kernel.self_device_time_total / max(total, 1e-9),
        }
        for kernel in kernels[:longest]
    ]


def measure(
    part: str,
    settings: dict[str, Any],
    batch_size: int,
    device: torch.device,
    *,
    turns: int = 5,
    variants: list[Variant] | None = None,
    with_memory: bool = True,
    with_kernels: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Measures training or inference.

    Args:
        part: `"train"` or `"inference"`.
        settings: of `HSSTConfig`, where they differ from the published ones.
        batch_size: windows in a batch.
        device: where.
        turns: how often each variant is measured.
        variants: which; by default all that the device can do.
        with_memory: also measure the peak memory of each variant, on a processor in a process of its own.
        with_kernels: also list the kernels that take longest, on a GPU.
        progress: show a progress bar.

    Returns:
        What was measured, ready for JSON.
    """
    step_class = TrainingStep if part == "train" else InferenceStep
    if variants is None:
        variants = (training_variants if part == "train" else inference_variants)(device.type)
    repeats = {variant.name: 1 for variant in variants}
    # Every variant compiles the same code once more
    if hasattr(torch._dynamo.config, "recompile_limit"):
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    failures: dict[str, str] = {}
    variants = list(variants)
    steps: dict[str, Any] = {}
    results: dict[str, torch.Tensor] = {}
    for variant in tqdm(list(variants), desc="preparing", disable=not progress):
        set_tf32(variant)
        torch.manual_seed(0)
        try:
            step = step_class(variant, settings, batch_size, device)
            results[variant.name] = step().float().cpu()
        except RuntimeError as error:
            # One that a machine cannot compile, or has no memory for, shall not cost what the others show
            if variant.plain:
                raise
            failures[variant.name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            logger.warning("%s: %s", variant.name, failures[variant.name])
            variants.remove(variant)
            continue
        steps[variant.name] = step
        if part != "train":
            results[variant.name] = results[variant.name][:batch_size]
        for _ in range(3 if device.type == "cuda" else 0):
            step()
        if device.type == "cuda":
            repeats[variant.name] = max(1, round(0.2 / max(seconds(step, device, 3), 1e-5)))
    dtypes = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    stages: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in variants}
    rates: dict[str, list[float]] = {variant.precision: [] for variant in variants}
    for _ in tqdm(range(turns), desc="turns", disable=not progress):
        for precision in rates:
            set_tf32(Variant("", precision=precision))
            product, flops = matrix_product(device, dtypes[precision])
            product()
            rates[precision].append(flops / seconds(product, device, 20) / 1e9)
        for variant in variants:
            set_tf32(variant)
            times[variant.name].append(seconds(steps[variant.name], device, repeats[variant.name]))
            if part == "train":
                stages[variant.name].append(steps[variant.name].stages())
    set_tf32(Variant(""))
    medians = {name: statistics.median(values) for name, values in times.items()}
    matrix_rates = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for variant in variants:
        step, time_of_step = steps[variant.name], medians[variant.name]
        tokens = step.model.config.num_blocks * step.model.config.num_positions
        row: dict[str, Any] = {
            "variant": asdict(variant),
            "seconds": time_of_step,
            "turns": times[variant.name],
            "windows_per_second": step.batch_size / time_of_step,
            "tokens_per_second": step.batch_size * tokens / time_of_step,
            "gigaflops_per_second": step.flops / time_of_step / 1e9,
            "share_of_matrix_rate": step.flops / time_of_step / 1e9 / matrix_rates[variant.precision],
            "agreement": agreement(part, results[variant.name], results.get("plain")),
        }
        if variant.baseline in medians:
            # Turn by turn: what slows a turn down slows both down
            pairs = zip(times[variant.baseline], times[variant.name], strict=True)
            windows = step.batch_size / steps[variant.baseline].batch_size
            row["ratio"] = statistics.median(windows * theirs / ours for theirs, ours in pairs)
        if part == "train":
            names = stages[variant.name][0]
            row["stages"] = {name: statistics.median(turn[name] for turn in stages[variant.name]) for name in names}
        if with_memory and device.type == "cuda":
            set_tf32(variant)
            row["megabytes_per_window"] = gpu_memory(step, device) / step.batch_size / 1e6
        if with_kernels and device.type == "cuda":
            set_tf32(variant)
            row["kernels"] = kernel_table(step)
        rows.append(row)
    set_tf32(Variant(""))
    copied = copy_rate(device) if device.type == "cuda" else None
    del steps, step
    if with_memory and device.type != "cuda":
        for row in tqdm(rows, desc="memory", disable=not progress):
            row["megabytes_per_window"] = peak_memory(part, Variant(**row["variant"]), settings, batch_size, device)
    return {
        "part": part,
        "batch_size": batch_size,
        "settings": settings,
        "turns": turns,
        "machine": describe(device),
        "matrix_gigaflops_per_second": matrix_rates,
        "copy_gigabytes_per_second": copied,
        "failures": failures,
        "flops_per_window": forward_flops(HSSTConfig(**settings), "masked" if part == "train" else "segmentation")
        * (3 if part == "train" else 1),
        "rows": rows,
    }


def agreement(part: str, result: torch.Tensor, expected: torch.Tensor | None) -> dict[str, float]:
    """How far the first loss, or the logits, are from those of the plain reference."""
    if expected is None:
        return {}
    if part == "train":
        return {"loss": result.item(), "difference": abs(result.item() - expected.item())}
    difference = (result - expected).abs().max().item()
    return {
        "difference": difference,
        "relative_difference": difference / expected.abs().max().item(),
        "same_class": (result.argmax(1) == expected.argmax(1)).double().mean().item(),
    }


def describe(device: torch.device) -> dict[str, Any]:
    """What was measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        cpu_info = Path("/proc/cpuinfo")
        if cpu_info.is_file() and (match := re.search(r"model name\s*:\s*(.+)", cpu_info.read_text())):
            name = match.group(1)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def gpu_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that a step takes beyond what was taken before it, on a GPU."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_memory(
    part: str, variant: Variant, settings: dict[str, Any], batch_size: int, device: torch.device
) -> float | None:
    """
    Memory that a step takes beyond the model, in MB (10^6 bytes) for each window, in a process of its own; None where
    it cannot be read.
    """
    if not sys.platform.startswith("linux"):
        return None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, part, variant, settings, batch_size, str(device), torch.get_num_threads())
    process = context.Process(target=_measure_memory, args=arguments)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _measure_memory(
    sender: Any, part: str, variant: Variant, settings: dict[str, Any], batch_size: int, device: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    torch_device = torch.device(device)
    step_class = TrainingStep if part == "train" else InferenceStep
    # One window first: libraries, optimizer states and buffers of the matrix products stay
    step_class(variant, settings, 1, torch_device)()
    step = step_class(variant, settings, batch_size, torch_device)
    # The mark of the highest memory so far, set back to what is taken now
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    step()
    peak = _status_bytes("VmHWM")
    sender.send((peak - before) / step.batch_size / 1e6)


def _status_bytes(name: str) -> int:
    """A line of /proc/self/status that counts kilobytes."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{name}:\s*(\d+) kB", status, flags=re.M)
    assert match is not None
    return int(match.group(1)) * 1024


def plot_speed(path: Path, result: dict[str, Any]) -> Path:
    """Bars of windows per second, with the ratio to the baseline and the share of the rate of matrix products."""
    from matplotlib.figure import Figure

    rows = result["rows"]
    rates = [row["windows_per_second"] for row in rows]
    figure = Figure(figsize=(10.5, 0.42 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    colours = ["0.6" if row["variant"]["plain"] else "tab:blue" for row in rows]
    axes.barh(range(len(rows)), rates, color=colours, height=0.7)
    for number, row in enumerate(rows):
        ratio = f"{row['ratio']:.1f}x, " if "ratio" in row and not row["variant"]["plain"] else ""
        rate = f"{rates[number]:,.0f}" if rates[number] >= 1000 else f"{rates[number]:,.1f}"
        text = f" {rate} ({ratio}{row['share_of_matrix_rate']:.0%} of matrix rate)"
        axes.text(rates[number], number, text, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["variant"]["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.65 * max(rates))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("windows per second (8x8 pixels, 200 bands)" if not result["settings"] else "windows per second")
    what = "Masked pre-training" if result["part"] == "train" else "Land-cover inference"
    machine = result["machine"]
    factors = {row["variant"].get("batch_factor", 1) for row in rows}
    batches = " or ".join(f"{result['batch_size'] * factor:,}" for factor in sorted(factors))
    axes.set_title(f"{what}, batches of {batches}: {machine['device']}, {machine['threads']} threads", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
