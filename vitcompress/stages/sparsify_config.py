"""What a recipe says of the sparsify stage, and which layers and patterns it means."""

from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from vitcompress.errors import InputError
from vitcompress.methods import sparsity
from vitcompress.methods.sparsity import Criterion, Pattern
from vitcompress.model.architecture import VitModel
from vitcompress.model.patterns import match
from vitcompress.model.structure import linears, quantized_linears

MIXED = "mixed"


class SparsifyConfig(BaseModel):
    """Put zeros into the weights of Linear layers, and refit the weights that stay.

    `pattern`: `n:m` (n of m neighbouring inputs stay), `RxC` (whole blocks of R outputs × C inputs;
    edges are filled up), `unstructured`, or `mixed`: 1:4, 2:4, 3:4 or dense, layer by layer.
    `patterns`: by pattern of layer names, what these have instead. `layers`: patterns over layer
    names; `skip`: patterns taken out again. `density`: the share of these layers' weights that
    stays, for patterns that do not fix it. `allocation`: `distortion` gives each layer its own
    density, by what its zeros cost the model's output; `uniform` gives all the same. `floor`: the
    least density of a layer. `criterion`: what ranks weights: `obs` (with errors made good as it
    goes: SparseGPT for n:m, else in rounds, with refits between them), `taylor`, `wanda`,
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
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*.mlp.fc1", "*.mlp.fc2")
    skip: tuple[str, ...] = ()
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    allocation: Literal["distortion", "uniform"] = "distortion"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.05
    criterion: Criterion = "obs"
    reconstruct: bool = True
    permute: bool = True
    storage: Literal["compact", "dense"] = "compact"

    @field_validator("pattern", "patterns", mode="after")
    @classmethod
    def _known(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        for text in [value] if isinstance(value, str) else value.values():
            if text != MIXED:
                sparsity.parse(text)
        return value


NM = ("1:4", "2:4", "3:4")  # what `mixed` chooses from, beside dense
GRID = 16  # and what other patterns choose from: so many densities, the last dense
DENSE = (Pattern(), 1.0)


def choices(model: VitModel, config: SparsifyConfig) -> dict[str, list[tuple[Pattern, float]]]:
    """The patterns and densities that each selected layer may have, ascending.

    Raises `InputError` for patterns that match no layer or do not fit its shape, and for a density
    that is missing or has no effect.
    """
    key = f"stages.{config.name}"
    names, done = list(linears(model.module)), quantized_linears(model.module)
    skipped = set(match(config.skip, names, f"{key}.skip", done))
    texts = dict.fromkeys(
        (n for n in match(config.layers, names, f"{key}.layers", done) if n not in skipped),
        config.pattern,
    )
    if not texts:
        raise InputError(f"{key}.skip: leaves no layer to sparsify; skip fewer")
    for pattern, text in config.patterns.items():
        for name in match([pattern], list(texts), f"{key}.patterns"):
            texts[name] = text
    fixed = [name for name, text in texts.items() if text != MIXED and sparsity.parse(text).group]
    if len(fixed) == len(texts) and config.density is not None:
        raise InputError(f"{key}.density: {config.pattern} fixes the density; leave the key out")
    if len(fixed) < len(texts) and config.density is None:
        raise InputError(
            f"{key}.density: {config.pattern} needs the share of weights that stays, such as 0.7"
        )
    if MIXED in texts.values() and config.allocation == "uniform":
        raise InputError(f"{key}.allocation: mixed patterns are allocated by distortion")
    found = {}
    for name, text in texts.items():
        found[name] = _allowed(text, config)
        inputs = cast(nn.Linear, model.module.get_submodule(name)).in_features
        for each, _ in found[name]:
            if each.group and inputs % each.group:
                raise InputError(
                    f"{key}.pattern: {text} does not fit {name}: its {inputs} inputs are no "
                    f"multiple of {each.group}; take it out with skip, or give it another "
                    "pattern in patterns"
                )
    return found


def _allowed(text: str, config: SparsifyConfig) -> list[tuple[Pattern, float]]:
    if text == MIXED:
        each = [sparsity.parse(nm) for nm in NM]
        return [(p, p.density(1)) for p in each if p.density(1) >= config.floor] + [DENSE]
    pattern = sparsity.parse(text)
    if pattern.group:
        return [(pattern, pattern.density(1))]
    assert config.density is not None
    if config.allocation == "uniform":
        return [(pattern, config.density)]
    densities = [step / GRID for step in range(1, GRID + 1)]
    return [(pattern, d) for d in densities if d >= config.floor]
