"""What each of two processes does in `tests/test_many_processes.py`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import learn_toy as toy
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from everstep.data.batches import Share, TokenBatch
from everstep.data.labelled_batches import LabelledBatch, LabelledBatches
from everstep.errors import Diverged, Interrupted
from everstep.learn import FitSettings, Loss, fit
from everstep.processes import rank

Toy = toy.Toy


class SharedLanes(toy.Lanes):
    """Lanes that processes divide."""

    def part(self, epoch: int, index: int, share: Share) -> TokenBatch | None:
        """Some of the lanes."""
        whole, rows = self.batch(epoch, index), slice(share.rank, None, share.of)
        lengths = None if whole.lengths is None else whole.lengths[rows]
        return TokenBatch(whole.inputs[rows], whole.targets[rows], lengths, None, 0, whole.advance)


class Reader(nn.Module):
    """The mean of embeddings, then a linear layer to classes; a running count of rows."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding, self.out = nn.Embedding(20, 6, sparse=sparse), nn.Linear(6, 3)
        self.unread = nn.Linear(1, 1)
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: LabelledBatch) -> torch.Tensor:
        self.rows += batch.rows
        inside = torch.arange(batch.inputs.shape[1]) < batch.lengths[:, None]
        total = (self.embedding(batch.inputs) * inside[..., None]).sum(1)
        logits: torch.Tensor = self.out(total / batch.lengths[:, None])
        return logits


def class_loss(model: Any, batch: LabelledBatch, state: Any) -> Iterator[Loss]:
    nats = nn.functional.cross_entropy(model(batch), batch.labels, reduction="none")
    yield Loss(nats, nats.detach())


def buckets() -> LabelledBatches:
    """17 texts in batches of 4, so that the last batch of each epoch has one row."""
    random = np.random.default_rng(3)
    texts = [random.integers(20, size=size).astype(np.int32) for size in random.integers(1, 9, 17)]
    return LabelledBatches(texts, random.integers(3, size=17), 4, seed=2)


class Kept:
    """The gradients that the rules see, by step."""

    def __init__(self) -> None:
        self.of: dict[str, torch.Tensor] = {}

    def __call__(self, model: nn.Module, step: int) -> None:
        self.of |= {f"{step}/{n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def equal(folder: Path) -> None:
    """Train in float64 on ragged lanes, and on batches of texts; keep gradients and weights."""
    common: dict[str, Any] = {
        "optimizer": "sgd",
        "momentum": 0.9,
        "clip_norm": 0.05,
        "averaging": "ema",
        "max_steps": 6,
    }
    lanes, texts = Kept(), Kept()
    model: nn.Module = Toy(dropout=0.0).double()
    toy.run(folder / "lanes", model=model, batches=SharedLanes(5, ragged=True), rules=[lanes], objective=toy.pieces,
            accumulate=2, validate=toy.validation, validate_every=3, **common)  # fmt: skip
    reader = Reader().double()
    result = toy.run(
        folder / "texts", model=reader, batches=buckets(), rules=[texts], objective=class_loss, **common, l2=0.1,
        gradient_noise=0.01,
    )  # fmt: skip
    assert result.tokens == 17 + 4, result
    found = {f"lanes/{n}": t for n, t in lanes.of.items()} | {f"texts/{n}": t for n, t in texts.of.items()}
    found |= {f"after/lanes/{n}": p.detach() for n, p in model.named_parameters()}
    found |= {f"after/texts/{n}": p.detach() for n, p in reader.named_parameters()}
    save_file({n: t.contiguous() for n, t in found.items()}, folder / f"equal-{rank()}.safetensors")


def sparse(folder: Path) -> None:
    """Train in float64 with gradients of rows alone; in the last batch of an epoch one process has none."""
    kept, reader = Kept(), Reader(sparse=True).double()
    toy.run(
        folder / "sparse", model=reader, batches=buckets(), rules=[kept], objective=class_loss, clip_norm=0.05,
        max_steps=6,
    )  # fmt: skip
    held = {n: (t._nnz(), t.to_dense()) if t.is_sparse else (0, t) for n, t in kept.of.items()}
    assert any(0 < number < 20 for number, _ in held.values())
    found = {n: t for n, (_, t) in held.items()} | {f"after/{n}": p.detach() for n, p in reader.named_parameters()}
    save_file({n: t.contiguous() for n, t in found.items()}, folder / f"sparse-{rank()}.safetensors")


def resumed(folder: Path) -> None:
    """With dropout: train in one go; and stop by a signal to the second process alone, and go on."""
    options: dict[str, Any] = {"batches": SharedLanes(), "validate": toy.validation, "validate_every": 3, "seed": 4}
    model: nn.Module = Toy(seed=rank())  # the leader's weights are those of all
    toy.run(folder / "whole", model=model, **options)

    def signalled(model: nn.Module, step: int) -> None:
        if step == 4 and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 5"):
        toy.run(folder / "halved", rules=[signalled], **options)
    again: nn.Module = Toy(seed=9)
    toy.run(folder / "halved", model=again, resume=True, **options)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    save_file({n: p.detach().contiguous() for n, p in again.named_parameters() if n != "out.weight"},
              folder / f"resumed-{rank()}.safetensors")  # fmt: skip


def ended(folder: Path) -> None:
    """A callback of the leader ends both; a loss that is not finite in the second process alone, too."""
    settings = FitSettings(max_steps=12, validate_every=3, **toy.PLAIN)
    found = fit(
        Toy(), toy.objective, SharedLanes(), settings, out=folder / "called", validate=toy.validation,
        callbacks=[lambda record: record.get("step") == 6 and "valid" in record], log=lambda line: None,
    )  # fmt: skip
    assert (found.stopped_by, found.steps) == ("callback", 6)

    def spoiled(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
        for loss in toy.objective(model, batch, state):
            bad = rank() == 1 and int(model.seen) >= 5 * 10  # type: ignore[arg-type]
            yield loss._replace(total=loss.total * torch.nan) if bad else loss

    with pytest.raises(Diverged, match=r"at step 5 .*the loss of row 1, 3 in batch 4 is nan.*step-00000004"):
        toy.run(folder / "spoiled", objective=spoiled, batches=SharedLanes(), checkpoint_every=2)


def all_three(folder: Path) -> None:
    """The stages whose processes live on."""
    equal(folder)
    sparse(folder)
    resumed(folder)
    ended(folder)


def killed(folder: Path) -> None:
    """The second process is killed after the checkpoint of step 4."""

    def shot(model: nn.Module, step: int) -> None:
        if step == 5 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    toy.run(folder, batches=SharedLanes(), rules=[shot], checkpoint_every=4, resume_command="GO ON")
