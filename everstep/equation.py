"""An equation that becomes a `Cell` class: `Gated`, or short, `gated`."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.abstract import AbstractGated
from everstep.cell import Cell, check_size
from everstep.state import State


class Projection:
    """A vector as a gated equation sees it: `x.f` is the rows of gate f of W·x + b, `x.value` is x itself.

    `h.of(v).f` is the same rows applied to another vector v, as in the GRU's W·(r ∘ h).
    """

    __slots__ = ("_bias", "_block", "_direct", "_gates", "_weight", "value")

    def __init__(
        self,
        value: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        gates: tuple[str, ...],
        direct: tuple[int, int],
    ):
        self.value = value
        self._weight, self._bias, self._gates, self._direct = weight, bias, gates, direct
        self._block: Tensor | None = None

    def of(self, value: Tensor) -> Projection:
        """The same projection of another vector, gate by gate."""
        return Projection(value, self._weight, self._bias, self._gates, (0, 0))

    def __getattr__(self, gate: str) -> Tensor:
        if gate.startswith("_"):  # PyTorch's compiler asks for these before the gates exist
            raise AttributeError(gate)
        if gate not in self._gates or self._weight is None:
            raise AttributeError(f"no gate {gate!r}; this equation declares: {' '.join(self._gates) or 'none'}")
        index = self._gates.index(gate)
        size = self._weight.shape[0] // len(self._gates)
        first, last = self._direct
        if not first <= index < last:
            return self._rows(index * size, (index + 1) * size)
        if self._block is None:
            self._block = self._rows(first * size, last * size)
        return self._block[..., (index - first) * size : (index - first + 1) * size]

    def _rows(self, start: int, stop: int) -> Tensor:
        assert self._weight is not None
        if (start, stop) == (0, self._weight.shape[0]):
            return F.linear(self.value, self._weight, self._bias)
        return F.linear(self.value, self._weight[start:stop], None if self._bias is None else self._bias[start:stop])


class _Recorder:
    """Stand-in for a projection in the dry run, which records the gates that an equation reads, and how."""

    def __init__(self, value: Tensor, gates: tuple[str, ...]):
        self.value, self.gates = value, gates
        self.direct: set[str] = set()
        self.applied: set[str] = set()

    def of(self, value: Tensor) -> _Recorder:
        other = _Recorder(value, self.gates)
        other.direct = self.applied
        return other

    def __getattr__(self, gate: str) -> Tensor:
        if gate not in self.gates:
            raise AttributeError(f"no gate {gate!r}; this equation declares: {' '.join(self.gates) or 'none'}")
        self.direct.add(gate)
        return torch.zeros_like(self.value)


class Gated(Cell, AbstractGated):
    """A cell that is an equation. Subclass it: name its gates and states, and write the static method `equation`.

    `equation` takes `x`, `h` and `s` and returns the new state, in the order of `state`; the first state is also the
    output. For every gate f, `x.f` is W_xf·x_t + b_xf and `h.f` is W_hf·h_{t-1} + b_hf, with h the first state; `s.c`
    is the state c_{t-1}; `x.value` is x_t itself; `h.of(v).f` is W_hf·v + b_hf. Rows exist only for gates that the
    equation reads. Keyword-only arguments become constructor options. `gated` is the same for a function alone.

    >>> from torch import sigmoid, tanh
    >>> class Minimal(Gated, gates="z n"):
    ...     "What it is for."
    ...     @staticmethod
    ...     def equation(x, h, s, *, activation=tanh):
    ...         z = sigmoid(x.z + h.z)
    ...         return (1 - z) * s.h + z * activation(x.n + h.n)
    >>> ys, h = Minimal(3, 5, activation=torch.relu)(torch.ones(2, 4, 3))
    >>> ys.shape
    torch.Size([2, 4, 5])

    Of a class, beside its bases:

    - gates: names, separated by spaces, in the order of the rows of `weight_ih` and `weight_hh`.
    - state: names of the states, separated by spaces; "h" if not given.
    - vendor: from the options to the name of the `torch` kernel that computes the same equation, or None.

    A class with gates is whole: it has an equation of its own, which is run once on zeros as the class is made. A
    subclass of it without gates is the same cell, with what it adds.

    Args:
        input_size: features D of x_t.
        hidden_size: features H of every state, and of the output, which is the first state.
        bias: True (two bias vectors as in PyTorch, initially uniform), False, or a mapping from gates to initial
            biases, with 0 for the other gates: `bias={"f": 1.0}` is the forget bias of Gers 2000.
        device, dtype: of the parameters.
        **options: the equation's keyword-only arguments.

    Parameters, with G_x and G_h the numbers of gates that the equation reads from x and from h: `weight_ih` (G_x·H, D),
    `weight_hh` (G_h·H, H), `bias_ih` (G_x·H), `bias_hh` (G_h·H), gate after gate in the declared order; all initially
    uniform in ±1/√H, as in `torch.nn`.

    Raises:
        TypeError: an option that the equation does not have; of the class, no equation, one that is no static method or
            does not return its state.
        ValueError: a size below 1, or a bias for a gate that x does not feed; of the class, a gate or a state named
            twice, or a name that is no identifier.
    """

    equation: ClassVar[Callable[..., Any]]
    gates: ClassVar[tuple[str, ...]]
    state_names: ClassVar[tuple[str, ...]]
    state_type: ClassVar[Any]
    vendor: ClassVar[Callable[[Mapping[str, Any]], str | None] | None] = None
    _made_of: ClassVar[Callable[..., Any]]

    weight_ih: Tensor | None
    weight_hh: Tensor | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init_subclass__(
        cls,
        *,
        gates: str | None = None,
        state: str = "h",
        vendor: Callable[[Mapping[str, Any]], str | None] | None = None,
        **others: Any,
    ) -> None:
        super().__init_subclass__(**others)
        own = vars(cls).get("equation")
        if gates is None and own is None:  # the cell above it, with what this class adds
            return
        if not isinstance(gates, str):
            raise TypeError(
                f"{cls.__name__}: expected the names of the gates beside its equation, as in class "
                f'{cls.__name__}(Gated, gates="z n"); got {gates!r}'
            )
        if not isinstance(own, staticmethod):
            came = "none" if own is None else f"a {type(own).__name__}"
            raise TypeError(f"{cls.__name__}: expected a @staticmethod equation(x, h, s); it has {came}")
        cls.gates, cls.state_names = _names(cls.__name__, gates, state)
        cls.state_type = _state_type(cls)
        cls.vendor = None if vendor is None else staticmethod(vendor)
        cls._made_of = own
        cls.__doc__ = _document(cls)
        defaults = _option_defaults(cls.equation)
        if inspect.Parameter.empty not in defaults.values():
            cls._dry_run(8, defaults)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool | Mapping[str, float] = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        if not hasattr(type(self), "equation"):
            raise TypeError(
                f"{type(self).__name__} has no equation; write a subclass with gates and one, or use a cell"
            )
        super().__init__(check_size(self, "input_size", input_size), check_size(self, "hidden_size", hidden_size))
        self.hidden_size = hidden_size
        self.options = self._check_options(options)
        for name, value in self.options.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
        read_x, read_h = self._dry_run(hidden_size, self.options)
        self.input_gates, self._direct_x = self._layout(read_x)
        self.hidden_gates, self._direct_h = self._layout(read_h)
        rows_x, rows_h = len(self.input_gates) * hidden_size, len(self.hidden_gates) * hidden_size
        with_bias = bias is not False
        for name, shape in (
            ("weight_ih", (rows_x, input_size)),
            ("weight_hh", (rows_h, hidden_size)),
            ("bias_ih", (rows_x * with_bias,)),
            ("bias_hh", (rows_h * with_bias,)),
        ):
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if shape[0] else None
            self.register_parameter(name, parameter)
        self._bias_start = dict(bias) if isinstance(bias, Mapping) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every parameter uniform in ±1/√H; biases as the constructor's mapping says, if it was given one."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        if self._bias_start is None:
            return
        unknown = sorted(set(self._bias_start) - set(self.input_gates))
        if unknown:
            raise ValueError(
                f"{type(self).__name__}: bias for {unknown}, but the gates that x feeds are {list(self.input_gates)}"
            )
        with torch.no_grad():
            for vector in (self.bias_ih, self.bias_hh):
                if vector is not None:
                    vector.zero_()
            for gate, value in self._bias_start.items():
                assert self.bias_ih is not None
                self.gate_rows(self.bias_ih, gate, self.input_gates).fill_(value)

    def gate_rows(self, parameter: Tensor, gate: str, gates: tuple[str, ...]) -> Tensor:
        """The rows of one gate in a parameter laid out by `gates` (`input_gates` or `hidden_gates`)."""
        index = gates.index(gate)
        return parameter[index * self.hidden_size : (index + 1) * self.hidden_size]

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros (batch, hidden_size) for every state."""
        zeros = [like.new_zeros(batch, self.hidden_size) for _ in self.state_names]
        return zeros[0] if len(zeros) == 1 else self.state_type(*zeros)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        return self.evaluate(x, state, self.options)

    def evaluate(self, x: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """One step with other options than the cell's own, for wirings that change parts of the equation."""
        s = self.state_type(*((state,) if len(self.state_names) == 1 else state))
        px = Projection(x, self.weight_ih, self.bias_ih, self.input_gates, self._direct_x)
        ph = Projection(s[0], self.weight_hh, self.bias_hh, self.hidden_gates, self._direct_h)
        new = type(self).equation(px, ph, s, **options)
        return (new, new) if len(self.state_names) == 1 else (new[0], self.state_type(*new))

    def vendor_kernel(self) -> str | None:
        """The name of the `torch` kernel that computes this equation ("lstm", "gru", …), or None."""
        vendor = type(self).vendor
        return None if vendor is None else vendor(self.options)

    def steps_as_declared(self) -> bool:
        """Whether `step` is the equation of the class as it was made; either may have been replaced."""
        kind = type(self)
        return kind.step is Gated.step and kind.equation is kind._made_of

    def extra_repr(self) -> str:
        options = "".join(f", {k}={getattr(v, '__name__', v)}" for k, v in self.options.items())
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias_ih is not None else ', bias=False'}{options}"

    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        known = _option_defaults(type(self).equation)
        unknown = sorted(options.keys() - known.keys())
        missing = sorted(k for k, v in known.items() if v is inspect.Parameter.empty and k not in options)
        if unknown or missing:
            complaint = f"unknown {unknown}" if unknown else f"missing {missing}"
            raise TypeError(f"{type(self).__name__}: {complaint}; its options are {sorted(known) or 'none'}")
        return {**known, **options}

    @classmethod
    def _dry_run(cls, size: int, options: Mapping[str, Any]) -> tuple[_Recorder, _Recorder]:
        """Run the equation once on zeros, to record which gates it reads and to reject a wrong equation early."""
        modules = (option for option in options.values() if isinstance(option, nn.Module))
        learned = next((p for module in modules for p in module.parameters()), None)
        zeros = torch.zeros(1, size, device="cpu" if learned is None else learned.device)
        x, h = _Recorder(zeros, cls.gates), _Recorder(zeros, cls.gates)
        with torch.no_grad():
            new = cls.equation(x, h, cls.state_type(*[zeros] * len(cls.state_names)), **options)
        expected = " ".join(cls.state_names)
        parts = (new,) if len(cls.state_names) == 1 else new
        if not isinstance(parts, tuple) or len(parts) != len(cls.state_names):
            came = f"{len(parts)} values" if isinstance(parts, tuple) else type(parts).__name__
            raise TypeError(f"{cls.__name__}: the equation should return its new state ({expected}), but gives {came}")
        for name, part in zip(cls.state_names, parts, strict=True):
            if not isinstance(part, Tensor) or part.shape != zeros.shape:
                shape = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
                raise TypeError(f"{cls.__name__}: the new {name} should be (batch, hidden_size), but is {shape}")
        return x, h

    @classmethod
    def _layout(cls, read: _Recorder) -> tuple[tuple[str, ...], tuple[int, int]]:
        """The gates that have rows, and the range of gates that a single product computes."""
        gates = tuple(g for g in cls.gates if g in read.direct | read.applied)
        places = [gates.index(g) for g in read.direct]
        return gates, (min(places), max(places) + 1) if places else (0, 0)


