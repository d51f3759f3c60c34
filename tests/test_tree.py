"""Networks over trees: batched is one by one, a chain is the sequence network, and levels are what recursion says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import everstep as es
from everstep.state import leaves, map_state
from everstep.trees.composition import Children, Composition
from everstep.trees.forest import Level

D, H = 4, 3


class Shape(NamedTuple):
    """A tree of a test: children, and which nodes have an input (None: all)."""

    children: list[list[int]]
    words: list[str | None] | None = None


COMPOSITIONS: dict[str, Callable[[], Composition]] = {
    "ChildSumTreeLSTM": lambda: es.ChildSumTreeLSTM(D, H),
    "ChildSumTreeLSTM without bias": lambda: es.ChildSumTreeLSTM(D, H, bias=False),
    "NaryTreeLSTM": lambda: es.NaryTreeLSTM(D, H),
    "NaryTreeLSTM of 3": lambda: es.NaryTreeLSTM(D, H, arity=3, bias=False),
    "ChildSumTreeGRU": lambda: es.ChildSumTreeGRU(D, H),
    "TreeRNN": lambda: es.TreeRNN(D, H),
    "RNTN": lambda: es.RNTN(D, H),
    "MVRNN": lambda: es.MVRNN(H, rank=1),
    "ChildSum(GRU)": lambda: es.ChildSum(es.GRU(D, H)),
    "ChildSum(LSTM)": lambda: es.ChildSum(es.LSTM(D, H)),
}
ANY_NUMBER = [name for name in COMPOSITIONS if name.startswith("ChildSum")]


def tree_of(name: str) -> es.Tree:
    torch.manual_seed(1)
    return es.Tree(COMPOSITIONS[name]()).double()


def binary(random: np.random.Generator, size: int) -> Shape:
    """Inner nodes have two children, leaves alone have inputs; children come first."""
    children: list[list[int]] = [[] for _ in range(size)]
    loose = list(range(size))
    while len(loose) > 1:
        left, right = (loose.pop(random.integers(len(loose))) for _ in range(2))
        children.append([left, right])
        loose.append(len(children) - 1)
    return Shape(children, [None if below else "word" for below in children])


def any_tree(random: np.random.Generator, size: int, most: int) -> Shape:
    """Nodes in any order, each with at most so many children; all have inputs, or some."""
    names = random.permutation(size)
    children: list[list[int]] = [[] for _ in range(size)]
    for node in range(1, size):
        open_ = [parent for parent in range(node) if len(children[names[parent]]) < most]
        children[names[random.choice(open_)]].append(int(names[node]))
    words = None if random.random() < 0.5 else ["w" if random.random() < 0.7 else None for _ in range(size)]
    return Shape(children, words)


def shapes(network: es.Tree, seed: int, number: int = 5) -> list[Shape]:
    """Trees that the composition takes."""
    random = np.random.default_rng(seed)
    cell = network.cell
    sizes = random.integers(1, 12, number)
    if not cell.reads_inner:
        return [binary(random, size) for size in sizes]
    return [any_tree(random, size, cell.arity or 5) for size in sizes] + [binary(random, 4)]


def inputs(network: es.Tree, trees: list[Shape]) -> Tensor:
    return torch.randn(es.Forest.of(trees).inputs, network.input_size, dtype=torch.float64, requires_grad=True)


def results(network: es.Tree, trees: list[Shape], xs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs, root states, and the gradients of a loss of both by inputs and parameters."""
    network.zero_grad()
    ys, state = network(xs, es.Forest.of(trees))
    found = [leaf for _, leaf in leaves(state)]
    loss = (ys * ys.sin()).sum() + sum((leaf.cos() * leaf).sum() for leaf in found)
    return ys, found, list(torch.autograd.grad(loss, [xs, *network.parameters()], allow_unused=True))


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# --------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_batched_is_one_by_one(name: str) -> None:
    network = tree_of(name)
    trees = shapes(network, 0)
    xs = inputs(network, trees)
    ys, roots, grads = results(network, trees, xs)
    parts = [es.Forest.of([tree]).inputs for tree in trees]
    alone = [results(network, [tree], x) for tree, x in zip(trees, xs.split(parts), strict=True)]
    close(ys, torch.cat([one[0] for one in alone]))
    for place, leaf in enumerate(roots):
        close(leaf, torch.cat([one[1][place] for one in alone]))
    for place, grad in enumerate(grads[1:], 1):
        given = [one[2][place] for one in alone]
        close(grad, sum(one if one is not None else torch.zeros_like(grad) for one in given))


