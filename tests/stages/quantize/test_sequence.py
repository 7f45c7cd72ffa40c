"""Rounding in sequence: what it computes, what it gains, and where it does not apply."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.models import BLOCKS, images_of
from vitcompress.methods import quantizer
from vitcompress.model.architecture import (
    VitModel,
    build,
    load_tensors,
    set_merging,
    set_tail,
    stored_tensors,
)
from vitcompress.model.merging import Merging
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.context import Context
from vitcompress.stages.quantize import prepare
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.sequence import sequence
from vitcompress.stages.quantize.stage import quantize
from vitcompress.stages.stage import StageResult

MakeVit = Callable[..., VitModel]


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    return quantize(
        vit, QuantizeConfig(**{"bits": 3, "residual": 0, "sequential": True, **options}), context
    )


def codes(model: VitModel, name: str) -> Tensor:
    layer = model.module.get_submodule(name)
    assert isinstance(layer, QuantizedLinear)
    return quantizer.unpack_weight(layer.codes, layer.bits, layer.in_features)


def test_on_the_inputs_it_had_a_layer_is_rounded_as_without(
    make_vit: MakeVit, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_weights", lambda *_: "even")  # as they are in sequence
    for name in (BLOCKS[0], BLOCKS[3]):
        options = {"layers": (name,), "activations": "dynamic", "reparametrise": False}
        result = run(make_vit(), context, **options)
        one = result.model
        other = run(make_vit(), context, sequential=False, **options).model
        assert result.facts["rounded_in_sequence"] == 1
        assert (codes(one, name) != codes(other, name)).double().mean() < 0.002


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("rounding", ["gptq", "descent"])
def test_the_logits_come_nearer(
    activations: str, rounding: str, make_vit: MakeVit, context: Context
) -> None:
    pixels = images_of(context)
    dense = make_vit().module(pixels)
    errors = []
    for sequential in (True, False):
        options = {"activations": activations, "rounding": rounding, "sequential": sequential}
        result = run(make_vit(), context, **options)
        model = result.model
        assert result.facts["rounded_in_sequence"] == (8 if sequential else 0)
        errors.append(float((model.module(pixels) - dense).norm()))
    assert errors[0] < 0.9 * errors[1]


def test_the_mean_error_of_every_layer_is_made_good(vit: VitModel, context: Context) -> None:
    pixels = images_of(context)
    model = run(vit, context, reparametrise=False).model
    outputs: dict[int, list[Tensor]] = {0: [], 1: []}
    for place, module in enumerate((vit.module, model.module)):
        for name in BLOCKS:
            layer = module.get_submodule(name)
            layer.register_forward_hook(lambda _, __, y, place=place: outputs[place].append(y))
        module(pixels)
    for dense, now in zip(*outputs.values(), strict=True):
        assert (now - dense).mean((0, 1)).abs().max() < 1e-3 * dense.std()


def test_layers_of_8_bits_are_what_they_were(make_vit: MakeVit, context: Context) -> None:
    options = {"pin": {"*.fc1": 8}, "reparametrise": False}
    result, without = (run(make_vit(), context, sequential=on, **options) for on in (True, False))
    one, other = result.model, without.model
    assert result.facts["rounded_in_sequence"] == 6
    for name in BLOCKS:
        assert torch.equal(codes(one, name), codes(other, name)) == name.endswith("fc1")
    assert list(one.architecture.quantized) == BLOCKS


def test_zeros_stay_zero_and_the_others_are_refitted(make_vit: MakeVit, context: Context) -> None:
    def sparse() -> VitModel:
        vit = make_vit()
        for name in BLOCKS:
            vit.module.get_submodule(name).weight[:, ::3] = 0
        return vit

    pixels = images_of(context)
    dense, errors = sparse().module(pixels), []
    for sequential in (True, False):
        model = run(sparse(), context, sequential=sequential).model
        errors.append(float((model.module(pixels) - dense).norm()))
        for name in BLOCKS:
            assert (codes(model, name)[:, ::3] == 0).all()
    assert errors[0] < 0.9 * errors[1]


def test_a_last_block_of_few_tokens_and_layers_without_bias_are_rounded_too(
    make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    vit = make_vit(qkv_bias=False)
    set_tail(vit.module, 1)
    tail = vit.architecture.model_copy(update={"tail_tokens": 1})
    vit = VitModel(vit.module, tail, vit.preprocess)
    result = run(vit, context, reparametrise=False)
    model = result.model
    assert result.facts["rounded_in_sequence"] == 8
    again = build(model.architecture)
    load_tensors(again, model.architecture, stored_tensors(model))
    assert torch.equal(again(pixels), model.module(pixels))


def test_models_whose_tokens_merge_are_rounded_at_once(vit: VitModel, context: Context) -> None:
    assert sequence(vit) == BLOCKS
    merging = Merging(method="tome", kept=(12, 8))
    set_merging(vit.module, merging)
    described = vit.architecture.model_copy(update={"merging": merging})
    vit = VitModel(vit.module, described, vit.preprocess)
    assert sequence(vit) == []
    assert run(vit, context).facts["rounded_in_sequence"] == 0
