"""What is trained towards."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitcompress.methods.readers import normalised
from vitcompress.model.architecture import VitModel, set_merging, set_tail
from vitcompress.model.merging import Merging
from vitcompress.stages.recover.objective import Objective, compared_steps

MakeVit = Callable[..., VitModel]


def objective(student: VitModel, dense: VitModel, features: float = 1.0) -> Objective:
    steps = compared_steps(dense.anatomy)
    distance = dense.task.distance
    return Objective(student.anatomy, dense.anatomy, distance, features, steps, torch.float32)


def test_there_is_nothing_to_learn_of_oneself(make_vit: MakeVit, pixels: Tensor) -> None:
    assert float(objective(make_vit(), make_vit()).loss(pixels)) == pytest.approx(0, abs=1e-6)


def test_steps_are_compared_from_the_last_on(make_vit: MakeVit) -> None:
    assert compared_steps(make_vit(depth=5).anatomy) == {4, 1}


def test_errors_of_features_are_added(make_vit: MakeVit, pixels: Tensor) -> None:
    student, dense = make_vit(), make_vit()
    student.module.get_parameter("blocks.0.mlp.fc2.weight").mul_(0.5)
    tokens: list[Tensor] = []
    for model in (student, dense):
        state = model.anatomy.start(pixels)
        for number in range(2):
            state = model.anatomy.advance(number, state)
        tokens.append(normalised(state.x))
    distance = dense.task.distance(student.module(pixels), dense.module(pixels)).mean()
    error = (tokens[0] - tokens[1]).square().mean()
    assert float(error) > 1e-4
    for features in (0.0, 2.0):
        loss = objective(student, dense, features).loss(pixels)
        torch.testing.assert_close(loss, distance + features * error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("pool", "tail"), [("token", True), ("token", False), ("avg", False)])
def test_tokens_that_merged_should_be_the_mean_of_what_they_stand_for(
    pool: str, tail: bool, make_vit: MakeVit, pixels: Tensor
) -> None:
    student, dense = make_vit(global_pool=pool), make_vit(global_pool=pool)
    if tail:
        set_tail(student.module, 1)
    merging = Merging(method="tome", kept=(17, 12))
    set_merging(student.module, merging)
    found = objective(student, dense)
    distance = dense.task.distance(student.module(pixels), dense.module(pixels)).mean()
    error = found.loss(pixels) - distance
    assert float(error) > 0
    if tail:  # the last block computes the class token alone
        ours, theirs = (_class_token(model, pixels) for model in (student, dense))
        torch.testing.assert_close(error, (ours - theirs).square().mean(), rtol=1e-3, atol=1e-6)


def _class_token(model: VitModel, pixels: Tensor) -> Tensor:
    state = model.anatomy.start(pixels)
    for number in range(len(model.anatomy.steps)):
        state = model.anatomy.advance(number, state)
    return normalised(state.x[:, 0])
