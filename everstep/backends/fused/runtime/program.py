"""Programs: the forward and backward loops of a step, with their arrays, memory layout and code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from everstep.backends.fused.adjoint import Adjoint, derive
from everstep.backends.fused.codegen import overlay, writer
from everstep.backends.fused.codegen.plan import End, plan
from everstep.backends.fused.codegen.steps import HeldProduct, InputProjection, Setting
from everstep.backends.fused.lowering import Lowered
from everstep.backends.fused.outer_products import outer_products
from everstep.backends.fused.row_graph import View, whole
from everstep.backends.fused.runtime.compiled_loops import CompiledLoops
from everstep.backends.fused.runtime.outside import Outside


class Program:
    """A compiled step, for one cell, row shape and dtype; `training`: whether gradients are needed at once.

    Raises:
        toolchain.BuildError: the compiler failed.
        Untraceable: an operation has no derivative.
    """

    def __init__(self, step: Lowered, dtype: torch.dtype, name: str, training: bool, free: int = 0):
        self.step, self.dtype, self.name, self.free = step, dtype, name, free
        self.bytes = 4 if dtype == torch.float32 else 8
        self.adjoint: Adjoint = derive(step)
        self.states = tuple(math.prod(shape) for shape in step.states)
        self.ends = tuple(accumulate(map(len, (step.inputs, step.constants, step.states, step.held))))
        """Cumulative numbers of inputs, constants, state leaves and read-only leaves."""
        self.flat = sorted(self.adjoint.flat_inputs | {len(step.inputs) + k for k in self.adjoint.flat_constants})
        """Indices of inputs and constants whose gradient is always zero."""
        self.shared = [
            k
            for k, view in enumerate(step.following)
            if view.node is step.output.node and view.whole and step.output.whole
        ]
        """Leaves of the state that equal the output, so that the outputs hold their values at every step."""
        self.kept = sorted(self.adjoint.kept)
        self._forward()
        self._backward()
        read = {node.key for order in (self.forward_plan, self.backward_plan) for node in overlay.inputs(order)}
        self.elementwise = sorted(k for kind, k in read if kind == "const")
        """Constants that pointwise operations read."""
        matrices = {number for number, _ in self._multiplied()} - {*self.elementwise}
        self.outside = Outside(step.before, len(step.inputs), matrices)
        self._overlay()
        self._generate()
        if not free:
            self.load(self.forward_code.source, self.backward_code.source, training)
        self.call_tables: dict[Any, Any] = {}
        """Cached call tables, by their options."""

    def sequence(self, leaf: int) -> str:
        """The name of the array that holds a leaf after every step."""
        return "y0" if leaf in self.shared else f"seq{leaf}"

    def _forward(self) -> None:
        step = self.step
        ends = [End("y", 0, step.output)]
        ends += [End("next", k, view) for k, view in enumerate(step.following)]
        ends += [End("saved", k, whole(node)) for k, node in enumerate(self.adjoint.saved)]
        self.extra = [k for k in self.kept if k not in self.shared]
        ends += [End("seq", k, step.following[k]) for k in self.extra]
        self.forward_plan = plan(step.builder, ends, "next")

    def _backward(self) -> None:
        step, adjoint = self.step, self.adjoint
        ends = [End("dprev", k, view) for k, view in enumerate(adjoint.previous)]
        self.gradients: list[View] = []
        """Outputs of the backward loop per step: gradients of inputs and products."""
        self.totals: list[View] = []
        """Sums of the backward loop over all steps: gradients of constants."""

        def place(view: View, among: list[View]) -> int:
            found = [k for k, other in enumerate(among) if other.node is view.node and other.place == view.place]
            if not found:
                among.append(view)
            return found[0] if found else len(among) - 1

        self.of_input = {k: place(view, self.gradients) for k, view in adjoint.inputs.items()}
        self.of_product = [place(whole(p.gradient), self.gradients) for p in adjoint.products]
        self.projections = [k for k in self.step.factors if k in self.of_input]
        """Inputs that are products whose factor of x gets its gradient in the loop."""
        self.of_constant = {k: place(view, self.totals) for k, view in adjoint.constants.items()}
        holds = self._holds(place)
        ends += [End("g", k, view) for k, view in enumerate(self.gradients)]
        ends += [End("sum", k, view) for k, view in enumerate(self.totals)]
        ends += holds
        self.backward_plan = plan(step.builder, ends, "dprev")

    def _holds(self, place: Callable[[View, list[View]], int]) -> list[End]:
        """The ends of gradients of leaves that are only read, but for products of two vectors."""
        ends = []
        self.held_products: list[HeldProduct] = []
        """Those, multiplied after all steps."""
        for k, view in self.adjoint.held.items():
            products, rest = outer_products(self.step.builder, view)
            for one in products:
                left, right = place(one.left, self.gradients), place(one.right, self.gradients)
                sizes = one.left.shape[0], one.right.shape[0]
                self.held_products.append(HeldProduct(k, left, right, *sizes, one.apart))
            if rest is not None:
                ends.append(End("hold", k, rest))
        return ends

    def _overlay(self) -> None:
        """Assign saved values and gradients to the memory of inputs."""
        sizes = {k: math.prod(shape) for k, shape in enumerate(self.step.inputs)}
        # operands of products are read once more after the backward loop
        operands = {p.operand.node.key for p in self.adjoint.products}
        owned = [*overlay.own(self.step.before, len(sizes)), *self.step.factors]
        hosts = {k: sizes[k] for k in sorted(set(owned)) if ("x", k) not in operands}
        saved = {k: node.size for k, node in enumerate(self.adjoint.saved) if ("saved", k) not in operands}
        self.homes = overlay.homes(hosts, saved, self.forward_plan, self.backward_plan)
        """Saved values that overwrite an input in training, with their location."""
        hosts = {home.host: sizes[home.host] for home in self.homes.values()}
        self.over: dict[int, int] = {}
        """Gradients that overwrite an input, with the index of the input."""
        for host, size in hosts.items():
            number = self.of_input.get(host, -1)
            early = overlay.hindering(self.backward_plan, number, size, host, self.homes)
            if number not in self.over and early is not None and sum(saved[k] for k in early) < size:
                self.over[number] = host
                self.homes = {k: home for k, home in self.homes.items() if k not in early}
        read = {node.key for node in overlay.inputs(self.backward_plan)} | operands
        self.stored = any(kind == "x" and k in self.step.factors for kind, k in read)
        """Whether backward reads inputs that the loop itself computes."""
        self.needed = sorted({*hosts, *(k for kind, k in read if kind == "x")})
        """Inputs that backward needs."""
        self.saved_inputs = sorted({*self.needed, *self.step.factors})
        """Inputs saved for backward; for those that the loop computes, their factors."""
        self.hosting = any(k in self.step.factors for k in self.needed)
        """Whether inputs that the loop computes are saved."""
        numbers = {self.step.factors[k][0] for k in self.projections}
        self.upright = sorted(numbers - self.outside.transposed)
        """Constants that multiply inputs without transposition."""

    def _keep(self) -> tuple[dict[str, int], dict[str, int]]:
        """Sizes per step of the saved values, and of the inputs that contain some of them."""
        inputs = {k: math.prod(shape) for k, shape in enumerate(self.step.inputs)}
        kept = {f"saved{k}": node.size for k, node in enumerate(self.adjoint.saved)}
        kept |= {f"seq{k}": self.states[k] for k in self.extra}
        apart = {f"saved{k}": inputs[home.host] for k, home in self.homes.items()}
        self.kept_sizes = {name: size for name, size in kept.items() if name not in apart}
        """Sizes per step of saved values with their own memory."""
        all_kept = dict(self.kept_sizes)
        if self.hosting:
            all_kept |= {f"x{k}": inputs[k] for k in self.step.factors}
        *starts, self.kept_numbers = accumulate(all_kept.values(), initial=0)
        self.kept_places = dict(zip(all_kept, starts, strict=True))
        """Their offsets per step in one piece of memory, together with inputs that the loop computes."""
        return kept, apart

    def _generate(self) -> None:
        inputs = {k: math.prod(shape) for k, shape in enumerate(self.step.inputs)}
        kept, apart = self._keep()
        given = {f"x{k}" for k in inputs if k not in self.step.factors} if self.outside.direct else set()
        self.outer = frozenset({"y0", *given})
        """The caller's arrays among those that both loops read."""
        sizes = {f"x{k}": size for k, size in inputs.items()}
        sizes |= {f"const{k}": math.prod(shape) for k, shape in enumerate(self.step.constants)}
        sizes |= {"y0": math.prod(self.step.output.shape)}
        sizes |= {f"held{k}": math.prod(shape) for k, shape in enumerate(self.step.held)}
        forward = self._forward_setting(inputs, sizes, kept, apart)
        backward = self._backward_setting(inputs, sizes, kept, apart)
        self.forward_code = writer.generate(self.forward_plan, forward, self.bytes, self.free > 0)
        self.backward_code = writer.generate(self.backward_plan, backward, self.bytes, self.free > 0)
        transposed, products = self.outside.transposed, len(self.forward_plan.products) + len(self.step.factors)
        matrices = [(number, back != (number in transposed)) for number, back in self._multiplied()]
        self.forward_matrices, self.backward_matrices = matrices[:products], matrices[products:]
        """For each product, the index of its constant, and whether it is transposed."""

    def _forward_setting(
        self, inputs: dict[int, int], sizes: dict[str, int], kept: dict[str, int], apart: dict[str, int]
    ) -> Setting:
        """The setting of the loop forward; `inputs` and `sizes` per step, `kept` and `apart` of `_keep`."""
        raws = {f"x_raw{k}": depth for k, (_, depth) in self.step.factors.items()}
        return Setting(
            backward=False,
            states=self.states,
            sizes=sizes | kept | raws,
            sums=frozenset(),
            optional=frozenset(kept),
            following=(None,) * len(self.states),
            apart=apart,
            projections=tuple(
                InputProjection(f"x_raw{k}", f"x{k}", depth, inputs[k]) for k, (_, depth) in self.step.factors.items()
            ),
            outer=self.outer | {*raws},
        )

    def _backward_setting(
        self, inputs: dict[int, int], sizes: dict[str, int], kept: dict[str, int], apart: dict[str, int]
    ) -> Setting:
        """The setting of the loop backward; arguments as in `_forward_setting`."""
        step, adjoint = self.step, self.adjoint
        sizes = sizes | {"dy0": math.prod(step.output.shape), **kept}
        for k, size in enumerate(self.states):
            sizes |= {f"before{k}": size, f"before_init{k}": size}
        optional = {f"g{k}": math.prod(view.shape) for k, view in enumerate(self.gradients)}
        sums = {f"sum{k}": math.prod(view.shape) for k, view in enumerate(self.totals)}
        holds = {f"hold{k}": math.prod(step.held[k]) for k in adjoint.held}
        raws = {f"dx_raw{k}": step.factors[k][1] for k in self.projections}
        return Setting(
            backward=True,
            states=self.states,
            sizes=sizes | optional | sums | raws | holds,
            sums=frozenset(sums),
            holds=frozenset(holds),
            held_products=tuple(self.held_products),
            optional=frozenset(optional) | frozenset(holds),
            following=tuple(self.sequence(k) if k in adjoint.kept else None for k in range(len(self.states))),
            apart=apart,
            projections=tuple(
                InputProjection(f"g{self.of_input[k]}", f"dx_raw{k}", inputs[k], step.factors[k][1])
                for k in self.projections
            ),
            outer=self.outer | {"dy0", *raws},
        )

    def load(self, forward: str, backward: str, training: bool) -> None:
        """Compile the sources of the loops; backward only in training, else when a call first needs gradients."""
        self.loops = CompiledLoops(self.dtype, self.name, forward, backward, training)

    def _multiplied(self) -> list[tuple[int, bool]]:
        """For the products, forward and then backward, the index of the constant, and whether it is transposed."""
        found = []
        for order, projections in ((self.forward_plan, [*self.step.factors]), (self.backward_plan, self.projections)):
            keys = [node.key for node in order.products]
            found += [(key[0], True) if isinstance(key, tuple) else (key, False) for key in keys]
            found += [(self.step.factors[k][0], order is self.backward_plan) for k in projections]
        return found

    def reaching(self, wanted: Sequence[bool]) -> tuple[bool, ...]:
        """`wanted` without leaves of start and initial state that affect no result, and so have no gradient."""
        first, last, beyond = self.ends[1:]
        places = [*range(first, last), *range(beyond, beyond + last - first)]
        apart = {place for k, place in enumerate(places) if k % (last - first) in self.adjoint.apart}
        return tuple([w and k not in apart for k, w in enumerate(wanted)])

    def split(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Split `tensors` into inputs, constants, start state, read-only leaves, initial state."""
        a, b, c, d = self.ends
        return tensors[:a], tensors[a:b], tensors[b:c], tensors[c:d], tensors[d:]
