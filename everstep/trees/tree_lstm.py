"""Long short-term memory over trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.trees.compiled_tree_lstm import CompiledLevels, available
from everstep.trees.composition import Children
from everstep.trees.forest import Forest, Level, added
from everstep.trees.written_out import Above, OverLevels, WrittenOut, times

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class TreeLSTMState(NamedTuple):
    """The output h and the memory c of each node, (nodes, H)."""

    h: Tensor
    c: Tensor


class _TreeLSTM(WrittenOut):
    """What both share."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None

    def leaf(self, x: Tensor) -> TreeLSTMState:
        """Without children: c = i ∘ g; the rows of f are not needed."""
        size = self.output_size

        def without_f(rows: Tensor) -> Tensor:
            return torch.cat([rows[:size], rows[2 * size :]])

        i, g, o = F.linear(
            x, without_f(self.weight_ih), self.bias if self.bias is None else without_f(self.bias)
        ).chunk(3, 1)
        return _memory(i, g, o, None)


class ChildSumTreeLSTM(_TreeLSTM):
    """Tree-LSTM for any number of children, whose order does not matter (Tai 2015, "Improved semantic representations
    from tree-structured long short-term memory networks", equations 2 to 8).

    Of a node with children k: h̃ = Σ_k h_k; i, o = σ(W_i x + b_i + U_i h̃), likewise o; g = tanh(W_g x + b_g + U_g h̃);
    of each child f_k = σ(W_f x + b_f + U_f h_k); c = i ∘ g + Σ_k f_k ∘ c_k; h = o ∘ tanh(c).

    On a chain it is the LSTM of the same weights.

    >>> from everstep.data import parse_tree
    >>> tree = es.Tree(ChildSumTreeLSTM(3, 5))
    >>> ys, (h, c) = tree(torch.zeros(3, 3), es.Forest.of([parse_tree("(S (A x) (B y) (C z))")]))
    >>> ys.shape, h.shape
    (torch.Size([4, 5]), torch.Size([1, 5]))

    Args:
        input_size, hidden_size: features D of x, and H of h and c.
        **how: bias, device, dtype.

    Parameters, in the order i f g o of `torch.nn.LSTM`: `weight_ih` (4H, D), `weight_hh` (4H, H), `bias` (4H).
    """

    def __init__(self, input_size: int, hidden_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        rows = 4 * hidden_size
        self.declare({"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size), "bias": (rows,)}, **how)

    def inputs(self, x: Tensor) -> Tensor:
        """W x + b, (n, 4H)."""
        return F.linear(x, self.weight_ih, self.bias)

    def weights(self) -> Sequence[Tensor]:
        """U_i, U_g, U_o together, and U_f."""
        i, f, go = self.weight_hh.split([self.output_size, self.output_size, 2 * self.output_size])
        return torch.cat([i, go]), f

    def combine_by(self, weights: Sequence[Tensor], x: Tensor, children: Children) -> TreeLSTMState:
        """The equations."""
        size, (of_sum, forget) = self.output_size, weights
        h, c = children.states
        i, f, go = x.split([size, size, 2 * size], 1)
        kept = children.sum(torch.sigmoid(children.spread(f) + F.linear(h, forget)) * c)
        i, g, o = (torch.cat([i, go], 1) + F.linear(children.sum(h), of_sum)).chunk(3, 1)
        return _memory(i, g, o, kept)

    def ahead(
        self, level: Level, x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The same."""
        size = self.output_size
        of_sum, forget = weights
        i, f, go = x.split([size, size, 2 * size], 1)
        sums = times(level.sum(h), of_sum, torch.cat([i, go], 1))
        f = times(h, forget, level.spread(f)).sigmoid_()
        i, g, o = _activated(sums, 0)
        new = level.sum(f * c).addcmul_(i, g)
        squashed = torch.tanh(new)
        return o * squashed, new, (sums, f, squashed)

    def back(
        self,
        level: Level,
        kept: Sequence[Tensor],
        h: Tensor,
        c: Tensor,
        by_h: Tensor,
        by_c: Tensor,
        weights: Sequence[Tensor],
    ) -> Above:
        """Its derivative."""
        size = self.output_size
        gates, f, squashed = kept
        of_sum, forget = weights
        above = torch.empty_like(gates)
        by_c = _back(gates, squashed, by_h, by_c, above, 0)
        by_kept = level.spread(by_c)
        by_f = torch.ops.aten.sigmoid_backward(by_kept * c, f)
        by_children = times(by_f, forget.t()).add_(level.spread(times(above, of_sum.t())))
        by_x = torch.cat([above[:, :size], level.sum(by_f), above[:, size:]], 1)
        return Above(by_children, by_kept * f, by_x, ((above, level.sum(h)), (by_f, h)))


class NaryTreeLSTM(_TreeLSTM):
    """Tree-LSTM for at most N ordered children, each with matrices of its own (Tai 2015, equations 9 to 14).

    With the children's outputs together, h = [h_1; …; h_N], zeros where there is none: i = σ(W_i x + b_i + U_i h),
    likewise o; g = tanh(W_g x + b_g + U_g h); of each child f_k = σ(W_f x + b_f + U_fk h);
    c = i ∘ g + Σ_k f_k ∘ c_k; h = o ∘ tanh(c).

    The constituency Tree-LSTM is the one of N = 2 on binary trees whose leaves alone have inputs. With N = 1 it is the
    LSTM of the same weights.

    >>> from everstep.data import parse_tree
    >>> tree = es.Tree(NaryTreeLSTM(3, 5))
    >>> ys, (h, c) = tree(torch.zeros(2, 3), es.Forest.of([parse_tree("(3 (2 a) (4 film))")]))
    >>> ys.shape, h.shape
    (torch.Size([3, 5]), torch.Size([1, 5]))

    Args:
        input_size, hidden_size: features D of x, and H of h and c.
        arity: N.
        **how: bias, device, dtype.

    Parameters, in the order i f g o, of which `weight_hh` has f_1 … f_N for f: `weight_ih` (4H, D), `weight_hh`
    ((3 + N) H, N H), `bias` (4H).
    """

    arity: int

    def __init__(self, input_size: int, hidden_size: int, arity: int = 2, **how: Any):
        super().__init__(input_size, hidden_size, arity)
        rows = 4 * hidden_size
        of_children = ((3 + arity) * hidden_size, arity * hidden_size)
        self.declare({"weight_ih": (rows, input_size), "weight_hh": of_children, "bias": (rows,)}, **how)

    def inputs(self, x: Tensor) -> Tensor:
        """W x + b, with the rows of f once for each child: (n, (3 + N) H)."""
        size = self.output_size
        i, f, go = F.linear(x, self.weight_ih, self.bias).split([size, size, 2 * size], 1)
        return torch.cat([i, *[f] * self.arity, go], 1)

    def weights(self) -> Sequence[Tensor]:
        """U."""
        return (self.weight_hh,)

    def over_levels(self, forest: Forest, h: Tensor, c: Tensor, x: Tensor, weights: Sequence[Tensor]) -> OverLevels:
        """In one compiled call, if all inner nodes have N children."""
        compiled = available(forest, self.arity, h, c, x, *weights)
        return CompiledLevels() if compiled else super().over_levels(forest, h, c, x, weights)

    def combine_by(self, weights: Sequence[Tensor], x: Tensor, children: Children) -> TreeLSTMState:
        """The equations."""
        h, c = children.slots(self.arity)
        size, arity = self.output_size, self.arity
        i, f, g, o = (x + F.linear(h.flatten(1), weights[0])).split([size, arity * size, size, size], 1)
        kept = torch.sigmoid(f) * c.flatten(1)
        return _memory(i, g, o, added(kept.view(-1, arity, size)))

    def ahead(
        self, level: Level, x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The same."""
        sums = times(level.slots(h, self.arity).flatten(1), weights[0], x)
        i, f, g, o = _activated(sums, self.arity)
        new = i * g
        for kept, old in zip(f.chunk(self.arity, 1), level.slots(c, self.arity).unbind(1), strict=True):
            new.addcmul_(kept, old)
        squashed = torch.tanh(new)
        return o * squashed, new, (sums, squashed)

    def back(
        self,
        level: Level,
        kept: Sequence[Tensor],
        h: Tensor,
        c: Tensor,
        by_h: Tensor,
        by_c: Tensor,
        weights: Sequence[Tensor],
    ) -> Above:
        """Its derivative."""
        arity, shape = self.arity, (self.arity, self.output_size)
        gates, squashed = kept
        above = torch.empty_like(gates)
        by_c = _back(gates, squashed, by_h, by_c, above, arity)[:, None]
        f, by_f = (_parts(of, arity)[1].unflatten(1, shape) for of in (gates, above))
        _sigmoid_backward(by_c * level.slots(c, arity), f, grad_input=by_f)
        by_children = times(above, weights[0].t()).unflatten(1, shape)
        sums = (above, level.slots(h, arity).flatten(1))
        return Above(level.children_of(by_children), level.children_of(by_c * f), above, (sums,))


def _memory(i: Tensor, g: Tensor, o: Tensor, kept: Tensor | None) -> TreeLSTMState:
    """c = σ(i) ∘ tanh(g) + kept; h = σ(o) ∘ tanh(c)."""
    new = torch.sigmoid(i) * torch.tanh(g)
    c = new if kept is None else new + kept
    return TreeLSTMState(torch.sigmoid(o) * torch.tanh(c), c)


def _parts(sums: Tensor, arity: int) -> tuple[Tensor, ...]:
    """i, f, g, o as they lie side by side; without f if the arity is 0."""
    size = sums.shape[1] // (3 + arity)
    parts: tuple[Tensor, ...] = sums.split([size, arity * size, size, size] if arity else size, 1)
    return parts


def _activated(sums: Tensor, arity: int) -> tuple[Tensor, ...]:
    """Sums become gates, in their place."""
    *some, g, o = _parts(sums, arity)
    sums[:, : -2 * g.shape[1]].sigmoid_()
    return *some, g.tanh_(), o.sigmoid_()


def _back(gates: Tensor, squashed: Tensor, by_h: Tensor, by_c: Tensor, above: Tensor, arity: int) -> Tensor:
    """Writes what is above i, g and o; the derivative by c."""
    i, *_, g, o = _parts(gates, arity)
    by_i, *_, by_g, by_o = _parts(above, arity)
    by_c += torch.ops.aten.tanh_backward(by_h * o, squashed)
    _sigmoid_backward(by_h * squashed, o, grad_input=by_o)
    _sigmoid_backward(by_c * g, i, grad_input=by_i)
    _tanh_backward(by_c * i, g, grad_input=by_g)
    return by_c
