"""Search: the cheapest chain within the limits, as far as a budget of time goes.

First the start of the search and each change of a single stage are measured. From these all
combinations are predicted; the cheapest of those that should hold the limits is built and measured,
which corrects the prediction, and so on until none is expected to be cheaper than the best. What
time is left goes to combinations that Optuna proposes. The folder `best` is a complete, verified
output: of the start of the search while single changes are measured, then of the best so far.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from optuna.trial import Trial

from vitcompress import pipeline
from vitcompress.chain import Options
from vitcompress.claims import scratch
from vitcompress.console import note
from vitcompress.details import Row, Table
from vitcompress.errors import InputError, ParityError, RunError
from vitcompress.place import check_shared
from vitcompress.recipe import Recipe, to_yaml
from vitcompress.report import search as page
from vitcompress.report.model import Report
from vitcompress.report.search import SearchReport, Tried
from vitcompress.searching.candidates import Candidate, Workbench, workbench
from vitcompress.searching.goal import excess
from vitcompress.searching.predict import Measured, predicted
from vitcompress.searching.space import Combination, Space, space_of
from vitcompress.searching.trials import Trials

BEST, STUDY, FOUND, PAGE = "best", "study.journal", "search.json", "search.html"
_LOCK = "best.lock"
_WORTH = 0.995  # of the best cost: a prediction that is no lower is not worth building


@dataclass(frozen=True)
class Effort:
    """`seconds` and `trials` at most (None: no limit). `guided`: whether predictions and Optuna's
    sampler propose candidates, or chance alone, to compare with."""

    seconds: float | None = None
    trials: int | None = None
    guided: bool = True


@dataclass(frozen=True)
class Outcome:
    """`best`: the report of the best output; None where no candidate held the limits. `report`: of
    all candidates that were measured, by any process."""

    best: Report | None
    report: SearchReport


def search(
    recipe: Recipe, out: Path, options: Options, effort: Effort, storage: str | None = None
) -> Outcome:
    """Search in the folder `out`; a search that was killed goes on there.

    Raises `InputError` before the work for what is wrong with the recipe, its gates, the
    folder, or the study.
    """
    start = time.monotonic()
    check_shared(out)
    images = recipe.data.images + recipe.search.images
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"images": images})})
    space = space_of(recipe)
    with scratch() as home:
        bench = workbench(space, options, home)
        out.mkdir(parents=True, exist_ok=True)
        identity = _identity(recipe, bench, options)
        study = storage or str(out / STUDY)
        trials = Trials(study, space, identity, options.seed, effort.guided)
        state = _State(out, options, effort, bench, trials, start)
        state.carry_out()
    report, folder = state.report(), out / BEST
    (out / FOUND).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    (out / PAGE).write_text(page.render(report), encoding="utf-8")
    return Outcome(None if report.best is None else Report.read(folder), report)


def _identity(recipe: Recipe, bench: Workbench, options: Options) -> str:
    told = recipe.model_copy(update={"data": type(recipe.data)()})
    parts = [to_yaml(told), bench.dense.fingerprint(), bench.fit.calibration_fingerprint]
    parts += [bench.held.calibration_fingerprint, str(options.seed)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass
class _State:
    out: Path
    options: Options
    effort: Effort
    bench: Workbench
    trials: Trials
    start: float
    least: Candidate | None = None  # that this process has built and that holds the limits
    writing: float = 0.0  # seconds that it took to write the best when it was last written

    @property
    def space(self) -> Space:
        return self.bench.space

    def carry_out(self) -> None:
        if self.effort.guided:
            for combination in (self.space.start, *self.space.singles()):
                self.trials.enqueue(combination)
        count = 0
        while self._time_left() and (self.effort.trials is None or count < self.effort.trials):
            if self.effort.guided and not self.trials.waiting():
                self._propose()
            if (found := self.trials.next()) is None:
                note("every combination was measured")
                break
            self._one(*found)
            count += 1
        self._write_best()

    def _time_left(self) -> bool:
        """Whether another candidate is likely to be done in time, by the mean of those so far, and
        then to be written."""
        if self.effort.seconds is None:
            return True
        done = [t.duration.total_seconds() for t in self.trials.done() if t.duration is not None]
        typical = sum(done) / len(done) if done else 0.0
        return time.monotonic() - self.start + typical + self.writing <= self.effort.seconds

    def _propose(self) -> None:
        """Enqueue the combination that is expected to be the best, where any is expected to be
        better than what there is."""
        known = self.trials.measured()
        if (found := next_best(self.space, known, self.trials.tried(), self._excess)) is not None:
            self.trials.enqueue(found)

    def _excess(self, each: Measured) -> float:
        return excess(each.losses, self.bench.limits)

    def _one(self, trial: Trial, combination: Combination) -> None:
        told = ", ".join(f"{name}: {what}" for name, what in self.space.told(combination).items())
        note(f"candidate {trial.number + 1}: {told}", style="bold")
        try:
            candidate = self.bench.built(combination)
        except (InputError, RunError, ParityError) as error:
            note(f"  cannot be had: {error}")
            self.trials.failed(trial, str(error))
            return
        over = self._excess(candidate.measured)
        note(f"  {self._summary(candidate, over)}")
        self.trials.tell(trial, candidate, over)
        least = float("inf") if self.least is None else self.least.measured.cost
        if over <= 1 and candidate.measured.cost < least:
            self.least = candidate
        if not (self.out / BEST).is_dir() or not self.trials.waiting():
            self._write_best()

    def _best(self) -> Measured | None:
        """The cheapest that holds all limits, by whichever process."""
        held = [each for each in self.trials.measured() if self._excess(each) <= 1]
        return min(held, key=lambda each: each.cost, default=None)

    def _summary(self, candidate: Candidate, over: float) -> str:
        losses = ", ".join(
            f"{limit.name} {candidate.measured.losses[limit.name]:.3g} of {limit.most:.3g}"
            for limit in self.bench.limits
        )
        costs = ", ".join(f"{name} {value:.3f}" for name, value in candidate.costs.items())
        return f"{'within' if over <= 1 else 'beyond'} the limits ({losses}); {costs}"

    def _write_best(self) -> None:
        """Let the folder `best` hold the best so far, if it does not."""
        with FileLock(self.out / _LOCK):
            best = self._best()
            written = self.trials.written(self.out) if (self.out / BEST).is_dir() else None
            if best is None or best.combination == written:
                return
            if self.least is None or self.least.measured.combination != best.combination:
                self.least = self.bench.built(best.combination)
            start = time.monotonic()
            recipe = self.space.recipe.model_copy(update={"stages": self.least.chain})
            pipeline.run(recipe, self.out / BEST, self.options, self.least.carried)
            self.trials.write(self.out, best.combination)
            self.writing = time.monotonic() - start

    def report(self) -> SearchReport:
        trials, best = self.trials.done(), self._best()
        order = [self.trials.combination(trial) for trial in trials]
        tried = tuple(
            Tried(
                self.space.told(combination),
                trial.user_attrs["costs"],
                trial.user_attrs["distance"],
                trial.user_attrs["losses"],
                trial.user_attrs["excess"] <= 1,
            )
            for combination, trial in zip(order, trials, strict=True)
        )
        return SearchReport(
            self.bench.dense.architecture.timm,
            self.space.recipe.search.minimize,
            self.bench.dense.task.word,
            tried,
            None if best is None else order.index(best.combination),
            self._stages(best),
        )

    def _stages(self, best: Measured | None) -> Table:
        """What each change of the best was measured to do alone, as far as it was."""
        known, rows = {each.combination: each for each in self.trials.measured()}, list[Row]()
        start, minimized = known.get(self.space.start), self.space.recipe.search.minimize
        if best is None or start is None:
            return Table.of("stages", ())
        for single in self.space.singles():
            (place,) = (i for i, number in enumerate(single) if number)
            alone = known.get(single)
            if alone is None or best.combination[place] != single[place]:
                continue
            name = list(self.space.stages)[place]
            losses = alone.losses.items()
            lost = {f"lost_{gate.partition('.')[2]}": v - start.losses[gate] for gate, v in losses}
            row: Row = {"stage": name, "choice": self.space.told(single)[name]}
            row[f"{minimized}_ratio"] = alone.cost / start.cost
            rows.append(
                {**row, **{f"lost_{gate.partition('.')[2]}": v for gate, v in lost.items()}}
            )
        return Table.of("stages", rows)


def next_best(
    space: Space,
    known: Sequence[Measured],
    taken: set[Combination],
    excess_of: Callable[[Measured], float],
) -> Combination | None:
    """The cheapest combination that is expected to hold the limits and was not taken yet; None
    where none is expected to cost less than what is known to hold them."""
    least = min((each.cost for each in known if excess_of(each) <= 1), default=float("inf"))
    found: Measured | None = None
    for combination in space.every():
        if combination in taken:
            continue
        each = predicted(known, combination)
        if each is None or excess_of(each) > 1 or each.cost > _WORTH * least:
            continue
        if found is None or each.cost < found.cost:
            found = each
    return None if found is None else found.combination
