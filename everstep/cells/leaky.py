"""Units of many time scales: leaky units and the clockwork network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell, check_size
from everstep.equation import Gated
from everstep.parameters import uniform_by_width
from everstep.state import State


class LeakyRNN(Gated, gates="a"):
    """Leaky units (Jaeger 2007): h_t = α ∘ h_{t-1} + (1 − α) ∘ φ(W_xa x_t + b_xa + W_ha h_{t-1} + b_ha).

    α is the fraction of its state that a unit keeps: one for all, one per unit, or learned; φ = `activation`. A unit
    forgets with the time constant −1 / log α; `time_scales` spreads them (multiple time scales: Mozer 1992).

    >>> cell = LeakyRNN(3, 8, alpha=time_scales(8, 1, 100))
    >>> ys, h = cell(torch.zeros(2, 7, 3))
    >>> learned = LeakyRNN(3, 8, alpha=0.9, learned=True)

    Args:
        input_size, hidden_size: features D of x_t and H of h_t.
        alpha: a number in [0, 1], or H of them.
        learned: α is a parameter for each unit, σ(`alpha_logit`), which starts at `alpha`; it must lie in (0, 1) then.
        **options: activation, and those of `RNN`: bias, device, dtype.

    Known limit: no vendor kernel computes it.

    Raises:
        ValueError: `alpha` outside of its range, or neither one number nor H.
    """

    alpha: Tensor
    alpha_logit: Tensor

    @staticmethod
    def equation(x, h, s, *, activation=torch.tanh):
        """What a unit of no leak would be."""
        return activation(x.a + h.a)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        alpha: float | Sequence[float] | Tensor = 0.9,
        learned: bool = False,
        **options: Any,
    ):
        super().__init__(input_size, hidden_size, **options)
        assert self.weight_hh is not None
        shares = torch.as_tensor(alpha, dtype=torch.float64, device=torch.device("cpu")).detach()
        inside = (shares > 0) & (shares < 1) if learned else (shares >= 0) & (shares <= 1)
        if shares.shape not in ((), (hidden_size,)) or not inside.all():
            span = "(0, 1)" if learned else "[0, 1]"
            raise ValueError(f"LeakyRNN: alpha should be one number in {span}, or {hidden_size} of them, not {alpha}")
        self.learned = learned
        if learned:
            start = torch.logit(shares).expand(hidden_size)
            self.alpha_logit = nn.Parameter(start.to(self.weight_hh, copy=True))
        else:
            self.register_buffer("alpha", shares.to(self.weight_hh, copy=True))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """α of the old state and 1 − α of the simple network's."""
        fresh, _ = self.evaluate(x, state, self.options)
        alpha = torch.sigmoid(self.alpha_logit) if self.learned else self.alpha
        h = alpha * state + (1 - alpha) * fresh
        return h, h

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, learned={self.learned}"


def time_scales(size: int, shortest: float, longest: float) -> Tensor:
    """α = exp(−1/τ) for `size` time constants τ spread evenly in their logarithm from `shortest` to `longest`.

    >>> time_scales(3, 1, 100)
    tensor([0.3679, 0.9048, 0.9900])

    Raises:
        ValueError: not 0 < shortest ≤ longest.
    """
    if not 0 < shortest <= longest:
        raise ValueError(f"time_scales: expected 0 < shortest ≤ longest, but they are {shortest} and {longest}")
    tau = torch.logspace(math.log10(shortest), math.log10(longest), size, dtype=torch.float64)
    return torch.exp(-1 / tau).float()


class ClockworkState(NamedTuple):
    """h (batch, H), and the clock t (batch,): the number of the next step, modulo the common period."""

    h: Tensor
    t: Tensor


class ClockworkRNN(Cell):
    """Clockwork network (Koutník 2014): modules of units, each of which is updated at its own period.

    At step t = 0, 1, … the modules k whose period divides t compute
    h_k = tanh(W_k x_t + Σ_{j: T_j ≥ T_k} U_kj h_j,t-1 + b_k), and the others keep their state; T_k: the period of
    module k. Slow modules feed fast ones, so that U is block upper triangular with the periods in rising order.

    >>> cell = ClockworkRNN(3, 8, periods=(1, 2, 4, 8))
    >>> ys, (h, t) = cell(torch.zeros(2, 7, 3))
    >>> t.detach()
    tensor([7., 7.])

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t; the modules share them evenly.
        periods: an increasing sequence of whole numbers, one per module.
        bias: whether to add b.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (H, D); `weight_hh` (H, H), whose blocks below the diagonal are not used; `bias` (H,);
    initially uniform in ±1/√H. The paper does not say where its clock starts; here every module runs at the first step.

    Known limit: modules that are not updated are computed anyway and discarded. In bfloat16 the common period has to
    stay below 256. `Zoneout` around it should name its leaf, {"h": p}: the clock must not be zoned out.

    Raises:
        ValueError: periods that do not increase, or whose number does not divide H.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        periods: Sequence[int] = (1, 2, 4, 8),
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        self.hidden_size, self.periods = hidden_size, tuple(check_size(self, "a period", p) for p in periods)
        if not self.periods or list(self.periods) != sorted(set(self.periods)) or hidden_size % len(self.periods):
            raise ValueError(
                f"ClockworkRNN: periods should rise, and their number divide hidden_size={hidden_size}, "
                f"but are {self.periods}"
            )
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if bias else None
        ticks = torch.tensor(self.periods).repeat_interleave(hidden_size // len(self.periods)).to(self.weight_hh)
        self.register_buffer("ticks", ticks, persistent=False)
        self.register_buffer("mask", (ticks >= ticks[:, None]).to(ticks), persistent=False)
        self.reset_parameters()

    gates = ("n",)
    ticks: Tensor
    mask: Tensor

    def reset_parameters(self) -> None:
        """Every parameter uniform in ±1/√H."""
        uniform_by_width(self.parameters(), self.hidden_size)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros, and the clock at 0."""
        return ClockworkState(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch))

    def step(self, x: Tensor, state: ClockworkState) -> tuple[Tensor, ClockworkState]:
        """Update the modules that are due, and advance the clock."""
        h, t = state
        fresh = torch.tanh(F.linear(x, self.weight_ih, self.bias) + F.linear(h, self.weight_hh * self.mask))
        turns = torch.round(t)[:, None] / self.ticks
        h = torch.where(turns == torch.floor(turns), fresh, h)
        return h, ClockworkState(h, torch.remainder(t + 1, math.lcm(*self.periods)))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, periods={self.periods}"
