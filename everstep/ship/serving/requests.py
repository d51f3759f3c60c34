"""The bodies of requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _text(text: str) -> str:
    """The text, if UTF-8 can hold it: JSON can name halves of characters."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("expected text, but it has half of a character (U+D800 to U+DFFF)")
    return text


def _line(text: str) -> str:
    if "\n" in text:
        raise ValueError("expected one line, but it has a line end; give each line as a text of its own")
    return _text(text)


Text = Annotated[str, AfterValidator(_text)]
Line = Annotated[str, AfterValidator(_line)]
Symbol = Annotated[int, Field(ge=0, lt=1 << 31)]


class Body(BaseModel):
    """The base class: unknown keys and other types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PredictBody(Body):
    """Lines to predict from, as `everstep predict` reads them."""

    run: str | None = Field(None, description="name of the run; may be left out where there is one")
    lines: list[Line] = Field(min_length=1, max_length=10_000, description="lines without their ends")
    probabilities: bool = Field(False, description="also the probabilities")
    n_best: int = Field(1, ge=1, le=100, description="predictions for each")
    format: Text | None = Field(None, description="of the lines, if not that of the training data")
    explain: bool = Field(False, description="also the relevance of each part of a line")


class ScoreBody(Body):
    """Lines to score."""

    run: str | None = Field(None, description="name of the run; may be left out where there is one")
    lines: list[Line] = Field(min_length=1, max_length=10_000, description="lines without their ends")
    tokens: bool = Field(False, description="also log p of each token")


class GenerateBody(Body):
    """A text to continue, as `everstep generate` does. What is left out is as in the run's recipe."""

    run: str | None = Field(None, description="name of the run; may be left out where there is one")
    prompt: Text | None = Field(None, max_length=20_000, description="text to continue")
    length: int | None = Field(None, ge=1, le=1 << 20, description="tokens to sample")
    temperature: float | None = Field(None, ge=0, le=1000, description="0: greedy")
    top_k: int | None = Field(None, ge=1, lt=1 << 31, description="only from the K likeliest tokens")
    top_p: float | None = Field(None, gt=0, le=1, description="only from the likeliest tokens of total probability P")
    unk: bool | None = Field(None, description="whether <unk> may be sampled")
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="the same seed gives the same text")
    stop: Text = Field("", max_length=1000, description="the text ends before this")
    until_end: bool = Field(False, description="the text ends at the symbol that ends a sequence")
    stream: bool = Field(False, description="server-sent events, as the text is sampled")


class UnitsBody(Body):
    """A text, and a unit whose values over it are asked for."""

    run: str | None = Field(None, description="name of the run; may be left out where there is one")
    text: Text = Field(min_length=1, max_length=3000, description="the text")
    layer: int = Field(0, ge=0, lt=1000, description="the layer, from 0")
    part: Text | None = Field(None, max_length=100, description="a gate, or a leaf of the state; the first if left out")
    unit: int = Field(0, ge=0, lt=1 << 31, description="the unit, from 0")


class SessionBody(Body):
    """A new session."""

    run: str | None = Field(None, description="name of the run; may be left out where there is one")
    begin: bool = Field(False, description="feed the symbols that begin a text")


class StepsBody(Body):
    """Values to feed, one a step: exactly one of `tokens`, `text` and `numbers`."""

    run: str | None = Field(None, description="if given, the session must be of this run")
    tokens: list[Symbol] | None = Field(None, min_length=1, description="symbols")
    text: Text | None = Field(None, min_length=1, description="text, which becomes symbols")
    numbers: list[list[float]] | None = Field(None, min_length=1, description="a row of numbers a step")
    outputs: Literal["none", "last", "all"] = Field("none", description="which outputs to answer with")
    top: int | None = Field(None, ge=1, le=1000, description="the K likeliest next symbols, and their texts")
    surprise: bool = Field(False, description="−log p of each symbol that is fed, in nats")

    @model_validator(mode="after")
    def _one(self) -> StepsBody:
        given = [name for name in ("tokens", "text", "numbers") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of tokens, text and numbers; got {', '.join(given) or 'none of them'}")
        return self


class KeptStepsBody(StepsBody):
    """Values to feed to a state that the client keeps."""

    run: str | None = Field(None, description="name of the run; may be left out where there is one")
    state: str | None = Field(None, description="the state of an earlier answer; none: the state before the first step")
    begin: bool = Field(False, description="without a state: feed the symbols that begin a text before the values")
