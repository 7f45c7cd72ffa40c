"""The layers of a model, by name."""

import copy
from typing import TypeVar

import torch
from torch import nn

from vitcompress.model.families import anatomy_of
from vitcompress.model.folds import Fold
from vitcompress.model.layers import Block, QuantizedLinear

_Module = TypeVar("_Module", bound=nn.Module)


def placed(module: _Module, device: torch.device) -> _Module:
    """`module` itself where it is on `device`, else a copy there."""
    if all(tensor.device.type == device.type for tensor in module.state_dict().values()):
        return module
    return copy.deepcopy(module).to(device)


def float_twin(module: nn.Module) -> nn.Module:
    """A copy of `module` whose quantized layers are float layers of the same weights."""
    twin = copy.deepcopy(module)
    for name, layer in quantized_linears(twin).items():
        twin.set_submodule(name, layer.dequantized())
    return twin


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """As `Anatomy.linears`."""
    return anatomy_of(module).linears()


def quantized_linears(module: nn.Module) -> dict[str, QuantizedLinear]:
    """As `Anatomy.quantized`."""
    return {name: m for name, m in module.named_modules() if isinstance(m, QuantizedLinear)}


def block_of(module: nn.Module, name: str) -> Block | None:
    """The block that the layer `name` belongs to: blocks.3 for blocks.3.attn.qkv."""
    site = anatomy_of(module).site_of(name)
    return None if site is None else site.block


def hidden_source(module: nn.Module, name: str) -> str | None:
    """As `Anatomy.hidden_source`."""
    return anatomy_of(module).hidden_source(name)


def input_fold(module: nn.Module, name: str) -> Fold | None:
    """As `Anatomy.input_fold`."""
    return anatomy_of(module).input_fold(name)
