"""Work that nobody waits for ends between two of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from service_client import served

import everstep as es
from everstep.cancellation import cancelled_by, check_cancelled
from everstep.decode import BeamSection, beam_search
from everstep.decode.decoder import Decoder
from everstep.networks import classifying, scoring


class Enough(Exception):
    pass


def after(parts: int) -> Callable[[], None]:
    """A check that raises at the next part after so many."""
    left = [parts]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Enough

    return check


def test_a_search_ends_at_its_next_step() -> None:
    steps = []

    def step(tokens: torch.Tensor, state: tuple[()]) -> tuple[torch.Tensor, tuple[()]]:
        steps.append(len(tokens))
        return torch.tensor([[-9.0, -0.1, -3.0]]).log_softmax(-1).expand(len(tokens), 3), state

    decoder = Decoder(step, (), torch.tensor([0]), end=0)
    with pytest.raises(Enough), cancelled_by(after(4)):
        beam_search(decoder, BeamSection(beam_width=2, max_length=50))
    assert len(steps) == 4
    check_cancelled()  # outside nothing is cancelled
    assert len(beam_search(decoder, BeamSection(beam_width=2, max_length=6))) == 1


@pytest.mark.usefixtures("uncompiled", "little_data")
def test_predictions_and_scores_end_at_their_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["train.max_steps=1", "train.max_minutes=null", "model.hidden_size=8", "train.validate_every=null"]
    reviews = es.train("classify-minute", tmp_path / "reviews", lambda _: None, overrides=short)
    play = es.train("shakespeare-minute", tmp_path / "play", lambda _: None, overrides=short)
    monkeypatch.setattr(classifying, "SCORED_TOKENS", 1)  # each line is a batch
    monkeypatch.setattr(scoring, "SCORED_TOKENS", 1)
    lines = ["not bad at all"] * 9
    for explain, parts in ((False, 9), (True, 18)):  # an explanation is a second pass
        with cancelled_by(after(parts)):
            assert len(list(reviews.predict(lines, explain))) == 9
        with pytest.raises(Enough), cancelled_by(after(parts - 1)):
            list(reviews.predict(lines, explain))
    with pytest.raises(Enough), cancelled_by(after(8)):
        play.score(lines)

    with served([reviews.path], seconds=0.4, workers=1) as one:
        start = time.monotonic()
        assert "takes longer than 0.4 seconds" in one.post("/predict", 503, lines=["not bad at all"] * 10_000)
        while one.service.pool._slots.locked():
            assert time.monotonic() < start + 20, "the thread goes on"
            time.sleep(0.01)
        assert one.post("/predict", lines=["dull"])["predictions"]
        assert "lines.1: expected at most 64,000 characters; got 900,000" in one.post(
            "/predict", 413, lines=["dull", "dull " * 180_000]
        )
