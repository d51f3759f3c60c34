"""The folder for cached files that can be recomputed: tokenised corpora and compiled steps."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """EVERSTEP_CACHE if set, else `everstep` in the system's cache folder (`~/.cache` on Linux).

    Raises:
        RuntimeError: the path contains a home folder that does not exist.
    """
    named = os.environ.get("EVERSTEP_CACHE")
    found = Path(named) if named else user_cache_path("everstep", appauthor=False)
    return found.expanduser().absolute()
