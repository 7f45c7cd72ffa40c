"""Quantized layers while they are trained: what they compute, and what becomes of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompress.methods import quantizer
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.recover.straight_through import StraightThrough

INPUTS, OUTPUTS = 16, 6
KINDS: dict[str, dict[str, Any]] = {
    "static": {"activations": "static"},
    "dynamic": {"activations": "dynamic"},
    "in groups": {"activations": "static", "group": 5},
    "float": {"activations": "float"},
    "of two terms": {"activations": "static", "terms": 2},
    "of two terms for some": {"activations": "static", "terms": 2, "residual_tokens": 2},
}


def quantized(bits: int, options: dict[str, Any]) -> QuantizedLinear:
    """A layer of random codes, whose first input has none."""
    generator = torch.Generator().manual_seed(0)
    layer = QuantizedLinear(INPUTS, OUTPUTS, bits, **options)
    low, high = quantizer.weight_range(bits)
    codes = torch.randint(low, high + 1, (OUTPUTS, INPUTS), generator=generator).float()
    codes[:, 0] = 0
    layer.codes = quantizer.pack_weight(codes, bits)
    layer.scale = 0.01 + 0.02 * torch.rand(OUTPUTS, generator=generator)
    layer.bias = torch.randn(OUTPUTS, generator=generator)
    if layer.multipliers is not None:
        whole = torch.randint(1, 5, (4, OUTPUTS), generator=generator)
        layer.multipliers = quantizer.pack_multipliers(whole.to(torch.int8))
    if layer.activation_scale is not None:
        layer.activation_scale = torch.tensor(4 / 255)
        layer.activation_zero_point = torch.tensor(100, dtype=torch.uint8)
    return layer


def tokens() -> Tensor:
    return torch.randn(2, 5, INPUTS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_integers_do_and_is_stored_as_it_was(bits: int, kind: str) -> None:
    layer = quantized(bits, KINDS[kind])
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    expected = layer(tokens())
    training = StraightThrough(layer)
    torch.testing.assert_close(training(tokens()).detach(), expected, rtol=1e-4, atol=1e-4)
    after = training.finished().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_codes_follow_the_weights_to_the_nearest_of_the_lattice() -> None:
    layer = quantized(4, KINDS["in groups"])
    codes = quantizer.unpack_weight(layer.codes, 4, INPUTS)
    training = StraightThrough(layer)
    with torch.no_grad():
        training.weight += 1.4 * training.steps  # type: ignore[operator]
        training.factor *= 2
        training.bias += 1
    expected = training(tokens()).detach()
    left = training.finished()
    found = quantizer.unpack_weight(left.codes, 4, INPUTS)
    assert torch.equal(found, torch.round((codes + 1.4) / 2).clamp(-8, 7))
    torch.testing.assert_close(left(tokens()), expected, rtol=1e-4, atol=1e-4)


def test_codes_follow_the_weights_to_the_nearest_of_a_table() -> None:
    layer = QuantizedLinear(INPUTS, OUTPUTS, 2, "float", levels=3)
    layer.table = torch.tensor([-1, 0, 1], dtype=torch.int8)
    codes = torch.arange(INPUTS * OUTPUTS).view(OUTPUTS, INPUTS).float() % 3 - 1
    layer.codes = quantizer.pack_weight(codes, layer.table)
    training = StraightThrough(layer)
    torch.testing.assert_close(training(tokens()).detach(), layer(tokens()))
    with torch.no_grad():
        training.weight += 0.7
    found = training.finished()
    assert torch.equal(
        quantizer.unpack_weight(found.codes, layer.table, INPUTS), (codes + 1).clamp(max=1)
    )


def test_gradients_pass_roundings_but_for_inputs_beyond_the_range() -> None:
    training = StraightThrough(quantized(8, KINDS["static"]))
    x = tokens().requires_grad_()
    training(x).sum().backward()
    scale, zero = 4 / 255, 100
    inside = (x >= -zero * scale) & (x <= (255 - zero) * scale)
    assert 0 < int((~inside).sum()) < x.numel()
    assert torch.equal((x.grad != 0) & inside, (x.grad != 0))  # type: ignore[operator]
    for parameter in (training.weight, training.factor, training.bias):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    seen = quantizer.rounded_input(tokens(), (torch.tensor(scale), torch.tensor(100.0)))
    torch.testing.assert_close(training.weight.grad, seen.sum((0, 1)).expand(OUTPUTS, -1))
