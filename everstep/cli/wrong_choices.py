"""Options with a wrong value, in the words of settings: what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Literal, get_origin

import typer


@contextmanager
def plainly_said() -> Iterator[None]:
    """Reword the message about an option with another type or choice, which would be pydantic's."""
    try:
        yield
    except typer.BadParameter as error:
        kind = getattr(getattr(error.param, "type_descriptor", None), "annotation", None)
        if error.__cause__ is not None and (kind in (int, float) or get_origin(kind) is Literal):
            error.message = _plain(kind, error.param, error.__cause__) or error.message
        raise


def _plain(kind: object, option: object, cause: BaseException) -> str | None:
    from pydantic import ValidationError

    from everstep.sections.messages import expected

    if not isinstance(cause, ValidationError):
        return None
    bounds = (("ge", getattr(option, "min", None)), ("le", getattr(option, "max", None)))
    wanted = expected(kind, [SimpleNamespace(**{name: bound}) for name, bound in bounds if bound is not None])
    return f"expected {wanted}; got {cause.errors()[0]['input']!r}."
