"""The forms of a translator, and the translator that another runtime computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.data.pair_batches import PairBatch
from everstep.decode.decoder import Decoder
from everstep.networks.encoder_decoder import Decoding, EncoderDecoder
from everstep.networks.forms import Exported, Form, Input, Named
from everstep.networks.stand_ins import Nowhere, Runtime
from everstep.state import State, valid
from everstep.wirings import Attend


def translator_forms(model: EncoderDecoder) -> Exported:
    """The form of a translator: one step of its decoder, over what its encoder makes of the source.

    Before the first step, `source` (batch, places) and `source_lengths` (batch,) become the state; then `tokens`
    (batch,) and the state become `log_p` (batch, V) of the next tokens, in nats, and, with attention, `weights` (batch,
    places) over the source.
    """
    tags = 0 if model.tag_embedding is None else model.tag_embedding.num_embeddings
    inputs = {
        "source": Input(("batch", "places"), model.source_embedding.num_embeddings + tags),
        "source_lengths": Input(("batch",), upto="places"),
    }
    attends = isinstance(model.decoder, Attend)

    def start(given: Named, state: State) -> tuple[Named, State]:
        return {}, model.start(given["source"], given["source_lengths"])

    def step(given: Named, state: State) -> tuple[Named, State]:
        log_p, (cells, weights) = model.step(given["tokens"], Decoding(state, given["tokens"]))
        return {"log_p": log_p, **({"weights": weights} if attends else {})}, cells

    tokens = {"tokens": Input(("batch",), model.target_embedding.num_embeddings)}
    before = Form(model, start, inputs)
    return Exported(Form(model, step, tokens, before=before), "a target is written step by step; use the step")


class TranslatorStandIn(EncoderDecoder):
    """An `EncoderDecoder` that another runtime computes.

    Args:
        runtime: the runtime.
    """

    def __init__(self, runtime: Runtime):
        nn.Module.__init__(self)
        self._runtime = runtime
        self.target_embedding = self.source_embedding = Nowhere()  # type: ignore[assignment]
        self._attends = "weights" in (runtime.described("step") or {"outputs": ()})["outputs"]

    def start(self, source: Tensor, lengths: Tensor) -> State:
        """The decoder's state before its first step, for source tokens (B, S) and their lengths (B,)."""
        return self._runtime.start({"source": source, "source_lengths": lengths})

    def step(self, tokens: Tensor, state: Decoding) -> tuple[Tensor, Decoding]:
        """Tokens (rows,) to log p of the next tokens, (rows, V) in nats, and the new state."""
        found, cells = self._runtime.step({"tokens": tokens}, state.cells)
        return found["log_p"], Decoding(cells, found.get("weights", state.weights))

    def search(self, source: Tensor, lengths: Tensor, begin: int, end: int, never: tuple[int, ...] = ()) -> Decoder:
        """The `Decoder` that a search needs for source tokens (B, S); see `EncoderDecoder.search`."""
        places = source.shape[1] if self._attends else 0
        return Decoder(
            step=self.step,
            state=Decoding(self.start(source, lengths), torch.zeros(len(source), places)),
            prompt=torch.tensor([begin]),
            end=end,
            begins=1,
            never=never,
            attention=(lambda state: state.weights) if self._attends else None,
            source_lengths=lengths,
        )

    def log_p(self, batch: PairBatch) -> Tensor:
        """log p of each target token given the source and the true tokens before it, (B, T) in nats."""
        state = Decoding(self.start(batch.source, batch.source_lengths), torch.zeros(batch.rows, 0))
        found = []
        for tokens, targets in zip(batch.inputs.unbind(1), batch.targets.unbind(1), strict=True):
            log_p, state = self.step(tokens, state)
            found.append(log_p.gather(1, targets[:, None]))
        return torch.cat(found, 1) if found else torch.zeros(batch.targets.shape)

    def losses(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """−log p(target | source) of each pair, (B,) in nats, twice: a stand-in is scored, not trained."""
        nats = -(self.log_p(batch) * valid(batch.lengths, batch.targets.shape[1])).sum(1)
        return nats, nats
