"""What keys of sections mean, read from their source when somebody asks."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise

from pydantic import BaseModel


def meaning(config: type[BaseModel], name: str) -> str:
    """The text below a key on one line; "" if it has none, or if the source is not there."""
    owner = next((kind for kind in config.__mro__ if name in inspect.get_annotations(kind)), config)
    return _texts(owner).get(name, "")


@cache
def _texts(kind: type) -> dict[str, str]:
    """The text below each key of a class."""
    try:
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    body = found.body if isinstance(found, ast.ClassDef) else []
    return {
        key.target.id: " ".join(below.value.value.split())
        for key, below in pairwise(body)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }
