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

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress.console import track
from vitcompress.errors import InputError
from vitcompress.methods import schedule as schedules
from vitcompress.methods.readers import ReaderStatistics, normalised
from vitcompress.methods.saliency import fisher_readout
from vitcompress.model.anatomy import State
from vitcompress.model.architecture import merging_blocks
from vitcompress.stages.context import BATCH, Context
from vitcompress.stages.merge_task import Schedule, Task

_VERSION = 3  # of search and operators, part of the cache key
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

    task: Task
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
        vit: Any = self.task.model.module
        blocks = merging_blocks(vit, self.task.merging_to(kept))
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
            _Images(self.task, self.readers, self.start[:first], self.dense[:first]),
            _Images(self.task, self.readers, self.start[first:], self.dense[first:]),
        )


def _images(task: Task, context: Context, images: int, tensors: Mapping[str, Tensor]) -> _Images:
    """Up to `images` calibration images, in four batches or more, so that some can be held back."""
    vit: Any = task.model.module
    pixels = torch.cat(list(context.calibration_batches("reading images", images)))
    parts = pixels.split(min(BATCH, max(1, len(pixels) // 4)))
    start: list[Tensor] = []
    handle = vit.blocks[0].register_forward_pre_hook(lambda _, inputs: start.append(inputs[0]))
    try:
        dense = [vit(part.to(context.device)).log_softmax(-1) for part in parts]
    finally:
        handle.remove()
    return _Images(task, tensors, start, dense)


def readers(task: Task, context: Context, images: int) -> dict[str, Tensor]:
    """The tensors that `fisher` reads tokens with, by name; none for other methods.

    One backward pass through the unmerged model, of its own Fisher information.
    """
    if task.merging.method != "fisher":
        return {}
    vit: Any = task.model.module
    blocks = list(vit.blocks)[: task.blocks]
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
                patches = x.detach()[:, task.prefix :].cpu()
                found.update(normalised(patches), gradient[:, task.prefix :].cpu())
    finally:
        for handle in handles:
            handle.remove()
    rank = task.merging.rank
    return {f"reader_{i}": s.solve(rank).to(context.device) for i, s in enumerate(statistics)}


@torch.no_grad()
def sensitivities(task: Task, context: Context, images: int) -> list[dict[str, Any]]:
    """By block and share of tokens kept there alone: KL(dense ‖ merged) in nats."""
    tensors = readers(task, context, images)
    return _sensitivities(task, _images(task, context, min(images, _PROBED), tensors))


def _sensitivities(task: Task, images: _Images) -> list[dict[str, Any]]:
    full = (task.tokens,) * task.all_blocks
    images.judged(full, keep_states=True)
    rows = []
    for block in track(range(task.blocks), "measuring blocks", task.blocks):
        row: dict[str, Any] = {"block": f"blocks.{block}"}
        for share in _SHARES:
            kept = max(task.fewest(task.tokens), round(share * task.tokens))
            tail = (kept,) * (task.all_blocks - block)
            row[f"kl_at_{share:.0%}"] = _kl(images.judged((*full[:block], *tail)))
        rows.append(row)
    return rows


@torch.no_grad()
def search(
    task: Task, context: Context, images: int, tensors: Mapping[str, Tensor]
) -> tuple[Schedule, dict[str, Any]]:
    """The schedule closest to the dense model within the budget, and what was tried.

    `tensors`: those of `readers`.

    Kept in the cache by the content of model and images. Raises `InputError` where no schedule
    meets the budget, and where no image can be held back.
    """
    candidates = {"constant": task.shaped("constant")}
    for name in schedules.SHAPES:
        if task.cost(kept := task.fitted(name)) <= task.limit:
            candidates[name] = kept
    identity = [task.model.fingerprint(), context.calibration_fingerprint, context.seed, images]
    identity += [task.merging.model_dump_json(), task.unit, task.limit]
    identity += [_VERSION, _SHARES, _PROBED, _MOVES, _PASSES, _STEP, _GRID]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    file = context.cache / f"schedule-{key}.json"
    if context.resume and file.is_file():
        context.say(f"schedule reused from {file.name}")
        kept, found = json.loads(file.read_text(encoding="utf-8"))
        return tuple(kept), found
    everything = _images(task, context, images, tensors)
    batches = len(everything.dense)
    if batches < 4:
        raise InputError(
            f"{task.where}.schedule: a search needs at least 4 calibration images that can be "
            "read; give more, or take `published`"
        )
    searched, held_back = everything.split(batches * 3 // 4)
    rows = _sensitivities(task, searched.split(_PROBED // len(everything.dense[0]))[0])
    programmed = _programmed(task, rows)
    if task.cost(programmed) <= task.limit:
        candidates["dynamic programme"] = programmed
    scores = {name: searched.judged(kept) for name, kept in candidates.items()}
    best = min(scores, key=lambda name: _priced(task, candidates[name], scores[name]))
    candidates["refined"], scores["refined"] = _refined(task, searched, candidates[best])
    judged = {name: held_back.judged(kept) for name, kept in candidates.items()}
    chosen = min(judged, key=lambda name: _priced(task, candidates[name], judged[name]))
    found = {
        "schedule": chosen,
        "searched_images": sum(len(d) for d in searched.dense),
        "candidates": [
            {
                "candidate": name,
                "steps": _steps(task, kept),
                f"{task.unit}_ratio": task.cost(kept) / task.dense,
                "search_kl": _kl(scores[name]),
                "held_back_kl": _kl(judged[name]),
                "search_root_kl": float(scores[name].mean()),
                "held_back_root_kl": float(judged[name].mean()),
            }
            for name, kept in candidates.items()
        ],
        "sensitivities": rows,
    }

    def save(path: Path) -> None:
        path.write_text(json.dumps([candidates[chosen], found]), encoding="utf-8")

    context.keep(file, save)
    return candidates[chosen], found


def _steps(task: Task, kept: Schedule) -> int:
    """In how many blocks tokens merge."""
    return sum(after < before for before, after in pairwise((task.tokens, *kept)))


def _price(task: Task, kept: Schedule) -> float:
    """The factor on distances for what steps cost; a budget of latency counts their time itself."""
    return 1.0 if task.unit == "latency" else float((1 + _STEP) ** _steps(task, kept))


def _priced(task: Task, kept: Schedule, distances: Tensor) -> float:
    return float(distances.mean()) * _price(task, kept)


def _kl(distances: Tensor) -> float:
    return float(distances.square().mean())


def _programmed(task: Task, rows: list[dict[str, Any]]) -> Schedule:
    """The schedule of least total loss, the losses of single blocks added up."""
    curves = [
        schedules.loss_curve({share: row[f"kl_at_{share:.0%}"] for share in _SHARES})
        for row in rows
    ]
    lowest = task.prefix + 1
    step = max(1, -(-(task.tokens - lowest) // _GRID))

    def cost(block: int, tokens: int, kept: int) -> float:
        total = task.cost.block(block, tokens, kept)
        if block + 1 == task.blocks < task.all_blocks:
            total += task.cost.block(block + 1, kept, kept)
        return total

    kept = schedules.cheapest_loss(
        curves,
        cost,
        task.tokens,
        task.fewest,
        task.limit - task.cost.rest,
        list(range(task.tokens, lowest - 1, -step)),
    )
    return _scaled(task, _logs(task, task.rounded(kept)))


def _logs(task: Task, kept: Schedule) -> list[float]:
    """By block that merges, the logarithm of the share of its tokens that it keeps."""
    coming = (task.tokens, *kept)
    return [math.log(coming[i + 1] / coming[i]) for i in range(task.blocks)]


def _scaled(task: Task, logs: Sequence[float], fixed: int = 0) -> Schedule:
    """The schedule of `logs`, those from block `fixed` on scaled to the budget."""

    def at(strength: float) -> Schedule:
        scaled = (v * strength if i >= fixed else v for i, v in enumerate(logs))
        return task.rounded([task.tokens * math.exp(total) for total in accumulate(scaled)])

    return schedules.at_cost(at, task.cost, task.limit, 20.0)


def _refined(task: Task, images: _Images, kept: Schedule) -> tuple[Schedule, Tensor]:
    """Move steps and change their sizes, in turn, as long as that helps."""
    best = images.judged(kept, keep_states=True)
    tried = {kept}
    blocks = range(task.blocks - 1)
    moves = [(0.0, block, sign) for block in blocks for sign in (-1, 1)]
    moves += [(size, block, sign) for size in _MOVES for block in blocks for sign in (-1, 1)]
    for _ in range(_PASSES):
        before = kept
        for size, block, sign in track(moves, "refining the schedule", len(moves)):
            logs = _logs(task, kept)
            if not logs[block] or (not size and block + sign < 0):
                continue  # no step here, where a new one would take time; or nowhere to go
            last = block
            if size:
                logs[block] = min(0.0, logs[block] + sign * size)
            else:
                logs[block], logs[block + sign] = 0.0, logs[block] + logs[block + sign]
                last = max(block, block + sign)
            other = _scaled(task, logs, fixed=last + 1)
            if other in tried or task.cost(other) > task.limit:
                continue
            tried.add(other)
            now = images.distances(other, rival=best * (_price(task, kept) / _price(task, other)))
            if now is not None and _priced(task, other, now) < _priced(task, kept, best):
                kept, best = other, images.judged(other, keep_states=True)
        if kept == before:
            break
    return kept, best
