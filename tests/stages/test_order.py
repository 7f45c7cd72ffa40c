"""Orders of stages that are known to lose."""

import re
from typing import Any

import pytest
from pydantic import TypeAdapter

from vitcompress.recipe import load_recipe, packaged_recipes
from vitcompress.stages.order import losing_orders
from vitcompress.stages.registry import StageConfig

OPTIONS = {word: {"budget": {"macs": 0.8}} for word in ("prune", "merge")}


def losing(chain: str) -> list[str]:
    """Of stages called as their types."""
    stages = [{"type": word, "name": f"{word}{n}"} for n, word in enumerate(chain.split())]
    given = [stage | OPTIONS.get(stage["type"], {}) for stage in stages]
    return losing_orders([TypeAdapter[Any](StageConfig).validate_python(each) for each in given])


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_have_the_order_that_loses_least(name: str) -> None:
    assert not losing_orders(load_recipe(packaged_recipes()[name]).stages)


@pytest.mark.parametrize(
    "chain",
    [
        "tail prune merge sparsify recover quantize",
        "prune merge tail quantize recover",
        "prune recover merge recover quantize recover",
    ],
)
def test_weaker_changes_first_are_not_warned_of(chain: str) -> None:
    assert not losing(chain)


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        ("sparsify merge", "merge1: comes after sparsify0, .* more; put it before sparsify0$"),
        ("quantize tail prune", "prune2: comes after quantize0, .*; put it before quantize0$"),
        ("merge recover sparsify", "sparsify2: comes after recover1, .* or add a stage recover"),
        ("quantize recover sparsify recover", "sparsify2: comes after quantize0"),
    ],
)
def test_a_stage_after_one_that_changes_more_is_warned_of(chain: str, told: str) -> None:
    (line,) = losing(chain)
    assert "\n" not in line
    assert re.match(rf"stages\.{told}", line)
