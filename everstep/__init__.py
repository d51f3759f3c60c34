"""everstep: write one step `f(x_t, h_{t-1})`; run it over the sequence, learn it, decode from it, ship it.

`__init__.pyi` lists each public name once. Names are resolved on first use, so that importing the package is cheap.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _imported(path: Path) -> dict[str, str]:
    """The names that a stub file imports, each with its module; `*` is replaced by the names of the package's stub."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                package = Path(__file__).parent.joinpath(*node.module.split(".")[1:], "__init__.py")
                names = _imported(package) if name.name == "*" else {name.asname or name.name: node.module}
                found |= dict.fromkeys(names, node.module)
    return found


_HOME = _imported(Path(__file__).with_suffix(".pyi"))

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'everstep' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
