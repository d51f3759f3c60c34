"""Language models in a search over labels: one token a label, or words of characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from everstep.decode.decoder import Decoder
from everstep.decode.prefix_beam import Continuation, Floats
from everstep.state import State, map_state, select


class _Read(NamedTuple):
    """What a language model has read: log p of the next token (V,), its state of one row, letters of a word begun."""

    log_p: Floats
    state: State
    letters: str = ""


class _Stepped:
    """A `Decoder` that reads tokens for several prefixes at a time, always in as many rows."""

    def __init__(self, decoder: Decoder, rows: int):
        self._decoder, self._rows = decoder, rows

    @torch.no_grad()
    def begin(self) -> _Read:
        """After the prompt."""
        state, log_p = self._decoder.state, torch.zeros(1, 0)
        for token in self._decoder.prompt:
            log_p, state = self._decoder.step(token[None], state)
        return _Read(_floats(log_p)[0], state)

    @torch.no_grad()
    def after(self, before: Sequence[_Read], tokens: Sequence[int]) -> list[_Read]:
        """After each of some prefixes and one more token."""
        found: list[_Read] = []
        for start in range(0, len(tokens), self._rows):
            some, ids = before[start : start + self._rows], tokens[start : start + self._rows]
            spare = self._rows - len(ids)
            states = [one.state for one in some] + [some[0].state] * spare
            state = map_state(lambda *parts: torch.cat(parts), states[0], *states[1:])
            given = torch.tensor([*ids, *[ids[0]] * spare], device=self._decoder.prompt.device)
            log_p, state = self._decoder.step(given, state)
            rows = _floats(log_p)
            found += [_Read(rows[row], select(state, torch.tensor([row]))) for row in range(len(ids))]
        return found


class TokenFusion:
    """α log p(l_u | l_<u) + β for each label l_u, and α log p(end), where each label is a token of a language model.

    Args:
        decoder: the language model, after the symbol that begins.
        tokens: (K,) the token of each label.
        alpha, beta: α and β.
        rows: prefixes that are read at a time.
    """

    def __init__(self, decoder: Decoder, tokens: Sequence[int], alpha: float, beta: float, rows: int):
        self._model, self._end = _Stepped(decoder, rows), decoder.end
        self._tokens, self._alpha, self._beta = np.array(tokens), alpha, beta

    def begin(self) -> Continuation:
        """After no label."""
        return self._said(self._model.begin())

    def after(self, before: Sequence[Continuation], labels: Sequence[int]) -> list[Continuation]:
        """After each of some prefixes and one more label."""
        tokens = [int(self._tokens[label]) for label in labels]
        return [self._said(read) for read in self._model.after([one.state for one in before], tokens)]

    def _said(self, read: _Read) -> Continuation:
        scores = self._alpha * read.log_p[self._tokens] + self._beta
        return Continuation(scores, 0.0 if self._end is None else self._alpha * float(read.log_p[self._end]), read)


class WordFusion:
    """α log p(w | words before it) + β for each word w of characters, at the space or the end after it.

    Args:
        decoder: a language model of words, after the symbol that begins.
        symbols: (K,) the character of each label, a space among them.
        token_of: the token of a word; None: the language model lacks it, and p is 0.
        alpha, beta: α and β.
        rows: prefixes that are read at a time.
    """

    def __init__(
        self,
        decoder: Decoder,
        symbols: Sequence[str],
        token_of: Callable[[str], int | None],
        alpha: float,
        beta: float,
        rows: int,
    ):
        self._model, self._symbols, self._token_of = _Stepped(decoder, rows), symbols, token_of
        self._alpha, self._beta = alpha, beta

    def begin(self) -> Continuation:
        """After no label."""
        return self._said(self._model.begin())

    def after(self, before: Sequence[Continuation], labels: Sequence[int]) -> list[Continuation]:
        """After each of some prefixes and one more label."""
        read: list[_Read] = [one.state for one in before]
        for place, label in enumerate(labels):
            if self._symbols[label] != " ":
                read[place] = read[place]._replace(letters=read[place].letters + self._symbols[label])
        ended = [place for place, label in enumerate(labels) if self._symbols[label] == " " and read[place].letters]
        known = [(place, token) for place in ended if (token := self._token_of(read[place].letters)) is not None]
        for (place, _), one in zip(
            known, self._model.after([read[place] for place, _ in known], [token for _, token in known]), strict=True
        ):
            read[place] = one
        return [self._said(one) for one in read]

    def _said(self, read: _Read) -> Continuation:
        scores = np.zeros(len(self._symbols))
        if not read.letters:
            return Continuation(scores, 0.0, read)
        token = self._token_of(read.letters)
        word = -np.inf if token is None else self._alpha * float(read.log_p[token]) + self._beta
        scores[[place for place, symbol in enumerate(self._symbols) if symbol == " "]] = word
        return Continuation(scores, word, read)


def _floats(log_p: Tensor) -> Any:
    return log_p.double().cpu().numpy()
