"""The documentation: what it names is there, and what it tells one to type is understood."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from helpers.cli import Call
from vitcompress import docs
from vitcompress.cli import app
from vitcompress.errors import InputError
from vitcompress.recipe import Recipe, find_recipe, load_recipe, packaged_recipes

README = Path(__file__).parent.parent / "README.md"
TEXTS = {"README": README.read_text(encoding="utf-8")} | {n: docs.page(n) for n in docs.pages()}
INLINE = re.compile(r"`(vitcompress [a-z]+ [^`]+)`")
CODE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(text: str, *kinds: str) -> list[str]:
    return [code for kind, code in CODE.findall(text) if kind in kinds]


def commands() -> list[tuple[str, list[str]]]:
    """Every call of vitcompress in shell code, in blocks and in lines of text, by page."""
    found = []
    for page, text in TEXTS.items():
        inline = (" ".join(code.split()) for code in INLINE.findall(text))
        for code in [*blocks(text, "sh", "bash", "console"), *inline]:
            for line in re.sub(r"\\\n\s*", " ", code).splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    names = [Path(word).name for word in words]
                    if "vitcompress" in names and "pip" not in names:
                        found.append((page, words[names.index("vitcompress") + 1 :]))
    return found


def test_all_pages_are_listed_and_shown(call: Call) -> None:
    there = {file.stem for file in Path(docs.__file__).parent.glob("*.md")}
    assert there | {docs.REFERENCE} == set(docs.pages())
    listed = call("docs").stderr
    for name, title in docs.pages().items():
        assert f"{name}: {title}" in listed
        assert len(docs.page(name)) > 500
    assert call("docs", "merge").stdout.startswith("# merge: ")
    call("docs", "gone", code=2)
    with pytest.raises(InputError, match="there is no page 'gone'; give one of inputs, "):
        docs.page("gone")


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize(("page", "words"), commands())
def test_a_command_is_understood(page: str, words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    command = group.commands[words[0]]
    given = [re.sub("^(RECIPE|…)$", "vit-int8", word) for word in words[1:]]
    values = command.make_context(words[0], given).params  # unknown options end it
    recipe = values.get("recipe")
    if recipe in packaged_recipes():
        load_recipe(find_recipe(recipe), values.get("settings") or ())


@pytest.mark.parametrize("page", TEXTS)
def test_recipes_are_valid(page: str) -> None:
    for code in blocks(TEXTS[page], "yaml"):
        found = yaml.safe_load(code)
        if isinstance(found, list):
            found = {"stages": found}
        if not {"stages", "search", "gates", "data"} & found.keys():
            continue  # of something else
        for number, stage in enumerate(found.setdefault("stages", [])):
            stage.setdefault("name", f"stage{number}")
            if sum(other.get("name") == stage["name"] for other in found["stages"]) > 1:
                stage["name"] = f"{stage['name']}{number}"
        Recipe.model_validate(found)


def test_pages_that_are_named_are_there() -> None:
    for text in TEXTS.values():
        for name in re.findall(r"`vitcompress docs (\w+)`", text):
            assert name in docs.pages()
        for name in re.findall(r"python (tests/\S+\.py)", text):
            assert (README.parent / name).is_file()


def test_the_reference_has_every_key_of_every_stage() -> None:
    text = docs.page(docs.REFERENCE)
    schema = Recipe.model_json_schema()
    for found in (schema, *schema["$defs"].values()):
        for key in found.get("properties", {}):
            assert f"| `{key}` |" in text
    assert "## Stage `quantize`" in text


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(TEXTS["README"].splitlines()) <= 160
