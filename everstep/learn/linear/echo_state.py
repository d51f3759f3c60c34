"""Echo state networks: a fixed recurrent layer with a linear read-out learned in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from everstep import hooks
from everstep.cell import Cell, check_size, scan
from everstep.learn.linear.echo_state_search import Found, search
from everstep.learn.linear.recursive_least_squares import OnlineFit, RecursiveLeastSquares
from everstep.learn.linear.ridge import Ridge, check_finite, numbers
from everstep.state import State
from everstep.wirings.reservoir import Reservoir
from everstep.wirings.stack import zero_padding

CHUNK = 1000
"""Steps whose features are held in memory at once while fitting or generating."""


class EchoState(Cell):
    """y_t = W_out h_t + b_out over a fixed cell; W_out and b_out by ridge regression (Jaeger 2001).

    The cell is usually a `Reservoir`, several of them in depth (`SkipStack`; Gallicchio & Micheli 2017) or side by side
    (`Parallel`), or `Parallel(reservoir, Identity(D))`, whose read-out also sees the input. With `feedback` the cell's
    inputs are [x_t; y_{t-1}], where y is the target while fitting (teacher forcing) and the network's output later.

    >>> wave = torch.sin(torch.arange(400.0, dtype=torch.float64) / 5)[None, :, None]
    >>> from everstep import Reservoir
    >>> model = EchoState(Reservoir(1, 50, leak=0.5, seed=1, dtype=torch.float64), 1)
    >>> model = model.fit(wave[:, :300], wave[:, 1:301], washout=50)
    >>> ahead = model.generate(20, wave[:, :300])
    >>> bool((ahead - wave[:, 300:320]).abs().max() < 0.05)
    True

    Args:
        cell: computes h_t (batch, H).
        output_size: features of y_t.
        feedback: whether the last `output_size` inputs of the cell are y_{t-1}.

    Free running depends on the scales, the leak and the penalty. The defaults of `Reservoir` suit inputs of mean 0 and
    standard deviation 1; otherwise the outputs may diverge, and `search` finds better values.

    The state is the cell's; with feedback, the pair of that and y (batch, output_size). `readout` is an `nn.Linear` in
    the cell's dtype, zero before `fit`. Use float64 where small errors grow, as in a closed loop. With feedback and as
    many inputs as outputs, xs is (batch, time, 0) and the network generates from its state alone. The methods also
    accept arrays, such as NumPy's, and convert them to the cell's dtype.

    Raises:
        ValueError: with feedback, the cell has fewer inputs than outputs.
    """

    def __init__(self, cell: Cell, output_size: int, *, feedback: bool = False):
        super().__init__()
        self.output_size = check_size(self, "output_size", output_size)
        self.input_size = cell.input_size - (output_size if feedback else 0)
        if self.input_size < 0:
            raise ValueError(
                f"EchoState: with feedback the cell takes [x; y], but it has input_size {cell.input_size} and y has "
                f"{output_size} features"
            )
        self.cell, self.feedback = cell, feedback
        self.ridge: float | None = None
        like = next((t for t in (*cell.parameters(), *cell.buffers()) if t.is_floating_point()), torch.empty(0))
        self.readout = nn.Linear(cell.output_size, output_size, device=like.device, dtype=like.dtype)
        for parameter in self.readout.parameters():
            nn.init.zeros_(parameter)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's initial state; with feedback, paired with zeros for y."""
        inner = self.cell.initial_state(batch, like)
        return (inner, like.new_zeros(batch, self.output_size)) if self.feedback else inner

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step; with feedback, the output is an input of the next step."""
        if not self.feedback:
            h, state = self.cell.step(x, state)
            return self.readout(h), state
        inner, y = state
        h, inner = self.cell.step(torch.cat([x, y], -1), inner)
        y = self.readout(h)
        return y, (inner, y)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Without feedback, the cell over the whole sequence and then the read-out; with feedback, step by step."""
        if self.feedback:
            if backend == "auto" and isinstance(self.cell, Reservoir) and not hooks.pending(self.cell):
                inner, y = state
                done = self.cell.closed_loop(xs, inner, y, self.readout, lengths, resets)
                if done is not None:
                    return done[0], done[1:]
            return super().unroll(xs, state, lengths, resets, backend)
        hs, state = scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        return zero_padding(self.readout(hs), lengths), state

    def native_path(self, xs: Tensor) -> str | None:
        """With feedback, the name of the reservoir's compiled loop if it can run, else None."""
        if not self.feedback or not isinstance(self.cell, Reservoir) or hooks.pending(self.cell):
            return None
        return None if torch.is_autocast_enabled("cpu") else self.cell.native_path(xs, *self.readout.parameters())

    def sublayers(self) -> Sequence[Cell]:
        """The cell; with feedback, the network itself."""
        return (self,) if self.feedback else (self.cell,)

    @torch.no_grad()
    def fit(
        self,
        xs: Tensor | Any,
        targets: Tensor | Any,
        *,
        lengths: Tensor | Any | None = None,
        washout: int = 100,
        ridge: float | Sequence[float] = 1e-6,
        validation: float = 0.2,
    ) -> EchoState:
        """Learn the read-out from sequences, and put the model into eval mode.

        Args:
            xs: (batch, time, input_size).
            targets: (batch, time, output_size).
            lengths: (batch,), valid steps of each row.
            washout: first steps of every row that are run but not learned from, while the state forgets its start.
            ridge: λ of `Ridge`, or several candidates: the read-out is learned from the first part of every row, the λ
                with the least squared error on the rest is chosen, and the read-out is learned again from all steps.
            validation: share of every row's steps after the washout that is held out to choose among several λ.

        The chosen λ is stored as `ridge`. Features are computed in pieces and not stored.

        Raises:
            TypeError: an argument is neither a tensor nor an array of numbers.
            ValueError: shapes do not match; NaN or infinity, with its position; no steps after the washout; singular
                equations (see `Ridge.solve`).
        """
        xs, targets = self._numbers("fit", "xs", xs), self._numbers("fit", "targets", targets)
        lengths = None if lengths is None else numbers("EchoState.fit", "lengths", lengths).to(xs.device)
        ends = self._check("fit", xs, targets, lengths, washout)
        several = [float(ridge)] if isinstance(ridge, int | float) else [float(r) for r in ridge]
        if not several or not 0 < validation < 1:
            raise ValueError(
                f"EchoState.fit: expected at least one ridge and 0 < validation < 1, but they are {ridge}, {validation}"
            )
        self.train()
        regression, chosen = Ridge(), several[0]
        if len(several) == 1:
            for hs, ys in self._harvest(xs, targets, ends, washout, ends):
                regression.add(hs, ys)
        else:
            middle = ends - torch.ceil(validation * (ends - washout).clamp(min=0)).long()
            for hs, ys in self._harvest(xs, targets, ends, washout, middle):
                regression.add(hs, ys)
            found = [regression.solve(r) for r in several]
            errors = torch.zeros(len(several), dtype=torch.float64)
            for hs, ys in self._harvest(xs, targets, ends, middle, ends):
                errors += torch.stack([_squared_error(hs.to(w.device), ys.to(w.device), w, b).cpu() for w, b in found])
                regression.add(hs, ys)
            chosen = several[int(errors.argmin())]
        weight, bias = regression.solve(chosen)
        self.readout.weight.copy_(weight)
        self.readout.bias.copy_(bias)
        self.ridge = chosen
        return self.eval()

    @classmethod
    def search(
        cls,
        xs: Tensor | Any,
        targets: Tensor | Any,
        *,
        units: int = 200,
        trials: int = 40,
        free: int | None = None,
        washout: int = 100,
        validation: float = 0.2,
        seed: int = 0,
    ) -> Found[Self]:
        """Search for a reservoir in float64: spectral radius, leak, scales of inputs and bias, and λ.

        Each trial learns from the first part of every row and is scored on the rest. The first two trials use common
        values, the others up to half of `trials` are random, the rest lie near the best so far. The best network then
        learns from all steps.

        >>> wave = torch.sin(torch.arange(500.0, dtype=torch.float64) / 5)[None, :, None]
        >>> found = EchoState.search(wave[:, :-1], wave[:, 1:], units=20, trials=4)
        >>> found.model.generate(30, wave[:, :200]).shape, found.error < 0.1
        (torch.Size([1, 30, 1]), True)

        Args:
            xs: (batch, time, features).
            targets: (batch, time, outputs).
            units: size of the reservoir. More units are better, but the time of a trial grows with units².
            trials: number of trials, usually 20 to 100.
            free: steps of free running over which a trial is scored, from up to 16 positions; the targets must then be
                the next inputs. 0: score one-step predictions. None: 100 (or half of the held-out steps, if fewer) if
                the targets are the next inputs, else 0.
            washout: first steps of a row that are not learned from; also the steps read before free running.
            validation: share of every row's steps after the washout that is held out for scoring.
            seed: seed of the reservoir and the draws; with the same number of threads, the search is reproducible.

        Returns:
            `Found`: the model, the options of its `Reservoir`, and the held-out error; `model.ridge` is λ.

        Raises:
            TypeError: an argument is neither a tensor nor an array of numbers.
            ValueError: shapes do not match, NaN or infinity, too few steps, or an argument out of range.
        """
        return search(
            cls, xs, targets, units=units, trials=trials, free=free, washout=washout, validation=validation, seed=seed
        )

    @torch.no_grad()
    def fit_online(
        self,
        xs: Tensor | Any,
        targets: Tensor | Any,
        *,
        ridge: float = 1.0,
        forgetting: float = 1.0,
        state: State | OnlineFit = None,
    ) -> tuple[Tensor, OnlineFit]:
        """Learn while running, by one step of recursive least squares per time step, from the current read-out.

        With feedback this is FORCE learning (Sussillo & Abbott 2009): the network's own output is fed back, not the
        target, so that it learns to correct its own errors. Without feedback it is an incremental `fit` that also
        penalises the intercept. A stream may come in pieces; pass the `state` of one piece to the next:

        >>> from everstep import Reservoir
        >>> wave = torch.sin(torch.arange(400.0, dtype=torch.float64) / 5)[None, :, None]
        >>> model, learned = EchoState(Reservoir(1, 50, leak=0.5, seed=1, dtype=torch.float64), 1), None
        >>> for x, y in zip(wave[:, :-1].split(10, 1), wave[:, 1:].split(10, 1), strict=True):
        ...     errors, learned = model.fit_online(x, y, ridge=1e-3, state=learned)
        >>> bool(errors.abs().max() < 0.01)
        True

        Args:
            xs: (1, time, input_size), one sequence.
            targets: (1, time, output_size).
            ridge: λ (α in FORCE); ignored when `state` is an `OnlineFit`.
            forgetting: see `RecursiveLeastSquares`.
            state: an `OnlineFit`, to continue learning; a state of the network (from `warm_up`), to begin learning
                there; None, to begin in the initial state.

        Returns:
            The error of each step before its update (1, time, output_size), and the `OnlineFit` to continue from. Pass
            it to this method or `predict`, or its `state` to a call.
        """
        xs, targets = self._numbers("fit_online", "xs", xs), self._numbers("fit_online", "targets", targets)
        self._check("fit_online", xs, targets, None, 0)
        if len(xs) != 1:
            raise ValueError(f"EchoState.fit_online: expected one sequence, but got {len(xs)}")
        rls = RecursiveLeastSquares(self.cell.output_size + 1, self.output_size, ridge=ridge, forgetting=forgetting)
        rls.weight.copy_(torch.cat([self.readout.weight, self.readout.bias[:, None]], 1))
        if isinstance(state, OnlineFit):
            state, inverse = state
            if inverse.shape[1:] != rls.inverse.shape:
                raise ValueError(
                    f"EchoState.fit_online: this network goes on from an inverse of shape {(1, *rls.inverse.shape)}, "
                    f"but it has {tuple(inverse.shape)}; give the state of its own learning"
                )
            rls.inverse.copy_(inverse[0])
        inner = self.initial_state(1, xs) if state is None else state
        inner, y = inner if self.feedback else (inner, xs.new_zeros(1, self.output_size))
        one, errors = rls.weight.new_ones(1), []
        self.train()
        for x, target in zip(xs[0], targets[0], strict=True):
            hs, inner = self.cell(torch.cat([x[None], y], -1)[:, None] if self.feedback else x[None, None], inner)
            error = rls.update(torch.cat([hs[0, 0].cpu().double(), one]), target)
            y = (target.cpu() - error)[None].to(xs.dtype).to(xs.device)
            errors.append(error)
        self.readout.weight.copy_(rls.weight[:, :-1])
        self.readout.bias.copy_(rls.weight[:, -1])
        self.eval()
        end = (inner, y) if self.feedback else inner
        return torch.stack(errors)[None].to(xs.dtype).to(xs.device), OnlineFit(end, rls.inverse[None])

    @torch.no_grad()
    def predict(self, xs: Tensor | Any, state: State | OnlineFit = None, *, lengths: Tensor | None = None) -> Tensor:
        """y (batch, time, output_size) for inputs xs (batch, time, input_size), without gradients.

        `state` may also be a `OnlineFit` from `fit_online`.
        """
        state = state.state if isinstance(state, OnlineFit) else state
        ys: Tensor = self(self._numbers("predict", "xs", xs), state, lengths=lengths)[0]
        return ys

    @torch.no_grad()
    def warm_up(self, xs: Tensor | Any, targets: Tensor | Any | None = None) -> State:
        """The state after xs (batch, time, input_size), from which a call can continue.

        With feedback, targets (batch, time, output_size) are fed back (teacher forcing).

        Raises:
            ValueError: with feedback, targets are missing or their shape does not match.
        """
        xs = self._numbers("warm_up", "xs", xs)
        if not self.feedback:
            return self(xs)[1]
        if targets is None:
            raise ValueError("EchoState.warm_up: with feedback, give the targets that come back")
        targets = self._numbers("warm_up", "targets", targets)
        self._check("warm_up", xs, targets, None, 0)
        _, inner = self.cell(torch.cat([xs, _delayed(targets)], -1))
        return inner, targets[:, -1]

    @torch.no_grad()
    def generate(self, steps: int, warm: Tensor | Any) -> Tensor:
        """Free running of a network that predicts its next input: x_{t+1} = ŷ_t, after a warm-up.

        Args:
            steps: number of steps to generate.
            warm: (batch, time, input_size), true inputs, at least one step.

        Returns:
            The predicted continuation of `warm`, (batch, steps, output_size).

        Raises:
            ValueError: inputs and outputs differ in size, `warm` is empty, or the network has feedback (use `warm_up`,
                then call the model).
        """
        warm = self._numbers("generate", "warm", warm)
        if self.feedback or self.input_size != self.output_size or warm.shape[1] < 1:
            raise ValueError(
                "EchoState.generate: expected a network without feedback whose outputs are its next inputs, and at "
                f"least one step of warm-up, but got feedback={self.feedback}, input_size={self.input_size}, "
                f"output_size={self.output_size}, and {warm.shape[1]} steps"
            )
        ys, state = self(warm)
        made, left = [ys[:, -1:]], steps - 1
        while left > 0:
            last = made[-1][:, -1:]
            done = None
            if isinstance(self.cell, Reservoir):
                nothing = last.new_empty(len(last), min(left, CHUNK), 0)
                done = self.cell.closed_loop(nothing, state, last[:, 0], self.readout)
            y, state = self(last, state) if done is None else done[:2]
            made.append(y)
            left -= y.shape[1]
        return torch.cat(made, 1)[:, :steps]

    def _harvest(
        self, xs: Tensor, targets: Tensor, ends: Tensor, first: Tensor | int, last: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and targets, both (steps, …), of the steps from `first` up to `last` of every row, in pieces."""
        inputs = torch.cat([xs, _delayed(targets)], -1) if self.feedback else xs
        first = torch.as_tensor(first, device=xs.device).expand(len(xs))
        state = None
        for start in range(0, xs.shape[1], CHUNK):
            piece = inputs[:, start : start + CHUNK]
            steps = piece.shape[1]
            hs, state = self.cell(piece, state, lengths=(ends - start).clamp(0, steps))
            for row, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
                a, b = max(a, start), min(b, start + steps)
                if a < b:
                    yield hs[row, a - start : b - start], targets[row, a:b]

    def _numbers(self, what: str, name: str, values: Any) -> Tensor:
        return numbers(f"EchoState.{what}", name, values, self.readout.weight)

    def _check(self, what: str, xs: Tensor, targets: Tensor, lengths: Tensor | None, washout: int) -> Tensor:
        """Check the arguments and return the lengths of the rows (batch,)."""
        who = f"EchoState.{what}"
        if xs.dim() != 3 or targets.dim() != 3 or xs.shape[2] != self.input_size:
            raise ValueError(
                f"{who}: expected xs (batch, time, {self.input_size}) and targets (batch, time, {self.output_size}), "
                f"but got shapes {tuple(xs.shape)} and {tuple(targets.shape)}"
            )
        if targets.shape != (*xs.shape[:2], self.output_size):
            want = (*xs.shape[:2], self.output_size)
            raise ValueError(f"{who}: targets should have shape {want}, but have {tuple(targets.shape)}")
        ends = torch.full((len(xs),), xs.shape[1], device=xs.device) if lengths is None else lengths
        if washout < 0 or not bool((ends > washout).any()):
            longest = int(ends.max()) if len(ends) else 0
            raise ValueError(f"{who}: washout={washout} leaves nothing of sequences of at most {longest} steps")
        for name, values in (("xs", xs), ("targets", targets)):
            check_finite(who, name, zero_padding(values, lengths), ("row", "step", "feature"))
        return ends


def _squared_error(hs: Tensor, ys: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """‖Y − H Wᵀ − b‖² in float64."""
    return (ys - hs.double() @ weight.t() - bias).square().sum()


def _delayed(ys: Tensor) -> Tensor:
    """y_{t-1} for every t, with zeros before the first."""
    return torch.cat([ys.new_zeros(len(ys), 1, ys.shape[2]), ys[:, :-1]], 1)
