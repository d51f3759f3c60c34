"""Store weights in fewer bits: float16 and bfloat16 for storage only, int8 also for products."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from everstep.ship.onnx.graph import TYPES

_FEWEST = 256
"""The fewest numbers of a weight to shorten. Smaller ones, such as biases, hardly add to the file."""


def shortened(model: Any, precision: Literal["float16", "bfloat16", "int8"]) -> Any:
    """The `onnx.ModelProto` with its large weights in fewer bits.

    float16, bfloat16: weights are stored in this type and cast to float32 before use. int8: onnxruntime's dynamic
    quantisation, symmetric with one scale per column of a matrix. Matrix products and LSTMs compute in int8 and
    quantise their inputs at run time; embedding tables are only stored in int8.
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
        casts.append(helper.make_node("Cast", [f"{one.name}.short"], [one.name], name=one.name, to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def _in_int8(model: Any) -> Any:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(model)  # suppresses a warning about preparation, which this model does not need
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "short.onnx"
        kinds = ["MatMul", "LSTM", "Gather"]
        quantize_dynamic(model, path, kinds, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(path)
