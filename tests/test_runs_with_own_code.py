"""Every verb on runs that hold code of the user's: an equation in a language model, a class in a classifier, a job."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import cache_in
from safetensors.torch import load_file
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.cli.common import resuming
from everstep.errors import DataError
from everstep.runs.training import resume

EXAMPLES = Path(es.__file__).parents[1] / "examples"
CELLS = Path(__file__).with_name("own_cells.py").read_text("utf-8")
SMALL = ["model.hidden_size=8", "train.batch_size=4", "train.warmup_steps=0", "train.schedule=constant"]
STEPS = ["train.max_steps=2", "train.validate_every=1", "train.max_epochs=null", "train.max_minutes=null"]
MODEL = ["text-chars", "data.train=play.txt", "model.embedding_size=8", "objective.k1=8"]
CLASSES = ["classify-own", "data.train=texts.tsv", "data.test=texts.tsv", "data.min_count=1", "model.embedding_size=8"]
PARITY = [f"{EXAMPLES}/parity.py:Parity", "data.length=6"]
KINDS = {
    "model": [*MODEL, "model.cell=mycells.py:Mine"],
    "classes": [*CLASSES, "model.cell={type: mycells.py:Plain, scale: 0.5}"],
    "parity": [*PARITY, "model.cell=mycells.py:both"],
}
LINES = {"model": "What say you\nto that\n", "classes": "good thing\nnot bad\n", "parity": "1101\n0011\n"}


def cli(*words: str | Path, given: str | None = None, code: int = 0) -> Any:
    """A command in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words], input=given)
    assert done.exit_code == code, (words, done.output)
    return done


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of a session."""
    return Path(cache_in(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with cells, texts, and a run of each kind, with a space in its name."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "play.txt").write_text("What say you to that? I say nothing, and so it goes.\n" * 8)
    rows = [
        (f"{word} thing {number}", label) for number in range(8) for word, label in (("good", "pos"), ("bad", "neg"))
    ]
    (folder / "texts.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]))
    (folder / "mycells.py").write_text(CELLS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_CACHE", str(cache))
        patch.chdir(folder)
        for kind in KINDS:
            trained(kind, f"a {kind}")
    return folder


@pytest.fixture(autouse=True)
def at_home(home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where the runs are."""
    monkeypatch.setenv("EVERSTEP_CACHE", str(cache))
    monkeypatch.chdir(home)


def trained(kind: str, out: str | Path, *more: str) -> Any:
    """What the command prints that trains a run."""
    return cli("train", *KINDS[kind], *SMALL, *STEPS, *more, "--out", out)


def used(kind: str) -> es.Run:
    return es.load(f"a {kind}", trust_code=True)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ------------------------------------------------------------------------------------------------- what commands say


def commands(text: str) -> list[str]:
    """The commands in a card, or in what the end of a training prints."""
    return [line.strip() for line in text.splitlines() if line.strip().startswith("everstep ")]


def test_every_command_of_the_card_runs_as_it_stands(kind: str) -> None:
    """Those for pictures, which cost more, are drawn further down."""
    wanted = {"model": ["eval", "generate", "score", "look"], "classes": ["eval", "predict", "look"]}
    found = commands(Path(f"a {kind}/README.md").read_text())
    assert [command.split()[1] for command in found] == wanted.get(kind, ["eval", "predict"])
    for command in found:
        words, _, _ = command.partition(" < ")
        assert words.endswith(("--trust-code", "0.8")), command
        verb = shlex.split(words)[1:]
        if verb[0] != "look":
            cli(*verb, given=LINES[kind])
        cli(*[word for word in verb if word != "--trust-code"], given=LINES[kind], code=2)


def test_the_end_of_a_training_and_its_hints_name_the_consent(tmp_path: Path) -> None:
    said = trained("parity", tmp_path / "run").stdout
    assert [command.endswith(("--trust-code", "< lines.txt")) for command in commands(said)] == [True, True]
    again = CliRunner().invoke(app, ["train", *KINDS["parity"], "--out", str(tmp_path / "run")])
    assert f"To resume it: everstep train --resume {tmp_path / 'run'} --trust-code" in str(again.stderr)
    assert resuming(tmp_path) == f"everstep train --resume {tmp_path}"  # a run without code


