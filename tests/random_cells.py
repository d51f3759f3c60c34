"""Random cells: a nest of state and a step of what PyTorch offers, as source that can be printed and made smaller."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

import torch
from test_laws import everything
from torch import Tensor, nn

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.backends.protocol import Refusal
from everstep.state import map_state

Shape = tuple[int, ...]
STATE_BOUND = 4.0
"""No number of a state is larger: every line knows how large its values can be."""


@dataclass(frozen=True)
class Line:
    """`name = code`, a value of `shape` in each row, never larger than `bound`; it reads the names in `reads`."""

    name: str
    shape: Shape
    code: str
    reads: tuple[str, ...]
    bound: float


@dataclass(frozen=True)
class Recipe:
    """A cell: `made` gives the source of what is created in `__init__`, `ends` the output and the new state."""

    features: int
    nest: str
    states: tuple[tuple[Shape, str], ...]
    made: dict[str, str]
    lines: tuple[Line, ...]
    ends: tuple[str, ...]

    @property
    def needed(self) -> tuple[Line, ...]:
        """The lines that the ends need."""
        wanted, kept = set(self.ends), []
        for line in reversed(self.lines):
            if line.name in wanted:
                wanted.update(line.reads)
                kept.append(line)
        return tuple(reversed(kept))

    def source(self) -> str:
        """The class, as Python."""
        lines = self.needed
        text = " ".join(line.code for line in lines) + " ".join(start for _, start in self.states)
        made = [f"self.{name} = {code}" for name, code in self.made.items() if f"self.{name}" in text]
        names = [f"s{k}" for k in range(len(self.states))]
        sizes = {line.name: line.shape for line in self.lines} | {"x": (self.features,)}
        starts = [start.format(*shape, shape="".join(f", {n}" for n in shape)) for shape, start in self.states]
        body = [
            f"{self._nested(names)} = state"
            if self.nest != "dict"
            else "; ".join(f"{n} = state['{n}']" for n in names),
            *(f"{line.name} = {line.code}" for line in lines),
            f"return {self.ends[0]}, {self._nested(self.ends[1:], names)}",
        ]
        parts = {
            "__init__(self)": [f"super().__init__({self.features}, {sizes[self.ends[0]][0]})", *made],
            "initial_state(self, batch, like)": [f"return {self._nested(starts, names)}"],
            "step(self, x, state)": body,
        }
        written = "".join(
            f"    def {head}:\n" + "".join(f"        {b}\n" for b in block) for head, block in parts.items()
        )
        return f"class RandomCell(es.Cell):\n{written}"

    def _nested(self, values: list[str] | tuple[str, ...], names: list[str] | None = None) -> str:
        if self.nest == "dict" and names is not None:
            return "{" + ", ".join(f"'{n}': {v}" for n, v in zip(names, values, strict=True)) + "}"
        if self.nest == "one":
            return values[0]
        if self.nest == "pair" and len(values) > 1:
            return f"({values[0]}, ({', '.join(values[1:])},))"
        return f"({', '.join(values)},)"

    def cell(self) -> es.Cell:
        """The cell itself, in float64."""
        space = {"es": es, "torch": torch, "nn": nn, "F": nn.functional}
        exec(self.source(), space)
        torch.manual_seed(3)
        return space["RandomCell"]().double()  # type: ignore[operator]

    def smaller(self) -> Iterator[Recipe]:
        """The same with one line or one leaf's end replaced by something earlier."""
        known = [Line("x", (self.features,), "", (), 3.0)]
        known += [Line(f"s{k}", shape, "", (), STATE_BOUND) for k, (shape, _) in enumerate(self.states)]
        for k in range(1, len(self.ends)):
            if self.ends[k] != f"s{k - 1}":
                yield replace(self, ends=(*self.ends[:k], f"s{k - 1}", *self.ends[k + 1 :]))
        for line in reversed(self.needed):
            earlier = [*known, *self.lines[: self.lines.index(line)]]
            for other in earlier:
                if other.shape == line.shape and other.bound <= line.bound and line.code != other.name:
                    changed = replace(line, code=other.name, reads=(other.name,))
                    yield replace(self, lines=tuple(changed if entry is line else entry for entry in self.lines))


