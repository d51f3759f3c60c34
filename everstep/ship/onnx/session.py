"""Run ONNX files in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from everstep.errors import ConfigError, RunError
from everstep.networks.forms import Named

REMEDY = "pip install 'everstep[onnx]'"


def needed() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime.

    Raises:
        ConfigError: one is missing.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}: {REMEDY}") from None
    return onnx, onnxruntime


class Session:
    """One ONNX file in an onnxruntime session on the CPU.

    Args:
        name: the name of the file, for messages.
        data: the content of the file.

    Raises:
        ConfigError: onnx or onnxruntime is missing.
        RunError: onnxruntime refuses the file.
    """

    def __init__(self, name: str, data: bytes):
        _, runtime = needed()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # failures raise exceptions
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no public base class
            raise RunError(f"onnxruntime {runtime.__version__} refuses {name}: {error}") from None
        self.inputs = [one.name for one in self._session.get_inputs()]
        self.outputs = [one.name for one in self._session.get_outputs()]
        self._name = name

    def described(self, which: Literal["inputs", "outputs"]) -> dict[str, Any]:
        """The dtype and the shape of each input or output, by name."""
        found = self._session.get_inputs() if which == "inputs" else self._session.get_outputs()
        names = {"tensor(float)": "float32", "tensor(double)": "float64"}
        types = {one.name: names.get(one.type, one.type.removeprefix("tensor(").rstrip(")")) for one in found}
        return {one.name: {"dtype": types[one.name], "shape": one.shape} for one in found}

    def run(self, given: Mapping[str, Tensor], state: Sequence[Tensor]) -> tuple[Named, tuple[Tensor, ...]]:
        """Run inputs by name and the leaves of the state to outputs by name and the new leaves.

        A leaf without an output stays the same tensor.

        Raises:
            RunError: onnxruntime fails.
        """
        names = [name for name in self.inputs if not _of_state(name, "state")]
        starts = [name for name in self.inputs if _of_state(name, "state")]
        feed = {name: given[name].detach().numpy() for name in names}
        feed |= {name: leaf.detach().contiguous().numpy() for name, leaf in zip(starts, state, strict=True)}
        try:
            values = self._session.run(None, feed)
        except Exception as error:
            raise RunError(f"onnxruntime cannot run {self._name}: {error}") from None
        found = {name: torch.from_numpy(value) for name, value in zip(self.outputs, values, strict=True)}
        if starts:
            new = tuple(found.get(f"new_{name}", leaf) for name, leaf in zip(starts, state, strict=True))
        else:
            new = tuple(value for name, value in found.items() if _of_state(name, "new_state"))
        return {name: value for name, value in found.items() if not _of_state(name, "new_state")}, new


def _of_state(name: str, kind: str) -> bool:
    return name == kind or name.startswith(f"{kind}.")
