"""Three models of where a line ends: a symbol, a coin beside each step, a count that is drawn first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import everstep as es
from everstep.data import Tokenizer
from everstep.data.batches import TokenBatch
from everstep.data.buckets import Buckets
from everstep.data.text.corpus import Corpus
from everstep.errors import ConfigError
from everstep.networks.counted_lines import CountedLines
from everstep.runs.text_data import TextSection, training_batches

LINES = [[1, 2], [3], [1, 1, 2, 4], [2, 3]]
END = 0


def batch(lines: list[list[int]]) -> TokenBatch:
    tokens = [token for line in lines for token in (*line, END)]
    starts = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])
    return Buckets(Corpus(np.array(tokens), starts), len(lines), begin_id=END, shuffle=False).batch(0, 0)


def made() -> CountedLines:
    model = CountedLines(es.LSTM(6, 8), words=5, end=END, longest=6)
    with torch.no_grad():
        model.counts.normal_()
    return model


def test_what_is_learned_is_what_is_drawn() -> None:
    model = made()
    given = batch(LINES)
    found = model.nats(given)
    for row in range(len(LINES)):
        line = given.targets[row, : int(given.lengths[row])].tolist() if given.lengths is not None else []
        state, total = model.initial_state(1), 0.0
        follows = [5 + len(line) - 1, *line]
        for token, after in zip([END, *follows], follows, strict=False):
            log_p, state = model.step(torch.tensor([token]), state)
            assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
            total -= float(log_p[0, after].detach())
        assert found[row].item() == pytest.approx(total, rel=1e-5)


def test_a_count_is_kept() -> None:
    drawn = es.sample(made().step, made().initial_state(50), [END], 9, count=50)
    words = drawn[:, 1:]
    for count, row in zip((drawn[:, 0] - 5).tolist(), words.tolist(), strict=True):
        assert 1 <= count <= 6
        assert END not in row[:count]
        assert set(row[count:]) == {END}


def test_lines_that_do_not_fit_are_refused() -> None:
    for lines in ([[1] * 7], [[], [1]]):
        with pytest.raises(ValueError, match="lines of 1 to 6 words"):
            made().nats(batch(lines))


def test_it_can_begin_with_the_lengths_of_the_data() -> None:
    model = made()
    model.counted(torch.tensor([2, 2, 2, 5]))
    p = model.counts.detach().softmax(0)
    assert [round(share, 3) for share in p.tolist()] == [0.083, 0.5, 0.083, 0.083, 0.167, 0.083]


def test_it_can_be_fitted(tmp_path: Path) -> None:
    model = CountedLines(es.GRU(6, 8), words=5, end=END, longest=6)
    tokens = np.array([1, 2, 0, 1, 2, 0, 3, 0, 1, 2, 0])
    batches = Buckets(Corpus(tokens, np.array([0, 3, 6, 8])), 4, begin_id=END)
    settings = es.FitSettings(max_steps=150, learning_rate=0.05)
    es.fit(model, model.objective, batches, settings, out=tmp_path, log=lambda line: None)
    p = model.counts.detach().softmax(0)
    assert p[1].item() == pytest.approx(0.75, abs=0.05)
    drawn = es.sample(model.eval().step, model.initial_state(40), [END], 3, count=40)
    assert {tuple(row) for row in drawn.tolist() if row[0] < 8} == {(7, 1, 2), (6, 3, END)}


def trained(folder: Path, *overrides: str) -> Any:
    text = folder / "text.txt"
    text.write_text("a b c\na b\nb c a b\na\n" * 20, "utf-8")
    sizes = ["model.hidden_size=12", "model.embedding_size=8", "train.max_epochs=null", "train.max_minutes=null"]
    sizes += ["data.min_count=1", "data.sequence=lines", "data.valid_fraction=0.2", f"data.train={text}"]
    return es.train("text-words", folder / "run", lambda _: None, overrides=[*sizes, "train.max_steps=60", *overrides])


def test_a_coin_beside_each_step_in_a_recipe(tmp_path: Path) -> None:
    run = trained(tmp_path, "model.ends=stop", "train.learning_rate=0.02")
    assert type(run.model.head) is es.BernoulliStop
    assert run.evaluate("valid")["perplexity"] < 5
    again = es.load(tmp_path / "run")
    assert again.score(["a b"])[0].logp == run.score(["a b"])[0].logp
    drawn = again.generate("", 30, 1.0, seed=1)
    assert drawn == run.generate("", 30, 1.0, seed=1)


def test_tokens_of_short_lines_weigh_as_much_as_others(tmp_path: Path) -> None:
    """A step's loss is the mean over the targets of its batch."""
    lengths = np.random.default_rng(0).integers(1, 30, 4000)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(["a"] * length) for length in lengths) + "\n", "utf-8")
    tokenizer = Tokenizer.train([text.read_text("utf-8")], "words", eos=True)
    section = TextSection(train=str(text), unit="words", sequence="lines")
    corpus = Corpus(np.zeros(lengths.sum() + 4000, np.int64), np.cumsum([0, *(lengths[:-1] + 1)]))
    batches = training_batches(section, corpus, tokenizer, 16, 64, None, 0)
    assert len(batches) == pytest.approx(4000 / 16, rel=0.2)
    weights = np.zeros(32)
    for index in range(len(batches)):
        given = batches.batch(0, index)
        assert isinstance(given, TokenBatch)
        for length in [given.targets.shape[1]] * len(given.targets) if given.lengths is None else given.lengths:
            weights[int(length)] += int(length) / given.count
    share = weights[2:31] / np.bincount(lengths + 1, lengths + 1, 31)[2:]
    assert share.max() < 1.5 * share.min()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ("model.ends=stop", "model.softmax=nce", "model.samples=5"),
            "model.ends: expected symbol where softmax is nce",
        ),
        (("model.ends=stop", "objective.label_smoothing=0.1"), "expected 0 where model.ends is stop"),
        (("model.ends=stop", "data.eos=false", "data.sequence=stream"), "model.ends: expected symbol, because the voc"),
    ],
)
def test_ends_that_cannot_be_are_refused(override: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, *override)
    assert not (tmp_path / "run").exists()
