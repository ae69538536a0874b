"""
Faster ways to compute the layers of HSST, which `use_fast_layers` switches on: whole layers from the cache on CPUs,
kernels of Triton on GPUs. Nothing else in the package imports them.
"""

from .switch import use_fast_layers

__all__ = ["use_fast_layers"]
