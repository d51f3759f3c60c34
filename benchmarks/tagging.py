"""Words per second of a tagger beside a plain loop, and what each of its parts gives.

    pip install --no-deps --target FOLDER pytorch-crf==0.7.2
    PYTHONPATH=FOLDER python benchmarks/tagging.py speed [--json FILE] [--rounds N]
    python -m venv V; V/bin/pip install spacy==3.8.18
    python benchmarks/tagging.py spacy V/bin/python [--json FILE] [--rounds N]
    python benchmarks/tagging.py parts OUT [--recipe NAME] [--variant NAME] [--seeds N] [--json FILE] [KEY=VALUE …]

`speed`: the rival is what tutorials show: a `DataLoader` that shuffles and pads, an embedding, the characters of every
word of the batch packed through an `nn.LSTM` in both directions, such an `nn.LSTM` over the words, packed, and
pytorch-crf; `torch.optim.AdamW`, clipped gradients. Ours is what `everstep train` and `predict` do. Same sentences,
sizes, tags, batch size and one thread; in turns in one process, by its own time.

`spacy`: the recipe `tag-pos-ewt` with one of its tag columns, as it is, beside spaCy's default tagger, which is in a
process of its own: the same sentences, as many a step, in turns, each by its own time, one thread each.

`parts`: a recipe as it is, and without one of its parts at a time, each with some seeds; a run that is there is not
made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from child import Child
from timing import alternately, summary
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

import everstep as es
from everstep.cli.common import prepare as tune_malloc
from everstep.learn.learner import Learner
from everstep.native.processor import name as cpu_name
from everstep.networks.tag_decoding import decoded
from everstep.runs.recipe_files import load_task

STEPS = 6  # in a turn
RECIPE = (
    "tag-ner-conll" if (Path(os.environ.get("EVERSTEP_DATA", "../shared/data")) / "conll2003").is_dir() else "tag-own"
)
PLAIN = ("model.affixes=[]", "model.feature_size=0", "model.unknown_rate=0", "model.embedding_dropout=0")
PARTS = {
    "whole": (),
    "one direction": ("model.bidirectional=false",),
    "softmax in place of the CRF": ("model.head=softmax",),
    "no characters": ("model.characters=none",),
    "no capitals and endings": ("model.feature_size=0",),
    "words alone": ("model.characters=none", "model.feature_size=0"),
    "no unknown words while it learns": ("model.unknown_rate=0",),
}


class Plain(nn.Module):
    """The network of the recipe, as it is written with torch.nn and pytorch-crf."""

    def __init__(self, section: Any, words: int, characters: int, tags: int):
        from torchcrf import CRF

        super().__init__()
        self.words, self.characters = (
            nn.Embedding(words, section.embedding_size),
            nn.Embedding(characters, section.character_size),
        )
        self.spell = nn.LSTM(section.character_size, section.character_units, bidirectional=True, batch_first=True)
        self.before, self.after = nn.Dropout(section.input_dropout), nn.Dropout(section.dropout)
        read = section.embedding_size + 2 * section.character_units
        self.rnn = nn.LSTM(read, section.hidden_size, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * section.hidden_size, tags)
        self.crf = CRF(tags, batch_first=True)

    def scores(self, words: Tensor, lengths: Tensor, spelled: Tensor, letters: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.characters(spelled), letters, True, enforce_sorted=False)
        last = self.spell(packed)[1][0].transpose(0, 1).flatten(1)
        of_words = pad_sequence(list(last.split(lengths.tolist())), True)
        xs = self.before(torch.cat([self.words(words), of_words], -1))
        ys, _ = pad_packed_sequence(self.rnn(pack_padded_sequence(xs, lengths, True, enforce_sorted=False))[0], True)
        return self.linear(self.after(ys))


Row = tuple[Tensor, list[Tensor], Tensor]


def together(rows: Sequence[Row]) -> tuple[Tensor, ...]:
    """A padded batch of sentences: words, lengths, the characters of all words, their numbers, tags."""
    words, spelled, tags = zip(*rows, strict=True)
    every = [letters for sentence in spelled for letters in sentence]
    lengths, letters = (torch.tensor([len(one) for one in some]) for some in (words, every))
    return pad_sequence(list(words), True), lengths, pad_sequence(every, True), letters, pad_sequence(list(tags), True)


def rows_of(task: Any, split: str) -> list[Row]:
    """The sentences of a split as the plain loop reads them."""
    coded = task.learned.coded(task.texts.examples(split).sentences)
    forms = torch.from_numpy(coded.spelled).split(coded.spelled_lengths.tolist())
    rows = []
    start = 0
    for length in coded.lengths.tolist():
        inside = slice(start, start + length)
        start += length
        spelled = [forms[form] for form in coded.forms[inside].tolist()]
        rows.append((torch.from_numpy(coded.words[inside]), spelled, torch.from_numpy(coded.tags[inside, 0])))
    return rows


def plain_ways(task: Any) -> tuple[Callable[[], int], Callable[[], int]]:
    """STEPS steps of training, and of tagging, by the plain loop; they return how many words."""
    torch.manual_seed(1)
    section, settings, learned = task.recipe.model, task.recipe.train, task.learned
    words, characters, _ = learned.words.sizes()
    model = Plain(section, words, characters, len(learned.columns[0].tags))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0, fused=True)

    def endless(split: str, size: int, shuffle: bool) -> Iterator[Any]:
        loader = DataLoader(rows_of(task, split), size, shuffle=shuffle, collate_fn=together)  # type: ignore[arg-type]
        while True:
            yield from loader

    training, tagging = endless("train", settings.batch_size, True), endless("valid", 64, False)

    def train() -> int:
        count = 0
        model.train()
        for _ in range(STEPS):
            words, lengths, spelled, letters, tags = next(training)
            mask = torch.arange(words.shape[1]) < lengths[:, None]
            loss = -model.crf(model.scores(words, lengths, spelled, letters), tags, mask) / len(words)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            count += int(lengths.sum())
        return count

    @torch.inference_mode()
    def tag() -> int:
        count = 0
        model.eval()
        for _ in range(STEPS):
            words, lengths, spelled, letters, _ = next(tagging)
            mask = torch.arange(words.shape[1]) < lengths[:, None]
            model.crf.decode(model.scores(words, lengths, spelled, letters), mask)
            count += int(lengths.sum())
        return count

    return train, tag


def our_ways(task: Any) -> tuple[Callable[[], int], Callable[[], int]]:
    """The same by `fit` and by what `predict` calls."""
    torch.manual_seed(1)
    model = task.model().train()
    batches = task.batches("train", model, "learn")
    learner = Learner(model, task.objective, batches, task.recipe.train.replace(precision="float32"))
    counts = [batches.batch(0, index).count for index in range(len(batches))]
    sentences = [replace(sentence, tags=()) for sentence in task.texts.examples("valid").sentences]
    done = 0

    def train() -> int:
        nonlocal done
        model.train()
        for _ in range(STEPS):
            learner.step()
        done += STEPS
        return sum(counts[(done - STEPS + step) % len(counts)] for step in range(STEPS))

    start = 0

    def tag() -> int:
        nonlocal start
        some = sentences[start : start + 64 * STEPS]
        start = start + 64 * STEPS if start + 128 * STEPS <= len(sentences) else 0
        coded = task.learned.coded(some)
        decoded(model, coded, task.learned.columns)
        return int(coded.lengths.sum())

    return train, tag


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Words per second of both."""
    torch.set_num_threads(1)
    tune_malloc()
    task: Any = load_task(options.recipe, [*PLAIN, *options.overrides])
    task.prepare()
    found: dict[str, Any] = {"cpu": cpu_name(), "torch": torch.__version__, "load": os.getloadavg()[0]}
    for what, pair in zip(("training", "tagging"), zip(plain_ways(task), our_ways(task), strict=True), strict=True):
        words: dict[str, list[int]] = {"plain": [], "everstep": []}

        def counted(name: str, way: Callable[[], int], words: dict[str, list[int]] = words) -> None:
            words[name].append(way())

        ways = {name: (lambda name=name, way=way: counted(name, way)) for name, way in zip(words, pair, strict=True)}
        times = alternately(ways, options.rounds, clock=process_time)
        rates = {name: sum(words[name][-options.rounds :]) / sum(seconds) for name, seconds in times.items()}
        found[what] = {
            **{f"{name}_words_per_second": rate for name, rate in rates.items()},
            "ratio": rates["everstep"] / rates["plain"],
            **{f"{name}_turn": summary(seconds) for name, seconds in times.items()},
        }
        print(f"{what}: {rates['everstep']:,.0f} words/s, plain {rates['plain']:,.0f}: {found[what]['ratio']:.2f}x")
    return found


