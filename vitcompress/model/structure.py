"""Copies of a module: on another device, in float, and of shapes alone."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

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


def run_on_shapes(module: nn.Module, pixels: Tensor) -> Tensor:
    """What `module`, wherever its tensors are, makes of `pixels`, which are on the device `meta`:
    shapes alone; nothing is computed."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    found: Tensor = functional_call(module, shapes, pixels)
    return found
