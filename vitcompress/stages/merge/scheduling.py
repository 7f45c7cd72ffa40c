"""What has to be scheduled when tokens merge, and the schedules that need no images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from vitcompress import registry
from vitcompress.details import Fact, Table
from vitcompress.errors import InputError
from vitcompress.measure.tokens import TokenCost
from vitcompress.methods import schedule as schedules
from vitcompress.methods.tokens import Method, method_of
from vitcompress.model.architecture import VitModel
from vitcompress.model.merging import Merging
from vitcompress.terms import MERGING

Schedule = tuple[int, ...]


class Found(BaseModel):
    """Tokens kept and dropped in each block, and what is told of how they were found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: Schedule
    dropped: Schedule = ()
    facts: dict[str, Fact]
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Scheduling:
    """What has to be scheduled.

    `where`: the recipe's key, for errors. `model`: merges nothing yet. `merging`: how it will, but
    for the tokens kept. `unit`: what the budget counts, `macs` or `latency`. `cost`: of a schedule,
    in that unit. `limit`: the most it may cost. `dense`: the cost of the dense model.
    """

    where: str
    model: VitModel
    merging: Merging
    unit: str
    cost: TokenCost
    limit: float
    dense: float

    def merging_to(self, kept: Schedule, dropped: Schedule = ()) -> Merging:
        return self.merging.model_copy(update={"kept": kept, "dropped": dropped})

    @property
    def tokens(self) -> int:
        return self.cost.tokens

    @property
    def method(self) -> Method:
        return method_of(self.merging.method)

    @cached_property
    def prefix(self) -> int:
        """How many tokens never merge; asked for at every step of a search."""
        return self.model.anatomy.prefix_tokens

    @property
    def unmerged(self) -> Schedule:
        return (self.tokens,) * self.all_blocks

    @property
    def all_blocks(self) -> int:
        return len(self.merging.kept)

    @property
    def blocks(self) -> int:
        """How many may merge: not the last, where it computes the prefix tokens only."""
        return self.all_blocks - (self.model.architecture.tail_tokens is not None)

    def fewest(self, tokens: int) -> int:
        """The fewest tokens that one step can leave of `tokens`, prefix included."""
        return self.prefix + self.method.fewest(tokens - self.prefix)

    def rounded(self, wanted: Sequence[float]) -> Schedule:
        """Whole numbers near `wanted`, one for each block of the model."""
        kept = schedules.rounded_schedule(wanted, self.tokens, self.fewest)
        return (*kept, *[kept[-1]] * (self.all_blocks - len(kept)))

    def fitted(self, shape: str) -> Schedule:
        """The schedule of a shape that meets the budget, or else costs as little as it can."""
        of = schedules.SHAPES[shape]

        def at(strength: float) -> Schedule:
            whole = self.unmerged[: self.blocks]
            return self.rounded(of.kept(self.tokens, self.blocks, strength) if strength else whole)

        return schedules.at_cost(at, self.cost, self.limit, of.most(self.tokens))

    def single(self, block: int) -> Schedule:
        """The schedule that merges in `block` alone and meets the budget, or else costs as little
        as it can."""

        def at(removed: float) -> Schedule:
            left = self.tokens - removed
            return self.rounded([self.tokens] * block + [left] * (self.blocks - block))

        return schedules.at_cost(at, self.cost, self.limit, self.tokens)

    def candidates(self) -> dict[str, Schedule]:
        """By name, the schedules that need no images and meet the budget: of the shapes or, of
        mixtures, in each block alone. Raises `InputError` where none does."""
        if self.method.mixtures:
            found = {f"block {block}": self.single(block) for block in range(self.blocks)}
            least = "block 0"
        else:
            found = {shape: self.fitted(shape) for shape in schedules.SHAPES}
            least = "constant"
        self.affordable(found[least], least)
        return {name: kept for name, kept in found.items() if self.cost(kept) <= self.limit}

    def affordable(self, kept: Schedule, name: str) -> Schedule:
        """`kept` itself, called `name`. Raises `InputError` where it does not meet the budget."""
        if (least := self.cost(kept)) > self.limit:
            raise InputError(
                f"{self.where}.budget.{self.unit}: {self.merging.method} with schedule {name} does "
                f"not go below {least / self.dense:.3f} of the dense model; raise it, or change "
                "method"
            )
        return kept

    def alone(self, block: int, tokens: int | None) -> Schedule:
        """The schedule that leaves so many `tokens` of patches in `block`, by default as `single`.
        Raises `InputError` where it cannot."""
        if block >= self.blocks:
            raise InputError(
                f"{self.where}.block: {block} is none of the blocks that can merge, 0 to "
                f"{self.blocks - 1}"
            )
        if tokens is None:
            return self.single(block)
        left = [self.prefix + tokens] * (self.blocks - block)
        return self.explicit([self.tokens] * block + left)[0]

    def explicit(self, wanted: Sequence[int | tuple[int, int]]) -> tuple[Schedule, Schedule]:
        """Tokens kept and tokens dropped as `wanted`: in each block those left after merging, or
        pairs of those left after dropping and after merging.

        Raises `InputError` naming the block that cannot keep so many.
        """
        if len(wanted) not in (self.blocks, self.all_blocks):
            raise InputError(
                f"{self.where}.schedule: {len(wanted)} counts for {self.blocks} blocks that merge; "
                "give the tokens kept after each"
            )
        before, counts, dropped = self.tokens, list[int](), list[int]()
        for block, given in enumerate(wanted):
            left, kept = given if isinstance(given, tuple) else (before, given)
            least = self.fewest(before) if block < self.blocks else self.prefix
            if not least <= kept <= before:
                raise InputError(
                    f"{self.where}.schedule: block {block} cannot keep {kept} of its {before} "
                    f"tokens; with {self.merging.method} from {least} to {before}"
                )
            if not kept <= left <= before or (left < before and self.method.drop is None):
                able = (name for name in registry.names(MERGING) if method_of(name).drop)
                raise InputError(
                    f"{self.where}.schedule: block {block} cannot drop {before - left} tokens and "
                    f"keep {kept} of {before} with {self.merging.method}; "
                    f"only {' and '.join(able)} drops"
                )
            if block < self.blocks:
                counts.append(kept)
                dropped.append(before - left)
            before = kept
        dropped += [0] * (self.all_blocks - self.blocks)
        return self.rounded(counts), tuple(dropped) if any(dropped) else ()

    def published(self, name: str) -> tuple[Schedule, tuple[int, ...]]:
        """The schedule of DiffRate's authors: tokens kept, and tokens dropped, in each block."""
        after_drop, after_merge = schedules.PUBLISHED[name]
        if (self.tokens, self.all_blocks) != (after_merge[0], len(after_merge)):
            raise InputError(
                f"{self.where}.schedule: {name} is for {len(after_merge)} blocks and "
                f"{after_merge[0]} tokens, and the model has {self.all_blocks} and {self.tokens}; "
                "take `published`, which fits its shape"
            )
        drops = self.method.drop is not None
        return self.explicit(
            list(zip(after_drop, after_merge, strict=True)) if drops else after_merge
        )
