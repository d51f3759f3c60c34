"""The catalogue of cells, one file a family."""

from everstep.cells.accumulator import Accumulator
from everstep.cells.gru import GRU, GRUBefore
from everstep.cells.lstm import LSTM
from everstep.cells.minimal import MinGRU
from everstep.cells.rnn import RNN

__all__ = ["GRU", "LSTM", "RNN", "Accumulator", "GRUBefore", "MinGRU"]
