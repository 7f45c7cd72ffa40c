"""Models that merge tokens: exact where nothing is merged, and the same wherever they run."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from torch import Tensor

from vitcompress import registry
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure.cost import dense_macs, macs
from vitcompress.measure.tokens import schedule_macs
from vitcompress.methods.selection import rows
from vitcompress.methods.tokens import method_of
from vitcompress.model.architecture import VitModel, merging_blocks, set_merging, set_tail
from vitcompress.model.merging import Merging, State, token_maps
from vitcompress.terms import MERGING, MergeMethod

MakeVit = Callable[..., VitModel]
METHODS = registry.names(MERGING)
FAMILIES: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "registers": {"reg_tokens": 3},
    "mean": {"global_pool": "avg", "class_token": False},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "layer scale": {"init_values": 0.5},
    "qk norm": {"qk_norm": True},
    "rotary": {"name": "vit_small_patch16_dinov3", "global_pool": "token"},
    "rotary mean": {"name": "vit_medium_patch16_rope_reg1_gap_256"},
    "rotary mixed": {"name": "vit_small_patch16_rope_mixed_224"},
}


def merged(
    model: VitModel, kept: tuple[int, ...], method: MergeMethod = "diffrate", **options: Any
) -> VitModel:
    """`model` with patch tokens merged: `kept` counts them without the prefix."""
    module: Any = model.module
    whole = tuple(count + module.num_prefix_tokens for count in kept)
    merging = Merging(method=method, kept=whole, **options)
    if module.global_pool == "token":
        set_tail(module, module.num_prefix_tokens)
    set_merging(module, merging)
    generator = torch.Generator().manual_seed(5)
    for buffer in module.blocks.buffers(recurse=False):
        buffer.copy_(torch.randn(buffer.shape, generator=generator) / 8)
    architecture = model.architecture.model_copy(
        update={"merging": merging, "tail_tokens": module.blocks[-1].tokens}
    )
    return replace(model, architecture=architecture)


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("method", ["fisher", "tome"])
def test_keeping_all_changes_no_bit(
    method: MergeMethod, options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    expected = make_vit(**options)
    if expected.module.global_pool == "token":
        set_tail(expected.module, int(expected.module.num_prefix_tokens))
    model = merged(make_vit(**options), (16, 16), method)
    assert torch.equal(model.module(pixels), expected.module(pixels))


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images(
    method: MergeMethod, options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    model = merged(make_vit(**options), (10, 10), method)
    together = model.module(pixels)
    alone = torch.cat([model.module(image) for image in pixels.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, make_vit(**options).module(pixels), atol=1e-3)


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_closed_form_counts_what_the_counter_counts(
    method: MergeMethod, options: dict[str, Any], make_vit: MakeVit
) -> None:
    plain = make_vit(depth=3, **options)
    prefix = int(plain.module.num_prefix_tokens)
    if plain.module.global_pool == "token":
        set_tail(plain.module, prefix)
    kept = (9, 9, 9) if method_of(method).mixtures else (12, 9, 9)
    model = merged(make_vit(depth=3, **options), kept, method, unmixed=1)
    cost = schedule_macs(plain, model.architecture.merging)  # type: ignore[arg-type]
    assert macs(model) == cost([count + prefix for count in kept])


def test_the_dense_cost_is_that_of_the_first_model(make_vit: MakeVit) -> None:
    assert dense_macs(merged(make_vit(), (9, 9))) == macs(make_vit())


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_pooling_counts_a_token_as_often_as_its_patches(
    pool: str, make_vit: MakeVit, pixels: Tensor
) -> None:
    model = make_vit(global_pool=pool, class_token=False)
    blocks = merging_blocks(model.module, Merging(method="tome", kept=(16, 10)))
    x = model.module.patch_embed(pixels) + model.module.pos_embed
    state = State(x)
    for number in range(2):
        state = blocks.advance(number, state)
    tokens, sizes = state.x, state.sizes
    assert sizes is not None
    restored = blocks.restored(state)
    assert restored.shape[1] == 16
    weighted = (tokens * sizes[..., None]).sum(1) / sizes.sum(1, keepdim=True)
    assert torch.allclose(restored.mean(1), weighted, atol=1e-6)


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_token_maps_follow_each_patch(
    options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    model = merged(make_vit(depth=3, **options), (12, 12, 9), "fisher")
    maps = token_maps(model.module, pixels)
    counts = [12, 12, 12 if model.architecture.tail_tokens else 9]
    assert [found.shape for found in maps] == [(3, 16)] * 3
    for found, count in zip(maps, counts, strict=True):
        for image in found:
            assert image.unique().tolist() == list(range(count))
    assert torch.equal(maps[0], maps[1])
    for patch in range(16):  # once together, always together
        together = maps[0][0] == maps[0][0, patch]
        assert len(maps[2][0][together].unique()) == 1


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"])
def test_tokens_keep_their_positions(name: str, make_vit: MakeVit, pixels: Tensor) -> None:
    """To drop a token is to hide its key, where all others stay in their places."""
    vit: Any = make_vit(name, depth=3, global_pool="token").module
    prefix, seen = vit.num_prefix_tokens, []
    handle = vit.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vit(pixels)
    handle.remove()
    kept = tuple(prefix + count for count in (12, 9, 9))
    merging = Merging(method="diffrate", kept=kept, dropped=(4, 3, 0), proportional=False)
    blocks = merging_blocks(vit, merging)
    state, whole = State(seen[0]), seen[0]
    bias: Tensor | None = None
    for number, block in enumerate(vit.blocks):
        hidden = None if bias is None else bias[:, None, None]
        state, whole = blocks.advance(number, state), block.fed(block.attended(whole, hidden)[0])
        assert state.origins is not None
        bias = torch.full(whole.shape[:2], -torch.inf).scatter(1, state.origins, 0.0)
        assert torch.allclose(state.x, rows(whole, state.origins), atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_it_does_not_matter_which_attention_timm_would_use(
    fused: bool, make_vit: MakeVit, pixels: Tensor
) -> None:
    expected = merged(make_vit(), (9, 9), "fisher").module(pixels)
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        assert torch.equal(merged(make_vit(), (9, 9), "fisher").module(pixels), expected)
    finally:
        timm.layers.set_fused_attn(bool(before))


def test_registers_are_no_class_token(make_vit: MakeVit, pixels: Tensor) -> None:
    options = {"class_token": False, "reg_tokens": 2, "global_pool": "avg", "no_embed_class": True}
    vit = merged(make_vit(**options), (11, 7))
    before = vit.module(pixels)
    with torch.no_grad():
        vit.module.reg_token.copy_(vit.module.reg_token.flip(1))
    assert torch.allclose(vit.module(pixels), before, atol=1e-4)


def test_equal_patches_give_no_nan(make_vit: MakeVit) -> None:
    model = merged(make_vit(), (9, 9), "fisher")
    model.module.pos_embed.zero_()
    assert model.module(torch.zeros(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_read_again_gives_the_same_logits(
    method: MergeMethod, make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    model = merged(make_vit(), (9, 9), method)
    save_folder(model, tmp_path)
    assert torch.equal(load_folder(tmp_path).module(pixels), model.module(pixels))


# Of the methods one that reads the stream, and one that reads keys, in every run.
EXPORTED: list[Any] = [
    pytest.param(method, "class token", marks=() if method in ("soft", "ppt") else pytest.mark.slow)
    for method in METHODS
] + [
    pytest.param("fisher", "mean", marks=pytest.mark.slow),
    pytest.param("fisher", "distilled", marks=pytest.mark.slow),
    pytest.param("tome", "rotary", marks=pytest.mark.slow),
    ("fisher", "rotary mean"),
]


@pytest.mark.parametrize(("method", "family"), EXPORTED)
def test_the_export_is_static_and_agrees(
    method: MergeMethod, family: str, make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    options = FAMILIES[family]
    once = method_of(method).mixtures
    model = merged(make_vit(depth=3, **options), (16 if once else 12, 9, 9), method)
    export_onnx(model, tmp_path / "model.onnx", {})
    assert check_parity(tmp_path / "model.onnx", model, pixels, 1)["passed"]
    graph = onnx.load(tmp_path / "model.onnx").graph
    found = Counter(node.op_type for node in graph.node)
    # ScatterND of onnxruntime adds rows in threads that do not wait for each other.
    assert not [op for op in found if op.startswith(("NonZero", "If", "Loop", "ScatterND"))]
    assert found["TopK"] == 0 if once else found["TopK"] >= 2


def test_only_blocks_that_merge_hold_tensors_for_it(make_vit: MakeVit) -> None:
    model = merged(make_vit(depth=3), (16, 9, 9), "fisher")
    names = [n for n, _ in model.module.blocks.named_buffers(recurse=False)]
    assert names == ["reader_1"]
