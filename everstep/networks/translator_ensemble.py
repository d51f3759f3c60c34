"""Several translation models that write one translation together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from everstep.data.pair_batches import PairBatch
from everstep.decode.decoder import Decoder
from everstep.decode.ensemble import ensemble
from everstep.networks.encoder_decoder import EncoderDecoder


class TranslatorEnsemble(nn.Module):
    """p(token | source, tokens before) = (1/M) Σ_m p_m(token | source, tokens before), for M models.

    The models read and write the same vocabularies. Attention is the mean over the models, if all have it.

    Args:
        models: M ≥ 1 models.
    """

    def __init__(self, models: Sequence[EncoderDecoder]):
        super().__init__()
        self.models = nn.ModuleList(models)
        self._models = tuple(models)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._models[0].device

    def search(self, source: Tensor, lengths: Tensor, begin: int, end: int, never: tuple[int, ...] = ()) -> Decoder:
        """The `Decoder` of all models together; as `EncoderDecoder.search`."""
        return ensemble([model.search(source, lengths, begin, end, never) for model in self._models])

    def log_p(self, batch: PairBatch) -> Tensor:
        """log p of each target token given the source and the true tokens before it, (B, T) in nats."""
        each = torch.stack([model.log_p(batch) for model in self._models])
        return each.logsumexp(0) - math.log(len(self._models))

    def losses(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """−log p(target | source) of each pair, (B,) in nats, twice: an ensemble is scored, not trained."""
        valid = torch.arange(batch.targets.shape[1], device=batch.lengths.device) < batch.lengths[:, None]
        nats = -(self.log_p(batch) * valid).sum(-1)
        return nats, nats
