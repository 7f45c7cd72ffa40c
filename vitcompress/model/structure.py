"""Copies of a module: on another device, and in float."""

from typing import TypeVar

import torch
from torch import nn

from vitcompress.memory import copied
from vitcompress.model.families import anatomy_of

_Module = TypeVar("_Module", bound=nn.Module)


def placed(module: _Module, device: torch.device) -> _Module:
    """`module` itself where it is on `device`, else a copy there."""
    if all(tensor.device.type == device.type for tensor in module.state_dict().values()):
        return module
    return copied(module).to(device)


def float_twin(module: nn.Module) -> nn.Module:
    """A copy of `module` whose quantized layers are float layers of the same weights."""
    twin = copied(module)
    for name, layer in anatomy_of(twin).quantized().items():
        twin.set_submodule(name, layer.dequantized())
    return twin
