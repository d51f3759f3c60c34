"""The runs that a server has, by name."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from everstep.errors import ConfigError, EverstepError
from everstep.look.step import NamedSteps
from everstep.runs.capabilities import Draws, abilities
from everstep.runs.run import Run
from everstep.ship.export_folder import CARD, LARGEST_CARD, is_export
from everstep.ship.loaded import ExportedRun
from everstep.ship.serving.batcher import StepBatcher
from everstep.ship.serving.faults import Fault
from everstep.ship.serving.step_engine import StepEngine, engine_of
from everstep.storage.reading import read_small

Load = Callable[[Path], Run]
Say = Callable[[str], None]
ASKED = ("predict", "score", "generate")
"""The abilities that a server offers."""
LINED = ("predict", "score")
"""Those that are asked about lines."""
IDENTITY = 16
"""Bytes that tell models apart."""


@dataclass(eq=False)
class HostedRun:
    """A run that is asked over the network.

    Attributes:
        name: its name in requests.
        run: the run; None: only its learning curves are shown.
        path: its folder.
        engine: its step, or why sessions cannot step it.
        batcher: runs the steps of its sessions; None without a step.
        alone: held by predictions and scores, since some models may not be asked twice at a time.
        identity: tells models apart: IDENTITY bytes of a digest of its weights; empty without a step.
        named_steps: the traced steps of its cells, for the values of their gates.
    """

    name: str
    path: Path
    run: Run | None
    engine: StepEngine | str
    batcher: StepBatcher | None
    alone: asyncio.Semaphore
    identity: bytes = b""
    named_steps: NamedSteps = field(default_factory=NamedSteps)

    def able(self, verb: str) -> Run:
        """The run, if it has the ability.

        Raises:
            Fault: 409; the sentence says what it can.
        """
        if self.run is None:
            raise Fault(409, f"{self.name} is only watched: its learning curves are shown, and it cannot be asked")
        if verb not in self.abilities:
            raise Fault(409, f"{self.name} cannot {verb}; it can {', '.join(self.abilities) or 'be watched alone'}")
        return self.run

    def stepped(self) -> tuple[StepEngine, StepBatcher]:
        """The step and its batcher.

        Raises:
            Fault: 409, it has no step; the sentence says why.
        """
        if isinstance(self.engine, str) or self.batcher is None:
            raise Fault(409, f"{self.name} has no sessions: {self.engine}")
        return self.engine, self.batcher

    @property
    def abilities(self) -> list[str]:
        """What it can be asked."""
        if self.run is None:
            return []
        found = [verb for verb in abilities(self.run.task) if verb in ASKED]
        if isinstance(self.run.task, Draws) and not isinstance(self.run, ExportedRun):
            found.append("units")
        return found if self.batcher is None else [*found, "sessions"]

    def described(self) -> dict[str, Any]:
        """What clients are told of it."""
        told: dict[str, Any] = {"name": self.name, "abilities": self.abilities, "watched": self.run is None}
        if self.run is not None:
            told["task"] = self.run.recipe.task
            told["lines"] = {verb: self.run.task.asked_lines(verb) for verb in LINED if verb in self.abilities}
            told["typed"] = self.run.task.typed
            told["understands"] = sorted(self.run.task.understands)
        if isinstance(self.engine, StepEngine):
            reads = self.engine.reads
            told["step"] = {"reads": reads._asdict(), "output": self.engine.output, "how": self.engine.how}
        elif self.run is not None:
            told["no_sessions"] = self.engine
        return told


class Catalogue(Mapping[str, HostedRun]):
    """The hosted runs by name: the name of the folder, for an export also of the folder it is in.

    Args:
        paths: the folders of the runs.
        load: opens a run; None: the runs are only watched.
        batched: makes the batcher of an engine.
        say: gets messages for the one who runs the server.

    Raises:
        EverstepError: a run cannot be loaded, or two have the same name.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        load: Load | None,
        batched: Callable[[StepEngine], StepBatcher] = StepBatcher,
        say: Say = lambda line: None,
    ):
        self._load, self._batched, self._say = load, batched, say
        self._paths: dict[str, Path] = {}
        for path in paths:
            name = _name(path)
            if name in self._paths:
                raise ConfigError(f"serve: {self._paths[name]} and {path} are both called {name}; rename one")
            self._paths[name] = path
        self._runs = {name: self._opened(name) for name in self._paths}

    def __getitem__(self, name: str) -> HostedRun:
        return self._runs[name]

    def __iter__(self) -> Any:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def named(self, name: str | None) -> HostedRun:
        """The run of this name; None: the only one.

        Raises:
            Fault: 404, there is no such run; 422, no name came, and there are several.
        """
        if name is None and len(self._runs) == 1:
            return next(iter(self._runs.values()))
        known = ", ".join(self._runs)
        if name is None:
            raise Fault(422, f"run: expected the name of a run: {known}")
        if name not in self._runs:
            raise Fault(404, f"there is no run of that name; expected one of {known}")
        return self._runs[name]

    def reload(self) -> None:
        """Load each run again. Sessions of the old ones go on; a run that cannot be loaded stays as it is."""
        for name in self._paths:
            try:
                self._runs[name] = self._opened(name)
            except Exception as error:
                what = error if isinstance(error, EverstepError) else repr(error)
                self._say(f"{name} stays as it was: {what}")

    def _opened(self, name: str) -> HostedRun:
        path = self._paths[name]
        run = None if self._load is None else self._load(path)
        engine = "it is only watched" if run is None else engine_of(run)
        batcher = self._batched(engine) if isinstance(engine, StepEngine) else None
        identity = b"" if run is None or batcher is None else _identity(run)
        hosted = HostedRun(name, path, run, engine, batcher, asyncio.Semaphore(1), identity)
        if run is not None:
            steps = f"no sessions: {engine}" if isinstance(engine, str) else f"steps {engine.how}"
            self._say(f"{name}: {', '.join(hosted.abilities)}; {steps}")
        return hosted


def _identity(run: Run) -> bytes:
    """A digest of the weights of a run; of an export, of its card, which has the digests of its files."""
    total = hashlib.sha256()
    if isinstance(run, ExportedRun):
        total.update(read_small(run.path / CARD, LARGEST_CARD))
    for name, tensor in sorted(run.model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.digest()[:IDENTITY]


def _name(path: Path) -> str:
    whole = path.resolve()
    return f"{whole.parent.name}-{whole.name}" if is_export(path) else whole.name
