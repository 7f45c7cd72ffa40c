"""What a branch of given sizes costs: multiply-accumulates, parameters, bytes or nanoseconds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from vitcompress.measure import cost
from vitcompress.measure.branches import LatencyTable
from vitcompress.model.architecture import VitModel, unfilled
from vitcompress.model.embedding import embedding_width
from vitcompress.model.sizes import AttentionSizes, BlockSizes, blocks, gates, sizes_of
from vitcompress.stages.prune.config import Unit
from vitcompress.stages.prune.statistics import Branch

_NANOSECONDS = 1e6  # a millisecond: budgets are spent in whole units


@dataclass(frozen=True)
class Tokens:
    """Tokens that enter a block, and that leave its attention."""

    entering: int
    leaving: int


@dataclass(frozen=True)
class Meter:
    """Costs of a model: `branch` tells that of one branch with the sizes of its block.

    `whole`: of the dense model that budgets refer to. `fixed`: of all that is no branch.
    """

    branch: Callable[[Branch, BlockSizes], float]
    whole: float
    fixed: float


def meter(model: VitModel, unit: Unit, table: LatencyTable) -> Meter:
    """How `model` is to be measured in `unit`.

    Latencies that are not in `table` are taken now, and put there.
    """
    baseline = unfilled(model)
    if unit == "latency":
        dense_width, width = _width(baseline), _width(model)

        def nanoseconds(model: VitModel) -> Callable[[Branch, BlockSizes], float]:
            seen = tokens(model)
            return lambda branch, sizes: (
                _NANOSECONDS
                * table.branch(
                    _width(model),
                    seen[branch[0]].entering,
                    seen[branch[0]].leaving,
                    _timed(model, branch, sizes),
                    dense_width,
                )
            )

        branches = _sum(baseline, nanoseconds(baseline))
        rest = _NANOSECONDS * table.rest(baseline, branches / _NANOSECONDS)
        # What is no branch, the patch embedding and the head, is in proportion to the width.
        return Meter(nanoseconds(model), branches + rest, rest * width / dense_width)
    if unit == "macs":
        seen = tokens(model)
        return _counted(model, baseline, cost.macs, lambda b, s: _macs(model, seen[b[0]], b, s))
    each = 4 if unit == "bytes" else 1
    return _counted(
        model,
        baseline,
        lambda of: each * cost.parameters(of.module),
        lambda branch, sizes: each * _parameters(model, branch, sizes),
    )


def _counted(
    model: VitModel,
    baseline: VitModel,
    total: Callable[[VitModel], int],
    branch: Callable[[Branch, BlockSizes], float],
) -> Meter:
    return Meter(branch, total(baseline), total(model) - _sum(model, branch))


def _sum(model: VitModel, branch: Callable[[Branch, BlockSizes], float]) -> float:
    return sum(
        branch((number, part), sizes_of(block))
        for number, block in enumerate(blocks(model.module))
        for part in ("attn", "mlp")
    )


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


def _part(branch: Branch, sizes: BlockSizes) -> AttentionSizes | int | None:
    return sizes.attention if branch[1] == "attn" else sizes.hidden


def _timed(model: VitModel, branch: Branch, sizes: BlockSizes) -> AttentionSizes | int | None:
    """What is timed for a branch: where hidden units are gated, a plain MLP of as much work."""
    part = _part(branch, sizes)
    return _matrices(model, branch) * part // 2 if isinstance(part, int) else part


def _matrices(model: VitModel, branch: Branch) -> int:
    """How many matrices of [hidden, width] an MLP has."""
    return 2 + gates(blocks(model.module)[branch[0]])


def _width(model: VitModel) -> int:
    return embedding_width(model.module)


def _macs(model: VitModel, at: Tokens, branch: Branch, sizes: BlockSizes) -> float:
    part, width = _part(branch, sizes), _width(model)
    if part is None:
        return 0
    if isinstance(part, int):
        return _matrices(model, branch) * at.leaving * width * part
    linear = at.entering * sum(part.widths) + at.leaving * part.widths[2]
    return linear * width + at.leaving * at.entering * sum(part.widths[1:])


def _parameters(model: VitModel, branch: Branch, sizes: BlockSizes) -> float:
    part, width = _part(branch, sizes), _width(model)
    if part is None:
        return 0
    if isinstance(part, int):
        matrices = _matrices(model, branch)
        return part * (matrices * width + matrices - 1) + width + 2 * width
    return sum(part.widths) * (width + 1) + (part.widths[2] + 1) * width + 2 * width
