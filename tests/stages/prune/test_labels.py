"""Saliencies for true labels instead of drawn ones."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from helpers.models import images_of
from helpers.pruning import configured, run
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, stored_tensors
from vitcompress.stages.context import Context
from vitcompress.stages.importance import importances
from vitcompress.stages.observe import readout_loss
from vitcompress.stages.prune.stage import plan
from vitcompress.tasks.classification import TASK as CLASSES

MakeVit = Callable[..., VitModel]
MakeContext = Callable[..., Context]


def test_true_labels_take_the_place_of_drawn_ones(
    vit: VitModel, context: Context, make_context: MakeContext
) -> None:
    with pytest.raises(InputError, match=r"stages\.prune\.targets: .* have no labels"):
        run(vit, context, targets="labels")
    least = [int(i) for i in vit.module(images_of(context)).argmin(-1)]
    most = [int(i) for i in vit.module(images_of(context)).argmax(-1)]
    found = []
    for labels in (least, most):
        images = replace(context.images, labels=labels, num_classes=10)
        options = {"saliency": "hessian", "structures": ("hidden",)}
        labelled = make_context(calibration=images)
        model = run(vit, labelled, targets="labels", **options).model
        drawn = run(vit, labelled, **options).model
        found.append((stored_tensors(model)["blocks.0.mlp.fc1.weight"], drawn.fingerprint()))
    assert found[0][0].shape != found[1][0].shape or not torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_gradients_are_those_of_the_labels_given(vit: VitModel, pixels: Tensor) -> None:
    labels = torch.tensor([1, 0, 7])
    found = importances(
        vit.module,
        ["norm"],
        [(pixels, labels)],
        readout_loss(CLASSES, torch.Generator().manual_seed(0)),
        1,
    )["norm"]
    features = vit.module.forward_features(pixels)[:, 0]
    shares = vit.module.head(features).softmax(-1)
    gradient = (shares - nn.functional.one_hot(labels, 10)) @ vit.module.head.weight
    assert torch.allclose(found.metric.float(), gradient.T @ gradient / 3, atol=1e-5)
    assert found.prefix == pytest.approx(1)


def test_labels_count_for_classes_only(make_vit: MakeVit) -> None:
    vit = make_vit().with_task("multi_label")
    with pytest.raises(InputError, match=r"targets: labels are classes, .* is multi_label"):
        plan(vit, configured(targets="labels"))
