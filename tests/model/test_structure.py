"""Patterns over layer names, and reparametrisations that leave no trace in the logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, set_tail
from vitcompress.model.families import adopt, anatomy_of
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.patterns import match
from vitcompress.model.structure import placed

MakeVit = Callable[..., VitModel]

NAMES = [f"blocks.{i}.{layer}" for i in range(2) for layer in ("attn.qkv", "attn.proj", "mlp.fc1")]


def test_the_linears_come_in_the_order_of_the_model(vit: VitModel) -> None:
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = [f"blocks.{i}.{kind}" for i in range(2) for kind in kinds]
    assert list(vit.anatomy.linears()) == ["patch_embed.proj", *expected, "head"]


def test_a_quantized_layer_is_no_float_linear(vit: VitModel) -> None:
    vit.module.set_submodule("head", QuantizedLinear(64, 10, 8, "static"))
    assert "head" not in vit.anatomy.linears()


@pytest.mark.parametrize(
    ("patterns", "places"),
    [
        (["*"], range(6)),
        (["blocks.1.*"], [3, 4, 5]),
        (["blocks.?.mlp.fc1"], [2, 5]),
        (["blocks.1.mlp.fc1", "blocks.0.attn.qkv"], [0, 5]),
        (["*qkv", "*.attn.*"], [0, 1, 3, 4]),
        (["re:blocks\\.[01]\\.attn\\.(qkv|proj)"], [0, 1, 3, 4]),
        (["re:.*fc1"], [2, 5]),
        ([], []),
    ],
)
def test_patterns_select_layers_in_their_order(patterns: list[str], places: list[int]) -> None:
    assert match(patterns, NAMES, "key") == [NAMES[i] for i in places]


@pytest.mark.parametrize("pattern", ["blocks.1", "re:blocks", "re:fc1", "Blocks.*"])
def test_a_pattern_is_for_the_whole_name(pattern: str) -> None:
    with pytest.raises(InputError, match="matches no layer"):
        match([pattern], NAMES, "key")


def test_a_pattern_without_a_layer_is_named_with_the_nearest_layers() -> None:
    with pytest.raises(InputError) as caught:
        match(["*", "blocks.0.mlp.fc3"], NAMES, "stages.quantize.skip")
    text = str(caught.value)
    assert text.startswith("stages.quantize.skip: 'blocks.0.mlp.fc3' matches no layer")
    assert text.partition("nearest: ")[2].startswith("blocks.0.mlp.fc1")


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(InputError, match=r"^key: 're:\(' is no regular expression"):
        match(["re:("], NAMES, "key")


REPARAMETRISED = [
    f"blocks.{i}.{kind}" for i in range(2) for kind in ("attn.qkv", "attn.proj", "mlp.fc1")
]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "LayerScale": ("vit_tiny_patch16_224", {"init_values": 0.1}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "average pooling": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "no biases after": ("vit_tiny_patch16_224", {"proj_bias": False}),
    "pre-norm": ("vit_tiny_patch16_224", {"pre_norm": True}),
}


def seen_input(module: nn.Module, layer: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The input of `layer`, and the logits."""
    seen: list[Tensor] = []
    target = module.get_submodule(layer)
    handle = target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    logits = module(pixels)
    handle.remove()
    return seen[0], logits


