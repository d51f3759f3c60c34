"""Echo state networks: a recurrent layer that stays as it is, and a linear read-out learned in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from everstep import hooks
from everstep.cell import Cell, check_size, scan
from everstep.learn.linear.echo_state_search import Found, search
from everstep.learn.linear.recursive_least_squares import Learned, RecursiveLeastSquares
from everstep.learn.linear.ridge import Ridge, check_finite, numbers
from everstep.state import State
from everstep.wirings.reservoir import Reservoir
from everstep.wirings.stack import zero_padding

CHUNK = 1000
"""Steps whose features are in memory at once, while fitting or generating."""


class EchoState(Cell):
    """y_t = W_out h_t + b_out over a cell that is not learned; W_out and b_out by ridge regression (Jaeger 2001).

    The cell is usually a `Reservoir`, several of them deep (`SkipStack`; Gallicchio & Micheli 2017) or side by side
    (`Parallel`), or `Parallel(reservoir, Identity(D))`, whose read-out sees the input too. With `feedback` the cell's
    inputs are [x_t; y_{t-1}]: while fitting, y is the target (teacher forcing), and later the network's own output.

    >>> wave = torch.sin(torch.arange(400.0, dtype=torch.float64) / 5)[None, :, None]
    >>> from everstep import Reservoir
    >>> model = EchoState(Reservoir(1, 50, leak=0.5, seed=1, dtype=torch.float64), 1)
    >>> model = model.fit(wave[:, :300], wave[:, 1:301], washout=50)
    >>> ahead = model.generate(20, wave[:, :300])
    >>> bool((ahead - wave[:, 300:320]).abs().max() < 0.05)
    True

    Args:
        cell: what gives h_t (batch, H).
        output_size: features of y_t.
        feedback: whether the last `output_size` inputs of the cell are y_{t-1}.

    How well it runs freely depends on the scales, the leak and the penalty. Those of `Reservoir` suit inputs of mean 0
    and standard deviation 1; where they do not do, it may run off: `search` finds better ones.

    Its state is the cell's, or with feedback the pair of that and y (batch, output_size). `readout` is an `nn.Linear`,
    zero before `fit`, of the dtype of the cell. Where small errors grow, as in a closed loop, take float64.

    With feedback and no more inputs than outputs, xs is (batch, time, 0): a generator of its own.

    The methods also take arrays, such as NumPy's, in place of tensors; they are read in the dtype of the cell.

    Raises:
        ValueError: with feedback, a cell of fewer inputs than outputs.
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
        """The cell's; with feedback, beside zeros for y."""
        inner = self.cell.initial_state(batch, like)
        return (inner, like.new_zeros(batch, self.output_size)) if self.feedback else inner

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step; the output comes back at the next."""
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
        """Without feedback the cell over the whole sequence, then the read-out; with it, step by step."""
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
        """With feedback, the reservoir's compiled loop, where it can run."""
        if not self.feedback or not isinstance(self.cell, Reservoir) or hooks.pending(self.cell):
            return None
        return None if torch.is_autocast_enabled("cpu") else self.cell.native_path(xs, *self.readout.parameters())

    def sublayers(self) -> Sequence[Cell]:
        """The cell, or with feedback the network itself."""
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
        """Learn the read-out from sequences; leaves the model in eval mode.

        Args:
            xs: (batch, time, input_size).
            targets: (batch, time, output_size).
            lengths: (batch,), of ragged rows.
            washout: first steps of every row that are run, but not learned from: the state forgets its start.
            ridge: λ of `Ridge`, or several: then the read-out is learned from the first part of every row, the λ of
                least squared error on the rest is taken, and the read-out learned again from all.
            validation: share of every row's steps after the washout that chooses among several λ.

        The λ taken is kept as `ridge`. Features are computed in pieces of some steps and not kept.

        Raises:
            TypeError: what is neither a tensor nor an array of numbers.
            ValueError: shapes that do not fit; NaN or infinity, with its place; no step left after the washout;
                singular equations (see `Ridge.solve`).
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
        """Find a reservoir for a task, in float64: its radius, leak, scales of inputs and bias, and λ.

        Each trial takes some, learns from the first part of every row and is judged by the rest. The first two are
        usual ones, up to the half they are drawn anywhere, then near the best so far. The best then learns from all.

        >>> wave = torch.sin(torch.arange(500.0, dtype=torch.float64) / 5)[None, :, None]
        >>> found = EchoState.search(wave[:, :-1], wave[:, 1:], units=20, trials=4)
        >>> found.model.generate(30, wave[:, :200]).shape, found.error < 0.1
        (torch.Size([1, 30, 1]), True)

        Args:
            xs: (batch, time, features).
            targets: (batch, time, outputs).
            units: of the reservoir. More are better and take longer: a trial's time grows with units².
            trials: how many; 20 to 100.
            free: it is judged by that many steps on its own, from up to 16 places; the targets are then the next
                inputs. 0: by predicting one step. None: 100 (half of what is held out, if that is less) where the
                targets are the next inputs, else 0.
            washout: first steps of a row that are not learned from, and those read before it runs freely.
            validation: share of every row's steps after the washout that judges.
            seed: of the reservoir and of what is drawn; the same seed finds the same network, at an equal number of
                threads.

        Returns:
            `Found`: the model, the options of its `Reservoir`, and the error on what was held out; `model.ridge` is λ.

        Raises:
            TypeError: what is neither a tensor nor an array of numbers.
            ValueError: shapes that do not fit, NaN or infinity, too few steps, or an argument out of its range.
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
        state: State | Learned = None,
    ) -> tuple[Tensor, Learned]:
        """Learn while running, one step of recursive least squares a step, from the read-out as it is.

        With feedback this is FORCE learning (Sussillo & Abbott 2009): what comes back is the network's own output, not
        the target, so that it learns to correct what it does itself. Without, it is an incremental `fit` whose
        intercept is penalised too. A stream may come in pieces; each goes on where `state` ended:

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
            ridge: λ; FORCE's α. Where learning goes on, it has had its effect.
            forgetting: see `RecursiveLeastSquares`.
            state: a `Learned`, to go on with the learning; a state of the network (of `warm_up`), to begin learning in
                it; None, to begin in the initial state.

        Returns:
            Errors before each step's learning (1, time, output_size), and the `Learned` to go on from: this method and
            `predict` take it as it is, a call takes its `state`.

        Raises:
            TypeError: what is neither a tensor nor an array of numbers.
            ValueError: more than one sequence, shapes that do not fit, or NaN or infinity, with its place.
        """
        xs, targets = self._numbers("fit_online", "xs", xs), self._numbers("fit_online", "targets", targets)
        self._check("fit_online", xs, targets, None, 0)
        if len(xs) != 1:
            raise ValueError(f"EchoState.fit_online: expected one sequence, but {len(xs)} came")
        rls = RecursiveLeastSquares(self.cell.output_size + 1, self.output_size, ridge=ridge, forgetting=forgetting)
        rls.weight.copy_(torch.cat([self.readout.weight, self.readout.bias[:, None]], 1))
        if isinstance(state, Learned):
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
        return torch.stack(errors)[None].to(xs.dtype).to(xs.device), Learned(end, rls.inverse[None])

    @torch.no_grad()
    def predict(self, xs: Tensor | Any, state: State | Learned = None, *, lengths: Tensor | None = None) -> Tensor:
        """y (batch, time, output_size) for inputs xs (batch, time, input_size), without gradients.

        `state` may also be what `fit_online` gave.
        """
        state = state.state if isinstance(state, Learned) else state
        ys: Tensor = self(self._numbers("predict", "xs", xs), state, lengths=lengths)[0]
        return ys

    @torch.no_grad()
    def warm_up(self, xs: Tensor | Any, targets: Tensor | Any | None = None) -> State:
        """The state at the end of xs (batch, time, input_size), from which a call or `generate` can go on.

        With feedback, targets (batch, time, output_size) are what came back (teacher forcing).

        Raises:
            ValueError: targets are missing with feedback, or do not fit.
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
        """Run freely after a warm-up: ŷ_t is the next input x_{t+1}. For a network that predicts its next input.

        Args:
            steps: how many.
            warm: (batch, time, input_size), at least one step: true inputs.

        Returns:
            What would follow `warm`, (batch, steps, output_size); the first is the prediction after its last step.

        Raises:
            ValueError: inputs and outputs of different sizes, or with feedback (`warm_up`, then call the model), or no
                warm-up.
        """
        warm = self._numbers("generate", "warm", warm)
        if self.feedback or self.input_size != self.output_size or warm.shape[1] < 1:
            raise ValueError(
                "EchoState.generate: expected a network without feedback whose outputs are its next inputs, and at "
                f"least one step of warm-up, but feedback={self.feedback}, input_size={self.input_size}, "
                f"output_size={self.output_size}, and {warm.shape[1]} steps came"
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
        """Features and targets, (steps, …) both, of the steps from `first` up to `last` of every row, in pieces."""
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
        """The rows' lengths, after every check that needs no run."""
        who = f"EchoState.{what}"
        if xs.dim() != 3 or targets.dim() != 3 or xs.shape[2] != self.input_size:
            raise ValueError(
                f"{who}: expected xs (batch, time, {self.input_size}) and targets (batch, time, {self.output_size}), "
                f"but shapes {tuple(xs.shape)} and {tuple(targets.shape)} came"
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
    """y_{t-1} for every t; zeros before the first."""
    return torch.cat([ys.new_zeros(len(ys), 1, ys.shape[2]), ys[:, :-1]], 1)
