"""Rounding with error feedback, against rounding to nearest."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods import quantizer
from vitcompress.methods.quantizer import round_weight, weight_range
from vitcompress.methods.rounding import descend, gptq, output_error, refitted


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(inputs: int, rows: int = 1000, rank: int | None = None, seed: int = 1) -> Tensor:
    """The Gram matrix of inputs that share factors and have channels of unequal size."""
    mixing = randn(rank or inputs, inputs, seed=seed) * torch.linspace(0.2, 3, inputs)
    x = randn(rows, rank or inputs, seed=seed + 1) @ mixing
    return (x.T @ x).double() / rows


def weight_step(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    scale, multipliers = quantizer.weight_scale(weight, bits, None, group)
    return quantizer.weight_step(scale, multipliers, group, weight.shape[1])


def loss(codes: Tensor, weight: Tensor, step: Tensor, gram: Tensor) -> float:
    """tr(ΔW G ΔWᵀ)."""
    change = (codes * step - weight).double()
    return float(((change @ gram) * change).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("inputs", [10, 64, 65, 150])  # around and beyond a block of columns
def test_correlated_inputs_make_it_better_than_nearest(bits: int, inputs: int) -> None:
    weight, gram = randn(24, inputs), correlated(inputs)
    step = weight_step(weight, bits)
    nearest = loss(round_weight(weight, step, bits), weight, step, gram)
    assert loss(gptq(weight, step, gram, bits), weight, step, gram) < 0.9 * nearest


@pytest.mark.parametrize("inputs", [10, 150])
@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e12])
def test_uncorrelated_inputs_make_it_nearest(inputs: int, factor: float) -> None:
    weight = randn(8, inputs)
    step = weight_step(weight, 4)
    gram = factor * torch.eye(inputs, dtype=torch.float64)
    assert torch.equal(gptq(weight, step, gram, 4), round_weight(weight, step, 4))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_codes_are_whole_and_within_limits(bits: int) -> None:
    weight = randn(16, 70)
    step = weight_step(weight, bits) * 0.3  # much is clipped
    codes = gptq(weight, step, correlated(70), bits)
    assert torch.equal(codes, codes.round())
    low, high = weight_range(bits)
    assert (codes.min(), codes.max()) == (low, high)


def test_columns_may_come_in_any_order() -> None:
    weight, gram = randn(8, 90), correlated(90)
    step = weight_step(weight, 4)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    moved = gptq(weight[:, order], step, gram[order][:, order], 4)
    assert torch.equal(moved, gptq(weight, step, gram, 4)[:, order])


@pytest.mark.parametrize("rank", [1, 7])
def test_a_gram_matrix_may_lack_rank(rank: int) -> None:
    weight, gram = randn(8, 80), correlated(80, rank=rank)
    step = weight_step(weight, 4)
    codes = gptq(weight, step, gram, 4)
    assert codes.isfinite().all()
    nearest = loss(round_weight(weight, step, 4), weight, step, gram)
    assert loss(codes, weight, step, gram) < 0.1 * nearest


def test_inputs_that_are_always_zero_make_it_nearest() -> None:
    weight = randn(3, 5)
    step = weight_step(weight, 4)
    codes = gptq(weight, step, torch.zeros(5, 5, dtype=torch.float64), 4)
    assert torch.equal(codes, round_weight(weight, step, 4))


def test_it_is_deterministic_and_changes_nothing() -> None:
    weight, gram = randn(8, 70), correlated(70)
    step = weight_step(weight, 4)
    before = weight.clone(), step.clone(), gram.clone()
    assert torch.equal(gptq(weight, step, gram, 4), gptq(weight, step, gram, 4))
    assert all(map(torch.equal, before, (weight, step, gram)))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("damping", [0.01, 100.0])
def test_no_row_is_ever_worse_than_nearest(bits: int, group: int | None, damping: float) -> None:
    weight, gram = randn(40, 50), correlated(50, rows=60)
    step = weight_step(weight, bits, group)
    nearest = round_weight(weight, step, bits)
    codes = gptq(weight, step, gram, bits, damping)
    errors = (output_error(weight, step, each, gram) for each in (codes, nearest))
    assert torch.le(*errors).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [None, 16])
def test_descent_lowers_the_error_of_every_row(bits: int, group: int | None) -> None:
    weight, gram = randn(24, 70), correlated(70)
    step = weight_step(weight, bits, group)
    codes = gptq(weight, step, gram, bits, damping=0)
    better = descend(weight, step, gram, codes, bits, damping=0)
    low, high = weight_range(bits)
    assert better.min() >= low
    assert better.max() <= high
    assert torch.equal(better, better.round())
    before, after = (output_error(weight, step, each, gram) for each in (codes, better))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.98 * before.sum()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_that_are_zero_stay_zero(bits: int) -> None:
    weight, gram = randn(16, 70), correlated(70)
    absent = randn(16, 70, seed=9) > 0.5
    weight[absent] = 0
    step = weight_step(weight, bits, None if bits == 8 else 16)
    codes = gptq(weight, step, gram, bits)
    assert (codes[absent] == 0).all()
    assert (descend(weight, step, gram, codes, bits)[absent] == 0).all()
    nearest = round_weight(weight, step, bits)
    assert loss(codes, weight, step, gram) < loss(nearest, weight, step, gram)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_refitted_steps_leave_the_least_damped_error(
    bits: int, group: int | None, damping: float
) -> None:
    weight, gram = randn(24, 70), correlated(70)
    step = weight_step(weight, bits, group)
    codes = gptq(weight, step, gram, bits, damping)
    factor = refitted(weight, step, gram, codes, damping)[:, None]
    damped = gram + damping * gram.diagonal().mean() * torch.eye(70, dtype=torch.float64)
    best = output_error(weight, step * factor, codes, damped)
    assert best.sum() < 0.999 * output_error(weight, step, codes, damped).sum()
    for other in (1 / factor, 0.99, 1.01):  # 1 / factor: the step as it was
        assert (best <= output_error(weight, step * factor * other, codes, damped) + 1e-9).all()


def test_a_row_that_cannot_be_refitted_keeps_its_step() -> None:
    weight, gram = randn(3, 20), correlated(20)
    step = weight_step(weight, 4)
    codes = round_weight(weight, step, 4)
    codes[0], codes[1] = 0, -codes[1]
    factor = refitted(weight, step, gram, codes, 0.01)
    assert factor[:2].tolist() == [1, 1]
    assert factor[2] > 0.5
