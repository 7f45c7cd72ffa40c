"""What a recipe says of the merge stage."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vitcompress.methods import schedule as schedules
from vitcompress.terms import MergeMethod

_Share = Annotated[float, Field(gt=0, le=1)]


class MergeBudget(BaseModel):
    """What may be left, as a share of the dense model: one of the keys.

    `latency` is that of onnxruntime on this machine, one thread, one image at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: _Share | None = None
    latency: _Share | None = None

    @model_validator(mode="after")
    def _one(self) -> "MergeBudget":
        if (self.macs is None) == (self.latency is None):
            raise ValueError("give either macs or latency")
        return self


class MergeConfig(BaseModel):
    """Compute fewer tokens: merge them between attention and MLP.

    `method`: `fisher` merges those whose merging changes the answer least by its gradients,
    `farthest` too, choosing those that stay one by one, `diffrate` the least attended, `tome` the
    most similar, `mctf` weighs both, `ppt` drops or merges by image, `evit` fuses all unattended
    ones. `soft`, `soft_grid` and `soft_kmeans` make all into new ones, in one block. After the last
    attention only what the head reads is computed, as the stage `tail` does it.

    `schedule`: `search` finds how many tokens each block keeps from `images` calibration images;
    `random` takes the best of many that are drawn, `mass` as many as carry one share of the
    attention in each block;
    `constant`, `decreasing`, `published` and `stepped` are shapes fitted to the budget;
    `deit_small@2.9` and the like are schedules of DiffRate's authors; a list gives the tokens kept
    after each block or, for `diffrate`, pairs of those left after dropping and after merging.
    `block`: tokens merge in this block alone, the first is 0, and `tokens` of the patches are left;
    without `tokens` as many as the budget allows.
    `proportional`: merged tokens count in attention by their size (off for MAE models).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["merge"] = "merge"
    name: str = "merge"
    method: MergeMethod = "fisher"
    budget: MergeBudget | None = None
    schedule: str | tuple[int | tuple[int, int], ...] = "search"
    block: Annotated[int, Field(ge=0)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    images: Annotated[int, Field(ge=8)] = 256
    proportional: bool = True

    @field_validator("method", mode="before")
    @classmethod
    def _merges(cls, value: object) -> object:
        if value == "cls_only_tail":
            raise ValueError("cls_only_tail is a stage of its own: write `type: tail`")
        return value

    @field_validator("schedule", mode="after")
    @classmethod
    def _known(cls, value: Any) -> Any:
        known = ("search", *schedules.SHAPES, "mass", "random", *schedules.PUBLISHED)
        if isinstance(value, str) and value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}, nor a list")
        return value

    @model_validator(mode="after")
    def _one_block(self) -> "MergeConfig":
        if self.block is None and self.tokens is not None:
            raise ValueError("tokens: of which block? Add `block`")
        if self.block is not None and self.schedule != "search":
            raise ValueError("schedule: tokens merge in one block; take schedule or block out")
        return self

    @model_validator(mode="after")
    def _budget_where_needed(self) -> "MergeConfig":
        fitted = isinstance(self.schedule, str) and self.schedule not in schedules.PUBLISHED
        fitted = fitted and self.tokens is None
        if fitted and self.budget is None:
            raise ValueError(
                "budget: missing; add for example {macs: 0.65}, or write `type: tail` to leave out "
                "only what the head does not read"
            )
        elif not fitted and self.budget is not None:
            raise ValueError(
                "budget: an explicit schedule or number of tokens has none; take one of the two out"
            )
        return self
