"""Learning: `fit` and what it is made of."""

from everstep.learn.averaging import Averaging as Averaging
from everstep.learn.checkpoint import Checkpoint as Checkpoint
from everstep.learn.checkpoint import Store as Store
from everstep.learn.fit import fit as fit
from everstep.learn.lock import RunLock as RunLock
from everstep.learn.metrics import read_metrics as read_metrics
from everstep.learn.objective import Loss as Loss
from everstep.learn.objective import Objective as Objective
from everstep.learn.rules import Rule as Rule
from everstep.learn.rules import clip_by_global_norm as clip_by_global_norm
from everstep.learn.run import FitResult as FitResult
from everstep.learn.settings import FitSettings as FitSettings
from everstep.learn.weights import load_weights as load_weights
