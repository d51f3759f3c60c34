"""Batches of trees with words and a class for each node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import RowBatches
from everstep.data.bucket_order import BucketOrder
from everstep.trees.forest import Branching, Forest

Ints = NDArray[np.int64]
NONE = -1
"""The class of an unlabelled node."""


class CodedTree(NamedTuple):
    """An encoded tree of N nodes, M of which have a word.

    Attributes:
        tree: the structure of the tree.
        words: (M,) int64, the word ids, in node order.
        targets: (N,) int64, the class of each node; NONE if unlabelled.
    """

    tree: Branching
    words: Ints
    targets: Ints


@dataclass(frozen=True, eq=False)
class TreeBatch:
    """B trees with N nodes in total, M of which have a word.

    Attributes:
        forest: the trees.
        words: (M,) int64.
        targets: (N,) int64, class ids; NONE if unlabelled.
        places: (B,) int64, the index of each tree in the data set.
    """

    forest: Forest
    words: Tensor
    targets: Tensor
    places: Tensor

    @property
    def count(self) -> int:
        """The number of labelled nodes."""
        return int((self.targets != NONE).sum())

    def to(self, device: torch.device) -> Self:
        """The batch on `device`."""
        return replace(
            self,
            forest=self.forest.to(device),
            words=self.words.to(device),
            targets=self.targets.to(device),
            places=self.places.to(device),
        )


class TreeBatches(RowBatches[TreeBatch]):
    """Trees in batches, shuffled in each epoch. Trees need no padding, so that a batch may mix sizes.

    Args:
        trees: N ≥ 1 trees.
        batch_size, seed, shuffle: see `BucketOrder`.
        max_nodes: most trees × nodes of the largest tree in a batch; trees in a batch then have similar sizes.

    Example:
        >>> from everstep.data import parse_tree
        >>> tree = parse_tree("(3 (2 a) (4 film))")
        >>> batches = TreeBatches([CodedTree(tree, np.array([5, 6]), np.array([2, 4, 3]))] * 3, 2, shuffle=False)
        >>> batch = batches.batch(0, 0)
        >>> len(batches), batch.forest.nodes, batch.words.tolist(), batch.count
        (2, 6, [5, 6, 5, 6], 6)
    """

    def __init__(
        self,
        trees: Sequence[CodedTree],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_nodes: int | None = None,
    ):
        self.batch_size, self._trees = batch_size, trees
        sizes = np.array([len(coded.targets) for coded in trees], np.int64)
        self._order = BucketOrder(sizes, batch_size, seed=seed, shuffle=shuffle, pool=1, max_tokens=max_nodes)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def drawn(self, epoch: int, index: int) -> Ints:
        """The numbers of the trees of a batch."""
        return self._order.rows(epoch, index)

    def made_of(self, rows: Ints) -> TreeBatch:
        """The batch of these trees."""
        some = [self._trees[row] for row in rows]
        words, targets = (torch.from_numpy(np.concatenate([one[place] for one in some])) for place in (1, 2))
        return TreeBatch(Forest.of([one.tree for one in some]), words, targets, torch.from_numpy(rows.copy()))
