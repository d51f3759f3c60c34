"""What a run may go on from: checkpoints that are there, whole, and not of a training that had diverged."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learn_toy as toy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everstep.errors import CheckpointError, Diverged, RunError
from everstep.learn import checkpoint, load_weights
from everstep.learn.weights import weights_step

# -------------------------------------------------------------------------------------------- checkpoints that are gone


@pytest.mark.parametrize("validate", [None, toy.validation])
@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("emptied", [True, False])
def test_a_trained_model_without_its_checkpoints_is_not_overwritten(
    validate: Any, resume: bool, emptied: bool, tmp_path: Path
) -> None:
    toy.run(tmp_path, validate=validate)
    model, metrics = ((tmp_path / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl"))
    shutil.rmtree(tmp_path / "checkpoints")
    if emptied:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match=r"model\.safetensors.*checkpoints.* gone.*another folder"):
        toy.run(tmp_path, validate=validate, resume=resume, max_steps=20)
    assert (tmp_path / "model.safetensors").read_bytes() == model
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    (tmp_path / "model.safetensors").unlink()  # then there is nothing to lose
    assert toy.run(tmp_path, validate=validate, resume=True).steps == 12


def test_killed_before_the_first_checkpoint_it_begins_again(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(model: nn.Module, step: int) -> None:
        if step == 3:
            raise Killed

    options: dict[str, Any] = {"validate": toy.validation, "validate_every": 2, "checkpoint_every": 5}
    with pytest.raises(Killed):
        toy.run(tmp_path, rules=[kill], **options)
    assert weights_step(tmp_path / "model.safetensors") == 2
    with pytest.raises(RunError, match="holds a run already; resume it"):
        toy.run(tmp_path, **options)
    assert toy.run(tmp_path, resume=True, **options).steps == 12


# -------------------------------------------------------------------------------------------------------- divergence

Change = Callable[[Tensor], None]


def after(step: int, change: Change, of: str = "out.bias") -> Any:
    """A rule that changes a weight before that step's update: as a step that threw it far off would."""

    def rule(model: nn.Module, now: int) -> None:
        if now == step - 1:
            with torch.no_grad():
                change(model.get_parameter(of))

    return rule


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("averaging", ["none", "ema"])
def test_weights_that_are_not_finite_are_never_a_checkpoint(value: float, averaging: str, tmp_path: Path) -> None:
    spoil = after(6, lambda w: w.fill_(value))
    with pytest.raises(Diverged, match=r"at step 6: .*out\.bias.* not finite after it.*last good .*step-00000005"):
        toy.run(tmp_path, rules=[spoil], checkpoint_every=1, averaging=averaging)
    assert checkpoints(tmp_path) == ["step-00000004", "step-00000005"]
    assert toy.run(tmp_path, resume=True, averaging=averaging).steps == 12


def test_a_checkpoint_whose_next_loss_is_not_finite_is_set_aside(tmp_path: Path) -> None:
    far = after(6, lambda w: w.mul_(1e36), "embedding.weight")
    with pytest.raises(Diverged, match=r"at step 7.*last good checkpoint is .*step-00000005.*diverge again") as caught:
        toy.run(tmp_path, rules=[far], checkpoint_every=1, keep_last=3)
    assert "lower learning_rate" in str(caught.value)
    assert "diverged-step-00000006" in str(caught.value)
    assert "step-00000004" in str(caught.value)  # a step further back
    assert checkpoints(tmp_path) == ["diverged-step-00000006", "step-00000004", "step-00000005"]
    lines: list[str] = []
    assert toy.run(tmp_path, resume=True, log=lines.append, learning_rate=0.001).steps == 12
    assert "resuming after step 5" in lines
    assert any("learning_rate 0.01 -> 0.001" in line for line in lines)


def test_a_validation_that_is_not_finite_sets_its_checkpoint_aside(tmp_path: Path) -> None:
    valids = iter([1.0, 1.0, math.nan])
    options: dict[str, Any] = {"validate": lambda model: next(valids), "validate_every": 2, "checkpoint_minutes": 1e-9}
    with pytest.raises(Diverged, match=r"validation loss at step 6 is nan.*last good checkpoint is .*step-00000005"):
        toy.run(tmp_path, **options)
    assert toy.run(tmp_path, resume=True, validate=toy.validation).steps == 12


def test_no_good_checkpoint_is_said(tmp_path: Path) -> None:
    far = after(1, lambda w: w.mul_(1e36), "embedding.weight")
    with pytest.raises(Diverged, match=r"at step 2.*no good checkpoint.*train anew.*lower learning_rate"):
        toy.run(tmp_path, rules=[far], checkpoint_every=1)
    assert checkpoints(tmp_path) == ["diverged-step-00000001"]


