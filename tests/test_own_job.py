"""A job outside the package, in one short file: trained, resumed and asked like any other; jobs that packages bring."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import ConfigError, RunError, users_part
from everstep.runs.job_names import GROUP, jobs, own_jobs, task_names
from everstep.runs.recipe_files import explained_keys, load_task
from everstep.runs.shipped_recipes import recipe_text
from everstep.runs.training import resume

PACKAGE = Path(es.__file__).parent
EXAMPLES = PACKAGE.parent / "examples"


def quietly(_: str) -> None:
    pass


# ------------------------------------------------------------------------------------------------ an own job in a file


def test_parity_is_learned_resumed_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((EXAMPLES / "parity.py").read_text().splitlines()) <= 80
    monkeypatch.chdir(tmp_path)
    run = es.train(f"{EXAMPLES}/parity.py:Parity", "run", quietly)
    assert run.evaluate("valid")["accuracy"] >= 0.99
    assert [found.text for found in run.predict(["1101", "0011", "1", ""])] == ["odd", "even", "odd", "even"]
    with pytest.raises(RunError, match=r"code/parity\.py.*--trust-code"):
        es.load("run")
    again = es.load("run", trust_code=True)
    assert [found.text for found in again.predict(["1101"])] == ["odd"]
    with pytest.raises(RunError, match=r"cannot generate; it can eval, predict"):
        again.generate()
    with pytest.raises(RunError, match=r"cannot eval --rivals; it can eval, predict"):
        again.rivals()
    with pytest.raises(RunError, match=r"reads no files of its own: it has no key data\.test"):
        again.evaluate(data=["x.txt"])
    longer = resume("run", quietly, overrides=["train.max_epochs=11"], trust_code=True)
    assert longer.recipe.train.max_epochs == 11
    assert longer.evaluate("valid")["accuracy"] >= 0.99


def recipe_of(folder: Path, name: str, source: str) -> Path:
    """A recipe whose job is the class `name` of a file with that source."""
    (folder / "job.py").write_text("import everstep as es\n" + source)
    (folder / "r.yaml").write_text(f"task: job.py:{name}\ntrain: {{max_steps: 1}}\n")
    return folder / "r.yaml"


WHOLE = """
class Recipe(es.Recipe): pass
class Mine(es.Task[Recipe]):
    Recipe = Recipe
    extras = EXTRAS
    def splits(self): return ("train",)
    def model(self): raise IndexError("not there")
    def batches(self, split, model, purpose): return []
    def objective(self, model, batch, state): yield from ()
