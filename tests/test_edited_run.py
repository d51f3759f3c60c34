"""A run folder that was changed between a stop and a resume, or whose model says nothing finite."""

from __future__ import annotations

import json
import math
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import cache_in
from safetensors.torch import load_file, save_file

import everstep as es
from everstep.errors import Diverged, EverstepError, RunError
from everstep.learn import checkpoint
from everstep.runs.recipe_files import explained_keys, flat, load_recipe
from everstep.runs.run import Run
from everstep.runs.training import resume
from everstep.storage.reading import parse_json

TINY = ["model.embedding_size=8", "model.hidden_size=8", "train.batch_size=2", "objective.k1=8"]
DROPOUTS = ["model.dropout=0.1", "model.input_dropout=0.1", "model.layers=2"]
LIMITS = ["train.max_minutes=null", "train.max_steps=4", "train.validate_every=2"]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", cache_in(tmp_path_factory.getbasetemp()))


def quietly(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat, and the dog did not\n" * 20)
    changes = [*TINY, *LIMITS, f"data.train={text}", "model.cell=GRU", "train.threads=1", *DROPOUTS]
    return es.train("shakespeare-minute", folder / "run", quietly, overrides=changes).path


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(out: Path, **changes: Any) -> None:
    """Change keys of `config.yaml`, as an editor would."""
    path = out / "config.yaml"
    text = path.read_text()
    for key, value in changes.items():
        text, count = re.subn(rf"(?m)^(\s+{key}:) .*$", rf"\1 {value}", text, count=1)
        assert count == 1, key
    path.write_text(text)


# ------------------------------------------------------------------------------------------------------ edited recipes

EDITS: dict[str, tuple[Any, str]] = {
    "dropout": (0.25, "model.dropout 0.1 -> 0.25"),
    "input_dropout": (0.25, "model.input_dropout 0.1 -> 0.25"),
    "embedding_dropout": (0.25, "model.embedding_dropout 0.0 -> 0.25"),
    "weight_drop": (0.25, "model.weight_drop 0.0 -> 0.25"),
    "state_dropout": (0.25, "model.state_dropout 0.0 -> 0.25"),
    "zoneout": (0.25, "model.zoneout 0.0 -> 0.25"),
    "k2": (4, "objective.k2 None -> 4"),
    "l2": (0.01, "l2 0.0 -> 0.01"),
    "activation_penalty": (0.5, "objective.activation_penalty 0.0 -> 0.5"),
    "change_penalty": (0.5, "objective.change_penalty 0.0 -> 0.5"),
    "clip_value": (0.5, "clip_value None -> 0.5"),
    "fixed_norm": (0.25, "fixed_norm None -> 0.25"),
    "gradient_noise": (0.01, "gradient_noise 0.0 -> 0.01"),
    "label_smoothing": (0.1, "objective.label_smoothing 0.0 -> 0.1"),
    "temperature": (0.5, "decode.temperature "),
    "learning_rate": (0.001, "learning_rate 0.008 -> 0.001"),
}


def test_every_key_of_a_recipe_is_kept(finished: Path) -> None:
    """Each is compared when resuming: by itself, as a setting of `fit`, or as what must be equal."""
    newest = checkpoint.load(finished / "checkpoints" / "step-00000004").data
    kept = {*newest["recipe"], *(f"train.{key}" for key in newest["settings"]), "seed"}
    assert set(flat(load_recipe("text-words"))) <= kept
    assert {row["key"] for row in explained_keys("text-words")} <= kept | {"task"}


@pytest.mark.parametrize("key", EDITS)
def test_an_edited_recipe_is_told(key: str, out: Path) -> None:
    value, told = EDITS[key]
    edit(out, **{key: value})
    lines: list[str] = []
    with pytest.raises(RunError, match="another model") if key in ("state_dropout", "zoneout") else nullcontext():
        resume(out, lines.append)
    (line,) = [line for line in lines if line.startswith("resuming with other settings: ")]
    assert told in line
    assert line.count("->") == 1


def test_an_unedited_recipe_is_not(out: Path) -> None:
    lines: list[str] = []
    resume(out, lines.append)
    assert not any("other settings" in line for line in lines)


@pytest.mark.parametrize(("key", "value"), [("cell", "GRUBefore"), ("residual", "true")])
def test_another_function_of_the_same_weights_is_refused(key: str, value: str, out: Path) -> None:
    scores = (out / "scores.json").read_bytes()
    edit(out, **{key: value})
    with pytest.raises(RunError, match=rf"not the run that was started: .*model\.{key}: was "):
        resume(out, quietly)
    assert (out / "scores.json").read_bytes() == scores


def test_a_run_of_before_goes_on(out: Path) -> None:
    for folder in (out / "checkpoints").glob("step-*"):
        found = checkpoint.load(folder)
        del found.data["recipe"], found.data["counts"]["clocked"]
        found.data["identity"] = {k: v for k, v in found.data["identity"].items() if not k.startswith("model.")}
        shutil.rmtree(folder)
        checkpoint.save(folder, found)
    edit(out, max_steps=6)
    lines: list[str] = []
    assert resume(out, lines.append).path == out
    assert any("max_steps 4 -> 6" in line for line in lines)


# ------------------------------------------------------------------------------------------------------ damaged models


def test_without_checkpoints_a_trained_run_is_not_trained_anew(out: Path) -> None:
    shutil.rmtree(out / "checkpoints")
    kept = {name: (out / name).read_bytes() for name in ("model.safetensors", "scores.json", "README.md")}
    with pytest.raises(RunError, match="checkpoints to go on from are gone"):
        resume(out, quietly)
    assert {name: (out / name).read_bytes() for name in kept} == kept


def test_scores_are_not_written_anew_from_changed_weights(out: Path) -> None:
    path = out / "model.safetensors"
    scores = (out / "scores.json").read_bytes()
    with_step = {"step": "4"}
    changed = load_file(path)
    changed["head.weight"] += 0.25
    save_file(changed, path, with_step)
    lines: list[str] = []
    run = resume(out, lines.append)
    assert json.loads((out / "scores.json").read_bytes()) == json.loads(scores)
    assert not torch.equal(run.model.head.weight, changed["head.weight"])
    assert any("model.safetensors is not what was saved" in line for line in lines)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.float16])
