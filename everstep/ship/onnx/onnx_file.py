"""Write a form as an ONNX file, and compare it with the run before keeping it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everstep.networks.forms import Form
from everstep.ship import export_folder as folder
from everstep.ship.checking import checked
from everstep.ship.onnx.graph import OPSET, Graph, info, model_of
from everstep.ship.onnx.indexing import INDEXING
from everstep.ship.onnx.node_writer import Writer
from everstep.ship.onnx.pointwise_nodes import POINTWISE
from everstep.ship.onnx.recurrent import recurrence
from everstep.ship.onnx.session import Session
from everstep.ship.onnx.tensors import TENSORS
from everstep.ship.recording import Recorded, record
from everstep.ship.sizes import Size

_HANDLERS = {**POINTWISE, **TENSORS, **INDEXING, "recurrence": recurrence}


def written(form: Form, told: dict[str, str] | None = None) -> Any:
    """The form as an `onnx.ModelProto` with the metadata `told`.

    Inputs and outputs have the names of the form. A leaf of the state is the input `state.NAME` and the output
    `new_state.NAME`; a lone leaf is `state` and `new_state`. A leaf that stays as it is has no output.

    Raises:
        NotExported: an operation has no counterpart; the message gives the reason.
    """
    recorded = record(form, list(_HANDLERS))
    graph = Graph()
    kept = {name: node for name, node in zip(recorded.outputs, recorded.ends, strict=True) if not _same(recorded, name)}
    outs = [graph.fresh(name) for name in kept]
    writer = Writer(graph, recorded, _HANDLERS)
    inputs = []
    for name, node in recorded.inputs.items():
        writer.values[node] = graph.fresh(name)
        shape = recorded.shape(node)
        inputs.append(info(name, writer.dtype(node), list(map(_told, shape))))
        for place, size in enumerate(shape):
            if isinstance(size, Size) and str(size) not in graph.sizes:
                graph.sizes[str(size)] = graph.add("Shape", name, start=place, end=place + 1, wish=f"size.{size}")
    writer.write()
    outputs = []
    for name, node in zip(outs, kept.values(), strict=True):
        graph.give(name, writer.name(node))
        outputs.append(info(name, writer.dtype(node), list(map(_told, recorded.shape(node)))))
    return model_of(graph.finished("everstep", inputs, outputs), told or {})


def _same(recorded: Recorded, name: str) -> bool:
    """Whether a leaf of the new state is that of the state before."""
    end = recorded.ends[recorded.outputs.index(name)]
    return name.startswith("new_") and end is recorded.inputs.get(name.removeprefix("new_"))


def _told(size: int | Size) -> int | str:
    return str(size) if isinstance(size, Size) else size


def saved(aside: Path, name: str, form: Form) -> dict[str, Any]:
    """Write `NAME.onnx` into the folder `aside` after comparing it, in onnxruntime, with the form.

    Returns:
        The entry of the card.

    Raises:
        NotExported: the form cannot be written as ONNX.
        RunError: onnxruntime cannot run the file.
        NotEqual: the file computes something else.
    """
    data: bytes = written(form).SerializeToString()
    file = f"{name}.onnx"
    session = Session(file, data)
    check = checked(file, form, session.run)
    folder.write(aside, file, data)
    return {
        "file": file,
        "opset": OPSET,
        "inputs": session.described("inputs"),
        "outputs": session.described("outputs"),
        "check": check._asdict(),
    }