"""


def test_jobs_that_are_none_are_told(tmp_path: Path) -> None:
    def said(name: str, source: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_task(recipe_of(tmp_path, name, source))
        return str(caught.value)

    assert "job.py:Mine is the class Mine, which is none" in said("Mine", "class Mine: pass\n")
    assert "job.py:mine is a function" in said("mine", "def mine(): pass\n")
    lacking = said("Mine", "class Mine(es.Task):\n    def splits(self): return ()\n")
    assert "lacks batches, model, objective" in lacking
    assert "lacks Recipe" in said("Mine", WHOLE.replace("    Recipe = Recipe\n", "").replace("EXTRAS", "()"))
    missing = said("Mine", WHOLE.replace("EXTRAS", "('not_there.inner', 'nor_this')"))
    assert "needs not_there.inner, nor_this: pip install not_there.inner nor_this" in missing
    remedy = WHOLE.replace("EXTRAS", "('nor_this',)\n    remedy = \"pip install 'everstep[x]'\"")
    assert said("Mine", remedy).endswith("needs nor_this: pip install 'everstep[x]'")
    assert 'job.py", line 2' in said("Mine", "class Mine(es.Task): nothing\n")


def test_a_failure_of_an_own_job_keeps_its_lines_and_leaves_nothing(tmp_path: Path) -> None:
    path = recipe_of(tmp_path, "Mine", WHOLE.replace("EXTRAS", "()"))
    with pytest.raises(IndexError, match="not there") as caught:
        es.train(path, tmp_path / "run", quietly)
    lines = users_part(caught.value).splitlines()
    assert lines[0].endswith('job.py", line 8, in model')
    assert lines[-1] == "IndexError: not there"
    assert sum(line.startswith("  File ") for line in lines) == 1
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ jobs by name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", r"task: missing; say what the job is: `task: NAME`"),
        ("task:", r"task: missing"),
        ("task: Language_Model", r"got 'Language_Model'; did you mean language-model\?"),
        ("task: classify", r"did you mean classification\?"),
        ("task: 3", r"expected one of .*FILE\.py:CLASS.*; got 3"),
        ("task: job.py", r"name the class in it: job\.py:CLASS"),
        ("task: xyz", r"got 'xyz'$"),
    ],
)
def test_jobs_that_there_are_not(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"{line}\nseed: 1\n")
    with pytest.raises(ConfigError, match=said):
        load_task(tmp_path / "r.yaml")


def test_a_job_stands_for_a_recipe_of_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = WHOLE.replace(
        "pass\nclass Mine", "train: es.FitSettings = es.FitSettings(max_epochs=7, batch_size=3)\nclass Mine"
    )
    recipe_of(tmp_path, "Mine", source.replace("EXTRAS", "()"))
    task = load_task("job.py:Mine", ["train.batch_size=5"])
    assert (task.recipe.train.max_epochs, task.recipe.train.batch_size) == (7, 5)
    assert load_task("r.yaml").recipe.train == task.recipe.train.replace(batch_size=3, max_steps=1)
    keys = {row["key"]: row for row in explained_keys("job.py:Mine")}
    assert (keys["train.max_epochs"]["default"], keys["train.max_steps"]["default"]) == ("7", "null")
    assert keys["task"]["default"] == "required"
    assert recipe_text("tagging").endswith("\ntask: tagging\n")
    with pytest.raises(ConfigError, match=r"job tagging: train: expected at least one of max_steps"):
        load_task("tagging")
    with pytest.raises(ConfigError, match=r"job\.py:: expected FILE\.py:CLASS"):
        load_task("job.py:")
    with pytest.raises(ConfigError, match=r"no recipe 'taging'.*Did you mean tagging\?"):
        load_task("taging")
    listed = CliRunner().invoke(app, ["recipes", "jobs"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == task_names()


def test_packages_bring_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brought.py").write_text("import everstep as es\n" + WHOLE.replace("EXTRAS", "()"))
    entries = [("mine", "brought:Mine"), ("gone", "nowhere:Mine"), ("lost", "brought:Lost"), ("language-model", "x:Y")]
    found = importlib.metadata.EntryPoints(importlib.metadata.EntryPoint(n, v, GROUP) for n, v in entries)

    def entry_points(**which: Any) -> importlib.metadata.EntryPoints:
        return found.select(**which)

    monkeypatch.setattr("everstep.runs.job_names.entry_points", entry_points)
    monkeypatch.syspath_prepend(tmp_path)
    assert {"mine", "gone", "language-model", "classification"} <= set(task_names())
    for name, said in (("gone", "No module named 'nowhere'"), ("lost", "has no attribute 'Lost'")):
        (tmp_path / "r.yaml").write_text(f"task: {name}\ntrain: {{max_steps: 1}}\n")
        with pytest.raises(ConfigError, match=rf"task: {name} of a package .* cannot be imported: .*{said}"):
            load_task(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("task: mine\ntrain: {max_steps: 1}\n")
    assert type(load_task(tmp_path / "r.yaml")).__module__ == "brought"
    assert type(load_task("text-words")).__module__ == "everstep.tasks.language_model"  # no package takes its name


def test_every_job_is_described_and_held_to_the_laws() -> None:
    assert all(len(about) > 20 for _, about in jobs())
    held = []
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and "JobLaws" in map(ast.unparse, node.bases):
                said = [
                    one.value
                    for one in node.body
                    if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "job"
                ]
                held += [ast.literal_eval(value) for value in said]
    missing = set(own_jobs()) - set(held)
    assert not missing, f"no test file holds them to the laws of tests/job_laws.py: {missing}"
    assert len(held) == len(set(held)) == len(own_jobs())


def test_nothing_but_jobs_and_recipes_names_a_job() -> None:
    names = {path.stem for path in (PACKAGE / "tasks").glob("*.py")} - {"__init__"}
    forms = {form for name in names for form in (name, name.replace("_", "-"), name.title().replace("_", ""))}
    assert {"language_model", "language-model", "LanguageModel", "classification", "Classification"} <= forms
    word = re.compile(rf"(?<![\w\[])({'|'.join(forms)})(?!\w)")
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name in ("tasks", "recipes"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # of what stands above them
        for node in ast.walk(tree):
            spelled = [getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "module", "") or ""]
            spelled += [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
                spelled.append(node.value)
            found += [f"{path}:{node.lineno}: {text}" for text in spelled if word.search(text)]
    keys = {"text_pairs.py: translation", "translations.py: translation"}  # in JSON: of Hugging Face, of predictions
    keys |= {"compiled_word_vectors.py: word_vectors"}  # the file of native/
    keys |= {"asking.py: Cache-Control", "about.py: Cache-Control"}  # the header of HTTP
    keys |= {"recognition.py: language_model"}  # the key of `decode`
    assert not [one for one in found if re.sub(r".*/(.*):\d+", r"\1", one) not in keys]
