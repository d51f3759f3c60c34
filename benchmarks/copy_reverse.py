"""Strings of random symbols, copied and reversed: one vector of the source beside attention, by length.

    python benchmarks/copy_reverse.py [--share S] [--tasks copy] [--json FILE] [--picture PNG]

Four models are trained on strings of 1 to 10 symbols out of 8 and search greedily. Accuracy is the share of 200
new random strings of each length, 1 to 20, that are written without an error; training has seen most strings of 4
symbols or fewer. With one vector, lengths grow during training: at first strings have at most 2 symbols, and all
lengths come from six tenths of the steps on (a curriculum, Bengio 2009).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.pair_batches import PairBatches, TokenSequences
from everstep.decode.beam import beam_search
from everstep.decode.section import BeamSection
from everstep.look.style import COLOURS, DASHES, GREY, canvas, label, legend, save
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection

SYMBOLS, SEEN, LONGEST, TESTED = 8, 10, 20, 200
SHORTEST, GROWN = 2, 0.6
"""The longest strings at first, and the share of the steps after which they are as long as SEEN."""


class Training(NamedTuple):
    """A network and how it is trained."""

    network: dict[str, Any]
    steps: dict[str, int]
    growing: bool


TRAININGS = {
    "attention": Training(
        {"context": "attention", "cell": "LSTM", "hidden_size": 128}, {"copy": 1500, "reverse": 1500}, growing=False
    ),
    "one vector": Training(
        {"context": "initial", "cell": "GRU", "hidden_size": 256, "bidirectional": False},
        {"copy": 10000, "reverse": 6000},
        growing=True,
    ),
}


def strings(
    random: np.random.Generator, lengths: NDArray[np.int64], reverse: bool
) -> tuple[TokenSequences, TokenSequences]:
    """Random strings of these lengths and their copies, or their reverses, each with its end 0."""
    rows = [random.integers(1, SYMBOLS + 1, length).tolist() for length in lengths.tolist()]
    ends = lengths + 1
    source = TokenSequences.of(np.array([token for row in rows for token in [*row, 0]]), ends)
    target = TokenSequences.of(
        np.array([token for row in rows for token in [*(row[::-1] if reverse else row), 0]]), ends
    )
    return source, target


def longest(step: int, steps: int) -> int:
    """The longest strings of a step where lengths grow."""
    return min(SEEN, int(SHORTEST + (SEEN + 1 - SHORTEST) * step / (GROWN * steps)))


def trained(how: Training, reverse: bool, steps: int) -> tuple[EncoderDecoder, float]:
    """A model, and the CPU seconds of its training."""
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderSection(embedding_size=32, tied="all", **how.network), *[SYMBOLS + 1] * 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.004)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random, start = np.random.default_rng(0), time.process_time()
    for step in range(steps):
        most = longest(step, steps) if how.growing else SEEN
        batch = PairBatches(*strings(random, random.integers(1, most + 1, 128), reverse), 0, 128).batch(0, 0)
        optimizer.zero_grad()
        (model.losses(batch)[0].sum() / batch.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), time.process_time() - start


def accuracies(model: EncoderDecoder, reverse: bool) -> list[float]:
    """The share of strings of each length, 1 to LONGEST, that are written without an error."""
    random, found = np.random.default_rng(1), []
    for length in range(1, LONGEST + 1):
        source, target = strings(random, np.full(TESTED, length), reverse)
        rows = np.arange(TESTED)
        with torch.inference_mode():
            tokens, lengths = (torch.from_numpy(array) for array in (source.padded(rows), source.lengths))
            decoder = model.search(tokens, lengths, 0, 0)
        best = beam_search(decoder, BeamSection(beam_width=1, max_length=2 * LONGEST))
        wanted = [target.row(row)[:-1] for row in range(TESTED)]
        found.append(float(np.mean([some[0].tokens == row for some, row in zip(best, wanted, strict=True)])))
    return found


def draw(results: dict[str, list[float]], path: Path) -> None:
    """A line for each model."""
    figure = canvas(height=5.0)
    axes = figure.subplots()
    for number, (name, values) in enumerate(results.items()):
        colour, dash = COLOURS[number % 2], DASHES[number // 2]
        axes.plot(np.arange(1, LONGEST + 1), 100 * np.array(values), color=colour, linestyle=dash, label=name)
    axes.axvline(SEEN + 0.5, color=GREY, linewidth=1)
    axes.annotate("longer than in training →", (SEEN + 3, 20), fontsize=12, color=GREY)
    axes.set_xticks(range(1, LONGEST + 1, 1 + (LONGEST > 20)))
    label(axes, "symbols of the string", "% without an error")
    legend(axes)
    save(figure, path)


def main() -> None:
    """Train, measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, for a quick look")
    parser.add_argument("--tasks", nargs="+", choices=("copy", "reverse"), default=["copy", "reverse"])
    parser.add_argument("--contexts", nargs="+", choices=tuple(TRAININGS), default=[*TRAININGS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    results: dict[str, list[float]] = {}
    for task in asked.tasks:
        for name in asked.contexts:
            how = TRAININGS[name]
            model, seconds = trained(how, task == "reverse", round(asked.share * how.steps[task]))
            values = results[f"{task}, {name}"] = accuracies(model, task == "reverse")
            print(
                f"{task}, {name}: {seconds:.0f} CPU s; lengths seen {min(values[:SEEN]):.1%} or more; beyond "
                + ", ".join(f"{length}: {values[length - 1]:.0%}" for length in (11, 12, 14, 16, 20)),
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps({"seen": SEEN, "tested": TESTED, "accuracy": results}, indent=1) + "\n")
    if asked.picture:
        draw(results, asked.picture)


if __name__ == "__main__":
    main()
