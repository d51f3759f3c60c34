"""N-grams: counts, Kneser-Ney against its definition, tables, memory; KenLM's reference scores."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from everstep.data.text.text_files import filled_in
from everstep.errors import DataError, RunError
from everstep.rivals.ngrams import NGramTable, count_ngrams, kneser_ney
from everstep.rivals.ngrams.arpa_reader import read_arpa
from everstep.rivals.ngrams.kneser_ney import discounts
from everstep.rivals.ngrams.workspace import Workspace

BEGIN = 0
FALLBACK = (0.5, 1.0, 1.5)
Text = list[list[int]]


def sentences(count: int, words: int, seed: int = 0) -> Text:
    """Sentences of a peaked distribution, each ending with 0."""
    random = np.random.default_rng(seed)
    draw = lambda: 1 + int(min(random.geometric(0.3), words - 1)) - 1 or 1  # noqa: E731
    return [[draw() for _ in range(random.integers(1, 8))] + [BEGIN] for _ in range(count)]


def fitted(text: Text, words: int, order: int, prune: tuple[int, ...] = (0,), memory: int = 1 << 24) -> NGramTable:
    tokens = np.array([word for line in text for word in line], np.uint16)
    starts = np.cumsum([0, *map(len, text[:-1])])
    work = Workspace(memory)
    levels = count_ngrams(tokens, starts, BEGIN, words, order, work)
    return kneser_ney(levels, words, work, prune=prune, fallback=FALLBACK)


class Defined:
    """Kneser-Ney by its definition, with dictionaries of tuples; "^" stands before a sentence."""

    def __init__(self, text: Text, words: int, order: int, prune: tuple[int, ...]):
        self.words, self.order = words, order
        self.raw: list[Counter[tuple[object, ...]]] = [Counter() for _ in range(order + 1)]
        for line in text:
            row = ["^", *line]
            for n in range(1, order + 1):
                for end in range(max(n, 2), len(row) + 1):
                    self.raw[n][tuple(row[end - n : end])] += 1
        self.adjusted = [Counter(raw) for raw in self.raw]
        for n in range(1, order):
            left: Counter[tuple[object, ...]] = Counter(gram[1:] for gram in self.raw[n + 1])
            self.adjusted[n] = Counter({g: c if g[0] == "^" else left[g] for g, c in self.raw[n].items()})
        self.cut = [0, 0, *(prune[min(n, len(prune)) - 1] for n in range(2, order + 1))]
        self.taken = [[0.0, *self._discounts(n)] for n in range(order + 1)]

    def _discounts(self, n: int) -> list[float]:
        times = Counter(self.adjusted[n].values())
        if not all(times[k] for k in (1, 2, 3)):
            return list(FALLBACK)
        y = times[1] / (times[1] + 2 * times[2])
        exact = [k - (k + 1) * y * times[k + 1] / times[k] for k in (1, 2, 3)]
        return exact if min(exact) > 0 else list(FALLBACK)

    def p(self, word: int, context: tuple[object, ...]) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        n = len(context) + 1
        below = self.p(word, context[1:]) if context else 1 / self.words
        after = {g: c for g, c in self.adjusted[n].items() if g[:-1] == context}
        total = sum(after.values())
        if not total:
            return below
        kept = {g: c - self.taken[n][min(c, 3)] for g, c in after.items() if self.raw[n][g] > self.cut[n]}
        return kept.get((*context, word), 0) / total + (1 - sum(kept.values()) / total) * below


@pytest.mark.parametrize(("order", "prune"), [(1, (0,)), (2, (0,)), (3, (0,)), (4, (0, 0, 1)), (3, (0, 1, 2))])
def test_kneser_ney_is_its_definition_and_sums_to_one(order: int, prune: tuple[int, ...]) -> None:
    words, text = 9, sentences(60, 9)
    table, defined = fitted(text, words, order, prune), Defined(text, words, order, prune)
    for line in [*text[:10], *sentences(5, words, seed=7), [8, 8, 8, 2, BEGIN]]:
        row: list[object] = ["^"]
        state = table.initial_state(1)
        log_p, state = table.step(np.array([BEGIN]), state)
        for word in line:
            expected = [defined.p(other, tuple(row)) for other in range(words)]
            np.testing.assert_allclose(np.exp(log_p[0].astype(float)), expected, rtol=3e-6)
            assert math.isclose(np.exp(log_p[0].astype(float)).sum(), 1, abs_tol=2e-6)
            row.append(word)
            log_p, state = table.step(np.array([word]), state)


def test_a_text_scores_as_its_steps() -> None:
    table = fitted(sentences(80, 12), 12, 4)
    rows = np.array([[BEGIN, 3, 1, 11, 2, 1, 1], [BEGIN, 1, 1, 2, 5, 1, 4]])
    log_p, after = table.score(rows[:, :-1], rows[:, 1:], table.initial_state(2))
    state = table.initial_state(2)
    for place in range(6):
        every, state = table.step(rows[:, place], state)
        np.testing.assert_allclose(log_p[:, place], every[[0, 1], rows[:, place + 1]], rtol=1e-6)
    assert np.array_equal(after, state)
    first, middle = table.score(rows[:, :3], rows[:, 1:4], table.initial_state(2))
    rest, end = table.score(rows[:, 3:-1], rows[:, 4:], middle)
    np.testing.assert_array_equal(np.concatenate([first, rest], 1), log_p)
    assert np.array_equal(end, after)


def test_a_reset_forgets_all_that_was_before() -> None:
    table = fitted(sentences(80, 12), 12, 3)
    flat = np.array([[BEGIN, 3, 1, BEGIN, 2, 1, 1]])
    resets = np.zeros((1, 6), bool)
    resets[0, 3] = True
    log_p, _ = table.score(flat[:, :-1], flat[:, 1:], table.initial_state(1), resets)
    alone, _ = table.score(flat[:, 3:-1], flat[:, 4:], table.initial_state(1))
    np.testing.assert_array_equal(log_p[:, 3:], alone)


def test_a_stream_is_one_sequence_and_needs_no_begin_symbol() -> None:
    tokens, work = np.array([1, 2, 0, 1, 2, 0, 1], np.uint8), Workspace(1 << 20)
    levels = count_ngrams(tokens, np.array([0]), None, 3, 3, work)
    assert levels[1].keys.tolist() == [1, 5, 6]
    assert levels[1].raw.tolist() == [2, 2, 2]
    assert levels[0].adjusted.tolist() == [1, 2, 1]  # the first 1 has nothing before it
    assert levels[1].adjusted.tolist() == [1, 2, 1]
    assert levels[2].raw.tolist() == [1, 2, 2]


def test_little_memory_gives_the_same_table() -> None:
    text = sentences(6000, 300, seed=3)
    one, two = fitted(text, 300, 4), fitted(text, 300, 4, memory=1 << 16)
    assert isinstance(two.keys[-1], np.memmap)
    assert not isinstance(one.keys[-1], np.memmap)
    for ours, theirs in zip([*one.keys, *one.log_p, *one.backoff], [*two.keys, *two.log_p, *two.backoff], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_sentence_and_orders_longer_than_it() -> None:
    table = fitted([[1, 2, BEGIN]], 3, 10)
    assert [len(logs) for logs in table.log_p] == [3, 3, 2, 1, 0, 0, 0, 0, 0, 0]
    log_p, _ = table.score(np.array([[0, 1, 2]]), np.array([[1, 2, 0]]), table.initial_state(1))
    assert np.isfinite(log_p).all()
    every, _ = table.step(np.array([2]), np.array([[1] + [-1] * 8]))
    assert math.isclose(float(np.exp(every).sum()), 1, abs_tol=1e-6)


def test_undefined_discounts_say_the_way_out() -> None:
    with pytest.raises(DataError, match=r"order 3.*4, 0, 0 and 0.*model.fallback_discounts=\[0.5,1,1.5\]"):
        discounts(np.array([1, 1, 1, 1]), 3, None, Workspace(1 << 20))


def test_a_table_is_mapped_from_its_file(tmp_path: Path) -> None:
    table = fitted(sentences(80, 12), 12, 3)
    path = tmp_path / "table"
    path.write_bytes(b"".join(table.pieces()))
    again = NGramTable.mapped(path)
    assert isinstance(again.keys[1], np.memmap)
    assert len(again) == len(table)
    assert again.order == 3
    for ours, theirs in zip([*table.keys, *table.backoff], [*again.keys, *again.backoff], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match="expected a table of n-grams"):
        NGramTable.mapped(path)


def kenlm(name: str) -> Path:
    path = Path(filled_in("${EVERSTEP_DATA}/kenlm_arpa")) / name
    if not path.exists():
        pytest.skip("needs kenlm_arpa in EVERSTEP_DATA")
    return path


REFERENCE = {
    "looking": -0.484652,
    "on": -0.348837,
    "a": -0.0155266,
    "little": -0.00306122,
    "the": -4.04005,
    "biarritz": -1.9889,
    "not_found": -2.29666,
    "more": -21.20632,
    ".": -0.51363,
    "</s>": -0.0191651,
}
"""log10 p in KenLM's lm/model_test.cc, each word after those before it, from <s>."""


