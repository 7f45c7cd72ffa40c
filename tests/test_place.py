"""The place of an output folder: what is replaced there and what is left alone."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from vitcompress.errors import InputError, RunError
from vitcompress.place import MANIFEST, check_shared, writing


def earlier_output(out: Path) -> None:
    out.mkdir()
    write_output(out, "old", "model.onnx", "gone.txt")


def write_output(folder: Path, content: str, *names: str) -> None:
    for name in names:
        (folder / name).write_text(content)
    manifest = {"versions": {"vitcompress": content}, "outputs": dict.fromkeys(names, "hash")}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def is_new(out: Path) -> bool:
    """Whether `out` holds the output of `run`, all of it and nothing else."""
    found = {file.name: file.read_text() for file in out.iterdir()}
    manifest = json.loads(found.pop(MANIFEST))
    return found == {"model.onnx": "new"} and manifest["versions"] == {"vitcompress": "new"}


def run(out: Path) -> None:
    with writing(out) as partial:
        write_output(partial, "new", "model.onnx")


def test_an_earlier_output_is_replaced(tmp_path: Path) -> None:
    earlier_output(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").touch()
    run(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").unlink()
    assert is_new(tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_what_was_put_beside_an_earlier_output_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    earlier_output(out)
    (out / ".DS_Store").touch()
    (out / "notes.txt").write_text("precious")
    with (
        pytest.raises(InputError, match=r"--out .*/out: holds notes\.txt, .* move it"),
        writing(out),
    ):
        pass
    assert (out / "notes.txt").read_text() == "precious"
    assert (out / "model.onnx").read_text() == "old"


@pytest.mark.parametrize("manifest", ['{"name": "my web app"}', "[]", "no json", '{"versions": 1}'])
def test_a_manifest_of_something_else_is_no_output(manifest: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(InputError, match="is no output of vitcompress"), writing(tmp_path):
        pass
    assert (tmp_path / MANIFEST).read_text() == manifest


def link(tmp_path: Path) -> Path:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far")
    return tmp_path / "far"


def link_to_an_output(tmp_path: Path) -> Path:
    earlier_output(tmp_path / "far")
    (tmp_path / "out").symlink_to("far")
    return tmp_path / "far"


def link_to_nothing_yet(tmp_path: Path) -> Path:
    (tmp_path / "out").symlink_to("far/away")
    return tmp_path / "far" / "away"


def empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def long_name(tmp_path: Path) -> Path:
    (tmp_path / "out").symlink_to(tmp_path / ("n" * 255))
    return tmp_path / ("n" * 255)


@pytest.mark.parametrize(
    "make", [link, link_to_an_output, link_to_nothing_yet, empty_folder, long_name]
)
def test_the_place_may_be_a_link_or_a_folder(make: Callable[[Path], Path], tmp_path: Path) -> None:
    place = make(tmp_path)
    inode = place.stat().st_ino if place.exists() else None
    run(tmp_path / "out")
    run(tmp_path / "out")
    assert is_new(place)
    assert place.stat().st_ino == (inode or place.stat().st_ino)  # a mount could not be renamed
    assert (tmp_path / "out").is_symlink() == (place != tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_a_mount_is_filled(tmp_path: Path) -> None:
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*own, "mount -t tmpfs none /tmp"], check=False).returncode:
        pytest.skip("no mounts for us here")
    (tmp_path / "out").mkdir()
    shell = 'mount -t tmpfs none "$1" && "$2" -c "$3" "$1" && ls -A "$1"'
    code = (
        "import sys\nfrom pathlib import Path\nfrom vitcompress.place import writing\n"
        "with writing(Path(sys.argv[1])) as partial: (partial / 'manifest.json').write_text('{}')"
    )
    given = ["sh", str(tmp_path / "out"), sys.executable, code]
    done = subprocess.run([*own, shell, *given], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("manifest.json\n", 0), done.stderr


def loop(tmp_path: Path) -> Path:
    (tmp_path / "out").symlink_to("out")
    return tmp_path / "out"


def file_in_the_way(tmp_path: Path) -> Path:
    (tmp_path / "out").touch()
    return tmp_path / "out"


def file_on_the_way(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out"


def too_long(tmp_path: Path) -> Path:
    return tmp_path / ("n" * 256)


def folder_called_as_a_file(tmp_path: Path) -> Path:
    earlier_output(tmp_path / "out")
    (tmp_path / "out" / "gone.txt").unlink()
    (tmp_path / "out" / "gone.txt").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize(
    "make", [loop, file_in_the_way, file_on_the_way, too_long, folder_called_as_a_file]
)
def test_an_impossible_place_is_told_before_the_work(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = make(tmp_path)
    with pytest.raises(InputError, match="--out"), writing(out):
        pytest.fail("work was done")


def test_a_full_disk_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("vitcompress.place.shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"only 1\.0 MB are free"), writing(tmp_path / "out"):
        pytest.fail("work was done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [lambda tmp_path: tmp_path / "out", empty_folder])
def test_what_a_killed_run_left_is_cleared(make: Callable[[Path], Path], tmp_path: Path) -> None:
    out = make(tmp_path)
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom vitcompress.place import writing\n"
        "with writing(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'model.onnx').write_text('half')\n"
        "    (partial / 'folder').mkdir()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [f for f in tmp_path.rglob("model.onnx") if ".vitcompress-" in str(f)]
    out.mkdir(exist_ok=True)  # the next run may look elsewhere
    run(out)
    assert is_new(out)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("make", [lambda tmp_path: tmp_path / "out", empty_folder])
def test_a_second_run_at_the_same_time_is_refused(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = make(tmp_path)
    with writing(out) as partial:
        with pytest.raises(InputError, match="another run is writing there"), writing(out):
            pytest.fail("work was done")
        write_output(partial, "new", "model.onnx")
    assert is_new(out)


@pytest.mark.parametrize("file", ["model.onnx", MANIFEST, None])
def test_a_finished_output_is_never_lost(
    file: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if file is not None:
        earlier_output(out)

    def refuse(self: Path, target: Path) -> Path:
        if file in (None, self.name):
            raise OSError(5, "Input/output error", str(target))
        return replace(self, target)

    replace = Path.replace
    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunError, match=r"error; the result is complete; .* lies in /") as caught:
        run(out)
    kept = Path(str(caught.value).rpartition(" lies in ")[2])
    assert (kept / MANIFEST).is_file()
    assert any(
        (folder / "model.onnx").read_text() == "new"
        for folder in (kept, out)
        if folder.is_dir() and (folder / "model.onnx").exists()
    )
    monkeypatch.undo()
    with pytest.raises(RuntimeError), writing(out):
        raise RuntimeError  # at once, but what was finished has found its place
    assert is_new(out)
    assert not kept.exists()


def test_a_finished_output_that_still_has_no_place_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(18, "Invalid cross-device link", str(target))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="the result is complete") as caught:
        run(tmp_path / "out")
    kept = Path(str(caught.value).rpartition(" lies in ")[2])
    with pytest.raises(InputError, match=f"{kept.name}: a finished output .* move it away"):
        run(tmp_path / "out")
    assert is_new(kept)


@pytest.mark.parametrize("renamed", range(4))
@pytest.mark.parametrize("make", [earlier_output, Path.mkdir])
def test_who_is_interrupted_while_files_find_their_place_has_all_of_them(
    renamed: int, make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [renamed]

    def interrupted(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return replace(self, target)

    make(tmp_path / "out")
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", interrupted)
    with suppress(KeyboardInterrupt):
        run(tmp_path / "out")
    assert is_new(tmp_path / "out")


def test_what_came_in_between_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def meanwhile() -> None:
        with writing(out) as partial:
            write_output(partial, "new", "model.onnx")
            out.mkdir()
            (out / "notes.txt").touch()

    with pytest.raises(RunError, match="the result is complete") as caught:
        meanwhile()
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
    assert is_new(Path(str(caught.value).rpartition(" lies in ")[2]))


def test_folders_made_on_the_way_go_with_a_run_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing was left"):
        fail(tmp_path / "a" / "b" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_names_no_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    earlier_output(tmp_path / "out")
    manifest = {"versions": {"vitcompress": "0.1"}, "outputs": {"../precious": "hash"}}
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    for name in ("model.onnx", "gone.txt"):
        (tmp_path / "out" / name).unlink()
    run(tmp_path / "out")
    assert is_new(tmp_path / "out")
    assert (tmp_path / "precious").exists()


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    earlier_output(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"No space left .*; nothing was left"):
        fail(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def fail(out: Path) -> None:
    with writing(out) as partial:
        (partial / "model.onnx").write_text("half")
        raise OSError(28, "No space left on device", "model.onnx")


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out"


def link_to_nothing_that_can_be(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "out").symlink_to("file/out")
    return tmp_path / "out"


def mounted_to_read(tmp_path: Path) -> Path:
    return Path("/proc/out")


@pytest.mark.parametrize("make", [below_a_file, link_to_nothing_that_can_be, mounted_to_read])
@pytest.mark.parametrize("check", [check_shared, fail])
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(
    make: Callable[[Path], Path], check: Callable[[Path], None], tmp_path: Path
) -> None:
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"--out .*out: "):
        check(out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_to_be_shared_may_be_new_or_used(tmp_path: Path) -> None:
    check_shared(tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    check_shared(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
