"""A table of language models side by side, as lectures end on: counts, networks, and mixtures of both, on one text.

Each model is trained once into a folder of its own, where a second call finds it; one that was interrupted goes on.
Each line stands by itself in training and scoring, as the sentences of the One Billion Word benchmark do. Networks have
so many epochs that they take about equal CPU time on one thread; the table says how much each took.

    python benchmarks/lm_table.py --out runs/lm_table [--only NAME …] [--epochs 0.5] [--markdown FILE] [--json FILE]
        [--picture FILE.png] [--train FILE --valid FILE --test FILE [--max-size N]] [--merge]

`--merge` keeps those rows of an earlier `--json` that this call does not make, so that models may be trained one by
one, on other machines. `benchmarks/make_words.py` writes a larger text.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import everstep as es
from everstep.look.compared_models import draw_compared
from everstep.runs.compared_runs import Scored, lines_of, mixture, scored, table

COMMON = ["data.sequence=lines", "train.threads=1", "train.max_minutes=null", "train.batch_size=32"]
NETWORK = [*COMMON, "model.embedding_size=200", "model.hidden_size=200", "model.dropout=0.2", "model.input_dropout=0.2"]
RNN = [*NETWORK, "model.cell=RNN", "model.dropout=0.1", "model.input_dropout=0.0"]
DIRECT = ["model.max_entropy_order=3"]
BLACKOUT = ["model.softmax=blackout", "model.samples=1000", "model.sample_power=0.4"]
MODELS: dict[str, tuple[str, float, list[str]]] = {
    "KN-5": ("ptb-kn5", 0, []),
    "SNM": ("ptb-snm", 0, []),
    "RNN + MaxEnt": ("ptb-30min", 2, [*RNN, *DIRECT]),
    "BlackOut RNN": ("ptb-30min", 8, [*RNN, *BLACKOUT]),
    "LSTM": ("ptb-30min", 3, NETWORK),
    "LSTM, adaptive softmax": ("ptb-30min", 6, [*NETWORK, "model.softmax=adaptive", "model.tied=false"]),
    "LSTM, two layers": ("ptb-30min", 3, [*NETWORK, "model.layers=2"]),
}
"""The recipe of each model, its epochs, and what it changes in the recipe."""


def folder_of(out: Path, name: str) -> Path:
    """The run of a model."""
    return out / name.lower().replace(", ", "-").replace(" + ", "-").replace(" ", "-")


def trained(out: Path, name: str, share: float, data: Sequence[str]) -> Path:
    """Train a model, or go on with it; the CPU seconds that it took are kept beside its folder."""
    recipe, epochs, changes = MODELS[name]
    run, kept = folder_of(out, name), folder_of(out, name).with_suffix(".json")
    before = json.loads(kept.read_text())["cpu_seconds"] if kept.exists() else 0.0
    if (run / "README.md").exists():  # its card, which is written last
        return run
    if (run / "config.yaml").exists():
        given = ["--resume", str(run)]
    else:
        steps = [f"train.max_epochs={max(1, round(epochs * share))}"] if epochs else []
        given = [recipe, *changes, *steps, *data, "--out", str(run)]
    print(name, *given, flush=True)
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        subprocess.run([sys.executable, "-m", "everstep", "train", *given], check=True, env=dict(os.environ))
    finally:
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = before + end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
        kept.write_text(json.dumps({"cpu_seconds": round(seconds, 1)}) + "\n")
    return run


def compared(out: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the table: each model, each mixed with KN-5, and all mixed."""
    runs = [es.load(folder_of(out, name)) for name in names]
    texts = {split: lines_of(runs, split)[0] for split in ("valid", "test")}
    found = {
        split: [scored(run, name, text) for run, name in zip(runs, names, strict=True)] for split, text in texts.items()
    }
    tests, valids = found["test"], found["valid"]

    def mixed(places: Sequence[int]) -> Scored:
        return mixture([tests[place] for place in places], [valids[place] for place in places])

    models = [*tests]
    counts = [place for place, name in enumerate(names) if name == "KN-5"]
    for place, name in enumerate(names):
        if counts and name != "KN-5":
            one = mixed([*counts, place])
            models.append(replace(one, name=f"KN-5 + {name}"))
    if len(names) > 2:
        models.append(mixed(range(len(names))))
    cpu = {name: json.loads(folder_of(out, name).with_suffix(".json").read_text())["cpu_seconds"] for name in names}
    return [
        {**row, "cpu_minutes": cpu[row["name"]] / 60 if row["name"] in cpu else None}
        for row in table(models, texts["test"])
    ]


def merged(rows: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows and the earlier ones of other names, best first.

    Between rows of two calls there is no paired bootstrap: if the best is an earlier one, rows of this call have no
    interval, and the other way round.
    """
    names = {row["name"] for row in rows}
    kept = [row for row in earlier if row["name"] not in names]
    found = sorted([*rows, *kept], key=lambda row: float(row["bits_per_char"]))
    with_best = rows if found[0] in rows else kept
    for row in found:
        if row not in with_best:
            row["behind"] = row["low"] = row["high"] = row["bits_per_char"] - found[0]["bits_per_char"]
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text."""
    lines = [
        "| model | perplexity | bits a character | behind the best | parameters | CPU minutes |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        behind = f"{row['behind']:.4f}" if row["behind"] else ""
        behind += f" [{row['low']:.4f}, {row['high']:.4f}]" if row["low"] < row["high"] else ""
        minutes = "" if row["cpu_minutes"] is None else f"{row['cpu_minutes']:.1f}"
        parameters = f"{row['parameters']:,}"
        cells = [row["name"], f"{row['perplexity']:.2f}", f"{row['bits_per_char']:.4f}", behind, parameters, minutes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--epochs", type=float, default=1.0, help="times the epochs of each network")
    parser.add_argument("--merge", action="store_true", help="keep other rows of the file of --json")
    parser.add_argument("--train-only", action="store_true", help="no table")
    for name in ("train", "valid", "test"):
        parser.add_argument(f"--{name}", help="another text than Penn Treebank")
    parser.add_argument("--max-size", type=int, help="largest vocabulary")
    for name in ("markdown", "json", "picture"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    data = [f"data.{name}={value}" for name in ("train", "valid", "test") if (value := getattr(given, name))]
    data += [f"data.max_size={given.max_size}"] if given.max_size else []
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        trained(given.out, name, given.epochs, data)
    if given.train_only:
        return
    rows = compared(given.out, given.only)
    if given.merge and given.json and given.json.exists():
        rows = merged(rows, json.loads(given.json.read_text("utf-8")))
    print(markdown(rows))
    if given.markdown:
        given.markdown.write_text(markdown(rows), "utf-8")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", "utf-8")
    if given.picture:
        print(draw_compared(rows, given.picture))


if __name__ == "__main__":
    main()
