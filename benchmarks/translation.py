"""Speed of training and of search of a translator with attention, in turns with JoeyNMT's and Eole's own models.

    python benchmarks/translation.py --rivals FOLDER [--rounds 5] [--batches 10] [--only train search] [--json FILE]

Multi30k, en to de, words of the tokenised files with a count of 2 or more; embeddings of 256, an encoder of 2 × 256,
a decoder of 512, bilinear attention, dropout of 0.3, batches of 64, float32, with and without input feeding. Figures
are real target tokens (no padding) a CPU second of one thread, from the batch to the optimizer's step: `Learner.step`
here, with AdamW as one kernel; for the others `torch.optim.Adam` and `clip_grad_norm_`, as their own programs do.
Numbers below the smallest normal one count as 0 for all, which only `Learner` sees to by itself. JoeyNMT gets sentences
in random order, as its loader gives them, and again batches of near-equal lengths, as the others get them. A plain
PyTorch loop is the rival where there is no folder (`rivals_translation.py` says how to make one).

Search: sentences a CPU second, 31 steps of each, greedy and with a beam of 5, of untrained weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rivals_translation import Eole, Joey, find_rivals, in_given_order
from torch import Tensor, nn

from everstep.data.pair_batches import PairBatch, PairBatches
from everstep.decode.beam import beam_search
from everstep.decode.section import BeamSection
from everstep.learn import FitSettings, Loss
from everstep.learn.learner import Learner
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.runs.pair_data import PairTexts
from everstep.runs.pair_section import PairSection
from everstep.runs.pair_tokens import CodedPairs

PREFIX = "${EVERSTEP_DATA}/multi30k/tok/train.lc.norm.tok"
STEPS, ROWS = 31, 64


class Ours(nn.Module):
    """The same model of this package."""

    def __init__(self, source: int, target: int, end: int, feeding: bool):
        super().__init__()
        section = EncoderDecoderSection(
            embedding_size=256, encoder_size=256, hidden_size=512, attention="general", input_feeding=feeding,
            input_dropout=0.3, dropout=0.3, tied="none",
        )  # fmt: skip
        self.model, self.end = EncoderDecoder(section, source, target), end

    def loss(self, batch: PairBatch) -> Tensor:
        """The sum over a batch of −log p of each target token."""
        return self.model.losses(batch)[0].sum()

    def searched(self, source: Tensor, lengths: Tensor, width: int, steps: int) -> None:
        """Write steps − 1 tokens and the end for each source."""
        decoder = self.model.search(source, lengths, self.end, self.end)
        most = steps - 1
        beam_search(decoder, BeamSection(beam_width=width, min_length=most, max_length=most, length_penalty=1.0))


class Plain(nn.Module):
    """A loop as one writes it in PyTorch: packed encoder, one scan or a loop of cells, `F.cross_entropy`."""

    def __init__(self, source: int, target: int, end: int, feeding: bool):
        super().__init__()
        del end
        self.read, self.written = nn.Embedding(source, 256), nn.Embedding(target, 256)
        self.encoder = nn.LSTM(256, 256, bidirectional=True, batch_first=True)
        self.decoder = nn.LSTMCell(768, 512) if feeding else nn.LSTM(256, 512, batch_first=True)
        self.keys, self.mix = nn.Linear(512, 512, bias=False), nn.Linear(1024, 512, bias=False)
        self.begin, self.dropout = nn.Linear(512, 512), nn.Dropout(0.3)
        self.out, self.feeding = nn.Linear(512, target), feeding

    def loss(self, batch: PairBatch) -> Tensor:
        """The sum over a batch of −log p of each target token."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.read(batch.source)), batch.source_lengths, batch_first=True, enforce_sorted=False
        )
        memory, (last, _) = self.encoder(packed)
        memory = self.dropout(nn.utils.rnn.pad_packed_sequence(memory, batch_first=True)[0])
        outside = torch.arange(memory.shape[1]) >= batch.source_lengths[:, None]
        state = torch.tanh(self.begin(torch.cat([last[0], last[1]], -1)))
        xs, keys = self.dropout(self.written(batch.inputs)), self.keys(memory)

        def attended(ys: Tensor) -> Tensor:
            scores = (ys @ keys.transpose(1, 2)).masked_fill(outside[:, None], -torch.inf)
            return torch.tanh(self.mix(torch.cat([scores.softmax(-1) @ memory, ys], -1)))

        if self.feeding:
            hidden, fed, found = (state, state), torch.zeros_like(state), []
            for x in xs.unbind(1):
                hidden = self.decoder(torch.cat([x, fed], -1), hidden)
                fed = attended(hidden[0][:, None])[:, 0]
                found.append(fed)
            ys = torch.stack(found, 1)
        else:
            ys = attended(self.decoder(xs, (state[None], state[None]))[0])
        real = torch.arange(xs.shape[1]) < batch.lengths[:, None]
        targets = batch.targets.masked_fill(~real, -100)
        return nn.functional.cross_entropy(self.out(self.dropout(ys)).flatten(0, 1), targets.flatten(), reduction="sum")


