"""Error messages for settings: the key, the expected value, the given value, the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

DISAGREEMENT = "disagreement"
"""The error type for incompatible keys; its context holds pairs of key and message."""


def sections(config: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The keys whose values are sections, with their classes."""
    kinds = {name: field.annotation for name, field in config.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def fields(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every dotted key with its field."""
    found = {name: field for name, field in config.model_fields.items() if name not in sections(config)}
    for section, kind in sections(config).items():
        found |= {f"{section}.{name}": field for name, field in kind.model_fields.items()}
    return found


def nearest(key: str, config: type[BaseModel]) -> str:
    """The end of a message about an unknown key: the key that was probably meant, or all valid keys."""
    section, _, name = key.rpartition(".")
    best, likeness = "", 0.7
    siblings = []
    for other in [*sections(config), *fields(config)]:
        there, _, word = other.rpartition(".")
        alike = SequenceMatcher(None, name, word).ratio()
        if there == section:
            siblings.append(word)
            alike += 0.1  # a matching section counts too
        if alike > likeness:
            best, likeness = other, alike
    if best:
        return f"; did you mean {best}?"
    where = f"in {section}" if siblings and section else "at the top"
    return f"; known {where}: {', '.join(siblings or config.model_fields)}"


def explain(error: ValidationError, raw: dict[Any, Any], config: type[BaseModel]) -> list[str]:
    """One line per problem; the alternatives of a union give one line together."""
    lines: dict[str, None] = {}
    wholes: dict[str, str] = {}
    for item in error.errors():
        if item["type"] == DISAGREEMENT:
            where = [str(part) for part in item["loc"]]
            for key, text in item["ctx"]["problems"]:
                lines[f"{'.'.join([*where, *[key][: bool(key)]]) or config.__name__}: {text}"] = None
            continue
        section, *rest = (str(part) for part in item["loc"])
        inside = section in sections(config) and bool(rest)
        key = f"{section}.{rest[0]}" if inside else section
        if item["type"] in ("extra_forbidden", "invalid_key") and len(rest) <= inside:
            lines[f"{key}: unknown key{nearest(key, config)}"] = None
        elif key in sections(config):
            lines[f"{key}: expected a mapping of keys; got {given(item['input'])}"] = None
        else:
            value, field = raw[section][rest[0]] if inside else raw[section], fields(config)[key]
            wholes[key] = _wrong_value(key, value, field)
            lines[_wrong_entry(key, value, field, item["loc"]) or wholes[key]] = None
    named = {line.partition("[")[0] for line in lines}
    return [line for line in lines if not any(line == whole and key in named for key, whole in wholes.items())]


def _wrong_entry(key: str, value: Any, field: FieldInfo, where: Sequence[int | str]) -> str | None:
    """The line of a problem with a key of one of a list of sections; None: the problem is another one."""
    kind = _listed(field.annotation)
    place = next((place for place, part in enumerate(where[:-1]) if isinstance(part, int)), None)
    if kind is None or place is None:
        return None
    entry, name = where[place], str(where[place + 1])
    if name in kind.model_fields:
        return _wrong_value(f"{key}[{entry}].{name}", value[entry][name], kind.model_fields[name])
    near = difflib.get_close_matches(name, kind.model_fields, 1)
    hint = f"did you mean {near[0]}?" if near else f"known there: {', '.join(kind.model_fields)}"
    return f"{key}[{entry}].{name}: unknown key; {hint}"


def _listed(annotation: Any) -> type[BaseModel] | None:
    """The section that a key has a list of."""
    parts = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(parts[0], type) and issubclass(parts[0], BaseModel):
        return parts[0]
    return next(filter(None, map(_listed, parts)), None)


def _wrong_value(key: str, value: Any, field: FieldInfo) -> str:
    words = _words(field.annotation) if isinstance(value, str) else []
    close = {word.lower(): word for word in words}
    near = difflib.get_close_matches(str(value).lower(), close, 1)
    hint = f"; did you mean {close[near[0]]}?" if near else ""
    return f"{key}: expected {expected(field.annotation, field.metadata)}; got {given(value)}{hint}"


def _words(annotation: Any) -> list[str]:
    """The choices of a `Literal` key."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _words(part)]


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A description of a type: `Count | None` gives "a whole number ≥ 1 or null"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(parts[0], [bound for field in parts[1:] for bound in getattr(field, "metadata", ())])
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple and parts[0] is Any:
        return "a list (the tree of an ExpressionCell)"
    if origin is dict:
        return "a mapping"
    if origin is tuple:
        many = "a list" if parts[-1] is Ellipsis else f"a list of {len(parts)}"
        return f"{many} (each {expected(parts[0])})"
    if origin is Union or type(annotation).__name__ == "UnionType":
        return " or ".join(expected(part, metadata) for part in parts)
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping of {', '.join(annotation.model_fields)}"
    word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[annotation]
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    bounds = [f"{sign} {_bound(getattr(b, name))}" for b in metadata for name, sign in signs if hasattr(b, name)]
    return " ".join([word, " and ".join(bounds)]).strip()


def _bound(value: float) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def given(value: Any) -> str:
    """A description of a value, as the user wrote it."""
    kinds = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"a mapping ({', '.join(map(str, value))})" if value else "an empty mapping"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '…'} ({kinds.get(type(value), type(value).__name__)})"
