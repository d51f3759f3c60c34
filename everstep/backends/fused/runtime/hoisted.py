"""Values computed before the loop of a call, and recomputed if backward needs them again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.backends.fused.runtime.program import Program


class Hoisted:
    """The state-independent values of a call.

    Args:
        given: the cell's parameters and buffers.
        parts: the leaves of x, (steps, …), or unchanged if the program accepts them directly.
        steps: number of valid steps.
    """

    __slots__ = ("_given", "_mixed", "_parts", "_program", "_steps", "_versions")

    def __init__(self, program: Program, given: Sequence[Tensor], parts: Sequence[Tensor], steps: int):
        self._program, self._given, self._parts, self._steps = program, given, parts, steps

    def __call__(self) -> list[Tensor]:
        """The loop's inputs, contiguous, and its constants."""
        program = self._program
        values = program.outside(self._given, self._parts, self._steps)
        values = [v if v.dtype == program.dtype else v.to(program.dtype) for v in values]
        for k in range(len(program.step.inputs)):
            values[k] = values[k].contiguous()
        return values

    def watch(self) -> None:
        """Record autocast and tensor versions, so that `again` reproduces the values or raises."""
        mixed = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu")
        self._mixed = torch.get_autocast_dtype("cpu") if mixed else None
        self._versions = _versions([*self._given, *self._parts])

    def again(self) -> list[Tensor]:
        """Recompute the values for backward.

        Raises:
            RuntimeError: a tensor that they depend on was changed in place.
        """
        every = [*self._given, *self._parts]
        versions = _versions(every)
        for k in self._program.outside.reads:
            tensor, now, then = every[k], versions[k], self._versions[k]
            if now != then:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{tensor.type()} {list(tensor.shape)}] is at version {now}; expected version {then} instead. "
                    "Of this input or parameter something is computed once more for a second derivative, or for a "
                    "second backward over a retained graph."
                )
        with torch.autocast("cpu", self._mixed, enabled=self._mixed is not None):
            return self()


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """The version counter of each tensor; 0 for tensors of inference mode."""
    try:
        return [t._version for t in tensors]
    except RuntimeError:
        return [0 if t.is_inference() else t._version for t in tensors]
