"""The output of a model as plain data: how tokens become it, where timm does not say so.

What a model gives is made of its normed tokens in three steps: they are pooled, what is pooled goes
through layers, and the result may be brought to length one. A `Head` describes what of this is not
as timm has it; its family tells where in a module these steps are.
"""

from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator
from torch import nn

from vitcompress.errors import InputError
from vitcompress.model.modules.pooling import Normalise, Pool, Pooling
from vitcompress.terms import Activation, Output

_Width = Annotated[int, Field(ge=1, le=65_536)]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinearLayer(_Described):
    """A matrix product, by default with a bias."""

    type: Literal["linear"] = "linear"
    inputs: _Width
    outputs: _Width
    bias: bool = True

    def build(self) -> nn.Module:
        return nn.Linear(self.inputs, self.outputs, self.bias)


class NormLayer(_Described):
    """A LayerNorm with weight and bias."""

    type: Literal["layer_norm"] = "layer_norm"
    width: _Width
    eps: PositiveFloat = 1e-5

    def build(self) -> nn.Module:
        return nn.LayerNorm(self.width, self.eps)


class ActivationLayer(_Described):
    """A function of each value, by timm's name of it."""

    type: Literal["activation"] = "activation"
    name: Activation

    def build(self) -> nn.Module:
        from timm.layers import create_act_layer

        return cast(nn.Module, create_act_layer(self.name))


Layer = Annotated[LinearLayer | NormLayer | ActivationLayer, Field(discriminator="type")]


class Head(_Described):
    """How normed tokens become the output.

    `pool`: what is read of them (None: as timm pools). `layers`: what that goes through, one after
    the other (None: the head that timm has; empty: nothing). A layout calls their tensors
    `head.PLACE.weight` and so on; places are counted from 0, those of activations included.
    `normalise`: whether outputs are brought to length one.
    """

    pool: Pooling | None = None
    layers: Annotated[tuple[Layer, ...], Field(max_length=100)] | None = None
    normalise: bool = False

    @model_validator(mode="after")
    def _fitting(self) -> "Head":
        width = None
        for number, layer in enumerate(self.layers or ()):
            if isinstance(layer, ActivationLayer):
                continue
            taken = layer.inputs if isinstance(layer, LinearLayer) else layer.width
            if width not in (None, taken):
                raise ValueError(f"layers.{number} takes {taken} values, and {width} come to it")
            width = layer.outputs if isinstance(layer, LinearLayer) else taken
        return self

    @property
    def outputs(self) -> int:
        """How many outputs its last Linear has; 0 where it has none."""
        linears = [each for each in self.layers or () if isinstance(each, LinearLayer)]
        return linears[-1].outputs if linears else 0


class Choice(NamedTuple):
    """What a user wants as the output (None: as the checkpoint has it).

    `output`: which features, pooled as the model pools them or otherwise; its head is left out.
    `normalise`: whether outputs are brought to length one. `activation`: what stands between the
    layers of its head, which no tensor tells.
    """

    output: Output | None = None
    normalise: bool | None = None
    activation: Activation | Literal["none"] | None = None

    def of(self, head: Head | None) -> Head | None:
        """The head that comes of it, where that of the checkpoint is `head`."""
        wanted = head or Head()
        if self.output is not None:
            pool = wanted.pool if self.output == "pooled" else self.output
            wanted = Head(pool=pool, layers=(), normalise=wanted.normalise)
        if self.normalise is not None:
            wanted = wanted.model_copy(update={"normalise": self.normalise})
        return None if wanted == Head() else wanted


class HeadPlace(NamedTuple):
    """Where in a module the steps of its head are.

    `layers`: the name of what makes the output of what is pooled; None where no single module does.
    `pool`: the name of what is given all tokens [B, p + N, C] and pools them; None where the family
    has nothing of the kind. `prefix`: how many tokens stand before those of patches, a
    `class_token` first.
    """

    layers: str | None
    pool: str | None = None
    prefix: int = 0
    class_token: bool = False


def set_layers(module: nn.Module, place: HeadPlace, head: Head, source: str) -> None:
    """Put the layers of `head`, untrained, in the place of those of `module` (in place).

    Raises `InputError` where it has no place for them.
    """
    name = _layers_name(place, source)
    layers = [layer.build() for layer in head.layers or ()]
    _put(module, name, nn.Sequential(*layers) if layers else nn.Identity())
    cast(Any, module).num_classes = head.outputs


def set_ends(module: nn.Module, place: HeadPlace, head: Head, source: str) -> None:
    """Let `module` pool and normalise as `head` says, whatever its layers are (in place).

    Raises `InputError` where it cannot.
    """
    if head.pool is not None:
        if place.pool is None:
            raise InputError(
                f"{source}: model.output: {head.pool}: its tokens are not known; give pooled"
            )
        if head.pool in ("token", "joined") and not place.class_token:
            raise InputError(
                f"{source}: model.output: {head.pool}: it has no class token; give average or "
                "tokens"
            )
        _put(module, place.pool, Pool(head.pool, place.prefix))
        if hasattr(module, "pool_include_prefix"):
            cast(Any, module).pool_include_prefix = True  # timm shall give it all tokens
    if head.normalise:
        name = _layers_name(place, source)
        layers = module.get_submodule(name)
        parts = layers if isinstance(layers, nn.Sequential) else [layers]
        _put(module, name, nn.Sequential(*parts, Normalise()))


def _layers_name(place: HeadPlace, source: str) -> str:
    if place.layers is None:
        raise InputError(
            f"{source}: its output is not made by one head, which could be described; leave out "
            "model.output and model.normalise"
        )
    return place.layers


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Set the part `name` of `module`, which may be None before."""
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)
