"""Shift–reduce: without a tracker it is the network over levels; with one it is a loop over transitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tree import COMPOSITIONS, Shape, any_tree, binary, chain, close, inputs, results, shapes
from torch import Tensor
from torch.autograd import gradcheck

import everstep as es
from everstep.data import parse_tree
from everstep.state import leaves, map_state
from everstep.trees.composition import Children
from everstep.trees.forest import Level
from everstep.trees.transitions import Transitions

D, H = 4, 3
TRACKED = [name for name in COMPOSITIONS if name != "MVRNN"]


def network_of(name: str, tracker: Any = None, **how: Any) -> es.ShiftReduce:
    torch.manual_seed(1)
    return es.ShiftReduce(COMPOSITIONS[name](), tracker, **how).double()


def tracked(name: str, size: int = 5, **how: Any) -> es.ShiftReduce:
    torch.manual_seed(2)
    cell = COMPOSITIONS[name]()
    network = es.ShiftReduce(cell, es.LSTM(3 * cell.output_size, size), **how).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_without_a_tracker_it_is_the_network_over_levels(name: str) -> None:
    network = network_of(name)
    levels = es.Tree(network.cell)
    for seed in range(3):
        trees = [*shapes(levels, seed), Shape([[]])]  # type: ignore[list-item]
        xs = inputs(levels, trees)
        close(results(network, trees, xs)[0], results(levels, trees, xs)[0])  # type: ignore[arg-type]
        found, wanted = results(network, trees, xs), results(levels, trees, xs)  # type: ignore[arg-type]
        close(found[1], wanted[1])
        for one, other in zip(found[2], wanted[2], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                close(one, other)


@pytest.mark.parametrize("name", TRACKED)
def test_batched_is_one_by_one_with_a_tracker(name: str) -> None:
    network = tracked(name)
    trees = shapes(network, 0)  # type: ignore[arg-type]
    xs = inputs(network, trees)  # type: ignore[arg-type]
    ys, roots, grads = results(network, trees, xs)  # type: ignore[arg-type]
    parts = [es.Forest.of([tree]).inputs for tree in trees]
    alone = [results(network, [tree], x) for tree, x in zip(trees, xs.split(parts), strict=True)]  # type: ignore[arg-type]
    close(ys, torch.cat([one[0] for one in alone]))
    for place, leaf in enumerate(roots):
        close(leaf, torch.cat([one[1][place] for one in alone]))
    for place, grad in enumerate(grads[1:], 1):
        given = [one[2][place] for one in alone if one[2][place] is not None]
        close(grad, sum(given))


def by_hand(network: es.ShiftReduce, tree: Shape, xs: Tensor) -> dict[int, Tensor]:
    """One tree, a transition after another, with states on the stack."""
    cell, tracker = network.cell, network.tracker
    assert tracker is not None
    has = [True] * len(tree.children) if tree.words is None else [word is not None for word in tree.words]
    rows = iter(xs.unbind(0))
    x = [next(rows)[None] if one else xs.new_zeros(1, D) for one in has]
    order: list[int] = []

    def visit(node: int) -> None:
        for child in tree.children[node]:
            visit(child)
        order.append(node)

    visit(next(node for node in range(len(has)) if all(node not in below for below in tree.children)))
    buffer = [(node, cell.leaf(x[node])) for node in order if not tree.children[node]]
    stack: list[Any] = []
    ys: dict[int, Tensor] = {}
    state = tracker.initial_state(1, xs)
    for node in order:
        near = [buffer[0][1] if buffer else None, *(stack[-k] if len(stack) >= k else None for k in (1, 2))]
        seen = [xs.new_zeros(1, H) if one is None else leaves(one)[0][1] for one in near]
        e, state = tracker.step(torch.cat(seen, 1), state)
        number = len(tree.children[node])
        if number:
            below = map_state(lambda *some: torch.cat(some), *stack[-number:])
            places = torch.arange(number)
            level = Level(0, 1, None, places[:1], 0 * places, places, number, places[:0])
            fed = e if network.feed is None else network.feed(e)
            stack[-number:] = [cell.combine(cell.inputs(x[node] + fed), Children(below, level))]
        else:
            assert buffer[0][0] == node
            stack.append(buffer.pop(0)[1])
        ys[node] = leaves(stack[-1])[0][1][0]
    return ys


@pytest.mark.parametrize("name", TRACKED)
@pytest.mark.parametrize("size", [D, 5])
def test_with_a_tracker_it_is_the_loop_over_transitions(name: str, size: int) -> None:
    network = tracked(name, size)
    assert (network.feed is None) == (size == D)
    trees = shapes(network, 4, 2)  # type: ignore[arg-type]
    xs = inputs(network, trees)  # type: ignore[arg-type]
    ys, _, grads = results(network, trees, xs)  # type: ignore[arg-type]
    parts = xs.split([es.Forest.of([tree]).inputs for tree in trees])
    found = [by_hand(network, tree, x) for tree, x in zip(trees, parts, strict=True)]
    close(ys, torch.stack([one[node] for one in found for node in range(len(one))]))
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("name", ["NaryTreeLSTM", "ChildSumTreeGRU", "RNTN"])
def test_gradients_are_those_of_differences(name: str) -> None:
    network = tracked(name)
    trees = [binary(np.random.default_rng(0), 3), binary(np.random.default_rng(1), 2)]
    xs = inputs(network, trees)  # type: ignore[arg-type]
    forest = es.Forest.of(trees)
    parameters = dict(network.named_parameters())

    def f(xs: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        ys, state = torch.func.functional_call(network, dict(zip(parameters, values, strict=True)), (xs, forest))
        return ys, *(leaf for _, leaf in leaves(state))

    assert gradcheck(f, (xs, *parameters.values()), fast_mode=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_transitions_are_trees_in_postorder(seed: int, number: int) -> None:
    random = np.random.default_rng(seed)
    trees = [any_tree(random, int(random.integers(1, 12)), 4) for _ in range(number)]
    forest = es.Forest.of(trees)
    moves = Transitions.of(forest)
    assert moves.steps == sorted((len(tree.children) for tree in trees), reverse=True)
    starts = np.cumsum([0, *(len(tree.children) for tree in trees)])
    leaf = [node for node in forest.by_level.tolist() if node in leaves_of(trees, starts)]
    inner = [node for node in forest.by_level.tolist() if node not in leaf]
    made = [inner[place] for place in moves.inner.tolist()]
    assert [([*leaf, *made])[place] for place in moves.made.tolist()] == list(range(forest.nodes))
    for row, tree in enumerate(moves.trees):
        start, children = int(starts[tree]), trees[tree].children
        stack: list[int] = []
        queue = [leaf[place] - start for place in moves.leaves[row]]
        for step in range(moves.steps[row]):
            count = moves.children[step][row]
            if count:
                below = stack[-count:]
                stack[-count:] = [children.index(below)]
            else:
                stack.append(queue.pop(0))
        assert not queue
        assert stack == [int(forest.roots[tree]) - start]


def leaves_of(trees: list[Shape], starts: Any) -> set[int]:
    return {
        int(start) + node
        for start, tree in zip(starts, trees, strict=False)
        for node, below in enumerate(tree.children)
        if not below
    }


# ------------------------------------------------------------------------------------------------------------- parsing


def test_it_parses_by_the_likelier_transition() -> None:
    network = tracked("NaryTreeLSTM", parses=True)
    assert network.reduces is not None
    xs = torch.randn(8, D, dtype=torch.float64)
    lengths = [1, 4, 3]
    for bias, told in ((9.0, "(((a b) c) d)"), (-9.0, "(a (b (c d)))")):
        torch.nn.init.zeros_(network.reduces.weight)
        torch.nn.init.constant_(network.reduces.bias, bias)
        trees = network.parse(xs, lengths)
        assert spelled(trees[1].children, "abcd") == told
        assert [len(tree.children) for tree in trees] == [1, 7, 5]
        assert es.Forest.of(trees).inputs == 8
    torch.nn.init.normal_(network.reduces.weight)
    torch.nn.init.zeros_(network.reduces.bias)
    trees = network.parse(xs, lengths)
    assert trees == [network.parse(x, [len(x)])[0] for x in xs.split(lengths)]
    with torch.no_grad():  # each choice of its own trees is at least as likely as the other
        assert network.parsing_loss(xs, es.Forest.of(trees)).max() <= np.log(2)


def spelled(children: Any, words: str) -> str:
    left = iter(words)
    found: list[str] = []
    for below in children:
        found.append(f"({' '.join(found[child] for child in below)})" if below else next(left))
    return found[-1]


def test_it_learns_to_parse() -> None:
    """A bracket opens before every "(" of a toy language: words say alone where to reduce."""
    torch.manual_seed(0)
    trees = [parse_tree(t) for t in ("(1 (1 a) (1 (1 b) (1 c)))", "(1 (1 (1 b) (1 c)) (1 a))", "(1 (1 a) (1 a))")]
    ids = torch.tensor(["abc".index(word) for tree in trees for word in tree.leaves])
    words = torch.nn.Embedding(3, D)
    network = es.ShiftReduce(es.NaryTreeLSTM(D, H), es.LSTM(3 * H, D), parses=True)
    optimizer = torch.optim.Adam([*network.parameters(), *words.parameters()], 0.05)
    forest = es.Forest.of(trees)
    for _ in range(60):
        optimizer.zero_grad()
        network.parsing_loss(words(ids), forest).sum().backward()
        optimizer.step()
    with torch.no_grad():
        found = network.parse(words(ids), [len(tree.leaves) for tree in trees])
    assert [tuple(tree.children) for tree in found] == [tree.children for tree in trees]


def test_what_it_does_not_take_is_told() -> None:
    forest = es.Forest.of([parse_tree("(S (A x) (B y) (C z))")])
    with pytest.raises(ValueError, match=r"ShiftReduce\(NaryTreeLSTM\): expected at most 2 children of a node"):
        network_of("NaryTreeLSTM")(torch.zeros(3, D).double(), forest)
    with pytest.raises(TypeError, match=r"ShiftReduce: expected a Composition, but got LSTM; .* ShiftReduce\(Child"):
        es.ShiftReduce(es.LSTM(D, H))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tracker: expected a Cell, but got Linear"):
        es.ShiftReduce(es.TreeRNN(D, H), torch.nn.Linear(9, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the tracker should read 9 features, .* but reads 4"):
        es.ShiftReduce(es.TreeRNN(D, H), es.LSTM(4, 4))
    with pytest.raises(ValueError, match="reads no inputs of inner nodes"):
        es.ShiftReduce(es.MVRNN(H), es.LSTM(3 * H, 4))
    with pytest.raises(ValueError, match="parses=True needs a tracker"):
        es.ShiftReduce(es.TreeRNN(D, H), parses=True)
    with pytest.raises(ValueError, match="make it with parses=True"):
        tracked("TreeRNN").parse(torch.zeros(2, D), [2])
    with pytest.raises(ValueError, match=r"lengths ≥ 1 that sum to words, but got \(2, 4\) and \[2, 0\]"):
        tracked("TreeRNN", parses=True).parse(torch.zeros(2, D).double(), [2, 0])


def test_a_chain_of_many_nodes_needs_no_recursion() -> None:
    network = es.ShiftReduce(es.ChildSumTreeLSTM(2, 2), es.RNN(6, 2))
    ys, _ = network(torch.ones(400, 2), es.Forest.of([chain(400)]))
    ys.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
