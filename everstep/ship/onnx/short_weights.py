"""Weights in fewer bits: halves as they are read, int8 also as they are multiplied."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from everstep.ship.onnx.graph import TYPES

_FEWEST = 256
"""Numbers of a weight from which on it is made shorter: small ones, such as biases, cost nothing."""


def shortened(model: Any, precision: Literal["float16", "bfloat16", "int8"]) -> Any:
    """The file with its large weights in fewer bits.

    float16, bfloat16: stored so, and widened where they are read. int8: symmetric, one scale for each column of a
    matrix; matrices and LSTMs are multiplied in int8, by inputs that are made int8 as they come (onnxruntime's dynamic
    quantisation); a table of an embedding is stored so.
    """
    return _in_int8(model) if precision == "int8" else _halved(model, getattr(torch, precision))


def _halved(model: Any, dtype: torch.dtype) -> Any:
    kept, casts = [], []
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        if one.data_type != TensorProto.FLOAT or array.size < _FEWEST:
            kept.append(one)
            continue
        short = torch.from_numpy(array.copy()).to(dtype)
        raw = short.view(torch.int16).numpy().tobytes()
        kept.append(helper.make_tensor(f"{one.name}.short", TYPES[dtype], one.dims, raw, raw=True))
        casts.append(helper.make_node("Cast", [f"{one.name}.short"], [one.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def _in_int8(model: Any) -> Any:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(model)  # there is nothing to prepare, and it would say so
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "short.onnx"
        kinds = ["MatMul", "LSTM", "Gather"]
        quantize_dynamic(model, path, kinds, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(path)
