"""The weights of a model as a file: `model.safetensors`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from everstep.errors import RunError
from everstep.learn import files
from everstep.learn.checkpoint import serialize

MODEL_FILE = "model.safetensors"


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each shared one once, those left out of `state_dict` included."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What makes the model: its parameters and persistent buffers by name, each shared one once."""
    persistent = model.state_dict().keys()
    return {name: tensor for name, tensor in all_tensors(model).items() if name in persistent}


def must_be_finite(model: nn.Module) -> frozenset[str]:
    """The names of all parameters, and of those buffers that are finite now: a mask may hold infinity."""
    parameters = {name for name, _ in model.named_parameters()}
    return frozenset(name for name, t in all_tensors(model).items() if name in parameters or bool(t.isfinite().all()))


def first_not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first that holds NaN or infinity; None if all are finite."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)


@torch.no_grad()
def fill(targets: dict[str, Tensor], tensors: dict[str, Tensor], source: str) -> None:
    """Copy `tensors` into `targets` in place.

    Raises:
        RunError: the names, shapes or dtypes differ; nothing was copied.
    """
    for name in [*targets, *tensors]:
        if name not in targets or name not in tensors:
            where, there = ("the model", source) if name not in targets else (source, "the model")
            raise RunError(f"{there} has {name!r}, which {where} lacks: it belongs to another model")
        if targets[name].shape != tensors[name].shape:
            raise RunError(
                f"{name!r} is {tuple(tensors[name].shape)} in {source} and {tuple(targets[name].shape)} in the model"
            )
        if targets[name].dtype != tensors[name].dtype:
            raise RunError(
                f"{name!r} is {tensors[name].dtype} in {source} and {targets[name].dtype} in the model: it is damaged, "
                "or of another model"
            )
    for name, target in targets.items():
        target.copy_(tensors[name])


def save_weights(path: Path, tensors: dict[str, Tensor], step: int) -> None:
    """Write `tensors` to `path` in one motion, with the `step` they are of in the file's metadata.

    Raises:
        RunError: the file cannot be written.
    """
    # One key only: with more, their order in the file would differ from process to process.
    content = serialize(tensors, {"step": str(step)})
    with files.explained(path.parent):
        files.replace_file(path, content)


def weights_step(path: Path) -> int | None:
    """The step that the weights in `path` are of; None if there is no such file or it is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return int(file.metadata()["step"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


def holds(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether the file `path` holds just these tensors, bit for bit."""
    try:
        return serialize(_read(path)) == serialize(tensors)
    except RunError:
        return False


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` with the weights in `path`, as written by `fit`.

    Raises:
        RunError: the file is missing, damaged, of another model, or of a training that diverged: it holds NaN or
            infinity where the model should not.
    """
    tensors = _read(path)
    watched = must_be_finite(model)
    name = first_not_finite({name: tensor for name, tensor in tensors.items() if name in watched})
    if name is not None:
        raise RunError(f"{name!r} in {path} is not finite: the file is damaged, or of a training that diverged")
    fill(weights(model), tensors, str(path))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_bytes(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot read the weights {path}: {error}") from error
