import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from vitcompress.tasks import embedding
from vitcompress.tasks.embedding import TASK, cosine_p5, distance, knn, nearest_images, neighbours


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def by_hand(points: Tensor, count: int) -> list[list[int]]:
    """The nearest others by cosine, sorted by plain Python, which is stable."""
    found = []
    for i, point in enumerate(points):
        likeness = [round(float(torch.cosine_similarity(point, p, dim=0)), 9) for p in points]
        others = [j for j in range(len(points)) if j != i]
        found.append(sorted(others, key=lambda j: -likeness[j])[:count])
    return found


def test_distance_is_one_less_the_cosine_and_length_is_of_no_account() -> None:
    dense, output = randn(8, 5), randn(8, 5, seed=1)
    wanted = 1 - torch.cosine_similarity(output, dense)
    assert torch.allclose(distance(output, dense), wanted)
    assert torch.allclose(distance(3 * output, dense / 7), wanted)
    across = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(distance(*across)) == 1


def test_small_angles_are_not_lost_to_rounding() -> None:
    dense = torch.tensor([[1.0, 0.0]])
    assert float(distance(torch.tensor([[1.0, 1e-5]]), dense)) == pytest.approx(5e-11, rel=1e-3)


def test_zeros_have_no_direction() -> None:
    assert distance(torch.zeros(1, 3), torch.ones(1, 3)).isnan().all()
    found = TASK.compared(torch.zeros(1, 3), torch.ones(1, 3))
    assert math.isnan(found["cosine"] or 0)


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_nearest_others_are_those_found_by_hand(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_ROWS", rows)
    points = randn(12, 4)
    points[7] = 2 * points[3]  # equally near to all others: the first counts
    points[9] = points[3]
    assert nearest_images(points, 5).tolist() == by_hand(points, 5)


def test_neighbours_are_compared_with_the_dense_models() -> None:
    dense, output = randn(30, 4), randn(30, 4) + randn(30, 4, seed=1) / 2
    same = [a == b for a, b in zip(by_hand(output, 1), by_hand(dense, 1), strict=True)]
    assert 0 < sum(same) < 30
    assert neighbours(output, dense) == pytest.approx(100 * sum(same) / 30)
    turned = torch.linalg.qr(randn(4, 4, seed=2)).Q
    assert neighbours(5 * dense @ turned, dense) == 100
    assert neighbours(output[:2], dense[:2]) is None  # there is only one other


def test_knn_is_the_vote_of_the_five_nearest() -> None:
    outputs = randn(25, 3)
    labels = torch.randint(3, (25,), generator=torch.Generator().manual_seed(1))
    right = 0
    for near, label in zip(by_hand(outputs, 5), labels.tolist(), strict=True):
        votes = Counter(int(labels[j]) for j in near)  # keeps the order in which they are met
        right += max(votes, key=lambda each: votes[each]) == label
    assert knn(outputs, labels) == pytest.approx(100 * right / 25)
    assert 0 < right < 25


def test_knn_of_few_images_or_of_one_class() -> None:
    assert knn(randn(9, 3), torch.zeros(9)) is None
    assert knn(randn(1, 3), torch.zeros(1)) is None
    points = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    # Two neighbours with a vote each: the nearer decides.
    assert knn(points, torch.tensor([0, 0, 1])) == 100  # of the two whose label another has
    assert knn(points[[0, 2, 1]], torch.tensor([0, 0, 1])) == 0
    assert knn(points, torch.tensor([0, 1, 2])) is None


def test_the_fifth_percentile_is_that_of_the_worst() -> None:
    angles = torch.linspace(0, 1, 101).double()
    output = torch.stack([angles.cos(), angles.sin()], 1)
    dense = torch.tensor([1.0, 0.0]).double().expand(101, 2)
    assert cosine_p5(output, dense) == pytest.approx(math.cos(0.95))
    found = TASK.compared(3 * output, dense)
    assert found["norm_ratio"] == pytest.approx(3)
    assert found["cosine"] == pytest.approx(float(angles.cos().mean()))


def test_tokens_count_each_for_themselves() -> None:
    dense, output = randn(4, 6, 5), randn(4, 6, 5, seed=1)
    wanted = 1 - torch.cosine_similarity(output, dense, dim=-1).mean(1)
    assert torch.allclose(distance(output, dense), wanted)

    def first(tokens: Tensor) -> Tensor:
        return distance(tokens[None], dense[:1])[0]

    metric = torch.autograd.functional.hessian(first, dense[0].clone()).reshape(30, 30)
    many = dense[:1].expand(20_000, 6, 5)
    drawn = TASK.readout(many, torch.Generator().manual_seed(0)).flatten(1)
    found = drawn.T @ drawn / len(many)
    assert (found - metric).abs().max() < 0.05 * metric.diagonal().max()
