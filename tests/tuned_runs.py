"""Studies of a tiny recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everstep.data import expand, read_blocks
from everstep.lab.tuning import tune

RECIPE = "shakespeare-minute"
TINY = [
    "model.embedding_size=4",
    "train.batch_size=4",
    "objective.k1=16",
    "train.threads=1",
    "train.max_steps=4",
    "train.max_minutes=null",
    "train.validate_every=2",
    "train.warmup_steps=0",
]
KEYS = ["model.hidden_size=4..12", "train.learning_rate=log:1e-3..1e-1", "model.cell=RNN,GRU"]


def written(folder: Path) -> Path:
    """A short text in a folder."""
    path = folder / "play.txt"
    path.write_text("".join(read_blocks(expand("everstep:shakespeare")))[:6_000])
    return path


def given(text: Path, *more: str) -> list[str]:
    """The keys of a study of a text."""
    return [*TINY, f"data.train={text}", *(more or KEYS)]


def tuned(text: Path, out: Path, *more: str, **how: Any) -> list[dict[str, Any]]:
    """The records of a study of four trials."""
    lines: list[str] = how.pop("lines", [])
    return tune(RECIPE, out, lines.append, keys=given(text, *more), **{"trials": 4, "unpruned": 4, **how})[1]
