"""Sparse non-negative matrices: against dictionaries, with one occurrence left out, and as a job."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import ConfigError, RunError
from everstep.rivals.sparse_matrix import SparseMatrixTable, context_kinds, fitted_adjustment
from everstep.rivals.sparse_matrix.context_kinds import Kind, context_keys, words_before
from everstep.rivals.sparse_matrix.count_adjustment import Adjustment
from everstep.rivals.sparse_matrix.pair_counts import PairCounts, count_pairs

V, BEGIN = 6, 0
KINDS = context_kinds(3, 2, 2)
Text = list[list[int]]


def sentences(count: int, seed: int = 0) -> Text:
    """Sentences that end with 0, in which words depend on the one before."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        line = [int(random.integers(1, V))]
        for _ in range(random.integers(0, 7)):
            line.append(1 + (line[-1] + int(random.geometric(0.5)) - 1) % (V - 1))
        found.append([*line, BEGIN])
    return found


def flat(text: Text) -> tuple[np.ndarray, np.ndarray]:
    return np.array([word for line in text for word in line], np.uint16), np.cumsum([0, *map(len, text[:-1])])


def counted(text: Text) -> tuple[list[PairCounts], list[np.ndarray], np.ndarray]:
    """The counts of all kinds, the place of each token's context, and the tokens."""
    tokens, starts = flat(text)
    before = words_before(tokens, starts, BEGIN, 4)
    counts = [count_pairs(kind, tokens, before, V) for kind in KINDS]
    contexts = [one.find(*context_keys(kind, before)) for kind, one in zip(KINDS, counts, strict=True)]
    return counts, contexts, tokens.astype(np.int64)


def feature(kind: Kind, line: list[int], at: int) -> tuple[int, ...] | None:
    """The words of a feature before a place of a sentence, None where it would reach beyond the begin symbol."""
    whole, places = [BEGIN, *line], [at + 1 - distance for distance in kind]
    return None if min(places, default=0) < 0 else tuple(whole[place] for place in places)


def dictionaries(text: Text) -> list[Counter[tuple[Any, int]]]:
    """How often each word follows each feature, for each kind."""
    found: list[Counter[tuple[Any, int]]] = [Counter() for _ in KINDS]
    for line in text:
        for at, word in enumerate(line):
            for number, kind in enumerate(KINDS):
                if (f := feature(kind, line, at)) is not None:
                    found[number][f, word] += 1
    return found


def by_hand(counts: list[Counter[tuple[Any, int]]], adjustment: Adjustment, line: list[int], at: int) -> np.ndarray:
    """p of every word at a place of a sentence."""
    y = np.full(V, math.exp(adjustment.uniform) / V)
    for number, kind in enumerate(KINDS):
        f = feature(kind, line, at)
        total = sum(counts[number][f, word] for word in range(V))
        for word in range(V):
            if f is not None and (count := counts[number][f, word]):
                x, z = math.log2(total), math.log2(count)
                a, b = int(x), int(z)
                grid = adjustment.grid[number]
                corners = [(a, b, 1 - x + a, 1 - z + b), (a, b + 1, 1 - x + a, z - b)]
                corners += [(a + 1, b, x - a, 1 - z + b), (a + 1, b + 1, x - a, z - b)]
                power = sum(grid[i, j] * one * other for i, j, one, other in corners)
                y[word] += math.exp(power) * count / total
    return y / y.sum()


