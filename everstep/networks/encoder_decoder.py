"""p(target | source): an encoder, a context (attention or one vector), a decoder and a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer
from everstep.data.pair_batches import PairBatch
from everstep.decode.decoder import Decoder
from everstep.errors import ConfigError
from everstep.native.packed_linears import PackedLinears
from everstep.networks.attentions_by_name import AttentionName, make_attention
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import encoder_of, initialise, stack_of
from everstep.networks.softmax_by_name import SoftmaxSection, make_softmax
from everstep.sections import Count, Size
from everstep.state import State, leaves
from everstep.wirings import Attend, Bidirectional, Conditioned, Dropout, EmbeddingDropout, Identity, VariationalDropout

CONTEXTS = Literal["attention", "initial", "every-step"]


class EncoderDecoderSection(SoftmaxSection):
    """The network: an encoder of the source, a decoder of the target, and the context that connects them."""

    embedding_size: Size = 256
    """features of each token, in both languages"""
    hidden_size: Size | tuple[Size, ...] = 512
    """units of each layer of the decoder"""
    encoder_size: Size | None = None
    """units of each layer of the encoder, in each direction; null: hidden_size, or half of it where bidirectional"""
    encoder_layers: Count | None = None
    """null: as many as layers"""
    bidirectional: bool = True
    """the encoder reads in both directions"""
    context: CONTEXTS = "attention"
    """attention: each decoder step attends to the source; initial: one vector of the source gives the decoder's initial
    state (Sutskever 2014); every-step: that vector is also an input of every step (Cho 2014)"""
    attention: AttentionName = "general"
    """score of source positions: additive (Bahdanau 2015), dot, general, concat, local-m, local-p (Luong
    2015), location (Chorowski 2015), coverage (Tu 2016), multi-head"""
    attention_size: Size | None = None
    """units of additive, concat, coverage, location and multi-head; null: hidden_size"""
    heads: Count = 4
    """number of heads of multi-head"""
    reach: Count = 5
    """positions that local-m and local-p read on each side"""
    query: Literal["before", "after"] = "after"
    """the query of attention: before: the state before the cell's step (Bahdanau 2015); after: the cell's output (Luong
    2015)"""
    input_feeding: bool = False
    """the attention output of a step is an input of the next one (Luong 2015); much slower to train with query after"""
    tied: Literal["none", "target", "all"] = "target"
    """target: the softmax shares its weights with the target embedding; all: also with the source embedding, which
    needs a joint vocabulary"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of layers, attentions whose sizes do not fit, and masks that single steps cannot draw."""
        yield from super().disagreements()
        if self.residual and self.bidirectional:
            yield "residual", "expected false beside bidirectional, whose layers give more features than they read"
        if self.context == "attention":
            top = self.hidden_sizes[0 if self.query == "before" else -1]
            if self.attention == "dot" and self.memory_size != top:
                sizes = f"{self.memory_size} features of the encoder, {top} of the decoder"
                yield "attention", f"dot expects the encoder and the decoder to give as many features; got {sizes}"
            if self.attention == "multi-head" and (self.attention_size or top) % self.heads:
                yield "heads", f"expected a divisor of attention_size ({self.attention_size or top}); got {self.heads}"
            if self.goes_back:
                where = "where what attention reads goes back into the cell (query before, input_feeding)"
                yield from (
                    (name, f"expected 0 {where}")
                    for name in ("zoneout", "state_dropout", "weight_drop")
                    if getattr(self, name)
                )
                if self.variational and self.dropout and self.layers > 1:
                    yield "variational", f"expected false, or dropout 0, or one layer, {where}"

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created, or one that does not fit the attention."""
        found = list(super().problems(find))
        yield from found
        if found:
            return
        plain = self.model_copy(update={"dropout": 0.0, "weight_drop": 0.0})
        try:
            with torch.device("meta"):
                _decoder(plain, _encoder(plain, find).output_size, find)
        except ConfigError as error:
            yield str(error)
        except (TypeError, ValueError) as error:
            yield f"model: {error}"
        except (NotImplementedError, RuntimeError):  # a constructor reads values, or the model is too large
            return

    @property
    def goes_back(self) -> bool:
        """Whether the output of attention is an input of the decoder's cells."""
        return self.context == "attention" and (self.query == "before" or self.input_feeding)

    @property
    def encoder_units(self) -> int:
        """Units of each of the encoder's layers, in each direction."""
        if self.encoder_size is not None:
            return self.encoder_size
        top = self.hidden_sizes[-1]
        return max(1, top // 2) if self.bidirectional else top

    @property
    def memory_size(self) -> int:
        """Features of each position of the encoded source."""
        return self.encoder_units * (1 + self.bidirectional)


class Decoding(NamedTuple):
    """The decoder state in a search: the state of the cells, and the attention weights (rows, S) of the last step."""

    cells: State
    weights: Tensor


class EncoderDecoder(nn.Module):
    """Source embedding → encoder → attention or one vector → decoder over the target embedding → softmax.

    The initial decoder state is s_0 = tanh(V v), where v concatenates the last output of each encoder direction. With
    attention, the decoder is an `Attend`.

    Args:
        section: a recipe's `model`.
        source, target: the number of symbols of each vocabulary.
        find: finds the user's own cells.
        label_smoothing: ε of the head (Szegedy 2016).
        tags: number of further source symbols, which have an embedding of their own and are never written, such as the
            target languages of a multilingual model (Johnson 2017); they are `source`, `source` + 1, …

    Raises:
        ValueError: `tied: all` with vocabularies of different sizes.
        ConfigError: options of the softmax that do not fit the vocabulary.
    """

    def __init__(
        self,
        section: EncoderDecoderSection,
        source: int,
        target: int,
        find: Find = no_code,
        label_smoothing: float = 0.0,
        tags: int = 0,
    ):
        super().__init__()
        if section.tied == "all" and source != target:
            raise ValueError(f"EncoderDecoder: tied='all' needs one vocabulary, but there are {source} and {target}")
        size, p = section.embedding_size, section.embedding_dropout
        sparse = section.sparse_embedding(section.tied != "none")
        self.target_embedding = EmbeddingDropout(target, size, p, sparse=sparse)
        shared = section.tied == "all"
        self.source_embedding = (
            self.target_embedding if shared else EmbeddingDropout(source, size, p, sparse=section.sparse)
        )
        for embedding in (self.target_embedding, *([] if shared else [self.source_embedding])):
            nn.init.uniform_(embedding.weight, -0.1, 0.1)  # a softmax over N(0, 1) rows would start far from uniform
        self.tag_embedding = nn.Embedding(tags, size) if tags else None
        self.encoder = _encoder(section, find)
        self.input_dropout = _dropout(section, size)
        self.decoder = _decoder(section, self.encoder.output_size, find)
        self.dropout = nn.Dropout(section.dropout)
        tied = None if section.tied == "none" else self.target_embedding.weight
        try:
            self.head = make_softmax(section, self.decoder.output_size, target, tied, label_smoothing)
        except ValueError as error:
            raise ConfigError(f"model.softmax: {error}") from error
        initialise(section, self)

    def start(self, source: Tensor, lengths: Tensor) -> State:
        """The decoder's state before its first step, for source tokens (B, S) and their lengths (B,)."""
        memory = self.dropout(self.encoded(source, lengths))
        vector = self._summary(memory, lengths)
        decoder = self.decoder
        if isinstance(decoder, Attend):
            assert isinstance(decoder.cell, Conditioned)
            return decoder.start(memory, lengths, decoder.cell.start(vector))
        assert isinstance(decoder, Conditioned)
        return decoder.start(vector)

    def encoded(self, source: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's outputs for source tokens (B, S), (B, S, features), zero beyond each length."""
        memory, _ = self.encoder(self.read(source), lengths=lengths)
        return memory  # type: ignore[no-any-return]

    def read(self, source: Tensor) -> Tensor:
        """The features of source tokens, (…, features), as the encoder reads them; tags have their own embedding."""
        if self.tag_embedding is None:
            return self.source_embedding(source)  # type: ignore[no-any-return]
        symbols = self.source_embedding.num_embeddings
        tags = self.tag_embedding((source - symbols).clamp_min(0))
        return torch.where((source >= symbols)[..., None], tags, self.source_embedding(source.clamp_max(symbols - 1)))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.target_embedding.weight.device

    def log_p(self, batch: PairBatch) -> Tensor:
        """log p of each target token given the source and the true tokens before it, (B, T) in nats."""
        return self.head.predict(self(batch)).gather(-1, batch.targets[..., None])[..., 0]

    def _summary(self, memory: Tensor, lengths: Tensor) -> Tensor:
        """The last encoder output of each direction, (B, features)."""
        last = memory[torch.arange(memory.shape[0], device=memory.device), (lengths - 1).clamp_min(0)]
        top = self.encoder.sublayers()[-1]
        if not isinstance(top, Bidirectional):
            return last
        ahead = top.forward_cell.output_size
        return torch.cat([last[:, :ahead], memory[:, 0, ahead:]], -1)

    def forward(self, batch: PairBatch) -> Tensor:
        """The decoder outputs of a batch with teacher forcing, (B, T, features), which the head reads."""
        state = self.start(batch.source, batch.source_lengths)
        xs, _ = self.input_dropout(self.target_embedding(batch.inputs), lengths=batch.lengths)
        ys, _ = self.decoder(xs, state, lengths=batch.lengths)
        return self.dropout(ys)  # type: ignore[no-any-return]

    def losses(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """The training loss and −log p(target | source) of each pair, (B,) each, in nats."""
        return self.head.objective(self(batch), batch.targets, batch.lengths)

    def step(self, tokens: Tensor, state: Decoding) -> tuple[Tensor, Decoding]:
        """Tokens (rows,) to log p of the next tokens, (rows, V) in nats, and the new state: a `StepFn`."""
        y, state = self._output(tokens, state)
        return self.head.predict(y), state

    def _output(self, tokens: Tensor, state: Decoding) -> tuple[Tensor, Decoding]:
        """What the head reads after tokens (rows,), and the new state."""
        x = self.target_embedding(tokens)
        if isinstance(self.decoder, Attend):
            y, cells, weights = self.decoder.step_with_weights(x, state.cells)
        else:
            (y, cells), weights = self.decoder.step(x, state.cells), state.weights
        return y, Decoding(cells, weights)

    def search(self, source: Tensor, lengths: Tensor, begin: int, end: int, never: tuple[int, ...] = ()) -> Decoder:
        """The `Decoder` that a search needs for source tokens (B, S). The model must be in eval mode.

        Args:
            source: (B, S) source tokens.
            lengths: (B,) their lengths.
            begin, end: the tokens that begin and end a target.
            never: tokens that the search must not write.
        """
        attends = isinstance(self.decoder, Attend)
        places = source.shape[1] if attends else 0
        state = Decoding(self.start(source, lengths), self.target_embedding.weight.new_zeros(len(source), places))
        packed, predict = PackedLinears(self.decoder), self.head.prepared()

        def step(tokens: Tensor, state: Decoding) -> tuple[Tensor, Decoding]:
            with packed:
                y, state = self._output(tokens, state)
            return predict(y), state

        return Decoder(
            step=step,
            state=state,
            prompt=torch.tensor([begin], device=source.device),
            end=end,
            begins=1,
            never=never,
            attention=(lambda state: state.weights) if attends else None,
            source_lengths=lengths,
            fresh=True,
        )

    def weights(self, batch: PairBatch) -> Tensor | None:
        """The attention weights of each decoder step over the source positions, (B, T, S); None without attention."""
        if not isinstance(self.decoder, Attend):
            return None
        state = self.start(batch.source, batch.source_lengths)
        return self.decoder.weights(self.target_embedding(batch.inputs), state, batch.lengths)


def _encoder(section: EncoderDecoderSection, find: Find) -> Layer:
    layers = section.encoder_layers or section.layers
    own = section.model_copy(update={"hidden_size": section.encoder_units, "layers": layers})
    if section.bidirectional:
        return encoder_of(own, section.embedding_size, find)
    return stack_of(own, section.embedding_size, find, dropped_last=False)


def _decoder(section: EncoderDecoderSection, memory: int, find: Find) -> Cell:
    """The decoder. `EncoderDecoder` applies dropout to its input and its last output."""
    read = section.embedding_size
    attends, before = section.context == "attention", section.query == "before"
    own = section.model_copy(update={"input_dropout": 0.0})
    read += memory if section.context == "every-step" or (attends and before) else 0
    if attends and section.input_feeding:
        with torch.random.fork_rng(devices=[]):  # the output's size is known only from a cell
            read += stack_of(own, read, find, dropped_last=False).output_size
    cells = stack_of(own, read, find, dropped_last=False)
    if not attends:
        return Conditioned(cells, memory, "start" if section.context == "initial" else "both")
    asks = _first_leaf(cells) if before else cells.output_size
    attention = make_attention(section.attention, asks, memory, section.attention_size, section.heads, section.reach)
    bridge = Conditioned(cells, memory, "start")
    return Attend(bridge, attention, section.query, output="mixed", input_feeding=section.input_feeding)


def _first_leaf(cells: Cell) -> int:
    """The features of the query before a step; `Attend` refuses cells without a leaf."""
    found = leaves(cells.initial_state(1, torch.zeros(1)))
    return found[0][1].shape[-1] if found else cells.output_size


def _dropout(section: EncoderDecoderSection, size: int) -> Cell:
    p = section.input_dropout
    return VariationalDropout(Identity(size), p) if section.variational else Dropout(size, p)
