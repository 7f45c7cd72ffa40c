"""What sites cost is what the counter counts there, and what a model takes that has them."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitcompress.export.onnx import Part
from vitcompress.measure import branches, latencies
from vitcompress.measure.latencies import LatencyTable
from vitcompress.measure.sites import site_latency, site_macs
from vitcompress.model.anatomy import Anatomy, SiteTokens
from vitcompress.model.architecture import VitModel, set_tail
from vitcompress.model.families import adopt, anatomy_of
from vitcompress.model.modules import attention
from vitcompress.model.sizes import size_of

MakeVit = Callable[..., VitModel]
SWIN = "swin_tiny_patch4_window7_224"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "gated": ("vit_giant_patch14_dinov2", {"mlp_ratio": 4}),
    "rotary": ("vit_small_patch16_dinov3", {}),
    "bias": ("beit_base_patch16_224", {}),
    "windows": (SWIN, {"window_size": 4}),
    "padded": (SWIN, {"window_size": 5}),
    "one padded": (SWIN, {"window_size": 12, "always_partition": True}),
    "norms after": ("swinv2_tiny_window8_256", {"window_size": 4}),
}


def made(name: str, make_vit: MakeVit) -> Anatomy:
    model, options = MODELS[name]
    if not model.startswith("swin"):
        return make_vit(model, **options).anatomy
    sizes = {"img_size": 32, "patch_size": 2, "embed_dim": 24, "depths": (2, 2)}
    swin = timm.create_model(model, num_heads=(2, 4), num_classes=10, **sizes, **options)
    return anatomy_of(adopt(swin))


@pytest.mark.parametrize("name", MODELS)
def test_sites_cost_what_the_counter_counts(name: str, make_vit: MakeVit) -> None:
    anatomy = made(name, make_vit)
    if anatomy.reads_prefix:
        set_tail(anatomy.module, anatomy.prefix_tokens)
        anatomy = anatomy_of(anatomy.module)
    steps = {step.module: step for step in anatomy.steps}
    for site in anatomy.sites:
        tokens, (coming, going) = anatomy.tokens_at(site), steps[site.block].tokens or (0, 0)
        count = coming if site.kind == "attention" else going
        x = torch.zeros(1, count, site.first.in_features)
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
            site.half(x)
        assert tokens is not None
        assert 2 * site_macs(site, tokens, size_of(site)) == counter.get_total_flops() > 0


def test_what_is_left_out_costs_nothing(vit: VitModel) -> None:
    attention, mlp = vit.anatomy.sites[:2]
    for site in (attention, mlp):
        assert site_macs(site, SiteTokens(17, 17, 17), None) == 0
        assert site_latency(site, SiteTokens(17, 17, 17), None, LatencyTable()) == 0
    assert site_macs(mlp, SiteTokens(17, 1, 0), 100) == 2 * 64 * 100


def test_sites_are_timed_as_they_are(make_vit: MakeVit, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *others: Any) -> Tensor:
        timed.append(f"{heads} heads")
        return attention.attend(q, k, v, heads, *others)

    def measured(parts: dict[str, Part], _: str) -> dict[str, float]:
        for part in parts.values():
            before, (tokens, width) = len(timed), part.size
            part.module(torch.zeros(1, *part.size))
            timed[before:] = (f"{each}, {tokens} tokens of {width}" for each in timed[before:])
        return dict.fromkeys(parts, 1.0)

    monkeypatch.setattr(branches, "attend", attend)

    monkeypatch.setattr(latencies, "_milliseconds", measured)
    anatomy, table = made("windows", make_vit), LatencyTable()
    for site in anatomy.sites:
        tokens = anatomy.tokens_at(site)
        assert tokens is not None
        assert site_latency(site, tokens, size_of(site), table) == 1.0
    assert set(timed) == {"32 heads, 256 tokens of 24", "16 heads, 64 tokens of 48"}
    assert len(table.grids) == 4
