"""An embedding that begins with pretrained word vectors: `model.vectors` of a recipe, for any job that embeds words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from everstep.data.readers.vector_files import read_vector_file
from everstep.data.text.vocabulary import METASPACE
from everstep.errors import ConfigError, DataError
from everstep.networks.word_reader import WordSection
from everstep.runs.capabilities import Embeds
from everstep.runs.task import Task


def begin_embedding(task: Task[Any], model: nn.Module, say: Callable[[str], None]) -> None:
    """Fill the embedding of a new model from the file `model.vectors`, if there is one, and say how many words it has.

    A word takes the vector of itself, else of its lower case; others keep their random beginning, and so do sub-words
    within a word. All are learned further.

    Raises:
        DataError: the file cannot be used, or has no word of the vocabulary.
        ConfigError: the job has no embedding of words.
    """
    section = getattr(task.recipe, "model", None)
    path = getattr(section, "vectors", None)
    if path is None or isinstance(section, WordSection):  # a reader of words also knows words that only the file has
        return
    if not isinstance(task, Embeds):
        raise ConfigError(f"model.vectors: expected null, since {task.recipe.task} has no embedding of words to begin")
    weight, words = task.embedded(model)
    found = read_vector_file(path, weight.shape[1])
    places = {word: place for place, word in enumerate(found.words)}
    rows = [(row, places.get(word, places.get(word.lower()))) for row, word in enumerate(_whole(words))]
    covered = [(row, place) for row, place in rows if place is not None]
    if not covered:
        raise DataError(
            f"{path} (model.vectors): has none of the {len(words):,} tokens of the vocabulary; expected such as "
            f"{', '.join(map(repr, words[-3:]))}"
        )
    to, of = map(list, zip(*covered, strict=True))
    with torch.no_grad():
        weight[to] = torch.from_numpy(found.numbers[of]).to(weight)
    repeated = f"; {found.repeated:,} words of it occurred again and were skipped" if found.repeated else ""
    say(
        f"vectors: {len(found.words):,} of {weight.shape[1]} numbers; {len(covered):,} of {len(words):,} tokens of the "
        f"vocabulary begin with one ({len(covered) / len(words):.1%}){repeated}"
    )


def _whole(tokens: Sequence[str]) -> list[str]:
    """The words that tokens spell; among sub-words those that begin a word, "" for others."""
    marks = (" ", METASPACE)
    marked = any(len(token) > 1 and token[0] in marks for token in tokens)
    return [token[1:] if token[:1] in marks else "" if marked else token for token in tokens]
