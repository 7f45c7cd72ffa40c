"""Search how many tokens each block should keep, judged by the KL from the dense model.

What a merge in one block alone costs gives, by dynamic programming, a first schedule; it and the
known shapes are candidates. The best is then refined: the share that one block keeps is changed,
those of all others scaled so that the cost stays, and the change is kept where the KL falls. A
quarter of the images is held back to choose among the candidates in the end.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress.console import track
from vitcompress.errors import InputError
from vitcompress.measure.tokens import block_macs, schedule_macs, sequence_length
from vitcompress.methods import schedule as schedules
from vitcompress.methods.readers import FisherStatistics, normalised
from vitcompress.methods.tokens import fewest
from vitcompress.model.architecture import VitModel, merging_blocks
from vitcompress.model.merging import RANK, Merging, Method
from vitcompress.stages.context import BATCH, Context

_SHARES = (0.95, 0.8, 0.6)  # kept in one block, to measure what that costs
_PROBED = 64  # images for that
_MOVES = (0.16, 0.08, 0.04)  # sizes of a change, as logarithms of the share kept
_GRID = 48  # counts that the dynamic programme chooses from

Schedule = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What has to be scheduled.

    `where`: the recipe's key, for errors. `model`: merges nothing yet. `limit`: the most
    multiply-accumulates. `dense`: those of the dense model.
    """

    where: str
    model: VitModel
    method: Method
    limit: float
    dense: int
    proportional: bool

    @cached_property
    def cost(self) -> Callable[[Sequence[int]], int]:
        return schedule_macs(self.model, self.method, RANK)

    def merging(self, kept: Schedule, dropped: Schedule = ()) -> Merging:
        return Merging(
            method=self.method, kept=kept, dropped=dropped, proportional=self.proportional
        )

    @property
    def tokens(self) -> int:
        return sequence_length(self.model)

    @property
    def prefix(self) -> int:
        return int(cast(Any, self.model.module).num_prefix_tokens)

    @property
    def all_blocks(self) -> int:
        return len(cast(Any, self.model.module).blocks)

    @property
    def blocks(self) -> int:
        """How many may merge: not the last, where it computes the prefix tokens only."""
        return self.all_blocks - (self.model.architecture.tail_tokens is not None)

    def fewest(self, tokens: int) -> int:
        """The fewest tokens that one step can leave of `tokens`, prefix included."""
        return self.prefix + fewest(self.method, tokens - self.prefix)

    def rounded(self, wanted: Sequence[float]) -> Schedule:
        """Whole numbers near `wanted`, one for each block of the model."""
        kept = schedules.rounded(wanted, self.tokens, self.fewest)
        return (*kept, *[kept[-1]] * (self.all_blocks - len(kept)))

    def shaped(self, shape: str) -> Schedule:
        """The schedule of a shape that meets the budget. Raises `InputError` where none does."""
        of = schedules.SHAPES[shape]
        most = 60.0 if shape == "published" else float(self.tokens)
        kept = schedules.at_cost(
            lambda strength: self.rounded(
                of(self.tokens, self.blocks, strength) if strength else [self.tokens] * self.blocks
            ),
            self.cost,
            self.limit,
            most,
        )
        if (least := self.cost(kept)) > self.limit:
            raise InputError(
                f"{self.where}.budget.macs: {self.method} with a {shape} schedule does not go "
                f"below {least / self.dense:.3f} of the dense model; raise it, or change method"
            )
        return kept

    def explicit(self, wanted: Sequence[int]) -> Schedule:
        """`wanted` as it is. Raises `InputError` naming the block that cannot keep so many."""
        if len(wanted) not in (self.blocks, self.all_blocks):
            raise InputError(
                f"{self.where}.schedule: {len(wanted)} counts for {self.blocks} blocks that merge; "
                "give the tokens kept after each"
            )
        before = self.tokens
        for block, kept in enumerate(wanted[: self.blocks]):
            least = self.fewest(before)
            if not least <= kept <= before:
                raise InputError(
                    f"{self.where}.schedule: block {block} cannot keep {kept} of its {before} "
                    f"tokens; with {self.method} from {least} to {before}"
                )
            before = kept
        return self.rounded(wanted[: self.blocks])

    def published(self, name: str) -> tuple[Schedule, tuple[int, ...]]:
        """The schedule of DiffRate's authors: tokens kept, and tokens dropped, in each block."""
        after_drop, after_merge = schedules.PUBLISHED[name]
        if (self.tokens, self.all_blocks) != (after_merge[0], len(after_merge)):
            raise InputError(
                f"{self.where}.schedule: {name} is for {len(after_merge)} blocks and "
                f"{after_merge[0]} tokens, and the model has {self.all_blocks} and {self.tokens}; "
                "take `published`, which fits its shape"
            )
        kept = self.explicit(after_merge[: self.blocks])
        before = (self.tokens, *kept)
        dropped = tuple(before[i] - after_drop[i] for i in range(self.blocks))
        if self.method != "diffrate":
            return kept, ()
        return kept, (*dropped, *[0] * (self.all_blocks - self.blocks))


