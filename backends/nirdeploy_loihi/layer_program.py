"""A quantised network of layers as a program of integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import UnsupportedError
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy_loihi.linear import MATRIX_LIMIT, integer_apply
from nirdeploy_loihi.network import Connection, lower
from nirdeploy_loihi.program import AlwaysOn, Program, Shown, Synapses, Window
from nirdeploy_loihi.registers import compartments

__all__ = ["Lowered", "lowered"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program, and for each population and Output the steps by which it is later than in the graph."""

    program: Program
    lags: Mapping[str, int]


_lowered: WeakKeyDictionary[Quantized, Lowered] = WeakKeyDictionary()


def lowered(quantized: Quantized) -> Lowered:
    """The program of a quantised graph; made once, as lowering takes longer than a short run.

    Raises:
        UnsupportedError: a chain of pools and a convolution that neither one kernel nor a small matrix holds.
    """
    if quantized not in _lowered:
        _lowered[quantized] = _lower(quantized)
    return _lowered[quantized]


def _lower(quantized: Quantized) -> Lowered:
    network = lower(quantized.graph)
    neurons = {layer.name: cast("QuantizedNeuron", quantized.layers[layer.name]) for layer in network.layers}
    synapses, constants = [], []
    for layer in network.layers:
        for connection in layer.connections:
            weight = cast("QuantizedWeight", quantized.layers[connection.name]).weight
            synapses.append(_synapses(connection, weight))
        for constant in layer.constants:
            weight = cast("QuantizedWeight", quantized.layers[constant.name]).weight
            constants.append(AlwaysOn(constant.name, weight.shape[1], constant.start))
            synapses.append(Synapses(constant.name, constant.name, layer.name, weight, np.zeros((1, 1), np.int64)))
    program = Program(
        input=network.input,
        input_shape=network.input_shape,
        populations=tuple(compartments(layer.name, layer.shape, neurons[layer.name]) for layer in network.layers),
        synapses=tuple(synapses),
        always_on=tuple(constants),
        outputs=tuple(
            Shown(r.name, r.source, r.shape, "spikes" if neurons[r.source].fires else "v_mem") for r in network.readouts
        ),
    )
    lags = {layer.name: layer.lag for layer in network.layers} | {r.name: r.lag for r in network.readouts}
    return Lowered(program, lags)


def _synapses(connection: Connection, weight: Integers) -> Synapses:
    found = None if connection.kind != "conv" else _windowed(connection, weight)
    kernel, window = found or (_matrix(connection, weight), None)
    return Synapses(connection.name, connection.source, connection.target, kernel, connection.delay, window)


def _windowed(connection: Connection, weight: Integers) -> tuple[Integers, Window] | None:
    """The convolution with the pools before it, where they are one kernel without gaps; else None."""
    options: Mapping[str, Any] = (connection.kernel.options if connection.kernel else None) or {}
    before = connection.stages[: connection.stages.index(cast("Any", connection.kernel))]
    stride, padding, shape = options["stride"], options["padding"], cast("Any", connection.kernel).given
    dilation, groups = options.get("dilation", (1, 1)), int(options.get("groups", 1))
    for stage in reversed([stage for stage in before if stage.kind == "pool"]):
        steps = (stage.options or {})["stride"]
        rest = [n % k for n, k in zip(stage.given[1:], stage.kernel, strict=True)]
        if tuple(steps) != stage.kernel or dilation != (1, 1) or (any(rest) and any(padding)):
            return None
        weight = weight.repeat(stage.kernel[0], axis=2).repeat(stage.kernel[1], axis=3)
        stride, padding = (tuple(a * b for a, b in zip(x, stage.kernel, strict=True)) for x in (stride, padding))
        shape = stage.given
    target = cast("Any", connection.kernel).shape
    return weight, Window(tuple(shape), tuple(target), tuple(stride), tuple(padding), tuple(dilation), groups)


def _matrix(connection: Connection, weight: Integers) -> Integers:
    sources = int(np.prod(connection.source_shape))
    if connection.kernel is None or all(stage.kind in ("reshape", "dense") for stage in connection.stages):
        return weight
    if (entries := sources * int(np.prod(connection.target_shape))) > MATRIX_LIMIT:
        raise UnsupportedError(
            f"the pools before connection {connection.name!r} and its weights take a matrix of {entries} entries, "
            f"more than {MATRIX_LIMIT}",
            node=connection.target,
            remedy="Use pools whose windows touch and a convolution without dilation, or put a population between.",
        )
    unit = np.eye(sources, dtype=np.int64).reshape(-1, *connection.source_shape)
    return integer_apply(connection, weight, unit).reshape(sources, -1).T
