"""Forms as programs of torch.export: what they compute without everstep, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import made
from torch import Tensor

import everstep as es
from everstep.errors import ConfigError, RunError
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.networks.forms import layer_forms
from everstep.networks.translator_forms import translator_forms
from everstep.ship import torch_program
from everstep.ship.checking import NotEqual, checked
from everstep.ship.export import export
from everstep.ship.sizes import NotExported
from everstep.ship.torch_program import TorchProgram, saved, written

pytestmark = pytest.mark.usefixtures("uncompiled")


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


LAYERS = {
    "stack": lambda: es.Stack(es.LSTM(3, 4), es.Residual(es.GRU(4, 4))),
    "own": Own,
    "zoneout": lambda: es.Zoneout(es.RNN(3, 5), 0.1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_program_computes_what_the_form_computes(name: str) -> None:
    torch.manual_seed(0)
    for form in layer_forms(LAYERS[name]()):
        assert not isinstance(form, str)
        found = checked("file", form, TorchProgram(written(form)).run, 12)
        assert found.batches == (1, 7)
        assert found.difference <= 1e-5


def test_both_directions_and_a_memory_of_any_size() -> None:
    both = layer_forms(es.Bidirectional(es.GRU(3, 4), es.LSTM(3, 4))).sequence
    section = EncoderDecoderSection(hidden_size=4, embedding_size=3)
    step = translator_forms(EncoderDecoder(section, 20, 20).eval()).step
    assert not isinstance(both, str)
    assert not isinstance(step, str)
    assert step.before is not None
    for form in (both, step, step.before):
        checked("file", form, TorchProgram(written(form)).run, 5)


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
    out = export(run, to="torch", say=said.append)
    assert out == run.path / "torch"
    assert [line.partition(":")[0] for line in said[:2]] == ["step.pt2", "sequence.pt2"]
    card = json.loads((out / "export.json").read_text())
    one = card["forms"]["step"]
    assert one["file"] == "step.pt2"
    assert one["inputs"] == {"tokens": {"shape": ["batch"], "dtype": "int64"}}
    assert one["check"]["batches"] == [1, 7]
    whole = card["forms"]["sequence"]
    assert whole["inputs"]["tokens"] == {"shape": ["batch", "time"], "dtype": "int64"}
    assert whole["outputs"]["log_p"]["shape"][:2] == ["batch", "time"]
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
