"""What a policy is asked: actions for observations, returns beside other policies, a drawn episode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everstep.data.readers.number_lines import asked_sequence
from everstep.errors import DataError
from everstep.look.drawn_episode import DrawnEpisode, draw_episode
from everstep.look.passage import Passage
from everstep.networks.policy import Policy
from everstep.runs.task import Prediction
from everstep.runs.worlds import SPLITS, Worlds, returns
from everstep.state import State

WHERE = "the input"
LINEAR = 300
"""Linear policies that are tried."""
FEW = 8
"""Training episodes by which one of them is chosen."""


@torch.no_grad()
def actions_for(model: Policy, lines: Iterable[str], size: int, first: int = 0) -> Iterator[Prediction]:
    """action<TAB>probability for each line with an observation; a blank line begins a new episode.

    Args:
        model: the policy.
        lines: the observations, `size` numbers each.
        size: D.
        first: the number of the first action in its world.

    Raises:
        DataError: a line is no observation.
    """
    model.eval()
    state: State = model.initial_state(1)
    for number, line in enumerate(lines, 1):
        where = f"{WHERE}, line {number}"
        steps = asked_sequence(line, (size,), where)
        if not len(steps):
            state = model.initial_state(1)
            yield Prediction("", {})
            continue
        if len(steps) > 1 or not np.isfinite(steps).all():
            raise DataError(f"{where}: expected an observation, {size} finite numbers; got {line.strip()[:60]!r}")
        read = torch.from_numpy(steps).float().to(model.device)
        log_p, value, state = model.advance(read, state)
        p = log_p[0].exp().cpu().tolist()
        best = int(np.argmax(p))
        action = first + best
        record = {
            "action": action,
            "probability": p[best],
            "probabilities": p,
            "expected_return": float(value[0].cpu()),
        }
        yield Prediction(f"{action}\t{p[best]:.4f}", record)


def return_figures(found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The figures of returns: number, mean, standard deviation, least and most; the loss is minus the mean."""
    mean = float(found.mean())
    spread = {"return_sd": float(found.std()), "least_return": float(found.min()), "most_return": float(found.max())}
    return {"episodes": len(found), "loss": -mean, "return": mean, **spread}


class LinearActor:
    """A policy without a state: the action of the largest of W x + b.

    Args:
        weights: (D + 1, actions), b the last row.
    """

    device = torch.device("cpu")

    def __init__(self, weights: torch.Tensor):
        self._weights = weights

    def initial_state(self, rows: int) -> State:
        """None."""
        del rows
        return ()

    def advance(self, observation: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
        """log p (batch, actions), nearly 0 for the chosen one."""
        scores = observation @ self._weights[:-1] + self._weights[-1]
        return (scores * 1e3).log_softmax(-1), scores[:, 0], state


def other_policies(worlds: Worlds, split: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Returns of actions at random, of the best single action, and of the best of many linear policies without memory.

    The last two are chosen by training episodes.
    """
    size, actions = worlds.spaces
    place, learned = (SPLITS.index(split),), (SPLITS.index("train"), seed)
    random = torch.Generator().manual_seed(seed)
    tried = [torch.randn(size + 1, actions, generator=random) for _ in range(LINEAR)]
    single = [torch.cat([torch.zeros(size, actions), torch.eye(actions)[k : k + 1]]) for k in range(actions)]

    def best(of: list[torch.Tensor]) -> LinearActor:
        means = [returns(worlds.play(LinearActor(one), learned, FEW, True)[0]).mean() for one in of]
        return LinearActor(of[int(np.argmax(means))])

    players = {
        "actions at random": None,
        "always the same action": best(single),
        f"linear, without memory, the best of {LINEAR}": best(tried),
    }
    found = {name: returns(worlds.play(actor, place, count, True)[0]) for name, actor in players.items()}
    return [{"name": name, **return_figures(values)} for name, values in found.items()]


def episode_passage(model: Policy, worlds: Worlds, text: str | None, steps: int) -> Passage:
    """An episode as the cells read it: of the user's lines, or one that the policy plays."""
    if text is None:
        batch, _ = worlds.play(model, (SPLITS.index("test"),), 1, True)
        seen = batch.observations[0, :steps]
    else:
        size, _ = worlds.spaces
        rows = [asked_sequence(line, (size,), f"the text, line {n}") for n, line in enumerate(text.splitlines(), 1)]
        seen = torch.from_numpy(np.concatenate(rows or [np.zeros((0, size))])).float()[:steps]
    if len(seen) < 2:
        raise DataError("the text has fewer than two observations; give one a line")
    return Passage(
        body=model.body,
        inputs=model.scaled(seen.to(model.device)).detach(),
        labels=[", ".join(f"{number:.2f}" for number in row) + " | " for row in seen.tolist()],
        places=list(range(len(seen))),
        unit="observation",
        shown="observation",
    )


@torch.no_grad()
def episode_pictures(model: Policy, worlds: Worlds, out: Path) -> Iterator[tuple[Path, str]]:
    """Draw an episode that the policy plays: what it sees, what is hidden from it, its actions, what it expects."""
    batch, every = worlds.play(model, (SPLITS.index("test"),), 1, True)
    log_p, values = model(batch.observations.to(model.device), batch.lengths.to(model.device) + 1)
    length = int(batch.lengths[0])
    hidden = sorted(set(worlds.section.hidden))
    seen = [place for place in range(every.shape[2]) if place not in hidden]
    drawn = DrawnEpisode(
        {f"{place}": every[0, : length + 1, place] for place in seen},
        {f"{place}": every[0, : length + 1, place] for place in hidden},
        batch.actions[0, :length].numpy(),
        log_p[0, :length].exp().cpu().numpy(),
        values[0, : length + 1].cpu().numpy(),
        float(batch.rewards.sum()),
    )
    yield out / "episode.png", draw_episode(drawn, out / "episode.png")
