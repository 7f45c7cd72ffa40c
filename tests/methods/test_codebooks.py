"""Codebooks: levels, the nearest of them, and what is made of weights, against brute force."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods import codebooks, quantizer
from vitcompress.methods.rounding import descend, gptq, output_error
from vitcompress.registry import names

TABLES = [
    (name, bits)
    for name in names(codebooks.PACKAGE)
    if name != "uniform"
    for bits in codebooks.codebook_of(name).widths
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels_of(name: str, bits: int, weight: Tensor, group: int | None = None) -> Tensor:
    book = codebooks.codebook_of(name)
    levels = book.levels(bits)
    if book.fitted is not None:
        levels = book.fitted(weight, torch.ones(weight.shape[1]), levels, group)
    assert isinstance(levels, Tensor)
    return levels


@pytest.mark.parametrize(("name", "bits"), TABLES)
@pytest.mark.parametrize("group", [None, 8])
def test_levels_ascend_hold_zero_and_fit_the_kernels(
    name: str, bits: int, group: int | None
) -> None:
    start = codebooks.codebook_of(name).levels(bits)
    levels = levels_of(name, bits, randn(30, 64), quantizer.grouped(start, group))
    assert levels.dtype == torch.int8
    assert len(levels) == (3 if name == "ternary" else 1 << bits)
    assert (levels.diff() >= 0).all()
    assert (levels == 0).sum() == 1
    assert levels[quantizer.zero_code(levels)] == 0
    assert quantizer.width(levels) == bits
    most = quantizer.largest_multiplier(levels) if quantizer.grouped(start, group) else 1
    assert int(levels.abs().max()) * most <= quantizer.largest_weight(bits)


@pytest.mark.parametrize("bits", [3, 4])
def test_powers_of_two_are_all_there(bits: int) -> None:
    levels = codebooks.codebook_of("power_of_two").levels(bits)
    assert isinstance(levels, Tensor)
    powers = {2**k for k in range(2 ** (bits - 1) - 1)}
    assert set(levels.tolist()) == {0, *powers, *(-p for p in powers)}


def test_five_bits_are_sums_of_two_powers_of_two() -> None:
    levels = codebooks.codebook_of("power_of_two").levels(5)
    assert isinstance(levels, Tensor)
    assert len(set(levels.tolist())) == 31
    assert all(abs(level).bit_count() <= 2 for level in levels.tolist())


@pytest.mark.parametrize(("name", "bits"), TABLES)
def test_the_nearest_level_is_that_of_all(name: str, bits: int) -> None:
    levels = levels_of(name, bits, randn(20, 40))
    x = randn(7, 90) * float(levels.abs().max())
    wanted = (x[..., None] - levels).abs().amin(-1)
    assert torch.allclose((quantizer.nearest_level(x, levels) - x).abs(), wanted)
    assert torch.isin(quantizer.nearest_level(x, levels), levels.float()).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_table_of_even_levels_gives_what_even_levels_do(bits: int) -> None:
    low, high = quantizer.weight_range(bits)
    even = torch.arange(low, high + 1, dtype=torch.int8)
    weight, gram = randn(12, 40), torch.eye(40, dtype=torch.float64)
    if bits < 8:  # of 8 one level is left out, and has a code
        packed = quantizer.pack_weight(quantizer.round_weight(weight, weight[:1] / 3, bits), bits)
        rounded = quantizer.round_weight(weight, weight[:1] / 3, even)
        assert torch.equal(quantizer.pack_weight(rounded, even), packed)
        assert quantizer.zero_code(even) == quantizer.zero_code(bits)
        assert quantizer.largest_multiplier(even) == quantizer.largest_multiplier(bits)
    step = weight.abs().amax(1, keepdim=True) / high
    assert torch.equal(gptq(weight, step, gram, even), gptq(weight, step, gram, bits))


@pytest.mark.parametrize(("name", "bits"), TABLES)
@pytest.mark.parametrize("group", [None, 8])
def test_steps_are_at_least_as_good_as_those_of_the_largest_weight(
    name: str, bits: int, group: int | None
) -> None:
    weight = randn(12, 64)
    levels = levels_of(name, bits, weight, group)
    group = quantizer.grouped(levels, group)
    scale, multipliers = quantizer.weight_scale(weight, levels, None, group)
    step = quantizer.weight_step(scale, multipliers, group, 64)
    plain = weight.abs().amax(1, keepdim=True) / int(levels.abs().max())

    def error(step: Tensor) -> Tensor:
        return (quantizer.round_weight(weight, step, levels) * step - weight).square().sum()

    assert error(step) < error(plain)


@pytest.mark.parametrize(("name", "bits"), TABLES)
def test_packed_levels_come_back(name: str, bits: int) -> None:
    weight = randn(9, 31)
    levels = levels_of(name, bits, weight)
    whole = quantizer.nearest_level(weight * float(levels.abs().max()), levels)
    packed = quantizer.pack_weight(whole, levels)
    assert packed.shape[1] == 9
    if name == "ternary":
        assert len(packed) == 7  # five to a byte
    assert torch.equal(quantizer.unpack_weight(packed, levels, 31), whole)


def test_means_are_those_of_weights_around_few_values() -> None:
    centres = torch.tensor([-0.8, -0.35, 0.0, 0.5])
    weight = centres[torch.randint(4, (40, 50), generator=torch.Generator().manual_seed(1))]
    weight[:, 0] = -0.8  # so that all rows have one scale
    levels = levels_of("kmeans", 2, weight)
    assert (levels / levels.abs().max() - centres / 0.8).abs().max() < 1 / 64
    even, _ = quantizer.weight_scale(weight, 2)
    own, _ = quantizer.weight_scale(weight, levels)

    def error(scale: Tensor, known: quantizer.Levels) -> Tensor:
        step = scale[:, None]
        return (quantizer.round_weight(weight, step, known) * step - weight).square().sum()

    assert error(own, levels) < 0.1 * error(even, 2)


@pytest.mark.parametrize(("name", "bits"), TABLES)
def test_descent_ends_where_no_single_level_would_be_better(name: str, bits: int) -> None:
    weight, x = randn(4, 6), randn(50, 6, seed=2) @ randn(6, 6, seed=3)
    gram = (x.T @ x).double()
    levels = levels_of(name, bits, weight)
    step = quantizer.weight_scale(weight, levels)[0][:, None]
    codes = descend(weight, step, gram, gptq(weight, step, gram, levels, 0.0), levels, 0.0, 50)
    least = output_error(weight, step, codes, gram)
    for column in range(6):
        for level in levels.tolist():
            other = codes.clone()
            other[:, column] = level
            assert (output_error(weight, step, other, gram) >= least * (1 - 1e-6)).all()
