"""The recurrent layers of a recipe's `model` section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from everstep.cell import Cell, Layer
from everstep.errors import ConfigError
from everstep.networks.cells_by_name import CellChoice, Find, make_cell
from everstep.sections import Positive, Probability, Section, Size
from everstep.wirings import (
    Bidirectional,
    Dropout,
    EncoderStack,
    Identity,
    ReadOut,
    Residual,
    Stack,
    StateDropout,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)


class LayersSection(Section):
    """A stack of cells, and its dropouts."""

    cell: CellChoice = "LSTM"
    """an exported cell, {type: NAME, option: value}, a list (the tree of an ExpressionCell), or FILE.py:NAME"""
    hidden_size: Size | tuple[Size, ...] = 256
    """units of each layer; a list: one size per layer"""
    layers: int = Field(1, ge=1, le=1000)
    """number of layers; may be omitted with a list of sizes"""
    dropout: Probability = 0.0
    """dropout between layers and after the last"""
    input_dropout: Probability = 0.0
    """dropout on the inputs of the first layer"""
    variational: bool = False
    """the same dropout mask at every step (Gal 2016)"""
    weight_drop: Probability = 0.0
    """dropout on the weights of recurrent matrices (Merity 2018)"""
    state_dropout: Probability = 0.0
    """dropout on h as input of recurrent matrices, one mask for all steps"""
    zoneout: Probability = 0.0
    """probability that a unit keeps its state for a step (Krueger 2017)"""
    residual: bool = False
    """add the input of a layer to its output, if sizes are equal"""
    init_range: Positive | None = None
    """r: initialise every weight uniformly in [-r, r]; null: each layer's own initialisation"""

    @model_validator(mode="before")
    @classmethod
    def _layers_from_sizes(cls, raw: Any) -> Any:
        if (
            isinstance(raw, dict)
            and "layers" not in raw
            and isinstance(sizes := raw.get("hidden_size"), tuple)
            and sizes
        ):
            return {**raw, "layers": len(sizes)}
        return raw

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """The size of each layer."""
        return self.hidden_size if isinstance(self.hidden_size, tuple) else (self.hidden_size,) * self.layers

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Inconsistent sizes, and dropouts that exclude each other."""
        sizes = list(self.hidden_sizes)
        if len(sizes) != self.layers:
            yield "hidden_size", f"expected one size for each of {self.layers} layers (layers); got {sizes}"
        elif self.residual and len(set(sizes)) > 1:
            yield "residual", f"expected layers of one size, so that they can be added; got {sizes}"
        if self.state_dropout and self.zoneout:
            yield "state_dropout", f"expected zoneout 0 beside it, which also changes the step; got {self.zoneout:g}"


class EmbeddedSection(LayersSection):
    """An embedding of tokens, and the layers above."""

    embedding_size: Size = 128
    """features of each token"""
    embedding_dropout: Probability = 0.0
    """dropout of whole tokens, at all their positions at once"""
    vectors: str | None = None
    """a file of word vectors with embedding_size numbers to begin the embedding with: word2vec's text or binary format,
    GloVe's or fastText's text, plain, .gz or .xz"""

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created."""
        yield from layer_problems(self, self.embedding_size, find)


class ReadOutSection(LayersSection):
    """Layers over a sequence, and one vector of their outputs."""

    bidirectional: bool = True
    """read in both directions, with hidden_size units each"""
    read_out: Literal["last", "mean", "max", "sum", "attention"] = "max"
    """how the outputs of all steps become one vector"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the layers, and options that both directions do not support."""
        yield from super().disagreements()
        if self.bidirectional and self.residual:
            yield "residual", "expected false beside bidirectional, whose layers give more features than they read"

    def read_out_of(self, input_size: int, find: Find) -> ReadOut:
        """The layers for inputs with `input_size` features, with their read-out."""
        layers = encoder_of if self.bidirectional else stack_of
        return ReadOut(layers(self, input_size, find), self.read_out)


def layer_problems(section: LayersSection, input_size: int, find: Find) -> Iterator[str]:
    """Problems of the layers, found by creating them once on the meta device."""
    small = section.model_copy(update={"dropout": 0.0, "input_dropout": 0.0, "weight_drop": 0.0})
    try:
        with torch.device("meta"):
            cells = stack_of(small, input_size, find, device="meta")
    except ConfigError as error:
        yield str(error)
    except (TypeError, ValueError) as error:
        yield f"model: {error}"
    except (NotImplementedError, RuntimeError):  # its constructor reads values, or it is too large
        return
    else:
        if section.weight_drop and not _recurrent_matrices(cells):
            yield (
                "model.weight_drop: expected a cell with a recurrent matrix weight_hh; this one has none; set "
                "model.weight_drop=0"
            )


def stack_of(
    section: LayersSection,
    input_size: int,
    find: Find,
    device: str | None = None,
    dropped_last: bool = True,
    last: float | None = None,
) -> Stack:
    """The causal stack of the section's cells, for inputs with `input_size` features.

    `dropped_last`: dropout follows the last cell too, with probability `last`; None: as between layers.
    """
    cells: list[Cell] = []
    size = input_size
    for depth, hidden in enumerate(section.hidden_sizes):
        cell = _cell(section, size, hidden, find, device)
        cells += _dropped(cell, section.dropout if depth else section.input_dropout, section.variational)
        size = cell.output_size
    p = section.dropout if last is None else last
    if p and dropped_last:
        cells += _dropped(Identity(size), p, section.variational)
    return Stack(*cells)


def encoder_of(section: LayersSection, input_size: int, find: Find) -> EncoderStack:
    """The same layers in both directions, with concatenated outputs of 2 × hidden_size features."""
    layers: list[Layer] = []
    size = input_size
    for depth, hidden in enumerate(section.hidden_sizes):
        both = Bidirectional(_cell(section, size, hidden, find), _cell(section, size, hidden, find))
        p = section.dropout if depth else section.input_dropout
        layers += [VariationalDropout(Identity(size), p) if section.variational else Dropout(size, p)] if p else []
        layers.append(both)
        size = both.output_size
    return EncoderStack(*layers)


def initialise(section: LayersSection, module: torch.nn.Module) -> None:
    """Apply `init_range`, if given."""
    if section.init_range is not None:
        for parameter in module.parameters():
            torch.nn.init.uniform_(parameter, -section.init_range, section.init_range)


def _cell(section: LayersSection, size: int, hidden: int, find: Find, device: str | None = None) -> Cell:
    cell: Cell = make_cell(section.cell, size, hidden, find, device)
    if section.state_dropout:
        cell = StateDropout(cell, section.state_dropout)  # type: ignore[arg-type]
    if section.zoneout:
        cell = Zoneout(cell, section.zoneout)
    if section.weight_drop:
        cell = WeightDrop(cell, section.weight_drop, _recurrent_matrices(cell))
    if section.residual and cell.input_size == cell.output_size:
        cell = Residual(cell)
    return cell


def _recurrent_matrices(cell: Cell) -> list[str]:
    return [name for name, _ in cell.named_parameters() if name.rpartition(".")[2] == "weight_hh"]


def _dropped(cell: Cell, p: float, variational: bool) -> list[Cell]:
    if p == 0:
        return [cell]
    return [VariationalDropout(cell, p)] if variational else [Dropout(cell.input_size, p), cell]
