"""From quantised layers to the chip's program: registers as arrays, chains of nodes as one kernel or matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import UnsupportedError
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy_loihi.linear import MATRIX_LIMIT, image, image_kernel, integer_apply
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Connection, Layer, Network, Stage
from nirdeploy_loihi.program import AlwaysOn, Compartments, Program, Shown, Synapses, Window

__all__ = ["Lowered", "lower_program", "lowered", "program_of"]

Integers = NDArray[np.int64]
_CHUNK = 1 << 22  # values pushed through a chain at once


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program with what its records need to be aligned.

    Attributes:
        program: what the chip runs.
        lags: population or Output -> steps by which it is later than the same node of a graph without delays.
    """

    program: Program
    lags: Mapping[str, int]


_lowered: WeakKeyDictionary[Quantized, dict[tuple[tuple[str, int], ...], Lowered]] = WeakKeyDictionary()


def lowered(quantized: Quantized, placement: Placement | None = None) -> Lowered:
    """`program_of`, with the lags of its records; made once for a network, as that takes longer than a short run."""
    refractory = {} if placement is None else dict(placement.options.get("refractory") or {})
    made = _lowered.setdefault(quantized, {})
    key = tuple(sorted((str(name), int(steps)) for name, steps in refractory.items()))
    if key not in made:
        network = lower(quantized.graph, quantized.convention)
        lags = {layer.name: layer.lag + layer.late for layer in network.layers}
        lags |= {readout.name: readout.lag for readout in network.readouts}
        made[key] = Lowered(lower_program(network, quantized, dict(key)), MappingProxyType(lags))
    return made[key]


def program_of(quantized: Quantized, placement: Placement | None = None) -> Program:
    """The integers of a network as the chip runs them.

    Args:
        quantized: the network.
        placement: its option `refractory` is taken over; None: no neuron is refractory.

    Raises:
        UnsupportedError, GraphError, ConventionError: as `lowering.lower`, or a chain too large for one matrix.
    """
    return lowered(quantized, placement).program


def lower_program(
    network: Network, quantized: Quantized, refractory: Mapping[str, int] = MappingProxyType({})
) -> Program:
    """As `program_of`, for a network lowered before; `refractory`: population -> steps, 1 where it is not named."""
    populations: list[Compartments] = []
    synapses: list[Synapses] = []
    always_on: list[AlwaysOn] = []
    for layer in network.layers:
        populations.append(_compartments(layer, quantized[layer.name], refractory.get(layer.name, 1)))
        synapses.extend(_synapses(c, quantized[c.name].weight) for c in layer.connections)
        for constant in layer.constants:
            weight = cast("QuantizedWeight", quantized[constant.name]).weight
            if not weight.any():
                continue  # less than half an integer: nothing flows
            always_on.append(AlwaysOn(constant.name, int(weight.shape[1]), constant.start))
            delay = np.zeros((1, 1), dtype=np.int64)
            synapses.append(Synapses(constant.name, constant.name, layer.name, weight, delay))
    return Program(
        input=network.input,
        input_shape=network.input_shape,
        populations=tuple(populations),
        synapses=tuple(synapses),
        always_on=tuple(always_on),
        outputs=tuple(
            Shown(r.name, r.source, r.shape, "spikes" if quantized[r.source].fires else "v_mem")
            for r in network.readouts
        ),
    )


def _compartments(layer: Layer, neuron: QuantizedNeuron, refractory: int) -> Compartments:
    bias = np.zeros(1, dtype=np.int64) if neuron.bias is None else neuron.bias
    return Compartments(
        name=layer.name,
        shape=layer.shape,
        decay_u=_flat(neuron.decay_u),
        decay_v=_flat(neuron.decay_v),
        threshold=_flat(neuron.threshold),
        bias_mantissa=_flat(bias),
        bias_exponent=neuron.bias_exponent,
        v_start=_flat(neuron.v_start),
        refractory=refractory,
    )


