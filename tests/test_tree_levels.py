"""All levels of a Tree-LSTM in one compiled call are each level in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_tree import D, Shape, results
from torch import Tensor

import everstep as es
from everstep.native import kernels, toolchain
from everstep.trees import compiled_tree_lstm


def full(random: np.random.Generator, inner: int, arity: int, fed: bool) -> Shape:
    """Inner nodes have `arity` children each; nodes in any order; leaves alone have inputs, or all nodes have one."""
    names = random.permutation(1 + inner * arity)
    children: list[list[int]] = [[] for _ in names]
    leaves_now, made = [0], 1
    for _ in range(inner):
        node = leaves_now.pop(random.integers(len(leaves_now)))
        children[names[node]] = [int(name) for name in names[made : made + arity]]
        leaves_now += range(made, made + arity)
        made += arity
    return Shape(children, None if fed else [None if below else "word" for below in children])


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize(
    ("dtype", "short", "near"),
    [(torch.float64, False, 1e-12), (torch.float32, False, 2e-5), (torch.float32, True, 0.01)],
)
@pytest.mark.parametrize(("arity", "fed"), [(2, False), (3, True), (1, True)])
def test_all_levels_in_a_compiled_call_are_each_level(
    arity: int, fed: bool, dtype: torch.dtype, short: bool, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(arity)
    network = es.Tree(es.NaryTreeLSTM(D, 19, arity=arity, dtype=dtype))
    random = np.random.default_rng(arity)
    trees = [full(random, size, arity, fed) for size in (7, 0, 1, 60, 3)]
    xs = torch.randn(es.Forest.of(trees).inputs, D, dtype=dtype, requires_grad=True)
    ran: list[str] = []
    run = compiled_tree_lstm._run
    monkeypatch.setattr(
        compiled_tree_lstm, "_run", lambda loop, *given, **how: (ran.append(loop), run(loop, *given, **how))
    )

    def all_results() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=short):
            ys, roots, grads = results(network, trees, xs)
        return [found.detach() for found in (ys, *roots, *grads)]

    alone = all_results()
    monkeypatch.setattr(compiled_tree_lstm, "threads_for", lambda work, threads: 2)
    shared = all_results()
    if not short or kernels.has_bf16():
        assert ran == ["ahead", "back"] * 2
    monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    wanted = all_results()
    assert len(ran) <= 4
    for one, two, other in zip(alone, shared, wanted, strict=True):
        assert torch.equal(one, two)  # whatever the threads
        torch.testing.assert_close(one, other, rtol=near, atol=near * max(1, float(other.abs().max())))
        assert (one - other).norm() <= near / 2 * other.norm()  # roundings differ, and not all one way
