"""The recipes that are shipped, and how one is found."""

from pathlib import Path

import pytest

from vitcompress.errors import InputError
from vitcompress.recipe import (
    find_recipe,
    load_recipe,
    packaged_recipes,
    recipe_summary,
    to_yaml,
)

REPOSITORY = Path(__file__).parent.parent
SHIPPED = sorted((REPOSITORY / "recipes").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_loads_again_from_its_resolved_form(
    path: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(path)
    assert recipe.stages
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(resolved) == recipe


def test_the_general_recipe_has_no_gate_that_needs_labels() -> None:
    gates = load_recipe(find_recipe("vit-int8")).gates
    needs_labels = (gates.max_drop.top1, gates.max_drop.top5, gates.min.top1, gates.min.top5)
    assert needs_labels == (None, None, None, None)
    assert gates.min.agreement == 97


def test_a_recipe_is_found_by_path_or_by_name(folder: Path) -> None:
    assert packaged_recipes() == {path.stem: path for path in SHIPPED}
    assert {"quickstart", "vit-int8"} <= set(packaged_recipes())
    (folder / "vit-int8").mkdir()  # an output folder
    assert find_recipe("vit-int8") == REPOSITORY / "recipes/vit-int8.yaml"
    Path("recipes/x.yaml").touch()
    assert find_recipe("recipes/x.yaml") == Path("recipes/x.yaml")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (
            "vit-int9",
            "there is no such recipe; did you mean vit-int8 or vit-2of4-int8 or vit-2of4-int4?",
        ),
        ("recipes/xx.yaml", "there is no such recipe; did you mean recipes/x.yaml?"),
        ("recipes/x.yml", "there is no such recipe; did you mean recipes/x.yaml?"),
        ("no/where.yaml", "there is no such recipe; give a .yaml file or one of embed-fast, "),
        ("recipes", "a folder, not a recipe; give a .yaml file or one of embed-fast, "),
    ],
)
def test_a_recipe_that_is_not_there_names_the_nearest(text: str, remedy: str) -> None:
    Path("recipes/x.yaml").touch()
    for read in (find_recipe, lambda text: load_recipe(Path(text))):
        with pytest.raises(InputError) as caught:
            read(text)
        assert str(caught.value).startswith(f"{text}: {remedy}")


def test_a_summary_is_the_whole_first_comment_without_the_command() -> None:
    text = "# Narrow blocks,\n# then few bits:\n#   vitcompress run r MODEL\nversion: 1\n"
    assert recipe_summary(text) == "Narrow blocks, then few bits"
    assert all(recipe_summary(path.read_text()) for path in SHIPPED)
