"""What the sessions of a target give: logits and latencies."""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vitcompress.targets import Session

_MIN_RUNS, _MAX_RUNS = 50, 2000
SECONDS = 5.0
"""How long a model is timed."""


def logits(
    session: Session, batches: Iterable[np.ndarray], batch_size: int = 1
) -> Iterator[np.ndarray]:
    """The logits [n, classes] of each batch of pixels [n, C, H, W], run `batch_size` at a time.

    One at a time by default, as a deployed model meets images: a dynamically quantized layer takes
    its range from the whole batch.
    """
    for batch in batches:
        parts = [batch[i : i + batch_size] for i in range(0, len(batch), batch_size)]
        yield np.concatenate([session.run(part) for part in parts])


@dataclass(frozen=True)
class Timing:
    """Latencies of one model in milliseconds, one a run, in the order they were taken."""

    milliseconds: tuple[float, ...]

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.milliseconds, share))

    @property
    def p50(self) -> float:
        return statistics.median(self.milliseconds)


def time_in_turns(
    sessions: Mapping[str, Session],
    pixels: np.ndarray,
    seconds: float = SECONDS,
    runs: int = _MIN_RUNS,
) -> dict[str, Timing]:
    """Time all sessions on the same `pixels` [n, C, H, W], one run of each in turn.

    Taking turns lets a busy machine slow all alike, so that ratios hold where absolute times do
    not. At least so many `runs` of each and `seconds` a session are timed, after a fifth as many to
    warm up.
    """
    taken: dict[str, list[float]] = {name: [] for name in sessions}

    def turn(keep: bool) -> None:
        for name, held in sessions.items():
            start = time.perf_counter()
            held.run(pixels)
            if keep:
                taken[name].append((time.perf_counter() - start) * 1000)

    for _ in range(runs // 5):
        turn(keep=False)
    end = time.monotonic() + seconds * len(sessions)
    done = 0
    while done < runs or (time.monotonic() < end and done < _MAX_RUNS):
        turn(keep=True)
        done += 1
    return {name: Timing(tuple(values)) for name, values in taken.items()}
