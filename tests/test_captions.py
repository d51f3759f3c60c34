"""Captions follow their numbers: rise, fall or neither; one or many; predicted well, in part or not at all."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

import everstep as es
from everstep.lab.remember import unfolded_words
from everstep.look import units
from everstep.look.curves import Curves, curve_words
from everstep.look.flow import Flow, draw_flow
from everstep.look.gates import DIVERGING, Activity, saturation_words
from everstep.look.memory import ContextCurve, context_change, draw_context
from everstep.look.over_passages.memory_pictures import rate_words
from everstep.look.remedy_results import Grid, Reach, remedy_words
from everstep.look.search_results import search_words
from everstep.look.surface import plane_picture
from everstep.look.surprise import surprise_words
from everstep.look.unfolded import Unfolded
from everstep.look.units import Telling, predictive_units, property_html, property_text, property_words, table_words


def telling(held_out: float, first: float | None = None) -> Telling:
    return Telling("layer 1 LSTM", "c", 7, held_out, held_out if first is None else first, None)


# ---------------------------------------------------------------------------------------------------- a unit's likeness


@pytest.mark.parametrize(
    ("held_out", "first", "much"),
    [
        (0.95, 0.9, "well"),
        (0.7, 0.7, "well"),
        (-0.8, -0.8, "well"),
        (0.5, 0.6, "in part"),
        (-0.3, -0.4, "in part"),
        (-0.17, -0.3, "not"),
        (0.29, 0.9, "not"),
        (0.0, 0.5, "not"),
        (-0.6, 0.6, "not"),
    ],
)
def test_how_well_a_unit_tells(held_out: float, first: float, much: str) -> None:
    one = telling(held_out, first)
    words = property_words(one, "inside quotes")
    assert one.much == much
    assert f"r = {held_out:+.2f}" in words
    assert ("No unit predicts the property “inside quotes”" in words) == (much == "not")
    assert ("they look unrelated" in words) == (much == "not")
    assert ("alike" in words) == (much != "not")
    assert (f"predicted {much}" in words) == (much != "not")
    assert ("in some places" in words) == (much == "in part")
    assert ("falls where it rises" in words) == ("inverted" in words) == (much != "not" and held_out < 0)
    assert ("rises and falls with it" in words) == (much != "not" and held_out > 0)
    assert ("r = +0.60 on the half that chose it" in words) == (held_out * first < 0)


def test_the_tables_words_sort_the_properties() -> None:
    rows = {"a": [telling(-0.8)], "b": [telling(0.4)], "c": [telling(0.1)], "d": "the property is 0"}
    words = table_words(rows, 2000, "word")
    assert "Predicted well: a (-0.80); in part: b (+0.40); by no unit: c (+0.10); left out: d." in words
    assert "first half of 2,000 words" in words
    assert "Predicted by no unit: c (+0.10)." in table_words({"c": rows["c"]}, 200)


def opposed(sign: float) -> tuple[list[str], Activity, list[float]]:
    text = list("one line\nanother, longer one\n" * 8)
    target = units.PROPERTIES["position in the line"]("".join(text))
    state = sign * torch.tensor(target)[:, None] / 10
    return text, Activity("layer 1 LSTM", {}, {}, {"h": state}), target


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_a_unit_tells_is_alike_in_the_picture(
    sign: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, activity, target = opposed(sign)
    best = predictive_units([activity], target)[0]
    assert (best.correlation, best.first) == pytest.approx((sign, sign))
    drawn: list[Figure] = []
    monkeypatch.setattr(units, "save", lambda figure, _: drawn.append(figure))
    property_text(text, [activity], best, target, "position", tmp_path / "p.png")
    left, right = ([patch.get_facecolor() for patch in axes.patches] for axes in drawn[0].axes[:2])
    middle = [place for place, value in enumerate(target) if 2 <= value <= 14]  # beyond, a colour ends
    assert max(abs(np.array(left)[middle] - np.array(right)[middle]).max(1)) < 0.2
    labels = [axes.get_xlabel() for axes in drawn[0].axes]
    assert any("inverted" in label for label in labels) == (sign < 0)
    property_html(text, [activity], best, target, "position", tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert ("inverted" in page) == (sign < 0)
    assert page.count("<span style") == 2 * len(text)
    assert DIVERGING(0.0) != DIVERGING(1.0)


# ----------------------------------------------------------------------------------------------------------- the curves


def curves(training: list[float], validation: list[float]) -> Curves:
    """Losses at steps 10, 20, …, and validations evenly over 400 steps."""
    valid = [(400 * k // len(validation), 0.0, value) for k, value in enumerate(validation, 1)]
    return Curves([(10 * k, 0.0, value) for k, value in enumerate(training, 1)], valid)


FALLING, FLAT = [5.0 - 0.1 * k for k in range(40)], [5.0] * 40


@pytest.mark.parametrize(
    ("training", "validation", "has", "lacks"),
    [
        (FALLING, [], "fell from 4.95 to 1.15 bits per word. There was no validation", "learns by heart;"),
        (FLAT, [], "has not fallen: it went from 5.00 to 5.00", "fell from"),
        (FALLING, [3.0], "measured once: 3.00", "by heart"),
        (
            FALLING,
            [4.0, 3.0, 3.5, 4.5],
            "best at step 200, 3.00, and has risen to 4.50 since: the model learns by",
            "lev",
        ),
        (FLAT, [4.0, 3.0, 4.5, 4.5], "the training loss does not fall either", "by heart"),
        (FALLING, [4.0, 3.0, 2.0], "still falls at the end, to 2.00: longer", "risen"),
        (FALLING, [4.0, 2.0, 2.01], "has levelled off at 2.01; the best is 2.00", "risen"),
        ([], [3.0, 2.0], "Validation still falls", "training loss"),
    ],
)
def test_what_the_losses_did(training: list[float], validation: list[float], has: str, lacks: str) -> None:
    words = curve_words(curves(training, validation), "word")
    assert has in words
    assert lacks not in words


def test_surprise_at_the_starts_of_words_is_counted_not_claimed() -> None:
    pairs = [(c, 6.0 if c in "tq" else 2.0) for c in "the quick\n"]
    words = surprise_words(pairs, "character")
    assert "2.80 bits in the mean, 6.00 at the starts of words and 2.00 within them; the most, 6.0, at “t”." in words
    assert "1.00 at the starts of words and 3.00 within" in surprise_words([("a", 1.0), ("b", 3.0)], "character")
    assert "5.00 at the starts of words and 1.00 within" in surprise_words(
        [("wo", 5.0), ("rd", 1.0), (" on", 5.0)], "sub-word"
    )
    assert "starts of words" not in surprise_words([("word ", 4.0), ("<eos>", 9.0)], "word")
    assert surprise_words([("word ", 4.0), ("<eos>", 9.0)], "word").endswith("the most, 9.0, at a line's end.")
    assert surprise_words([], "word").endswith("0.00 bits in the mean.")


# ----------------------------------------------------------------------------------------------------------- the memory


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.05, "grows e-fold in 20.0 words: the model is chaotic"),
        (-0.5, "shrinks e-fold in 2.0 words"),
        (0.0, "neither grows nor shrinks measurably in 100 words"),
        (0.004, "neither grows nor shrinks"),
        (-0.004, "neither grows nor shrinks"),
    ],
)
def test_the_sign_of_a_lyapunov_exponent(rate: float, words: str) -> None:
    assert words in rate_words(rate, 100, "word")
    assert ("chaotic" in rate_words(rate, 100, "word")) == (rate > 0.01)


@pytest.mark.parametrize(
    ("share", "fate"),
    [(1e-9, "it vanishes"), (0.1, "it fades"), (1.0, "it is kept"), (9.0, "it grows"), (1e5, "it explodes")],
)
def test_what_becomes_of_a_gradient(share: float, fate: str, tmp_path: Path) -> None:
    flow = Flow(("h",), np.arange(3), np.array([[[1.0, math.sqrt(share), share]] * 4]))
    words = draw_flow(flow, tmp_path / "f.png", "word")
    assert f"h: {share:.1e} after 2 words ({fate})" in words
    assert ", mean of 4;" in words


def test_a_context_curve_says_over_how_many_it_is_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("everstep.look.memory.save", lambda figure, _: drawn.append(figure))
    curve = context_change(es.Window(2, 5), torch.randn(1, 40, 2), longest=20, samples=7)
    assert curve.count == 7
    words = draw_context(curve, tmp_path / "c.png", "word", "change")
    assert ", mean over 7 words" in words
    assert drawn[0].axes[0].get_ylabel() == "change,\nmean over 7 words"
    assert "Less context does better" not in words
    assert context_change(es.Window(2, 5), torch.randn(1, 40, 2), longest=20).count == 20  # there are no more
    one = ContextCurve(np.array([1, 2]), np.array([2.0, 3.0]), 3.0, 3.0, 1)
    words = draw_context(one, tmp_path / "c.png", "word", "loss")
    assert ", mean over one word: 2 with one, 3 with 2, 3 with all." in words
    assert "Less context does better: 2 with 1." in words
    assert "mean over 1 word" in drawn[1].axes[0].get_ylabel()


# ------------------------------------------------------------------------------------------------------- other pictures


@pytest.mark.parametrize(("left", "word"), [(0.9, "stays (0.9"), (0.01, "fades (0.01"), (3.0, "stays (3")])
def test_what_is_left_of_the_first_input_and_which_gates_are_open(left: float, word: str) -> None:
    state = np.array([1.0, 1.0, left])
    rows = {"x": state, "h": state, "y": state}
    gates = {"input": np.array([0.9, 0.1, 0.2]), "forget": np.array([0.1, 0.8, 0.9]), "output": np.zeros(3)}
    words = unfolded_words(Unfolded("", rows, np.zeros(3, dtype=bool), gates))
    assert f"state {word} " in words
    assert "input gate is open at step 1, its forget gate is open at every step, its output gate is open never" in words
    assert "gate" not in unfolded_words(Unfolded("", rows, np.zeros(3, dtype=bool)))


def test_saturation_is_counted() -> None:
    gate = torch.tensor([[0.95, 0.05, 0.5, 0.95]] * 4)
    layer = Activity("layer 1 LSTM", {"f": gate}, {}, {"h": gate})
    assert saturation_words([layer]).endswith("half of the steps: f 50% open, 25% closed.")
    both = saturation_words(
        [layer, Activity("layer 2 GRU", {"z": 1 - gate}, {}, {"h": gate}), Activity("x", {}, {}, {"h": gate})]
    )
    assert both.endswith("layer 1 LSTM, f 50% open, 25% closed; layer 2 GRU, z 25% open, 50% closed.")


def test_a_model_beside_the_lowest_place_is_said_to_be(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    at_the_bottom = plane_picture(model, lambda m: (m.weight - 1).square().sum() + 1, tmp_path / "a.png", side=5)
    assert "(star: 1.00)" in at_the_bottom
    assert "The lowest point is elsewhere" not in at_the_bottom
    beside = plane_picture(model, lambda m: (m.weight - 2).square().sum() + 1, tmp_path / "b.png", side=5)
    assert re.search(r"\(star: 2\.00\).* The lowest point is elsewhere: 1\.\d\d at \(", beside)


def grid(solved: dict[tuple[str, int], int], diverged: int = 0) -> Grid:
    reaches = {
        (name, lag): Reach(0.5, solved.get((name, lag), 0), diverged, 1, 1e-3)
        for name, lag in product(("tanh", "LSTM"), (5, 10))
    }
    return Grid("adding", "error < 0.01", {"tanh": "", "LSTM": ""}, (5, 10), reaches)


def test_which_remedy_reaches_furthest_follows_the_grid() -> None:
    assert remedy_words(grid({})).endswith("No remedy has solved it at any lag.")
    words = remedy_words(grid({("tanh", 5): 1, ("LSTM", 5): 1, ("LSTM", 10): 1}))
    assert words.endswith("The longest lag that is solved is 10 of 10, by LSTM.")
    words = remedy_words(grid({("tanh", 5): 1, ("LSTM", 5): 1}, diverged=1))
    assert words.endswith("is 5 of 10, by tanh, LSTM. 4 trials diverged.")


def test_how_many_cells_did_better_is_counted() -> None:
    results = {"a": 90.0, "b": 110.0, "LSTM": 100.0, "GRU": 80.0}
    words = search_words(results, ("LSTM", "GRU"))
    assert "1 of 2 did better than LSTM, 0 of 2 did better than GRU." in words
    assert "did better." in search_words({"a": 1.0}, ("LSTM",))


def test_a_picture_can_be_read(tmp_path: Path) -> None:
    text, activity, target = opposed(-1.0)
    best = predictive_units([activity], target)[0]
    property_text(text, [activity], best, target, "position", tmp_path / "p.png")
    assert imread(tmp_path / "p.png").shape[1] >= 1000
