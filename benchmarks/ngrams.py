"""N-gram models: CPU time of estimation, scored words per second, and whether the memory limit is kept.

Penn Treebank, order 5, and tokens drawn from Zipf's law, order 4, with a limit below their arrays. CPU time is of this
process, on one thread. Memory is the peak of anonymous pages above those before counting, sampled every 2 ms.

    python benchmarks/ngrams.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everstep.native.processor import name as cpu_name
from everstep.rivals.ngrams import NGramTable, count_ngrams, kneser_ney
from everstep.rivals.ngrams.workspace import Workspace
from everstep.runs.recipe_files import load_task

ROUNDS = 5
TOKENS, WORDS, LINE, LIMIT_MIB = 5_000_000, 50_000, 25, 64


def fitted(tokens: NDArray[np.uint16], starts: NDArray[np.int64], words: int, order: int, memory: int) -> NGramTable:
    """A table of lines, with 0 at both ends of each."""
    work = Workspace(memory)
    levels = count_ngrams(tokens, starts, 0, words, order, work)
    return kneser_ney(levels, words, work, fallback=(0.5, 1, 1.5))


class Peak:
    """The peak of this process's anonymous memory in MiB above what it had before."""

    def __enter__(self) -> Peak:
        self._before, self.most, self._ended = _anonymous(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.most = max(self.most, _anonymous() - self._before)


def _anonymous() -> int:
    text = Path("/proc/self/status").read_text("utf-8")
    return int(text.partition("RssAnon:")[2].split()[0]) >> 10


def penn_treebank() -> dict[str, float]:
    """Median CPU seconds of counting and estimation, and words scored per CPU second, in one call for the text."""
    task = load_task("ptb-kn5")
    task.tokenizer = task.texts.tokenizer()
    train, test = task.corpus("train"), task.corpus("test")
    rows = np.concatenate([[0], np.asarray(test.tokens, np.int64)])[None]
    seconds, rates = [], []
    for _ in range(ROUNDS):
        begin = time.process_time()
        table = fitted(train.tokens, train.starts, task.tokenizer.vocab_size, 5, 2 << 30)
        seconds.append(time.process_time() - begin)
        begin = time.process_time()
        table.score(rows[:, :-1], rows[:, 1:], table.initial_state(1), rows[:, :-1] == 0)
        rates.append(len(test) / (time.process_time() - begin))
    return {"estimation_cpu_seconds": statistics.median(seconds), "scored_words_per_second": statistics.median(rates)}


def memory() -> dict[str, float]:
    """Peak memory with and without a tight limit, on the same tokens."""
    random = np.random.default_rng(0)
    tokens = np.minimum(random.zipf(1.15, TOKENS), WORDS - 1).astype(np.uint16)
    starts = np.arange(0, TOKENS, LINE)
    tokens[starts[1:] - 1] = 0
    tokens[-1] = 0
    found: dict[str, float] = {"limit_mib": LIMIT_MIB}
    for name, limit in (("limited", LIMIT_MIB << 20), ("free", 4 << 30)):
        begin = time.process_time()
        with Peak() as peak:
            table = fitted(tokens, starts, WORDS, 4, limit)
        found |= {f"{name}_peak_mib": peak.most, f"{name}_cpu_seconds": time.process_time() - begin}
        found["ngrams"] = len(table)
        del table
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "ptb": penn_treebank(), "memory": memory()}
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
