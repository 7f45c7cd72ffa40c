"""Recipes and settings that somebody has mistyped, cut off or made up."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from helpers.hard import counted, damaged, each, mutated, odd, outcome
from vitcompress.recipe import (
    Recipe,
    json_schema,
    load_recipe,
    packaged_recipes,
    recipe_without_stages,
    to_yaml,
)
from vitcompress.yamltext import dump

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


@counted(300)
def test_texts(rows: range, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for chance in each(rows, "texts"):
        text = damaged(chance.choice(TEXTS).encode(), chance, SIGNS)
        if chance.random() < 0.5:
            lines = text.split(b"\n")
            at = chance.randrange(len(lines))
            tag = f"{chance.choice(TAGS)} {chance.choice(SCALARS)}".encode()
            lines[at] = lines[at].partition(b":")[0] + b": " + tag
            text = b"\n".join(lines)
        path.write_bytes(text)
        outcome(partial(read, path))


@counted(300)
def test_values(rows: range, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    full = [load_recipe(file).model_dump(mode="json") for file in packaged_recipes().values()]
    plain = [yaml.safe_load(text) for text in TEXTS]
    for chance in each(rows, "values"):
        data = mutated(chance.choice(chance.choice([full, plain])), chance)
        try:
            text = dump(data)
        except (yaml.YAMLError, TypeError, UnicodeEncodeError):
            continue
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        outcome(partial(read, path))


def setting(chance: random.Random) -> str:
    """A text for --set."""
    known = [*KEYS, "stages", "quant", "1", "", " "]
    start = chance.choice(["", "data.", "model.", "stages.quant.", "gates.min."])
    key = ".".join(chance.choice(known) for _ in range(chance.randint(1, 4)))
    sign = chance.choice(["=", "=", "=", "=", "=", "", ":", "=="])
    tagged = f"{chance.choice(TAGS)} {chance.choice(SCALARS)}"
    return f"{start}{key}{sign}{chance.choice([str(odd(chance)), *SCALARS, tagged])}"


@counted(300)
def test_settings(rows: range) -> None:
    files = list(packaged_recipes().values())
    for chance in each(rows, "settings"):
        texts = [setting(chance) for _ in range(chance.randint(1, 3))]
        model = {"model.checkpoint": str(odd(chance))}
        outcome(partial(load_recipe, chance.choice(files), texts))
        outcome(partial(recipe_without_stages, model, texts))
