"""Continuous batching: every session's result is that of the session alone, bit for bit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.errors import RunError
from everstep.native import toolchain
from everstep.networks.forms import layer_forms
from everstep.networks.model_forms import token_forms
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.ship.serving.batcher import StepBatcher
from everstep.ship.serving.faults import Fault
from everstep.ship.serving.step_engine import CompiledSteps, Inlet, Leaves, Outcome, RowSteps, StepEngine, Value
from everstep.state import leaves

compiled = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


class Adder(StepEngine):
    """h_t = 3 h_{t-1} + x_t, exactly; 13 fails, 17 gives NaN. Counts its calls."""

    reads, output, most, how = Inlet("x", 100, None), "sum", 4, "by hand"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def initial(self) -> Leaves:
        return (torch.zeros(1, 1, dtype=torch.int64),)

    def step(self, values: Sequence[Value], states: Sequence[Leaves]) -> list[Outcome]:
        self.calls.append(len(values))
        if 13 in values:
            raise RunError("13 is refused")
        found = []
        for value, (h,) in zip(values, states, strict=True):
            assert isinstance(value, int)
            new = (3 * h + value) % 1_000_003
            found.append(Outcome(torch.full((1,), float("nan")) if value == 17 else new[0].double(), (new,)))
        return found


def expected(values: Sequence[int]) -> int:
    h = 0
    for value in values:
        h = (3 * h + value) % 1_000_003
    return h


def test_feeds_that_come_together_share_steps_and_take_turns() -> None:
    engine = Adder()

    async def run() -> list[list[float]]:
        batcher = StepBatcher(engine)
        feeds = [batcher.feed(list(range(n)), engine.initial(), keep_all=True) for n in (1, 5, 2, 3, 2, 1)]
        return [[float(y) for y in fed.outputs] for fed in await asyncio.gather(*feeds)]

    found = asyncio.run(run())
    assert found == [[expected(range(k + 1)) for k in range(n)] for n in (1, 5, 2, 3, 2, 1)]
    assert sum(engine.calls) == 14
    assert max(engine.calls) == 4
    assert len(engine.calls) < 8  # 14 steps in turns of up to 4


def test_a_failing_feed_touches_no_other() -> None:
    engine = Adder()

    async def run() -> list[object]:
        batcher = StepBatcher(engine)
        given = ([1, 2, 3], [1, 13, 3], [4, 5], [17], [6])
        feeds = [batcher.feed(values, engine.initial()) for values in given]
        return await asyncio.gather(*feeds, return_exceptions=True)

    first, second, third, fourth, fifth = asyncio.run(run())
    assert [float(fed.outputs[-1]) for fed in (first, third, fifth)] == [  # type: ignore[attr-defined]
        expected([1, 2, 3]), expected([4, 5]), 6
    ]  # fmt: skip
    assert isinstance(second, Fault)
    assert (second.status, second.sentence) == (422, "13 is refused")
    assert isinstance(fourth, Fault)
    assert "gives NaN" in fourth.sentence


def test_a_cancelled_feed_makes_no_further_steps() -> None:
    engine = Adder()

    async def run() -> None:
        batcher = StepBatcher(engine)
        task = asyncio.create_task(batcher.feed([1] * 1000, engine.initial()))
        while not engine.calls:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        made = len(engine.calls)
        await asyncio.sleep(0.01)
        assert len(engine.calls) <= made + 1 < 1000
        assert batcher.waiting == 0

    asyncio.run(run())


def test_a_feed_whose_time_is_over_ends() -> None:
    engine = Adder()

    async def run() -> None:
        batcher = StepBatcher(engine)
        other = asyncio.create_task(batcher.feed([1] * 9, engine.initial()))
        with pytest.raises(Fault, match="longer than 0 seconds") as over:
            await batcher.feed([1] * 9, engine.initial(), seconds=0)
        assert over.value.status == 503
        assert float((await other).outputs[-1]) == expected([1] * 9)

    asyncio.run(run())


def test_the_queue_is_bounded() -> None:
    engine = Adder()

    async def run() -> None:
        batcher = StepBatcher(engine, most_waiting=3)
        tasks = [asyncio.create_task(batcher.feed([1] * 9, engine.initial())) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Fault, match="3 requests wait for a step") as full:
            await batcher.feed([1], engine.initial())
        assert (full.value.status, full.value.headers) == (429, {"Retry-After": "1"})
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_surprise_is_looked_up_in_the_output_before() -> None:
    class Table(Adder):
        def step(self, values: Sequence[Value], states: Sequence[Leaves]) -> list[Outcome]:
            return [
                Outcome(torch.tensor([-1.0, -2.0, float(-value)]), state)
                for value, state in zip(values, states, strict=True)
            ]

    async def run() -> list[float | None]:
        engine = Table()
        fed = await StepBatcher(engine).feed([0, 2, 1, 2], engine.initial(), judged=True)
        return fed.surprise

    assert asyncio.run(run()) == [None, 0.0, 2.0, 1.0]


def alone(engine: StepEngine, values: Sequence[Value]) -> tuple[list[Tensor], Leaves]:
    """One row, step by step."""
    state, outputs = engine.initial(), []
    for value in values:
        ((output, state),) = engine.step([value], [state])
        outputs.append(output)
    return outputs, state


def token_engine(cell: str, size: int) -> tuple[CompiledSteps, TokenModel]:
    torch.manual_seed(1)
    model = TokenModel(50, TokenModelSection(cell=cell, hidden_size=size, embedding_size=12, layers=2)).eval()
    form = token_forms(model).step
    assert not isinstance(form, str)
    engine = CompiledSteps(form, Inlet("tokens", 50, None), "log_p")
    assert engine.reason is None
    return engine, model


@compiled
@pytest.mark.parametrize("size", [16, 40])
def test_the_compiled_step_of_many_rows_has_the_bits_of_one(size: int) -> None:
    engine, model = token_engine("LSTM", size)
    draw = random.Random(2)
    texts = [[draw.randrange(50) for _ in range(6)] for _ in range(70)]
    whole = [alone(engine, text) for text in texts]

    async def run() -> None:
        batcher = StepBatcher(engine)
        feeds = [batcher.feed(text, engine.initial(), keep_all=True) for text in texts]
        for (outputs, state), fed in zip(whole, await asyncio.gather(*feeds), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(outputs, fed.outputs, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(state, fed.state, strict=True))

    asyncio.run(run())
    stream = es.Stream(token_forms(model).step.cell)  # type: ignore[union-attr, arg-type]
    ys = [stream(model.embedding(torch.tensor([token])))[0] for token in texts[3]]
    assert all(torch.equal(a, b.detach()) for a, b in zip(whole[3][0], ys, strict=True))
    with torch.no_grad():
        log_p = model.head.predict(model(torch.tensor([texts[3]]))[0])[0]
    torch.testing.assert_close(torch.stack(whole[3][0]), log_p)


@compiled
def test_sessions_that_step_alone_in_turns_keep_their_own_states() -> None:
    engine, _ = token_engine("GRU", 16)
    whole, _ = alone(engine, [1, 2, 3, 4])
    start = engine.initial()
    ((_, one),) = engine.step([1], [start])
    ((_, two),) = engine.step([2], [one])
    with pytest.raises(IndexError):
        engine.step([1000], [two])
    with pytest.raises(ValueError, match="2 leaves"):
        engine.step([3], [(torch.zeros(1, 3),)])
    ((output, three),) = engine.step([3], [two])
    assert torch.equal(output, whole[2])
    ((output, _),) = engine.step([2], [one])
    assert torch.equal(output, whole[1])
    ((output, _),) = engine.step([4], [three])
    assert torch.equal(output, whole[3])


@compiled
def test_a_kept_state_holds_no_memory_of_other_rows() -> None:
    engine, _ = token_engine("GRU", 16)
    outcomes = engine.step([1, 2, 3], [engine.initial() for _ in range(3)])
    for outcome in outcomes:
        for tensor in (outcome.output, *outcome.state):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_step_that_is_not_compiled_runs_row_by_row() -> None:
    cell = es.GRU(3, 5)
    form = layer_forms(cell).step
    assert not isinstance(form, str)
    engine = RowSteps(form.run, form.initial(1), Inlet("x", 0, 3), "y", 5, "in PyTorch")
    xs = torch.randn(4, 3)
    outputs, state = alone(engine, list(xs))
    with torch.no_grad():
        ys, final = cell(xs[None])
    torch.testing.assert_close(torch.stack(outputs), ys[0])
    torch.testing.assert_close(state[0], leaves(final)[0][1])


@compiled
def test_random_sessions_agree_with_sessions_alone() -> None:
    """Sessions step, fork, fail and are cancelled at random; what each holds is what its history gives alone."""
    engine, _ = token_engine("GRU", 16)
    draw = random.Random(3)

    async def run() -> list[tuple[list[int], Leaves]]:
        batcher = StepBatcher(engine, linger=0)
        kept: list[tuple[list[int], Leaves]] = [([], engine.initial()) for _ in range(20)]

        async def one(place: int) -> None:
            for _ in range(15):
                history, state = kept[place]
                values = [draw.randrange(50) for _ in range(draw.randrange(1, 4))]
                event = draw.random()
                task = asyncio.create_task(batcher.feed(values, state))
                if event < 0.2:
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    continue
                fed = await task
                kept[place] = ([*history, *values], fed.state)
                if event > 0.9:
                    kept[place] = kept[draw.randrange(20)]

        await asyncio.gather(*map(one, range(20)))
        return kept

    found = asyncio.run(run())
    assert max(len(history) for history, _ in found) > 20
    for history, state in found:
        _, own = alone(engine, history)
        assert all(torch.equal(a, b) for a, b in zip(state, own, strict=True))
