"""Checkpoints: folders of safetensors and JSON, written atomically, every file with its SHA-256. No pickle.

    RUN/checkpoints/step-00000123/
        model.safetensors, …   one file per group of tensors
        data.json              everything that is not a tensor
        manifest.json          format, validation, size and SHA-256 of each file, and of the manifest itself

A checkpoint is written to a temporary folder; every file and the folder are fsynced; the folder is renamed and its
parent fsynced. A crash at any moment leaves all earlier checkpoints intact.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from everstep.errors import CheckpointError, RunError
from everstep.storage import files
from everstep.storage.reading import parse_json, read_small, reason

FORMAT = 1
_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 20  # bytes
_DATA = "data.json"
_SUFFIX = ".safetensors"
_STEP = "step-"
_DAMAGED = "damaged-"
_DIVERGED = "diverged-"
_EMPTY = ".none-yet"

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        tensors: by group and name, on the CPU.
        data: JSON values.
        valid: mean validation loss at that step, in nats per target; None if not measured.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    valid: float | None = None


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """`tensors` as a safetensors file. Each is copied first, because the format refuses tensors that share memory."""
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(own, metadata)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _manifest_bytes(content: dict[str, Any]) -> bytes:
    """A manifest in its only valid serialisation; any other bytes count as damage."""
    digest = hashlib.sha256(_json_bytes(content)).hexdigest()
    return _json_bytes({**content, "digest": digest})


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` atomically as `folder`, replacing what was there.

    Raises:
        OSError: the disk is full, the folder cannot be written to, …; nothing was changed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "step-00000001"
        >>> save(folder, Checkpoint(data={"step": 1}))
        >>> load(folder).data
        {'step': 1}
    """
    contents = {f"{group}{_SUFFIX}": serialize(tensors) for group, tensors in checkpoint.tensors.items() if tensors}
    contents[_DATA] = _json_bytes(checkpoint.data)
    listing = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    contents[_MANIFEST] = _manifest_bytes({"format": FORMAT, "valid": checkpoint.valid, "files": listing})

    temporary = folder.with_name(files.TEMPORARY + folder.name)
    files.remove(temporary)
    try:
        temporary.mkdir(parents=True)
        for name, content in contents.items():
            files.write_file(temporary / name, content)
        files.sync_folder(temporary)
        if folder.is_symlink():
            files.remove(folder)
        if folder.exists():  # then it is damaged: a step is never saved twice
            _set_aside(folder)
        files.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # frees space on a full disk
        raise


def _set_aside(folder: Path, why: str = _DAMAGED) -> Path:
    """Rename a bad checkpoint, so that it is ignored but kept for inspection; return its new path."""
    aside = folder.with_name(why + folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    files.rename(folder, aside)
    return aside


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_small(path, limit)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} cannot be read: {reason(error)}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint `folder`, checked against its own digest.

    Raises:
        CheckpointError: it is missing or damaged.
        RunError: it is intact, but from a newer version of everstep.
    """
    found = _read(folder / _MANIFEST, _LARGEST_MANIFEST)
    try:
        content = parse_json(found)
        del content["digest"]
        whole = _manifest_bytes(content) == found
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole or not isinstance(content.get("format"), int):
        raise CheckpointError(f"checkpoint {folder}: {_MANIFEST} is damaged: it does not match its own digest")
    if content["format"] > FORMAT:
        raise RunError(
            f"checkpoint {folder} was made by a newer version of everstep (format {content['format']}, this version "
            f"reads up to {FORMAT}); update everstep"
        )
    if not _is_manifest(content):
        raise CheckpointError(f"checkpoint {folder}: {_MANIFEST} was not written by everstep")
    return dict(content)


def _is_manifest(content: dict[str, Any]) -> bool:
    """Whether the content has the form that `save` writes; a matching digest does not imply it."""
    listed = content.get("files")
    return (
        isinstance(content.get("valid", ""), int | float | None)
        and isinstance(listed, dict)
        and all(
            Path(name).name == name
            and isinstance(said, dict)
            and isinstance(said.get("size"), int)
            and "sha256" in said
            for name, said in listed.items()
        )
    )


def load(folder: Path) -> Checkpoint:
    """Read the checkpoint `folder` and verify every file.

    Raises:
        CheckpointError: a file is missing, truncated or changed; the message names the file and the reason.
        RunError: the checkpoint is from a newer version of everstep.
    """
    manifest = read_manifest(folder)
    tensors: dict[str, dict[str, Tensor]] = {}
    data: dict[str, Any] = {}
    for name, expected in manifest["files"].items():
        content = _whole(folder / name, expected)
        try:
            if name == _DATA:
                data = _mapping(content)
            else:
                tensors[name.removesuffix(_SUFFIX)] = safetensors.torch.load(content)
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"checkpoint {folder}: {name} was not written by everstep: {error}") from None
    return Checkpoint(tensors, data, manifest["valid"])


def load_data(folder: Path) -> dict[str, Any]:
    """As `load`, but only `data`, which is small however large the model.

    Raises:
        CheckpointError, RunError: as `load`.
    """
    listed = read_manifest(folder)["files"]
    if _DATA not in listed:
        raise CheckpointError(f"checkpoint {folder}: {_DATA} is missing")
    try:
        return _mapping(_whole(folder / _DATA, listed[_DATA]))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder}: {_DATA} was not written by everstep: {error}") from None


def _mapping(content: bytes) -> dict[str, Any]:
    found = parse_json(content)
    if not isinstance(found, dict):
        raise ValueError(f"expected a mapping, but it is a {type(found).__name__}")
    return found


def _whole(path: Path, expected: dict[str, Any]) -> bytes:
    """The content of a checkpoint's file, verified against its manifest."""
    content = _read(path, expected["size"])
    if len(content) != expected["size"]:
        raise CheckpointError(
            f"checkpoint {path.parent}: {path.name} has {len(content)} bytes where {expected['size']} were written"
        )
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise CheckpointError(
            f"checkpoint {path.parent}: {path.name} is damaged: its SHA-256 is not the one in {_MANIFEST}"
        )
    return content


