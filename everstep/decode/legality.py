"""The legal next tokens of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from everstep.decode.constraints import Automata, Constraint
from everstep.decode.decoder import Decoder
from everstep.decode.section import BeamSection
from everstep.errors import ConfigError
from everstep.state import State


class Wishes(NamedTuple):
    """Restrictions of the sequences, besides their lengths.

    Attributes:
        prefixes: for each source, forced first tokens, even if banned; () for none.
        constraints: for each source, an automaton or None; () for none.
        allowed: the only allowed tokens, besides the end token; None for all.
        banned: forbidden tokens.
    """

    prefixes: Sequence[Sequence[int]] = ()
    constraints: Sequence[Constraint | None] = ()
    allowed: Sequence[int] | None = None
    banned: Sequence[int] = ()


class Legality:
    """The legal sequences of a search: lengths, prefixes, tokens, repetitions and automata.

    A batch has a lane for each group of the beam of each source.

    Raises:
        ConfigError: restrictions that cannot be satisfied, or for another number of sources.
    """

    def __init__(self, decoder: Decoder, how: BeamSection, wishes: Wishes, sources: int):
        self._end, self._device, self._repeat = decoder.end, decoder.prompt.device, how.no_repeat
        self._fresh = decoder.fresh
        self._lanes = [source for source in range(sources) for _ in range(how.groups)]
        for name, given in (("prefixes", wishes.prefixes), ("constraints", wishes.constraints)):
            if not isinstance(given, Sequence):
                raise ConfigError(f"beam_search: expected {name} as a list, one a source; got {type(given).__name__}")
            if len(given) not in (0, sources):
                raise ConfigError(f"beam_search: expected {name} for {sources} sources; got {len(given)}")
        shortest, longest = _limits(decoder, how, sources)
        self.longest = self._of_lanes(longest)
        """(lanes,) maximal length of a sequence, without the end token."""
        self._shortest = self._of_lanes(shortest)
        self._first_end, self._last_start = min(longest, default=0), max(shortest, default=0)
        self._forced = max(map(len, wishes.prefixes), default=0)
        self._prefix = self._prefixes(wishes.prefixes, longest)
        self._allowed = wishes.allowed
        self._banned = sorted({*(() if how.unk else decoder.never), *wishes.banned} - {decoder.end})
        self._constraints = wishes.constraints if any(one is not None for one in wishes.constraints) else ()
        self._forbidden: Tensor | None = None
        self.automata: Automata | None = None
        """The automata of the constraints, once the vocabulary is known."""

    def learn(self, vocabulary: int) -> None:
        """Set the size of the vocabulary, which the first step reveals.

        Raises:
            ConfigError: a token is beyond it.
        """
        ids = [*self._banned, *(self._allowed or ()), *self._prefix[self._prefix >= 0].tolist()]
        for token in ids if self._end is None else [*ids, self._end]:
            if not 0 <= token < vocabulary:
                raise ConfigError(
                    f"beam_search: token {token} is not among the model's {vocabulary}, 0 … {vocabulary - 1}"
                )
        forbidden = torch.zeros(vocabulary, dtype=torch.bool, device=self._device)
        if self._allowed is not None:
            forbidden[:] = True
            forbidden[list(self._allowed) + ([] if self._end is None else [self._end])] = False
        forbidden[self._banned] = True
        self._forbidden = forbidden if forbidden.any() else None
        if self._constraints:
            each = [self._constraints[source] for source in self._lanes]
            self.automata = Automata(each, vocabulary, self._end, self._device)

    def legal(self, log_p: Tensor, t: int, lane: Tensor, numbers: State, written: State) -> Tensor:
        """log p (rows, vocabulary) of token t, −∞ for illegal tokens.

        Args:
            log_p: log p of the model; not changed, but that of an end which comes too early if the decoder is `fresh`.
            t: number of tokens written.
            lane: (rows,), the lane of each row.
            numbers: (rows,), states of the automata; () if there are none.
            written: (rows, t), the tokens so far; () if repetitions are allowed.
        """
        if self.automata is not None:
            log_p = log_p.masked_fill(~self._lawful(self.automata, numbers, t, lane), -torch.inf)
        lawful = log_p
        if self._forbidden is not None:
            log_p = log_p.masked_fill(self._forbidden, -torch.inf)
        if self._repeat is not None:
            log_p = _without_repeats(log_p, written, self._repeat)
        if self._end is not None and t < self._last_start:
            column = log_p[:, self._end].masked_fill(t < self._shortest[lane], -torch.inf)
            put = log_p.index_copy_ if self._fresh else log_p.index_copy
            log_p = put(1, self._end_of(lane[:1]), column[:, None])
        if self._end is not None and t >= self._first_end:
            log_p = _only(log_p, log_p, self._end_of(lane), t >= self.longest[lane])
        if t < self._forced:
            token = self._prefix[lane, t]
            log_p = _only(log_p, lawful, token.clamp(min=0), token >= 0)
        return log_p

    def _end_of(self, lane: Tensor) -> Tensor:
        return torch.full_like(lane, self._end if self._end is not None else 0)

    def _lawful(self, automata: Automata, numbers: Tensor, t: int, lane: Tensor) -> Tensor:
        mask = automata.mask(numbers, last=False)
        last = t + 1 >= self.longest[lane]
        if self._end is None and last.any():
            mask = torch.where(last[:, None], automata.mask(numbers, last=True), mask)
        return mask

    def _of_lanes(self, values: Sequence[int]) -> Tensor:
        return torch.tensor([values[source] for source in self._lanes], dtype=torch.int64, device=self._device)

    def _prefixes(self, prefixes: Sequence[Sequence[int]], longest: Sequence[int]) -> Tensor:
        """(lanes, longest prefix), with −1 for free tokens."""
        for source, prefix in enumerate(prefixes):
            if len(prefix) > longest[source]:
                most = longest[source]
                raise ConfigError(
                    f"beam_search: prefix {source} has {len(prefix)} tokens, but at most {most} are written"
                )
            if any(token < 0 or token == self._end for token in prefix):
                raise ConfigError(f"beam_search: prefix {source} has the token that ends or none that exists: {prefix}")
        padded = [[*prefix, *[-1] * (self._forced - len(prefix))] for prefix in prefixes]
        rows = [padded[source] for source in self._lanes] if prefixes else []
        return torch.tensor(rows, dtype=torch.int64, device=self._device)


def _only(log_p: Tensor, source: Tensor, token: Tensor, rows: Tensor) -> Tensor:
    """log p restricted to `token` (rows,), with its value in `source`, in the rows where `rows` is true."""
    alone = torch.full_like(log_p, -torch.inf).scatter(1, token[:, None], source.gather(1, token[:, None]))
    return torch.where(rows[:, None], alone, log_p)


def _without_repeats(log_p: Tensor, written: Tensor, size: int) -> Tensor:
    """log p with −∞ for tokens that would repeat an n-gram of length `size` in `written` (rows, t)."""
    t = written.shape[1]
    if t < size:
        return log_p
    windows = written.unfold(1, size, 1)  # (rows, t - size + 1, size)
    same = (windows[:, :, :-1] == written[:, None, t - size + 1 :]).all(-1)
    repeats = torch.zeros_like(log_p).scatter_reduce(1, windows[:, :, -1], same.to(log_p.dtype), "amax")
    return log_p.masked_fill(repeats.bool(), -torch.inf)


def _limits(decoder: Decoder, how: BeamSection, sources: int) -> tuple[list[int], list[int]]:
    """The minimal and the maximal length for each source."""
    if how.length_ratio is None and not how.min_ratio:
        return [how.min_length] * sources, [how.max_length] * sources
    if decoder.source_lengths is None:
        raise ConfigError(
            "beam_search: length_ratio and min_ratio need the lengths of sources, which this decoder lacks"
        )
    lengths = decoder.source_lengths.tolist()
    longest = [how.max_length] * sources
    if how.length_ratio is not None:
        within = [min(how.max_length, math.floor(how.length_ratio * length)) for length in lengths]
        longest = [max(how.min_length, length) for length in within]
    shortest = [max(how.min_length, math.ceil(how.min_ratio * length)) for length in lengths]
    return [min(low, high) for low, high in zip(shortest, longest, strict=True)], longest
