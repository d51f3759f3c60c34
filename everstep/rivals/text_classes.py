"""Baselines for text classifiers, which ignore word order or see a window of words.

Each is a logistic regression (class means where there are very many classes) on another set of binary features, so that
the measures compare the features. Features are weighted by inverse document frequency, and the vector of every text has
norm 1.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.errors import ConfigError, counted
from everstep.measures import ClassMeasures, class_measures
from everstep.rivals.class_means import ClassMeans

STRENGTHS = (1.0, 4.0, 16.0)
"""C, the inverse strength of the penalty; chosen on held-out texts."""
BIG_WINDOW = 50
MOST_CLASSES = 200
"""With more classes, class means take the place of logistic regression, which would take minutes and gigabytes."""
SHARPNESSES = (5.0, 20.0, 80.0)
"""Values of β of the class means, from which held-out texts choose."""
_DEFAULT_STRENGTH, _DEFAULT_SHARPNESS = 4.0, 20.0
_AT_ONCE = 4_000_000  # scores of texts and classes in memory
_MOST_WORDS = 2_000_000  # training words for two classes; bounds memory and time
_MOST_WEIGHTS = 5_000_000  # weights of all classes; the solver allocates about twenty times as much
_STEPS = 1000

Features = Callable[[Sequence[str]], list[str]]


class WordTexts(NamedTuple):
    """Texts as words, with classes.

    Attributes:
        words: N texts, each a sequence of words (or other symbols).
        targets: (N,) class ids from 0.
    """

    words: Sequence[Sequence[str]]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Rival:
    """A baseline and its measures on the test texts.

    Attributes:
        name: its features.
        accuracy: in [0, 1].
        macro_f1: see `ClassMeasures`.
        nats: mean of −ln p(target); infinite if the test has a class that training lacks.
        seconds: time for features, fits, choice of C, and evaluation.
        chosen: the options chosen on the held-out texts; empty if none.
        texts: number of training texts it was fitted to.
    """

    name: str
    accuracy: float
    macro_f1: float
    nats: float
    seconds: float
    chosen: str
    texts: int

    def record(self, trained: int) -> dict[str, Any]:
        """The measures by name. If not all of the `trained` texts were used, the name includes their number."""
        few = f", of {counted(self.texts, 'text')}" if self.texts < trained else ""
        figures = {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "loss": self.nats, "seconds": self.seconds}
        return {"name": self.name + few, **figures}


def text_rivals(
    train: WordTexts,
    test: WordTexts,
    valid: WordTexts | None = None,
    *,
    classes: int,
    window: int = 5,
    most_words: int = _MOST_WORDS,
) -> list[Rival]:
    """Fit baselines to `train` and evaluate them on `test`.

    - *majority class*: the most frequent class, with add-one smoothed class frequencies as probabilities.
    - *bag of words*: the words that occur.
    - *bag of n-grams*: the sequences of up to n words that occur; n is 2 or 3.
    - *last 5 words* (`window`): the word at each of the last positions, as a feed-forward network would read them.
    - *one big window*: the same for as many positions as the longest training text has words, at most 50.

    With more than `MOST_CLASSES` classes, each of these compares a text with the mean m_k of each class (Rocchio 1971)
    instead of logistic regression: p(k | x) ∝ e^(β cos(x, m_k)). β is chosen like C, by default 20.

    C and n are chosen by the accuracy on `valid` (ties by fewer nats); without `valid`, C = 4 and n = 2. The test texts
    choose nothing. If `train` has more than `most_words` words (fewer for 21 to 200 classes), an even sample of the
    texts is used, with at least one of each class; `Rival.texts` says how many.

    Args:
        train: texts of at least two classes.
        test: texts to evaluate on.
        valid: texts to choose C and n on.
        classes: number of classes.
        window: words in the small window.
        most_words: most training words; bounds time and memory.

    Raises:
        ConfigError: scikit-learn is not installed.
        ValueError: a set is empty, its words and targets differ in number, or `train` has one class only.

    Example:
        >>> texts = WordTexts([["so", "good"], ["so", "bad"]] * 20, np.array([1, 0] * 20))
        >>> [rival.accuracy for rival in text_rivals(texts, texts, classes=2)]
        [0.5, 1.0, 1.0, 1.0, 1.0]
    """
    require_scikit_learn()
    _check(train, test, valid, classes)
    found = [_majority(train, test, classes)]
    train = _at_most(train, most_words if classes > MOST_CLASSES else min(most_words, 20 * most_words // classes))
    big = min(max(map(len, train.words)), BIG_WINDOW)
    kinds: list[tuple[str, list[tuple[str, Features]]]] = [
        ("bag of words", [("", partial(n_grams, longest=1))]),
        ("bag of n-grams", [(f"n = {n}", partial(n_grams, longest=n)) for n in ((2, 3) if valid else (2,))]),
        (f"last {window} words", [("", partial(_placed, window=window))]),
        (f"one big window, {big} words", [("", partial(_placed, window=big))]),
    ]
    return found + [_regression(name, variants, train, test, valid, classes) for name, variants in kinds]


def require_scikit_learn() -> None:
    """Check that scikit-learn is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the rivals of a classifier need scikit-learn ({error}): pip install 'everstep[classification]'"
        ) from None


