"""Trees as indices: a whole batch of them, cut into levels, so that one product serves all nodes of a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


class Branching(Protocol):
    """A tree: of each node the numbers of its children, in order; the nodes may be numbered in any order.

    Where it has `words`, the nodes whose word is not None have an input; else every node has one.
    """

    @property
    def children(self) -> Sequence[Sequence[int]]: ...


class _Moves:
    """A frozen dataclass whose tensors, and those of what it holds, move together."""

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return value.to(device) if isinstance(value, Tensor | _Moves) else value

        return replace(self, **{field.name: moved(getattr(self, field.name)) for field in fields(self)})  # type: ignore[type-var, arg-type]


@dataclass(frozen=True, eq=False)
class Level(_Moves):
    """All n nodes of one depth, those with the same parent side by side; the m nodes of the next level are the
    children of all of them.

    Attributes:
        leaves: how many have no children.
        inner: how many have some, q.
        order: (n,) int64, where each node is among the leaves followed by the inner nodes; None: as they are.
        inner_rows: (q,) int64, which of the n nodes the inner ones are.
        parents: (m,) int64, of each node of the next level its parent's number among the q inner nodes.
        places: (m,) int64, which child of its parent it is, from 0.
        each: the number of children, if all inner nodes have the same; None if not, or if there are none.
        above: (n,) int64, the number of each node's parent among all nodes of the level above; empty for roots.
    """

    leaves: int
    inner: int
    order: Tensor | None
    inner_rows: Tensor
    parents: Tensor
    places: Tensor
    each: int | None
    above: Tensor

    @property
    def nodes(self) -> int:
        """n."""
        return self.leaves + self.inner

    @property
    def below(self) -> int:
        """m."""
        return len(self.parents)

    def sum(self, values: Tensor) -> Tensor:
        """(m, …) to (q, …): the sum over the children of each inner node."""
        if self.each == 1:
            return values
        if self.each is not None:
            return added(values.view(self.inner, self.each, *values.shape[1:]))
        return values.new_zeros(self.inner, *values.shape[1:]).index_add(0, self.parents, values)

    def spread(self, values: Tensor) -> Tensor:
        """(q, …) to (m, …): of each child its parent's value; (1, …), the same for all, stays as it is."""
        return values if len(values) == 1 or self.each == 1 else values.index_select(0, self.parents)

    def slots(self, values: Tensor, arity: int) -> Tensor:
        """(m, …) to (q, arity, …): each inner node's first, second, … child; zeros where there is none."""
        if self.each != arity:
            rows = self.parents * arity + self.places
            values = values.new_zeros(self.inner * arity, *values.shape[1:]).index_copy(0, rows, values)
        return values.view(self.inner, arity, *values.shape[1:])

    def children_of(self, slots: Tensor) -> Tensor:
        """(q, arity, …) to (m, …): what `slots` made, without the empty places."""
        values, arity = slots.flatten(0, 1), slots.shape[1]
        return values if self.each == arity else values.index_select(0, self.parents * arity + self.places)


def added(values: Tensor) -> Tensor:
    """(n, k, …) to (n, …): the sum of all k."""
    return values[:, 0] + values[:, 1] if values.shape[1] == 2 else values.sum(1)  # a sum is slow for two


@dataclass(frozen=True, eq=False)
class Forest(_Moves):
    """A batch of trees. Nodes are numbered as their trees number them, tree after tree.

    A level holds the nodes of one depth, whichever tree they are of: the roots first, in the order of the trees, and
    below them the children of every node side by side. So the children of a level are the next level as it lies.

    Attributes:
        trees: how many.
        nodes: of all trees together, N.
        inputs: how many nodes have an input x, M.
        roots: (trees,) int64, the number of each tree's root.
        levels: from the roots down.
        by_level: (N,) int64, the nodes in the order of the levels.
        places: (N,) int64, the place of each node in that order.
        leaf_rows: (leaves,) int64, the places of the leaves in that order.
        inner_rows: (inner nodes,) int64, likewise.
        leaf_inputs: (leaves,) int64, in the order of the levels: which of the M inputs each leaf has; M if none.
        inner_inputs: (inner nodes,) int64, likewise.
        inner_fed: whether any inner node has an input.
        lacking: whether a node has no input where others of its kind, leaves or inner nodes, have one or are computed
            from it.
        fewest_children, most_children: of one inner node; 0 if there is none.
    """

    trees: int
    nodes: int
    inputs: int
    roots: Tensor
    levels: tuple[Level, ...]
    by_level: Tensor
    places: Tensor
    leaf_rows: Tensor
    inner_rows: Tensor
    leaf_inputs: Tensor
    inner_inputs: Tensor
    inner_fed: bool
    lacking: bool
    fewest_children: int
    most_children: int

    @property
    def inner(self) -> int:
        """How many nodes have children."""
        return len(self.inner_inputs)

    @classmethod
    def of(cls, trees: Sequence[Branching]) -> Forest:
        """The batch of some trees; cheap enough for a data worker, and it makes no tensor but indices.

        Raises:
            ValueError: no trees, a tree without nodes, with a child that is no node of it, a node with two parents, a
                circle, or several roots; names the tree (from 0) and the nodes.

        Example:
            >>> from everstep.data import parse_tree
            >>> forest = Forest.of([parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))"), parse_tree("(2 hm)")])
            >>> forest.trees, forest.nodes, forest.inputs, forest.roots.tolist(), len(forest.levels)
            (2, 6, 4, [4, 5], 3)
        """
        sizes = np.fromiter((len(tree.children) for tree in trees), np.int64, len(trees))
        counts, roots, levels, by_level = _ordered(trees, sizes)
        nodes = len(counts)
        has = np.fromiter(chain.from_iterable(map(_has_input, trees)), bool, nodes)
        inputs = np.where(has, np.cumsum(has) - 1, has.sum())[by_level]
        leaf = counts[by_level] == 0
        inner_fed = bool(has[counts > 0].any())
        lacking = not has[counts == 0].all() or (inner_fed and not has[counts > 0].all())
        places = np.empty(nodes, np.int64)
        places[by_level] = np.arange(nodes)
        return cls(
            trees=len(sizes),
            nodes=nodes,
            inputs=int(has.sum()),
            roots=torch.from_numpy(roots),
            levels=levels,
            by_level=torch.from_numpy(by_level),
            places=torch.from_numpy(places),
            leaf_rows=torch.from_numpy(np.flatnonzero(leaf)),
            inner_rows=torch.from_numpy(np.flatnonzero(~leaf)),
            leaf_inputs=torch.from_numpy(inputs[leaf]),
            inner_inputs=torch.from_numpy(inputs[~leaf]),
            inner_fed=inner_fed,
            lacking=lacking,
            fewest_children=int(counts[counts > 0].min(initial=counts.max())),
            most_children=int(counts.max()),
        )


