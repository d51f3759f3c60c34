"""p(class | tree) of every node: an embedding, a network over the tree, a softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from everstep.data.tree_batches import NONE, TreeBatch, TreeBatches
from everstep.errors import ConfigError, DataError
from everstep.heads import Categorical
from everstep.learn.objective import Loss
from everstep.networks.answers import Array, OneOf
from everstep.networks.cells_by_name import CellChoice, Find, make_cell, no_code
from everstep.networks.compositions_by_name import CompositionChoice, make_composition
from everstep.networks.word_reader import some_unknown
from everstep.sections import NonNegative, Probability, Section, Size
from everstep.trees import Composition
from everstep.trees.forest import Forest
from everstep.wirings import EmbeddingDropout, ShiftReduce, Tree

UNKNOWN = 0
"""The id of unknown words."""


class TreeNetworkSection(Section):
    """The network: embedding, composition, a softmax over classes."""

    cell: CompositionChoice = "NaryTreeLSTM"
    """an exported composition, {type: NAME, option: value}, a cell (over summed children), or FILE.py:NAME"""
    tracker: CellChoice | None = None
    """a cell that reads the stack while trees are built by shift and reduce, and feeds every inner node (SPINN);
    several times slower than null, which has no tracker and computes whole levels at once"""
    tracker_size: Size = 64
    """units of the tracker"""
    parses: bool = False
    """also learn to build the trees, of two children at each inner node, so that plain sentences can be predicted;
    with a tracker alone"""
    embedding_size: Size = 300
    """features of each word; set by the cell for MVRNN"""
    hidden_size: Size = 150
    """units of each node"""
    embedding_dropout: Probability = 0.0
    """dropout of whole words, at all their positions at once"""
    input_dropout: Probability = 0.0
    """dropout on the word vectors"""
    dropout: Probability = 0.0
    """dropout on the inputs of the softmax"""
    unknown_rate: NonNegative = 0.0
    """r: in training a word that occurs n times is read as unknown with probability r / (r + n)"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """`parses` without a tracker."""
        if self.parses and self.tracker is None:
            yield "parses", "expected a tracker beside it, which says where to reduce, such as model.tracker=LSTM"

    def composition(self, find: Find) -> Composition:
        """The composition that `cell` names.

        Raises:
            ConfigError: it cannot be created.
        """
        return make_composition(self.cell, self.embedding_size, self.hidden_size, find)

    def network(self, find: Find) -> Tree | ShiftReduce:
        """The composition over trees, with the tracker if there is one.

        Raises:
            ConfigError: one of them cannot be made, or they do not go together.
        """
        composition = self.composition(find)
        if self.tracker is None:
            return Tree(composition)
        try:
            tracker = make_cell(self.tracker, 3 * composition.output_size, self.tracker_size, find)
        except ConfigError as error:
            raise ConfigError(str(error).replace("model.cell", "model.tracker", 1)) from None
        try:
            made = ShiftReduce(composition, tracker, parses=self.parses)
        except ValueError as error:
            raise ConfigError(f"model.tracker: {error}") from None
        if self.parses and (told := composition.refuses(2, 2, inner_fed=False)):
            raise ConfigError(f"model.parses: expected a composition of two children: {self.cell} {told}")
        return made


class TreeLossSection(Section):
    """The objective: −log p of the classes of nodes."""

    nodes: Literal["all", "roots"] = "all"
    """the labelled nodes to learn from"""
    label_smoothing: Probability = 0.0
    """share of the target's probability that is spread over all classes"""


class TreeClassifier(nn.Module):
    """Words → embedding → composition → softmax, at every node.

    Args:
        counts: (V,), the count of each word in training.
        answers: the classes.
        section: the `model` section of a recipe.
        find: finds compositions in the user's files.
    """

    counts: Tensor

    def __init__(self, counts: list[int], answers: OneOf, section: TreeNetworkSection, find: Find = no_code):
        super().__init__()
        self.answers, self.unknown_rate = answers, section.unknown_rate
        self.tree = section.network(find)
        self.embedding = EmbeddingDropout(len(counts), self.tree.input_size, section.embedding_dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer("counts", torch.tensor(counts, dtype=torch.float32), persistent=False)
        self.input_dropout, self.dropout = nn.Dropout(section.input_dropout), nn.Dropout(section.dropout)
        self.head = Categorical(self.tree.output_size, len(answers.learned))

    @property
    def parses(self) -> bool:
        """Whether it can build trees of its own."""
        return isinstance(self.tree, ShiftReduce) and self.tree.reduces is not None

    def logits(self, words: Tensor, forest: Forest) -> tuple[Tensor, Tensor | None]:
        """The logits of all nodes, (N, classes), and −log p of the transitions of the trees, if it parses."""
        words = some_unknown(words, self.counts, self.unknown_rate if self.training else 0)
        xs, parsing = self.input_dropout(self.embedding(words)), None
        if isinstance(self.tree, ShiftReduce) and self.parses and self.training:
            ys, _, parsing = self.tree.with_parsing_loss(xs, forest)
        else:
            ys, _ = self.tree(xs, forest)
        return self.head.logits(self.dropout(ys)), parsing

    def forward(self, words: Tensor, forest: Forest) -> Tensor:
        """log p of each answer at each node, (N, answers)."""
        return self.answers.log_probs(self.head, self.logits(words, forest)[0])


def tree_losses(model: TreeClassifier, batch: TreeBatch) -> Iterator[Loss]:
    """One loss per batch: −log p of the class of each labelled node; in training also that of the transitions, if the
    model parses, which is not reported."""
    chosen = (batch.targets != NONE).nonzero()[:, 0]
    logits, parsing = model.logits(batch.words, batch.forest)
    total, reported = model.answers.losses(model.head, logits.index_select(0, chosen), batch.targets[chosen])
    yield Loss(total if parsing is None else total + parsing.sum() / max(1, len(total)), reported)


def measured_trees(
    model: TreeClassifier, batches: TreeBatches, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The measures on labelled roots, and on all labelled nodes.

    Raises:
        DataError: no root has a class.
    """
    roots: list[Array] = []
    right = count = 0
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        log_p, targets = node_log_probs(model, batch), batch.targets.numpy()
        has = targets != NONE
        right += int((log_p.argmax(1) == targets)[has].sum())
        count += int(has.sum())
        some = batch.forest.roots.numpy()
        some, places = some[has[some]], batch.places.numpy()[has[some]]
        roots.append(np.column_stack([places, model.answers.noted(log_p[some], targets[some])]))
        progress(index + 1, len(batches))
    noted = np.concatenate(roots)
    if not len(noted):
        raise DataError("expected trees with a class at their root; none has one")
    figures = model.answers.figures(noted[noted[:, 0].argsort()][:, 1:])  # so that sums do not depend on the batches
    return {**figures.report(model.answers.names), "node_accuracy": right / count, "nodes": count}


@torch.inference_mode()
def node_log_probs(model: TreeClassifier, batch: TreeBatch) -> Array:
    """log p of each answer at each node of a batch, (N, answers), float64."""
    model.eval()
    there = batch.to(model.embedding.weight.device)
    found: Array = model(there.words, there.forest).cpu().double().numpy()
    return found
