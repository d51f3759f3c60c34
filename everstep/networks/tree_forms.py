"""The form of a classifier of trees, and the classifier that another runtime computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from everstep.backends.dispatch import dispatch, taking
from everstep.backends.reference import run
from everstep.cell import Cell
from everstep.networks.answers import OneOf
from everstep.networks.forms import Exported, Form, Input, Named
from everstep.networks.stand_ins import Nowhere, Runtime
from everstep.networks.tree_classifier import TreeClassifier
from everstep.state import State, leaves, map_state, where
from everstep.trees import Children, Composition, Forest
from everstep.trees.forest import Level
from everstep.wirings import ShiftReduce, Tree

_NEAR = 1e-5
"""|a − b| ≤ this · (1 + |a|) of numbers that count as equal."""


@dataclass(frozen=True, eq=False)
class _Slots(Level):
    """q nodes with room for `each` children; where there is none, states are zeros."""

    each: int

    def sum(self, values: Tensor) -> Tensor:
        return values.view(self.inner, self.each, *values.shape[1:]).sum(1)

    def spread(self, values: Tensor) -> Tensor:
        return values[:, None].expand(-1, self.each, *values.shape[1:]).flatten(0, 1)

    def slots(self, values: Tensor, arity: int) -> Tensor:
        return values.view(self.inner, arity, *values.shape[1:])


class _Nodes(Cell):
    """One node of each tree at a time, children before parents: a composition over a memory of the states so far.

    A step reads the state that the node has as a leaf, its `inputs`, the places of its children in the memory, 0 for
    none, and its own place. Place 0 of the memory (batch, nodes + 1, …) stays zero.
    """

    def __init__(self, composition: Composition):
        super().__init__(composition.input_size, composition.output_size)
        self.composition = composition
        with torch.no_grad():
            self._like = (composition.leaf(torch.zeros(1, composition.input_size)),)

    def initial_state(self, batch: int, like: Tensor) -> State:
        return map_state(lambda leaf: like.new_zeros(batch, 0, *leaf.shape[1:]), self._like[0])

    def memory(self, batch: int, nodes: int, like: Tensor) -> State:
        """The memory before the first node."""
        return map_state(lambda leaf: like.new_zeros(batch, nodes + 1, *leaf.shape[1:]), self._like[0])

    def step(self, x: Any, state: State) -> tuple[Tensor, State]:
        leaf, terms, children, place = x
        rows, each = children.shape
        first = torch.arange(rows)[:, None] * leaves(state)[0][1].shape[1]
        places = (first + children).flatten()
        below = map_state(lambda memory: memory.flatten(0, 1).index_select(0, places), state)
        nothing = torch.zeros(0, dtype=torch.int64)
        level = _Slots(0, rows, None, nothing, nothing, nothing, each, nothing)
        inner = self.composition.combine(terms if self.composition.reads_inner else None, Children(below, level))
        new = where((children > 0).any(1), inner, leaf)

        def kept(memory: Tensor, one: Tensor) -> Tensor:
            here = torch.arange(memory.shape[1]) == place[:, None]
            return torch.where(here.view(*here.shape, *[1] * (one.dim() - 1)), one[:, None], memory)

        return leaves(new)[0][1], map_state(kept, state, new)


def tree_forms(model: TreeClassifier) -> Exported:
    """The form of a classifier of trees: of each node the word and the children to `log_p` of its answers, in nats.

    `words` (batch, nodes) are numbers + 1, 0 for a node without a word; `children` (batch, nodes, slots) the places + 1
    of each node's children, 0 for none, where children come before their parents; `lengths` (batch,) how many nodes.
    """
    whole = "it answers whole trees, and has no state between steps"
    if isinstance(model.tree, ShiftReduce):
        told = "model.tracker is not supported: it reads a stack while trees are built, for which there is no loop"
        return Exported(told, told)
    composition = model.tree.cell
    nodes = _Nodes(composition)

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        words, children = given["words"], given["children"]
        (rows, many), there = words.shape, (words > 0)[..., None]
        xs = torch.where(there, model.embedding((words - 1).clamp_min(0)), 0.0)
        flat = xs.flatten(0, 1)

        def apart(nest: State) -> State:
            return map_state(lambda part: part.view(rows, many, *part.shape[1:]), nest)

        terms = apart(composition.inputs(flat)) if composition.reads_inner else ()
        places = (torch.arange(many) + 1)[None].expand(rows, -1)
        read = (apart(composition.leaf(flat)), terms, children, places)
        ys, _ = dispatch(nodes, read, nodes.memory(rows, many, flat), given["lengths"], None, "auto")
        return {"log_p": model.answers.log_probs(model.head, model.head.logits(model.dropout(ys)))}, state

    slots: int | str = "slots" if composition.arity is None else composition.arity
    inputs = {
        "words": Input(("batch", "nodes"), model.embedding.num_embeddings + 1),
        "children": Input(("batch", "nodes", slots), "nodes"),
        "lengths": Input(("batch",), upto="nodes"),
    }
    form = Form(model, sequence, inputs)
    return Exported(whole, _problem(model, form) or form)


class _Branches(NamedTuple):
    """A tree: of each node its children, and its word."""

    children: Sequence[Sequence[int]]
    words: Sequence[str | None]


@torch.no_grad()
def _problem(model: TreeClassifier, form: Form) -> str | None:
    """What is wrong with running the composition with room for the same number of children at each node, or None."""
    cell, few = model.tree.cell, max(1, model.tree.cell.fewest)
    most = max(few, 3) if cell.arity is None else cell.arity
    fed = "x" if cell.reads_inner else None
    low, high = list(range(few)), list(range(most))
    trees = [
        _Branches([[] for _ in high] + [high], ["x"] * most + [fed]),
        _Branches([[] for _ in low] + [low], ["x"] * few + [None]),
        _Branches([[]], ["x"]),
    ]
    forest = Forest.of(trees)
    words = torch.arange(forest.inputs) % model.embedding.num_embeddings
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with taking(run):
            want = model(words, forest)
            table, at = laid_out(words, forest, cell.arity)
            got = form.run(table, ())[0]["log_p"][at.tree, at.place]
    finally:
        for module in training:
            module.training = True
    if bool(((want - got).abs() <= _NEAR * (1 + want.abs())).all()):
        return None
    name = type(cell).__name__
    return f"{name} depends on the number of children, or on their places, otherwise than by sums and slots"


class NodePlaces(NamedTuple):
    """Where each node is in tables of trees.

    Attributes:
        tree, place: (N,) the tree of each node, and its place there.
    """

    tree: Tensor
    place: Tensor


def laid_out(words: Tensor, forest: Forest, arity: int | None) -> tuple[Named, NodePlaces]:
    """Trees as tables, a row each, with children before parents, for a runtime that has no levels.

    Args:
        words: (M,), of the nodes that have one.
        forest: the trees.
        arity: the room for children; None: that of the node with most.

    Returns:
        `words`, `children` and `lengths`, as `tree_forms` reads them, and where each node is.

    >>> from everstep.data import parse_tree
    >>> forest = Forest.of([parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))")])
    >>> found, at = laid_out(torch.tensor([7, 8, 9]), forest, 2)
    >>> found["words"].tolist(), found["children"][0].tolist()
    ([[9, 10, 8, 0, 0]], [[0, 0], [0, 0], [0, 0], [1, 2], [3, 4]])
    """
    sizes = [level.nodes for level in forest.levels]
    tree = depth = torch.zeros(0, dtype=torch.int64)
    parents, child_slots, start = [], [], 0
    last = torch.arange(forest.trees)
    for number, level in enumerate(forest.levels):
        tree = torch.cat([tree, last])
        depth = torch.cat([depth, torch.full((level.nodes,), number)])
        parents.append(start + level.inner_rows[level.parents])
        child_slots.append(level.places)
        last, start = last[level.inner_rows[level.parents]], start + level.nodes
    order = (tree * len(sizes) + len(sizes) - 1 - depth).argsort(stable=True)
    many = torch.bincount(tree, minlength=forest.trees)
    place = torch.empty_like(tree)
    place[order] = torch.arange(len(tree)) - (many.cumsum(0) - many)[tree[order]]
    ids = torch.cat([words + 1, words.new_zeros(1)])
    inner = torch.ones(len(tree), dtype=torch.bool)
    inner[forest.leaf_rows] = False
    of_node = torch.zeros_like(tree)
    of_node[forest.leaf_rows], of_node[inner] = ids[forest.leaf_inputs], ids[forest.inner_inputs]
    room = max(1, forest.most_children) if arity is None else arity
    found = {"words": tree.new_zeros(forest.trees, int(many.max())), "lengths": many}
    found["words"][tree, place] = of_node
    found["children"] = tree.new_zeros(*found["words"].shape, room)
    above, below = torch.cat(parents), torch.arange(forest.trees, len(tree))  # children lie as the next level
    found["children"][tree[above], place[above], torch.cat(child_slots)] = place[below] + 1
    return found, NodePlaces(tree[forest.places], place[forest.places])


class TreeStandIn(TreeClassifier):
    """A `TreeClassifier` that another runtime computes.

    Args:
        answers: the classes.
        composition: what the trees have to fit.
        runtime: the runtime.
    """

    def __init__(self, answers: OneOf, composition: Composition, runtime: Runtime):
        nn.Module.__init__(self)
        self.answers, self._runtime = answers, runtime
        self.tree, self.embedding = Tree(composition), Nowhere()  # type: ignore[assignment]

    def forward(self, words: Tensor, forest: Forest) -> Tensor:
        """log p of each answer at each node, (N, answers)."""
        table, at = laid_out(words, forest, self.tree.cell.arity)
        return self._runtime.sequence(table, ())[0]["log_p"][at.tree, at.place]
