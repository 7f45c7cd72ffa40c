"""What holds for every task: its distance, its readout, and what becomes of NaN."""

import math

import pytest
import torch
from torch import Tensor

from vitcompress import registry, tasks
from vitcompress.errors import InputError
from vitcompress.tasks import Task, chosen, infer

NAMES = registry.names(tasks.PACKAGE)
OUTPUTS = {"one_logit": 1}
DRAWS = 40_000


def task_of(name: str) -> Task:
    return chosen(name, OUTPUTS.get(name, 4))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs_of(name: str, images: int, seed: int = 0) -> Tensor:
    return 2 * randn(images, OUTPUTS.get(name, 4), seed=seed)


def test_every_task_is_here() -> None:
    assert NAMES == ("classification", "embedding", "multi_label", "one_logit", "regression")
    for name in NAMES:
        assert task_of(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_distances_are_zero_to_oneself_and_positive_to_others(name: str) -> None:
    distance, dense = task_of(name).distance, outputs_of(name, 50)
    assert distance(dense, dense).shape == (50,)
    assert distance(dense, dense).max() < 1e-15
    near = distance((dense + 1e-4 * outputs_of(name, 50, seed=1)).float(), dense.float())
    assert near.min() >= 0
    if name != "embedding" or dense.shape[1] > 1:
        assert (distance(outputs_of(name, 50, seed=1), dense) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_readouts_have_the_second_derivative_of_the_distance_as_covariance(name: str) -> None:
    task, dense = task_of(name), outputs_of(name, 6, seed=3)

    def distance(first: Tensor) -> Tensor:
        return task.distance(torch.cat([first[None], dense[1:]]), dense)[0]

    wanted = torch.autograd.functional.hessian(distance, dense[0].clone())
    generator = torch.Generator().manual_seed(0)
    many = torch.stack([dense] * DRAWS, 1).flatten(0, 1)  # as often as it is drawn, each image
    drawn = task.readout(many, generator)[:DRAWS].double()
    found = drawn.T @ drawn / DRAWS
    assert (found - wanted).abs().max() < 0.03 * wanted.diagonal().max()
    assert drawn.mean(0).abs().max() < 0.03 * wanted.diagonal().max().sqrt()


@pytest.mark.parametrize("name", NAMES)
def test_readouts_follow_the_generator_and_keep_shape_and_kind(name: str) -> None:
    task, output = task_of(name), outputs_of(name, 5).float()
    one, again, other = (task.readout(output, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert (one.shape, one.dtype) == (output.shape, output.dtype)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan_in_the_image_it_is_in(name: str) -> None:
    task, dense = task_of(name), outputs_of(name, 5)
    output = outputs_of(name, 5, seed=1)
    output[2, 0] = math.nan
    assert task.distance(output, dense).isnan().tolist() == [i == 2 for i in range(5)]
    assert task.distance(dense, output)[2].isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_no_figure_is_good_where_an_output_is_not_finite(name: str, bad: float) -> None:
    task, dense = task_of(name), outputs_of(name, 5)
    broken = dense.clone()
    broken[4] = bad
    labels = torch.tensor([0, 1, 0, 1, 1])
    for figures in (
        task.compared(broken, dense),
        task.compared(dense, broken),
        task.compared(broken, broken),
        task.judged(broken, labels),
    ):
        assert all(math.isnan(value) for value in figures.values() if value is not None)
        assert None not in figures.values()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_explained_is_one_number_an_image_with_a_gradient(name: str) -> None:
    output = outputs_of(name, 5).requires_grad_()
    explained = task_of(name).explained(output)
    assert explained.shape == (5,)
    (gradient,) = torch.autograd.grad(explained.sum(), output)
    # Linear in the output: relevance of that size is what is passed on.
    assert torch.allclose((gradient * output).sum(1), explained)
    assert gradient.abs().sum(1).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_figures_do_not_depend_on_the_order_of_images(name: str) -> None:
    task, dense = task_of(name), outputs_of(name, 40)
    output = dense + 0.3 * outputs_of(name, 40, seed=1)
    kinds = {"matrix": (40, OUTPUTS.get(name, 4))}
    labels = torch.randint(2, kinds.get(task.labels, (40,)), generator=torch.Generator())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    assert task.compared(output[order], dense[order]) == pytest.approx(task.compared(output, dense))
    before, after = task.judged(output, labels), task.judged(output[order], labels[order])
    assert before == pytest.approx(after)


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_the_dense_model_are_perfect_also_for_one_image(name: str) -> None:
    perfect = {"agreement": 100, "kl": 0, "relative_error": 0, "cosine": 1, "cosine_p5": 1}
    perfect |= {"neighbours": 100, "norm_ratio": 1}
    for images in (1, 7):
        dense = outputs_of(name, images)
        for figure, value in task_of(name).compared(dense, dense).items():
            if value is None:
                assert (figure, images) == ("neighbours", 1)
            else:
                assert value == pytest.approx(perfect[figure], abs=1e-12)


def test_a_task_is_inferred_from_the_number_of_outputs() -> None:
    inferred = {0: "embedding", 1: "one_logit", 2: "classification", 1000: "classification"}
    for outputs, name in inferred.items():
        assert infer(outputs) == name
        assert chosen(None, outputs).name == name


@pytest.mark.parametrize(
    ("name", "outputs", "told"),
    [
        (
            "classification",
            0,
            "task: classification needs a head of two outputs or more, and the model has no head; "
            "give embedding, or leave it out for embedding",
        ),
        ("classification", 1, "the model has 1 output; give multi_label or one_logit or regressio"),
        ("one_logit", 3, "one_logit needs a head of one output, and the model has 3 outputs"),
        ("embedding", 1, "embedding needs no head, or one of two outputs or more"),
        ("regression", 0, "regression needs a head, and the model has no head"),
        ("segmentation", 9, "'segmentation' is none of classification, embedding, multi_label"),
    ],
)
def test_a_task_that_cannot_be_is_refused(name: str, outputs: int, told: str) -> None:
    with pytest.raises(InputError) as caught:
        chosen(name, outputs)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
