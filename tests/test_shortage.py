"""Too little memory is told in one line, with what was being done, and not as bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import EXAMPLE, Call
from vitcompress.cli import main
from vitcompress.errors import lacks_memory

RECIPE = f"""{EXAMPLE}
stages:
  - {{name: quant, type: quantize, layers: ["blocks.0.*"]}}
"""
TOLD = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 9"),
    RuntimeError("std::bad_alloc"),
    OSError(12, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
)


def fails(error: Exception) -> Callable[..., Any]:
    def raises(*_: object, **__: object) -> Any:
        raise error

    return raises


@pytest.mark.parametrize("error", TOLD, ids=lambda error: str(error)[:20])
def test_what_says_so_is_understood(error: Exception) -> None:
    assert lacks_memory(error)
    assert not lacks_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_comes_of_it_is_understood() -> None:
    behind = ValueError("the graph could not be decomposed")
    behind.__cause__ = TOLD[1]
    assert lacks_memory(behind)


def test_a_stage_without_memory_is_named(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.pipeline.carry_out", fails(TOLD[1]))
    told = call("run", recipe, "--out", tmp_path / "out", "--limit", 40, code=3).error
    assert "stage 1/1: quant (quantize): there is too little memory" in told
    assert not (tmp_path / "out").exists()


def test_a_file_for_which_there_is_no_memory_is_not_damaged(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.model.reading.files.load_file", fails(TOLD[5]))
    told = call("inspect", "example:glyphs", code=3).error
    assert "glyphs.safetensors: there is too little memory" in told


def test_a_process_without_memory_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[int]()
    monkeypatch.setattr("vitcompress.model.reading.files.load_file", fails(TOLD[5]))
    monkeypatch.setattr("sys.argv", ["vitcompress", "inspect", "example:glyphs"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("os._exit", ended.append)
    main()
    assert ended == [3]


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_a_command_is_told_by_its_name(
    command: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.inspection.evaluate", fails(TOLD[1]))
    monkeypatch.setattr("vitcompress.inspection.facts", fails(TOLD[1]))
    options = ["--evaluation", "example:glyphs/evaluation"] if command == "eval" else []
    told = call(command, "example:glyphs", *options, code=3).error
    assert f"{command}: there is too little memory" in told


def test_images_for_which_there_is_no_memory_are_not_left_out(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.data.images.model_input", fails(TOLD[0]))
    told = call("eval", "example:glyphs", "--evaluation", "example:glyphs/evaluation", code=3).error
    assert "000000: there is too little memory" in told


def test_a_plan_tells_the_memory(call: Call, recipe: Path) -> None:
    told = call("plan", recipe).stderr
    assert "a run needs about 1.0" in told
    rows = call("plan", recipe, "--json").json
    assert 0.95e9 < rows[0]["memory_bytes"] < 1.1e9
