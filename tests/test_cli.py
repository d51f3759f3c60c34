"""The command line: formats, exit codes and messages, on a run that needs no training; `test_task.py` has real ones."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

import pytest
import typer
from typer.testing import CliRunner

import everstep.runs
from everstep.cli.app import app
from everstep.cli.demo import counted_bits
from everstep.errors import DataError, Diverged, Interrupted
from everstep.native import build, toolchain
from everstep.runs.card import example
from everstep.runs.recipe_files import load_recipe, load_task, to_yaml

ROOT = Path(__file__).resolve().parents[1]
SCORES = {
    "task": "language-model",
    "split": "valid",
    "tokens": 111540,
    "nats_per_token": 1.5,
    "bits_per_token": 2.164,
    "perplexity": 4.48,
    "bits_per_char": 2.164,
    "bits_per_byte": 2.164,
    "word_perplexity": 900.5,
}


class Score(NamedTuple):
    logp: float
    tokens: int
    line: str
    token_logps: list[float]
    unknown: int | None = None


class FakeRun:
    """What the command line uses of a run, with answers that show what was asked."""

    def __init__(self, path: Path, task: Any):
        self.path, self.task, self.recipe, self.asked = path, task, task.recipe, []  # type: ignore[var-annotated]
        self.model = None

    def able(self, verb: str) -> Any:
        decoder = lambda model, given: types.SimpleNamespace(unknown=given.count("unheard"))  # noqa: E731
        return types.SimpleNamespace(recipe=self.recipe, decoder=decoder)

    @property
    def decode(self) -> Any:
        return self.recipe.decode

    def stream(self, how: Any, **wanted: Any) -> Iterator[list[str]]:
        self.asked.append({**dict(how), **wanted})
        rows = range(wanted.get("count", 1))
        return iter([[f"text {i} of" for i in rows], [f" seed {wanted['seed']}" for _ in rows]])

    def score(self, lines: list[str], first_line: int = 1) -> list[Score]:
        self.asked.append(len(lines))
        return [Score(-0.5 * len(line), len(line) + 1, line, [-0.5] * len(line) + [0.0]) for line in lines]

    def evaluate(self, split: str | None = None, *, data: Any = None, adapt: Any = None) -> dict[str, Any]:
        return {**SCORES, "split": split or ("test" if self.recipe.data.test else "valid")}

    def passage(self, text: str | None = None, characters: int = 600) -> Any:
        shown = (text or "".join(self.task.texts.read("valid")))[:characters]
        bits = [1.0 + index % 5 for index in range(len(shown))]
        pairs = list(zip(shown, bits, strict=True))
        return types.SimpleNamespace(
            labels=list(shown), surprise=lambda: bits, pairs=pairs, unit="character", shown="character"
        )


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Everstep = Callable[..., Outcome]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.SimpleNamespace:
    """`everstep.runs.training` with nothing behind it; `raises` is what training ends by."""
    made: dict[Path, FakeRun] = {}
    module = types.SimpleNamespace(raises=None, calls=[], runs=made)

    def load(path: Path, **options: Any) -> FakeRun:
        return made.setdefault(path, FakeRun(path, load_task(path / "config.yaml")))

    def train(recipe: Any, out: Path, overrides: Sequence[str] = (), **options: Any) -> FakeRun:
        task = load_task(recipe, overrides) if isinstance(recipe, str) else recipe
        module.calls.append(("train", out))
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(to_yaml(task.recipe), encoding="utf-8")
        records = [{"step": s, "seconds": s, "loss": 4 / s} for s in range(1, 9)] + [
            {"step": 8, "seconds": 8, "valid": 1.5}
        ]
        (out / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        if module.raises:
            raise module.raises
        (out / "model.safetensors").touch()
        return load(out)

    def resume(out: Path, **options: Any) -> FakeRun:
        module.calls.append(("resume", out))
        (out / "model.safetensors").touch()
        return load(out)

    module.train, module.resume = train, resume
    monkeypatch.setattr("everstep.ship.loaded.load", load)
    monkeypatch.setitem(sys.modules, "everstep.runs.training", module)
    monkeypatch.setattr(everstep.runs, "training", module, raising=False)
    monkeypatch.chdir(tmp_path)
    return module


@pytest.fixture
def cli() -> Everstep:
    def call(*args: str, stdin: bytes = b"") -> Outcome:
        result = CliRunner().invoke(app, list(args), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def run(fake: types.SimpleNamespace) -> FakeRun:
    made: FakeRun = fake.train("shakespeare-minute", Path("runs/mine"))
    fake.calls.clear()
    return made


# ------------------------------------------------------------------------------------------------------------ the verbs


def test_help_imports_nothing_heavy() -> None:
    """So that it comes at once: 0.07 s where importing PyTorch takes more than one."""
    code = (
        "import sys; sys.argv[1:] = ['--help']; import everstep.cli as c\ntry: c.main()\nfinally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "everstep demo" in done.stdout
    heavy = {"torch", "numpy", "pydantic", "matplotlib", "ruamel", "tokenizers"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("verb", ["demo", "train", "eval", "score", "generate", "look", "doctor", "recipes", "bench"])
def test_each_verb_teaches_by_an_example(verb: str, cli: Everstep) -> None:
    shown = cli(verb, "--help")
    assert shown.code == 0
    assert f"  everstep {verb}" in shown.out.partition("Options:")[0]


def test_benchmarks_by_name(cli: Everstep, capfd: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    names = [line.split()[0] for line in cli("bench").out.splitlines()]
    assert {"engine", "lm", "rivals", "lab/deep", "lab/skips", "lab/sequential_mnist"} <= set(names)
    assert "timing" not in names
    capfd.readouterr()
    assert cli("bench", "lab/deep", "--help").code == 0
    assert "--layers" in capfd.readouterr().out
    unknown = cli("bench", "lmm")
    assert (unknown.code, "engine, " in unknown.err) == (2, True)
    monkeypatch.setattr("everstep.cli.benching.FOLDER", tmp_path / "site-packages" / "benchmarks")
    monkeypatch.chdir(tmp_path)
    assert cli("bench").code == 2
    monkeypatch.chdir(ROOT)  # a package that was installed from the source in this folder
    assert [line.split()[0] for line in cli("bench").out.splitlines()] == names
    assert cli("bench", "lab/deep", "--help").code == 0
    assert "--layers" in capfd.readouterr().out


def test_examples_name_what_a_job_reads() -> None:
    def ending(recipe: str, verb: str) -> str:
        return example(load_task(recipe), verb, "RUN").partition("RUN < ")[2]

    assert (ending("text-words", "score"), ending("classify-own", "predict")) == ("sentences.txt", "lines.txt")
    assert (ending("translate-own", "score"), ending("translate-own", "predict")) == ("pairs.tsv", "lines.txt")
    assert ending("forecast-own", "predict") == "history.csv"


def test_version(cli: Everstep) -> None:
    shown = cli("--version")
    assert (shown.code, shown.out.split()[0]) == (0, "everstep")


def test_python_m_everstep() -> None:
    done = subprocess.run([sys.executable, "-m", "everstep", "recipes"], capture_output=True, text=True, check=True)
    assert "shakespeare-minute" in done.stdout


def test_recipes_list_show_copy(cli: Everstep, tmp_path: Path) -> None:
    assert "text-words" in cli("recipes").out
    assert cli("recipes", "ls").out == cli("recipes").out
    assert {"name", "about"} == set(json.loads(cli("recipes", "ls", "--json").out)[0])
    text = cli("recipes", "show", "ptb-small").out
    assert text.startswith("# Penn Treebank")
    assert "init_range: 0.1" in cli("recipes", "show", "ptb-small", "--all").out
    copy = tmp_path / "mine.yaml"
    assert cli("recipes", "cp", "ptb-small", str(copy)).code == 0
    assert copy.read_text(encoding="utf-8") == text
    again = cli("recipes", "cp", "text-words", str(copy))
    assert (again.code, copy.read_text(encoding="utf-8")) == (2, text)
    assert "mine.yaml exists" in again.err


def test_train_says_where_the_run_is_and_what_next(cli: Everstep, fake: types.SimpleNamespace) -> None:
    done = cli("train", "shakespeare-minute", "model.hidden_size=16", "--out", "runs/a", "train.max_steps=3")
    assert done.code == 0, done.err
    assert fake.calls == [("train", Path("runs/a"))]
    config = load_recipe("runs/a/config.yaml")
    assert (config.model.hidden_size, config.train.max_steps) == (16, 3)
    for command in ("everstep eval runs/a", "everstep generate runs/a", "everstep look runs/a"):
        assert command in done.out


@pytest.mark.parametrize("given", [[], ["data.train=mine.txt"], ["data.train=[mine.txt, everstep:shakespeare]"]])
def test_train_says_what_it_learns_from_without_data(
    given: list[str], cli: Everstep, fake: types.SimpleNamespace
) -> None:
    Path("mine.txt").write_text("to be\n" * 50)
    done = cli("train", "text-words", *given, "--out", "runs/a")
    assert done.code == 0, done.err
    said = "data: everstep:shakespeare, which comes with everstep; for data of your own: data.train=FILE\n"
    assert (said in done.err) == ("mine.txt" not in str(given) or "everstep:" in str(given))


def test_options_of_a_wrong_kind_are_told_as_settings_are(cli: Everstep) -> None:
    found = {}
    for path, verb in _verbs(typer.main.get_command(app)):
        arguments = ["x" for one in verb.params if not one.opts[0].startswith("-")]
        for option in verb.params:
            kind = getattr(option.type_descriptor, "annotation", None)
            if option.opts[0].startswith("-") and (kind in (int, float) or get_origin(kind) is Literal):
                done = cli(*path, *arguments, option.opts[0], "wrong")
                found[path[-1], option.opts[0]] = done.err.strip().splitlines()[-1]
                assert done.code == 2
    assert all(line.endswith("; got 'wrong'.") for line in found.values())
    assert len(found) > 40
    assert found["eval", "--split"] == (
        "Error: Invalid value for '--split': expected one of train, valid, test; got 'wrong'."
    )
    assert found["serve", "--timeout"].endswith(": expected a number ≥ 0.1; got 'wrong'.")
    assert "'--port': expected a whole number ≥ 0 and ≤ 65,535; got '-1'." in cli("watch", "x", "--port", "-1").err


def _verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, one in getattr(command, "commands", {}).items():
        yield from _verbs(one, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


def test_resume(cli: Everstep, fake: types.SimpleNamespace, run: FakeRun) -> None:
    assert cli("train", "--resume", "runs/mine").code == 0
    assert fake.calls == [("resume", Path("runs/mine"))]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["train"], "expected a recipe"),
        (["train", "train.max_steps=3", "--out", "x"], "expected a recipe first"),
        (["train", "shakespeare-minute"], "expected --out RUN"),
        (["train", "shakespeare-minute", "--resume", "runs/mine"], "--resume: expected RUN alone"),
        (["train", "--resume", "runs/none"], "runs/none is not a run: it does not exist"),
        (["train", "--resume", "runs/mine/config.yaml"], "config.yaml is not a run: it is a file"),
        (["train", "--resume", "runs"], "runs is not a run: it has no config.yaml"),
        (["train", "shakespeare-minute", "--out", "runs/mine"], "runs/mine exists and is not overwritten"),
        (["train", "shakespere", "--out", "x"], "Did you mean shakespeare?"),
        (["train", "shakespeare", "model.layer=2", "--out", "x"], "did you mean model.layers?"),
        (["train", "text-words", "data.train=missing.txt", "--out", "x"], "data.train: missing.txt"),
        (["train", "text-words", "data.test=missing.txt", "--out", "x"], "data.test: missing.txt"),
        (["train", "text-words", "data.train=runs", "--out", "x"], "data.train: runs"),
        (["train", "text-words", "data.train=everstep:dickens", "--out", "x"], "everstep:shakespeare"),
        (["train", "ptb-small", "--out", "x"], "EVERSTEP_DATA is not set"),
        (["eval", "runs/none"], "runs/none does not exist"),
        (["eval", "."], "is not a run"),
        (["eval", "runs/mine", "--split", "dev"], "dev"),
        (["score", "runs/mine", "--tokens"], "--tokens needs --json"),
        (["generate", "runs/mine", "--length", "0"], "--length: expected a whole number ≥ 1; got 0"),
        (["generate", "runs/mine", "--length", "many"], "--length"),
        (["generate", "runs/mine", "--temperature", "-0.5"], "--temperature: expected a number ≥ 0; got -0.5"),
        (["generate", "runs/mine", "--temperature", "nan"], "--temperature"),
        (["generate", "runs/mine", "--top-k", "0"], "--top-k: expected a whole number ≥ 1"),
        (["generate", "runs/mine", "--top-p", "0"], "--top-p: expected a number above 0 and at most 1"),
        (["generate", "runs/mine", "--top-p", "1.5"], "--top-p"),
        (["generate", "runs/mine", "--seed", "-1"], "--seed"),
        (["generate", "runs/mine", "--count", "0"], "--count"),
        (["generate", "runs/mine", "--prompt", "\udce9"], "--prompt: expected UTF-8"),
        (["look", "runs/mine", "--text", "missing.txt"], "missing.txt"),
        (["recipes", "show", "zzz"], "no recipe 'zzz'"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(
    args: list[str], said: str, cli: Everstep, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERSTEP_DATA", raising=False)
    before = sorted(Path.cwd().rglob("*"))
    done = cli(*args)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert done.out == ""
    assert sorted(Path.cwd().rglob("*")) == before, "something was made before the mistake was seen"


def test_commands_to_type_are_whole_where_the_path_has_a_space(cli: Everstep, fake: types.SimpleNamespace) -> None:
    done = cli("train", "shakespeare-minute", "--out", "my run")
    assert "everstep eval 'my run'\n" in done.out
    assert "everstep train --resume 'my run'\n" in cli("train", "shakespeare-minute", "--out", "my run").err
    fake.raises = Interrupted("stopped after step 7; resume with: everstep train --resume 'no run'", 2)
    assert cli("demo", "--out", "no run").err.endswith("after step 7\nTo resume: everstep train --resume 'no run'\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Diverged("loss is NaN at step 7, lane 3"), 3, "step 7, lane 3"),
        (Interrupted("stopped after step 7", 2), 130, "everstep train --resume runs/a"),
        (Interrupted("stopped after step 7", 15), 143, "everstep train --resume runs/a"),
        (DataError("the corpus is too short"), 2, "too short"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/model.safetensors"),
            2,
            "model.safetensors: No space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 2, "runs/a: Permission denied"),
    ],
)
def test_how_training_ends(
    error: BaseException, code: int, said: str, cli: Everstep, fake: types.SimpleNamespace
) -> None:
    fake.raises = error
    done = cli("train", "shakespeare-minute", "--out", "runs/a")
    assert done.code == code
    assert said in done.err
    assert done.err.count("everstep train --resume") <= 1


def test_a_bug_is_not_hidden_as_a_users_mistake(cli: Everstep, fake: types.SimpleNamespace) -> None:
    fake.raises = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        cli("train", "shakespeare-minute", "--out", "runs/a")


# ------------------------------------------------------------------------------------------------------------- formats


def test_eval_json_is_one_object_on_stdout(cli: Everstep, run: FakeRun) -> None:
    done = cli("eval", "runs/mine", "--json")
    assert json.loads(done.out) == SCORES
    assert json.loads(cli("eval", "runs/mine", "--split", "train", "--json").out)["split"] == "train"


def test_eval_json_has_no_infinity(cli: Everstep, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "evaluate", lambda split, data, adapt: {**SCORES, "word_perplexity": float("inf")})
    assert json.loads(cli("eval", "runs/mine", "--json").out, parse_constant=pytest.fail)["word_perplexity"] is None


def test_eval_defaults_to_test_where_there_is_one(cli: Everstep, fake: types.SimpleNamespace, tmp_path: Path) -> None:
    fake.train("shakespeare", Path("runs/t"), ["data.test=everstep:shakespeare"])
    assert json.loads(cli("eval", "runs/t", "--json").out)["split"] == "test"


def test_eval_table(cli: Everstep, run: FakeRun) -> None:
    out = cli("eval", "runs/mine").out
    assert out.splitlines()[5].split()[:2] == ["perplexity", "4.4800"]
    assert "111,540" in out


def test_score_lines(cli: Everstep, run: FakeRun) -> None:
    done = cli("score", "runs/mine", stdin="To be\n\nñ\ttab\r\nno end".encode())
    assert done.out == "-2.500000\t6\tTo be\n-0.000000\t1\t\n-2.500000\t6\tñ\ttab\n-3.000000\t7\tno end\n"
    assert cli("score", "runs/mine", stdin=b"") == (0, "", "")


def test_score_json(cli: Everstep, run: FakeRun) -> None:
    (row,) = map(json.loads, cli("score", "runs/mine", "--json", stdin="é\n".encode()).out.splitlines())
    assert row == {"logp": -0.5, "tokens": 2, "line": "é"}
    row = json.loads(cli("score", "runs/mine", "--json", "--tokens", stdin=b"ab").out)
    assert row["token_logps"] == [-0.5, -0.5, 0.0]


def test_score_streams_in_order(cli: Everstep, run: FakeRun) -> None:
    lines = [f"line {i}" for i in range(2500)]
    out = cli("score", "runs/mine", stdin="\n".join(lines).encode()).out
    assert [row.split("\t")[2] for row in out.splitlines()] == lines
    assert len(run.asked) > 1, "the whole input was held in memory"


def test_score_names_the_line_and_byte_that_is_not_utf8(cli: Everstep, run: FakeRun) -> None:
    done = cli("score", "runs/mine", stdin=b"good\nbad caf\xe9 x\n")
    assert done.code == 2
    assert "line 2: expected UTF-8; byte 8 of it (0xe9)" in done.err
    assert done.out.splitlines() == ["-2.000000\t5\tgood"]


def test_generate_prints_the_text_alone(cli: Everstep, run: FakeRun) -> None:
    assert cli("generate", "runs/mine", "--seed", "4").out == "text 0 of seed 4\n"
    out = cli("generate", "runs/mine", "--seed", "4", "--count", "2").out
    assert out == "text 0 of seed 4\n---\ntext 1 of seed 4\n"


def test_next_commands_can_be_typed_where_the_shell_does_not_find_everstep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from everstep.cli.common import me

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv" / "bin" / "everstep")])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert me() == ".venv/bin/everstep"
    (tmp_path / "everstep").write_text("")
    (tmp_path / "everstep").chmod(0o755)
    assert me() == "everstep"


def test_unknown_words_of_a_prompt_are_counted(cli: Everstep, run: FakeRun) -> None:
    done = cli("generate", "runs/mine", "--prompt", "unheard of")
    assert done.code == 0
    assert "note: 1 token of the prompt is not in the vocabulary, and read as <unk>" in done.err


def test_generate_passes_what_was_asked_and_the_recipes_rest(cli: Everstep, run: FakeRun) -> None:
    options = "--prompt The --length 7 --temperature 0 --top-k 4 --top-p 0.5 --seed 0"
    cli("generate", "runs/mine", *options.split())
    cli("generate", "runs/mine")
    first, second = run.asked
    assert first == {
        "prompt": "The", "length": 7, "temperature": 0, "top_k": 4, "top_p": 0.5, "seed": 0, "count": 1,
        "stop": "", "until_end": False, "unk": False,
    }  # fmt: skip
    decode = run.recipe.decode
    assert (second["length"], second["temperature"], second["seed"]) == (decode.length, decode.temperature, None)


def test_doctor(cli: Everstep) -> None:
    facts = json.loads(cli("doctor", "--json").out)
    assert {"python", "torch", "everstep", "cpu", "cores", "threads", "compiler", "backends", "cache"} <= set(facts)
    assert "reference" in facts["backends"]
    assert "not set" in cli("doctor").out or os.environ.get("EVERSTEP_DATA")


def test_doctor_without_a_compiler(cli: Everstep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    facts = json.loads(cli("doctor", "--json").out)
    assert "not needed" in facts["compiler"]
    assert facts["compiles_for"] is None


def test_doctor_with_the_compiler_turned_off(cli: Everstep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    assert "EVERSTEP_COMPILER=none" in json.loads(cli("doctor", "--json").out)["compiler"]


def test_doctor_counts_and_clears_compiled_steps(
    cli: Everstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "cache"))
    if toolchain.compiler() is None:
        pytest.skip("no C++ compiler")
    build.load('extern "C" int for_doctor() { return 1; }', "for_doctor")
    facts = json.loads(cli("doctor", "--json").out)
    assert facts["compiled_steps"] == 1
    assert facts["compiled_mb"] > 0
    assert facts["compiler"] == str(toolchain.compiler())
    assert "native" in facts["compiles_for"]
    shown = cli("doctor", "--clear").out
    assert shown.startswith("1 compiled step removed from ")
    assert shown.endswith(" MB freed\n")
    assert json.loads(cli("doctor", "--clear", "--json").out) == {
        "cleared": 0, "freed_bytes": 0, "folder": str(tmp_path / "cache" / "engine")
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- demo


def test_what_the_demo_is_held_against() -> None:
    # by hand: p(a) = p(b) = (2 + 1) / (4 + 2); p(b | a) = (2 + 1) / (2 + 2), p(a | b) = (1 + 1) / (1 + 2)
    assert counted_bits("abab", "ab", 0, 2) == pytest.approx(1.0)
    assert counted_bits("abab", "aba", 1, 2) == pytest.approx((-math.log2(3 / 4) - math.log2(2 / 3)) / 2)


@pytest.fixture
def demo(cli: Everstep, fake: types.SimpleNamespace) -> Outcome:
    return cli("demo", "--out", "runs/d")


def test_demo_ends_with_sample_score_picture_and_next_commands(demo: Outcome) -> None:
    assert demo.code == 0, demo.err
    assert "text 0 of seed 1" in demo.out
    assert " 2.16  " in demo.out
    assert " 6.02  chance, 65 characters alike" in demo.out
    assert Path("runs/d/pictures/demo.png").read_bytes().startswith(b"\x89PNG")
    assert "everstep generate runs/d" in demo.out


def test_a_second_demo_shows_what_is_there(demo: Outcome, cli: Everstep, fake: types.SimpleNamespace) -> None:
    again = cli("demo", "--out", "runs/d")
    assert (again.code, fake.calls) == (0, [("train", Path("runs/d"))])
    assert "already trained" in again.err
    assert again.out == demo.out


def test_an_interrupted_demo_goes_on(cli: Everstep, fake: types.SimpleNamespace) -> None:
    fake.raises = Interrupted("stopped", 2)
    assert cli("demo", "--out", "runs/d").code == 130
    fake.raises = None
    assert cli("demo", "--out", "runs/d").code == 0
    assert fake.calls == [("train", Path("runs/d")), ("resume", Path("runs/d"))]


def test_demo_leaves_a_strangers_folder_alone(cli: Everstep, fake: types.SimpleNamespace) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("x", encoding="utf-8")
    done = cli("demo", "--out", "thesis")
    assert (done.code, fake.calls) == (2, [])
    assert "thesis exists" in done.err


def test_look_prints_paths_and_what_to_see(cli: Everstep, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from everstep.runs import pictures

    monkeypatch.setattr(pictures, "drawers", lambda: [pictures.draw_learning])  # the others need a network
    monkeypatch.setattr("everstep.runs.card.read_environment", lambda path: {})
    Path("own.txt").write_text("One line.\nAnother.\n", encoding="utf-8")
    done = cli("look", "runs/mine", "--text", "own.txt", "--out", "shown")
    assert done.code == 0, done.err
    paths = [line for line in done.out.splitlines() if not line.startswith(" ")]
    assert paths == ["shown/curves.png", "shown/surprise.png", "shown/surprise.html"]
    assert all(Path(path).stat().st_size > 500 for path in paths)
    assert cli("look", "runs/mine").out.startswith("runs/mine/pictures/curves.png")


def test_look_at_a_run_without_metrics(cli: Everstep, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.runs.card.read_environment", lambda path: {})
    Path("runs/mine/metrics.jsonl").unlink()
    done = cli("look", "runs/mine")
    assert (done.code, done.out) == (2, "")
    assert "metrics.jsonl holds no loss yet" in done.err


# ------------------------------------------------------------------------------------------------------------- streams


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "everstep", "recipes", "show", "shakespeare"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_output_is_utf8_whatever_the_locale() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "everstep", "generate", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert "(≥ 1)" in done.stdout.decode()
