"""A recurrent policy: p(action | observations so far), beside the return that it expects."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.data.episodes import EpisodeBatch
from everstep.learn.objective import Loss
from everstep.networks.cells_by_name import CellChoice, Find, no_code
from everstep.networks.forms import LENGTHS, Exported, Form, Input, Named
from everstep.networks.layers import LayersSection, initialise, layer_problems, stack_of
from everstep.networks.stand_ins import Nowhere, Runtime
from everstep.sections import NonNegative, Probability, Section, Size
from everstep.state import State, valid
from everstep.wirings import FeedForward, Stack


class PolicySection(LayersSection):
    """The network: cells over the observations; actions and the expected return are linear in their outputs."""

    cell: CellChoice = "GRU"
    """any exported cell, {type: NAME, option: value}, or FILE.py:NAME"""
    hidden_size: Size | tuple[Size, ...] = 64
    """units of each layer; a list: one size per layer"""
    memory: bool = True
    """false: layers of tanh units in place of the cells, to see what memory is worth"""

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created."""
        yield from layer_problems(self, 2, find)

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the layers, and dropouts."""
        yield from super().disagreements()
        for name in ("dropout", "input_dropout", "weight_drop", "state_dropout", "zoneout"):
            if value := getattr(self, name):
                yield name, f"expected 0, since an agent that acts draws no masks; got {value:g}"


class AdvantageSection(Section):
    """The objective: advantage actor–critic."""

    discount: Probability = 0.98
    """γ: a reward n steps later counts γ^n"""
    trace: Probability = 0.95
    """λ of generalised advantage estimation; 0: one step is looked ahead, 1: the whole episode"""
    entropy: NonNegative = 0.01
    """weight of the entropy of the actions, which keeps the policy trying"""
    value_weight: float = Field(0.05, ge=0)
    """weight of the error of the expected return"""


class Policy(nn.Module):
    """log p(action) and the expected return V, linear in the outputs of cells over (x_t − shift) / scale.

    Args:
        size: D, numbers of an observation.
        actions: number of actions.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
        scaling: shift and scale, (D,) each, buffers of the model; None: 0 and 1.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        size: int,
        actions: int,
        section: PolicySection,
        find: Find = no_code,
        scaling: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        shift, scale = (torch.zeros(size), torch.ones(size)) if scaling is None else scaling
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.body = stack_of(section, size, find) if section.memory else Stack(FeedForward(size, *section.hidden_sizes))
        self.act, self.expect = nn.Linear(self.body.output_size, actions), nn.Linear(self.body.output_size, 1)
        initialise(section, self)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.shift.device

    def initial_state(self, rows: int) -> State:
        """The state before the first observation."""
        return self.body.initial_state(rows, self.shift)

    def forward(self, observations: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """log p of the actions (batch, time, actions) and V (batch, time) after each observation (batch, time, D)."""
        log_p, value, _ = self.run(observations, lengths, None)
        return log_p, value

    def run(self, observations: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """The same from a state, with the final one."""
        ys, state = self.body(self.scaled(observations), state, lengths=lengths)
        return self.act(ys).log_softmax(-1), self.expect(ys)[..., 0], state

    def scaled(self, observations: Tensor) -> Tensor:
        """What the cells read."""
        return (observations - self.shift) / self.scale

    def advance(self, observation: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One step: log p (batch, actions), V (batch,) and the new state, from an observation (batch, D)."""
        y, state = self.body.step(self.scaled(observation), state)
        return self.act(y).log_softmax(-1), self.expect(y)[..., 0], state


def advantages(rewards: Tensor, values: Tensor, lengths: Tensor, cut: Tensor, discount: float, trace: float) -> Tensor:
    """Â_t = δ_t + γλ Â_{t+1}, δ_t = r_t + γ V_{t+1} − V_t (Schulman 2016, "High-dimensional continuous control using
    generalized advantage estimation").

    V after the last action is 0, or that of the network where the episode was cut.

    Args:
        rewards: (E, T).
        values: V, (E, T + 1), of what was seen before each action, and after the last.
        lengths: (E,).
        cut: (E,) bool.
        discount, trace: γ and λ.

    Returns:
        (E, T), 0 beyond each length.
    """
    steps = rewards.shape[1]
    there = valid(lengths, steps)
    goes_on = (torch.arange(1, steps + 1, device=lengths.device) < lengths[:, None]) | cut[:, None]
    delta = (rewards + discount * values[:, 1:] * goes_on - values[:, :-1]) * there
    found = torch.zeros_like(delta)
    later = delta.new_zeros(len(delta))
    for t in reversed(range(steps)):
        later = delta[:, t] + discount * trace * later * there[:, t]
        found[:, t] = later
    return found


def episode_losses(model: Policy, batch: EpisodeBatch, section: AdvantageSection) -> Iterator[Loss]:
    """Advantage actor–critic (Mnih 2016): −Â log π(a) − entropy + value error, mean over all steps; −return is shown.

    Â is centred and scaled over the batch. The target of V is Â + V; its error is Huber's.
    """
    log_p, values = model(batch.observations, batch.lengths + 1)
    log_p, values = log_p.float(), values.float()
    there = valid(batch.lengths, batch.actions.shape[1])
    raw = advantages(batch.rewards, values.detach(), batch.lengths, batch.cut, section.discount, section.trace)
    known = raw[there]
    advantage = (raw - known.mean()) / (known.std(correction=0) + 1e-6)
    taken = log_p[:, :-1].gather(-1, batch.actions[..., None])[..., 0]
    entropy = -(log_p[:, :-1].exp() * log_p[:, :-1]).sum(-1)
    error = F.smooth_l1_loss(values[:, :-1], raw + values[:, :-1].detach(), reduction="none")
    steps = (-advantage * taken - section.entropy * entropy + section.value_weight * error) * there
    total = steps.sum(1) * (len(there) / there.sum())
    yield Loss(total, -batch.rewards.sum(1))


def policy_forms(model: Policy) -> Exported:
    """The forms of a policy: `observation` (batch, D) to `log_p` (batch, actions) and `value` (batch,), with the state;
    over time, `observations` (batch, time, D) and `lengths`."""

    def step(given: Named, state: State) -> tuple[Named, State]:
        log_p, value, state = model.advance(given["observation"], state)
        return {"log_p": log_p, "value": value}, state

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        log_p, value, state = model.run(given["observations"], given["lengths"], state)
        return {"log_p": log_p, "value": value}, state

    size = len(model.shift)
    one = Form(model, step, {"observation": Input(("batch", size))}, model.initial_state)
    many = {"observations": Input(("batch", "time", size)), "lengths": LENGTHS}
    return Exported(one, Form(model, sequence, many, model.initial_state))


class PolicyStandIn(Policy):
    """A `Policy` whose step another runtime computes."""

    def __init__(self, runtime: Runtime):
        nn.Module.__init__(self)
        self._runtime, self.nowhere = runtime, Nowhere()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def initial_state(self, rows: int) -> State:
        """The state before the first observation."""
        return self._runtime.initial(rows)

    def advance(self, observation: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One step."""
        found, state = self._runtime.step({"observation": observation}, state)
        return found["log_p"], found["value"], state
