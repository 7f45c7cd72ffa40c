"""What a recipe says of the recover stage."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from vitcompress.registry import OneOf

MethodName = Annotated[str, OneOf("vitcompress.stages.recover.methods")]


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
    run time. `images`: how many calibration images at most (None: all). `held_back`: the share of
    them that is held back; what does not come nearer to the dense model there is not kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["recover"] = "recover"
    name: str = "recover"
    method: MethodName = "affine"
    images: Annotated[int, Field(gt=0)] | None = None
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _options_of_the_method(self) -> Self:
        for name, field in type(self).model_fields.items():
            owner = next((m.method for m in field.metadata if isinstance(m, OnlyOf)), self.method)
            if owner != self.method and getattr(self, name) != field.default:
                what = f"is for method: {owner}, and the method is {self.method}; leave it out"
                raise PydanticCustomError("other_method", "{what}", {"what": what, "at": (name,)})
        return self
