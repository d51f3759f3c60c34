"""Log-linear mixtures of runs: products of their distributions, renormalised over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.errors import RunError
from everstep.runs.compared_runs import Floats, Scored
from everstep.runs.run import Run
from everstep.state import State, map_state

FITTED_TOKENS = 2000
"""Most tokens of the validation text that the exponents are learned on; all distributions over them are in memory."""
FITTED_NUMBERS = 1 << 27
"""Most numbers of these distributions, of four bytes each: fewer tokens where there are many words or runs."""
ROWS = 64  # lines that are stepped side by side
ROUNDS = 100
HALVINGS = 40

Lines = list[NDArray[np.int64]]
Logs = NDArray[np.float32]


def log_linear(
    runs: Sequence[Run],
    tests: Sequence[Scored],
    valids: Sequence[Scored],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scored:
    """p(w | h) ∝ Π_k p_k(w | h)^λ_k, with exponents that are best on the beginning of the validation text.

    The log-likelihood is concave in λ (Klakow 1998); Newton's steps, halved where they would lower it, find its
    maximum, on at most 2,000 tokens, fewer where V is above 30,000 or so. Every distribution over the vocabulary is
    needed, so that a line is stepped through token by token, as in generation.

    Raises:
        RunError: a job does not generate, or the runs number other tokens.
    """
    for run in runs:
        run.able("generate")
    for other in tests[1:]:
        same = np.array_equal(other.ids, tests[0].ids) and [*other.symbols] == [*tests[0].symbols]
        if not len(tests[0].ids) or not same:
            raise RunError(
                f"a log-linear mixture needs runs of one vocabulary, whose words have the same numbers; those of "
                f"{other.name} and {tests[0].name} differ"
            )
    most = min(FITTED_TOKENS, FITTED_NUMBERS // (len(runs) * _words(runs[0])))
    exponents = _exponents(runs, _lines(valids[0], max(most, 1)))
    lines = _lines(tests[0])
    nats = np.zeros(len(lines))
    logps: list[list[Floats]] = [[] for _ in lines]
    done = 0
    for places, inside, targets, log_p in _distributions(runs, lines):
        mixed = np.einsum("k,kntv->ntv", exponents.astype(np.float32), log_p)
        found = np.take_along_axis(mixed, targets[..., None], -1)[..., 0] - _log_sum(mixed)
        for row, place in enumerate(places):
            logps[place].append(found[row][inside[row]])
            nats[place] -= found[row][inside[row]].sum()
            done += int(inside[row].sum())
        progress(done, len(tests[0].ids))
    told = " × ".join(f"{one.name}^{weight:.3f}" for one, weight in zip(tests, exponents, strict=True))
    parameters, first = sum(one.parameters for one in tests), tests[0]
    whole = np.concatenate([part for line in logps for part in line])
    return Scored(
        told, nats, first.tokens, first.unknown, parameters, whole, first.ids, symbols=first.symbols, unit=first.unit
    )


def _words(run: Run) -> int:
    """The number of words that a run gives a probability."""
    decoder = run.able("generate").decoder(run.model, "")
    with torch.inference_mode():
        return int(decoder.step(decoder.prompt[-1:], decoder.state)[0].shape[-1])


def _lines(of: Scored, most: int | None = None) -> Lines:
    """The tokens of each line; of the first lines, with at most `most` together, or of the beginning of the first."""
    ends = np.cumsum(of.tokens)
    lines = np.split(of.ids, ends[:-1])
    if most is None:
        return lines
    whole = int(np.searchsorted(ends, most, "right"))
    return lines[:whole] or [lines[0][:most]]


def _distributions(
    runs: Sequence[Run], lines: Lines
) -> Iterator[tuple[list[int], NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]]:
    """For each step of blocks of lines: their places, which have a token there, it, and log p (runs, rows, 1, V)."""
    order = sorted(range(len(lines)), key=lambda place: len(lines[place]))
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        longest = len(lines[places[-1]])
        ids = np.zeros((len(places), longest), np.int64)
        for row, place in enumerate(places):
            ids[row, : len(lines[place])] = lines[place]
        lengths = np.array([len(lines[place]) for place in places])
        decoders = [run.able("generate").decoder(run.model, "") for run in runs]
        states: list[State] = [
            map_state(lambda leaf: leaf.expand(len(places), *leaf.shape[1:]), one.state)  # noqa: B023 - used at once
            for one in decoders
        ]
        for step in range(longest):
            found = []
            for number, one in enumerate(decoders):
                before: Tensor = one.prompt[-1:].expand(len(places)) if not step else torch.from_numpy(ids[:, step - 1])
                with torch.inference_mode():
                    log_p, states[number] = one.step(before.to(one.prompt.device), states[number])
                found.append(log_p.float().cpu().numpy()[:, None])
            yield places, (lengths > step)[:, None], ids[:, step : step + 1], np.stack(found)


def _exponents(runs: Sequence[Run], lines: Lines) -> Floats:
    """The exponents that make the lines likeliest."""
    log_p, targets = [], []
    for _, inside, target, found in _distributions(runs, lines):
        log_p.append(found[:, inside])
        targets.append(target[inside])
    wanted = np.concatenate(targets)
    given = np.concatenate(
        [np.take_along_axis(part, ids[None, :, None], -1)[..., 0] for part, ids in zip(log_p, targets, strict=True)], 1
    ).astype(np.float64)
    exponents = np.full(len(runs), 1 / len(runs))
    reached = _likelihood(exponents, log_p, given)
    for _ in range(ROUNDS):
        means, second = _moments(exponents, log_p)
        gradient = (given - means).mean(1)
        curvature = second / len(wanted) - means @ means.T / len(wanted)
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(runs)), gradient)
        for _ in range(HALVINGS):
            likelihood = _likelihood(exponents + step, log_p, given)
            if likelihood >= reached:
                break
            step = step / 2
        else:  # no higher within float32
            return exponents
        exponents, reached = exponents + step, likelihood
        if np.abs(step).max() < 1e-6:
            break
    return exponents


def _mixed(exponents: Floats, part: Logs) -> Logs:
    """Σ_k λ_k log p_k of every word, (T, V)."""
    found: Logs = np.einsum("k,ktv->tv", exponents.astype(np.float32), part)
    return found


def _moments(exponents: Floats, parts: Sequence[Logs]) -> tuple[Floats, Floats]:
    """Of log p_k under the product: the mean at each token, (runs, T), and the second moments, (runs, runs), summed."""
    means, second = [], np.zeros((len(exponents), len(exponents)))
    for part in parts:
        mixed = _mixed(exponents, part)
        p = np.exp(mixed - _log_sum(mixed)[:, None].astype(np.float32))
        means.append(np.einsum("tv,ktv->kt", p, part, dtype=np.float64))
        second += [[(p * one * other).sum(dtype=np.float64) for other in part] for one in part]
    return np.concatenate(means, 1), second


def _likelihood(exponents: Floats, parts: Sequence[Logs], given: Floats) -> float:
    """The mean log p of the targets, whose log p_k are `given`, (runs, T)."""
    sums = np.concatenate([_log_sum(_mixed(exponents, part)) for part in parts])
    return float((exponents @ given - sums).mean())


def _log_sum(values: NDArray[np.floating]) -> Floats:
    """log Σ exp over the last dimension."""
    top = values.max(-1, keepdims=True)
    total: Floats = np.log(np.exp(values - top, dtype=np.float64).sum(-1)) + top[..., 0]
    return total
