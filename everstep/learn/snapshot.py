"""Conversion of a learner to a checkpoint and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from everstep.errors import CheckpointError, RunError
from everstep.learn import rng
from everstep.learn.checkpoint import JSON, Checkpoint
from everstep.learn.learner import Learner, RunCounts
from everstep.learn.limits import check_lowered
from everstep.learn.optim import load_optimizer_tensors, optimizer_tensors
from everstep.learn.parts import named, restore_random
from everstep.learn.schedules import Plateau
from everstep.learn.weights import all_tensors, fill, first_not_finite
from everstep.state import leaves, unflatten


def pack(learner: Learner, identity: dict[str, JSON], recipe: dict[str, JSON]) -> Checkpoint:
    """A checkpoint of everything that the next step depends on; of several processes, each has its own.

    `identity` must be equal at resume; differences in `recipe` are only reported.
    """
    counts = learner.counts
    counts.seconds = learner.seconds
    random_tensors, random_data = rng.capture()
    carried = learner.carried
    tensors = {
        "model": all_tensors(learner.model),
        "optimizer": optimizer_tensors(learner.optimizer, learner.model),
        "average": learner.averaging.tensors(),
        "carried": dict(leaves(carried)) if carried is not None else {},
        "random": random_tensors,
    }
    data = {
        "counts": asdict(counts),
        "plateau": asdict(learner.plateau),
        "average": {"updates": learner.averaging.updates, "earlier": learner.averaging.earlier},
        "carried": carried is not None,
        "random": random_data,
        "norms": list(learner.norms),
        "threads": torch.get_num_threads(),
        "settings": learner.settings.model_dump(),
        "identity": identity,
        "recipe": recipe,
        "batches": _counted(learner),
    }
    return Checkpoint(tensors, data, counts.valid if counts.validated == counts.step else None)


def fault(checkpoint: Checkpoint, watched: frozenset[str]) -> str | None:
    """A message about the first non-finite tensor among `watched`, the averages and the optimizer's state, or None."""
    model = {name: tensor for name, tensor in checkpoint.tensors.get("model", {}).items() if name in watched}
    if name := first_not_finite(model):
        return f"{name} is not finite"
    if name := first_not_finite(checkpoint.tensors.get("average", {})):
        return f"the average of {name} is not finite"
    if name := first_not_finite(checkpoint.tensors.get("optimizer", {})):
        return f"{name} of the optimizer is not finite"
    return None


def unpack(
    checkpoint: Checkpoint,
    learner: Learner,
    identity: dict[str, JSON],
    recipe: dict[str, JSON],
    say: Callable[[str], None],
) -> None:
    """Restore `learner` and every random generator to the state that `pack` stored.

    Raises:
        RunError: the checkpoint belongs to another model, data or optimizer; the message names what differs.
        CheckpointError: a part is missing or malformed; the message names it.
    """
    tensors, data = checkpoint.tensors, checkpoint.data
    counted = _counted(learner)
    with _part("identity"):
        if "recipe" not in data:  # written by an earlier everstep, which did not store it
            identity = {key: value for key, value in identity.items() if key not in recipe or key in data["identity"]}
        alone = {"processes": 1}
        before = data["identity"] | counted | alone | data.get("batches", {})
        _check_identity(before, alone | identity | counted)
    learner.counts = counts_of(data)
    with _part("settings"):
        check_lowered(learner.settings, _typed(dict[str, Any], data["settings"]), learner.counts)
        _note_differences(data, learner, recipe, say)
    with _part("model"):
        fill(all_tensors(learner.model), tensors["model"], "the checkpoint")
    # Files hold leaves, not the nest, so the objective runs once to give it. That may change buffers and generators,
    # which are restored below.
    with _part("carried"):
        carries: bool = _typed(bool, data["carried"])
    mine = tensors.get(named("carried", learner.world.rank), {})
    learner.carried = _carried(learner, mine) if carries else None
    fill(all_tensors(learner.model), tensors["model"], "the checkpoint")
    with _part("optimizer"):
        load_optimizer_tensors(learner.optimizer, learner.model, tensors.get("optimizer", {}))
    with _part("average"):
        learner.averaging.load(tensors.get("average", {}), **data["average"])
    with _part("plateau"):
        learner.plateau = _typed(Plateau, data["plateau"])
    with _part("norms"):
        learner.norms.extend(_typed(list[float], data["norms"]))
    with _part("random"):
        restore_random(tensors, data, learner.world.rank)
    learner.start_clock()


def counts_of(data: dict[str, Any]) -> RunCounts:
    """The counts in a checkpoint's data.

    Raises:
        CheckpointError: they are missing or malformed.
    """
    with _part("counts"):
        found: RunCounts = _typed(RunCounts, data["counts"])
        return found


@contextmanager
def _part(name: str) -> Iterator[None]:
    """Report missing or malformed content of a checkpoint by the name of its part."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"its part {name} was not written by everstep: it lacks {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(f"its part {name} was not written by everstep: {first}") from None


def _typed(kind: Any, value: Any) -> Any:
    """A JSON value as an instance of `kind`, with checked types."""
    return TypeAdapter(kind).validate_python(value, strict=not isinstance(value, dict))


def _carried(learner: Learner, tensors: dict[str, Tensor]) -> Any:
    example = learner.probe_state()
    names = [name for name, _ in leaves(example)]
    if set(names) != set(tensors):
        raise RunError(
            f"the checkpoint carries a state of {sorted(tensors)}, the model has {sorted(names)}; resume with the "
            "model the run was started with"
        )
    return unflatten(example, [tensors[name].to(learner.device) for name in names])


def _counted(learner: Learner) -> dict[str, JSON]:
    """What counts, carried state and optimizer state depend on: batches, their size, optimizer, and processes."""
    return {
        "batch size": learner.batches.batch_size,
        "batches an epoch": len(learner.batches),
        "optimizer": type(learner.optimizer).__name__,
        **({"processes": learner.world.size} if learner.world.size > 1 else {}),
    }


def _check_identity(stored: dict[str, Any], given: dict[str, Any]) -> None:
    changed = [key for key in sorted(stored.keys() | given.keys()) if stored.get(key) != given.get(key)]
    if changed:
        listed = "; ".join(f"{key}: was {_short(stored.get(key))}, now {_short(given.get(key))}" for key in changed)
        raise RunError(
            f"cannot resume, since this is not the run that was started: {listed}; give it what it was started with, "
            "or train anew in another folder"
        )


def _short(value: Any) -> str:
    """A value as short text; a digest by its first digits."""
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:12]}…{shown[-1]}"


def _note_differences(
    data: dict[str, Any], learner: Learner, recipe: dict[str, JSON], say: Callable[[str], None]
) -> None:
    threads = torch.get_num_threads()
    if threads != data["threads"]:
        say(
            f"resuming with {threads} threads a run of {data['threads']}: results may differ in the last bits from an "
            "uninterrupted run"
        )
    old, new = data["settings"], learner.settings.model_dump(mode="json")
    changed = [*_changes(old, new), *_changes(data.get("recipe", {}), recipe)]
    if changed:
        say("resuming with other settings: " + ", ".join(changed))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys with different values, as text; a key that only one version of everstep knows is no change."""
    return [f"{key} {old[key]!r} -> {new[key]!r}" for key in new if key in old and old[key] != new[key]]
