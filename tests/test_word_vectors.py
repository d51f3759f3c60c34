"""The job `word-vectors`: the kernel beside the equations, tables, measures, and what a run can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everstep.data.readers.word_sets import read_analogies, read_similarities
from everstep.data.text.phrases import find_phrases, join_phrases
from everstep.errors import DataError
from everstep.look.word_map import draw_map, grouped, near_plane, principal_plane, written
from everstep.measures.word_relations import rank_correlation, solve_analogies, unit_rows
from everstep.networks import compiled_word_vectors
from everstep.networks.letter_ngrams import letter_ngrams
from everstep.networks.word_embedding import WordBatch, WordContextSection, WordEmbedding, WordEmbeddingSection
from everstep.networks.word_tables import drawn, huffman, kept
from everstep.networks.word_vector_steps import WordByWord

WORDS = ("<eos>", *(f"w{number}xy" for number in range(12)))


def quietly(line: str) -> None:
    del line


def embedding(ngrams: tuple[int, int] | None = None, size: int = 19, **objective: Any) -> WordEmbedding:
    counts = np.bincount(text(), minlength=len(WORDS))
    counts[0] = 0
    torch.manual_seed(1)
    section = WordEmbeddingSection(embedding_size=size, ngrams=ngrams)
    return WordEmbedding(WORDS, counts, 0, section, WordContextSection(subsample=0.05, **objective))


def text(length: int = 1500) -> np.ndarray:
    random = np.random.default_rng(1)
    return random.integers(0, random.integers(1, len(WORDS), length) + 1).astype(np.int32)


def batch(tokens: np.ndarray, seed: int = 7) -> WordBatch:
    return WordBatch(torch.from_numpy(tokens), int((tokens > 0).sum()), seed)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.sanitize
@pytest.mark.parametrize("ngrams", [None, (2, 4)])
@pytest.mark.parametrize("predict", ["context", "word"])
@pytest.mark.parametrize("negatives", [0, 4])
def test_the_kernel_does_what_the_equations_say(ngrams: Any, predict: str, negatives: int) -> None:
    if not compiled_word_vectors.available():
        pytest.skip("no compiler")
    torch.set_num_threads(1)
    model = embedding(ngrams, predict=predict, negatives=negatives)
    vectors, outputs = (weight.detach().clone().numpy() for weight in (model.vectors, model.outputs))
    expected = WordByWord(vectors, outputs, model.tables, model.bag, 0.05, 7).learn(text())
    found = model.read(batch(text()), 0.05)
    assert found.targets == expected.targets > 500
    assert found.nats == pytest.approx(expected.nats, rel=1e-5)
    assert np.abs(outputs).max() > 0.05
    assert model.vectors.detach().numpy() == pytest.approx(vectors, abs=1e-4)
    assert model.outputs.detach().numpy() == pytest.approx(outputs, abs=1e-4)


@pytest.mark.parametrize("negatives", [0, 3])
def test_a_move_is_minus_rate_times_the_gradient(negatives: int) -> None:
    """One target: the loss and its gradient by PyTorch."""
    model = embedding(negatives=negatives)
    with torch.no_grad():
        model.outputs.normal_()
    rate = 1e-3
    model.tables.keep[:] = 2**32 - 1
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    steps = WordByWord(model.vectors.detach().numpy(), model.outputs.detach().numpy(), model.tables, False, rate, 1)
    next(steps.random)  # the window of the first word
    chosen, sides = steps._chosen(5)
    h = before["vectors"][3].requires_grad_()
    u = before["outputs"].requires_grad_()
    loss = -torch.nn.functional.logsigmoid(torch.from_numpy(sides) * (u[torch.from_numpy(chosen)] @ h)).sum()
    by_h, by_u = torch.autograd.grad(loss, (h, u))
    steps = WordByWord(model.vectors.detach().numpy(), model.outputs.detach().numpy(), model.tables, False, rate, 1)
    next(steps.random)
    steps._skip_gram(3, [5])
    assert steps.nats == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose((h - model.vectors[3]) / rate, by_h, atol=1e-3)
    assert torch.allclose((u - model.outputs) / rate, by_u, atol=1e-3)


@pytest.mark.sanitize
def test_same_seed_same_bits_and_a_rate_of_zero_changes_nothing() -> None:
    torch.set_num_threads(1)
    one, other = embedding(), embedding()
    for epoch in range(2):
        one.read(batch(text(), epoch), 0.05), other.read(batch(text(), epoch), 0.05)
    assert torch.equal(one.vectors, other.vectors)
    assert torch.equal(one.outputs, other.outputs)
    kept_weights = one.vectors.detach().clone()
    first = one.read(batch(text()), 0.0)
    assert torch.equal(one.vectors, kept_weights)
    assert one.read(batch(text()), 0.0) == first
    assert one.read(batch(text(), 8), 0.0).nats != first.nats


@pytest.mark.parametrize("ngrams", [None, (2, 4)])
def test_vectors_begin_uniform_in_plus_minus_one_over_their_size(ngrams: Any) -> None:
    model = embedding(ngrams, size=50)
    vectors = model.vectors.detach() * 50
    assert 0.9 < float(vectors.abs().max()) <= 1
    assert float(vectors.square().mean()) == pytest.approx(1 / 3, rel=0.15)
    assert not model.outputs.detach().any()


@pytest.mark.sanitize
def test_threads_meet_as_many_words() -> None:
    if not compiled_word_vectors.available():
        pytest.skip("no compiler")
    model, long = embedding(), np.tile(text(), 8)
    torch.set_num_threads(1)
    alone = model.read(batch(long), 0.0)
    try:
        torch.set_num_threads(2)
        both = model.read(batch(long), 0.0)
    finally:
        torch.set_num_threads(1)
    assert both.targets == pytest.approx(alone.targets, rel=0.05)
    assert both.nats / both.targets == pytest.approx(alone.nats / alone.targets, rel=0.02)


def test_without_a_compiler_it_learns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    assert not compiled_word_vectors.available()
    model = embedding()
    before = model.read(batch(text()), 0.0)
    for epoch in range(3):
        model.read(batch(text(), epoch), 0.05)
    after = model.read(batch(text()), 0.0)
    assert after.targets == before.targets
    assert after.nats < 0.9 * before.nats


# -------------------------------------------------------------------------------------------------------------- tables


def test_tables_by_hand() -> None:
    counts = np.array([1, 0, 16, 81, 1])
    weights = np.array([1, 0, 8, 27, 1])
    below, alias = drawn(counts, 0.75)
    chance = np.zeros(5)
    for column in range(5):
        chance[column] += below[column] / 2**32 / 5
        chance[alias[column]] += (1 - below[column] / 2**32) / 5
    assert chance == pytest.approx(weights / weights.sum(), abs=1e-9)
    assert (kept(np.array([0, 1, 9999]), 0.0) == [0, 2**32 - 1, 2**32 - 1]).all()
    assert kept(np.array([9000, 1000]), 0.001)[0] / 2**32 == pytest.approx(0.033333 + 0.001111, abs=1e-5)
    paths = huffman(np.array([4, 2, 1, 1, 0]))
    assert np.diff(paths.starts).tolist() == [1, 2, 3, 3, 0]
    codes = {tuple(paths.codes[paths.starts[w] : paths.starts[w + 1]].tolist()) for w in range(4)}
    assert len(codes) == 4


def test_letters_are_hashed_as_fasttext_does() -> None:
    """Buckets that fastText's own hash gives; bytes above 127 are negative there."""
    found = letter_ngrams(["ab", "Zürich", "a"], 3, 3, 1000)
    assert [one.tolist() for one in found] == [[508, 756], [315, 351, 405, 452, 528, 744], [600]]
    assert [len(one) for one in letter_ngrams(["a", "", "bb"], 1, 2, 10**9)] == [3, 1, 4]
    model = embedding((3, 4))
    assert model.of_letters("w3xyz") is not None
    assert model.of_letters("qqq") is None
    row = model.words.index("w3xy")
    parts = model.tables.parts
    assert parts is not None
    own = model.vectors.detach()[parts.rows[parts.starts[row] : parts.starts[row + 1]]].mean(0)
    assert model.composed()[row] == pytest.approx(own.numpy(), abs=1e-6)


