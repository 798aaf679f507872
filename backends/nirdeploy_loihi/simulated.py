"""Whether the integers of a quantised network are those that training simulated, times one number a population."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, TrainingGrid
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Layer

__all__ = ["differing"]

Integers = NDArray[np.int64]
Simulated = Mapping[str, Mapping[str, Integers]]


def differing(quantized: Quantized, grid: TrainingGrid, integers: Simulated) -> str | None:
    """The first node whose integers are not those simulated, or None.

    Weights, biases, leak and threshold of a population are all multiplied by one number; decays are equal.

    Args:
        quantized: what `deploy` makes of the trained graph.
        grid: what it was trained on.
        integers: weight node -> 'weight' or 'bias' -> the integers simulated.
    """
    for layer in lower(quantized.graph, quantized.convention).layers:
        for name in _differing(layer, quantized, grid, integers):
            return name
    return None


def _differing(layer: Layer, quantized: Quantized, grid: TrainingGrid, integers: Simulated) -> Iterator[str]:
    nodes = list(dict.fromkeys(connection.name for connection in layer.connections))
    times = _times(quantized[nodes[0]], integers[nodes[0]]["weight"])
    for node in nodes:
        if not _same(quantized[node].weight, integers[node]["weight"], times):
            yield node
    before, after = grid.neurons[layer.name], cast("QuantizedNeuron", quantized[layer.name])
    for field in ("decay_u", "decay_v", "fires"):
        if not np.array_equal(getattr(before, field), getattr(after, field)):
            yield layer.name
    moved = ("threshold", "v_start") if before.fires else ("v_start",)
    if not all(_same(getattr(after, field), getattr(before, field), times) for field in moved):
        yield layer.name
    register = _register(before)
    biases = _biases(layer, quantized, grid, integers, nodes)
    if layer.constants:
        sums = sum(cast("QuantizedWeight", quantized[c.name]).weight.sum(axis=1) for c in layer.constants)
        wrong = not _same(sums, biases.reshape(-1) >> 6, times)
    else:
        register, wrong = register + biases, False
    if wrong or not _same(_register(after), register, times):
        yield layer.name


def _register(neuron: QuantizedNeuron) -> Integers:
    return np.zeros(1, np.int64) if neuron.bias is None else np.asarray(neuron.bias) << neuron.bias_exponent


def _biases(layer: Layer, quantized: Quantized, grid: TrainingGrid, integers: Simulated, nodes: list[str]) -> Integers:
    """What the nodes' biases add up to in every neuron, 64 times as fine as weights."""
    total = np.zeros(layer.shape, dtype=np.int64)
    for node in nodes:
        if "bias" not in integers[node]:
            continue
        values = integers[node]["bias"] << (grid.trained[node]["bias"].exponent + 6)
        stage = next(s for c in layer.connections if c.name == node for s in c.stages if s.node == node)
        ndim = len(stage.shape) if stage.kind == "conv" else 1
        shaped = np.broadcast_to(values.reshape(-1, *[1] * (ndim - 1)), stage.shape)
        total = total + shaped.reshape(layer.shape)
    return total


def _times(found: QuantizedWeight, simulated: Integers) -> Fraction:
    """What the largest simulated weight was multiplied with."""
    most = int(np.abs(simulated).argmax())
    return Fraction(int(found.weight.flat[most]), int(simulated.flat[most]) or 1)


def _same(found: Any, simulated: Any, times: Fraction) -> bool:
    """Whether integers are those simulated, times a number."""
    given, wanted = np.asarray(found, dtype=np.int64), np.asarray(simulated, dtype=np.int64)
    if given.size == wanted.size:
        given = given.reshape(wanted.shape)
    return bool(np.all(given * times.denominator == wanted * times.numerator)) and times > 0
