"""Streamed statistics against the same figures from all inputs held at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompress.data.images import ImageSet
from vitcompress.data.preprocess import Preprocess
from vitcompress.methods import saliency
from vitcompress.model.architecture import Architecture, VitModel
from vitcompress.stages import calibrate
from vitcompress.stages.calibrate import LayerStatistics, Weights, collect, statistics
from vitcompress.stages.context import Context

MakeContext = Callable[..., Context]

LAYERS = ["blocks.1.attn.qkv", "blocks.0.mlp.fc2", "blocks.1.attn.proj", "head"]


@pytest.fixture(scope="module")
def many_pixels() -> Tensor:
    return torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def inputs_of(module: nn.Module, layer: str, pixels: Tensor) -> Tensor:
    """All inputs of `layer`, [images, tokens, features]."""
    seen: list[Tensor] = []
    target = module.get_submodule(layer)
    handle = target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(pixels)
    handle.remove()
    return seen[0] if seen[0].ndim == 3 else seen[0][:, None]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


def same(one: LayerStatistics, other: LayerStatistics) -> bool:
    names = [field.name for field in dataclasses.fields(LayerStatistics)]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def apart(rows: Tensor, others: Tensor) -> torch.return_types.min:
    """The distance of each row to the nearest of the others, and which that is."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").min(1)


