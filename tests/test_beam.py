"""Search: exact where the beam is wide enough, and whatever the batch, the order and the padding."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from far_device import FarDevice
from torch import Tensor
from toy_decoders import PACKS, alone, plain_search, toy

from everstep.decode import BeamSection, Decoder, Hypothesis, Phrases, beam_search, ensemble, exact_search
from everstep.decode.largest import largest
from everstep.errors import ConfigError, RunError
from everstep.state import select

ALPHAS, BETAS = (0.0, 0.6, 1.0, 2.5), (0.0, 0.2, 1.0)


def settings(draw: random.Random) -> dict[str, Any]:
    high = draw.randint(0, 4)
    return {
        "length_penalty": draw.choice(ALPHAS),
        "coverage_penalty": draw.choice(BETAS),
        "max_length": max(1, high),
        "min_length": draw.randint(0, max(1, high)),
    }


def plainly(decoder: Decoder, width: float, how: BeamSection, **legal: Any) -> list[tuple[tuple[int, ...], float]]:
    return plain_search(
        decoder, width, how.n_best, how.length_penalty, how.coverage_penalty, how.min_length, how.max_length, **legal
    )


def same(found: list[Hypothesis], wanted: list[tuple[tuple[int, ...], float]]) -> None:
    assert [tuple(one.tokens) for one in found] == [tokens for tokens, _ in wanted]
    assert [one.score for one in found] == pytest.approx([score for _, score in wanted], rel=0, abs=1e-10)


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("batch", range(4))
def test_any_beam_is_the_plain_one_and_a_full_one_is_exhaustive(kind: str, batch: int) -> None:
    draw = random.Random(batch)
    for seed in range(9 * batch, 9 * batch + 9):
        vocabulary = draw.choice((2, 3, 3, 4, 6))
        decoder = toy(seed, vocabulary, kind=kind, end=draw.choice((0, 0, 0, None)), sure=draw.choice((0.3, 2, 5)))
        more = settings(draw)
        if decoder.end is None:
            more["max_length"] = min(2, more["max_length"])
            more["min_length"] = 0
        more["max_length"] = min(more["max_length"], 2 if vocabulary == 6 else 4)
        more["min_length"] = min(more["min_length"], more["max_length"])
        for width in (draw.randint(1, 4), 1000):
            how = BeamSection(beam_width=width, n_best=draw.randint(1, min(width, 6)), **more)
            (found,) = beam_search(decoder, how)
            same(found, plainly(decoder, width, how))


class Even:
    """An automaton: an even number of ones, and never two twos in a row."""

    start = (0, False)

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def allowed(self, state: Any) -> Tensor | None:
        mask = torch.ones(self.vocabulary, dtype=torch.bool)
        mask[2] = not state[1]
        return mask if state[1] else None

    def advance(self, state: Any, token: int) -> Any:
        return (state[0] + (token == 1)) % 2, token == 2

    def accepts(self, state: Any) -> bool:
        return bool(state[0] == 0)


class Misshapen(Even):
    def allowed(self, state: Any) -> Tensor:
        return torch.ones(3, dtype=torch.bool)


def has_phrases(phrases: list[list[int]], tokens: tuple[int, ...]) -> bool:
    return all(any(list(tokens[k : k + len(p)]) == p for k in range(len(tokens))) for p in phrases)


@pytest.mark.parametrize("seed", range(18))
def test_a_full_beam_obeys_constraints_and_finds_the_best(seed: int) -> None:
    draw = random.Random(seed)
    decoder = toy(seed, 4, kind=draw.choice(list(PACKS)), end=draw.choice((0, 0, None)))
    high = draw.randint(2, 3)
    how = BeamSection(
        beam_width=2000,
        n_best=5,
        max_length=high,
        length_penalty=draw.choice(ALPHAS),
        coverage_penalty=draw.choice(BETAS),
    )
    phrases = [[draw.randint(1, 3) for _ in range(draw.randint(1, 2))] for _ in range(2)]
    prefix = [draw.randint(1, 3) for _ in range(draw.randint(0, 2))]

    def over(tokens: tuple[int, ...]) -> bool:
        return tokens[-1] == decoder.end if decoder.end is not None else len(tokens) == high

    def even(tokens: tuple[int, ...]) -> bool:
        return "22" not in "".join(map(str, tokens)) and (not over(tokens) or tokens.count(1) % 2 == 0)

    def phrased(tokens: tuple[int, ...]) -> bool:
        return not over(tokens) or has_phrases(phrases, tokens)

    def prefixed(tokens: tuple[int, ...]) -> bool:
        return list(tokens[: len(prefix)]) == prefix[: len(tokens)]

    def new_pairs(tokens: tuple[int, ...]) -> bool:
        pairs = list(itertools.pairwise(tokens))
        return len(pairs) == len(set(pairs)) and 3 not in tokens

    same(beam_search(decoder, how, constraints=[Even(4)])[0], plainly(decoder, 2000, how, legal=even))
    same(beam_search(decoder, how, constraints=[Phrases(phrases)])[0], plainly(decoder, 2000, how, legal=phrased))
    same(beam_search(decoder, how, prefixes=[prefix])[0], plainly(decoder, 2000, how, legal=prefixed))
    wanted = plainly(decoder, 2000, how, legal=new_pairs)
    same(beam_search(decoder, how.replace(no_repeat=2), banned=[3])[0], wanted)
    same(beam_search(decoder, how.replace(no_repeat=2), allowed=[0, 1, 2])[0], wanted)
    same(beam_search(decoder._replace(never=(3,)), how.replace(no_repeat=2))[0], wanted)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_narrow_beam_gives_is_legal(seed: int) -> None:
    draw = random.Random(seed)
    decoder = toy(seed, 6, sources=3)
    phrases = [[draw.randint(1, 5) for _ in range(draw.randint(1, 3))] for _ in range(draw.randint(1, 3))]
    for width in (1, 2, 4):
        how = BeamSection(beam_width=width, n_best=width, max_length=10)
        constraints = [Phrases(phrases), None, Even(6)]
        with_phrases, free, even = beam_search(decoder, how, constraints=constraints)
        assert with_phrases
        assert all(has_phrases(phrases, tuple(one.tokens)) for one in with_phrases)
        assert [one.tokens for one in free] == [one.tokens for one in beam_search(alone(decoder, 1), how)[0]]
        for one in even:
            assert one.tokens.count(1) % 2 == 0
            assert "22" not in "".join(map(str, one.tokens))


@pytest.mark.parametrize("kind", PACKS)
def test_a_source_is_searched_as_if_alone(kind: str) -> None:
    for seed in range(2):
        draw = random.Random(seed)
        decoder = toy(seed, 6, sources=5, places=4, kind=kind, sure=draw.choice((0.5, 2, 4)))
        how = BeamSection(
            beam_width=4,
            n_best=4,
            groups=draw.choice((1, 2)),
            length_penalty=draw.choice(ALPHAS),
            coverage_penalty=draw.choice(BETAS),
            length_ratio=2,
            min_ratio=draw.choice((0, 0.5)),
        )
        together = beam_search(decoder, how)
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        moved = decoder._replace(
            state=select(decoder.state, order),
            source_lengths=decoder.source_lengths[order],
            prompt=decoder.prompt.expand(5, 1),
        )
        shuffled = beam_search(moved, how)
        for source in range(5):
            for other in (shuffled[order.tolist().index(source)], beam_search(alone(decoder, source), how)[0]):
                same(together[source], [(tuple(one.tokens), one.score) for one in other])
                for one, two in zip(together[source], other, strict=True):
                    assert torch.allclose(one.attention, two.attention)


def test_a_least_length_is_kept_where_the_source_is_short() -> None:
    decoder = toy(3, 6, sources=2)._replace(source_lengths=torch.tensor([1, 9]))
    for width in (1, 4):
        how = BeamSection(beam_width=width, min_length=5, max_length=12, length_ratio=1.5)
        short, long = (len(best[0].tokens) for best in beam_search(decoder, how))
        assert short == 5
        assert 5 <= long <= 12


@pytest.mark.parametrize("seed", range(4))
def test_the_first_is_the_same_however_many_are_asked_for(seed: int) -> None:
    decoder = toy(seed, 6, sources=3, sure=random.Random(seed).choice((0.5, 2, 4)))
    for more, wishes in (
        ({}, {}),
        ({"groups": 2}, {}),
        ({"groups": 4, "diversity": 3.0}, {}),
        ({}, {"constraints": [Phrases([[1], [2, 3]]), None, Phrases([[4]])]}),
        ({}, {"constraints": [Even(6), Phrases([[5, 5]]), None]}),
    ):
        how = BeamSection(beam_width=4, max_length=8, length_penalty=1.0, **more)
        several = beam_search(decoder, how.replace(n_best=4), **wishes)
        for first, rest in zip(beam_search(decoder, how, **wishes), several, strict=True):
            same(first, [(tuple(one.tokens), one.score) for one in rest[:1]])
            scores, lines = [one.score for one in rest], [tuple(one.tokens) for one in rest]
            assert scores == sorted(scores, reverse=True)
            assert len(set(lines)) == len(lines)


def test_groups_go_apart() -> None:
    for seed in range(10):
        decoder = toy(seed, 6, sure=3)
        how = BeamSection(beam_width=6, n_best=6, max_length=6, groups=3, min_length=1)
        narrow = beam_search(decoder, how.replace(beam_width=2, groups=1, n_best=2))[0]
        alike = beam_search(decoder, how.replace(diversity=0.0))[0]
        same(alike[:2], [(tuple(one.tokens), one.score) for one in narrow])
        apart = beam_search(decoder, how.replace(beam_width=3, n_best=3, diversity=1e3))[0]
        assert len({one.tokens[0] for one in apart}) == 3
        first = beam_search(decoder, how.replace(beam_width=1, n_best=1, groups=1))[0][0]
        assert first.tokens in [one.tokens for one in apart]


def test_where_nothing_is_legal_nothing_is_found() -> None:
    decoder = toy(0, 4, sources=2)
    nothing, something = beam_search(
        decoder, BeamSection(max_length=2, beam_width=3), constraints=[Phrases([[1, 2, 3]]), Phrases([[1], [2]])]
    )
    assert nothing == []
    assert sorted(something[0].tokens) == [1, 2]
    assert beam_search(decoder, BeamSection(min_length=1), allowed=[]) == [[], []]
    (proof, _) = exact_search(decoder, BeamSection(max_length=2), constraints=[Phrases([[1, 2, 3]]), None])
    assert proof.best is None
    assert proof.proven


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_reported_is_what_the_model_says_of_the_sequence(dtype: torch.dtype) -> None:
    for seed in range(4):
        decoder = toy(seed, 5, sources=3, places=4, sure=3, says=dtype)
        how = BeamSection(beam_width=3, n_best=3, coverage_penalty=0.3, max_length=8)
        for source, found in enumerate(beam_search(decoder, how)):
            model = alone(decoder, source)
            for one in found:
                log_p, attention, state, last = [], [], model.state, model.prompt
                for token in [*one.tokens, 0]:
                    p, state = model.step(last, state)
                    log_p.append(p[0, token].item())
                    attention.append(model.attention(state)[0, : model.source_lengths])
                    last = torch.tensor([token])
                near = 1e-10 if dtype == torch.float64 else 1e-5
                assert one.token_log_p == pytest.approx(log_p, rel=0, abs=near)
                assert one.log_p == pytest.approx(sum(log_p), rel=0, abs=near)
                torch.testing.assert_close(one.attention, torch.stack(attention))
                assert one.attention.sum(1).tolist() == pytest.approx([1] * len(log_p))
                missed = one.attention.sum(0).clamp(1e-9, 1).log().sum().item()
                assert one.score == pytest.approx(one.log_p / ((5 + len(log_p)) / 6) ** 0.6 + 0.3 * missed)
                assert one.ended == (len(one.tokens) < 8 or p.argmax() == 0)


def test_width_1_is_greedy() -> None:
    for seed in range(40):
        decoder = toy(seed, 6, sure=3)
        (found,) = beam_search(decoder, BeamSection(beam_width=1, max_length=12))[0]
        state, last, tokens = decoder.state, decoder.prompt, []
        while True:
            log_p, state = decoder.step(last, state)
            last = log_p.argmax(1)
            if last == 0 or len(tokens) == 12:
                break
            tokens.append(int(last))
        assert found.tokens == tokens
        assert found.ended == (last.item() == 0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"n_best": 6}, "n_best: a beam of 5 cannot give 6; raise beam_width to 6 or lower n_best"),
        ({"groups": 2}, "groups: a beam of 5 cannot be divided into 2 equal groups"),
        ({"min_length": 9, "max_length": 8}, "min_length: 9 is more than max_length, 8"),
        ({"min_ratio": 2.0, "length_ratio": 1.0}, "min_ratio: 2 is more than length_ratio, 1"),
        ({"beam_width": 0}, "beam_width: expected a whole number ≥ 1"),
        ({"length_penalty": -0.1}, "length_penalty: expected a number ≥ 0"),
    ],
)
def test_impossible_settings_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BeamSection(**how)


@pytest.mark.parametrize(
    ("how", "change", "wishes", "message"),
    [
        ({"coverage_penalty": 0.1}, {"attention": None}, {}, "coverage_penalty needs attention"),
        ({"length_ratio": 2.0}, {"source_lengths": None}, {}, "need the lengths of sources"),
        ({}, {"prompt": torch.empty(0, dtype=torch.int64)}, {}, "at least one token to start from"),
        ({}, {"prompt": torch.zeros(3, 1, dtype=torch.int64)}, {}, r"as many rows, but have .*'prompt': 3"),
        ({}, {"source_lengths": torch.ones(3, dtype=torch.int64)}, {}, "as many rows"),
        ({}, {"end": 9}, {}, "token 9 is not among the model's 4, 0 … 3"),
        ({}, {}, {"banned": [4]}, "token 4 is not among"),
        ({}, {}, {"allowed": [-1]}, "token -1 is not among"),
        ({}, {}, {"prefixes": [[1]]}, "expected prefixes for 2 sources; got 1"),
        ({}, {}, {"constraints": [None]}, "expected constraints for 2 sources; got 1"),
        ({}, {}, {"constraints": Phrases([[1]])}, "expected constraints as a list, one a source; got Phrases"),
        ({}, {}, {"constraints": [Phrases([[4]]), None]}, "a phrase has token 4, which ends sequences or is not"),
        ({}, {}, {"constraints": [None, Phrases([[1, 0]])]}, "a phrase has token 0, which ends"),
        ({"max_length": 1}, {}, {"prefixes": [[1], [1, 1]]}, "prefix 1 has 2 tokens, but at most 1"),
        ({}, {}, {"prefixes": [[1], [0]]}, "prefix 1 has the token that ends"),
        ({}, {}, {"prefixes": [[7], []]}, "token 7 is not among"),
        ({}, {}, {"constraints": [Misshapen(4), None]}, r"Misshapen.allowed: the mask should be bool of shape \(4,\)"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(how: Any, change: Any, wishes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        beam_search(toy(0, 4, sources=2)._replace(**change), BeamSection(**how), **wishes)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_all_of_a_search_is_where_its_prompt_is(kind: str) -> None:
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    with FarDevice(kind) as far:

        def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
            assert far.is_far(tokens)
            return there[tokens], (state[0], state[1] + 1)

        there = table.to(kind)
        state = (torch.full((2, 3), 1 / 3).to(kind), torch.zeros(2).to(kind))
        lengths, prompt = torch.tensor([3, 2]).to(kind), torch.tensor([1, 2]).to(kind)
        decoder = Decoder(step, state, prompt, 0, attention=lambda s: s[0], source_lengths=lengths)
        how = BeamSection(beam_width=4, coverage_penalty=0.1, min_length=1, length_ratio=2, no_repeat=3)
        wishes: Any = {"constraints": [Phrases([[1, 2]]), None], "prefixes": [[], [3]], "banned": [4]}
        for both in (beam_search(decoder, how, **wishes), beam_search(decoder, how.replace(groups=2))):
            assert [len(found) for found in both] == [1, 1]
        assert all(proof.best for proof in exact_search(decoder, how, nodes=50, **wishes))


@pytest.mark.parametrize("width", [1, 3])
def test_nan_is_an_error(width: int) -> None:
    decoder = toy(0, 4)
    broken = decoder._replace(step=lambda tokens, state: (decoder.step(tokens, state)[0] * torch.nan, state))
    with pytest.raises(RunError, match="log p of a token is NaN"):
        beam_search(broken, BeamSection(beam_width=width))


def test_an_empty_phrase_is_refused() -> None:
    with pytest.raises(ConfigError, match="one is empty"):
        Phrases([[1], []])


@pytest.mark.parametrize("seed", range(24))
def test_exact_search_proves_what_an_exhaustive_one_finds(seed: int) -> None:
    draw = random.Random(seed)
    decoder = toy(seed, 4, sources=2, end=draw.choice((0, 0, 0, None)), sure=draw.choice((0.3, 2, 5)))
    how = BeamSection(beam_width=draw.choice((1, 2)), **settings(draw))
    how = how.replace(max_length=min(how.max_length, 4), min_length=min(how.min_length, 2, how.max_length))
    wishes: dict[str, Any] = draw.choice(({}, {"banned": [1]}, {"constraints": [Phrases([[3]]), None]}))
    exhaustive = beam_search(decoder, how.replace(beam_width=2000), **wishes)
    for found, wanted, beam in zip(
        exact_search(decoder, how, **wishes), exhaustive, beam_search(decoder, how, **wishes), strict=True
    ):
        assert found.proven
        same([found.best] if found.best else [], [(tuple(one.tokens), one.score) for one in wanted])
        assert found.search_error == ([one.tokens for one in beam] != [one.tokens for one in wanted])
        if found.best is not None:
            assert found.best.log_p == pytest.approx(wanted[0].log_p)
            assert torch.allclose(found.best.attention, wanted[0].attention)


def test_exact_search_says_when_nothing_is_proven() -> None:
    (found,) = exact_search(toy(1, 6, sure=0.1), BeamSection(beam_width=1, max_length=8, min_length=4), nodes=40)
    assert not found.proven
    assert found.best is not None
    assert 40 <= found.nodes < 40 + 32
    for wrong in ({"n_best": 2}, {"groups": 5}):
        with pytest.raises(ConfigError, match="n_best and groups should be 1"):
            exact_search(toy(1, 4), BeamSection(**wrong))


def test_an_ensemble_says_the_mean() -> None:
    each = [toy(seed, 5, sources=2) for seed in range(3)]
    each = [one._replace(source_lengths=torch.tensor([3, 3])) for one in each]
    both = ensemble(each)
    how = BeamSection(beam_width=3, n_best=3, max_length=6)
    for source, found in enumerate(beam_search(both, how)):
        for one in found:
            states, last, log_p = [alone(model, source).state for model in each], each[0].prompt, []
            for token in [*one.tokens, 0]:
                p, states = zip(
                    *(model.step(last, state) for model, state in zip(each, states, strict=True)), strict=True
                )
                log_p.append(torch.stack(p).exp().mean(0).log()[0, token].item())
                last = torch.tensor([token])
            assert one.token_log_p == pytest.approx(log_p)
            assert one.attention.sum(1).tolist() == pytest.approx([1] * len(log_p))
    single = beam_search(ensemble(each[:1]), how)[0]
    same(single, [(tuple(one.tokens), one.score) for one in beam_search(each[0], how)[0]])
    for wrong, message in (
        ([], "at least one"),
        ([each[0], each[1]._replace(end=1)], "same end and prompt, but 1 has 1"),
        ([each[0], toy(1, 6, sources=2)._replace(prompt=each[0].prompt)], r"one vocabulary, but theirs have \[5, 6\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            beam_search(ensemble(wrong), how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_are_those_of_sorting(dtype: torch.dtype) -> None:
    for columns in (1, 63, 64, 200):
        numbers = torch.randn(9, columns, dtype=dtype)
        numbers[0], numbers[1, ::2] = 0.5, -torch.inf
        for count in {1, min(5, columns), min(33, columns)}:
            best, places = largest(numbers, count)
            assert best.equal(numbers.topk(count).values)
            there = best > -torch.inf
            assert numbers.gather(1, places)[there].equal(best[there])
            assert all(len({*row.tolist()}) == len(row) for row in places[there.all(1)])
    numbers[2, 7] = torch.nan
    assert largest(numbers, 2)[1][2, 0] == 7
    assert largest(torch.full((1, 90), torch.nan), 2)[0].isnan().all()
    assert largest(numbers[3:].t(), 3)[0].equal(numbers[3:].t().topk(3).values)
