"""YAML 1.2 for recipes: safe, bounded, without duplicate keys."""

from __future__ import annotations

import copy
import functools
import io
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, Event
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.tag import Tag

from everstep.errors import ConfigError

_DEEPEST, _MOST = 100, 100_000  # levels and values of a recipe
_TOO_DEEP = f"a nest deeper than {_DEEPEST} levels"
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
_WORD = re.compile(r"[A-Za-z/]([A-Za-z0-9_/.-]|:(?=[A-Za-z0-9/]))*")
_VALUES, _SHORT = {"true", "false", "null"}, 80  # words that are no text; a length that no line is broken for
_TAG = "tag:yaml.org,2002:"
_TYPES = {_TAG + name for name in ("map", "seq", "str", "bool", "null", "int", "float")}


def dump_yaml(value: Any) -> str:
    """`value` as YAML in block style, keys in the given order, each list in one line."""
    if not isinstance(value, dict) or not value:
        text = _plain(value)
        return _emitted(value) if text is None else f"{text}\n"
    parts = []
    for key, inner in value.items():
        name, text = _plain(key), _plain(inner)
        if name is not None and text is not None:
            parts.append(f"{name}: {text}\n")
        elif name is not None and isinstance(inner, dict):
            parts.append(f"{name}:\n{textwrap.indent(dump_yaml(inner), '  ')}")
        else:
            parts.append(_emitted({key: inner}))
    return "".join(parts)


def _plain(value: Any) -> str | None:
    """What needs no quotes and no second line, as `_emitted` writes it in a fiftieth of the time; else None."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if type(value) is int or (type(value) is float and _DECIMAL.fullmatch(repr(value))):
        return repr(value)
    if type(value) is str and len(value) <= _SHORT and _WORD.fullmatch(value) and value.lower() not in _VALUES:
        return value
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        text = f"[{', '.join([part for part in parts if part is not None])}]"
        return None if None in parts or len(text) > _SHORT else text
    return "{}" if value == {} else None


def _emitted(value: Any) -> str:
    """`value` as YAML, whatever it holds."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None alone
    yaml.width = 120
    yaml.representer.add_representer(tuple, _one_line)
    yaml.representer.add_representer(list, _one_line)
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


def _one_line(representer: Any, items: Any) -> Any:
    return representer.represent_sequence(_TAG + "seq", list(items), flow_style=True)


def parse_yaml(text: str, source: str) -> Any:
    """Parse a recipe; `source` names it in messages.

    Raises:
        ConfigError: the text is not YAML (with line and column), has a duplicate key, or is nested too deeply or too
            large.
    """
    try:
        return copy.deepcopy(_parsed(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: expected YAML; {error.problem or error.context}.") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: expected YAML; {' '.join(str(error).split())}.") from None


@functools.lru_cache(64)  # recipes and values are read several times, 10 ms each
def _parsed(text: str) -> Any:
    """The value of a text, which is not to be changed."""
    yaml = YAML(typ="safe", pure=True)
    _check_events(yaml.parse(text))
    node = yaml.compose(text)
    if node is None:
        return None
    _check(node)
    return yaml.constructor.construct_document(node)


def _check_events(events: Iterable[Event]) -> None:
    """Refuse explicit types (`!!int ""`, `!!binary`, `!!python/object`) and deep nesting before anything is built."""
    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if tag := getattr(event, "tag", None):
            raise MarkedYAMLError(problem=f"a tag, {tag}", problem_mark=event.start_mark)
        if depth > _DEEPEST:
            raise MarkedYAMLError(problem=_TOO_DEEP, problem_mark=event.start_mark)


def _check(root: Node) -> None:
    """Refuse nodes that are too deep or too large once aliases are expanded.

    An alias is the node itself, so that an alias to an enclosing node has infinite depth.
    """
    rest, seen = [(root, 1)], 0
    while rest:
        node, depth = rest.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST:
            told = _TOO_DEEP if depth > _DEEPEST else f"a nest of more than {_MOST:,} values"
            raise MarkedYAMLError(problem=told, problem_mark=node.start_mark)
        if str(node.tag) not in _TYPES:  # a date or `<<`, which in a recipe is text
            node.ctag = Tag(suffix=_TAG + "str")
        if isinstance(node, MappingNode):
            rest += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            rest += [(part, depth + 1) for part in node.value]
