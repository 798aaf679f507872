"""What a population counts in while it is trained: the unit of a weight's integer, spacings, and its registers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from nirdeploy.quantization import QuantizedNeuron
from nirdeploy_loihi.problem import Problem
from nirdeploy_loihi.scaling import first_mantissa, integers, largest_scale, never, worst_sums
from nirdeploy_loihi.weights import Coding, coding, sign_mode, spacing

__all__ = ["Chosen", "choose", "codes_of"]

# Of a unit: a threshold of 17 bits is then exact in float32, as is v, whose 24 bits end 6 below a weight
_UNIT_BITS = 7
_BIAS_BITS = 6  # with a bias where nothing decays
_EXACT_EXPONENT = 5  # of such a bias: half a weight's integer


@dataclass(frozen=True)
class Chosen:
    """What a population counts in.

    Attributes:
        unit: model units of v that an integer of a weight stands for.
        spacings: of the weights of each connection.
        exponent: of the bias register.
        halvings: how often 'exact' can halve all integers, should weights grow until u could wrap.
    """

    unit: float
    spacings: tuple[int, ...]
    exponent: int
    halvings: int


def choose(problem: Problem, start: QuantizedNeuron | None) -> tuple[Chosen, QuantizedNeuron]:
    """Unit and registers of a population; `start` has those of the calibrated quantiser."""
    first = largest_scale(problem)[0] if start is None else 1.0 / (start.scale * (1 << start.exponent))
    codes = codes_of(problem)
    spacings = tuple(spacing(first * w, code) for w, code in zip(problem.weights, codes, strict=True))
    halvings = _halvings(problem, codes, spacings)
    in_weights = not np.any(problem.step.loss_v) and bool(np.all(np.asarray(problem.step.loss_u) == 1))
    biased = bool(problem.bias.any())
    unit = _rounded_up(1.0 / first, _BIAS_BITS if biased and in_weights else _UNIT_BITS)
    exponent = max(_exponent(problem, 1.0 / unit, _EXACT_EXPONENT if in_weights else 0), halvings)
    chosen = Chosen(unit, spacings, exponent, halvings)
    return chosen, _registers(problem, chosen, None if start is None else np.asarray(start.mantissa) / (first * unit))


def _registers(problem: Problem, chosen: Chosen, threshold: Any) -> QuantizedNeuron:
    """Registers without trained biases, all but decays multiples of what they may be halved by.

    `threshold` is the mantissa before it is rounded, None: that of `max`.
    """
    scale = 1.0 / chosen.unit
    grain = 1 << chosen.halvings
    mantissa = np.asarray(first_mantissa(problem, scale) if threshold is None else threshold)
    if problem.layer.fires:
        most = int(problem.table["registers"]["threshold_mantissa"][1]) // grain
        mantissa = np.clip(np.rint(mantissa / grain).astype(np.int64), 1, most) * grain
    else:
        mantissa = np.array(never(problem))
    neuron = cast("QuantizedNeuron", integers(problem, scale, mantissa)[problem.layer.name])
    leak = np.rint(64 * scale * np.asarray(problem.step.leak) / (1 << chosen.exponent)).astype(np.int64)
    begin = np.rint(scale * np.asarray(problem.step.v_start) / grain).astype(np.int64) * (grain << neuron.exponent)
    return replace(
        neuron,
        bias=np.broadcast_to(leak, problem.layer.shape) if leak.any() else None,
        bias_exponent=chosen.exponent if leak.any() else 0,
        v_start=int(begin.flat[0]) if begin.size == 1 else np.broadcast_to(begin, problem.layer.shape),
    )


def codes_of(problem: Problem) -> tuple[Coding, ...]:
    """What each connection's weights may be; of 8 bits without -256, which no matrix without positive weights holds."""
    codes = (coding(sign_mode(weight), problem.weight_bits) for weight in problem.weights)
    return tuple(code._replace(lowest=max(code.lowest, -127)) if problem.weight_bits == 8 else code for code in codes)


def _halvings(problem: Problem, codes: tuple[Coding, ...], spacings: tuple[int, ...]) -> int:
    """How often the integers must be halved for sums of a step to fit, every weight being at its end; as far as can be.

    At least once, as -256 is no weight of a matrix that has lost its positive ones. Weights of 8 bits, which have no
    coarser spacing, cannot.
    """
    worst = _worst(problem, codes, spacings)
    wanted = max(1, (worst // int(problem.table["registers"]["synaptic_sum"])).bit_length())
    return min(wanted, *((s // code.finest).bit_length() - 1 for s, code in zip(spacings, codes, strict=True)))


def _worst(problem: Problem, codes: tuple[Coding, ...], spacings: tuple[int, ...]) -> int:
    """The largest sum of a step once every weight is at its end."""
    ends = []
    for pick in (min, max):
        extremes = [step * pick(code.lowest, code.highest) for code, step in zip(codes, spacings, strict=True)]
        weights = tuple(np.full(w.shape, end) for w, end in zip(problem.weights, extremes, strict=True))
        low, high = worst_sums(problem, weights)
        ends.append(max(int(-low.min()), int(high.max())))
    return max(ends)


def _rounded_up(unit: float, bits: int) -> float:
    """The next number of few significant bits; up, so that no integer grows."""
    mantissa, exponent = math.frexp(unit)
    return math.ldexp(math.ceil(math.ldexp(mantissa, bits)), exponent - bits)


def _exponent(problem: Problem, scale: float, least: int) -> int:
    """Exponent of the bias register that leaves it room to double, where there is one."""
    highest = problem.table["registers"]["bias_mantissa"][1]
    largest = problem.table["registers"]["bias_exponent"][1]
    wanted = 2 * 64 * scale * float(np.abs(problem.bias).max())
    fits = (e for e in range(least, largest + 1) if wanted <= highest << e)
    return next(fits, int(largest))