def _check(train: WordTexts, test: WordTexts, valid: WordTexts | None, classes: int) -> None:
    for name, texts in (("train", train), ("test", test), ("valid", valid)):
        if texts is None:
            continue
        if not len(texts.words) or len(texts.words) != len(texts.targets):
            raise ValueError(
                f"{name}: expected texts and as many targets, got {len(texts.words)} and {len(texts.targets)}"
            )
        if texts.targets.min() < 0 or texts.targets.max() >= classes:
            raise ValueError(f"{name}: expected targets 0 … {classes - 1}, got one of {texts.targets.max()}")
    if len(np.unique(train.targets)) < 2:
        raise ValueError("train: expected at least two classes, got one")


def _at_most(texts: WordTexts, words: int) -> WordTexts:
    """All texts, or an even sample with about `words` words and at least one text of each class."""
    total = sum(map(len, texts.words))
    if total <= words:
        return texts
    count = max(len(texts.words) * words // total, 1)
    taken = np.linspace(0, len(texts.words) - 1, count).astype(np.int64)
    of_each = np.unique(texts.targets, return_index=True)[1]
    kept = np.union1d(taken, of_each)
    return WordTexts([texts.words[index] for index in kept], texts.targets[kept])


def n_grams(words: Sequence[str], longest: int) -> list[str]:
    """All n-grams of up to `longest` words."""
    return [
        " ".join(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)
    ]  # fmt: skip


def _placed(words: Sequence[str], window: int) -> list[str]:
    """The last `window` words, each with its distance from the end."""
    return [f"{place} {word}" for place, word in enumerate(reversed(words[-window:]))]


def _majority(train: WordTexts, test: WordTexts, classes: int) -> Rival:
    start = time.perf_counter()
    counts = np.bincount(train.targets, minlength=classes)
    nats = -np.log((counts + 1) / (counts.sum() + classes))
    guesses = np.full(len(test.targets), counts.argmax())
    measured = class_measures(test.targets, guesses, classes, nats[test.targets])
    return _rival("majority class", measured, start, "", train)


class _Fit(NamedTuple):
    """A fitted model, its chosen options, and its measures on the held-out texts."""

    vectorise: Callable[[Sequence[Sequence[str]]], Any]
    model: Any
    chosen: str
    valid: ClassMeasures | None


def _regression(
    name: str,
    variants: list[tuple[str, Features]],
    train: WordTexts,
    test: WordTexts,
    valid: WordTexts | None,
    classes: int,
) -> Rival:
    start = time.perf_counter()
    fits = [fit for told, features in variants for fit in _fits(told, features, train, valid, classes)]
    best = min(fits, key=_rank)
    measured = _measured(best.model, best.vectorise(test.words), test.targets, classes)
    return _rival(name, measured, start, best.chosen, train)


def _fits(told: str, features: Features, train: WordTexts, valid: WordTexts | None, classes: int) -> Iterator[_Fit]:
    """One model for each C, or each β."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    most = _MOST_WEIGHTS // (1 if classes == 2 or classes > MOST_CLASSES else classes)
    vectors = TfidfVectorizer(analyzer=features, binary=True, max_features=most)
    given = vectors.fit_transform(train.words)
    held_out = None if valid is None else vectors.transform(valid.words)
    letter, strengths, default = ("C", STRENGTHS, _DEFAULT_STRENGTH)
    if classes > MOST_CLASSES:
        letter, strengths, default = ("β", SHARPNESSES, _DEFAULT_SHARPNESS)
    for strength in (default,) if valid is None else strengths:
        make = ClassMeans if classes > MOST_CLASSES else _logistic_regression
        model = make(given, train.targets, strength)
        if valid is None:
            yield _Fit(vectors.transform, model, "", None)
        else:
            chosen = ", ".join(part for part in (told, f"{letter} = {strength:g}") if part)
            yield _Fit(vectors.transform, model, chosen, _measured(model, held_out, valid.targets, classes))


def _logistic_regression(vectors: Any, targets: NDArray[np.int64], strength: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    two = len(np.unique(targets)) == 2
    solver = {"solver": "liblinear", "dual": True} if two else {"solver": "lbfgs"}  # dual: faster
    model = LogisticRegression(C=strength, max_iter=_STEPS, random_state=0, **solver)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(vectors, targets)


def _rank(fit: _Fit) -> tuple[float, float]:
    return (0.0, 0.0) if fit.valid is None else (-fit.valid.accuracy, fit.valid.nats or 0.0)


def _measured(model: Any, vectors: Any, targets: NDArray[np.int64], classes: int) -> ClassMeasures:
    """Some texts at a time, so that very many classes fit in memory."""
    guesses, nats = np.empty(len(targets), np.int64), np.full(len(targets), np.inf)
    place = np.full(classes, -1)
    place[model.classes_] = np.arange(len(model.classes_))
    some = max(1, _AT_ONCE // classes)
    for start in range(0, len(targets), some):
        part = slice(start, start + some)
        logs = model.predict_log_proba(vectors[part])
        guesses[part] = model.classes_[logs.argmax(axis=1)]
        at = place[targets[part]]
        nats[part] = np.where(at < 0, np.inf, -logs[np.arange(len(at)), at])
    return class_measures(targets, guesses, classes, nats)


def _rival(name: str, measured: ClassMeasures, start: float, chosen: str, train: WordTexts) -> Rival:
    nats = float("nan") if measured.nats is None else measured.nats
    seconds = time.perf_counter() - start
    return Rival(name, measured.accuracy, measured.macro_f1, nats, seconds, chosen, len(train.words))