def _has_input(tree: Branching) -> Sequence[bool]:
    words: Sequence[str | None] | None = getattr(tree, "words", None)
    return [True] * len(tree.children) if words is None else [word is not None for word in words]


def _levels(roots: Ints, counts: Ints, below: Ints) -> tuple[tuple[Level, ...], Ints]:
    """The levels, and the nodes in their order; what is on a circle is on no level."""
    starts = np.cumsum(counts) - counts
    level, above = roots, np.empty(0, np.int64)
    levels, nodes = [], []
    while len(level):
        many = counts[level]
        inner = np.flatnonzero(many)
        of_inner = many[inner]
        total = int(of_inner.sum())
        places = np.arange(total) - np.repeat(np.cumsum(of_inner) - of_inner, of_inner)
        leaves = len(level) - len(inner)
        order = None
        if leaves and len(inner):
            order = np.where(many > 0, leaves + np.cumsum(many > 0) - 1, np.cumsum(many == 0) - 1)
        parents = np.repeat(np.arange(len(inner)), of_inner)
        same = len(inner) > 0 and bool((of_inner == of_inner[0]).all())
        levels.append(
            Level(
                leaves=leaves,
                inner=len(inner),
                order=None if order is None else torch.from_numpy(order),
                inner_rows=torch.from_numpy(inner),
                parents=torch.from_numpy(parents),
                places=torch.from_numpy(places),
                each=int(of_inner[0]) if same else None,
                above=torch.from_numpy(above),
            )
        )
        nodes.append(level)
        above = inner[parents]
        level = below[np.repeat(starts[level[inner]], of_inner) + places]
    return tuple(levels), np.concatenate(nodes) if nodes else roots


def _ordered(trees: Sequence[Branching], sizes: Ints) -> tuple[Ints, Ints, tuple[Level, ...], Ints]:
    """Of trees with so many nodes each: the number of children of each node, the roots, the levels, nodes by level."""
    if not len(sizes) or not sizes.all():
        raise ValueError("Forest: expected trees of at least one node, got " + _none(sizes))
    starts = np.cumsum(sizes) - sizes
    nodes = int(sizes.sum())
    counts = np.fromiter((len(below) for tree in trees for below in tree.children), np.int64, nodes)
    below = np.fromiter(chain.from_iterable(chain.from_iterable(tree.children for tree in trees)), np.int64)
    first, size = (np.repeat(np.repeat(values, sizes), counts) for values in (starts, sizes))
    _check_children(below, first, size, counts, starts)
    below = below + first
    parents = np.full(nodes, -1)
    parents[below] = np.repeat(np.arange(nodes), counts)
    _check_parents(below, parents, starts, sizes)
    roots = np.flatnonzero(parents < 0)
    levels, by_level = _levels(roots, counts, below)
    if len(by_level) < nodes:
        lost = int(np.setdiff1d(np.arange(nodes), by_level)[0])
        raise ValueError(f"Forest: {_named(lost, starts)} is below itself; expected a tree")
    return counts, roots, levels, by_level


def _check_children(below: Ints, first: Ints, size: Ints, counts: Ints, starts: Ints) -> None:
    wrong = np.flatnonzero((below < 0) | (below >= size))
    if len(wrong):
        parent = int(np.repeat(np.arange(len(counts)), counts)[wrong[0]])
        child, last = int(below[wrong[0]]), int(size[wrong[0]]) - 1
        raise ValueError(f"Forest: {_named(parent, starts)} has the child {child}; its tree has nodes 0 … {last}")


def _check_parents(below: Ints, parents: Ints, starts: Ints, sizes: Ints) -> None:
    """Each node has one parent, and each tree one root."""
    often = np.bincount(below, minlength=len(parents))
    if often.max(initial=0) > 1:
        raise ValueError(f"Forest: {_named(int(often.argmax()), starts)} is a child twice; expected a tree")
    many = np.add.reduceat(parents < 0, starts)
    if (many != 1).any():
        tree = int(np.flatnonzero(many != 1)[0])
        roots = np.flatnonzero(parents[starts[tree] : starts[tree] + sizes[tree]] < 0).tolist()
        came = f"several: nodes {', '.join(map(str, roots))}" if roots else "none: it goes in a circle"
        raise ValueError(f"Forest: tree {tree} should have one root, but has {came}")


def _named(node: int, starts: Ints) -> str:
    tree = int(np.searchsorted(starts, node, side="right")) - 1
    return f"node {node - int(starts[tree])} of tree {tree}"


def _none(sizes: Ints) -> str:
    return f"tree {int(np.flatnonzero(sizes == 0)[0])} with none" if len(sizes) else "none"
