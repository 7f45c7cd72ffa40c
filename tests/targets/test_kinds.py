"""The models that runtimes are tried with are what their names say."""

from collections.abc import Callable

import pytest
from kinds import KINDS

from vitcompress.model.architecture import VitModel

MakeVit = Callable[..., VitModel]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_what_its_name_says(kind: str, make_vit: MakeVit) -> None:
    dense = make_vit(depth=3)
    model, layers = KINDS[kind](make_vit(depth=3)), dense.anatomy.linears()
    told, everything = model.architecture, kind == "all"
    merging = told.merging
    assert (merging is not None and merging.kept[-1] < dense.anatomy.tokens) == (
        everything or kind == "merged"
    )
    assert bool(told.blocks) == (everything or kind == "pruned")
    assert bool(told.sparse) == (everything or kind == "sparse 2:4")
    assert set(told.quantized) == set(layers if everything or "bits" in kind else ())
