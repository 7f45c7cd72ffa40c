"""Search how many tokens each block should keep, judged by the distance from the dense model.

What a merge in one block alone costs gives, by dynamic programming, a first schedule; it and the
known shapes are candidates. (Where tokens can merge in one block only, each block is one, and that
is all.) The best is then refined: a step goes to the next block or the one
before, then the share that one block keeps is changed, in either case those of the blocks after it
scaled so that the cost stays, and the change is kept where the model comes closer to the dense one.
Merging takes time that multiply-accumulates do not count, so a step has to be worth it (`_STEP`).
A quarter of the images is held back to choose among the candidates in the end.

Distances are those of the task, KL for classes. Schedules are compared by the mean square root: of
distances themselves a few images would decide. A change that is clearly worse on the first images
is not tried on the others.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vitcompress.details import Row, Table
from vitcompress.errors import InputError
from vitcompress.methods import schedule as schedules
from vitcompress.stages.cache import ResultKind
from vitcompress.stages.context import Context
from vitcompress.stages.merge import judging
from vitcompress.stages.merge.judging import BlockLosses, Judge
from vitcompress.stages.merge.scheduling import Found, Schedule, Scheduling

_SCHEDULE = ResultKind(
    "schedule",
    version=6,  # of search and methods
    save=lambda found, file: file.write_text(found.model_dump_json()),
    load=Found.model_validate_json,
)
_MOVES = (0.16, 0.08, 0.04)  # sizes of a change, as logarithms of the share kept
_PASSES = 3  # over all changes, at most
# How much closer, as a share of the distance, a step must bring the model to the dense one. On
# deit_tiny a step takes about 1 % of the time, for which 1 % less multiply-accumulates cost 7 %.
_STEP = 0.06
_DRAWS = 100  # of schedules at random: about as many as a search tries
_GRID = 48  # counts that the dynamic programme chooses from


@torch.no_grad()
def search(
    scheduling: Scheduling,
    context: Context,
    images: int,
    tensors: Mapping[str, Tensor],
    drawn: bool = False,
) -> Found:
    """The schedule closest to the dense model within the budget, and what was tried.

    `tensors`: those of `judging.token_readers`. `drawn`: the best of about as many random schedules
    as a search tries, and nothing cleverer: what any search has to beat.

    Kept in the cache by the content of model and images. Raises `InputError` where no schedule
    meets the budget, and where no image can be held back.
    """
    candidates = scheduling.candidates()
    identity = [scheduling.model.fingerprint(), context.calibration_fingerprint, context.seed]
    identity += [images, scheduling.merging.model_dump_json(), scheduling.unit, scheduling.limit]
    identity += [judging.SETTINGS, _MOVES, _PASSES, _STEP, _GRID, *([_DRAWS] if drawn else [])]
    if (known := context.cache.get(_SCHEDULE, identity)) is not None:
        return known
    batches = judging.read(context, images)
    if len(batches) < 4:
        raise InputError(
            f"{scheduling.where}.schedule: a search needs at least 4 calibration images that can "
            "be read; give more, or take `published`"
        )
    if drawn:
        found = _drawn(Judge(scheduling, batches, tensors), context)
    else:
        found = _searched(scheduling, context, batches, tensors, candidates)
    context.cache.put(_SCHEDULE, identity, found)
    return found


def _searched(
    scheduling: Scheduling,
    context: Context,
    batches: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    candidates: dict[str, Schedule],
) -> Found:
    """The best of `candidates`, of what sensitivities suggest and of what refining finds."""
    parts = batches[: len(batches) * 3 // 4], batches[len(batches) * 3 // 4 :]
    searched, held_back = (Judge(scheduling, part, tensors) for part in parts)
    losses = judging.losses(Judge(scheduling, judging.probed(parts[0]), tensors), context)
    once = scheduling.method.mixtures  # in one block: all schedules are there already
    if not once and scheduling.cost(kept := _programmed(scheduling, losses)) <= scheduling.limit:
        candidates["dynamic programme"] = kept
    scores = {name: searched.judged(kept) for name, kept in candidates.items()}
    best = min(scores, key=lambda name: _priced(scheduling, candidates[name], scores[name]))
    if not once:
        refined = _refined(context, searched, candidates[best])
        candidates["refined"], scores["refined"] = refined
    judged = {name: held_back.judged(kept) for name, kept in candidates.items()}
    chosen = min(judged, key=lambda name: _priced(scheduling, candidates[name], judged[name]))
    word = scheduling.model.task.word
    rows: list[Row] = [
        {
            "candidate": name,
            "steps": _steps(scheduling, kept),
            f"{scheduling.unit}_ratio": scheduling.cost(kept) / scheduling.dense,
            f"search_{word}": judging.mean_distance(scores[name]),
            f"held_back_{word}": judging.mean_distance(judged[name]),
            f"search_root_{word}": float(scores[name].mean()),
            f"held_back_root_{word}": float(judged[name].mean()),
        }
        for name, kept in candidates.items()
    ]
    tables = Table.of("candidates", rows), judging.losses_table(scheduling, losses)
    return Found(
        kept=candidates[chosen],
        facts={"schedule": chosen, "searched_images": searched.images},
        tables=(*tables, *_worth(held_back, candidates[chosen])),
    )


def _drawn(judge: Judge, context: Context) -> Found:
    """The best of random schedules: up to four steps anywhere, of any sizes, to the budget."""
    scheduling = judge.scheduling
    random = torch.Generator().manual_seed(context.seed)
    kept, tried = scheduling.unmerged, 0
    best: Tensor | None = None
    for _ in context.track(range(_DRAWS), "drawing schedules", _DRAWS):
        steps = int(torch.randint(1, 1 + min(4, scheduling.blocks), (), generator=random))
        sizes = -torch.rand(scheduling.blocks, generator=random)
        sizes[torch.randperm(scheduling.blocks, generator=random)[steps:]] = 0
        other = _scaled(scheduling, sizes.tolist())
        if scheduling.cost(other) > scheduling.limit:
            continue
        price, tried = _price(scheduling, other), tried + 1
        rival = None if best is None else best * (_price(scheduling, kept) / price)
        now = judge.compared(other, rival)
        if now is not None and (rival is None or now.mean() < rival.mean()):
            kept, best = other, judge.accept(other)
    if best is None:
        raise InputError(
            f"{scheduling.where}.schedule: none of {_DRAWS} random ones meets the budget; "
            "take search"
        )
    return Found(
        kept=kept,
        facts={"schedule": "random", "searched_images": judge.images, "schedules_drawn": tried},
        tables=_worth(judge, kept),
    )


def _worth(judge: Judge, kept: Schedule) -> tuple[Table, ...]:
    """What each step of a schedule saves, as a share of the dense model, and what it costs: against
    the schedule without it, whose later steps keep the same shares."""
    scheduling, logs = judge.scheduling, _logs(judge.scheduling, kept)
    steps = [block for block, share in enumerate(logs) if share]
    if not steps:
        return ()
    word, whole = scheduling.model.task.word, judging.mean_distance(judge.accept(kept))
    rows: list[Row] = []
    for block in steps:
        without = _following(scheduling, [0.0 if i == block else v for i, v in enumerate(logs)])
        saved = scheduling.cost(without) - scheduling.cost(kept)
        rows.append(
            {
                "block": scheduling.model.anatomy.block_names[block],
                "share_kept": math.exp(logs[block]),
                f"saved_{scheduling.unit}_ratio": saved / scheduling.dense,
                f"costs_{word}": whole - judging.mean_distance(judge.judged(without)),
            }
        )
    unit = {"macs": "MACs"}.get(scheduling.unit, scheduling.unit)
    charted = {
        f"saved_{scheduling.unit}_ratio": (
            f"What merging in this block saves, as a share of the model's {unit}"
        ),
        f"costs_{word}": f"{scheduling.model.task.distance_words} that merging in this block costs",
    }
    return (Table.of("steps", rows, charted),)


def _steps(scheduling: Scheduling, kept: Schedule) -> int:
    """In how many blocks tokens merge."""
    return sum(after < before for before, after in pairwise((scheduling.tokens, *kept)))


def _price(scheduling: Scheduling, kept: Schedule) -> float:
    """The factor on distances for what steps cost; a budget of latency counts their time itself."""
    return 1.0 if scheduling.unit == "latency" else float((1 + _STEP) ** _steps(scheduling, kept))


def _priced(scheduling: Scheduling, kept: Schedule, distances: Tensor) -> float:
    return float(distances.mean()) * _price(scheduling, kept)


def _programmed(scheduling: Scheduling, losses: BlockLosses) -> Schedule:
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


def _following(scheduling: Scheduling, logs: Sequence[float]) -> Schedule:
    """The inverse of `_logs`."""
    return scheduling.rounded([scheduling.tokens * math.exp(total) for total in accumulate(logs)])


def _scaled(scheduling: Scheduling, logs: Sequence[float], fixed: int = 0) -> Schedule:
    """The schedule of `logs`, those from block `fixed` on scaled to the budget."""

    def at(strength: float) -> Schedule:
        return _following(
            scheduling, [v * strength if i >= fixed else v for i, v in enumerate(logs)]
        )

    return schedules.at_cost(at, scheduling.cost, scheduling.limit, 20.0)


def _refined(context: Context, judge: Judge, kept: Schedule) -> tuple[Schedule, Tensor]:
    """Move steps and change their sizes, in turn, as long as that helps."""
    scheduling, best = judge.scheduling, judge.accept(kept)
    tried = {kept}
    blocks = range(scheduling.blocks - 1)
    moves = [(0.0, block, sign) for block in blocks for sign in (-1, 1)]
    moves += [(size, block, sign) for size in _MOVES for block in blocks for sign in (-1, 1)]
    for _ in range(_PASSES):
        before = kept
        for size, block, sign in context.track(moves, "refining the schedule", len(moves)):
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
            now = judge.compared(
                other, rival=best * (_price(scheduling, kept) / _price(scheduling, other))
            )
            if now is not None and _priced(scheduling, other, now) < _priced(
                scheduling, kept, best
            ):
                kept, best = other, judge.accept(other)
        if kept == before:
            break
    return kept, best
