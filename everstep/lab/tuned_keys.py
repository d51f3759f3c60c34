"""The keys of a recipe that a study changes, each over a range or among choices, as typed on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everstep.errors import ConfigError
from everstep.runs.recipe import Recipe
from everstep.runs.recipe_files import flat, load_task
from everstep.sections.messages import nearest

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"(log:)?({_NUMBER})\.\.({_NUMBER})")
_FIXED = ("task", "seed", "train.select", "train.select_best")  # decide what is compared; a trial has a seed of its own
_FORMS = "LOW..HIGH, log:LOW..HIGH or a,b,c"
_MOST_DROPOUT = 0.6


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; drawn on a logarithmic scale if `log`."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are tried before any work, as text."""
        return repr(self.low), repr(self.high)


@dataclass(frozen=True)
class Choices:
    """Some values, as the user wrote them."""

    key: str
    ends: tuple[str, ...]


Tuned = Range | Choices


def read_keys(
    recipe: str | Path, given: Sequence[str], say: Callable[[str], None], trust_code: bool = False
) -> tuple[list[str], list[Tuned]]:
    """Separate plain overrides from keys to tune, and check the ends of every range and all choices.

    >>> read_keys("shakespeare-minute", ["model.hidden_size=32..64", "model.cell=LSTM,GRU", "train.max_steps=5"], print)
    ... # doctest: +NORMALIZE_WHITESPACE
    (['train.max_steps=5'], [Range(key='model.hidden_size', low=32, high=64, log=False, whole=True),
    Choices(key='model.cell', ends=('LSTM', 'GRU'))])

    Without a key to tune there are those of `usual_keys`; one whose ends the recipe refuses is left out, and told.

    Raises:
        ConfigError: an unknown key, a range of a key that is no number, a value that the recipe refuses, or a job
            without steps.
    """
    fixed: list[str] = []
    tuned: list[Tuned] = []
    for text in given:
        found = parse_tuned(text)
        tuned += [] if found is None else [found]
        fixed += [text] if found is None else []
    task = load_task(recipe, fixed, trust_code)
    if not task.optimised:
        raise ConfigError(f"tune: expected a job that is trained in steps; {task.recipe.task} has none")
    base = task.recipe
    keys = [one.key for one in tuned]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ConfigError(f"tune: expected each key once; got {', '.join(sorted(twice))} again")

    def checked(one: Tuned) -> Tuned:
        return _checked(one, base, lambda text: load_task(recipe, [*fixed, text], trust_code).recipe)

    if tuned:
        return fixed, [checked(one) for one in tuned]
    for one in usual_keys(base):
        try:
            tuned.append(checked(one))
        except ConfigError as error:
            say(f"{one.key} is not tuned: {error}")
    return fixed, tuned


def parse_tuned(text: str) -> Tuned | None:
    """The range or the choices of KEY=VALUE; None for a plain override.

    >>> parse_tuned("train.learning_rate=log:1e-4..1e-2")
    Range(key='train.learning_rate', low=0.0001, high=0.01, log=True, whole=False)
    >>> parse_tuned("model.cell=LSTM,GRU,{type: LSTM, bias: false}").ends
    ('LSTM', 'GRU', '{type: LSTM, bias: false}')
    >>> parse_tuned("data.train=[a.txt, b.txt]") is None
    True

    Raises:
        ConfigError: a range that is empty, a logarithmic one that begins at 0 or below, or an empty choice.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    match = _RANGE.fullmatch(value)
    if match:
        low, high = (int(end) if re.fullmatch(r"[+-]?\d+", end) else float(end) for end in match.group(2, 3))
        if not low < high:
            raise ConfigError(f"{key}: expected LOW..HIGH with LOW below HIGH; got {value}")
        if match[1] and low <= 0:
            raise ConfigError(f"{key}: expected log:LOW..HIGH with LOW above 0; got {value}")
        return Range(key, low, high, log=bool(match[1]))
    if value.startswith("log:"):
        raise ConfigError(f"{key}: expected log:LOW..HIGH, such as log:1e-4..1e-2; got {value}")
    parts = _parts(value)
    if not equals or len(parts) < 2:
        return None
    if not all(parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"{key}: expected choices a,b,c, all different and none empty; got {value}")
    return Choices(key, tuple(parts))


def usual_keys(recipe: Recipe) -> Iterator[Range]:
    """The keys tuned if the user names none: learning rate, size of the state and dropouts, as far as there are any."""
    values = flat(recipe)
    rate = recipe.train.learning_rate
    yield Range("train.learning_rate", max(rate / 10, recipe.train.min_learning_rate), rate * 10, log=True)
    size = values.get("model.hidden_size")
    if type(size) is int:
        yield Range("model.hidden_size", max(1, size // 2), 2 * size, log=True, whole=True)
    for key, value in values.items():
        used = type(value) is float and (value > 0 or key == "model.dropout")
        if key.startswith("model.") and key.endswith("dropout") and used:
            yield Range(key, 0.0, max(_MOST_DROPOUT, value))


def _parts(value: str) -> list[str]:
    """The text cut at commas, except within brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _checked(one: Tuned, base: Recipe, changed: Callable[[str], Any]) -> Tuned:
    """The key as a study uses it, once the recipe has accepted the ends of its range or all of its choices."""
    known = flat(base)
    if one.key in _FIXED:
        raise ConfigError(f"{one.key}: expected a key that leaves trials comparable; this one is the same for all")
    if one.key not in known:
        raise ConfigError(f"{one.key}: unknown key{nearest(one.key, type(base))}")
    values = [flat(changed(f"{one.key}={end}"))[one.key] for end in one.ends]
    if isinstance(one, Choices):
        return one
    if not all(type(value) in (int, float) for value in values):
        raise ConfigError(f"{one.key}: expected choices a,b,c, since it is no number; got a range of {_FORMS}")
    whole = all(type(value) is int for value in values)
    return Range(one.key, values[0], values[1], one.log, whole)
