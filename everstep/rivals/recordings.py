"""Baselines for recognisers: the most frequent text, and the text of the nearest recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.measures.edit_distance import error_rates
from everstep.rivals.number_classes import resampled, warped

STEPS = 24
"""Steps to which recordings are resampled."""
LEARNED, ASKED = 600, 300
"""Most training recordings, and most test recordings, of the nearest one."""


class SpokenSet(NamedTuple):
    """Scaled frames (T, D) and texts."""

    frames: Sequence[NDArray[Any]]
    texts: Sequence[str]

    def sample(self, most: int) -> SpokenSet:
        """An even sample."""
        count = len(self.texts)
        chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
        return SpokenSet([self.frames[place] for place in chosen], [self.texts[place] for place in chosen])


def spoken_rivals(train: SpokenSet, test: SpokenSet, quick: bool = False) -> list[dict[str, Any]]:
    """Name and error rates of baselines that write a whole text of training.

    - *most frequent text*.
    - *nearest recording, warped*: its text; the least sum of squared distances over monotone alignments (dynamic time
      warping, Sakoe 1978) of frames resampled to 24 steps, of about 600 training and at most 300 test recordings, which
      the name says. Left out if `quick`.
    """
    (often, _), *_ = Counter(train.texts).most_common(1)
    found = [_record("most frequent text", test.texts, [often] * len(test.texts))]
    if not quick:
        near, asked = train.sample(LEARNED), test.sample(ASKED)
        learned, given = (np.stack([resampled(one, STEPS) for one in of.frames]) for of in (near, asked))
        places = np.concatenate([
            warped(given[begin : begin + 64], learned).argmin(1) for begin in range(0, len(given), 64)
        ])  # fmt: skip
        fewer = f", asked {len(asked.texts)} of {len(test.texts):,}" if len(asked.texts) < len(test.texts) else ""
        name = f"nearest of {len(near.texts)} recordings, warped{fewer}"
        found.append(_record(name, asked.texts, [near.texts[place] for place in places.tolist()]))
    return found


def _record(name: str, texts: Sequence[str], found: Sequence[str]) -> dict[str, Any]:
    return {"name": name, **error_rates(zip(texts, found, strict=True))._asdict()}
