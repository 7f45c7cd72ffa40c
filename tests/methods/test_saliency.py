"""Sums of gradient × parameter against autograd's own gradients of the parameters."""

import pytest
import torch
from torch import Tensor, nn

from vitcompress.methods import saliency


def test_products_of_activations_are_those_of_all_tied_parameters() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(3, 5), nn.Linear(5, 2)
    x = torch.randn(4, 7, 3)
    for image in range(4):
        hidden = first(x[image : image + 1])
        inner = hidden.relu()
        loss = last(inner).sin().sum()
        weights = [first.weight, first.bias, last.weight]
        rows, biases, columns, at_hidden, at_inner = torch.autograd.grad(
            loss, [*weights, hidden, inner]
        )
        expected = (
            (rows * first.weight).sum(1) + biases * first.bias + (columns * last.weight).sum(0)
        )
        found = saliency.tied(hidden, at_hidden) + saliency.tied(inner, at_inner)
        assert torch.allclose(found[0], expected, atol=1e-5)


def test_hessian_squares_each_image_and_taylor_does_not() -> None:
    sums = torch.tensor([[1.0, 3.0], [-1.0, 3.0]])
    assert saliency.hessian(sums).tolist() == [0.5, 4.5]
    assert saliency.taylor(sums).tolist() == [1.0, 3.0]


def test_magnitude_adds_all_that_is_tied() -> None:
    found = saliency.magnitude(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0], [0.0]]))
    assert found.tolist() == [14.0, 1.0]


def test_random_follows_the_generator() -> None:
    one, again, other = (saliency.random(9, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.fixture
def z() -> Tensor:
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double()


def test_energies_are_those_of_single_dimensions(z: Tensor) -> None:
    k = z.flip(1) * 2
    found = saliency.logit_energy(z.T @ z / 60, k.T @ k / 60)
    for j in range(4):
        assert found[j] == pytest.approx((z[:, j, None] * k[None, :, j]).square().mean())
    projection, root = torch.randn(3, 4), torch.randn(3, 3).double()
    metric = root @ root.T
    energies = saliency.output_energy(z.T @ z / 60, projection, metric)
    for j in range(4):
        y = z[:, j, None] * projection[:, j].double()
        assert energies[j] == pytest.approx(0.5 * ((y @ metric) * y).sum(1).mean())


def test_readouts_have_the_covariance_of_the_softmax_and_are_steadier_than_drawn_labels() -> None:
    logits = torch.tensor([4.0, 1.0, 0.0, -1.0])
    shares = logits.softmax(-1)
    wanted = shares.diag() - torch.outer(shares, shares)
    many = logits.expand(20_000, 4)
    found = saliency.fisher_readout(many, torch.Generator().manual_seed(0))
    assert found.sum(-1).abs().max() < 1e-5  # what is added to all logits changes nothing
    torch.testing.assert_close(found.T @ found / len(many), wanted, atol=5e-3, rtol=0)
    labels = torch.multinomial(shares.expand(20_000, 4), 1, generator=torch.Generator())
    drawn = torch.eye(4)[labels[:, 0]] - shares
    spread = [each.square().sum(-1).std() for each in (found, drawn)]
    assert spread[0] < 0.2 * spread[1]


def test_strength_is_the_sum_of_weights_without_their_signs() -> None:
    first, last = torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[-3.0], [0.25]])
    assert saliency.strength(first, last).tolist() == [6.0, 0.75]


def test_units_are_active_beside_the_others_of_their_token() -> None:
    hidden = torch.tensor([[1.0, -1.0, 0.009, 0.0], [100.0, 100.0, 0.9, -1.1]])
    assert saliency.active(hidden).tolist() == [
        [True, True, True, False],  # the root mean square is 0.71
        [True, True, True, True],  # and here it is 71
    ]
    assert not saliency.active(torch.zeros(2, 3)).any()
    assert torch.equal(saliency.active(5 * hidden), saliency.active(hidden))