def recursive(network: es.Tree, tree: Shape, xs: Tensor) -> tuple[dict[int, Tensor], Any]:
    """Node by node, with `combine` given one node and its children; and with the state of the root."""
    cell = network.cell
    rows = iter(xs.unbind(0))
    has = [True] * len(tree.children) if tree.words is None else [word is not None for word in tree.words]
    x = [next(rows)[None] if one else xs.new_zeros(1, network.input_size) for one in has]
    ys: dict[int, Tensor] = {}

    def state(node: int) -> Any:
        below = tree.children[node]
        if below:
            number = len(below)
            children = map_state(lambda *some: torch.cat(some), *(state(child) for child in below))
            places = torch.arange(number)
            level = Level(0, 1, None, torch.zeros(1).long(), torch.zeros(number).long(), places, number, places)
            made = cell.combine(cell.inputs(x[node]) if cell.reads_inner else None, Children(children, level))
        else:
            made = cell.leaf(x[node])
        ys[node] = leaves(made)[0][1][0]
        return made

    root = next(node for node in range(len(tree.children)) if all(node not in below for below in tree.children))
    return ys, state(root)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_levels_are_what_recursion_says(name: str) -> None:
    network = tree_of(name)
    for tree in shapes(network, 3):
        xs = inputs(network, [tree])
        ys, root, grads = results(network, [tree], xs)
        by_node, state = recursive(network, tree, xs)
        stacked = torch.stack([by_node[node] for node in range(len(tree.children))])
        close(ys, stacked)
        again = [leaf for _, leaf in leaves(state)]
        for one, other in zip(root, again, strict=True):
            close(one, other)
        loss = (stacked * stacked.sin()).sum() + sum((leaf.cos() * leaf).sum() for leaf in again)
        wanted = torch.autograd.grad(loss, [xs, *network.parameters()], allow_unused=True)
        for one, other in zip(grads, wanted, strict=True):
            zeros = torch.zeros(1, dtype=torch.float64)
            close(*torch.broadcast_tensors(zeros if one is None else one, zeros if other is None else other))


