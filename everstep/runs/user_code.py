"""The user's Python files in a recipe, such as `mycells.py:Mine`: loaded, copied into the run, verified."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from everstep.errors import USER_CODE, ConfigError, RunError, users_part
from everstep.runs.folder import CODE
from everstep.storage import files
from everstep.storage.reading import read_small, reason

LIMIT = 2**20
"""Largest file in bytes."""


def is_code(name: object) -> bool:
    """Whether a value of a recipe has the form `FILE.py:NAME`."""
    return isinstance(name, str) and ".py:" in name


def as_kept(value: Any) -> Any:
    """A recipe value with `FOLDER/FILE.py:NAME` reduced to `FILE.py:NAME`, since a run has one folder of code."""
    if isinstance(value, dict):
        return {key: as_kept(entry) for key, entry in value.items()}
    return Path(value).name if is_code(value) else value


class UserCode:
    """The Python files that a recipe names; each is loaded once.

    A file must be self-contained, since only it is copied into the run: what it imports must be installed.

    Args:
        folders: folders searched for FILE.py, in order; by default the working folder. For a run, `RUN/code`.
        digests: the recorded SHA-256 of each file; None accepts any content.
        trusted: whether code may be executed.
        owner: the run that the code belongs to, for messages.
        alone: whether to refuse a file that imports a neighbouring file.
        added: names of files that are the user's, although the others belong to a run; they are searched in the
            working folder and executed without further trust.
    """

    def __init__(
        self,
        folders: Sequence[Path] = (Path(),),
        *,
        digests: dict[str, str] | None = None,
        trusted: bool = True,
        owner: Path | None = None,
        alone: bool = True,
        added: Collection[str] = (),
    ):
        self._folders, self._digests, self._trusted, self._owner = folders, digests, trusted, owner
        self._alone, self._added = alone, frozenset(added)
        self._modules: dict[str, ModuleType] = {}
        self._sources: dict[str, bytes] = {}

    @property
    def digests(self) -> dict[str, str]:
        """Name and SHA-256 of every loaded file."""
        return {name: hashlib.sha256(source).hexdigest() for name, source in self._sources.items()}

    def find(self, key: str, name: str) -> Any:
        """The object `FILE.py:NAME`; `key` is the key of the recipe, for messages.

        Raises:
            ConfigError: there is no such file or name, or the file fails, with the part of the traceback in it.
            RunError: the code belongs to a run, and is not trusted, has changed, or is missing.
        """
        file, _, attribute = name.rpartition(":")
        module = self._module(key, file)
        if not attribute or not hasattr(module, attribute):
            own = [known for known, value in vars(module).items() if _defined_in(module, value)]
            near = get_close_matches(attribute, own, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(own)}" if own else ""
            raise ConfigError(f"{key}: {file} has no {attribute!r}{hint}")
        return getattr(module, attribute)

    def save(self, run: Path) -> None:
        """Copy the loaded files into the run."""
        for name, source in self._sources.items():
            folder = run / CODE
            folder.mkdir(exist_ok=True)
            files.replace_file(folder / name, source)

    def _module(self, key: str, file: str) -> ModuleType:
        base, kept = Path(file).name, self._owner is not None and file not in self._added
        if kept and not self._trusted:
            raise RunError(
                f"{self._owner} holds code of its own ({CODE}/{base}), which would run with your rights; read it, "
                "then give --trust-code (in Python: trust_code=True)"
            )
        path = self._path(key, base if kept else file, kept)
        if base in self._modules and not _same(self._modules[base], path):
            raise ConfigError(
                f"{key}: {self._modules[base].__file__} and {path} have one name, and a run keeps its files side by "
                "side; rename one of them"
            )
        if base not in self._modules:
            source = self._read(key, path, self._digests if kept else None)
            if self._alone and not kept:
                _check_alone(key, path, source)
            self._modules[base], self._sources[base] = _executed(key, path, source), source
        return self._modules[base]

    def _path(self, key: str, file: str, kept: bool) -> Path:
        folders = self._folders if kept or self._owner is None else (Path(),)
        found = next((path for folder in folders if (path := folder / file).is_file()), None)
        if found is not None:
            return found
        if kept:
            raise RunError(f"{self._owner} lacks {CODE}/{file}, which it was trained by; put the file back")
        beside = "" if len(folders) == 1 else ", neither in the working folder nor beside the recipe"
        raise ConfigError(f"{key}: no file {file}{beside}")

    def _read(self, key: str, path: Path, digests: dict[str, str] | None) -> bytes:
        try:
            source = read_small(path, LIMIT)
        except OSError as error:
            raise ConfigError(f"{key}: cannot read {path}: {reason(error)}") from None
        digest = hashlib.sha256(source).hexdigest()
        if digests is not None and digests.get(path.name) != digest:
            raise RunError(f"{path} is not the file that the run was trained by; put that back, or train anew")
        return source


def _same(module: ModuleType, path: Path) -> bool:
    return module.__file__ is not None and path.samefile(module.__file__)


def _defined_in(module: ModuleType, value: Any) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and hasattr(value, "__name__")


def _check_alone(key: str, path: Path, source: bytes) -> None:
    """Refuse a file that imports a neighbouring file, without which the run could not be loaded elsewhere."""
    with suppress(SyntaxError, ValueError):  # reported when the file is executed
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = names if node.level and not node.module else [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                relative = isinstance(node, ast.ImportFrom) and node.level > 0
                if relative or (_lies_in(path.parent, top) and not _installed(top)):
                    raise ConfigError(
                        f"{key}: {path}, line {node.lineno}: imports {top}, a file beside it; a run keeps {path.name} "
                        f"alone. Put what it needs of {top} into it, or install {top} as a package"
                    )


def _lies_in(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _installed(name: str) -> bool:
    """Whether a module is found without the working folder on the path."""
    if name in sys.modules or name in sys.stdlib_module_names:
        return True
    others = [finder for finder in sys.meta_path if finder is not PathFinder and hasattr(finder, "find_spec")]
    return any(finder.find_spec(name, None) for finder in others) or bool(PathFinder.find_spec(name, sys.path[1:]))


def _executed(key: str, path: Path, source: bytes) -> ModuleType:
    """The module of the source, registered by name so that `inspect` finds the source of its steps."""
    name = f"{USER_CODE}{hashlib.sha256(source).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        told = users_part(error) or "".join(traceback.format_exception_only(error)).rstrip()
        raise ConfigError(f"{key}: {path} fails:\n{told}") from None
    return module
