"""The quantiser 'exact': the integers that a population's values already are, times one number.

Weights, threshold and input biases give the largest number that all are multiples of. The scale is the largest power
of 2 times its inverse at which every register fits: as rounding in the chip's decays is by units of v, larger integers
are nearer to the values they stand for. Decays are integers of 4096 and the leak one of the bias register within what
32-bit floats leave of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.multiples import as_integers, common_step, magnitudes
from nirdeploy.quantization import QuantizedNeuron
from nirdeploy_loihi.dynamics import DECAY_UNITY
from nirdeploy_loihi.problem import Problem
from nirdeploy_loihi.scaling import Layers, contained, first_mantissa, integers, misfit
from nirdeploy_loihi.weights import LARGEST_WEIGHT, always_on, coding, representable, sign_mode

__all__ = ["exact_layers"]

Floats = NDArray[np.float64]
_REMEDY = "Use quantizer='calibrated', or train with quantization_aware."
# a time constant in 32 bits is off by 6e-8 of itself: a decay by at most 3e-4, a bias of 2**19 by 0.04
_OF_A_DECAY = 1e-3
_OF_A_BIAS = 0.1


def exact_layers(problem: Problem) -> Layers:
    """Integers of a population and of what feeds it, at the largest scale at which they are its values.

    Raises:
        QuantizationError: its values are not integers times one number, or the integers fit no register; naming the
            node and the value.
    """
    _require_decays(problem)
    _require_strict(problem)
    reason: QuantizationError | None = None
    fitting: list[Layers] = []
    for scale in _scales(problem, _common(problem)):
        found = _at(problem, scale)
        if isinstance(found, QuantizationError):
            reason = found
        elif problem.layer.fires or contained(problem, found):
            return found
        else:
            fitting.append(found)
    if fitting:  # of one that only integrates no scale keeps v below the threshold whatever comes: most room
        return fitting[-1]
    raise reason or QuantizationError("quantizer 'exact': all weights are zero", node=problem.layer.name)


def _common(problem: Problem) -> Fraction:
    """What weights, thresholds, constants and 64 times the biases are multiples of."""
    layer, step = problem.layer, problem.step
    named = zip(problem.sources, problem.weights, strict=False)
    groups = [magnitudes(weight, name) for name, weight in named]
    others = [_input_bias(problem) * 64, *problem.constants]
    if layer.fires:
        others.append(np.asarray(step.threshold))
    groups.extend(magnitudes(values, layer.name, most=1 << 62) for values in others)
    found = common_step(chain(*groups))
    if found is None:
        raise QuantizationError("quantizer 'exact': all its values are zero", node=layer.name)
    return found


def _input_bias(problem: Problem) -> Floats:
    """What biases alone add to v, without the leak, which no 32-bit float holds exactly."""
    return np.asarray(problem.step.gain * problem.layer.bias, dtype=np.float64)


def _scales(problem: Problem, common: Fraction) -> Iterator[float]:
    """Scales at which everything is an integer: powers of 2 times the least one, the largest first."""
    least = 1 / common
    if any(_odd(weight, least) for weight in problem.weights if sign_mode(weight) == "mixed"):
        least *= 2
    largest = max(float(np.abs(weight).max()) for weight in problem.weights)
    times = 1
    while float(least) * times * 2 * largest <= LARGEST_WEIGHT + 2:  # -256 is the least of mixed signs
        times *= 2
    while times:
        yield float(least * times)
        times //= 2


def _odd(weight: Floats, scale: Fraction) -> bool:
    return bool(np.any(as_integers(weight, float(1 / scale)) % 2))


def _at(problem: Problem, scale: float) -> Layers | QuantizationError:
    """The integers at a scale, or why they are not the values."""
    name = problem.layer.name
    for source, weight in zip(problem.sources, problem.weights, strict=False):
        if (error := _beyond(problem, source, as_integers(weight, 1.0 / scale))) is not None:
            return error
    limits = problem.table["weights"]
    weights = tuple(as_integers(weight, 1.0 / scale) for weight in problem.weights)
    axons = tuple(always_on(scale * value, limits) for value in problem.constants)
    if (found := misfit(problem, scale, (*weights, *axons))) is not None:
        return QuantizationError(
            f"quantizer 'exact': as integers times one number, {found[0]}", node=name, remedy=_REMEDY
        )
    for source, held, value in zip(problem.sources[len(weights) :], axons, problem.constants, strict=True):
        if not np.array_equal(held.sum(axis=1), as_integers(value, 1.0 / scale)):
            return _refused(problem, source, as_integers(value, 1.0 / scale))
    layers = integers(problem, scale, first_mantissa(problem, scale), (*weights, *axons))
    return _wrong_bias(problem, scale, layers) or _between(problem, layers) or layers


def _beyond(problem: Problem, source: str, weight: NDArray[np.int64]) -> QuantizationError | None:
    low, high = (int(limit) for limit in problem.table["weights"][sign_mode(weight)])
    inside = low <= weight.min() and weight.max() <= high and representable(weight, problem.weight_bits)
    return None if inside else _refused(problem, source, weight)


def _refused(problem: Problem, source: str, weight: NDArray[np.int64]) -> QuantizationError:
    code = coding(sign_mode(weight), problem.weight_bits)
    return QuantizationError(
        f"quantizer 'exact': as integers times one number, weight goes from {weight.min()} to {weight.max()}, "
        f"{problem.weight_bits} bits hold {code.lowest} to {code.highest} times a power of 2 up to {code.coarsest}",
        node=source,
        remedy=_REMEDY,
    )


def _wrong_bias(problem: Problem, scale: float, layers: Layers) -> QuantizationError | None:
    """Whether the bias register, or v at the start, is not the values."""
    neuron = cast("QuantizedNeuron", layers[problem.layer.name])
    held: Any = 0 if neuron.bias is None else neuron.bias << neuron.bias_exponent
    for what, values, register in (
        ("bias", 64 * scale * problem.bias, held),
        ("v at the start", 64 * scale * np.asarray(problem.step.v_start), neuron.v_start),
    ):
        off = np.abs(np.asarray(values - register))
        if off.max(initial=0) > _OF_A_BIAS:
            value = float(np.broadcast_to(values, off.shape).flat[int(off.argmax())])
            exponent = f" with exponent {neuron.bias_exponent}" if what == "bias" else ""
            return QuantizationError(
                f"quantizer 'exact': {what} is {value:.6g}, no integer of its register{exponent}",
                node=problem.layer.name,
                remedy=_REMEDY,
            )
    return None


def _between(problem: Problem, layers: Layers) -> QuantizationError | None:
    """Firing at the threshold is firing above it less one where v counts in whole weights."""
    neuron = cast("QuantizedNeuron", layers[problem.layer.name])
    if not problem.inclusive or not problem.layer.fires:
        return None
    fine = neuron.bias is not None and np.any((neuron.bias << neuron.bias_exponent) % 64)
    return _at_threshold(problem, "its bias is no whole weight") if fine else None


def _at_threshold(problem: Problem, why: str) -> QuantizationError:
    return QuantizationError(
        f"quantizer 'exact': it fires at its threshold, the chip above one, and {why}",
        node=problem.layer.name,
        remedy="Train with quantization_aware, or use crossing='strict'.",
    )


def _require_decays(problem: Problem) -> None:
    for register, loss in (("u", problem.step.loss_u), ("v", problem.step.loss_v)):
        of_4096 = DECAY_UNITY * np.asarray(loss, dtype=np.float64).reshape(-1)
        off = np.abs(of_4096 - np.rint(of_4096))
        if off.max() > _OF_A_DECAY:
            raise QuantizationError(
                f"quantizer 'exact': {register} loses {of_4096[int(off.argmax())]:.6g} of {DECAY_UNITY} a step, "
                "no integer",
                node=problem.layer.name,
                remedy=_REMEDY,
            )


def _require_strict(problem: Problem) -> None:
    step = problem.step
    if problem.inclusive and problem.layer.fires and (np.any(step.loss_v) or np.any(np.asarray(step.loss_u) != 1)):
        raise _at_threshold(problem, "its v decays to any value")
