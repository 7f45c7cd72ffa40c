"""Quantizers for study: their grids, their order, and what they come to in the limit."""

import pytest
import torch
from torch import Tensor

from vitcompress import registry
from vitcompress.methods import grids, quantizer
from vitcompress.methods.grids import candidates, fitted
from vitcompress.methods.grids.log2 import log2
from vitcompress.methods.grids.shift_uniform_log2 import shift_uniform_log2
from vitcompress.methods.grids.twin_uniform import twin_uniform
from vitcompress.methods.grids.uniform import uniform

KINDS = registry.names(grids.PACKAGE)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PROBABILITIES = (4 * randn(6, 197)).softmax(-1)
SAMPLES = {
    "after softmax": PROBABILITIES,
    "after gelu": torch.nn.functional.gelu(1.5 * randn(40, 50) - 2),
    "around zero": randn(40, 50),
    "one outlier": randn(40, 50) + 100 * torch.eye(40, 50),
}
SUITED = [
    (kind, sample)
    for kind in KINDS
    for sample in SAMPLES
    if kind in ("uniform", "twin_uniform") or sample == "after softmax"
]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("kind", "name"), SUITED)
def test_every_candidate_is_a_grid_in_order(kind: str, name: str, bits: int) -> None:
    sample = SAMPLES[name]
    for quantize in candidates(kind, sample, bits):
        found = quantize(sample.flatten().sort().values)
        assert found.isfinite().all()
        assert len(found.unique()) <= 2**bits
        assert (found.diff() >= 0).all()
        if kind != "shift_uniform_log2":  # whose decoded powers of two need not be codes again
            assert torch.allclose(quantize(found), found, rtol=1e-5, atol=1e-7)
        if kind in ("uniform", "twin_uniform"):
            assert quantize(torch.zeros(1)) == 0
        elif kind != "shift_uniform_log2":
            assert 0 <= quantize(torch.zeros(1)) <= found[0]  # 2^−255 is none in float32


@pytest.mark.parametrize(("kind", "name"), SUITED)
def test_the_candidate_of_least_error_is_taken_and_more_bits_serve_better(
    kind: str, name: str
) -> None:
    sample = SAMPLES[name]

    def squared(found: Tensor) -> float:
        return float((found - sample).square().mean())

    errors = []
    for bits in (2, 4, 6):
        best = squared(fitted(kind, sample, bits)(sample))
        assert best == min(squared(q(sample)) for q in candidates(kind, sample, bits))
        errors.append(best)
    assert errors == sorted(errors, reverse=True)
    largest = fitted(kind, sample, 4, lambda found: -float(found.max()))
    assert largest(sample).max() == max(q(sample).max() for q in candidates(kind, sample, 4))


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_uniform_values_of_8_bits_are_those_of_the_kernels(sample: Tensor) -> None:
    low, high = torch.quantile(sample, torch.tensor([0.01, 0.99]))
    scale, zero_point = quantizer.activation_parameters(low, high)
    found = uniform(sample, 8, low, high)
    assert torch.equal(found, quantizer.quantize_activation(sample, scale, zero_point) * scale)
    # The integer kernels sum the same codes.
    weight, ones = torch.round(20 * randn(5, sample.shape[1])), torch.ones(5)
    exact = quantizer.integer_linear(sample, weight, ones, 0 * ones, (scale, zero_point))
    assert torch.allclose(found @ weight.T, exact, rtol=1e-4, atol=1e-3)


def test_log2_is_exact_on_its_powers() -> None:
    powers = torch.exp2(-torch.arange(16.0))
    assert torch.equal(log2(powers, 4, torch.tensor(1.0)), powers)
    assert torch.equal(log2(3 * powers, 4, torch.tensor(3.0)), 3 * powers)
    halves = torch.exp2(-torch.arange(16.0) / 2)
    assert torch.allclose(log2(halves, 4, torch.tensor(1.0), steps=2), halves)
    # The bound between two values lies in the middle of their logarithms.
    assert log2(torch.tensor([0.71, 0.70]), 4, torch.tensor(1.0)).tolist() == [1.0, 0.5]


def test_without_shift_and_with_steps_of_one_it_is_log2() -> None:
    low, high = torch.tensor(-15.0), torch.tensor(0.0)
    expected = log2(PROBABILITIES, 4, torch.tensor(1.0))
    assert torch.equal(shift_uniform_log2(PROBABILITIES, 4, 0.0, low, high), expected)
    small = shift_uniform_log2(PROBABILITIES, 4, 1e-9, low, high)
    assert torch.allclose(small, expected, atol=2e-9)


def test_a_shift_is_taken_away_again() -> None:
    found = shift_uniform_log2(
        torch.tensor([0.0, 0.25, 0.75]), 3, 0.25, torch.tensor(-2.0), torch.tensor(0.0)
    )
    assert found.tolist() == [0.0, 0.25, 0.75]


def test_twin_ranges_of_one_step_are_a_uniform_one() -> None:
    step = torch.tensor(0.05)
    x = randn(30, 30)
    # Signed: 4 bits, −8 … 7 steps; not signed: both ranges are the same 3 bits.
    expected = uniform(x, 4, -8 * step, 7 * step)
    assert torch.allclose(twin_uniform(x, 4, step, 0, signed=True), expected)
    expected = uniform(x, 3, 0 * step, 7 * step)
    assert torch.allclose(twin_uniform(x, 4, step, 0, signed=False), expected)


def test_twin_steps_differ_by_a_power_of_two() -> None:
    step = torch.tensor(1.0)
    x = torch.linspace(-2, 8, 10001)
    after_gelu = twin_uniform(x, 4, step, 3, signed=True).unique()
    assert after_gelu.tolist() == [*(-i / 8 for i in range(8, 0, -1)), *range(8)]
    after_softmax = twin_uniform(x, 4, step, 2, signed=False).unique()
    assert after_softmax.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, *range(2, 8)]


def test_each_kind_wins_where_it_is_meant_to() -> None:
    def error(kind: str, name: str) -> float:
        sample = SAMPLES[name]
        return float((fitted(kind, sample, 4)(sample) - sample).square().mean())

    assert error("twin_uniform", "after gelu") < error("uniform", "after gelu")
    assert error("log_sqrt2", "after softmax") < error("log2", "after softmax")