@dataclass
class _Images:
    """Embedded images and the dense log-probabilities; judges schedules.

    The states before each block of the schedule judged last as the incumbent are kept, so that
    another schedule is computed only from the first block where it differs.
    """

    task: Task
    readers: Mapping[str, Tensor]
    start: list[Tensor]
    dense: list[Tensor]

    def __post_init__(self) -> None:
        self.incumbent: Schedule = ()
        self.states: list[list[Any]] = [[(x, None, None)] for x in self.start]

    def kl(self, kept: Schedule, keep_states: bool = False) -> float:
        """The mean KL(dense ‖ merged) in nats."""
        vit: Any = self.task.model.module
        blocks = merging_blocks(vit, self.task.merging(kept))
        blocks.fill(self.readers)
        same = 0
        while same < len(self.incumbent) and self.incumbent[same] == kept[same]:
            same += 1
        total = 0.0
        for chunk, dense in enumerate(self.dense):
            states = self.states[chunk][: min(same + 1, len(kept))]
            for number in range(len(states) - 1, len(kept)):
                states.append(blocks.advance(number, *states[-1]))
            logits = vit.forward_head(vit.norm(blocks.restored(*states[-1])))
            now = logits.log_softmax(-1)
            total += float(F.kl_div(now, dense, reduction="sum", log_target=True))
            if keep_states:
                self.states[chunk] = states[:-1]
        if keep_states:
            self.incumbent = kept
        return total / sum(len(dense) for dense in self.dense)

    def split(self, first: int) -> tuple["_Images", "_Images"]:
        """The first so many batches, and the others."""
        return (
            _Images(self.task, self.readers, self.start[:first], self.dense[:first]),
            _Images(self.task, self.readers, self.start[first:], self.dense[first:]),
        )


