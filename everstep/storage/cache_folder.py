"""Where what can be made again is kept: tokenised corpora and compiled steps."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """EVERSTEP_CACHE if it is set, else `everstep` in the system's folder for caches (`~/.cache` on Linux).

    Raises:
        RuntimeError: the folder names a home that the user does not have.
    """
    named = os.environ.get("EVERSTEP_CACHE")
    found = Path(named) if named else user_cache_path("everstep", appauthor=False)
    return found.expanduser().absolute()
