"""The candidates of a search in an Optuna study: several processes can share one.

A trial is a combination: a category for each stage. Its values are how far it exceeds the limits
and what it costs, both to be small.
"""

import logging
import os
import platform
import random
import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from vitcompress.errors import InputError
from vitcompress.searching.candidates import Candidate
from vitcompress.searching.journal import journal
from vitcompress.searching.predict import Measured
from vitcompress.searching.space import Combination, Space

_STARTUP = 8  # trials before the sampler trusts what it has seen
_PROPOSALS = 20  # of the sampler, until one is new
_IDENTITY, _WORKER, _ERROR, _WRITTEN = "identity", "worker", "error", "written"


class Trials:
    """A study; raises `InputError` for a storage that cannot be used, or of another search.

    `identity`: of all that figures depend on. `storage`: a file for its journal, or the URL of a
    database. `guided`: whether what was measured decides on what is proposed, or chance alone.
    """

    def __init__(
        self, storage: str, space: Space, identity: str, seed: int, guided: bool = True
    ) -> None:
        self.space, self._chance = space, random.Random(f"{seed} {os.getpid()}")
        optuna.logging.set_verbosity(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler: BaseSampler = RandomSampler(seed)
            if guided:
                sampler = TPESampler(seed=seed, multivariate=True, n_startup_trials=_STARTUP)
        try:
            self.study = optuna.create_study(
                storage=_storage(storage),
                sampler=sampler,
                study_name="vitcompress",
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
        except Exception as error:  # of any database that Optuna knows
            why = " ".join(str(error).split())[:200]
            raise InputError(
                f"--study {storage}: cannot be used: {why}; name another file, or move it away"
            ) from error
        if self.study.user_attrs.get(_IDENTITY, identity) != identity:
            raise InputError(
                f"--study {storage}: is of another search: its model, images, recipe or limits "
                "differ; name another file, or another --out"
            )
        self.study.set_user_attr(_IDENTITY, identity)
        self._bury()

    def enqueue(self, combination: Combination) -> None:
        """Let `combination` be one of the next, if nobody has tried it, tries it or means to."""
        if combination not in self.tried() | self.waiting():
            self.study.enqueue_trial(dict(zip(self.space.stages, combination, strict=True)))

    def next(self) -> tuple[Trial, Combination] | None:
        """The next that was enqueued, else a new one that the sampler proposes, or chance where it
        has no new ones; None where all were tried."""
        for _ in range(_PROPOSALS):
            tried = self.tried()
            trial = self.study.ask()
            trial.set_user_attr(_WORKER, _worker())
            places = self.space.stages.items()
            taken = (trial.suggest_categorical(name, range(len(each))) for name, each in places)
            if (found := tuple(int(each) for each in taken)) not in tried:
                return trial, found
            self.study.tell(trial, state=TrialState.PRUNED)
        left = sorted(set(self.space.every()) - self.tried())
        if not left:
            return None
        self.enqueue(self._chance.choice(left))
        return self.next()

    def tell(self, trial: Trial, candidate: Candidate, excess: float) -> None:
        trial.set_user_attr("losses", dict(candidate.measured.losses))
        trial.set_user_attr("costs", dict(candidate.costs))
        trial.set_user_attr("distance", candidate.distance)
        trial.set_user_attr("excess", excess)
        trial.set_constraint("limits", excess - 1)
        self.study.tell(trial, [excess, candidate.measured.cost])

    def failed(self, trial: Trial, why: str) -> None:
        trial.set_user_attr(_ERROR, why)
        self.study.tell(trial, state=TrialState.FAIL)

    def done(self) -> list[FrozenTrial]:
        """All that any process has measured in this study."""
        return self.study.get_trials(states=(TrialState.COMPLETE,))

    def measured(self) -> list[Measured]:
        return [
            Measured(self.combination(trial), trial.values[1], dict(trial.user_attrs["losses"]))
            for trial in self.done()
        ]

    def combination(self, trial: FrozenTrial) -> Combination:
        return tuple(int(trial.params[name]) for name in self.space.stages)

    def tried(self) -> set[Combination]:
        """Those that were measured, that cannot be had, and that somebody is at."""
        states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL)
        return {
            self.combination(trial)
            for trial in self.study.get_trials(states=states)
            if set(self.space.stages) <= set(trial.params)
            and (trial.state is not TrialState.FAIL or _ERROR in trial.user_attrs)
        }

    def waiting(self) -> set[Combination]:
        found = self.study.get_trials(states=(TrialState.WAITING,))
        params = (trial.system_attrs["fixed_params"] for trial in found)
        return {tuple(int(each[name]) for name in self.space.stages) for each in params}

    def written(self, out: Path) -> Combination | None:
        """Whose output the folder `out` has."""
        found = self.study.user_attrs.get(f"{_WRITTEN} {out.resolve()}")
        return None if found is None else tuple(found)

    def write(self, out: Path, combination: Combination) -> None:
        self.study.set_user_attr(f"{_WRITTEN} {out.resolve()}", list(combination))

    def _bury(self) -> None:
        """End trials of processes of this machine that are no more."""
        host = platform.node()
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            where, _, number = trial.user_attrs.get(_WORKER, "").rpartition(" ")
            if where == host and not _lives(int(number)):
                self.study.tell(trial.number, state=TrialState.FAIL)


def _worker() -> str:
    return f"{platform.node()} {os.getpid()}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _storage(text: str) -> BaseStorage:
    if "://" in text:
        return RDBStorage(text)
    return JournalStorage(journal(text))
