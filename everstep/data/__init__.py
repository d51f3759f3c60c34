"""Data sets: files, tokens, batches. Names are resolved on first use, so that tokenising text never imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everstep.data.batches import Batches, TokenBatch
    from everstep.data.buckets import Buckets
    from everstep.data.lanes import Lanes
    from everstep.data.readers.labelled import Labelled, read_labelled
    from everstep.data.readers.trees import LabelledTree, parse_tree, read_trees
    from everstep.data.text.corpus import Corpus, prepare
    from everstep.data.text.text_files import expand, open_text, read_blocks
    from everstep.data.text.tokenizer import Counts, Tokenizer

_HOMES = {
    "TokenBatch": "batches",
    "Batches": "batches",
    "Buckets": "buckets",
    "Corpus": "text.corpus",
    "Counts": "text.tokenizer",
    "Labelled": "readers.labelled",
    "Lanes": "lanes",
    "Tokenizer": "text.tokenizer",
    "LabelledTree": "readers.trees",
    "expand": "text.text_files",
    "open_text": "text.text_files",
    "parse_tree": "readers.trees",
    "prepare": "text.corpus",
    "read_blocks": "text.text_files",
    "read_labelled": "readers.labelled",
    "read_trees": "readers.trees",
}

__all__ = [
    "Batches",
    "Buckets",
    "Corpus",
    "Counts",
    "Labelled",
    "LabelledTree",
    "Lanes",
    "TokenBatch",
    "Tokenizer",
    "expand",
    "open_text",
    "parse_tree",
    "prepare",
    "read_blocks",
    "read_labelled",
    "read_trees",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"everstep.data.{_HOMES[name]}"), name)