class Store:
    """The checkpoints of one run in `root`. The newest `keep_last` and the best by validation are kept."""

    def __init__(self, root: Path, keep_last: int):
        self.root = root
        self._keep_last = keep_last

    def folders(self) -> list[Path]:
        """The folders of all checkpoints, newest first, not verified."""
        if not self.root.is_dir():
            return []
        steps = (path for path in self.root.iterdir() if path.name.removeprefix(_STEP).isdecimal())
        found = [path for path in steps if not path.is_symlink()]
        return sorted(found, key=_step_of, reverse=True)

    def folder(self, step: int) -> Path:
        """The path of the checkpoint of `step`."""
        return self.root / f"{_STEP}{step:08d}"

    def clean(self) -> None:
        """Remove partial writes left by a crash.

        Raises:
            RunError: the folder is a link; a run removes nothing outside its folder.
        """
        files.refuse_link(self.root)
        for path in self.root.glob(files.TEMPORARY + "*"):
            files.remove(path)

    def begin(self) -> None:
        """Create the folder, with a marker file that says it has not held a checkpoint yet.

        Raises:
            RunError: it cannot be written.
        """
        with files.explained(self.root):
            if not self.root.is_dir():
                self.root.mkdir(parents=True)
                files.sync_folder(self.root.parent)
            files.write_file(self.root / _EMPTY, b"")
            files.sync_folder(self.root)

    def never_held(self) -> bool:
        """Whether there has certainly never been a checkpoint; if false and there is none, they were deleted."""
        return not self.folders() and (self.root / _EMPTY).is_file()

    def save(self, step: int, checkpoint: Checkpoint, best: int | None = None) -> Path:
        """Write the checkpoint of `step`, remove those no longer kept, and return its folder.

        `best` is the step of the best validation. If it has no checkpoint, the best one that exists is kept.

        Raises:
            RunError: it cannot be written; earlier ones are unchanged.
        """
        folder = self.folder(step)
        with files.explained(self.root):
            if not self.root.is_dir():
                self.root.mkdir(parents=True)
                files.sync_folder(self.root.parent)
            save(folder, checkpoint)
            (self.root / _EMPTY).unlink(missing_ok=True)
            self._prune(best)
        return folder

    def diverged(self, step: int) -> list[Path]:
        """Rename the checkpoints of `step` and later to `diverged-step-…`, and return their folders.

        Raises:
            RunError: the folder cannot be written to.
        """
        with files.explained(self.root):
            return [_set_aside(folder, _DIVERGED) for folder in self.folders() if _step_of(folder) >= step]

    def newest(
        self, say: Callable[[str], None], fault: Callable[[Checkpoint], str | None] = lambda found: None
    ) -> Checkpoint | None:
        """The newest intact checkpoint without a `fault`, or None if there has never been one.

        Newer ones that are damaged or faulty are reported through `say` and renamed to `damaged-step-…`.

        Raises:
            CheckpointError: none can be used; none is renamed.
            RunError: the newest is from a newer version of everstep.
        """
        reasons: dict[Path, str] = {}
        for folder in self.folders():
            try:
                checkpoint = load(folder)
                if found := fault(checkpoint):
                    raise CheckpointError(f"checkpoint {folder}: {found}")
            except CheckpointError as error:
                reasons[folder] = str(error)
                continue
            for damaged, why in reasons.items():
                with files.explained(self.root):
                    aside = _set_aside(damaged)
                say(f"{why}. It was set aside as {aside.name}; resuming from {folder.name}")
            return checkpoint
        if reasons:
            listed = "\n  ".join(reasons.values())
            raise CheckpointError(
                f"no checkpoint in {self.root} can be used; train anew in another folder:\n  {listed}"
            )
        return None

    def _prune(self, best: int | None) -> None:
        folders = self.folders()
        kept = None if best is None else self.folder(best)
        if kept not in folders:
            valids = {folder: valid for folder in folders if (valid := _valid_of(folder)) is not None}
            kept = min(valids, key=lambda folder: valids[folder], default=None)
        for folder in folders[self._keep_last :]:
            if folder != kept:
                # Renamed first: a crash during removal must not leave half a checkpoint under a valid name.
                doomed = folder.with_name(files.TEMPORARY + folder.name)
                files.rename(folder, doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_STEP))


def _valid_of(folder: Path) -> float | None:
    try:
        valid: float | None = read_manifest(folder)["valid"]
    except RunError:
        return None
    return valid
