"""The description of a model, and the model made again from it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.export.folder import save_folder
from vitcompress.model.architecture import (
    Architecture,
    QuantizedLayer,
    VitModel,
    build,
    from_source,
    set_tail,
    stored_tensors,
)
from vitcompress.model.families import adopt
from vitcompress.model.modules.attention import Attention

MakeModule = Callable[..., nn.Module]
MakeVit = Callable[..., VitModel]

QUANTIZED = {
    "blocks.0.attn.qkv": QuantizedLayer(bits=8, activations="static"),
    "blocks.0.mlp.fc1": QuantizedLayer(bits=3, activations="dynamic"),
    "blocks.1.mlp.fc2": QuantizedLayer(bits=5, activations="static", terms=2),
    "head": QuantizedLayer(bits=8, activations="dynamic", terms=2),
}


def fill(module: nn.Module) -> nn.Module:
    """Draw all that `build` leaves empty, so that no tensor can be lost unnoticed."""
    generator = torch.Generator().manual_seed(4)
    for name, buffer in module.named_buffers():
        if buffer.dtype == torch.uint8:
            buffer.random_(1, 200, generator=generator)
        else:
            size = 0.03 if name.endswith("scale") else 0.3
            buffer.uniform_(size / 2, size, generator=generator)
    for parameter in module.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return module


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "tail": {"tail_tokens": 1},
    "quantized": {"quantized": QUANTIZED},
    "quantized with a tail": {"quantized": QUANTIZED, "tail_tokens": 1},
}


@pytest.mark.parametrize("changes", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_description_and_tensors_make_the_model_again(
    changes: dict[str, Any], vit: VitModel, pixels: Tensor
) -> None:
    architecture = vit.architecture.model_copy(update=changes)
    module = fill(build(architecture))
    text = architecture.model_dump_json()
    again = build(Architecture.model_validate_json(text))
    assert not torch.allclose(again(pixels), module(pixels))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(pixels), module(pixels))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_quantized_layers_are_as_described(vit: VitModel) -> None:
    module = build(vit.architecture.model_copy(update={"quantized": QUANTIZED}))
    for name, described in QUANTIZED.items():
        layer = module.get_submodule(name)
        found = QuantizedLayer(bits=layer.bits, activations=layer.activations, terms=layer.terms)
        assert found == described


@pytest.mark.parametrize("name", ["patch_embed", "blocks.0", "norm", "nowhere.fc1"])
def test_only_linear_layers_can_be_quantized(name: str, vit: VitModel) -> None:
    wrong = {name: QuantizedLayer(bits=8, activations="static")}
    with pytest.raises(InputError, match=f"{name} is no linear layer"):
        build(vit.architecture.model_copy(update={"quantized": wrong}))


def test_a_model_unknown_to_timm_is_refused() -> None:
    with pytest.raises(InputError, match="vit_tinny"):
        build(Architecture(timm="vit_tinny_patch16_224"))


def test_adopting_changes_no_logits(
    make_module: MakeModule, make_vit: MakeVit, pixels: Tensor
) -> None:
    theirs, ours = make_module(), make_vit().module
    assert torch.allclose(ours(pixels), theirs(pixels), rtol=1e-4, atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_all_attention_is_adopted(make_module: MakeModule) -> None:
    module = make_module(depth=3).train().requires_grad_(True)
    adopt(module)
    kinds = [type(child) for child in module.modules()]
    assert TimmAttention not in kinds
    assert kinds.count(Attention) == 3
    assert not any(child.training for child in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_attention_of_another_kind_stays() -> None:
    other = timm.create_model("vit_relpos_small_patch16_224", depth=1)
    assert Attention not in [type(child) for child in adopt(other).modules()]


def test_equal_models_have_equal_fingerprints(make_vit: MakeVit) -> None:
    assert make_vit().fingerprint() == make_vit().fingerprint()


@pytest.mark.parametrize("tensor", ["cls_token", "blocks.1.norm2.bias", "head.weight"])
def test_a_changed_weight_changes_the_fingerprint(tensor: str, vit: VitModel) -> None:
    before = vit.fingerprint()
    value = vit.module.state_dict()[tensor]
    value.view(-1)[-1] += 1e-6 + value.view(-1)[-1].abs() * 1e-6
    assert vit.fingerprint() != before


@pytest.mark.parametrize(
    "change",
    [
        {"tail_tokens": 1},
        {"timm": "vit_small_patch16_224"},
        {"options": {"depth": 2}},
        {"half": ("pos_embed",)},
        {"quantized": QUANTIZED},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_description_changes_the_fingerprint(
    change: dict[str, Any], vit: VitModel
) -> None:
    changed = vit.architecture.model_copy(update=change)
    assert dataclasses.replace(vit, architecture=changed).fingerprint() != vit.fingerprint()


def test_a_quantized_model_has_a_fingerprint(vit: VitModel) -> None:
    architecture = vit.architecture.model_copy(update={"quantized": QUANTIZED})
    model = dataclasses.replace(vit, module=build(architecture), architecture=architecture)
    before = model.fingerprint()
    model.module.get_submodule("blocks.0.attn.qkv").activation_zero_point += 1
    assert model.fingerprint() != before


def test_tensors_are_stored_as_they_are_but_for_halves(vit: VitModel) -> None:
    architecture = vit.architecture.model_copy(
        update={"quantized": QUANTIZED, "half": ("pos_embed",)}
    )
    module = fill(build(architecture))
    stored = stored_tensors(VitModel(module, architecture, vit.preprocess))
    state = module.state_dict()
    assert list(stored) == list(state)
    assert stored["pos_embed"].dtype == torch.float16
    for name in state.keys() - {"pos_embed"}:
        assert stored[name].dtype == state[name].dtype
        assert torch.equal(stored[name], state[name])
    assert all(tensor.is_contiguous() for tensor in stored.values())


def test_the_tail_is_the_last_block(vit: VitModel) -> None:
    first, last = vit.module.blocks
    set_tail(vit.module, 1)
    assert vit.module.blocks[0] is first
    assert vit.module.blocks[1].attn is last.attn
    assert vit.module.blocks[1].tokens == 1


def test_the_description_is_plain_json(vit: VitModel) -> None:
    architecture = vit.architecture.model_copy(update={"quantized": QUANTIZED, "half": ("a", "b")})
    plain = json.loads(architecture.model_dump_json())
    assert Architecture.model_validate(plain) == architecture


def test_the_number_of_classes_is_that_of_the_head(make_vit: MakeVit) -> None:
    assert make_vit(num_classes=7).num_classes == 7


def test_an_output_is_no_checkpoint(vit: VitModel, tmp_path: Path) -> None:
    save_folder(vit, tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(InputError, match="an output of vitcompress; give the checkpoint"):
            from_source(str(source), None, {}, None, {})
