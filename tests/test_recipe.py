"""Recipes load as written, and what is wrong with one is told by file, line, key and remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vitcompress.errors import InputError
from vitcompress.recipe import (
    Recipe,
    check_inputs,
    json_schema,
    load_recipe,
    recipe_without_stages,
    to_yaml,
)

# Five lines, so that what a test appends stands in line 6.
BASE = """version: 1
stages:
- {type: tail}
- type: quantize
  name: quant
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return tmp_path


def load(text: str | bytes, *overrides: str) -> Recipe:
    path = Path("recipes/x.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, overrides)


def message(text: str | bytes, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    told = str(caught.value)
    assert "\n" not in told
    assert "pydantic" not in told
    assert "Input should" not in told
    return told


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("  bts: 8", "6: stages.quant.bts: unknown key; did you mean bits?"),
        ("  bits: 9", "6: stages.quant.bits: must be 2, 3, 4, 5, 6, 7 or 8, not 9"),
        ("  bits:", "6: stages.quant.bits: must be 2, 3, 4, 5, 6, 7 or 8, not empty"),
        ("  bits: {averge: 5}", "6: stages.quant.bits.averge: unknown key; did you mean average?"),
        ("  bits: {average: 9}", "6: stages.quant.bits.average: must be at most 8.0, not 9"),
        ("  bits: {}", "6: stages.quant.bits: give one of average, bytes and max_kl"),
        (
            "  rounding: gtpq",
            "6: stages.quant.rounding: must be 'descent', 'gptq' or 'nearest', not 'gtpq'",
        ),
        ("  residual: 2", "6: stages.quant.residual: must be at most 1.0, not 2"),
        ("  residual: some", "6: stages.quant.residual: must be a number, not 'some'"),
        (
            "  residual: {latency: 2}",
            "6: stages.quant.residual.latency: must be at most 1.0, not 2",
        ),
        ("  reparametrise: 3", "6: stages.quant.reparametrise: must be true or false, not 3"),
        ("  fold: false", "4: stages.quant: fold is called reparametrise now; write that"),
        ("  layers: head", "6: stages.quant.layers: must be a list, not 'head'"),
        ("  layers: []", "6: stages.quant.layers: has 0 values; the least is 1"),
        ("  layers: [1]", "6: stages.quant.layers.1: must be text, not 1; put it in quotes"),
        ("  on: 1", "4: stages.quant: a key must be text, not true; put it in quotes"),
        ("- {type: quantise}", "6: stages.quantise.type: unknown type; did you mean quantize?"),
        (
            "- {name: q}",
            "6: stages.q.type: is missing; use one of tail, prune, merge, sparsify, "
            "quantize, recover",
        ),
        ("- merge", "6: stages.3: must be keys with values, not 'merge'"),
        (
            "- {type: merge, method: cls_only_tail}",
            "6: stages.merge.method: cls_only_tail is a stage of its own: write `type: tail`",
        ),
        (
            "- {type: merge}",
            "6: stages.merge: budget: missing; add for example {macs: 0.65}, or write `type: tail` "
            "to leave out only what the head does not read",
        ),
        (
            "- {type: tail, name: quant}",
            "6: stages.quant: stages 2 and 3 are both called quant; rename one",
        ),
        (
            "- {type: tail, name: a b}",
            "6: stages.a b.name: must consist of letters, digits, - and _, not 'a b'",
        ),
        ("gate:", "6: gate: unknown key; did you mean gates?"),
        (
            "x: 1",
            "6: x: unknown key; known are version, model, task, classes, data, stages, export, "
            "gates, search",
        ),
        ("gates: {max_drop: {tpo1: 1}}", "6: gates.max_drop.tpo1: unknown key; did you mean top1?"),
        (
            "gates: {max_drop: {agreement: 1}}",
            "6: gates.max_drop.agreement: unknown key; known are top1, top5, map, knn",
        ),
        ("gates: {max_drop: {top1: yes}}", "6: gates.max_drop.top1: must be a number, not true"),
        ("gates: {min: {cosine: 98}}", "6: gates.min.cosine: must be at most 1, not 98"),
        (
            "task: clasification",
            "6: task: must be 'classification', 'embedding', 'multi_label', 'one_logit' or "
            "'regression', not 'clasification'",
        ),
        ("gates: {max: {kl: -1}}", "6: gates.max.kl: must be at least 0, not -1"),
        ("gates: {max: {kl: .nan}}", "6: gates.max.kl: must be a finite number, not nan"),
        ("gates: {min: {top1: 101}}", "6: gates.min.top1: must be at most 100, not 101"),
        ("data: {images: 0}", "6: data.images: must be more than 0, not 0"),
        ("data: {images: 2.5}", "6: data.images: must be a whole number, not 2.5"),
        ("data: {std: [0]}", "6: data.std.1: must be at least 0.0001, not 0"),
        ("data: {crop_pct: 1.5}", "6: data.crop_pct: must be at most 1, not 1.5"),
        ("data: {input_size: [9, 9, 3]}", "6: data.input_size: has 3 values; the most is 2"),
        ("data: {calibration: ''}", "6: data.calibration: must not be empty"),
        ("model: 5", "6: model: must be keys with values, not 5"),
        (
            "model: {options: {depth: 2, checkpoint_path: a.pth}}",
            "6: model.options.checkpoint_path: checkpoint_path is no option that a model may be "
            "made with",
        ),
        (
            "model: {options: {depth: 2.5}}",
            "6: model.options.depth: depth must be a whole number up to 128, or a list of such, "
            "not '2.5'",
        ),
        (
            "export: {onnx: no, safetensors: no}",
            "6: export: onnx and safetensors are both off; leave one of them on",
        ),
        ("  name: again", "6: stages.again.name: given before, in line 5"),
        ("version: 1", "6: version: given before, in line 1"),
    ],
)
def test_an_error_names_file_line_key_and_remedy(line: str, told: str) -> None:
    assert message(f"{BASE}{line}\n") == f"recipes/x.yaml:{told}"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "recipes/x.yaml: the recipe is empty; it needs at least stages"),
        ("# all of it\n", "recipes/x.yaml: the recipe is empty; it needs at least stages"),
        ("- a\n", "recipes/x.yaml:1: a recipe is a mapping of keys such as stages"),
        ("version: 1\n", "recipes/x.yaml:1: stages: is missing"),
        ("version: 1\nstages:\n", "recipes/x.yaml:2: stages: must be a list, not empty"),
        ("a:\n\tb: 1\n", "recipes/x.yaml:2: not YAML: found character '\\t'"),
        ("a: 1\n---\nb: 1\n", "recipes/x.yaml:2: not YAML: expected a single document"),
        ("a: 1\nb: *c\n", "recipes/x.yaml:2: not YAML: found undefined alias 'c'"),
        ("a: 1\nb: !!python/name:os.system\n", "recipes/x.yaml:2: not YAML: could not determine"),
        ("a: 1\nb: \x00\n", "recipes/x.yaml:2: not YAML: it contains a control character"),
        ("model: &a {options: *a}\n", "recipes/x.yaml:1: not YAML: found unconstructable recur"),
        ("[" * 5000, "recipes/x.yaml:1: not YAML: nested too deeply"),
        ("a: 2024-99-99\n", "recipes/x.yaml:1: not YAML: '2024-99-99' is no timestamp"),
        (b"\xff\xfe", "recipes/x.yaml: not text in UTF-8; a recipe is a YAML file"),
    ],
)
def test_a_file_that_is_no_recipe(text: str | bytes, told: str) -> None:
    assert message(text).startswith(told)


