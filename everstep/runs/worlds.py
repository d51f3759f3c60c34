"""Worlds of a recipe's `data` section: environments of gymnasium or the user's, and episodes in them."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from everstep.cancellation import check_cancelled
from everstep.data.episodes import EpisodeBatch
from everstep.errors import ConfigError, DataError
from everstep.networks.cells_by_name import Find
from everstep.runs.user_code import is_code
from everstep.sections import Count, Section, Whole
from everstep.state import State

SPLITS = ("train", "valid", "test")
"""Episodes of each begin with other seeds."""
RANDOM_EPISODES = 100
"""Episodes of a random policy to which the scaling is fitted."""


ENDLESS = 100_000
"""Actions after which an episode of a world without a limit is taken for endless."""


class WorldSection(Section):
    """A world: an environment, what is seen of it, and how long an episode lasts at most."""

    environment: str = "CartPole-v1"
    """name of an environment of gymnasium, or FILE.py:CLASS with gymnasium's `reset`, `step` and spaces"""
    hidden: tuple[Whole, ...] = ()
    """numbers of an observation, counted from 0, that the agent does not see, such as velocities"""
    max_steps: int | None = Field(None, ge=1)
    """an episode is cut off after so many actions; null: as the environment has it"""
    validated: Count = 32
    """episodes of a validation"""
    scored: Count = 100
    """episodes of `eval`"""
    updates: Count = 50
    """updates in an epoch, after which it is validated; each learns from train.batch_size new episodes"""


