"""A form as an ONNX file that computes the same."""

from __future__ import annotations

from everstep.networks.forms import Form
from everstep.ship.checking import checked
from everstep.ship.onnx.onnx_file import written
from everstep.ship.onnx.session import Session


def equal(form: Form, steps: int = 5) -> list[str]:
    """The operations of the file, which computes what the form computes."""
    model = written(form)
    checked("file", form, Session("file", model.SerializeToString()).run, steps)
    names = [node.name for node in model.graph.node]
    assert len({*names, ""}) == len(names) + 1  # onnxruntime 1.20 names what it fuses by its nodes
    return [node.op_type for node in model.graph.node]
