"""What a structure costs a unit: multiply-accumulates or parameters, from the sizes of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from vitcompress.measure import cost
from vitcompress.model.architecture import Architecture, VitModel, build
from vitcompress.model.sizes import Kind, blocks, sizes_of
from vitcompress.stages.pruning.structures import Axis

Unit = Literal["macs", "params", "bytes"]


@dataclass(frozen=True)
class Tokens:
    """Tokens that enter a block, and that leave its attention."""

    entering: int
    leaving: int


def tokens(model: VitModel) -> list[Tokens]:
    """The tokens in each block, seen in a pass of one empty image."""
    seen: list[Tokens] = []

    def after(block: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(Tokens(args[0].shape[1], output.shape[1]))

    handles = [block.register_forward_hook(after) for block in blocks(model.module)]
    device = next(model.module.parameters()).device
    with torch.inference_mode():
        size = model.preprocess.input_size
        model.module(torch.zeros(1, model.preprocess.channels, *size, device=device))
    for handle in handles:
        handle.remove()
    return seen


def baseline(model: VitModel) -> VitModel:
    """The dense model of the same architecture, tensors not filled in: what budgets refer to."""
    dense = Architecture(timm=model.architecture.timm, options=model.architecture.options)
    return VitModel(build(dense), dense, model.preprocess)


def total(model: VitModel, unit: Unit) -> float:
    """MACs, parameters or bytes of the tensors of `model`."""
    if unit == "macs":
        return cost.macs(model)
    if unit == "params":
        return cost.parameters(model.module)
    return float(sum(t.nbytes for t in model.module.state_dict().values()))


def meter(model: VitModel, unit: Unit) -> Callable[[Axis], np.ndarray]:
    """A function that tells, for each size of an axis, what the structure costs."""
    seen = tokens(model) if unit == "macs" else []
    all_sizes = [sizes_of(block) for block in blocks(model.module)]

    def each(number: int, kind: Kind) -> float:
        block = cast(Any, blocks(model.module)[number])
        attention = all_sizes[number].attention
        heads = 1 if attention is None else attention.heads
        width = int((block.attn.qkv if kind != "hidden" else block.mlp.fc1).in_features)
        if unit != "macs":
            bytes_each = 4 if unit == "bytes" else 1
            counts = {
                "query_key": 2 * heads * (width + 1),
                "value": heads * (2 * width + 1),
                "hidden": 2 * width + 1,
            }
            return bytes_each * counts[kind]
        at = seen[number]
        products = at.leaving * at.entering
        macs = {
            "query_key": heads * (2 * at.entering * width + products),
            "value": heads * (at.entering * width + products + at.leaving * width),
            "hidden": 2 * at.leaving * width,
        }
        return macs[kind]

    return lambda axis: each(axis.block, axis.kind) * np.array(axis.sizes, dtype=float)
