"""Models of all families: the same as timm's, step by step, exported and made again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.model.architecture import (
    Architecture,
    QuantizedLayer,
    VitModel,
    build,
    stored_tensors,
)
from vitcompress.model.families import adopt, anatomy_of
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.modules.windows import RelativePositions, Windows
from vitcompress.model.sizes import AttentionSizes, BlockSizes, resize, sizes_of
from vitcompress.targets.onnxruntime import load_session

_WINDOWED = {
    "img_size": 32,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "num_classes": 5,
}
_VIT = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
SWIN = "swin_tiny_patch4_window7_224"
SWIN2 = "swinv2_tiny_window8_256"
BEIT = "beit_base_patch16_224"
# Of each: its family, the name and the arguments of timm.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Swin": ("windowed", SWIN, _WINDOWED),
    "Swin, padded": ("windowed", SWIN, {**_WINDOWED, "img_size": (40, 52)}),
    "Swin, one window": ("windowed", SWIN, {**_WINDOWED, "img_size": 16}),
    "Swin, always shifted": ("windowed", SWIN, {**_WINDOWED, "always_partition": True}),
    "Swin, headless": ("windowed", SWIN, {**_WINDOWED, "num_classes": 0, "global_pool": ""}),
    "Swin, any size": ("windowed", SWIN, {**_WINDOWED, "strict_img_size": False}),
    "Swin V2": ("windowed", SWIN2, _WINDOWED),
    "Swin V2, padded": ("windowed", SWIN2, {**_WINDOWED, "img_size": (52, 40)}),
    "Swin V2, no bias": ("windowed", SWIN2, {**_WINDOWED, "qkv_bias": False}),
    "BEiT": ("beit", BEIT, _VIT),
    "BEiT, not square": ("beit", BEIT, {**_VIT, "img_size": (32, 48)}),
    "BEiT, shared": (
        "beit",
        BEIT,
        {**_VIT, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "global_pool": "token"},
    ),
    "BEiT, gated": ("beit", "beitv2_base_patch16_224", {**_VIT, "swiglu_mlp": True}),
    "BEiT, headless": ("beit", BEIT, {**_VIT, "num_classes": 0, "global_pool": ""}),
    "EVA post-norm": ("rotary", "eva02_enormous_patch14_clip_224", _VIT),
    "registers": ("plain", "vit_tiny_patch16_224", {**_VIT, "reg_tokens": 3}),
    "no class token": (
        "plain",
        "vit_tiny_patch16_224",
        {**_VIT, "class_token": False, "global_pool": "avg"},
    ),
    "map pooling": ("plain", "vit_tiny_patch16_224", {**_VIT, "global_pool": "map"}),
    "distilled": ("plain", "deit_tiny_distilled_patch16_224", _VIT),
    "parallel": ("plain", "vit_small_patch16_18x2_224", _VIT),
    "fused parallel": ("plain", "vit_huge_patch14_xp_224", {**_VIT, "mlp_ratio": 2}),
    "grouped": ("generic", "vit_base_patch16_sapiens2", {**_VIT, "num_kv_heads": 1}),
    "ConvNeXt": (
        "generic",
        "convnext_tiny",
        {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_classes": 5},
    ),
    "relative positions": ("generic", "vit_relpos_small_patch16_224", _VIT),
    "CaiT": ("generic", "cait_xxs24_224", {**_VIT, "num_heads": 4}),
    "XCiT": ("generic", "xcit_nano_12_p16_224", {**_VIT, "patch_size": 16, "num_heads": 2}),
    "Hiera": (
        "generic",
        "hiera_tiny_224",
        {"img_size": 32, "embed_dim": 16, "stages": (1, 1, 1, 1), "num_classes": 5},
    ),
    "LeViT": (
        "generic",
        "levit_128s",
        {"img_size": 64, "embed_dim": (16, 16, 16), "depth": (1, 1, 1), "num_classes": 5},
    ),
    "Swin V2 CR": ("generic", "swinv2_cr_tiny_224", {**_WINDOWED, "img_size": 64}),
}
each = pytest.mark.parametrize(("family", "name", "options"), MODELS.values(), ids=MODELS)


def images_for(options: dict[str, Any], count: int = 2) -> Tensor:
    size = options.get("img_size", 32)
    rows, columns = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def drawn(name: str, options: dict[str, Any]) -> nn.Module:
    """A model of timm whose parameters leave nothing at zero or one."""
    torch.manual_seed(0)
    module = timm.create_model(name, **options).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and parameter[0].numel() > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(parameter + noise / 4)
    return module


def adopted(name: str, options: dict[str, Any]) -> nn.Module:
    size = images_for(options).shape
    return adopt(drawn(name, options), (size[1], size[2], size[3]))


def described(name: str, options: dict[str, Any], vit: VitModel) -> VitModel:
    """The model, prepared for as `vit` is."""
    architecture = Architecture(timm=name, options=options)
    return VitModel(adopted(name, options), architecture, vit.preprocess)


@each
def test_a_model_is_that_of_timm_step_by_step(
    family: str, name: str, options: dict[str, Any]
) -> None:
    images = images_for(options)
    expected = drawn(name, options)(images)
    ours = adopted(name, options)
    found = anatomy_of(ours)
    assert found.family == family
    logits = ours(images)
    assert logits.shape == expected.shape
    assert (logits - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(found.run(images), logits)


@each
def test_all_linear_layers_that_are_offered_can_be_replaced(
    family: str, name: str, options: dict[str, Any]
) -> None:
    ours = adopted(name, options)
    anatomy = anatomy_of(ours)
    layers = anatomy.linears()
    groups = {word: anatomy.select([word], "key") for word in ("stem", "blocks", "head")}
    blocks, head = groups["blocks"], groups["head"]
    assert blocks
    assert sum(map(len, groups.values())) == len({*groups["stem"], *blocks, *head})
    assert groups["stem"] == ([] if family == "generic" else ["patch_embed.proj"])
    assert bool(head) == bool(options["num_classes"])
    for layer, linear in layers.items():
        shape = (linear.in_features, linear.out_features)
        ours.set_submodule(layer, QuantizedLinear(*shape, 8, "dynamic"))
    assert ours(images_for(options)).isfinite().all()
    after = anatomy_of(ours)
    assert list(after.quantized()) == list(layers)
    assert not set(layers) & set(after.linears())


KNOWN = {key: value for key, value in MODELS.items() if value[0] in ("windowed", "beit")}
known = pytest.mark.parametrize(("family", "name", "options"), KNOWN.values(), ids=KNOWN)


@known
def test_layers_see_as_many_tokens_as_are_told(
    family: str, name: str, options: dict[str, Any]
) -> None:
    ours = adopted(name, options)
    anatomy, seen = anatomy_of(ours), {}
    for layer, linear in anatomy.linears().items():
        linear.register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.update({layer: inputs[0].shape[-2]})
        )
    ours(images_for(options))
    assert anatomy.sites
    for site in anatomy.sites:
        counts = anatomy.tokens_at(site)
        assert counts is not None
        assert (counts.first, counts.last) == (seen[site.first_name], seen[site.last_name])


@known
def test_inputs_that_can_be_folded_keep_the_logits(
    family: str, name: str, options: dict[str, Any]
) -> None:
    ours, images = adopted(name, options), images_for(options)
    expected = ours(images)
    anatomy = anatomy_of(ours)
    for layer in anatomy.linears():
        if (reparametrisation := anatomy.input_reparametrisation(layer)) is not None:
            channels = ours.get_submodule(layer).in_features
            draw = torch.Generator().manual_seed(channels)
            alike = anatomy.inputs_alike(layer)
            change = torch.randn(2, channels // alike, generator=draw).div(4).exp()
            reparametrisation(*change.repeat_interleave(alike, 1))
    logits = ours(images)
    assert (logits - expected).norm() <= 5e-5 * expected.norm()


def test_padded_windows_and_norms_that_follow_cannot_take_a_fold_before_attention() -> None:
    for kind, allowed in (("Swin", True), ("Swin, padded", False), ("Swin V2", False)):
        _, name, options = MODELS[kind]
        anatomy = anatomy_of(adopted(name, options))
        reparametrisation = anatomy.input_reparametrisation("layers.0.blocks.0.attn.qkv")
        assert (reparametrisation is not None) == allowed
        assert anatomy.input_reparametrisation("layers.0.blocks.0.attn.proj") is not None


REFUSED = {
    "Swin": {"tail", "embedding", "merge"},
    "Swin V2": {"tail", "embedding", "merge", "prune"},
    "BEiT": {"merge"},
    "BEiT, headless": {"merge", "embedding"},
    "EVA post-norm": {"prune", "merge", "embedding"},
    "registers": set(),
    "ConvNeXt": {"tail", "embedding", "merge", "prune"},
}


@pytest.mark.parametrize(("kind", "refused"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_done_is_refused(kind: str, refused: set[str]) -> None:
    _, name, options = MODELS[kind]
    anatomy = anatomy_of(adopted(name, options))
    assert set(anatomy.refusals) == refused
    for change in refused:
        with pytest.raises(InputError, match="take the stage out"):
            anatomy.check(change, "stages.x", name)


def test_a_word_selects_its_group_even_if_it_is_empty() -> None:
    _, name, options = MODELS["BEiT, headless"]
    anatomy = anatomy_of(adopted(name, options))
    assert anatomy.select(["head"], "key") == []
    assert anatomy.select(["head", "blocks", "stem"], "key") == list(anatomy.linears())
    with pytest.raises(InputError, match=r"^key: 'heads' matches no layer"):
        anatomy.select(["heads"], "key")


def test_masks_that_are_handed_over_are_refused(make_vit: Callable[..., VitModel]) -> None:
    module = make_vit().module
    x = torch.zeros(1, 17, 64)
    for part in (module.blocks[0], module.blocks[0].attn):
        with pytest.raises(ValueError, match="attention masks"):
            part(x, attn_mask=torch.zeros(17, 17))
        with pytest.raises(ValueError, match="attention masks"):
            part(x, is_causal=True)
    with pytest.raises(ValueError, match="attention masks"):
        module(torch.zeros(1, 3, 32, 32), attn_mask=torch.zeros(17, 17))


@pytest.mark.parametrize(
    "kind", ["Swin, padded", pytest.param("Swin V2", marks=pytest.mark.slow), "BEiT"]
)
def test_an_exported_model_takes_any_batch(kind: str, vit: VitModel, tmp_path: Path) -> None:
    _, name, options = MODELS[kind]
    images = images_for(options, 3)
    model = described(name, options, vit)
    size = (images.shape[2], images.shape[3])
    model = VitModel(
        model.module,
        model.architecture,
        model.preprocess.model_copy(update={"input_size": size}),
    )
    file, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    export_onnx(model, file, {})
    runtime = load_session(file, 1, optimised)
    expected = model.module(images).numpy()
    for count in (1, 3):
        (logits,) = runtime.run(None, {"pixels": images[:count].numpy()})
        assert np.abs(logits - expected[:count]).max() <= 1e-4 * np.abs(expected).max()
    # The biases of all pairs of tokens are made of their tables when the file is loaded.
    graph = onnx.load(optimised).graph
    constants = {initializer.name for initializer in graph.initializer}
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert {node.input[3] in constants for node in attentions} == {True}
    made = [i for i in onnx.load(file).graph.initializer if i.name not in model.module.state_dict()]
    assert not [i.name for i in made if len(i.dims) > 2 and math.prod(i.dims) > 500]


@pytest.mark.parametrize("kind", ["Swin", "Swin, padded", "Swin V2", "BEiT", "BEiT, shared"])
@pytest.mark.parametrize("change", ["dense", "quantized", "pruned"])
def test_a_model_is_made_again_from_its_folder(
    kind: str, change: str, vit: VitModel, tmp_path: Path
) -> None:
    _, name, options = MODELS[kind]
    model = described(name, options, vit)
    found = model.anatomy
    update: dict[str, Any] = {}
    if change == "quantized":
        layers = {layer: QuantizedLayer(bits=4, activations="dynamic") for layer in found.linears()}
        update = {"quantized": layers}
    elif change == "pruned" and "prune" not in found.refusals:
        sizes = list(map(sizes_of, found.blocks))
        heads = AttentionSizes(heads=1, query_key=4, value=6)
        sizes[0] = BlockSizes(attention=heads, hidden=7)
        sizes[-1] = BlockSizes(attention=sizes[-1].attention, hidden=None)
        update = {"blocks": tuple(sizes)}
    described_as = model.architecture.model_copy(update=update)
    module = build(described_as)
    state = module.state_dict()
    generator = torch.Generator().manual_seed(3)
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) / 8)
    changed = VitModel(module, described_as, model.preprocess)
    save_folder(changed, tmp_path)
    again = load_folder(tmp_path)
    assert again.architecture == Architecture.model_validate_json(described_as.model_dump_json())
    images = images_for(options)
    assert torch.equal(again.module(images), module(images))
    assert set(stored_tensors(again)) == set(stored_tensors(changed))


@pytest.mark.parametrize("kind", ["Swin", pytest.param("BEiT", marks=pytest.mark.slow)])
def test_a_model_reaches_a_fresh_process(
    kind: str, vit: VitModel, in_fresh_process: Callable[[VitModel, Tensor], Tensor]
) -> None:
    _, name, options = MODELS[kind]
    model, images = described(name, options, vit), images_for(options)
    assert torch.equal(in_fresh_process(model, images), model.module(images))


@pytest.mark.parametrize("kind", ["Swin", "BEiT"])
def test_heads_that_are_cut_take_their_biases_along(kind: str) -> None:
    """A model of one head of two is that whose other head writes nothing."""
    _, name, options = MODELS[kind]
    images = images_for(options)
    whole, cut = adopted(name, options), adopted(name, options)
    blocks = anatomy_of(whole).blocks[0], anatomy_of(cut).blocks[0]
    dense, attention = blocks[0].attn, blocks[1].attn
    width = dense.widths[2] // 2
    dense.proj.weight[:, :width] = 0
    sizes = sizes_of(blocks[1])
    assert sizes.attention is not None
    narrow = sizes.attention.model_copy(update={"heads": 1})
    resize(blocks[1], BlockSizes(attention=narrow, hidden=sizes.hidden))
    rows = (torch.arange(width) + width + 2 * width * torch.arange(3)[:, None]).flatten()
    attention.qkv.weight.copy_(dense.qkv.weight[rows])
    if dense.qkv.bias is not None:
        attention.qkv.bias.copy_(dense.qkv.bias[rows])
    attention.proj.weight.copy_(dense.proj.weight[:, width:])
    attention.proj.bias.copy_(dense.proj.bias)
    attention.relative_position_bias_table.copy_(dense.relative_position_bias_table[:, 1:])
    assert torch.allclose(cut(images), whole(images), rtol=1e-4, atol=1e-5)


def test_windows_are_a_permutation_and_back() -> None:
    parts = Windows((5, 7), (2, 4), (1, 2))
    x = torch.randn(2, 35, 3)
    assert parts.padded
    assert torch.equal(parts.joined(parts.parted(x)), x)
    assert torch.equal(parts.as_tokens(parts.as_heads(parts.parted(x))), parts.parted(x))


def test_relative_positions_are_those_of_timm() -> None:
    from timm.models.beit import gen_relative_position_index
    from timm.models.swin_transformer import get_relative_position_index

    assert torch.equal(RelativePositions((3, 4), True)(), gen_relative_position_index((3, 4)))
    assert torch.equal(RelativePositions((3, 4), False)(), get_relative_position_index(3, 4))
    assert isinstance(adopted(SWIN, _WINDOWED).layers[0].blocks[0].attn, Attention)
    assert isinstance(adopted(SWIN, _WINDOWED).layers[0].blocks[0], Block)
