"""Words per second of training a language model, beside PyTorch's `word_language_model` example.

The rival is that example's loop, written anew from its description: time-first batches of a corpus cut into columns, an
embedding, dropout, `nn.LSTM` with dropout between layers, dropout, a linear decoder, log-softmax and NLL, hidden state
detached between windows, gradients clipped at 0.25, plain SGD at 20 written as `p -= lr * p.grad`. Ours is the step of
`everstep.fit` at the same architecture, batch and window, in the same process, taken in turns.

    python benchmarks/lm.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import alternately, summary
from torch import nn

from everstep.cli.common import prepare as tune_malloc
from everstep.data import Corpus, Lanes, Tokenizer, prepare, read_blocks
from everstep.learn import FitSettings
from everstep.learn.learner import Learner
from everstep.learn.optim import make_optimizer
from everstep.native.processor import name as cpu_name
from everstep.networks.likelihood import likelihood
from everstep.networks.token_model import TokenModel, TokenModelSection

SIZE, LAYERS, BATCH, WINDOW, DROPOUT = 200, 2, 20, 35, 0.2
STEPS = 10  # in a round


class Example(nn.Module):
    """The example's RNNModel."""

    def __init__(self, words: int):
        super().__init__()
        self.drop = nn.Dropout(DROPOUT)
        self.encoder = nn.Embedding(words, SIZE)
        self.rnn = nn.LSTM(SIZE, SIZE, LAYERS, dropout=DROPOUT)
        self.decoder = nn.Linear(SIZE, words)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, tokens: torch.Tensor, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple]:
        output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        decoded = self.decoder(self.drop(output))
        return nn.functional.log_softmax(decoded.view(-1, decoded.shape[-1]), dim=1), hidden


def rival(tokens: torch.Tensor, words: int) -> Callable[[], None]:
    """STEPS steps of the example's training loop."""
    torch.manual_seed(0)
    model, criterion = Example(words).train(), nn.NLLLoss()
    columns = tokens[: len(tokens) // BATCH * BATCH].view(BATCH, -1).t().contiguous()
    zeros = torch.zeros(LAYERS, BATCH, SIZE)
    place, hidden = 0, (zeros, zeros)

    def run() -> None:
        nonlocal place, hidden
        for _ in range(STEPS):
            data, target = columns[place : place + WINDOW], columns[place + 1 : place + 1 + WINDOW].reshape(-1)
            model.zero_grad()
            hidden = tuple(leaf.detach() for leaf in hidden)
            output, hidden = model(data, hidden)
            loss = criterion(output, target)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(parameter.grad, alpha=-20)
            loss.item()
            place = (place + WINDOW) % (len(columns) - WINDOW - 1)

    return run


def model_of(words: int) -> TokenModel:
    torch.manual_seed(0)
    config = TokenModelSection(
        embedding_size=SIZE, hidden_size=SIZE, layers=LAYERS, dropout=DROPOUT, input_dropout=DROPOUT
    )
    return TokenModel(words, config).train()


def ours(lanes: Lanes, words: int, precision: str) -> Callable[[], None]:
    """STEPS steps of `fit`."""
    settings = FitSettings(
        max_epochs=9, optimizer="sgd", learning_rate=20.0, clip_norm=0.25, precision=precision, schedule="constant"
    )
    learner = Learner(model_of(words), likelihood(), lanes, settings)

    def run() -> None:
        for _ in range(STEPS):
            learner.step()

    return run


def parts(lanes: Lanes, words: int) -> dict[str, Callable[[], object]]:
    """Each part of a step by itself, forward and backward, in float32."""
    model = model_of(words)
    batch = lanes.batch(0, 1)
    xs = model.embedding(batch.inputs).detach().requires_grad_()
    ys = model.body(xs)[0].detach().requires_grad_()
    optimizer = make_optimizer(model, FitSettings(max_steps=1, optimizer="sgd", learning_rate=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    return {
        "data": lambda: lanes.batch(0, 1),
        "embedding": lambda: model.embedding(batch.inputs).sum().backward(),
        "recurrence": lambda: model.body(xs)[0].sum().backward(),
        "head": lambda: model.head.loss(ys, batch.targets).sum().backward(),
        "optimizer": optimizer.step,
    }


def text() -> tuple[Corpus, Tokenizer]:
    """Penn Treebank's words; without it, the bundled text's."""
    folder = Path(os.environ.get("EVERSTEP_DATA", "../shared/data")) / "ptb"
    source = str(folder / "ptb.train.txt.gz") if folder.is_dir() else "everstep:shakespeare"
    tokenizer = Tokenizer.train(read_blocks([source]) if folder.is_dir() else _bundled(source), "words")
    return prepare(source, tokenizer), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    tune_malloc()  # for both: they share the process
    corpus, tokenizer = text()
    words = tokenizer.vocab_size
    lanes = Lanes(corpus, BATCH, WINDOW, begin_id=tokenizer.begin_id)
    tokens = torch.from_numpy(corpus.tokens.astype("int64"))
    ways = {
        "word_language_model": rival(tokens, words),
        "everstep": ours(lanes, words, "float32"),
        "everstep, precision auto": ours(lanes, words, "auto"),
    }
    times = alternately(ways, options.rounds)
    share = {name: summary(seconds) for name, seconds in alternately(parts(lanes, words), 9).items()}
    base = summary(times["word_language_model"])["median_ms"]
    result = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "shape": {"layers": LAYERS, "size": SIZE, "batch": BATCH, "window": WINDOW, "words": words},
        "ways": {
            name: {
                **summary(seconds),
                "tokens_per_second": STEPS * BATCH * WINDOW / summary(seconds)["median_ms"] * 1000,
                "speed_beside_rival": base / summary(seconds)["median_ms"],
            }
            for name, seconds in times.items()
        },
        "parts_ms": share,
    }
    whole = sum(part["median_ms"] for part in share.values())
    print(f"{result['cpu']}, {result['threads']} threads, torch {torch.__version__}; {result['shape']}")
    for name, way in result["ways"].items():
        print(
            f"{name:28} {way['tokens_per_second']:9,.0f} tokens/s   {way['speed_beside_rival']:.2f}x   "
            f"({way['median_ms'] / STEPS:.1f} ms a step, {way['least_ms'] / STEPS:.1f} … {way['most_ms'] / STEPS:.1f})"
        )
    print("share of everstep's step (float32), each part measured by itself:")
    for name, part in share.items():
        print(f"{name:28} {100 * part['median_ms'] / whole:5.1f} %   {part['median_ms']:.2f} ms")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _bundled(source: str) -> object:
    from everstep.data import expand

    print("EVERSTEP_DATA has no ptb: the bundled text stands in", file=sys.stderr)
    return read_blocks(expand(source))


if __name__ == "__main__":
    main()
