"""Shift–reduce: trees built from left to right with a stack, and a cell that watches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell
from everstep.state import State, leaves, map_state, unflatten
from everstep.trees.composition import Children, Composition
from everstep.trees.forest import Forest, Level
from everstep.trees.transitions import Transitions
from everstep.wirings.composed import Composed, split_rows

Choose = Callable[[int, Tensor | None], Sequence[int]]
"""From a step and log p(reduce) − log p(shift) of each row to the number of children of each row's node; 0: a shift."""


class Parse(NamedTuple):
    """A tree that `ShiftReduce.parse` builds; `Forest.of` takes it.

    Attributes:
        children: of each node, the numbers of its children, which come before it; the root is last.
        words: True at the leaves, which have an input; None at the other nodes.
    """

    children: list[tuple[int, ...]]
    words: list[bool | None]


class ShiftReduce(Composed):
    """A composition run over trees by shift and reduce, with a cell that tracks the stack (SPINN; Bowman 2016, "A fast
    unified model for parsing and sentence understanding").

    Step t of a tree *shifts* the next leaf from the buffer to the stack, or *reduces* the top nodes of the stack to
    their parent:

    e_t, s_t = tracker.step([h of the buffer's first; h of the stack's first; h of its second], s_{t-1})
    parent = cell.combine(cell.inputs(x + F e_t), children)

    with zeros where the buffer or the stack has too few nodes, and x the input of the parent if it has one. A stack
    holds places of nodes, never their states, which are computed once. Without a tracker, the result is that of `Tree`.
    With one, what is left of a node also decides what it becomes.

    >>> from everstep.data import parse_tree
    >>> forest = es.Forest.of([parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))"), parse_tree("(2 hm)")])
    >>> network = ShiftReduce(es.NaryTreeLSTM(6, 5), es.LSTM(15, 4), parses=True)
    >>> ys, (h, c) = network(torch.zeros(4, 6), forest)
    >>> ys.shape, h.shape  # of all nodes, and of the roots
    (torch.Size([6, 5]), torch.Size([2, 5]))
    >>> network.parsing_loss(torch.zeros(4, 6), forest).shape  # of the one transition that was a choice
    torch.Size([1])
    >>> [len(tree.children) for tree in network.parse(torch.zeros(4, 6), [3, 1])]
    [5, 1]

    The result for a tree does not depend on the other trees.

    Args:
        cell: the composition; its state at a node is a nest whose first leaf is h.
        tracker: a `Cell` of 3 · `cell.output_size` inputs; None: no tracking.
        parses: whether there is a linear layer from e_t to log p(reduce) − log p(shift), for `parse`.

    Attributes:
        input_size: features D of each x.
        output_size: features H of each node's output.
        feed: F, (D, features of e); None if e_t has D features, or without a tracker.

    Raises:
        TypeError: `cell` is no composition, or `tracker` no Cell.
        ValueError: a tracker of other inputs, a composition that reads no inputs of inner nodes beside a tracker, or
            `parses` without a tracker.

    Known limit: it takes as many steps as the largest tree has nodes, so it is several times slower than `Tree`.
    """

    def __init__(self, cell: Composition, tracker: Cell | None = None, *, parses: bool = False):
        super().__init__(cell)
        _check_tracker(cell, tracker, parses)
        self.tracker = tracker
        e = 0 if tracker is None else tracker.output_size
        self.feed = nn.Linear(e, cell.input_size, bias=False) if e not in (0, cell.input_size) else None
        self.reduces = nn.Linear(e, 1) if parses else None

    def forward(self, xs: Tensor, forest: Forest) -> tuple[Tensor, State]:
        """The outputs of all nodes, and the states of the roots, as of `Tree`.

        Args:
            xs: (M, D), the inputs of the nodes that have one, in the order of the nodes.
            forest: the trees, on the device of xs.

        Returns:
            The outputs (nodes, output_size) in the order of the nodes, and a nest of (trees, …).

        Raises:
            ValueError: as of `Tree`.
        """
        return _outputs(*self._built(xs, forest)[:2], forest)

    def parsing_loss(self, xs: Tensor, forest: Forest) -> Tensor:
        """−log p of each transition of the trees where both kinds are possible, (choices,) nats, step by step.

        There a leaf waits in the buffer and at least two nodes are on the stack. Arguments and errors as of `forward`.

        Raises:
            ValueError: the network has no layer for it (`parses=False`).
        """
        return self.with_parsing_loss(xs, forest)[2]

    def with_parsing_loss(self, xs: Tensor, forest: Forest) -> tuple[Tensor, State, Tensor]:
        """What `forward` gives, and `parsing_loss`, of one pass."""
        self._check_parses()
        built, moves, odds = self._built(xs, forest)
        free = [row for row, choice in enumerate(built.free) if choice]
        chosen = [built.reduced[row] for row in free]
        logits = torch.cat(odds)[free]
        nats = F.binary_cross_entropy_with_logits(logits, logits.new_tensor(chosen), reduction="none")
        return *_outputs(built, moves, forest), nats

    @torch.no_grad()
    def parse(self, xs: Tensor, lengths: Sequence[int]) -> list[Parse]:
        """The binary tree of each sentence, of the likelier transition at each step.

        Args:
            xs: (words, D), the inputs of all words, sentence after sentence.
            lengths: the number of words of each sentence, ≥ 1.

        Raises:
            ValueError: the network does not parse, xs of another shape, or a sentence without words.
        """
        self._check_parses()
        if not lengths or min(lengths) < 1 or xs.shape != (sum(lengths), self.input_size):
            raise ValueError(
                f"ShiftReduce: expected xs of shape (words, {self.input_size}) and lengths ≥ 1 that sum to words, but "
                f"got {tuple(xs.shape)} and {list(lengths)}"
            )
        order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
        ends = np.cumsum(lengths).tolist()
        built = _Building(self._leaves(xs), [[*range(ends[k] - lengths[k], ends[k])] for k in order])

        def likelier(step: int, odds: Tensor | None) -> list[int]:
            assert odds is not None
            return [2 * built.reduces(row, better) for row, better in enumerate((odds > 0).tolist())]

        steps = [2 * lengths[k] - 1 for k in order]
        none = [xs.new_zeros(1, self.input_size)] * steps[0]
        self._run(built, steps, likelier, none)
        trees = [_tree(done) for done in built.done]
        return [trees[order.index(k)] for k in range(len(order))]

    def _built(self, xs: Tensor, forest: Forest) -> tuple[_Building, Transitions, list[Tensor]]:
        """All nodes of given trees."""
        of_leaves, rows = self._given(xs, forest)
        moves = Transitions.of(forest)
        built = _Building(of_leaves, moves.leaves)
        terms: State = rows if self.tracker is not None else self._inputs(rows)
        inner: list[State] = [terms] * len(moves.children)
        if forest.inner_fed:
            ordered = map_state(lambda leaf: leaf.index_select(0, moves.inner), terms)
            inner = split_rows(ordered, [sum(map(bool, counts)) for counts in moves.children])
        odds = self._run(built, moves.steps, lambda step, _: moves.children[step], inner)
        return built, moves, odds

    def _run(self, built: _Building, steps: list[int], choose: Choose, inner: Sequence[State]) -> list[Tensor]:
        """All transitions; log p(reduce) − log p(shift) of each, if there is a layer for it.

        Args:
            built: what there is, to which nodes are added.
            steps: of each row, the most first.
            choose: the transitions.
            inner: of each step, what the new inner nodes read beside their children: without a tracker the
                composition's input terms, with one their own inputs.
        """
        state: State = None
        odds: list[Tensor] = []
        for step in range(steps[0]):
            rows = sum(number > step for number in steps)
            e = logits = None
            if self.tracker is not None:
                seen = built.seen(rows)
                state = map_state(lambda leaf, n=rows: leaf[:n], state) if step else self._begin(seen)
                e, state = self.tracker.step(seen, state)
                if self.reduces is not None:
                    logits = self.reduces(e)[:, 0].float()
                    odds.append(logits)
            counts = choose(step, logits)
            reduced = built.shift(counts)
            if reduced:
                x = inner[step] if e is None else self._inputs(inner[step] + self._fed(e[reduced]))
                built.reduce(reduced, [counts[row] for row in reduced], x, self.cell)
        return odds

    def _begin(self, seen: Tensor) -> State:
        assert self.tracker is not None
        return self.tracker.initial_state(len(seen), seen)

    def _fed(self, e: Tensor) -> Tensor:
        return e if self.feed is None else self.feed(e)

    def _check_parses(self) -> None:
        if self.reduces is None:
            raise ValueError("ShiftReduce: it has no layer that chooses transitions; make it with parses=True")


