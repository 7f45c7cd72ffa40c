"""Simulated inputs of few bits: what they round, what they leave alone, what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from helpers.models import images_of
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, stored_tensors
from vitcompress.model.modules.attention import Attention
from vitcompress.stages.calibrate import statistics
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import merge
from vitcompress.stages.quantize.config import QuantizeConfig, Simulation
from vitcompress.stages.quantize.simulate import SimulatedAttention, SimulatedLinear, simulation
from vitcompress.stages.quantize.stage import plan, quantize
from vitcompress.stages.recover.trainable import finish, trainable
from vitcompress.stages.stage import StageResult
from vitcompress.stages.tail.config import TailConfig
from vitcompress.stages.tail.stage import tail

MakeVit = Callable[..., VitModel]

NOT_PLAIN = dict.fromkeys(("img_size", "patch_size", "embed_dim", "depth", "num_heads"))
FAMILIES: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {},
    "swin_tiny_patch4_window7_224": {
        "patch_size": 4,
        "window_size": 4,
        "depth": None,
        "depths": (2, 1),
        "num_heads": (2, 2),
    },
}


def run(
    vit: VitModel, context: Context, study: dict[str, Any] | None, **options: Any
) -> StageResult:
    given = {"residual": 0, "rounding": "nearest", "layers": ("*",), "simulate": study, **options}
    return quantize(vit, QuantizeConfig(**given), context)


def simulate(vit: VitModel, context: Context, study: dict[str, Any], **options: Any) -> nn.Module:
    """The simulation alone, of all layers but the stem."""
    config = QuantizeConfig(**{"rounding": "nearest", **options})
    names = vit.anatomy.select(["blocks", "head"], "layers")
    found = statistics(vit, names, context)
    bits = dict.fromkeys(names, config.bits)
    return simulation(vit.module, config, Simulation(**study), bits, found, context)


def kinds(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    return {name: each for name, each in module.named_modules() if isinstance(each, kind)}


def test_what_is_exported_stays_the_same(vit: VitModel, context: Context) -> None:
    before = vit.fingerprint()
    plain, studied = run(vit, context, None), run(vit, context, {"bits": 4})
    assert vit.fingerprint() == before
    assert plain.model.architecture == studied.model.architecture
    one, other = stored_tensors(plain.model), stored_tensors(studied.model)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    assert (studied.facts, studied.tables) == (plain.facts, plain.tables)
    assert [study.name for study in studied.studies] == ["simulated"]
    assert not plain.studies


def test_inputs_of_layers_and_products_have_few_values(vit: VitModel, context: Context) -> None:
    module = simulate(vit, context, {"bits": 3, "gelu": "twin_uniform"})
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs: seen.update({name: inputs[0]})

    layers = kinds(module, SimulatedLinear)
    assert set(layers) == set(vit.anatomy.linears()) - {"patch_embed.proj"}
    for name, layer in layers.items():
        layer.layer.register_forward_pre_hook(keep(name))
    attentions = kinds(module, SimulatedAttention)
    assert len(attentions) == len(kinds(vit.module, Attention)) == 2
    for name, attention in attentions.items():
        for part, narrow in attention.quantizers.items():
            attention.quantizers[part] = lambda x, at=f"{name}.{part}", to=narrow: seen.setdefault(
                at, to(x)
            )
    module(images_of(context))
    assert len(seen) == len(layers) + 4 * len(attentions)
    for name, values in seen.items():
        assert 1 < len(values.unique()) <= 8, name


@pytest.mark.parametrize("softmax", ["uniform", "log2", "shift_uniform_log2", "twin_uniform"])
def test_more_bits_come_nearer_to_the_float_model(
    softmax: str, vit: VitModel, context: Context
) -> None:
    pixels = images_of(context)
    logits = vit.module(pixels)
    errors = []
    for bits in (3, 6):
        study = {"bits": bits, "softmax": softmax, "gelu": "twin_uniform"}
        module = simulate(vit, context, study)
        errors.append(float((module(pixels) - logits).norm() / logits.norm()))
    assert errors[0] > errors[1] > 0
    assert errors[1] < 0.1


def test_8_uniform_bits_are_those_of_the_exported_model(vit: VitModel, context: Context) -> None:
    result = run(vit, context, {"bits": 8, "softmax": "uniform"}, reparametrise=False)
    model, (study,) = result.model, result.studies
    layers = kinds(study.module, SimulatedLinear)
    for name, layer in layers.items():
        twin = model.module.get_submodule(name)
        assert torch.equal(layer.layer.dequantized().weight, twin.dequantized().weight)
    pixels = images_of(context)
    logits, dense = study.module(pixels), vit.module(pixels)
    assert (logits - model.module(pixels)).norm() < 0.05 * dense.norm()


def test_widths_of_weights_are_those_of_the_stage(vit: VitModel, context: Context) -> None:
    result = run(vit, context, {"bits": 6}, bits=4, group=None, pin={"head": "float32", "*.fc2": 8})
    model, (study,) = result.model, result.studies
    layers = kinds(study.module, SimulatedLinear)
    assert set(layers) == set(model.architecture.quantized)
    for name, layer in layers.items():
        widest = max(len(row.unique()) for row in layer.layer.dequantized().weight)
        assert (widest > 16) == name.endswith("fc2")
    assert isinstance(study.module.head, nn.Linear)


def test_folds_lower_the_error_where_channels_differ(make_vit: MakeVit, context: Context) -> None:
    vit = make_vit()
    for block in vit.module.blocks:
        block.norm2.weight[::17] *= 20  # channels much wider than the others
    pixels = images_of(context)
    logits = vit.module(pixels)
    errors = [
        float(
            (
                simulate(vit, context, {"bits": 4}, reparametrise=reparametrise)(pixels) - logits
            ).norm()
        )
        for reparametrise in (True, False)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_tails_and_merged_tokens_are_simulated_too(vit: VitModel, context: Context) -> None:
    config = MergeConfig(method="tome", schedule=(14, 11))
    merged = merge(vit, config, context).model
    merged = tail(merged, TailConfig(), context).model
    pixels = images_of(context)
    dense = merged.module(pixels)
    found = simulate(merged, context, {"bits": 8})(pixels)
    assert 0 < (found - dense).norm() < 0.2 * dense.norm()


def test_layers_that_answer_for_those_before_come_nearer(vit: VitModel, context: Context) -> None:
    pixels = images_of(context)
    logits, errors = vit.module(pixels), []
    for sequential in (False, True):
        module = simulate(vit, context, {"bits": 3}, rounding="gptq", sequential=sequential)
        assert set(kinds(module, SimulatedLinear)) == set(vit.anatomy.linears()) - {
            "patch_embed.proj"
        }
        errors.append(float((module(pixels) - logits).norm() / logits.norm()))
    assert errors[1] < 0.9 * errors[0]


def test_a_simulation_has_gradients_as_if_nothing_were_rounded(
    vit: VitModel, context: Context
) -> None:
    module = simulate(vit, context, {"bits": 4})
    pixels = images_of(context)
    with torch.enable_grad():
        student = trainable(module, "all")
        output = student.module(pixels)
        output.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters.values())
    plain = finish(module)(pixels)
    torch.testing.assert_close(output.detach(), plain, rtol=0.05, atol=0.05)


def test_a_simulation_is_the_same_each_time(vit: VitModel, context: Context) -> None:
    pixels = images_of(context)
    one, other = (simulate(vit, context, {"bits": 4}) for _ in range(2))
    assert torch.equal(one(pixels), other(pixels))


def test_windows_and_positions_are_simulated_too(
    make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    for name, options in FAMILIES.items():
        vit = make_vit(name, **options)
        dense = vit.module(pixels)
        errors = [
            float((simulate(vit, context, {"bits": bits})(pixels) - dense).norm() / dense.norm())
            for bits in (3, 8)
        ]
        assert 0 < errors[1] < 0.1 < errors[0]


def test_a_model_without_known_attention_is_refused(make_vit: MakeVit, context: Context) -> None:
    other = make_vit("convnext_atto", **NOT_PLAIN, depths=(1, 1, 1, 1))
    config = QuantizeConfig(name="q", simulate={"bits": 4})
    for look in (lambda: quantize(other, config, context), lambda: plan(other, config)):
        with pytest.raises(InputError, match=r"stages\.q\.simulate: .*convnext.*leave simulate"):
            look()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"bits": 1},
        {"bits": 9},
        {"bits": 4, "softmax": "log10"},
        {"bits": 4, "gelu": "log2"},
        {"bits": 4, "queries": "uniform"},
    ],
)
def test_a_wrong_study_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuantizeConfig(simulate=wrong)


def test_the_bias_takes_the_mean_error(vit: VitModel, context: Context) -> None:
    layer = simulate(vit, context, {"bits": 3}, reparametrise=False).blocks[0].attn.qkv
    exact = vit.module.blocks[0].attn.qkv
    seen: list[Tensor] = []
    exact.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vit.module(images_of(context))
    error = (layer(seen[0]) - exact(seen[0])).flatten(0, 1)
    assert error.mean(0).abs().max() < 0.1 * error.std()
