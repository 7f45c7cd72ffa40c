"""Models with rotary embeddings: the same as timm's, and made again from their description."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import apply_rot_embed_cat, create_rope_embed
from torch import Tensor, nn

from helpers.models import rebuilt
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.methods import selection
from vitcompress.model.architecture import (
    VitModel,
    from_source,
)
from vitcompress.model.families import adopt
from vitcompress.model.families.rotary import RotaryVit, frequencies
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.mlp import GatedMlp
from vitcompress.model.modules.rotation import Rotation
from vitcompress.targets.onnxruntime import load_session

MakeModule = Callable[..., nn.Module]
MakeVit = Callable[..., VitModel]

# Tiny models of each kind; DINOv3 and the Perception Encoder take images of any size, and pool.
KINDS: dict[str, dict[str, Any]] = {
    "EVA without rotation": {"name": "eva_giant_patch14_224"},
    "EVA-02": {"name": "eva02_tiny_patch14_224"},
    "EVA-02 apart": {"name": "eva02_base_patch14_224"},
    "EVA-02 CLIP": {"name": "eva02_base_patch16_clip_224"},
    "EVA-02 post-norm": {"name": "eva02_enormous_patch14_clip_224", "use_rot_pos_emb": True},
    "axial": {"name": "vit_small_patch16_rope_224"},
    "axial and absolute": {"name": "vit_small_patch16_rope_ape_224"},
    "mixed": {"name": "vit_small_patch16_rope_mixed_224"},
    "registers": {"name": "vit_betwixt_patch16_rope_reg4_gap_256"},
    "no bias": {"name": "vit_mediumd_patch16_rope_reg1_gap_256"},
    "PE core": {"name": "vit_pe_core_tiny_patch16_384", "attn_pool_num_heads": 2},
    "PE spatial": {"name": "vit_pe_spatial_tiny_patch16_512"},
    "PE lang": {"name": "vit_pe_lang_large_patch14_448"},
    "DINOv3": {"name": "vit_small_patch16_dinov3"},
    "DINOv3 gated": {"name": "vit_small_plus_patch16_dinov3", "global_pool": "token"},
    "DINOv3 7B": {"name": "vit_7b_patch16_dinov3"},
    "three axes": {
        "name": "vit_small_patch16_rope_224",
        "rope_type": "mrope",
        "rope_grid_indexing": "ij",
    },
    "qk norm": {"name": "vit_small_patch16_dinov3", "qk_norm": True},
    "scaled attention alone": {
        "name": "vit_pe_lang_large_patch14_448",
        "attn_only_layer_scale": True,
    },
    "not square": {"name": "vit_small_patch16_dinov3", "img_size": (32, 48)},
}
GROUPED = {"name": "vit_base_patch16_sapiens2", "num_kv_heads": 1}


def images_for(options: dict[str, Any], pixels: Tensor) -> Tensor:
    height, width = options.get("img_size", (32, 32))
    return pixels.repeat(1, 1, 2, 2)[..., :height, :width]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_an_adopted_model_is_that_of_timm(
    options: dict[str, Any], make_module: MakeModule, pixels: Tensor
) -> None:
    images = images_for(options, pixels)
    expected = make_module(**options)(images)
    ours = adopt(make_module(**options))
    assert isinstance(ours, RotaryVit)
    assert all(isinstance(block.attn, Attention) for block in ours.blocks)
    assert torch.allclose(ours(images), expected, rtol=1e-5, atol=1e-5)
    for block in ours.blocks:
        if block.attn.rotation is not None:
            block.attn.rotation.frequencies.zero_()
    assert torch.allclose(ours(images), expected, atol=1e-3) == (not turns(options))


def turns(options: dict[str, Any]) -> bool:
    return options is not KINDS["EVA without rotation"]


def test_blocks_are_ours(make_module: MakeModule) -> None:
    for kind, options in KINDS.items():
        blocks = list(adopt(make_module(**options)).blocks)
        assert all(isinstance(block, Block) for block in blocks)
        assert all(block.norm_after == ("post-norm" in kind) for block in blocks)
        gated = [block for block in blocks if isinstance(block.mlp, GatedMlp)]
        assert len(gated) == len(blocks) * (
            "gated" in kind
            or "7B" in kind
            or (options["name"].startswith("eva02") and "post-norm" not in kind)
        )


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_model_is_made_again_from_its_description(
    options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    model, images = make_vit(**options), images_for(options, pixels)
    assert torch.equal(rebuilt(model)(images), model.module(images))


def test_learned_angles_reach_a_fresh_process(
    make_vit: MakeVit, pixels: Tensor, in_fresh_process: Callable[[VitModel, Tensor], Tensor]
) -> None:
    model = make_vit(**KINDS["mixed"])
    assert torch.equal(in_fresh_process(model, pixels), model.module(pixels))


@pytest.mark.parametrize("kind", ["mixed", "DINOv3 gated"])
def test_the_export_turns_by_one_operator(
    kind: str, make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    model = make_vit(**KINDS[kind])
    export_onnx(model, tmp_path / "model.onnx", {})
    assert check_parity(tmp_path / "model.onnx", model, pixels, 1)["passed"]
    graph = onnx.load(tmp_path / "model.onnx").graph
    found = Counter(node.op_type for node in graph.node)
    assert found["RotaryEmbedding"] == 4
    assert not [op for op in found if op.startswith(("Scatter", "NonZero", "If", "Loop"))]
    # The tables are computed at load: in the file they would take more room than their angles.
    load_session(tmp_path / "model.onnx", 1, tmp_path / "loaded.onnx")
    assert not {"Cos", "Sin"} & {n.op_type for n in onnx.load(tmp_path / "loaded.onnx").graph.node}
    assert max(math.prod(t.dims) for t in graph.initializer if "rotation" in t.name) <= 3 * 32


def test_grids_follow_the_size_of_the_images(make_module: MakeModule, tmp_path: Path) -> None:
    name, file = "vit_small_patch16_dinov3", tmp_path / "model.safetensors"
    save_file(make_module(name).state_dict(), file)
    sizes = {"img_size": 40, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    model = from_source(str(file), name, sizes, None, {})
    assert model.preprocess.input_size == (40, 40)
    assert model.module(torch.zeros(1, 3, 40, 40)).shape == (1, 10)
    larger = from_source(str(file), name, sizes, None, {"input_size": 48})
    assert larger.trained_size == (40, 40)
    timms = make_module(name, img_size=48, patch_size=8)
    timms.load_state_dict(load_file(file))
    pixels = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(larger.module(pixels), timms(pixels), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="whole patches of 8×8 pixels; give 48×48"):
        from_source(str(file), name, sizes, None, {"input_size": 50})


def test_queries_that_share_keys_stay_those_of_timm(
    make_module: MakeModule, pixels: Tensor
) -> None:
    theirs = make_module(**GROUPED)
    assert type(adopt(theirs)) is type(make_module(**GROUPED))
    assert not any(isinstance(module, Attention) for module in theirs.modules())


ROPES: dict[str, dict[str, Any]] = {
    "cat": {"in_pixels": False},
    "mixed": {"depth": 2},
    "dinov3": {"rotate_half": True},
}


@pytest.mark.parametrize(("kind", "options"), ROPES.items(), ids=ROPES)
def test_angles_are_those_of_the_table_on_a_large_grid(kind: str, options: dict[str, Any]) -> None:
    grid = (32, 20)
    rope = create_rope_embed(kind, 128, 2, feat_shape=list(grid), **options)
    table = rope.get_embed().detach()
    found = frequencies(table, grid, halves=kind == "dinov3")
    if kind == "mixed":
        table, found = table[1, 0], found[:, 1, 0]
    x = torch.randn(1, 640, 64, generator=torch.Generator().manual_seed(2))
    expected = apply_rot_embed_cat(x, table, half=kind == "dinov3")
    if kind == "dinov3":
        x, expected = (t.unflatten(-1, (2, 32)).mT.flatten(-2) for t in (x, expected))
    assert torch.allclose(Rotation(found[:, None], grid, 0)(x), expected, atol=2e-5)


def test_the_first_tokens_are_not_turned_and_others_by_their_places() -> None:
    generator = torch.Generator().manual_seed(2)
    rotation = Rotation(torch.rand(3, 2, 4, generator=generator), (3, 5), 2)
    x = torch.randn(2, 17, 16, generator=generator)
    whole = rotation(x)
    assert torch.equal(whole[:, :2], x[:, :2])
    assert not torch.isclose(whole[:, 2:], x[:, 2:]).all(-1).any()
    places = torch.tensor([[0, 1, 16, 4], [0, 1, 7, 8]])
    few = rotation(selection.rows(x, places), places)
    assert torch.equal(few, selection.rows(whole, places))


def test_angles_that_are_not_linear_are_refused() -> None:
    angles = torch.arange(12.0).square()[:, None] / 10
    with pytest.raises(InputError, match="not linear"):
        frequencies(torch.cat([angles.sin(), angles.cos()], -1), (3, 4), halves=False)
