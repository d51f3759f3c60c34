"""Which units tell a property of a text: chosen on one half, measured on the other."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.look.gates import Activity, activities
from everstep.look.units import PROPERTIES, predictive_units, property_text, table

OPEN, CLOSE = ("(", "[", "{"), (")", "]", "}")


class Depth(es.Cell):
    """Counts open brackets in its last unit; the units before it hold noise that x brings."""

    def __init__(self, units: int = 8) -> None:
        super().__init__(units + 2, units)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        depth = state[:, -1:] + x[:, :1] - x[:, 1:2]
        new = torch.cat([x[:, 3:], depth], -1)
        return new, new


def brackets(length: int = 2000, seed: int = 0) -> str:
    draw, text, depth = random.Random(seed), "", 0
    while len(text) < length:
        letter = draw.choice("ab ([)}")
        if letter in "([":
            depth += 1
        elif letter in ")}":
            if depth == 0:
                continue
            depth -= 1
        text += letter
    return text


def counted(text: str) -> list[Activity]:
    noise = torch.randn(len(text), 8, generator=torch.Generator().manual_seed(1))
    signs = torch.tensor([[c in OPEN, c in CLOSE] for c in text]).float()
    return activities(Depth(), torch.cat([signs, noise], 1)[None])


def test_a_cell_that_counts_brackets_is_found() -> None:
    text = brackets()
    found = counted(text)
    told = predictive_units(found, PROPERTIES["depth of brackets"](text))
    assert len(told) == 8
    assert (told[0].layer, told[0].part, told[0].unit) == ("Depth", "h", 7)
    assert told[0].correlation == pytest.approx(1, abs=1e-9)
    assert told[0].auc is None
    assert all(abs(one.correlation) < 0.12 for one in told[1:])


def test_noise_tells_nothing_of_what_is_true_or_false() -> None:
    found = counted(brackets())
    coin = random.Random(5)
    told = predictive_units(found, [coin.randrange(2) for _ in range(2000)], count=3)
    assert len(told) == 3
    for one in told:
        assert abs(one.correlation) < 0.1
        assert one.auc is not None
        assert abs(one.auc - 0.5) < 0.06


def hand_made(first: Tensor, second: Tensor) -> list[Activity]:
    return [Activity("mine", {}, {}, {"h": torch.cat([first, second])})]


def test_units_are_chosen_on_the_first_half_and_reported_on_the_second() -> None:
    target = torch.tensor([0.0, 1.0] * 100)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(2))
    half = target[:100]
    learnt_by_heart = torch.stack([half, noise], 1)  # unit 0 tells it on the first half alone
    later = torch.stack([noise, half], 1)  # unit 1 on the second alone
    best, other = predictive_units(hand_made(learnt_by_heart, later), target.tolist())
    assert (best.unit, other.unit) == (0, 1)
    assert abs(best.correlation) < 0.3
    assert other.correlation == pytest.approx(1)


def test_the_sign_of_the_auc_is_chosen_on_the_first_half() -> None:
    target = torch.tensor([0.0, 1.0] * 100)
    half = target[:100]
    upright, turned = half[:, None], -half[:, None]
    assert predictive_units(hand_made(turned, turned), target.tolist())[0].auc == 1
    assert predictive_units(hand_made(turned, turned), target.tolist())[0].correlation == pytest.approx(-1)
    assert predictive_units(hand_made(upright, turned), target.tolist())[0].auc == 0


def test_figures_against_other_formulas() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randint(0, 4, (300, 1), generator=generator).double()  # with ties
    target = ((values[:, 0] + torch.randn(300, generator=generator)) > 2).double()
    (found,) = predictive_units(hand_made(values[:150], values[150:]), target.tolist())
    held, truth = values[150:, 0], target[150:]
    both = torch.corrcoef(torch.stack([held, truth]))
    assert found.correlation == pytest.approx(float(both[0, 1]))
    pairs = held[truth == 1][:, None] - held[truth == 0]
    by_pairs = (pairs > 0).double() + 0.5 * (pairs == 0)
    assert found.auc == pytest.approx(float(by_pairs.mean()))


def test_a_unit_that_never_changes_tells_nothing() -> None:
    still = torch.full((100, 1), 0.3)
    (found,) = predictive_units(hand_made(still, still), [float(k % 2) for k in range(200)])
    assert found.correlation == 0
    assert found.auc == 0.5


def test_a_users_function_and_other_parts() -> None:
    found = activities(es.GRU(1, 3), torch.randn(1, 200, 1, generator=torch.Generator().manual_seed(6)))
    told = predictive_units(found, lambda index: math.sin(index), parts=["z", "h"])
    assert {(one.part, one.unit) for one in told} == {(part, unit) for part in "zh" for unit in range(3)}


def test_wrong_properties_are_refused() -> None:
    found = counted(brackets(300))
    steps = len(next(iter(found[0].state.values())))
    with pytest.raises(ValueError, match="the property is 0 all over the first half of the text"):
        predictive_units(found, [0.0] * steps)
    with pytest.raises(ValueError, match="the property is 1 all over the second half of the text"):
        predictive_units(found, [float(k % 2 or k > steps // 3) for k in range(steps)])
    with pytest.raises(ValueError, match=f"a number for each of the {steps} steps, but got 3"):
        predictive_units(found, [1, 2, 3])
    with pytest.raises(ValueError, match="finite"):
        predictive_units(found, [math.nan] * steps)
    with pytest.raises(ValueError, match="no layer has a part 'f'; there are h"):
        predictive_units(found, lambda k: k, parts=["f"])
    with pytest.raises(ValueError, match="expected 100 steps or more, but got 99; give a longer text"):
        predictive_units([found[0].at(slice(0, 99))], lambda k: k)


def test_properties() -> None:
    text = 'He said "Oh (no)".\n“a”'
    for name, expected in {
        "inside quotes": "0000000011111111000110",
        "position in the line": [*range(1, 19), 0, 1, 2, 3],
        "depth of brackets": "0000000000001110000000",
        "letter": "1101111001100110000010",
        "space": "0010000100010000001000",
        "upper case": "1000000001000000000000",
        "inside a word": "1101111001100110000010",
        "line ends next": "0000000000000000010000",
    }.items():
        assert PROPERTIES[name](text) == [float(value) for value in expected], name
    assert PROPERTIES["depth of brackets"](")(") == [0.0, 1.0]


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    text = brackets(400)
    found = counted(text)
    target = PROPERTIES["depth of brackets"](text)
    told = predictive_units(found, target)
    lines = table({"depth": told, "quotes": "the property is 0"}, count=2).splitlines()
    assert lines[2] == "| depth | Depth | h 7 | +1.000 | +1.000 |  | well |"
    assert lines[4] == "| quotes | | | | left out: the property is 0 | | |"
    assert len(lines) == 5
    shown = [found[0].at(slice(0, 80))]
    for name in "ab":
        property_text(text[:80], shown, told[0], target[:80], "depth of brackets", tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match="a token for each of the 80 steps, but got 400"):
        property_text(text, shown, told[0], target, "depth", tmp_path / "c.png")
