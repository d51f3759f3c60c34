"""The language model from end to end: what is learned, scored, drawn and resumed, against brute force."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path

import apart
import pytest
import torch
from caches import cache_in
from job_laws import JobLaws
from little_data import shakespeare

import everstep as es
from everstep.cli.demo import counted_bits
from everstep.data.batches import TokenBatch
from everstep.data.text.perplexity import text_measures
from everstep.errors import ConfigError, DataError, RunError
from everstep.learn import FitSettings, fit
from everstep.networks.likelihood import likelihood
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.runs.recipe_files import load_recipe
from everstep.runs.run import Run
from everstep.runs.training import resume

TINY = [
    "model.embedding_size=8",
    "model.hidden_size=16",
    "train.batch_size=4",
    "objective.k1=16",
    "train.max_minutes=null",
]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", cache_in(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text(shakespeare()[: shakespeare().rfind("\n", 0, 20_000) + 1])
    return path


def quietly(_: str) -> None:
    pass


def trained(text: Path, out: Path, *more: str, recipe: str = "shakespeare-minute", steps: int = 12) -> Run:
    settings = [*TINY, f"data.train={text}", f"train.max_steps={steps}", "train.validate_every=6", *more]
    return es.train(recipe, out, quietly, overrides=settings)


@pytest.fixture(scope="module")
def chars(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(text, tmp_path_factory.mktemp("runs") / "chars")


@pytest.fixture(scope="module")
def words(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(text, tmp_path_factory.mktemp("runs") / "words", "data.unit=words", "data.min_count=2")


# ------------------------------------------------------------------------------------------------------ the objective


def small_model() -> TokenModel:
    torch.manual_seed(3)
    config = TokenModelSection(cell="GRU", embedding_size=4, hidden_size=5, layers=2)
    return TokenModel(7, config).double()


def window(tokens: torch.Tensor, start: int, stop: int, context: int, advance: int) -> TokenBatch:
    return TokenBatch(tokens[:, start:stop], tokens[:, start + 1 : stop + 1], None, None, context, advance)


def gradients(model: TokenModel) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


def test_the_shapes_a_recipe_can_ask_for() -> None:
    config = TokenModelSection(
        cell="GRUBefore", embedding_size=6, hidden_size=(6, 6, 6), layers=3, tied=True, dropout=0.1, residual=True,
        input_dropout=0.2, variational=True, zoneout=0.1, init_range=0.05,
    )  # fmt: skip
    model = TokenModel(9, config)
    assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) <= 0.05
    assert model.head.weight is model.embedding.weight
    kinds = [type(part).__name__ for part in model.body.sublayers()]
    assert kinds == ["VariationalDropout"] * 4
    ys, _ = model(torch.randint(9, (2, 5)))
    assert model.head.predict(ys).shape == (2, 5, 9)
    assert all(leaf.shape[0] == 2 for _, leaf in es.state.leaves(model.initial_state(2)))


def test_k2_below_k1_cuts_the_gradient_and_keeps_the_state() -> None:
    model, tokens = small_model(), torch.randint(7, (3, 11))
    losses = list(likelihood(4)(model, window(tokens, 0, 10, 0, 10), None))
    assert len(losses) == 3
    torch.stack([loss.total.sum() for loss in losses]).sum().backward()
    got = gradients(model)
    state = model.initial_state(3)
    for start, stop in ((0, 4), (4, 8), (8, 10)):
        ys, state = model(tokens[:, start:stop], es.state.detach(state))
        model.head.loss(ys, tokens[:, start + 1 : stop + 1]).sum().backward()
    for a, b in zip(got, gradients(model), strict=True):
        torch.testing.assert_close(a, b)
    ys, end = model(tokens[:, :10])
    torch.testing.assert_close(losses[-1].state[1], end[1])
    reported = sum(loss.reported for loss in losses)
    torch.testing.assert_close(reported, model.head.loss(ys, tokens[:, 1:11]).detach(), check_dtype=False)


def test_k2_above_k1_looks_back_and_carries_the_state_of_the_next_window() -> None:
    model, tokens = small_model(), torch.randint(7, (3, 11))
    (loss,) = likelihood(6)(model, window(tokens, 1, 9, 5, 3), model(tokens[:, :1])[1])
    ys, _ = model(tokens[:, :9])
    want = model.head.loss(ys[:, 6:], tokens[:, 7:10])
    torch.testing.assert_close(loss.total, want, check_dtype=False)
    torch.testing.assert_close(loss.state[1], model(tokens[:, :4])[1][1])
    loss.total.sum().backward()
    got = gradients(model)
    start = es.state.detach(model(tokens[:, :1])[1])
    ys, _ = model(tokens[:, 1:9], start)
    model.head.loss(ys[:, 5:], tokens[:, 7:10]).sum().backward()
    moved = [a - b for a, b in zip(got, gradients(model), strict=True)]
    # the first step lies outside of the window only for `start`; embeddings and cells inside agree
    assert all(torch.isfinite(m).all() for m in moved)


@pytest.mark.parametrize("k2", [5, 16, 40])
def test_lanes_of_every_k2_count_each_token_once(text: Path, tmp_path: Path, k2: int) -> None:
    run = trained(text, tmp_path / "run", f"objective.k2={k2}", "train.max_epochs=1", "train.max_steps=null")
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    corpus = run.task.texts.corpus("train", run.task.tokenizer)
    assert max(record.get("tokens", 0) for record in records) == len(corpus)


def test_it_overfits_one_batch(tmp_path: Path) -> None:
    class One:
        batch_size, carries_state = 2, False

        def __len__(self) -> int:
            return 1

        def batch(self, epoch: int, index: int) -> TokenBatch:
            tokens = torch.tensor([[1, 5, 2, 6, 3, 0, 4, 1], [3, 3, 0, 2, 6, 6, 1, 5]])
            return TokenBatch(tokens[:, :-1], tokens[:, 1:], torch.tensor([7, 6]), None, 0, 7)

    torch.manual_seed(0)
    model = TokenModel(7, TokenModelSection(embedding_size=8, hidden_size=24))
    settings = FitSettings(max_steps=150, learning_rate=0.03, schedule="constant", precision="float32")
    fit(model, likelihood(), One(), settings, out=tmp_path / "run", log=quietly)
    (loss,) = likelihood()(model.eval(), One().batch(0, 0), None)
    assert float(loss.reported.sum()) / 13 < 0.02


@pytest.mark.slow
def test_it_beats_counts_of_pairs_on_text_it_never_saw(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_text(shakespeare()[:120_000])
    run = trained(path, tmp_path / "run", "model.hidden_size=96", "train.batch_size=16", "objective.k1=48", steps=350)
    cut = shakespeare().find("\n", 108_000 - 1) + 1
    train, valid = shakespeare()[:cut], shakespeare()[cut:120_000]
    pairs = counted_bits(train, valid, 1, len(set(train)))
    assert run.evaluate("valid")["bits_per_char"] < pairs - 0.2


# ------------------------------------------------------------------------------------------------------ scores and text


@torch.no_grad()
def by_hand(run: Run, ids: list[int]) -> list[float]:
    """log p of tokens, one step at a time."""
    decoder = run.task.decoder(run.model, "" if run.task.tokenizer.begin_id is not None else " ")
    state, before, found = decoder.state, run.task.tokenizer.begin_id, []
    for token in ids:
        log_p, state = run.model.step(torch.tensor([before]), state)
        found.append(float(log_p[0, token]))
        before = token
    return found


LINES = ["ROMEO:", "", "What say you to that?", "a", "Before we proceed any further, hear me speak. " * 30]


def test_scores_are_sums_of_single_steps(chars: Run, words: Run) -> None:
    for run, ending in ((chars, []), (words, [words.task.tokenizer.eos_id])):
        for score, line in zip(run.score(LINES), LINES, strict=True):
            ids = run.task.tokenizer.encode(line, line_end=False).tolist() + ending
            want = by_hand(run, ids)
            assert score.line == line
            assert score.tokens == len(ids) == len(score.token_logps)
            assert score.logp == pytest.approx(sum(want), abs=1e-4)
            assert list(score.token_logps) == pytest.approx(want, abs=1e-4)


def test_scores_depend_on_neither_order_nor_company(chars: Run, words: Run) -> None:
    for run in (chars, words):
        together = {score.line: score.logp for score in run.score(LINES * 3)}
        for line in reversed(LINES):
            assert run.score([line])[0].logp == pytest.approx(together[line], abs=1e-4)
        assert run.score([]) == []


def test_long_lines_are_scored_in_windows(chars: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chars.score(LINES)
    monkeypatch.setattr("everstep.networks.scoring.SCORED_TOKENS", 1)
    assert [s.logp for s in chars.score(LINES)] == pytest.approx([s.logp for s in whole], abs=1e-4)


@pytest.mark.parametrize("unit", ["chars", "words", "bytes", "bpe", "unigram"])
@pytest.mark.parametrize("sequence", ["stream", "documents", "lines"])
def test_evaluation_is_the_sum_of_single_steps(text: Path, tmp_path: Path, unit: str, sequence: str) -> None:
    more = [f"data.unit={unit}", f"data.sequence={sequence}", "data.valid_fraction=0.05"]
    more += ["data.max_size=300"] if unit in ("bpe", "unigram") else ["data.min_count=2"] if unit == "words" else []
    more += ["data.eos=true"] if sequence == "lines" else []
    run = trained(text, tmp_path / "run", *more, steps=2)
    scores = run.evaluate("valid")
    valid = "".join(run.task.texts.read("valid"))
    parts = [valid]
    if sequence == "documents":
        parts = [part.strip("\n") + "\n" for part in valid.split("\n\n") if part.strip()]
    elif sequence == "lines":
        parts = [line + "\n" for line in valid.splitlines() if line.strip()]
    encoded = [run.task.tokenizer.encode(part).tolist() for part in parts]
    total = -sum(sum(by_hand(run, ids)) for ids in encoded)
    tokens = sum(map(len, encoded))
    assert scores["tokens"] == tokens
    unk = run.task.tokenizer.unk_id
    assert scores.get("unknown") == (None if unk is None else sum(ids.count(unk) for ids in encoded))
    assert scores["nats_per_token"] * tokens == pytest.approx(total, rel=1e-5)
    size = sum(map(len, parts))
    assert scores["bits_per_char"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    count = sum(len(part.split()) + part.count("\n") for part in parts)
    assert scores["word_perplexity"] == pytest.approx(math.exp(min(total / count, 700)), rel=1e-4)
    assert isinstance(run.generate(prompt="the ", length=5, seed=0), str)


def test_report_converts_units() -> None:
    measures = text_measures(2.0, 10, 40, 50, 8)
    assert measures["perplexity"] == pytest.approx(math.exp(2))
    assert measures["bits_per_char"] == pytest.approx(20 / math.log(2) / 40)
    assert measures["bits_per_byte"] == pytest.approx(20 / math.log(2) / 50)
    assert measures["word_perplexity"] == pytest.approx(math.exp(20 / 8))
    assert text_measures(1000.0, 10, 0, 0, 0)["perplexity"] == math.inf


def test_generation(chars: Run, words: Run) -> None:
    first = chars.generate(prompt="ROMEO:", length=30, seed=5)
    assert first.startswith("ROMEO:")
    assert len(first) == 36
    assert first == chars.generate(prompt="ROMEO:", length=30, seed=5)
    assert first != chars.generate(prompt="ROMEO:", length=30, seed=6)
    assert len(set(chars.generate(length=30, count=3, seed=1))) == 3
    likeliest = chars.generate(length=30, temperature=0)
    assert likeliest == chars.generate(length=30, top_k=1, seed=9)
    with pytest.raises(DataError, match="U\\+20AC"):
        chars.generate(prompt="€")
    assert words.generate(prompt="you are", length=5, seed=0).startswith("you are ")


def test_surprise_is_minus_log2_p(chars: Run) -> None:
    pairs = chars.passage("To be", 5).pairs
    assert "".join(token for token, _ in pairs) == "To be"
    assert -sum(bits for _, bits in pairs) * math.log(2) == pytest.approx(chars.score(["To be"])[0].logp, abs=1e-4)


def test_surprise_shows_the_bytes_of_a_character_as_one(text: Path, tmp_path: Path) -> None:
    run = trained(text, tmp_path / "run", "data.unit=bytes", steps=1)
    pairs = run.passage("a東é\n", 4).pairs
    assert [shown for shown, _ in pairs] == ["a", "東", "é", "\n"]
    logps = run.score(["a東é"])[0].token_logps
    assert pairs[1][1] * math.log(2) == pytest.approx(-sum(logps[1:4]), abs=1e-4)


def test_an_unknown_symbol_names_its_line(chars: Run) -> None:
    with pytest.raises(DataError, match=r"line 2, column 5: .*U\+20AC"):
        chars.score(["fine", "not €"])


# ---------------------------------------------------------------------------------------------------------- run folders


def test_a_run_holds_what_is_promised_and_loads_again(chars: Run) -> None:
    names = {path.name for path in chars.path.iterdir()}
    promised = "config.yaml model.safetensors tokenizer.json metrics.jsonl checkpoints README.md environment.json"
    assert set(promised.split()) <= names
    again = es.load(chars.path)
    assert [s.logp for s in again.score(LINES)] == [s.logp for s in chars.score(LINES)]
    assert again.evaluate("valid") == chars.evaluate("valid")
    assert again.recipe == chars.recipe
    with pytest.raises(DataError, match="no test split; it has train, valid"):
        again.evaluate("test")


def test_a_run_is_found_from_any_folder(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text.parent)
    run = trained(Path(text.name), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert es.load("run").evaluate("valid") == run.evaluate("valid")


def test_the_same_seed_gives_the_same_bits(text: Path, tmp_path: Path) -> None:
    runs = [trained(text, tmp_path / name, f"seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = ((run.path / "model.safetensors").read_bytes() for run in runs)
    assert a == b != c


@pytest.mark.slow
@pytest.mark.parametrize("sequence", ["stream", "documents", "lines"])
def test_stopped_by_a_signal_and_resumed_is_bit_for_bit(text: Path, tmp_path: Path, sequence: str) -> None:
    settings = [*TINY, f"data.train={text}", "train.max_steps=150", "model.dropout=0.3", "model.zoneout=0.1"]
    settings += [f"data.sequence={sequence}", "data.eos=true", "train.checkpoint_every=5", "train.threads=1"]
    whole, stopped, told = tmp_path / "whole", tmp_path / "stopped", tmp_path / "told.txt"
    es.train("shakespeare-minute", whole, quietly, overrides=settings)
    command = ["train", "shakespeare-minute", *settings, "--out", str(stopped)]
    child = apart.started(apart.command, command, told=told)
    while not list((stopped / "checkpoints").glob("step-*")) and child.is_alive():
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGTERM)
    assert apart.ended(child) == 143, told.read_text()
    assert f"everstep train --resume {stopped}" in told.read_text()
    again = apart.started(apart.command, ["train", "--resume", str(stopped)], told=told)
    assert apart.ended(again) == 0, told.read_text()
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


class TestLaws(JobLaws):
    job = "language-model"
    settings = (*TINY[:4], "model.dropout=0.3", "model.zoneout=0.1", "data.unit=chars")
    asked = [[line] for line in LINES[:4]]

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        (folder / "play.txt").write_text(shakespeare()[:9_000])
        path = folder / "recipe.yaml"
        path.write_text(f"task: language-model\ndata: {{train: {folder}/play.txt}}\ntrain: {{max_epochs: 1}}\n")
        return path


def test_a_text_too_short_to_hold_some_out_is_told(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("short\n" + "\n" * 8)
    with pytest.raises(
        DataError, match=r"held out of data\.train; without validation: .*patience=null\): .*there is none"
    ):
        trained(path, tmp_path / "run", "data.sequence=lines")
    assert not (tmp_path / "run").exists()


def test_the_text_is_named(text: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    es.train("shakespeare-minute", tmp_path, lines.append, overrides=[*TINY, f"data.train={text}", "train.max_steps=1"])
    assert lines[0] == f"text: {text}"


def test_resume_refuses_a_changed_text(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_text(shakespeare()[:20_000])
    run = trained(path, tmp_path / "run")
    path.write_text(shakespeare()[:19_990] + "otherwise\n")
    with pytest.raises(RunError, match="not the run that was started: valid"):
        resume(run.path, quietly)


def test_runs_that_are_none(chars: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        es.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no config\.yaml"):
        es.load(tmp_path / "empty")
    newer = tmp_path / "newer"
    newer.mkdir()
    for name in ("config.yaml", "tokenizer.json", "model.safetensors"):
        (newer / name).write_bytes((chars.path / name).read_bytes())
    with pytest.raises(RunError, match=r"environment\.json: missing"):
        es.load(newer)
    (newer / "environment.json").write_text('{"format": 99, "everstep": "9.0"}')
    with pytest.raises(RunError, match="newer version of everstep"):
        es.load(newer)
    (newer / "environment.json").write_bytes((chars.path / "environment.json").read_bytes())
    (newer / "model.safetensors").write_bytes((chars.path / "model.safetensors").read_bytes()[:-7])
    with pytest.raises(RunError, match=r"model\.safetensors"):
        es.load(newer)
    (newer / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"no model\.safetensors yet"):
        es.load(newer)


def test_a_run_is_never_overwritten_and_a_failed_start_leaves_nothing(chars: Run, text: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="never overwritten"):
        trained(text, chars.path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot make a run there"):
        trained(text, tmp_path / "file" / "run")
    (tmp_path / "short.txt").write_text("ab\n")
    with pytest.raises(DataError, match=r"set train\.batch_size=3 or less"):
        trained(tmp_path / "short.txt", tmp_path / "run", "data.valid_fraction=0")
    (tmp_path / "one.txt").write_text("aaaa")
    with pytest.raises(DataError, match="vocabulary of 1 symbol"):
        trained(tmp_path / "one.txt", tmp_path / "run", "data.valid_fraction=0")
    (tmp_path / "valid.txt").write_text("caf\u00e9\n")
    with pytest.raises(DataError, match=r"data\.valid: .*U\+00E9"):
        trained(text, tmp_path / "run", f"data.valid={tmp_path / 'valid.txt'}", "data.unk=false")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"train\.bach_size"):
        trained(text, tmp_path / "run", "train.bach_size=3")


def test_held_out_files_that_are_training_data_are_said(text: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.read_bytes())
    (tmp_path / "b.txt").write_bytes(text.read_bytes()[::-1])
    said: list[str] = []
    settings = [*TINY, f"data.train=[{text}, {tmp_path}/b.txt]", f"data.valid={tmp_path}/b*.txt", "train.max_steps=2"]
    es.train("shakespeare-minute", tmp_path / "run", said.append, overrides=[*settings, f"data.test={tmp_path}/a.txt"])
    told = "is training data, too; what is measured there says nothing about new data"
    expected = [f"data.{split}: {tmp_path}/{name}.txt {told}" for split, name in (("valid", "b"), ("test", "a"))]
    assert [line.removeprefix("warning: ") for line in said if line.startswith("warning")] == expected


def test_files_of_one_size_or_with_all_splits_are_no_training_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("60 62\n64\n")
    (tmp_path / "b.txt").write_text("60 62\n65\n")
    (tmp_path / "all.json").write_text('{"train": [[[60]], [[62]]], "test": [[[64]]]}')
    for train, test in (
        (f"[{tmp_path}/a.txt, {tmp_path}/all.json]", f"{tmp_path}/b.txt"),
        (f"{tmp_path}/all.json",) * 2,
    ):
        said: list[str] = []
        settings = [f"data.train={train}", f"data.test={test}", "train.max_steps=1", "model.hidden_size=4"]
        es.train("music-own", tmp_path / f"run-{test[-5:]}", said.append, overrides=settings)
        assert not [line for line in said if line.startswith("warning")]


def test_every_shipped_recipe_trains_a_little(text: Path, tmp_path: Path, shared_data: Path, monkeypatch) -> None:
    from everstep.runs.shipped_recipes import recipes

    monkeypatch.setenv("EVERSTEP_DATA", str(shared_data))
    for name, _ in recipes():
        assert load_recipe(name).train
    for name in ("text-words", "text-subwords", "text-bytes", "text-chars"):
        small = [*TINY, f"data.train={text}", "train.max_steps=2", "train.max_epochs=null"]
        small += ["data.max_size=300"] if name == "text-subwords" else []
        run = es.train(name, tmp_path / name, quietly, overrides=small)
        assert math.isfinite(run.evaluate("valid")["nats_per_token"])


def test_a_rule_for_no_parameter_leaves_nothing_behind(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trainable parameter is called 'nothing'"):
        trained(text, tmp_path / "run", "train.l2=0.1", "train.l2_on=nothing")
    assert not (tmp_path / "run").exists()


def test_overrides_beside_a_whole_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the name or the file of a recipe beside `overrides`"):
        es.train(load_recipe("shakespeare-minute"), tmp_path / "run", quietly, overrides=["train.max_steps=1"])
    assert not (tmp_path / "run").exists()
