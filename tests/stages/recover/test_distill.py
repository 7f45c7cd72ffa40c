"""Recovery by training: what comes nearer, what stays, and how it goes on after a stop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from helpers.models import BLOCKS, quantized_layers
from vitcompress.data.images import ImageSet
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.context import Context
from vitcompress.stages.recover import training
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods import distill
from vitcompress.stages.recover.methods.distill import Trained, averaged
from vitcompress.stages.recover.stage import plan, recover
from vitcompress.stages.recover.trainable import Trainable, trainable
from vitcompress.stages.recover.training import Look, SavedTraining, train
from vitcompress.stages.registry import StageConfig, stage_of
from vitcompress.stages.stage import StageResult

MakeContext = Callable[..., Context]
MakeVit = Callable[..., VitModel]

PRUNE = {"type": "prune", "budget": {"macs": 0.7}, "multiple": 4, "allocate": "uniform"}
SPARSIFY = {"type": "sparsify", "layers": ["blocks.*"]}
MERGE = {"type": "merge", "method": "tome", "schedule": "constant", "budget": {"macs": 0.7}}
QUANTIZE = {"type": "quantize", "rounding": "nearest", "bits": 4, "residual": 0}
TAIL = {"type": "tail"}


def config(**options: Any) -> RecoverConfig:
    given = {
        "method": "distill",
        "steps": 20,
        "batch": 8,
        "rate": 2e-4,
        "held_back": 0.5,
        **options,
    }
    return RecoverConfig.model_validate(given)


def after(model: VitModel, context: Context, *stages: dict[str, Any]) -> VitModel:
    for given in stages:
        made = TypeAdapter[Any](StageConfig).validate_python(given)
        model = stage_of(made).run(model, made, context).model
    return model


def weakened(model: VitModel, factor: float = 0.7) -> VitModel:
    """`model` with something lost that can be learned again (in place)."""
    layer = model.module.get_submodule("blocks.0.mlp.fc2")
    weights = layer.scale if isinstance(layer, QuantizedLinear) else layer.weight
    weights.mul_(factor)  # type: ignore[operator]
    return model


def assert_nearer(result: StageResult, word: str = "kl") -> None:
    before, after = (result.facts[f"held_back_{word}_{when}"] for when in ("before", "after"))
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert "left_as_it_was" not in result.facts, result.warnings
    assert after < before


CHAINS: dict[str, tuple[dict[str, Any], ...]] = {
    "pruned": (PRUNE,),
    "of a narrower stream": ({**PRUNE, "structures": ["embedding", "hidden"]},),
    "sparse": (SPARSIFY,),
    "merged": (TAIL, MERGE),
    "in 4 bits": (QUANTIZE,),
    "sparse in 8 bits": (SPARSIFY, {**QUANTIZE, "bits": 8, "activations": "dynamic"}),
    "in 8 bits of two terms": ({**QUANTIZE, "bits": 8, "residual": 0.5},),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_what_stages_left_comes_nearer_and_is_stored_as_it_is(
    chain: str,
    vit: VitModel,
    context: Context,
    pixels: Tensor,
    in_fresh_process: Callable[[VitModel, Tensor], Tensor],
) -> None:
    given = weakened(after(vit, context, *CHAINS[chain]))
    result = recover(given, config(), context)
    assert_nearer(result)
    model = result.model
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert given.module.state_dict().keys() == model.module.state_dict().keys()
    assert torch.equal(in_fresh_process(model, pixels), model.module(pixels))


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_zeros_stay(pattern: str, storage: str, vit: VitModel, context: Context) -> None:
    sparse = {**SPARSIFY, "pattern": pattern, "storage": storage, "allocation": "uniform"}
    density = None if pattern == "2:4" else 0.5
    given = weakened(after(vit, context, {**sparse, "density": density}))
    trained = recover(given, config(steps=5), context).model
    for name in BLOCKS:
        before, now = (m.module.get_parameter(f"{name}.weight") for m in (given, trained))
        assert not torch.equal(now, before)
        assert torch.equal(now == 0, before == 0)


def test_scales_and_biases_of_codes_are_trained_and_ranges_stay(
    vit: VitModel, context: Context
) -> None:
    given = weakened(after(vit, context, QUANTIZE))
    trained = recover(given, config(steps=5, parameters="affine"), context).model
    before = quantized_layers(given.module)
    for name, layer in quantized_layers(trained.module).items():
        assert torch.equal(layer.codes, before[name].codes)
        assert not torch.equal(layer.scale, before[name].scale)
        assert not torch.equal(layer.bias, before[name].bias)
        assert layer.activation_scale == before[name].activation_scale


def test_norms_biases_and_scales_can_be_all_that_is_trained(
    make_vit: MakeVit, context: Context
) -> None:
    given = weakened(make_vit())
    result = recover(given, config(parameters="affine"), context)
    assert_nearer(result)
    for name, parameter in result.model.module.named_parameters():
        assert torch.equal(parameter, given.module.get_parameter(name)) == (parameter.ndim > 1)


def test_only_sites_that_matter_can_be_trained(make_vit: MakeVit, context: Context) -> None:
    given = weakened(make_vit())
    result = recover(given, config(parameters="sites"), context)
    assert_nearer(result)
    assert result.facts["sites"] == "blocks.0.mlp"
    changed = {
        name
        for name, parameter in result.model.module.named_parameters()
        if not torch.equal(parameter, given.module.get_parameter(name))
    }
    assert changed
    assert all(name.startswith(("blocks.0.mlp.", "blocks.0.norm2.")) for name in changed)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "without a head": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "of two heads": ("deit_tiny_distilled_patch16_224", {}),
    "of one logit": ("vit_tiny_patch16_224", {"num_classes": 1}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_task_can_be_trained(
    family: str, make_vit: MakeVit, make_context: MakeContext
) -> None:
    name, options = FAMILIES[family]
    dense, given = make_vit(name, **options), weakened(make_vit(name, **options))
    result = recover(given, config(), make_context(dense=dense))
    losses = [row["loss"] for row in result.table("training").rows]
    assert min(losses[1:]) < losses[0]  # type: ignore[type-var, operator]


def test_outputs_alone_can_tell_what_to_learn(make_vit: MakeVit, context: Context) -> None:
    result = recover(weakened(make_vit()), config(features=0), context)
    assert_nearer(result)
    assert result.facts["features_compared"] == 0


def test_the_same_seed_gives_the_same_weights(make_vit: MakeVit, make_context: MakeContext) -> None:
    found = {
        recover(
            weakened(make_vit()), config(steps=4), make_context(seed=seed, resume=False)
        ).model.fingerprint()
        for seed in (0, 0, 1)
        for _ in range(2)
    }
    assert len(found) == 2


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd", "muon"])
def test_a_killed_training_goes_on_to_the_same_end(
    optimizer: str,
    make_vit: MakeVit,
    make_context: MakeContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = config(steps=6, optimizer=optimizer)
    monkeypatch.setattr(training, "_MEMORY", 0.5)  # a mean of several steps
    whole = recover(weakened(make_vit()), options, make_context(cache=tmp_path / "other"))
    monkeypatch.setattr(training, "_SAVED_EVERY", -1.0)
    batch, steps = distill.Views.batch, list[int]()

    def dying(views: distill.Views, step: int, size: int) -> Tensor:
        if step == 3 and not steps:
            raise Killed
        if step == 3 or steps:
            steps.append(step)
        return batch(views, step, size)

    monkeypatch.setattr(distill.Views, "batch", dying)
    with pytest.raises(Killed):
        recover(weakened(make_vit()), options, make_context())
    steps.append(-1)
    resumed = recover(weakened(make_vit()), options, make_context())
    assert steps[1:] == [3, 4, 5]
    assert resumed.model.fingerprint() == whole.model.fingerprint()
    assert resumed.table("training") == whole.table("training")
    again = recover(weakened(make_vit()), options, make_context())  # killed after the training
    assert steps[1:] == [3, 4, 5]
    assert again.model.fingerprint() == whole.model.fingerprint()
    fresh = recover(weakened(make_vit()), options, make_context(resume=False))
    assert steps[4:] == [0, 1, 2, 3, 4, 5]
    assert fresh.model.fingerprint() == whole.model.fingerprint()


def test_the_mean_of_the_last_steps_is_watched_and_kept(make_context: MakeContext) -> None:
    module = nn.Linear(1, 1, bias=False)
    student = Trainable(module, {"weight": module.weight}, {})
    options = config(steps=100, optimizer="sgd", rate=0.4)
    passed, watched = list[float](), list[float]()

    def loss(step: int) -> Tensor:  # towards 2 and 0 in turns
        passed.append(module.weight.item())
        return (module.weight - (0.0 if step % 2 else 2.0)).square().sum()

    def distance() -> float:
        watched.append(module.weight.item())
        return abs(watched[-1] - 1.0)

    context = make_context()
    train(student, options, loss, distance, SavedTraining(context.cache, "mean"), context)
    start, *watched = watched
    assert start == passed[0]
    assert watched[0] == pytest.approx(sum(passed[1:11]) / 10, abs=1e-6)  # a tenth of all steps
    assert module.weight.item() == min(watched, key=lambda value: abs(value - 1.0))


@pytest.mark.parametrize("rate", [0.9, 1.0])
def test_an_absurd_rate_leaves_the_model_as_it_was(
    rate: float, make_vit: MakeVit, context: Context
) -> None:
    given = weakened(make_vit(), 0.99)
    result = recover(given, config(rate=rate, steps=100), context)
    assert result.model is given
    assert result.facts["left_as_it_was"]
    assert len(result.table("training").rows) <= 4  # it ends early


def test_several_runs_are_averaged_and_zeros_stay(
    vit: VitModel, make_context: MakeContext, tmp_path: Path
) -> None:
    context = make_context()
    given = weakened(after(vit, context, {**SPARSIFY, "pattern": "2:4"}))
    steps = {"steps": 20, "batch": 4, "rate": 5e-4}  # so noisy that an average is better
    result = recover(given, config(runs=2, **steps), context)
    assert_nearer(result)
    best, average = (result.facts[f"watched_kl_{which}"] for which in ("of_best_run", "of_average"))
    assert isinstance(average, float)
    assert average <= best  # type: ignore[operator]
    singles = {row["run"]: row for row in result.table("training").rows}
    assert set(singles) == {1, 2}
    assert singles[1]["loss"] != singles[2]["loss"]  # other views
    once = recover(given, config(**steps), make_context(cache=tmp_path / "other"))
    rows = [row for row in result.table("training").rows if row["run"] == 1]
    assert [row["kl"] for row in once.table("training").rows] == [row["kl"] for row in rows]
    for name in BLOCKS:
        before, now = (m.module.get_parameter(f"{name}.weight") for m in (given, result.model))
        assert torch.equal(now == 0, before == 0)
        assert not torch.equal(now, once.model.module.get_parameter(f"{name}.weight"))


def test_an_average_that_is_worse_gives_way_to_the_best_run(make_vit: MakeVit) -> None:
    student = trainable(make_vit().module, "all")
    start = student.copied()
    ends = [{name: value * factor for name, value in start.items()} for factor in (1, 3, 11)]
    looks = [[Look(1, 0.0, distance)] for distance in (float("nan"), 2.0, 4.0)]
    runs = [Trained(*pair) for pair in zip(looks, ends, strict=True)]
    for distance, factor in (2.0, 5), (2.1, 3), (float("nan"), 3):
        found = averaged(student, runs, lambda value=distance: value)  # type: ignore[misc]
        assert found["of_best_run"] == 2.0
        for name, value in student.copied().items():
            assert torch.allclose(value, start[name] * factor)
    averaged(student, [runs[0], runs[2]], lambda: 1.0)
    for name, value in student.copied().items():
        assert torch.allclose(value, start[name] * 6)


def test_more_runs_go_on_from_those_that_were_made(
    make_vit: MakeVit, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = distill.Views.batch, list[tuple[int, int]]()

    def counted(views: distill.Views, step: int, size: int) -> Tensor:
        seen.append((views.run, step))
        return batch(views, step, size)

    monkeypatch.setattr(distill.Views, "batch", counted)
    for runs in (1, 3, 3):
        recover(weakened(make_vit()), config(steps=2, runs=runs), make_context())
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_more_images_are_trained_on(
    make_vit: MakeVit, make_context: MakeContext, images: ImageSet
) -> None:
    more = replace(images, names=[f"more {name}" for name in images.names])
    result = recover(weakened(make_vit()), config(steps=2), make_context(recovery=more))
    assert result.facts["views_of"] == 10 + 20


@pytest.mark.parametrize("name", ["adamz", "adahessian", "bnbadam", "kronw"])
def test_optimizers_that_cannot_be_had_are_refused_before_the_work(
    name: str, vit: VitModel
) -> None:
    with pytest.raises(InputError, match=rf"stages\.recover\.optimizer: '{name}' is none .* give "):
        plan(vit, config(optimizer=name))


def test_crops_from_large_to_small_are_refused() -> None:
    with pytest.raises(ValidationError, match="the smaller share comes first"):
        config(crops=(1.0, 0.5))


def test_sites_that_have_no_counterpart_are_refused_before_the_work(make_vit: MakeVit) -> None:
    stage = TypeAdapter[Any](StageConfig).validate_python(CHAINS["of a narrower stream"][0])
    narrow = stage_of(stage).plan(make_vit(), stage).model
    options = dict.fromkeys(("img_size", "patch_size", "embed_dim", "depth", "num_heads"))
    generic = make_vit("convnext_atto", **options, dims=(8, 16, 16, 16), depths=(1, 1, 1, 1))
    for model, why in (narrow, "narrower than that of the dense"), (generic, "not of a kind"):
        with pytest.raises(InputError, match=rf"stages\.recover\.parameters: .*{why}.*to all"):
            plan(model, config(parameters="sites"))
