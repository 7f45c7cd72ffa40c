"""Limits on what may be lost, of gates."""

import pytest
import torch
from torch import Tensor

from vitcompress import tasks
from vitcompress.errors import InputError, RunError
from vitcompress.recipe_gates import Gates
from vitcompress.searching.goal import excess, limits_of, losses_of

GENERATOR = torch.Generator().manual_seed(0)
DENSE = torch.randn(64, 10, generator=GENERATOR)
OTHER = DENSE + 0.5 * torch.randn(64, 10, generator=GENERATOR)


def test_gates_are_losses_that_nothing_has_from_itself() -> None:
    wanted = {"max_drop": {"top1": 1}, "min": {"agreement": 97}, "max": {"kl": 0.1, "bytes": 5}}
    task = tasks.chosen("classification", 10)
    limits = limits_of(Gates.model_validate({**wanted, "max_ratio": {"latency": 0.5}}), task)
    assert {limit.name: limit.most for limit in limits} == {
        "max_drop.top1": 1,
        "min.agreement": 3,
        "max.kl": 0.1,
    }
    for limit in limits:
        assert limit.loss(DENSE, DENSE) == pytest.approx(0, abs=1e-6)
        assert limit.loss(OTHER, DENSE) > 0  # type: ignore[operator]
    losses = {"max_drop.top1": 0.5, "min.agreement": 6.0, "max.kl": 0.1}
    assert excess(losses, limits) == 2


def test_the_expected_drop_is_that_of_labels_by_the_sharpened_dense_model() -> None:
    task = tasks.chosen("classification", 10)
    labels = torch.multinomial(
        (DENSE / 0.6).softmax(-1), 20_000, True, generator=GENERATOR
    )  # [64, n]
    right = [(each.argmax(-1)[:, None] == labels).double().mean() for each in (DENSE, OTHER)]
    drop = 100 * float(right[0] - right[1])
    assert drop > 3
    assert task.expected_drops["top1"](OTHER, DENSE) == pytest.approx(drop, abs=0.3)


@pytest.mark.parametrize(
    ("task", "wanted", "told"),
    [
        ("classification", {}, "nothing limits what may be lost"),
        ("classification", {"max_ratio": {"bytes": 0.5}}, "nothing limits what may be lost"),
        ("classification", {"min": {"top1": 80}}, r"gates\.min\.top1: cannot be told .* agreement"),
        ("embedding", {"max_drop": {"knn": 1}}, r"gates\.max_drop\.knn: cannot be told .* cosine"),
    ],
)
def test_gates_that_need_labels_are_told(
    task: str, wanted: dict[str, dict[str, float]], told: str
) -> None:
    outputs = 0 if task == "embedding" else 10
    with pytest.raises(InputError, match=told):
        limits_of(Gates.model_validate(wanted), tasks.chosen(task, outputs))


@pytest.mark.parametrize(
    ("outputs", "dense", "told"),
    [
        (DENSE[:2], OTHER[:2], r"gates\.min\.neighbours: means nothing"),
        (DENSE * torch.nan, OTHER, "its outputs are NaN"),
        (DENSE[:1].expand(8, -1), torch.zeros(8, 10), r"gates\.min\.cosine: means nothing"),
    ],
)
def test_losses_that_mean_nothing_do_not_pass_for_none(
    outputs: Tensor, dense: Tensor, told: str
) -> None:
    wanted = Gates.model_validate({"min": {"neighbours": 90, "cosine": 0.9}})
    limits = limits_of(wanted, tasks.chosen("embedding", 0))
    with pytest.raises(RunError, match=told):
        losses_of(limits, outputs, dense)
