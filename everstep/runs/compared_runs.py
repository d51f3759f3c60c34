"""Runs side by side on one text: measures, paired bootstrap, mixtures and caches; for any job that scores lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.data import Tokenizer, expand, read_blocks
from everstep.data.text.vocabulary import UNK
from everstep.errors import ConfigError, DataError, RunError
from everstep.measures.bootstrap import paired_difference
from everstep.measures.mixing import cache_probabilities, em_weights
from everstep.networks.scoring import Score
from everstep.parameters import parameter_count
from everstep.runs.capabilities import HoldsLines, ScoresInOrder
from everstep.runs.run import Run

BLOCK = 1024  # lines scored at a time
LEAST_SHOWN = 0.0005  # smallest weight of a run that the name of a mixture shows, if two others remain
Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Scored:
    """One model on a text.

    Attributes:
        name: of the run, or of what was made of runs.
        nats: (lines,) -log p of each line.
        tokens: (lines,) scored tokens.
        unknown: number of tokens that are <unk>; None if the vocabulary has none.
        parameters: learned numbers.
        logps: (T,) log p of each token of all lines.
        ids: (T,) the tokens; empty if the job does not give them.
        symbols: the name of each token, by its number; empty if the job has no vocabulary.
        unit: by what bits are counted: "char", or the unit of a job whose lines stand for something else than text.
        adapted: whether it was adapted to the text before each token.
    """

    name: str
    nats: Floats
    tokens: NDArray[np.int64]
    unknown: int | None
    parameters: int
    logps: Floats = field(repr=False)
    ids: NDArray[np.int64] = field(repr=False)
    adapted: bool = False
    symbols: Sequence[str] = field(default=(), repr=False)
    unit: str = "char"


def lines_of(runs: Sequence[Run], split: str, option: str = "--on") -> tuple[list[str], str]:
    """The lines of a split, from the files of the first run that names some, and these names.

    Of jobs that hold lines (`HoldsLines`), those of the split, with or without a file of its own.

    Raises:
        DataError: no run names a file for it; the message says to give one by `option`.
    """
    for run in runs:
        if isinstance(run.task, HoldsLines) and split in run.task.splits():
            return run.task.lines(split), f"the {split} split of {run.path}"
        paths = getattr(getattr(run.recipe, "data", None), split, None)
        if paths:
            names = [paths] if isinstance(paths, str) else list(paths)
            return read_lines_of(names, getattr(run.recipe.data, "encoding", "utf-8")), ", ".join(names)  # type: ignore[attr-defined]
    raise DataError(f"no recipe of these runs names a file data.{split}; give the text with {option} FILE")


def read_lines_of(names: Sequence[str], encoding: str = "utf-8") -> list[str]:
    """The lines of text files that are not blank.

    Raises:
        DataError: a file cannot be read, or there are none.
    """
    text = "".join(f"{block}" for block in read_blocks(expand(list(names)), encoding))
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{', '.join(names)}: there is no line to score")
    return lines


def scored(
    run: Run,
    name: str,
    lines: Sequence[str],
    progress: Progress = lambda done, total: None,
    carried: bool = False,
) -> Scored:
    """A run on lines, each by itself and with its end, also where that is a token like any other.

    With `carried`, a run whose text is one stream reads the lines as one, its state carried over their ends.

    Raises:
        RunError: the job does not score lines.
        DataError: a line cannot be read.
    """
    found: list[Score] = []
    end = _line_end(run)
    if carried and isinstance(run.task, ScoresInOrder):
        found = run.task.score_in_order(run.model, [f"{line}{end}" for line in lines])
        progress(len(lines), len(lines))
    for start in range(len(found), len(lines), BLOCK):
        found += run.score([f"{line}{end}" for line in lines[start : start + BLOCK]], start + 1)
        progress(min(start + BLOCK, len(lines)), len(lines))
    counts = [score.unknown for score in found if score.unknown is not None]
    return Scored(
        name,
        np.array([-score.logp for score in found]),
        np.array([score.tokens for score in found], np.int64),
        sum(counts) if counts else None,
        parameter_count(run.model),
        np.array([p for score in found for p in score.token_logps]),
        np.array([number for score in found for number in score.ids], np.int64),
        symbols=getattr(getattr(run.task, "tokenizer", None), "symbols", ()),
        unit="char" if run.task.typed else run.task.unit,
    )


def _line_end(run: Run) -> str:
    """What makes `score` count the end of a line too; it takes off one newline, and adds <eos> where there is one."""
    tokenizer = getattr(run.task, "tokenizer", None)
    newline = isinstance(tokenizer, Tokenizer) and tokenizer.eos_id is None and tokenizer.newline_id is not None
    return "\n\n" if newline else ""


def mixture(tests: Sequence[Scored], valids: Sequence[Scored], cache: int | None = None) -> Scored:
    """Σ_k w_k p_k of models, and of a unigram cache if given, with the weights that are best on `valids` (by EM).

    The cache gives a token its share of the last `cache` tokens of the text (Kuhn & De Mori 1990), whose lines stay in
    their order.

    Raises:
        RunError: the models cut the lines into other tokens, or a cache lacks the tokens.
    """
    for first, other in [(some[0], other) for some in (tests, valids) for other in some[1:]]:
        if (difference := _difference(first, other)) is not None:
            raise RunError(
                f"{other.name} cuts the lines into other tokens than {first.name}, or knows other words{difference}, "
                "so that their probabilities are not of the same things; mix models of one vocabulary"
            )
    if cache is not None and not len(tests[0].ids):
        raise RunError(f"{tests[0].name}: a cache needs the tokens of each line, which this job does not give")
    parts = [[np.exp(one.logps) for one in some] for some in (valids, tests)]
    if cache is not None:
        for part, some in zip(parts, (valids, tests), strict=True):
            part.append(cache_probabilities(some[0].ids, cache))
    weights = em_weights(np.stack(parts[0]))
    names = [*(one.name for one in tests), *([] if cache is None else [f"cache {cache}"])]
    parted = list(zip(weights, names, strict=True))
    shown = [part for part in parted if part[0] >= LEAST_SHOWN or part[1] not in {one.name for one in tests}]
    told = " + ".join(f"{weight:.3f} {name}" for weight, name in (shown if len(shown) > 1 else parted))
    logps, of = np.log(weights @ np.stack(parts[1])), tests[0]
    nats = np.zeros(len(of.tokens))
    np.subtract.at(nats, np.repeat(np.arange(len(of.tokens)), of.tokens), logps)
    parameters = sum(one.parameters for one in tests)
    adapted = cache is not None
    return Scored(told, nats, of.tokens, of.unknown, parameters, logps, of.ids, adapted, of.symbols, of.unit)


def _difference(one: Scored, other: Scored) -> str | None:
    """Where two models have other tokens on the same lines, as text; None if nowhere, whatever their numbers."""
    if not np.array_equal(other.tokens, one.tokens):
        return ""
    if one.symbols and other.symbols and len(one.ids) == len(other.ids) > 0:
        number = {symbol: place for place, symbol in enumerate(one.symbols)}
        numbers = np.array([number.get(symbol, -1) for symbol in other.symbols])
        unlike = np.flatnonzero(numbers[other.ids] != one.ids)
        if not len(unlike):
            return None
        pair = (one.symbols[one.ids[unlike[0]]], other.symbols[other.ids[unlike[0]]])
        return f" ({pair[1]!r} where that has {pair[0]!r})"
    return None if other.unknown == one.unknown else ""


def table(models: Sequence[Scored], lines: Sequence[str], seed: int = 1) -> list[dict[str, Any]]:
    """A row for each model, best first: measures, and how much worse it is than the best.

    Returns:
        name, unit (`Scored.unit`, "char" if they differ), bits_per_UNIT, perplexity (per token), nats_per_token,
        tokens, unknown_share, lower_bound (whether there are <unk> for words that the text spells), parameters,
        adapted, and behind: bits a unit above the best with a 95 % interval (low, high) of a paired bootstrap over
        lines.
    """
    unit = models[0].unit if len({one.unit for one in models}) == 1 else "char"
    counts = np.array([len(line) + 1 for line in lines] if unit == "char" else models[0].tokens, np.float64)
    spelled = sum(line.split().count(UNK) for line in lines)
    ranked = sorted(models, key=lambda one: float(one.nats.sum()))
    rows = []
    for one in ranked:
        nats, tokens = float(one.nats.sum()), int(one.tokens.sum())
        difference, low, high = paired_difference(one.nats, ranked[0].nats, counts * math.log(2), seed)
        rows.append(
            {
                "name": one.name,
                "unit": unit,
                f"bits_per_{unit}": nats / math.log(2) / float(counts.sum()),
                "perplexity": math.exp(min(nats / tokens, 700)),
                "nats_per_token": nats / tokens,
                "tokens": tokens,
                "unknown_share": None if one.unknown is None else one.unknown / tokens,
                "lower_bound": (one.unknown or 0) > spelled,
                "parameters": one.parameters,
                "adapted": one.adapted,
                "behind": difference,
                "low": low,
                "high": high,
            }
        )
    return rows


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each run: that of its folder, or the path where two folders have the same name.

    Raises:
        ConfigError: a run is given twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("compare: a run is given twice")
    short = [path.resolve().name for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
