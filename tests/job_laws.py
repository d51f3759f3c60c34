"""What holds of every job, whatever it learns. The test file of a job says in a subclass how to train a small run:

    class TestLaws(JobLaws):
        job = "counting"
        settings = ("model.hidden_size=4",)
        asked = (["1 2 3"], ["4"])

It is trained in one go, and again killed and resumed; the rest is asked of the latter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from caches import cache_in
from killed_runs import killed_and_resumed
from safetensors.torch import load_file
from service_client import served

import everstep as es
from everstep.errors import RunError
from everstep.native import toolchain
from everstep.networks.forms import Form
from everstep.runs.capabilities import Exports, Generates, Predicts, Scores, Writes
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run
from everstep.ship.export import export

Runs = tuple[Run, Run]


def alike(one: Any, other: Any) -> bool:
    """Equal but for rounding, in records of numbers, texts, lists and mappings."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
    return bool(one == other)


def quietly(line: str) -> None:
    del line


class JobLaws:
    """Laws of a job.

    Attributes:
        job: its name.
        settings: overrides that make a small model of it.
        steps: the number of steps that it is trained for, if any.
        asked: what it is asked to predict: lines, those together that belong together.
        scored: the lines that it is asked to score; () are those of `asked`.
        numbered: the key of its records, if there is one, that says which of the lines it is.
    """

    job: ClassVar[str]
    settings: ClassVar[Sequence[str]] = ()
    steps: ClassVar[int] = 8
    asked: ClassVar[Sequence[Sequence[str]]] = ()
    scored: ClassVar[Sequence[str]] = ()
    numbered: ClassVar[str] = ""

    @classmethod
    def recipe(cls, folder: Path) -> str | Path:
        """The recipe: by default the job with its own defaults. Files that it reads may be written into `folder`."""
        del folder
        return cls.job

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _surroundings(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EVERSTEP_CACHE", cache_in(tmp_path_factory.getbasetemp()))
            patch.setenv("EVERSTEP_COMPILER", "none")  # a few steps are made sooner than compiled
            patch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, tmp_path_factory: pytest.TempPathFactory) -> Runs:
        """A run trained in one go, and one that was killed and resumed."""
        folder = tmp_path_factory.mktemp(cls.job)
        recipe, settings = cls.recipe(folder), [*cls.settings]
        if optimised := load_task(recipe, settings).optimised:
            limits = ("max_epochs=null", "max_minutes=null", f"max_steps={cls.steps}", "validate_every=4")
            settings += [f"train.{key}" for key in (*limits, "checkpoint_every=2", "threads=1")]
        whole = es.train(recipe, folder / "whole", quietly, overrides=settings)
        if optimised:
            return whole, killed_and_resumed(recipe, folder / "killed", settings, after=cls.steps // 2 + 1)
        es.train(recipe, folder / "killed", quietly, overrides=settings)
        (folder / "killed" / "model.safetensors").unlink()
        return whole, es.resume(folder / "killed", quietly)

    def test_killed_and_resumed_it_has_the_same_bits(self, runs: Runs) -> None:
        assert {type(run.task).__module__ for run in runs} == {f"everstep.tasks.{self.job.replace('-', '_')}"}
        whole, resumed = (load_file(run.path / "model.safetensors") for run in runs)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        scores, others = (run.evaluate("valid") for run in runs)
        assert scores == others
        assert math.isfinite(scores["loss" if "loss" in scores else "perplexity"])

    def test_it_comes_back_as_it_was(self, runs: Runs) -> None:
        _, run = runs
        again = es.load(run.path)
        assert again.recipe == run.recipe
        assert again.evaluate("valid") == run.evaluate("valid")

    def test_each_prediction_is_of_its_own_lines(self, runs: Runs) -> None:
        _, run = runs
        if not isinstance(run.task, Predicts):
            pytest.skip("it does not predict")
        assert len(self.asked) > 1, "name two things or more that it is asked"
        lines = [line for group in self.asked for line in group]
        together = self._records(found.record for found in run.predict(lines))
        alone = self._records(found.record for group in self.asked for found in run.predict(group))
        assert len(together) >= len(self.asked)
        assert alike(together, alone)
        with served([run.path]) as client:
            answers = client.post("/predict", lines=lines)["predictions"]
        assert alike(self._records(one["record"] for one in answers), together)

    def _records(self, found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are not empty, as of a header or a blank line."""
        return [{key: value for key, value in one.items() if key != self.numbered} for one in found if one]

    def test_each_score_is_of_its_own_line(self, runs: Runs) -> None:
        _, run = runs
        if not isinstance(run.task, Scores):
            pytest.skip("it does not score")
        lines = [*self.scored] or [line for group in self.asked for line in group]
        assert len(lines) > 1, "name two lines or more that it scores"
        together = [found.logp for found in run.score(lines)]
        assert together == pytest.approx([run.score([line])[0].logp for line in lines], abs=1e-4)
        assert all(logp < 0 for logp, line in zip(together, lines, strict=True) if line)

    def test_a_seed_decides_what_it_generates(self, runs: Runs) -> None:
        _, run = runs
        if not isinstance(run.task, Generates):
            pytest.skip("it does not generate")
        first = run.generate(length=20, seed=1)
        assert first == run.generate(length=20, seed=1)
        assert len({run.generate(length=20, seed=seed) for seed in range(1, 5)}) > 1

    @pytest.mark.usefixtures("quick")
    def test_it_is_exported_or_says_why_not(self, runs: Runs, tmp_path: Path) -> None:
        _, run = runs
        if isinstance(run.task, Writes):
            assert all(export(run, tmp_path / name, to=name).stat().st_size > 0 for name in run.task.formats)
        elif isinstance(run.task, Exports):
            forms = run.task.exported(run.model)
            assert all(isinstance(form, Form) or len(form) > 20 for form in forms)
            if any(isinstance(form, Form) for form in forms):
                assert es.load(export(run, tmp_path / "onnx")).recipe.task == run.recipe.task  # equal numbers, or none
        else:
            with pytest.raises(RunError, match="cannot export"):
                export(run, tmp_path / "onnx")