def equations(cell: es.NaryTreeLSTM, x: Tensor, children: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Tai 2015, equations 9 to 14, gate by gate."""
    w_i, w_f, w_g, w_o = (cell.weight_ih[k * H : (k + 1) * H] for k in range(4))
    b_i, b_f, b_g, b_o = (cell.bias[k * H : (k + 1) * H] for k in range(4))

    def u(gate: int) -> Tensor:
        rows = cell.weight_hh[gate * H : (gate + 1) * H]
        return sum(rows[:, k * H : (k + 1) * H] @ h for k, (h, _) in enumerate(children))

    i = torch.sigmoid(w_i @ x + u(0) + b_i)
    f = [torch.sigmoid(w_f @ x + u(1 + k) + b_f) for k in range(len(children))]
    g = torch.tanh(w_g @ x + u(1 + cell.arity) + b_g)
    o = torch.sigmoid(w_o @ x + u(2 + cell.arity) + b_o)
    c = i * g + sum(gate * c for gate, (_, c) in zip(f, children, strict=True))
    return o * torch.tanh(c), c


def test_the_nary_tree_lstm_is_its_equations() -> None:
    network = tree_of("NaryTreeLSTM")
    tree = Shape([[], [], [0, 1], [], [2, 3], [4]])
    xs = inputs(network, [tree])
    states: list[tuple[Tensor, Tensor]] = []
    for x, below in zip(xs, tree.children, strict=True):
        states.append(equations(network.cell, x, [states[child] for child in below]))
    ys, (h, c) = network(xs, es.Forest.of([tree]))
    close(ys, torch.stack([h for h, _ in states]))
    close((h[0], c[0]), states[-1])


def chain(length: int) -> Shape:
    """A sequence as a tree: each node's child is the one before."""
    return Shape([[], *([node] for node in range(length - 1))])


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("ChildSumTreeLSTM", es.LSTM),
        ("ChildSum(LSTM)", es.LSTM),
        ("ChildSumTreeGRU", es.GRUBefore),
        ("ChildSum(GRU)", es.GRU),
    ],
)
def test_a_chain_is_the_sequence_network(name: str, cell: Any) -> None:
    network = tree_of(name)
    sequence = cell(D, H).double()
    if name.startswith("ChildSum("):
        sequence.load_state_dict(network.cell.cell.state_dict())
    else:
        with torch.no_grad():
            sequence.weight_ih.copy_(network.cell.weight_ih)
            sequence.weight_hh.copy_(network.cell.weight_hh)
            sequence.bias_ih.copy_(network.cell.bias)
            sequence.bias_hh.zero_()
    xs = torch.randn(2, 9, D, dtype=torch.float64)
    ys, final = sequence(xs, lengths=torch.tensor([9, 6]))
    tree_ys, state = network(torch.cat([xs[0], xs[1, :6]]), es.Forest.of([chain(9), chain(6)]))
    close(tree_ys, torch.cat([ys[0], ys[1, :6]]))
    last = [leaf for _, leaf in leaves(state)]
    for (_, leaf), other in zip(leaves(final), last[-len(leaves(final)) :], strict=True):
        close(leaf, other)


def test_an_nary_tree_lstm_of_one_child_is_the_lstm() -> None:
    network = es.Tree(es.NaryTreeLSTM(D, H, arity=1)).double()
    sequence = es.LSTM(D, H).double()
    with torch.no_grad():
        network.cell.weight_ih.copy_(sequence.weight_ih)
        network.cell.weight_hh.copy_(sequence.weight_hh)
        network.cell.bias.copy_(sequence.bias_ih + sequence.bias_hh)
    xs = torch.randn(1, 7, D, dtype=torch.float64)
    close(network(xs[0], es.Forest.of([chain(7)]))[0], sequence(xs)[0][0])


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_permuting_the_trees_permutes_what_comes_out(name: str) -> None:
    network = tree_of(name)
    trees = shapes(network, 5)
    xs = inputs(network, trees)
    order = [3, 0, 4, 2, 1, *range(5, len(trees))]
    x_parts = xs.split([es.Forest.of([tree]).inputs for tree in trees])
    ys, roots, _ = results(network, trees, xs)
    y_parts = ys.split([len(tree.children) for tree in trees])
    other, other_roots, _ = results(
        network, [trees[k] for k in order], torch.cat([x_parts[k] for k in order]).detach().requires_grad_()
    )
    close(other, torch.cat([y_parts[k] for k in order]))
    close(other_roots, [leaf[order] for leaf in roots])


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_gradients_are_those_of_differences(name: str) -> None:
    network = tree_of(name)
    trees = [*shapes(network, 8, 2)[:2], binary(np.random.default_rng(0), 3)]
    xs = inputs(network, trees)
    forest = es.Forest.of(trees)
    parameters = dict(network.named_parameters())

    def f(xs: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(parameters, values, strict=True))
        ys, state = torch.func.functional_call(network, given, (xs, forest))
        return ys, *(leaf for _, leaf in leaves(state))

    assert gradcheck(f, (xs, *parameters.values()), fast_mode=True)
    assert gradgradcheck(f, (xs, *parameters.values()), fast_mode=True, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["ChildSumTreeLSTM", "NaryTreeLSTM of 3"]), st.integers(1, 4))