UNARY: list[tuple[str, Callable[[float], float]]] = [
    *((f"torch.{f}({{0}})", lambda b: 1.0) for f in ("sigmoid", "tanh", "sin", "cos", "erf")),
    *((f"F.{f}({{0}})", lambda b: max(b, 1.8)) for f in ("elu", "leaky_relu", "gelu", "silu", "relu", "selu", "celu")),
    *((f"F.{f}({{0}})", lambda b: 1.0) for f in ("hardtanh", "softsign")),
    ("F.elu({0}, alpha=0.7)", lambda b: max(b, 1.0)),
    ("F.leaky_relu({0}, 0.2)", lambda b: b),
    ("F.hardtanh({0}, -0.4, 0.6)", lambda b: 0.6),
    ("F.gelu({0}, approximate='tanh')", lambda b: b),
    ("F.softplus({0})", lambda b: b + 0.7),
    ("F.softplus({0}, beta=2.0, threshold=1.5)", lambda b: b + 0.4),
    ("F.logsigmoid({0})", lambda b: b + 0.7),
    ("F.relu6({0})", lambda b: b),
    ("torch.atan({0})", lambda b: 1.6),
    ("torch.abs({0})", lambda b: b),
    ("torch.exp(torch.clamp({0}, -2, 1.5))", lambda b: 4.5),
    ("torch.exp(-torch.abs({0}))", lambda b: 1.0),
    ("torch.expm1(torch.tanh({0}))", lambda b: 1.8),
    ("torch.sqrt(torch.abs({0}) + 0.3)", lambda b: b + 1),
    ("torch.rsqrt({0} * {0} + 0.5)", lambda b: 1.5),
    ("torch.reciprocal(1.5 + torch.sin({0}))", lambda b: 2.0),
    ("torch.log(torch.abs({0}) + 0.5)", lambda b: b + 1),
    ("torch.log1p(torch.abs({0}))", lambda b: b),
    ("(torch.abs({0}) + 0.3).pow(1.3)", lambda b: (b + 0.3) ** 1.3),
    ("{0} ** 2", lambda b: b * b),
    ("{0} ** 3", lambda b: b**3),
    ("(torch.abs({0}) + 0.3) ** -1", lambda b: 3.4),
    ("2.0 ** torch.tanh({0})", lambda b: 2.0),
    ("-{0}", lambda b: b),
    ("1 - {0}", lambda b: b + 1),
    ("torch.rsub({0}, 0.5, alpha=2)", lambda b: 2 * b + 0.5),
    ("{0} / 3", lambda b: b / 3),
    ("1 / (2 + torch.cos({0}))", lambda b: 1.0),
    ("torch.clamp({0}, -0.5, 0.7)", lambda b: 0.7),
    ("torch.clamp({0}, min=0.1)", lambda b: max(b, 0.1)),
    ("torch.clamp_max({0}, 0.2)", lambda b: max(b, 0.2)),
    ("torch.sign({0}) * 0.3 + 0.1 * {0}", lambda b: 0.3 + b / 10),
    ("torch.floor({0} + 0.37) - 0.4 * {0}", lambda b: b + 1),
    ("torch.round({0} + 0.21) - 0.4 * {0}", lambda b: b + 1),
    ("torch.remainder({0} + 0.13, 2)", lambda b: 2.0),
    ("({0} > 0.1).to({0}.dtype) - 0.2 * {0}", lambda b: b + 1),
    ("torch.where({0} <= 0.2, {0} * 0.5, {0})", lambda b: b),
    ("torch.where(({0} > -0.3) & ~({0} > 0.4), {0}, 0.25)", lambda b: max(b, 0.25)),
    ("torch.ones_like({0}) - {0}", lambda b: b + 1),
    ("{0} * torch.full_like({0}, 0.5)", lambda b: b),
    ("{0}.clone().detach() + {0}", lambda b: 2 * b),
    ("F.mish({0})", lambda b: b),
    ("F.hardswish({0})", lambda b: b),
    ("F.softshrink({0} + 0.03, 0.3)", lambda b: b),
    ("F.threshold({0} + 0.03, 0.1, -0.2)", lambda b: b + 0.2),
    ("torch.exp2(-torch.abs({0}))", lambda b: 1.0),
    ("torch.log2(1.3 + {0} * {0})", lambda b: 2 * b + 1),
    ("{0}.masked_fill({0} > 0.4, -0.2)", lambda b: b + 0.2),
    ("{0} * ({0} > 0.3).to({0}.dtype).bool()", lambda b: b),
    ("{0} * (({0} > 0.3) + ({0} > -0.2))", lambda b: b),
    ("torch.addcdiv({0}, {0}, 1 + {0} * {0}, value=0.5)", lambda b: b + 0.3),
    ("torch.logaddexp({0}, -0.5 * {0})", lambda b: b + 0.7),
    ("{0}.mul(0.5).add_(0.1).tanh_()", lambda b: 1.0),
    ("F.relu({0} - 0.2, inplace=True)", lambda b: b + 0.2),
    ("torch.empty_like({0}).fill_(0.3) + {0}", lambda b: b + 0.3),
]
BINARY: list[tuple[str, Callable[[float, float], float]]] = [
    ("{0} + {1}", lambda a, b: a + b),
    ("{0} - {1}", lambda a, b: a + b),
    ("torch.add({0}, {1}, alpha=0.5)", lambda a, b: a + b),
    ("{0} * {1}", lambda a, b: a * b),
    ("{0} * {1}", lambda a, b: a * b),
    ("{0} / (1 + torch.abs({1}))", lambda a, b: a),
    ("torch.maximum({0}, {1})", max),
    ("torch.minimum({0}, {1})", max),
    ("torch.where({0} > {1}, {0}, {1} * 0.5)", max),
    ("torch.where(({0} < 0.3) | ({1} >= 0.1), {0}, {1})", max),
    ("torch.lerp({0}, {1}, 0.3)", lambda a, b: a + b),
    ("torch.lerp({0}, {1}, torch.sigmoid({0} - {1}))", lambda a, b: a + b),
    ("torch.addcmul({0}, {0}, {1}, value=0.5)", lambda a, b: a + a * b),
    ("({0} > {1}).to({0}.dtype) + 0.1 * {1}", lambda a, b: b + 1),
    ("torch.pow(torch.abs({0}) + 0.3, torch.tanh({1}))", lambda a, b: a + 3.4),
    ("torch.sigmoid({1}) * {0} + (1 - torch.sigmoid({1})) * {1}", lambda a, b: a + b),
]