def random_reparametrisation(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    shift = torch.randn(channels, generator=generator)
    return shift, torch.randn(channels, generator=generator).exp()


def check_reparametrisation(module: nn.Module, layer: str, pixels: Tensor) -> None:
    """Reparametrise the input of `layer` in `module` at random, and see what changes."""
    shift, scale = random_reparametrisation(module.get_submodule(layer).in_features)
    x, logits = seen_input(module, layer, pixels)
    reparametrisation = anatomy_of(module).input_reparametrisation(layer)
    assert reparametrisation is not None
    reparametrisation(shift, scale)
    reparametrised, after = seen_input(module, layer, pixels)
    expected = (x - shift) / scale
    assert torch.allclose(reparametrised, expected, rtol=1e-4, atol=1e-4)
    assert (reparametrised - x).abs().mean() > 0.5
    assert (after - logits).norm() <= 1e-5 * logits.norm()


@pytest.mark.parametrize(("name", "options"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("layer", REPARAMETRISED)
def test_a_reparametrisation_moves_the_input_and_keeps_the_logits(
    name: str, options: dict[str, Any], layer: str, make_vit: MakeVit, pixels: Tensor
) -> None:
    check_reparametrisation(make_vit(name, **options).module, layer, pixels)


def test_folds_of_all_layers_add_up(vit: VitModel, pixels: Tensor) -> None:
    logits = vit.module(pixels)
    for layer in REPARAMETRISED:
        reparametrisation = anatomy_of(vit.module).input_reparametrisation(layer)
        assert reparametrisation is not None
        reparametrisation(*random_reparametrisation(64))
    assert (vit.module(pixels) - logits).norm() <= 5e-5 * logits.norm()


@pytest.mark.parametrize("layer", REPARAMETRISED[3:])
def test_a_tail_block_can_be_folded(layer: str, vit: VitModel, pixels: Tensor) -> None:
    set_tail(vit.module, 1)
    check_reparametrisation(vit.module, layer, pixels)


@pytest.mark.parametrize("layer", ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "head"])
def test_nothing_linear_comes_before_these(layer: str, vit: VitModel) -> None:
    assert anatomy_of(vit.module).input_reparametrisation(layer) is None


FORBIDDEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no qkv bias": ({"qkv_bias": False}, {"proj"}),
    "norm after attention": ({"scale_attn_norm": True}, {"proj"}),
    "RMS norms": ({"norm_layer": "rmsnorm"}, {"qkv", "fc1"}),
    "LayerNorm without parameters": (
        {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
        {"qkv", "fc1"},
    ),
    "LayerNorm without bias": (
        {"norm_layer": partial(nn.LayerNorm, bias=False)},
        {"qkv", "fc1"},
    ),
}


@pytest.mark.parametrize(("options", "forbidden"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_lies_between_may_forbid_a_reparametrisation(
    options: dict[str, Any],
    forbidden: set[str],
    make_module: Callable[..., nn.Module],
    pixels: Tensor,
) -> None:
    for layer in REPARAMETRISED:
        module = adopt(make_module(**options))
        if layer.rpartition(".")[2] in forbidden:
            assert anatomy_of(module).input_reparametrisation(layer) is None
        else:
            check_reparametrisation(module, layer, pixels)


def test_gated_attention_cannot_be_folded(vit: VitModel, pixels: Tensor) -> None:
    block = vit.module.blocks[0]
    block.attn.gate = nn.Linear(64, 64)
    assert anatomy_of(vit.module).input_reparametrisation("blocks.0.attn.qkv") is None
    assert anatomy_of(vit.module).input_reparametrisation("blocks.0.attn.proj") is None
    check_reparametrisation(vit.module.requires_grad_(False), "blocks.0.mlp.fc1", pixels)


def test_a_quantized_qkv_cannot_take_a_reparametrisation(vit: VitModel) -> None:
    vit.module.set_submodule("blocks.0.attn.qkv", QuantizedLinear(64, 192, 8, "static"))
    assert anatomy_of(vit.module).input_reparametrisation("blocks.0.attn.proj") is None


@pytest.mark.parametrize("layer", ["attn_out.proj", "attn_in.qk", "mlp.fc1"])
def test_blocks_of_other_make_are_left_alone(layer: str) -> None:
    tnt = timm.create_model("tnt_s_legacy_patch16_224", depth=1, num_classes=3)
    assert anatomy_of(adopt(tnt)).input_reparametrisation(f"blocks.0.{layer}") is None


def test_layers_that_are_quantized_already_are_told_apart() -> None:
    with pytest.raises(InputError, match=r"key: the layers of 'blocks\.\*' are quantized already"):
        match(["blocks.*"], ["head"], "key", quantized=NAMES)


def test_a_copy_is_placed_on_another_device(vit: VitModel) -> None:
    assert placed(vit.module, torch.device("cpu")) is vit.module
    elsewhere = placed(vit.module, torch.device("meta"))
    assert {t.device.type for t in elsewhere.state_dict().values()} == {"meta"}
    assert {t.device.type for t in vit.module.state_dict().values()} == {"cpu"}
