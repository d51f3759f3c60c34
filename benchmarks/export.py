"""One step of an LSTM: `everstep.Stream` and an exported step beside onnxruntime's own LSTM node and `nn.LSTM`.

    python benchmarks/export.py [--hidden 256] [--rounds 50] [--json FILE]

One row, one thread; all in turns in one process, CPU time of 50 steps each, the median of rounds. "exported" is what
`everstep export` writes of the layer; "node" is a file with one LSTM node by hand, whose state goes in and out.
"""

from __future__ import annotations

import argparse
import json
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
from everstep.ship.onnx.onnx_file import written

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
    x = torch.randn(1, size)
    rows, zeros = x.numpy(), np.zeros((1, size), np.float32)

    def native() -> None:
        for _ in range(STEPS):
            stream(x)

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

    return {"Stream": native, "exported": exported, "node": by_node, "nn.LSTM": by_torch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seconds = alternately(ways(given.hidden), given.rounds, warmup=5, clock=time.process_time)
    found = {name: summary([value / STEPS for value in values]) for name, values in seconds.items()}
    least = found["Stream"]["median_ms"]
    for name, figures in found.items():
        print(f"{name:10} {1000 * figures['median_ms']:8.1f} µs a step   {figures['median_ms'] / least:5.2f} × Stream")
    if given.json:
        given.json.write_text(json.dumps({"cpu": cpu_name(), "hidden": given.hidden, "steps": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
