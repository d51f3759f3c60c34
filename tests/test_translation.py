"""The job `translation`: what it learns, writes, scores, draws and refuses."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data import Tokenizer
from everstep.data.pair_batches import PairBatches, TokenSequences
from everstep.data.text.language import Language
from everstep.decode.beam import beam_search
from everstep.decode.hypotheses import Hypothesis
from everstep.decode.section import BeamSection
from everstep.errors import ConfigError, DataError, RunError
from everstep.look.by_length import length_groups
from everstep.networks.attentions_by_name import NAMES
from everstep.networks.cells_by_name import no_code
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.runs.pair_tokens import Sides
from everstep.runs.recipe_files import load_task, to_yaml
from everstep.runs.translation_pictures import _same
from everstep.runs.translations import _bounded, _text, in_one_form, translations
from everstep.runs.wished_lines import wishes

SMALL = (
    "model.embedding_size=8",
    "model.hidden_size=12",
    "model.input_dropout=0",
    "model.dropout=0",
    "train.batch_size=8",
    "train.threads=1",
    "train.patience=null",
    "data.test=null",
)
QUICK = (*SMALL, "train.max_steps=2", "train.max_epochs=null")
WORDS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905


pytestmark = pytest.mark.usefixtures("uncompiled_module")  # loops this small run sooner than they compile


def quietly(line: str) -> None:
    del line


def numbers(folder: Path, count: int = 120) -> str:
    """The beginning of two files: rows of numbers, and the same in another language."""
    random = np.random.default_rng(1)
    rows = [random.choice(10, random.integers(1, 6)).tolist() for _ in range(count)]
    other = [str(word)[::-1] for word in WORDS]
    for name, words in (("en", WORDS), ("xx", other)):
        (folder / f"n.{name}").write_text("".join(" ".join(words[i] for i in row) + "\n" for row in rows))
    return str(folder / "n")


def settings_of(folder: Path, *more: str) -> list[str]:
    data = [f"data.train={numbers(folder)}", "data.valid=null", "data.source=en", "data.target=xx", "data.unit=words"]
    return [*data, "data.max_size=null", "data.valid_fraction=0.1", *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """A small run that has not learned much."""
    folder = tmp_path_factory.mktemp("run")
    return es.train("translate-own", folder / "run", quietly, overrides=settings_of(folder, *QUICK))


def pairs(rows: list[list[int]], reverse: bool) -> tuple[TokenSequences, TokenSequences]:
    """Rows of tokens and the same again, maybe in reverse, each with its end 0."""

    def coded(rows: list[list[int]]) -> TokenSequences:
        ended = [[*row, 0] for row in rows]
        return TokenSequences.of(
            np.concatenate([np.array(row) for row in ended]), np.array([len(row) for row in ended])
        )

    return coded(rows), coded([row[::-1] if reverse else row for row in rows])


# ------------------------------------------------------------------------------------------------------------ it learns


@pytest.mark.parametrize(
    "more",
    [
        {"context": "initial"},
        {"context": "every-step", "cell": "GRU", "bidirectional": False},
        {"attention": "general"},
        {"attention": "additive", "query": "before", "cell": "GRU"},
        {"attention": "dot", "input_feeding": True, "layers": 2, "tied": "none"},
    ],
    ids=lambda more: "-".join(str(value) for value in more.values()),
)
def test_it_overfits_one_batch(more: dict[str, Any]) -> None:
    section = EncoderDecoderSection(**{"embedding_size": 12, "hidden_size": 24, "tied": "all", **more})
    model = EncoderDecoder(section, 8, 8)
    random = np.random.default_rng(0)
    rows = [random.integers(1, 8, random.integers(1, 5)).tolist() for _ in range(6)]
    batch = PairBatches(*pairs(rows, reverse=True), 0, 6).batch(0, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(batch)[0].sum().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(model.losses(batch)[1].sum()) / batch.count < 0.05


@pytest.mark.parametrize("reverse", [False, True], ids=["copy", "reverse"])
def test_attention_learns_to_copy_and_to_reverse(reverse: bool) -> None:
    """Strings of 5 out of 10 symbols: the search writes at least 99 % of held-out ones exactly."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    held_out = random.integers(1, 11, (300, 5)).tolist()
    rows = [row for row in random.integers(1, 11, (160 * 64, 5)).tolist() if row not in held_out]
    model = EncoderDecoder(EncoderDecoderSection(embedding_size=48, hidden_size=48), 11, 11)
    batches = PairBatches(*pairs(rows, reverse), 0, 64)
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for index in range(len(batches)):
        optimizer.zero_grad()
        batch = batches.batch(0, index)
        (model.losses(batch)[0].sum() / batch.count).backward()
        optimizer.step()
    model.eval()
    source = torch.tensor([[*row, 0] for row in held_out])
    with torch.inference_mode():
        decoder = model.search(source, torch.full((300,), 6), 0, 0)
    for width in (1, 3):
        found = beam_search(decoder, BeamSection(beam_width=width, max_length=8))
        right = [some[0].tokens == (row[::-1] if reverse else row) for some, row in zip(found, held_out, strict=True)]
        assert np.mean(right) >= 0.99


