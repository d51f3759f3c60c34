"""Log-linear mixtures, against brute force over a small vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import everstep as es
from everstep.errors import RunError
from everstep.runs import log_linear as multiplied
from everstep.runs.compared_runs import Scored, scored
from everstep.runs.log_linear import log_linear
from everstep.runs.run import Run

LINES = ["a b a c", "b a b", "c c a", "a a b c", "b c b a b"] * 8


def counted(out: Path, lines: list[str], *more: str) -> Run:
    text = out.with_suffix(".txt")
    text.write_text("\n".join(lines) + "\n", "utf-8", newline="\n")
    overrides = [f"data.train={text}", "data.valid_fraction=0", *more]
    return es.train("kneser-ney", out, log=lambda line: None, overrides=overrides)


def distributions(run: Run, score: Scored) -> np.ndarray:
    """p of every word at every token, (T, V), one line at a time."""
    found = []
    for line in np.split(score.ids, np.cumsum(score.tokens)[:-1]):
        decoder = run.task.decoder(run.model, "")
        state, word = decoder.state, decoder.prompt[-1:]
        for number in line:
            log_p, state = decoder.step(word, state)
            found.append(log_p[0].double().exp().numpy())
            word = decoder.prompt.new_tensor([number])
    return np.stack(found)


@pytest.mark.usefixtures("own_cache")
def test_the_product_is_renormalised_and_its_exponents_are_the_best(tmp_path: Path) -> None:
    runs = [counted(tmp_path / "one", LINES, "model.order=1"), counted(tmp_path / "three", LINES, "model.order=3")]
    valid, test = ["c a b", "b a", "a c c b", "b b a b"] * 3, ["a b", "c a b a b b a c", "b"]
    valids, tests = ([scored(run, name, text) for run, name in zip(runs, "uv", strict=True)] for text in (valid, test))
    found = log_linear(runs, tests, valids)

    def likelihood(exponents: np.ndarray, scores: list[Scored]) -> np.ndarray:
        mixed = sum(e * np.log(distributions(run, one)) for e, run, one in zip(exponents, runs, scores, strict=True))
        p = np.exp(mixed) / np.exp(mixed).sum(1, keepdims=True)
        return np.log(p[np.arange(len(p)), scores[0].ids])

    exponents = np.array([float(part.partition("^")[2]) for part in found.name.split(" × ")])
    np.testing.assert_allclose(found.logps, likelihood(exponents, tests), rtol=2e-3)
    best = likelihood(exponents, valids).mean()
    for change in ([0.03, 0], [-0.03, 0], [0, 0.03], [0, -0.03]):
        assert likelihood(exponents + change, valids).mean() < best
    assert np.isclose(found.nats.sum(), -found.logps.sum())


def test_exponents_of_overconfident_models_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    scores = 2 * random.normal(size=(80, 30))
    targets = np.array([random.choice(30, p=row / row.sum()) for row in np.exp(scores)])
    log_p = np.stack([6 * (random.normal(size=scores.shape) + 3 * scores) for _ in range(2)])
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    block = [0], np.ones((80, 1), bool), targets[:, None], log_p[:, :, None].astype(np.float32)
    monkeypatch.setattr(multiplied, "_distributions", lambda runs, lines: iter([block]))
    found = multiplied._exponents([None, None], [])  # type: ignore[list-item]

    def likelihood(exponents: np.ndarray) -> float:
        mixed = np.einsum("k,ktv->tv", exponents, log_p)
        return float((mixed[np.arange(80), targets] - np.log(np.exp(mixed).sum(1))).mean())

    best = max(likelihood(np.array([a, b]) / 1000) for a in range(0, 81, 2) for b in range(0, 81, 2))
    assert likelihood(found) > best - 1e-4


@pytest.mark.usefixtures("own_cache")
def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    runs = [
        counted(tmp_path / "one", LINES, "model.order=1"),
        counted(tmp_path / "two", ["c b d"] * 9, "model.order=1"),
    ]
    scores = [scored(run, name, ["a b"]) for run, name in zip(runs, "uv", strict=True)]
    with pytest.raises(RunError, match="one vocabulary"):
        log_linear(runs, scores, scores)
    larger = counted(tmp_path / "larger", [*LINES, "d d"], "model.order=1")  # a, b and c have the same numbers
    scores = [scored(run, name, ["a b"]) for run, name in zip((runs[0], larger), "uv", strict=True)]
    assert scores[0].ids.tolist() == scores[1].ids.tolist()
    with pytest.raises(RunError, match="one vocabulary"):
        log_linear([runs[0], larger], scores, scores)


@pytest.mark.usefixtures("own_cache")
def test_large_vocabularies_have_fewer_tokens_to_fit_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [counted(tmp_path / "one", LINES, "model.order=1"), counted(tmp_path / "three", LINES, "model.order=3")]
    valids = [scored(run, name, LINES[:9]) for run, name in zip(runs, "uv", strict=True)]
    seen: list[list[int]] = []

    def exponents(runs: list[Run], lines: list[np.ndarray]) -> np.ndarray:
        seen.append([len(line) for line in lines])
        return np.full(2, 0.5)

    monkeypatch.setattr(multiplied, "_exponents", exponents)
    words = runs[0].task.tokenizer.vocab_size
    for tokens in (12, 3):
        monkeypatch.setattr(multiplied, "FITTED_NUMBERS", 2 * words * tokens + 1)
        log_linear(runs, valids, valids)
    assert seen == [[5, 4], [3]]
