"""Forms as one C++ program: a source, a header and a file of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx

from everstep.networks.forms import Form, Input
from everstep.ship.c.c_recurrent import STEP, recurrence
from everstep.ship.c.c_values import Number, Value, dense, product, sized
from everstep.ship.c.c_writer import Constants, CWriter, Lines
from everstep.ship.recording import Recorded, leaf_names, record
from everstep.ship.sizes import NotExported
from everstep.state import leaves

_HANDLERS = {**STEP, "recurrence": recurrence}
_HERE = Path(__file__).parent


class Call(NamedTuple):
    """A form as a function of C++, `everstep_` and its name.

    Attributes:
        form, recorded: what it computes.
        sizes: the sizes that the caller gives, by name.
        outputs: the output nodes by name.
        state: the nodes of the new leaves of the state.
        declared: its parameters.
        text: its definition.
    """

    form: Form
    recorded: Recorded
    sizes: list[str]
    outputs: dict[str, fx.Node]
    state: list[fx.Node]
    declared: str
    text: str


class CProgram(NamedTuple):
    """The files of a program.

    Attributes:
        header, source: text; `source` includes the header by its name, `model.h`.
        weights: the weight file: 32 bytes with the SHA-256 of the source of the forms, then the numbers.
        calls: the functions by the names of the forms.
        sizes: the dynamic sizes of the state, by name.
    """

    header: str
    source: str
    weights: bytes
    calls: dict[str, Call]
    sizes: list[str]


def written(forms: Mapping[str, Form]) -> CProgram:
    """Write forms that share a state, such as what comes before the first step and the step, as C++.

    Raises:
        NotExported: an operation has no loop, or a form cannot be recorded; the message gives the reason.
    """
    constants = Constants()
    last = list(forms.values())[-1]
    of_state = [] if last.before is None else _dynamic(last.before)
    calls = {name: _call(name, form, of_state, constants) for name, form in forms.items()}
    begin, named = _begin(last, constants)
    text = "\n\n".join(call.text for call in calls.values())
    digest = hashlib.sha256((text + begin).encode()).digest()
    marks = {
        "@DIGEST@": ", ".join(map(str, digest)),
        "@BYTES@": str(constants.size),
        "@SIZES@": str(len(of_state)),
        "@BEGIN@": begin,
        "@FORMS@": text,
    }
    source = (_HERE / "program.cpp").read_text(encoding="utf-8")
    for mark, value in marks.items():
        source = source.replace(mark, value)
    told = {
        "@COUNT@": str(len(named)),
        "@LEAVES@": "\n".join(f"   {place}: {name}" for place, name in enumerate(named)) or "   none",
        "@FORMS@": "\n".join(_declaration(name, call) for name, call in calls.items()),
        "@SIZES@": f" {', '.join(of_state) or 'none'}",
    }
    header = (_HERE / "program.h").read_text(encoding="utf-8")
    for mark, value in told.items():
        header = header.replace(mark, value)
    return CProgram(header, source, digest + b"".join(constants.parts), calls, of_state)


def _dynamic(form: Form) -> list[str]:
    """The dynamic sizes of a form's own inputs besides the batch, in their order."""
    every = [d for one in form.inputs.values() for d in one.dims if isinstance(d, str) and d != "batch"]
    return list(dict.fromkeys(every))


def _begin(form: Form, constants: Constants) -> tuple[str, list[str]]:
    """The statements that set the initial state, and the names of its leaves."""
    with torch.no_grad():
        start = form.begun(form.sizes(), torch.Generator())
    names = leaf_names("state", start)
    if form.before is not None:
        return "", names
    lines = []
    for place, (_, leaf) in enumerate(leaves(start)):
        row = leaf[0].clone()
        lines.append(f"  keep(s->state[{place}], stored + {constants.place(row)}, {row.numel() * row.element_size()});")
    return "\n".join(lines), names


def c_name(name: str) -> str:
    """The name of an input or output in C++."""
    return name.replace(".", "_")


