"""How lines of one language become tokens, and tokens become lines: one side of a set of translations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from everstep.data.pair_batches import TokenSequences
from everstep.data.text.moses import Moses
from everstep.data.text.tokenizer import Tokenizer

BLOCK = 1024
"""Lines tokenised at a time."""


class Language:
    """A tokenizer with `<eos>`, which ends each line, and what is done before and after it.

    >>> tokenizer = Tokenizer.train(["a man and a dog\\n"], "words")
    >>> words = Language(tokenizer)
    >>> coded = words.encode(["a dog", ""])
    >>> coded.tokens.tolist(), coded.lengths.tolist()
    ([2, 4, 0, 0], [3, 1])
    >>> words.text([2, 4, 0])
    'a dog'

    Args:
        tokenizer: of this language, or of both.
        moses: parts words and punctuation marks before, and puts them together after; None: nothing does.
        reverse: tokens come in reverse (Sutskever 2014), but the end.
        tag: a token before each line, beyond those of the vocabulary, and its name.
        own: the tokens that training texts have, by language, where a model writes several.
        only: those of this language; None: any.

    Raises:
        ValueError: a tokenizer without `<eos>`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        moses: Moses | None = None,
        reverse: bool = False,
        tag: tuple[int, str] | None = None,
        own: Mapping[str, Sequence[int]] | None = None,
        only: Sequence[int] | None = None,
    ):
        if tokenizer.eos_id is None:
            raise ValueError("Language: expected a tokenizer whose lines end with <eos>")
        self.tokenizer, self.moses, self.reverse, self.tag = tokenizer, moses, reverse, tag
        self.end: int = tokenizer.eos_id
        self.own, self.only = own or {}, only

    def toward(self, target: str, targets: Sequence[str], moses: Moses | None = None) -> Language:
        """This language as the source of a model of several target languages (Johnson 2017).

        The token V + k, which is written as `<2fr>`, is before each line, where `target` is number k of `targets`.
        `moses` is that of the lines.

        >>> words = Language(Tokenizer.train(["a man\\n"], "words"))
        >>> words.toward("fr", ["de", "fr"]).encode(["a man"]).tokens.tolist(), words.tokenizer.vocab_size
        ([5, 2, 3, 0], 4)
        """
        tag = self.tokenizer.vocab_size + targets.index(target), f"<2{target}>"
        return Language(self.tokenizer, moses, self.reverse, tag)

    def written_as(self, target: str, moses: Moses | None = None) -> Language:
        """This language as the target of a model of several: as `target`, whose lines are those of `moses`."""
        return Language(self.tokenizer, moses, own=self.own, only=self.own.get(target))

    def encode(self, lines: Iterable[str]) -> TokenSequences:
        """The tokens of each line, the tag and `<eos>` included; an empty line is these alone."""
        source = iter(lines)
        tokens: list[NDArray[np.generic]] = [np.empty(0, self.tokenizer.dtype)]
        lengths: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        while block := [as_words(line, self.tokenizer.kind, self.moses) for line in islice(source, BLOCK)]:
            found, ends = self._block(block)
            if self.reverse:
                found = found[_reversed(ends)]
            tokens.append(found)
            lengths.append(np.diff(ends, prepend=-1))
        coded = TokenSequences.of(np.concatenate(tokens), np.concatenate(lengths))
        return coded if self.tag is None else _tagged(coded, self.tag[0])

    def _block(self, lines: list[str]) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """The tokens of some lines, and the place of each line's end."""
        found = self.tokenizer.encode("".join(lines))
        ends = np.flatnonzero(found == self.end)
        if len(ends) == len(lines):
            return found, ends
        each = [self.tokenizer.encode(line) for line in lines]  # where a text itself has the word <eos>
        return np.concatenate(each), np.cumsum([len(one) for one in each]) - 1

    def text(self, ids: Sequence[int]) -> str:
        """The line that tokens spell; `<eos>`, wherever it is, is a space or nothing."""
        return self.written(self.tokenizer.decode(ids))

    def written(self, spelled: str) -> str:
        """A line of what the tokenizer spells, as one writes it."""
        line = " ".join(spelled.split()) if self.tokenizer.kind != "chars" else spelled.replace("\n", " ").strip(" ")
        return line if self.moses is None else self.moses.joined(line)

    def words(self, line: str) -> list[str]:
        """The words of a line in the order in which its tokens are read, where a token is a word."""
        found = as_words(line, self.tokenizer.kind, self.moses).split()
        return found[::-1] if self.reverse else found

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, for alignments; the end is `<eos>`."""
        if self.tag is not None and self.tag[0] in ids:
            return [self.tag[1] if i == self.tag[0] else self.pieces([i])[0] for i in ids]
        if self.tokenizer.kind in ("bytes", "bpe"):
            return [self.tokenizer.symbols[i].removeprefix(" ") or self.tokenizer.symbols[i] for i in ids]
        return [self.tokenizer.symbols[i] for i in ids]


def as_words(line: str, kind: str, moses: Moses | None) -> str:
    """A line as a tokenizer reads it: its first word with the space before it that any other has, and its end."""
    line = line if moses is None else moses.parted(line)
    return f" {line}\n" if kind in ("bpe", "unigram") and line else f"{line}\n"


def _tagged(coded: TokenSequences, tag: int) -> TokenSequences:
    """The sequences with one more token before each."""
    kind = np.promote_types(coded.tokens.dtype, np.min_scalar_type(tag))
    return TokenSequences.of(np.insert(coded.tokens.astype(kind), coded.starts, tag), coded.lengths + 1)


def _reversed(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of tokens with each line's in reverse but its end; `ends` are those of the lines' ends."""
    lengths = np.diff(ends, prepend=-1)
    starts = ends - lengths + 1
    places = np.arange(int(lengths.sum()))
    turned = np.repeat(starts + ends - 1, lengths) - places
    turned[ends] = ends
    return turned
