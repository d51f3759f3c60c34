"""What is written down for other runtimes computes what the model computes; what cannot be is refused by name."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import LAYERS
from small_runs import made
from torch import Tensor, nn
from written_forms import equal

import everstep as es
from everstep.errors import ConfigError, RunError
from everstep.native import toolchain
from everstep.networks.cells_by_name import cell_names
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.networks.forms import Form, Input, Named, layer_forms
from everstep.networks.translator_forms import translator_forms
from everstep.runs.run import Run
from everstep.ship import cpp
from everstep.ship.c import c_program
from everstep.ship.c.c_built import Built, saved
from everstep.ship.checking import NotEqual, checked
from everstep.ship.cpp import Compiled
from everstep.ship.export import export
from everstep.ship.onnx.onnx_file import written
from everstep.ship.onnx.session import Session
from everstep.ship.sizes import NotExported
from everstep.state import State, leaves
from everstep.tracing.trace import is_free

pytestmark = pytest.mark.usefixtures("uncompiled", "little_data")


compiled = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


# ------------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_computes_the_same_in_onnxruntime(name: str) -> None:
    layer = LAYERS[name]().eval()
    forms = layer_forms(layer)
    if any(is_free(leaf) for _, leaf in leaves(layer.initial_state(1, torch.zeros(1)))):
        for form in forms:
            with pytest.raises(NotExported, match="its state has dynamic sizes"):
                written(form)  # type: ignore[arg-type]
        if isinstance(forms.step, Form):
            with pytest.raises(NotExported, match="its state has dynamic sizes"):
                cpp.written(forms.step)
        return
    equal(forms.sequence)  # type: ignore[arg-type]
    assert isinstance(forms.step, Form) == isinstance(layer, es.Cell)
    if isinstance(forms.step, Form):
        equal(forms.step)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_standard_cells_become_nodes_of_their_own(kind: str) -> None:
    cells = [getattr(es, kind)(*sizes) for sizes in ((3, 4), (4, 5), (3, 4), (3, 2))]
    for layer in (es.Stack(*cells[:2]), es.Bidirectional(*cells[2:])):
        operations = equal(layer_forms(layer).sequence)  # type: ignore[arg-type]
        assert operations.count(kind) == 2
        assert "Scan" not in operations
    assert kind in equal(layer_forms(cells[0]).step)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cell",
    [lambda: es.LSTM(3, 4), lambda: es.GRU(3, 4), lambda: es.RNN(3, 4), lambda: es.RNN(3, 4, activation=torch.relu)],
)
def test_the_state_of_a_row_without_steps_stays(cell: Any) -> None:
    form = layer_forms(cell()).sequence
    assert isinstance(form, Form)
    state = [torch.randn_like(leaf) for _, leaf in leaves(form.initial(3))]
    given = {"xs": torch.randn(3, 2, 3), "lengths": torch.tensor([2, 0, 1])}
    outputs, new = Session("file", written(form).SerializeToString()).run(given, state)
    assert not outputs["ys"][1].any()
    assert all(torch.equal(before[1], after[1]) for before, after in zip(state, new, strict=True))


def test_every_cell_of_the_catalogue_is_among_the_layers() -> None:
    assert set(cell_names()) <= set(LAYERS)


class Odd(es.Cell):
    """What a user may write, with operations that no cell of the catalogue has."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        # an eps as large as the errors of a variance that onnxruntime 1.20 takes as a difference of squares
        self.linear, self.norm = nn.Linear(8, 4), nn.LayerNorm(4, eps=1e-2)
        self.table = nn.Parameter(torch.randn(4, 4))

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        both = self.linear(torch.cat([x, h], -1))
        order = both.argsort(-1)
        gate = torch.where(both.argmax(-1, keepdim=True) > 1, both.softmax(-1), nn.functional.gelu(both))
        gate = self.norm(gate) + self.table[both.argmax(-1, keepdim=True), order]
        h = gate.gather(-1, order) + torch.remainder(both, 0.7) + both.cumsum(-1).clamp(-1, 1)
        return nn.functional.elu(h) - nn.functional.softplus(h, 2.0).round(), torch.tanh(h)


