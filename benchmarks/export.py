"""One step of an LSTM: `everstep.Stream` and an exported step beside onnxruntime's own LSTM node and `nn.LSTM`.

    python benchmarks/export.py [--hidden 256] [--rounds 50] [--json FILE]
    python benchmarks/export.py --int8 [--hidden 512] [--words 10000]
    python benchmarks/export.py --seconds

One row, one thread; all in turns in one process, CPU time of 50 steps each, the median of rounds. "exported" is what
`everstep export` writes of the layer; "C++" is that of `--to c`, called from Python like the others; "node" is a file
with one LSTM node by hand, whose state goes in and out.

--int8: one step of a language model with untrained weights in float32 and in int8, and the sizes of the files.
--seconds: the time of an export of the recipe shakespeare-minute to ONNX, both forms, after all is imported.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from timing import alternately, summary

import everstep as es
from everstep.native.processor import name as cpu_name
from everstep.networks.forms import Form, layer_forms
from everstep.networks.model_forms import token_forms
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run
from everstep.ship import cpp
from everstep.ship.export import export
from everstep.ship.onnx.onnx_file import written
from everstep.ship.onnx.short_weights import shortened

STEPS = 50


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node(size: int) -> Any:
    """One LSTM node: x (1, 1, size) and the state, to y and the state."""
    weights = [torch.randn(1, 4 * size, size).numpy() / 16 for _ in "WR"]
    parts = [numpy_helper.from_array(w, name) for w, name in zip(weights, "WR", strict=True)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, size]) for name in ("X", "H", "C")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "YH", "YC")]
    inner = helper.make_node("LSTM", ["X", "W", "R", "", "", "H", "C"], ["Y", "YH", "YC"], hidden_size=size)
    graph = helper.make_graph([inner], "step", info, ends, parts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def ways(size: int) -> dict[str, Callable[[], None]]:
    cell = es.LSTM(size, size)
    form = layer_forms(cell).step
    assert isinstance(form, Form)
    ours, plain = session(written(form)), session(node(size))
    torch_lstm = torch.nn.LSTM(size, size, batch_first=True)
    stream = es.Stream(cell)
    assert stream.compiled, stream.reason
    x, y = torch.randn(1, size), torch.empty(1, size)
    made = cpp.written(form)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.bin").write_bytes(made.weights)
        built = cpp.Compiled(made, Path(folder), form)
    sequence = built.begin()
    rows, zeros = x.numpy(), np.zeros((1, size), np.float32)

    def native() -> None:
        for _ in range(STEPS):
            stream(x)

    def in_cpp() -> None:
        reads, writes = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr())  # of tensors that live on
        for _ in range(STEPS):
            built.step(sequence, reads, writes)

    def exported() -> None:
        h = c = zeros
        for _ in range(STEPS):
            _, h, c = ours.run(None, {"x": rows, "state.h": h, "state.c": c})

    def by_node() -> None:
        h = c = zeros[None]
        for _ in range(STEPS):
            _, h, c = plain.run(None, {"X": rows[None], "H": h, "C": c})

    @torch.inference_mode()
    def by_torch() -> None:
        state = (torch.zeros(1, 1, size), torch.zeros(1, 1, size))
        for _ in range(STEPS):
            _, state = torch_lstm(x[None], state)

    return {"Stream": native, "C++": in_cpp, "exported": exported, "node": by_node, "nn.LSTM": by_torch}


def shorter(size: int, words: int) -> dict[str, Callable[[], None]]:
    """One step of a language model in float32 and in int8; prints the sizes of the files."""
    section = TokenModelSection(hidden_size=size, embedding_size=size)
    form = token_forms(TokenModel(words, section).eval()).step
    assert isinstance(form, Form)
    model = written(form)
    sizes, sessions = [], []
    for one in (model, shortened(copy.deepcopy(model), "int8")):
        sizes.append(len(one.SerializeToString()))
        sessions.append(session(one))
    print(f"size: {sizes[0] / 1e6:.1f} MB, in int8 {sizes[1] / sizes[0]:.3f} of it")
    token, zeros = np.array([3]), np.zeros((1, size), np.float32)

    def by(run: Any) -> Callable[[], None]:
        def steps() -> None:
            h = c = zeros
            for _ in range(STEPS):
                _, h, c = run(None, {"tokens": token, "state.0.h": h, "state.0.c": c})

        return steps

    return dict(zip(("int8", "float32"), (by(one.run) for one in reversed(sessions)), strict=True))


def timed_export() -> None:
    """Print the time of an export."""
    with tempfile.TemporaryDirectory() as folder:
        task = load_task("shakespeare-minute")
        task.prepare()
        run = Run(Path(folder), task, task.model())
        for name in ("first", "second"):
            begun, used = time.perf_counter(), time.process_time()
            export(run, Path(folder) / name)
            print(f"{name}: {time.perf_counter() - begun:.2f} s, {time.process_time() - used:.2f} s of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, help="256; with --int8 512")
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--seconds", action="store_true")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.seconds:
        timed_export()
        return
    size = given.hidden or (512 if given.int8 else 256)
    runs: dict[str, Callable[[], object]] = {**(shorter(size, given.words) if given.int8 else ways(size))}
    taken = alternately(runs, given.rounds, warmup=5, clock=time.process_time)
    found = {name: summary([value / STEPS for value in values]) for name, values in taken.items()}
    first = next(iter(found))
    for name, figures in found.items():
        ratio = figures["median_ms"] / found[first]["median_ms"]
        print(f"{name:10} {1000 * figures['median_ms']:8.1f} µs a step   {ratio:5.2f} × {first}")
    if given.json:
        given.json.write_text(json.dumps({"cpu": cpu_name(), "hidden": size, "steps": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