def test_a_step_learns_from_as_many_tokens_whatever_their_pairs(run: es.Run) -> None:
    batches = run.task.batches("train", run.model, "learn")
    counts = [batches.batch(0, index).count for index in range(len(batches))]
    assert len(counts) > 10
    assert max(counts) - min(counts) < 12  # eight pairs have 16 tokens, or 48


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("query", ["before", "after"])
def test_every_attention_by_its_name(name: str, query: str) -> None:
    section = EncoderDecoderSection(embedding_size=4, hidden_size=8, attention=name, query=query, heads=2)
    model = EncoderDecoder(section, 9, 7).eval()
    batch = PairBatches(*pairs([[1, 2, 3], [4], []], reverse=False), 0, 3).batch(0, 0)
    together = model.losses(batch)[1]
    weights = model.weights(batch)
    assert weights is not None
    assert weights.shape == (3, 4, 4)
    for row, (place, length) in enumerate(zip(batch.places.tolist(), batch.lengths.tolist(), strict=True)):
        alone = PairBatches(*pairs([[[1, 2, 3], [4], []][place]], reverse=False), 0, 1).batch(0, 0)
        torch.testing.assert_close(together[row : row + 1], model.losses(alone)[1])
        total = weights[row, :length, :length].sum(-1)
        assert name == "local-p" or torch.allclose(total, torch.ones(length))  # its window is Gaussian
        assert not weights[row, :, length:].any()
    model.losses(batch)[0].sum().backward()
    missing = [name for name, one in model.named_parameters() if one.grad is None]
    assert not missing


# ------------------------------------------------------------------------------------------------------------ it writes

LINES = ["one two", "", "three", "nine nine nine ten one", "zzz unknown", "  four  "]


def test_predictions_depend_on_neither_order_nor_company(run: es.Run) -> None:
    together = [one.text for one in run.predict(LINES)]
    assert together[1] == ""
    assert [next(run.predict([line])).text for line in LINES] == together
    assert [one.text for one in run.predict(LINES[::-1])] == together[::-1]
    assert [one.text for one in es.load(run.path).predict(LINES)] == together


def test_a_record_has_all_that_is_known(run: es.Run) -> None:
    (found,) = run.predict(["one two"], n_best=3)
    ranks = [line.split("\t") for line in found.text.splitlines()]
    assert [rank for rank, _, _ in ranks] == ["1", "2", "3"]
    record = found.record
    assert [f"{one['log_p']:.4f}" for one in record["n_best"]] == [log_p for _, log_p, _ in ranks]
    assert record["source_tokens"] == ["one", "two", "<eos>"]
    for one in record["n_best"]:
        assert len(one["tokens"]) == len(one["token_log_p"]) == len(one["alignment"])
        assert sum(one["token_log_p"]) == pytest.approx(one["log_p"])
        assert all(sum(row) == pytest.approx(1, abs=1e-3) and len(row) == 3 for row in one["alignment"])
    best = record["n_best"][0]
    if best["ended"] and best["tokens"][-1] == "<eos>":
        (score,) = run.score([f"one two\t{best['translation']}"])
        assert score.logp == pytest.approx(best["log_p"], abs=1e-4)
    with pytest.raises(ConfigError, match=r"at most 5 translations of a beam"):
        next(run.predict(["one"], n_best=6))
    with pytest.raises(RunError, match=r"cannot predict with probabilities; it understands format, n_best"):
        run.predict(["one"], probabilities=True)