def test_random_trees_run_as_they_do_alone_and_by_the_graph(seed: int, name: str, number: int) -> None:
    network = tree_of(name)
    trees = shapes(network, seed, number)
    xs = inputs(network, trees)
    ys, roots, grads = results(network, trees, xs)
    first = es.Forest.of(trees[:1]).inputs
    close(ys[: len(trees[0].children)], network(xs[:first], es.Forest.of(trees[:1]))[0])
    with torch.autograd.forward_ad.dual_level():  # where the derivative that is written out does not serve
        plain = results(network, trees, xs)
    close((ys, roots), plain[:2])
    close([g for g in grads if g is not None], [g for g in plain[2] if g is not None])


@pytest.mark.parametrize("name", ANY_NUMBER)
def test_a_node_may_have_200_children(name: str) -> None:
    network = tree_of(name)
    wide = Shape([[], *[[] for _ in range(199)], list(range(200)), [200]])
    xs = inputs(network, [wide, chain(3)])
    ys, _, grads = results(network, [wide, chain(3)], xs)
    assert ys.shape == (205, H)
    assert all(grad.isfinite().all() for grad in grads)
    shuffled = torch.cat([xs[torch.randperm(200)], xs[200:]]).detach().requires_grad_()
    close(results(network, [wide, chain(3)], shuffled)[0][200:], ys[200:])


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_trees_of_one_leaf(name: str) -> None:
    network = tree_of(name)
    trees = [Shape([[]]), Shape([[]])]
    xs = inputs(network, trees)
    ys, roots, grads = results(network, trees, xs)
    close(ys, leaves(network.cell.leaf(xs))[0][1])
    assert grads[0].abs().min() > 0
    assert all(len(leaf) == 2 for leaf in roots)


def test_a_chain_of_many_nodes_needs_no_recursion() -> None:
    network = es.Tree(es.ChildSumTreeLSTM(2, 2))
    forest = es.Forest.of([chain(1200)])
    ys, _ = network(torch.ones(1200, 2), forest)
    ys.sum().backward()
    assert network.cell.weight_hh.grad.isfinite().all()


@pytest.mark.parametrize("name", ["NaryTreeLSTM", "ChildSumTreeLSTM", "TreeRNN"])
def test_products_are_short_and_states_long_under_autocast(name: str) -> None:
    network = tree_of(name).float()
    trees = shapes(network, 2)
    xs = inputs(network, trees).float().detach().requires_grad_()
    exact, _, grads = results(network, trees, xs)
    with torch.autocast("cpu", torch.bfloat16):
        ys, roots, found = results(network, trees, xs)
    assert {leaf.dtype for leaf in (ys, *roots)} == {torch.float32}
    assert 0 < (ys - exact).abs().max() < 0.03
    for one, other in zip(grads, found, strict=True):
        assert (one - other).abs().max() < 0.05 * max(1, float(one.abs().max()))


# ------------------------------------------------------------------------------------------------------ from the roots


@pytest.mark.parametrize("cell", [es.GRU, es.LSTM])
def test_from_the_root_every_node_ends_a_path(cell: Any) -> None:
    torch.manual_seed(0)
    network = es.TopDown(cell(D, H)).double()
    random = np.random.default_rng(4)
    trees = [any_tree(random, 9, 3), chain(1), any_tree(random, 6, 2)]
    forest = es.Forest.of(trees)
    xs = torch.randn(forest.nodes, D, dtype=torch.float64, requires_grad=True)
    ys = network(xs, forest)
    loss = (ys * ys.sin()).sum()
    by_xs, *by_weights = torch.autograd.grad(loss, [xs, *network.parameters()])
    start, found = 0, []
    for tree in trees:
        above = {child: node for node, below in enumerate(tree.children) for child in below}
        for node in range(len(tree.children)):
            path = [node]
            while path[-1] in above:
                path.append(above[path[-1]])
            found.append(network.cell(xs[[start + one for one in reversed(path)]][None])[0][0, -1])
        start += len(tree.children)
    alone = torch.stack(found)
    close(ys, alone)
    again = torch.autograd.grad((alone * alone.sin()).sum(), [xs, *network.parameters()])
    close([by_xs, *by_weights], list(again))
