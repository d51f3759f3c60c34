"""Code of the user's own that a recipe names: found, kept by the run, trusted or not, and told of where it fails."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import cache_in

import everstep as es
from everstep.cli import main
from everstep.errors import ConfigError, RunError
from everstep.lab.cell_search import search
from everstep.runs.recipe_files import load_task
from everstep.runs.training import resume

CELLS = (
    Path(__file__).with_name("own_cells.py").read_text("utf-8")
    + """

def made(input_size, hidden_size):
    return es.LSTM(input_size, hidden_size, bias={"f": 1.0})


class NoCell:
    def __init__(self, *sizes):
        pass


instance = es.GRU(4, 4)
"""
)
TINY = [
    "data.train=play.txt", "model.embedding_size=8", "model.hidden_size=16", "train.batch_size=4", "objective.k1=16",
    "train.max_steps=2", "train.max_epochs=null", "train.max_minutes=null", "train.warmup_steps=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _ctrl_c_put_back() -> Iterator[None]:
    """A command that ends ignores Ctrl-C from then on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def here(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a text and cells."""
    monkeypatch.setenv("EVERSTEP_CACHE", cache_in(tmp_path_factory.getbasetemp()))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("play.txt").write_text("What say you to that? I say nothing, and so it goes.\n" * 60)
    Path("mycells.py").write_text(CELLS)
    return tmp_path / "work"


def train(out: str | Path = "run", *more: str, cell: str = "mycells.py:Mine") -> Any:
    return es.train("text-chars", out, lambda _: None, overrides=[*TINY, f"model.cell={cell}", *more])


def refused(cell: str, source: str = "") -> str:
    """What is said of a cell whose file `bad.py` is that source; nothing is left behind."""
    if source:
        Path("bad.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        train(cell=cell)
    assert not Path("run").exists()
    return str(caught.value)


@pytest.mark.parametrize("name", ["Mine", "Plain", "made", "{type: mycells.py:Plain, scale: 0.5}"])
def test_a_cell_of_ones_own_is_trained_kept_resumed_and_used(name: str, here: Path) -> None:
    run = train(cell=name if name.startswith("{") else f"mycells.py:{name}")
    assert (run.path / "code" / "mycells.py").read_text() == CELLS
    assert "--trust-code" in (run.path / "README.md").read_text()
    Path("mycells.py").unlink()  # the run has its own
    with pytest.raises(RunError, match=r"code/mycells\.py.*--trust-code"):
        es.load("run")
    with pytest.raises(RunError, match=r"--trust-code"):
        resume("run", lambda _: None)
    again = es.load("run", trust_code=True)
    before = run.generate(prompt="What", length=80, seed=3)
    assert again.generate(prompt="What", length=80, seed=3) == before
    assert again.evaluate() == run.evaluate()
    longer = resume("run", lambda _: None, overrides=["train.max_steps=4"], trust_code=True)
    assert longer.recipe.train.max_steps == 4


@pytest.mark.parametrize("before", ["GRU", "mycells.py:Plain"])
@pytest.mark.parametrize("named", ["newcells.py:Mine", "{type: deep/newcells.py:Plain, scale: 0.5}"])
def test_a_runs_recipe_takes_another_cell_of_ones_own(before: str, named: str, here: Path) -> None:
    """The run's own code is not needed then, and needs no trust; that of an override is the user's."""
    train("first", cell=before)
    Path("deep").mkdir()
    for folder in ("", "deep"):
        Path(folder, "newcells.py").write_text(CELLS + f"\n# {folder}\n")
    Path("mycells.py").unlink()
    other = es.train("first/config.yaml", "second", lambda _: None, overrides=[f"model.cell={named}"])
    kept = (other.path / "code" / "newcells.py").read_text()
    assert kept.endswith("# deep\n" if "deep" in named else "# \n")
    assert [path.name for path in (other.path / "code").iterdir()] == ["newcells.py"]
    assert es.load("second", trust_code=True).evaluate() == other.evaluate()
    with pytest.raises(ConfigError, match=r"model\.cell: no file gone\.py"):
        es.train("first/config.yaml", "third", lambda _: None, overrides=["model.cell=gone.py:Mine"])


def test_a_runs_file_and_another_of_its_name(here: Path) -> None:
    """They cannot be kept side by side; the same name alone means the user's, for every key."""
    job = "from everstep.tasks.language_model import LanguageModel\nclass Job(LanguageModel): pass\n"
    Path("mine.py").write_text(job)
    train("first", "task=mine.py:Job", cell="GRU")
    Path("deep").mkdir()
    for path in ("mine.py", "deep/mine.py"):
        Path(path).write_text(CELLS + job)
    again: dict[str, Any] = {"log": lambda _: None, "overrides": ["model.cell=deep/mine.py:Mine"]}
    with pytest.raises(RunError, match="--trust-code"):
        es.train("first/config.yaml", "second", **again)
    with pytest.raises(ConfigError, match="have one name"):
        es.train("first/config.yaml", "second", **again, trust_code=True)
    es.train("first/config.yaml", "second", **again | {"overrides": ["model.cell=mine.py:Mine"]})
    assert Path("second/code/mine.py").read_text() == CELLS + job


def test_a_second_size_with_a_default_is_given_too(here: Path) -> None:
    run = train(cell="mycells.py:Plain")
    assert run.model.body.sublayers()[0].input_size == 8


def test_a_copy_that_changed_or_went_is_refused(here: Path) -> None:
    train()
    copy = Path("run/code/mycells.py")
    copy.write_text(CELLS + "\nprint('other')\n")
    with pytest.raises(RunError, match=r"code/mycells\.py is not the file that the run was trained by"):
        es.load("run", trust_code=True)
    copy.unlink()
    with pytest.raises(RunError, match=r"run lacks code/mycells\.py"):
        es.load("run", trust_code=True)


def test_a_file_is_found_beside_its_recipe_and_before_that_in_the_working_folder(here: Path) -> None:
    folder = here / "deep"
    folder.mkdir()
    Path("mycells.py").rename(folder / "mycells.py")
    shutil.copy(Path(es.__file__).parent / "recipes" / "text-chars.yaml", folder / "mine.yaml")
    changes = [*TINY, "model.cell=mycells.py:Mine"]
    assert es.train(folder / "mine.yaml", "a", lambda _: None, overrides=changes).path == Path("a")
    Path("mycells.py").write_text("raise RuntimeError('that of the working folder')")
    with pytest.raises(ConfigError, match="that of the working folder"):
        load_task(folder / "mine.yaml", changes)
    with pytest.raises(ConfigError, match=r"no file gone\.py, neither in the working folder nor beside"):
        load_task(folder / "mine.yaml", ["model.cell=gone.py:Mine"])


def test_two_files_of_one_name_are_refused(here: Path) -> None:
    (here / "other").mkdir()
    (here / "other" / "mycells.py").write_text(PROBE)
    (here / "r.yaml").write_text(
        "task: other/mycells.py:Probe\nmodel: {cell: 'mycells.py:Mine'}\ntrain: {max_steps: 1}\n"
    )
    with pytest.raises(ConfigError, match=r"mycells\.py and mycells\.py have one name.*rename one"):
        load_task("r.yaml")


PROBE = """
import everstep as es


class Recipe(es.Recipe):
    model: es.LayersSection = es.LayersSection()


class Probe(es.Task[Recipe]):
    Recipe = Recipe

    def problems(self):
        self.code.find("model.cell", self.recipe.model.cell)
        yield from ()

    def splits(self): return ("train",)
    def model(self): raise IndexError("no model yet")
    def batches(self, split, model, purpose): return []
    def objective(self, model, batch, state): yield from ()
"""


def test_what_fails_in_a_file_is_told_with_its_lines_alone(here: Path) -> None:
    said = refused("bad.py:Mine", "import torch\n\ndef far():\n    return torch.zeros(3) @ torch.zeros(4)\n\nfar()\n")
    assert 'File "bad.py", line 6' in said
    assert 'File "bad.py", line 4, in far' in said
    assert said.count("File ") == 2
    assert "line 1\n    class Mine(:" in refused("bad.py:Mine", "class Mine(:\n  pass\n")
    assert "SystemExit" in refused("bad.py:Mine", "import sys\nsys.exit(0)\n")
    ctor = "import everstep as es\nclass Mine(es.LSTM):\n    def __init__(self, a, b):\n        raise KeyError('oh')\n"
    assert 'File "bad.py", line 4, in __init__' in refused("bad.py:Mine", ctor)
    assert "expected the names of the gates" in refused(
        "bad.py:Mine", "import everstep as es\n@es.gated\ndef Mine(x, h, s):\n    return s.h\n"
    )


def test_a_step_that_fails_is_told_before_there_is_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import everstep as es\nclass Mine(es.LSTM):\n    def step(self, x, s):\n        return nothing(x), s\n"
    Path("bad.py").write_text(source)
    assert command("train", "text-chars", *TINY, "model.cell=bad.py:Mine", "--out", "run") == 2
    said = capsys.readouterr().err
    assert 'File "bad.py", line 4, in step' in said
    assert "site-packages" not in said
    assert not Path("run").exists()


def command(*words: str) -> Any:
    """The exit code of a command."""
    import sys

    before, sys.argv = sys.argv, ["everstep", *words]
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    return caught.value.code or 0


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("mycells.py:Main", "has no 'Main'; did you mean Mine?"),
        ("mycells.py:", "has no ''; it has Mine, Plain, Stateless, both, made, NoCell"),
        ("mycells.py", "name the cell in the file: mycells.py:NAME"),
        ("mycells.py:NoCell", "expected a Cell"),
        ("mycells.py:instance", "mycells.py:instance is a GRU"),
        ("mycells.py:torch", "mycells.py:torch is a module"),
        ("gone.py:Mine", "no file gone.py"),
        ("{type: mycells.py:Plain, scalle: 2.0}", "Did you mean scale?"),
    ],
)
def test_what_is_no_cell_is_refused(cell: str, said: str, here: Path) -> None:
    assert said in refused(cell)