def gated(
    gates: str, *, state: str = "h", vendor: Callable[[Mapping[str, Any]], str | None] | None = None
) -> Callable[[Callable[..., Any]], type[Gated]]:
    """Turn an equation into a `Cell` class: `Gated` with that function as its `equation`.

    >>> from torch import sigmoid, tanh
    >>> @gated("z n")
    ... def Minimal(x, h, s, *, activation=tanh):
    ...     z = sigmoid(x.z + h.z)
    ...     return (1 - z) * s.h + z * activation(x.n + h.n)
    >>> ys, h = Minimal(3, 5, activation=torch.relu)(torch.ones(2, 4, 3))
    >>> ys.shape
    torch.Size([2, 4, 5])

    Args:
        gates, state, vendor: as of a class, see `Gated`.

    Raises:
        TypeError, ValueError: as `Gated` of a class.

    Known limit: type checkers take what it makes for a variable. A cell that others subclass, or name as a type, is
    written as a class.
    """
    if not isinstance(gates, str):
        raise TypeError(f'gated: expected the names of the gates, as in @gated("z n"); got {type(gates).__name__}')
    _names("gated", gates, state)

    def make(equation: Callable[..., Any]) -> type[Gated]:
        body = {
            "equation": staticmethod(equation),
            "__doc__": equation.__doc__ or f"{equation.__name__}, a gated cell.",
            "__module__": equation.__module__,
            "__qualname__": equation.__qualname__,
        }
        made: type[Gated] = type(equation.__name__, (Gated,), body, gates=gates, state=state, vendor=vendor)
        return made

    return make


