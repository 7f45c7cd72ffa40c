"""Refits against least squares on the rows themselves."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods.compensation import (
    Fit,
    Moments,
    covariance,
    joined,
    projected,
    refit,
    with_constant,
)


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + torch.randn(count, width, generator=generator, dtype=torch.float64)


def moments_of(x: Tensor, y: Tensor, weights: Tensor) -> Moments:
    x = with_constant(x)
    weighted = x * weights[:, None]
    return Moments(weighted.T @ x, weighted.T @ y, (weights * y.square().sum(1)).sum())


def test_without_damping_it_is_weighted_least_squares() -> None:
    x, y, weights = rows(50, 4), rows(50, 3, 1), rows(50, 1, 2)[:, 0].abs()
    found = refit(moments_of(x, y, weights), torch.zeros(5, 3).double(), 0.0)
    root = weights.sqrt()[:, None]
    expected = torch.linalg.lstsq(with_constant(x) * root, y * root).solution
    assert torch.allclose(found, expected, atol=1e-9)


def test_strong_damping_leaves_the_prior_but_for_the_bias() -> None:
    x, y, prior = rows(50, 4), rows(50, 3, 1), rows(5, 3, 2)
    found = refit(moments_of(x, y, torch.ones(50).double()), prior, 1e9)
    assert torch.allclose(found[:-1], prior[:-1], atol=1e-6)
    left = y - with_constant(x) @ found
    assert torch.allclose(left.mean(0), torch.zeros(3).double(), atol=1e-6)


def test_the_error_is_that_of_the_rows() -> None:
    x, y, weights = rows(50, 4), rows(50, 3, 1), rows(50, 1, 2)[:, 0].abs()
    layer = rows(5, 3, 3)
    error = (weights[:, None] * (y - with_constant(x) @ layer).square()).sum()
    assert moments_of(x, y, weights).error(layer) == pytest.approx(error.item())


def test_moments_add_up() -> None:
    x, y, weights = rows(50, 4), rows(50, 3, 1), torch.ones(50).double()
    parts = [moments_of(x[i], y[i], weights[i]) for i in (slice(0, 20), slice(20, 50))]
    for one, other in zip(parts[0].plus(parts[1]), moments_of(x, y, weights), strict=True):
        assert torch.allclose(one, other)


def test_inputs_that_the_kept_ones_determine_are_not_missed() -> None:
    kept = rows(60, 5)
    x = torch.cat([kept, kept @ rows(5, 3, 1) + 2], 1)  # three inputs are functions of five
    layer = joined(rows(4, 8, 2), rows(4, 1, 3)[:, 0])
    gram = with_constant(x).T @ with_constant(x)
    found = projected(Fit(gram, 1e-13), layer, torch.arange(5))
    assert torch.allclose(with_constant(kept) @ found, with_constant(x) @ layer, atol=1e-6)


def test_keeping_all_changes_nothing() -> None:
    x, layer = rows(60, 5), rows(6, 4, 1)
    gram = with_constant(x).T @ with_constant(x)
    assert torch.allclose(projected(Fit(gram, 0.0), layer, torch.arange(5)), layer, atol=1e-9)


def test_the_covariance_is_that_of_the_rows() -> None:
    x = rows(60, 5)
    found = covariance(with_constant(x).T @ with_constant(x))
    assert torch.allclose(found, x.T.cov(correction=0))
