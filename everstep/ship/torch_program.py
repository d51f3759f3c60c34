"""Steps as programs of `torch.export`, for PyTorch without everstep."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everstep.networks.forms import Form, Named
from everstep.ship import export_folder as folder
from everstep.ship.checking import checked
from everstep.ship.sizes import NotExported
from everstep.state import leaves, unflatten
from everstep.tracing.trace import evaluating, is_free

NO_SEQUENCE = "the exporter of PyTorch fixes the number of steps; export the step, or --to onnx"
_ROWS = 3  # of the example; 1 would fix the size of the batch


class _Step(nn.Module):
    """A form as a module: (inputs by name, leaves of the state) to (outputs by name, leaves of the new state)."""

    def __init__(self, form: Form):
        super().__init__()
        self.model = form.model
        self._run, self._like = form.run, form.initial(1)

    def forward(self, given: Named, state: tuple[Tensor, ...]) -> tuple[Named, tuple[Tensor, ...]]:
        outputs, new = self._run(given, unflatten(self._like, state))
        return outputs, tuple(leaf for _, leaf in leaves(new))


class TorchProgram:
    """A file of `torch.export`, opened.

    Args:
        data: the content of the file.
    """

    def __init__(self, data: bytes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = torch.export.load(io.BytesIO(data)).module()

    def run(self, given: Mapping[str, Tensor], state: Sequence[Tensor]) -> tuple[Named, tuple[Tensor, ...]]:
        """One step."""
        outputs, new = self._module(dict(given), tuple(state))
        return outputs, new


def written(form: Form) -> bytes:
    """The file of a step form; the number of rows is dynamic.

    Raises:
        NotExported: `torch.export` cannot follow the step, or its state has dynamic sizes beside the batch.
    """
    start = form.initial(_ROWS)
    if any(is_free(leaf) for _, leaf in leaves(start)):
        raise NotExported("its state has dynamic sizes, such as the memory of attention, beside the batch")
    state = tuple(leaf for _, leaf in leaves(start))
    random = torch.Generator().manual_seed(0)
    given = {name: one.drawn({"batch": _ROWS}, random) for name, one in form.inputs.items()}
    rows = torch.export.Dim("batch", min=1)
    sizes = ({name: {0: rows} for name in given}, tuple({0: rows} for _ in state))
    file = io.BytesIO()
    with evaluating(form.model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(_Step(form), (given, state), dynamic_shapes=sizes)
            torch.export.save(program, file)
        except Exception as error:  # of any kind: the exporter documents none
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise NotExported(f"torch.export cannot follow the step: {reason}") from error
    return file.getvalue()


def saved(aside: Path, name: str, form: Form) -> dict[str, Any]:
    """Write `NAME.pt2` into the folder `aside` after comparing the program, opened again, with the form.

    Returns:
        The entry of the card.

    Raises:
        NotExported: the form cannot be written.
        NotEqual: the program computes something else.
    """
    data = written(form)
    file = f"{name}.pt2"
    program = TorchProgram(data)
    check = checked(file, form, program.run)
    folder.write(aside, file, data)
    with torch.no_grad():
        random = torch.Generator().manual_seed(0)
        given = {key: one.drawn({"batch": 1}, random) for key, one in form.inputs.items()}
        outputs, _ = form.run(given, form.initial(1))
    return {
        "file": file,
        "inputs": {key: _described(value) for key, value in given.items()},
        "outputs": {key: _described(value) for key, value in outputs.items()},
        "check": check._asdict(),
    }


def _described(value: Tensor) -> dict[str, Any]:
    return {"shape": ["batch", *value.shape[1:]], "dtype": str(value.dtype).removeprefix("torch.")}
