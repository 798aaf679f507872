"""A network before quantisation: populations joined by connections, each composed of linear stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs

__all__ = [
    "INTEGRATORS",
    "LINEAR",
    "NEURONS",
    "SUPPORTED",
    "Connection",
    "Constant",
    "Layer",
    "Network",
    "Readout",
    "Stage",
    "stage_of",
]

Shape = tuple[int, ...]
LINEAR = ("Affine", "AvgPool2d", "Conv1d", "Conv2d", "Flatten", "Linear", "Scale", "SumPool2d")
NEURONS = ("CubaLIF", "IF", "LIF")
INTEGRATORS = ("CubaLI", "I", "LI")  # no spikes: shown by an Output, never read by synapses
SUPPORTED = ("Delay", "Input", "Output", *INTEGRATORS, *LINEAR, *NEURONS)


@dataclass(frozen=True)
class Stage:
    """One linear node of a chain.

    Attributes:
        node: name of the NIR node.
        kind: 'conv', 'dense', 'pool' (a sum over windows), 'reshape' or 'scale' (neuron by neuron).
        given: shape of its input.
        shape: shape of its output.
        kernel: window of a pool, (y, x).
        options: stride, padding, dilation and groups of a 'conv' (of Conv1d as one of height 1); stride and padding
            of a 'pool'.
        factor: what the sum is multiplied with: 1 / (window size) for AvgPool2d, else 1.
    """

    node: str
    kind: Literal["conv", "dense", "pool", "reshape", "scale"]
    given: Shape
    shape: Shape
    kernel: tuple[int, int] = (1, 1)
    options: Mapping[str, Any] | None = None
    factor: float = 1.0

    @property
    def disjoint(self) -> bool:
        """Whether each input of a pool is in one window at most, and no window hangs over the edge."""
        if self.kind != "pool" or self.options is None:
            return self.kind == "reshape"
        stride, padding = self.options["stride"], self.options["padding"]
        return padding == (0, 0) and all(s >= k for s, k in zip(stride, self.kernel, strict=True))


def stage_of(graph: nir.NIRGraph, name: str, shape: graphs.Shapes) -> Stage:
    """A linear node as a stage."""
    node = graph.nodes[name]
    kind = graphs.type_name(node)
    if kind == "Flatten":
        return Stage(name, "reshape", shape.input, shape.output)
    if kind == "Scale":
        return Stage(name, "scale", shape.input, shape.output)
    if kind == "Conv2d":
        return Stage(name, "conv", shape.input, shape.output, options=graphs.conv2d_options(node, name))
    if kind == "Conv1d":
        flat = graphs.conv1d_options(node, name)
        high = {"stride": 1, "padding": 0, "dilation": 1}
        options = {key: (one, flat[key]) for key, one in high.items()}
        return Stage(name, "conv", shape.input, shape.output, options={**options, "groups": flat["groups"]})
    if kind in ("Affine", "Linear"):
        return Stage(name, "dense", shape.input, shape.output)
    window = graphs.pair(node.kernel_size)
    options = {"stride": graphs.pair(node.stride), "padding": graphs.pair(node.padding)}
    factor = 1.0 / (window[0] * window[1]) if kind == "AvgPool2d" else 1.0
    return Stage(name, "pool", shape.input, shape.output, window, options, factor)


@dataclass(frozen=True)
class Connection:
    """All synapses along one path, from one source to one population.

    Attributes:
        name: key of its integers in `Quantized`.
        source: population or Input it comes from.
        target: population it goes to.
        source_shape: shape of the source.
        target_shape: shape of the target.
        stages: the chain, in order.
        kernel: the stage whose weights are kept in their own shape, behind disjoint pools; a pool alone is kept as
            a kernel [channel, 1, y, x]. None: the chain is composed into one matrix [target neurons, source neurons].
        delay: steps beyond the one that every connection costs, broadcast to [target neurons, source neurons].
    """

    name: str
    source: str
    target: str
    source_shape: Shape
    target_shape: Shape
    stages: tuple[Stage, ...]
    kernel: Stage | None
    delay: NDArray[np.int64] = field(default_factory=lambda: np.zeros((1, 1), np.int64))

    @property
    def kind(self) -> str:
        """'conv' or 'dense', what the chip is given."""
        return "conv" if self.kernel and self.kernel.kind in ("conv", "pool") else "dense"

    @property
    def factor(self) -> float:
        """Product of the pools' factors that a kept kernel takes over; scales are apart."""
        return float(np.prod([stage.factor for stage in self.stages])) if self.kernel else 1.0

    @property
    def matrix_size(self) -> int:
        """Entries of the composed matrix, 0 where the kernel is kept."""
        return 0 if self.kernel else int(np.prod(self.source_shape)) * int(np.prod(self.target_shape))


@dataclass(frozen=True, eq=False)
class Constant:
    """A current that flows into a population from one step on, whatever spikes: axons that are always on carry it.

    Attributes:
        name: key of its integers in `Quantized`: a QuantizedWeight [target neurons, axons].
        value: input, the shape of the population, in the units of the input; never all zero.
        start: first step of the chip in which its axons spike.
    """

    name: str
    value: NDArray[np.float64]
    start: int


@dataclass(frozen=True)
class Layer:
    """One population.

    Attributes:
        name: the neuron node.
        shape: shape of the population.
        connections: what feeds it.
        bias: input while every source is silent, the shape of the population, in the units of the input; what its
            bias register holds. Zero where `constants` carry it: with a synaptic filter the register, which acts on
            v, would leave the filter out.
        lag: steps by which the chip is later than the reference in its own convention.
        late: steps by which the reference itself is late, with population_delay=1.
        fires: False where it only integrates and is shown by an Output (I, LI, CubaLI).
        constants: the input that flows while every source is silent, where the bias register does not hold it.
    """

    name: str
    shape: Shape
    connections: tuple[Connection, ...]
    bias: NDArray[np.float64]
    lag: int
    late: int = 0
    fires: bool = True
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True)
class Readout:
    """An Output: the spikes of one population, or v of one that only integrates, in another shape without delay."""

    name: str
    source: str
    shape: Shape
    lag: int


@dataclass(frozen=True)
class Network:
    """Populations in execution order.

    Attributes:
        input: name of the Input node.
        input_shape: its shape.
        layers: populations, each after all it depends on.
        readouts: the Outputs.
    """

    input: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    readouts: tuple[Readout, ...]
