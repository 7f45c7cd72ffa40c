"""Widths of layers: budgets are met, pins and floors hold, scores are what they say."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from helpers.models import BLOCKS, images_of, kl, quantized_layers, rebuilt
from vitcompress.errors import InputError
from vitcompress.methods import quantizer
from vitcompress.model.architecture import (
    VitModel,
    stored_tensors,
)
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.sizes import resize, sizes_of
from vitcompress.stages.calibrate import statistics
from vitcompress.stages.context import Context
from vitcompress.stages.quantize import prepare as preparing
from vitcompress.stages.quantize import residual
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import plan, quantize, sensitivity
from vitcompress.stages.stage import StageResult

MakeVit = Callable[..., VitModel]


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    given = {
        "residual": 0,
        "reparametrise": False,
        "rounding": "gptq",
        "activations": "dynamic",
        **options,
    }
    return quantize(vit, QuantizeConfig(**given), context)


def bits_of(model: VitModel) -> dict[str, int]:
    return {name: layer.bits for name, layer in model.architecture.quantized.items()}


def average(model: VitModel) -> float:
    layers = quantized_layers(model.module)
    sizes = {name: layer.in_features * layer.out_features for name, layer in layers.items()}
    return sum(sizes[n] * b for n, b in bits_of(model).items()) / sum(sizes.values())


@pytest.mark.parametrize("bits", [2, 6, 7, 8])
def test_all_layers_get_the_width_asked_for(bits: int, vit: VitModel, context: Context) -> None:
    result = run(vit, context, bits=bits)
    model = result.model
    assert set(bits_of(model).values()) == {bits}
    assert result.facts["average_bits"] == bits
    groups = {layer.group for layer in model.architecture.quantized.values()}
    assert groups == {24 if bits <= 6 else None}


def test_fewer_bits_mean_a_larger_error(vit: VitModel, context: Context, pixels: Tensor) -> None:
    dense = vit.module(pixels)
    errors = [
        float((run(vit, context, bits=bits).model.module(pixels) - dense).norm())
        for bits in (8, 6, 5, 4, 3, 2)
    ]
    assert errors == sorted(errors)
    assert errors[3] < 0.5 * errors[5]


@pytest.mark.parametrize("score", ["lrp", "fisher", "kl", "uniform", "random"])
def test_an_average_is_met_and_used_up(score: str, vit: VitModel, context: Context) -> None:
    result = run(vit, context, bits={"average": 4.5}, score=score)
    model = result.model
    assert 4.3 < average(model) <= 4.5
    assert result.facts["average_bits"] == pytest.approx(average(model))
    assert result.facts["score"] == score
    assert len(set(bits_of(model).values())) > 1
    assert {row["layer"]: row["bits"] for row in result.table("layers").rows} == bits_of(model)
    assert sum(row["importance"] for row in result.table("layers").rows) == pytest.approx(1)


def test_a_budget_of_bytes_is_of_the_whole_model(vit: VitModel, context: Context) -> None:
    vit.module.blocks[0].mlp.fc1.weight[3] = 0

    def stored(model: VitModel) -> int:
        return sum(t.nbytes for t in stored_tensors(model).values())

    least, most = (stored(run(vit, context, bits=b, rest="float16").model) for b in (3, 8))
    limit = (least + most) // 2
    model = run(vit, context, bits={"bytes": limit}, rest="float16").model
    assert 0.95 * limit < stored(model) <= limit
    planned = plan(vit, QuantizeConfig(bits={"bytes": limit}, rest="float16")).model
    assert 0.95 * limit < stored(planned) <= limit
    with pytest.raises(InputError, match=rf"stages\.quantize\.bits\.bytes: .* {least - 1}; raise"):
        run(vit, context, bits={"bytes": least - 1}, rest="float16")


def test_a_limit_of_kl_gives_the_smallest_model_that_holds_it(
    vit: VitModel, context: Context
) -> None:
    def lost(model: VitModel) -> float:
        return kl(vit.module, model.module, images_of(context))

    narrow, wide = (lost(run(vit, context, bits=bits).model) for bits in (3, 8))
    loose, tight = (
        run(vit, context, bits={"max_kl": share * narrow}).model for share in (0.5, 0.05)
    )
    assert 3 < average(loose) < average(tight) < 8
    for model, share in ((loose, 0.5), (tight, 0.05)):
        assert 0.5 * share * narrow < lost(model) < 1.2 * share * narrow + 2 * wide
    assert average(run(vit, context, bits={"max_kl": 100}).model) == 3
    with pytest.raises(InputError, match=r"stages\.quantize\.bits\.max_kl: .* raise the limit"):
        run(vit, context, bits={"max_kl": 1e-9})
    with pytest.raises(InputError, match=r"stages\.quantize\.bits\.max_kl: .* raise the limit"):
        run(vit, context, bits={"max_kl": 1e-9, "widths": [3]})


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_what_is_stored_is_as_large_as_its_bits_and_floats(
    bits: int, make_vit: MakeVit, context: Context
) -> None:
    vit = make_vit(embed_dim=192, num_heads=3)  # the layers of deit_tiny
    model = run(vit, context, bits=bits, rounding="nearest", activations="static").model
    weights = {f"{n}.weight": vit.module.get_submodule(n).weight.numel() for n in BLOCKS}
    floats = sum(p.nbytes for n, p in vit.module.named_parameters() if n not in weights)
    stored = sum(t.nbytes for t in stored_tensors(model).values())
    assert stored < 1.05 * (floats + sum(weights.values()) * bits / 8)


def test_scales_of_few_bits_are_stored_in_half(vit: VitModel, context: Context) -> None:
    small = vit.module.blocks[1].mlp.fc1
    small.weight[5] *= 1e-6  # beneath what float16 holds as normal numbers
    options = {"pin": {"*.fc2": 8}, "rounding": "descent"}
    model = run(vit, context, bits=4, **options).model
    stored = stored_tensors(model)
    for name in BLOCKS:
        kept = name == "blocks.1.mlp.fc1" or name.endswith("fc2")
        scale = stored[f"{name}.scale"]
        assert scale.dtype == (torch.float32 if kept else torch.float16)
        assert torch.equal(scale.float(), model.module.get_submodule(name).scale)
    change = model.module.blocks[1].mlp.fc1.dequantized().weight[5] - small.weight[5]
    assert 0 < change.norm() < 0.2 * small.weight[5].norm()


def test_floors_and_pins_hold(vit: VitModel, context: Context, pixels: Tensor) -> None:
    model = run(
        vit,
        context,
        bits={"average": 4},
        layers=("*",),
        floor={"blocks.0.*": 5, "blocks.0.mlp.*": 4},
        pin={"*.fc2": 3, "head": "float16", "blocks.1.attn.proj": "float32"},
        rest="float16",
    ).model
    bits = bits_of(model)
    assert {n for n in BLOCKS if n not in bits} == {"blocks.1.attn.proj"}
    assert "head" not in bits
    assert bits["blocks.0.mlp.fc2"] == bits["blocks.1.mlp.fc2"] == 3
    assert bits["blocks.0.attn.qkv"] >= 5
    assert bits["blocks.0.mlp.fc1"] >= 5
    half = set(model.architecture.half)
    assert "head.weight" in half
    assert "blocks.1.attn.proj.weight" not in half
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": {"blocks.9.*": 4}}, r"floor: 'blocks\.9\.\*' matches no layer; nearest"),
        ({"pin": {"fc9": 4}}, r"pin: 'fc9' matches no layer; nearest"),
        ({"bits": 4, "floor": {"*.fc1": 6}}, r"floor: blocks\.0\.mlp\.fc1 needs 6 bits"),
        ({"bits": {"average": 2.5}}, r"bits\.average: at the narrowest widths"),
        ({"bits": {"average": 4}, "floor": {"*": 6}}, r"bits\.average: .* relax `floor`"),
        ({"pin": {"*": "float16"}}, r"pin: leaves no layer to quantize"),
    ],
)
def test_what_cannot_be_is_refused_with_the_key(
    options: dict[str, Any], message: str, vit: VitModel, context: Context
) -> None:
    with pytest.raises(InputError, match=rf"stages\.quantize\.{message}"):
        run(vit, context, **options)


@pytest.mark.parametrize(
    "bits",
    [9, 1, {}, {"average": 4, "bytes": 9}, {"average": 9}, {"average": 5, "widths": [9]}, "4"],
)
def test_a_budget_that_says_nothing_clear_is_refused(bits: Any) -> None:
    with pytest.raises(ValidationError):
        QuantizeConfig(bits=bits)


@pytest.mark.parametrize("score", ["lrp", "fisher"])
def test_scores_with_gradients_need_a_float_model(
    score: str, vit: VitModel, context: Context
) -> None:
    first = run(vit, context, layers=("*.mlp.*",)).model
    options: dict[str, Any] = {"layers": ("*.attn.*",), "bits": {"average": 4}, "score": score}
    message = rf"stages\.quantize\.score: {score} needs gradients"
    with pytest.raises(InputError, match=message):
        run(first, context, **options)
    with pytest.raises(InputError, match=message):
        plan(first, QuantizeConfig(**options))
    rows = sensitivity(first, QuantizeConfig(**{**options, "bits": 8}), context).rows
    assert {row["importance"] for row in rows} == {1 / 4}
    both = run(first, context, layers=("*.attn.*",), bits={"average": 4}, score="kl").model
    assert set(bits_of(both)) == set(BLOCKS)


def test_sensitivity_has_a_row_for_each_layer_and_an_error_for_each_width(
    vit: VitModel, context: Context
) -> None:
    for bits in (8, {"average": 5}):
        rows = sensitivity(vit, QuantizeConfig(bits=bits, activations="dynamic"), context).rows
        assert [row["layer"] for row in rows] == BLOCKS
        for row in rows:
            errors = [row[f"error_{b}"] for b in (8, 6, 5, 4, 3)]
            assert errors == sorted(errors)
            assert errors[0] > 0


@pytest.mark.parametrize("score", ["fisher", "kl"])
def test_a_model_whose_output_never_changes_has_no_such_score(
    score: str, make_vit: MakeVit, context: Context
) -> None:
    vit = make_vit()
    vit.module.head.weight.zero_()
    with pytest.raises(InputError, match=rf"stages\.quantize\.score: by {score} no layer counts"):
        run(vit, context, bits={"average": 5}, score=score)


def test_layers_that_round_tokens_unlike_have_no_error_on_the_sample(
    vit: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual, "_MOVED", 0)
    rows = run(vit, context, bits=8, residual=0.02).table("layers").rows
    few = [row for row in rows if row["residual_tokens"] is not None]
    assert few
    assert all((row["output_error"] is None) == (row in few) for row in rows)


def test_sensitivity_names_the_bits_of_a_run(vit: VitModel, context: Context) -> None:
    for bits, pin in ((2, {}), (4, {"*.fc1": 8})):
        rows = sensitivity(vit, QuantizeConfig(bits=bits, pin=pin), context).rows
        model = run(vit, context, bits=bits, pin=pin).model
        assert {row["layer"]: row["bits"] for row in rows} == bits_of(model)


def test_a_layer_that_no_image_reaches_has_few_bits_too(
    make_vit: MakeVit, context: Context
) -> None:
    vit = make_vit(global_pool="map", class_token=False)
    for bits in (4, {"average": 5}):
        model = run(vit, context, layers=("*",), bits=bits).model
        assert "attn_pool.q" in bits_of(model)


def test_a_block_may_lack_its_attention(vit: VitModel, context: Context, pixels: Tensor) -> None:
    sizes = [sizes_of(block) for block in vit.module.blocks]
    sizes[1] = sizes[1].model_copy(update={"attention": None})
    resize(vit.module.blocks[1], sizes[1])
    blocks = vit.architecture.model_copy(update={"blocks": tuple(sizes)})
    dense = vit.module(pixels)
    model = run(replace(vit, architecture=blocks), context, bits=8).model
    assert (model.module(pixels) - dense).norm() < 0.1 * dense.norm()


def test_codes_and_multipliers_are_what_the_kernel_gets(vit: VitModel, context: Context) -> None:
    model = run(vit, context, bits=4).model
    for name, layer in model.module.named_modules():
        if isinstance(layer, QuantizedLinear):
            whole = quantizer.whole_weight(
                layer.codes, layer.multipliers, layer.bits, layer.group or 0, layer.in_features
            )
            assert torch.equal(whole, whole.round())
            assert whole.abs().max() <= 64
            error = (
                (layer.dequantized().weight - vit.module.get_submodule(name).weight).square().mean()
            )
            assert error < 0.02 * vit.module.get_submodule(name).weight.square().mean()


def test_two_runs_choose_alike(make_vit: MakeVit, make_context: Callable[..., Any]) -> None:
    results = [run(make_vit(), make_context(resume=False), bits={"average": 4.5}) for _ in range(2)]
    one, other = results
    assert (one.facts, one.tables) == (other.facts, other.tables)
    first, second = stored_tensors(one.model), stored_tensors(other.model)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_relevance_is_drawn_where_it_has_decided(vit: VitModel, context: Context) -> None:
    result = run(vit, context, bits={"average": 4.5})
    (gallery,) = result.galleries
    assert (gallery.name, gallery.columns) == ("relevance", ("input", "before", "after"))
    shown = context.shown(4)
    before, after = (model.module(shown.pixels).argmax(-1) for model in (vit, result.model))
    for place, row in enumerate(gallery.rows):
        answers = dict.fromkeys(f"class {each[place]}" for each in (before, after))
        assert row.caption == f"{context.images.names[place]}: {' → '.join(answers)}"
        assert row.sources[1] != row.sources[2]
        assert all(source.startswith("data:image/jpeg") for source in row.sources)
    for others in ({"bits": 8}, {"bits": {"average": 4.5}, "score": "fisher"}):
        assert not run(vit, context, **others).galleries


@pytest.mark.parametrize(("bits", "expected"), [(4, "both"), (8, "even")])
def test_below_8_bits_inputs_count_by_their_importance_too(
    bits: int, expected: str, vit: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        return statistics(*arguments)

    monkeypatch.setattr(preparing, "statistics", spy)
    run(vit, context, bits=bits)
    assert asked == [expected]


def test_what_is_quantized_already_can_be_quantized_on_with_descent(
    vit: VitModel, context: Context, pixels: Tensor
) -> None:
    first = run(vit, context, layers=("*.mlp.*",), bits=4, rounding="descent").model
    both = run(first, context, layers=("*.attn.*",), bits=4, rounding="descent").model
    assert set(bits_of(both)) == set(BLOCKS)
    assert both.module(pixels).isfinite().all()
