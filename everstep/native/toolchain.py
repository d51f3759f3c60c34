"""The C++ compiler of this machine, and its options."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from everstep.errors import EverstepError
from everstep.native import processor

_OLDER = {"avx2": "haswell", "default": "x86-64"}
"""Compiler names of processors with only these instructions."""
_noticed: set[str] = set()


class BuildError(EverstepError):
    """Source cannot be compiled or loaded; the message names the compiler, the reason and the log."""


@dataclass(frozen=True)
class Compiler:
    """A working C++ compiler: its command, and the first line of its `--version`."""

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        name = Path(self.command[0]).name
        return self.version if self.version.startswith(name) else f"{shlex.join(self.command)}: {self.version}"


def notice(kind: str, text: str) -> None:
    """Log a warning, once per process for each kind."""
    if kind not in _noticed:
        _noticed.add(kind)
        logging.getLogger("everstep").warning(text)


def compiler() -> Compiler | None:
    """The first working one of `$CXX`, c++, g++, clang++ and the package ziglang; None with EVERSTEP_COMPILER=none.

    On Windows only `$CXX` is tried: the engine is untested there, and g++ misaligns wide vectors on its stack.
    """
    if os.environ.get("EVERSTEP_COMPILER") == "none":
        return None
    for command in _candidates():
        if shutil.which(command[0]) and (version := _version(command, os.environ.get("PATH"))):
            return Compiler(command, version)
        if command == _chosen():
            notice("CXX", f"CXX={shlex.join(command)} does not run; everstep looks for another C++ compiler.")
    return None


def missing() -> str:
    """The reason why there is no compiler, and how to get one."""
    if os.environ.get("EVERSTEP_COMPILER") == "none":
        return "EVERSTEP_COMPILER=none switches compiling off"
    if sys.platform == "win32":
        return "compiling is untested on Windows: to try it, name a C++ compiler in CXX"
    return "no C++ compiler is found: install one (c++, g++, clang++, or `pip install ziglang`), or name it in CXX"


def _candidates() -> Iterator[tuple[str, ...]]:
    if chosen := _chosen():
        yield chosen
    if sys.platform == "win32":
        return
    yield from (("c++",), ("g++",), ("clang++",))
    if importlib.util.find_spec("ziglang") is not None:
        yield sys.executable, "-m", "ziglang", "c++"


def _chosen() -> tuple[str, ...]:
    named = os.environ.get("CXX", "")
    try:
        return tuple(shlex.split(named))
    except ValueError:  # an open quote
        return (named,)


@functools.cache
def _version(command: tuple[str, ...], path: str | None) -> str | None:
    """The first line of `--version`; `path`, the search path of the command, is only a key of the cache."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def flags(compiler: Compiler) -> tuple[str, ...]:
    """The options of compilation; EVERSTEP_CXXFLAGS is appended.

    Arithmetic is strict: NaN and infinity propagate, and sums keep their order except in `omp simd` reductions.
    """
    optimise = ("-O2", "-ftree-vectorize")  # GCC before 12 needs the option to vectorise at -O2
    # simd pragmas only, since a second OpenMP runtime would have its own threads
    simd = ("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
    named = os.environ.get("EVERSTEP_CXXFLAGS", "")
    try:
        extra = shlex.split(named)
    except ValueError as error:  # an open quote
        raise BuildError(f"EVERSTEP_CXXFLAGS={named}: {error}") from None
    free = () if sys.platform == "win32" else ("-fPIC",)  # always on, on Windows
    return ("-std=gnu++17", *optimise, *target(compiler), *simd, *free, "-shared", *extra)


def target(compiler: Compiler) -> tuple[str, ...]:
    """The options that name the target processor: this one, or the older one of `processor.held`."""
    held = processor.held()
    which = "native" if held is None else _OLDER[held]
    if "ziglang" in compiler.command:
        return (f"-mcpu={which.replace('-', '_')}",)
    if not processor.x86():
        return ("-mcpu=native",)
    # GCC and clang otherwise use half of the vector width on some of these processors
    wide = ("-mprefer-vector-width=512",) if "avx512f" in processor.instructions() else ()
    return (f"-march={which}", *wide)