@pytest.mark.parametrize("line", ["import near", "from near import thing", "from . import near", "import near.inner"])
def test_a_file_that_imports_one_beside_it_is_refused(line: str, here: Path) -> None:
    Path("near.py").write_text("thing = 1\n")
    said = refused("bad.py:Mine", f"import everstep as es\n{line}\nclass Mine(es.LSTM): pass\n")
    assert "bad.py, line 2: imports near, a file beside it" in said


MARK = "from pathlib import Path\nPath('ran').write_text('x')\nimport everstep as es\nclass Mine(es.LSTM): pass\n"


def test_nothing_of_a_strangers_run_is_run_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mark.py").write_text(MARK)
    train(cell="mark.py:Mine")
    Path("mark.py").rename("run/mark.py")
    Path("ran").unlink()
    for words in (
        ["eval", "run"], ["generate", "run"], ["score", "run"], ["predict", "run"], ["look", "run"],
        ["graph", "run", "--out", "x.svg"], ["train", "--resume", "run"],
        ["train", "text-chars", *TINY, "--from", "run", "--out", "new"],
        ["train", "run/config.yaml", "--out", "new"], ["recipes", "keys", "run/config.yaml"],
        ["recipes", "show", "run/config.yaml", "--all"], ["search", "run/config.yaml", "--out", "new"],
    ):  # fmt: skip
        assert command(*words) == 2, words
        assert "--trust-code" in capsys.readouterr().err, words
        assert not Path("ran").exists(), words
    assert command("train", "run/config.yaml", "--out", "new", "--trust-code") == 0
    assert Path("ran").exists()