def _call(name: str, form: Form, of_state: list[str], constants: Constants) -> Call:
    recorded = record(form, list(_HANDLERS))
    own = _dynamic(form)
    lines = Lines()
    w = CWriter(lines, recorded, _HANDLERS, constants)
    given = {key: node for key, node in recorded.inputs.items() if key in form.inputs}
    held = [node for key, node in recorded.inputs.items() if key not in form.inputs]
    parameters = [f"int64_t n_{size}" for size in own] + [_parameter(key, form.inputs[key]) for key in given]
    outputs = {key: end for key, end in zip(recorded.outputs, recorded.ends, strict=True) if not _of_state(key)}
    state = [end for key, end in zip(recorded.outputs, recorded.ends, strict=True) if _of_state(key)]
    for key, node in outputs.items():
        if w.kind(node) != "float":
            raise NotExported(f"its output {key} is {node.meta['val'].dtype}; C++ gives float32")
    parameters += [f"float* {c_name(key)}" for key in outputs]
    declared = ", ".join(["everstep_session* s", *parameters])
    for size in own:
        w.line(f"if (n_{size} < 0) return 1;")
    for place, size in enumerate(of_state):
        if size not in own:
            w.line(f"const int64_t n_{size} = s->sizes[{place}];")
    w.line("s->arena.block = s->arena.used = 0;")
    w.line("const char* const stored = reinterpret_cast<const char*>(s->model->weights.data());")
    for key, node in given.items():
        w.values[node] = _input(w, c_name(key), form.inputs[key], w.sizes(node))
    for place, node in enumerate(held):
        bytes_there = f"({product(w.sizes(node))}) * static_cast<int64_t>(sizeof({w.kind(node)}))"
        w.line(f"if (static_cast<int64_t>(s->state[{place}].size()) != {bytes_there}) return 1;")
        at = f"reinterpret_cast<{w.kind(node)}*>(s->state[{place}].data())"
        w.values[node] = Value(at, w.kind(node), w.sizes(node), dense(w.sizes(node)))
    w.write()
    for key, node in outputs.items():
        sizes = w.sizes(node)
        w.store(Value(c_name(key), "float", sizes, dense(sizes)), w.value(node))
    _keep(w, held, state)
    for place, size in enumerate(of_state):
        if size in own:
            w.line(f"s->sizes[{place}] = n_{size};")
    body = "\n".join(f"  {line}" for line in lines.text)
    end = "  return 0;\n} catch (const std::bad_alloc&) {\n  return 2;\n}"
    text = f"int everstep_{name}({declared}) try {{\n{body}\n{end}"
    return Call(form, recorded, own, outputs, state, declared, text)


def _of_state(name: str) -> bool:
    return name == "new_state" or name.startswith("new_state.")


def _parameter(key: str, one: Input) -> str:
    whole = one.below is not None or one.upto is not None
    kind = "int32_t" if whole else "float"
    return f"{kind} {c_name(key)}" if one.dims == ("batch",) else f"const {kind}* {c_name(key)}"


def _input(w: CWriter, name: str, one: Input, sizes: tuple[Number, ...]) -> Value:
    """An input as the form reads it; whole numbers are checked."""
    alone = one.dims == ("batch",)
    if one.below is None and one.upto is None:
        return Value(f"(&{name})" if alone else name, "float", sizes, dense(sizes))
    low = 0 if one.upto is None else one.least
    end = f"n_{one.upto} + 1" if one.upto is not None else f"n_{one.below}" if isinstance(one.below, str) else one.below
    found = w.new("int64_t", sizes)
    at = w.lines.fresh("i")
    read = name if alone else f"{name}[{at}]"
    w.line(f"for (int64_t {at} = 0; {at} < {product(sizes)}; ++{at}) {{")
    w.line(f"  if ({read} < {low} || {read} >= {end}) return 1;")
    w.line(f"  {found.at}[{at}] = {read};")
    w.line("}")
    return found


def _keep(w: CWriter, held: list[fx.Node], state: list[fx.Node]) -> None:
    """The new state, which may be made of the old one, takes its place."""
    made = [(place, node) for place, node in enumerate(state) if not (place < len(held) and node is held[place])]
    copies = [(place, w.copied(w.value(node))) for place, node in made]
    for place, value in copies:
        w.line(f"keep(s->state[{place}], {value.at}, ({product(value.sizes)}) * sizeof({value.kind}));")


def _declaration(name: str, call: Call) -> str:
    """The declaration of a form's function, after what it reads and gives."""
    told = [f"{c_name(key)} ({_sizes(one.dims)})" for key, one in call.form.inputs.items()]
    gives = [
        f"{c_name(key)} ({_sizes([str(sized(n)) for n in call.recorded.shape(node)])})"
        for key, node in call.outputs.items()
    ]
    what = f"Reads {', '.join(told)}" + (f"; gives {', '.join(gives)}." if gives else ".")
    parameters = call.declared.replace("everstep_session* s", "everstep_session* session", 1)
    return f"/* {what} */\nint everstep_{name}({parameters});"


def _sizes(dims: Any) -> str:
    return ", ".join(str(d) for d in dims if d not in ("batch", "1", 1)) or "1"
