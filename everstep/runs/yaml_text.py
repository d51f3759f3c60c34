"""YAML as recipes are written in it: safe, unsurprising about numbers, and strict about keys that come twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from everstep.errors import ConfigError

_DEEPEST, _MOST = 100, 100_000  # levels and values of a recipe


class _Loader(yaml.SafeLoader):
    """safe_load by YAML 1.2's idea of a number (1e-3 is one, 12:30 and `no` are text), with keys that come once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} comes twice (first in line {lines[key.value]})",
                    problem_mark=key.start_mark,
                )
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Lists in one line; quotes what either kind of YAML would take for something other than text."""


_TAG = "tag:yaml.org,2002:"
_FORMS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+0123456789.",
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _FORMS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), list(_first))
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), list(_first))
_Dumper.add_representer(
    tuple, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


def dump_yaml(value: Any) -> str:
    """Block style, keys in the order given, each list in one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_yaml(text: str, source: str) -> Any:
    """What the text says; `source` names it in messages.

    Raises:
        ConfigError: not YAML (line and column), or a key that comes twice.
    """
    try:
        return _parsed(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: expected YAML; {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{source}: expected YAML; {told}.") from None


def _parsed(text: str) -> Any:
    loader = _Loader(text)  # a SafeLoader
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check(root: yaml.Node) -> None:
    """Refuse what no recipe needs and a parser stumbles over: too deep nests, too large ones by aliases, other types.

    An alias stands for the node itself, so that one that refers to what it is part of is a nest without an end.
    """
    rest, seen = [(root, 1)], 0
    while rest:
        node, depth = rest.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST:
            told = f"deeper than {_DEEPEST} levels" if depth > _DEEPEST else f"of more than {_MOST:,} values"
            raise yaml.MarkedYAMLError(problem=f"a nest {told}", problem_mark=node.start_mark)
        _check_type(node)
        if isinstance(node, yaml.MappingNode):
            rest += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            rest += [(part, depth + 1) for part in node.value]


def _check_type(node: yaml.Node) -> None:
    """`!!timestamp`, `!!binary`, … are no values of a recipe, and `!!int ""` is no value at all."""
    name = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.ScalarNode):
        fits = name == "str" or (name in _FORMS and re.fullmatch(_FORMS[name][0], node.value) is not None)
    else:
        fits = name == ("map" if isinstance(node, yaml.MappingNode) else "seq")
    if not fits:
        problem = f"a value of the type {name} that is none" if name in _FORMS else f"a value of the type {node.tag!r}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
