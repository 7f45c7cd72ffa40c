"""Search how many tokens each block should keep, judged by the KL from the dense model.

What a merge in one block alone costs gives, by dynamic programming, a first schedule; it and the
known shapes are candidates. The best is then refined: a step goes to the next block or the one
before, then the share that one block keeps is changed, in either case those of the blocks after it
scaled so that the cost stays, and the change is kept where the model comes closer to the dense one.
Merging takes time that multiply-accumulates do not count, so a step has to be worth it (`_STEP`).
A quarter of the images is held back to choose among the candidates in the end.

Schedules are compared by the mean square root of the KL: of the KL itself a few images would
decide. A change that is clearly worse on the first images is not tried on the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress.console import track
from vitcompress.details import Row, Table
from vitcompress.errors import InputError
from vitcompress.methods import schedule as schedules
from vitcompress.methods.readers import ReaderStatistics, normalised
from vitcompress.methods.saliency import fisher_readout
from vitcompress.model.anatomy import State
from vitcompress.model.architecture import merging_blocks
from vitcompress.stages.cache import Kind
from vitcompress.stages.context import BATCH, Context
from vitcompress.stages.merge.scheduling import Found, Schedule, Scheduling

_SCHEDULE = Kind(
    "schedule",
    version=4,  # of search and operators
    dump=lambda found: found.model_dump_json().encode(),
    load=Found.model_validate_json,
)
_SHARES = (0.95, 0.8, 0.6)  # kept in one block, to measure what that costs
_PROBED = 32  # images for that
_MOVES = (0.16, 0.08, 0.04)  # sizes of a change, as logarithms of the share kept
_PASSES = 3  # over all changes, at most
# How much closer, as a share of the distance, a step must bring the model to the dense one. On
# deit_tiny a step takes about 1 % of the time, for which 1 % less multiply-accumulates cost 7 %.
_STEP = 0.06
_GRID = 48  # counts that the dynamic programme chooses from


@dataclass
class _Images:
    """Embedded images and the dense log-probabilities, in batches; judges schedules.

    The states before each block of the incumbent are kept, so that another schedule is computed
    only from the first block where it differs.
    """

    scheduling: Scheduling
    readers: Mapping[str, Tensor]
    start: list[Tensor]
    dense: list[Tensor]

    def __post_init__(self) -> None:
        self.incumbent: Schedule = ()
        self.states = [[State(x)] for x in self.start]

    def distances(
        self, kept: Schedule, rival: Tensor | None = None, keep_states: bool = False
    ) -> Tensor | None:
        """√KL(dense ‖ merged) of each image, in nats^½; with `keep_states` as the new incumbent.

        None as soon as it is clear that the mean is above that of `rival`, the distances of another
        schedule: by more than its standard error, from the second batch on.
        """
        vit: Any = self.scheduling.model.module
        blocks = merging_blocks(vit, self.scheduling.merging_to(kept))
        blocks.fill(self.readers)
        same = 0
        while same < len(self.incumbent) and self.incumbent[same] == kept[same]:
            same += 1
        found: list[Tensor] = []
        for batch, dense in enumerate(self.dense):
            states = self.states[batch][: min(same + 1, len(kept))]
            for number in range(len(states) - 1, len(kept)):
                states.append(blocks.advance(number, states[-1]))
            logits = vit.forward_head(vit.norm(blocks.restored(states[-1])))
            kl = F.kl_div(logits.log_softmax(-1), dense, reduction="none", log_target=True).sum(-1)
            found.append(kl.clamp_min(0).sqrt())
            if keep_states:
                self.states[batch] = states[:-1]
            if rival is not None and len(found) > 1:
                so_far = torch.cat(found)
                worse = so_far - rival[: len(so_far)]
                if worse.mean() > worse.std() / len(worse) ** 0.5:
                    return None
        if keep_states:
            self.incumbent = kept
        return torch.cat(found)

    def judged(self, kept: Schedule, keep_states: bool = False) -> Tensor:
        return cast(Tensor, self.distances(kept, keep_states=keep_states))

    def split(self, first: int) -> tuple["_Images", "_Images"]:
        """The first so many batches, and the others."""
        return (
            _Images(self.scheduling, self.readers, self.start[:first], self.dense[:first]),
            _Images(self.scheduling, self.readers, self.start[first:], self.dense[first:]),
        )


def _images(
    scheduling: Scheduling, context: Context, images: int, tensors: Mapping[str, Tensor]
) -> _Images:
    """Up to `images` calibration images, in four batches or more, so that some can be held back."""
    vit: Any = scheduling.model.module
    pixels = torch.cat(list(context.calibration_batches("reading images", images)))
    parts = pixels.split(min(BATCH, max(1, len(pixels) // 4)))
    start: list[Tensor] = []
    handle = vit.blocks[0].register_forward_pre_hook(lambda _, inputs: start.append(inputs[0]))
    try:
        dense = [vit(part.to(context.device)).log_softmax(-1) for part in parts]
    finally:
        handle.remove()
    return _Images(scheduling, tensors, start, dense)


def readers(scheduling: Scheduling, context: Context, images: int) -> dict[str, Tensor]:
    """The tensors that `fisher` reads tokens with, by name; none for other methods.

    One backward pass through the unmerged model, of its own Fisher information.
    """
    if scheduling.merging.method != "fisher":
        return {}
    vit: Any = scheduling.model.module
    blocks = list(vit.blocks)[: scheduling.blocks]
    statistics = [ReaderStatistics(block.attn.qkv.in_features) for block in blocks]
    generator = torch.Generator().manual_seed(context.seed)
    seen: list[Tensor] = []
    handles = [
        block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for block in blocks
    ]
    try:
        for pixels in context.calibration_batches("measuring gradients", images):
            seen.clear()
            with torch.enable_grad():
                logits = vit(pixels.to(context.device).requires_grad_())
                loss = (logits * fisher_readout(logits, generator)).sum()
                gradients = torch.autograd.grad(loss, seen)
            for found, x, gradient in zip(statistics, seen, gradients, strict=True):
                patches = x.detach()[:, scheduling.prefix :].cpu()
                found.update(normalised(patches), gradient[:, scheduling.prefix :].cpu())
    finally:
        for handle in handles:
            handle.remove()
    rank = scheduling.merging.rank
    return {f"reader_{i}": s.solve(rank).to(context.device) for i, s in enumerate(statistics)}


@torch.no_grad()
def sensitivities(scheduling: Scheduling, context: Context, images: int) -> Table:
    """By block and share of tokens kept there alone: KL(dense ‖ merged) in nats."""
    tensors = readers(scheduling, context, images)
    probed = _images(scheduling, context, min(images, _PROBED), tensors)
    return _table(_losses(scheduling, probed))


Losses = list[dict[float, float]]
"""By block, and by share of the tokens kept in it alone: KL(dense ‖ merged) in nats."""


def _losses(scheduling: Scheduling, images: _Images) -> Losses:
    full = (scheduling.tokens,) * scheduling.all_blocks
    images.judged(full, keep_states=True)
    losses = []
    for block in track(range(scheduling.blocks), "measuring blocks", scheduling.blocks):
        curve = {}
        for share in _SHARES:
            kept = max(scheduling.fewest(scheduling.tokens), round(share * scheduling.tokens))
            tail = (kept,) * (scheduling.all_blocks - block)
            curve[share] = _kl(images.judged((*full[:block], *tail)))
        losses.append(curve)
    return losses


def _table(losses: Losses) -> Table:
    rows: list[Row] = [
        {"block": f"blocks.{block}", **{f"kl_at_{s:.0%}": kl for s, kl in curve.items()}}
        for block, curve in enumerate(losses)
    ]
    return Table.of("sensitivities", rows, charted=("kl_at_80%",))


@torch.no_grad()
def search(
    scheduling: Scheduling, context: Context, images: int, tensors: Mapping[str, Tensor]
) -> Found:
    """The schedule closest to the dense model within the budget, and what was tried.

    `tensors`: those of `readers`.

    Kept in the cache by the content of model and images. Raises `InputError` where no schedule
    meets the budget, and where no image can be held back.
    """
    candidates = {"constant": scheduling.shaped("constant")}
    for name in schedules.SHAPES:
        if scheduling.cost(kept := scheduling.fitted(name)) <= scheduling.limit:
            candidates[name] = kept
    identity = [scheduling.model.fingerprint(), context.calibration_fingerprint, context.seed]
    identity += [images, scheduling.merging.model_dump_json(), scheduling.unit, scheduling.limit]
    identity += [_SHARES, _PROBED, _MOVES, _PASSES, _STEP, _GRID]
    if (known := context.cache.get(_SCHEDULE, identity)) is not None:
        return known
    everything = _images(scheduling, context, images, tensors)
    batches = len(everything.dense)
    if batches < 4:
        raise InputError(
            f"{scheduling.where}.schedule: a search needs at least 4 calibration images that can "
            "be read; give more, or take `published`"
        )
    found = _searched(scheduling, everything, candidates)
    context.cache.put(_SCHEDULE, identity, found)
    return found


def _searched(
    scheduling: Scheduling, everything: _Images, candidates: dict[str, Schedule]
) -> Found:
    """The best of `candidates`, of what sensitivities suggest and of what refining finds."""
    searched, held_back = everything.split(len(everything.dense) * 3 // 4)
    losses = _losses(scheduling, searched.split(_PROBED // len(everything.dense[0]))[0])
    programmed = _programmed(scheduling, losses)
    if scheduling.cost(programmed) <= scheduling.limit:
        candidates["dynamic programme"] = programmed
    scores = {name: searched.judged(kept) for name, kept in candidates.items()}
    best = min(scores, key=lambda name: _priced(scheduling, candidates[name], scores[name]))
    refined = _refined(scheduling, searched, candidates[best])
    candidates["refined"], scores["refined"] = refined
    judged = {name: held_back.judged(kept) for name, kept in candidates.items()}
    chosen = min(judged, key=lambda name: _priced(scheduling, candidates[name], judged[name]))
    rows: list[Row] = [
        {
            "candidate": name,
            "steps": _steps(scheduling, kept),
            f"{scheduling.unit}_ratio": scheduling.cost(kept) / scheduling.dense,
            "search_kl": _kl(scores[name]),
            "held_back_kl": _kl(judged[name]),
            "search_root_kl": float(scores[name].mean()),
            "held_back_root_kl": float(judged[name].mean()),
        }
        for name, kept in candidates.items()
    ]
    return Found(
        kept=candidates[chosen],
        facts={"schedule": chosen, "searched_images": sum(len(d) for d in searched.dense)},
        tables=(Table.of("candidates", rows), _table(losses)),
    )


def _steps(scheduling: Scheduling, kept: Schedule) -> int:
    """In how many blocks tokens merge."""
    return sum(after < before for before, after in pairwise((scheduling.tokens, *kept)))


def _price(scheduling: Scheduling, kept: Schedule) -> float:
    """The factor on distances for what steps cost; a budget of latency counts their time itself."""
    return 1.0 if scheduling.unit == "latency" else float((1 + _STEP) ** _steps(scheduling, kept))


def _priced(scheduling: Scheduling, kept: Schedule, distances: Tensor) -> float:
    return float(distances.mean()) * _price(scheduling, kept)


def _kl(distances: Tensor) -> float:
    return float(distances.square().mean())


def _programmed(scheduling: Scheduling, losses: Losses) -> Schedule:
    """The schedule of least total loss, the losses of single blocks added up."""
    curves = [schedules.loss_curve(curve) for curve in losses]
    lowest = scheduling.prefix + 1
    step = max(1, -(-(scheduling.tokens - lowest) // _GRID))

    def cost(block: int, tokens: int, kept: int) -> float:
        total = scheduling.cost.block(block, tokens, kept)
        if block + 1 == scheduling.blocks < scheduling.all_blocks:
            total += scheduling.cost.block(block + 1, kept, kept)
        return total

    kept = schedules.cheapest_loss(
        curves,
        cost,
        scheduling.tokens,
        scheduling.fewest,
        scheduling.limit - scheduling.cost.rest,
        list(range(scheduling.tokens, lowest - 1, -step)),
    )
    return _scaled(scheduling, _logs(scheduling, scheduling.rounded(kept)))


def _logs(scheduling: Scheduling, kept: Schedule) -> list[float]:
    """By block that merges, the logarithm of the share of its tokens that it keeps."""
    coming = (scheduling.tokens, *kept)
    return [math.log(coming[i + 1] / coming[i]) for i in range(scheduling.blocks)]


def _scaled(scheduling: Scheduling, logs: Sequence[float], fixed: int = 0) -> Schedule:
    """The schedule of `logs`, those from block `fixed` on scaled to the budget."""

    def at(strength: float) -> Schedule:
        scaled = (v * strength if i >= fixed else v for i, v in enumerate(logs))
        return scheduling.rounded(
            [scheduling.tokens * math.exp(total) for total in accumulate(scaled)]
        )

    return schedules.at_cost(at, scheduling.cost, scheduling.limit, 20.0)


def _refined(scheduling: Scheduling, images: _Images, kept: Schedule) -> tuple[Schedule, Tensor]:
    """Move steps and change their sizes, in turn, as long as that helps."""
    best = images.judged(kept, keep_states=True)
    tried = {kept}
    blocks = range(scheduling.blocks - 1)
    moves = [(0.0, block, sign) for block in blocks for sign in (-1, 1)]
    moves += [(size, block, sign) for size in _MOVES for block in blocks for sign in (-1, 1)]
    for _ in range(_PASSES):
        before = kept
        for size, block, sign in track(moves, "refining the schedule", len(moves)):
            logs = _logs(scheduling, kept)
            if not logs[block] or (not size and block + sign < 0):
                continue  # no step here, where a new one would take time; or nowhere to go
            last = block
            if size:
                logs[block] = min(0.0, logs[block] + sign * size)
            else:
                logs[block], logs[block + sign] = 0.0, logs[block] + logs[block + sign]
                last = max(block, block + sign)
            other = _scaled(scheduling, logs, fixed=last + 1)
            if other in tried or scheduling.cost(other) > scheduling.limit:
                continue
            tried.add(other)
            now = images.distances(
                other, rival=best * (_price(scheduling, kept) / _price(scheduling, other))
            )
            if now is not None and _priced(scheduling, other, now) < _priced(
                scheduling, kept, best
            ):
                kept, best = other, images.judged(other, keep_states=True)
        if kept == before:
            break
    return kept, best
