"""Our attention and tail block against timm's, and the quantized Linear."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Attention as TimmAttention
from timm.layers import GluMlp, RmsNorm, SwiGLU
from torch import Tensor, nn

from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel, set_tail
from vitcompress.model.modules.attention import Attention, attend, attention
from vitcompress.model.modules.mlp import GatedMlp
from vitcompress.model.modules.quantized import QuantizedLinear, quantized_linear
from vitcompress.terms import Activations

MakeModule = Callable[..., nn.Module]
MakeVit = Callable[..., VitModel]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no qkv bias": {"qkv_bias": False},
    "qk_norm": {"qk_norm": True, "norm_layer": nn.LayerNorm},
    "qk_norm rms": {"qk_norm": True, "norm_layer": RmsNorm},
    "scale_norm": {"scale_norm": True, "norm_layer": nn.LayerNorm},
    "gated": {"gated": True},
    "wide heads": {"attn_head_dim": 24},
    "all": {"qk_norm": True, "scale_norm": True, "gated": True, "norm_layer": nn.LayerNorm},
}


def timm_attention(**options: Any) -> TimmAttention:
    generator = torch.Generator().manual_seed(0)
    attention = TimmAttention(64, num_heads=4, **{"qkv_bias": True, **options}).eval()
    for parameter in attention.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(noise / parameter.shape[-1] ** 0.5 * 2 if noise.ndim > 1 else noise)
    return attention.requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 17, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_that_of_timm(options: dict[str, Any], fused: bool, x: Tensor) -> None:
    theirs = timm_attention(**options)
    theirs.fused_attn = fused
    assert torch.allclose(Attention(theirs)(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_attention_keeps_the_names_of_tensors(options: dict[str, Any]) -> None:
    theirs = timm_attention(**options)
    assert list(Attention(theirs).state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("count", [1, 2, 17])
def test_queries_are_the_first_rows(options: dict[str, Any], count: int, x: Tensor) -> None:
    ours = Attention(timm_attention(**options))
    few = ours(x, queries=count)
    assert few.shape == (3, count, 64)
    assert torch.allclose(few, ours(x)[:, :count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["packed", "packed, gate last", "apart"])
def test_a_gated_mlp_is_that_of_timm(kind: str, bias: bool, x: Tensor) -> None:
    theirs = SwiGLU(64, 24, bias=bias, norm_layer=nn.LayerNorm).eval()
    if kind != "apart":
        theirs = GluMlp(64, 48, gate_last="last" in kind, act_layer=nn.SiLU, bias=bias).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(len(parameter)))
    ours = GatedMlp(theirs)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert ours.fc1.out_features == 48


@pytest.mark.parametrize("few", [None, 2])
def test_the_operator_computes_the_same(few: int | None, x: Tensor) -> None:
    q, k, v = x[:, :few], x.flip(1), x.flip(2)
    expected = attend(q, k, v, 4, 0.3)
    assert torch.equal(attention(q, k, v, 4, 0.3), expected)
    heads = [t.unflatten(-1, (4, 16)).transpose(1, 2) for t in (q, k, v)]
    shares = (heads[0] @ heads[1].mT * 0.3).softmax(-1)
    assert torch.allclose(expected, (shares @ heads[2]).transpose(1, 2).flatten(2), atol=1e-5)


TAILS: dict[str, tuple[str, dict[str, Any], int]] = {
    "class token": ("vit_tiny_patch16_224", {}, 1),
    "LayerScale": ("vit_tiny_patch16_224", {"init_values": 0.1}, 1),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3}, 4),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}, 1),
    "scaled norms": ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, 2),
    "DeiT III": ("deit3_small_patch16_224", {}, 1),
}


@pytest.mark.parametrize(("name", "options", "tokens"), TAILS.values(), ids=TAILS)
def test_the_tail_block_keeps_the_logits(
    name: str, options: dict[str, Any], tokens: int, make_vit: MakeVit, pixels: Tensor
) -> None:
    module = make_vit(name, **options).module
    assert module.num_prefix_tokens == tokens
    names, full = list(module.state_dict()), module(pixels)
    set_tail(module, tokens)
    assert torch.allclose(module(pixels), full, rtol=1e-4, atol=1e-5)
    assert list(module.state_dict()) == names
    assert module.forward_features(pixels).shape[1] == tokens


def filled(activations: Activations, bits: int = 8, terms: int = 1) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(2)
    layer = QuantizedLinear(64, 24, bits, activations, terms)
    limit = quantizer.weight_range(bits)[1]
    codes = torch.randint(-limit, limit + 1, (24, 64), generator=generator).float()
    layer.codes = quantizer.pack_weight(codes, bits)
    layer.scale = torch.rand(24, generator=generator) / limit
    layer.bias = torch.randn(24, generator=generator)
    if activations == "static":
        layer.activation_scale = torch.tensor(8 / 255)
        layer.activation_zero_point = torch.tensor(130, dtype=torch.uint8)
    return layer


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_a_quantized_linear_is_near_the_linear_of_its_codes(
    activations: Activations, bits: int, terms: int, x: Tensor
) -> None:
    layer = filled(activations, bits, terms)
    weight = quantizer.unpack_weight(layer.codes, bits, 64) * layer.scale[:, None]
    exact = x @ weight.T + layer.bias
    error = (layer(x) - exact).square().mean() / exact.var()
    assert error < (1e-3 if terms == 1 else 1e-7)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_a_second_term_of_the_first_tokens_leaves_the_others(
    activations: Activations, x: Tensor
) -> None:
    one, two, few = (filled(activations, 8, terms) for terms in (1, 2, 2))
    few.residual_tokens = 2
    assert torch.equal(few(x)[:, :2], two(x)[:, :2])
    assert torch.equal(few(x)[:, 2:], one(x)[:, 2:])
    assert not torch.equal(one(x)[:, :2], two(x)[:, :2])
    few.residual_tokens = x.shape[1]
    assert torch.equal(few(x), two(x))


def test_an_empty_quantized_linear_takes_the_tensors_of_another(x: Tensor) -> None:
    for activations in ("static", "dynamic"):
        layer = filled(activations, 3)
        empty = QuantizedLinear(64, 24, 3, activations)
        assert (empty(x) == 0).all()
        empty.load_state_dict(layer.state_dict())
        assert torch.equal(empty(x), layer(x))


def test_only_a_static_linear_stores_a_range() -> None:
    static, dynamic = (set(filled(a).state_dict()) for a in ("static", "dynamic"))
    assert static - dynamic == {"activation_scale", "activation_zero_point"}
    assert dynamic == {"codes", "scale", "bias"}


def test_the_operators_are_well_formed(x: Tensor) -> None:
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(attention, (x, x, x, 4, 0.25), test_utils=checks)
    layer = filled("static")
    arguments = (x, layer.codes, layer.scale, layer.bias)
    ranges = (layer.activation_scale, layer.activation_zero_point)
    torch.library.opcheck(
        quantized_linear, (*arguments, *ranges, None, 8, 0, 1, None), test_utils=checks
    )
    for residual in (None, 1):
        torch.library.opcheck(
            quantized_linear,
            (*arguments, None, None, None, 8, 0, 2, residual),
            test_utils=checks,
        )
