"""The report of one run, as data: what was measured before, on the way and at the end."""

import hashlib
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path, PurePath
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vitcompress import paths
from vitcompress.details import Fact, Gallery, Picture, Table
from vitcompress.errors import InputError
from vitcompress.foreign import text_of

_LARGEST = 256 << 20  # bytes of a report, which holds pictures


def _plain(value: Any, where: str = "") -> Any:
    """`value` as plain JSON data: arrays become lists; NaN, infinity and objects are refused."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where or 'value'} is {value}, which is no figure; use null")
        return float(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, PurePath):
        return value.as_posix()
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return _plain(value.tolist(), where)
    raise ValueError(f"{where or 'value'} is a {type(value).__name__}, which JSON cannot hold")


Facts = Annotated[dict[str, Any], BeforeValidator(_plain)]


_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


class Latency(_Frozen):
    """Milliseconds for one run of the model: the median and the slow tail."""

    p50: float
    p90: float
    p99: float


_Z = NormalDist().inv_cdf(0.975)  # of a two-sided interval of 95 %


class Interval(_Frozen):
    """Between which rates (percent) the one that `images` are a sample of lies, with 95 %
    confidence."""

    low: float
    high: float
    images: _Count

    @classmethod
    def of(cls, percent: float, images: int) -> Self:
        """Wilson's score interval of a rate that was observed on so many independent images."""
        share, z2 = percent / 100, _Z**2 / images
        middle = (share + z2 / 2) / (1 + z2)
        half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
        low, high = 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
        return cls(low=min(low, percent), high=max(high, percent), images=images)


class Metrics(_Frozen):
    """The figures of one model. A figure that was not measured is None, never guessed."""

    images: _Count | None = None
    top1: float | None = None
    """Percent of the evaluation images."""
    top5: float | None = None
    map: float | None = None
    """Mean average precision of a multi-label head in percent."""
    knn: float | None = None
    """Percent of images whose label most of the five nearest others have."""
    agreement: float | None = None
    """Percent of images on which the dense model has the same top-1, or of logits the same sign."""
    kl: float | None = None
    """Mean KL(dense ‖ compressed) in nats."""
    relative_error: float | None = None
    """Mean square of the difference to the dense outputs, over their variance."""
    cosine: float | None = None
    """Mean cosine of embeddings to the dense ones."""
    cosine_p5: float | None = None
    """The 5th percentile of these cosines."""
    neighbours: float | None = None
    """Percent of images whose nearest other image is the dense model's."""
    norm_ratio: float | None = None
    """Mean length of embeddings over that of the dense ones."""
    params: _Count | None = None
    macs: _Count | None = None
    """Multiply-accumulates for one image."""
    bytes: _Count | None = None
    """Size of the ONNX file."""
    latency_ms: Latency | None = None
    speedup: float | None = None
    """p50 of the baseline over this p50, both timed in turns in the same run."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """By figure, of those that are rates of images."""


class StudyReport(_Frozen):
    """A model that was measured beside that of a stage, and not exported."""

    name: str
    note: str
    facts: dict[str, Fact] = Field(default_factory=dict)
    figures: Metrics


class Details(_Frozen):
    """What a stage tells beside its figures."""

    facts: dict[str, Fact] = Field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    studies: tuple[StudyReport, ...] = ()


class StageReport(_Frozen):
    """What one stage did, how long it took, and the model it left behind."""

    name: str
    type: str
    seconds: float
    metrics: Metrics | None = None
    details: Details = Details()


class Artifact(_Frozen):
    """A file that was written; `path` is relative to the output folder."""

    path: str
    bytes: _Count
    sha256: str
    parity: Facts = Field(default_factory=dict)


class GateResult(_Frozen):
    """A promise of the recipe, such as `max_drop.top1`, held against what was measured."""

    name: str
    limit: float
    value: float | None
    passed: bool


class ChangedAnswer(_Frozen):
    """The classes that the dense model and the compressed one name, and the one of the label."""

    before: str
    after: str
    label: str | None


class ChangedImage(_Frozen):
    """An image that comes out otherwise. `value`: in `Changes.measure`."""

    image: str
    picture: Picture
    value: float
    answer: ChangedAnswer | None


class ClassLoss(_Frozen):
    """Of a class: how many images there are, and how many were named rightly before and after."""

    name: str
    images: _Count
    before: _Count
    after: _Count


class Changes(_Frozen):
    """Where the final model departs from the dense one.

    `changed`: how many of the `images` have another answer; None of a task without answers. `lost`
    and `gained`: how many of these were right before, and are now; None without labels. `measure`:
    of the outputs of an image: `cosine`, `kl` in nats, or `distance`. `shown`: some of the changed
    images, or those that have moved most. `classes`: those that lost most.
    """

    images: _Count
    changed: _Count | None
    lost: _Count | None
    gained: _Count | None
    measure: str
    shown: tuple[ChangedImage, ...]
    classes: tuple[ClassLoss, ...]


class Made(_Frozen):
    """How a report came about: by which recipe (its name) and command, and when (ISO 8601, UTC)."""

    recipe: str = ""
    command: str = ""
    date: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\dT\d\d:\d\dZ)?$")] = ""


class Report(_Frozen):
    """Everything a run has to say. JSON, Markdown, HTML and JUnit are renderings of it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    model: Facts
    baseline: Metrics
    stages: list[StageReport] = Field(default_factory=list)
    final: Metrics
    artifacts: list[Artifact] = Field(default_factory=list)
    gates: list[GateResult] = Field(default_factory=list)
    environment: Facts = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    made: Made = Made()
    changes: Changes | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page, in a frame of its own."""
        from vitcompress.report import html

        page = escape(html.render(self))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'

    def to_json(self) -> str:
        """The text of `report.json`; the same report always gives the same text."""
        data = self.model_dump(by_alias=True)
        return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def sha256(self) -> str:
        """The hash of `report.json`, as the manifest has it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def read(cls, place: Path) -> Self:
        """The report of a run: a report.json, or that in the folder which the run wrote.

        Raises:
            InputError: there is no report that this version can read.
        """
        file = place / "report.json" if paths.is_folder(place) else place
        if not paths.exists(file):
            raise InputError(f"{place}: no output folder of a run, nor its report.json")
        text = text_of(file, "give the report.json of a run", _LARGEST)
        try:
            return cls.from_json(text)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `report.json` again.

        Raises:
            InputError: the text is not a report that this version can read.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise InputError(
                f"not a report of schema 1: {where}: {first['msg']}; run vitcompress again"
            ) from error
