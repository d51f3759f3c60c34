"""The compiled loops of a program; backward is compiled when a call first needs gradients."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import torch

from everstep.native import build
from everstep.native.kernels import Kernels, kernels


class CompiledLoops:
    """The addresses of the loops of a program, and the kernels that they call.

    Args:
        dtype: the numbers of the program.
        name: the name of its cell, for the cache and for errors.
        forward, backward: the sources.
        training: whether to compile backward too, in parallel; else `differentiable` does.

    Raises:
        toolchain.BuildError: the compiler failed.
    """

    def __init__(self, dtype: torch.dtype, name: str, forward: str, backward: str, training: bool):
        self._name, self._source, self._backward = name, backward, 0
        with ThreadPoolExecutor() as pool:
            library = pool.submit(kernels, dtype)
            first = pool.submit(_compiled, forward, f"{name}-forward")
            if training:
                self.differentiable()
            self.kernels: Kernels = library.result()
            self.forward = first.result()

    def differentiable(self) -> None:
        """Compile backward, unless it is compiled.

        Raises:
            toolchain.BuildError: the compiler failed.
        """
        if not self._backward:
            self._backward = _compiled(self._source, f"{self._name}-backward")

    @property
    def backward(self) -> int:
        """The address of the backward loop."""
        self.differentiable()
        return self._backward


def address(library: ctypes.CDLL) -> int:
    """The address of a compiled loop."""
    return ctypes.cast(library.run, ctypes.c_void_p).value or 0


def _compiled(source: str, name: str) -> int:
    return address(build.load(source, name, ["run"]))
