"""ONNX files run in onnxruntime on the CPU: sessions, logits and latencies."""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vitcompress.errors import InputError

PRECISE = "session.x64quantprecision", "1"
_WARM_UP = 10
_MIN_RUNS, _MAX_RUNS = 50, 2000
_SECONDS = 5.0  # a model, at least


def cpu_lines() -> list[str]:
    """The description of the processors by Linux; no lines elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


@cache
def instructions() -> str:
    """The vector instructions that decide how fast integers are."""
    flags = next((line.split() for line in cpu_lines() if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
    return " ".join(flag for flag in wanted if flag in flags) or "unknown"


def session(path: Path, threads: int, optimized: Path | None = None) -> ort.InferenceSession:
    """An onnxruntime CPU session with all optimisations; the optimised graph goes to `optimized`.

    Integer kernels are exact on every processor: without VNNI, onnxruntime's default ones add pairs
    of products of 8 bits in 16, which can saturate, and `PRECISE` takes slower ones. It would take
    them where there is VNNI too, so it is not set there.

    Raises `InputError` when onnxruntime cannot load the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if "vnni" not in instructions():
        options.add_session_config_entry(*PRECISE)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: onnxruntime cannot load it: {reason}") from error


def logits(
    session: ort.InferenceSession, batches: Iterable[np.ndarray], batch_size: int = 1
) -> Iterator[np.ndarray]:
    """The logits [n, classes] of each batch of pixels [n, C, H, W], run `batch_size` at a time.

    One at a time by default, as a deployed model meets images: a dynamically quantized layer takes
    its range from the whole batch.
    """
    name = session.get_inputs()[0].name
    for batch in batches:
        parts = [batch[i : i + batch_size] for i in range(0, len(batch), batch_size)]
        yield np.concatenate([session.run(None, {name: part})[0] for part in parts])


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
    sessions: Mapping[str, ort.InferenceSession],
    pixels: np.ndarray,
    seconds: float = _SECONDS,
) -> dict[str, Timing]:
    """Time all sessions on the same `pixels` [n, C, H, W], one run of each in turn.

    Taking turns lets a busy machine slow all alike, so that ratios hold where absolute times do
    not. Ten runs of each warm up; then at least 50 runs and `seconds` a session are timed.
    """
    taken: dict[str, list[float]] = {name: [] for name in sessions}

    def turn(keep: bool) -> None:
        for name, held in sessions.items():
            feed = {held.get_inputs()[0].name: pixels}
            start = time.perf_counter()
            held.run(None, feed)
            if keep:
                taken[name].append((time.perf_counter() - start) * 1000)

    for _ in range(_WARM_UP):
        turn(keep=False)
    end = time.monotonic() + seconds * len(sessions)
    done = 0
    while done < _MIN_RUNS or (time.monotonic() < end and done < _MAX_RUNS):
        turn(keep=True)
        done += 1
    return {name: Timing(tuple(values)) for name, values in taken.items()}
