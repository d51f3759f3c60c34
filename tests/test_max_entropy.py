"""Hashed n-grams beside a network: against brute force, and as part of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.errors import ConfigError
from everstep.heads.max_entropy import MaxEntropy
from everstep.networks.recent_words import recent_words
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.state import where

D, K, LONGEST, SIZE = 3, 6, 4, 40


def made(**how: Any) -> MaxEntropy:
    """A head in float64, all of whose parameters differ."""
    head = MaxEntropy(D, K, longest=LONGEST, size=SIZE, **how).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return head


def rows(*shape: int) -> Tensor:
    """Outputs with words behind, some of which are missing."""
    words = torch.randint(1, K + 1, (*shape, LONGEST - 1))
    words[0, ..., -1] = 0
    return torch.cat([torch.randn(*shape, D, dtype=torch.float64), words.double()], -1)


def brute(head: MaxEntropy, ys: Tensor) -> Tensor:
    """log p of each word after one step, word by word."""
    words = [int(word) for word in ys[D:]]
    scores = []
    for k in range(K):
        score = head.weight[k] @ head.joined(ys[:D]) + head.bias[k]
        for n in range(2, LONGEST + 1):
            history = torch.tensor(words[: n - 1] + [0] * (LONGEST - n), dtype=torch.float64)
            score = score + head.direct[int(head.starts(history)[n - 2]) + k]
        scores.append(score)
    return torch.stack(scores).log_softmax(0)


@pytest.mark.parametrize("features", [None, D, 2])
def test_scores_are_those_of_the_definition(features: int | None) -> None:
    head = made(tied=None if features is None else nn.Parameter(torch.randn(K, features)))
    ys, target = rows(2, 5), torch.randint(K, (2, 5))
    wanted = torch.stack([brute(head, y) for y in ys.flatten(0, 1)])
    torch.testing.assert_close(head.predict(ys).flatten(0, 1).double(), wanted, rtol=1e-5, atol=1e-6)
    nats = -wanted.gather(1, target.flatten()[:, None])[:, 0].view(2, 5)
    torch.testing.assert_close(head.each(ys, target), nats)
    lengths = torch.tensor([3, 0])
    torch.testing.assert_close(head.loss(ys, target, lengths), torch.stack([nats[0, :3].sum(), nats[1, :0].sum()]))
    with torch.no_grad():
        found = head.float().predict(ys.float()).flatten(0, 1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


class _Nats(nn.Module):
    """A head's `nats` as a call."""

    def __init__(self, head: MaxEntropy):
        super().__init__()
        self.head = head

    def forward(self, ys: Tensor, target: Tensor) -> Tensor:
        return self.head.nats(ys, target)


def test_gradients_are_those_of_the_definition() -> None:
    head = made().train()
    ys, target = rows(3, 2), torch.randint(K, (3, 2))
    given = [head.weight, head.bias, head.direct]
    found = torch.autograd.grad(head.objective(ys, target)[0].sum(), given)
    each = torch.stack([brute(head, y)[k] for y, k in zip(ys.flatten(0, 1), target.flatten(), strict=True)])
    for one, other in zip(found, torch.autograd.grad(-each.sum(), given), strict=True):
        torch.testing.assert_close(one, other)
    flat, wanted = ys.flatten(0, 1), target.flatten()

    def nats(features: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(("head.weight", "head.bias", "head.direct"), parameters, strict=True))
        inputs = torch.cat([features, flat[:, D:]], 1), wanted
        return torch.func.functional_call(_Nats(head), named, inputs)  # type: ignore[no-any-return]

    free = [tensor.detach().requires_grad_() for tensor in (flat[:, :D], *given)]
    assert torch.autograd.gradcheck(nats, free)


def test_histories_begin_anywhere_and_rarely_at_one_place() -> None:
    head = MaxEntropy(1, 100, longest=3, size=1 << 20)
    words = torch.cartesian_prod(torch.arange(101), torch.arange(101)).float()
    starts = head.starts(words)
    assert int(starts.min()) >= 0
    assert int(starts.max()) < 1 << 20
    assert len(starts[:, 0].unique()) == 101
    assert len(starts[:, 1].unique()) > 0.98 * len(words)
    assert abs(float(starts[:, 1].double().mean()) / (1 << 19) - 1) < 0.02


