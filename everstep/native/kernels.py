"""The run-time library of compiled loops: matrix products, and access to PyTorch's threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch

from everstep.native import build, c_tables, processor, toolchain
from everstep.native.source import source_text


@functools.cache
def _library(numbers: str) -> ctypes.CDLL:
    """The products of one number format, "f32", "f64" or "bf16", compiled at first use."""
    each = ("gemm", "panel", "run", "call", "packed_size")
    symbols = [*(f"es_{name}_{numbers}" for name in each), "es_ragged", "es_barrier", "es_assign", "es_parallel"]
    library = build.load(f"#define ES_{numbers.upper()}\n{source_text('kernels.cpp')}", f"kernels-{numbers}", symbols)
    library.es_set_openmp.argtypes = [ctypes.c_void_p] * 3
    library.es_set_openmp(*_openmp())
    for name in ("es_has_bf16", "es_barrier_bytes", f"es_panel_{numbers}"):
        getattr(library, name).restype = ctypes.c_int64
    size = getattr(library, f"es_packed_size_{numbers}")
    size.restype, size.argtypes = ctypes.c_int64, [ctypes.c_int64] * 2
    run = getattr(library, f"es_run_{numbers}")
    run.restype = None
    run.argtypes = [*[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3]
    call = getattr(library, f"es_call_{numbers}")
    call.restype, call.argtypes = None, [ctypes.c_void_p] * 2
    library.es_assign.restype, library.es_assign.argtypes = None, [ctypes.c_void_p]
    library.es_parallel.restype = None
    library.es_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return library


_RUNTIMES = ("libgomp", "libomp", "libiomp")
"""Names of OpenMP runtimes: GNU's, LLVM's and Intel's, which also have GNU's functions."""


def _openmp() -> tuple[int | None, ...]:
    """The functions of the OpenMP runtime that PyTorch has loaded; a second runtime would compete for the cores."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    found = {path: Path(path).name for path in _libraries() if Path(path).name.startswith(_RUNTIMES)}
    # PyTorch's wheels contain their own runtime
    for path in sorted(found, key=lambda path: ("torch" not in path, not found[path].startswith("libgomp"), path)):
        with contextlib.suppress(OSError, AttributeError):  # the library lacks GNU's functions
            runtime = ctypes.CDLL(path)
            return tuple(ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value for name in names)
    if torch.get_num_threads() > 1:
        toolchain.notice("openmp", "compiled loops run on one thread: PyTorch's OpenMP runtime is not found here.")
    return None, None, None


def _libraries() -> list[str]:
    """The files of the libraries that this process has loaded, unordered; none if the system does not list them."""
    if sys.platform == "darwin":
        system = ctypes.CDLL(None)
        name = system._dyld_get_image_name
        name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_uint32]
        return [os.fsdecode(name(k)) for k in range(system._dyld_image_count())]
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return list({fields[5] for line in maps.splitlines() if len(fields := line.split(maxsplit=5)) == 6})


def loops(name: str, table: type, symbols: tuple[str, ...], otherwise: str) -> ctypes.CDLL | None:
    """`NAME.cpp` with math.h, compiled at first use; None without a compiler, or, with a notice, if compilation fails.

    Args:
        name: the name of the file.
        table: the table that it reads (`c_tables.py`).
        symbols: its functions, for `Kernels.parallel`.
        otherwise: the consequence of a failure, with which the notice begins.
    """
    return None if os.environ.get("EVERSTEP_COMPILER") == "none" else _loops(name, table, symbols, otherwise)


@functools.cache
def _loops(name: str, table: type, symbols: tuple[str, ...], otherwise: str) -> ctypes.CDLL | None:
    try:
        kernels(torch.float32)  # provides the threads
        source = source_text("math.h") + c_tables.declared(table) + source_text(f"{name}.cpp")
        return build.load(source, name, symbols)
    except toolchain.BuildError as error:
        toolchain.notice(name, f"{otherwise}: {error}")
        return None


GATE = 1 << 10
"""Bytes of a barrier."""


class Kernels:
    """The library's functions for one dtype; `bf16` rounds the factors of float32 products to bfloat16.

    Attributes:
        bf16: the argument.
        gemm, barrier: addresses, for the generated code.
        call: fills the tables of a call (`call_table.py`) and runs it, given two addresses.
        ragged: the same for the functions of `packing.py`.
        bytes: size of a number.
        panel: columns that are packed together.
        barrier_bytes: size of a barrier.
        cache: bytes of a core's private cache.
    """

    def __init__(self, dtype: torch.dtype, bf16: bool = False):
        numbers = "bf16" if bf16 else "f32" if dtype == torch.float32 else "f64"
        self.bf16, self.bytes = bf16, dtype.itemsize
        self.library = _library(numbers)
        self.gemm = ctypes.cast(getattr(self.library, f"es_gemm_{numbers}"), ctypes.c_void_p).value or 0
        self.ragged = ctypes.cast(self.library.es_ragged, ctypes.c_void_p).value or 0
        self.barrier = ctypes.cast(self.library.es_barrier, ctypes.c_void_p).value or 0
        self.panel = int(getattr(self.library, f"es_panel_{numbers}")())
        self._run = getattr(self.library, f"es_run_{numbers}")
        self.call = getattr(self.library, f"es_call_{numbers}")
        self._packed_size = getattr(self.library, f"es_packed_size_{numbers}")
        self.barrier_bytes = int(self.library.es_barrier_bytes())
        assert self.barrier_bytes <= GATE
        self.cache = processor.cache(2) or 1 << 20

    def packed_size(self, rows: int, columns: int) -> int:
        """The size of a packed matrix, in numbers."""
        return int(self._packed_size(rows, columns))

    def run(self, loop: int, table: int, threads: int, jobs: int = 0, count: int = 0) -> None:
        """Pack matrices, then run the function at the address `loop` on `threads` threads.

        Args:
            loop, table: addresses; 0 for no loop.
            threads: number of threads.
            jobs: index in the table of the descriptions of matrices to pack (`Packing`).
            count: number of matrices to pack.
        """
        self._run(loop, table, threads, jobs, count)

    def parallel(self, run: Any, table: Any, threads: int) -> None:
        """Run a generated function on `threads` threads."""
        self.library.es_parallel(ctypes.cast(run, ctypes.c_void_p), ctypes.byref(table), threads)


@functools.cache
def kernels(dtype: torch.dtype, bf16: bool = False) -> Kernels:
    """The library, compiled at first use.

    Raises:
        toolchain.BuildError: it cannot be compiled.
    """
    return Kernels(dtype, bf16)


@functools.cache
def has_bf16() -> bool:
    """Whether the processor has bfloat16 products."""
    return bool(kernels(torch.float32).library.es_has_bf16())
