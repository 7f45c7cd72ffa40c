"""The recover stage whatever its method: what is kept, what is told, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import pytest
import torch
from pydantic import ValidationError

from vitcompress.data.images import ImageSet
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.recover import stage
from vitcompress.stages.recover.config import OnlyOf, RecoverConfig
from vitcompress.stages.recover.methods import Method, Recovered, method_of
from vitcompress.stages.recover.stage import plan, recover

MakeContext = Callable[..., Context]


class Options(RecoverConfig):
    """A stage with an option of another method."""

    steps: Annotated[int, OnlyOf("training")] = 5


@pytest.fixture
def damaged(make_vit: Callable[..., VitModel]) -> VitModel:
    """The model that contexts know as the dense one, with something lost."""
    vit = make_vit()
    vit.module.blocks[0].mlp.fc2.weight.mul_(0.7)  # type: ignore[union-attr,index]
    return vit


def by(
    change: Callable[[VitModel], object], monkeypatch: pytest.MonkeyPatch, seen: list[Any]
) -> None:
    """Let every method do `change` to the model, and note what it was given."""

    def recovering(
        model: VitModel, config: RecoverConfig, fit: Context, watched: Context
    ) -> Recovered:
        seen.append((fit.images.names, watched.images.names))
        change(model)
        return Recovered(model.module, {"tried": True})

    monkeypatch.setattr(stage, "method_of", lambda _: Method(recovering))


def undone(model: VitModel) -> None:
    model.module.blocks[0].mlp.fc2.weight.div_(0.7)  # type: ignore[union-attr,index]


def worse(model: VitModel) -> None:
    model.module.blocks[0].mlp.fc2.weight.mul_(0.7)  # type: ignore[union-attr,index]


def broken(model: VitModel) -> None:
    model.module.blocks[0].mlp.fc2.weight.fill_(torch.nan)  # type: ignore[union-attr,index]


def test_what_comes_nearer_on_images_held_back_is_kept(
    damaged: VitModel, context: Context, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = damaged.fingerprint(), list[Any]()
    by(undone, monkeypatch, seen)
    result = recover(damaged, RecoverConfig(held_back=0.25, images=16), context)
    assert damaged.fingerprint() == before  # what was given is left alone
    facts = result.facts
    assert facts["held_back_kl_after"] < 1e-6 < facts["held_back_kl_before"]  # type: ignore[operator]
    assert (facts["images"], facts["held_back_images"], facts["tried"]) == (12, 2, True)
    assert result.warnings == ()
    assert seen == [(images.names[:12], images.names[12:14])]


def test_what_no_stage_has_learned_from_is_watched_and_judged_by(
    damaged: VitModel, make_context: MakeContext, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Any]()
    by(undone, monkeypatch, seen)
    rest, reserve = images.subset(range(12)), images.subset(range(12, 20))
    result = recover(damaged, RecoverConfig(), make_context(calibration=rest, reserve=reserve))
    assert seen == [(images.names[:12], images.names[12:16])]
    assert result.facts["held_back_images"] == 4


@pytest.mark.parametrize("change", [worse, broken])
def test_nothing_worse_is_given_back(
    change: Callable[[VitModel], None],
    damaged: VitModel,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by(change, monkeypatch, [])
    result = recover(damaged, RecoverConfig(method="affine"), context)
    assert result.model is damaged
    assert result.facts["left_as_it_was"]
    (warning,) = result.warnings
    assert warning.startswith("stages.recover: nothing is gained")


def test_there_may_be_nothing_to_recover(
    vit: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Any]()
    by(worse, monkeypatch, seen)
    result = recover(vit, RecoverConfig(method="affine"), context)
    assert result.model is vit
    assert seen == []
    assert "answers as the dense one does already" in result.warnings[0]


def test_what_is_stored_in_few_bits_is_kept_as_it_is_stored(
    damaged: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    by(undone, monkeypatch, [])
    name = "blocks.0.mlp.fc2.weight"
    architecture = damaged.architecture.model_copy(update={"half": (name,)})
    result = recover(
        replace(damaged, architecture=architecture), RecoverConfig(method="affine"), context
    )
    weight = result.model.module.get_parameter(name)
    assert torch.equal(weight, weight.half().float())


@pytest.mark.parametrize("count", [0, 2, 5])
def test_too_few_images_are_refused(
    count: int, damaged: VitModel, make_context: MakeContext, images: ImageSet
) -> None:
    context = make_context(calibration=images.subset(range(count)))
    with pytest.raises(InputError, match=r"stages\.recover: \d calibration images are too few"):
        recover(damaged, RecoverConfig(method="affine"), context)


def test_options_of_another_method_are_refused() -> None:
    assert Options(steps=5).steps == 5  # as it is written down where nothing is said
    with pytest.raises(ValidationError, match="is for method: training, and the method is distill"):
        Options(steps=6)


def test_what_cannot_be_recovered_is_skipped(
    vit: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of("affine")
    obstacle = Method(method.recover, lambda _: "too odd")
    monkeypatch.setattr(stage, "method_of", lambda _: obstacle)
    for result in (
        plan(vit, RecoverConfig(method="affine")),
        recover(vit, RecoverConfig(method="affine"), context),
    ):
        assert result.model is vit
        assert result.facts["skipped"] == "vit_tiny_patch16_224: too odd; it stays as it is"
