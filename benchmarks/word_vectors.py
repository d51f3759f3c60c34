"""Word vectors beside gensim 4.4 and fastText 0.9.2: words a second, similarities and analogies, of the same text.

The text is Brown and the training text of the Penn Treebank, in lower case, without `<unk>`; d = 100, window 5, 5
negatives, sub-sampling 1e-3, words of at least 5 occurrences, η from 0.025 down. `letters` is skip-gram with n-grams of
3 to 6 letters on Brown alone, η from 0.05, sub-sampling 1e-4 (`--subsample`), as fastText's, which may stand beside it
too; it always has the same seed. All vectors are measured by everstep's measures. The others run in a process of their
own, which waits while it has no turn; gensim's speed is that of `train` alone, ours that of the whole of `fit`.

    python -m venv FOLDER && FOLDER/bin/pip install gensim==4.4.0 fasttext-wheel==0.9.2
    python benchmarks/word_vectors.py speed --gensim FOLDER/bin/python [--rounds 3] [--json FILE]
    python benchmarks/word_vectors.py quality --gensim FOLDER/bin/python [--seeds 5] [--kinds context word letters]
        [--beside gensim fasttext] [--subsample 0.0001]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everstep as es
from everstep.data.readers.vector_files import read_vector_file
from everstep.data.readers.word_sets import read_analogies, read_similarities
from everstep.networks.word_embedding import WordContextSection, WordEmbedding, WordEmbeddingSection
from everstep.runs.word_measures import WordVectorView, analogy_figures, similarity_figures

DATA = Path(os.environ.get("EVERSTEP_DATA", "shared/data"))
SETS = [str(DATA / "word_similarity" / name) for name in ("EN-WS-353-ALL.txt", "EN-MEN-TR-3k.txt")]
QUESTIONS = str(DATA / "word_analogies" / "questions-words.txt")

THEIRS = """
import json, sys, time
from gensim.models import FastText, Word2Vec
texts = {}
for line in sys.stdin:
    asked = json.loads(line)
    if asked["fasttext"]:
        import fasttext
        model = fasttext.train_unsupervised(asked["text"], t=asked["subsample"], thread=1, verbose=0)
        with open(asked["out"], "w") as file:
            words = [word for word in model.words if word != "</s>"]
            print(len(words), model.get_dimension(), file=file)
            for word in words:
                print(word, *map(repr, model.get_word_vector(word).tolist()), file=file)
        print(json.dumps({"speed": 0}), flush=True)
        continue
    text = texts.setdefault(asked["text"], [one.split() for one in open(asked["text"])])
    common = dict(vector_size=100, window=5, negative=5, min_count=5, workers=asked["workers"], seed=asked["seed"])
    if asked["kind"] == "letters":
        model = FastText(sg=1, min_n=3, max_n=6, bucket=2000000, sample=asked["subsample"], alpha=0.05, **common)
    else:
        model = Word2Vec(sg=asked["kind"] == "context", **common)
    model.build_vocab(text)
    words = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key)
    begun = time.perf_counter()
    model.train(text, total_examples=model.corpus_count, epochs=asked["epochs"])
    seconds = time.perf_counter() - begun
    if asked["out"]:
        model.wv.save_word2vec_format(asked["out"], binary=True)
    print(json.dumps({"speed": words * asked["epochs"] / seconds}), flush=True)
"""


class Gensim:
    """gensim in another process."""

    def __init__(self, python: str):
        self._process = subprocess.Popen([python, "-c", THEIRS], stdin=-1, stdout=-1, stderr=-3, text=True)

    def train(self, fasttext: bool = False, subsample: float = 1e-3, **asked: Any) -> float:
        """Words a second of one training; 0 of fastText's."""
        asked |= {"fasttext": fasttext, "subsample": subsample}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return float(json.loads(self._process.stdout.readline())["speed"])


def brown() -> list[str]:
    """The lines of the Brown corpus in lower case."""
    lines = []
    with zipfile.ZipFile(DATA / "brown" / "brown.zip") as archive:
        for name in sorted(archive.namelist()):
            if re.fullmatch(r"brown/c[a-r]\d\d", name):
                text = archive.read(name).decode().lower()
                words = [[token.rpartition("/")[0] for token in line.split()] for line in text.splitlines()]
                lines += [" ".join(line) for line in words if line]
    return lines


def treebank() -> list[str]:
    """The training lines of the Penn Treebank, without `<unk>`."""
    with gzip.open(DATA / "ptb" / "ptb.train.txt.gz", "rt") as lines:
        return [" ".join(word for word in line.split() if word != "<unk>") for line in lines]


