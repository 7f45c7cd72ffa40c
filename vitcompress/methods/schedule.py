"""Schedules: how many tokens each block passes on, for a given cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

ScheduleCost = Callable[[Sequence[int]], float]
"""Tokens kept after each block → cost of the whole model."""

# Tokens kept after pruning and after merging, class token included, by block of DeiT (Chen et al.,
# DiffRate, ICCV 2023, the schedules its authors publish; the number is GMACs).
PUBLISHED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "deit_small@2.9": (
        (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3),
        (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3),
    ),
    "deit_small@2.3": (
        (197, 192, 168, 143, 121, 105, 92, 74, 62, 45, 33, 3),
        (197, 180, 156, 127, 109, 98, 80, 66, 52, 37, 31, 3),
    ),
    "deit_base@11.5": (
        (197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3),
        (197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3),
    ),
    "deit_base@8.7": (
        (197, 192, 172, 156, 131, 107, 90, 72, 56, 33, 17, 3),
        (197, 178, 162, 141, 115, 96, 78, 60, 47, 21, 13, 3),
    ),
}
# The mean of the two DeiT-S schedules, as shares of all tokens: a shape for other models.
_SHAPE = tuple(
    (a + b) / 394
    for a, b in zip(PUBLISHED["deit_small@2.9"][1], PUBLISHED["deit_small@2.3"][1], strict=True)
)[:-1]


def constant(tokens: int, blocks: int, removed: float) -> list[float]:
    """`removed` tokens fewer after each block."""
    return [tokens - removed * (block + 1) for block in range(blocks)]


def decreasing(tokens: int, blocks: int, removed: float) -> list[float]:
    """From twice `removed` fewer after the first block down to none after the last."""
    steps = [2 * removed * (1 - block / max(1, blocks - 1)) for block in range(blocks)]
    return [tokens - sum(steps[: block + 1]) for block in range(blocks)]


def published(tokens: int, blocks: int, power: float) -> list[float]:
    """The shape of DiffRate's schedules stretched to `blocks`, made steeper by `power`."""
    last = len(_SHAPE) - 1

    def share(block: int) -> float:
        place = block / max(1, blocks - 1) * last
        low = min(int(place), last - 1)
        return _SHAPE[low] + (_SHAPE[low + 1] - _SHAPE[low]) * (place - low)

    return [tokens * share(block) ** power for block in range(blocks)]


def stepped(tokens: int, blocks: int, power: float) -> list[float]:
    """`published`, but in every second block only: fewer and larger steps."""
    each = published(tokens, blocks, power)
    return [each[block - block % 2] for block in range(blocks)]


class Shape(NamedTuple):
    """A family of schedules. `kept`: (tokens, blocks, strength) → tokens kept after each block.
    `most`: tokens → the strength beyond which nothing is left to remove."""

    kept: Callable[[int, int, float], list[float]]
    most: Callable[[int], float]


SHAPES: dict[str, Shape] = {
    "constant": Shape(constant, float),
    "decreasing": Shape(decreasing, float),
    "published": Shape(published, lambda tokens: 60.0),
    "stepped": Shape(stepped, lambda tokens: 60.0),
}


def rounded_schedule(
    wanted: Sequence[float], tokens: int, fewest: Callable[[int], int]
) -> tuple[int, ...]:
    """Whole numbers near `wanted`, never rising, none below what a step from the last can keep."""
    kept: list[int] = []
    for value in wanted:
        before = kept[-1] if kept else tokens
        kept.append(min(before, max(fewest(before), round(value))))
    return tuple(kept)


def at_cost(
    shape: Callable[[float], tuple[int, ...]], cost: ScheduleCost, limit: float, most: float
) -> tuple[int, ...]:
    """The schedule of the smallest strength in [0, most] whose cost is within `limit`.

    `shape` gives schedules that only get cheaper as the strength grows; where even `most` is too
    dear, its schedule comes back.
    """
    low, high = 0.0, most
    if cost(shape(low)) <= limit:
        return shape(low)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(shape(middle)) <= limit else (middle, high)
    return shape(high)


def cheapest_loss(
    losses: Sequence[Callable[[float], float]],
    block_cost: Callable[[int, int, int], float],
    tokens: int,
    fewest: Callable[[int], int],
    limit: float,
    grid: Sequence[int],
) -> tuple[int, ...]:
    """The schedule of least total loss within a cost, by dynamic programming.

    `losses[l]` (share kept → loss) is what a step at block l costs alone; losses add up.
    `block_cost` (block, tokens in, tokens out). `grid`: counts to choose from, from the largest.
    A multiplier on the cost is bisected until the schedule costs at most `limit`.
    """
    steps = [
        {
            (i, j): (losses[block](grid[j] / grid[i]), block_cost(block, grid[i], grid[j]))
            for i in range(len(grid))
            for j in range(i, len(grid))
            if grid[j] >= fewest(grid[i])
        }
        for block in range(len(losses))
    ]

    def best(price: float) -> tuple[tuple[int, ...], float]:
        paths: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
        for step in steps:
            reached: dict[int, tuple[float, float, tuple[int, ...]]] = {}
            for (i, j), (loss, cost) in step.items():
                if i not in paths:
                    continue
                value, spent, path = paths[i]
                new = (value + loss + price * cost, spent + cost, (*path, grid[j]))
                if j not in reached or new[0] < reached[j][0]:
                    reached[j] = new
            paths = reached
        _, spent, path = min(paths.values())
        return path, spent

    low, high = -40.0, 10.0  # of the logarithm of the multiplier, per unit of `limit`
    for _ in range(40):
        middle = (low + high) / 2
        _, spent = best(math.exp(middle) / limit)
        low, high = (low, middle) if spent <= limit else (middle, high)
    return best(math.exp(high) / limit)[0]


def loss_curve(points: Mapping[float, float]) -> Callable[[float], float]:
    """Loss by the share of tokens kept: measured `points`, made monotone, linear in between.

    Linear in the logarithm of the share, zero at 1, and its last slope goes on below the last.
    """
    xs, ys = [0.0], [0.0]
    for share in sorted(points, reverse=True):
        xs.append(-math.log(share))
        ys.append(max(ys[-1], points[share]))

    def loss(share: float) -> float:
        x = -math.log(share)
        k = next((i for i in range(1, len(xs)) if x <= xs[i]), len(xs) - 1)
        return ys[k - 1] + (ys[k] - ys[k - 1]) * (x - xs[k - 1]) / (xs[k] - xs[k - 1])

    return loss
