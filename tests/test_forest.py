"""A batch of trees as indices: levels, orders and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tree import D, H, Shape, any_tree, binary, close, inputs, shapes, tree_of
from torch import Tensor, nn

import everstep as es
from everstep.data import parse_tree
from everstep.trees.composition import Children, Composition


def test_levels_of_a_forest() -> None:
    forest = es.Forest.of([parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))"), parse_tree("(2 hm)")])
    assert (forest.trees, forest.nodes, forest.inputs, forest.inner) == (2, 6, 4, 2)
    assert (forest.fewest_children, forest.most_children) == (2, 2)
    assert forest.roots.tolist() == [4, 5]
    assert forest.by_level.tolist() == [4, 5, 0, 3, 1, 2]
    assert forest.leaf_inputs.tolist() == [3, 0, 1, 2]
    assert [(level.leaves, level.inner, level.above.tolist()) for level in forest.levels] == [
        (1, 1, []),
        (1, 1, [0, 0]),
        (2, 0, [1, 1]),
    ]
    moved = forest.to("meta")
    assert moved.levels[1].above.device.type == moved.places.device.type == "meta"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_every_node_is_on_the_level_below_its_parents(seed: int, number: int) -> None:
    random = np.random.default_rng(seed)
    trees = [any_tree(random, int(random.integers(1, 15)), 4) for _ in range(number)]
    forest = es.Forest.of(trees)
    order = forest.by_level.tolist()
    assert sorted(order) == list(range(forest.nodes))
    starts = np.cumsum([0, *(len(tree.children) for tree in trees)])
    below = [
        [int(start) + child for child in some]
        for start, tree in zip(starts, trees, strict=False)
        for some in tree.children
    ]
    first = 0
    for level, following in zip(forest.levels, [*forest.levels[1:], None], strict=True):
        nodes = order[first : first + level.nodes]
        first += level.nodes
        inner = [nodes[row] for row in level.inner_rows]
        assert inner == [node for node in nodes if below[node]]
        children = order[first : first + level.below]
        assert children == [child for node in inner for child in below[node]]
        if following is not None:
            assert [nodes[row] for row in following.above] == [inner[row] for row in level.parents]


@pytest.mark.parametrize(
    ("trees", "told"),
    [
        ([], "at least one node, got none"),
        ([Shape([[]]), Shape([])], "got tree 1 with none"),
        (
            [Shape([[]]), Shape([[1], []]), Shape([[], [0, 2]])],
            "node 1 of tree 2 has the child 2; its tree has nodes 0 … 1",
        ),
        ([Shape([[], [-1]])], "node 1 of tree 0 has the child -1"),
        ([Shape([[]]), Shape([[], [0], [0], [1, 2]])], "node 0 of tree 1 is a child twice"),
        ([Shape([[1], [0]])], "tree 0 should have one root, but has none: it goes in a circle"),
        ([Shape([[]]), Shape([[], [0], []])], "tree 1 should have one root, but has several: nodes 1, 2"),
        ([Shape([[]]), Shape([[2], [0], [1], []])], "node 0 of tree 1 is below itself"),
    ],
)
def test_what_is_no_tree_is_told(trees: list[Shape], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        es.Forest.of(trees)


def test_what_a_network_does_not_take_is_told() -> None:
    forest = es.Forest.of([parse_tree("(S (A x) (B y) (C z))")])
    with pytest.raises(ValueError, match=r"NaryTreeLSTM\): expected at most 2 children of a node, but one has 3"):
        es.Tree(es.NaryTreeLSTM(D, H))(torch.zeros(3, D), forest)
    network = es.Tree(es.ChildSumTreeLSTM(D, H))
    with pytest.raises(
        ValueError, match=r"xs should be \(3, 4\), a row for each node that has an input, but is \(4, 4\)"
    ):
        network(torch.zeros(4, D), forest)
    with pytest.raises(ValueError, match="the forest should be on cpu, as xs, but is on meta"):
        network(torch.zeros(3, D), forest.to("meta"))
    matrices = es.MVRNN(H)
    with pytest.raises(ValueError, match="at least 2 children of an inner node, but one has 1"):
        es.Tree(matrices)(torch.zeros(1, matrices.input_size), es.Forest.of([Shape([[], [0]], ["a", None])]))
    with pytest.raises(ValueError, match="expected inputs of leaves alone"):
        es.Tree(matrices)(torch.zeros(3, matrices.input_size), es.Forest.of([Shape([[], [], [0, 1]])]))
    with pytest.raises(
        TypeError, match=r"expected a Composition, but got LSTM; for a cell of sequences, Tree\(ChildSum"
    ):
        es.Tree(es.LSTM(D, H))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="TopDown: expected a Cell, but got ChildSumTreeLSTM"):
        es.TopDown(es.ChildSumTreeLSTM(D, H))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"TopDown: xs should be \(4, 4\), a row for each node"):
        es.TopDown(es.GRU(D, H))(torch.zeros(3, D), forest)


class Scaled(Composition):
    """h = s Σ h_k, with a tensor s that is no parameter."""

    def __init__(self, s: Tensor):
        super().__init__(D, D)
        self.s = s

    def leaf(self, x: Tensor) -> Tensor:
        return x

    def combine(self, x: Tensor, children: Children) -> Tensor:
        return self.s * children.sum(children.states)


def test_whatever_a_composition_reads_gets_its_gradient() -> None:
    s = torch.full((D,), 2.0, requires_grad=True)
    _, h = es.Tree(Scaled(s))(torch.ones(3, D), es.Forest.of([parse_tree("(1 (1 (1 a) (1 b)) (1 c))")]))
    assert h.tolist() == [[10.0] * D]  # 2 (2 (1 + 1) + 1)
    h.sum().backward()
    assert s.grad is not None
    assert s.grad.tolist() == [9.0] * D  # of 2 s² + s


def test_a_backward_of_some_inputs_leaves_nothing_for_the_next() -> None:
    network = tree_of("TreeRNN")
    trees = shapes(network, 1)
    xs = inputs(network, trees)
    ys, _ = network(xs, es.Forest.of(trees))
    torch.autograd.grad(ys.sum(), xs, retain_graph=True)
    once = torch.autograd.grad(ys.sum(), network.cell.weight_hh, retain_graph=True)
    close(once, torch.autograd.grad(ys.sum(), network.cell.weight_hh))


def test_a_tree_in_a_module_saves_and_loads() -> None:
    model = nn.ModuleDict({"up": es.Tree(es.NaryTreeLSTM(D, H)), "down": es.TopDown(es.GRU(H, H))})
    again = nn.ModuleDict({"up": es.Tree(es.NaryTreeLSTM(D, H)), "down": es.TopDown(es.GRU(H, H))})
    again.load_state_dict(model.state_dict())
    forest, xs = es.Forest.of([binary(np.random.default_rng(0), 5)]), torch.randn(5, D)
    found = [one["down"](one["up"](xs, forest)[0], forest) for one in (model, again)]
    assert torch.equal(*found)
