"""`everstep doctor`: the machine, and the backends available on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import typer

from everstep.errors import counted
from everstep.storage.reading import json_text


def doctor(
    as_json: bool = typer.Option(False, "--json", help="JSON, for machines."),
    clear: bool = typer.Option(
        False, "--clear", help="Remove the compiled steps from the cache and report the space freed."
    ),
) -> None:
    """Report on the machine and the backends that can run.

    \b
      everstep doctor
      everstep doctor --json
      everstep doctor --clear

    Versions, processor, memory, compiler, cache. Changes nothing, except with --clear.

    With a C++ compiler, steps are compiled for this processor when they first run, and cached; removed steps are
    compiled again when needed. CXX names another compiler; EVERSTEP_COMPILER=none turns compilation off.
    ATEN_CPU_CAPABILITY=avx2 restricts PyTorch and these steps to AVX2, ONEDNN_MAX_CPU_ISA=AVX2 restricts oneDNN.
    """
    if clear:
        _clear(as_json)
        return
    facts = examine()
    if as_json:
        print(json_text(facts, ensure_ascii=False))
        return
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{key if key.isupper() else key.replace('_', ' '):16}  {'none' if shown in (None, '') else shown}")


def _clear(as_json: bool) -> None:
    from everstep.native import build

    count, freed = len(build.entries()), build.clear()
    if as_json:
        print(json_text({"cleared": count, "freed_bytes": freed, "folder": str(build.folder())}, ensure_ascii=False))
        return
    print(f"{counted(count, 'compiled step')} removed from {build.folder()}: {freed / 2**20:.2f} MB freed")


def examine() -> dict[str, Any]:
    """The report of `doctor --json`."""
    import torch

    import everstep
    from everstep.backends.dispatch import BACKENDS
    from everstep.native import processor

    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
    held, short = processor.held(), (torch.bfloat16, torch.float16)
    data = os.environ.get("EVERSTEP_DATA", "")
    return {
        "everstep": everstep.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor.name(),
        "cores": os.cpu_count() or 1,
        "usable_cores": processor.cores(),
        "threads": torch.get_num_threads(),
        "instruction_sets": [name for name in wanted if name in processor.instructions()],
        "held_to": f"{held} by ATEN_CPU_CAPABILITY" if held else None,
        "onednn_types": [str(kind).removeprefix("torch.") for kind in short if processor.onednn(kind)],
        "bfloat16": _bfloat16(),
        "memory_gb": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none (not needed)",
        **_engine(),
        "backends": [str(backend.name) for backend in BACKENDS.values()],
        **_cache(),
        "EVERSTEP_DATA": (data if Path(data).is_dir() else f"{data} (no such folder)")
        if data
        else "not set (only recipes of published data need it, such as ptb-small)",
    }


def _bfloat16() -> str:
    from everstep.native import processor

    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in processor.instructions()]
    return f"in hardware ({fast[0]})" if processor.has_bfloat16() else "not in hardware; float32 is faster here"


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _engine() -> dict[str, Any]:
    """The compiler, its target processor, and the compiled steps."""
    from everstep.native import build, toolchain

    compiler = toolchain.compiler()
    off = os.environ.get("EVERSTEP_COMPILER") == "none"
    missing = (
        "turned off by EVERSTEP_COMPILER=none" if off else "none (not needed: steps then run as PyTorch operations)"
    )
    entries = build.entries()
    return {
        "compiler": str(compiler) if compiler else missing,
        "compiles_for": " ".join(toolchain.target(compiler)) if compiler else None,
        "compiled_steps": len(entries),
        "compiled_mb": round(sum(entry.bytes for entry in entries) / 2**20, 2),
    }


def _cache() -> dict[str, Any]:
    """The cache folder of tokenised corpora and compiled steps, and its size."""
    from everstep.storage.cache_folder import cache_folder

    folder = cache_folder()
    size = sum(map(_size, folder.rglob("*"))) if folder.is_dir() else 0
    return {"cache": str(folder), "cache_mb": round(size / 2**20, 1)}


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # another process has just removed it
        return 0