@pytest.mark.usefixtures("folder")
def test_another_version_is_told_before_all_that_it_makes_unknown() -> None:
    told = message("new: 1\nstages: []\nversion: 2\n")
    expected = "version: 2 is a version this program cannot read; it reads 1"
    assert told == f"recipes/x.yaml:3: {expected}"


@pytest.mark.usefixtures("folder")
def test_of_several_errors_the_first_line_is_told_and_the_others_counted() -> None:
    told = message(f"gates: {{mx: {{}}}}\n{BASE}  bts: 8\n  residual: 2\n")
    assert told == "recipes/x.yaml:1: gates.mx: unknown key; did you mean max? (and 2 more)"


@pytest.mark.usefixtures("folder")
def test_a_stage_without_a_name_takes_its_type() -> None:
    assert [stage.name for stage in load("stages: [{type: tail}]").stages] == ["tail"]
    told = message("stages:\n- {type: tail}\n- {type: tail}\n")
    assert told == "recipes/x.yaml:3: stages.tail: stages 1 and 2 are both called tail; rename one"


def test_duplicate_names_are_refused_without_a_file_too() -> None:
    with pytest.raises(ValidationError, match="stages 1 and 2 are both called tail"):
        Recipe.model_validate({"stages": [{"type": "tail"}, {"type": "tail"}]})


