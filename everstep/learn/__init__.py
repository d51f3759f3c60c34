"""Training: `fit` and its parts."""

from everstep.learn.averaging import Averaging as Averaging
from everstep.learn.bookkeeping import FitResult as FitResult
from everstep.learn.bptt import checkpointed as checkpointed
from everstep.learn.checkpoint import Checkpoint as Checkpoint
from everstep.learn.checkpoint import Store as Store
from everstep.learn.fit import fit as fit
from everstep.learn.linear.echo_state import EchoState as EchoState
from everstep.learn.linear.recursive_least_squares import RecursiveLeastSquares as RecursiveLeastSquares
from everstep.learn.linear.ridge import Ridge as Ridge
from everstep.learn.metrics import read_metrics as read_metrics
from everstep.learn.objective import Loss as Loss
from everstep.learn.objective import Objective as Objective
from everstep.learn.regularisers import activation_penalty as activation_penalty
from everstep.learn.regularisers import change_penalty as change_penalty
from everstep.learn.regularisers import l2 as l2
from everstep.learn.rules import Rule as Rule
from everstep.learn.rules import clip_by_global_norm as clip_by_global_norm
from everstep.learn.rules import clip_by_value as clip_by_value
from everstep.learn.rules import gradient_noise as gradient_noise
from everstep.learn.rules import scale_to_fixed_norm as scale_to_fixed_norm
from everstep.learn.settings import FitSettings as FitSettings
from everstep.learn.weights import load_weights as load_weights
from everstep.storage.run_lock import RunLock as RunLock