def beside_spacy(options: argparse.Namespace) -> dict[str, Any]:
    """Words per second of ours and of spaCy's tagger, in turns."""
    torch.set_num_threads(1)
    tune_malloc()
    task: Any = load_task(options.recipe, ["data.tag_column=xpos", *options.overrides])
    task.prepare()
    read = {split: task.texts.examples(split).sentences for split in ("train", "valid")}
    child = Child(options.python, "spacy_tagger.py", *map(str, (STEPS, task.recipe.train.batch_size, 64)))
    with TemporaryDirectory() as folder:
        file = Path(folder, "sentences.json")
        file.write_text(json.dumps({split: [(s.words, s.tags[0]) for s in some] for split, some in read.items()}))
        child.ask(file=str(file))
    found: dict[str, Any] = {"cpu": cpu_name(), "torch": torch.__version__, "load": os.getloadavg()[0]}
    for what, way in zip(("train", "tag"), our_ways(task), strict=True):
        turns: dict[str, list[tuple[int, float]]] = {"spacy": [], "everstep": []}
        for number in range(2 + options.rounds):
            start = process_time()
            own = (way(), process_time() - start)
            other = child.ask(do=what)
            if number > 1:
                turns["everstep"].append(own)
                turns["spacy"].append((other["words"], other["seconds"]))
        rates = {name: sum(w for w, _ in some) / sum(s for _, s in some) for name, some in turns.items()}
        found[what] = {f"{name}_words_per_second": rate for name, rate in rates.items()}
        found[what]["ratio"] = rates["everstep"] / rates["spacy"]
        print(f"{what}: {rates['everstep']:,.0f} words/s, spaCy {rates['spacy']:,.0f}: {found[what]['ratio']:.2f}x")
    child.close()
    return {**child.versions, **found}


