"""Tree-LSTM over whole batches of trees beside the loop over nodes that people write: how many times as fast.

    python benchmarks/tree.py [--json FILE] [--rounds N]

The first 25 trees of the Stanford Sentiment Treebank, E 300, H 150, five classes at every node, loss on all nodes,
forward and backward, one thread, in turns, by the process's own time: `everstep.Tree`, also with products in bfloat16;
node by node in plain PyTorch, with the head and the loss at each node, as such loops are written, and with those of all
nodes at once; and level by level in plain PyTorch, by height, with `torch.cat`. The words' vectors are given, with a
gradient. All have the same weights, and in float32 the same loss and gradients. The trees are
${EVERSTEP_DATA}/sst/train.txt.gz.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from timing import alternately, summary
from torch import Tensor, nn
from torch.nn import functional as F

import everstep as es
from everstep.cli.common import prepare as tune_malloc
from everstep.data import LabelledTree, read_trees
from everstep.native.processor import name as cpu_name

E, H, CLASSES, TREES = 300, 150, 5, 25


class Plain(nn.Module):
    """The constituency Tree-LSTM as two linear maps."""

    def __init__(self, cell: es.NaryTreeLSTM):
        super().__init__()
        self.leaf, self.inner = nn.Linear(E, 3 * H), nn.Linear(2 * H, 5 * H)
        i, f, g, o = cell.bias.detach().chunk(4)
        w_i, _, w_g, w_o = cell.weight_ih.detach().chunk(4)
        with torch.no_grad():
            self.leaf.weight.copy_(torch.cat([w_i, w_g, w_o]))
            self.leaf.bias.copy_(torch.cat([i, g, o]))
            self.inner.weight.copy_(cell.weight_hh)
            self.inner.bias.copy_(torch.cat([i, f, f, g, o]))

    def of_leaf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of words (n, E), h and c."""
        i, g, o = self.leaf(x).chunk(3, 1)
        c = torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def of_inner(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Of both children side by side, (n, 2 H) each."""
        i, f, g, o = self.inner(h).split([H, 2 * H, H, H], 1)
        left, right = (torch.sigmoid(f) * c).chunk(2, 1)
        c = torch.sigmoid(i) * torch.tanh(g) + left + right
        return torch.sigmoid(o) * torch.tanh(c), c


class Batch:
    """Some trees, and what each way needs of them, prepared beforehand."""

    def __init__(self, trees: list[LabelledTree]):
        self.trees = trees
        self.forest = es.Forest.of(trees)
        self.words = torch.randn(self.forest.inputs, E, requires_grad=True)
        self.labels = torch.tensor([int(label) for tree in trees for label in tree.labels])
        heights: list[int] = []
        below: list[list[int]] = []
        for tree in trees:
            start = len(heights)
            for children in tree.children:
                below.append([start + child for child in children])
                heights.append(max((heights[child] for child in below[-1]), default=-1) + 1)
        order = torch.tensor(heights).argsort(stable=True)
        place = order.argsort()
        sizes = torch.tensor(heights).bincount().tolist()
        self.pairs = torch.stack([place[below[node]] for node in order[sizes[0] :]]).split(sizes[1:])
        self.labels_by_height = self.labels[order]  # leaves stay in their order, so that words do


class Ways:
    """Forward and backward of a batch, the same in every way; each returns the loss."""

    def __init__(self) -> None:
        self.tree, self.head = es.Tree(es.NaryTreeLSTM(E, H)), nn.Linear(H, CLASSES)
        self.plain = Plain(self.tree.cell)

    def everstep(self, batch: Batch) -> Tensor:
        """All nodes of a level at once."""
        ys, _ = self.tree(batch.words, batch.forest)
        return self.learned(ys, batch.labels)

    def everstep_short(self, batch: Batch) -> Tensor:
        """The same, products in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            ys, _ = self.tree(batch.words, batch.forest)
        return self.learned(ys, batch.labels)

    def node_by_node(self, batch: Batch) -> Tensor:
        """Each node by itself, with its head and loss."""
        labels = iter(batch.labels.split(1))
        losses = [F.cross_entropy(self.head(h), next(labels)) for h in self.outputs(batch)]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.detach()

    def node_by_node_one_head(self, batch: Batch) -> Tensor:
        """Each node by itself; the head and the loss of all nodes together."""
        return self.learned(torch.cat(self.outputs(batch)), batch.labels)

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Of each node by itself."""
        words = iter(batch.words.split(1))
        outputs = []
        for tree in batch.trees:
            states: list[tuple[Tensor, Tensor]] = []
            for children in tree.children:
                if children:
                    (h1, c1), (h2, c2) = (states[child] for child in children)
                    states.append(self.plain.of_inner(torch.cat([h1, h2], 1), torch.cat([c1, c2], 1)))
                else:
                    states.append(self.plain.of_leaf(next(words)))
            outputs += [h for h, _ in states]
        return outputs

    def by_height(self, batch: Batch) -> Tensor:
        """Level by level, what was computed so far put together anew."""
        h, c = self.plain.of_leaf(batch.words)
        for pairs in batch.pairs:
            new_h, new_c = self.plain.of_inner(h[pairs].flatten(1), c[pairs].flatten(1))
            h, c = torch.cat([h, new_h]), torch.cat([c, new_c])
        return self.learned(h, batch.labels_by_height)

    def learned(self, ys: Tensor, labels: Tensor) -> Tensor:
        """Loss and gradients."""
        loss = F.cross_entropy(self.head(ys), labels, reduction="sum")
        loss.backward()
        return loss.detach()

    def forget(self, batch: Batch) -> None:
        """No gradients."""
        for parameter in (batch.words, *self.tree.parameters(), *self.head.parameters(), *self.plain.parameters()):
            parameter.grad = None


SHORT = "everstep, products in bfloat16"
NAMES = {
    "everstep": Ways.everstep,
    SHORT: Ways.everstep_short,
    "node by node": Ways.node_by_node,
    "node by node, one head and loss for all": Ways.node_by_node_one_head,
    "by height, plain": Ways.by_height,
}


def agreement(ways: Ways, batch: Batch) -> float:
    """The largest difference of losses and of the gradients of words, relative to the largest gradient."""
    found = []
    for name, way in NAMES.items():
        if name == SHORT:
            continue
        ways.forget(batch)
        loss = way(ways, batch)
        found.append((loss, batch.words.grad))
    (loss, grad), *others = found
    worst = max(float((other - grad).abs().max() / grad.abs().max()) for _, other in others)
    return max(worst, *(abs(float((other - loss) / loss)) for other, _ in others))


def measured(rounds: int) -> dict[str, Any]:
    """Times of each way over one batch."""
    path = Path(os.environ.get("EVERSTEP_DATA", "../shared/data")) / "sst" / "train.txt.gz"
    trees = read_trees([path])
    torch.manual_seed(0)
    ways = Ways()
    batch = Batch(trees[:TREES])

    def run(way: Callable[[Ways, Batch], Tensor]) -> Callable[[], None]:
        def once() -> None:
            ways.forget(batch)
            way(ways, batch)

        return once

    seconds = alternately({name: run(way) for name, way in NAMES.items()}, rounds, clock=process_time)
    return {
        "trees": TREES,
        "nodes": batch.forest.nodes,
        "agreement": agreement(ways, batch),
        "ways": {
            name: {
                **summary(values),
                "times_as_long": statistics.median(a / b for a, b in zip(values, seconds["everstep"], strict=True)),
                "times_as_long_at_best": min(values) / min(seconds["everstep"]),
            }
            for name, values in seconds.items()
        },
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    tune_malloc()  # for all: they share the process
    torch.set_num_threads(1)
    versions = {"cpu": cpu_name(), "threads": 1, "torch": torch.__version__}
    result = {**versions, "load": os.getloadavg()[0], **measured(options.rounds)}
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
