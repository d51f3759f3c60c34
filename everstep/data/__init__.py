"""Text to tokens to batches. Names are resolved on first use: reading and tokenising text never imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everstep.data.batches import Batches, TokenBatch
    from everstep.data.buckets import Buckets
    from everstep.data.corpus import Corpus, prepare
    from everstep.data.labelled import Labelled, read_labelled
    from everstep.data.lanes import Lanes
    from everstep.data.text import expand, open_text, read_blocks
    from everstep.data.tokenizer import Counts, Tokenizer
    from everstep.data.trees import Tree, read_trees

_HOMES = {
    "TokenBatch": "batches",
    "Batches": "batches",
    "Buckets": "buckets",
    "Corpus": "corpus",
    "Counts": "tokenizer",
    "Labelled": "labelled",
    "Lanes": "lanes",
    "Tokenizer": "tokenizer",
    "Tree": "trees",
    "expand": "text",
    "open_text": "text",
    "prepare": "corpus",
    "read_blocks": "text",
    "read_labelled": "labelled",
    "read_trees": "trees",
}

__all__ = [
    "Batches",
    "Buckets",
    "Corpus",
    "Counts",
    "Labelled",
    "Lanes",
    "TokenBatch",
    "Tokenizer",
    "Tree",
    "expand",
    "open_text",
    "prepare",
    "read_blocks",
    "read_labelled",
    "read_trees",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"everstep.data.{_HOMES[name]}"), name)
