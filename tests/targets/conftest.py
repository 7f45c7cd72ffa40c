"""Tiny models of every kind that is exported."""

from collections.abc import Callable

import pytest
from kinds import merged, pruned, quantized, sparse

from vitcompress.model.architecture import VitModel

MakeVit = Callable[..., VitModel]
BLOCKS_AND_HEAD = ("blocks", "head")

KINDS: dict[str, Callable[[MakeVit], VitModel]] = {
    "float": lambda make: make(depth=1),
    "8 bits in two terms": lambda make: quantized(make(depth=1), 8, terms=2, residual_tokens=1),
    "7 bits": lambda make: quantized(make(depth=1), 7, layers=BLOCKS_AND_HEAD),
    "7 bits in two terms": lambda make: quantized(
        make(depth=1), 7, terms=2, residual_tokens=1, layers=BLOCKS_AND_HEAD
    ),
    "4 bits in groups": lambda make: quantized(make(depth=1), 4, group=32),
    "3 bits, dynamic": lambda make: quantized(make(depth=1), 3, "dynamic"),
    "4 bits in groups, float inputs": lambda make: quantized(make(depth=1), 4, "float", group=32),
    "a table of 8 levels, in groups": lambda make: quantized(
        make(depth=1), 3, group=32, codebook="power_of_two"
    ),
    "sparse, ternary": lambda make: quantized(sparse(make(depth=1)), 2, codebook="ternary"),
    "sparse, 8 bits, float inputs": lambda make: quantized(sparse(make(depth=1)), 8, "float"),
    "rotary": lambda make: make("eva02_tiny_patch14_224", depth=1),
    "merged": lambda make: merged(make(depth=3)),
    "merged, 7 bits": lambda make: quantized(merged(make(depth=3)), 7),
    "pruned": lambda make: pruned(make()),
    "sparse": lambda make: sparse(make()),
    "sparse, 4 bits": lambda make: quantized(sparse(make()), 4),
}


@pytest.fixture
def model_of(make_vit: MakeVit) -> Callable[[str], VitModel]:
    """A function that returns a new model of one of the kinds above."""
    return lambda kind: KINDS[kind](make_vit)