class _Building:
    """The states of the nodes so far, a row each, so that a gradient goes to the rows alone that are read; and of each
    tree its buffer and its stack, which hold places of nodes: leaves first, then inner nodes as they are made."""

    def __init__(self, of_leaves: State, queues: Sequence[Sequence[int]]):
        self._like = of_leaves
        self._rows = [list(leaf.unbind(0)) for _, leaf in leaves(of_leaves)]
        self._zero = torch.zeros_like(self._rows[0][0])
        self._buffers = [list(reversed(queue)) for queue in queues]
        self._stacks: list[list[int]] = [[] for _ in queues]
        self.free: list[bool] = []
        self.reduced: list[bool] = []
        self.done: list[list[int]] = [[] for _ in queues]

    def seen(self, rows: int) -> Tensor:
        """What a tracker reads, (rows, 3 H)."""
        h = self._rows[0]

        def top(some: list[int], depth: int) -> Tensor:
            return h[some[-depth]] if len(some) >= depth else self._zero

        pairs = zip(self._buffers[:rows], self._stacks[:rows], strict=True)
        found = [part for buffer, stack in pairs for part in (top(buffer, 1), top(stack, 1), top(stack, 2))]
        return torch.stack(found).view(rows, -1)

    def reduces(self, row: int, likelier: bool) -> bool:
        """Whether to reduce two nodes: the likelier transition, where both are possible."""
        return len(self._stacks[row]) > 1 and (likelier or not self._buffers[row])

    def shift(self, counts: Sequence[int]) -> list[int]:
        """Do the shifts of a step; the rows that reduce."""
        for row, (count, buffer, stack) in enumerate(zip(counts, self._buffers, self._stacks, strict=False)):
            self.free.append(bool(buffer) and len(stack) > 1)
            self.reduced.append(count > 0)
            self.done[row].append(count)
            if not count:
                stack.append(buffer.pop())
        return [row for row, count in enumerate(counts) if count]

    def reduce(self, rows: list[int], counts: list[int], x: State, cell: Composition) -> None:
        """Replace so many nodes on top of each of these stacks by their parent."""
        stacks = [self._stacks[row] for row in rows]
        below = [node for stack, count in zip(stacks, counts, strict=True) for node in stack[-count:]]
        made = cell.combine(x, Children(self.states(below), _level(counts, self._zero.device)))
        first = len(self._rows[0])
        for known, (_, new) in zip(self._rows, leaves(made), strict=True):
            known.extend(new.to(known[0].dtype).unbind(0))
        for place, (stack, count) in enumerate(zip(stacks, counts, strict=True)):
            stack[-count:] = [first + place]

    def outputs(self) -> Tensor:
        """h of all nodes, in the order of their places."""
        return torch.stack(self._rows[0])

    def states(self, nodes: list[int]) -> State:
        """The states of some nodes, by their places."""
        return unflatten(self._like, [torch.stack([rows[node] for node in nodes]) for rows in self._rows])


