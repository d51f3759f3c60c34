"""The public names, each once. `__init__.py` reads this file, and imports a name when it is used."""

from everstep.cell import Affine as Affine
from everstep.cell import Cell as Cell
from everstep.cell import Layer as Layer
from everstep.cell import scan as scan
from everstep.cells import *
from everstep.data.batches import Movable as Movable
from everstep.decode import BeamSection as BeamSection
from everstep.decode import Decoder as Decoder
from everstep.decode import Phrases as Phrases
from everstep.decode import beam_search as beam_search
from everstep.decode import ensemble as ensemble
from everstep.decode import exact_search as exact_search
from everstep.decode import sample as sample
from everstep.equation import Gated as Gated
from everstep.equation import gated as gated
from everstep.errors import EverstepError as EverstepError
from everstep.explanation import explain as explain
from everstep.heads import *
from everstep.learn import EchoState as EchoState
from everstep.learn import RecursiveLeastSquares as RecursiveLeastSquares
from everstep.learn import Ridge as Ridge
from everstep.learn import fit as fit
from everstep.learn.objective import Loss as Loss
from everstep.learn.omega import omega as omega
from everstep.learn.settings import FitSettings as FitSettings
from everstep.memory import *
from everstep.networks.layers import LayersSection as LayersSection
from everstep.networks.layers import stack_of as stack_of
from everstep.runs.recipe import Recipe as Recipe
from everstep.runs.task import Prediction as Prediction
from everstep.runs.task import Task as Task
from everstep.runs.training import resume as resume
from everstep.runs.training import train as train
from everstep.sections import Section as Section
from everstep.ship.loaded import load as load
from everstep.stream import Stream as Stream
from everstep.trees import *
from everstep.wirings import *

__version__: str
__all__: list[str]
