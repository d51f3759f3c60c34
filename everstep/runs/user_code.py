"""Python files of the user's that a recipe names, such as `mycells.py:Mine`: loaded, copied into the run, checked."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from everstep.errors import ConfigError, RunError
from everstep.runs.folder import CODE

LIMIT = 2**20
"""Most bytes of one file."""


def is_code(name: object) -> bool:
    """Whether a value of a recipe names something in a Python file: `FILE.py:NAME`."""
    return isinstance(name, str) and ".py:" in name


class UserCode:
    """The Python files that a recipe names, each loaded once.

    A file stands by itself: what it imports has to be installed, since the file alone is copied into the run.

    Args:
        folder: where FILE.py is looked for; a run's own copies are in `RUN/code`.
        digests: the SHA-256 of each file as the run recorded it; None: whatever is there.
        trusted: whether code may run.
        owner: the run that the code came with, for messages.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        digests: dict[str, str] | None = None,
        trusted: bool = True,
        owner: Path | None = None,
    ):
        self._folder, self._digests, self._trusted, self._owner = folder or Path(), digests, trusted, owner
        self._modules: dict[str, ModuleType] = {}
        self._sources: dict[str, bytes] = {}

    @property
    def digests(self) -> dict[str, str]:
        """Name and SHA-256 of every file loaded."""
        return {name: hashlib.sha256(source).hexdigest() for name, source in self._sources.items()}

    def find(self, key: str, name: str) -> Any:
        """What `FILE.py:NAME` is; `key` is the recipe's, for messages.

        Raises:
            ConfigError: no such file or name, or the file fails; with the part of the traceback that is in it.
            RunError: code of a run that is not trusted, or that has changed.
        """
        file, _, attribute = name.rpartition(":")
        module = self._module(key, file)
        if not hasattr(module, attribute):
            names = [known for known in vars(module) if not known.startswith("_")]
            near = get_close_matches(attribute, names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{key}: {file} has no {attribute!r}{hint}")
        return getattr(module, attribute)

    def save(self, run: Path) -> None:
        """Copy the files loaded into the run."""
        for name, source in self._sources.items():
            folder = run / CODE
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(source)

    def _module(self, key: str, file: str) -> ModuleType:
        base = Path(file).name
        if base not in self._modules:
            if not self._trusted:
                raise RunError(
                    f"{self._owner} holds code of its own ({CODE}/{base}), which would run with your rights; read it, "
                    "then give --trust-code (in Python: trust_code=True)"
                )
            path = self._folder / (base if self._owner else file)
            source = self._read(key, path)
            self._check(base, source)
            self._modules[base], self._sources[base] = _executed(key, path, source), source
        return self._modules[base]

    def _read(self, key: str, path: Path) -> bytes:
        if not path.is_file():
            raise ConfigError(f"{key}: no file {path}")
        if path.stat().st_size > LIMIT:
            raise ConfigError(f"{key}: {path} is larger than {LIMIT // 2**20} MiB, which is no Python file of a cell")
        return path.read_bytes()

    def _check(self, name: str, source: bytes) -> None:
        if self._digests is None:
            return
        if self._digests.get(name) != hashlib.sha256(source).hexdigest():
            raise RunError(
                f"{self._owner}/{CODE}/{name} has changed since the run was started; put the file back, or train anew"
            )


def _executed(key: str, path: Path, source: bytes) -> ModuleType:
    """The module made of the source. It is found under its name, so that the source of its steps can be read."""
    name = f"everstep_user_code_{hashlib.sha256(source).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{key}: {path} fails:\n{_own_traceback(error, path)}") from None
    return module


def _own_traceback(error: Exception, path: Path) -> str:
    """The error, with the frames that are in the user's file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()
