"""Relevance: nothing is lost on the way back, each rule keeps the value, images do not mix."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods import relevance
from vitcompress.model.architecture import VitModel, set_tail

MakeVit = Callable[..., VitModel]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", {}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers, LayerScale": ("vit_tiny_patch16_224", {"init_values": 0.5, "reg_tokens": 2}),
    "average pooling": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "rotary": ("vit_small_patch16_rope_mixed_224", {}),
    "RMSNorm, gated MLP": ("aimv2_large_patch14_224", {}),
    "rotary, gated MLP": ("eva02_base_patch14_224", {"global_pool": "token"}),
}
# What adds to the activations; all other parameters multiply them.
ADDED = ("bias", "cls_token", "pos_embed", "reg_token", "dist_token")


def explained(module: nn.Module, pixels: Tensor) -> Tensor:
    with relevance.Propagation():
        return module(pixels).amax(-1)


@pytest.mark.parametrize(("name", "options"), FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("tail", [False, True])
def test_the_relevance_of_all_leaves_is_the_output(
    name: str, options: dict[str, Any], tail: bool, make_vit: MakeVit, pixels: Tensor
) -> None:
    module = copy.deepcopy(make_vit(name, **options).module).double()
    if tail and module.num_prefix_tokens:
        set_tail(module, module.num_prefix_tokens)
    pixels = pixels.double().requires_grad_()
    leaves = [pixels]
    for parameter_name, parameter in module.named_parameters():
        if parameter_name.endswith(ADDED):
            leaves.append(parameter.requires_grad_())
    output = explained(module, pixels).sum()
    output.backward()
    total = sum(float(relevance.of(leaf).sum()) for leaf in leaves)
    assert total == pytest.approx(output.item(), rel=1e-10)
    inputs_only = float(relevance.of(pixels).sum())
    assert abs(inputs_only - output.item()) > 1e-3 * abs(output.item())  # the biases take part


def test_the_plain_gradient_would_lose_relevance(make_vit: MakeVit, pixels: Tensor) -> None:
    module = copy.deepcopy(make_vit().module).double()
    leaves = [pixels.double().requires_grad_()]
    leaves += [p.requires_grad_() for n, p in module.named_parameters() if n.endswith(ADDED)]
    output = module(leaves[0]).amax(-1).sum()
    output.backward()
    total = sum(float(relevance.of(leaf).sum()) for leaf in leaves)
    assert abs(total - output.item()) > 1e-2 * abs(output.item())


@pytest.mark.parametrize(("name", "options"), FAMILIES.values(), ids=FAMILIES)
def test_the_rules_keep_the_values(
    name: str, options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    module = make_vit(name, **options).module
    with relevance.Propagation():
        found = module(pixels)
    assert torch.allclose(found, module(pixels), rtol=1e-4, atol=1e-5)


def test_each_image_has_its_own_relevance(make_vit: MakeVit, pixels: Tensor) -> None:
    module = make_vit().module
    alone = []
    for image in [*pixels.split(1), pixels]:
        given = image.clone().requires_grad_()
        explained(module, given).sum().backward()
        alone.append(relevance.of(given))
    assert torch.allclose(torch.cat(alone[:-1]), alone[-1], rtol=1e-4, atol=1e-6)


def test_a_residual_sum_shares_by_value() -> None:
    skip, branch = (torch.randn(5, requires_grad=True) for _ in range(2))
    weight = torch.randn(5)
    ((skip + branch) * weight).sum().backward()
    shared = relevance.of(skip) + relevance.of(branch)
    assert torch.allclose(shared, (skip + branch).detach() * weight)


@pytest.mark.parametrize("function", [F.gelu, F.relu, F.silu, torch.tanh])
def test_elementwise_functions_pass_relevance_on(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([-2.0, -0.1, 0.0, 0.3, 4.0], requires_grad=True)
    with relevance.Propagation():
        y = function(x)
    y.backward(torch.ones(5))
    assert torch.allclose(y, function(x.detach()))
    assert torch.allclose(relevance.of(x), y.detach())


def test_a_layer_norm_shares_with_its_bias() -> None:
    norm = nn.LayerNorm(6).double().requires_grad_()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(6))
        norm.bias.copy_(torch.randn(6))
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    given = torch.randn(4, 6, dtype=torch.float64)
    with relevance.Propagation():
        y = norm(x)
    assert torch.allclose(y, norm(x))
    y.backward(given)
    outgoing = (y.detach() * given).sum()
    assert (relevance.of(x).sum() + relevance.of(norm.bias).sum()) == pytest.approx(outgoing.item())


@pytest.mark.parametrize("multiply", [torch.mul, Tensor.mul, lambda x, y: x * y])
def test_factors_share_alike(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = (torch.randn(5, requires_grad=True) for _ in range(2))
    with relevance.Propagation():
        z, scaled = multiply(x, y), multiply(x, torch.full((5,), 3.0))
    (z + scaled).sum().backward()
    assert torch.equal(z, x * y)
    assert torch.allclose(relevance.of(y), z / 2)
    assert torch.allclose(relevance.of(x), z / 2 + scaled)


def test_attention_gives_relevance_to_values_alone() -> None:
    q, k, v = (torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(3))
    with relevance.Propagation():
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
    y.backward(torch.ones_like(y))
    assert q.grad is None
    assert k.grad is None
    assert relevance.of(v).sum() == pytest.approx(y.sum().item(), rel=1e-4)
