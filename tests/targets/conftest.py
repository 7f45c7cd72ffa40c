"""Tiny models of every kind that is exported."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import STAGE as MERGE
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import STAGE as PRUNE
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.stage import STAGE as SPARSIFY
from vitcompress.terms import Activations

MakeVit = Callable[..., VitModel]


def quantized(
    model: VitModel,
    bits: int,
    activations: Activations = "static",
    terms: Literal[1, 2] = 1,
    residual_tokens: int | None = None,
    group: int | None = None,
    head: bool = False,
) -> VitModel:
    """The model with all layers of its blocks in integers, and its head if wanted (in place)."""
    for name, linear in model.anatomy.linears().items():
        in_blocks = name.startswith("blocks.")
        if not in_blocks and not (head and name == "head"):
            continue
        sizes = linear.in_features, linear.out_features
        few = residual_tokens if in_blocks else None
        layer = QuantizedLinear(*sizes, bits, activations, terms, few, group)
        scale, multipliers = quantizer.weight_scale(linear.weight, bits, None, group)
        step = quantizer.weight_step(scale, multipliers, group, linear.in_features)
        codes = quantizer.round_weight(linear.weight, step, bits)
        layer.codes, layer.scale = quantizer.pack_weight(codes, bits), scale
        layer.bias = linear.bias.detach().clone()
        if multipliers is not None:
            layer.multipliers = quantizer.pack_multipliers(multipliers)
        if activations == "static":
            layer.activation_scale = torch.tensor(0.05)
            layer.activation_zero_point = torch.tensor(120, dtype=torch.uint8)
        model.module.set_submodule(name, layer)
    return model


def merged(model: VitModel) -> VitModel:
    config = MergeConfig.model_validate({"name": "m", "method": "tome", "budget": {"macs": 0.8}})
    return MERGE.plan(model, config).model


def pruned(model: VitModel) -> VitModel:
    config = PruneConfig.model_validate({"name": "p", "budget": {"macs": 0.7}})
    planned = PRUNE.plan(model, config).model
    generator = torch.Generator().manual_seed(0)
    for parameter in planned.module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return planned


def sparse(model: VitModel) -> VitModel:
    told: dict[str, Any] = {"name": "s", "layers": ["*mlp*"], "pattern": "2:4"}
    return SPARSIFY.plan(model, SparsifyConfig.model_validate(told)).model


KINDS: dict[str, Callable[[MakeVit], VitModel]] = {
    "float": lambda make: make(),
    "8 bits in two terms": lambda make: quantized(make(), 8, terms=2, residual_tokens=1),
    "7 bits": lambda make: quantized(make(), 7, head=True),
    "7 bits in two terms": lambda make: quantized(make(), 7, terms=2, residual_tokens=1, head=True),
    "4 bits in groups": lambda make: quantized(make(), 4, group=32),
    "3 bits, dynamic": lambda make: quantized(make(), 3, "dynamic"),
    "rotary": lambda make: make("eva02_tiny_patch14_224"),
    "merged": lambda make: merged(make(depth=3)),
    "merged, 7 bits": lambda make: quantized(merged(make(depth=3)), 7),
    "pruned": lambda make: pruned(make()),
    "sparse": lambda make: sparse(make()),
    "sparse, 4 bits": lambda make: quantized(sparse(make()), 4),
}


@pytest.fixture
def model_of(make_vit: MakeVit) -> Callable[[str], VitModel]:
    """A function that returns a new model of one of the kinds above."""
    return lambda kind: KINDS[kind](make_vit)
