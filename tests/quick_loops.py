"""Compiling in less time than users do, where tests are not about the compiled code: a fifth of the suite is compiling.

`as_shipped` (`conftest.py`) gives a file what users have, and EVERSTEP_CXXFLAGS= in the environment gives it to all.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from ctypes import CDLL

from everstep.native import build, toolchain

QUICK = "-O1 -fno-tree-vectorize"
"""EVERSTEP_CXXFLAGS for tests."""
_GCC = (_compiler := toolchain.compiler()) is not None and "clang" not in _compiler.version and sys.platform == "linux"
if _GCC:
    # without what takes long and what `omp simd` does not need; what the libraries have, this process has too
    QUICK += " -fira-region=one -fno-ivopts -fno-tree-dominator-opts -fno-tree-dse -fno-tree-forwprop -fno-tree-pta"
    QUICK += " -fno-tree-slsr -fno-tree-sink -fno-if-conversion -fno-tree-ccp -fno-tree-bit-ccp -nostdlib"
FEW = 16
"""Numbers of a loop that is not optimised at all, since compiling it takes longer than running it."""

_load = build.load
_LENGTH = re.compile(r"(?:\bj < |, |\bunits = \()(\d+)(?:;| \* sizeof\(T\)| \+ 15\))")


def load(source: str, name: str, symbols: Sequence[str] = ()) -> CDLL:
    """`build.load`, with generated loops over few numbers not optimised; in place of it where this is imported."""
    quick = _GCC and os.environ.get("EVERSTEP_CXXFLAGS") == QUICK and "static void over_time(" in source
    if quick and max(map(int, _LENGTH.findall(source)), default=0) <= FEW:
        source = f'#pragma GCC optimize ("O0")\n{source}'
    return _load(source, name, symbols)


build.load = load
