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
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
    return " ".join(flag for flag in wanted if flag in _flags()) or "unknown"


def multiplies_bfloat16() -> bool:
    """Whether there are instructions for products of bfloat16."""
    return any(flag in _flags() for flag in ("avx512_bf16", "amx_bf16"))


def _flags() -> list[str]:
    return next((line.split() for line in _lines() if line.startswith("flags")), [])


def _lines() -> list[str]:
    """The description of the processors; no lines where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
