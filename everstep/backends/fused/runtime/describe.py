"""A quantitative description of a compiled loop."""

from __future__ import annotations

import math
from typing import Any

import torch

from everstep.backends.fused.runtime.program import Program


def describe(program: Program, batch: int) -> str:
    """Products, arithmetic, memory, and the bottleneck of a step of `batch` rows, as text."""
    step, plan = program.step, program.forward_plan
    weights = sum(math.prod(node.args[0].shape) * node.size for node in plan.products)
    loops = len(plan.phases) - len(plan.products)
    flops = 2 * weights * batch
    saved = sum(program.kept_sizes.values()) + math.prod(step.output.shape)
    hoisted = (
        f"{_count(len(step.inputs), 'input')} a step from outside ({sum(map(math.prod, step.inputs))} numbers a row)"
    )
    inside = f"{_count(len(plan.products), 'product')} and {_count(loops, 'pointwise loop')} inside"
    bound = _bound(program, batch, weights)
    return (
        f"{hoisted}; {inside}; {flops / 1e9:.3g} GFLOP a step, weights {_bytes(weights * program.bytes)}, "
        f"kept for backward {_bytes(saved * program.bytes)} a row and step; {bound}"
    )


def _bound(program: Program, batch: int, weights: int) -> str:
    if not weights:
        return "bound by memory: nothing is multiplied in the loop"
    threads = max(1, torch.get_num_threads())
    small = weights * program.bytes <= program.loops.kernels.cache
    if batch < 4 * threads:
        place = "the core's cache" if small else "the shared cache or memory"
        return f"bound by reading the weights from {place}: few rows share them"
    return "bound by arithmetic"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _bytes(number: Any) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GB"