def table_of(counts: list[PairCounts], adjustment: Adjustment) -> SparseMatrixTable:
    keys, pairs = [one.keys for one in counts], [one.pairs for one in counts]
    values = [
        adjustment.values(number, one.totals[one.pairs // V], one.counts).astype(np.float32)
        for number, one in enumerate(counts)
    ]
    sums = [np.bincount(one.pairs // V, v, len(one.keys)) for one, v in zip(counts, values, strict=True)]
    return SparseMatrixTable(V, KINDS, keys, pairs, sums, values, math.exp(adjustment.uniform))


def drawn(levels: int = 11) -> Adjustment:
    random = np.random.default_rng(1)
    return Adjustment(random.normal(size=(len(KINDS), levels, levels)), -1.0)


def test_kinds_are_n_grams_and_what_skips() -> None:
    assert KINDS == ((), (1,), (1, 2), (2,), (3,), (1, 3), (2, 3), (1, 4), (3, 4))
    assert context_kinds(2, 0, 3) == ((), (1,))
    assert len(context_kinds(5, 3, 2)) == 5 + 3 + 6


def test_probabilities_are_those_of_the_definition_and_add_up_to_one() -> None:
    text = sentences(60)
    table, counts = table_of(counted(text)[0], adjustment := drawn()), dictionaries(text)
    for line in [*text[:4], [5, 5, 1, 4, 2, BEGIN], [BEGIN]]:
        row = np.array([[BEGIN, *line]])
        wanted = np.stack([by_hand(counts, adjustment, line, at) for at in range(len(line))])
        state, end = table.initial_state(1), len(line) // 2
        first, middle = table.score(row[:, :end], row[:, 1 : end + 1], state)
        second, final = table.score(row[:, end:-1], row[:, end + 1 :], middle)
        found = np.concatenate((first, second), 1)[0]
        np.testing.assert_allclose(np.exp(found), wanted[np.arange(len(line)), line], rtol=1e-5)
        for at, word in enumerate([BEGIN, *line[:-1]]):
            log_p, state = table.step(np.array([word]), state)
            np.testing.assert_allclose(np.exp(log_p[0]), wanted[at], rtol=1e-5)
            assert np.exp(log_p.astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)
        assert state.tolist() == final.tolist()


def test_nothing_counts_before_a_reset() -> None:
    table = table_of(counted(sentences(60))[0], drawn())
    one, other = [1, 4, 2, 2, BEGIN], [3, 3, 5, BEGIN]
    line = np.array([[BEGIN, *one, *other]])
    resets = np.zeros((1, line.shape[1] - 1), np.bool_)
    resets[0, len(one)] = True
    found, final = table.score(line[:, :-1], line[:, 1:], table.initial_state(1), resets)
    parts = [
        table.score(np.array([[BEGIN, *row[:-1]]]), np.array([row]), table.initial_state(1)) for row in (one, other)
    ]
    np.testing.assert_allclose(found, np.concatenate([part[0] for part in parts], 1))
    assert final.tolist() == parts[1][1].tolist()


def test_the_loss_is_that_of_a_text_without_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value, by counting anew without each occurrence, and its gradient, by differences."""
    text = sentences(12)
    counts, contexts, tokens = counted(text)
    losses: list[Any] = []

    def minimize(loss: Any, start: np.ndarray, **how: Any) -> Any:
        losses.append((loss, start))
        return type("Found", (), {"x": start})

    monkeypatch.setattr("scipy.optimize.minimize", minimize)
    fitted_adjustment(counts, contexts, tokens, V)
    ((loss, start),) = losses
    theta = np.random.default_rng(2).normal(size=len(start)) / 2
    levels = math.isqrt((len(theta) - 1) // len(KINDS))
    adjustment = Adjustment(theta[:-1].reshape(len(KINDS), levels, levels), float(theta[-1]))
    nats, every = 0.0, dictionaries(text)
    for line in text:
        for at, word in enumerate(line):
            without = [Counter(one) for one in every]
            for number, kind in enumerate(KINDS):
                if (f := feature(kind, line, at)) is not None:
                    without[number][f, word] -= 1
            nats -= math.log(by_hand(without, adjustment, line, at)[word])
    found, gradient = loss(theta)
    assert found * len(tokens) - 0.5 * theta @ theta == pytest.approx(nats, rel=1e-9)
    for place in [*np.random.default_rng(3).choice(len(theta), 20), len(theta) - 1]:
        step = np.zeros(len(theta))
        step[place] = 1e-5
        assert gradient[place] == pytest.approx((loss(theta + step)[0] - loss(theta - step)[0]) / 2e-5, abs=1e-8)


def test_as_many_kinds_as_settings_allow_are_learned() -> None:
    kinds = context_kinds(16, 16, 4)
    tokens, starts = flat(sentences(12))
    before = words_before(tokens, starts, BEGIN, max(distance for kind in kinds for distance in kind))
    counts = [count_pairs(kind, tokens, before, V) for kind in kinds]
    contexts = [one.find(*context_keys(kind, before)) for kind, one in zip(kinds, counts, strict=True)]
    assert len(fitted_adjustment(counts, contexts, tokens.astype(np.int64), V).grid) == len(kinds) == 176


def test_adjustments_learn_what_new_text_is_like() -> None:
    text, new = sentences(400), sentences(200, seed=7)
    counts, contexts, tokens = counted(text)
    plain = Adjustment(np.zeros((len(KINDS), 14, 14)), 0.0)
    found = []
    for adjustment in (plain, fitted_adjustment(counts, contexts, tokens, V)):
        table, total, words = table_of(counts, adjustment), 0.0, 0
        for line in new:
            row = np.array([[BEGIN, *line]])
            total -= table.score(row[:, :-1], row[:, 1:], table.initial_state(1))[0].sum()
            words += len(line)
        found.append(total / words)
    assert found[1] < found[0] - 0.05


LINES = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog sat", "the mat and the log"] * 12


def trained(out: Path, *more: str) -> Any:
    text = out.with_suffix(".txt")
    text.write_text("\n".join(LINES) + "\n", "utf-8", newline="\n")
    overrides = [f"data.train={text}", f"data.test={text}", *more]
    return es.train("sparse-matrix", out, log=lambda line: None, overrides=overrides)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("more", [[], ["data.unit=chars", "data.sequence=stream", "model.order=4"], ["model.order=1"]])
def test_a_run_is_like_any_other(more: list[str], tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *more)
    found = run.evaluate("test")
    assert 1 < found["perplexity"] < 15
    again = es.load(run.path)
    assert again.evaluate("test") == found
    scores = again.score(LINES[:4])
    assert [one.logp for one in again.score(LINES[3::-1])] == [one.logp for one in scores][::-1]
    if not more:
        total = sum(score.logp for score in again.score(LINES))
        assert np.isclose(-total / found["tokens"], found["nats_per_token"], rtol=1e-6)
        assert (
            found["perplexity"]
            < trained(tmp_path / "one", "model.order=1", "model.skips=0").evaluate("test")["perplexity"] / 2
        )
    assert run.generate(length=12, seed=1) == again.generate(length=12, seed=1)
    card = (run.path / "README.md").read_text("utf-8")
    assert "entries" in card
    assert "without steps" in card


class TestLaws(JobLaws):
    job = "sparse-matrix-language-model"
    settings = ("model.order=3",)
    asked = [[line] for line in (*LINES[:3], "")]

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        (folder / "mine.txt").write_text("\n".join(LINES) + "\n")
        path = folder / "recipe.yaml"
        path.write_text(f"task: sparse-matrix-language-model\ndata: {{train: {folder}/mine.txt}}\n")
        return path


@pytest.mark.usefixtures("own_cache")
def test_runs_of_counts_are_mixed_and_damage_is_found(tmp_path: Path) -> None:
    run = trained(tmp_path / "snm")
    text = tmp_path / "snm.txt"
    other = es.train("kneser-ney", tmp_path / "kn", log=lambda line: None, overrides=[f"data.train={text}"])
    command = ["compare", str(run.path), str(other.path), "--on", str(text), "--weights-on", str(text), "--mix"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "snm" in done.output
    path = run.path / "sparse_matrix.safetensors"
    with pytest.raises(RunError, match="expected a table of n-grams; it is missing or damaged"):
        type(other.task.table).mapped(path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-4], b"\xff" * 200):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(content)
        with pytest.raises(RunError, match="expected a sparse matrix; it is missing or damaged"):
            SparseMatrixTable.mapped(broken)
    with pytest.raises(ConfigError, match=r"train.learning_rate: expected no such key"):
        trained(tmp_path / "rate", "train.learning_rate=0.1")
    with pytest.raises(ConfigError, match=r"model.skips: "):
        trained(tmp_path / "skips", "model.skips=-1")
