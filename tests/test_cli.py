"""What a user types and sees: exit codes, one-line messages, files."""

import json
import os
import pickle
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import EXAMPLE, Call
from vitcompress.cli import main

QUANTIZE = '  - {name: quant, type: quantize, layers: ["blocks.0.*"]}\n'
RECIPE = f"""{EXAMPLE}
stages:
  - {{name: tail, type: tail}}
{QUANTIZE}"""
WHOLE = ("--set", 'stages.quant.layers=["blocks.*"]', "--set", "data.images=96")


def test_sensitivity_tells_what_each_layer_costs(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables.json"
    done = call("sensitivity", recipe, "--limit", 33, "--out", out, "--json")
    tables = done.json
    assert tables == json.loads(out.read_text())
    assert list(tables) == ["quant"]
    assert [row["layer"] for row in tables["quant"]][:2] == [
        "blocks.0.attn.qkv",
        "blocks.0.attn.proj",
    ]
    assert all(row["importance"] > 0 for row in tables["quant"])
    assert all(0 < row["error_8"] < row["error_4"] < 1 for row in tables["quant"])
    assert "blocks.0.attn.qkv" in done.stderr


def test_sensitivity_of_a_score_as_a_page(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables.html"
    given = ("sensitivity", recipe, "--limit", 33, "--out", out, "--json")
    found = {}
    for score in ("uniform", "fisher"):
        rows = call(*given, "--score", score).json["quant"]
        found[score] = [row["importance"] for row in rows]
    assert len(set(found["uniform"])) == 1 < len(set(found["fisher"]))
    page = out.read_text()
    assert page.count("<svg") == 7  # fisher, importance, bits, and the errors of 4 widths
    assert "blocks.0.attn.qkv" in page


def test_sensitivity_of_a_score_needs_a_stage_that_scores(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    assert "stages.quant.score" in call("sensitivity", recipe, "--score", "luck", code=2).error
    recipe.write_text(RECIPE.replace(QUANTIZE, ""))
    message = call("sensitivity", recipe, "--score", "lrp", code=2).error
    assert message == "error: --score: the recipe has no quantize stage; leave the option out"


def test_sensitivity_of_links_of_attention(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "links.html"
    given = ("sensitivity", recipe, "--attention", "--limit", 16)
    tables = call(*given, "--out", out, "--json").json
    assert {name.partition(" ")[0] for name in tables} == {"attention"}
    assert [row["place"] for row in tables["attention blocks"]] == ["blocks.0", "blocks.1"]
    assert "blocks.1.head1" in out.read_text()
    message = call(*given, "--score", "lrp", code=2).error
    assert message == "error: --score: with --attention no layer has bits; leave one of them out"


def test_sensitivity_needs_a_stage_with_a_choice(call: Call, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace(QUANTIZE, ""))
    assert (
        "stages: none of these stages" in call("sensitivity", recipe, "--limit", 33, code=2).error
    )


def test_plan_writes_nothing(call: Call, recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    rows = call("plan", recipe, "--json", *WHOLE).json
    assert [row["stage"] for row in rows] == ["dense", "tail", "quant"]
    assert [row["seconds"] for row in rows] == [None] * 3
    assert rows[1]["estimated_seconds"] == 0 < rows[2]["estimated_seconds"]
    assert rows[1]["macs"] < rows[0]["macs"]
    assert rows[2]["bytes"] < 0.4 * rows[1]["bytes"]
    told = call("plan", recipe, *WHOLE).told
    assert "quant: blocks.0-1.attn.qkv (2), blocks.0-1.attn.proj (2), " in told
    assert "MMACs" in told
    assert re.search(r"the stages take about \d+ (s|min), by one small batch", told)
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_looks_for_images_that_are_given(call: Call, recipe: Path, tmp_path: Path) -> None:
    given = ("plan", recipe, "--limit", 40)
    assert "images of" not in call(*given).told
    told = call(*given, "--evaluation", "example:glyphs/evaluation").told
    assert "evaluation: 40 images of example:glyphs/evaluation, labelled" in told
    assert "calibration: 40 images of example:glyphs/calibration" in told
    assert "no images found in" in call(*given, "--calibration", tmp_path, code=2).told
    (tmp_path / "report.json").write_text('{"model": {}, "baseline": {}, "final": {"cosine": 0.9}}')
    assert "--against: that run has no" in call(*given, "--against", tmp_path, code=2).error


def test_a_stage_that_is_skipped_is_not_in_the_chain(call: Call, recipe: Path) -> None:
    rows = call("plan", recipe, "--json", "--skip", "tail").json
    assert [row["stage"] for row in rows] == ["dense", "quant"]
    assert rows[1]["macs"] == rows[0]["macs"]
    (only,) = call("plan", recipe, "--json", "--skip", "tail", "--skip", "quant").json
    assert only["stage"] == "dense"


def test_compare_names_what_is_no_run(call: Call, tmp_path: Path) -> None:
    assert f"{tmp_path}: no output folder of a run" in call("compare", tmp_path, code=2).error
    (tmp_path / "report.json").write_text("{}")
    assert (
        f"{tmp_path}/report.json: not a report of schema 1"
        in call("compare", tmp_path, code=2).error
    )


def test_schema_and_recipes_are_printed(call: Call) -> None:
    assert "stages" in call("schema").json["properties"]
    assert {"quickstart", "vit-int8"} <= set(call("recipes", "--json").json)


@pytest.mark.parametrize("option", ["--out", "--calibration", "--evaluation", "--classes", None])
def test_strange_paths_are_told_as_they_are(
    call: Call, option: str | None, recipe: Path, tmp_path: Path
) -> None:
    path = tmp_path / "🎉 𠮷 [/x]"
    path.parent.mkdir()
    path.touch()
    assert "🎉 𠮷 [/x]" in call("run", recipe, *([option] if option else []), path, code=2).error


@pytest.mark.parametrize("option", ["--calibration", "--evaluation", "--classes", None])
def test_a_path_that_is_not_unicode_is_told_first(
    call: Call, option: str | None, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "caf\udce9").mkdir()
    given = [option, tmp_path / "caf\udce9"] if option else [tmp_path / "caf\udce9"]
    line = call("run", recipe, *given, "--out", tmp_path / "out", code=2).error
    assert line.endswith("given: is not UTF-8; rename the file, or link to it")


@pytest.mark.parametrize("given", [("export", ""), ("run", "quickstart", "")])
def test_an_empty_path_is_told(call: Call, given: tuple[str, ...]) -> None:
    assert call(*given, code=2).error == "error: the model.checkpoint given: must not be empty"


@pytest.mark.parametrize(
    "given", [("--seed", -1), ("--seed", 2**64), ("--threads", 0), ("--threads", 10**9)]
)
def test_numbers_out_of_range_are_told_first(
    call: Call, given: tuple[str, int], recipe: Path
) -> None:
    assert given[0] in call("run", recipe, *given, code=2).told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["run"], "error: Missing argument 'RECIPE'; "),
        (["run", "r", "--limt", 3], "error: No such option: --limt (Possible options: "),
        (["run", "r", "--limit", 0], "error: Invalid value for '--limit': "),
        (["rnu"], "error: No such command 'rnu'. Did you mean 'run'?; "),
    ],
)
def test_a_wrong_use_is_one_line(
    call: Call, given: list[object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = call(*given, code=2).stderr.splitlines()
    assert line.startswith(told)
    assert line.endswith("--help shows its use")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert call(*given, code=2).stderr.splitlines()[1].startswith("::error title=")


def test_without_a_command_the_help_is_shown(call: Call) -> None:
    assert "Usage:" in call(code=2).stdout


def test_names_that_are_too_long_are_told(call: Call, recipe: Path, tmp_path: Path) -> None:
    name = "n" * 300
    for given in ((name,), (recipe, name), (recipe, "--calibration", name)):
        assert "there is no such" in call("run", *given, code=2).error or given[0] == recipe
    assert "File name too long" in call("run", recipe, "--out", tmp_path / name, code=2).error


def test_a_pickle_with_code_is_refused_and_not_run(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "vit.pth"
    path.write_bytes(pickle.dumps({"model": Evil()}))
    line = call("run", recipe, path, "--out", tmp_path / "out", code=2).error
    assert "mkdir" in line
    assert not (tmp_path / "owned").exists()


ENDING = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = [signal.signal(each, signal.SIG_DFL) for each in ENDING]  # whatever the shell says
    yield
    for each, handler in zip(ENDING, before, strict=True):
        signal.signal(each, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("ending", ENDING)
def test_termination_is_an_interruption(
    ending: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.cli.app", lambda: signal.raise_signal(ending))
    with pytest.raises(KeyboardInterrupt):
        main()


@pytest.mark.usefixtures("handlers")
def test_what_is_to_be_ignored_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    monkeypatch.setattr("vitcompress.cli.app", lambda: signal.raise_signal(signal.SIGHUP))
    main()


def test_a_full_disk_ends_with_3(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("vitcompress.pipeline.export_onnx", full)
    line = call("run", recipe, "--out", tmp_path / "out", "--limit", 16, code=3).error
    assert "No space left on device" in line
    left = [path.name for path in tmp_path.iterdir() if "out" in path.name]
    assert left == ["out.failed.log"]


def test_interrupting_ends_with_130_and_leaves_nothing(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitcompress.pipeline.export_onnx", interrupt)
    done = call("run", recipe, "--out", tmp_path / "out", code=130)
    assert "interrupted: nothing was left half written" in done.told
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_layer_pattern_without_match_names_the_nearest_before_any_work(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.pipeline.export_onnx", lambda *_: pytest.fail("work was done"))
    setting = 'stages.quant.layers=["block.*"]'
    line = call(
        "run", recipe, "--set", setting, "--limit", 16, "--out", tmp_path / "out", code=2
    ).error
    assert "stages.quant.layers" in line
    assert "blocks." in line