def objective(model: Any, batch: PairBatch, state: Any) -> Iterator[Loss]:
    """Teacher forcing, as of the job."""
    yield Loss(*model.model.losses(batch))


class Learning:
    """This package's model in training: each call makes some steps and gives real target tokens a CPU second."""

    def __init__(self, model: Any, pairs: CodedPairs, end: int):
        self._batches, self._next = PairBatches(*pairs[:2], end, ROWS, seed=1), 0
        settings = FitSettings(max_epochs=1, learning_rate=1e-3, schedule="constant", precision="float32")
        self._learner = Learner(model.train(), objective, self._batches, settings)

    def __call__(self, batches: int) -> float:
        """Tokens a second of so many further batches."""
        tokens = sum(self._batches.batch(0, self._next + number).count for number in range(batches))
        self._next += batches
        start = time.process_time()
        for _ in range(batches):
            self._learner.step()
        return tokens / (time.process_time() - start)


class Training:
    """Another model in training, as `Learning`."""

    def __init__(self, model: Any, pairs: CodedPairs, end: int, bucketed: bool):
        self.model, self._next = model.train(), 0
        self._batches = PairBatches(*pairs[:2], end, ROWS, seed=1)
        self._rows = None if bucketed else in_given_order(*pairs[:2], ROWS, 1)
        self._optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def __call__(self, batches: int) -> float:
        """Tokens a second of so many further batches."""
        tokens, start = 0, time.process_time()
        for number in range(self._next, self._next + batches):
            made = self._batches.batch(0, number) if self._rows is None else self._batches.made_of(self._rows[number])
            self._optimizer.zero_grad()
            (self.model.loss(made) / made.count).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            tokens += made.count
        self._next += batches
        return tokens / (time.process_time() - start)


def searching(model: Any, pairs: CodedPairs, width: int) -> Callable[[int], float]:
    """Each call translates batches of sources, from the first ones on, and gives sentences a CPU second."""
    model.eval()

    def searched(batches: int) -> float:
        start = time.process_time()
        for number in range(batches):
            rows = np.arange(number * ROWS, (number + 1) * ROWS)
            lengths = torch.from_numpy(pairs.source.lengths[rows].astype(np.int64))
            tokens = torch.from_numpy(pairs.source.padded(rows))
            with torch.inference_mode():
                model.searched(tokens, lengths, width, STEPS)
        return batches * ROWS / (time.process_time() - start)

    return searched


def in_turns(ways: dict[str, Callable[[int], float]], rounds: int, batches: int) -> dict[str, Any]:
    """The median speed of each, its spread, and how many times as fast as each rival the first is."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):
        for name, way in ways.items():
            speed = way(batches if number else 2)
            if number:
                found[name].append(speed)
    ours = next(iter(ways))
    rows = {}
    for name, speeds in found.items():
        ratios = [one / other for one, other in zip(found[ours], speeds, strict=True)]
        rows[name] = {"median": statistics.median(speeds), "least": min(speeds), "most": max(speeds)}
        rows[name]["times"] = statistics.median(ratios)
        print(
            f"  {name:32} {rows[name]['median']:8.1f} a CPU second ({min(speeds):.1f} to {max(speeds):.1f}); ours is "
            f"{rows[name]['times']:.2f} times as fast",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", type=Path, help="a folder with joeynmt and eole; without it a plain loop alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=("train", "search"), default=["train", "search"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    if asked.rivals:
        find_rivals(asked.rivals.resolve())
    texts = PairTexts(
        PairSection(
            train=PREFIX, source="en", target="de", unit="words", min_count=2, max_size=None, vocabulary="separate",
            tokenisation="given", valid_fraction=0,
        ),
        1,
    )  # fmt: skip
    sides = texts.languages()
    pairs, end = texts.coded("train", sides, learn=True), sides.target.end
    sizes = *(side.tokenizer.vocab_size for side in sides), end
    print(f"vocabularies of {sizes[0]:,} and {sizes[1]:,} words, {len(pairs.source.lengths):,} pairs")
    found: dict[str, Any] = {}
    for feeding in (False, True) if "train" in asked.only else ():
        name = "training, tokens" + (", input feeding" if feeding else "")
        print(name)
        makers: dict[str, Any] = {"plain loop": (Plain, True)}
        if asked.rivals:
            makers |= {"JoeyNMT": (Joey, False), "JoeyNMT, near-equal lengths": (Joey, True), "Eole": (Eole, True)}
        ways = {who: Training(make(*sizes, feeding), pairs, end, near) for who, (make, near) in makers.items()}
        ways = {"everstep": Learning(Ours(*sizes, feeding), pairs, end), **ways}
        found[name] = in_turns(ways, asked.rounds, asked.batches)
    for width in (1, 5) if "search" in asked.only and asked.rivals else ():
        name = f"search, sentences, beam of {width}"
        print(name)
        makers = {"everstep": Ours, "JoeyNMT": Joey}
        found[name] = in_turns(
            {who: searching(make(*sizes, False), pairs, width) for who, make in makers.items()}, asked.rounds, 1
        )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
