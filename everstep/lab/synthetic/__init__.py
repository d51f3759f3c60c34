"""Small tasks: generated from a seed, at any lag, without end, and MNIST by pixels; and how a layer answers them."""

from everstep.lab.synthetic.adding import Adding
from everstep.lab.synthetic.balls import BouncingBalls
from everstep.lab.synthetic.chaos import Lorenz, MackeyGlass, lorenz, mackey_glass
from everstep.lab.synthetic.mnist import PixelImages, sequential_mnist
from everstep.lab.synthetic.narma import Narma, narma
from everstep.lab.synthetic.order import TemporalOrder
from everstep.lab.synthetic.predictor import Predictor, Score, measure, objective
from everstep.lab.synthetic.problem import Problem, Sequences, Stream
from everstep.lab.synthetic.recall import AssociativeRecall, CopyMemory, Echo

__all__ = [
    "Adding",
    "AssociativeRecall",
    "BouncingBalls",
    "CopyMemory",
    "Echo",
    "Lorenz",
    "MackeyGlass",
    "Narma",
    "PixelImages",
    "Predictor",
    "Problem",
    "Score",
    "Sequences",
    "Stream",
    "TemporalOrder",
    "lorenz",
    "mackey_glass",
    "measure",
    "narma",
    "objective",
    "sequential_mnist",
]