def test_a_very_long_line_is_cut_and_said(run: es.Run, capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = run.task
    how = task.recipe.decode.replace(max_source=20, max_length=5)
    found = list(translations(run.model, list(wishes(["one two", "one " * 10_000], None)), task.sides, how))
    assert len(found[1].record["source_tokens"]) == 20
    assert len(found[1].record["tokens"]) <= 6
    assert "1 line of more than 20 tokens (the longest has 10,001)" in capsys.readouterr().err


def test_unknown_words_are_those_that_are_read(run: es.Run) -> None:
    task: Any = run.task
    unk = task.sides.target.tokenizer.unk_id
    one = Hypothesis([unk, unk], -1.0, -1.0, True, [0.0] * 3, torch.tensor([[0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]]))
    assert _text(one, "two Zanzibar", task.sides, task.recipe.decode) == "<unk> <unk>"
    how = task.recipe.decode.replace(replace_unknown=True)
    assert _text(one, "two Zanzibar", task.sides, how) == "Zanzibar <unk>"  # the second reads the end


def test_words_beside_an_unknown_one_are_written_as_they_are(run: es.Run) -> None:
    task: Any = run.task
    word = "caf\xe9\u200d"
    target = Language(Tokenizer.train([f"{word}\n"], "words"))
    known, unk = int(target.tokenizer.encode(word)[0]), target.tokenizer.unk_id
    assert unk is not None
    one = Hypothesis([known, unk], -1.0, -1.0, True, [0.0] * 3, torch.eye(3))
    how = task.recipe.decode.replace(replace_unknown=True)
    assert _text(one, "two Zanzibar", Sides(task.sides.source, target), how) == f"{word} Zanzibar"


def test_the_first_words_are_kept_of_a_long_line_in_reverse(run: es.Run) -> None:
    task: Any = run.task
    source = Language(task.sides.source.tokenizer, reverse=True)
    kept = _bounded(source.encode(["one two three four"]), 3, source)
    assert source.pieces(kept.row(0)) == ["two", "one", "<eos>"]
    unk = task.sides.target.tokenizer.unk_id
    one = Hypothesis([unk, unk], -1.0, -1.0, True, [0.0] * 3, torch.eye(3))
    how = task.recipe.decode.replace(replace_unknown=True, max_source=3)
    assert _text(one, "one two three four", Sides(source, task.sides.target), how) == "two one"


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_texts_are_compared_in_one_form(form: Any) -> None:
    reference = "l'\xe9t\xe9 o\ufb03ciel est l\xe0" if "K" in form else "l'\xe9t\xe9 est l\xe0"
    found = unicodedata.normalize(form, reference)
    assert in_one_form([found], form) == in_one_form([reference], form)
    assert in_one_form([found], None) == [found]


def test_a_small_last_group_of_lengths_joins_the_one_before() -> None:
    lengths = [1] * 6 + [2] * 6 + [3] * 2
    assert length_groups(lengths) == [list(range(6)), list(range(6, 14))]
    assert length_groups(lengths[:7]) == [list(range(7))]


def test_spaces_of_other_widths_are_no_error() -> None:
    assert _same("Ah\xa0! oui", "Ah ! oui", False)
    assert not _same("Ah! oui", "Ah ! oui", False)


def test_scores_are_of_a_text_and_its_translation(run: es.Run) -> None:
    lines = ["one two\teno owt", "three\t", "\teerht", "one\tzzz"]
    scores = run.score(lines)
    assert [score.tokens for score in scores] == [3, 1, 2, 2]
    assert [score.unknown for score in scores] == [0, 0, 0, 1]
    for line, score in zip(lines, scores, strict=True):
        (alone,) = run.score([line])
        assert alone.logp == pytest.approx(score.logp, abs=1e-5)
        assert sum(score.token_logps) == pytest.approx(score.logp)
    with pytest.raises(
        DataError, match=r"line 8: expected a source and its target with one tab between them, got none"
    ):
        run.task.score(run.model, ["one\teno", "two"], 7)
    assert run.score([]) == []


def test_what_eval_says(run: es.Run) -> None:
    scores = run.evaluate("valid")
    assert {"bleu", "chrf", "nats_per_token", "perplexity", "ended", "bleu_signature", "loss"} <= scores.keys()
    sources, references = run.task.texts.texts("valid")
    lines = [f"{one}\t{other}" for one, other in zip(sources, references, strict=True)]
    every = run.score(lines)
    assert scores["nats_per_token"] == pytest.approx(-sum(s.logp for s in every) / sum(s.tokens for s in every))
    assert scores["pairs"] == len(sources)


def cli(*words: str, given: str = "") -> Any:
    return CliRunner().invoke(app, words, input=given)


def test_the_command_line(run: es.Run, tmp_path: Path) -> None:
    assert len(cli("predict", str(run.path), given="one\n\ntwo\n").stdout.splitlines()) == 3
    rows = cli("predict", str(run.path), "--json", given="one\r\n\r\n").stdout.splitlines()
    assert [json.loads(row)["source"] for row in rows] == ["one", ""]
    assert cli("score", str(run.path), given="one\teno\n").stdout.count("\t") == 3
    (tmp_path / "other.en").write_text("one\n")
    (tmp_path / "other.xx").write_text("eno\n")
    found = cli("eval", str(run.path), "--data", str(tmp_path / "other"), "--json")
    assert json.loads(found.stdout)["pairs"] == 1
    assert "bleu" in cli("eval", str(run.path)).stdout


# ----------------------------------------------------------------------------------------------------------- its folder


class TestLaws(JobLaws):
    job = "translation"
    settings = (*SMALL, "model.dropout=0.2")
    asked = [[line] for line in LINES]
    scored = ("one two\tow eno", "three\teerht", "four\t")

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        keys = ("train.max_epochs=1", *settings_of(folder))
        path = folder / "recipe.yaml"
        path.write_text(to_yaml(load_task("translation", keys).recipe))
        return path


def test_back_translation_by_two_commands(tmp_path: Path) -> None:
    """As in docs/translation.md: a run of the other direction makes the sources of more targets."""
    corpus = numbers(tmp_path, 40)
    data = ["data.valid=null", "data.unit=words", "data.max_size=null", "data.valid_fraction=0.1", *QUICK]
    back, forth, made = tmp_path / "back", tmp_path / "forth", tmp_path / "made"
    (tmp_path / "made.xx").write_text("eno owt\neerht\n\nxis\n")
    first = ["data.source=xx", "data.target=en", f"data.train={corpus}"]
    assert cli("train", "translate-own", *first, *data, "--out", str(back)).exit_code == 0
    done = cli("predict", str(back), given=made.with_suffix(".xx").read_text())
    made.with_suffix(".en").write_text(done.stdout)
    assert len(done.stdout.splitlines()) == 4
    second = ["data.source=en", "data.target=xx", f"data.train=[{corpus}, {made}]"]
    assert cli("train", "translate-own", *second, *data, "--out", str(forth)).exit_code == 0
    assert len(es.load(forth).task.texts.texts("train")[0]) > 36  # type: ignore[attr-defined]
    assert cli("predict", str(forth), given="one two\n").stdout.count("\n") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn(run: es.Run, tmp_path: Path) -> None:
    drawn = dict(run.task.pictures(run.model, tmp_path / "held-out", None))
    assert {path.name for path in drawn} == {"alignments.png", "bleu-by-length.png", "accuracy-by-length.png"}
    own = dict(run.task.pictures(run.model, tmp_path / "own", "one two\n\nthree\n"))
    assert {path.name for path in own} == {"alignments.png"}
    assert all(path.is_file() for path in (*drawn, *own))
    assert run.passage("one two").labels == ["one ", "two "]
    assert len(run.passage().labels) >= 1
    with pytest.raises(DataError, match="the passage is empty"):
        run.passage(" \n")


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.vocabulary=separate", r"model\.tied: expected target or none"),
        ("model.attention=dott", r"model\.attention"),
        ("model.cell=LTSM", r"did you mean LSTM\?"),
        ("model.residual=true", r"model\.residual: expected false beside bidirectional"),
        ("decode.n_best=9", r"decode\.n_best"),
        ("decode.n_best=2", r"decode\.n_best: expected 1: .*--n-best"),
        ("decode.replace_unknown=true", r"decode\.replace_unknown: expected false"),
        ("model.heads=5", None),
    ],
)
def test_settings_that_cannot_be_used(override: str, said: str | None, tmp_path: Path) -> None:
    if said is None:
        assert load_task("translate-own", [override])
        return
    with pytest.raises(ConfigError, match=said):
        load_task("translate-own", [override])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": "dot", "encoder_size": 7}, r"dot expects the encoder and the decoder to give as many"),
        ({"attention": "multi-head", "heads": 5}, r"heads: expected a divisor"),
        ({"input_feeding": True, "zoneout": 0.1}, r"zoneout: expected 0"),
        ({"input_feeding": True, "weight_drop": 0.1}, r"weight_drop: expected 0"),
        ({"query": "before", "weight_drop": 0.1}, r"weight_drop: expected 0"),
        (
            {"query": "before", "variational": True, "dropout": 0.1, "layers": 2},
            r"variational: expected false, or dropout 0, or one layer",
        ),
        (
            {"attention": "dot", "query": "before", "hidden_size": (8, 4), "encoder_size": 2},
            r"4 features of the encoder, 8 of the decoder",
        ),
        (
            {"attention": "multi-head", "query": "before", "hidden_size": (6, 8), "heads": 4},
            r"expected a divisor of attention_size \(6\)",
        ),
    ],
)
def test_settings_that_do_not_fit_are_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncoderDecoderSection(**settings)


