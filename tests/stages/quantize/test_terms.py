"""Which layers have a second 8-bit term, and for which tokens."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from helpers.models import images_of, quantized_layers
from vitcompress import tasks
from vitcompress.export.onnx import Part
from vitcompress.measure import latencies
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.quantize import residual
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.residual import residual_share
from vitcompress.stages.quantize.stage import quantize
from vitcompress.stages.stage import StageResult

MakeVit = Callable[..., VitModel]
MODES = ["static", "dynamic"]


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    return quantize(vit, QuantizeConfig(**{"residual": 0, **options}), context)


def terms(model: VitModel) -> list[int]:
    found = [layer.terms for layer in quantized_layers(model.module).values()]
    assert found == [layer.terms for layer in model.architecture.quantized.values()]
    return found


@pytest.mark.parametrize("activations", MODES)
def test_fine_decides_how_many_layers_have_two_terms(
    activations: str, vit: VitModel, context: Context
) -> None:
    pixels = images_of(context)
    logits = vit.module(pixels)
    errors = []
    for share, bounds in ((0.0, (0, 0)), (0.4, (1, 7)), (1.0, (8, 8))):
        result = run(vit, context, residual=share, activations=activations)
        model = result.model
        count = terms(model).count(2)
        assert bounds[0] <= count <= bounds[1]
        assert result.facts["two_term_layers"] == count
        errors.append((model.module(pixels) - logits).norm().item())
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_fine_layers_stay_within_their_share_and_cost_most(
    bits: int, vit: VitModel, context: Context
) -> None:
    result = run(vit, context, residual=0.3, bits=bits)
    model = result.model
    work = {n: layer.codes.numel() for n, layer in quantized_layers(model.module).items()}
    finer = {
        entry["layer"]
        for entry in result.table("layers").rows
        if entry["terms"] == 2 and entry["residual_tokens"] is None
    }
    assert 0 < sum(work[name] for name in finer) <= 0.3 * sum(work.values())
    worth = {
        e["layer"]: e["input_kl"] / work[e["layer"]]
        for e in result.table("layers").rows
        if e["input_kl"] is not None
    }
    assert max(worth, key=worth.__getitem__) in finer


@pytest.fixture
def costly(make_vit: MakeVit) -> VitModel:
    """A model in which patches widen the range of a layer's input, and nobody reads them."""
    vit = make_vit()
    vit.module.pos_embed[:, 1:] *= 30
    vit.module.blocks[1].norm2 = nn.Identity()
    return vit


def test_where_the_class_token_is_costly_it_alone_gets_a_second_term(
    costly: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual, "_MOVED", 0)
    result = run(costly, context, residual=0.02, reparametrise=False)
    model = result.model
    first = {
        n: q.residual_tokens for n, q in quantized_layers(model.module).items() if q.terms == 2
    }
    assert "blocks.1.mlp.fc1" in first
    assert set(first.values()) == {1}
    assert result.facts["of_first_tokens_only"] == len(first)
    assert 0 < float(str(result.facts["second_terms_macs_share"])) <= 0.02
    described = {n: q.residual_tokens for n, q in model.architecture.quantized.items()}
    assert {n: described[n] for n in first} == first


@pytest.mark.parametrize(("some", "share", "expected"), [(0.1, 0.2, {1}), (0.9, 0.51, {None})])
def test_measured_time_decides_where_it_is_asked_for(
    some: float,
    share: float,
    expected: set[int | None],
    costly: VitModel,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timed(parts: dict[str, Part], target: str) -> dict[str, float]:
        """One term takes as long as the second of all tokens."""
        assert target == "onnxruntime"
        wide = {name for name, part in parts.items() if part.size == (17, 64)}
        taken = {"0": 1.0, "1": 1.0 + some, "2": 2.0}
        return {n: taken[n[-1]] if n in wide else 0.01 for n in parts}

    monkeypatch.setattr(latencies, "_milliseconds", timed)
    layer = "blocks.1.mlp.fc1"
    options = {"layers": [layer, "blocks.0.mlp.fc1"], "reparametrise": False}
    result = run(costly, context, residual={"latency": share}, **options)
    found = quantized_layers(result.model.module)[layer]
    assert found.terms == 2
    assert {found.residual_tokens} == expected
    row = next(r for r in result.table("layers").rows if r["layer"] == layer)
    assert row["second_term_price"] == pytest.approx(some / 2 if expected == {1} else 0.5)
    assert 0 < row["second_term_kl"] <= row["input_kl"]
    assert result.facts["second_terms_latency_share"] <= share


def test_prices_are_those_of_the_kernels(vit: VitModel, context: Context) -> None:
    table = latencies.LatencyTable()
    shape = latencies.QuantizedShape((17, 64), 256, "static")
    for _ in range(2):
        one, extra = table.second_terms([shape], 1)[shape]
        assert one > 0
        assert min(extra) >= 0
    assert len(table.grids) == 1


def test_without_a_class_token_no_token_is_special(make_vit: MakeVit, context: Context) -> None:
    vit = make_vit(class_token=False, global_pool="avg")
    model = run(vit, context, residual=0.02).model
    assert all(q.terms == 1 for q in quantized_layers(model.module).values())


@pytest.mark.parametrize(
    ("outputs", "given", "share"), [(10, None, 0.05), (0, None, 0.2), (10, 0.4, 0.4), (0, 0.0, 0)]
)
def test_embeddings_get_more_second_terms_where_nothing_is_said(
    outputs: int, given: float | None, share: float
) -> None:
    config = QuantizeConfig(residual=given)
    assert residual_share(config, tasks.chosen(None, outputs)) == share
