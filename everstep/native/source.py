"""The text of compiled code, with the files of this folder that it includes, so that it keys the cache.

An `#include "FILE"` is replaced by that file, the first time; headers of the system stay. `tables.h` is no file: it is
made of `c_tables.py`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from everstep.native.c_tables import ENGINE, declared

_INCLUDE = re.compile(r'^#include "(.+)"\n|^#pragma once\n', re.M)


@cache
def source_text(*names: str) -> str:
    """These files of this folder, one after the other, with what they include."""
    seen: set[str] = set()

    def whole(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        if name == "tables.h":
            return f"#include <cstdint>\n\n{declared(*ENGINE)}"
        found = Path(__file__).with_name(name).read_text(encoding="utf-8")
        return _INCLUDE.sub(lambda line: whole(line[1]) if line[1] else "", found)

    return "".join(whole(name) for name in names)
