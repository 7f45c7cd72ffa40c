"""Attention of few links, in models of all kinds of attention, and what is told of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.models import WINDOWED
from vitcompress.errors import InputError
from vitcompress.methods.links import Maps
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.links import FewLinks
from vitcompress.stages.context import Context
from vitcompress.stages.links import attention_study

MakeVit = Callable[..., VitModel]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "rotary": ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    "gated": ("vit_small_plus_patch16_dinov3", {"global_pool": "token"}),
    "beit": ("beit_base_patch16_224", {}),
    "windows": ("swin_tiny_patch4_window7_224", WINDOWED),
    "cosines": ("swinv2_tiny_window8_256", WINDOWED),
}
each = pytest.mark.parametrize(("name", "options"), FAMILIES.values(), ids=FAMILIES)


def with_links(model: VitModel, share: float, maps: Maps | None, pixels: Tensor) -> Tensor:
    """What `model` gives if each query of all attention has a share of its links."""
    for site in model.anatomy.sites:
        if site.kind == "attention":
            site.block.attn = FewLinks(site.operator, share, maps)
    found: Tensor = model.module(pixels)
    return found


@each
def test_nothing_changes_where_all_links_are_kept(
    name: str, options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    dense = make_vit(name, **options).module(pixels)
    kept = with_links(make_vit(name, **options), 1.0, None, pixels)
    assert torch.allclose(kept, dense, atol=1e-5)
    fewer = with_links(make_vit(name, **options), 0.3, None, pixels)
    assert not torch.allclose(fewer, dense, atol=1e-3)


@each
def test_maps_that_keep_all_dimensions_tell_what_the_logits_tell(
    name: str, options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    model = make_vit(name, **options)
    attention = model.anatomy.sites[0].operator
    if "depths" in options:  # whose heads have as many dimensions everywhere
        assert options["embed_dim"] // options["num_heads"][0] == 8
    heads, dims = attention.num_heads, attention.widths[0] // attention.num_heads
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(1)))[0]
    turned = turn[None].expand(1, -1, -1)
    assert heads >= 2
    told = with_links(model, 0.3, Maps(turned, turned), pixels)
    exact = with_links(make_vit(name, **options), 0.3, None, pixels)
    assert torch.allclose(told, exact, atol=1e-4)


@pytest.mark.parametrize("head", [None, 1])
def test_what_is_left_is_the_softmax_of_the_largest_logits(
    head: int | None, make_vit: MakeVit
) -> None:
    dense = make_vit().anatomy.sites[0].operator
    x = torch.randn(1, 17, 64, generator=torch.Generator().manual_seed(2))
    found = FewLinks(dense, 0.25, head=head)(x)
    q, k, v = (t.unflatten(-1, (2, 32))[0] for t in dense.qkv(x).chunk(3, -1))
    mixed = torch.zeros(17, 2, 32)
    for h in range(2):
        for query in range(17):
            logits = dense.scale * k[:, h] @ q[query, h]
            least = logits.sort().values[-4 if head in (None, h) else 0]  # round(17 / 4)
            weights = logits.masked_fill(logits < least, -torch.inf).softmax(0)
            mixed[query, h] = weights @ v[:, h]
    assert torch.allclose(found, dense.proj(mixed.flatten(1))[None], atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "windows"])
def test_the_study_tells_all_and_changes_nothing(
    name: str, make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    family, options = FAMILIES[name]
    model = make_vit(family, **options)
    before = model.module(pixels)
    tables = attention_study(model, context)
    assert torch.equal(model.module(pixels), before)
    tellers = ["exact", "low_rank", "channels"]
    names = [f"attention {what}" for what in (*tellers, "blocks", "heads")]
    assert list(tables) == names
    for teller in tellers:
        rows = tables[f"attention {teller}"].rows
        assert [row["links"] for row in rows] == ["50 %", "25 %", "12.5 %", "6.25 %"]
        assert all(row["kl"] > 0 and 0 <= row["agreement"] <= 100 for row in rows)
        ratios = [row["attention_macs_ratio"] for row in rows]
        assert ratios == sorted(ratios, reverse=True)
        assert rows[-1]["kl"] > rows[0]["kl"]
    sites = [site for site in model.anatomy.sites if site.kind == "attention"]
    blocks, heads = (tables[f"attention {what}"].rows for what in ("blocks", "heads"))
    assert len(blocks) == len(sites)
    assert len(heads) == sum(site.operator.num_heads for site in sites)
    assert all(row["exact_kl"] > 0 for row in (*blocks, *heads))
    assert heads[1]["place"] == f"{blocks[0]['place']}.head1"


def test_attention_that_is_not_known_is_refused(make_vit: MakeVit, context: Context) -> None:
    gone = dict.fromkeys(("img_size", "patch_size", "embed_dim", "depth", "num_heads"))
    shape = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "conv_mlp": False}
    with pytest.raises(InputError, match="--attention: the attention of convnext_atto is not"):
        attention_study(make_vit("convnext_atto", **gone, **shape), context)
