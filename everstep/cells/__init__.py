"""The catalogue of cells, one file a family."""

from everstep.cells.accumulator import Accumulator
from everstep.cells.additive import ATR, CFN, RAN
from everstep.cells.antisymmetric import AntisymmetricRNN, GatedAntisymmetricRNN
from everstep.cells.batch_norm import BatchNormLSTM
from everstep.cells.bistable import BRC, NBRC
from everstep.cells.delayed import TauGRU
from everstep.cells.fast import FastGRNN, FastRNN
from everstep.cells.griffin import RGLRU
from everstep.cells.gru import GRU, GRUBefore
from everstep.cells.highway import RHN
from everstep.cells.independent import IndRNN
from everstep.cells.initialise import IRNN, init_bias, init_chrono, init_identity, init_orthogonal
from everstep.cells.intersection import IntersectionRNN
from everstep.cells.leaky import ClockworkRNN, LeakyRNN, time_scales
from everstep.cells.lstm import LSTM
from everstep.cells.lstm_variants import ActivationLSTM, CoupledLSTM, LaggedLSTM, NoForgetLSTM
from everstep.cells.memory_lstm import MCLSTM, WMCLSTM, PeepholeLSTM, ResLSTM
from everstep.cells.minimal import MinGRU, MinLSTM
from everstep.cells.miru import MiRU1, MiRU2
from everstep.cells.multiplicative import MultiplicativeLSTM
from everstep.cells.mut import MUT1, MUT2, MUT3
from everstep.cells.nas import NASCell
from everstep.cells.normalised import LayerNormGRU, LayerNormLSTM, LayerNormRNN
from everstep.cells.one_gate import JANET, MGU, SGRN, STAR, UGRNN, LightRU, LiGRU, MinimalRNN
from everstep.cells.oscillators import LEM, CoRNN, UnICORNN
from everstep.cells.projected import ProjectedLSTM
from everstep.cells.quasi import QRNN, SRU, AffineSRU
from everstep.cells.rnn import RNN
from everstep.cells.simple_gated_unit import DSGU, SGU
from everstep.cells.strongly_typed import TGRU, TLSTM, TRNN
from everstep.cells.structurally_constrained import SCRN
from everstep.cells.tree_cell import TreeCell, random_tree
from everstep.cells.xlstm import MLSTM, SLSTM

__all__ = [
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
]
