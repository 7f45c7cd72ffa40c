"""Two small products: what has that form is found again, and the rest is approached by it."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods.factors import Factors, composed, density, factored, rank_for

OUT, IN = 24, 36


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moments(seed: int = 1) -> Tensor:
    x = drawn(400, IN, seed=seed) @ drawn(IN, IN, seed=seed + 1)
    return x.T @ x / len(x)


def error(weight: Tensor, found: Tensor, hessian: Tensor) -> float:
    change = weight - found
    return float((change @ hessian * change).sum())


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_the_factors_are_the_matrix_cut_into_parts(blocks: int) -> None:
    rank = 2
    first = drawn(blocks, blocks * rank, IN // blocks)
    second = drawn(blocks, OUT // blocks, blocks * rank, seed=1)
    whole = torch.zeros(OUT, IN, dtype=torch.float64)
    high, wide = OUT // blocks, IN // blocks
    for j in range(blocks):
        for i in range(blocks):
            u = second[j][:, i * rank : (i + 1) * rank]
            v = first[i][j * rank : (j + 1) * rank]
            whole[j * high : (j + 1) * high, i * wide : (i + 1) * wide] = u @ v
    found = composed(Factors(first, second))
    torch.testing.assert_close(found, whole)
    held = first.numel() + second.numel()
    assert density((OUT, IN), blocks, rank) == pytest.approx(held / whole.numel())
    assert rank_for((OUT, IN), blocks, held / whole.numel()) == rank


@pytest.mark.parametrize(("blocks", "rank"), [(1, 5), (2, 3), (4, 1), (12, 1)])
def test_what_has_the_form_is_reproduced(blocks: int, rank: int) -> None:
    shapes = (blocks, blocks * rank, IN // blocks), (blocks, OUT // blocks, blocks * rank)
    weight = composed(Factors(drawn(*shapes[0]), drawn(*shapes[1], seed=1)))
    for hessian in (torch.eye(IN, dtype=torch.float64), moments()):
        found = composed(factored(weight @ hessian, hessian, blocks, rank))
        scale = float((weight @ hessian * weight).sum())
        if blocks == 1 or torch.equal(hessian, torch.eye(IN, dtype=torch.float64)):
            assert error(weight, found, hessian) < 1e-20 * scale
        else:  # a descent, that the correlation of inputs slows down
            assert error(weight, found, hessian) < 0.15 * scale


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("more", [0, 3])
def test_full_rank_is_the_identity(blocks: int, more: int) -> None:
    weight, hessian = drawn(OUT, IN), torch.eye(IN, dtype=torch.float64)
    rank = min(OUT, IN) // blocks + more
    found = composed(factored(weight @ hessian, hessian, blocks, rank))
    torch.testing.assert_close(found, weight)


def test_the_error_of_low_rank_is_the_tail_of_the_whitened_singular_values() -> None:
    weight, hessian, rows = drawn(OUT, IN), moments(), drawn(OUT, seed=7).square()
    root = torch.linalg.cholesky(hessian)
    values = torch.linalg.svdvals(rows.sqrt()[:, None] * weight @ root)
    for rank in (1, 6, 15):
        found = composed(factored(weight @ hessian, hessian, 1, rank, rows))
        scaled = rows.sqrt()[:, None] * (weight - found)
        lost = float((scaled @ hessian * scaled).sum())
        assert lost == pytest.approx(float(values[rank:].square().sum()), rel=1e-9)


@pytest.mark.parametrize(("blocks", "rank"), [(1, 4), (2, 2), (3, 2), (6, 1)])
def test_the_moments_of_inputs_tell_better_factors_than_weights_alone(
    blocks: int, rank: int
) -> None:
    weight, hessian = drawn(OUT, IN), moments()
    eye = torch.eye(IN, dtype=torch.float64)
    found = composed(factored(weight @ hessian, hessian, blocks, rank))
    plain = composed(factored(weight, eye, blocks, rank))
    random = composed(factored(drawn(OUT, IN, seed=9) @ hessian, hessian, blocks, rank))
    best = error(weight, found, hessian)
    assert best < error(weight, plain, hessian) < error(weight, random, hessian)


def test_no_single_factor_can_be_bettered() -> None:
    """Where the sweeps end, least squares for `second` has nothing left to gain."""
    weight, hessian = drawn(OUT, IN), moments()
    found = factored(weight @ hessian, hessian, 3, 2)
    least = error(weight, composed(found), hessian)
    for seed in range(5):
        moved = found._replace(second=found.second + 1e-3 * drawn(*found.second.shape, seed=seed))
        assert error(weight, composed(moved), hessian) > least
