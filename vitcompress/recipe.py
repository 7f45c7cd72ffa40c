"""The recipe: what to compress, how, and what must hold in the end."""

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from vitcompress import paths, targets
from vitcompress.data.preprocess import CropMode, Interpolation
from vitcompress.errors import InputError
from vitcompress.model.options import ModelOptions
from vitcompress.recipe_errors import first_error
from vitcompress.recipe_gates import Gates, Number, Section
from vitcompress.registry import OneOf
from vitcompress.searching.config import SearchSection
from vitcompress.stages.registry import StageConfig
from vitcompress.terms import Activation, Floats, Output
from vitcompress.yamltext import Document, dump, override, read_override, read_yaml, replaced


def _square(value: object) -> object:
    return (value, value) if isinstance(value, int) else value


_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(gt=0, le=10_000_000, strict=True)]
_Side = Annotated[int, Field(gt=0, le=8192, strict=True)]  # in pixels
# Pixels are those of the 0…1 scale, or floats as they are; beyond these, float32 loses them.
_Mean = Annotated[Number, Field(ge=-1e6, le=1e6)]
_Deviation = Annotated[Number, Field(ge=1e-4, le=1e6)]
_Size = Annotated[
    tuple[_Side, _Side],
    BeforeValidator(_square),
    WithJsonSchema({"type": ["integer", "array"], "items": {"type": "integer"}}),
]
_Target = Annotated[str, OneOf("vitcompress.targets")]
_Class = _Text | Annotated[int, Field(ge=0, strict=True)]
_Classes = _Text | Annotated[tuple[_Class, ...], Field(min_length=2)]


class HeadSection(Section):
    """What no tensor tells of a head of several layers.

    `activation`: what follows each of its linear layers but the last; `none` where nothing does.
    """

    activation: Activation | Literal["none"] | None = None


class ModelSection(Section):
    """Where the model comes from.

    `checkpoint`: a path, `timm:NAME` or `example:glyphs`. `name`: the timm architecture, where the
    checkpoint does not tell. `key`: which of the models in a file, as a dotted path (`teacher`).
    `options`: keyword arguments of `timm.create_model`. `output`: which features are the output,
    the head left out: `pooled` as the model pools them, the class `token`, the `average` of the
    patches, these two `joined`, or all patch `tokens`; by default the output is that of the
    checkpoint. `normalise`: whether embeddings are brought to length one. `head`: what is not known
    of the head of the checkpoint.
    """

    checkpoint: _Text | None = None
    name: _Text | None = None
    key: _Text | None = None
    options: ModelOptions = Field(default_factory=dict)
    num_classes: _Count | None = None
    output: Output | None = None
    normalise: bool | None = None
    head: HeadSection = HeadSection()


class DataSection(Section):
    """Images, and how they are prepared where the model does not tell.

    `calibration` and `evaluation`: a folder, a .tar, a .npz or `example:glyphs/SPLIT`. `images`:
    how many to calibrate on. `recovery`: as `calibration`, more images that the stage `recover`
    trains on. `classifier`: class embeddings [classes, width], .npy or .safetensors,
    by which embeddings are given figures of a classification. `max_unreadable`: the share of images
    that may be unreadable.
    """

    calibration: _Text | None = None
    evaluation: _Text | None = None
    recovery: _Text | None = None
    classes: _Text | None = None
    classifier: _Text | None = None
    images: _Count = 256
    max_unreadable: Annotated[Number, Field(ge=0, le=1)] = 0.01
    mean: Annotated[tuple[_Mean, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[_Deviation, ...], Field(min_length=1)] | None = None
    crop_pct: Annotated[Number, Field(ge=0.1, le=1)] | None = None
    interpolation: Interpolation | None = None
    crop_mode: CropMode | None = None
    input_size: _Size | None = None

    def preprocess_overrides(self) -> dict[str, Any]:
        """The fields of `Preprocess` that are given here."""
        keys = {"mean", "std", "crop_pct", "interpolation", "crop_mode", "input_size"}
        return self.model_dump(include=keys, exclude_none=True)


class ExportSection(Section):
    """Which files to write.

    `target`: the runtime that the ONNX file is for. `floats`: what is not quantized is float32, or
    stored in float16 (`float16_weights`), or in the ONNX file computed in it as well (`float16`),
    as GPUs do; there norms and softmax stay float32, and so do pixels and the output.
    """

    onnx: bool = True
    safetensors: bool = True
    target: _Target = targets.DEFAULT
    floats: Floats = "float32"

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.onnx or self.safetensors):
            raise ValueError("onnx and safetensors are both off; leave one of them on")
        return self


