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
        "DTRNN",
        "Bidirectional",
        "Checkpointed",
        "Conditioned",
        "DeepTransition",
        "Delay",
        "Dropout",
        "EmbeddingDropout",
        "EncoderStack",
        "FeedForward",
        "Feedback",
        "Identity",
        "Online",
        "Parallel",
        "ReadOut",
        "RecurrentDropout",
        "Reservoir",
        "Residual",
        "SkipStack",
        "Stack",
        "StateDropout",
        "TimeAveraged",
        "TimeDistributed",
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
    "everstep.learn": ["EchoState", "RecursiveLeastSquares", "Ridge", "fit"],
    "everstep.learn.omega": ["omega"],
    "everstep.decode": ["sample"],
    "everstep.runs.recipe": ["Recipe"],
    "everstep.runs.task": ["Prediction", "Task"],
    "everstep.runs.training": ["load", "resume", "train"],
    "everstep.learn.objective": ["Loss"],
    "everstep.learn.settings": ["FitSettings"],
    "everstep.sections": ["Section"],
    "everstep.data.batches": ["Movable"],
    "everstep.networks.layers": ["LayersSection", "stack_of"],
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
    from everstep.data.batches import Movable
    from everstep.decode import sample
    from everstep.equation import gated
    from everstep.errors import EverstepError
    from everstep.heads import Categorical
    from everstep.learn import EchoState, RecursiveLeastSquares, Ridge
    from everstep.learn.fit import fit
    from everstep.learn.objective import Loss
    from everstep.learn.omega import omega
    from everstep.learn.settings import FitSettings
    from everstep.networks.layers import LayersSection, stack_of
    from everstep.runs.recipe import Recipe
    from everstep.runs.task import Prediction, Task
    from everstep.runs.training import load, resume, train
    from everstep.scanning import explain, scan
    from everstep.scanning.fused.stream import Stream
    from everstep.sections import Section
    from everstep.wirings import (
        DTRNN,
        Bidirectional,
        Checkpointed,
        Conditioned,
        DeepTransition,
        Delay,
        Dropout,
        EmbeddingDropout,
        EncoderStack,
        Feedback,
        FeedForward,
        Identity,
        Online,
        Parallel,
        ReadOut,
        RecurrentDropout,
        Reservoir,
        Residual,
        SkipStack,
        Stack,
        StateDropout,
        TimeAveraged,
        TimeDistributed,
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
    if name == "scanning":  # cells need it and it needs them; to import it where they are called would take its time
        return import_module("everstep.scanning")
    if name not in _HOME:
        raise AttributeError(f"module 'everstep' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
