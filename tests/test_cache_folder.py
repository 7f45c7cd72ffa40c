"""Where results are kept that can be computed again."""

import pwd
from pathlib import Path

import pytest

from vitcompress.output import cache_folder


def test_the_nearest_place_named_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("VITCOMPRESS_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("VITCOMPRESS_CACHE")
    assert cache_folder() == Path("/xdg/vitcompress")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/.cache/vitcompress")


def test_who_has_no_home_gets_a_folder_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: object) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "VITCOMPRESS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()
    assert cache_folder().is_dir()
    assert cache_folder() == cache_folder()
    monkeypatch.setenv("VITCOMPRESS_CACHE", "/own")
    assert cache_folder() == Path("/own")
