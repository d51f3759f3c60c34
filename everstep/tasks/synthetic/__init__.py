"""Small tasks: generated from a seed, at any lag, without end, and MNIST by pixels; and how a layer answers them."""

from everstep.tasks.synthetic.adding import Adding
from everstep.tasks.synthetic.balls import BouncingBalls
from everstep.tasks.synthetic.chaos import Lorenz, MackeyGlass, lorenz, mackey_glass
from everstep.tasks.synthetic.mnist import PixelImages, sequential_mnist
from everstep.tasks.synthetic.narma import Narma, narma
from everstep.tasks.synthetic.order import TemporalOrder
from everstep.tasks.synthetic.predictor import Predictor, Score, measure, objective
from everstep.tasks.synthetic.problem import Problem, Sequences, Stream
from everstep.tasks.synthetic.recall import AssociativeRecall, CopyMemory, Echo

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
