"""Compositions: one step over children instead of over time."""

from everstep.trees.child_sum import ChildSum as ChildSum
from everstep.trees.composition import Children as Children
from everstep.trees.composition import Composition as Composition
from everstep.trees.forest import Forest as Forest
from everstep.trees.recursive import MVRNN as MVRNN
from everstep.trees.recursive import RNTN as RNTN
from everstep.trees.recursive import TreeRNN as TreeRNN
from everstep.trees.tree_gru import ChildSumTreeGRU as ChildSumTreeGRU
from everstep.trees.tree_lstm import ChildSumTreeLSTM as ChildSumTreeLSTM
from everstep.trees.tree_lstm import NaryTreeLSTM as NaryTreeLSTM
