"""Export a run to a folder that another runtime can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

import everstep
from everstep.errors import ConfigError, RunError
from everstep.networks.forms import Exported, Form
from everstep.runs.capabilities import Writes
from everstep.runs.opening import digests
from everstep.runs.recipe import FORMAT as RECIPE_FORMAT
from everstep.runs.recipe_files import to_yaml
from everstep.runs.run import Run
from everstep.ship import export_folder as folder
from everstep.ship import torch_program
from everstep.ship.checking import NotEqual
from everstep.ship.loaded import OnnxRuntime
from everstep.ship.onnx.session import needed
from everstep.ship.recording import leaf_names
from everstep.state import leaves
from everstep.storage import files
from everstep.storage.reading import sealed

Kind = Literal["onnx", "torch", "c", "arpa", "word2vec", "word2vec-binary", "glove", "vec"]
Which = Literal["step", "sequence", "both"]
Short = Literal["float16", "bfloat16", "int8"]
Say = Callable[[str], None]


def export(
    run: Run,
    out: str | Path | None = None,
    *,
    to: Kind = "onnx",
    form: Which = "both",
    precision: Literal["float32"] | Short = "float32",
    tolerance: float = 0.01,
    say: Say = lambda line: None,
) -> Path:
    """Export a run for another runtime, and compare the outputs of that runtime with the run's.

    Args:
        run: the run.
        out: the new folder or file; `RUN/onnx`, `RUN/torch`, `RUN/c` or the file `RUN/model.TO` if None.
        to: "onnx", "torch" (programs of `torch.export`) or "c" (C++ source): a folder of forms (docs/export.md). "arpa"
            (n-grams), "word2vec", "word2vec-binary", "glove", "vec" (word vectors): one file, which has neither `form`
            nor `precision`.
        form: one step, whole sequences, or both as far as the run has them.
        precision: the precision of the weights, below float32 only for ONNX. The loss on the validation split is then
            compared with the run's.
        tolerance: the largest allowed increase of that loss, in the unit of the job's loss, such as nats.
        say: receives messages for the user.

    Returns:
        The file, or the folder: the files, `export.json` with the inputs and outputs, `recipe.yaml`, and the files of
        the job such as `tokenizer.json`. `everstep.load` opens an ONNX export.

    Raises:
        RunError: the job has no export, the run is an export or is not on the CPU, or the folder exists or cannot be
            written.
        ConfigError: a package or the compiler is missing, the run has no such form, or `precision` does not fit.
        NotExported: an operation has no counterpart; the message names it.
        NotEqual: the other runtime computes something else, or the loss increases by more than `tolerance`.

    >>> import everstep as es
    >>> path = getfixture("tmp_path")
    >>> run = es.train("shakespeare-minute", path / "run", overrides=["train.max_steps=1"])
    >>> es.load(export(run, path / "out")).generate(prompt="To be", length=3, seed=1)[:5]
    'To be'
    """
    if run.task.no_export:
        raise RunError(f"{run.path} ({run.recipe.task}) cannot export: {run.task.no_export}")
    if to not in ("onnx", "torch", "c"):
        if form != "both" or precision != "float32":
            raise ConfigError(f"export: --form and --precision are for --to onnx, torch and c; --to {to} has neither")
        return _one_file(run, None if out is None else Path(out), to)
    task = _exporting(run, to)
    if precision != "float32":
        _check_precision(run, to, precision)
    saved = _ways(to)
    found = task.exported(run.model)
    forms = _wanted(run, found, to, form, say)
    if precision != "float32" and "sequence" not in forms and isinstance(found.sequence, Form):
        raise ConfigError(f"export: precision {precision} is measured on whole sequences; give --form both")
    out = Path(out) if out is not None else run.path / to
    with folder.made(out) as aside:
        card = _card(run, to)
        for name, entry in saved(aside, forms):
            card["forms"][name] = {**entry, "state": _starts(forms[name])}
            check = entry["check"]
            over = f" over {check['steps']} steps" if check["steps"] else ""
            say(f"{entry['file']}: within {check['difference']:.1g} of the run{over}")
        if precision != "float32":
            card["precision"] = _shortened(run, aside, card, precision, tolerance, say)
        task.save(aside)
        task.code.save(aside)
        folder.write(aside, folder.RECIPE, to_yaml(run.recipe).encode())
        names = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
        card["files"] = digests(aside, names)
        folder.write(aside, folder.CARD, folder.card_bytes(sealed(card)))
    say(f"{out}: {', '.join([*names, folder.CARD])}")
    return out


def _exporting(run: Run, to: Kind) -> Any:
    """The job of a run whose model has forms."""
    task = run.able("export")
    if isinstance(task, Writes):
        raise RunError(f"{run.path} ({run.recipe.task}) has no form for --to {to}; it has --to {task.formats[0]}")
    if folder.is_export(run.path):
        raise RunError(f"{run.path} is exported already; export the run that it was made of")
    if next(run.model.parameters()).device.type != "cpu":
        raise RunError(f"{run.path}: load it on the CPU to export it")
    return task


def _one_file(run: Run, out: Path | None, to: Kind) -> Path:
    """Write the model in a format that its job has."""
    task, path = run.able("export"), out or run.path / f"model.{to}"
    if not isinstance(task, Writes) or to not in task.formats:
        raise RunError(f"{run.path} ({run.recipe.task}) cannot be written with --to {to}")
    if path.exists():
        raise RunError(f"{path} exists and is never overwritten; give another --out")
    with files.explained(path.parent, "export again"):
        files.replace_file(path, task.written(run.model, to))
    return path


def _check_precision(run: Run, to: Kind, precision: Short) -> None:
    if to != "onnx":
        raise ConfigError(f"export: precision {precision} is for --to onnx; --to {to} has float32")
    if "valid" not in run.task.splits():
        raise ConfigError(f"export: precision {precision} is measured on the validation split, which {run.path} lacks")


def _ways(to: Kind) -> Callable[[Path, dict[str, Form]], Iterator[tuple[str, dict[str, Any]]]]:
    """The function that writes forms, compares each with the run, and gives its entry of the card by its name."""
    if to == "c":
        from everstep.ship.c.c_built import saved

        return saved
    one = torch_program.saved
    if to == "onnx":
        needed()
        from everstep.ship.onnx.onnx_file import saved as as_onnx

        one = as_onnx
    return lambda aside, forms: ((name, one(aside, name, form)) for name, form in forms.items())


def _wanted(run: Run, found: Exported, to: Kind, which: Which, say: Say) -> dict[str, Form]:
    """The requested forms. With "both", reports a missing one."""
    if to == "c" and isinstance(found.step, Form):
        found = found._replace(sequence="C++ has the step; call it once for each step")
    named = {name: getattr(found, name) for name in (("step", "sequence") if which == "both" else (which,))}
    lacking = {name: reason for name, reason in named.items() if isinstance(reason, str)}
    if len(lacking) == len(named):
        told = "; ".join(f"no {name} form: {reason}" for name, reason in lacking.items())
        raise ConfigError(f"{run.path} ({run.recipe.task}): {told}")
    for name, reason in lacking.items():
        say(f"note: no {name} form: {reason}")
    forms = {name: one for name, one in named.items() if isinstance(one, Form)}
    before = forms["step"].before if "step" in forms else None
    return forms if before is None else {"start": before, **forms}


def _shortened(
    run: Run, aside: Path, card: dict[str, Any], precision: Short, tolerance: float, say: Say
) -> dict[str, Any]:
    """Rewrite the files with shorter weights, and measure the loss on the validation split with them."""
    import onnx

    from everstep.ship.onnx.short_weights import shortened

    for found in card["forms"].values():
        path = aside / found["file"]
        whole = path.stat().st_size
        data = shortened(onnx.load(path), precision).SerializeToString()
        folder.write(aside, found["file"], data)
        say(f"{found['file']}: {precision}, {len(data) / whole:.2f} of the size in float32")
    task: Any = run.task
    before, after = (task.loss_on(model, "valid") for model in (run.model, task.stand_in(OnnxRuntime(aside, card))))
    say(f"loss on valid: {before:.4f} {task.loss_unit} a {task.unit}, with {precision} {after:.4f}")
    if not after - before <= tolerance:
        raise NotEqual(
            f"with {precision} weights the loss on valid is {after:.4f}, which is {after - before:.4f} more than the "
            f"run's; expected at most {tolerance:g} more (--tolerance). No files are kept"
        )
    return {"weights": precision, "loss": after, "loss_float32": before}


def _card(run: Run, to: str) -> dict[str, Any]:
    return {
        "format": folder.FORMAT,
        "everstep": everstep.__version__,
        "torch": torch.__version__,
        "task": run.recipe.task,
        "recipe_format": RECIPE_FORMAT,
        "run": run.path.absolute().name,
        "to": to,
        "forms": {},
    }


def _starts(form: Form) -> dict[str, Any]:
    """The initial state of one row, by leaf: shape, dtype, and a list of numbers, or one number if all are equal."""
    if form.before is not None:
        return {}
    with torch.no_grad():
        start = form.initial(2)
    found: dict[str, Any] = {}
    for name, (_, leaf) in zip(leaf_names("state", start), leaves(start), strict=True):
        row = leaf[0]
        if not torch.equal(row, leaf[1]):
            raise RunError(f"its initial state differs from row to row ({name}), which an export does not support")
        same = row.numel() and bool((row == row.flatten()[0]).all())
        numbers = row.flatten()[0].item() if same else row.tolist()
        found[name] = {"shape": list(row.shape), "dtype": str(leaf.dtype).removeprefix("torch."), "start": numbers}
    return found