@pytest.mark.parametrize("name", ["os:system", "os.system", "posix:system", "builtins:exec", "code.mark:Mine"])
def test_names_in_a_run_that_are_no_files_are_no_code(name: str, here: Path) -> None:
    train(cell="LSTM")
    path = Path("run/config.yaml")
    whole = path.read_text()
    for key, value in (("task: ", "language-model"), ("cell: ", "LSTM")):
        assert f"{key}{value}" in whole
        path.write_text(whole.replace(f"{key}{value}", f"{key}{name}"))
        with pytest.raises(ConfigError, match=r"expected one of|there is no cell"):
            es.load("run", trust_code=True)


def test_a_folder_of_a_search_runs_no_code(here: Path) -> None:
    Path("found").mkdir()
    Path("mark.py").write_text(MARK)
    Path("found/recipe.yaml").write_text("task: mark.py:Mine\nmodel: {cell: 'mark.py:Mine'}\n")
    with pytest.raises(RunError, match="another"):
        search("text-chars", "found", lambda _: None, overrides=TINY, cells=1)
    assert not Path("ran").exists()
    with pytest.raises(ConfigError, match=r"without files of your own, but it names mycells\.py"):
        search("text-chars", "other", lambda _: None, overrides=[*TINY, "model.cell=mycells.py:Mine"], cells=1)


def test_explain_takes_a_file_that_imports_its_neighbour(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("near_by.py").write_text("import everstep as es\nBase = es.GRU\n")
    Path("far.py").write_text("from near_by import Base\nclass Mine(Base): pass\n")
    assert command("explain", "far.py:Mine") == 0
    assert "Mine(64, 64)" in capsys.readouterr().out
    assert command("explain", "mycells.py:Main") == 2
    assert "did you mean Mine?" in capsys.readouterr().err


def test_weights_are_the_same_by_either_spelling(here: Path) -> None:
    """An exported cell subclassed in a file trains to the same bits."""
    Path("same.py").write_text("import everstep as es\nclass Mine(es.LSTM): pass\n")
    own, exported = train("a", cell="same.py:Mine"), train("b", cell="LSTM")
    for one, other in zip(own.model.parameters(), exported.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
