"""The layers of a model: their names, and which tensors feed which layer."""

import copy
import difflib
import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from vitcompress.errors import InputError
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
    """All float Linear layers by name, in the order of the module."""
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def quantized_linears(module: nn.Module) -> dict[str, QuantizedLinear]:
    """All quantized Linear layers by name, in the order of the module."""
    return {name: m for name, m in module.named_modules() if isinstance(m, QuantizedLinear)}


def match(
    patterns: Iterable[str], names: Sequence[str], key: str, quantized: Collection[str] = ()
) -> list[str]:
    """The `names` that any pattern selects, in their order.

    A pattern is a shell pattern (`blocks.*.mlp.fc1`) or, after `re:`, a regular expression for the
    whole name. Raises `InputError` naming `key` for a pattern that selects nothing; where it would
    select layers that are `quantized` already, the message says so.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        is_regex = pattern.startswith("re:")
        try:
            test = re.compile(pattern[3:] if is_regex else fnmatch.translate(pattern))
        except re.error as error:
            raise InputError(f"{key}: {pattern!r} is no regular expression: {error}") from error
        found = [name for name in names if test.fullmatch(name)]
        if not found and any(test.fullmatch(name) for name in quantized):
            raise InputError(
                f"{key}: the layers of {pattern!r} are quantized already; name others, or put the "
                "stage before the one that quantizes"
            )
        if not found:
            near = difflib.get_close_matches(pattern, names, 3, 0.0)
            raise InputError(f"{key}: {pattern!r} matches no layer; nearest: {', '.join(near)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def block_of(module: nn.Module, name: str) -> Block | None:
    """The block that the layer `name` belongs to: blocks.3 for blocks.3.attn.qkv."""
    parts = name.split(".")
    block = module.get_submodule(".".join(parts[:-2]))
    return block if isinstance(block, Block) else None


def hidden_source(module: nn.Module, name: str) -> str | None:
    """The Linear whose outputs, each by itself, become the inputs of the Linear `name`: fc1 of fc2.

    The order of these outputs is of no account: both layers may be reordered together. None where
    something between mixes them, or another layer reads them.
    """
    owner, _, kind = name.rpartition(".")
    mlp: Any = module.get_submodule(owner)
    plain = type(mlp).__name__ == "Mlp" and kind == "fc2" and isinstance(mlp.norm, nn.Identity)
    return f"{owner}.fc1" if plain and isinstance(mlp.fc1, nn.Linear) else None


def input_fold(module: nn.Module, name: str) -> Callable[[Tensor, Tensor], None] | None:
    """How the input channels of the Linear `name` can be shifted and scaled without a trace.

    Returns a function of (shift, scale), both [in], that changes the tensors feeding the layer, so
    that its input x becomes (x − shift) / scale, and the layer itself, so that its output stays;
    or None where something between forbids it. Three kinds of input allow it: those of qkv and fc1
    follow a LayerNorm, that of proj is a mixture of values with weights that sum to one.
    """
    block: Any = block_of(module, name)
    if block is None:
        return None
    kind = name.rpartition(".")[2]
    layer: Any = module.get_submodule(name)
    attention = block.attn
    plain = attention is not None and attention.gate is None
    if kind == "qkv" and plain:
        return _norm_fold(block.norm1, layer)
    if kind == "fc1" and type(block.mlp).__name__ in ("Mlp", "GatedMlp"):
        return _norm_fold(block.norm2, layer)
    if kind == "proj" and plain and isinstance(attention.norm, nn.Identity):
        return _value_fold(attention.qkv, layer)
    return None


def _norm_fold(norm: Any, layer: nn.Linear) -> Callable[[Tensor, Tensor], None] | None:
    if not (isinstance(norm, nn.LayerNorm) and norm.bias is not None):
        return None

    def fold(shift: Tensor, scale: Tensor) -> None:
        norm.bias.copy_((norm.bias - shift) / scale)
        norm.weight.div_(scale)
        _absorb(layer, shift, scale)

    return fold


def _value_fold(qkv: Any, layer: nn.Linear) -> Callable[[Tensor, Tensor], None] | None:
    if not isinstance(qkv, nn.Linear) or qkv.bias is None:
        return None

    def fold(shift: Tensor, scale: Tensor) -> None:
        qkv.bias[-len(scale) :].sub_(shift).div_(scale)
        qkv.weight[-len(scale) :].div_(scale[:, None])
        _absorb(layer, shift, scale)

    return fold


def _absorb(layer: nn.Linear, shift: Tensor, scale: Tensor) -> None:
    """Change `layer` so that on (x − shift) / scale it gives what it gave on x."""
    offset = layer.weight @ shift
    if cast(Tensor | None, layer.bias) is None:
        layer.bias = nn.Parameter(torch.zeros_like(offset), requires_grad=False)
    layer.bias.add_(offset)
    layer.weight.mul_(scale)
