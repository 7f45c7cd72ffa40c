"""What models say of images: by any file, and by the script of an output folder, which needs no
torch and no vitcompress."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.cli import Call
from vitcompress import output, processor
from vitcompress.data.images import open_images
from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.evaluation import judge, torch_runner
from vitcompress.export import predict
from vitcompress.export.onnx import export_onnx, facts_of
from vitcompress.model.architecture import VitModel

ALONE = """
import runpy, sys
for name in ("vitcompress", "torch", "torchvision", "timm", "onnx", "pydantic", "typer"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NAMES = (*(f"class {n} é" for n in range(9)), "class 0 é")
HARD = Preprocess(
    input_size=(32, 32),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_pct=0.875,
    interpolation="bicubic",
    crop_mode="border",
)


SIMPLE = HARD.model_copy(update={"crop_mode": "center"})
TASKS = ("multi_label", "one_logit")  # with a threshold


def picture(file: Path, height: int, width: int, mode: str = "RGB", seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file)
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    folder = tmp_path / "images"
    folder.mkdir()
    sizes = [(50, 40), (20, 61), (32, 32)]
    return [str(picture(folder / f"{i}.png", *size, seed=i)) for i, size in enumerate(sizes)]


@pytest.fixture
def run_folder(vit: VitModel, tmp_path: Path, export_once: Callable[..., object]) -> Path:
    """What a run leaves: the file of a model, and the script."""
    folder = tmp_path / "out"
    folder.mkdir()
    named = replace(vit, preprocess=HARD, class_names=NAMES)
    export_once(named, folder / output.ONNX, facts_of(named, {}))
    output.write_predict(folder, "vit", facts_of(named, {}))
    return folder


def script(folder: Path, spec: Preprocess, task: str = "classification") -> Path:
    """The script for a model without layers in 8 bits, whose classes have no names."""
    told = {"task": task, "preprocessing": spec.model_dump_json(), "quantization": "{}"}
    return output.write_predict(folder, "vit", told)[0]


def test_images_are_prepared_as_they_are_in_a_run(tmp_path: Path) -> None:
    choices = product(
        ["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"],
        ["center", "squash", "border"],
        [False, True],
        [False, True],
        [(24, 24), (16, 29)],
        [1.0, 0.9],
    )
    sizes = [(41, 67), (67, 40), (9, 13), (24, 24)]
    for number, (interpolation, mode, floor, floats, target, crop_pct) in enumerate(choices):
        channels = 1 if number % 5 == 0 else 3
        spec = Preprocess(
            input_size=target,
            channels=channels,
            mean=(0.485, 0.456, 0.406)[:channels],
            std=(0.229, 0.224, 0.225)[:channels],
            crop_pct=crop_pct,
            interpolation=interpolation,
            crop_mode=mode,
            floor_crop=floor,
            float_resize=floats,
        )
        file = picture(tmp_path / "x.png", *sizes[number % len(sizes)], seed=number)
        expected = model_input(Image.open(file), spec).numpy()
        found = predict.prepared(file, spec.model_dump(mode="json"))
        assert np.abs(found - expected).max() <= (1e-6 if floats else 0), spec
        alone = runpy.run_path(str(script(tmp_path, spec)))["prepared"](file)
        assert alone.dtype == np.float32
        assert np.abs(alone - expected[None]).max() <= (1e-6 if floats else 0), spec
    told = {"input_size", "channels", "mean", "std", "crop_pct", "interpolation", "crop_mode"}
    assert told | {"floor_crop", "float_resize"} == set(Preprocess.model_fields)  # all are tried


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P"])
def test_every_mode_becomes_what_it_becomes_in_a_run(mode: str, tmp_path: Path) -> None:
    file = picture(tmp_path / "x.png", 40, 30, mode)
    for spec in (HARD, HARD.model_copy(update={"channels": 1, "mean": (0.5,), "std": (0.2,)})):
        expected = model_input(Image.open(file), spec).numpy()
        assert np.array_equal(predict.prepared(file, spec.model_dump(mode="json")), expected)
        assert np.array_equal(
            runpy.run_path(str(script(tmp_path, spec)))["prepared"](file)[0], expected
        )


def test_sixteen_bits_are_prepared_as_they_are_in_a_run(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70).save(file)
    expected = model_input(Image.open(file), HARD).numpy()
    assert np.array_equal(predict.prepared(file, HARD.model_dump(mode="json")), expected)
    assert np.array_equal(
        runpy.run_path(str(script(tmp_path, HARD)))["prepared"](file)[0], expected
    )


def alone(folder: Path, *given: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    called = [sys.executable, "-I", "-c", ALONE, folder / output.PREDICT, *given]
    done = subprocess.run(list(map(str, called)), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_the_outputs_are_those_of_an_evaluation(
    call: Call, run_folder: Path, vit: VitModel, pictures: list[str], tmp_path: Path
) -> None:
    images, file = open_images(Path(pictures[0]).parent, labelled=False), tmp_path / "outputs.npz"
    expected = judge(torch_runner(vit, torch.device("cpu")), images, HARD, 0, "").outputs
    told = call("predict", run_folder, *pictures, "--npz", file, "--json").json
    found = np.load(file)["outputs"]
    assert np.load(file)["images"].tolist() == pictures
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert [each["image"] for each in told] == pictures
    shares = torch.from_numpy(expected).softmax(-1)
    for each, row in zip(told, shares, strict=True):
        best = row.topk(5)
        assert [c["class"] for c in each["classes"]] == [NAMES[i] for i in best.indices]
        assert [c["probability"] for c in each["classes"]] == pytest.approx(
            best.values.tolist(), 1e-3
        )
    folder = Path(pictures[0]).parent
    assert call("predict", run_folder, folder, "--json").json == told
    done = call("predict", run_folder / "model.onnx", *pictures)
    assert done.stderr.count("class ") == 5 * len(pictures)

    said = alone(run_folder, folder)
    assert (said.stdout, said.stderr) == (done.stderr, "")
    said = alone(run_folder, pictures[0], tmp_path / "gone.png", code=2)
    assert "error: " in said.stderr.splitlines()[-1]
    assert "gone.png: FileNotFoundError" in said.stderr.splitlines()[-1]


@pytest.mark.parametrize("task", [*TASKS, "embedding", "regression"])
def test_a_script_says_what_its_task_says(
    task: str,
    run_folder: Path,
    pictures: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held = predict.load(run_folder / output.ONNX)
    named = {"class_names": json.dumps(NAMES)} if task == "multi_label" else {}
    told = {"task": task, "preprocessing": HARD.model_dump_json(), "quantization": "{1}", **named}
    file = output.write_predict(run_folder, "vit", told)[0]
    monkeypatch.chdir(run_folder)
    monkeypatch.setattr(sys, "argv", [str(file), *pictures])
    runpy.run_path(str(file), run_name="__main__")
    model = replace(held, task=task, class_names=NAMES if named else None)
    found = list(predict.predictions(model, pictures))
    said = capsys.readouterr().out
    if task != "embedding":
        assert said.startswith("\n".join(map(predict.told, found)))
    if task in ("embedding", "regression"):
        assert np.array_equal(np.load("outputs.npz")["outputs"], [each.output for each in found])
        assert np.load("outputs.npz")["images"].tolist() == pictures


def test_a_script_can_be_read(tmp_path: Path) -> None:
    modes = product(["center", "squash", "border"], [False, True], [1, 3, 4], [(24, 24), (16, 29)])
    for task in ("classification", "embedding", *TASKS, "regression"):
        for mode, floor, channels, size in modes:
            change = {"crop_mode": mode, "floor_crop": floor, "input_size": size}
            shares = {"channels": channels, "mean": (0.5,) * channels, "std": (0.5,) * channels}
            spec = Preprocess.model_validate({**dict(HARD), **change, **shares})
            lines = script(tmp_path, spec, task).read_text().splitlines()
            assert len(lines) <= 70
            assert max(map(len, lines)) <= 100
    assert len(script(tmp_path, SIMPLE).read_text().splitlines()) <= 58


def test_an_output_means_what_its_task_says(tmp_path: Path) -> None:
    def said(task: str, *values: float, threshold: float = 0.5) -> tuple[dict[str, Any], str]:
        model = predict.Model(None, {}, task, NAMES[: len(values)] if len(values) > 1 else None)
        output = np.array(values, np.float32)
        facts = predict.meaning(model, output, threshold)
        return facts, predict.told(predict.Prediction("x.png", output, facts))

    facts, told = said("multi_label", -900.0, 2.0, 0.5, threshold=0.6)
    assert facts == {
        "classes": [
            {"class": NAMES[1], "probability": pytest.approx(0.8808, abs=1e-4)},
            {"class": NAMES[2], "probability": pytest.approx(0.6225, abs=1e-4)},
        ]
    }
    assert told.splitlines() == ["x.png", "   88.08 %  class 1 é", "   62.25 %  class 2 é"]
    assert said("multi_label", -1.0, -2.0)[1] == "x.png\n  none of its classes"
    assert said("one_logit", 3.0) == (
        {"yes": True, "probability": pytest.approx(0.9526, abs=1e-4)},
        "x.png\n  yes (95.26 %)",
    )
    assert said("one_logit", 3.0, threshold=0.99)[1] == "x.png\n  no (95.26 %)"
    assert said("regression", 12.5) == ({"values": [12.5]}, "x.png\n  12.5")
    facts, told = said("embedding", *range(10))
    assert facts == {"embedding": list(range(10))}
    assert told == "x.png\n  embedding [10]: 0 1 2 3 4 5 6 7 …"
    assert len(said("classification", 1.0, 2.0)[0]["classes"]) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["center", "border"])
def test_arrays_are_prepared_as_they_are_in_a_run(
    dtype: Any, channels: int, mode: str, tmp_path: Path
) -> None:
    change = {"channels": channels, "mean": (0.1, 0.2, 0.3, 0.4)[:channels], "crop_mode": mode}
    spec = Preprocess.model_validate({**dict(HARD), **change, "std": (0.5,) * channels})
    most = 1 if dtype == np.float32 else np.iinfo(dtype).max
    array = (np.random.default_rng(0).random((40, 23, channels)) * most).astype(dtype)
    expected = model_input(array, spec).numpy()
    for name, given in (("last", array), ("first", array.transpose(2, 0, 1))):
        np.save(tmp_path / f"{name}.npy", given)
        found = predict.prepared(tmp_path / f"{name}.npy", spec.model_dump(mode="json"))
        assert np.abs(found - expected).max() < 1e-6
        if channels not in (1, 3):  # of these the script reads pictures only
            alone = runpy.run_path(str(script(tmp_path, spec)))["prepared"]
            assert np.abs(alone(tmp_path / f"{name}.npy")[0] - expected).max() < 1e-6
    np.save(tmp_path / "five.npy", np.zeros((40, 23, 5), dtype))
    with pytest.raises(predict.BadInput, match=rf"five\.npy: unreadable .* takes {channels} ch"):
        predict.prepared(tmp_path / "five.npy", spec.model_dump(mode="json"))


def test_bad_input_is_one_line(
    call: Call, run_folder: Path, pictures: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "no.onnx").write_text("no model")
    (tmp_path / "empty").mkdir()
    rows: dict[str, list[Any]] = {
        "text.jpg: unreadable (": [run_folder, pictures[0], tmp_path / "text.jpg"],
        "gone.onnx: no such file": [tmp_path / "gone.onnx", pictures[0]],
        "no.onnx: onnxruntime ≥ 1.24": [tmp_path / "no.onnx", pictures[0]],
        "cannot be written to": [run_folder, pictures[0], "--npz", tmp_path / "none" / "x.npz"],
        "no images in it": [run_folder, tmp_path / "empty"],
    }
    for words, given in rows.items():
        done = call("predict", *given, code=2)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert words in done.error


def test_a_file_of_others_is_refused(make_vit: Callable[..., VitModel], tmp_path: Path) -> None:
    export_onnx(make_vit(), tmp_path / "model.onnx", {})
    with pytest.raises(predict.BadInput, match="does not say how images are prepared"):
        predict.load(tmp_path / "model.onnx")


def test_outputs_that_are_no_numbers_are_refused(
    vit: VitModel, pictures: list[str], tmp_path: Path
) -> None:
    vit.module.head.bias[3] = float("nan")
    export_onnx(vit, tmp_path / "model.onnx", facts_of(vit, {}))
    with pytest.raises(predict.BadInput, match="NaN or infinite"):
        list(predict.predictions(predict.load(tmp_path / "model.onnx"), pictures[:1]))


def test_integers_are_multiplied_as_in_a_run() -> None:
    assert predict._adds_exactly() == ("vnni" in processor.instructions())