def same_rows(one: Tensor, other: Tensor) -> bool:
    """Whether both hold the same rows, in any order and any number."""
    both = apart(one, other).values.max(), apart(other, one).values.max()
    return bool(max(both) < 1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_statistics_are_those_of_all_inputs(layer: str, vit: VitModel, many_pixels: Tensor) -> None:
    found = collect(vit, [layer], many_pixels.split(5), 12, seed=0)[layer]
    images = inputs_of(vit.module, layer, many_pixels)
    x = images.flatten(0, 1)
    assert torch.allclose(found.low, x.amin(0), atol=1e-6)
    assert torch.allclose(found.high, x.amax(0), atol=1e-6)
    assert found.weight.item() == len(x)
    assert close(found.total, x.double().sum(0))
    assert close(found.gram, x.double().T @ x.double())
    assert found.gram.dtype == found.total.dtype == torch.float64
    assert torch.equal(found.counts.sum(1), torch.full((x.shape[1],), float(len(x))))
    assert (found.limit >= x.abs().amax(0) * 0.9999).all()
    assert (found.output_weights == 1).all()
    # So few tokens are all sampled.
    assert same_rows(found.rows, x)


@pytest.mark.parametrize("size", [1, 5])
def test_the_batch_size_does_not_matter(size: int, vit: VitModel, many_pixels: Tensor) -> None:
    at_once = collect(vit, LAYERS, [many_pixels], 12, seed=0)
    streamed = collect(vit, LAYERS, many_pixels.split(size), 12, seed=0)
    for layer in LAYERS:
        one, other = at_once[layer], streamed[layer]
        for name in ("low", "high", "weight", "total", "gram"):
            assert close(getattr(other, name), getattr(one, name)), name
        assert torch.equal(one.limit, other.limit)
        # Rounding of the last bit may move a value to the next bin.
        assert (one.counts - other.counts).abs().sum() <= 0.002 * one.counts.sum()
        assert same_rows(one.rows, other.rows)


def model_of(module: nn.Module) -> VitModel:
    look = Preprocess(
        input_size=(1, 1), mean=(0,) * 3, std=(1,) * 3, crop_pct=1, interpolation="bicubic"
    )
    return VitModel(module, Architecture(timm="none"), look)


class Tokens(nn.Module):
    """A model over tokens that know their image and their place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.layer(tokens)[:, 0]
        return output


@pytest.mark.parametrize(("images", "tokens"), [(10, 500), (60, 50), (500, 7), (1000, 3)])
def test_memory_is_bounded_and_every_image_has_its_first_token(images: int, tokens: int) -> None:
    numbers = torch.cartesian_prod(torch.arange(images), torch.arange(tokens)).float()
    x = numbers.view(images, tokens, 2)
    rows = collect(model_of(Tokens()), ["layer"], x.split(16), images, seed=0)["layer"].rows
    assert 1024 < len(rows) <= 2048
    firsts = rows[rows[:, 1] == 0]
    assert set(firsts[:, 0].tolist()) == set(range(images))
    assert len(rows[:, 1].unique()) > tokens / 3  # the others come from everywhere


def test_more_images_than_rows_still_fit() -> None:
    x = torch.randn(2500, 2, 2, generator=torch.Generator().manual_seed(0))
    found = collect(model_of(Tokens()), ["layer"], x.split(500), 2500, seed=0)["layer"]
    assert found.rows.shape == (2048, 2)
    assert found.weight == 5000


@pytest.mark.parametrize("images", [1024, 1025, 1500, 2600])
def test_more_images_never_tell_less(images: int, vit: VitModel) -> None:
    layer = "blocks.0.attn.qkv"  # where the class token is the same in all images
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    rows = collect(vit, [layer], pixels.split(200), images, seed=0)[layer].rows
    first = inputs_of(vit.module, layer, pixels[:1])[0, 0]
    leading = (rows - first).abs().amax(1) < 1e-5
    assert len(rows) == 2048
    assert leading.sum() == 1024
    assert len(rows[~leading].unique(dim=0)) == 1024


@pytest.mark.parametrize("images", [1025, 1999, 5000])
def test_rows_of_many_images_come_from_everywhere(images: int) -> None:
    numbers = torch.cartesian_prod(torch.arange(images), torch.arange(9)).float()
    x = numbers.view(images, 9, 2)
    rows = collect(model_of(Tokens()), ["layer"], x.split(16), images, seed=0)["layer"].rows
    assert len(rows.unique(dim=0)) == len(rows) == 2048
    each = torch.histc(rows[:, 0], 8, 0, images)
    assert each.min() > 0.9 * 256
    assert rows[:, 0].unique(return_counts=True)[1].max() <= 2
    assert torch.histc(rows[:, 1], 9, 0, 9).min() > 0.8 * 2048 / 9  # no token leads here


class Windows(nn.Module):
    """A model whose layer sees windows of tokens, several of each image, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        windows = tokens.unflatten(1, (-1, 4)).flatten(0, 1)
        output: Tensor = self.layer(windows).unflatten(0, (len(tokens), -1)).flatten(1, 2)
        return output[:, 0]


@pytest.mark.parametrize("images", [50, 1500])
def test_rows_of_windows_come_from_all_images(images: int) -> None:
    numbers = torch.cartesian_prod(torch.arange(images), torch.arange(128)).float()
    rows = collect(
        model_of(Windows()), ["layer"], numbers.view(images, 128, 2).split(16), images, seed=0
    )["layer"].rows
    assert 1900 < len(rows) <= 2048
    assert len(rows[:, 0].unique()) > 0.6 * images
    assert (rows[:, 1] == 0).sum() < 0.05 * len(rows)  # no token leads here


def test_the_seed_chooses_the_rows() -> None:
    x = torch.randn(30, 500, 2, generator=torch.Generator().manual_seed(0))
    one, again, other = (
        collect(model_of(Tokens()), ["layer"], x.split(16), 30, seed=seed)["layer"]
        for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not torch.equal(one.rows, other.rows)
    assert torch.equal(one.gram, other.gram)


def test_nothing_is_left_on_the_model_and_the_images(vit: VitModel, many_pixels: Tensor) -> None:
    before = vit.fingerprint()
    pixels = many_pixels.clone()
    collect(vit, LAYERS, [pixels], 12, seed=0, weights="importance")
    assert not pixels.requires_grad
    assert vit.fingerprint() == before
    for module in vit.module.modules():
        assert not module._forward_hooks
    assert all(p.grad is None for p in vit.module.parameters())


def output_gradient(module: nn.Module, layer: str, image: Tensor, readout: Tensor) -> Tensor:
    """The gradient of one image's read-out at the output of `layer`, [tokens, out]."""
    seen: list[Tensor] = []
    target = module.get_submodule(layer)
    handle = target.register_forward_hook(lambda _, __, output: seen.append(output))
    read = (module(image[None].requires_grad_()) * readout).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(read, seen[0])
    return gradient[0] if gradient.ndim == 3 else gradient


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_weigh_tokens_as_each_image_alone_would(
    layer: str, vit: VitModel, many_pixels: Tensor
) -> None:
    found = collect(vit, [layer], [many_pixels.clone()], 12, seed=3, weights="importance")[layer]
    generator = torch.Generator().manual_seed(3)
    readouts = saliency.fisher_readout(vit.module(many_pixels).detach(), generator)
    each = zip(many_pixels, readouts, strict=True)
    importance = torch.stack([output_gradient(vit.module, layer, *pair) for pair in each])
    importance = importance.square().flatten(0, 1).double()
    x = inputs_of(vit.module, layer, many_pixels).flatten(0, 1).double()
    weights = importance.mean(1) / importance.mean()
    assert found.weight.item() == pytest.approx(len(x), rel=1e-9)  # their mean is 1
    assert close(found.effective, weights.sum().square() / weights.square().sum(), 1e-4)
    assert close(found.total, weights @ x, 1e-4)
    assert close(found.gram, x.T @ (weights[:, None] * x), 1e-4)
    assert close(found.output_weights, importance.mean(0) / importance.mean(), 1e-4)
    assert found.output_weights.mean().item() == pytest.approx(1, rel=1e-5)
    assert same_rows(found.rows, x.float())


def test_half_of_a_weight_is_even_and_half_importance(vit: VitModel, many_pixels: Tensor) -> None:
    even, importance, both = (
        collect(vit, LAYERS, [many_pixels.clone()], 12, seed=3, weights=weights)
        for weights in ("even", "importance", "both")
    )
    for layer in LAYERS:
        assert close(both[layer].gram, (even[layer].gram + importance[layer].gram) / 2, 1e-4)
        assert close(both[layer].total, (even[layer].total + importance[layer].total) / 2, 1e-4)
        assert importance[layer].effective < both[layer].effective < even[layer].effective


def test_gradients_do_not_depend_on_the_batch_size(
    vit: VitModel, many_pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dataclasses.replace(vit.task, readout=lambda logits, _: logits.detach().softmax(-1))
    monkeypatch.setattr(VitModel, "task", task)
    at_once, streamed = (
        collect(vit, LAYERS, many_pixels.split(size), 12, seed=0, weights="importance")
        for size in (12, 5)
    )
    for layer in LAYERS:
        assert close(streamed[layer].gram, at_once[layer].gram, 1e-4)
        assert close(streamed[layer].output_weights, at_once[layer].output_weights, 1e-4)


def test_gradients_change_no_ranges(vit: VitModel, many_pixels: Tensor) -> None:
    plain, weighed = (
        collect(vit, LAYERS, [many_pixels.clone()], 12, seed=0, weights=weights)
        for weights in ("even", "importance")
    )
    for layer in LAYERS:
        assert torch.allclose(plain[layer].low, weighed[layer].low, atol=1e-5)
        assert torch.allclose(plain[layer].high, weighed[layer].high, atol=1e-5)
        assert not close(weighed[layer].gram, plain[layer].gram, 1e-3)


def ask(vit: VitModel, context: Context, **changes: Any) -> dict[str, LayerStatistics]:
    return statistics(vit, context=context, **{"layers": LAYERS, **changes})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass over the images."""
    seen: list[int] = []

    def counted(*arguments: Any, **keywords: Any) -> dict[str, LayerStatistics]:
        seen.append(1)
        return collect(*arguments, **keywords)

    monkeypatch.setattr(calibrate, "collect", counted)
    return seen


@pytest.mark.parametrize("weights", ["even", "both"])
def test_a_second_call_reads_the_file(
    weights: Weights, vit: VitModel, context: Context, passes: list[int]
) -> None:
    first = ask(vit, context, weights=weights)
    second = ask(vit, context, weights=weights)
    assert len(passes) == 1
    assert set(second) == set(first)
    assert all(same(first[layer], second[layer]) for layer in LAYERS)
    (file,) = context.cache.folder.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one bit of the statistics
    file.write_bytes(content)
    third = ask(vit, context, weights=weights)
    assert len(passes) == 2
    assert all(same(first[layer], third[layer]) for layer in LAYERS)


def test_a_fresh_run_computes_anew(
    vit: VitModel, make_context: MakeContext, passes: list[int]
) -> None:
    context = make_context(resume=False)
    first, second = ask(vit, context), ask(vit, context)
    assert len(passes) == 2
    assert all(same(first[layer], second[layer]) for layer in LAYERS)


@pytest.mark.parametrize("changed", ["model", "images", "preprocess", "seed", "layers", "weights"])
def test_what_is_asked_decides_what_is_reused(
    changed: str,
    vit: VitModel,
    images: ImageSet,
    context: Context,
    make_context: MakeContext,
    passes: list[int],
) -> None:
    ask(vit, context)
    if changed == "model":
        vit.module.cls_token.mul_(1.001)
    contexts: dict[str, Any] = {
        "images": {"calibration": dataclasses.replace(images, names=images.names[:-1])},
        "preprocess": {"preprocess": context.preprocess.model_copy(update={"crop_pct": 0.9})},
        "seed": {"seed": 1},
    }
    calls: dict[str, Any] = {"layers": {"layers": LAYERS[:2]}, "weights": {"weights": "importance"}}
    ask(vit, make_context(**contexts.get(changed, {})), **calls.get(changed, {}))
    assert len(passes) == 2
    assert len(list(context.cache.folder.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_only_said(
    vit: VitModel, make_context: MakeContext, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    context = make_context(cache=tmp_path / "file" / "cache")
    assert set(ask(vit, context)) == set(LAYERS)
    assert "not kept" in capsys.readouterr().err


def test_the_cache_keeps_a_few_files(vit: VitModel, make_context: MakeContext) -> None:
    for seed in range(6):
        context = make_context(seed=seed)
        ask(vit, context, layers=LAYERS[:1])
    assert len(list(context.cache.folder.iterdir())) == 4
