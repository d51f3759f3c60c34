"""Recursive networks: plain, with a tensor, and with a matrix for every node."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import check_size
from everstep.trees.composition import Children, Composition


class TreeRNN(Composition):
    """The recursive network (Socher 2011, "Parsing natural scenes and natural language with recursive neural
    networks").

    h = tanh(W x + b + U [h_1; …; h_N]) for at most N ordered children, zeros where there is none; of a leaf
    h = tanh(W x + b).

    >>> from everstep.data import parse_tree
    >>> ys, h = es.Tree(TreeRNN(3, 5))(torch.zeros(2, 3), es.Forest.of([parse_tree("(3 (2 a) (4 film))")]))
    >>> ys.shape, h.shape
    (torch.Size([3, 5]), torch.Size([1, 5]))

    Args:
        input_size, hidden_size: features D of x and H of h.
        arity: N.
        **how: bias, device, dtype.

    Parameters: `weight_ih` (H, D), `weight_hh` (H, N H), `bias` (H).
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    arity: int

    def __init__(self, input_size: int, hidden_size: int, arity: int = 2, **how: Any):
        super().__init__(input_size, hidden_size, arity)
        shapes = {"weight_ih": (hidden_size, input_size), "weight_hh": (hidden_size, arity * hidden_size)}
        self.declare({**shapes, "bias": (hidden_size,)}, **how)

    def leaf(self, x: Tensor) -> Tensor:
        """tanh(W x + b)."""
        return torch.tanh(self.inputs(x))

    def inputs(self, x: Tensor) -> Tensor:
        """W x + b, (n, H)."""
        return F.linear(x, self.weight_ih, self.bias)

    def combine(self, x: Tensor, children: Children) -> Tensor:
        """The equation."""
        return torch.tanh(x + F.linear(children.slots(self.arity).flatten(1), self.weight_hh))


class RNTN(Composition):
    """The recursive neural tensor network (Socher 2013, "Recursive deep models for semantic compositionality over a
    sentiment treebank").

    With h = [h_1; …; h_N] of at most N ordered children, zeros where there is none, unit i of a node is
    tanh(W x + b + U h + hᵀ V_i h)_i; of a leaf it is tanh(W x + b), for which the paper takes the word's own vector.

    >>> from everstep.data import parse_tree
    >>> ys, h = es.Tree(RNTN(3, 5))(torch.zeros(2, 3), es.Forest.of([parse_tree("(3 (2 a) (4 film))")]))
    >>> ys.shape, h.shape
    (torch.Size([3, 5]), torch.Size([1, 5]))

    Args:
        input_size, hidden_size: features D of x and H of h; 25 to 35 in the paper.
        arity: N.
        **how: bias, device, dtype.

    Parameters: `weight_ih` (H, D), `weight_hh` (H, N H), `tensor` (H, N H, N H), `bias` (H).
    """

    weight_ih: Tensor
    weight_hh: Tensor
    tensor: Tensor
    bias: Tensor | None
    arity: int

    def __init__(self, input_size: int, hidden_size: int, arity: int = 2, **how: Any):
        super().__init__(input_size, hidden_size, arity)
        wide = arity * hidden_size
        shapes = {"weight_ih": (hidden_size, input_size), "weight_hh": (hidden_size, wide)}
        self.declare({**shapes, "tensor": (hidden_size, wide, wide), "bias": (hidden_size,)}, **how)

    def reset_parameters(self) -> None:
        """Matrices and bias uniform in ±1/√H, the tensor in ±1/(N H): hᵀ V_i h has (N H)² terms."""
        super().reset_parameters()
        bound = 1 / self.tensor.shape[1]
        nn.init.uniform_(self.tensor, -bound, bound)

    def leaf(self, x: Tensor) -> Tensor:
        """tanh(W x + b)."""
        return torch.tanh(self.inputs(x))

    def inputs(self, x: Tensor) -> Tensor:
        """W x + b, (n, H)."""
        return F.linear(x, self.weight_ih, self.bias)

    def combine(self, x: Tensor, children: Children) -> Tensor:
        """The equation."""
        h = children.slots(self.arity).flatten(1)
        by_unit = F.linear(h, self.tensor.flatten(0, 1)).view(h.shape[0], self.output_size, -1)
        bilinear = (by_unit @ h[..., None].to(by_unit.dtype))[..., 0]
        return torch.tanh(x + F.linear(h, self.weight_hh) + bilinear)


class MVState(NamedTuple):
    """The vector p (nodes, H) and the matrix P (nodes, H, H) of each node."""

    p: Tensor
    matrix: Tensor


class MVRNN(Composition):
    """The matrix–vector recursive network (Socher 2012, "Semantic compositionality through recursive matrix–vector
    spaces"): a node is a vector and a matrix, which acts on its sibling's vector.

    Of children (a, A) and (b, B): p = tanh(U [B a; A b] + b'), P = V [A; B]. A leaf's input holds its vector a and its
    matrix A = I + diag(d) + L Rᵀ with L and R of r columns, as x = [a; d; L; R], L and R row by row.

    >>> from everstep.data import parse_tree
    >>> cell = MVRNN(5, rank=2)
    >>> ys, (p, P) = es.Tree(cell)(torch.zeros(2, cell.input_size), es.Forest.of([parse_tree("(3 (2 a) (4 film))")]))
    >>> cell.input_size, ys.shape, P.shape
    (30, torch.Size([3, 5]), torch.Size([1, 5, 5]))

    Args:
        hidden_size: H. A node takes H² numbers.
        rank: r; 3 in the paper.
        **how: bias, device, dtype.

    Parameters: `weight_hh` (H, 2H), U; `weight_mm` (H, 2H), V, at first ½ [I, I] and a little noise; `bias` (H), b'.

    Known limits: every inner node has two children and no input of its own.
    """

    weight_hh: Tensor
    weight_mm: Tensor
    bias: Tensor | None
    reads_inner = False
    fewest = 2

    def __init__(self, hidden_size: int, rank: int = 3, **how: Any):
        super().__init__(2 * hidden_size * (1 + check_size(self, "rank", rank)), hidden_size, 2)
        self.rank = rank
        wide = (hidden_size, 2 * hidden_size)
        self.declare({"weight_hh": wide, "weight_mm": wide, "bias": (hidden_size,)}, **how)

    def reset_parameters(self) -> None:
        """U and bias uniform in ±1/√H, V = ½ [I, I] and uniform noise of ±0.1/√H."""
        super().reset_parameters()
        eye = torch.eye(self.output_size, dtype=self.weight_mm.dtype, device=self.weight_mm.device)
        with torch.no_grad():
            self.weight_mm.mul_(0.1).add_(torch.cat([eye, eye], 1), alpha=0.5)

    def leaf(self, x: Tensor) -> MVState:
        """The vector and the matrix that x holds."""
        size, rank = self.output_size, self.rank
        a, d, left, right = x.split([size, size, size * rank, size * rank], 1)
        low = left.view(-1, size, rank) @ right.view(-1, size, rank).mT
        return MVState(a, low + torch.diag_embed(1 + d))

    def combine(self, x: None, children: Children) -> MVState:
        """The equations."""
        vectors, matrices = children.slots(2)
        crossed = (matrices.flip(1) @ vectors[..., None])[..., 0].flatten(1)
        p = torch.tanh(F.linear(crossed, self.weight_hh, self.bias))
        return MVState(p, F.linear(matrices.flatten(1, 2).mT, self.weight_mm).mT)  # V [A; B], column by column