def parts(options: argparse.Namespace) -> dict[str, Any]:
    """The measures of each variant, by seed."""
    found: dict[str, Any] = {}
    for name in options.variant or PARTS:
        changes, runs = PARTS[name], []
        for seed in range(1, options.seeds + 1):
            path = options.out / f"{name.replace(' ', '-')}-{seed}"
            if (path / "scores.json").exists():
                scores = json.loads((path / "scores.json").read_text())
            else:
                overrides = [*options.overrides, *changes, f"seed={seed}"]
                es.train(options.recipe, path, lambda line: None, overrides=overrides)
                scores = json.loads((path / "scores.json").read_text())
            measure = "f1" if "f1" in scores["test"] else "accuracy"
            runs.append({split: scores[split][measure] for split in scores})
        test = [run["test"] for run in runs]
        spread = f" (±{statistics.stdev(test):.2%})" if len(test) > 1 else ""
        print(f"{name:34} {measure} {statistics.mean(test):.2%}{spread}", flush=True)
        found[name] = {"measure": measure, "runs": runs, "mean": statistics.mean(test)}
    return {"recipe": options.recipe, "overrides": options.overrides, "cpu": cpu_name(), "variants": found}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    told = {"speed": "beside a plain loop", "spacy": "beside spaCy's tagger", "parts": "what each part gives"}
    for name, help in told.items():
        way = ways.add_parser(name, help=help)
        if name == "parts":
            way.add_argument("out", type=Path)
            way.add_argument("--seeds", type=int, default=3)
            way.add_argument("--variant", action="append", choices=PARTS, help="this one alone; may be repeated")
        if name == "spacy":
            way.add_argument("python", help="an interpreter that has spaCy")
        way.add_argument("--rounds", type=int, default=15)
        way.add_argument("--recipe", default="tag-pos-ewt" if name == "spacy" else RECIPE)
        way.add_argument("--json", type=Path)
        way.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    found = {"speed": speed, "spacy": beside_spacy, "parts": parts}[options.way](options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
