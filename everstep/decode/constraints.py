"""Automata that define the legal sequences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from everstep.errors import ConfigError


class Constraint(Protocol):
    """An automaton over tokens: a sequence is legal if every token of it is allowed and its last state accepts.

    States are hashable values; `allowed`, `advance` and `accepts` must be deterministic. The end token is not a token
    of the automaton: it is allowed where `accepts` is true.
    """

    @property
    def start(self) -> Hashable:
        """The state before the first token after the prompt."""

    def allowed(self, state: Any) -> Tensor | None:
        """(vocabulary,) bool: the allowed next tokens; None for all."""

    def advance(self, state: Any, token: int) -> Hashable:
        """The state after one more token."""

    def accepts(self, state: Any) -> bool:
        """Whether the sequence may end here."""


class Phrases:
    """Sequences that contain all given phrases as consecutive tokens, in any order; phrases may overlap.

    The beam is divided among hypotheses by their number of phrase tokens, so that more probable ones without phrase
    tokens do not crowd out the others: dynamic beam allocation (Post & Vilar 2018, "Fast lexically constrained
    decoding"), after grid beam search (Hokamp & Liu 2017).

    >>> both = Phrases([[3], [4, 5]])
    >>> state = both.start
    >>> for token in (4, 5, 3):
    ...     state = both.advance(state, token)
    >>> both.accepts(state), both.progress(state)
    (True, 3)

    Args:
        phrases: token ids, each at least one; a phrase given twice counts once.

    Raises:
        ConfigError: a phrase is empty.
    """

    def __init__(self, phrases: Sequence[Sequence[int]]):
        self._phrases = tuple(dict.fromkeys(tuple(map(int, phrase)) for phrase in phrases))
        if () in self._phrases:
            raise ConfigError("Phrases: each phrase should have at least one token, but one is empty")
        self.start: tuple[tuple[int, ...], frozenset[int]] = ((), frozenset())
        """The tokens of an open phrase at the end of the sequence, and the phrases that have appeared."""

    def allowed(self, state: Any) -> None:
        return None

    def advance(self, state: Any, token: int) -> tuple[tuple[int, ...], frozenset[int]]:
        tail, seen = state
        text = (*tail, token)
        seen = seen | {n for n, phrase in enumerate(self._phrases) if text[-len(phrase) :] == phrase}
        begun = (text[k:] for k in range(len(text)) if any(self._opens(n, text[k:], seen) for n in self._open(seen)))
        return next(begun, ()), seen

    def accepts(self, state: Any) -> bool:
        return len(state[1]) == len(self._phrases)

    def progress(self, state: Any) -> int:
        """The number of phrase tokens written, including those of an open phrase."""
        tail, seen = state
        return sum(len(self._phrases[n]) for n in seen) + len(tail)

    def wanted(self, state: Any) -> list[int]:
        """Tokens that continue or begin a phrase."""
        tail, seen = state
        on = [self._phrases[n][len(tail)] for n in self._open(seen) if self._opens(n, tail, seen)]
        return list(dict.fromkeys(on + [self._phrases[n][0] for n in self._open(seen)]))

    def _open(self, seen: frozenset[int]) -> list[int]:
        return [n for n in range(len(self._phrases)) if n not in seen]

    def _opens(self, n: int, tail: tuple[int, ...], seen: frozenset[int]) -> bool:
        phrase = self._phrases[n]
        return n not in seen and len(tail) < len(phrase) and phrase[: len(tail)] == tail


class Automata:
    """The constraints of a batch; numbers each state reached, so that tensors can hold states.

    Args:
        constraints: one for each lane; None for no constraint.
        vocabulary: number of tokens.
        end: the end token.
        device: device of the tensors.
    """

    def __init__(
        self, constraints: Sequence[Constraint | None], vocabulary: int, end: int | None, device: torch.device
    ):
        self._vocabulary, self._end, self._device = vocabulary, end, device
        self._numbers: dict[tuple[int, Hashable], int] = {}
        self._states: list[tuple[Constraint | None, Any]] = []
        self._masks: dict[tuple[int, bool], Tensor] = {}
        self._next: dict[tuple[int, int], int] = {}
        self.start = self._tensor([self._number(one, None if one is None else one.start) for one in constraints])
        """(lanes,), the numbers of the initial states."""
        self.share_beam = any(hasattr(one, "progress") for one in constraints)
        """Whether hypotheses compete only with those of equal progress."""

    def mask(self, numbers: Tensor, last: bool) -> Tensor:
        """(n, vocabulary) bool: the legal next tokens; `last`: whether it is the last token."""
        distinct, inverse = numbers.unique(return_inverse=True)
        return torch.stack([self._mask(number, last) for number in distinct.tolist()])[inverse]

    def advance(self, numbers: Tensor, tokens: Tensor) -> Tensor:
        """The states after one more token, (n,)."""
        return self._tensor([self._after(*pair) for pair in zip(numbers.tolist(), tokens.tolist(), strict=True)])

    def progress(self, numbers: Tensor) -> Tensor:
        """(n,) int64 ≥ 0: the progress of each state."""
        found = [self._states[number] for number in numbers.tolist()]
        return self._tensor([one.progress(state) if hasattr(one, "progress") else 0 for one, state in found])

    def wanted(self, numbers: Tensor) -> Tensor:
        """(n, most) int64: the tokens that advance each state, padded with token 0."""
        found = [self._states[number] for number in numbers.tolist()]
        rows = [one.wanted(state) if hasattr(one, "wanted") else [] for one, state in found]
        wrong = [token for row in rows for token in row if token == self._end or not 0 <= token < self._vocabulary]
        if wrong:
            raise ConfigError(
                f"beam_search: a phrase has token {wrong[0]}, which ends sequences or is not among the model's "
                f"{self._vocabulary}, 0 … {self._vocabulary - 1}"
            )
        most = max(map(len, rows))
        return self._tensor([row + [0] * (most - len(row)) for row in rows])

    def _number(self, constraint: Constraint | None, state: Hashable) -> int:
        number = self._numbers.setdefault((id(constraint), state), len(self._states))
        if number == len(self._states):
            self._states.append((constraint, state))
        return number

    def _after(self, number: int, token: int) -> int:
        constraint, state = self._states[number]
        if constraint is None or token == self._end:
            return number
        if (number, token) not in self._next:
            self._next[number, token] = self._number(constraint, constraint.advance(state, token))
        return self._next[number, token]

    def _mask(self, number: int, last: bool) -> Tensor:
        if (number, last) not in self._masks:
            self._masks[number, last] = self._made(number, last)
        return self._masks[number, last]

    def _made(self, number: int, last: bool) -> Tensor:
        constraint, state = self._states[number]
        mask = torch.ones(self._vocabulary, dtype=torch.bool, device=self._device)
        if constraint is None:
            return mask
        given = constraint.allowed(state)
        if given is not None:
            if given.shape != mask.shape or given.dtype != torch.bool:
                raise ConfigError(
                    f"{type(constraint).__name__}.allowed: the mask should be bool of shape ({self._vocabulary},), "
                    f"one a token, but is {given.dtype} of shape {tuple(given.shape)}"
                )
            mask &= given.to(self._device)
        if self._end is not None:
            mask[self._end] = constraint.accepts(state)
        elif last:
            for token in mask.nonzero()[:, 0].tolist():
                mask[token] = constraint.accepts(self._states[self._after(number, token)][1])
        return mask

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