def by_hand(tokens: list[int], before: list[int], resets: list[bool]) -> list[list[int]]:
    """The last words of each step, with a list."""
    line, found = before[::-1], []
    for token, reset in zip(tokens, resets, strict=True):
        line = [*([] if reset else line), token + 1]
        found.append([*line[::-1], *[0] * len(before)][: len(before)])
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_recent_words_with_lengths_resets_and_pieces(count: int) -> None:
    tokens, resets = torch.randint(9, (4, 7)), torch.rand(4, 7) < 0.3
    lengths, before = torch.tensor([7, 0, 1, 4]), torch.randint(1, 9, (4, count))
    words, after = recent_words(tokens, before, lengths, resets)
    for row in range(4):
        wanted = by_hand(tokens[row].tolist(), before[row].tolist(), resets[row].tolist())
        assert words[row].tolist() == wanted
        last = int(lengths[row])
        assert after[row].tolist() == (wanted[last - 1] if last else before[row].tolist())
    first, middle = recent_words(tokens[:, :3], before, None, resets[:, :3])
    second, end = recent_words(tokens[:, 3:], middle, None, resets[:, 3:])
    assert torch.equal(torch.cat([first, second], 1), words)
    assert torch.equal(end, recent_words(tokens, before, None, resets)[1])


def model() -> TokenModel:
    found = TokenModel(12, TokenModelSection(embedding_size=4, hidden_size=5, max_entropy_order=3, max_entropy_size=99))
    assert isinstance(found.head, MaxEntropy)
    assert not found.head.direct.any()
    nn.init.normal_(found.head.direct)
    return found.eval()


def test_steps_pieces_and_sequences_agree() -> None:
    net, tokens = model(), torch.randint(12, (3, 6))
    resets = torch.zeros(3, 6, dtype=torch.bool)
    resets[1, 2] = True
    with torch.no_grad():
        whole = net.head.predict(net(tokens, resets=resets)[0])
        ys, plain, state = net.outputs(tokens[:, :2], resets=resets[:, :2])
        assert (ys.shape[-1], plain.shape[-1]) == (7, 5)
        torch.testing.assert_close(net.head.predict(ys), whole[:, :2])
        fresh = net.initial_state(3)
        state = where(resets[:, 2], fresh, state)
        for step in range(2, 6):
            log_p, state = net.step(tokens[:, step], state)
            torch.testing.assert_close(log_p, whole[:, step])
        shorter = net(tokens, lengths=torch.tensor([6, 2, 0]))[1]
        assert shorter[1].tolist() == [(tokens[0, [5, 4]] + 1).tolist(), (tokens[1, [1, 0]] + 1).tolist(), [0, 0]]


SIZES = ["model.hidden_size=8", "model.embedding_size=8", "data.max_size=60", "data.valid_fraction=0.02"]
STEPS = ["train.max_epochs=null", "train.max_minutes=null", "train.batch_size=8", "train.optimizer=sgd"]


@pytest.mark.parametrize("sequence", ["stream", "lines"])
def test_a_language_model_with_them(sequence: str, tmp_path: Path) -> None:
    given = [*SIZES, *STEPS, "train.learning_rate=5", "train.schedule=constant", f"data.sequence={sequence}"]
    given += ["train.validate_every=null", "train.weight_decay=0"]
    direct = ["model.max_entropy_order=3", "model.max_entropy_size=5000", "objective.activation_penalty=0.01"]
    run = es.train("text-words", tmp_path / "run", lambda _: None, overrides=[*given, *direct, "train.max_steps=40"])
    again = es.load(tmp_path / "run")
    assert run.model.head.direct.any()
    line = "to be or not to be"
    assert again.score([line])[0].logp == run.score([line])[0].logp
    assert again.score(["x", line])[1].logp == pytest.approx(run.score([line])[0].logp, rel=1e-5)
    assert run.generate("to", 6, 1.0, seed=1) == again.generate("to", 6, 1.0, seed=1)
    with torch.no_grad():
        again.model.head.direct.zero_()
    assert run.evaluate("valid")["loss"] < again.evaluate("valid")["loss"]


def test_it_continues_where_it_was_killed(tmp_path: Path) -> None:
    given = [*SIZES, *STEPS, "train.learning_rate=1", "train.schedule=constant", "model.max_entropy_order=3"]
    given += ["train.validate_every=2", "train.weight_decay=0", "model.max_entropy_size=500"]
    whole = es.train("text-words", tmp_path / "whole", lambda _: None, overrides=[*given, "train.max_steps=4"])
    es.train("text-words", tmp_path / "part", lambda _: None, overrides=[*given, "train.max_steps=2"])
    resumed = es.resume(tmp_path / "part", lambda _: None, overrides=["train.max_steps=4"])
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.max_entropy_order=3", "model.softmax=adaptive"], "max_entropy_order: expected null where softmax is"),
        (["model.max_entropy_size=5"], "max_entropy_size: expected max_entropy_order beside it"),
        (["model.max_entropy_order=1"], "max_entropy_order: .*2"),
        (
            ["model.max_entropy_order=2", "objective.label_smoothing=0.1"],
            "label_smoothing: expected 0 beside",
        ),
    ],
)
def test_what_does_not_fit_is_refused(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        es.train("text-words", tmp_path / "run", lambda _: None, overrides=more)
    for how in ({"longest": 1, "size": 4}, {"longest": 2, "size": 0}):
        with pytest.raises(ValueError, match="expected longest of 2 or more and size of 1 or more"):
            MaxEntropy(2, 3, **how)
