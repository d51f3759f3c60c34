"""Settings of decode at prediction, phrases that a translation must contain, and ensembles of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data import Tokenizer
from everstep.data.text.language import Language
from everstep.errors import ConfigError, DataError, RunError
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.networks.translating import TranslationSearch, translated
from everstep.networks.translator_ensemble import TranslatorEnsemble
from everstep.runs.wished_lines import wishes

WORDS = "one two three four five six".split()  # noqa: SIM905
SMALL = [
    "model.embedding_size=8", "model.hidden_size=12", "model.input_dropout=0", "model.dropout=0", "train.batch_size=16",
    "train.threads=1", "train.patience=null", "train.max_steps=6", "train.max_epochs=null", "train.learning_rate=0.02",
]  # fmt: skip
QUIET = "data.test=null"


pytestmark = pytest.mark.usefixtures("uncompiled_module")  # loops this small run sooner than they compile


def quietly(line: str) -> None:
    del line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with the same data, one that reads it in reverse, and one with other words."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        rows = [random.choice(6, random.integers(1, 5)).tolist() for _ in range(60)]
        words = {"en": WORDS, "xx": [word[::-1] + ("" if name == "a" else "z") for word in WORDS]}
        for language, some in words.items():
            (folder / f"{name}.{language}").write_text("".join(" ".join(some[i] for i in row) + "\n" for row in rows))
    own = {"two": ["model.hidden_size=16"], "reversed": ["data.reverse_source=true"]}
    for out, name in (("one", "a"), ("two", "a"), ("reversed", "a"), ("other", "b")):
        data = [f"data.train={folder / name}", "data.valid=null", "data.target=xx", "data.unit=words", QUIET]
        settings = [*data, "data.max_size=null", "data.valid_fraction=0.2", *SMALL, *own.get(out, [])]
        es.train("translate-own", folder / out, quietly, overrides=settings)
    return folder


@pytest.fixture
def run(home: Path) -> es.Run:
    return es.load(home / "one")


def cli(*words: object, given: str = "") -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], input=given)


# ------------------------------------------------------------------------------------------------------------- settings


def test_settings_of_decode_at_prediction(run: es.Run) -> None:
    other = run.decoding(["decode.beam_width=1", "decode.max_length=1"])
    assert all(len(one.record["tokens"]) <= 2 for one in other.predict(["one two three"] * 3))
    assert run.recipe.decode.max_length == 200  # type: ignore[attr-defined]
    assert other.model is run.model
    assert other.evaluate("valid")["length_ratio"] <= 1
    assert run.decoding([]).recipe == run.recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.hidden_size=3", r"only keys of decode can change .*got 'model\.hidden_size=3'"),
        ("beam_width=3", r"only keys of decode can change"),
        ("decode.beam_widht=3", r"decode\.beam_widht: unknown key; did you mean decode\.beam_width\?"),
        ("decode.beam_width=0", r"decode\.beam_width: expected a whole number ≥ 1; got 0"),
        ("decode.beam_width", r"expected key=value"),
        ("decode.replace_unknown=maybe", r"decode\.replace_unknown: expected true or false"),
    ],
)
def test_settings_that_cannot_be_used(run: es.Run, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run.decoding([override])


def test_a_job_without_such_settings(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "good one\tpos\nbad one\tneg\n" * 6)
    small = ["model.hidden_size=4", "model.embedding_size=4", "train.max_steps=1", "train.max_epochs=null"]
    data = [f"data.train={tmp_path / 't.tsv'}", "data.test=null", "data.valid=null", "data.min_count=1"]
    run = es.train("classify-own", tmp_path / "run", quietly, overrides=[*data, *small, "train.max_minutes=null"])
    with pytest.raises(RunError, match=r"\(classification\) has no settings of decode"):
        run.decoding(["decode.beam_width=3"])
    with pytest.raises(RunError, match=r"cannot predict --with; it can eval, predict"):
        run.beside([run])


def test_the_command_line_takes_settings(home: Path) -> None:
    done = cli("predict", home / "one", "decode.max_length=1", "decode.beam_width=2", "--json", given="one two\n")
    assert len(json.loads(done.stdout)["tokens"]) <= 2
    found = cli("eval", home / "one", "decode.max_length=1", "--json")
    assert json.loads(found.stdout)["length_ratio"] <= 1
    assert "did you mean decode.beam_width" in cli("predict", home / "one", "decode.beam_with=2", given="one\n").output
    assert "widen the beam: decode.beam_width=9" in cli("predict", home / "one", "--n-best", 9, given="one\n").output
    assert cli("predict", home / "one", "decode.beam_width=9", "--n-best", 9, given="one\n").exit_code == 0


# -------------------------------------------------------------------------------------------------------------- phrases


def test_a_translation_has_its_phrases(run: es.Run) -> None:
    lines = [
        json.dumps({"text": "one two", "phrases": ["xis", "owt eerht"]}),
        json.dumps({"text": "one two"}),
        "",
        json.dumps({"text": "", "phrases": []}),
    ]
    found = list(run.predict(lines, format="jsonl"))
    assert "xis" in found[0].text.split()
    assert "owt eerht" in found[0].text
    assert found[1].text == next(run.predict(["one two"])).text
    assert [one.text for one in found[2:]] == ["", ""]
    table = list(run.predict(["one two\txis\towt eerht", "one two"], format="tsv"))
    assert [one.text for one in table] == [found[0].text, found[1].text]
    alone = [next(run.predict([line], format="jsonl")).text for line in lines[:2]]
    assert alone == [found[0].text, found[1].text]


def test_phrases_beyond_the_greatest_length_are_said(run: es.Run, capsys: pytest.CaptureFixture[str]) -> None:
    short = run.decoding(["decode.max_length=2"])
    (found,) = short.predict(["one\txis xis xis"], format="tsv")
    assert found.text == ""
    assert "line 1 has no hypothesis within the limits of decode that has 'xis xis xis'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "format", "said"),
    [
        ('{"text": "a"', "jsonl", r"line 1 to translate: is no JSON"),
        ('["a"]', "jsonl", r"line 1 to translate: expected an object such as"),
        ('{"text": 3}', "jsonl", r"expected an object such as"),
        ('{"text": "a", "phrases": "b"}', "jsonl", r'expected a list of strings at "phrases", got "b"'),
        ('{"text": "a", "phrases": [1]}', "jsonl", r"expected a list of strings"),
        ('{"text": "a", "phrase": ["b"]}', "jsonl", r'expected no keys but text, phrases; got "phrase"'),
        ('{"text": "a", "phrases": ["b", " "]}', "jsonl", r"expected phrases with some text, but number 2 is blank"),
        ('{"text": "one \\ud800"}', "jsonl", r"line 1 to translate: half a surrogate pair"),
        ('{"text": "one", "phrases": ["\\udfff"]}', "jsonl", r"line 1 to translate: half a surrogate pair"),
        ("one\t\teno", "tsv", r"but number 1 is blank"),
        ("one\tunheard", "tsv", r"the phrase 'unheard' has 'unheard', which is not in the vocabulary"),
    ],
)
def test_lines_with_phrases_that_cannot_be_used(run: es.Run, line: str, format: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(run.predict([line], format=format))


def test_an_unknown_format_is_said_before_any_work(run: es.Run) -> None:
    with pytest.raises(ConfigError, match=r"expected a format among text, tsv, jsonl; got 'xml'"):
        run.predict(["one"], format="xml")
    assert [wish.text for wish in wishes(["a\tb"], None)] == ["a b"]


# ------------------------------------------------------------------------------------------------------------ ensembles


def test_an_ensemble_has_the_mean_of_the_probabilities(home: Path) -> None:
    one, two = es.load(home / "one"), es.load(home / "two")
    both = one.beside([two])
    lines = ["one two\teno owt", "three\teerht"]
    scores = [run.score(lines) for run in (one, two, both)]
    for first, second, mean in zip(*scores, strict=True):
        wanted = np.log(np.mean([np.exp(first.token_logps), np.exp(second.token_logps)], axis=0))
        np.testing.assert_allclose(mean.token_logps, wanted, atol=1e-5)
    (found,) = both.predict(["one two"])
    if found.record["ended"] and found.record["tokens"][-1] == "<eos>":
        (score,) = both.score([f"one two\t{found.text}"])
        assert score.logp == pytest.approx(found.record["log_p"], abs=1e-4)
    assert "alignment" in found.record
    assert both.evaluate("valid")["nats_per_token"] > 0
    alone = one.beside([])
    assert [p.text for p in alone.predict(["one two"])] == [p.text for p in one.predict(["one two"])]


def test_the_losses_of_an_ensemble_count_valid_steps_alone(home: Path) -> None:
    one, two = es.load(home / "one"), es.load(home / "two")
    batch = one.task.batches("valid", one.model, "score").batch(0, 0)  # type: ignore[union-attr]
    with torch.no_grad():
        nats, same = TranslatorEnsemble([one.model, one.model]).losses(batch)  # type: ignore[list-item]
        torch.testing.assert_close(nats, one.model.losses(batch)[1])  # type: ignore[operator]
    assert nats is same
    assert two.model is not one.model


def test_unknown_words_are_replaced_only_where_every_model_has_attention() -> None:
    language = Language(Tokenizer.train(["a b\n"], "words"))
    size = language.tokenizer.vocab_size
    sections = [EncoderDecoderSection(embedding_size=4, hidden_size=4, context=one) for one in ("attention", "initial")]
    model = TranslatorEnsemble([EncoderDecoder(section, size, size) for section in sections])
    how = TranslationSearch(replace_unknown=True, max_length=2)
    with pytest.raises(ConfigError, match="expected attention, which a model of the ensemble lacks"):
        translated(model, language.encode(["a"]), language, how)


def test_runs_that_cannot_predict_together(home: Path) -> None:
    one = es.load(home / "one")
    with pytest.raises(RunError, match=r"other cannot predict beside .*one: its tokenizer\.json is another one"):
        one.beside([es.load(home / "other")])
    with pytest.raises(
        RunError, match=r"reversed cannot predict beside .*: its data\.reverse_source is True, not False"
    ):
        one.beside([es.load(home / "reversed")])


def test_ensembles_on_the_command_line(home: Path) -> None:
    done = cli("predict", home / "one", "--with", home / "two", "decode.beam_width=2", given="one two\n\n")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2
    assert json.loads(cli("eval", home / "one", "--with", home / "two", "--json").stdout)["bleu"] >= 0
    assert cli("score", home / "one", "--with", home / "two", given="one\teno\n").exit_code == 0
    failed = cli("predict", home / "one", "--with", home / "other", given="one\n")
    assert failed.exit_code != 0
    assert "is another one" in failed.output
