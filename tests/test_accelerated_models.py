"""Models as people have them, with their layers accelerated: the same losses and gradients."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import everstep as es
from everstep.backends.fused import backend as fused

F64 = torch.float64


@pytest.fixture(autouse=True)
def _also_where_pytorch_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "outrun", lambda *arguments: False)


class WeightDrop(nn.Module):
    """As in the AWD-LSTM: before each call a plain tensor takes the place of the parameter, which is kept as …_raw."""

    def __init__(self, module: nn.LSTM, p: float):
        super().__init__()
        self.module, self.p = module, p
        raw = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        module.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.data))
        module.weight_hh_l0 = raw.data

    def forward(self, *arguments: object) -> object:
        self.module.weight_hh_l0 = F.dropout(self.module.weight_hh_l0_raw, self.p, self.training)
        return self.module(*arguments)


class AWD(nn.Module):
    """Language model: embedding, three layers with dropped weights, variational dropout between them, tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        sizes = [12, 23, 23, 12]
        self.layers = nn.ModuleList(WeightDrop(nn.LSTM(a, b), 0.5) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(12, 30)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor, states: list[object]) -> tuple[Tensor, list[object]]:
        ys, new = self.embedding(tokens), []
        for layer, state in zip(self.layers, states, strict=True):
            ys, state = layer(ys, state)
            ys = ys * F.dropout(torch.ones_like(ys[:1]), 0.3, self.training)
            new.append(tuple(part.detach() for part in state))
        return self.out(ys.view(-1, 12)), new


class Tagger(nn.Module):
    """BiLSTM-CRF: the negative log likelihood of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.out = nn.Linear(12, 4)
        self.transitions = nn.Parameter(torch.randn(4, 4))

    def forward(self, tokens: Tensor, lengths: Tensor, tags: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        scores = self.out(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])
        gold = scores.gather(2, tags[..., None])[..., 0]
        gold[:, 1:] = gold[:, 1:] + self.transitions[tags[:, :-1], tags[:, 1:]]
        alpha = scores[:, 0]
        for t in range(1, tokens.shape[1]):
            step = torch.logsumexp(alpha[:, :, None] + self.transitions, 1) + scores[:, t]
            alpha = torch.where((t < lengths)[:, None], step, alpha)
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        return (alpha.logsumexp(1) - (gold * inside).sum(1)).mean()


class Translator(nn.Module):
    """Encoder and decoder: the state goes over by hx; the decoder runs one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.encoder, self.decoder = nn.GRU(8, 7, 2), nn.GRU(8, 7, 2)
        self.out = nn.Linear(7, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, h = self.encoder(self.embedding(source))
        scores = []
        for token in self.embedding(target[:-1]).split(1):
            ys, h = self.decoder(token, h)
            scores.append(self.out(ys))
        return F.cross_entropy(torch.cat(scores).flatten(0, 1), target[1:].flatten())


def losses(model: nn.Module, kind: str, optimizer: torch.optim.Optimizer) -> list[float]:
    torch.manual_seed(3)
    found, states = [], [None] * 3
    for _ in range(20):
        tokens, lengths = torch.randint(30, (9, 5)), torch.tensor([5, 3, 5, 1, 2, 4, 5, 1, 2])
        optimizer.zero_grad()
        if kind == "AWD":
            scores, states = model(tokens[:-1], states)
            loss = F.cross_entropy(scores, tokens[1:].flatten())
        elif kind == "tagger":
            loss = model(tokens, lengths, tokens % 4)
        else:
            loss = model(tokens, tokens.flip(0))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("kind", ["AWD", "tagger", "translator"])
def test_training_gives_the_same_losses(kind: str, optimizer: str, engine_runs: list[str]) -> None:
    plain = {"AWD": AWD, "tagger": Tagger, "translator": Translator}[kind]()
    model = es.accelerate(copy.deepcopy(plain))
    rate = {"SGD": 1.0, "Adam": 0.01}[optimizer]
    found = [losses(m, kind, getattr(torch.optim, optimizer)(m.parameters(), rate)) for m in (model, plain)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    assert found[0][0] != found[0][-1]
    assert len(engine_runs) == {"AWD": 60, "tagger": 40, "translator": 20 * 2 * 9}[kind]
    assert list(model.state_dict()) == list(plain.state_dict())


def test_dropped_weights_pass_their_gradient_on() -> None:
    plain = AWD().eval()
    model = es.accelerate(copy.deepcopy(plain))
    tokens = torch.randint(30, (9, 5))
    for m in (model, plain):
        m(tokens, [None] * 3)[0].square().mean().backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=1e-4, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}"
        )
