"""Compare the outputs of an exported model with those of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from everstep.backends import reference
from everstep.backends.dispatch import taking
from everstep.errors import EverstepError
from everstep.networks.forms import Form, Named
from everstep.state import leaves
from everstep.tracing.trace import evaluating

STEPS = 200
TOLERANCE = 1e-5
_BATCHES = (1, 7)
_OTHERS = 11
"""The value of dynamic sizes other than batch and time."""
Run = Callable[[Mapping[str, Tensor], Sequence[Tensor]], tuple[Named, tuple[Tensor, ...]]]


class NotEqual(EverstepError):
    """The exported model computes something else than the run. The export is not kept."""


class Check(NamedTuple):
    """The result of a comparison.

    Attributes:
        batches: the numbers of rows in the compared batches.
        steps: the number of steps; 0: the form has neither time nor state.
        difference: the largest |a − b| / (1 + |a|) of outputs and states, where a is the run's value.
    """

    batches: tuple[int, ...]
    steps: int
    difference: float


def checked(name: str, form: Form, run: Run, steps: int | None = None, tolerance: float | None = None) -> Check:
    """Compare the outputs and states of a form with those of `run` for the same random inputs.

    The form's cells run as PyTorch's loop, the meaning of all backends, so that nothing is compiled for it. It compares
    batches of 1 and 7 rows. A step form runs for `steps` steps. A sequence form runs `steps` steps of random lengths
    twice, the second time from the final state, and then one step. A form without time and state runs twice.

    Args:
        name: the name of the file, for messages.
        form: the form, in PyTorch.
        run: the exported model.
        steps: the number of steps; None: STEPS.
        tolerance: the largest allowed |a − b| / (1 + |a|), where a is the form's value; None: TOLERANCE.

    Raises:
        NotEqual: a difference exceeds the tolerance; the message names the output or state.
    """
    steps = STEPS if steps is None else steps
    tolerance = TOLERANCE if tolerance is None else tolerance
    random = torch.Generator().manual_seed(1)
    timed = any("time" in one.dims for one in form.inputs.values())
    worst = 0.0
    with torch.no_grad(), evaluating(form.model), taking(reference.run):
        alone = not timed and not leaves(form.begun(form.sizes(batch=1), random))
        times = [(steps, 2), (1, 1)] if timed else [(1, 2 if alone else steps)]
        for batch in _BATCHES:
            for time, calls in times:
                worst = max(worst, _compared(name, form, run, batch, time, calls, random, tolerance))
    return Check(_BATCHES, 0 if alone else steps, worst)


def _compared(
    name: str, form: Form, run: Run, batch: int, time: int, calls: int, random: torch.Generator, tolerance: float
) -> float:
    sizes = form.sizes(_OTHERS, batch=batch, time=time)
    want = start = form.begun(sizes, random)
    got = tuple(leaf.contiguous() for _, leaf in leaves(want))
    pairs: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for call in range(calls):
        given = {key: one.drawn(sizes, random) for key, one in form.inputs.items()}
        # each call has other longest and shortest rows: length 0 also meets a state that is not the initial one
        given = {key: value.roll(call, 0) if form.inputs[key].upto else value for key, value in given.items()}
        outputs, want = form.run(given, want if leaves(start) else start)
        found, got = run(given, got if leaves(start) else ())
        both = [(key, outputs[key], found[key]) for key in outputs]
        both += [(f"new_state.{key}", a, b) for (key, a), b in zip(leaves(want), got, strict=True)]
        for key, a, b in both:
            ours, theirs = pairs.setdefault(key, ([], []))
            ours.append(a)
            theirs.append(b)
    worst = 0.0
    for key, (ours, theirs) in pairs.items():
        difference = _difference(ours, theirs)
        if not difference <= tolerance:
            raise NotEqual(
                f"{name}: {key} differs from the run's by {difference:.2g} in a batch of {batch} rows and "
                f"{time} steps; expected at most {tolerance:g}. No files are kept"
            )
        worst = max(worst, difference)
    return worst


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest |a − b| / (1 + |a|) of pairs of tensors; infinite if shapes or dtypes differ or one is NaN."""
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    a, b = torch.stack(list(ours)), torch.stack(list(theirs))
    if a.dtype == torch.bool or not a.numel():
        return 0.0 if bool((a == b).all()) else float("inf")
    wide, other = a.double(), b.double()
    apart = torch.where(wide == other, 0.0, (wide - other).abs() / (1 + wide.abs()))
    return float(apart.max()) if not apart.isnan().any() else float("inf")
