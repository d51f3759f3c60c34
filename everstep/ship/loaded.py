"""Load runs, trained or exported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everstep.errors import RunError
from everstep.look.passage import Passage
from everstep.networks.forms import Named
from everstep.runs import training
from everstep.runs.folder import CODE
from everstep.runs.opening import digest
from everstep.runs.recipe_files import parse_task
from everstep.runs.run import Run
from everstep.runs.shipped_recipes import read_recipe
from everstep.runs.task import Prediction
from everstep.runs.user_code import UserCode
from everstep.ship import export_folder as folder
from everstep.ship.onnx.session import Session
from everstep.state import State, leaves
from everstep.storage.reading import read_small, unsealed

_LARGEST = 1 << 34


class OnnxRuntime:
    """The forms of an exported run in onnxruntime. Each file is opened on first use.

    Args:
        path: the folder.
        card: the content of `export.json`.
    """

    def __init__(self, path: Path, card: dict[str, Any]):
        self._path, self._forms = path, card["forms"]
        self._sessions: dict[str, Session] = {}

    def initial(self, rows: int) -> tuple[Tensor, ...]:
        """The state of `rows` rows before the first step."""
        found = []
        for leaf in next(iter(self._forms.values()))["state"].values():
            row = torch.tensor(leaf["start"], dtype=getattr(torch, leaf["dtype"]))
            found.append(row.expand(rows, *leaf["shape"]).contiguous())
        return tuple(found)

    def described(self, form: str) -> dict[str, Any] | None:
        """The names, types and sizes of what a form reads and gives, as in `export.json`; None: no such form."""
        found: dict[str, Any] | None = self._forms.get(form)
        return found

    def start(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run what comes before the first step, and return the state.

        Raises:
            RunError: the export has no such form, or onnxruntime fails.
        """
        return tuple(leaf for _, leaf in leaves(self._run("start", given, ())[1]))

    def step(self, given: Mapping[str, Tensor], state: State) -> tuple[Named, State]:
        """Run one step; without a step form, a sequence of one step.

        Raises:
            RunError: the export has no such form, or onnxruntime fails.
        """
        if "step" in self._forms or "sequence" not in self._forms:
            return self._run("step", given, state)
        rows = len(next(iter(given.values())))
        found, state = self.sequence(
            {**{name: value[:, None] for name, value in given.items()}, "lengths": torch.ones(rows, dtype=torch.int64)},
            state,
        )
        return {name: value[:, 0] for name, value in found.items()}, state

    def sequence(self, given: Mapping[str, Tensor], state: State) -> tuple[Named, State]:
        """Run sequences.

        Raises:
            RunError: the export has no sequence form, or onnxruntime fails.
        """
        return self._run("sequence", given, state)

    def _run(self, name: str, given: Mapping[str, Tensor], state: State) -> tuple[Named, State]:
        if name not in self._forms:
            raise RunError(f"{self._path} has no {name} form; export it with --form {name}, or both")
        if name not in self._sessions:
            file = self._forms[name]["file"]
            self._sessions[name] = Session(str(self._path / file), read_small(self._path / file, _LARGEST))
        return self._sessions[name].run(given, [leaf for _, leaf in leaves(state)])


def load(path: str | Path, *, trust_code: bool = False, device: str = "cpu") -> Run:
    """Load a trained run, or an export of `everstep export --to onnx`, which runs in onnxruntime.

    Args:
        path: the folder.
        trust_code: whether to run the code in the folder (`code/`), with your permissions.
        device: the device of the model of a trained run.

    Raises:
        RunError: the folder is not a run, is of a newer version, not trained yet or damaged, has code that is not
            trusted, is a C export, or is an export and `device` is not the CPU.
        ConfigError: onnxruntime is missing.
    """
    path = Path(path)
    if not folder.is_export(path):
        return training.load(path, trust_code=trust_code, device=device)
    if device not in ("cpu", "auto"):
        raise RunError(f"{path} runs in onnxruntime, on the CPU; got device {device!r}")
    card = folder.read_card(path)
    try:
        unsealed(card)
    except ValueError as error:
        raise RunError(f"{path / folder.CARD}: {error}") from None
    if card["to"] != "onnx":
        raise RunError(f"{path} is of the kind {card['to']}, which is for other programs; --to onnx can be loaded")
    files: dict[str, str] = card["files"]
    for name, before in files.items():
        if digest(path / name) != before:
            raise RunError(f"{path / name} is not the one that was exported: it is damaged, or of another export")
    own = {name.removeprefix(f"{CODE}/"): before for name, before in files.items() if name.startswith(f"{CODE}/")}
    code = UserCode((path / CODE,), digests=own, trusted=trust_code, owner=path)
    recipe = path / folder.RECIPE
    task: Any = parse_task(read_recipe(recipe), str(recipe), code=code, version=card["recipe_format"])
    task.open(path)
    return ExportedRun(path, task, OnnxRuntime(path, card))


class ExportedRun(Run):
    """A run whose model runs in onnxruntime. It predicts, scores and generates, but has no gradients.

    Attributes:
        runtime: its forms in onnxruntime.
    """

    def __init__(self, path: Path, task: Any, runtime: OnnxRuntime):
        super().__init__(path, task, task.stand_in(runtime))
        self.runtime = runtime

    def predict(self, lines: Iterable[str], explain: bool = False, **asked: Any) -> Iterator[Prediction]:
        """As `Run.predict`, without explanations.

        Raises:
            RunError: `explain` is true.
        """
        if explain:
            raise RunError(f"{self.path}: an exported run gives no reasons, which need gradients; ask the run itself")
        return super().predict(lines, **asked)

    def passage(self, text: str | None = None, characters: int = 600) -> Passage:
        """Not available for an exported run.

        Raises:
            RunError: always.
        """
        raise RunError(f"{self.path}: an exported run shows no pictures of its states; look at the run itself")