@pytest.mark.usefixtures("folder")
def test_everything_but_stages_has_a_default_and_an_empty_section_is_one() -> None:
    recipe = load("stages: []\ndata:\ngates: # none yet\n")
    assert recipe == Recipe(stages=())
    assert recipe.data.images == 256
    assert recipe.export.onnx
    assert recipe.export.safetensors
    assert all(limit is None for _, group in recipe.gates for _, limit in group)


@pytest.mark.usefixtures("folder")
def test_a_byte_order_mark_and_windows_lines_do_no_harm() -> None:
    assert message("\ufeffstages: []\r\nx: 1\r\n").startswith("recipes/x.yaml:2: x: unknown key")


@pytest.mark.usefixtures("folder")
def test_numbers_without_a_point_are_numbers() -> None:
    assert load(BASE + "gates: {max: {kl: 1e-3}}").gates.max.kl == 0.001  # YAML 1.1 reads text


@pytest.mark.usefixtures("folder")
def test_an_anchor_may_be_used_again_and_its_keys_changed() -> None:
    text = "stages:\n- &m {type: tail, name: a}\n- {<<: *m, name: b}\n"
    assert [stage.name for stage in load(text).stages] == ["a", "b"]
    changed = load(text, "stages.a.name=c")
    assert [stage.name for stage in changed.stages] == ["c", "b"]


@pytest.mark.usefixtures("folder")
def test_overrides_are_applied_in_order_and_before_validation() -> None:
    text = BASE + "  bits: 9\n  residual: 7\n"  # wrong as it stands
    recipe = load(
        text,
        "stages.quant.bits=8",
        "stages.quant.residual=0.5",
        "stages.quant.name=q",
        "stages.q.residual=0.25",
        "gates.max_drop.top1=1",
        "model.options.img_size=96",
        "data.mean=[0.5, 0.5, 0.5]",
    )
    dumped = recipe.model_dump()
    assert dumped["stages"][1]["name"] == "q"
    assert dumped["stages"][1]["residual"] == 0.25
    assert recipe.gates.max_drop.top1 == 1
    assert recipe.model.options == {"img_size": 96}
    assert recipe.data.preprocess_overrides() == {"mean": (0.5, 0.5, 0.5)}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.quant.bits=9", "must be 2, 3, 4, 5, 6, 7 or 8, not 9"),
        ("stages.quant.bts=8", "unknown key; did you mean bits?"),
        (
            "stages.quantize.bits=8",
            "the recipe has no stage quantize; its stages are tail, quant",
        ),
        ("gates={mx: 1}", "gates.mx: unknown key; did you mean max?"),
        (
            "gates.max_drop.kl.x=1",
            "gates.max_drop.kl: unknown key; known are top1, top5, map, knn",
        ),
        ("version.x=1", "version has no keys of its own; set it as a whole"),
        ("data.images", "write KEY=VALUE, such as data.images=64"),
        ("data..images=3", "write KEY=VALUE, such as data.images=64"),
        ("data.images=[", "not YAML: expected the node content, but found '<stream end>'"),
        ("data.images={a: 1, a: 2}", "a: given before, in line 1"),
        ("version=2", "2 is a version this program cannot read; it reads 1"),
    ],
)
def test_an_error_in_an_override_quotes_it(override: str, told: str) -> None:
    assert message(BASE, override) == f"--set {override}: {told}"


@pytest.mark.usefixtures("folder")
def test_patterns_need_no_quotes() -> None:
    text = "stages: [{name: s, type: sparsify, pattern: 2:4, patterns: {'*.fc2': 4:8}}]\n"
    recipe = load(text)
    assert (recipe.stages[0].pattern, recipe.stages[0].patterns) == ("2:4", {"*.fc2": "4:8"})
    assert load(to_yaml(recipe)) == recipe
    assert load(text, "stages.s.pattern=1:4").stages[0].pattern == "1:4"


@pytest.mark.usefixtures("folder")
def test_an_override_for_a_recipe_without_stages() -> None:
    told = message("stages: []", "stages.q.bits=8")
    assert told == "--set stages.q.bits=8: the recipe has no stage q; it has no stages"


