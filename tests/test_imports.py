"""What is slow to import is imported by the commands that need it only."""

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("torch", "timm", "onnxruntime")
RECIPE = "model: {checkpoint: gone.pth}\nstages: []\n"
WRONG = "stagse: []\n"


def imported(code: str, *arguments: object, folder: Path) -> tuple[int, set[str]]:
    """The exit code of `code`, and what is slow among the modules it has imported."""
    script = (
        f"import atexit, sys\n"
        f"atexit.register(lambda: print(*sorted(set({SLOW}) & set(sys.modules)), 'end'))\n{code}"
    )
    given = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(given, cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, set(done.stdout.splitlines()[-1].split()) - {"end"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["run", "--help"], 0),
        (["run", "r.yaml", "--threads", "0"], 2),
        (["inspect", "gone.pth"], 2),
        (["predict", "gone", "r.yaml"], 2),
        (["predict", "r.yaml", "gone.jpg"], 2),
        (["eval", "gone.pth", "--evaluation", "images"], 2),
        (["eval", "r.yaml", "--evaluation", "images"], 2),
        (["recipes"], 0),
        (["models"], 0),
        (["schema"], 0),
        (["run", "wrong.yaml"], 2),
        (["run", "gone.yaml"], 2),
        (["run", "vit-int8", "gone.pth"], 2),
        (["run", "vit-int8", "r.yaml", "--calibration", "images"], 2),
        (["run", "vit-int8", "r.yaml", "--evaluation", "images"], 2),
        (["run", "vit-int8", "r.yaml", "--classes", "gone.txt"], 2),
        (["plan", "r.yaml"], 2),
        (["sensitivity", "r.yaml"], 2),
        (["export", "gone.pth"], 2),
    ],
)
def test_a_command_that_computes_nothing_imports_nothing_slow(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "wrong.yaml").write_text(WRONG)
    found = imported("from vitcompress.cli import main; main()", *arguments, folder=tmp_path)
    assert found == (code, set())


def test_the_shell_completes_recipes_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"_VITCOMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": "vitcompress run qu"}
    for name, value in {**asked, "COMP_CWORD": "2"}.items():
        monkeypatch.setenv(name, value)
    code = (
        "import atexit, sys; from vitcompress.cli import app\n"
        f"atexit.register(lambda: print('slow:', *set({SLOW}) & set(sys.modules)))\n"
        "app(prog_name='vitcompress')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["quickstart", "slow:"], done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "",
        ".cli",
        ".console",
        ".paths",
        ".place",
        ".yamltext",
        ".recipe_errors",
        ".data.preprocess",
        ".data.images",
        ".report.format",
        ".recipe",
        ".export",
    ],
)
def test_a_light_module_imports_nothing_slow(module: str, tmp_path: Path) -> None:
    assert imported(f"import vitcompress{module}", folder=tmp_path) == (0, set())


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    import vitcompress

    code = "from vitcompress.cli import main; main()"
    given = [sys.executable, "-c", code, "--version"]
    told = subprocess.run(given, capture_output=True, text=True, check=True).stdout
    assert told == f"{vitcompress.__version__}\n"
