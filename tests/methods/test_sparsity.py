"""Patterns hold exactly, and refitted weights are never worse than a mask alone."""

import math

import pytest
import torch
from torch import Tensor

from vitcompress.methods import sparsity
from vitcompress.methods.patterns import Pattern, parse_pattern
from vitcompress.methods.sparsity import erdos_renyi_densities

NM = ["2:4", "1:4", "3:4", "4:8", "1:2", "5:5"]


def problem(outputs: int = 6, inputs: int = 40) -> tuple[Tensor, Tensor]:
    """Weights, and the Hessian of inputs that depend on one another."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(500, inputs, generator=generator, dtype=torch.float64) @ mixed / 4
    hessian = x.T @ x / 500
    hessian += 1e-3 * hessian.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    return torch.randn(outputs, inputs, generator=generator).double(), hessian


def total(weight: Tensor, found: Tensor, hessian: Tensor) -> float:
    return float(sparsity.row_errors(weight - found, hessian).sum())


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", Pattern(kept=2, group=4)),
        ("16x8", Pattern(cell=(16, 8))),
        ("unstructured", Pattern()),
    ],
)
def test_patterns_are_read(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", "2/4", "5:4", "0:4", "0x4", "2:4:8", "dense", "-1x3"])
def test_other_words_are_no_patterns(text: str) -> None:
    with pytest.raises(ValueError, match="no pattern"):
        parse_pattern(text)


@pytest.mark.parametrize("text", NM)
def test_exactly_n_of_m_stay(text: str) -> None:
    pattern, (weight, hessian) = parse_pattern(text), problem()
    target = weight @ hessian
    masks = [
        sparsity.keep(values, pattern, 0.5)
        for values in (weight.abs(), weight.square() * hessian.diagonal())
    ]
    masks.append(sparsity.sweep(weight, hessian, pattern))
    start = sparsity.reconstructed(weight, hessian, target, masks[-1])
    masks.append(sparsity.refined_groups(start, hessian, target, pattern, 3) != 0)
    for mask in masks:
        assert (mask.unflatten(1, (-1, pattern.group)).sum(-1) == pattern.kept).all()


@pytest.mark.parametrize("cell", [(1, 1), (2, 4), (4, 7)])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_whole_cells_stay_to_the_density(cell: tuple[int, int], density: float) -> None:
    weight, hessian = problem()
    pattern = Pattern(cell=cell)
    values = sparsity.block_scores(weight, hessian.inverse(), cell)
    for left in (
        sparsity.keep(values, pattern, density),
        sparsity.thinned(weight, hessian, pattern, density),
    ):
        assert left.sum() == round(density * left.numel())
    mask = sparsity.weight_mask(left, cell, weight.shape)
    assert mask.shape == weight.shape
    assert torch.equal(sparsity.cells(mask.float(), cell) > 0, left)
    if density == 1:
        assert mask.all()


def test_a_block_costs_what_its_removal_leaves() -> None:
    weight, hessian = problem()
    values = sparsity.block_scores(weight, hessian.inverse(), (2, 8))
    for row, column in ((0, 0), (2, 4)):
        mask = torch.ones_like(weight, dtype=torch.bool)
        mask[2 * row : 2 * row + 2, 8 * column : 8 * column + 8] = False
        best = sparsity.reconstructed(weight, hessian, weight @ hessian, mask, 200)
        assert total(weight, best, hessian) == pytest.approx(float(values[row, column]))


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_conjugate_gradients_solve_the_normal_equations(share: float) -> None:
    weight, hessian = problem()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < share
    mask[0] = False  # a row without weights
    target = weight @ hessian
    found = sparsity.reconstructed(weight, hessian, target, mask, 300)
    assert (found[~mask] == 0).all()
    for row, left in enumerate(mask):
        if left.any():
            exact = torch.linalg.solve(hessian[left][:, left], target[row, left])
            torch.testing.assert_close(found[row, left], exact)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_each_step_from_mask_to_better_mask_lowers_the_error(steps: int) -> None:
    weight, hessian = problem(inputs=64)
    pattern, target = parse_pattern("2:4"), weight @ hessian
    mask = sparsity.sweep(weight, hessian, pattern)
    errors = [total(weight, weight * mask, hessian)]
    found = sparsity.reconstructed(weight, hessian, target, mask, steps)
    errors.append(total(weight, found, hessian))
    found = sparsity.refined_groups(found, hessian, target, pattern, 2)
    errors.append(total(weight, found, hessian))
    errors.append(
        total(weight, sparsity.reconstructed(found, hessian, target, found != 0), hessian)
    )
    assert errors[0] > errors[1] > errors[2] >= errors[3]


def test_rounds_beat_a_mask_of_magnitudes_after_a_refit() -> None:
    weight, hessian = problem(inputs=64)
    target = weight @ hessian
    masks = {
        "obs": sparsity.thinned(weight, hessian, Pattern(), 0.5),
        "magnitude": sparsity.keep(weight.abs(), Pattern(), 0.5),
    }
    errors = {
        name: total(weight, sparsity.reconstructed(weight, hessian, target, mask), hessian)
        for name, mask in masks.items()
    }
    assert errors["obs"] < 0.9 * errors["magnitude"]


def test_an_order_keeps_more_and_loses_no_input() -> None:
    values = problem()[0].square()
    values[:, ::2] *= 10
    pattern = parse_pattern("1:2")
    order = sparsity.gathered(values, pattern, 20)
    assert order.sort().values.tolist() == list(range(40))

    def kept(of: Tensor) -> float:
        return float(of.unflatten(1, (-1, 2)).amax(-1).sum())

    assert kept(values[:, order]) > kept(values)
    assert sparsity.gathered(values, parse_pattern("2:2"), 3).tolist() == list(range(40))


@pytest.mark.parametrize("text", ["1:2", "2:4", "3:4", "4:8"])
def test_the_gain_of_a_swap_is_what_the_groups_keep_more(text: str) -> None:
    values, pattern = problem()[0].square(), parse_pattern(text)
    gains = sparsity._swap_gains(values.float(), pattern)

    def kept(of: Tensor) -> Tensor:
        return of.unflatten(1, (-1, pattern.group)).topk(pattern.kept, -1).values.sum()

    for one, other in ((0, 39), (3, 8), (17, 30), (8, 9)):
        order = torch.arange(40)
        order[[one, other]] = order[[other, one]]
        gain = float(kept(values[:, order]) - kept(values))
        assert float(gains[one, other]) == pytest.approx(gain, abs=1e-4)


def test_erdos_renyi_densities_follow_inputs_and_outputs() -> None:
    shapes = {"wide": (60, 20), "square": (30, 30), "small": (2, 3)}
    found = erdos_renyi_densities(shapes, 0.5)
    kept = {name: found[name] * math.prod(shape) for name, shape in shapes.items()}
    assert sum(kept.values()) == pytest.approx(0.5 * sum(map(math.prod, shapes.values())))
    assert found["small"] == 1.0  # which would get more than it has
    assert kept["wide"] / kept["square"] == pytest.approx(80 / 60)
    assert max(found.values()) == 1.0
    assert erdos_renyi_densities(shapes, 1.0) == pytest.approx(dict.fromkeys(shapes, 1.0))
