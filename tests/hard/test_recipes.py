"""Recipes and settings that somebody has mistyped, cut off or made up."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.hard import command, counted, damaged, each, mutated, odd, outcome
from vitcompress.recipe import (
    Recipe,
    json_schema,
    load_recipe,
    packaged_recipes,
    recipe_without_stages,
    to_yaml,
)
from vitcompress.searching.goal import limits_of
from vitcompress.searching.space import space_of
from vitcompress.tasks import chosen
from vitcompress.yamltext import dump

pytestmark = pytest.mark.filterwarnings("ignore")  # as the command line has it

TEXTS = [file.read_text(encoding="utf-8") for file in packaged_recipes().values()]
SIGNS = b"abz019.-+_:,#'\"[]{}&*!|>%@`~=<\t\n  \x00\x07\xff\xc3"
KINDS = "bool int float timestamp binary set omap pairs null merge map seq"
TAGS = [f"!!{kind}" for kind in KINDS.split()]
SCALARS = ("x", "''", "0x", "1__0", "0b2", "2024-99-99", ".inf", "~", "<<", "[1]", "{a: 1}", "=")


def keys(schema: dict[str, Any]) -> list[str]:
    """All names of properties anywhere in a JSON schema."""
    held = [each for v in schema.values() for each in (v if isinstance(v, list) else [v])]
    inner = [key for each in held if isinstance(each, dict) for key in keys(each)]
    return [*schema.get("properties", {}), *inner]


KEYS = sorted(set(keys(json_schema())))


def read(path: Path, *settings: str) -> Recipe:
    recipe = load_recipe(path, settings)
    again = path.with_name("again.yaml")
    again.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe
    return recipe


def write(data: Any, path: Path) -> bool:
    """Whether YAML can hold `data`, which is then in the file."""
    try:
        text = dump(data)
    except (yaml.YAMLError, TypeError, UnicodeEncodeError):
        return False
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return True


@counted(15)
def test_texts(rows: range, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"

    def case(chance: random.Random) -> None:
        text = damaged(chance.choice(TEXTS).encode(), chance, SIGNS)
        if chance.random() < 0.5:
            lines = text.split(b"\n")
            at = chance.randrange(len(lines))
            tag = f"{chance.choice(TAGS)} {chance.choice(SCALARS)}".encode()
            lines[at] = lines[at].partition(b":")[0] + b": " + tag
            text = b"\n".join(lines)
        path.write_bytes(text)
        outcome(partial(read, path))

    each(rows, "texts", case)


@counted(15)
def test_values(rows: range, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    full = [load_recipe(file).model_dump(mode="json") for file in packaged_recipes().values()]
    plain = [yaml.safe_load(text) for text in TEXTS]

    def case(chance: random.Random) -> None:
        if write(mutated(chance.choice(chance.choice([full, plain])), chance), path):
            outcome(partial(read, path))

    each(rows, "values", case)


def searched(path: Path) -> None:
    """What a search does before it looks at the model."""
    recipe = read(path)
    space = space_of(recipe)
    limits_of(recipe.gates, chosen("classification", 10))
    for combination in (space.start, *space.singles()):
        space.chain(combination)
        space.told(combination)


@counted(10)
def test_searches(rows: range, tmp_path: Path) -> None:
    path, found = tmp_path / "r.yaml", packaged_recipes()["vit-search"]
    whole = yaml.safe_load(found.read_text(encoding="utf-8")) | {"gates": {"max": {"kl": 0.1}}}

    def case(chance: random.Random) -> None:
        changed = {key: mutated(whole[key], chance) for key in ("search", "gates")}
        section = chance.choice([*changed, "search", "search"])
        if write(whole | {section: changed[section]}, path):
            outcome(partial(searched, path))

    each(rows, "searches", case)


def setting(chance: random.Random) -> str:
    """A text for --set."""
    known = [*KEYS, "stages", "quant", "1", "", " "]
    start = chance.choice(["", "data.", "model.", "stages.quant.", "gates.min."])
    key = ".".join(chance.choice(known) for _ in range(chance.randint(1, 4)))
    sign = chance.choice(["=", "=", "=", "=", "=", "", ":", "=="])
    tagged = f"{chance.choice(TAGS)} {chance.choice(SCALARS)}"
    return f"{start}{key}{sign}{chance.choice([str(odd(chance)), *SCALARS, tagged])}"


@counted(12)
def test_settings(rows: range) -> None:
    files = list(packaged_recipes().values())

    def case(chance: random.Random) -> None:
        texts = [setting(chance) for _ in range(chance.randint(1, 3))]
        model = {"model.checkpoint": str(odd(chance))}
        outcome(partial(load_recipe, chance.choice(files), texts))
        outcome(partial(recipe_without_stages, model, texts))

    each(rows, "settings", case)


# Keys of sections with values that are of their kind, and yet may be none that a model can have.
TYPED = (
    *("stages.quant.bits", "stages.quant.group", "stages.quant.residual", "stages.quant.layers"),
    *("data.images", "data.mean", "data.std", "data.input_size", "data.crop_pct"),
    *("model.num_classes", "model.options.depth", "model.options.img_size", "model.output"),
    *("export.target", "export.floats", "gates.min.agreement", "task", "classes"),
)
VALUES = ("0", "1", "-1", "3", "4", "8", "10", "224", "1e9", ".nan", "[3]", "[1,2,3]", '["*.fc1"]')
WORDS = ("tokens", "pooled", "portable", "float16", "regression", "embedding", "null", "true", "")


@counted(4)
def test_plans(rows: range) -> None:
    """At the command line, as far as a plan goes."""

    def case(chance: random.Random) -> None:
        texts = [
            f"{chance.choice(TYPED)}={chance.choice(VALUES + WORDS)}"
            if chance.random() < 0.8
            else setting(chance)
            for _ in range(chance.randint(1, 2))
        ]
        words = [word for text in texts for word in ("--set", text)]
        command("plan", "vit-int8", "example:glyphs", "--quiet", *words)

    each(rows, "plans", case)
