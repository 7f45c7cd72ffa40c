"""The quantize stage on a tiny model: what it selects, how near it stays, what it describes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from helpers.models import BLOCKS, images_of, quantized_layers, rebuilt
from vitcompress.errors import InputError
from vitcompress.methods import quantizer
from vitcompress.model.architecture import (
    Architecture,
    VitModel,
    build,
    load_tensors,
    set_tail,
    stored_tensors,
)
from vitcompress.model.families import anatomy_of
from vitcompress.stages.calibrate import LayerStatistics, collect, statistics
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.layer import InputRange, best_input_range
from vitcompress.stages.quantize.selection import selected
from vitcompress.stages.quantize.stage import quantize
from vitcompress.stages.stage import StageResult

MakeVit = Callable[..., VitModel]

MODES = ["static", "dynamic", "float"]


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    return quantize(vit, QuantizeConfig(**{"residual": 0, **options}), context)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, BLOCKS),
        ({"layers": ("*",)}, ["patch_embed.proj", *BLOCKS, "head"]),
        ({"layers": ("stem", "head")}, ["patch_embed.proj", "head"]),
        ({"layers": ("head", "*.fc2")}, [BLOCKS[3], BLOCKS[7], "head"]),
        ({"skip": ("blocks.0.*",)}, BLOCKS[4:]),
        ({"layers": ("re:.*mlp.*",), "skip": ("*fc1",)}, [BLOCKS[3], BLOCKS[7]]),
    ],
)
def test_the_layers_asked_for_are_quantized(
    options: dict[str, Any], expected: list[str], vit: VitModel, context: Context
) -> None:
    assert selected(vit, QuantizeConfig(**options)) == expected
    result = run(vit, context, rounding="nearest", reparametrise=False, **options)
    model = result.model
    assert list(quantized_layers(model.module)) == expected
    assert list(model.architecture.quantized) == expected
    assert [layer["layer"] for layer in result.table("layers").rows] == expected
    assert result.facts["quantized_layers"] == len(expected)


@pytest.mark.parametrize("key", ["layers", "skip"])
def test_a_pattern_without_a_layer_is_an_error(key: str, vit: VitModel, context: Context) -> None:
    config = QuantizeConfig(name="int8", **{key: ("blocks.*.mlp.fc9",)})
    with pytest.raises(InputError, match=rf"stages\.int8\.{key}: .*fc9.*nearest: .*mlp\.fc"):
        quantize(vit, config, context)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": ()},
        {"bits": 9},
        {"residual": 1.5},
        {"rest": "int4"},
        {"bit": 8},
        {"activations": "float", "residual": 0.1},
    ],
)
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuantizeConfig(**wrong)


def seen_inputs(module: nn.Module, layers: list[str], pixels: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].detach().clone()

        return module.get_submodule(name).register_forward_pre_hook(hook)

    handles = [keep(name) for name in layers]
    module(pixels)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_the_output_of_each_layer_stays_near(
    activations: str, rounding: str, vit: VitModel, context: Context
) -> None:
    # Without reparametrisations each layer has the input it had.
    result = run(vit, context, activations=activations, rounding=rounding, reparametrise=False)
    model = result.model
    pixels = images_of(context)
    inputs = seen_inputs(vit.module, BLOCKS, pixels)
    sampled = statistics(vit, BLOCKS, context)
    for entry in result.table("layers").rows:
        name = entry["layer"]
        for x in (inputs[name].flatten(0, 1), sampled[name].rows):
            target = vit.module.get_submodule(name)(x)
            found = model.module.get_submodule(name)(x)
            variance = target.var(0, correction=0).mean()
            error = ((found - target).square().mean() / variance).item()
            assert error < 2e-3
        assert entry["output_error"] == pytest.approx(error, rel=1e-3)
        # The bias makes good the mean error of the sample.
        assert (found - target).mean(0).abs().max() < 1e-5 * target.abs().max()


@pytest.mark.parametrize("reparametrise", [True, False])
@pytest.mark.parametrize("activations", MODES)
def test_the_logits_stay_near(
    activations: str, reparametrise: bool, vit: VitModel, context: Context
) -> None:
    result = run(vit, context, activations=activations, reparametrise=reparametrise)
    model = result.model
    pixels = images_of(context)
    logits, after = vit.module(pixels), model.module(pixels)
    assert 0 < (after - logits).norm() < 0.05 * logits.norm()
    assert (result.facts["reparametrised_layers"] > 0) == reparametrise
    assert {layer.activations for layer in quantized_layers(model.module).values()} == {activations}


def outlying(make_vit: MakeVit) -> VitModel:
    """A model with a few channels much wider than the others, as trained ones have."""
    vit = make_vit()
    for block in vit.module.blocks:
        for norm in (block.norm1, block.norm2):
            norm.weight[::17] *= 20
            norm.bias[3::17] += 15
        block.attn.qkv.weight[-64::9] *= 15
    return vit


def calibrated(vit: VitModel, context: Context) -> dict[str, LayerStatistics]:
    batches = context.calibration_batches("")
    return collect(vit, BLOCKS, batches, len(context.images), seed=0)


def chosen(
    module: nn.Module, name: str, found: LayerStatistics, config: QuantizeConfig
) -> InputRange:
    return best_input_range(anatomy_of(module), name, found, config.style, 8, config.reparametrise)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_folding_never_chooses_a_larger_error(
    activations: Any, make_vit: MakeVit, context: Context
) -> None:
    for vit, much in ((make_vit(), False), (outlying(make_vit), True)):
        found = calibrated(vit, context)
        for name in BLOCKS:
            reparametrised, plain = (
                chosen(
                    copy.deepcopy(vit.module),
                    name,
                    found[name],
                    QuantizeConfig(activations=activations, reparametrise=reparametrise),
                )
                for reparametrise in (True, False)
            )
            assert reparametrised.error <= plain.error
            assert plain.change.strength == 0
            if much and not name.endswith("fc2"):
                assert reparametrised.error < 0.5 * plain.error
                assert reparametrised.change.strength > 0


def test_a_chosen_reparametrisation_is_applied_to_the_model(
    make_vit: MakeVit, context: Context
) -> None:
    vit = outlying(make_vit)
    found = calibrated(vit, context)
    pixels = images_of(context)
    for name in BLOCKS[:3]:
        module = copy.deepcopy(vit.module)
        choice = chosen(module, name, found[name], QuantizeConfig())
        before = seen_inputs(vit.module, [name], pixels)[name]
        after = seen_inputs(module, [name], pixels)[name]
        assert choice.change.strength > 0
        assert torch.allclose(after, choice.change.apply(before), rtol=1e-3, atol=1e-3)
        assert torch.allclose(module(pixels), vit.module(pixels), rtol=1e-3, atol=1e-3)


def test_static_ranges_are_never_worse_than_the_whole_range(
    vit: VitModel, context: Context
) -> None:
    found = calibrated(vit, context)
    for name in BLOCKS:
        choices = [
            chosen(
                vit.module, name, found[name], QuantizeConfig(activations=mode, reparametrise=False)
            )
            for mode in ("static", "dynamic")
        ]
        assert choices[0].error <= choices[1].error
        assert choices[1].share == 1
        assert choices[1].low == found[name].low.amin()
        assert choices[1].high == found[name].high.amax()


@pytest.mark.parametrize("activations", MODES)
def test_how_far_inputs_lie_beyond_their_range_is_told(
    activations: str, vit: VitModel, context: Context
) -> None:
    given = {"activations": activations, "rounding": "nearest", "reparametrise": False}
    model, found = vit, statistics(vit, BLOCKS[:1], context)[BLOCKS[0]]
    row = run(model, context, layers=tuple(BLOCKS[:1]), **given).table("layers").rows[0]
    if activations != "static":
        assert row["input_span"] is None
        return
    layer = quantized_layers(run(model, context, layers=tuple(BLOCKS[:1]), **given).model.module)[
        BLOCKS[0]
    ]
    width = 255 * float(layer.activation_scale)
    assert row["input_span"] == pytest.approx(float(found.high.max() - found.low.min()) / width)


def test_error_feedback_lowers_the_error_of_weights(vit: VitModel, context: Context) -> None:
    found = calibrated(vit, context)
    losses = {}
    for rounding in ("gptq", "nearest"):
        model = run(vit, context, rounding=rounding, reparametrise=False).model
        for name, layer in quantized_layers(model.module).items():
            codes = quantizer.unpack_weight(layer.codes, 8, layer.in_features)
            change = codes * layer.scale[:, None] - vit.module.get_submodule(name).weight
            loss = ((change.double() @ found[name].gram) * change).sum()
            losses[rounding] = losses.get(rounding, 0) + loss
    assert losses["gptq"] < 0.9 * losses["nearest"]


def test_two_runs_give_equal_tensors(make_vit: MakeVit, make_context: Callable[..., Any]) -> None:
    results = [
        quantize(make_vit(), QuantizeConfig(residual=0.3), make_context(resume=False))
        for _ in range(2)
    ]
    one, other = results
    assert one.model.architecture == other.model.architecture
    assert (one.facts, one.tables) == (other.facts, other.tables)
    first, second = stored_tensors(one.model), stored_tensors(other.model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", [{}, {"residual": 1.0, "rest": "float16", "layers": ("*",)}])
def test_the_model_given_is_not_changed(
    options: dict[str, Any], make_vit: MakeVit, context: Context
) -> None:
    vit = outlying(make_vit)
    before, names = vit.fingerprint(), list(vit.anatomy.linears())
    run(vit, context, **options)
    assert vit.fingerprint() == before
    assert list(vit.anatomy.linears()) == names


@pytest.mark.parametrize("activations", MODES)
def test_the_description_makes_the_model_again(
    activations: str, vit: VitModel, pixels: Tensor, context: Context
) -> None:
    set_tail(vit.module, 1)
    tail = vit.architecture.model_copy(update={"tail_tokens": 1})
    vit = VitModel(vit.module, tail, vit.preprocess)
    residual = 0.0 if activations == "float" else 0.3
    model = run(vit, context, activations=activations, residual=residual, rest="float16").model
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))


def test_a_second_stage_keeps_what_the_first_stored_small(vit: VitModel, context: Context) -> None:
    for rest in ("float16", "int8"):
        first = run(vit, context, layers=("*.attn.*",), bits=4, rest=rest).model
        second = run(first, context, layers=("*.mlp.*",), bits=4).model
        gone = {f"{n}.weight" for n in second.architecture.quantized}
        assert set(second.architecture.coded) == set(first.architecture.coded) - gone
        assert set(first.architecture.half) - gone <= set(second.architecture.half)
        stored_tensors(second)


def test_what_stays_float_can_be_stored_in_half(vit: VitModel, context: Context) -> None:
    model = run(vit, context, rest="float16").model
    stored, state = stored_tensors(model), model.module.state_dict()
    matrices = {"cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight"}
    assert set(model.architecture.half) == matrices
    for name, tensor in stored.items():
        assert (tensor.dtype == torch.float16) == (name in matrices)
        assert torch.equal(tensor.to(state[name].dtype), state[name])  # nothing is lost


def test_weights_that_stay_float_can_be_stored_in_bytes(
    vit: VitModel, context: Context, pixels: Tensor
) -> None:
    model = run(
        vit, context, rest="int8", pin={"blocks.0.mlp.fc1": "float32"}, reparametrise=False
    ).model
    assert set(model.architecture.half) == {"cls_token", "pos_embed"}
    assert set(model.architecture.coded) == {"patch_embed.proj.weight", "head.weight"}
    stored, state = stored_tensors(model), model.module.state_dict()
    for name in model.architecture.coded:
        assert stored[name].dtype == torch.int8
        assert torch.equal(stored[name] * stored[f"{name}.scale"], state[name])
        change = (state[name] - vit.module.state_dict()[name]).abs().flatten(1)
        assert (change <= stored[f"{name}.scale"].flatten(1) * 0.51).all()
    kept = "blocks.0.mlp.fc1.weight"
    assert torch.equal(stored[kept], vit.module.state_dict()[kept])
    again = build(Architecture.model_validate_json(model.architecture.model_dump_json()))
    load_tensors(again, model.architecture, stored)
    assert torch.equal(again(pixels), model.module(pixels))


def test_without_half_all_floats_stay(vit: VitModel, context: Context) -> None:
    model = run(vit, context, reparametrise=False).model
    assert model.architecture.half == ()
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight"):
        assert torch.equal(model.module.state_dict()[name], vit.module.state_dict()[name])


def test_a_quantized_model_can_be_quantized_further(
    vit: VitModel, context: Context, pixels: Tensor
) -> None:
    first = run(vit, context, layers=("*.mlp.*",)).model
    both = run(first, context, layers=("*.attn.*",), activations="dynamic", rest="float16").model
    assert set(both.architecture.quantized) == set(BLOCKS)
    assert both.architecture.quantized["blocks.0.mlp.fc1"].activations == "static"
    again = build(both.architecture)
    again.load_state_dict(stored_tensors(both))
    assert torch.equal(again(pixels), both.module(pixels))


def test_a_layer_whose_output_is_constant_is_no_trouble(vit: VitModel, context: Context) -> None:
    fc2 = vit.module.blocks[0].mlp.fc2
    fc2.weight.zero_()
    fc2.bias.zero_()
    result = run(vit, context, residual=0.3)
    model = result.model
    assert all((entry["output_error"] or 0) >= 0 for entry in result.table("layers").rows)  # no NaN
    assert (model.module.blocks[0].mlp.fc2(torch.ones(5, 256)) == 0).all()
