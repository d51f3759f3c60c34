"""Control: a recurrent policy that acts on what it has seen so far, and learns from the rewards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from everstep.data.episodes import EpisodeBatch
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.policy import (
    AdvantageSection,
    Policy,
    PolicySection,
    PolicyStandIn,
    episode_losses,
    policy_forms,
)
from everstep.networks.stand_ins import Runtime
from everstep.runs.acting import actions_for, episode_passage, episode_pictures, other_policies, return_figures
from everstep.runs.recipe import Recipe
from everstep.runs.task import Prediction, Progress, Purpose, Task
from everstep.runs.worlds import SPLITS, Rollouts, Worlds, WorldSection, returns
from everstep.sections import Section
from everstep.state import State
from everstep.storage.files import replace_file
from everstep.storage.reading import json_text, read_json


class ActingSection(Section):
    """How actions are chosen, but in training."""

    greedy: bool = True
    """the likeliest action; false: drawn by their probabilities"""


class ControlRecipe(Recipe):
    """The recipe: a world, a recurrent policy, advantage actor–critic."""

    data: WorldSection = WorldSection()
    model: PolicySection = PolicySection()
    objective: AdvantageSection = AdvantageSection()
    decode: ActingSection = ActingSection()


class Control(Task[ControlRecipe]):
    """Acts in a world of which it sees a part, and learns from rewards."""

    Recipe = ControlRecipe
    extras = ("gymnasium",)
    remedy = "pip install 'everstep[control]'"
    files = ("spaces.json",)
    unit = "episode"
    loss_unit = "return"
    scores = frozenset({"return"})
    shown = ("return", "return_sd")
    reads = {"predict": "observations.txt"}
    meaning = {"return": "mean sum of the rewards of an episode", "loss": "minus the same"}
    spaces: tuple[int, int]
    first_action: int
    scaling: tuple[Tensor, Tensor] | None = None  # that of a run is among its weights

    @cached_property
    def worlds(self) -> Worlds:
        """The environments."""
        return Worlds(self.recipe.data, self.code.find)

    def prepare(self) -> None:
        """Find the sizes of observations and actions, and fit the scaling to episodes of a random policy."""
        self.spaces, self.scaling = self.worlds.spaces, self.worlds.scaling()
        self.first_action = self.worlds.first_action

    def save(self, run: Path) -> None:
        """Write `spaces.json`."""
        found = {"observation": self.spaces[0], "actions": self.spaces[1], "first": self.first_action}
        replace_file(run / "spaces.json", (json_text(found) + "\n").encode())

    def open(self, run: Path) -> None:
        """Read what `save` wrote."""
        found = read_json(run / "spaces.json", 1 << 16)
        self.spaces, self.first_action = (found["observation"], found["actions"]), found["first"]

    def splits(self) -> tuple[str, ...]:
        """train, valid and test: episodes that begin with other seeds."""
        return SPLITS

    def model(self) -> Policy:
        """A new `Policy`."""
        return Policy(*self.spaces, self.recipe.model, self.code.find, self.scaling)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Rollouts:
        """New episodes for every update."""
        return Rollouts(self.worlds, model, self.recipe.train.batch_size, self.recipe.seed)

    def objective(self, model: Any, batch: EpisodeBatch, state: State) -> Iterator[Loss]:
        """Advantage actor–critic."""
        return episode_losses(model, batch, self.recipe.objective)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Returns of new episodes."""
        return self._played(model, split, self.recipe.data.scored)

    def validate(self, model: Any) -> dict[str, float]:
        """The mean return of some episodes."""
        found = self._played(model, "valid", self.recipe.data.validated)
        return {"loss": found["loss"], "return": found["return"]}

    def _played(self, model: Any, split: str, count: int) -> dict[str, Any]:
        model.eval()
        batch, _ = self.worlds.play(model, (SPLITS.index(split),), count, self.recipe.decode.greedy)
        return return_figures(returns(batch))

    def summary(self) -> list[str]:
        """The world, and what is seen of it."""
        hidden = f", {len(set(self.recipe.data.hidden))} hidden" if self.recipe.data.hidden else ""
        return [
            f"world: {self.recipe.data.environment}",
            f"seen: {self.spaces[0]} numbers{hidden}; actions: {self.spaces[1]}",
        ]

    def asked_lines(self, verb: str) -> str:
        """Observations."""
        return f"One observation per line, {self.spaces[0]} numbers; a blank line begins a new episode."

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """action<TAB>probability for each observation."""
        return actions_for(model, lines, self.spaces[0], self.first_action)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Returns of policies without memory."""
        return other_policies(self.worlds, split, self.recipe.seed, self.recipe.data.scored)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """An episode, as the cells read it."""
        return episode_passage(model, self.worlds, text, characters)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """An episode that the policy plays."""
        yield from episode_pictures(model, self.worlds, out)

    exported = staticmethod(policy_forms)

    def stand_in(self, runtime: Runtime) -> PolicyStandIn:
        """The same in another runtime."""
        return PolicyStandIn(runtime)