class _Writer:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.features = self.rng.randint(1, 5)
        self.lines: list[Line] = []
        self.made: dict[str, str] = {}
        self.states = tuple((self.shape(), self.start()) for _ in range(self.rng.choice((1, 1, 2, 2, 3, 4))))
        self.values = [Line("x", (self.features,), "", (), 3.0)]
        self.values += [Line(f"s{k}", shape, "", (), STATE_BOUND) for k, (shape, _) in enumerate(self.states)]

    def shape(self) -> Shape:
        width = self.rng.choice((1, 2, 3, 4, 5, 8, 17, 33))
        small = (self.rng.randint(1, 4), self.rng.randint(1, 5))
        return self.rng.choice(((width,), (width,), (width,), (), small))

    def start(self) -> str:
        if self.rng.random() < 0.7:
            return self.rng.choice(("like.new_zeros(batch{shape})", "like.new_ones(batch{shape})"))
        name = self.new("nn.Parameter(torch.rand(1))")
        ways = (
            "self.{0}.to(like.dtype).expand(batch{{shape}})",
            "self.{0}.to(like.dtype) * like.new_ones(batch{{shape}})",
        )
        return self.rng.choice(ways).format(name)

    def new(self, code: str) -> str:
        name = f"p{len(self.made)}"
        self.made[name] = code
        return name

    def parameter(self, *shape: int) -> str:
        """Source of a parameter whose numbers are at most 1."""
        return (
            f"self.{self.new(f'nn.Parameter(torch.rand{shape} * 2 - 1)' if shape else 'nn.Parameter(torch.rand(()))')}"
        )

    def pick(self, fits: Callable[[Line], bool] = lambda line: True) -> Line | None:
        """A value, a late one more often."""
        found = [v for v in self.values if fits(v)]
        if not found:
            return None
        return self.rng.choice(found[-4:] if self.rng.random() < 0.6 else found)

    def add(self, code: str, shape: Shape, bound: float, *reads: Line) -> Line:
        if bound > 8:
            code, bound = f"torch.tanh({code})", 1.0
        line = Line(f"v{len(self.lines)}", shape, code, tuple(r.name for r in reads), bound)
        self.lines.append(line)
        self.values.append(line)
        return line

    def unary(self) -> Line | None:
        v = self.pick()
        code, bound = self.rng.choice(UNARY)
        return v and self.add(code.format(v.name), v.shape, bound(v.bound), v)

    def binary(self) -> Line | None:
        a = self.pick()
        b = self.pick(lambda line: a is not None and line.shape == a.shape)
        code, bound = self.rng.choice(BINARY)
        if a is None or b is None:
            return None
        return self.add(code.format(a.name, b.name), a.shape, bound(a.bound, b.bound), a, b)

    def with_parameter(self) -> Line | None:
        v = self.pick()
        if v is None:
            return None
        shape = self.rng.choice((v.shape, v.shape[-1:], ()))
        code, bound = self.rng.choice(BINARY[:12])
        names = [v.name, self.parameter(*shape)]
        bounds = [v.bound, 1.0]
        if self.rng.random() < 0.3 and "lerp" not in code and "addcmul" not in code:
            names.reverse()
            bounds.reverse()
        return self.add(code.format(*names), v.shape, bound(*bounds), v)

    def product(self) -> Line | None:
        rank = 2 if self.rng.random() < 0.2 else 1
        v = self.pick(lambda line: len(line.shape) == rank)
        if v is None:
            return None
        n, m = v.shape[-1], self.rng.choice((1, 2, 3, 4, 7, 16, 19))
        bound = v.bound * math.sqrt(n) + 1
        kind = self.rng.randrange(4)
        if kind < 2:
            name = self.new(f"nn.Linear({n}, {m}{', bias=False' if kind else ''})")
            code = f"self.{name}({v.name})"
        else:
            name = self.new(f"nn.Parameter((torch.rand({n}, {m}) * 2 - 1) / {n} ** 0.5)")
            code = f"{v.name} @ self.{name}" if kind == 2 else f"F.linear({v.name}, self.{name}.t())"
        return self.add(code, (*v.shape[:-1], m), bound, v)

    def blocks(self) -> Line | None:
        """A matrix for each part of a row."""
        v = self.pick(lambda line: len(line.shape) == 2)
        if v is None:
            return None
        (heads, n), m = v.shape, self.rng.choice((1, 2, 3, 4, 7))
        name = self.new(f"nn.Parameter((torch.rand({heads}, {n}, {m}) * 2 - 1) / {n} ** 0.5)")
        ways = (
            "torch.einsum('bhd,hde->bhe', {0}, self.{1})",
            "torch.bmm({0}.transpose(0, 1), self.{1}).transpose(0, 1)",
            "torch.bmm(self.{1}.transpose(1, 2), {0}.permute(1, 2, 0)).permute(2, 0, 1)",
            "({0}.unsqueeze(2) @ self.{1}).squeeze(2)",
            "(self.{1}.transpose(1, 2) @ {0}.unsqueeze(-1)).squeeze(-1)",
        )
        if self.rng.random() < 0.3:
            vector = self.parameter(n)
            ways = ("{0} @ {1}", "torch.einsum('bhd,d->bh', {0}, {1})", "F.layer_norm({0}, ({2},)) @ {1}")
            return self.add(self.rng.choice(ways).format(v.name, vector, n), (heads,), max(v.bound, 3.0) * n, v)
        return self.add(self.rng.choice(ways).format(v.name, name), (heads, m), v.bound * math.sqrt(n) + 1, v)

    def reduction(self) -> Line | None:
        v = self.pick(lambda line: len(line.shape) > 0)
        if v is None:
            return None
        n, kept, name = v.shape[-1], v.shape[:-1], v.name
        axis = self.rng.choice((-1, 1)) if len(v.shape) > 1 else -1
        if axis == 1:
            n, kept = v.shape[0], v.shape[1:]
        keep = self.rng.random() < 0.3
        if keep:
            kept = tuple(1 if d == (axis - 1 if axis > 0 else len(v.shape) - 1) else m for d, m in enumerate(v.shape))
        how = f"{axis}, keepdim={keep}"
        weight = f", {self.parameter(n)}" if self.rng.random() < 0.5 else ", None"
        bias = f", {self.parameter(n)}" if self.rng.random() < 0.5 else ", None"
        choices = [
            (f"{name}.sum({how})", kept, v.bound * n),
            (f"{name}.mean({how})", kept, v.bound),
            (f"{name}.amax({how})", kept, v.bound),
            (f"{name}.amin({how})", kept, v.bound),
            (f"{name}.var({axis}, unbiased=False, keepdim={keep})", kept, v.bound**2),
            (f"torch.softmax({name}, {axis})", v.shape, 1.0),
            (f"torch.log_softmax({name}, {axis})", v.shape, 2 * v.bound + math.log(n)),
            (f"{name}.logsumexp({how})", kept, v.bound + math.log(n)),
            (f"{name}.norm(dim={axis}, keepdim={keep})", kept, v.bound * math.sqrt(n)),
            (f"F.normalize({name}, dim={axis}, eps=0.3)", v.shape, 1.0),
            (f"{name}.cumsum({axis})", v.shape, v.bound * n),
            (f"torch.sigmoid({name}).prod({axis}, keepdim={keep})", kept, 1.0),
            (f"({name} > 0.2).any({how}).to({name}.dtype) + 0.1 * {name}.mean({how})", kept, v.bound + 1),
            (f"torch.stack([{name}, torch.tanh({name})]).mean(0)", v.shape, v.bound),
        ]
        if n > 1:
            choices.append((f"{name}.var({axis}, keepdim={keep})", kept, 2 * v.bound**2))
            choices.append((f"torch.std({name}, {axis}, keepdim={keep})", kept, 2 * v.bound))
        if axis == -1:
            choices += 2 * [(f"F.layer_norm({name}, ({n},){weight}{bias}, 0.1)", v.shape, 5.0 * v.bound + 1)]
        if len(v.shape) == 2:
            choices += [
                (f"{name}.sum((1, 2))", (), v.bound * math.prod(v.shape)),
                (f"{name}.mean((-1, -2))", (), v.bound),
            ]
            choices += [(f"{name}.flatten(1).amax(-1)", (), v.bound)]
        code, shape, bound = self.rng.choice(choices)
        return self.add(code, shape, bound, v)

    def reshape(self) -> Line | None:
        v = self.pick()
        if v is None:
            return None
        name, shape, rank, b = v.name, v.shape, len(v.shape), v.bound
        choices: list[tuple[str, Shape]] = []
        if rank < 2:
            choices += [(f"{name}.unsqueeze(-1)", (*shape, 1)), (f"{name}.unsqueeze(1)", (1, *shape))]
            choices += [(f"{name}.unsqueeze(1).expand(-1, 3{', -1' * rank})", (3, *shape))]
        if rank and shape[-1] == 1:
            choices += [
                (f"{name}.squeeze(-1)", shape[:-1]),
                (f"{name}.expand(-1{', -1' * (rank - 1)}, 3)", (*shape[:-1], 3)),
            ]
        if rank:
            n = shape[-1]
            low = self.rng.randrange(n)
            high = self.rng.randint(low + 1, n)
            choices += [(f"{name}[..., {low}:{high}]", (*shape[:-1], high - low))]
            choices += [(f"{name}[..., ::2]", (*shape[:-1], (n + 1) // 2)), (f"{name}[:, {shape[0] - 1}]", shape[1:])]
            choices += [(f"{name}.narrow(-1, {low}, {high - low})", (*shape[:-1], high - low))]
            choices += [(f"{name}.select(-1, {low})", shape[:-1])]
            choices += [(f"{name}.flip(-1)", shape), (f"{name}.roll({low}, -1)", shape)]
            choices += [(f"F.pad({name}, (1, {low}))", (*shape[:-1], n + 1 + low))]
            choices += [(f"{name}[..., {[low, high - 1, 0]}]", (*shape[:-1], 3))]
            choices += [(f"{name}.repeat(1, {'1, ' * (rank - 1)}2)", (*shape[:-1], 2 * n))]
            if n % 2 == 0:
                which = self.rng.randrange(2)
                choices += [(f"{name}.chunk(2, -1)[{which}]", (*shape[:-1], n // 2))]
                choices += [(f"torch.stack({name}.chunk(2, -1), 1)", (2, *shape[:-1], n // 2))] * (rank == 1)
                choices += [(f"{name}.view(-1, 2, {n // 2})", (2, n // 2))] * (rank == 1)
                choices += [(f"{name}.unflatten(-1, ({n // 2}, 2)).transpose(1, 2)", (2, n // 2))] * (rank == 1)
            if n > 1:
                choices += [(f"{name}.split([1, {n - 1}], -1)[1]", (*shape[:-1], n - 1))]
        if rank == 2:
            choices += [(f"{name}.transpose(1, 2)", shape[::-1]), (f"{name}.flatten(1)", (math.prod(shape),))] * 2
            choices += [(f"{name}.transpose(1, 2).reshape(-1, {math.prod(shape)})", (math.prod(shape),))]
            choices += [(f"{name}.unbind(1)[0]", shape[1:])]
            folded = f"{name}.reshape(-1, {shape[1]})"
            choices += [(f"torch.softmax({folded}, -1).view(-1, {shape[0]}, {shape[1]})", shape)]
            choices += [(f"{folded}.mean(-1).view(-1, {shape[0]})", shape[:1])]
            if shape[0] == shape[1]:
                choices += [(f"{name}.diagonal(dim1=1, dim2=2)", shape[:1])]
        code, shape = self.rng.choice(choices)
        return self.add(code, shape, b, v)

    def join(self) -> Line | None:
        a = self.pick(lambda line: len(line.shape) > 0)
        b = self.pick(lambda line: a is not None and len(line.shape) > 0 and line.shape[:-1] == a.shape[:-1])
        if a is None or b is None:
            return None
        n, bound = a.shape[-1] + b.shape[-1], max(a.bound, b.bound)
        kind = self.rng.randrange(4)
        if kind == 0 and a.shape == b.shape and len(a.shape) == 1:
            return self.add(f"torch.stack([{a.name}, {b.name}], {self.rng.choice((1, -1))})", (0,), bound, a, b)
        if kind == 1 and len(a.shape) == 1:
            code = f"torch.cat([{a.name}, {a.name}.new_zeros(len({a.name}), 2), {b.name}], 1)"
            return self.add(code, (n + 2,), bound, a, b)
        if kind == 2:
            code = f"torch.cat([{a.name}, {b.name}, {a.name}], -1)"
            return self.add(code, (*a.shape[:-1], n + a.shape[-1]), bound, a, b)
        return self.add(f"torch.cat([{a.name}, {b.name}], -1)", (*a.shape[:-1], n), bound, a, b)

    def rowwise_product(self) -> Line | None:
        a = self.pick(lambda line: len(line.shape) == 2)
        v = self.pick(lambda line: len(line.shape) == 1)
        if v is None:
            return None
        if a is None or self.rng.random() < 0.4:
            w = self.pick(lambda line: len(line.shape) == 1 and len(line.shape) * v.shape[0] * line.shape[0] < 80)
            if w is None or v.shape[0] > 8:
                return None
            code = self.rng.choice(("{0}.unsqueeze(2) * {1}.unsqueeze(1)", "torch.einsum('bi,bj->bij', {0}, {1})"))
            return self.add(code.format(v.name, w.name), (*v.shape, *w.shape), v.bound * w.bound, v, w)
        v = self.pick(lambda line: line.shape == a.shape[1:])
        if v is None or self.rng.random() < 0.3:
            other = self.pick(lambda line: len(line.shape) == 2 and line.shape[0] == a.shape[1])
            if other is None:
                return None
            bound = a.bound * other.bound * a.shape[1]
            return self.add(f"torch.bmm({a.name}, {other.name})", (a.shape[0], other.shape[1]), bound, a, other)
        ways = (
            "torch.einsum('bij,bj->bi', {0}, {1})",
            "({0} @ {1}.unsqueeze(-1)).squeeze(-1)",
            "({0} * {1}[:, None]).sum(-1)",
        )
        return self.add(self.rng.choice(ways).format(a.name, v.name), a.shape[:1], a.bound * v.bound * a.shape[1], a, v)

    def broadcast(self) -> Line | None:
        a = self.pick(lambda line: len(line.shape) > 0)
        if a is None:
            return None
        b = self.pick(lambda line: line.shape == a.shape[:-1] or (len(a.shape) == 2 and line.shape == a.shape[1:]))
        if b is None:
            return None
        spread = f"{b.name}.unsqueeze(-1)" if b.shape == a.shape[:-1] else f"{b.name}.unsqueeze(1)"
        code, bound = self.rng.choice(BINARY[:10])
        return self.add(code.format(a.name, spread), a.shape, bound(a.bound, b.bound), a, b)

    def fitted(self, shape: Shape) -> Line:
        """A value of this shape."""
        v = self.pick(lambda line: line.shape == shape and line.name.startswith("v"))
        if v is not None and self.rng.random() < 0.8:
            return v
        v = self.pick(lambda line: len(line.shape) == 1 and line.name.startswith("v")) or self.values[0]
        size = math.prod(shape)
        code = f"self.{self.new(f'nn.Linear({v.shape[0]}, {size})')}({v.name})"
        made = self.add(code, (size,), v.bound * math.sqrt(v.shape[0]) + 1, v)
        return (
            made
            if shape == (size,)
            else self.add(f"{made.name}.view(-1{''.join(f', {n}' for n in shape)})", shape, made.bound, made)
        )

    def end(self, k: int) -> str:
        shape, old = self.states[k][0], self.values[1 + k]
        v = self.fitted(shape)
        kind = self.rng.randrange(5)
        if kind == 0 and v.bound <= STATE_BOUND:
            return v.name
        if kind == 1:
            gate = self.fitted(shape)
            code = f"torch.sigmoid({gate.name}) * {old.name} + (1 - torch.sigmoid({gate.name})) * torch.tanh({v.name})"
            return self.add(code, shape, STATE_BOUND, gate, old, v).name
        if kind == 2:
            return self.add(f"0.7 * {old.name} + 0.3 * torch.tanh({v.name})", shape, STATE_BOUND, old, v).name
        return self.add(f"torch.tanh({v.name})", shape, 1.0, v).name

    def write(self, operations: int) -> Recipe:
        rng = self.rng
        first = self.pick(lambda line: line.name != "x" and len(line.shape) == 1)
        if first is not None and rng.random() < 0.8:  # most cells have what most cells have
            n = first.shape[0]
            m = rng.choice((n, n, 4))
            a, b = (self.new(f"nn.Linear({k}, {m})") for k in (self.features, n))
            self.add(f"self.{a}(x) + self.{b}({first.name})", (m,), 8.0, self.values[0], first)
        ways = [self.unary] * 4 + [self.binary] * 4 + [self.reshape] * 3 + [self.product, self.with_parameter] * 2
        ways += [self.reduction, self.reduction, self.join, self.rowwise_product, self.broadcast, self.broadcast]
        ways += [self.blocks]
        while len(self.lines) < operations:
            line = rng.choice(ways)()
            if line is not None and line.shape == (0,):  # a stack: by either axis
                last = line.code.endswith("-1)")
                n = next(v for v in self.values if v.name == line.reads[0]).shape[0]
                self.lines[-1] = self.values[-1] = replace(line, shape=(n, 2) if last else (2, n))
            if line is not None and (math.prod(line.shape) > 128 or len(line.shape) > 2):
                self.values.pop()
        y = self.fitted((rng.choice((1, 2, 3, 4, 9)),)) if rng.random() < 0.5 else None
        ends = [self.end(k) for k in range(len(self.states))]
        if y is None:
            shared = [e for e, (shape, _) in zip(ends, self.states, strict=True) if len(shape) == 1]
            name = rng.choice(shared) if shared and rng.random() < 0.7 else self.fitted((3,)).name
        else:
            name = y.name
        nest = rng.choice(("tuple", "dict", "pair", *(["one"] * 3 if len(self.states) == 1 else [])))
        return Recipe(self.features, nest, self.states, self.made, tuple(self.lines), (name, *ends))


def recipe(seed: int) -> Recipe:
    """The cell of this number."""
    return _Writer(seed).write(Random(seed + 1).randint(2, 22))


def way(seed: int, batch: int, time: int) -> dict[str, object]:
    """Lengths (0 among them), resets or both, or neither."""
    rng = torch.Generator().manual_seed(seed)
    how: dict[str, object] = {}
    if seed % 2 and batch:
        how["lengths"] = torch.randint(0, time + 1, (batch,), generator=rng)
        if seed % 3 == 0:
            how["lengths"][-1] = 0  # type: ignore[index]
    if seed % 4 > 1:
        how["resets"] = torch.rand(batch, time, generator=rng) < 0.3
    if seed % 7 == 0:
        how["reverse"] = True
    return how


def refused(cell: es.Cell) -> str | None:
    """Why the compiled loop does not take it."""
    xs = torch.zeros(2, 2, cell.input_size, dtype=next((p.dtype for p in cell.parameters()), torch.float64))
    found = fused.prepare(cell, xs, None, None)
    return found if isinstance(found, Refusal) else None


def differences(cell: es.Cell, dtype: torch.dtype, seed: int, batch: int, time: int) -> list[str]:
    """What the compiled loop gives otherwise than the reference: outputs, final state, gradients, each by its name.

    An allowance is made for cells that carry a small difference far: as far as they carry one of 1e-12 in float64 (of
    1e-5 in float32) in all that comes in.
    """
    torch.manual_seed(seed)
    xs = torch.randn(batch, time, cell.input_size, dtype=torch.float64).clamp(-3, 3)
    state = cell.initial_state(batch, xs)
    if seed % 5:
        state = map_state(lambda leaf: (leaf + torch.randn_like(leaf) / 3).detach(), state)
    how = way(seed, batch, time)
    want = everything(cell, xs, state, "reference", **how)
    small, allowed = (1e-12, 1e-9) if dtype == torch.float64 else (1e-5, 1e-4)

    def moved(value: Tensor) -> Tensor:
        return (value * (1 + small * torch.randn_like(value))).detach()

    other = copy.deepcopy(cell)
    for parameter in other.parameters():
        parameter.data = moved(parameter)
    carried = everything(other, moved(xs), map_state(moved, state), "reference", **how)
    same = map_state(lambda leaf: leaf.detach().to(dtype), state)
    got = everything(cell.to(dtype), xs.to(dtype), same, "fused", **how)
    cell.double()
    found = []
    for name, value in want.items():
        scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        reach = float((carried[name] - value).abs().max()) if value.numel() else 0.0
        off = float((got[name].double() - value).abs().max()) if value.numel() else 0.0
        if got[name].shape != value.shape or not off <= max(allowed * scale, 4 * reach):
            found.append(f"{name}: {off:.3g} apart, of {scale:.3g} (the step itself carries {reach:.3g})")
    return found


def smallest(start: Recipe, fails: Callable[[Recipe], bool], tries: int = 300) -> Recipe:
    """A smaller recipe that fails alike."""
    for _ in range(tries):
        for candidate in start.smaller():
            shorter = sum(len(line.code) for line in candidate.needed) < sum(len(line.code) for line in start.needed)
            if shorter and fails(candidate):
                start = candidate
                break
        else:
            break
    return start
