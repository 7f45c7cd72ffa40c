"""Whole runs of models that are no classifiers, and of what is refused before the work."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vitcompress import inspection
from vitcompress.chain import Options, plan
from vitcompress.errors import InputError, RunError
from vitcompress.evaluation import Judged
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import metadata
from vitcompress.model.architecture import VitModel
from vitcompress.pipeline import run
from vitcompress.recipe import Recipe, recipe_without_stages
from vitcompress.report.model import Interval, Report
from vitcompress.run_images import Judging, evaluation_images
from vitcompress.tasks import chosen
from vitcompress.tasks.embedding import zero_shot

QUANTIZE = {"type": "quantize", "layers": ["blocks.*"], "rounding": "nearest"}
COUNT = 36


def arrays(seed: int = 0) -> np.ndarray:
    """Images that differ in brightness and texture, [36, 32, 32, 3]."""
    random = np.random.default_rng(seed)
    coarse = [random.integers(0, 256, (2 + i % 7, 3, 3), dtype=np.uint8) for i in range(COUNT)]
    fine = (Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC) for c in coarse)
    return np.stack([np.asarray(image) for image in fine])


@pytest.fixture
def recipe_of(
    make_module: Callable[..., nn.Module],
    make_vit: Callable[..., VitModel],
    tmp_path: Path,
    quick_runs: None,
) -> Callable[..., Recipe]:
    """A function that returns a recipe for a checkpoint with so many outputs; keywords are keys."""

    def make(outputs: int, labels: Any = None, **sections: Any) -> Recipe:
        described = make_vit(num_classes=outputs).architecture
        checkpoint = tmp_path / f"{outputs}.safetensors"
        save_file(make_module(num_classes=outputs).state_dict(), checkpoint)
        named = {} if labels is None else {"labels": labels}
        np.savez(tmp_path / "calibration.npz", images=arrays(1))
        np.savez(tmp_path / "evaluation.npz", images=arrays(), **named)
        images = {n: str(tmp_path / f"{n}.npz") for n in ("calibration", "evaluation")}
        return Recipe.model_validate(
            {
                "model": {
                    "checkpoint": str(checkpoint),
                    "name": described.timm,
                    "options": described.options,
                },
                "data": images,
                "stages": [],
                **sections,
            }
        )

    return make


def measured(report: Report) -> set[str]:
    cost = {"images", "params", "macs", "bytes", "latency_ms", "speedup"}
    return set(report.final.model_dump(exclude_none=True, exclude={"intervals"})) - cost


LABELS = (np.arange(COUNT) % 7 > 3).astype(int)
ONE_OF_THREE = np.eye(3, dtype=int)[np.arange(COUNT) % 3]
EMBEDDING = {"cosine", "cosine_p5", "neighbours", "norm_ratio"}


@pytest.mark.parametrize(
    ("outputs", "task", "labels", "stages", "found"),
    [
        (0, "embedding", LABELS, [QUANTIZE], EMBEDDING | {"knn"}),
        (1, "one_logit", LABELS, [], {"agreement", "kl", "top1"}),
        (3, "multi_label", ONE_OF_THREE, [QUANTIZE], {"agreement", "kl", "map"}),
    ],
)
def test_a_run_has_the_figures_of_its_task(
    outputs: int,
    task: str,
    labels: Any,
    stages: list[Any],
    found: set[str],
    recipe_of: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    out, (label_figure,) = tmp_path / "out", found & {"knn", "map", "top1"}
    gates = {"max_drop": {label_figure: 50}, "min": {label_figure: 100, "speedup": 0}}
    stated = {"task": "multi_label"} if task == "multi_label" else {}  # others are inferred
    recipe = recipe_of(outputs, labels, stages=stages, gates=gates, **stated)
    report = run(recipe, out, Options())
    assert measured(report) == found
    assert [gate.passed for gate in report.gates] == [True, False, True]
    assert report.model["task"] == task
    assert metadata(out / "model.onnx")["task"] == task
    assert json.loads((out / "config.json").read_text())["task"] == task
    assert load_folder(out).task.name == task
    text = (out / "report.md").read_text()
    assert ("Top-1" in text) == ("top1" in found)
    assert ("| Cosine |" in text) == ("mean cosine" in text) == ("cosine" in found)
    if "cosine" in found:
        assert report.final.cosine is not None
        assert 0.99 < report.final.cosine < 1
        assert 0 < report.artifacts[0].parity["torch_cosine"] <= 1
    images = {"data.evaluation": str(tmp_path / "evaluation.npz")}
    again = recipe_without_stages({"model.checkpoint": str(out), **images})
    told = inspection.evaluate(again, limit=None)[0].model_dump(exclude_none=True)
    assert told.pop("intervals").keys() <= {label_figure}  # of those that are a share of images
    assert told == {"images": COUNT, label_figure: getattr(report.final, label_figure)}


@pytest.mark.parametrize(
    ("outputs", "task", "found"),
    [
        (0, None, EMBEDDING),
        (10, "embedding", EMBEDDING),
        (10, None, {"agreement", "kl"}),
        (1, "regression", {"relative_error"}),
        (3, "multi_label", {"agreement", "kl"}),
    ],
)
def test_without_labels_figures_are_those_against_the_dense_model(
    outputs: int, task: str | None, found: set[str]
) -> None:
    values = np.random.default_rng(0).normal(size=(COUNT, outputs or 8)).astype(np.float32)
    dense, other = Judged(values, None), Judged(values + 0.1, None)
    figures = other.figures(chosen(task, outputs), dense)
    told = figures.model_dump(exclude_none=True, exclude={"intervals"})
    assert set(told) == found | {"images"}
    if task != "multi_label":  # whose outputs of one image are no independent observations
        assert set(figures.intervals) == found & {"agreement", "neighbours"}


def test_a_rate_has_the_interval_of_the_images_that_it_counts() -> None:
    values = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    dense = Judged(values, (0, 0, 0, 0, 1, 1, 1, 2, 3))
    found = dense.figures(chosen(None, 0), dense)
    assert found.intervals["knn"].images == 7  # of two images no other has the label
    assert "neighbours" not in found.intervals  # the model is held against itself
    moved = Judged(values + 0.1, dense.labels).figures(chosen(None, 0), dense)
    assert moved.neighbours is not None
    assert moved.intervals["neighbours"] == Interval.of(moved.neighbours, 9)


@pytest.mark.parametrize(
    ("outputs", "keys", "told"),
    [
        (
            0,
            {"gates": {"min": {"top1": 70}}},
            "gates.min.top1: the task embedding has no top1; its figures are knn, cosine, ",
        ),
        (0, {"gates": {"max": {"kl": 1}}}, "gates.max.kl: the task embedding has no kl"),
        (10, {"gates": {"min": {"cosine": 0.9}}}, "the task classification has no cosine"),
        (10, {"task": "regression", "gates": {"max_drop": {"map": 1}}}, "has no map"),
        (0, {"task": "classification"}, "task: classification needs a head of two outputs"),
        (10, {"task": "one_logit"}, "task: one_logit needs a head of one output"),
    ],
)
def test_what_a_task_does_not_have_is_refused_before_the_work(
    outputs: int, keys: dict[str, Any], told: str, recipe_of: Callable[..., Recipe]
) -> None:
    with pytest.raises(InputError) as caught:
        plan(recipe_of(outputs, **keys))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "task", "labels", "told"),
    [
        (3, "multi_label", np.arange(COUNT) % 3, "has one class an image, and multi_label takes"),
        (3, "multi_label", np.ones((COUNT, 2), int), "has labels for 2 outputs, and multi_label"),
        (3, None, np.ones((COUNT, 3), int), "has a label for each of 3 outputs, and classifi"),
        (0, None, np.ones((COUNT, 3), int), "and embedding takes one class an image; set task: mu"),
        (1, None, np.arange(COUNT) % 3, "has the label 2 and the model 2 classes"),
        (3, None, None, "has no label"),
        (3, None, np.full((COUNT, 3), 2), "expected integers from 0, [36], or 0 and 1 for each"),
    ],
)
def test_labels_that_a_task_cannot_use_are_refused(
    outputs: int, task: str | None, labels: Any, told: str, tmp_path: Path
) -> None:
    named = {} if labels is None else {"labels": labels}
    np.savez(tmp_path / "x.npz", images=arrays(), **named)
    with pytest.raises(InputError) as caught:
        evaluation_images(
            str(tmp_path / "x.npz"), None, Judging(chosen(task, outputs), outputs), None
        )
    assert told in str(caught.value)


def test_an_embedding_has_labels_where_all_images_lie_in_class_folders(tmp_path: Path) -> None:
    task, file = chosen(None, 0), io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(file.getvalue())
    assert evaluation_images(str(tmp_path), None, Judging(task, 0), None).labels == [0, 1]
    (tmp_path / "3.png").write_bytes(file.getvalue())
    assert evaluation_images(str(tmp_path), None, Judging(task, 0), None).labels is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "outputs"), [("classification", 3), ("embedding", 0)])
def test_outputs_that_are_not_finite_end_the_run(name: str, outputs: int, bad: float) -> None:
    dense = Judged(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), None)
    broken = dense.outputs.copy()
    broken[1, 2] = bad
    with pytest.raises(RunError, match="is nan: the outputs of 1 of 4 images are NaN or infinite"):
        Judged(broken, None).figures(chosen(name, outputs), dense)


def test_a_figure_without_meaning_ends_the_run() -> None:
    constant = Judged(np.zeros((4, 1), np.float32), None)
    with pytest.raises(RunError, match="relative_error is nan: outputs are zero"):
        constant.figures(chosen("regression", 1), constant)


def test_the_task_is_kept_in_the_folder_and_inferred_where_it_is_not(
    make_vit: Callable[..., VitModel], tmp_path: Path
) -> None:
    model = make_vit(num_classes=3).with_task("multi_label")
    save_folder(model, tmp_path)
    again = load_folder(tmp_path)
    assert (again.task.name, again.fingerprint()) == ("multi_label", model.fingerprint())
    assert model.fingerprint() != make_vit(num_classes=3).fingerprint()
    assert make_vit(num_classes=3).with_task("classification").task_name is None
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["task"]
    file.write_text(json.dumps(config))
    assert load_folder(tmp_path).task.name == "classification"
    for wrong, told in (("embeding", "task: Input should be"), ("one_logit", "task: one_logit ne")):
        file.write_text(json.dumps({**config, "task": wrong}))
        with pytest.raises(InputError, match=r"config\.json: " + told):
            load_folder(tmp_path)


def test_the_task_of_a_headless_model_reaches_other_processes(
    make_vit: Callable[..., VitModel], pixels: torch.Tensor, tmp_path: Path
) -> None:
    model = make_vit(num_classes=0)
    save_folder(model, tmp_path)
    again = load_folder(tmp_path)
    assert again.task.name == "embedding"
    assert torch.equal(again.module(pixels), model.module(pixels))


def classifier(tmp_path: Path, values: Any, suffix: str = "npy") -> str:
    path = tmp_path / f"classes.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    else:
        save_file({"classes": torch.from_numpy(values)}, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_embeddings_are_classified_by_those_of_classes(
    suffix: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    classes = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    gates = {"max_drop": {"top1": 100}, "min": {"agreement": 0, "cosine": 0}}
    recipe = recipe_of(0, np.arange(COUNT) % 4, stages=[], gates=gates)
    data = recipe.data.model_copy(update={"classifier": classifier(tmp_path, classes, suffix)})
    report = run(recipe.model_copy(update={"data": data}), tmp_path / "out", Options())
    assert measured(report) == EMBEDDING | {"knn", "top1", "top5", "agreement"}
    assert report.passed
    assert report.final.top5 == 100
    assert report.final.agreement == 100
    assert load_folder(tmp_path / "out").task.name == "embedding"


def test_the_class_is_the_one_that_the_embedding_points_to() -> None:
    classes = torch.tensor([[9.0, 0.0], [0.0, 0.1]])
    task = zero_shot(classes)
    outputs, labels = torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.2, 0.1]]), torch.tensor([0, 1, 1])
    assert task.judged(outputs, labels)["top1"] == pytest.approx(200 / 3)
    assert task.compared(7 * outputs, outputs)["agreement"] == 100
    assert task.compared(outputs.flip(1), outputs)["agreement"] == 0


@pytest.mark.parametrize(
    ("outputs", "values", "model", "told"),
    [
        (0, np.ones((4, 63), np.float32), {}, "have 63 values and those of the model 64; give"),
        (0, np.ones((4, 64), int), {}, "holds int64 [4, 64]; give floats [classes, width]"),
        (0, np.zeros((4, 64), np.float32), {}, "holds a class of zeros, NaN or infinity"),
        (0, np.ones((4, 64), np.float32), {"output": "tokens"}, "is [16, 64] an image, and it"),
        (10, np.ones((4, 10), np.float32), {}, "and the task is classification; set task"),
        (10, None, {"normalise": True}, "model.normalise: the task is classification, and only"),
    ],
)
def test_an_output_or_a_classifier_that_does_not_fit_is_refused(
    outputs: int,
    values: Any,
    model: dict[str, Any],
    told: str,
    recipe_of: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    recipe = recipe_of(outputs, stages=[])
    given = None if values is None else classifier(tmp_path, values)
    changed = {
        "data": recipe.data.model_copy(update={"classifier": given}),
        "model": recipe.model.model_copy(update=model),
    }
    with pytest.raises(InputError) as caught:
        plan(recipe.model_copy(update=changed))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifier_gives_its_features(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(10, stages=[{"type": "tail"}, QUANTIZE], gates={"min": {"cosine": 0.5}})
    model = recipe.model.model_copy(update={"output": "pooled", "normalise": True})
    report = run(recipe.model_copy(update={"model": model}), tmp_path / "out", Options())
    assert measured(report) == EMBEDDING
    assert report.passed
    features = load_folder(tmp_path / "out").module(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
