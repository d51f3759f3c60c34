"""What a checkpoint holds of each process: the state of its lanes and of its random generators.

The leader's are those of a training in one process; those of process k are beside them under `NAME-k`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from everstep.errors import RunError
from everstep.learn import rng
from everstep.learn.checkpoint import Checkpoint, serialize
from everstep.learn.weights import all_tensors

_OF_EACH = ("carried", "random")


def named(name: str, rank: int) -> str:
    """The name of a part of process `rank`.

    >>> named("random", 0), named("random", 2)
    ('random', 'random-2')
    """
    return f"{name}-{rank}" if rank else name


def part_of(checkpoint: Checkpoint, model: torch.nn.Module) -> bytes:
    """The part of this process in its own `checkpoint`, to be sent to the leader."""
    tensors = {f"{group}/{name}": t for group in _OF_EACH for name, t in checkpoint.tensors[group].items()}
    said = {"random": checkpoint.data["random"], "weights": _digest(all_tensors(model))}
    return serialize(tensors, {"said": json.dumps(said, allow_nan=False)})


def joined_parts(checkpoint: Checkpoint, parts: list[bytes]) -> Checkpoint:
    """The leader's checkpoint with the parts of all processes, its own first.

    Raises:
        RunError: the weights of a process are not those of the leader, which they should be bit for bit.
    """
    tensors, data, expected = dict(checkpoint.tensors), dict(checkpoint.data), ""
    for rank, part in enumerate(parts):
        size = int.from_bytes(part[:8], "little")
        said = json.loads(json.loads(part[8 : 8 + size])["__metadata__"]["said"])
        expected = expected or said["weights"]
        if said["weights"] != expected:
            raise RunError(
                f"the weights of process {rank} are no longer those of process 0: its machine computes otherwise, or "
                "its memory is faulty; train on machines of one kind"
            )
        if rank:
            found = safetensors.torch.load(part)
            for group in _OF_EACH:
                tensors[named(group, rank)] = _within(found, f"{group}/")
            data[named("random", rank)] = said["random"]
    return replace(checkpoint, tensors=tensors, data=data)


def restore_random(tensors: dict[str, dict[str, Tensor]], data: dict[str, Any], rank: int) -> None:
    """Give this process's random generators the state that a checkpoint holds of them."""
    name = named("random", rank)
    rng.restore(tensors[name], data[name])


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(serialize(tensors)).hexdigest()
