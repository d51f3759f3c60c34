"""A run as a folder that another runtime can use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

import everstep
from everstep.errors import ConfigError, RunError
from everstep.networks.forms import Form
from everstep.runs.opening import digests
from everstep.runs.recipe_files import to_yaml
from everstep.runs.run import Run
from everstep.ship import export_folder as folder
from everstep.ship.checking import Check, checked
from everstep.ship.recording import leaf_names
from everstep.state import leaves
from everstep.storage.reading import sealed

Kind = Literal["onnx"]
Which = Literal["step", "sequence", "both"]
Say = Callable[[str], None]


def export(
    run: Run,
    out: str | Path | None = None,
    *,
    to: Kind = "onnx",
    form: Which = "both",
    say: Say = lambda line: None,
) -> Path:
    """Write a run down for another runtime, and compare what that computes with the run.

    Args:
        run: what is exported.
        out: the folder; `RUN/onnx` if None.
        to: "onnx": `step.onnx` and `sequence.onnx`, for onnxruntime and others.
        form: one step, whole sequences, or what there is of both.
        say: is told what was written.

    Returns:
        The folder: the files, `export.json`, which says what goes in and out, `recipe.yaml`, and what the job needs to
        read and write (`tokenizer.json`). `everstep.load` opens it.

    Raises:
        RunError: a job that exports nothing, a folder that exists or cannot be written.
        ConfigError: onnx or onnxruntime is missing, or the run has no such form.
        NotExported: an operation has no counterpart; says which.
        NotEqual: the other runtime computes something else.

    >>> import everstep as es
    >>> path = getfixture("tmp_path")
    >>> run = es.train("shakespeare-minute", path / "run", overrides=["train.max_steps=1"])
    >>> es.load(export(run, path / "out")).generate(prompt="To be", length=3, seed=1)[:5]
    'To be'
    """
    task = run.able("export")
    if folder.is_export(run.path):
        raise RunError(f"{run.path} is exported already; export the run that it was made of")
    if next(run.model.parameters()).device.type != "cpu":
        raise RunError(f"{run.path}: load it on the CPU to export it")
    found = task.exported(run.model)
    wanted = ("step", "sequence") if form == "both" else (form,)
    forms = {name: getattr(found, name) for name in wanted}
    lacking = {name: reason for name, reason in forms.items() if isinstance(reason, str)}
    if len(lacking) == len(forms):
        told = "; ".join(f"no {name} form: {reason}" for name, reason in lacking.items())
        raise ConfigError(f"{run.path} ({run.recipe.task}): {told}")
    for name, reason in lacking.items():
        say(f"note: no {name} form: {reason}")
    out = Path(out) if out is not None else run.path / to
    with folder.made(out) as aside:
        card = _card(run, to)
        for name, one in forms.items():
            if isinstance(one, Form):
                card["forms"][name] = _written(aside, name, one, say)
        task.save(aside)
        folder.write(aside, folder.RECIPE, to_yaml(run.recipe).encode())
        names = sorted(path.name for path in aside.iterdir())
        card["files"] = digests(aside, names)
        folder.write(aside, folder.CARD, folder.card_bytes(sealed(card)))
    say(f"{out}: {', '.join([*names, folder.CARD])}")
    return out


def _card(run: Run, to: str) -> dict[str, Any]:
    return {
        "format": folder.FORMAT,
        "everstep": everstep.__version__,
        "torch": torch.__version__,
        "task": run.recipe.task,
        "run": str(run.path),
        "to": to,
        "forms": {},
    }


def _written(aside: Path, name: str, form: Form, say: Say) -> dict[str, Any]:
    from everstep.ship.onnx.session import Session, needed

    needed()
    from everstep.ship.onnx.graph import OPSET
    from everstep.ship.onnx.onnx_file import written

    data: bytes = written(form).SerializeToString()
    file = f"{name}.onnx"
    session = Session(file, data)
    check = checked(file, form, session.run)
    folder.write(aside, file, data)
    say(f"{file}: {len(data):,} bytes, opset {OPSET}; {_told(check)}")
    return {
        "file": file,
        "opset": OPSET,
        "inputs": session.described("inputs"),
        "outputs": session.described("outputs"),
        "state": _starts(form),
        "check": {"batches": check.batches, "steps": check.steps, "difference": check.difference},
    }


def _told(check: Check) -> str:
    return f"equal to the run within {check.difference:.1g} over {check.steps} steps"


def _starts(form: Form) -> dict[str, Any]:
    """The leaves of the state before the first step, of one row: a number where all are equal."""
    with torch.no_grad():
        start = form.initial(2)
    found: dict[str, Any] = {}
    for name, (_, leaf) in zip(leaf_names("state", start), leaves(start), strict=True):
        row = leaf[0]
        if not torch.equal(row, leaf[1]):
            raise RunError(f"its initial state differs from row to row ({name}), which no card can say")
        same = row.numel() and bool((row == row.flatten()[0]).all())
        numbers = row.flatten()[0].item() if same else row.tolist()
        found[name] = {"shape": list(row.shape), "dtype": str(leaf.dtype).removeprefix("torch."), "start": numbers}
    return found
