"""The cell found by architecture search."""

from __future__ import annotations

from torch import relu, sigmoid, tanh

from everstep.equation import Gated


class NASCell(Gated, gates="a b d e f g k l", state="h c"):
    """The cell found by reinforcement learning on Penn Treebank (Zoph & Le 2017, "Neural architecture search with …").

    With u· = W_x· x_t + b_x· and v· = W_h· h_{t-1} + b_h·, for eight branches a … l:
    p = tanh(tanh(σ(u_a + v_a) ∘ relu(u_b + v_b)) + c_{t-1}); q = tanh(σ(u_d + v_d) + relu(u_e ∘ v_e));
    c_t = p ∘ q; r = tanh(tanh(tanh(u_f + v_f) ∘ σ(u_g + v_g)) + σ(tanh(u_k + v_k) + σ(u_l + v_l)));
    h_t = tanh(c_t ∘ r). Branch e multiplies where the others add, as in the NASCell of TensorFlow (contrib, Addons),
    which has no biases by default; torchrecurrent 0.2.5 adds in branch e too.

    >>> ys, (h, c) = NASCell(3, 5)(torch.zeros(2, 7, 3))

    Known limit: twice the parameters of an LSTM of the same size. `ExpressionCell` runs any cell of this kind.
    """

    @staticmethod
    def equation(x, h, s):
        p = tanh(tanh(sigmoid(x.a + h.a) * relu(x.b + h.b)) + s.c)
        c = p * tanh(sigmoid(x.d + h.d) + relu(x.e * h.e))
        left, right = tanh(x.f + h.f) * sigmoid(x.g + h.g), tanh(x.k + h.k) + sigmoid(x.l + h.l)
        return tanh(c * tanh(tanh(left) + sigmoid(right))), c