def test_scores_are_those_of_kenlm() -> None:
    tokenizer, table, notes = read_arpa(kenlm("test.arpa"))
    words, expected = list(REFERENCE), list(REFERENCE.values())
    ids = np.array([[tokenizer.eos_id, *tokenizer.encode(" ".join(words[:-1])).tolist()]], np.int64)
    log_p, _ = table.score(ids[:, :-1], ids[:, 1:], table.initial_state(1))
    np.testing.assert_allclose(log_p[0] / math.log(10), expected, atol=1e-5)
    assert not notes
    every, _ = table.step(np.array([tokenizer.eos_id]), table.initial_state(1))
    comma, unknown = (int(tokenizer.encode(word, line_end=False)[0]) for word in (",", "nowhere"))
    np.testing.assert_allclose(every[0, [comma, unknown]] / math.log(10), [-1.7984873, -2.4106083], atol=1e-5)
    empty = tokenizer.encode("also would consider higher looking", line_end=False).astype(np.int64)[None]
    alone = table.log_p[0][empty[0, 0]] / math.log(10)
    rest, _ = table.score(empty[:, :-1], empty[:, 1:], table.initial_state(1))
    np.testing.assert_allclose([alone, *rest[0] / math.log(10)], [-1.687872, -2, -3, -4, -5], atol=1e-5)


def test_without_unk_unknown_words_are_all_but_impossible() -> None:
    tokenizer, table, notes = read_arpa(kenlm("test_nounk.arpa"))
    assert math.isclose(table.log_p[0][tokenizer.unk_id] / math.log(10), -100, rel_tol=1e-6)
    assert "has no <unk>" in notes[0]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system does not reserve room for files")
@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_is_an_error_and_no_crash(reserves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # as a disk with that much room
    try:
        work = Workspace(0)
        array = work.array(1 << 12, np.int64)
        array[:] = 7
        assert array.sum() == 7 << 12
        with pytest.raises(DataError, match=r"no room for 1,048,576 bytes of counts .* set TMPDIR to a folder"):
            work.array(1 << 17, np.int64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
