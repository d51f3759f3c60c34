"""A training in several processes, as `torchrun` starts them: sums and messages by `torch.distributed`.

Gradients are summed once a step, all of one type as one tensor: by gloo on CPUs, by NCCL on GPUs. Everything else is a
few numbers, by gloo.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from everstep.errors import ConfigError, RunError
from everstep.learn.heartbeat import SILENCE, Heartbeat
from everstep.learn.world import World

_BEGINS = timedelta(minutes=5)
"""How long to wait for the other processes at the start."""
_WAITS = timedelta(days=30)
"""How long to wait for what another process computes, such as a validation; heartbeats notice one that is lost."""
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_begun = 0
_stores: list[Any] = []
"""Connections of the groups of this process. The leader's first serves the later ones, and stays: else another process
that begins its next training first would meet the server of the last one as it closes."""


class ProcessGroup(World):
    """The processes that the environment names: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as of `torchrun`.

    `close` must be called at the end.

    Attributes:
        lost: whether another process has ended before its time.

    Raises:
        ConfigError: a variable is missing or malformed, or `torch.distributed` is in use already.
        RunError: the others do not come.
    """

    def __init__(self) -> None:
        super().__init__()
        values = [os.environ.get(name, "") for name in _VARIABLES]
        if "" in values or not all(values[at].isdecimal() for at in (0, 1, 3)):
            got = ", ".join(f"{name}={value!r}" for name, value in zip(_VARIABLES, values, strict=True))
            raise ConfigError(f"expected the variables that torchrun sets for each process; got {got}")
        if dist.is_initialized():
            raise ConfigError("torch.distributed is in use already; let the training start it")
        self.rank, self.size = int(values[0]), int(values[1])
        self._address = values[2], int(values[3])
        self.lost = self._trains = False
        global _begun
        _begun += 1
        try:
            self._store = self._connection(serves=self.rank == 0)
            _stores.append(self._store)
            self._store.set(f"here/{self.rank}", "")
            self._store.wait([f"here/{rank}" for rank in range(self.size)], _BEGINS)
            dist.init_process_group(
                self._backend(), store=self._store, rank=self.rank, world_size=self.size, timeout=_WAITS
            )
        except RuntimeError as error:
            raise RunError(
                f"process {self.rank} of {self.size} does not reach the others at {values[2]}:{values[3]}: "
                f"{_first_line(error)}"
            ) from None

    def _connection(self, serves: bool) -> Any:
        """A connection to the store; under torchrun its agent serves, else the leader."""
        host, port = self._address
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            host, port, self.size, serves and not agent, timeout=_BEGINS, wait_for_workers=False, multi_tenant=True
        )
        return PrefixStore(f"everstep-{_begun}", store)

    def _backend(self) -> str:
        """Where each kind of tensor is summed. Processes that share a GPU cannot use NCCL."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        gpus = torch.cuda.device_count()
        if not gpus:
            return "gloo"
        torch.cuda.set_device(local % gpus)
        shared = int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) > gpus
        return "gloo" if shared or not dist.is_nccl_available() else "cpu:gloo,cuda:nccl"

    def close(self) -> None:
        """Leave the group, unless it has broken: its end might wait for what is lost."""
        if not self.lost:
            dist.destroy_process_group()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Turn a failed connection into an error that names the last checkpoint."""
        try:
            yield
        except RuntimeError as error:
            self.lost = True
            raise RunError(
                self._without(f"another process has ended or cannot be reached ({_first_line(error)})")
            ) from None

    def _without(self, what: str) -> str:
        """The message of a process that others have left."""
        if not self._trains:
            then = "training had not begun; the message of that process says why, unless it was killed"
        elif self.checkpoint is None:
            then = "no checkpoint had been saved yet"
        else:
            go_on = f"; go on with: {self.resume_command}" if self.resume_command else ""
            then = f"the last checkpoint is {self.checkpoint}{go_on}"
        return f"process {self.rank} of {self.size}: {what}; {then}"

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in float64."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over all processes."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Sequence[float], how: Any) -> list[float]:
        values = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        with self._together():
            dist.all_reduce(values, how)
        found: list[float] = values.tolist()
        return found

    def told(self, value: Any) -> Any:
        """What the leader gives, a JSON value, in every process."""
        content = json.dumps(value).encode() if self.leads else b""
        size = int(self.summed([len(content)])[0])
        letters = _bytes(content) if self.leads else torch.empty(size, dtype=torch.uint8, device="cpu")
        with self._together():
            dist.broadcast(letters, 0)
        return json.loads(letters.numpy().tobytes())

    def gathered(self, content: bytes) -> list[bytes]:
        """The contents of all processes in the leader; an empty list in the others."""
        sizes = [int(size) for size in self.summed([len(content) * (self.rank == at) for at in range(self.size)])]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device="cpu")
        padded[: len(content)] = _bytes(content)
        found = [torch.empty_like(padded) for _ in sizes] if self.leads else None
        with self._together():
            dist.gather(padded, found, 0)
        return [one[:size].numpy().tobytes() for one, size in zip(found or (), sizes if found else (), strict=True)]

    @torch.no_grad()
    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over all processes; one that only others have is added.

        Each tensor that is summed ends with one number for each parameter: how many processes have a gradient of it.
        """
        joined = self._join_rows(model)
        kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in joined:
                kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for parameters in kinds.values():
            own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            have = own[0].new_tensor([float(p.grad is not None) for p in parameters])
            flat = torch.cat([*(gradient.reshape(-1) for gradient in own), have])
            with self._together():
                dist.all_reduce(flat)
            *sums, have = flat.split([*(p.numel() for p in parameters), len(parameters)])
            for parameter, total, number in zip(parameters, sums, have.tolist(), strict=True):
                if number:
                    parameter.grad = total.view_as(parameter)

    def _join_rows(self, model: nn.Module) -> set[int]:
        """Sum the gradients that hold rows alone in all processes that have them; returns the ids of their parameters.

        One that holds all rows in some process becomes such a one here.
        """
        parts = [part for part in model.modules() if getattr(part, "sparse", False) is True]
        mayhap = {id(p): p for part in parts for p in part.parameters(recurse=False) if p.requires_grad}
        if not mayhap:
            return set()
        kinds = [None if p.grad is None else p.grad.is_sparse for p in mayhap.values()]
        found = self.largest([*(kind is True for kind in kinds), *(kind is False for kind in kinds)])
        joined = set()
        for (key, p), rows, whole in zip(mayhap.items(), found, found[len(kinds) :], strict=False):
            if rows and not whole:
                p.grad = self._joined(p, p.grad)
                joined.add(key)
            elif rows and p.grad is not None:
                p.grad = p.grad.to_dense()
        return joined

    def _joined(self, parameter: nn.Parameter, gradient: Tensor | None) -> Tensor:
        """The rows of all processes in the order of the processes, in which all add those of the same number."""
        if gradient is None:
            ids = torch.empty(0, dtype=torch.int64, device=parameter.device)
            rows = parameter.new_empty(0, *parameter.shape[1:])
        else:
            gradient = gradient.coalesce()
            (ids,), rows = gradient.indices(), gradient.values()
        sizes = [int(size) for size in self.summed([len(ids) * (self.rank == at) for at in range(self.size)])]
        parts: list[Tensor] = []
        for own in (ids, rows):
            padded = own.new_zeros(max(1, *sizes), *own.shape[1:])
            padded[: len(own)] = own
            found = [torch.empty_like(padded) for _ in sizes]
            with self._together():
                dist.all_gather(found, padded)
            parts.append(torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)]))
        return torch.sparse_coo_tensor(parts[0][None], parts[1], parameter.shape).coalesce()

    @torch.no_grad()
    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have in the leader, in place."""
        for tensor in tensors:
            if not tensor.numel():
                continue
            values = tensor.detach().contiguous()
            with self._together():
                dist.broadcast(values.view(-1).view(torch.uint8), 0)
            if values.data_ptr() != tensor.data_ptr():
                tensor.copy_(values)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block, a process that is lost ends the others; its end waits for all of them."""

        def message(lost: int) -> str:
            return self._without(
                f"process {lost} has not been heard of for {SILENCE:g} s: it was killed, or its machine is unreachable"
            )

        self._trains = True
        with Heartbeat(self._connection(serves=False), self.rank, self.size, message):
            yield
            self.summed([0.0])


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _first_line(error: Exception) -> str:
    """What an error says, without the place in the source that it names first, and its advice."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).partition("\n")[0]).partition(". This")[0]