class Actor(Protocol):
    """What acts: a policy with a state."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def initial_state(self, rows: int) -> State:
        """The state before the first observation."""

    def advance(self, observation: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """log p (batch, actions), anything, and the new state, from an observation (batch, D)."""


class Worlds:
    """The environments of a recipe; as many are made as episodes are played at a time.

    Args:
        section: the `data` section.
        find: finds environments in the user's files.

    Raises:
        ConfigError: there is no such environment, its observations or actions are of a kind that is not supported, or
            nothing of an observation is seen.
    """

    def __init__(self, section: WorldSection, find: Find):
        self.section, self._find = section, find
        self._made: list[Any] = []

    def _new(self) -> Any:
        name = self.section.environment
        if is_code(name):
            world = self._find("data.environment", name)()
            taken = inspect.signature(world.reset).parameters.values()
            if not any(one.name == "seed" or one.kind is one.VAR_KEYWORD for one in taken):
                raise ConfigError(f"data.environment: expected reset(seed=…) of {name}, which decides where an "
                                  "episode begins; it takes no seed")  # fmt: skip
            return world
        import gymnasium

        try:
            return gymnasium.make(name, max_episode_steps=self.section.max_steps)
        except gymnasium.error.Error as error:
            raise ConfigError(f"data.environment: {name!r} cannot be made: {str(error).splitlines()[0]}") from None

    def _worlds(self, count: int) -> list[Any]:
        while len(self._made) < count:
            self._made.append(self._new())
        return self._made[:count]

    @cached_property
    def spaces(self) -> tuple[int, int]:
        """D, the numbers of an observation that are seen, and the number of actions."""
        (world,) = self._worlds(1)
        name = self.section.environment
        if lacking := [one for one in ("observation_space", "action_space") if not hasattr(world, one)]:
            raise ConfigError(f"data.environment: expected {name} to have an {lacking[0]} of gymnasium.spaces, as an "
                              "attribute of its instances; it has none")  # fmt: skip
        seen, actions = world.observation_space, world.action_space
        if type(actions).__name__ != "Discrete":
            raise ConfigError(f"data.environment: expected one of several actions at each step (Discrete); {name} has "
                              f"{actions}")  # fmt: skip
        if type(seen).__name__ == "Discrete":
            size = int(seen.n)
        elif type(seen).__name__ == "Box":
            size = int(np.prod(seen.shape))
        else:
            raise ConfigError(f"data.environment: expected observations that are numbers (Box or Discrete); {name} has "
                              f"{seen}")  # fmt: skip
        if strange := [place for place in self.section.hidden if place >= size]:
            raise ConfigError(f"data.hidden: expected numbers below {size}, of which an observation has so many; got "
                              f"{strange[0]}")  # fmt: skip
        if len(set(self.section.hidden)) == size:
            raise ConfigError(f"data.hidden: expected to leave something to see of {size} numbers; got all of them")
        return size - len(set(self.section.hidden)), int(actions.n)

    @property
    def first_action(self) -> int:
        """The number that the world gives to its first action, mostly 0."""
        return int(getattr(self._worlds(1)[0].action_space, "start", 0))

    @cached_property
    def _seen(self) -> NDArray[np.int64]:
        size, _ = self.spaces
        return np.setdiff1d(np.arange(size + len(set(self.section.hidden))), self.section.hidden)

    def whole(self, observation: Any) -> NDArray[np.float32]:
        """All numbers of an observation; of one that is a choice, 1 for what is chosen.

        Raises:
            DataError: one is no finite number, or there are more or fewer than the space of observations has.
        """
        space = self._worlds(1)[0].observation_space
        found: NDArray[np.float32]
        if type(space).__name__ == "Discrete":
            found = np.eye(int(space.n), dtype=np.float32)[int(observation) - int(space.start)]
        else:
            found = np.asarray(observation, np.float32).reshape(-1)
        size = self.spaces[0] + len(set(self.section.hidden))
        if len(found) != size:
            raise DataError(f"{self.section.environment}: expected observations of {size} numbers, as its "
                            f"observation_space says; got one of {len(found)}")  # fmt: skip
        if not np.isfinite(found).all():
            raise DataError(f"{self.section.environment}: an observation is no finite number: {found.tolist()}")
        return found

    def play(
        self, policy: Actor | None, seed: tuple[int, ...], count: int, greedy: bool = False
    ) -> tuple[EpisodeBatch, NDArray[np.float32]]:
        """Play `count` episodes side by side.

        Args:
            policy: what acts; None: actions at random, all as likely.
            seed: decides where episodes begin and which actions are drawn.
            greedy: whether the likeliest action is taken; else it is drawn.

        Returns:
            The episodes as the agent saw them, and all numbers of the observations, (count, T + 1, numbers).

        Raises:
            DataError: an observation or a reward is no finite number, or an episode does not end.
        """
        random = np.random.default_rng(seed)
        worlds, (_, actions) = self._worlds(count), self.spaces
        now = np.stack([self.whole(one.reset(seed=int(random.integers(2**31)))[0]) for one in worlds])
        seen, done, got = [now], list[NDArray[np.int64]](), list[NDArray[np.float32]]()
        alive, cut, lengths = np.ones(count, bool), np.zeros(count, bool), np.zeros(count, np.int64)
        state = None if policy is None else policy.initial_state(count)
        while alive.any():
            check_cancelled()
            if self.section.max_steps is None and len(done) >= ENDLESS:
                raise DataError(f"{self.section.environment}: an episode has not ended after {ENDLESS:,} actions; set "
                                "data.max_steps, which cuts episodes off")  # fmt: skip
            chances = np.full((count, actions), 1 / actions)
            if policy is not None:
                read = torch.from_numpy(now[:, self._seen]).to(policy.device)
                with torch.no_grad():
                    log_p, _, state = policy.advance(read, state)
                chances = log_p.double().exp().cpu().numpy()
            drawn = (random.random((count, 1)) > chances.cumsum(1)).sum(1).clip(max=actions - 1)
            chosen = np.where(alive, chances.argmax(1) if greedy and policy is not None else drawn, 0)
            now, rewards = now.copy(), np.zeros(count, np.float32)
            for place in np.flatnonzero(alive):
                now[place], rewards[place], ended, cut[place] = self._acted(worlds[place], int(chosen[place]))
                lengths[place] += 1
                most = self.section.max_steps
                cut[place] |= not ended and most is not None and lengths[place] >= most
                alive[place] = not (ended or cut[place])
                cut[place] &= not ended
            seen.append(now)
            done.append(chosen)
            got.append(rewards)
        every = np.stack(seen, 1)
        tensors = (np.ascontiguousarray(every[..., self._seen]), np.stack(done, 1), np.stack(got, 1), lengths, cut)
        return EpisodeBatch(*map(torch.from_numpy, tensors)), every

    def _acted(self, world: Any, action: int) -> tuple[NDArray[np.float32], float, bool, bool]:
        """The observation and the reward after an action, whether the episode ended, and whether it was cut off."""
        found = world.step(action + self.first_action)
        if len(found) != 5:
            raise DataError(f"{self.section.environment}: expected step to give five values, as of gymnasium "
                            f"(observation, reward, terminated, truncated, info); got {len(found)}")  # fmt: skip
        observation, reward, ended, cut, _ = found
        if not np.isfinite(reward):
            raise DataError(f"{self.section.environment}: a reward is no finite number: {reward}")
        return self.whole(observation), float(reward), bool(ended), bool(cut)

    def scaling(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what a random policy sees, (D,) each."""
        batch, _ = self.play(None, (SPLITS.index("train"),), RANDOM_EPISODES)
        rows = torch.cat([row[: length + 1] for row, length in zip(batch.observations, batch.lengths, strict=True)])
        spread = rows.std(0, correction=0)
        return rows.mean(0), torch.where(spread > 1e-6, spread, 1.0)


class Rollouts:
    """New episodes for each update, which the policy plays as it is then."""

    carries_state = False

    def __init__(self, worlds: Worlds, policy: Any, batch_size: int, seed: int):
        self._worlds, self._policy, self.batch_size, self._seed = worlds, policy, batch_size, seed

    def __len__(self) -> int:
        return self._worlds.section.updates

    def batch(self, epoch: int, index: int) -> EpisodeBatch:
        """The episodes of an update, given the weights."""
        place = (SPLITS.index("train"), self._seed, epoch, index)
        return self._worlds.play(self._policy, place, self.batch_size)[0]


def returns(batch: EpisodeBatch) -> NDArray[np.float64]:
    """The return of each episode, Σ_t r_t."""
    found: NDArray[np.float64] = batch.rewards.double().sum(1).numpy()
    return found