def _flat(values: Any) -> Integers:
    """Flat integers, one where all are equal."""
    found: Integers = np.asarray(values, dtype=np.int64).reshape(-1)
    return found[:1] if (found == found[0]).all() else found


# ---------------------------------------------------------------- connections


def _synapses(connection: Connection, weight: Integers) -> Synapses:
    plain = Synapses(connection.name, connection.source, connection.target, weight, connection.delay)
    kernel = connection.kernel
    if kernel is None:
        return plain
    if kernel.kind == "dense":
        flat = all(stage.kind in ("reshape", "scale") for stage in connection.stages if stage is not kernel)
        simple = flat and len(kernel.given) == 1 and len(kernel.shape) == 1
        return plain if simple else replace(plain, weight=_matrix(connection, weight))
    found = _windowed(connection, kernel, image_kernel(weight))
    if found is None:
        return replace(plain, weight=_matrix(connection, weight))
    return replace(plain, weight=found[0], window=found[1])


def _windowed(connection: Connection, kernel: Stage, weight: Integers) -> tuple[Integers, Window] | None:
    """The pools before a kernel and the kernel as one kernel; None where padding meets rows that a pool left out."""
    options = dict(kernel.options or {})
    stride, padding, dilation = options["stride"], options["padding"], options.get("dilation", (1, 1))
    groups = kernel.given[0] if kernel.kind == "pool" else int(options["groups"])
    at = connection.stages.index(kernel)
    for stage in reversed(connection.stages[:at]):
        if stage.kind != "pool":
            continue
        side, step = stage.kernel, (stage.options or {})["stride"]
        for axis in (0, 1):
            covered = (stage.shape[axis + 1] - 1) * step[axis] + side[axis]
            if padding[axis] and covered < stage.given[axis + 1]:
                return None
        weight = _spread(weight, dilation, side, step)
        stride = (stride[0] * step[0], stride[1] * step[1])
        padding = (padding[0] * step[0], padding[1] * step[1])
        dilation = (1, 1)
    window = Window(_image(connection.source_shape), _image(kernel.shape), stride, padding, dilation, groups)
    return weight, window


def _spread(weight: Integers, dilation: tuple[int, int], side: tuple[int, int], step: tuple[int, int]) -> Integers:
    """A kernel on sums over windows as one on what is summed: each tap over the cells of its window."""
    out, inputs, *taps = weight.shape
    size = [(taps[a] - 1) * dilation[a] * step[a] + side[a] for a in (0, 1)]
    found = np.zeros((out, inputs, *size), dtype=np.int64)
    for y in range(side[0]):
        for x in range(side[1]):
            rows = slice(y, y + (taps[0] - 1) * dilation[0] * step[0] + 1, dilation[0] * step[0])
            columns = slice(x, x + (taps[1] - 1) * dilation[1] * step[1] + 1, dilation[1] * step[1])
            found[:, :, rows, columns] = weight
    return found


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channel, y, x = image(shape)
    return channel, y, x


def _matrix(connection: Connection, weight: Integers) -> Integers:
    """[target neurons, source neurons] of a chain, by pushing an identity through it."""
    size, out = math.prod(connection.source_shape), math.prod(connection.target_shape)
    if size * out > MATRIX_LIMIT:
        raise UnsupportedError(
            f"the path from {connection.source!r} takes a matrix of {size * out} weights, more than {MATRIX_LIMIT}",
            node=connection.target,
            remedy="Pool without rows left over, or put a population between pool and weights.",
        )
    matrix = np.empty((out, size), dtype=np.int64)
    step = max(1, _CHUNK // max(size, out, *(math.prod(stage.shape) for stage in connection.stages)))
    for first in range(0, size, step):
        last = min(first + step, size)
        unit = np.zeros((last - first, size), dtype=np.int64)
        unit[np.arange(last - first), np.arange(first, last)] = 1
        found = integer_apply(connection, weight, unit.reshape(-1, *connection.source_shape))
        matrix[:, first:last] = found.reshape(last - first, out).T
    return matrix