def test_a_cell_whose_state_is_no_query_is_said() -> None:
    section = EncoderDecoderSection(embedding_size=4, hidden_size=8, cell="MLSTM", query="before")
    (said,) = section.problems(no_code)
    assert "model: Attend: the query is the first leaf of the state" in said


@pytest.mark.parametrize("more", [{}, {"query": "before"}, {"input_feeding": True}], ids=str)
@pytest.mark.parametrize("cell", ["SCRN", {"type": "ProjectedLSTM", "proj_size": 5}], ids=str)
def test_cells_that_give_other_sizes_than_hidden_size(cell: Any, more: dict[str, Any]) -> None:
    section = EncoderDecoderSection(embedding_size=4, hidden_size=8, encoder_size=6, cell=cell, **more)
    assert list(section.problems(no_code)) == []
    batch = PairBatches(*pairs([[1, 2], [3]], reverse=False), 0, 2).batch(0, 0)
    assert EncoderDecoder(section, 9, 7).losses(batch)[0].isfinite().all()


def test_queries_before_fit_the_first_layer() -> None:
    section = EncoderDecoderSection(
        embedding_size=4, hidden_size=(8, 4), encoder_size=4, attention="dot", query="before", tied="none"
    )
    assert list(section.problems(no_code)) == []


@pytest.mark.parametrize("more", [{"query": "before"}, {"input_feeding": True}], ids=str)
def test_dropout_between_layers_where_attention_goes_back(more: dict[str, Any]) -> None:
    """Training draws a mask between the layers of the decoder, and the gradient is that of the loss with that mask."""
    section = EncoderDecoderSection(embedding_size=4, hidden_size=6, layers=2, dropout=0.5, **more)
    model = EncoderDecoder(section, 9, 7).double()
    (between,) = (one for one in model.decoder.modules() if isinstance(one, es.Dropout))
    assert between.p == 0.5
    batch = PairBatches(*pairs([[1, 2, 3], [4]], reverse=False), 0, 2).batch(0, 0)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return model(batch).square().sum()

    weight = model.target_embedding.weight
    (slope,) = torch.autograd.grad(loss(), weight)
    way = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-6 * way
        above = loss()
        weight -= 2e-6 * way
        below = loss()
    torch.testing.assert_close((above - below) / 2e-6, (slope * way).sum(), rtol=1e-5, atol=1e-7)


def test_a_missing_file_of_two_is_said_before_any_work(tmp_path: Path) -> None:
    prefix = numbers(tmp_path)
    (tmp_path / "n.xx").unlink()
    with pytest.raises(DataError, match=r"data\.train: .*there is no .*n\.xx"):
        es.train(
            "translate-own",
            tmp_path / "run",
            quietly,
            overrides=[f"data.train={prefix}", "data.source=en", "data.target=xx", "data.valid=null"],
        )
    assert not (tmp_path / "run").exists()
