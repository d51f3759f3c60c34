"""What `look` draws of a language model's memory: gradient flow, sensitivity, spectra, and use of context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from everstep.tasks.run import Run

CHARACTERS = 24_000
TOKENS = 2048  # of a text, at most
LAGS, ROWS, SAMPLES = 100, 8, 8
LONGEST, TARGETS = 150, 192
STEPS = 60  # in the picture of sensitivity
WIDE = 800  # rows that sensitivity may run at once
STATE = 2 * 10**9  # n³ of all step Jacobians whose eigenvalues are taken, and of all powers of a matrix
POWERS, LEAST_POWERS, GATES = 50, 8, 6


def draw_memory(run: Run, out: Path, text: Path | None = None) -> list[tuple[Path, str]]:
    """Pictures of what the model remembers of a text, each with a sentence.

    Raises:
        DataError: the text has fewer than two tokens.
    """
    from everstep.cli.pictures import NAMES, inputs_and_targets

    inputs, targets = inputs_and_targets(run, text, CHARACTERS, TOKENS)
    unit = NAMES[run.config.data.unit]
    drawn = [_flow(run, inputs, targets, out / "gradient-flow.png", unit)]
    drawn.append(_sensitivity(run, inputs, out / "sensitivity.png", unit))
    drawn.append(_spectrum(run, inputs, out / "spectrum.png", unit))
    drawn += _matrices(run, out / "matrices.png")
    drawn.append(_context(run, inputs, targets, out / "memory.png", unit))
    return drawn


def _flow(run: Run, inputs: Tensor, targets: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    import torch

    from everstep.cli.pictures import target_loss
    from everstep.look.flow import draw_flow, gradient_flow
    from everstep.look.memory import memory_by_gradient

    model = run.model
    rows = max(1, min(ROWS, len(inputs) // (LAGS + 2 * SAMPLES)))
    time = min(len(inputs) // rows, LAGS + 2 * SAMPLES)
    xs, aims = model.embedding(inputs[: rows * time].view(rows, time)), targets[: rows * time].view(rows, time)
    loss = target_loss(model)
    flow = gradient_flow(
        model.body,
        xs,
        lags=min(LAGS, time - 1),
        loss=lambda ys: loss(ys.to(xs), aims),
        samples=SAMPLES,
        dtype=torch.float64,  # float32 would lose what has fallen below 1e-38
    )
    seen = draw_flow(flow, path, unit)
    reach = ", ".join(f"{name} {_upto(lag, flow.lags[-1])}" for name, lag in memory_by_gradient(flow, 0.01).items())
    return path, f"{seen} Effective memory by gradient (1 % left), in {unit}s: {reach}."


def _sensitivity(run: Run, inputs: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    from everstep.look.sensitivity import draw_sensitivity, sensitivity

    body = run.model.body
    time = min(STEPS, len(inputs))
    rows = max(1, min(WIDE // body.input_size, len(inputs) // time))
    xs = run.model.embedding(inputs[: rows * time].view(rows, time))
    over = f" The mean over {rows} stretches of the text." if rows > 1 else ""
    return path, draw_sensitivity(sensitivity(body, xs), path, unit) + over


def _spectrum(run: Run, inputs: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    from everstep.look.jacobians import lyapunov_exponents, step_jacobians, width
    from everstep.look.spectra import draw_jacobians
    from everstep.look.trajectory import parts

    body = run.model.body
    xs = run.model.embedding(inputs[None, : STEPS * 4])
    size = max(width(layer.initial_state(1, xs)) for layer in parts(body))
    found = step_jacobians(body, xs[:, :STEPS], samples=max(1, min(8, STATE // size**3)))
    seen = draw_jacobians(found, path)
    warm_up = xs.shape[1] // 4
    rate = float(lyapunov_exponents(body, xs, count=1, warm_up=warm_up).values[0])
    return path, f"{seen} {rate_words(rate, xs.shape[1] - warm_up, unit)}"


def rate_words(rate: float, steps: int, unit: str) -> str:
    """What the largest Lyapunov exponent, measured over some steps, says of a small difference of state."""
    if abs(rate) < 1 / steps:
        fate = f"neither grows nor shrinks by what {steps} {unit}s can tell"
    elif rate < 0:
        fate = f"shrinks e-fold in {-1 / rate:.1f} {unit}s"
    else:
        fate = f"grows e-fold in {1 / rate:.1f} {unit}s: the model is chaotic"
    return f"Largest Lyapunov exponent {rate:.3f} a {unit}: a small difference of state {fate}."


def _matrices(run: Run, path: Path) -> list[tuple[Path, str]]:
    """The top layer's matrices, one a gate, and their powers; nothing where the state meets no matrix."""
    from everstep.equation import Gated
    from everstep.look.spectra import draw_spectrum, spectra
    from everstep.look.trajectory import innermost, parts

    cells = [cell for layer in parts(run.model.body) if isinstance(cell := innermost(layer), Gated)]
    multiplied = [cell for cell in cells if cell.weight_hh is not None]
    if not multiplied:
        return []
    top = multiplied[-1]
    powers = max(LEAST_POWERS, min(POWERS, STATE // top.hidden_size**3))
    gates = dict(list(spectra(top, powers).items())[:GATES])
    layer = "The top layer's matrices. " if len(cells) > 1 else ""
    between = " In the step the gates stand between them: compare the Jacobians."
    return [(path, layer + draw_spectrum(gates, path) + (between if len(gates) > 1 else ""))]


def _context(run: Run, inputs: Tensor, targets: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    from everstep.cli.pictures import target_loss
    from everstep.look.memory import context_loss, draw_context

    model = run.model
    longest = min(LONGEST, max(1, len(inputs) // 3))
    xs = model.embedding(inputs[None])
    curve = context_loss(model.body, xs, targets[None], target_loss(model), longest=longest, samples=TARGETS)
    return path, draw_context(curve, path, unit, f"loss in nats per {unit}")


def _upto(lag: float, longest: int) -> str:
    return f"{lag:.0f}" if lag <= longest else f"more than {longest}"
