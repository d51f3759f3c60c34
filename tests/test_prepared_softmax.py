"""`VocabularyHead.prepared` against `predict`, for every softmax."""

from __future__ import annotations

import pytest
import torch
from test_vocabulary_heads import MAKE, D, K, N, made, rows
from torch import nn

from everstep.heads import Categorical


@pytest.mark.parametrize("compiler", [None, "none"])
@pytest.mark.parametrize("tied", [None, D])
@pytest.mark.parametrize("name", MAKE)
def test_prepared_is_the_prediction(
    name: str, tied: int | None, compiler: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler is not None:
        monkeypatch.setenv("EVERSTEP_COMPILER", compiler)
    weight = None if tied is None else nn.Parameter(torch.randn(K, tied))
    head = made(name, tied=weight).float()
    ys = rows()[0].float()
    predict = head.prepared()
    for given in (ys, ys[:2], ys.repeat(9, 1)):
        with torch.no_grad():
            torch.testing.assert_close(predict(given), head.predict(given), rtol=1e-5, atol=1e-5)
    assert predict(ys).requires_grad


def test_prepared_joins_a_tied_weight_of_another_size() -> None:
    head, ys = Categorical(D, K, tied=torch.randn(K, D + 2)), torch.randn(N, D)
    with torch.no_grad():
        torch.testing.assert_close(head.prepared()(ys), head.predict(ys))


def test_rows_of_a_prepared_softmax_do_not_depend_on_others() -> None:
    head, ys = Categorical(300, 1001), torch.randn(70, 300)
    with torch.no_grad():
        predict = head.prepared()
        together = predict(ys)
        for n in (1, 2, 5, 33):
            assert torch.equal(predict(ys[:n]), together[:n])
