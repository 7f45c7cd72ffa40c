"""The tool from Python: of files and of what is in memory, typed."""

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import vitcompress
from vitcompress import api, given
from vitcompress.chain import Options
from vitcompress.data.images import batches, open_images
from vitcompress.data.preprocess import Preprocess
from vitcompress.example import glyphs
from vitcompress.model.architecture import VitModel

RECIPE = "data: {images: 16}\nstages: [{name: tail, type: tail}]\n"
SPEC = Preprocess(
    input_size=(48, 48), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic"
)


@pytest.fixture
def module() -> nn.Module:
    """The model of the embedded example, as timm makes it."""
    made: nn.Module = timm.create_model(
        glyphs.TIMM_NAME, num_classes=len(glyphs.CLASSES), **glyphs.TIMM_OPTIONS
    )
    made.load_state_dict(load_file(glyphs.CHECKPOINT))
    return made.train()


@pytest.fixture(scope="module")
def samples() -> TensorDataset:
    pixels, labels = (torch.from_numpy(array) for array in glyphs.draw("evaluation", 66))
    return TensorDataset(pixels.permute(0, 3, 1, 2) / 255 * 2 - 1, labels)


def test_a_module_and_tensors_are_compressed(
    module: nn.Module, samples: TensorDataset, tmp_path: Path
) -> None:
    (recipe := tmp_path / "recipe.yaml").write_text(RECIPE)
    loader: DataLoader[Any] = DataLoader(samples, 16)
    report = vitcompress.compress(
        recipe,
        module,
        tmp_path / "out",
        calibration=(pixels for pixels, _ in loader),
        evaluation=loader,
        settings=[f"model.options.{key}={value}" for key, value in glyphs.TIMM_OPTIONS.items()],
    )
    assert module.training  # as it was
    pixels, labels = samples.tensors
    with torch.no_grad():
        wanted = module.eval()(pixels)
        found = vitcompress.load(tmp_path / "out")(pixels)
    assert torch.allclose(found, wanted, atol=1e-4)
    right = 100 * float((wanted.argmax(1) == labels).float().mean())
    assert report.baseline.top1 == pytest.approx(right)
    assert report.baseline.images == len(labels)
    shown = report._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert shown.count("<") == 2  # the page is text, in a frame of its own


def test_what_timm_calls_a_module_it_says_itself(tmp_path: Path) -> None:
    module = timm.create_model("vit_tiny_patch16_224", depth=1)
    file, name = given.checkpoint_of(module, None, tmp_path)
    assert name == "vit_tiny_patch16_224"
    assert load_file(file).keys() == module.state_dict().keys()
    assert given.checkpoint_of(nn.Linear(2, 2), None, tmp_path)[1] is None


def test_a_module_that_computes_something_else_is_refused(vit: VitModel) -> None:
    given.check_same(vit.module, vit)

    class Other(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, pixels: Tensor) -> Tensor:
            out: Tensor = self.inner(pixels)
            return out * 1.01

    with pytest.raises(vitcompress.InputError, match="computes something else than timm's"):
        given.check_same(Other(vit.module), vit)


def test_prepared_pixels_come_as_they_were_given(samples: TensorDataset, tmp_path: Path) -> None:
    archive = given.archive_of(DataLoader(samples, 5), tmp_path / "given.tar", most=12)
    images = open_images(archive, labelled=True)
    (batch,) = batches(images, SPEC, 12)
    pixels, labels = samples.tensors
    assert torch.equal(batch.pixels, pixels[:12])
    assert batch.labels is not None
    assert torch.equal(batch.labels, labels[:12])
    larger = SPEC.model_copy(update={"input_size": (60, 60)})
    (batch,) = batches(images, larger, 12)
    assert batch.pixels.shape == (12, 3, 60, 60)
    assert batch.pixels.mean() == pytest.approx(float(pixels[:12].mean()), abs=0.01)


def test_no_more_images_are_taken_than_are_of_use(tmp_path: Path) -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(2, 3, 8, 8)

    archive = given.archive_of(endless(), tmp_path / "given.tar", most=5)
    assert len(open_images(archive, labelled=False)) == 5


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([], "gives no images"),
        ([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], "images: are torch.uint8; give"),
        ([torch.zeros(8, 8)], r"not Tensor \[8, 8\]"),
        ([np.zeros((3, 8, 8))], "not ndarray"),
    ],
)
def test_what_are_no_prepared_images_is_refused(images: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(vitcompress.InputError, match=reason):
        given.archive_of(images, tmp_path / "given.tar")


def test_options_are_those_of_a_run() -> None:
    hints = get_type_hints(api.RunOptions)
    assert hints == {n: h for n, h in get_type_hints(Options).items() if n != "made"}


@pytest.mark.parametrize("name", vitcompress.__all__)
def test_what_is_public_is_there_and_typed(name: str) -> None:
    found = getattr(vitcompress, name)
    if inspect.isfunction(found):
        hints = get_type_hints(found)
        assert hints.keys() == inspect.signature(found).parameters.keys() | {"return"}
        assert not any(_within(hint, Any) for hint in hints.values())


def _within(hint: Any, what: Any) -> bool:
    inner = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return hint is what or any(_within(each, what) for each in inner)


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(vitcompress.__file__).with_name("py.typed").is_file()
    with pytest.raises(AttributeError, match="has no attribute 'squeeze'"):
        vitcompress.squeeze  # noqa: B018