def _outputs(built: _Building, moves: Transitions, forest: Forest) -> tuple[Tensor, State]:
    """The outputs of all nodes of a forest, and the states of its roots."""
    roots = moves.made.index_select(0, forest.roots).tolist()
    return built.outputs().index_select(0, moves.made), built.states(roots)


def _level(counts: list[int], device: torch.device) -> Level:
    """Nodes with these numbers of children, as a composition reads them."""
    many = np.array(counts)
    places = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    numbers = np.arange(len(many))
    inner, parents, child, none = (
        torch.from_numpy(some).to(device) for some in (numbers, np.repeat(numbers, many), places, numbers[:0])
    )
    each = counts[0] if len(set(counts)) == 1 else None
    return Level(0, len(counts), None, inner, parents, child, each, none)


def _tree(counts: list[int]) -> Parse:
    """The tree of its transitions."""
    stack: list[int] = []
    children: list[tuple[int, ...]] = []
    for node, count in enumerate(counts):
        below = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        children.append(tuple(below))
        stack.append(node)
    return Parse(children, [None if below else True for below in children])


def _check_tracker(cell: Composition, tracker: Cell | None, parses: bool) -> None:
    who = f"ShiftReduce({type(cell).__name__})"
    if tracker is None:
        if parses:
            raise ValueError(f"{who}: parses=True needs a tracker, which says where to reduce; give a cell")
        return
    if not isinstance(tracker, Cell):
        raise TypeError(f"{who}: tracker: expected a Cell, but got {type(tracker).__name__}")
    if tracker.input_size != 3 * cell.output_size:
        raise ValueError(
            f"{who}: the tracker should read {3 * cell.output_size} features, h of the buffer's first node and of the "
            f"stack's first two, but reads {tracker.input_size}"
        )
    if not cell.reads_inner:
        raise ValueError(f"{who}: reads no inputs of inner nodes, which a tracker gives; leave it out")
