"""What stages are given: images, and latencies of the runtime of the run."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vitcompress import chain, registry, targets
from vitcompress.model.architecture import VitModel
from vitcompress.recipe import Recipe
from vitcompress.run_images import RunImages
from vitcompress.stages.context import Context
from vitcompress.targets.onnxruntime import OnnxRuntime


@pytest.mark.parametrize(("wanted", "sizes"), [(5, [5]), (16, [16]), (20, [16, 4])])
def test_so_many_images_and_no_more(wanted: int, sizes: list[int], context: Context) -> None:
    found = list(context.labelled_batches("reading", wanted))
    assert [len(batch.pixels) for batch in found] == sizes
    assert [name for batch in found for name in batch.names] == context.images.names[:wanted]
    everything = torch.cat(list(context.calibration_batches("reading")))
    assert len(everything) == len(context.images)
    assert torch.equal(torch.cat([batch.pixels for batch in found]), everything[:wanted])


def test_latencies_are_of_the_runtime_of_the_recipe(
    vit: VitModel,
    make_context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = SimpleNamespace(TARGET=OnnxRuntime(name="other"))
    known = registry.load_module
    monkeypatch.setattr(
        registry,
        "load_module",
        lambda package, name: other if name == "other" else known(package, name),
    )
    recipe = Recipe.model_validate({"stages": []})
    export = recipe.export.model_copy(update={"target": "other"})
    images = make_context().images
    context = chain.context_of(
        recipe.model_copy(update={"export": export}),
        vit,
        RunImages(images, images),
        chain.Options(resume=True),
    )
    for one, found in ((context, {}), (context, {"a": [1.0]})):
        with one.latencies() as table:
            assert (table.target, table.grids) == ("other", found)
            table.grids["a"] = [1.0]
    with replace(context, target=targets.DEFAULT).latencies() as table:
        assert not table.grids


def test_images_are_held_back_from_all_stages_where_one_recovers(
    vit: VitModel, make_context: Callable[..., Context]
) -> None:
    images, stages = make_context().images, [{"type": "tail"}]
    for recovering, left in (([], 20), ([{"type": "recover", "held_back": 0.3}], 14)):
        recipe = Recipe.model_validate({"stages": [*stages, *recovering]})
        context = chain.context_of(recipe, vit, RunImages(images, images), chain.Options())
        assert context.images.names == images.names[:left]
        reserve = [] if context.reserve is None else context.reserve.names
        assert reserve == images.names[left:]
