"""Three models of where a line ends, trained on lines of Shakespeare: the lengths they draw beside those of the text.

"symbol": <eos> is a word like any other; "stop": a coin beside each step (`BernoulliStop`); "count": the number of
words is drawn first and counted down (`CountedLines`). Each has one LSTM of 128 and sees the same batches, of about 512
tokens. Of 5,000 lines drawn, the Kolmogorov-Smirnov distance of the lengths to those of the training lines is printed;
so is what chance alone gives, the 95 % quantile of that distance for 5,000 of these lines themselves.

A batch has lines drawn at random (`--batches random`). Where the lines of a batch have the same length (`similar`), it
says of every place that all lines end there or none, which is as noisy as a single line.

    python benchmarks/line_lengths.py [--steps 600] [--batches similar] [--picture FILE.png] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everstep as es
from everstep.data import Tokenizer, expand, prepare, read_blocks
from everstep.data.buckets import Buckets
from everstep.data.text.corpus import Corpus
from everstep.networks.counted_lines import CountedLines
from everstep.networks.likelihood import likelihood
from everstep.networks.token_model import TokenModel, TokenModelSection

NAMES = ("symbol", "stop", "count")
SIZE, DRAWN, LONGEST, TOKENS = 128, 5000, 40, 512


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance: the largest difference of the shares of lengths up to n."""
    most = int(max(one.max(), other.max())) + 1
    shares = [np.bincount(values, minlength=most + 1).cumsum() / len(values) for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def lengths_drawn(model: Any, name: str, words: int, end: int) -> np.ndarray:
    """The words of each of 5,000 lines that the model draws."""
    generator = torch.Generator().manual_seed(1)
    state = model.initial_state(DRAWN)
    drawn = es.sample(model.step, state, [end], LONGEST + 2, count=DRAWN, generator=generator).numpy()
    if name == "count":
        return drawn[:, 0] - words
    ended = drawn == end
    return np.where(ended.any(1), ended.argmax(1), LONGEST + 2)


def batches_of(corpus: Corpus, kind: str, end: int) -> Buckets:
    """Batches of about 512 tokens, of lines at random or of similar length."""
    if kind == "similar":
        # as many tokens in each, since `fit` weighs batches alike: with as many lines, short ones would count more
        return Buckets(corpus, TOKENS, seed=1, begin_id=end, max_tokens=TOKENS)
    return Buckets(corpus, TOKENS * len(corpus.starts) // len(corpus), seed=1, begin_id=end, pool=1)


def drawing(found: dict[str, Any], text: np.ndarray, path: Path) -> None:
    """The distributions beside the text's, one panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(11, 3), sharey=True)
    places = np.arange(1, 16)
    for panel, (name, one) in zip(axes, found.items(), strict=True):
        share = [np.bincount(v, minlength=17)[1:16] / len(v) for v in (text, one["lengths"])]
        panel.bar(places, share[0], color="#c8c8c8", label="text")
        panel.plot(places, share[1], "o-", color="#1f5fa8", markersize=4, label="drawn")
        panel.set_title(f"{name}: distance {one['distance']:.3f}", fontsize=10)
        panel.set_xlabel("words of a line")
        panel.set_xticks([1, 5, 10, 15])
    axes[0].set_ylabel("share of lines")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--models", nargs="*", default=list(NAMES))
    parser.add_argument("--batches", choices=("random", "similar"), default="random")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    blocks = list(read_blocks(expand("everstep:shakespeare")))
    tokenizer = Tokenizer.train(blocks, "words", min_count=20, eos=True)
    corpus = prepare("everstep:shakespeare", tokenizer, sequence="lines")
    text = np.diff(corpus.starts, append=len(corpus)) - 1
    words, end = tokenizer.vocab_size, tokenizer.eos_id
    assert end is not None
    settings = es.FitSettings(max_steps=given.steps, learning_rate=0.005, batch_size=TOKENS, precision="float32")
    found: dict[str, Any] = {}
    for name in given.models:
        torch.manual_seed(1)
        batches = batches_of(corpus, given.batches, end)
        if name == "count":
            model: Any = CountedLines(es.LSTM(SIZE, SIZE), words, end, max(LONGEST, int(text.max())))
            model.counted(torch.from_numpy(text))
            objective = model.objective
        else:
            section = TokenModelSection(embedding_size=SIZE, hidden_size=SIZE, ends=name)
            model, objective = TokenModel(words, section, end=end), likelihood()
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            es.fit(model, objective, batches, settings, out=out, log=lambda line: None)
        seconds = time.perf_counter() - began
        lengths = lengths_drawn(model.eval(), name, words, end)
        found[name] = {"distance": distance(lengths, text), "mean": float(lengths.mean()), "seconds": seconds}
        print(name, found[name], flush=True)
        found[name]["lengths"] = lengths
    random = np.random.default_rng(1)
    chance = float(np.quantile([distance(random.choice(text, DRAWN), text) for _ in range(200)], 0.95))
    print(f"text: mean {text.mean():.3f}; of 200 samples of {DRAWN} of its lines, 95 % are within {chance:.4f}")
    if given.picture:
        drawing(found, text, given.picture)
    if given.json:
        kept = {name: {key: value for key, value in one.items() if key != "lengths"} for name, one in found.items()}
        given.json.write_text(
            json.dumps({"steps": given.steps, "text_mean": float(text.mean()), "chance": chance, **kept}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
