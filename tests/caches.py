"""Caches of a test's own, except for compiled code, which is keyed by its source: all tests share that.

Otherwise the first use of the kernels costs seconds of the compiler in each such cache.
"""

from __future__ import annotations

from pathlib import Path

from everstep.native import build


def cache_in(folder: Path) -> str:
    """The cache `cache` in a folder, for EVERSTEP_CACHE."""
    shared, cache = build.folder(), folder / "cache"
    shared.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "engine").exists():
        (cache / "engine").symlink_to(shared.resolve(), target_is_directory=True)
    return str(cache)
