"""Training and tagging by spaCy's tagger, for `tagging.py`, which is in another process.

Requests and answers are lines of JSON. {"file": FILE} names a file of sentences, {"train": [[words, tags], …], "valid":
[[words, tags], …]}, and is answered by {}; {"do": "train"} and {"do": "tag"} by {"words": how many, "seconds": of this
process}. The first line written is the versions.

    PYTHON spacy_tagger.py STEPS TRAINED TAGGED      of a turn, and the sentences of a step
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "BLIS_NUM_THREADS": "1"}

import spacy
from spacy.tokens import Doc
from spacy.training import Example

STEPS, TRAINED, TAGGED = map(int, sys.argv[1:])


def answer(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def ways(sentences: dict[str, list[tuple[list[str], list[str]]]]) -> dict[str, Callable[[], int]]:
    """A turn of training and of tagging, with spaCy's default tagger; both return how many words."""
    random.seed(1)
    spacy.util.fix_random_seed(1)
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    examples = [
        Example.from_dict(Doc(nlp.vocab, words=words), {"words": words, "tags": tags})
        for words, tags in sentences["train"]
    ]
    optimizer = nlp.initialize(lambda: examples)

    def shuffled() -> Iterator[Example]:
        while True:
            yield from random.sample(examples, len(examples))

    trained, tagged = shuffled(), itertools.cycle([words for words, _ in sentences["valid"]])

    def train() -> int:
        count = 0
        for _ in range(STEPS):
            some = list(itertools.islice(trained, TRAINED))
            nlp.update(some, drop=0.1, sgd=optimizer)
            count += sum(len(example.reference) for example in some)
        return count

    def tag() -> int:
        some = [Doc(nlp.vocab, words=words) for words in itertools.islice(tagged, STEPS * TAGGED)]
        return sum(len(doc) for doc in nlp.pipe(some, batch_size=TAGGED))

    return {"train": train, "tag": tag}


def main() -> None:
    answer(spacy=spacy.__version__)
    found: dict[str, Callable[[], int]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "file" in asked:
            found = ways(json.loads(Path(asked["file"]).read_text("utf-8")))
            answer()
            continue
        start = time.process_time()
        words = found[asked["do"]]()
        answer(words=words, seconds=time.process_time() - start)


if __name__ == "__main__":
    main()
