"""Two sentences that counting words can not tell apart, and 200 pairs made alike: `classify-minute` beside its rivals.

    python benchmarks/pairs.py OUT [--seeds N] [--json FILE] [--pictures FOLDER]

Trains the recipe into OUT/1 … OUT/N, measures each on `everstep:reviews.pairs`, with the rivals fitted on the same
training texts, and draws how far each is above chance, and which words decide in the two sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

import everstep as es
from everstep.look.rivals import draw_rivals
from everstep.native.processor import name as cpu_name

SENTENCES = ["The food was good, not bad at all", "The food was bad, not good at all"]
PAIRS = ["everstep:reviews.pairs"]


def measured(out: Path, seed: int) -> dict[str, Any]:
    """One run of the recipe and its figures."""
    start = time.perf_counter()
    run = es.train("classify-minute", out / str(seed), overrides=[f"seed={seed}"])
    minutes = (time.perf_counter() - start) / 60
    said = [prediction.text.split("\t") for prediction in run.predict(SENTENCES)]
    return {
        "seed": seed,
        "minutes": minutes,
        "load": os.getloadavg()[0],
        "test": run.evaluate("test")["accuracy"],
        "pairs": run.evaluate(data=PAIRS)["accuracy"],
        "sentences": dict(zip(SENTENCES, said, strict=True)),
    }


def draw(run: es.Run, rivals: list[dict[str, Any]], folder: Path) -> None:
    """`pairs.png` and `pairs-words.png`."""
    values = {"classify-minute": run.evaluate(data=PAIRS)["accuracy"]}
    values |= {rival["name"]: rival["accuracy"] for rival in rivals}
    print(draw_rivals(values, "accuracy on 200 pairs", folder / "pairs.png"))
    drawn = folder / "pairs"
    for path, _ in run.task.pictures(run.model, drawn, "\n".join(SENTENCES)):
        if path.name == "words.png":
            path.replace(folder / "pairs-words.png")
        else:
            path.unlink()
    drawn.rmdir()


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    runs = [measured(options.out, seed) for seed in range(1, options.seeds + 1)]
    first = es.load(options.out / "1")
    rivals = {"test": first.rivals("test"), "pairs": first.rivals(data=PAIRS)}
    versions = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {**versions, "runs": runs, "rivals": rivals}
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.pictures:
        draw(first, rivals["pairs"], options.pictures)


if __name__ == "__main__":
    main()
