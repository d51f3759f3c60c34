"""`fit` as a Python user calls it: any optimizer, lists and loaders of batches, callbacks, named measures."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learn_toy as toy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import everstep as es
from everstep.errors import ConfigError, RunError
from everstep.learn import Loss, read_metrics
from everstep.learn.progress import Units
from everstep.learn.weights import weights_step

OPTIMIZERS: dict[str, Any] = {
    "RAdam": torch.optim.RAdam,
    "NAdam": torch.optim.NAdam,
    "Adamax": functools.partial(torch.optim.Adamax, betas=(0.8, 0.9)),
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "ASGD": torch.optim.ASGD,
    "Rprop": torch.optim.Rprop,
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
}


class Counting(torch.optim.Optimizer):
    """η / (steps so far) with the number kept as one of Python's, as many packages do."""

    def __init__(self, groups: Any, kept: Any = 0):
        super().__init__(groups, {"lr": 0.1})
        self.kept = kept

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["step"] = state.get("step", self.kept) + 1 if isinstance(self.kept, int) else self.kept
                    rate = group["lr"] / state["step"] if isinstance(self.kept, int) else group["lr"]
                    parameter.sub_(rate * parameter.grad)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", [*OPTIMIZERS, "Counting"])
def test_any_optimizer_resumes_exactly(name: str, tmp_path: Path) -> None:
    make = OPTIMIZERS.get(name, Counting)
    whole, first, second = toy.Toy(), toy.Toy(), toy.Toy(seed=9)
    before = tensors(whole)
    options: dict[str, Any] = {"optimizer": make, "checkpoint_every": 1}
    fitted(tmp_path / "whole", model=whole, max_steps=10, **options)
    fitted(tmp_path / "parts", model=first, max_steps=4, **options)
    fitted(tmp_path / "parts", model=second, max_steps=10, resume=True, **options)
    assert all(torch.equal(value, tensors(second)[key]) for key, value in tensors(whole).items())
    assert not any(torch.equal(value, before[key]) for key, value in tensors(whole).items())


def fitted(out: Path | str, *, model: nn.Module, resume: bool = False, **options: Any) -> es.FitResult:
    given = {"optimizer", "validate", "callbacks", "units", "log", "batches"} & options.keys()
    own = {"log": lambda line: None} | {key: options.pop(key) for key in given}
    settings = es.FitSettings(**({"max_steps": 6, "learning_rate": 0.01} | toy.PLAIN | options))
    batches = own.pop("batches", None) or toy.Lanes()
    return es.fit(model, toy.objective, batches, settings, out=out, resume=resume, **own)


def test_the_schedule_sets_the_rate_of_any_optimizer(tmp_path: Path) -> None:
    made: list[torch.optim.Optimizer] = []

    def make(groups: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.RAdam(groups, lr=123.0))
        return made[-1]

    fitted(tmp_path, model=toy.Toy(), optimizer=make, weight_decay=0.5, learning_rate=0.03)
    assert {group["lr"] for group in made[0].param_groups} == {0.03}
    assert sorted(group["weight_decay"] for group in made[0].param_groups) == [0.0, 0.5]


def test_an_optimizer_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    model = toy.Toy()
    instance = torch.optim.Adam(model.parameters())
    wrong: dict[str, Any] = {
        "got Adam, made already": instance,
        "got str": "radam",
        "it made Linear": lambda groups: nn.Linear(1, 1),
        "LBFGS computes the loss several times": lambda groups: torch.optim.LBFGS(model.parameters()),
    }
    for told, make in wrong.items():
        with pytest.raises(ConfigError, match=f"optimizer: expected what makes one of parameters.*{told}"):
            fitted(tmp_path / "run", model=model, optimizer=make)
    with pytest.raises(RunError, match=r"Counting keeps a list \(step\) in its state"):
        fitted(tmp_path / "run", model=model, optimizer=lambda groups: Counting(groups, kept=[1]))


def test_another_optimizer_does_not_go_on_with_the_state(tmp_path: Path) -> None:
    fitted(tmp_path, model=toy.Toy(), optimizer=torch.optim.RAdam)
    with pytest.raises(RunError, match="optimizer: was 'RAdam', now 'NAdam'"):
        fitted(tmp_path, model=toy.Toy(), optimizer=torch.optim.NAdam, resume=True, max_steps=8)
    with pytest.raises(RunError, match="optimizer: was 'RAdam', now 'AdamW'"):
        fitted(tmp_path, model=toy.Toy(), resume=True, max_steps=8)


def test_out_is_a_string_or_a_path(tmp_path: Path) -> None:
    fitted(str(tmp_path / "text"), model=toy.Toy())
    fitted(tmp_path / "path", model=toy.Toy())
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("text", "path"))
    assert one == other


@dataclass(frozen=True)
class Pairs(es.Movable):
    x: Tensor
    y: Tensor

    @property
    def count(self) -> int:
        return len(self.x)