@pytest.mark.parametrize("validate", [None, toy.validation])
def test_a_last_step_that_is_not_finite_is_no_trained_model(validate: Any, tmp_path: Path) -> None:
    with pytest.raises(Diverged) as caught:
        toy.run(tmp_path, rules=[after(12, lambda w: w.fill_(math.inf))], validate=validate)
    assert caught.value.exit_code == 3
    assert weights_step(tmp_path / "model.safetensors") == (None if validate is None else 7)


@pytest.mark.parametrize("group", ["model", "optimizer", "average"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_of_a_training_that_had_diverged_is_passed_over(group: str, value: float, tmp_path: Path) -> None:
    options: dict[str, Any] = {"averaging": "ema", "checkpoint_every": 3}
    toy.run(tmp_path, **options)
    folder = tmp_path / "checkpoints" / "step-00000012"
    found = checkpoint.load(folder)
    name = next(name for name in found.tensors[group] if name in ("out.bias", "exp_avg_sq/out.bias"))
    found.tensors[group][name][3] = value
    shutil.rmtree(folder)
    checkpoint.save(folder, found)
    lines: list[str] = []
    assert toy.run(tmp_path, resume=True, log=lines.append, **options).steps == 12
    assert "out.bias" in lines[0]
    assert "not finite" in lines[0]
    assert "resuming from step-00000009" in lines[0]


def test_with_none_but_diverged_checkpoints_it_does_not_go_on(tmp_path: Path) -> None:
    toy.run(tmp_path, keep_last=1)
    folder = tmp_path / "checkpoints" / "step-00000012"
    found = checkpoint.load(folder)
    found.tensors["model"]["out.bias"][0] = math.nan
    shutil.rmtree(folder)
    checkpoint.save(folder, found)
    with pytest.raises(CheckpointError, match=r"no checkpoint .* can be used.*\n.*out\.bias.*not finite"):
        toy.run(tmp_path, resume=True)


class Masked(toy.Toy):
    """The toy, with a buffer that is meant to hold infinity, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((2,), -math.inf))
        self.register_buffer("mean", torch.zeros(2))


def test_buffers_may_hold_infinity_where_they_did_from_the_start(tmp_path: Path) -> None:
    toy.run(tmp_path, model=Masked(), max_steps=6)
    load_weights(Masked(), tmp_path / "model.safetensors")
    assert toy.run(tmp_path, model=Masked(), resume=True).steps == 12

    def spoil(model: nn.Module, step: int) -> None:
        model.mean[0] = math.inf

    with pytest.raises(Diverged, match="mean is not finite"):
        toy.run(tmp_path, model=Masked(), resume=True, max_steps=13, rules=[spoil])


# --------------------------------------------------------------------------------- checkpoints that somebody else made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    toy.run(out, averaging="ema")
    return out


def resumed(finished: Path, out: Path, change: Callable[[checkpoint.Checkpoint], Any]) -> None:
    """Go on from the run with its checkpoint changed, whose digests fit."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(finished, out)
    folder = out / "checkpoints" / "step-00000012"
    found = checkpoint.load(folder)
    change(found)
    shutil.rmtree(folder)
    checkpoint.save(folder, found)
    toy.run(out, resume=True, averaging="ema", max_steps=13)


KEYS = ["identity", "settings", "counts", "carried", "average", "plateau", "norms", "random", "threads"]


@pytest.mark.parametrize("key", KEYS)
def test_a_checkpoint_without_one_of_its_keys_is_refused_by_name(key: str, finished: Path, tmp_path: Path) -> None:
    def lose(found: checkpoint.Checkpoint) -> None:
        del found.data[key]

    with pytest.raises(CheckpointError, match=rf"checkpoint .*step-00000012: its part .*: it lacks '{key}'"):
        resumed(finished, tmp_path / "run", lose)


@pytest.mark.parametrize("key", KEYS)
def test_a_checkpoint_with_something_else_in_its_place_ends_in_no_traceback(
    key: str, finished: Path, tmp_path: Path
) -> None:
    refused = 0
    for value in (7, "x", [], ["x"], {}, {"x": 1}, None):
        try:
            resumed(finished, tmp_path / "run", lambda found, value=value: found.data.update({key: value}))  # type: ignore[misc]
        except RunError:
            refused += 1
    assert refused >= (0 if key == "threads" else 4)


LOSSES: dict[str, tuple[Callable[[checkpoint.Checkpoint], Any], str]] = {
    "the model": (lambda found: found.tensors.pop("model"), "part model .* lacks 'model'"),
    "a weight": (lambda found: found.tensors["model"].pop("out.bias"), "out.bias"),
    "an average": (lambda found: found.tensors["average"].pop("out.bias"), "part average .* lacks 'out.bias'"),
    "a moment": (lambda found: found.tensors["optimizer"].pop("exp_avg/out.bias"), "optimizer lacks exp_avg/out.bias"),
    "a carried state": (lambda found: found.tensors.pop("carried"), "carries a state of"),
    "random numbers": (lambda found: found.tensors.pop("random"), "part random .* lacks 'random'"),
    "random numbers of Python": (lambda found: found.data["random"].pop("python"), "part random .* lacks 'python'"),
    "another name": (lambda found: found.tensors["optimizer"].update(x=torch.zeros(1)), "part optimizer"),
    "another shape": (
        lambda found: found.tensors["optimizer"].update({"exp_avg/out.bias": torch.zeros(3)}),
        r"exp_avg/out.bias of shape \(3,\)",
    ),
    "another random state": (lambda found: found.tensors["random"].update(cpu=torch.zeros(3)), "part random"),
    "another count": (lambda found: found.data["counts"].update(step="many"), "part counts"),
    "another limit": (lambda found: found.data["settings"].update(max_steps="many"), "part settings"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_checkpoint_that_lacks_something_is_refused_by_name(what: str, finished: Path, tmp_path: Path) -> None:
    change, told = LOSSES[what]
    with pytest.raises(RunError, match=told):
        resumed(finished, tmp_path / "run", change)


@pytest.mark.parametrize(("name", "content"), [("data.json", b"[]"), ("data.json", b"{"), ("model.safetensors", b"x")])
def test_a_file_of_another_kind_with_the_right_digest_is_refused(
    name: str, content: bytes, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    folder = out / "checkpoints" / "step-00000012"
    found = checkpoint.load(folder)
    shutil.rmtree(folder)
    written = checkpoint._json_bytes if name == "data.json" else checkpoint.serialize
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint,
            written.__name__,
            lambda value: content if value is found.data or value is found.tensors["model"] else written(value),
        )
        checkpoint.save(folder, found)
    lines: list[str] = []
    toy.run(out, resume=True, averaging="ema", log=lines.append)
    told = next(line for line in lines if f"step-00000012: {name} was not written by everstep" in line)
    assert "resuming from step-" in told


# ------------------------------------------------------------------------------------------------- weights of a file


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    toy.run(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    for name, dtype in (
        ("out.bias", torch.int64),
        ("out.bias", torch.bool),
        ("out.bias", torch.float64),
        ("out.bias", torch.bfloat16),
        ("seen", torch.float32),
        ("seen", torch.int32),
    ):
        save_file(whole | {name: whole[name].to(dtype)}, path, {"step": "12"})
        model = toy.Toy(seed=3)
        before = model.embedding.weight.clone()
        with pytest.raises(RunError, match=rf"'{name}' is {dtype} in .*model\.safetensors and torch\.\w+ in the model"):
            load_weights(model, path)
        assert torch.equal(model.embedding.weight, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    toy.run(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    whole["gru.weight_hh_l1"][2, 3] = value
    save_file(whole, path, {"step": "12"})
    with pytest.raises(RunError, match=r"gru\.weight_hh_l1' in .* not finite.*damaged, or of a training that diverged"):
        load_weights(toy.Toy(), path)


def test_a_checkpoint_of_another_type_is_refused(tmp_path: Path) -> None:
    toy.run(tmp_path)
    with pytest.raises(RunError, match=r"is torch\.float32 in the checkpoint and torch\.float64 in the model"):
        toy.run(tmp_path, model=toy.Toy().double(), resume=True)


def test_best_weights_that_changed_on_disk_are_taken_from_their_checkpoint(tmp_path: Path) -> None:
    first = toy.run(tmp_path, validate=toy.validation)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    changed = load_file(path)
    changed["out.bias"][0] += 0.5
    save_file(changed, path, {"step": str(first.best_step)})
    model, lines = toy.Toy(seed=3), []
    toy.run(tmp_path, model=model, validate=toy.validation, resume=True, log=lines.append)
    assert any("model.safetensors is not what was saved at step" in line for line in lines)
    assert load_file(path)["out.bias"][0] != changed["out.bias"][0]
    assert path.read_bytes() == whole
