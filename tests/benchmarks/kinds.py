"""Models of every kind that is exported, made in a moment: their weights are drawn, not trained."""

import copy
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch

from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import STAGE as MERGE
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import STAGE as PRUNE
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.describe import with_layers
from vitcompress.stages.quantize.rounding import Lattice
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.stage import STAGE as SPARSIFY
from vitcompress.terms import Activations

ALL_LAYERS = ("patch_embed", "blocks", "head")


def quantized(
    model: VitModel,
    bits: int,
    activations: Activations = "static",
    terms: Literal[1, 2] = 1,
    residual_tokens: int | None = None,
    group: int | None = None,
    layers: Collection[str] = ("blocks",),
    codebook: str = "uniform",
) -> VitModel:
    """The model with the layers in these parts of it in integers."""
    found = dict[str, QuantizedLinear]()
    for name, linear in model.anatomy.linears().items():
        part = name.partition(".")[0]
        if part not in layers:
            continue
        few = residual_tokens if part == "blocks" else None
        squares = torch.ones(linear.in_features)
        lattice = Lattice.of(linear.weight, squares, bits, group, codebook)
        layer = QuantizedLinear(
            *(linear.in_features, linear.out_features, bits, activations),
            *(terms, few, lattice.group),
        )
        layer.levels = lattice.levels
        layer.codes = quantizer.pack_weight(lattice.nearest(linear.weight), lattice.levels)
        layer.scale, layer.bias = lattice.scale, linear.bias.detach().clone()
        if lattice.multipliers is not None:
            layer.multipliers = quantizer.pack_multipliers(lattice.multipliers)
        if activations == "static":
            layer.activation_scale = torch.tensor(0.05)
            layer.activation_zero_point = torch.tensor(120, dtype=torch.uint8)
        found[name] = layer
    return with_layers(model, copy.deepcopy(model.module), found, QuantizeConfig())


def merged(model: VitModel) -> VitModel:
    config = MergeConfig.model_validate({"name": "m", "method": "tome", "budget": {"macs": 0.5}})
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


def _integers(model: VitModel, bits: int, group: int | None = None) -> VitModel:
    return quantized(model, bits, group=group, layers=ALL_LAYERS)


KINDS: dict[str, Callable[[VitModel], VitModel]] = {
    "float": lambda model: model,
    "pruned": pruned,
    "merged": merged,
    "sparse 2:4": sparse,
    "8 bits": lambda model: _integers(model, 8),
    "7 bits": lambda model: _integers(model, 7),
    "4 bits": lambda model: _integers(model, 4, 24),
    "all": lambda model: _integers(sparse(merged(pruned(model))), 4, 24),
}
"""By name, what makes a dense model one of the kind; "all" is pruned, merged, sparse and 4 bits."""
