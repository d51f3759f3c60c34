"""Whether what was written down computes what the run computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from everstep.errors import EverstepError
from everstep.networks.forms import Form, Named
from everstep.state import leaves
from everstep.tracing.trace import evaluating

STEPS = 200
TOLERANCE = 1e-5
_BATCHES = (1, 7)
_OTHERS = 11
"""What other sizes than batch and time are."""
Run = Callable[[Mapping[str, Tensor], Sequence[Tensor]], tuple[Named, tuple[Tensor, ...]]]


class NotEqual(EverstepError):
    """What was written down computes something else; it is not kept."""


class Check(NamedTuple):
    """What was compared.

    Attributes:
        batches, steps: of how many rows and steps.
        difference: the largest, of outputs and states, |a − b| / (1 + |b|).
    """

    batches: tuple[int, ...]
    steps: int
    difference: float


def checked(name: str, form: Form, run: Run, steps: int | None = None, tolerance: float | None = None) -> Check:
    """Compare a form with what `run` computes of the same numbers: outputs and states, over `steps` (STEPS) in 1 and 7
    rows, of any lengths, and again from the state where that ends.

    Raises:
        NotEqual: they differ by more than `tolerance`, or TOLERANCE; says where.
    """
    steps = STEPS if steps is None else steps
    tolerance = TOLERANCE if tolerance is None else tolerance
    random = torch.Generator().manual_seed(1)
    stepped = all("time" not in one.dims for one in form.inputs.values())
    worst = 0.0
    with torch.no_grad(), evaluating(form.model):
        for batch in _BATCHES:
            for time, calls in [(1, steps)] if stepped else [(steps, 2), (1, 1)]:
                worst = max(worst, _compared(name, form, run, batch, time, calls, random, tolerance))
    return Check(_BATCHES, steps, worst)


def _compared(
    name: str, form: Form, run: Run, batch: int, time: int, calls: int, random: torch.Generator, tolerance: float
) -> float:
    sizes = dict.fromkeys((d for one in form.inputs.values() for d in one.dims if isinstance(d, str)), _OTHERS)
    sizes |= {"batch": batch, "time": time}
    want = form.initial(batch)
    got = tuple(leaf.contiguous() for _, leaf in leaves(want))
    worst = 0.0
    for _ in range(calls):
        given = {key: one.drawn(sizes, random) for key, one in form.inputs.items()}
        outputs, want = form.run(given, want)
        found, got = run(given, got)
        pairs = [(key, outputs[key], found[key]) for key in outputs]
        pairs += [(f"new_state.{key}", a, b) for (key, a), b in zip(leaves(want), got, strict=True)]
        for key, a, b in pairs:
            difference = _difference(a, b)
            if not difference <= tolerance:
                raise NotEqual(
                    f"{name}: {key} differs from the run's by {difference:.2g} in a batch of {batch} rows and "
                    f"{time} steps; expected at most {tolerance:g}. Nothing is kept"
                )
            worst = max(worst, difference)
    return worst


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, |a − b| / (1 + |a|); infinite where shapes or dtypes differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype == torch.bool or not a.numel():
        return 0.0 if bool((a == b).all()) else float("inf")
    wide, other = a.double(), b.double()
    apart = torch.where(wide == other, 0.0, (wide - other).abs() / (1 + wide.abs()))
    return float(apart.max()) if not apart.isnan().any() else float("inf")
