"""What `look` draws of any model over a passage: every file here, those that read least first.

A file has `CHARACTERS`, about how many of a text it asks for, and
`draw(found: Passage, out: Path, model: nn.Module, bar: Bar) -> list[tuple[Path, str]]`: the pictures that the passage
allows, written into `out`, each with a sentence that says what to see.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

Bar: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""A progress bar of a title; it is told how much is done of how much."""
