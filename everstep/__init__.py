"""everstep: write one step `f(x_t, h_{t-1})`; run it over the sequence, learn it, decode from it, ship it.

Names are resolved on first use, so that importing the package costs nothing until one of them is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "everstep.cell": ["Affine", "Cell", "Layer"],
    "everstep.equation": ["gated"],
    "everstep.scanning": ["explain", "scan"],
    "everstep.cells": ["GRU", "LSTM", "RNN", "Accumulator", "GRUBefore", "MinGRU"],
    "everstep.wirings": [
        "Bidirectional",
        "Dropout",
        "EncoderStack",
        "Identity",
        "Residual",
        "Stack",
        "VariationalDropout",
        "Zoneout",
        "from_torch",
        "to_torch",
    ],
    "everstep.heads": ["Categorical"],
    "everstep.learn": ["fit"],
    "everstep.decode": ["sample"],
    "everstep.tasks.run": ["load", "train"],
    "everstep.errors": ["EverstepError"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from everstep.cell import Affine, Cell, Layer
    from everstep.cells import GRU, LSTM, RNN, Accumulator, GRUBefore, MinGRU
    from everstep.decode import sample
    from everstep.equation import gated
    from everstep.errors import EverstepError
    from everstep.heads import Categorical
    from everstep.learn import fit
    from everstep.scanning import explain, scan
    from everstep.tasks.run import load, train
    from everstep.wirings import (
        Bidirectional,
        Dropout,
        EncoderStack,
        Identity,
        Residual,
        Stack,
        VariationalDropout,
        Zoneout,
        from_torch,
        to_torch,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'everstep' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