def test_a_cell_of_the_users_own() -> None:
    for form in layer_forms(Odd()):
        assert isinstance(form, Form)
        equal(form)


class Fourier(es.Cell):
    """A step with an operation that ONNX's table here lacks."""

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.special.i0(x + h)


def test_what_has_no_counterpart_is_refused_by_name() -> None:
    with pytest.raises(NotExported, match="it uses i0, which has no counterpart"):
        written(layer_forms(Fourier(2)).sequence)  # type: ignore[arg-type]
    hooked = es.GRU(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(NotExported, match="GRU has a hook"):
        written(layer_forms(hooked).sequence)  # type: ignore[arg-type]


def test_the_largest_so_far_and_parts_without_numbers() -> None:
    def run(given: Named, state: State) -> tuple[Named, State]:
        x = given["x"]
        low = torch.where(x > 0, x, -torch.inf)
        return {"most": low.cummax(1).values, "joined": torch.cat([x.new_zeros(0), x, x[:, :0]], 1)}, state

    equal(Form(nn.Identity(), run, {"x": Input(("batch", 3))}))

    def places(given: Named, state: State) -> tuple[Named, State]:
        return {"places": nn.functional.max_pool2d(given["x"], 2, return_indices=True)[1]}, state

    with pytest.raises(NotExported, match="it uses the places of max_pool2d"):
        written(Form(nn.Identity(), places, {"x": Input(("batch", 1, 4, 4))}))


def test_a_file_that_computes_something_else_is_noticed() -> None:
    cell = es.GRU(2, 3)
    form = layer_forms(cell).sequence
    assert isinstance(form, Form)
    session = Session("file", written(form).SerializeToString())
    with torch.no_grad():
        cell.weight_hh[0, 0] += 0.1
    with pytest.raises(NotEqual, match=r"ys differs from the run's by"):
        checked("file", form, session.run, 5)


# ------------------------------------------------------------------------------------------------ C++


def built(form: Form, folder: Path) -> tuple[cpp.Written, Compiled]:
    """The step in C++, which computes what the form computes: as text, and built."""
    made = cpp.written(form)
    (folder / "model.bin").write_bytes(made.weights)
    found = Compiled(made, folder, form)
    checked("model.cpp", form, found.run, 5)
    return made, found


@compiled
@pytest.mark.parametrize("name", ["Stack", "UserCell", "MLSTM"])
def test_a_step_computes_the_same_in_cpp(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_COMPILER")
    form = layer_forms(LAYERS[name]().eval()).step
    assert isinstance(form, Form)
    made, found = built(form, tmp_path)
    found.close()
    (tmp_path / "model.bin").write_bytes(b"another model's")
    with pytest.raises(NotExported, match="cannot be opened"):
        Compiled(made, tmp_path, form)


MAIN = r"""
#include <stdio.h>
#include "model.h"
int main(int count, char** given) {
  everstep_model* const model = everstep_open(given[1]);
  if (!model) return 2;
  everstep_session* const first = everstep_begin(model);
  float y[EVERSTEP_OUTPUT];
  if (everstep_step(first, -1, y) != 1 || everstep_step(first, 1000000, y) != 1) return 3;
  everstep_step(first, 3, y);
  everstep_session* const second = everstep_copy(first);
  everstep_step(first, 1, y);
  everstep_step(second, 2, y);
  for (int k = 0; k < EVERSTEP_OUTPUT; ++k) printf("%.9g\n", y[k]);
  everstep_end(first);
  everstep_end(second);
  everstep_close(model);
}
"""


@compiled
@pytest.mark.usefixtures("quick")
def test_a_program_without_python_and_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_COMPILER")
    run = made(tmp_path / "run", "shakespeare-minute")
    out = export(run, tmp_path / "c", to="c")
    (out / "main.cpp").write_text(MAIN)
    command = toolchain.compiler()
    assert command is not None
    program = tmp_path / "program"
    flags = ["-std=c++17", "-O1", "-fopenmp-simd", "-Wall", "-Werror"]
    subprocess.run([*command.command, *flags, out / "main.cpp", out / "model.cpp", "-o", program], check=True)
    said = subprocess.run([program, out / "model.bin"], capture_output=True, text=True, check=True).stdout
    with torch.no_grad():
        state = run.model.initial_state(1)
        for token in (3, 2):
            log_p, state = run.model.step(torch.tensor([token]), state)
    assert list(map(float, said.split())) == pytest.approx(log_p[0].tolist(), abs=1e-5)
    with pytest.raises(RunError, match="of the kind c, which is for other programs"):
        es.load(out)


@compiled
def test_loops_compute_the_same_in_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_COMPILER")
    section = EncoderDecoderSection(hidden_size=4, embedding_size=3, cell="RNN", attention="coverage", attention_size=2)
    step = translator_forms(EncoderDecoder(section, 9, 9).eval()).step
    assert isinstance(step, Form)
    assert step.before is not None
    found = dict(saved(tmp_path, {"start": step.before, "step": step}))
    assert found["step"]["outputs"] == {"log_p": {"shape": ["batch", 9]}, "weights": {"shape": ["batch", "places"]}}
    assert all(one["check"]["difference"] < 1e-5 for one in found.values())


@compiled
def test_what_leaves_its_bounds_is_cut_off_or_refused_in_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_COMPILER", raising=False)

    def spread(given: Named, state: State) -> tuple[Named, State]:
        cut = nn.functional.pad(given["x"], (-1, 2, 1, -1))
        return {"y": cut.var(-1, correction=1.0), "last": given["x"][:, -2:] * 1.0}, state

    form = Form(nn.Linear(1, 1), spread, {"x": Input(("batch", "time", 4))})
    program_of = c_program.written({"sequence": form})
    (tmp_path / "model.bin").write_bytes(program_of.weights)
    program, x = Built(program_of, tmp_path), torch.randn(2, 5, 4)
    for key, found in program.run("sequence")({"x": x}, ())[0].items():
        torch.testing.assert_close(found, spread({"x": x}, ())[0][key])
    with pytest.raises(NotExported, match="refuses its input"):  # PyTorch gives one step, of a size nobody expects
        program.run("sequence")({"x": x[:, :1]}, ())
    program.close()


def ordered(given: Named, state: State) -> tuple[Named, State]:
    """Where PyTorch takes NaN as the largest number, and in `argmin` as the smallest."""
    x = given["x"]
    down, up = x.sort(1, descending=True), x.sort(1)
    found = {"argmax": x.argmax(1), "argmin": x.argmin(1), "down": down.indices, "up": up.indices}
    return {key: value.float() for key, value in found.items()} | {"values": up.values, "least": down.values}, state


@compiled
def test_nan_has_the_same_place_in_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_COMPILER", raising=False)
    program_of = c_program.written({"sequence": Form(nn.Linear(1, 1), ordered, {"x": Input(("batch", 6))})})
    (tmp_path / "model.bin").write_bytes(program_of.weights)
    program, nan, inf = Built(program_of, tmp_path), torch.nan, torch.inf
    x = torch.tensor([[1, nan, 3, 0, nan, 2.0], [nan, 1, 2, 0, 5, 4], [5, inf, -inf, 1, 0, nan], [nan] * 6, [1.0] * 6])
    x = torch.cat([x, torch.where(torch.rand(40, 6) < 0.3, nan, torch.randint(4, (40, 6)).float())])
    wanted = ordered({"x": x}, ())[0]
    down, up = (x.sort(dim=1, descending=way, stable=True) for way in (True, False))
    wanted |= {"down": down.indices.float(), "up": up.indices.float()}
    for key, found in program.run("sequence")({"x": x}, ())[0].items():
        torch.testing.assert_close({key: found}, {key: wanted[key]}, rtol=0, atol=0, equal_nan=True)
    program.close()


SCATTERED: dict[str, Any] = {
    "numbers": lambda x, at: x.scatter(1, at, 2 * x),
    "one": lambda x, at: x.scatter(1, at[:, :2], 2.0),
    "added": lambda x, at: x.scatter(1, at, 2 * x, reduce="add"),
    "multiplied": lambda x, at: x.scatter(1, at.clamp(max=1), 2.0, reduce="multiply"),
    "truth": lambda x, at: (x > 0).scatter(1, at[:, :1], True).float(),
}


@compiled
@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter")
def test_numbers_that_are_scattered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_COMPILER", raising=False)

    def run(given: Named, state: State) -> tuple[Named, State]:
        x = given["x"]
        return {name: of(x, x.argsort(1)) for name, of in SCATTERED.items()}, state

    form = Form(nn.Linear(1, 1), run, {"x": Input(("batch", 4))})
    assert equal(form).count("ScatterElements") == len(SCATTERED)
    assert dict(saved(tmp_path, {"sequence": form}))["sequence"]["check"]["difference"] < 1e-6


def test_arguments_that_nothing_is_written_for_are_refused() -> None:
    def run(given: Named, state: State) -> tuple[Named, State]:
        x = given["x"]
        return {"y": x.scatter(1, x.long()[:, :1], x)}, state

    with pytest.raises(NotExported, match="it scatters some of the numbers of a tensor"):
        written(Form(nn.Identity(), run, {"x": Input(("batch", 3))}))


def test_what_the_engine_has_not_is_written_as_loops(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no step form: it answers whole texts"):
        export(made(tmp_path, "classify-minute"), tmp_path / "c", to="c", form="step")
    reservoir = layer_forms(es.Reservoir(2, 9)).step
    assert isinstance(reservoir, Form)
    with pytest.raises(NotExported, match="index_select"):
        cpp.written(reservoir)
    assert "everstep_step" in c_program.written({"step": reservoir}).header
    with pytest.raises(NotExported, match="it uses i0, which"):
        c_program.written({"step": layer_forms(Fourier(2)).step})  # type: ignore[dict-item]


# ------------------------------------------------------------------------------------------------ precision


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_shorter_weights_and_what_they_cost(precision: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("to be, or not to be, that is the question\n" * 50)
    sizes = ("model.hidden_size=48", "model.embedding_size=40")
    where = (f"data.train={tmp_path / 'text'}", "data.valid_fraction=0.1")
    run = made(tmp_path / "run", "shakespeare-minute", *where, *sizes)
    said: list[str] = []
    which: Any = "sequence" if precision == "float16" else "both"
    path = export(run, tmp_path / "out", form=which, precision=precision, say=said.append)
    told = json.loads((path / "export.json").read_text())["precision"]
    assert told["loss"] == pytest.approx(told["loss_float32"], abs=0.01)
    assert told["loss"] != told["loss_float32"]
    assert (path / "sequence.onnx").stat().st_size < (0.45 if precision == "int8" else 0.6) * 4 * weights(run)
    assert any(line.startswith(f"loss on valid: {told['loss_float32']:.4f} nats a token, with") for line in said)
    assert told["loss_float32"] == run.evaluate("valid")["loss"]
    if which == "both":
        assert told["loss"] == es.load(path).evaluate("valid")["loss"]
    if precision != "float16":
        return
    with pytest.raises(NotEqual, match="--tolerance"):
        export(run, tmp_path / "not", form="sequence", precision=precision, tolerance=-1.0)
    with pytest.raises(ConfigError, match="for --to onnx"):
        export(run, tmp_path / "not", to="c", precision=precision)
    with pytest.raises(ConfigError, match="on whole sequences; give --form both"):
        export(run, tmp_path / "not", form="step", precision=precision)
    assert not (tmp_path / "not").exists()


@pytest.mark.usefixtures("quick")
def test_the_measure_of_shorter_weights_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("text\tlabel\n" + "not bad at all\tgood\nnot good at all\tbad\n" * 20)
    where = (f"data.train={tmp_path / 'texts'}", f"data.valid={tmp_path / 'texts'}", "data.test=null")
    run = made(tmp_path / "run", "classify-minute", *where, "objective.calibrated=true")
    before = float(run.model.temperature)
    export(run, tmp_path / "out", precision="float16", tolerance=10.0)
    assert float(run.model.temperature) == before


def weights(run: Run) -> int:
    """How many numbers a model has."""
    return sum(parameter.numel() for parameter in run.model.parameters())