def ours(
    folder: Path, text: Path, kind: str, threads: int, seed: int, epochs: int, subsample: float = 1e-3
) -> tuple[es.Run, float]:
    """A run, and its words a second."""
    letters = ["model.ngrams=[3, 6]", f"objective.subsample={subsample}", "train.learning_rate=0.05"]
    run = es.train(
        "word-vectors-own",
        folder,
        lambda line: None,
        overrides=[
            f"data.train={text}",
            "data.valid_fraction=0",
            "train.log_every_seconds=10000",
            f"train.threads={threads}",
            f"train.max_epochs={epochs}",
            f"seed={seed}",
            *(letters if kind == "letters" else [f"objective.predict={kind}"]),
        ],
    )
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return run, float(last["words"] / last["seconds"])


def speed(text: Path, gensim: Gensim, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Words a second in turns; the ratio is the median of those of each turn."""
    found = []
    for kind in ("context", "word"):
        for threads in (1, 2):
            mine, theirs = [], []
            for turn in range(rounds):
                place = folder / f"speed-{kind}-{threads}-{turn}"
                mine.append(ours(place, text, kind, threads, 1, 1)[1])
                theirs.append(gensim.train(text=str(text), kind=kind, workers=threads, seed=1, epochs=1, out=""))
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            row = {"kind": kind, "threads": threads, "ours": statistics.median(mine),
                   "gensim": statistics.median(theirs), "ratio": ratio}  # fmt: skip
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def measured(view: WordVectorView) -> dict[str, float]:
    """ρ of each set, and the share of analogies."""
    alike = similarity_figures(view, read_similarities(tuple(SETS)))["similarity"]
    told = analogy_figures(view, read_analogies(QUESTIONS))
    return {
        **{name.removesuffix(".txt"): row["spearman"] for name, row in alike.items()},
        **{name: told[name] for name in ("analogies", "analogies_by_product", "questions")},
    }


def of_file(path: Path) -> WordVectorView:
    """Vectors that another program wrote."""
    table = read_vector_file(str(path))
    section = WordEmbeddingSection(embedding_size=table.numbers.shape[1])
    model = WordEmbedding(table.words, np.ones(len(table.words), np.int64), -1, section, WordContextSection())
    with torch.no_grad():
        model.vectors.copy_(torch.from_numpy(table.numbers))
    return WordVectorView(model)


def quality(given: argparse.Namespace, texts: dict[str, Path], gensim: Gensim, folder: Path) -> list[dict[str, Any]]:
    """The measures of five epochs, as mean and standard deviation over seeds."""
    found = []
    seeds = given.seeds
    for kind in given.kinds:
        text = texts["brown" if kind == "letters" else "both"]
        subsample = given.subsample if kind == "letters" else 1e-3
        others = [who for who in given.beside if who == "gensim" or kind == "letters"]
        rows: dict[str, list[dict[str, float]]] = {who: [] for who in ("ours", *others)}
        for seed in range(given.first_seed, given.first_seed + seeds):
            run, _ = ours(folder / f"quality-{kind}-{seed}", text, kind, 1, seed, 5, subsample)
            rows["ours"].append(measured(WordVectorView(run.model)))
            for who in others:
                out = folder / "theirs.bin"
                asked = {"text": str(text), "kind": kind, "workers": 1, "seed": seed, "epochs": 5, "out": str(out)}
                gensim.train(who == "fasttext", subsample, **asked)
                rows[who].append(measured(of_file(out)))
            print(kind, seed, json.dumps({who: each[-1] for who, each in rows.items()}), flush=True)
        for who, each in rows.items():
            spread = statistics.stdev if seeds > 1 else lambda values: 0.0
            columns = {name: [row[name] for row in each] for name in each[0]}
            found.append({"kind": kind, "who": who, "seeds": seeds,
                          **{name: [statistics.mean(v), spread(v)] for name, v in columns.items()}})  # fmt: skip
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "quality"))
    parser.add_argument("--gensim", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=["context", "word", "letters"])
    parser.add_argument("--beside", nargs="*", choices=("gensim", "fasttext"), default=["gensim"])
    parser.add_argument("--subsample", type=float, default=1e-4, help="t for letters")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    gensim = Gensim(given.gensim)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = {"brown": folder / "brown.txt", "both": folder / "both.txt"}
        texts["brown"].write_text("\n".join(brown()) + "\n")
        texts["both"].write_text("\n".join([*brown(), *treebank()]) + "\n")
        if given.what == "speed":
            found = speed(texts["both"], gensim, given.rounds, folder)
        else:
            found = quality(given, texts, gensim, folder)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
