"""JoeyNMT's and Eole's recurrent translators as far as a benchmark needs them, from a folder of their packages.

    pip install --no-deps --target FOLDER joeynmt==2.3.0 eole==0.6.4

Their own encoders, decoders, attentions, losses and searches run; the packages around them (data loaders, plots,
logging) are not needed, so what these import is left out.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everstep.data.pair_batches import PairBatch, TokenSequences

NEEDLESS = {
    "importlib_metadata": {},
    "torch.utils.tensorboard": {"SummaryWriter": object},
    "joeynmt.plotting": {"plot_heatmap": None},
    "joeynmt.vocabulary": {"Vocabulary": object},
}
"""What the rivals import, but the parts that run here never call."""


def find_rivals(folder: Path) -> None:
    """Make the packages in a folder importable, without what is needless and without what else Eole would load."""
    sys.path.append(str(folder))
    for name, values in NEEDLESS.items():
        sys.modules[name] = _module(name, values)
    for name in ("encoders", "decoders", "modules"):
        sys.modules[f"eole.{name}"] = _module(f"eole.{name}", {"__path__": [str(folder / "eole" / name)]})


def _module(name: str, values: dict[str, Any]) -> ModuleType:
    found = ModuleType(name)
    found.__dict__.update(values)
    return found


def _class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


class Joey(nn.Module):
    """JoeyNMT 2.3's recurrent model: words, a bidirectional LSTM of 2 × 256, a decoder of 512, Luong's attention.

    Args:
        source, target: symbols of each vocabulary; the next one is padding.
        end: begins and ends a target.
        feeding: input feeding.
    """

    def __init__(self, source: int, target: int, end: int, feeding: bool):
        super().__init__()
        embeddings = _class("joeynmt.embeddings", "Embeddings")
        encoder = _class("joeynmt.encoders", "RecurrentEncoder")(
            rnn_type="lstm", hidden_size=256, emb_size=256, num_layers=1, dropout=0.3, emb_dropout=0.3
        )
        decoder = _class("joeynmt.decoders", "RecurrentDecoder")(
            rnn_type="lstm", emb_size=256, hidden_size=512, encoder=encoder, attention="luong", num_layers=1,
            vocab_size=target + 1, dropout=0.3, emb_dropout=0.3, hidden_dropout=0.3, input_feeding=feeding,
        )  # fmt: skip
        symbols = {"bos_index": end, "eos_index": end, "sep_index": None, "unk_index": 1}
        vocabulary = SimpleNamespace(pad_index=target, specials=[], lang_tags=[], **symbols)
        self.pads = source, target
        self.model = _class("joeynmt.model", "Model")(
            encoder,
            decoder,
            embeddings(256, vocab_size=source + 1, padding_idx=source),
            embeddings(256, vocab_size=target + 1, padding_idx=target),
            SimpleNamespace(pad_index=source),
            vocabulary,
        )
        self.model.loss_function = "crossentropy", 0.0

    def loss(self, batch: PairBatch) -> Tensor:
        """The sum over a batch of −log p of each target token; it also counts right tokens, as in training there."""
        order = batch.source_lengths.argsort(descending=True)
        lengths = batch.source_lengths[order]
        source, mask = padded(batch.source[order], lengths, self.pads[0])
        targets, real = padded(batch.targets[order], batch.lengths[order], self.pads[1])
        inputs, _ = padded(batch.inputs[order], batch.lengths[order], self.pads[1])
        found: Tensor = self.model(
            return_type="loss", src=source, src_length=lengths, src_mask=mask[:, None], trg_input=inputs, trg=targets,
            trg_mask=real[:, None],
        )[0]  # fmt: skip
        return found

    @torch.no_grad()
    def searched(self, source: Tensor, lengths: Tensor, width: int, steps: int) -> None:
        """Write `steps` tokens for each source: greedily, or with a beam."""
        search = importlib.import_module("joeynmt.search")
        order = lengths.argsort(descending=True)
        tokens, mask = padded(source[order], lengths[order], self.pads[0])
        memory, last, *_ = self.model(
            return_type="encode", src=tokens, src_length=lengths[order], src_mask=mask[:, None]
        )
        given = {"src_mask": mask[:, None], "max_output_length": steps, "min_output_length": steps, "model": self.model}
        if width == 1:
            search.recurrent_greedy(encoder_output=memory, encoder_hidden=last, **given)
        else:
            search.beam_search(beam_size=width, encoder_output=memory, encoder_hidden=last, alpha=1.0, **given)


class Eole(nn.Module):
    """Eole 0.6.4's recurrent model of the same sizes; its encoder also reads padding.

    Args:
        source, target, feeding: see `Joey`.
    """

    def __init__(self, source: int, target: int, end: int, feeding: bool):
        super().__init__()
        del end
        sizes = {"rnn_type": "LSTM", "hidden_size": 512, "layers": 1}
        running = SimpleNamespace(dropout=[0.3])
        self.pads = source, target
        self.embeddings = nn.ModuleList(nn.Embedding(size + 1, 256, padding_idx=size) for size in self.pads)
        self.encoder = _class("eole.encoders.rnn_encoder", "RNNEncoder")(
            SimpleNamespace(**sizes, encoder_type="brnn", src_word_vec_size=256, bridge=False), running
        )
        name = "InputFeedRNNDecoder" if feeding else "StdRNNDecoder"
        attention = {"global_attention": "general", "global_attention_function": "softmax", "coverage_attn": False}
        self.decoder = _class("eole.decoders.rnn_decoder", name)(
            SimpleNamespace(**sizes, **attention, bidirectional_encoder=True, tgt_word_vec_size=256, context_gate=None),
            running,
        )
        self.dropout = nn.Dropout(0.3)
        self.generator = nn.Linear(512, target + 1)
        self.criterion = nn.CrossEntropyLoss(ignore_index=target, reduction="sum")

    def loss(self, batch: PairBatch) -> Tensor:
        """The sum over a batch of −log p of each target token; it also takes the likeliest, as in training there."""
        source, mask = padded(batch.source, batch.source_lengths, self.pads[0])
        inputs, _ = padded(batch.inputs, batch.lengths, self.pads[1])
        targets, _ = padded(batch.targets, batch.lengths, self.pads[1])
        memory, last = self.encoder(self.dropout(self.embeddings[0](source)), pad_mask=~mask[:, None])
        self.decoder.init_state(enc_final_hs=last)
        ys, _ = self.decoder(
            self.dropout(self.embeddings[1](inputs)), memory, src_pad_mask=self._unread(mask, inputs.shape[1])
        )
        scores = self.generator(ys).flatten(0, 1)
        found: Tensor = self.criterion(scores.float(), targets.flatten())
        scores.max(1)
        return found

    def _unread(self, mask: Tensor, steps: int) -> Tensor:
        """The padding of the source for the attention of all steps at once, or of one after another."""
        rows = mask.shape[0]
        at_once = steps if type(self.decoder).__name__ == "StdRNNDecoder" else 1
        return (~mask)[:, None].expand(rows, at_once, mask.shape[1])


def padded(tokens: Tensor, lengths: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) with `pad` beyond each length, and which ones are real."""
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens.masked_fill(~real, pad), real


def in_given_order(source: TokenSequences, target: TokenSequences, size: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows of batches of sentences in random order, without regard to their lengths, as JoeyNMT's loader draws them."""
    del target
    order = np.random.default_rng(seed).permutation(len(source.lengths))
    return [order[start : start + size] for start in range(0, len(order), size)]
