"""The page of the catalogue, docs/cells.md: every cell with its equation, source, size, and speed beside torch.nn.LSTM.

    python benchmarks/cells_page.py --measure docs/results/cells.json    # on an idle machine; goes on where it was
    python benchmarks/cells_page.py                                      # writes the page, with what was measured

A training step is forward and backward to all parameters and inputs; the cell runs as `backend="auto"` has it, in turns
with torch.nn.LSTM of the same sizes, and after that the loop that PyTorch runs step by step in turns with
torchrecurrent's cell, a loop too.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from textwrap import fill
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from engine import ratio
from torch import Tensor, nn

import everstep as es
import everstep.cells
from everstep.backends.dispatch import BACKENDS
from everstep.backends.fused import backend as fused
from everstep.backends.protocol import Refusal
from everstep.cli.common import prepare as tune_malloc
from everstep.equation import Gated
from everstep.native.kernels import kernels
from everstep.native.processor import name as cpu_name
from everstep.networks.cells_by_name import cell_names
from everstep.state import leaves

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, RESULTS = DOCS / "cells.md", DOCS / "results" / "cells.json"
SHAPES = [(100, 32, 256), (200, 8, 128), (400, 16, 64)]
"""(time, batch, features in and out)"""
SIZE = 128
CELLS: dict[str, type[es.Cell]] = {name: getattr(es, name) for name in cell_names()}
MADE: dict[str, Callable[[int], es.Cell]] = {
    "ProjectedLSTM": lambda size: es.ProjectedLSTM(size, size, size // 2),
    "ExpressionCell": lambda size: es.ExpressionCell(size, size, es.random_tree(1)),
}
"""What takes more than sizes in and out."""
THEIRS = {
    "BRC": "BR",
    "NBRC": "NBR",
    "CoRNN": "coRNN",
    "TauGRU": "tauGRU",
    "NoForgetLSTM": "OriginalLSTM",
    "NASCell": "NAS",
}
"""Names in torchrecurrent that are not ours."""

HEAD = """# The cells

Written by `python benchmarks/cells_page.py` from the code and what was measured; run it anew instead of editing.

- parameters, state: numbers, at D = H = {size} (features of x_t and of h_t).
- affine: h_t = a(x_t) ∘ h_{{t-1}} + b(x_t), which can also run as a parallel scan.
- backends: what can run it besides the loop that PyTorch runs step by step; the first is what `auto` takes.
- compiled step: products with the state, and loops over its numbers, that are left inside the loop over time; what
  needs x_t alone is computed before it.
- × LSTM: how many times as fast as `torch.nn.LSTM` of the same sizes a training step is (above 1: faster), at
  (time, batch, size). Of cells that differ in what they compute, this compares cost, not quality.
{machine}
"""


def made(name: str, size: int) -> es.Cell:
    """The cell of that name with D = H = `size`, all else as it comes."""
    if name in MADE:
        return MADE[name](size)
    given = inspect.signature(CELLS[name]).parameters.values()
    parts = len(getattr(CELLS[name], "parts", "x"))  # of the input, of the same size each
    whole = {"input_size": -(-size // parts) * parts}
    return CELLS[name](*[whole.get(p.name, size) for p in given if p.default is p.empty and p.kind < p.VAR_POSITIONAL])


# --------------------------------------------------------------------------------------------------------- the page


def source(cls: type[es.Cell]) -> str:
    """Author and year, as the docstring has them."""
    found = re.search(r'\((?:"[^"]*", )?([^()":]*(?:19|20)\d\d)', inspect.getdoc(cls) or "")
    return " ".join(found[1].split()) if found and "no source" not in found[1] else "–"


def described(cls: type[es.Cell]) -> tuple[str, str]:
    """What the docstring says before its example: the first paragraph, and the equations."""
    first, *rest = (inspect.getdoc(cls) or "").partition(">>>")[0].strip().split("\n\n")
    return " ".join(first.split()), "\n\n".join(rest)


def equation(cls: type[es.Cell]) -> str:
    """The source of a cell that is an equation, without its docstring; "" of other cells."""
    if not issubclass(cls, Gated) or cls.step is not Gated.step:
        return ""
    text = inspect.getsource(cls)
    docstring, function, *_ = ast.parse(text).body[0].body  # type: ignore[attr-defined]
    lines = text.splitlines()
    return "\n".join([*lines[: docstring.lineno - 1], *lines[docstring.end_lineno + 1 : function.end_lineno]])


def facts(name: str) -> tuple[dict[str, str], str]:
    """The row of a cell in the table, without speeds, and why it is not compiled. Its step is planned all the same."""
    cell = made(name, SIZE)
    xs = torch.zeros(2, 8, cell.input_size)
    kernels(torch.float32)
    with patch("everstep.native.build.load", return_value=SimpleNamespace(run=0)):
        found = {name: backend.prepare(cell, xs, None, None) for name, backend in BACKENDS.items()}
        refused = {name: run if isinstance(run, Refusal) else None for name, run in found.items()}
        step = fused.describe_step(cell, xs)
    inside = re.search(r"(\d+) products? and (\d+) pointwise loops?", step)
    state = [(path.removeprefix("state"), leaf.shape[1:]) for path, leaf in leaves(cell.initial_state(1, xs))]
    row = {
        "cell": f"[{name}](#{name.lower()})",
        "source": source(CELLS[name]),
        "parameters": f"{sum(p.numel() for p in cell.parameters()):,}",
        "state": ", ".join(f"{path} {'×'.join(map(str, shape)) or 1}".strip() for path, shape in state),
        "affine": "yes" if isinstance(cell, es.Affine) else "",
        "backends": ", ".join(b for b, reason in refused.items() if reason is None and b != "reference") or "–",
        "compiled step: products, loops": f"{inside[1]}, {inside[2]}" if inside else "–",
    }
    return row, re.sub(r" \(\S+\.py:\d+\)", "", refused["fused"] or "").removesuffix(".")


def times(found: dict[str, Any], shape: str) -> str:
    """The line of a section: milliseconds of a training step at one shape."""
    t = found[shape]
    parts = [f"{t['cell']['median_ms']:.3g} ms ({t['backend']})", f"torch.nn.LSTM {t['nn.LSTM']['median_ms']:.3g}"]
    parts += [f"step by step {t['loop_ms']:.3g}"]
    parts += [f"torchrecurrent {t['torchrecurrent_ms']:.3g}"] if "torchrecurrent_ms" in t else []
    return f"- {shape}: {', '.join(parts)}"


def page(names: Iterable[str] = CELLS) -> str:
    """The whole of docs/cells.md, with these cells."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    measured = results.get("cells", {})
    machine = ""
    if measured:
        machine = (
            f"\nMeasured on {results['cpu']}, {results['threads']} threads, torch {results['torch']}: medians, in "
            "turns in one process ([all of them](results/cells.json)).\n"
        )
    rows, sections = [], []
    for name in sorted(names, key=str.lower):
        row, refused = facts(name)
        found = measured.get(name, {})
        for shape in map(label, SHAPES):
            ratio = f"{found[shape]['ratio']['cell']:.2f}" if shape in found else "–"
            row[f"× LSTM at {shape}"] = ratio
        rows.append(row)
        about, lines = described(CELLS[name])
        parts = [f"## {name}", about]
        parts += [f"```text\n{lines}\n```"] if lines else []
        parts += [f"```python\n{code}\n```"] if (code := equation(CELLS[name])) else []
        parts += [fill(f"Not compiled: {refused}.", 120, break_on_hyphens=False)] if refused else []
        parts += ["Training step:\n\n" + "\n".join(times(found, label(s)) for s in SHAPES)] if found else []
        sections.append("\n\n".join(parts))
    table = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    table += ["| " + " | ".join(row.values()) + " |" for row in rows]
    head = HEAD.format(size=SIZE, machine=machine)
    return "\n\n".join([head.rstrip(), "\n".join(table), *sections]) + "\n"


