"""The abilities of the processor and of accelerators; the only module that reads them.

ATEN_CPU_CAPABILITY, which restricts PyTorch to older instructions ("avx2" or "default"), also restricts the compiled
engine; ONEDNN_MAX_CPU_ISA restricts oneDNN. Set both before Python starts, since each is read once.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_X86 = ("x86_64", "amd64", "i686")
_FACTS = ("model name", "flags", "CPU implementer", "CPU variant", "CPU part", "Features", "isa")  # x86, ARM, RISC-V
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
_BEYOND = {"avx2": ("avx512", "amx", "avx10"), "default": ("avx", "amx", "fma", "f16c")}
"""Prefixes of instructions that PyTorch does not use at a value of ATEN_CPU_CAPABILITY."""


def name() -> str:
    """The name of the processor, from the system.

    >>> bool(name())
    True
    """
    return facts().get("model name") or platform.processor() or platform.machine() or "unknown"


@functools.cache
def facts() -> dict[str, str]:
    """The system's entries that determine the available instructions."""
    try:
        first_core = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:  # not Linux
        first_core = ""
    lines = (line.partition(":") for line in first_core.split("\n"))
    said = {key.strip(): value.strip() for key, _, value in lines}
    known = {key: said[key] for key in _FACTS if key in said}
    return known or {"machine": platform.machine(), "processor": platform.processor()}


def x86() -> bool:
    """Whether the processor is of the x86 family."""
    return platform.machine().lower() in _X86


def held() -> str | None:
    """The restriction by ATEN_CPU_CAPABILITY, "avx2" or "default"; None for none."""
    named = os.environ.get("ATEN_CPU_CAPABILITY", "")
    return named if x86() and named in _BEYOND else None


@functools.cache
def instructions() -> frozenset[str]:
    """The instruction sets that may be used, by their Linux names: "avx2", "avx512f", "avx512_bf16", ….

    If the system does not list them, PyTorch is asked for these three.
    """
    listed = facts().get("flags") or facts().get("Features")
    if listed is None:
        from torch import cpu  # local, since the search for a compiler does not need torch

        asked = {
            "avx2": cpu._is_avx2_supported,
            "avx512f": cpu._is_avx512_supported,
            "avx512_bf16": cpu._is_avx512_bf16_supported,
        }
        found = {name for name, has in asked.items() if has()}
    else:
        found = set(listed.split())
    beyond = _BEYOND.get(held() or "", ())
    return frozenset(name for name in found if not name.startswith(beyond))


@functools.cache
def onednn(dtype: torch.dtype) -> bool:
    """Whether PyTorch's oneDNN supports bfloat16 or float16 here, possibly by float32 instructions."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    asked = torch.ops.mkldnn
    return bool(asked._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else asked._is_mkldnn_fp16_supported())


def has_bfloat16() -> bool:
    """Whether there are native bfloat16 products, faster than float32; False if unknown."""
    import torch

    return bool(_BFLOAT16 & instructions()) and onednn(torch.bfloat16)


def has_float64(device: torch.device) -> bool:
    """Whether a device supports float64; Metal does not."""
    return device.type != "mps"


def cache(level: int) -> int:
    """Bytes of the first core's cache of a level; 0 if unknown."""
    try:
        size = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").read_text(encoding="ascii").strip()
        return int(size.rstrip("KM")) << {"K": 10, "M": 20}.get(size[-1:], 0)
    except (OSError, ValueError):
        return 0


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
