"""Recipes from YAML: a shipped name or a file, with `key=value` overrides, validated before any work.

All problems are reported in one message: the dotted key, the expected and the given value, the nearest valid key.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from everstep.errors import ConfigError
from everstep.runs import card
from everstep.runs.folder import CODE, ENVIRONMENT, RECIPE
from everstep.runs.recipe import FORMAT, Recipe
from everstep.runs.registry import find_task
from everstep.runs.shipped_recipes import RECIPES, as_text, job_recipe, read_recipe, recipe_path
from everstep.runs.task import Task
from everstep.runs.user_code import UserCode
from everstep.runs.yaml_text import dump_yaml, parse_yaml
from everstep.sections import Section
from everstep.sections.documentation import meaning
from everstep.sections.messages import expected, explain, fields, given, nearest, sections
from everstep.storage.reading import json_text

ORDER = ("task", "seed", "data", "model", "objective", "train", "decode")


def load_task(name_or_path: str | Path, overrides: Sequence[str] = (), trust_code: bool = False) -> Task[Any]:
    """The job of a recipe: a shipped name, a YAML file or a job, with `key=value` overrides, validated; reads no data.

    A job, by its name or as FILE.py:CLASS, is a recipe of all its defaults.

    Executes the Python files that the recipe names. They are searched in the working folder, then beside the recipe.
    For the recipe of a run, RUN/config.yaml, they are in RUN/code and executed only with `trust_code`. Files named in
    overrides are always the user's.

    Raises:
        ConfigError: the recipe cannot be found, read or used.
        RunError: the recipe belongs to a damaged run, or to one with untrusted code.
    """
    if (text := job_recipe(name_or_path)) is not None:
        return parse_task(text, f"job {name_or_path}", overrides)
    path = recipe_path(name_or_path)
    source = f"recipe {path.stem}" if path.parent == RECIPES else str(path)
    if path.suffix not in (".yaml", ".yml") and not _holds_recipe(path):
        raise ConfigError(f"{path} is no recipe, which is a YAML file. {as_text(path, str(path))}")
    if path.name == RECIPE and (path.parent / ENVIRONMENT).is_file():
        code, version = code_of(path.parent, card.read_environment(path.parent), trust_code, files_named(overrides))
        return parse_task(read_recipe(path), source, overrides, code, version)
    folders = (Path(), *([path.parent] if path.parent not in (RECIPES, Path()) else []))
    return parse_task(read_recipe(path), source, overrides, UserCode(folders))


def code_of(
    run: Path, begun_with: dict[str, Any], trust_code: bool, added: Collection[str] = ()
) -> tuple[UserCode, int]:
    """The code stored in a run, and the format of its recipe according to `environment.json`."""
    digests = begun_with.get("code", {})
    return UserCode((run / CODE,), digests=digests, trusted=trust_code, owner=run, added=added), begun_with["format"]


def files_named(overrides: Sequence[str]) -> list[str]:
    """The Python files named in the values of overrides.

    >>> files_named(["model.cell={type: my/cells.py:Mine, size: 3}", "train.max_steps=2"])
    ['my/cells.py']
    """
    return [file for override in overrides for file in re.findall(r"""[^\s{}\[\],'"=]+\.py(?=:)""", override)]


def _holds_recipe(path: Path) -> bool:
    """Whether a file, whatever its name, is a recipe: it has a top-level recipe key."""
    try:
        raw = parse_yaml(read_recipe(path), str(path))
    except ConfigError:
        return False
    return isinstance(raw, dict) and not set(raw).isdisjoint(ORDER)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `load_task`."""
    return load_task(name_or_path, overrides).recipe  # type: ignore[no-any-return]


def listed_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides, unless one string or a mapping is given in place of a list.

    Raises:
        TypeError: it is.
    """
    if isinstance(overrides, str | Mapping):
        raise TypeError(f"overrides: expected a list, such as ['train.max_steps=2']; got {type(overrides).__name__}")
    return list(overrides)


def parse_task(
    text: str, source: str, overrides: Sequence[str] = (), code: UserCode | None = None, version: int = FORMAT
) -> Task[Any]:
    """As `load_task`, from YAML text; `source` names it in messages, `version` is its format."""
    raw = parse_yaml(text, source)
    if raw is None:
        raise ConfigError(f"{source} is empty: expected a recipe, such as `everstep recipes show text-words` prints.")
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected a mapping of keys (task, data, model, train, …); got {given(raw)}.")
    changes = [_split(override) for override in listed_overrides(overrides)]
    code = code or UserCode()
    kind = _kind(raw, changes, code, source)
    raw = kind.upgraded(raw, version) if version < FORMAT else raw
    for key, value in changes:
        _put(raw, key, value, kind.Recipe)
    task = kind(_validated(raw, source, kind.Recipe), code)
    problems = list(task.problems())
    if problems:
        raise ConfigError(_message(source, problems))
    return task


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `parse_task`."""
    return parse_task(text, source, overrides).recipe  # type: ignore[no-any-return]


def changed(task: Task[Any], overrides: Sequence[str]) -> Task[Any]:
    """The job with a changed recipe; reads no data."""
    return parse_task(to_yaml(task.recipe), "the recipe", overrides, task.code)


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe with all defaults; `load_recipe` reads back an equal one."""
    content = recipe.model_dump()
    return dump_yaml({key: content[key] for key in sorted(content, key=_place)})


def flat(recipe: Recipe, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Every dotted key with its JSON value, except the keys and sections in `leave_out`.

    >>> flat(load_recipe("text-words"))["model.cell"]
    'LSTM'
    """
    found: dict[str, Any] = {}
    for key, value in recipe.model_dump(mode="json").items():
        if key not in leave_out:
            section = key in sections(type(recipe))
            found |= {f"{key}.{name}": entry for name, entry in value.items()} if section else {key: value}
    return found


def explained_keys(name_or_path: str | Path) -> list[dict[str, str]]:
    """Every dotted key of a recipe with its type, default, value and documentation, as text."""
    recipe = load_recipe(name_or_path)
    values = recipe.model_dump()
    rows = []
    for key, field in fields(type(recipe)).items():
        section, _, name = key.rpartition(".")
        value = values[section][name] if section else values[name]
        own = getattr(type(recipe).model_fields[section].default, name, field.default) if section else field.default
        default = "required" if own is PydanticUndefined else _on_one_line(own)
        shown = _on_one_line(value)
        rows.append(
            {
                "key": key,
                "type": expected(field.annotation, field.metadata),
                "default": default,
                "value": shown,
                "meaning": meaning(sections(type(recipe)).get(section, type(recipe)), name),
            }
        )
    return sorted(rows, key=lambda row: _place(row["key"].partition(".")[0]))


def _on_one_line(value: Any) -> str:
    """A value as YAML that can follow `key=` on the command line."""
    among = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, dict) for one in among):
        return json_text(value, ensure_ascii=False)
    return dump_yaml(value).removesuffix("...\n").strip()


def _place(key: str) -> tuple[int, str]:
    return (ORDER.index(key) if key in ORDER else len(ORDER), key)


def _kind(raw: dict[Any, Any], changes: list[tuple[str, str]], code: UserCode, source: str) -> type[Task[Any]]:
    """The class of the job named by the recipe or by the last override of `task`."""
    named = [value for key, value in changes if key == "task"]
    data = raw.get("data") if isinstance(raw.get("data"), dict) else {}
    data = {**(data or {}), **{key[5:]: _read(key, value) for key, value in changes if key.startswith("data.")}}
    try:
        return find_task(named[-1] if named else raw.get("task"), code, data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _validated(raw: dict[Any, Any], source: str, kind: type[Recipe]) -> Recipe:
    raw = _with_defaults(raw, kind)
    try:
        return kind.model_validate(_tuples(raw))
    except ValidationError as error:
        raise ConfigError(_message(source, explain(error, raw, kind))) from None


def _with_defaults(raw: dict[Any, Any], kind: type[Recipe]) -> dict[Any, Any]:
    """The recipe with what a job sets of its sections, such as `train: FitSettings = FitSettings(max_epochs=10)`.

    An empty section (`model:` and nothing below) has all defaults.
    """
    filled = {"train": {}} | raw
    for key in sections(kind):
        default, value = kind.model_fields[key].default, filled.get(key)
        if key in filled and (value is None or isinstance(value, dict)):
            set_by_job = default.model_dump(exclude_unset=True) if isinstance(default, Section) else {}
            filled[key] = set_by_job | (value or {})
    return filled


def _message(source: str, lines: list[str]) -> str:
    return f"{source}: {lines[0]}" if len(lines) == 1 else f"{source}:" + "".join(f"\n  {line}" for line in lines)


def _split(override: str) -> tuple[str, str]:
    """Split `a.b=value` into key and value text."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        hint = f" For a text: {shlex.quote(f'data.train={override}')}." if os.path.exists(override) else ""
        raise ConfigError(f"expected key=value, such as train.max_minutes=5; got {override!r}.{hint}")
    return key, text


def _put(raw: dict[Any, Any], key: str, text: str, kind: type[Recipe]) -> None:
    """Set a dotted key in the nested dict."""
    *above, last = key.split(".")
    for part in above:
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict) or ".".join(above) in fields(kind):
            raise ConfigError(f"{key}: unknown key{nearest(key, kind)}")
    raw[last] = _value(key, text, kind)


def _value(key: str, text: str, kind: type[Recipe]) -> Any:
    """Parse a value as YAML, except that text keys need no quotes: decode.prompt=ROMEO: is not a mapping."""
    field = fields(kind).get(key)
    if field is not None and _takes(str, field.annotation):
        is_number = _takes(int, field.annotation) and re.fullmatch(r"[+-]?[0-9]+", text)
        return int(text) if is_number else _read(key, text)
    return parse_yaml(text, f"the value of {key}")


def _read(key: str, text: str) -> Any:
    """A value that is a text, unless it is quoted, a list, a mapping or null."""
    return parse_yaml(text, f"the value of {key}") if re.match(r"""["'\[{]|null$|~$""", text) else text


def _takes(kind: type, annotation: Any) -> bool:
    return annotation is kind or any(_takes(kind, part) for part in get_args(annotation))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
