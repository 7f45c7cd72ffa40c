"""What a recipe says of the recover stage."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from vitcompress.registry import OneOf

Parameters = Literal["all", "affine", "sites"]
"""Which parameters are trained: all; norms, biases and scales; those of the sites that matter."""

MethodName = Annotated[str, OneOf("vitcompress.stages.recover.methods")]

_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class OnlyOf:
    """Says of an option that it means something for one `method` only.

    `steps: Annotated[int, OnlyOf("distill")] = 400`.
    """

    method: str


class RecoverConfig(BaseModel):
    """Bring the model as the stages before left it back towards the dense one, without labels.

    `method`: `affine` gives each branch of each block the scale and the shift of its channels that
    bring the stream of tokens nearest to that of the dense model, in closed form and at no cost at
    run time; `distill` trains the model to answer as the dense one does, on random crops and flips
    of the images and of those of `data.recovery`. `images`: how many calibration images at most
    (None: all). `held_back`: the share of them that is held back, from
    all stages of the chain, to choose and to judge by; what does not come nearer to the dense model
    there is not kept.

    Of `distill`: `steps`, each of `batch` crops, of sides between the shares `crops` of the image.
    `optimizer`: timm's name of one; `rate`: its learning rate, which rises from zero and falls to
    it again. `features`: what the error of the features between blocks counts beside the distance
    of the outputs. `parameters`: `all`; `affine`: norms, biases and scales only; `sites`: those of
    the attentions and MLPs that most of the distance comes from. Zeros stay zeros. `runs`: how many
    times, each with other views; the weights of all are averaged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["recover"] = "recover"
    name: str = "recover"
    method: MethodName = "distill"
    images: Annotated[int, Field(gt=0)] | None = None
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.25
    steps: Annotated[int, Field(gt=0, le=1_000_000), OnlyOf("distill")] = 300
    batch: Annotated[int, Field(gt=0, le=4096), OnlyOf("distill")] = 16
    crops: Annotated[tuple[_Share, _Share], OnlyOf("distill")] = (0.5, 1.0)
    optimizer: Annotated[str, OnlyOf("distill")] = "adamw"
    rate: Annotated[float, Field(gt=0, le=1), OnlyOf("distill")] = 2e-5
    features: Annotated[float, Field(ge=0, le=1e6), OnlyOf("distill")] = 2.0
    parameters: Annotated[Parameters, OnlyOf("distill")] = "all"
    runs: Annotated[int, Field(ge=1, le=100), OnlyOf("distill")] = 1

    @field_validator("crops", mode="after")
    @classmethod
    def _from_small_to_large(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smaller share comes first")
        return value

    @model_validator(mode="after")
    def _options_of_the_method(self) -> Self:
        for name, field in type(self).model_fields.items():
            owner = next((m.method for m in field.metadata if isinstance(m, OnlyOf)), self.method)
            if owner != self.method and getattr(self, name) != field.default:
                what = f"is for method: {owner}, and the method is {self.method}; leave it out"
                raise PydanticCustomError("other_method", "{what}", {"what": what, "at": (name,)})
        return self
