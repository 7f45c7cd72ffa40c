"""Rounding with error feedback, against rounding to nearest."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods.quantizer import round_weight, weight_limit, weight_scale
from vitcompress.methods.rounding import gptq


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(inputs: int, rows: int = 1000, rank: int | None = None, seed: int = 1) -> Tensor:
    """The Gram matrix of inputs that share factors and have channels of unequal size."""
    mixing = randn(rank or inputs, inputs, seed=seed) * torch.linspace(0.2, 3, inputs)
    x = randn(rows, rank or inputs, seed=seed + 1) @ mixing
    return (x.T @ x).double() / rows


def loss(codes: Tensor, weight: Tensor, scale: Tensor, gram: Tensor) -> float:
    """tr(ΔW G ΔWᵀ)."""
    change = (codes * scale[:, None] - weight).double()
    return float(((change @ gram) * change).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("inputs", [10, 64, 65, 150])  # around and beyond a block of columns
def test_correlated_inputs_make_it_better_than_nearest(bits: int, inputs: int) -> None:
    weight, gram = randn(24, inputs), correlated(inputs)
    scale = weight_scale(weight, bits)
    nearest = loss(round_weight(weight, scale, bits), weight, scale, gram)
    assert loss(gptq(weight, scale, gram, bits), weight, scale, gram) < 0.9 * nearest


@pytest.mark.parametrize("inputs", [10, 150])
@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e12])
def test_uncorrelated_inputs_make_it_nearest(inputs: int, factor: float) -> None:
    weight = randn(8, inputs)
    scale = weight_scale(weight, 4)
    gram = factor * torch.eye(inputs, dtype=torch.float64)
    assert torch.equal(gptq(weight, scale, gram, 4), round_weight(weight, scale, 4))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_codes_are_whole_and_within_limits(bits: int) -> None:
    weight = randn(16, 70)
    scale = weight_scale(weight, bits) * 0.3  # much is clipped
    codes = gptq(weight, scale, correlated(70), bits)
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() == weight_limit(bits)


def test_columns_may_come_in_any_order() -> None:
    weight, gram = randn(8, 90), correlated(90)
    scale = weight_scale(weight, 4)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    moved = gptq(weight[:, order], scale, gram[order][:, order], 4)
    assert torch.equal(moved, gptq(weight, scale, gram, 4)[:, order])


@pytest.mark.parametrize("rank", [1, 7])
def test_a_gram_matrix_may_lack_rank(rank: int) -> None:
    weight, gram = randn(8, 80), correlated(80, rank=rank)
    scale = weight_scale(weight, 4)
    codes = gptq(weight, scale, gram, 4)
    assert codes.isfinite().all()
    nearest = loss(round_weight(weight, scale, 4), weight, scale, gram)
    assert loss(codes, weight, scale, gram) < 0.1 * nearest


def test_inputs_that_are_always_zero_make_it_nearest() -> None:
    weight = randn(3, 5)
    scale = weight_scale(weight, 4)
    codes = gptq(weight, scale, torch.zeros(5, 5, dtype=torch.float64), 4)
    assert torch.equal(codes, round_weight(weight, scale, 4))


def test_it_is_deterministic_and_changes_nothing() -> None:
    weight, gram = randn(8, 70), correlated(70)
    scale = weight_scale(weight, 4)
    before = weight.clone(), scale.clone(), gram.clone()
    assert torch.equal(gptq(weight, scale, gram, 4), gptq(weight, scale, gram, 4))
    assert all(map(torch.equal, before, (weight, scale, gram)))
