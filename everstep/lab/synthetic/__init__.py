"""Generated tasks at any lag, MNIST by pixels, and a predictor for them."""

from everstep.lab.synthetic.adding import Adding
from everstep.lab.synthetic.balls import BouncingBalls
from everstep.lab.synthetic.chaos import Lorenz, MackeyGlass, lorenz, mackey_glass
from everstep.lab.synthetic.copying import Copying
from everstep.lab.synthetic.mnist import PixelImages, sequential_mnist
from everstep.lab.synthetic.narma import Narma, narma
from everstep.lab.synthetic.order import TemporalOrder
from everstep.lab.synthetic.predictor import HeldOutScore, Predictor, measure, objective
from everstep.lab.synthetic.problem import Problem, ProblemStream, Sequences
from everstep.lab.synthetic.recall import AssociativeRecall, CopyMemory, Echo

__all__ = [
    "Adding",
    "AssociativeRecall",
    "BouncingBalls",
    "CopyMemory",
    "Copying",
    "Echo",
    "HeldOutScore",
    "Lorenz",
    "MackeyGlass",
    "Narma",
    "PixelImages",
    "Predictor",
    "Problem",
    "ProblemStream",
    "Sequences",
    "TemporalOrder",
    "lorenz",
    "mackey_glass",
    "measure",
    "narma",
    "objective",
    "sequential_mnist",
]
