"""A step that reads a memory, beside the loop that people write: how many times as fast.

    python benchmarks/attend.py [--json FILE] [--rounds N] [--threads N]

A decoder over a batch of 64 rows, 25 steps, inputs and hidden state of 256, source of 25 places of 512 (both directions
of an encoder), forward and backward, with the gradient of the memory, in turns in one process: `everstep.Attend` on
`auto`, and a loop of `nn.LSTMCell` and the same attention in plain PyTorch, whose weights are the same and whose loss
and gradients are checked to be the same. Each is the median of the CPU time (`process_time`) of all rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import alternately, summary
from torch import Tensor, nn

import everstep as es
from everstep.cli.common import prepare as tune_malloc
from everstep.native.processor import name as cpu_name

B, T, S, E, H, M = 64, 25, 25, 256, 256, 512


class Loop(nn.Module):
    """A decoder as it is written in PyTorch, of the weights of an `Attend`."""

    def __init__(self, cell: es.Attend):
        super().__init__()
        self.source = cell
        self.cell = nn.LSTMCell(cell.cell.input_size, H)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.cell, name, getattr(cell.cell, name))

    def read(self, query: Tensor, values: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """The context of one query."""
        attention = self.source.attention
        if isinstance(attention, es.AdditiveAttention):
            scores = torch.tanh(keys + attention.query(query)[:, None]) @ attention.vector
        else:
            scores = torch.bmm(keys, query[:, :, None])[:, :, 0]
        weights = scores.masked_fill(mask == 0, -1e9).softmax(-1)
        return torch.bmm(weights[:, None], values)[:, 0]

    def forward(self, xs: Tensor, state: es.AttendState) -> Tensor:
        """All outputs."""
        (h, c), (values, keys, mask), *_ = state
        source, out, found = self.source, xs.new_zeros(len(xs), H), []
        for x in xs.unbind(1):
            if source.query == "before":
                context = self.read(h, values, keys, mask)
                h, c = self.cell(torch.cat([x, context], -1), (h, c))
                out = h
            else:
                fed = torch.cat([x, out], -1) if source.input_feeding else x
                h, c = self.cell(fed, (h, c))
                out = torch.tanh(source.mix(torch.cat([self.read(h, values, keys, mask), h], -1)))
            found.append(out)
        return torch.stack(found, 1)


KINDS: dict[str, Callable[[], es.Attend]] = {
    "Bahdanau (additive, before)": lambda: es.Attend(es.LSTM(E + M, H), es.AdditiveAttention(H, M)),
    "Luong with input feeding (general)": lambda: es.Attend(
        es.LSTM(E + H, H), es.GeneralAttention(H, M), "after", input_feeding=True
    ),
    "Luong without input feeding (general)": lambda: es.Attend(es.LSTM(E, H), es.GeneralAttention(H, M), "after"),
}


def measured(cell: es.Attend, rounds: int) -> dict[str, object]:
    """Both ways of one decoder."""
    loop = Loop(cell)
    xs, memory = torch.randn(B, T, E, requires_grad=True), torch.randn(B, S, M, requires_grad=True)
    lengths = torch.randint(S // 2, S + 1, (B,))
    wanted = [xs, memory, *cell.parameters()]

    def gradients(ys: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(ys.square().sum(), wanted)

    def compiled() -> tuple[Tensor, ...]:
        return gradients(cell(xs, cell.start(memory, lengths))[0])

    def plain() -> tuple[Tensor, ...]:
        return gradients(loop(xs, cell.start(memory, lengths)))

    for found, want in zip(compiled(), plain(), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    seconds = alternately({"everstep": compiled, "loop": plain}, rounds, clock=time.process_time)
    ratios = sorted(b / a for a, b in zip(seconds["everstep"], seconds["loop"], strict=True))
    return {
        "times_as_fast": ratios[len(ratios) // 2],
        "least": ratios[0],
        "most": ratios[-1],
        "backend": es.explain(cell, xs).backend or "in parts",
        **{name: summary(values) for name, values in seconds.items()},
    }


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    tune_malloc()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    sizes = {"batch": B, "steps": T, "places": S, "inputs": E, "hidden": H, "memory": M}
    found: dict[str, object] = {"cpu": cpu_name(), "torch": torch.__version__, "threads": given.threads, **sizes}
    for name, make in KINDS.items():
        found[name] = result = measured(make(), given.rounds)
        print(
            f"{name}: {result['times_as_fast']:.2f} times ({result['least']:.2f} to {result['most']:.2f}), "
            f"{result['backend']}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