# --------------------------------------------------------------------------------------- eval, score, predict, generate


def test_eval_gives_what_training_wrote(kind: str) -> None:
    for split, measures in json.loads(Path(f"a {kind}/scores.json").read_text()).items():
        found = json.loads(cli("eval", f"a {kind}", "--trust-code", "--split", split, "--json").stdout)
        assert found == {name: value for name, value in measures.items() if name != "rivals"}
        assert math.isfinite(found["loss"])
    shown = cli("eval", f"a {kind}", "--trust-code").stdout
    assert f"{used(kind).evaluate()['loss']:.4f}" in shown


def test_eval_of_other_data_and_of_a_part_that_there_is_not(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("I say that\n")
    assert json.loads(cli("eval", "a model", "--trust-code", "--data", other, "--json").stdout)["tokens"] == 11
    with pytest.raises(DataError, match="has no test split; it has train, valid"):
        used("parity").evaluate("test")
    train, valid = (used("parity").evaluate(split) for split in ("train", "valid"))
    assert train["loss"] != valid["loss"]


@torch.no_grad()
def test_score_is_that_of_a_loop_over_the_cells_step() -> None:
    run = used("model")
    task: Any = run.task
    model: Any = run.model
    printed = [
        line.split("\t") for line in cli("score", "a model", "--trust-code", given=LINES["model"]).stdout.splitlines()
    ]
    for (logp, tokens, line), text in zip(printed, LINES["model"].splitlines(), strict=True):
        before, state, total = task.tokenizer.begin_id, model.initial_state(1), 0.0
        for symbol in task.tokenizer.encode(text, line_end=False).tolist():
            log_p, state = model.step(torch.tensor([before]), state)
            total, before = total + float(log_p[0, symbol]), symbol
        assert line == text
        assert int(tokens) == len(text)
        assert float(logp) == pytest.approx(total, abs=1e-4)


@torch.no_grad()
def test_predict_is_what_the_model_says() -> None:
    run = used("classes")
    task: Any = run.task
    done = cli("predict", "a classes", "--trust-code", "--json", given=LINES["classes"])
    for record, text in zip(map(json.loads, done.stdout.splitlines()), LINES["classes"].splitlines(), strict=True):
        tokens = torch.tensor([task.tokenizer.encode(text, line_end=False).tolist()])
        log_p = run.model(tokens, torch.tensor([tokens.shape[1]]))[0]
        assert record["label"] == task.classes[int(log_p.argmax())]
        assert list(record["probabilities"].values()) == pytest.approx(log_p.exp().tolist(), abs=1e-5)
    answers = cli("predict", "a parity", "--trust-code", given=LINES["parity"]).stdout.split()
    assert answers == [found.text for found in used("parity").predict(LINES["parity"].splitlines())]


@torch.no_grad()
def test_generate_is_what_the_step_draws() -> None:
    """At temperature 0: the likeliest token each time, on the compiled step and on PyTorch's alike."""
    run = used("model")
    task: Any = run.task
    model: Any = run.model
    said = cli("generate", "a model", "--trust-code", "--prompt", "What", "--length", "40", "--temperature", "0").stdout
    ids, state = task.tokenizer.encode("What", line_end=False).tolist(), model.initial_state(1)
    for place in range(-1, 43):
        before = task.tokenizer.begin_id if place < 0 else ids[place]
        log_p, state = model.step(torch.tensor([before]), state)
        if place >= 3:
            ids.append(int(log_p[0].argmax()))
    speller = task.speller()
    assert said == speller.spell(ids) + speller.end() + "\n"
    cli("generate", "a classes", "--trust-code", code=2)


# --------------------------------------------------------------------------------------------------------- look, graph


SEEN = {"curves", "units", "properties", "surprise", "gates", "saturation"}
MEMORY = {"gradient-flow", "sensitivity", "spectrum", "memory", "loss-surface"}


@pytest.mark.parametrize(
    ("kind", "some", "none"),
    [
        ("model", SEEN | MEMORY | {"matrices"}, {"confusion"}),
        ("classes", {"curves", "units", "confusion", "words", "properties"}, {"gates", "saturation"} | MEMORY),
        ("parity", {"curves"}, {"units"}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn_as_far_as_the_cell_allows(
    kind: str, some: set[str], none: set[str], tmp_path: Path
) -> None:
    cli("look", f"a {kind}", "--trust-code", "--out", tmp_path)
    drawn = {path.stem for path in tmp_path.iterdir() if path.suffix in (".png", ".md")}
    assert some <= drawn
    assert not none & drawn
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# Pictures of a {kind}")
    assert {"model": "Mine", "classes": "Plain", "parity": "loss"}[kind] in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cell_without_state_has_no_pictures_of_memory(tmp_path: Path) -> None:
    cli("train", *MODEL, "model.cell=mycells.py:Stateless", *SMALL, *STEPS, "--out", tmp_path / "run")
    drawn = cli("look", tmp_path / "run", "--trust-code").stdout.split()
    names = {Path(word).stem for word in drawn if word.endswith(".png")}
    assert names == {"curves", "surprise", "loss-surface"}
    short = cli("look", "a classes", "--trust-code", "--out", tmp_path / "drawn").stdout
    assert "No property could be measured on 3 words" in short


@pytest.mark.parametrize(
    ("kind", "title", "note"),
    [("model", "Stack, ", ""), ("classes", "One step of Plain", "is Plain in it"), ("parity", "Stack, ", "")],
)
def test_the_graph_of_a_run(kind: str, title: str, note: str, tmp_path: Path) -> None:
    done = cli("graph", f"a {kind}", "--trust-code", "--out", tmp_path / "graph.svg")
    assert title in (tmp_path / "graph.svg").read_text()
    assert note in done.stderr
    assert bool(note) == bool(done.stderr)


# ----------------------------------------------------------------------------------------------------- resume and from


def test_resumed_it_has_the_bits_of_a_run_in_one_go(kind: str, tmp_path: Path) -> None:
    trained(kind, tmp_path / "parts", "train.max_steps=1")
    cli("train", "--resume", tmp_path / "parts", "train.max_steps=2", "--trust-code")
    one, other = (load_file(path / "model.safetensors") for path in (Path(f"a {kind}"), tmp_path / "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_from_takes_the_weights_wherever_the_file_lies(kind: str, tmp_path: Path) -> None:
    words = [word.replace("mycells.py", f"{tmp_path}/mycells.py") for word in KINDS[kind]]
    (tmp_path / "mycells.py").write_text(CELLS)
    rate = ["train.learning_rate=1e-30", "train.max_steps=1", "--from", f"a {kind}", "--trust-code"]
    said = cli("train", *words, *SMALL, *STEPS, *rate, "--out", tmp_path / "run").stderr
    assert "is not the file" not in said
    one, other = (load_file(path / "model.safetensors") for path in (Path(f"a {kind}"), tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_from_says_that_the_code_is_another(tmp_path: Path) -> None:
    (tmp_path / "mycells.py").write_text(CELLS.replace("tanh(x.n + h.n)", "torch.relu(x.n + h.n)"))
    changed = [f"model.cell={tmp_path}/mycells.py:Mine", "--from", "a model", "--trust-code"]
    said = cli("train", *MODEL, *changed, *SMALL, *STEPS, "--out", tmp_path / "run").stderr
    assert "warning: mycells.py is not the file that a model was trained by" in said
    other = cli("train", *MODEL, "model.cell=mycells.py:Plain", "--from", "a model", "--trust-code", *SMALL, "--out",
                tmp_path / "no", code=2).stderr  # fmt: skip
    assert "everstep train 'a model/config.yaml' KEY=VALUE --from 'a model' --trust-code" in other


def test_a_run_is_loaded_and_goes_on_in_python(kind: str) -> None:
    """The file that it was made by may be gone."""
    source = Path("mycells.py").read_text()
    Path("mycells.py").unlink()
    try:
        run = used(kind)
        assert run.evaluate("valid") == used(kind).evaluate("valid")
        assert resume(f"a {kind}", lambda _: None, trust_code=True).evaluate("valid") == run.evaluate("valid")
    finally:
        Path("mycells.py").write_text(source)
