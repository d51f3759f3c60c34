"""The form of a model of chords."""

from __future__ import annotations

import torch

from everstep.networks.chord_model import ChordModel
from everstep.networks.forms import Exported, Form, Input, Named
from everstep.state import State


def chord_forms(model: ChordModel) -> Exported:
    """The form of a model of K keys: `tokens` (batch,) to `log_p` (batch, K + 1) of the next ones, with the state.

    Token k < K is a key, counted from the lowest, and K ends a chord; see `KeyByKey`.
    """
    cell, symbols = model.by_key, torch.eye(model.keys + 1, device=model.device)

    def step(given: Named, state: State) -> tuple[Named, State]:
        log_p, state = cell.step(symbols[given["tokens"]], state)
        return {"log_p": log_p}, state

    tokens = {"tokens": Input(("batch",), model.keys + 1)}
    form = Form(model, step, tokens, model.initial_state, cell, symbols)
    return Exported(form, "it reads and gives one key at a time; see the step")
