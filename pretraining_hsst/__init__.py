"""Masked pre-training on tiles that are plain tensors: needs torch, transformers and safetensors only."""
