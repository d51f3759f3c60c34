"""What this machine's processor has, and what an accelerator lacks. Nothing else in the package looks: whatever needs
an instruction asks here.

ATEN_CPU_CAPABILITY, by which PyTorch can be held to older instructions ("avx2" or "default"), holds the compiled engine
as well; oneDNN is held by ONEDNN_MAX_CPU_ISA. Set both before Python starts: each is read once.
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
"""What the names of the instructions begin with that PyTorch leaves alone at this value of ATEN_CPU_CAPABILITY."""


def name() -> str:
    """The processor's name as the system gives it.

    >>> bool(name())
    True
    """
    return facts().get("model name") or platform.processor() or platform.machine() or "unknown"


@functools.cache
def facts() -> dict[str, str]:
    """All that decides which instructions there are, as the system spells it."""
    try:
        first_core = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:  # not Linux
        first_core = ""
    lines = (line.partition(":") for line in first_core.split("\n"))
    said = {key.strip(): value.strip() for key, _, value in lines}
    known = {key: said[key] for key in _FACTS if key in said}
    return known or {"machine": platform.machine(), "processor": platform.processor()}


def x86() -> bool:
    """Whether it is one of the x86 family."""
    return platform.machine().lower() in _X86


def held() -> str | None:
    """To which instructions ATEN_CPU_CAPABILITY holds PyTorch and the engine, "avx2" or "default"; None: to none."""
    named = os.environ.get("ATEN_CPU_CAPABILITY", "")
    return named if x86() and named in _BEYOND else None


@functools.cache
def instructions() -> frozenset[str]:
    """The instruction sets that may be used, as Linux names them: "avx2", "avx512f", "avx512_bf16", ….

    Where the system does not list them, these three are asked of PyTorch.
    """
    listed = facts().get("flags") or facts().get("Features")
    if listed is None:
        from torch import cpu  # here, since the compiler is looked for without it

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
    """Whether oneDNN, as PyTorch has it here, computes in bfloat16 or float16, be it by those of float32."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    asked = torch.ops.mkldnn
    return bool(asked._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else asked._is_mkldnn_fp16_supported())


def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16 by instructions of its own, faster than float32; False if that is not known."""
    import torch

    return bool(_BFLOAT16 & instructions()) and onednn(torch.bfloat16)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Metal does not."""
    return device.type != "mps"


def cache(level: int) -> int:
    """Bytes of the first core's cache of this level; 0 where the system does not say."""
    try:
        size = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").read_text(encoding="ascii").strip()
        return int(size.rstrip("KM")) << {"K": 10, "M": 20}.get(size[-1:], 0)
    except (OSError, ValueError):
        return 0


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
