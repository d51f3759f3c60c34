"""Hierarchical reading of long texts: words to sentence vectors, sentence vectors to a text vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from everstep.wirings import ReadOut

LONGEST_SENTENCE = 60
"""Tokens after which a sentence without an end is cut."""


class Places(NamedTuple):
    """Positions of the T tokens and S sentences of a batch of texts.

    Attributes:
        row, step: (T,) the text of each token, and its position there.
        sentence, word: (T,) the sentence of each token, numbered over all texts, and its position there.
        text, order: (S,) the text of each sentence, and its position there.
    """

    row: Tensor
    step: Tensor
    sentence: Tensor
    word: Tensor
    text: Tensor
    order: Tensor


class Hierarchy(nn.Module):
    """A read-out over the sentences of a text, each of which is a read-out over its words.

    Source: Yang 2016, "Hierarchical attention networks for document classification", where both are attention.

    Args:
        words: reads the words of a sentence.
        sentences: reads the sentence vectors of a text.

    Attributes:
        layer: the layer of `words`, for pictures.
        output_size: features of the text vector.
    """

    def __init__(self, words: ReadOut, sentences: ReadOut):
        super().__init__()
        self.words, self.sentences = words, sentences
        self.layer, self.output_size = words.layer, sentences.output_size

    def forward(self, xs: Tensor, lengths: Tensor, ends: Tensor) -> Tensor:
        """Text vectors (batch, output_size) of texts (batch, time, features); `ends` (batch, time): sentence ends."""
        at = places(lengths, ends)
        vector, _ = self.sentences(self._sentences(xs, at), lengths=_counts(at.text, len(xs)))
        return vector  # type: ignore[no-any-return]

    def attention(self, xs: Tensor, lengths: Tensor, ends: Tensor) -> Tensor | None:
        """The weight of each token, times the weight of its sentence, (batch, time); None unless both use attention."""
        at = places(lengths, ends)
        of_words = self.words.attention(_rows(xs[at.row, at.step], at.sentence, at.word), _counts(at.sentence))
        of_sentences = self.sentences.attention(self._sentences(xs, at), _counts(at.text, len(xs)))
        if of_words is None or of_sentences is None:
            return None
        weights = of_sentences[at.text, at.order][at.sentence] * of_words[at.sentence, at.word]
        return xs.new_zeros(xs.shape[:2]).index_put((at.row, at.step), weights)

    def _sentences(self, xs: Tensor, at: Places) -> Tensor:
        """The sentence vectors, (batch, sentences, features)."""
        if not len(at.row):
            return xs.new_zeros(len(xs), 0, self.words.output_size)
        vectors, _ = self.words(_rows(xs[at.row, at.step], at.sentence, at.word), lengths=_counts(at.sentence))
        return _rows(vectors, at.text, at.order, len(xs))


def places(lengths: Tensor, ends: Tensor, longest: int = LONGEST_SENTENCE) -> Places:
    """Split texts into sentences, after each end and after `longest` tokens without an end.

    Example:
        >>> at = places(torch.tensor([4, 1]), torch.tensor([[False, True, False, False], [True] * 4]))
        >>> at.sentence.tolist(), at.word.tolist(), at.text.tolist(), at.order.tolist()
        ([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [0, 0, 1], [0, 1, 0])
    """
    time = torch.arange(ends.shape[1], device=ends.device).expand_as(ends)
    starts = torch.ones_like(ends)
    starts[:, 1:] = ends[:, :-1]
    starts |= _since(starts, time) % longest == 0
    live = time < lengths[:, None]
    row, step = live.nonzero(as_tuple=True)
    order = starts.cumsum(1) - 1
    sentences = torch.where(live, order, -1).amax(1) + 1
    before = sentences.cumsum(0) - sentences
    sentence = (before[:, None] + order)[live]
    text = torch.repeat_interleave(sentences)
    in_text = torch.arange(len(text), device=text.device) - before[text]
    return Places(row, step, sentence, _since(starts, time)[live], text, in_text)


def laid_out(tokens: Tensor, lengths: Tensor, ends: Tensor) -> dict[str, Tensor]:
    """Texts as a table of sentences, for a runtime that cannot cut them.

    Args:
        tokens: (batch, time).
        lengths: (batch,).
        ends: (batch, time) bool: where sentences end.

    Returns:
        `sentences` (S, W), the tokens of each; `words` (S,), how many; `order` (batch, N), which sentences each text
        has; `lengths` (batch,), how many. A text without tokens has none; there is at least one row and one column.

    Example:
        >>> found = laid_out(torch.tensor([[5, 6, 7]]), torch.tensor([3]), torch.tensor([[False, True, False]]))
        >>> found["sentences"].tolist(), found["words"].tolist(), found["order"].tolist(), found["lengths"].tolist()
        ([[5, 6], [7, 0]], [2, 1], [[0, 1]], [2])
    """
    at = places(lengths, ends)
    if not len(at.row):
        nothing = lengths.new_zeros
        empty = {"sentences": nothing(1, 1), "words": nothing(1), "order": nothing(len(tokens), 1)}
        return {**empty, "lengths": nothing(len(tokens))}
    numbers = torch.arange(len(at.text), device=tokens.device)
    return {
        "sentences": _rows(tokens[at.row, at.step][:, None], at.sentence, at.word)[..., 0],
        "words": _counts(at.sentence),
        "order": _rows(numbers[:, None], at.text, at.order, len(tokens))[..., 0],
        "lengths": _counts(at.text, len(tokens)),
    }


def _since(starts: Tensor, time: Tensor) -> Tensor:
    """Steps since the last start."""
    return time - torch.where(starts, time, 0).cummax(1).values


def _counts(ids: Tensor, least: int = 0) -> Tensor:
    return torch.bincount(ids, minlength=least)


def _rows(values: Tensor, row: Tensor, place: Tensor, count: int | None = None) -> Tensor:
    """Scatter values (N, features) to (rows, places, features), zeros elsewhere."""
    rows = int(row[-1]) + 1 if count is None else count
    longest = int(place.max()) + 1 if len(place) else 0
    return values.new_zeros(rows, longest, values.shape[-1]).index_put((row, place), values)
