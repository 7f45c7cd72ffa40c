"""The combinations that a recipe allows."""

from typing import Any

import pytest
from pydantic import ValidationError

from vitcompress.errors import InputError
from vitcompress.recipe import Recipe
from vitcompress.searching.space import Space, space_of

STAGES: list[dict[str, Any]] = [
    {"name": "tail", "type": "tail"},
    {"name": "prune", "type": "prune", "budget": {"macs": 0.9}},
    {"name": "quant", "type": "quantize", "rest": "float16"},
]
CHOICES: dict[str, Any] = {
    "quant": [{"bits": 8}, {"bits": {"average": 5}}],
    "prune": [None, {"budget": {"macs": 0.8}}, {}],
}


def space(choices: dict[str, Any]) -> Space:
    told = {"stages": STAGES, "search": {"choices": choices}}
    return space_of(Recipe.model_validate(told))


def test_choices_stand_in_the_order_of_the_chain_over_what_the_recipe_says() -> None:
    found = space(CHOICES)
    assert list(found.stages) == ["prune", "quant"]
    assert [c.name for c in found.chain(found.start)] == ["tail", "quant"]
    _, prune, quant = found.chain((1, 1))
    assert prune.budget.macs == 0.8  # type: ignore[union-attr]
    assert quant.bits.average == 5  # type: ignore[union-attr]
    assert quant.rest == "float16"  # type: ignore[union-attr]
    assert found.chain((2, 0))[1].budget.macs == 0.9  # type: ignore[union-attr]
    assert len(list(found.every())) == 6
    assert found.singles() == [(1, 0), (2, 0), (0, 1)]
    assert found.told((1, 0)) == {"prune": "budget macs 0.8", "quant": "bits 8"}


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"merge": [None]}, r"search\.choices\.merge: the recipe has no stage .* tail, prune"),
        ({"quant": [{"bits": 9}]}, r"search\.choices\.quant\[0\]\.bits"),
        ({"quant": [{}, {"bit": 8}]}, r"search\.choices\.quant\[1\]\.bit: "),
        ({"quant": [{"type": "prune"}]}, r"search\.choices\.quant\[0\]\.type: .* leave it out"),
        ({}, r"search\.choices: leave nothing to choose"),
        ({"quant": [{}]}, r"search\.choices: leave nothing to choose"),
    ],
)
def test_wrong_choices_are_told_by_key(choices: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        space(choices)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], b"x", {1: 2}])
def test_choices_are_what_a_recipe_can_hold(value: object) -> None:
    with pytest.raises(ValidationError, match=r"search\.choices\.quant\.0"):
        space({"quant": [{}, {"bits": 8}, {"bits": value}][::-1]})
