"""The one switch that lets a model compute its layers in faster ways, and what they are asked before each call."""

from typing import Any, TypeVar

import torch
from torch import nn
from transformers.utils import logging

from ..modeling_hsst import HSSTMLP, HSSTAttention, HSSTEmbeddings, HSSTLayer
from .cpu_layer import FastDropout, folded_layer, folds_layer
from .gpu_attention import ShortAttention
from .gpu_layer import FastLayerNorm, fused_layer, fuses_layer

logger = logging.get_logger(__name__)

Model = TypeVar("Model", bound=nn.Module)


class FastLayer(HSSTLayer):
    """A layer that is computed as a whole wherever a call allows it, and otherwise as its class has it."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        num_blocks: int,
        places: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        tokens = hidden_states.unflatten(1, (num_blocks, -1))  # (B, N, P, D)
        # Attention weights are what other implementations return; they are also how a user asks for one of these
        if self.attention.config._attn_implementation == "sdpa" and not kwargs.get("output_attentions"):
            shares_places = places is None or places.shape[:2] == (1, 1)
            if attention_mask is None and shares_places and fuses_layer(self, tokens) and obstacle(self) is None:
                return fused_layer(self, tokens, places).flatten(1, 2)
            if folds_layer(self, tokens) and obstacle(self) is None:
                return folded_layer(self, tokens, attention_mask, places).flatten(1, 2)
        return super().forward(hidden_states, attention_mask, num_blocks=num_blocks, places=places, **kwargs)


# Tools that share a model out among devices look for its layers by the name of their class
FastLayer.__name__ = HSSTLayer.__name__


def use_fast_layers(model: Model) -> Model:
    """
    Lets a model compute its layers in the fast ways of this package: as a whole, from the cache, on CPUs (training and
    inference); in kernels of Triton on GPUs. Results differ from those of the usual form by rounding. Weights and
    their names stay as they are. Returns the same model.

    Each call decides: what a fast way does not serve (`attn_implementation` other than `"sdpa"`, attention weights as
    output, `torch.compile` on a CPU, ...) takes the usual form. So does a layer as long as hooks, adapters or
    quantization work on its modules, whether they came before the switch or after it. What stands in the way of layers
    now is logged.
    """
    for module in model.modules():
        if isinstance(module, HSSTEmbeddings):
            switch(module.patch_embeddings.layernorm_before, nn.LayerNorm, FastLayerNorm)
            switch(module.dropout, nn.Dropout, FastDropout)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, HSSTLayer)}
    obstacles = {}
    for name, layer in layers.items():
        for dropout in (layer.dropout, layer.mlp.dropout):
            switch(dropout, nn.Dropout, FastDropout)
        switch(layer.attention, HSSTAttention, ShortAttention)
        switch(layer, HSSTLayer, FastLayer)
        found = obstacle(layer) if type(layer) is FastLayer else f"it is a {type(layer).__name__}"
        if found is not None:
            obstacles[name] = found
    if not layers:
        logger.warning(f"Found no layers of {HSSTLayer.__module__} to make faster in this {type(model).__name__}.")
    elif obstacles:
        name, found = next(iter(obstacles.items()))
        logger.warning(
            f"{len(obstacles)} of {len(layers)} layers are computed in the usual form for now; {name}: {found}."
        )
    return model


def switch(module: nn.Module, kind: type[nn.Module], fast: type[nn.Module]) -> None:
    """Makes a module of a class, not of one derived from it, compute in the way of another with the same weights."""
    if type(module) is kind:
        module.__class__ = fast


def obstacle(layer: Any) -> str | None:
    """
    Why a layer cannot be computed as a whole: its modules do more than their classes say when they are called. None
    where nothing stands in the way. Asked at each call, since hooks and adapters come and go.
    """
    attention, mlp = layer.attention, layer.mlp
    for name, module, kind in (
        ("attention", attention, ShortAttention),
        ("attention.qkv_proj", attention.qkv_proj, nn.Linear),
        ("attention.o_proj", attention.o_proj, nn.Linear),
        ("layernorm_before", layer.layernorm_before, nn.LayerNorm),
        ("layernorm_after", layer.layernorm_after, nn.LayerNorm),
        ("mlp", mlp, HSSTMLP),
        ("mlp.fc1", mlp.fc1, nn.Linear),
        ("mlp.fc2", mlp.fc2, nn.Linear),
        ("mlp.activation_fn", mlp.activation_fn, type(mlp.activation_fn)),
        ("mlp.dropout", mlp.dropout, FastDropout),
        ("dropout", layer.dropout, FastDropout),
    ):
        if not is_plain(module, kind):
            return f"{name} is not a plain {kind.__name__}, or has hooks"
    if attention.qkv_proj.bias is not None:
        return "queries, keys and values have a bias"
    # Fast ways give no gradients of an activation's own weights
    if next(mlp.activation_fn.parameters(), None) is not None:
        return "its activation has weights"
    return None


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module, forwards and backwards, does nothing but what its class says."""
    # Hooks of accelerate stand in for `forward`
    if type(module) is not kind or hasattr(module, "_hf_hook") or "forward" in vars(module):
        return False
    if module._forward_pre_hooks or module._backward_pre_hooks or module._backward_hooks:
        return False
    # Recorders of attention weights, which transformers leaves in place, have nothing to record here
    names = [getattr(hook, "__name__", "") for hook in module._forward_hooks.values()]
    return all(name == "output_capturing_hook" for name in names)


__all__ = ["use_fast_layers"]
