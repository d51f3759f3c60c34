"""Forms as programs of torch.export: what they compute without everstep, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import made
from torch import Tensor

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.errors import ConfigError, RunError
from everstep.networks.answers import OneOf
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.networks.forms import layer_forms
from everstep.networks.model_forms import classifier_forms
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.networks.translator_forms import translator_forms
from everstep.ship import torch_program
from everstep.ship.checking import NotEqual, checked
from everstep.ship.export import export
from everstep.ship.sizes import NotExported
from everstep.ship.torch_program import TorchProgram, saved, written

pytestmark = pytest.mark.usefixtures("uncompiled", "little_data")


class Own(es.Cell):
    """A cell whose state is a dict."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.linear = torch.nn.Linear(7, 4)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        return {"h": like.new_ones(batch, 4), "count": like.new_zeros(batch)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.linear(torch.cat([x, state["h"]], 1)))
        return h, {"h": h, "count": state["count"] + 1}


@pytest.mark.usefixtures("quick")
def test_a_program_computes_what_the_form_computes(tmp_path: Path) -> None:
    step = layer_forms(es.Stack(Own(), es.Residual(es.GRU(4, 4)))).step
    both = layer_forms(es.Bidirectional(Own(), es.Zoneout(es.LSTM(3, 4), 0.1))).sequence
    assert not isinstance(step, str)
    assert not isinstance(both, str)
    found = checked("file", step, TorchProgram(written(step)).run, 5)
    assert found.batches == (1, 7)
    assert found.difference <= 1e-5
    whole = saved(tmp_path, "sequence", both)
    assert (whole["file"], whole["check"]["batches"]) == ("sequence.pt2", (1, 7))
    assert whole["inputs"]["xs"] == {"shape": ["batch", "time", 3], "dtype": "float32"}
    assert whole["outputs"]["ys"]["shape"] == ["batch", "time", 8]


def test_a_memory_of_any_size_and_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(*_: Any) -> Any:
        raise AssertionError("a backend was asked")

    for backend in BACKENDS.values():
        monkeypatch.setattr(backend, "prepare", prepared)
    section = EncoderDecoderSection(hidden_size=2, embedding_size=2, cell="RNN", bidirectional=False)
    step = translator_forms(EncoderDecoder(section, 5, 5)).step
    assert not isinstance(step, str)
    assert step.before is not None
    for form in (step, step.before):
        checked("file", form, TorchProgram(written(form)).run, 3)


PROGRAM = """
import json, sys, torch
step = torch.export.load(sys.argv[1]).module()
state = tuple(torch.zeros(2, size) for size in json.loads(sys.argv[2]))
for token in (3, 2):
    outputs, state = step({"tokens": torch.tensor([token, token])}, state)
assert "everstep" not in sys.modules
print(json.dumps(outputs["log_p"][1].tolist()))
"""


@pytest.mark.usefixtures("quick")
def test_it_runs_without_everstep(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "shakespeare-minute")
    said: list[str] = []
    out = export(run, to="torch", form="step", say=said.append)
    assert out == run.path / "torch"
    assert [line.partition(":")[0] for line in said] == ["step.pt2", str(out)]
    card = json.loads((out / "export.json").read_text())
    one = card["forms"]["step"]
    assert one["file"] == "step.pt2"
    assert one["inputs"] == {"tokens": {"shape": ["batch"], "dtype": "int64"}}
    assert one["check"]["batches"] == [1, 7]
    assert {leaf["start"] for leaf in one["state"].values()} == {0.0}
    sizes = json.dumps([leaf["shape"][0] for leaf in one["state"].values()])
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(out / "step.pt2"), sizes]
    said_there = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    with torch.no_grad():
        state = run.model.initial_state(1)
        for token in (3, 2):
            log_p, state = run.model.step(torch.tensor([token]), state)
    assert json.loads(said_there) == pytest.approx(log_p[0].tolist(), abs=1e-5)
    with pytest.raises(RunError, match="of the kind torch, which is for other programs"):
        es.load(out)
    with pytest.raises(ConfigError, match="for --to onnx"):
        export(run, tmp_path / "short", to="torch", precision="int8")


def test_the_last_step_of_sentences_in_both_directions_and_ngrams() -> None:
    how: dict[str, Any] = {"reader": "hierarchical", "read_out": "last", "ngrams": 2}
    section = ClassifierSection(cell="RNN", hidden_size=2, embedding_size=2, **how)
    form = classifier_forms(SequenceClassifier(9, OneOf(("a", "b")), section, ends=(3,))).sequence
    assert not isinstance(form, str)
    checked("file", form, TorchProgram(written(form)).run, 4)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no step form: it answers whole texts"):
        export(made(tmp_path, "classify-minute"), tmp_path / "torch", to="torch", form="step")

    class Depends(Own):
        def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            if float(x.sum()) > 0:
                return super().step(x, state)
            return super().step(-x, state)

    form = layer_forms(Depends()).step
    assert not isinstance(form, str)
    with pytest.raises(NotExported, match=r"torch\.export cannot follow it: ."):
        written(form)
    other, own = layer_forms(Own()).step, layer_forms(Own()).step
    assert not isinstance(own, str)
    monkeypatch.setattr(torch_program, "written", lambda _: written(other))  # type: ignore[arg-type]
    with pytest.raises(NotEqual, match=r"step\.pt2: y differs"):
        saved(tmp_path, "step", own)
    assert not (tmp_path / "step.pt2").exists()
