"""What a recipe says of the sparsify stage."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vitcompress.methods.patterns import parse_pattern
from vitcompress.registry import OneOf

MIXED = "mixed"

CriterionName = Annotated[str, OneOf("vitcompress.stages.sparsify.criteria")]


class SparsifyConfig(BaseModel):
    """Put zeros into the weights of Linear layers, or make two small products of them, and refit.

    `pattern`: `n:m` (n of m neighbouring inputs stay), `RxC` (whole blocks of R outputs × C inputs;
    edges are filled up), `unstructured`, or `mixed`: 1:4, 2:4, 3:4 or dense, layer by layer. Two
    products: `low_rank` (few values between them) or `monarch:B` (each in B blocks).
    `patterns`: by pattern of layer names, what these have instead. `layers`: patterns over layer
    names; `skip`: patterns taken out again. `density`: the share of these layers' weights that
    stays, for patterns that do not fix it. `rank`: what fixes it for two products, of each of their
    parts. `allocation`: `distortion` gives each layer its own density, by what its zeros cost the
    model's output; `uniform` gives all the same, and `erk` more to small layers. `floor`: the least
    density of a layer, where it is found by distortion. `criterion`: what ranks weights: `obs`
    (with errors made good as it goes: SparseGPT for n:m, else in rounds, with refits between them),
    `taylor`, `wanda`,
    `magnitude`, `dimap` or `random`. `reconstruct`: refit the weights that stay, and the bias, to
    the outputs of the dense layer. `permute`: put the hidden units of an MLP in an order that suits
    its n:m pattern. `storage`: `compact` leaves the zeros out of all files; `dense` writes them, as
    TensorRT's kernels for 2:4 expect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["sparsify"] = "sparsify"
    name: str = "sparsify"
    pattern: str = "2:4"
    patterns: dict[str, str] = {}
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*mlp*",)
    skip: tuple[str, ...] = ()
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    rank: Annotated[int, Field(ge=1)] | None = None
    allocation: Literal["distortion", "uniform", "erk"] = "distortion"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.05
    criterion: CriterionName = "obs"
    reconstruct: bool = True
    permute: bool = True
    storage: Literal["compact", "dense"] = "compact"

    @field_validator("pattern", "patterns", mode="after")
    @classmethod
    def _known(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        for text in [value] if isinstance(value, str) else value.values():
            if text != MIXED:
                parse_pattern(text)
        return value
