"""Texts per second of training a classifier, beside a plain loop of nn.LSTM and DataLoader.

The rivals are what tutorials show: a `DataLoader` that shuffles and pads each batch to its longest text, an embedding,
a bidirectional `nn.LSTM`, the largest value of each feature over the text, a linear layer, cross-entropy, clipped
gradients, `torch.optim.AdamW`; once with the padding packed away, and once with the padding read, as is often done (its
backward direction then begins in the padding). Ours is what `everstep train` does for each batch: texts of near-equal
length together, the same network through the compiled engine, the same optimizer and settings. Same texts, batch size,
numbers of units and threads. In turns in one process, a few batches each, so that all meet one load of the machine.

    python benchmarks/classification.py [--json FILE] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import alternately, summary
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from everstep.cli.common import prepare as tune_malloc
from everstep.learn.learner import Learner
from everstep.native.processor import name as cpu_name
from everstep.runs.recipe_files import load_task

STEPS = 8  # in a turn


class Plain(nn.Module):
    """The network of the recipe, as it is written with torch.nn."""

    def __init__(self, words: int, classes: int, size: int, hidden: int, drop: tuple[float, float], packed: bool):
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(words, size)
        self.before, self.after = nn.Dropout(drop[0]), nn.Dropout(drop[1])
        self.rnn = nn.LSTM(size, hidden, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        xs = self.before(self.embedding(tokens))
        if self.packed:
            packed = pack_padded_sequence(xs, lengths, True, enforce_sorted=False)
            ys, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, padding_value=float("-inf"))
        else:
            beyond = torch.arange(tokens.shape[1]) >= lengths[:, None]
            ys = self.rnn(xs)[0].masked_fill(beyond[..., None], float("-inf"))
        return self.head(self.after(ys.max(1).values))


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def plain(task: Any, sequences: list[Any], labels: Any, packed: bool) -> Callable[[], None]:
    """STEPS steps of the plain loop."""
    torch.manual_seed(1)
    section, settings = task.recipe.model, task.recipe.train
    drop = (section.input_dropout, section.dropout)
    sizes = (task.tokenizer.vocab_size, len(task.classes), section.embedding_size, section.hidden_size)
    model = Plain(*sizes, drop, packed).train()
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0)

    def together(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        texts, classes = zip(*rows, strict=True)
        return pad_sequence(texts, batch_first=True), torch.tensor([len(t) for t in texts]), torch.tensor(classes)

    rows = [(torch.from_numpy(ids.astype(np.int64)), int(label)) for ids, label in zip(sequences, labels, strict=True)]
    batches = endless(DataLoader(rows, settings.batch_size, shuffle=True, collate_fn=together))  # type: ignore[arg-type]

    def turn() -> None:
        for _ in range(STEPS):
            tokens, lengths, classes = next(batches)
            loss = nn.functional.cross_entropy(model(tokens, lengths), classes)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()

    return turn


def ours(task: Any, precision: str) -> Callable[[], None]:
    """STEPS steps of `fit`."""
    torch.manual_seed(1)
    model = task.model().train()
    settings = task.recipe.train.model_copy(update={"precision": precision})
    batches = task.batches("train", model, "learn")
    learner = Learner(model, task.objective, batches, settings)

    def turn() -> None:
        for _ in range(STEPS):
            learner.step()

    return turn


def sentences() -> Any:
    """The sentences of the Stanford Sentiment Treebank by the recipe `classify-sst2`, else the bundled reviews."""
    there = (Path(os.environ.get("EVERSTEP_DATA", "../shared/data")) / "sst").is_dir()
    options = ["data.phrases=false"] if there else ["model.embedding_size=300", "model.hidden_size=150"]
    task = load_task("classify-sst2" if there else "classify-minute", ["model.embedding_dropout=0", *options])
    task.prepare()
    return task


def report(task: Any, times: dict[str, list[float]]) -> dict[str, Any]:
    """Figures as JSON takes them."""
    texts = STEPS * task.recipe.train.batch_size
    base = times["nn.LSTM, padded"]
    ways = {
        name: {
            **summary(seconds),
            "texts_per_second": texts / statistics.median(seconds),
            "speed_beside_rival": statistics.median(base) / statistics.median(seconds),
            "speed_turn_by_turn": statistics.median(b / s for b, s in zip(base, seconds, strict=True)),
            "speed_of_sums": sum(base) / sum(seconds),
        }
        for name, seconds in times.items()
    }
    section = task.recipe.model
    shape = {
        "texts": len(task.texts.examples("train")),
        "batch": task.recipe.train.batch_size,
        "words": task.tokenizer.vocab_size,
        "embedding": section.embedding_size,
        "hidden": section.hidden_size,
    }
    versions = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {**versions, "load": os.getloadavg()[0], "shape": shape, "steps_in_a_turn": STEPS, "ways": ways}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    tune_malloc()  # for both: they share the process
    torch.set_num_threads(options.threads)
    task = sentences()
    sequences, labels = task.texts.coded("train", task.tokenizer, task.answers, learn=True)
    ways = {
        "nn.LSTM, padded": plain(task, sequences, labels, False),
        "nn.LSTM, packed": plain(task, sequences, labels, True),
        "everstep": ours(task, "float32"),
        "everstep, precision auto": ours(task, "auto"),
    }
    result = report(task, alternately(ways, options.rounds))
    print(f"{result['cpu']}, {result['threads']} threads, load {result['load']:.1f}; {result['shape']}")
    for name, way in result["ways"].items():
        told = f"{way['texts_per_second']:7,.0f} texts/s   {way['speed_beside_rival']:.2f}x"
        turns = f"turn by turn {way['speed_turn_by_turn']:.2f}x, of sums {way['speed_of_sums']:.2f}x"
        spread = f"a turn {way['median_ms']:.0f} ms, {way['least_ms']:.0f} … {way['most_ms']:.0f}"
        print(f"{name:26} {told}   {turns}   ({spread})")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
