"""The transitions of shift–reduce that build the trees of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.trees.forest import Forest

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Transitions:
    """Step by step, what a stack and a buffer of leaves do to build every tree of a forest, all trees side by side.

    Each step makes one node of each tree: *shift* moves the next leaf from the buffer to the stack, *reduce* replaces
    the top nodes of the stack by their parent. So a tree of n nodes takes n steps, and its nodes come in postorder.

    Attributes:
        trees: (trees,) the numbers of the trees, those with the most nodes first.
        steps: (trees,) their numbers of nodes, so that step t has as many rows as there are entries above t.
        children: of each step, the number of children of each row's node; 0 stands for a shift.
        leaves: of each row, the numbers of its leaves in the order of the shifts.
        inner: (inner nodes,) int64, the inner nodes in the order in which they are made.
        made: (nodes,) int64, of each node of the forest its place among the leaves followed by `inner`.

        Leaves and inner nodes are counted by themselves, in the order of the forest's levels.
    """

    trees: list[int]
    steps: list[int]
    children: list[list[int]]
    leaves: list[list[int]]
    inner: Tensor
    made: Tensor

    @classmethod
    def of(cls, forest: Forest) -> Transitions:
        """The transitions of a forest.

        Example:
            >>> from everstep.data import parse_tree
            >>> forest = Forest.of([parse_tree("(2 hm)"), parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))")])
            >>> moves = Transitions.of(forest)
            >>> moves.trees, moves.steps, moves.children
            ([1, 0], [5, 1], [[0, 0], [0], [0], [2], [2]])
        """
        counts, tree, place = _postorder(forest)
        steps = np.bincount(tree, minlength=forest.trees)
        trees = np.argsort(-steps, kind="stable")
        row = np.empty_like(trees)
        row[trees] = np.arange(len(trees))
        in_order = np.lexsort((row[tree], place))
        ends = np.cumsum(np.bincount(place))[:-1]
        leaf = counts == 0
        number = np.where(leaf, np.cumsum(leaf), np.cumsum(~leaf)) - 1
        of_leaves = in_order[leaf[in_order]]
        by_row = of_leaves[np.argsort(row[tree[of_leaves]], kind="stable")]
        last = np.cumsum(np.bincount(row[tree[by_row]], minlength=forest.trees))[:-1]
        inner = in_order[~leaf[in_order]]
        made = np.where(leaf, number, 0)
        made[inner] = len(of_leaves) + np.arange(len(inner))
        device = forest.places.device
        return cls(
            trees=trees.tolist(),
            steps=steps[trees].tolist(),
            children=[some.tolist() for some in np.split(counts[in_order], ends)],
            leaves=[some.tolist() for some in np.split(number[by_row], last)],
            inner=torch.from_numpy(number[inner]).to(device),
            made=torch.from_numpy(made).to(device).index_select(0, forest.places),
        )


def _postorder(forest: Forest) -> tuple[Ints, Ints, Ints]:
    """Of each node, in the order of the levels: its number of children, its tree, and its place in that tree, children
    before parents."""
    counts, sizes = [], []
    below = np.empty(0, np.int64)
    for level in reversed(forest.levels):
        rows, parents = level.inner_rows.cpu().numpy(), level.parents.cpu().numpy()
        many, size = np.zeros(level.nodes, np.int64), np.ones(level.nodes, np.int64)
        many[rows] = np.bincount(parents, minlength=level.inner)
        size[rows] += np.bincount(parents, weights=below, minlength=level.inner).astype(np.int64)
        counts.append(many)
        sizes.append(size)
        below = size
    trees, places = [np.arange(forest.trees)], [sizes[-1] - 1]
    for level, following, size in zip(forest.levels, forest.levels[1:], sizes[-2::-1], strict=False):
        above, ends = following.above.cpu().numpy(), np.cumsum(size)
        _, first = np.unique(above, return_index=True)  # of the children of each node, side by side
        begun = (ends - size)[first][level.parents.cpu().numpy()]
        before = places[-1][above] - sizes[len(sizes) - len(places)][above] + 1
        trees.append(trees[-1][above])
        places.append(before + ends - begun - 1)
    return tuple(np.concatenate(some) for some in (counts[::-1], trees, places))  # type: ignore[return-value]