def squares(model: nn.Module, batch: Pairs, state: Any) -> Any:
    error = (model(batch.x)[:, 0] - batch.y).square()
    yield Loss(error, error.detach())


def pairs() -> list[Pairs]:
    torch.manual_seed(1)
    xs = torch.randn(12, 4, 3)
    return [Pairs(x, x.sum(1)) for x in xs]


def lined(model: nn.Module, batches: Any, out: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    settings = {"max_epochs": 30, "learning_rate": 0.05, "schedule": "constant", "precision": "float32"}
    resume = options.pop("resume", False)
    es.fit(model, squares, batches, es.FitSettings(**(settings | options)), out=out, log=lines.append, resume=resume)
    return lines


def test_a_list_of_batches_is_learned_and_resumed_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    parts, again = copy.deepcopy(model), copy.deepcopy(model)
    lines = lined(model, pairs(), tmp_path / "whole")
    torch.testing.assert_close(model.weight, torch.ones(1, 3), rtol=0, atol=0.02)
    assert not any("exact" in line for line in lines)
    lined(parts, tuple(pairs()), tmp_path / "parts", max_epochs=None, max_steps=17)
    lined(again, pairs(), tmp_path / "parts", resume=True)
    assert torch.equal(model.weight, again.weight)


def test_a_loader_of_batches_is_learned_and_its_order_is_said(tmp_path: Path) -> None:
    items = [(x, y) for batch in pairs() for x, y in zip(batch.x, batch.y, strict=True)]

    def together(rows: list[Any]) -> Pairs:
        return Pairs(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))

    loader = DataLoader(items, batch_size=4, shuffle=True, collate_fn=together)  # type: ignore[arg-type]
    model = nn.Linear(3, 1)
    lines = lined(model, loader, tmp_path)
    assert sum("DataLoader, whose order is its own: a resumed run will not be exact" in line for line in lines) == 1
    torch.testing.assert_close(model.weight, torch.ones(1, 3), rtol=0, atol=0.02)
    before = read_metrics(tmp_path / "metrics.jsonl")[-1]
    lined(model, loader, tmp_path, resume=True, max_epochs=31)
    after = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert (after["step"], after["tokens"]) == (before["step"] + 12, before["tokens"] + 48)


@pytest.mark.parametrize(("batch", "told"), [((1, 2), "is tuple"), ({"x": 1}, "is dict"), (torch.ones(2), "is Tensor")])
def test_what_is_no_batch_is_said(batch: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"a batch should have a `count` of its targets and a `to.device.`, but {told}"):
        lined(nn.Linear(3, 1), [batch], tmp_path)


def test_batches_without_a_length_are_said(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="batches should have a length, but generator has none; make a list of them"):
        lined(nn.Linear(3, 1), (batch for batch in pairs()), tmp_path)


