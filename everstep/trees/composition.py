"""One step over children: what a node's state is, by its input and its children's states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from everstep.cell import check_size
from everstep.parameters import Declaring, uniform_by_width
from everstep.state import State, map_state
from everstep.trees.forest import Level


@dataclass(frozen=True)
class Children:
    """The m children of q nodes, those of the same node side by side.

    Attributes:
        states: a nest of (m, …).
        level: which child is whose.
    """

    states: State
    level: Level

    def sum(self, values: Tensor) -> Tensor:
        """(m, …) to (q, …): the sum over the children of each node."""
        return self.level.sum(values)

    def spread(self, values: Tensor) -> Tensor:
        """(q, …) to (m, …): of each child its node's value; (1, …), the same for all, stays as it is."""
        return self.level.spread(values)

    def slots(self, arity: int) -> State:
        """A nest of (q, arity, …): the states of each node's first, second, … child; zeros where there is none."""
        return map_state(lambda leaf: self.level.slots(leaf, arity), self.states)


class Composition(Declaring):
    """One step over children instead of over time: a node's state is a function of its input x and of its children's
    states. `everstep.Tree` runs it over whole batches of trees. Subclass it: `leaf`, `inputs`, `combine`.

    A state is a nest of tensors, each (nodes, …), whose first leaf (nodes, output_size) is what a node gives out. All
    three are functions of each node by itself.

    >>> class Longest(Composition):
    ...     "The height of a node, whatever the inputs."
    ...     def __init__(self):
    ...         super().__init__(1, 1)
    ...     def leaf(self, x):
    ...         return torch.zeros_like(x)
    ...     def combine(self, x, children):
    ...         return 1 + children.slots(2).amax(1)
    >>> from everstep.data import parse_tree
    >>> forest = es.Forest.of([parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))")])
    >>> ys, state = es.Tree(Longest())(torch.zeros(3, 1), forest)
    >>> ys.flatten().tolist()
    [0.0, 0.0, 0.0, 1.0, 2.0]

    Args:
        input_size: features D of x.
        output_size: features of what a node gives out.
        arity: most children of a node; None: any number.

    Attributes:
        reads_inner: whether inner nodes may have inputs; where False, `combine` gets None for x.
        fewest: children of an inner node.
    """

    reads_inner = True
    fewest = 1

    def __init__(self, input_size: int, output_size: int, arity: int | None = None):
        super().__init__()
        self.input_size = check_size(self, "input_size", input_size)
        self.output_size = check_size(self, "output_size", output_size)
        self.arity = None if arity is None else check_size(self, "arity", arity)

    def leaf(self, x: Tensor) -> State:
        """The states of nodes without children, of their inputs (n, input_size)."""
        raise NotImplementedError(f"{type(self).__name__} has no leaf(x)")

    def inputs(self, x: Tensor) -> State:
        """What `combine` reads of the inputs (n, input_size) of inner nodes: a nest of (n, …), mostly W x + b.

        Computed for all levels at once; of nodes without an input, x is zeros. By default x itself.
        """
        return x

    def combine(self, x: Any, children: Children) -> State:
        """The states of q nodes with children.

        Args:
            x: of `inputs`, (q, …) or, where no node has an input, (1, …).
            children: their states, m ≥ q, of which each node has at least one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no combine(x, children)")

    def refuses(self, fewest: int, most: int, inner_fed: bool) -> str | None:
        """What is wrong with a tree for this composition, in words; None: nothing.

        Args:
            fewest, most: children of an inner node; 0 if there is none.
            inner_fed: whether an inner node has an input.
        """
        if self.arity is not None and most > self.arity:
            return (
                f"expected at most {self.arity} children of a node, but one has {most}; make the trees binary, take a "
                "larger arity, or a child-sum composition, which takes any number"
            )
        if most and fewest < self.fewest:
            return f"expected at least {self.fewest} children of an inner node, but one has {fewest}"
        if inner_fed and not self.reads_inner:
            return "expected inputs of leaves alone, but inner nodes have some"
        return None

    def reset_parameters(self) -> None:
        """Every parameter uniform in ±1/√H."""
        uniform_by_width(self.parameters(recurse=False), self.output_size)

    def extra_repr(self) -> str:
        arity = "" if self.arity is None else f", arity={self.arity}"
        return f"{self.input_size}, {self.output_size}{arity}"