def _names(who: str, gates: str, state: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of gates and states, if they can be."""
    found = tuple(gates.split()), tuple(state.split())
    for kind, names in zip(("gate", "state"), found, strict=True):
        bad = [n for n in names if not n.isidentifier() or n in ("of", "value") or n.startswith("_")]
        if bad or len(set(names)) != len(names) or (kind == "state" and not names):
            raise ValueError(f"{who}: {kind} names should be different identifiers, but got as {' '.join(names)!r}")
    return found


def _state_type(cls: type[Gated]) -> Any:
    """The named tuple of the states, which `pickle` finds as an attribute of the cell's class."""
    cell = cls.__name__ if cls.__name__.isidentifier() else "Cell"  # a lambda has no name
    made: Any = namedtuple(f"{cell}State", cls.state_names)  # type: ignore[misc]
    made.__module__, made.__qualname__ = cls.__module__, f"{cls.__qualname__}.state_type"
    return made


def _option_defaults(equation: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(equation).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _document(cls: type[Gated]) -> str:
    """What a cell says of itself, and where its step is its equation, that, and how it is made."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    if cls.step is not Gated.step:
        return text
    gates, (output, *_) = " ".join(cls.gates) or "none", cls.state_names
    names = f"Gates: {gates}. State: {' '.join(cls.state_names)}; the output is {output}."
    base = inspect.cleandoc(str(Gated.__doc__))
    made = "" if "Args:" in text else base[base.index("Args:") :]
    return f"{text}\n\n{names}\n\nThe equation::\n\n{textwrap.indent(_source(cls.equation), '    ')}\n{made}"


def _source(equation: Callable[..., Any]) -> str:
    """The equation as written, without its decorators and its docstring."""
    try:
        text = textwrap.dedent(inspect.getsource(equation))
        function = ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError):
        function = None
    if not isinstance(function, ast.FunctionDef):  # a lambda, or defined outside of a file
        return f"{equation.__name__}{inspect.signature(equation)}   (source not available)\n"
    lines = text.splitlines()
    first = function.body[1 if ast.get_docstring(function) else 0].lineno - 1
    return "\n".join([*lines[function.lineno - 1 : function.body[0].lineno - 1], *lines[first:]]) + "\n"
