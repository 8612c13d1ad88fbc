"""What this machine's processor can do, as far as models care."""

import platform
from functools import cache
from pathlib import Path
from typing import Literal

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""The kernel's names for arithmetic in bfloat16: x86 two, Arm one."""


def processor() -> str:
    """Its name."""
    return fields().get("model name") or platform.processor() or "unknown processor"


def flags() -> frozenset[str]:
    """Its features, in the kernel's words; none where there is no /proc/cpuinfo."""
    known = fields()
    return frozenset((known.get("flags") or known.get("Features") or "").split())


def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16: without, a pass over n tokens takes n times one."""
    return not flags().isdisjoint(BFLOAT16_FLAGS)


def fastest_dtype() -> Literal["bfloat16", "float32"]:
    """In which it multiplies several tokens at once fastest."""
    return "bfloat16" if has_bfloat16() else "float32"


@cache
def fields() -> dict[str, str]:
    """/proc/cpuinfo of the last core, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
