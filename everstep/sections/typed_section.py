"""Sections of settings: frozen values with typed, documented keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from everstep.errors import ConfigError
from everstep.sections.messages import DISAGREEMENT, explain

Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=2**20)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Files = str | tuple[str, ...]
Names = str | tuple[str, ...]


def _as_groups(given: Any) -> Any:
    """Convert labels given as numbers to text, and a single label to a list."""
    if not isinstance(given, dict):
        return given
    lists = {name: old if isinstance(old, list | tuple) else (old,) for name, old in given.items()}
    return {
        name: tuple(str(label) if type(label) in (int, float) else label for label in old)
        for name, old in lists.items()
    }


LabelGroups = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_as_groups)]
"""Names for groups of labels: `{good: [3, 4], bad: 0}`."""


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Refusing(ModelMetaclass):
    """Gives settings made in Python the same error messages as recipes."""

    def __call__(cls, *unnamed: Any, **values: Any) -> Any:
        if unnamed:
            first, *_ = cast(type[BaseModel], cls).model_fields
            raise TypeError(
                f"{cls.__name__}: expected settings by name, such as {first}=…; got {unnamed[0]!r} without one"
            )
        try:
            return super().__call__(**values)
        except ValidationError as error:
            lines = explain(error, values, cast(type[BaseModel], cls))
            raise ConfigError(f"{cls.__name__}: " + "; ".join(lines)) from None


class Section(BaseModel, metaclass=_Refusing):
    """Keys with types, ranges and defaults. The text below a key documents it; `everstep recipes keys` prints it.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, NaN, infinity, or `disagreements`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Incompatible settings, as pairs of key ("" for the section itself) and message."""
        yield from ()

    def problems(self, find: Callable[[str, str], Any]) -> Iterator[str]:
        """Messages for problems that types cannot express, each beginning with the key; called before any work.

        `find(key, "FILE.py:NAME")` returns the object in the user's file.
        """
        del find
        yield from ()

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, validated; pydantic's own `model_copy` does not validate.

        Raises:
            ConfigError: as for new settings.
        """
        return type(self)(**{**dict(self), **changes})

    def __replace__(self, **changes: Any) -> Self:
        return self.replace(**changes)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = list(self.disagreements())
        if problems:
            raise PydanticCustomError(DISAGREEMENT, "keys do not go together", {"problems": problems})
        return self
