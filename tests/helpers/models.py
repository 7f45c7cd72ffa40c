"""What several tests ask of a tiny model."""

from typing import Any

import torch
from torch import Tensor, nn

from vitcompress.model.architecture import (
    Architecture,
    VitModel,
    build,
    load_tensors,
    stored_tensors,
)
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.context import Context

# The linear layers of its blocks.
BLOCKS = [
    f"blocks.{i}.{kind}"
    for i in range(2)
    for kind in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]

# What makes a windowed one of the options of a plain one.
WINDOWED: dict[str, Any] = {
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 16,
    "depth": None,
    "depths": (2, 1),
    "num_heads": (2, 4),
}


def images_of(context: Context) -> Tensor:
    """All images that stages calibrate on, prepared, [N, C, H, W]."""
    return torch.cat(list(context.calibration_batches("")))


def kl(dense: nn.Module, other: nn.Module, pixels: Tensor) -> float:
    """What `other` has lost, as the mean Kullback-Leibler divergence of its classes in nats."""
    before, after = (module(pixels).log_softmax(-1) for module in (dense, other))
    return float((before.exp() * (before - after)).sum(-1).mean())


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLinear]:
    return {n: m for n, m in module.named_modules() if isinstance(m, QuantizedLinear)}


def rebuilt(model: VitModel) -> nn.Module:
    """The module made anew from its description as text, with the tensors of its file."""
    text = model.architecture.model_dump_json()
    module = build(Architecture.model_validate_json(text))
    load_tensors(module, model.architecture, stored_tensors(model))
    return module