def test_weights_of_another_type_are_not_used(dtype: torch.dtype, out: Path) -> None:
    path = out / "model.safetensors"
    weights = load_file(path)
    weights["head.weight"] = weights["head.weight"].to(dtype)
    save_file(weights, path, {"step": "4"})
    with pytest.raises(RunError, match=r"model\.safetensors"):
        es.load(out)


def test_a_model_that_says_nothing_finite_has_no_score(out: Path) -> None:
    run: Run = es.load(out)
    with torch.no_grad():
        run.model.head.bias.fill_(math.inf)
    with pytest.raises(EverstepError, match=r"score of valid is (nan|inf).*diverged or .* damaged"):
        run.evaluate("valid")
    with pytest.raises(EverstepError, match=r"score of a line is .* diverged or .* damaged"):
        run.score(["the cat"])


def test_a_perplexity_beyond_numbers_is_null(out: Path) -> None:
    run: Run = es.load(out)
    with torch.no_grad():
        run.model.head.bias[run.task.tokenizer.encode("t", line_end=False)[0]] = 5000.0
    scores = run.evaluate("valid")
    assert math.isinf(scores["perplexity"])


def test_a_divergence_says_where_to_change_what(out: Path) -> None:
    shutil.rmtree(out / "checkpoints")
    for name in ("model.safetensors", "metrics.jsonl", "scores.json"):
        (out / name).unlink()
    edit(out, optimizer="sgd", learning_rate="1.0e+37", clip_norm="null", warmup_steps=0, schedule="constant")
    with pytest.raises(Diverged, match=r"config\.yaml.*everstep train --resume") as caught:
        resume(out, quietly)
    assert caught.value.exit_code == 3
    assert not (out / "scores.json").exists()


def test_the_card_says_whether_another_run_is_the_same(out: Path) -> None:
    assert "gives the same bits" in (out / "README.md").read_text()
    parse_json((out / "scores.json").read_bytes())
    data = parse_json(next(out.glob("checkpoints/step-*4/data.json")).read_bytes())
    edit(out, max_steps="null", max_minutes=f"{data['counts']['seconds'] / 60 + 0.001:.6f}")
    resume(out, quietly)
    assert "the clock had a part" in (out / "README.md").read_text()