class Recipe(Section):
    """A chain of stages over a model. Everything but `stages` has a default.

    `task`: what the output of the model means; inferred from the number of outputs where not given.
    `classes`: of a classifier, those to be kept, by name or number, or a file with one a line
    (None: all); images of others are left out.
    """

    version: Literal[1] = 1
    model: ModelSection = ModelSection()
    task: Annotated[str, OneOf("vitcompress.tasks")] | None = None
    classes: _Classes | None = None
    data: DataSection = DataSection()
    stages: tuple[StageConfig, ...]
    export: ExportSection = ExportSection()
    gates: Gates = Gates()
    search: SearchSection = SearchSection()

    @field_validator("stages", mode="after")
    @classmethod
    def _named_apart(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        seen: dict[str, int] = {}
        for index, name in enumerate(stage.name for stage in stages):
            if not re.fullmatch(r"[\w-]+", name):
                what = f"must consist of letters, digits, - and _, not {name!r}"
                raise PydanticCustomError("stage_name", "{what}", _at(what, index, "name"))
            if seen.setdefault(name, index) != index:
                what = f"stages {seen[name] + 1} and {index + 1} are both called {name}; rename one"
                raise PydanticCustomError("stage_name", "{what}", _at(what, index))
        return stages


def _at(what: str, *place: str | int) -> dict[str, Any]:
    """The context of an error that is to be told at `place`, inside the validated field."""
    return {"what": what, "at": place}


def load_recipe(
    path: Path, settings: Sequence[str] = (), values: Mapping[str, str | None] | None = None
) -> Recipe:
    """Read a recipe; what is set over it is applied before it is validated.

    `settings` are text (`stages.quant.bits=8`). `values` have dotted keys, are taken as they are,
    win, and count as not given where they are None.

    Relative paths become absolute: those of the file start at its folder, those set over it at the
    working directory. Raises `InputError`, with the line and the key, for what is wrong.
    """
    document = _read(path)
    if document.data is None:
        raise InputError(f"{path}: the recipe is empty; it needs at least stages")
    if not isinstance(document.data, dict):
        raise InputError(f"{path}:1: a recipe is a mapping of keys such as stages, and this is not")
    return _validated(document, path, settings, values or {})


def recipe_without_stages(values: Mapping[str, str | None], settings: Sequence[str] = ()) -> Recipe:
    """What takes a model as it is; `values` and `settings` as `load_recipe` takes them."""
    return _validated(Document({"stages": []}, None), Path(), settings, values)


def _validated(
    document: Document, path: Path, settings: Sequence[str], values: Mapping[str, str | None]
) -> Recipe:
    data = _absolute(document.data, path.parent)
    applied = []
    for text in settings:
        applied.append(read_override(text, data))
        data = replaced(data, applied[-1])
    for key, value in values.items():
        if value is not None:
            applied.append(override(f"the {key} given", key, value, data))
            data = replaced(data, applied[-1])
    data = _absolute(data, Path.cwd())
    try:
        return Recipe.model_validate({k: v for k, v in data.items() if not _left_empty(k, v)})
    except ValidationError as error:
        what = first_error(error, Recipe, data, document, str(path), applied)
        raise InputError(what) from None


def without(recipe: Recipe, skipped: Sequence[str]) -> Recipe:
    """`recipe` without the stages of such names. Raises `InputError` for one that it has not."""
    names = [stage.name for stage in recipe.stages]
    for name in skipped:
        if name not in names:
            raise InputError(
                f"--skip {name}: no such stage; the stages are {', '.join(names) or 'none'}"
            )
    left = tuple(stage for stage in recipe.stages if stage.name not in skipped)
    return recipe.model_copy(update={"stages": left})


def check_inputs(recipe: Recipe, images: bool = True) -> None:
    """Raise `InputError` where the checkpoint, or an image source if asked for, is not there."""
    paths.check_path(recipe.model.checkpoint, paths.CHECKPOINT)
    if isinstance(recipe.classes, str):
        paths.check_path(recipe.classes, paths.KEPT)
    if images:
        paths.check_path(recipe.data.calibration, paths.IMAGES)
        paths.check_path(recipe.data.evaluation, paths.IMAGES)
        paths.check_path(recipe.data.recovery, paths.IMAGES)
        paths.check_path(recipe.data.classes, paths.CLASSES)
        paths.check_path(recipe.data.classifier, paths.CLASSIFIER)


def to_yaml(recipe: Recipe) -> str:
    """The recipe with all its keys; `load_recipe` reads an equal recipe from it."""
    return dump(recipe.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors and checkers."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with vitcompress, by name."""
    package = Path(__file__).parent
    folder = next(
        (f for f in (package / "recipes", package.parent / "recipes") if f.is_dir()), None
    )
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def recipe_summary(text: str) -> str:
    """What a recipe says of itself: its first comment, up to the command that runs it."""
    lines = itertools.takewhile(lambda line: re.match(r"# \S", line), text.splitlines())
    return " ".join(line.removeprefix("# ") for line in lines).rstrip(":")


def find_recipe(text: str) -> Path:
    """The recipe that is meant by a path or by the name of a packaged recipe.

    Raises `InputError` with the nearest names when there is none.
    """
    path, packaged = Path(text), packaged_recipes()
    if paths.exists(path) and not path.is_dir():  # else an output named so
        return path
    if text.removesuffix(".yaml") in packaged:
        return packaged[text.removesuffix(".yaml")]
    raise _missing(path)


def _read(path: Path) -> Document:
    if not paths.exists(path) or path.is_dir():
        raise _missing(path)
    return read_yaml(path)


def _missing(path: Path) -> InputError:
    is_folder = paths.exists(path) and path.is_dir()
    folder = path if is_folder else path.parent
    files = sorted(f for f in folder.glob("*") if f.suffix in (".yaml", ".yml"))
    there = {f.name: str(f) for f in files} | {f.stem: str(f) for f in files}
    names = {name: name for name in packaged_recipes()} | there
    near = difflib.get_close_matches(path.name, names, 3) or difflib.get_close_matches(
        path.stem, names, 3
    )
    nearest = list(dict.fromkeys(names[name] for name in near))
    remedy = f"did you mean {' or '.join(nearest)}?" if nearest else _listed(packaged_recipes())
    what = "a folder, not a recipe" if is_folder else "there is no such recipe"
    return InputError(f"{path}: {what}; {remedy}")


def _listed(names: Iterable[str]) -> str:
    return f"give a .yaml file or one of {', '.join(names)}"


def _left_empty(key: Any, value: object) -> bool:
    """Whether a section is there without content, as when all of it is commented out."""
    return value is None and key in Recipe.model_fields and key != "stages"


_IMAGE_FILES = ("calibration", "evaluation", "recovery", "classes", "classifier")
_PATHS = (("model", ("checkpoint",)), ("data", _IMAGE_FILES))


def _absolute(data: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """`data` with the paths in it made absolute, starting at `folder`."""
    sections = {
        name: data[name] | {k: _path(data[name][k], folder) for k in keys if k in data[name]}
        for name, keys in _PATHS
        if isinstance(data.get(name), dict)
    }
    kept = {"classes": _path(data["classes"], folder)} if "classes" in data else {}
    return data | sections | kept


def _path(value: object, folder: Path) -> object:
    if not isinstance(value, str) or not value or value.startswith(paths.BUILT_IN):
        return value
    # Without a home the ~ stays, and the file is told to be missing.
    path = os.path.expanduser(value) if value.startswith("~/") else value  # noqa: PTH111
    # Only `..` is resolved: a linked checkpoint keeps the name by which its kind is known.
    return os.path.normpath(folder.resolve() / path)
