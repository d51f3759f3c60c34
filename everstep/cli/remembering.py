"""What `look` draws of a language model's memory: gradient flow, sensitivity, spectrum, and use of context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from everstep.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from everstep.tasks.run import Run

CHARACTERS = 24_000
TOKENS = 2048  # of a text, at most
LAGS, ROWS, SAMPLES = 100, 8, 8
LONGEST, TARGETS = 150, 192
STEPS = 60  # in the picture of sensitivity
WIDE = 800  # rows that sensitivity may run at once
STATE = 2 * 10**9  # n³ of all step Jacobians whose eigenvalues are taken


def draw_memory(run: Run, out: Path, text: Path | None = None) -> list[tuple[Path, str]]:
    """Pictures of what the model remembers of a text, each with a sentence.

    Raises:
        DataError: the text has fewer than two tokens.
    """
    import torch

    from everstep.cli.pictures import NAMES, passage

    ids = run.tokenizer.encode(passage(run, text, CHARACTERS), line_end=False)[:TOKENS].tolist()
    begin = run.tokenizer.begin_id
    read = ids if begin is None else [begin, *ids]
    if len(ids) < 2 or len(read) < 3:
        raise DataError(
            f"look: the text has {len(ids)} token; gradients need two or more to travel. Give a longer --text."
        )
    row = torch.tensor(read)
    inputs, targets = row[:-1], row[1:]
    unit = NAMES[run.config.data.unit]
    drawn = [_flow(run, inputs, targets, out / "gradient-flow.png", unit)]
    drawn.append(_sensitivity(run, inputs, out / "sensitivity.png", unit))
    drawn.append(_spectrum(run, inputs, out / "spectrum.png", unit))
    drawn.append(_context(run, inputs, targets, out / "memory.png", unit))
    return drawn


def _flow(run: Run, inputs: Tensor, targets: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    from everstep.look.flow import draw_flow, gradient_flow
    from everstep.look.memory import memory_by_gradient

    model = run.model
    rows = max(1, min(ROWS, len(inputs) // (LAGS + 2 * SAMPLES)))
    time = min(len(inputs) // rows, LAGS + 2 * SAMPLES)
    xs, aims = model.embedding(inputs[: rows * time].view(rows, time)), targets[: rows * time].view(rows, time)
    loss = target_loss(model)
    flow = gradient_flow(model.body, xs, lags=min(LAGS, time - 1), loss=lambda ys: loss(ys, aims), samples=SAMPLES)
    seen = draw_flow(flow, path, unit)
    reach = ", ".join(f"{name} {_upto(lag, flow.lags[-1])}" for name, lag in memory_by_gradient(flow, 0.01).items())
    return path, f"{seen} Effective memory by gradient (1 % left), in {unit}s: {reach}."


def _sensitivity(run: Run, inputs: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    from everstep.look.sensitivity import draw_sensitivity, sensitivity

    body = run.model.body
    time = min(STEPS, len(inputs))
    rows = max(1, min(WIDE // body.input_size, len(inputs) // time))
    xs = run.model.embedding(inputs[: rows * time].view(rows, time))
    return path, draw_sensitivity(sensitivity(body, xs), path, unit)


def _spectrum(run: Run, inputs: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    from everstep.look.jacobians import lyapunov_exponents, step_jacobians, width
    from everstep.look.spectra import draw_jacobians
    from everstep.look.trajectory import parts

    body = run.model.body
    xs = run.model.embedding(inputs[None, : STEPS * 4])
    size = max(width(layer.initial_state(1, xs)) for layer in parts(body))
    found = step_jacobians(body, xs[:, :STEPS], samples=max(1, min(8, STATE // size**3)))
    seen = draw_jacobians(found, path)
    rate = lyapunov_exponents(body, xs, count=1, warm_up=xs.shape[1] // 4).values[0]
    fate = f"shrinks e-fold in {-1 / rate:.0f} {unit}s" if rate < 0 else "grows: the model is chaotic"
    return path, f"{seen} Largest Lyapunov exponent {rate:.3f} a {unit}: a small difference of state {fate}."


def _context(run: Run, inputs: Tensor, targets: Tensor, path: Path, unit: str) -> tuple[Path, str]:
    from everstep.look.memory import context_loss, draw_context

    model = run.model
    longest = min(LONGEST, max(1, len(inputs) // 3))
    xs = model.embedding(inputs[None])
    curve = context_loss(model.body, xs, targets[None], target_loss(model), longest=longest, samples=TARGETS)
    return path, draw_context(curve, path, unit, f"loss in nats per {unit}")


def target_loss(model: Any) -> Any:
    """−log p of each target in nats."""
    return lambda ys, targets: -model.head.predict(ys).gather(-1, targets[..., None])[..., 0]


def _upto(lag: float, longest: int) -> str:
    return f"{lag:.0f}" if lag <= longest else f"more than {longest}"
