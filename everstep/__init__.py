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
    "everstep.scanning.fused.stream": ["Stream"],
    "everstep.scanning": ["explain", "scan"],
    "everstep.cells": [
        "ATR",
        "BRC",
        "CFN",
        "DSGU",
        "GRU",
        "IRNN",
        "JANET",
        "LEM",
        "LSTM",
        "MCLSTM",
        "MGU",
        "MLSTM",
        "MUT1",
        "MUT2",
        "MUT3",
        "NBRC",
        "QRNN",
        "RAN",
        "RGLRU",
        "RHN",
        "RNN",
        "SCRN",
        "SGRN",
        "SGU",
        "SLSTM",
        "SRU",
        "STAR",
        "TGRU",
        "TLSTM",
        "TRNN",
        "UGRNN",
        "WMCLSTM",
        "Accumulator",
        "ActivationLSTM",
        "AffineSRU",
        "AntisymmetricRNN",
        "BatchNormLSTM",
        "ClockworkRNN",
        "CoRNN",
        "CoupledLSTM",
        "FastGRNN",
        "FastRNN",
        "GRUBefore",
        "GatedAntisymmetricRNN",
        "IndRNN",
        "IntersectionRNN",
        "LaggedLSTM",
        "LayerNormGRU",
        "LayerNormLSTM",
        "LayerNormRNN",
        "LeakyRNN",
        "LiGRU",
        "LightRU",
        "MiRU1",
        "MiRU2",
        "MinGRU",
        "MinLSTM",
        "MinimalRNN",
        "MultiplicativeLSTM",
        "NASCell",
        "NoForgetLSTM",
        "PeepholeLSTM",
        "ProjectedLSTM",
        "ResLSTM",
        "TauGRU",
        "TreeCell",
        "UnICORNN",
        "init_bias",
        "init_chrono",
        "init_identity",
        "init_orthogonal",
        "random_tree",
        "time_scales",
    ],
    "everstep.wirings": [
        "Bidirectional",
        "Dropout",
        "EncoderStack",
        "Identity",
        "RecurrentDropout",
        "Residual",
        "Stack",
        "TimeSkip",
        "VariationalDropout",
        "WeightDrop",
        "Window",
        "Zoneout",
        "accelerate",
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
    from everstep.cells import (
        ATR,
        BRC,
        CFN,
        DSGU,
        GRU,
        IRNN,
        JANET,
        LEM,
        LSTM,
        MCLSTM,
        MGU,
        MLSTM,
        MUT1,
        MUT2,
        MUT3,
        NBRC,
        QRNN,
        RAN,
        RGLRU,
        RHN,
        RNN,
        SCRN,
        SGRN,
        SGU,
        SLSTM,
        SRU,
        STAR,
        TGRU,
        TLSTM,
        TRNN,
        UGRNN,
        WMCLSTM,
        Accumulator,
        ActivationLSTM,
        AffineSRU,
        AntisymmetricRNN,
        BatchNormLSTM,
        ClockworkRNN,
        CoRNN,
        CoupledLSTM,
        FastGRNN,
        FastRNN,
        GatedAntisymmetricRNN,
        GRUBefore,
        IndRNN,
        IntersectionRNN,
        LaggedLSTM,
        LayerNormGRU,
        LayerNormLSTM,
        LayerNormRNN,
        LeakyRNN,
        LightRU,
        LiGRU,
        MinGRU,
        MinimalRNN,
        MinLSTM,
        MiRU1,
        MiRU2,
        MultiplicativeLSTM,
        NASCell,
        NoForgetLSTM,
        PeepholeLSTM,
        ProjectedLSTM,
        ResLSTM,
        TauGRU,
        TreeCell,
        UnICORNN,
        init_bias,
        init_chrono,
        init_identity,
        init_orthogonal,
        random_tree,
        time_scales,
    )
    from everstep.decode import sample
    from everstep.equation import gated
    from everstep.errors import EverstepError
    from everstep.heads import Categorical
    from everstep.learn import fit
    from everstep.scanning import explain, scan
    from everstep.scanning.fused.stream import Stream
    from everstep.tasks.run import load, train
    from everstep.wirings import (
        Bidirectional,
        Dropout,
        EncoderStack,
        Identity,
        RecurrentDropout,
        Residual,
        Stack,
        TimeSkip,
        VariationalDropout,
        WeightDrop,
        Window,
        Zoneout,
        from_torch,
        to_torch,
    )
    from everstep.wirings.accelerate import accelerate


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'everstep' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
