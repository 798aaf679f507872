"""Integers that came from outside: what Lava on CPU accepts without a word and a chip cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_loihi.program import SYNAPSE_SHIFT, Compartments, Program, Synapses
from nirdeploy_loihi.weights import kept_by_lava, sign_mode

__all__ = ["integer_findings"]


def integer_findings(program: Program, target: Target) -> list[Finding]:
    """Every register and every weight of a program that is beyond the chip's, populations first.

    Errors are what a chip cannot hold, warnings what Lava would compute differently or u cannot add up.
    """
    registers = target.table["registers"]
    found = [finding for population in program.populations for finding in _population(population, registers)]
    for synapses in program.synapses:
        found.extend(_synapses(synapses, target.table))
    for population in program.populations:
        found.extend(_sums(program, population, int(registers["synaptic_sum"])))
    return found


def _range(node: str, code: str, words: str, values: Any, low: int, high: int, remedy: str) -> Iterator[Finding]:
    """One finding on the value furthest out of [low, high]."""
    array = np.asarray(values, dtype=np.int64)
    if array.size == 0:
        return
    above, below = int(array.max()), int(array.min())
    worst = above if above - high >= low - below else below
    if not low <= worst <= high:
        yield Finding(
            code, node, f"{words} is {worst}, {low} to {high} is possible", remedy, value=worst, limit=[low, high]
        )


def _population(population: Compartments, registers: Any) -> Iterator[Finding]:
    name = population.name
    shift = int(registers["threshold_exponent"])
    if np.any(population.threshold & ((1 << shift) - 1)):
        odd = int(population.threshold[np.flatnonzero(population.threshold & ((1 << shift) - 1))[0]])
        problem = f"the threshold is {odd}, which is no mantissa << {shift}"
        yield Finding("threshold", name, problem, "Use multiples of 64.", value=odd)
    smaller = "Scale weights, threshold and bias down together."
    ranges = (
        ("threshold", "the threshold's mantissa", population.threshold >> shift, "threshold_mantissa", smaller),
        ("bias", "the bias's mantissa", population.bias_mantissa, "bias_mantissa", "Use a larger exponent."),
        ("bias", "the bias's exponent", population.bias_exponent, "bias_exponent", smaller),
        ("decay", "decay_u", population.decay_u, "decay", "Use a larger time constant."),
        ("decay", "decay_v", population.decay_v, "decay", "Use a larger time constant."),
        ("refractory", "the refractory period", population.refractory, "refractory", "Use a shorter one."),
    )
    for code, words, values, row, remedy in ranges:
        low, high = (int(limit) for limit in registers[row])
        yield from _range(name, code, words, values, low, high, remedy)
    most = (1 << (int(registers["state_bits"]) - 1)) - 1
    yield from _range(name, "v_start", "v at the start", population.v_start, -most, most, smaller)


def _synapses(synapses: Synapses, table: Any) -> Iterator[Finding]:
    name, weight = synapses.name, synapses.weight
    most = int(table["delays"]["maximum"])
    yield from _range(name, "delay", "a delay", synapses.delay, 0, most, "Use shorter delays.")
    if not weight.any():
        remedy = "Remove the connection."
        yield Finding("zero_weights", name, "all weights are 0, which Lava cannot scale", remedy, value=0)
        return
    mode = sign_mode(weight)
    low, high = (int(limit) for limit in table["weights"][mode])
    beyond = list(_range(name, "weights", f"a weight of {mode} ones", weight, low, high, "Scale them down."))
    yield from beyond
    odd = int(np.count_nonzero(weight % 2)) if mode == "mixed" else 0
    if odd:
        yield Finding(
            "odd_weights",
            name,
            f"{odd} weights are odd, of mixed signs only even ones fit 8 bits and a sign",
            "Make them even, or split the connection by sign.",
            value=odd,
            limit=0,
        )
    elif not beyond and synapses.window is None and not kept_by_lava(weight):
        yield Finding(
            "lava_weights",
            name,
            f"Lava's scaling changes {mode} weights from {weight.min()} to {weight.max()}; the chip holds them",
            "Make negative weights even, with a minimum that is no power of 2.",
            severity="warning",
        )


def _sums(program: Program, population: Compartments, limit: int) -> Iterator[Finding]:
    """Sums of one step that leave the 24 bits of u, when all sources of one sign spike."""
    worst = 0
    for part in (np.maximum, np.minimum):
        total = np.zeros(population.size, dtype=np.int64)
        for synapses in program.into(population.name):
            rows = part(synapses.weight, 0).reshape(len(synapses.weight), -1).sum(1)
            total += np.repeat(rows, population.size // len(rows))
        worst = max(worst, int(np.abs(total).max(initial=0)))
    if worst >= limit:
        yield Finding(
            "synaptic_sum",
            population.name,
            f"the synapses of a step can add up to {worst}, u holds sums below {limit} and wraps beyond",
            f"Scale its weights down, or expect u to wrap ({1 << SYNAPSE_SHIFT} times the sum is added to it).",
            severity="warning",
            value=worst,
            limit=limit - 1,
        )
