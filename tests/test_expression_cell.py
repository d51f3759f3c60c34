"""Cells described as data: what a tree computes, what is refused, and that random trees train."""

from __future__ import annotations

import json

import pytest
import torch

import everstep as es

LSTM_LIKE = ("tanh", ("cell", ("add", ("mul", ("sigmoid", ("add", "x", "h")), "c"), ("tanh", ("max", "x", "h")))))


def branch(activation: str, combine: str = "add") -> tuple[object, ...]:
    return (activation, (combine, "x", "h"))


NAS = (
    "tanh",
    (
        "mul",
        (
            "cell",
            (
                "mul",
                ("tanh", ("add", ("tanh", ("mul", branch("sigmoid"), branch("relu"))), "c")),
                ("tanh", ("add", branch("sigmoid"), branch("relu", "mul"))),
            ),
        ),
        (
            "tanh",
            (
                "add",
                ("tanh", ("mul", branch("tanh"), branch("sigmoid"))),
                ("sigmoid", ("add", branch("tanh"), branch("sigmoid"))),
            ),
        ),
    ),
)


@pytest.mark.parametrize("tree", [LSTM_LIKE, NAS, es.random_tree(3), es.random_tree(4, leaves=5, memory=False)])
def test_a_tree_survives_json(tree: object) -> None:
    cell = es.ExpressionCell(3, 4, tree)
    stored = json.dumps(cell.tree)
    again = es.ExpressionCell(3, 4, json.loads(stored))
    assert again.tree == cell.tree == tree
    assert json.dumps(again.tree) == stored
    again.load_state_dict(cell.state_dict())
    xs = torch.randn(2, 5, 3)
    assert torch.equal(again(xs)[0], cell(xs)[0])


def test_the_cell_of_architecture_search_is_a_tree() -> None:
    cell, tree = es.NASCell(3, 4).double(), es.ExpressionCell(3, 4, NAS).double()
    tree.load_state_dict(cell.state_dict())
    xs = torch.randn(2, 6, 3, dtype=torch.float64)
    ys, (h, c) = tree(xs)
    want, state = cell(xs)
    torch.testing.assert_close(ys, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(h, state.h, rtol=0, atol=1e-12)
    torch.testing.assert_close(c, state.c, rtol=0, atol=1e-12)


def test_a_tree_computes_what_it_says() -> None:
    cell = es.ExpressionCell(3, 4, ("sub", ("sin", "x"), ("max", "h", ("identity", "x")))).double()
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    first, second = (x @ cell.weight_ih.t() + cell.bias_ih).chunk(2, -1)
    want = torch.sin(first) - torch.maximum(h @ cell.weight_hh.t() + cell.bias_hh, second)
    torch.testing.assert_close(cell.step(x, h)[0], want)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("y", r"tree should be a leaf, one of x, h, c, or a node, but is 'y'"),
        (("tanh", ("add", "x", "z")), r"tree\[1\]\[2\] should be a leaf"),
        (("cosh", ("add", "x", "h")), r"tree\[0\] should be one of tanh, .*, but is 'cosh'"),
        (("tanh", "x", "h"), r"tree \(tanh\) should have 1 nodes below it, but has 2"),
        (("tanh", ("add", "x")), r"tree\[1\] \(add\) should have 2 nodes below it, but has 1"),
        (("add", "x", 3), r"tree\[2\] should be x, h, c or \[name, node, …\], but is 3"),
        ((), r"tree should be x, h, c or"),
        (None, r"tree should be x, h, c or"),
        ({"tanh": "x"}, r"tree should be x, h, c or"),
        ("x", "reads neither"),
        (("tanh", "h"), "should read x"),
        (("add", "x", "c"), "that reads c should have 1 cell nodes, but has 0"),
        (("add", ("cell", "x"), ("cell", ("add", "c", "x"))), "should have 1 cell nodes, but has 2"),
        (("cell", ("add", "x", "h")), "that does not read c should have 0 cell nodes, but has 1"),
    ],
)
def test_what_is_no_tree_is_refused(tree: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        es.ExpressionCell(3, 4, tree)


def test_a_tree_too_deep_is_refused() -> None:
    tree: object = ("add", "x", "h")
    for _ in range(5000):
        tree = ("tanh", tree)
    with pytest.raises(ValueError, match="no deeper than 100"):
        es.ExpressionCell(3, 4, tree)


@pytest.mark.parametrize("seed", range(12))
def test_random_trees_run_and_learn(seed: int) -> None:
    torch.manual_seed(seed)
    tree = es.random_tree(seed, leaves=2 + seed % 9, combine=("add", "sub", "mul", "max"), memory=seed % 3 > 0)
    assert tree == es.random_tree(seed, leaves=2 + seed % 9, combine=("add", "sub", "mul", "max"), memory=seed % 3 > 0)
    cell = es.ExpressionCell(3, 8, tree)
    xs = torch.randn(4, 200, 3, requires_grad=True)
    ys, _ = cell(xs)
    assert torch.isfinite(ys).all()
    assert ys.abs().max() <= 1
    grads = torch.autograd.grad(ys.square().mean(), [xs, *cell.parameters()])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert any(grad.abs().max() > 0 for grad in grads)


def test_seeds_give_different_trees() -> None:
    assert len({es.random_tree(seed) for seed in range(50)}) > 45


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"leaves": 1}, "leaves should be a whole number of at least 2, but is 1"),
        ({"leaves": 2.0}, "leaves should be"),
        ({"combine": ("plus",)}, "combine should be some of add, sub, mul, max"),
        ({"activations": ()}, "activations should be some of tanh"),
    ],
)
def test_random_tree_refuses_wrong_arguments(how: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        es.random_tree(0, **how)
