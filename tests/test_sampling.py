"""Sampling: the distribution it draws from, and the settings it refuses."""

from __future__ import annotations

import pytest
import torch
from far_device import FarDevice
from torch import Tensor

from everstep.decode import sample
from everstep.errors import ConfigError

P = torch.tensor([0.4, 0.3, 0.2, 0.1])


def step(tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Always P, whatever came; the state counts the steps."""
    return P.log().expand(len(tokens), 4), state + 1


def shares(**how: object) -> Tensor:
    drawn = sample(step, torch.zeros(200), [0], 100, count=200, generator=torch.Generator().manual_seed(0), **how)
    return torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ({}, P),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 2.0}, P.sqrt() / P.sqrt().sum()),
        ({"temperature": 0}, torch.tensor([1.0, 0, 0, 0])),
        ({"top_k": 1}, torch.tensor([1.0, 0, 0, 0])),
        ({"top_k": 2}, torch.tensor([4 / 7, 3 / 7, 0, 0])),
        ({"top_k": 9}, P),
        ({"top_p": 0.65}, torch.tensor([4 / 7, 3 / 7, 0, 0])),
        ({"top_p": 0.72}, torch.tensor([4 / 9, 3 / 9, 2 / 9, 0])),
        ({"top_p": 0.01}, torch.tensor([1.0, 0, 0, 0])),
        ({"top_p": 1.0}, P),
        ({"never": [0]}, torch.tensor([0, 3 / 6, 2 / 6, 1 / 6])),
        ({"never": [0, 2], "top_k": 1}, torch.tensor([0.0, 1, 0, 0])),
        ({"never": [0], "temperature": 0}, torch.tensor([0.0, 1, 0, 0])),
        ({"never": [1], "top_p": 0.5}, torch.tensor([1.0, 0, 0, 0])),
        ({"top_k": 3, "top_p": 0.5}, torch.tensor([4 / 7, 3 / 7, 0, 0])),
    ],
)
def test_the_distribution_is_the_stated_one(how: dict[str, object], want: Tensor) -> None:
    torch.testing.assert_close(shares(**how), want, rtol=0, atol=0.012)


def test_tokens_drawn_are_fed_back_after_the_prompt() -> None:
    seen: list[list[int]] = []

    def record(tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(tokens.tolist())
        nxt = torch.nn.functional.one_hot((tokens + 1) % 5, 5).float().log()
        return nxt, state

    drawn = sample(record, torch.zeros(2), [3, 4, 1], 4, count=2)
    assert drawn.tolist() == [[2, 3, 4, 0]] * 2
    assert seen == [[3, 3], [4, 4], [1, 1], [2, 2], [3, 3], [4, 4]]


def test_a_model_without_a_state_is_where_its_prompt_is() -> None:
    """As on a GPU, a step of a model there takes tokens that are there."""

    def there(tokens: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        assert far.is_far(tokens)
        return weights[tokens], state

    with FarDevice() as far:
        weights = P.log().expand(4, 4).contiguous().to("cuda")
        prompt = torch.tensor([1, 2]).to("cuda")
        assert sample(there, (), prompt, 3, count=2, never=[0]).shape == (2, 3)
        with pytest.raises(RuntimeError, match="same device"):
            sample(lambda tokens, state: (weights[tokens] + P, state), (), prompt, 3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"length": 0}, "length should be at least 1"),
        ({"count": 0}, "count should be"),
        ({"top_k": 0}, "top_k should be"),
        ({"top_p": 0.0}, "top_p should lie"),
        ({"top_p": 1.5}, "top_p should lie"),
        ({"temperature": -1.0}, "temperature should be"),
        ({"temperature": float("nan")}, "temperature should be"),
    ],
)
def test_impossible_settings_are_refused(how: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"prompt": [0], "length": 1, **how}
    with pytest.raises(ConfigError, match=message):
        sample(step, torch.zeros(1), given.pop("prompt"), given.pop("length"), **given)
