"""The tail stage: exact where it applies, and skipped with a word where it does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompress.measure.cost import macs
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.tail.config import TailConfig
from vitcompress.stages.tail.stage import plan, tail

MakeVit = Callable[..., VitModel]


def test_only_what_the_head_reads_is_computed(
    vit: VitModel, context: Context, pixels: Tensor
) -> None:
    before = vit.fingerprint()
    result = tail(vit, TailConfig(), context)
    assert result.facts == {"tokens_in_last_block": 1}
    assert result.model.architecture.tail_tokens == 1
    assert macs(result.model) < macs(vit)
    torch.testing.assert_close(
        result.model.module(pixels), vit.module(pixels), atol=1e-5, rtol=1e-4
    )
    assert vit.fingerprint() == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("beit_base_patch16_224", {}),
    ],
)
def test_where_it_is_not_exact_it_is_skipped(
    name: str, options: dict[str, Any], make_vit: MakeVit, context: Context
) -> None:
    model = make_vit(name, **options)
    for result in (tail(model, TailConfig(name="end"), context), plan(model, TailConfig())):
        assert result.model is model
        assert list(result.facts) == ["skipped"]
    (warning,) = tail(model, TailConfig(name="end"), context).warnings
    assert warning.startswith(f"stages.end: skipped: {name}: its head reads more than class")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 0, "reg_tokens": 2}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("eva02_enormous_patch14_clip_224", {}),
    ],
)
def test_it_is_exact_in_any_family(
    name: str, options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    model = make_vit(name, **options)
    left = plan(model, TailConfig()).model
    assert left.architecture.tail_tokens == model.anatomy.prefix_tokens
    torch.testing.assert_close(left.module(pixels), model.module(pixels), atol=1e-5, rtol=1e-4)