def test_a_callback_sees_every_record_and_may_end_the_run(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def until(record: dict[str, Any]) -> bool:
        seen.append(record)
        return record["step"] >= 3

    options: dict[str, Any] = {"validate": toy.validation, "validate_every": 2, "log_every_seconds": 0.0}
    result = fitted(tmp_path, model=toy.Toy(), callbacks=[lambda record: None, until], max_steps=50, **options)
    assert (result.stopped_by, result.steps) == ("callback", 3)
    assert seen == read_metrics(tmp_path / "metrics.jsonl")
    assert seen[-1]["step"] == 3
    assert "valid" in seen[-1]
    fitted(tmp_path, model=toy.Toy(), resume=True, max_steps=5, **options)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 5
    stopping = [lambda record: "valid" in record]
    options["log_every_seconds"] = 1e9
    result = fitted(tmp_path / "valid", model=toy.Toy(), callbacks=stopping, max_steps=50, **options)
    assert (result.stopped_by, result.steps) == ("callback", 2)


def test_an_exception_in_a_callback_is_the_users_own(tmp_path: Path) -> None:
    class Mine(Exception):
        pass

    def raises(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise Mine

    with pytest.raises(Mine):
        fitted(tmp_path, model=toy.Toy(), callbacks=[raises], checkpoint_every=2, log_every_seconds=0.0)
    result = fitted(tmp_path, model=toy.Toy(), checkpoint_every=2, resume=True)
    assert result.steps == 6


SCRIPT = {2: (1.0, 0.2), 4: (0.9, 0.6), 6: (0.8, 0.6), 8: (1.5, 0.6), 10: (0.7, 0.5), 12: (0.6, 0.4)}
"""Step: loss and F1."""


def scripted(steps: list[int]) -> Any:
    places = iter(steps)

    def validate(model: nn.Module) -> dict[str, float]:
        loss, f1 = SCRIPT[next(places)]
        return {"loss": loss, "f1": f1, "error": 1 - f1}

    return validate


def selected(out: Path, **options: Any) -> tuple[es.FitResult, list[str]]:
    lines: list[str] = []
    chosen: dict[str, Any] = {"validate": scripted([*SCRIPT]), "validate_every": 2, "max_steps": 12, "keep_last": 1}
    return fitted(out, model=toy.Toy(), log=lines.append, **(chosen | options)), lines


@pytest.mark.parametrize("name", ["f1", "valid.f1"])
@pytest.mark.parametrize("how", ["said", "known"])
def test_the_best_is_by_the_measure_that_is_selected(name: str, how: str, tmp_path: Path) -> None:
    options: dict[str, Any] = (
        {"select_best": "highest"} if how == "said" else {"units": Units(scores=frozenset({"f1"}))}
    )
    result, lines = selected(tmp_path, select=name, **options)
    assert (result.best_step, result.best_valid) == (6, 0.6)  # of three with 0.6 the one of the lowest loss
    assert weights_step(tmp_path / "model.safetensors") == 6
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step-00000006", "step-00000012"]
    found = {record["step"]: record for record in read_metrics(tmp_path / "metrics.jsonl") if "valid" in record}
    assert {step: (one["valid"], one["valid.f1"], one["valid.error"]) for step, one in found.items()} == {
        step: (loss, f1, 1 - f1) for step, (loss, f1) in SCRIPT.items()
    }
    assert [step for step, one in found.items() if one["best"]] == [2, 4, 6]
    assert any("valid 0.8000 nats  f1 0.6000  error 0.4000  (best)" in line for line in lines)
    assert any("  valid f1 0.6000  " in line for line in lines)  # of the lines of progress


def test_the_lowest_is_best_where_that_is_said(tmp_path: Path) -> None:
    result, _ = selected(tmp_path, select="error", select_best="lowest")
    assert (result.best_step, result.best_valid) == (6, 0.4)
    assert selected(tmp_path / "loss")[0].best_step == 12


def test_patience_follows_it(tmp_path: Path) -> None:
    result, _ = selected(tmp_path, select="f1", select_best="highest", patience=2)
    assert (result.stopped_by, result.steps) == ("early stopping", 10)


def test_plateau_follows_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "plateau", "plateau_patience": 2, "log_every_seconds": 0.0, "max_steps": 12}
    selected(tmp_path, select="f1", select_best="highest", **options)
    rates = {one["step"]: one["learning_rate"] for one in read_metrics(tmp_path / "metrics.jsonl") if "loss" in one}
    assert (rates[8], rates[9], rates[12]) == (0.01, 0.005, 0.005)


def test_averaging_follows_it(tmp_path: Path) -> None:
    _, lines = selected(tmp_path, select="f1", select_best="highest", averaging="nt-asgd", nt_asgd_patience=2)
    assert "step 10: averaging starts" in lines


def test_a_measure_that_there_is_not_is_named_at_the_first_validation(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"select: expected a measure of the validation \(loss, f1, error\); got bleu"
    ):
        selected(tmp_path, select="bleu", select_best="highest")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_which_of_a_measure_is_best_is_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="select_best: expected lowest or highest beside select=f1"):
        selected(tmp_path, select="f1")


@pytest.mark.parametrize("found", [{"f1": 1.0}, None, "0.5", torch.ones(2), {"loss": None}])
def test_a_validation_that_is_none_is_said(found: Any, tmp_path: Path) -> None:
    if found == "0.5":
        found = "half"
    with pytest.raises(TypeError, match='validate: expected a number, or numbers by name of which "loss" is one; got'):
        selected(tmp_path, validate=lambda model: found)


def test_units_are_those_of_the_job(tmp_path: Path) -> None:
    lines: list[str] = []
    fitted(tmp_path, model=toy.Toy(), units=Units("sentence", "bits"), log=lines.append, validate=toy.validation)
    record, *_ = read_metrics(tmp_path / "metrics.jsonl")
    assert {"sentences", "sentences_per_second"} <= record.keys()
    assert not {"tokens", "tokens_per_second"} & record.keys()
    assert any(" bits" in line and " sentences/s" in line for line in lines)
    assert not any("nats" in line or "token" in line for line in lines)


def test_settings_come_by_name_and_their_copies_are_checked() -> None:
    settings = es.FitSettings(max_steps=5)
    with pytest.raises(
        TypeError, match="FitSettings: expected settings by name, such as batch_size=…; got 5 without one"
    ):
        es.FitSettings(5)  # type: ignore[call-arg]
    assert settings.replace(max_steps=7, learning_rate=0.5) == es.FitSettings(max_steps=7, learning_rate=0.5)
    assert settings.max_steps == 5
    for change in (settings.replace, settings.__replace__):
        with pytest.raises(ConfigError, match="max_steps"):
            change(max_steps=-1)
        with pytest.raises(ConfigError, match="max_step"):
            change(max_step=1)
        with pytest.raises(ConfigError, match="momentum"):
            change(momentum=0.5)
        assert change(max_epochs=2).max_epochs == 2
