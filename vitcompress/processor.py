"""The processor this runs on, as Linux describes it."""

import platform
from functools import cache
from pathlib import Path


def name() -> str:
    """What the processor is called."""
    names = (line.partition(":")[2].strip() for line in _lines() if "model name" in line)
    return next(names, platform.processor() or platform.machine())


@cache
def instructions() -> str:
    """The vector instructions that decide how fast integers are."""
    flags = next((line.split() for line in _lines() if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
    return " ".join(flag for flag in wanted if flag in flags) or "unknown"


def _lines() -> list[str]:
    """The description of the processors; no lines where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