def _images(task: Task, context: Context, images: int, tensors: Mapping[str, Tensor]) -> _Images:
    """Up to `images` calibration images, in batches of 16."""
    vit: Any = task.model.module.to(context.device)
    start: list[Tensor] = []
    handle = vit.blocks[0].register_forward_pre_hook(lambda _, inputs: start.append(inputs[0]))
    try:
        dense = [
            vit(pixels.to(context.device)).log_softmax(-1)
            for pixels in islice(context.calibration_batches("reading images"), -(-images // BATCH))
        ]
    finally:
        handle.remove()
    return _Images(task, tensors, start, dense)


def readers(task: Task, context: Context, images: int) -> dict[str, Tensor]:
    """The tensors that `fisher` reads tokens with, by name; none for other methods.

    One backward pass through the unmerged model, with labels drawn from its own softmax.
    """
    if task.method != "fisher":
        return {}
    vit: Any = task.model.module.to(context.device)
    blocks = list(vit.blocks)[: task.blocks]
    statistics = [FisherStatistics(block.attn.qkv.in_features) for block in blocks]
    generator = torch.Generator().manual_seed(context.seed)
    seen: list[Tensor] = []
    handles = [
        block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for block in blocks
    ]
    batches = islice(context.calibration_batches("measuring gradients"), -(-images // BATCH))
    try:
        for pixels in batches:
            seen.clear()
            with torch.enable_grad():
                logits = vit(pixels.to(context.device).requires_grad_())
                drawn = torch.multinomial(logits.detach().cpu().softmax(-1), 1, generator=generator)
                loss = F.cross_entropy(logits, drawn[:, 0].to(logits.device), reduction="sum")
                gradients = torch.autograd.grad(loss, seen)
            for found, x, gradient in zip(statistics, seen, gradients, strict=True):
                patches = x.detach()[:, task.prefix :].cpu()
                found.update(normalised(patches), gradient[:, task.prefix :].cpu())
    finally:
        for handle in handles:
            handle.remove()
    tensors = {}
    for number, found in enumerate(statistics):
        level, coordinates = found.solve(RANK)
        tensors[f"level_{number}"] = level.to(context.device)
        tensors[f"coordinates_{number}"] = coordinates.to(context.device)
    return tensors


@torch.no_grad()
def sensitivities(task: Task, context: Context, images: int) -> list[dict[str, Any]]:
    """By block and share of tokens kept there alone: KL(dense ‖ merged) in nats."""
    tensors = readers(task, context, images)
    return _sensitivities(task, _images(task, context, min(images, _PROBED), tensors))


def _sensitivities(task: Task, images: _Images) -> list[dict[str, Any]]:
    full = (task.tokens,) * task.all_blocks
    images.kl(full, keep_states=True)
    rows = []
    for block in track(range(task.blocks), "measuring blocks", task.blocks):
        row: dict[str, Any] = {"block": f"blocks.{block}"}
        for share in _SHARES:
            kept = max(task.fewest(task.tokens), round(share * task.tokens))
            tail = (kept,) * (task.all_blocks - block)
            row[f"kl_at_{share:.0%}"] = images.kl((*full[:block], *tail))
        rows.append(row)
    return rows


@torch.no_grad()
def search(
    task: Task, context: Context, images: int, tensors: Mapping[str, Tensor]
) -> tuple[Schedule, dict[str, Any]]:
    """The schedule of least KL within the budget, and what was tried, for the report.

    `tensors`: those of `readers`.

    Kept in the cache by the content of model and images. Raises `InputError` where no schedule
    meets the budget.
    """
    known = task.shaped("constant"), task.shaped("decreasing"), task.shaped("published")
    identity = [task.model.fingerprint(), context.calibration_fingerprint, context.seed, images]
    identity += [task.method, task.limit, task.proportional, _SHARES, _PROBED, _MOVES, _GRID]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    file = context.cache / f"schedule-{key}.json"
    if context.resume and file.is_file():
        context.say(f"schedule reused from {file.name}")
        kept, found = json.loads(file.read_text(encoding="utf-8"))
        return tuple(kept), found
    everything = _images(task, context, images, tensors)
    batches = len(everything.dense)
    searched, held_back = everything.split(max(1, batches * 3 // 4))
    if not held_back.dense:
        held_back = searched
    rows = _sensitivities(task, searched.split(_PROBED // BATCH)[0])
    candidates = dict(zip(("constant", "decreasing", "published"), known, strict=True))
    programmed = _programmed(task, rows)
    if task.cost(programmed) <= task.limit:
        candidates["dynamic programme"] = programmed
    scores = {name: searched.kl(kept) for name, kept in candidates.items()}
    best = min(scores, key=lambda name: scores[name])
    candidates["refined"] = _refined(task, searched, candidates[best], scores[best])
    scores["refined"] = searched.kl(candidates["refined"])
    judged = {name: held_back.kl(kept) for name, kept in candidates.items()}
    chosen = min(judged, key=lambda name: judged[name])
    found = {
        "schedule": chosen,
        "searched_images": sum(len(d) for d in searched.dense),
        "candidates": [
            {
                "candidate": name,
                "macs_ratio": task.cost(kept) / task.dense,
                "search_kl": scores[name],
                "held_back_kl": judged[name],
            }
            for name, kept in candidates.items()
        ],
        "sensitivities": rows,
    }

    def save(path: Path) -> None:
        path.write_text(json.dumps([candidates[chosen], found]), encoding="utf-8")

    context.keep(file, save)
    return candidates[chosen], found


def _programmed(task: Task, rows: list[dict[str, Any]]) -> Schedule:
    """The schedule of least total loss, the losses of single blocks added up."""
    curves = [
        schedules.loss_curve({share: row[f"kl_at_{share:.0%}"] for share in _SHARES})
        for row in rows
    ]
    lowest = task.prefix + 1
    step = max(1, -(-(task.tokens - lowest) // _GRID))
    blocks: list[Any] = list(cast(Any, task.model.module).blocks)

    def cost(block: int, tokens: int, kept: int) -> float:
        macs = block_macs(blocks[block], tokens, kept, task.prefix, task.method, RANK)
        if block + 1 == task.blocks < len(blocks):
            macs += block_macs(blocks[-1], kept, kept, task.prefix, task.method, RANK)
        return float(macs)

    full = (task.tokens,) * len(blocks)
    rest = task.cost(full) - sum(cost(b, task.tokens, task.tokens) for b in range(task.blocks))
    kept = schedules.cheapest_loss(
        curves,
        cost,
        task.tokens,
        task.fewest,
        task.limit - rest,
        list(range(task.tokens, lowest - 1, -step)),
    )
    return _scaled(task, _logs(task, task.rounded(kept)))


def _logs(task: Task, kept: Schedule) -> list[float]:
    """By block that merges, the logarithm of the share of its tokens that it keeps."""
    coming = (task.tokens, *kept)
    return [math.log(coming[i + 1] / coming[i]) for i in range(task.blocks)]


def _scaled(task: Task, logs: Sequence[float], fixed: int | None = None) -> Schedule:
    """The schedule whose logarithms are those of `logs`, but for block `fixed` scaled to budget."""

    def at(strength: float) -> Schedule:
        scaled = (v if i == fixed else v * strength for i, v in enumerate(logs))
        return task.rounded([task.tokens * math.exp(total) for total in accumulate(scaled)])

    return schedules.at_cost(at, task.cost, task.limit, 20.0)


def _refined(task: Task, images: _Images, kept: Schedule, kl: float) -> Schedule:
    """Change the share that each block keeps, in turn, as long as that helps."""
    images.kl(kept, keep_states=True)
    tried = {kept}
    blocks = range(task.blocks)
    moves = [(size, block, sign) for size in _MOVES for block in blocks for sign in (-1, 1)]
    for size, block, sign in track(moves, "refining the schedule", len(moves)):
        logs = _logs(task, kept)
        logs[block] = min(0.0, logs[block] + sign * size)
        other = _scaled(task, logs, fixed=block)
        if other in tried or task.cost(other) > task.limit:
            continue
        tried.add(other)
        now = images.kl(other)
        if now < kl:
            kept, kl = other, now
            images.kl(kept, keep_states=True)
    return kept