def test_phrases_by_hand() -> None:
    tokens = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 1, 3])
    pairs = find_phrases(tokens, 4, [0], 1, 1.0)
    assert pairs.tolist() == [[1, 2], [2, 3]]  # (3 − 1) · 10 / (4 · 3) = 1.67, and (2 − 1) · 10 / (3 · 3) = 1.11
    pairs = find_phrases(tokens, 4, [0], 1, 1.2)
    assert pairs.tolist() == [[1, 2]]
    assert join_phrases(tokens, pairs, np.array([4])).tolist() == [0, 4, 3, 0, 4, 3, 0, 4, 1, 3]
    assert join_phrases(tokens, np.empty((0, 2), np.int64), np.empty(0, np.int64)) is tokens


# ------------------------------------------------------------------------------------------------------------ measures


def test_measures_by_hand(tmp_path: Path) -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert np.isnan(rank_correlation([1.0], [2.0]))
    random = np.random.default_rng(1)
    units = unit_rows(random.normal(size=(9, 4)))
    questions = random.integers(0, 8, (20, 3))
    known = np.arange(9) < 8
    found = solve_analogies(units, questions, known)
    for (a, b, c), by_sum, by_product in zip(questions, *found, strict=True):
        cos = units @ units.T
        sums = [cos[d, b] - cos[d, a] + cos[d, c] if d not in (a, b, c) and d < 8 else -9 for d in range(9)]
        half = (cos + 1) / 2
        products = [half[d, b] * half[d, c] / (half[d, a] + 1e-3) if s > -9 else -9 for d, s in enumerate(sums)]
        assert (by_sum, by_product) == (np.argmax(sums), np.argmax(products))
    (tmp_path / "s.txt").write_text("cat\tdog\t7.5\n\ncar bus 3\n")
    assert read_similarities(str(tmp_path / "s.txt"))[0].scores == [7.5, 3.0]
    (tmp_path / "a.txt").write_text(": one\na b c d\n: two\n: three words\ne f g h\n")
    sections = read_analogies(str(tmp_path / "a.txt"))
    assert [section.name for section in sections] == ["one", "three words"]
    for line, said in (("cat dog", "a word and a number"), ("cat dog much", "a number"), ("cat dog nan", "a number")):
        (tmp_path / "s.txt").write_text(f"a b 1\n{line}\n")
        with pytest.raises(DataError, match=f"line 2: expected a word.*{said}; got '{line}'"):
            read_similarities(str(tmp_path / "s.txt"))
    (tmp_path / "a.txt").write_text(": one\na b c\n")
    with pytest.raises(DataError, match="line 2: expected four words; got 'a b c'"):
        read_analogies(str(tmp_path / "a.txt"))


def test_maps() -> None:
    random = np.random.default_rng(1)
    far = np.repeat(np.eye(5)[:3], 6, 0) + 0.01 * random.normal(size=(18, 5))
    groups = grouped(unit_rows(far), groups=3)
    assert [len(set(groups[start : start + 6].tolist())) for start in (0, 6, 12)] == [1, 1, 1]
    assert len(set(groups.tolist())) == 3
    plane, share = principal_plane(far)
    assert plane.var(0).sum() == pytest.approx(share * far.var(0).sum())
    near = near_plane(far)
    if near is not None:
        spread = np.linalg.norm(near[:6] - near[:6].mean(0), axis=1).mean()
        assert spread < np.linalg.norm(near[:6].mean(0) - near[6:12].mean(0))
    assert near_plane(far[:5]) is None


def test_a_map_names_what_a_font_has(tmp_path: Path) -> None:
    """Warnings are errors: a character that no font has is not drawn; this one is for private use."""
    words = ("one", "\ue123", "東京")
    draw_map(words, np.eye(3)[:, :2], np.arange(3), tmp_path / "map.png", "a map")
    assert (tmp_path / "map.png").stat().st_size > 5000
    assert written(words[:2]) == 1
