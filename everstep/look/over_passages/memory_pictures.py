"""Pictures of a model's memory: gradient flow, sensitivity, spectra, and use of context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from everstep.look.over_passages import Bar
    from everstep.look.passage import Passage

CHARACTERS = 24_000
TOKENS = 2048  # most tokens of a text
LAGS, ROWS, SAMPLES = 100, 8, 8
LONGEST, TARGETS = 150, 192
STEPS = 60  # steps in the picture of sensitivity
WIDE = 800  # most rows that sensitivity runs at once
STATE = 2 * 10**9  # most n³ over all step Jacobians, and over all powers of a matrix
POWERS, LEAST_POWERS, GATES = 50, 8, 6


def draw(found: Passage, out: Path, model: nn.Module, bar: Bar) -> list[tuple[Path, str]]:
    """Draw what a model that predicts each step remembers of a passage, each picture with a caption.

    Raises:
        DataError: the text has fewer than two tokens.
    """
    from everstep.cell import Cell
    from everstep.look.trajectory import real

    if found.loss is None or not isinstance(found.body, Cell):
        return []
    if not real(found.body.initial_state(1, found.inputs)):  # no memory
        return []
    inputs, targets = found.foreseen(TOKENS)
    drawn = [_flow(found, inputs, targets, out / "gradient-flow.png")]
    drawn.append(_sensitivity(found, inputs, out / "sensitivity.png"))
    drawn.append(_spectrum(found, inputs, out / "spectrum.png"))
    drawn += _matrices(found.body, out / "matrices.png")
    drawn.append(_context(found, inputs, targets, out / "memory.png"))
    return drawn


def _flow(found: Passage, inputs: Tensor, targets: Tensor, path: Path) -> tuple[Path, str]:
    import torch

    from everstep.look.flow import draw_flow, gradient_flow
    from everstep.look.memory import memory_by_gradient

    loss = found.loss
    assert loss is not None
    rows = max(1, min(ROWS, len(inputs) // (LAGS + 2 * SAMPLES)))
    time = min(len(inputs) // rows, LAGS + 2 * SAMPLES)
    xs, aims = inputs[: rows * time].view(rows, time, -1), targets[: rows * time].view(rows, time)
    flow = gradient_flow(
        found.body,
        xs,
        lags=min(LAGS, time - 1),
        loss=lambda ys: loss(ys.to(xs.dtype).to(xs.device), aims),
        samples=SAMPLES,
        dtype=torch.float64,  # float32 underflows below 1e-38
    )
    seen = draw_flow(flow, path, found.unit)
    reach = ", ".join(f"{name} {_upto(lag, flow.lags[-1])}" for name, lag in memory_by_gradient(flow, 0.01).items())
    return path, f"{seen} Effective memory by gradient (1 % left), in {found.unit}s: {reach}."


def _sensitivity(found: Passage, inputs: Tensor, path: Path) -> tuple[Path, str]:
    from everstep.look.sensitivity import draw_sensitivity, sensitivity

    body = found.body
    time = min(STEPS, len(inputs))
    rows = max(1, min(WIDE // body.input_size, len(inputs) // time))
    xs = inputs[: rows * time].view(rows, time, -1)
    over = f" The mean over {rows} stretches of the text." if rows > 1 else ""
    return path, draw_sensitivity(sensitivity(body, xs), path, found.unit) + over


def _spectrum(found: Passage, inputs: Tensor, path: Path) -> tuple[Path, str]:
    from everstep.look.jacobians import lyapunov_exponents, step_jacobians, width
    from everstep.look.spectra import draw_jacobians
    from everstep.look.trajectory import parts

    xs = inputs[None, : STEPS * 4]
    size = max(width(layer.initial_state(1, xs)) for layer in parts(found.body))
    jacobians = step_jacobians(found.body, xs[:, :STEPS], samples=max(1, min(8, STATE // size**3)))
    seen = draw_jacobians(jacobians, path)
    warm_up = xs.shape[1] // 4
    rate = float(lyapunov_exponents(found.body, xs, count=1, warm_up=warm_up).values[0])
    return path, f"{seen} {rate_words(rate, xs.shape[1] - warm_up, found.unit)}"


def rate_words(rate: float, steps: int, unit: str) -> str:
    """A sentence on small differences of the state, from the largest Lyapunov exponent over `steps` steps."""
    if abs(rate) < 1 / steps:
        fate = f"neither grows nor shrinks measurably in {steps} {unit}s"
    elif rate < 0:
        fate = f"shrinks e-fold in {-1 / rate:.1f} {unit}s"
    else:
        fate = f"grows e-fold in {1 / rate:.1f} {unit}s: the model is chaotic"
    return f"Largest Lyapunov exponent {rate:.3f} a {unit}: a small difference of the state {fate}."


def _matrices(body: Any, path: Path) -> list[tuple[Path, str]]:
    """Draw the recurrent matrices of the top layer, one per gate, and their powers; nothing if there are none."""
    from everstep.equation import Gated
    from everstep.look.spectra import draw_spectrum, spectra
    from everstep.look.trajectory import innermost, parts

    cells = [cell for layer in parts(body) if isinstance(cell := innermost(layer), Gated)]
    multiplied = [cell for cell in cells if cell.weight_hh is not None]
    if not multiplied:
        return []
    top = multiplied[-1]
    powers = max(LEAST_POWERS, min(POWERS, STATE // top.hidden_size**3))
    gates = dict(list(spectra(top, powers).items())[:GATES])
    layer = "The top layer's matrices. " if len(cells) > 1 else ""
    between = " In the step the gates stand between them: compare the Jacobians."
    return [(path, layer + draw_spectrum(gates, path) + (between if len(gates) > 1 else ""))]


def _context(found: Passage, inputs: Tensor, targets: Tensor, path: Path) -> tuple[Path, str]:
    from everstep.look.memory import context_loss, draw_context

    assert found.loss is not None
    longest = min(LONGEST, max(1, len(inputs) // 3))
    curve = context_loss(found.body, inputs[None], targets[None], found.loss, longest=longest, samples=TARGETS)
    return path, draw_context(curve, path, found.unit, f"loss in {found.loss_unit} per {found.unit}")


def _upto(lag: float, longest: int) -> str:
    return f"{lag:.0f}" if lag <= longest else f"more than {longest}"
