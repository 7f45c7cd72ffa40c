"""The recipe keys of the prune stage."""

from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitcompress.registry import OneOf

SALIENCIES = "vitcompress.stages.prune.saliencies"
"""The package whose files are what `saliency` can be."""

StructureKind = Literal["query_key", "value", "hidden", "heads", "attention", "mlp"]
Structure = Literal[StructureKind, "embedding"]
Unit = Literal["macs", "params", "bytes", "latency"]
_MULTIPLE = 8
_Share = Annotated[float, Field(gt=0, le=1)]


class Budget(BaseModel):
    """What may be left, as a share of the dense model: exactly one of the keys.

    `latency` is that of onnxruntime on this machine, one thread, one image at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: _Share | None = None
    params: _Share | None = None
    bytes: _Share | None = None
    latency: _Share | None = None

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of macs, params, bytes and latency")
        return self

    @property
    def only(self) -> tuple[Unit, float]:
        """The key that is given, and its value."""
        ((unit, share),) = self.model_dump(exclude_none=True).items()
        return cast(Unit, unit), share


class PruneConfig(BaseModel):
    """Remove structures, until `budget` is met.

    `structures`: what may go: dimensions of queries and keys, of values, hidden units, heads, whole
    attentions and MLPs, and channels of the stream of tokens (`embedding`). `saliency`: what
    decides which go. `targets`: whose gradients count: those of directions drawn from the model's
    softmax (`sampled`), or of the labels of the calibration images (`labels`). `allocate`: spend
    the budget where it costs least, or evenly (`uniform`). `rotate`: turn heads to their principal
    dimensions first.
    `compensate`: refit what stays. `multiple`: sizes are rounded to it; by default to 8, those of
    heads to less where 8 is more than an eighth of them. `floor`: the share of each structure that
    stays whatever happens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["prune"] = "prune"
    name: str = "prune"
    budget: Budget
    structures: Annotated[tuple[Structure, ...], Field(min_length=1)] = (
        "query_key",
        "value",
        "hidden",
    )
    saliency: Annotated[str, OneOf(SALIENCIES)] = "obs"
    targets: Literal["sampled", "labels"] = "sampled"
    allocate: Literal["measured", "uniform"] = "measured"
    rotate: bool = True
    compensate: bool = True
    multiple: Annotated[int, Field(ge=1)] | None = None
    floor: _Share = 0.125

    def step(self, structure: Structure, size: int) -> int:
        """By how much `structure`, which has this `size`, can be narrowed at a time."""
        if structure == "heads":
            return 1
        if self.multiple is not None or structure not in ("query_key", "value"):
            return self.multiple or _MULTIPLE
        return next(step for step in (_MULTIPLE, 4, 2, 1) if step == 1 or _MULTIPLE * step <= size)
