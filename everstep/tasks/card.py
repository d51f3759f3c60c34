"""What a run folder says of itself: `environment.json`, `scores.json` and its card, `README.md`."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import everstep
from everstep import processor
from everstep.errors import RunError
from everstep.learn import files
from everstep.reading import json_text, parse_json, read_small, reason, sealed, unsealed
from everstep.tasks.config import Config
from everstep.tasks.folder import ENVIRONMENT
from everstep.tasks.unknowns import shown

_LARGEST = 1 << 20  # bytes of environment.json
_SAME = "this recipe gives the same bits on such a machine, with as many threads and these versions"
_CLOCKED = "the clock had a part in how long it trained or in its learning rate, so that another run will differ"
FORMAT = 1
"""Of run folders; raised when an older everstep could not read a newer run."""


def write_environment(out: Path, **begun: Any) -> None:
    """`environment.json`: format, versions, machine, threads, time, and of a run what it was begun with; sealed."""
    content = {
        "format": FORMAT,
        "everstep": everstep.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": processor.name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **begun,
    }
    _write_json(out / ENVIRONMENT, sealed(content))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with files.explained(path.parent):
        files.replace_file(path, (json_text(content, indent=2) + "\n").encode())


def amend_environment(out: Path, **begun: Any) -> None:
    """Change what a run was begun with, as far as it is known of it."""
    content = read_environment(out)
    changed = {name: value for name, value in begun.items() if name in content and content[name] != value}
    if changed:
        _write_json(out / ENVIRONMENT, sealed({**content, **changed}))


def read_environment(out: Path) -> dict[str, Any]:
    """What `environment.json` says; that of early versions has no seal, and says less.

    Raises:
        RunError: it is missing, damaged or of a newer format.
    """
    path = out / ENVIRONMENT
    try:
        content: dict[str, Any] = parse_json(read_small(path, _LARGEST))
        found = content["format"]
        if "seal" in content:
            content = unsealed(content)
        if not isinstance(found, int):
            raise ValueError(f"its format is {found!r}, not a whole number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: missing or damaged ({reason(error)}); {out} is not a whole run") from None
    if found > FORMAT:
        raise RunError(
            f"{out} was made by a newer version of everstep ({content.get('everstep')}, run format {found}); "
            f"this one ({everstep.__version__}) reads formats up to {FORMAT}: upgrade everstep"
        )
    return content


def write_scores(out: Path, scores: dict[str, Any]) -> None:
    """`scores.json`: what `evaluate` gives of each split that is not trained on."""
    _write_json(out / "scores.json", scores)


def write_card(out: Path, config: Config, summary: dict[str, Any]) -> None:
    """`README.md` of a run: what it is, how it did, how to use it."""
    lines = [
        f"# {out.name}",
        "",
        f"A {config.task} trained with everstep {everstep.__version__}.",
        "",
        f"- text: `{config.data.train}`, as {config.data.unit}: a vocabulary of {summary['vocabulary']:,}",
        f"- model: {config.model.cell}, layers of {list(config.model.hidden_sizes)}, "
        f"{summary['parameters']:,} parameters",
        f"- training: {summary['steps']:,} steps, {summary['epochs']:.2f} epochs, {summary['minutes']:.1f} minutes "
        f"on {processor.name()} with {torch.get_num_threads()} threads; ended by {summary['stopped_by']}; "
        f"seed {config.seed}",
        f"- again: {_CLOCKED if summary['clocked'] else _SAME}",
        "",
        "| split | tokens | unknown | bits per token | perplexity | bits per character | word perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    scores = summary["scores"]
    for split, s in scores.items():
        lines.append(
            f"| {split} | {s['tokens']:,} | {s.get('unknown_share', 0):.2%} | {s['bits_per_token']:.4f} "
            f"| {s['perplexity']:.2f} | {shown(s, 'bits_per_char')} | {shown(s, 'word_perplexity', 2)} |"
        )
    if any("lower_bounds" in s for s in scores.values()):
        lines += ["", "≥: a lower bound, since the unknown words have not been spelled."]
    lines += [
        "",
        "```sh",
        f"everstep eval {out}",
        f"everstep generate {out} --length 200 --temperature 0.8",
        f"everstep score {out} < sentences.txt",
        "```",
        "",
    ]
    with files.explained(out):
        files.replace_file(out / "README.md", "\n".join(lines).encode())
