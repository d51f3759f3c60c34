"""Does a gigabyte of text stay within 1.5 GB of memory, and how long does it take?

    python benchmarks/big_corpus.py [--megabytes 1000] [--kinds chars words] [--workers N] [--out FILE.json]

Writes the bundled text over and over into a temporary folder, and for each kind of tokenizer, in a process of its own:
trains the tokenizer, prepares the corpus, prepares it again (from the cache), reads one epoch of lanes, and trains the
recipe `text-words` for 100 steps (with a split, a tokenizer and token files of its own). Prints the seconds of each and
the peak resident memory of that process and of the largest of its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import everstep as es
from everstep.data import Lanes, Tokenizer, expand, prepare, read_blocks

BATCH_SIZE, STEPS = 64, 512


def write_text(path: Path, size: int) -> None:
    text = "".join(read_blocks(expand("everstep:shakespeare"))).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(text)


def timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    seconds[name] = round(time.perf_counter() - start, 2)
    return result


def peak_megabytes(who: int) -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(who).ru_maxrss * unit / 1e6, 1)


def measure(path: Path, kind: str, workers: int | None) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    cache = path.parent / "cache"
    tokenizer = timed(seconds, "train tokenizer", lambda: Tokenizer.train(read_blocks(path), kind))
    memory["after training"] = peak_megabytes(resource.RUSAGE_SELF)
    corpus = timed(seconds, "prepare", lambda: prepare(path, tokenizer, cache=cache, workers=workers))
    memory["after preparing"] = peak_megabytes(resource.RUSAGE_SELF)
    memory["largest worker"] = peak_megabytes(resource.RUSAGE_CHILDREN)
    timed(seconds, "prepare again", lambda: prepare(path, tokenizer, cache=cache, workers=workers))
    lanes = Lanes(corpus, BATCH_SIZE, STEPS, begin_id=tokenizer.begin_id)
    read = timed(seconds, "read an epoch", lambda: sum(lanes.batch(0, i).count for i in range(len(lanes))))
    memory["after reading"] = peak_megabytes(resource.RUSAGE_SELF)
    assert read == len(corpus)
    os.environ["EVERSTEP_CACHE"] = str(cache)
    changes = [f"data.train={path}", f"data.unit={kind}", "train.max_steps=100", "train.max_epochs=null"]
    timed(seconds, "train 100 steps", lambda: es.train("text-words", path.parent / kind, overrides=changes))
    memory["after 100 steps of training"] = peak_megabytes(resource.RUSAGE_SELF)
    return {"kind": kind, "tokens": read, "symbols": tokenizer.vocab_size, "seconds": seconds, "peak MB": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=["chars", "words"])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", type=Path, help="where to write the text and the token files")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.kinds[0], options.workers)))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "text.txt"
        write_text(path, options.megabytes * 1_000_000)
        for kind in options.kinds:
            command = [sys.executable, __file__, "--measure", str(path), "--kinds", kind]
            command += ["--workers", str(options.workers)] if options.workers else []
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                sys.exit(run.stderr)
            results.append(json.loads(run.stdout) | {"megabytes": options.megabytes, "cores": os.cpu_count()})
            print(json.dumps(results[-1], indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
