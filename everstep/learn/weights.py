"""The weights of a model as `model.safetensors`, with the SHA-256 of the file in its metadata.

The digest is computed with 64 zeros in its place. The metadata also identify the run, so that intact weights of another
run with the same shapes are detected. Files of earlier versions have neither.
"""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from everstep.errors import RunError
from everstep.learn.checkpoint import serialize
from everstep.storage import files
from everstep.storage.reading import open_regular, parse_json, read_small, reason

MODEL_FILE = "model.safetensors"
_UNKNOWN = "0" * 64  # placeholder of the digest
_HEADER = 100 << 20  # largest header in bytes that the format allows
_CHUNK = 1 << 20


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a shared one once, including those not in `state_dict`."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one once."""
    persistent = model.state_dict().keys()
    return {name: tensor for name, tensor in all_tensors(model).items() if name in persistent}


def with_todays_names(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a run folder under their current names.

    A class that has renamed some of its children lists them in `RENAMED_CHILDREN`, from the names in earlier run
    folders to the current ones.
    """
    renamed = {
        f"{path}.{old}." if path else f"{old}.": f"{path}.{new}." if path else f"{new}."
        for path, module in model.named_modules()
        for old, new in getattr(module, "RENAMED_CHILDREN", {}).items()
    }
    if not renamed:
        return tensors
    found = {}
    for name, tensor in tensors.items():
        head, slash, path = name.rpartition("/")  # optimizer tensors are called "exp_avg/layer.weight"
        for old, new in renamed.items():
            if path.startswith(old):
                path = new + path[len(old) :]
        found[head + slash + path] = tensor
    return found


def must_be_finite(model: nn.Module) -> frozenset[str]:
    """The names of all parameters and of the buffers that are finite now; others, such as masks, may hold infinity."""
    parameters = {name for name, _ in model.named_parameters()}
    return frozenset(name for name, t in all_tensors(model).items() if name in parameters or bool(t.isfinite().all()))


def first_not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity; None if all are finite."""
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


def save_weights(path: Path, tensors: dict[str, Tensor], step: int, run: str = "") -> None:
    """Write `tensors` atomically to `path`, with `step` and `run` in the file's metadata.

    Raises:
        RunError: the file cannot be written.
    """
    content = _sealed(serialize(tensors, {"step": str(step)}), run)
    with files.explained(path.parent):
        files.replace_file(path, content)


def _sealed(content: bytes, run: str) -> bytes:
    """A safetensors file with its run and SHA-256. Not written by the library, which orders several metadata keys
    differently in each process."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] |= ({"run": run} if run else {}) | {"sha256": _UNKNOWN}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    whole = b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]])
    return whole.replace(_UNKNOWN.encode(), hashlib.sha256(whole).hexdigest().encode(), 1)


def _checked(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, verified if it has a digest.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is damaged.
    """
    with open(open_regular(path), "rb") as file:
        head = file.read(8)
        size = int.from_bytes(head, "little")
        text = file.read(size) if size <= _HEADER else b""
        try:
            header = parse_json(text)
            metadata: dict[str, str] = header.get("__metadata__", {})
            said = metadata.get("sha256")
        except (ValueError, AttributeError):
            raise ValueError("its header is damaged") from None
        if said is None:
            return metadata
        found = hashlib.sha256(head + text.replace(str(said).encode(), _UNKNOWN.encode(), 1))
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    if found.hexdigest() != said:
        raise ValueError("its SHA-256 is not the one it was written with")
    return metadata


def weights_step(path: Path, run: str | None = None) -> int | None:
    """The step of the weights in `path`; None if the file is missing, damaged, or from another run than `run`."""
    try:
        metadata = _checked(path)
        return int(metadata["step"]) if run in (None, metadata.get("run", "")) else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def said_step(path: Path) -> int | None:
    """As `weights_step`, from the metadata alone, without reading or verifying the weights."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return int(file.metadata()["step"])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        return None


def holds(path: Path, tensors: dict[str, Tensor], model: nn.Module, run: str = "") -> bool:
    """Whether the file `path` is intact, belongs to `run`, and holds exactly `tensors` of `model`, bit for bit."""
    try:
        return serialize(with_todays_names(model, _read(path, tensors, sealed=False, run=run))) == serialize(tensors)
    except RunError:
        return False


def load_weights(model: nn.Module, path: Path, sealed: bool = False, run: str = "") -> None:
    """Fill `model` with the weights in `path`, as written by `fit`.

    Args:
        model: filled in place.
        path: the file; its SHA-256 is checked if it has one.
        sealed: refuse a file without a SHA-256, such as those of early versions and of checkpoints.
        run: refuse weights of any other run; "" accepts any.

    Raises:
        RunError: the file is missing, damaged, from another model or run, or from a training that diverged: it holds
            NaN or infinity where the model should not.
    """
    tensors = with_todays_names(model, _read(path, weights(model), sealed, run))
    watched = must_be_finite(model)
    name = first_not_finite({name: tensor for name, tensor in tensors.items() if name in watched})
    if name is not None:
        raise RunError(f"{name!r} in {path} is not finite: the file is damaged, or of a training that diverged")
    fill(weights(model), tensors, str(path))


def _read(path: Path, targets: dict[str, Tensor], sealed: bool, run: str) -> dict[str, Tensor]:
    try:
        metadata = _checked(path)
        if "sha256" not in metadata and sealed:
            raise RunError(f"{path} has no SHA-256: it is not the file that training wrote")
        if run and metadata.get("run") != run:
            raise RunError(f"{path} is of another run than {path.parent}: it is not the file that training wrote there")
        # a larger file belongs to another model
        limit = sum(2 * target.nbytes + 1000 for target in targets.values()) + _HEADER
        return load_bytes(read_small(path, limit))
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot read the weights {path}: {reason(error)}") from error