# --------------------------------------------------------------------------------------------------- the measurement


def label(shape: tuple[int, int, int]) -> str:
    return ", ".join(map(str, shape))


def step(run: Callable[[Tensor], Tensor], module: nn.Module, xs: Tensor) -> Callable[[], object]:
    """One training step; parameters that a rival has and does not use get no gradient."""
    wanted = [xs, *module.parameters()]
    weights = torch.randn(run(xs).shape)
    return lambda: torch.autograd.grad(run(xs), wanted, weights, allow_unused=True)


def measure(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """A training step of the cell, of torch.nn.LSTM, of the loop and of torchrecurrent's cell."""
    torch.manual_seed(0)
    time, batch, size = shape
    cell, lstm = made(name, size), nn.LSTM(size, size, batch_first=True)
    xs = torch.randn(batch, time, size, requires_grad=True)
    found = ratio({"nn.LSTM": step(lambda x: lstm(x)[0], lstm, xs), "cell": step(lambda x: cell(x)[0], cell, xs)})
    loops = {"loop": step(lambda x: cell(x, backend="reference")[0], cell, xs)}
    if (theirs := rival(name)) is not None:
        other = theirs(size, size, batch_first=True)
        loops["torchrecurrent"] = step(lambda x: other(x)[0], other, xs)
    slow = ratio(loops)
    return {"backend": es.explain(cell, xs).backend, **found, **{f"{way}_ms": slow[way]["median_ms"] for way in loops}}


def rival(name: str) -> Any:
    """The layer of torchrecurrent that computes the same, or None."""
    if importlib.util.find_spec("torchrecurrent") is None:
        return None
    import torchrecurrent

    theirs = THEIRS.get(name, name)
    return getattr(torchrecurrent, theirs) if f"{theirs}Cell" in torchrecurrent.__all__ else None


def measure_all(path: Path, only: list[str]) -> None:
    """Every cell that the file lacks, written after each."""
    tune_malloc()
    torch.set_num_threads(2)
    machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__, "cells": {}}
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else machine
    names = only or list(CELLS)
    for number, name in enumerate(names, 1):
        if name not in results["cells"]:
            results["cells"][name] = {label(shape): measure(name, shape) for shape in SHAPES}
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        told = "  ".join(f"{shape}: {t['ratio']['cell']:5.2f}" for shape, t in results["cells"][name].items())
        print(f"{number:2}/{len(names)} {name:22} × LSTM  {told}", flush=True)
    print(summary(results))


def summary(results: dict[str, Any]) -> str:
    """How many times as long torchrecurrent's cells take, at each shape."""
    told = []
    for shape in map(label, SHAPES):
        times_ = [cell[shape] for cell in results["cells"].values() if "torchrecurrent_ms" in cell[shape]]
        ratios = sorted(t["torchrecurrent_ms"] / t["cell"]["median_ms"] for t in times_)
        if ratios:
            told.append(f"{shape}: mean {mean(ratios):.2f}, least {ratios[0]:.2f} of {len(ratios)}")
    return "torchrecurrent / ours: " + "; ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FILE")
    parser.add_argument("--only", default="", help="names of cells, with commas")
    options = parser.parse_args()
    if options.measure:
        measure_all(options.measure, [name for name in options.only.split(",") if name])
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
