"""The examples for CI services that come with the package do what they say."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

import vitcompress
from helpers.cli import EXAMPLE, write_quick_command

HERE = Path(vitcompress.__file__).parent / "docs" / "ci"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, shallow_example: Path) -> Path:
    """A folder with a recipe, and a folder `bin` with the command."""
    home = tmp_path_factory.mktemp("ci")
    (home / "recipe.yaml").write_text(f"{EXAMPLE}\nstages: [{{name: tail, type: tail}}]\n")
    write_quick_command(home / "bin", shallow_example)
    return home


def started(
    home: Path, given: list[object], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {**os.environ, "PATH": path, "VITCOMPRESS_CACHE": str(home / "cache"), **environment}
    return subprocess.run(
        list(map(str, given)), cwd=home, env=own, capture_output=True, text=True, check=False
    )


def action_step(inputs: Mapping[str, str], number: int) -> tuple[str, dict[str, str]]:
    """The script of a step of the action, and its environment, for such `inputs`."""
    action = yaml.safe_load((HERE / "github-action.yml").read_text())
    step = action["runs"]["steps"][number]
    values = {name: field.get("default") for name, field in action["inputs"].items()} | inputs
    assert all(value is not None for value in values.values())  # what is required

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: values[found[1]], text)

    assert step["shell"] == "bash"
    return step["run"], {name: filled(text) for name, text in step["env"].items()}


def test_the_shell_example_and_the_action_fail_where_a_gate_fails(home: Path) -> None:
    failing = ("--set", "gates.max_ratio.bytes=0.01")
    given: list[object] = ["sh", HERE / "ci.sh", "recipe.yaml", "--limit", 16, *failing]
    done = started(home, given, {"BASELINE": "not/there"})
    assert done.returncode == 1, done.stderr
    kept = {"report.md", "report.html", "report.json", "junit.xml", "run.log"}
    assert {file.name for file in (home / "reports").iterdir()} == kept
    assert "<failure" in (home / "reports" / "junit.xml").read_text()

    inputs = {
        "recipe": "recipe.yaml",
        "against": "reports/report.json",
        "options": "--limit 16 --set gates.against.bytes=0.5",
    }
    runner = {"GITHUB_STEP_SUMMARY": str(home / "summary.md"), "GITHUB_OUTPUT": str(home / "set")}
    shell: list[object] = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]
    for number, code in ((0, 0), (1, 1)):
        script, environment = action_step(inputs, number)
        done = started(home, [*shell, script], {**runner, **environment})
        assert done.returncode == code, done.stderr
    assert "\n::error title=Gate failed%3A against.bytes::" in done.stderr
    report = home / "out" / "vitcompress" / "report.json"
    assert (home / "set").read_text() == "report=out/vitcompress/report.json\n"
    summary = report.with_name("report.md").read_text()
    assert "against.bytes" not in summary.partition("`vitcompress run")[0]  # said in words
    assert (home / "summary.md").read_text() == summary + "\n"


def test_wrong_input_ends_the_examples_with_2(home: Path) -> None:
    done = started(home, ["sh", HERE / "ci.sh", "gone.yaml"], {"REPORTS": "none"})
    assert (done.returncode, (home / "none").exists()) == (2, False)
    script, environment = action_step({"recipe": "$(touch owned)"}, 1)
    runner = {"GITHUB_OUTPUT": str(home / "set")}
    done = started(home, ["bash", "-eo", "pipefail", "-c", script], {**runner, **environment})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("::error title=vitcompress run::error: ")
    assert not (home / "owned").exists()
