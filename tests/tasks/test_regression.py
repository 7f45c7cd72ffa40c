import pytest
import torch

from vitcompress.tasks.regression import distance, explained, readout, relative_error


def test_distance_is_in_units_of_the_variance_over_the_images() -> None:
    dense = torch.tensor([[1.0], [3.0], [5.0], [7.0]])  # of variance 5
    output = dense + torch.tensor([[1.0], [0.0], [-2.0], [0.0]])
    assert distance(output, dense).tolist() == pytest.approx([0.1, 0, 0.4, 0])
    assert relative_error(output, dense) == pytest.approx(0.25)  # (1 + 4) / 4 over 5
    assert relative_error(dense.mean(0).expand(4, 1), dense) == pytest.approx(1)


def test_units_and_offsets_of_outputs_are_of_no_account() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, output = torch.randn(2, 9, 3, generator=generator).double()
    scale, shift = torch.tensor([1e-3, 7.0, 1e4]).double(), torch.tensor([5.0, -2.0, 0.0])
    moved = distance(output * scale + shift, dense * scale + shift)
    assert torch.allclose(moved, distance(output, dense))


def test_one_image_is_held_against_its_own_size() -> None:
    dense = torch.tensor([[4.0]])
    assert relative_error(torch.tensor([[3.0]]), dense) == pytest.approx(1 / 16)
    assert readout(dense, torch.Generator()).abs().tolist() == [[0.25]]


def test_outputs_that_are_always_zero_give_no_figure() -> None:
    assert not distance(torch.zeros(3, 1), torch.zeros(3, 1)).isfinite().any()
    assert not distance(torch.ones(3, 1), torch.zeros(3, 1)).isfinite().any()


def test_magnitudes_are_explained() -> None:
    assert explained(torch.tensor([[-2.0, 1.0]])).tolist() == [3]
