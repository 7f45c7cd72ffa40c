"""The page of a search: what was tried, and where the best lies."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitcompress.details import Fact, Row, Table
from vitcompress.report import html
from vitcompress.report.scatter import Point, front, scatter

_KEY = {
    "best": "the best",
    "front": "none is both cheaper and nearer",
    "within": "within the limits",
    "beyond": "beyond",
}
_COSTS = {"latency": "latency", "bytes": "size", "macs": "multiply-accumulates"}


@dataclass(frozen=True)
class Tried:
    """A candidate. `choices`: by stage, in words; `costs`: as shares of the dense model's;
    `distance`: of the outputs, by the task; `losses`: by the gates that limit them."""

    choices: dict[str, str]
    costs: dict[str, float]
    distance: float
    losses: dict[str, float]
    within: bool


@dataclass(frozen=True)
class SearchReport:
    """`minimize`: the cost that counts. `word`: what distances are called. `best`: of `tried`.
    `stages`: what each stage of the best does alone."""

    title: str
    minimize: str
    word: str
    tried: tuple[Tried, ...]
    best: int | None
    stages: Table

    @property
    def front(self) -> set[int]:
        """Those that none is both cheaper and nearer than."""
        return front([(each.costs[self.minimize], each.distance) for each in self.tried])

    def kind(self, number: int) -> str:
        if number == self.best:
            return "best"
        if number in self.front:
            return "front"
        return "within" if self.tried[number].within else "beyond"

    @property
    def candidates(self) -> Table:
        """All that were tried, the cheapest first."""
        order = sorted(range(len(self.tried)), key=lambda n: self.tried[n].costs[self.minimize])
        return Table.of("candidates", (self._row(number) for number in order))

    def _row(self, number: int) -> Row:
        each = self.tried[number]
        told: dict[str, Fact] = {f"{name}_ratio": cost for name, cost in each.costs.items()}
        losses: dict[str, Fact] = {f"lost_{n.partition('.')[2]}": v for n, v in each.losses.items()}
        kind: dict[str, Fact] = {"kind": _KEY[self.kind(number)], "within": each.within}
        return {**each.choices, **told, self.word: each.distance, **losses, **kind}

    @property
    def verdict(self) -> str:
        if self.best is None:
            return f"None of {len(self.tried)} candidates holds the limits."
        best = self.tried[self.best]
        told = ", ".join(f"{name}: {what}" for name, what in best.choices.items())
        share = best.costs[self.minimize]
        return f"{share:.0%} of the {_COSTS[self.minimize]}, of {len(self.tried)} tried. {told}."


def render(report: SearchReport) -> str:
    """`search.html`."""
    across, up = f"{_COSTS[report.minimize]}, of the dense model's", report.word.upper()
    points: Sequence[Point] = [
        Point(
            each.costs[report.minimize],
            each.distance,
            report.kind(number),
            "; ".join(f"{name}: {what}" for name, what in each.choices.items()),
        )
        for number, each in enumerate(report.tried)
    ]
    return html.search_page(
        title=report.title,
        verdict=report.verdict,
        key=_KEY,
        drawn=scatter(points, across, up),
        candidates=report.candidates,
        stages=report.stages,
        across=across,
        up=up,
    )