def test_values_are_taken_as_they_are_and_win(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data: {calibration: a}\nstages: []\n")
    for text in ("/🎉/𠮷", "/a: b # c", "/null", "/'\"", "/[1, 2]"):
        values = {"data.calibration": text, "model.name": "1e3", "data.classes": None}
        recipe = load_recipe(path, ["data.calibration=b"], values)
        assert (recipe.data.calibration, recipe.model.name) == (text, "1e3")
        path.with_name("again.yaml").write_text(to_yaml(recipe), encoding="utf-8")
        assert load_recipe(path.with_name("again.yaml")) == recipe


def test_an_error_in_a_value_names_its_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stages: []\n")
    with pytest.raises(InputError) as caught:
        load_recipe(path, (), {"data.calibration": "caf\udce9"})
    told = "the data.calibration given: is not UTF-8; rename the file, or link to it"
    assert str(caught.value) == told
    assert recipe_without_stages({"model.name": "1e3"}).model.name == "1e3"
    with pytest.raises(InputError, match=r"the model\.checkpoint given: must not be empty"):
        recipe_without_stages({"model.checkpoint": ""})


def test_inputs_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    there, gone = str(tmp_path / "there"), str(tmp_path / ("n" * 300))
    for key in ("model.checkpoint", "data.calibration", "data.evaluation", "data.classes"):
        check_inputs(recipe_without_stages({key: there}))
        recipe = recipe_without_stages({key: gone})
        with pytest.raises(InputError, match=f"^{gone}: no such file"):
            check_inputs(recipe)
        if key != "model.checkpoint":
            check_inputs(recipe, images=False)
    check_inputs(
        recipe_without_stages({"model.checkpoint": "timm:x", "data.calibration": "example:x"})
    )


@pytest.mark.usefixtures("folder")
def test_an_error_of_the_file_beside_an_override_keeps_its_line() -> None:
    told = message(BASE + "  bts: 8\n", "stages.quant.residual=2")
    assert (
        told == "recipes/x.yaml:6: stages.quant.bts: unknown key; did you mean bits? (and 1 more)"
    )


def test_paths_start_at_the_recipe_and_those_of_overrides_at_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    text = (
        "model: {checkpoint: ../model.pth}\n"
        "data: {calibration: images, evaluation: /data/val, classes: ~/classes.txt}\n" + BASE
    )
    recipe = load(text, "data.evaluation=mine")
    assert recipe.model.checkpoint == str(folder / "model.pth")
    assert recipe.data.calibration == str(folder / "recipes/images")
    assert recipe.data.evaluation == str(folder / "mine")
    assert recipe.data.classes == "/home/somebody/classes.txt"


def test_a_linked_checkpoint_keeps_its_name(folder: Path) -> None:
    (folder / "blob").touch()
    (folder / "recipes/model.safetensors").symlink_to(folder / "blob")
    recipe = load("model: {checkpoint: model.safetensors}\nstages: []")
    assert recipe.model.checkpoint == str(folder / "recipes/model.safetensors")


@pytest.mark.usefixtures("folder")
def test_sources_that_are_no_paths_stay_as_they_are() -> None:
    text = "model: {checkpoint: 'timm:vit'}\ndata: {calibration: example:glyphs/calibration}\n"
    recipe = load(text + BASE)
    assert recipe.model.checkpoint == "timm:vit"
    assert recipe.data.calibration == "example:glyphs/calibration"


@pytest.mark.usefixtures("folder")
def test_the_resolved_recipe_has_all_keys_and_loads_again() -> None:
    recipe = load(
        BASE + "model: {checkpoint: a.pth, options: {img_size: [96, 64], init_values: 1e-3}}\n"
        "data: {images: 64, mean: [0.1], std: [1e-3], input_size: 96, crop_mode: border}\n"
        "export: {safetensors: false}\n"
        "gates: {max_drop: {top1: 0.3}, max: {kl: 1e-7, bytes: 25000000}}\n"
    )
    text = to_yaml(recipe)
    assert load(text) == recipe
    assert recipe.data.input_size == (96, 96)
    written = yaml.safe_load(text)
    assert set(written) == set(Recipe.model_fields)
    assert set(written["gates"]["max_ratio"]) == {"bytes", "macs", "params", "latency"}
    assert "rounding" in written["stages"][1]


def test_the_schema_knows_every_key_and_allows_no_others() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["stages"]
    assert set(schema["properties"]) == set(Recipe.model_fields)
    stage = schema["$defs"]["QuantizeConfig"]
    assert stage["additionalProperties"] is False
    assert stage["properties"]["rounding"]["enum"] == ["descent", "gptq", "nearest"]
    size: dict[str, Any] = schema["$defs"]["DataSection"]["properties"]["input_size"]
    assert "integer" in size["anyOf"][0]["type"]  # one number means a square
