"""Lowering: a NIR graph as populations joined by connections, each composed of linear stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import GraphError, UnsupportedError

__all__ = ["LINEAR", "NEURONS", "Connection", "Constant", "Layer", "Network", "Readout", "Stage", "lower"]

Shape = tuple[int, ...]
LINEAR = ("Affine", "AvgPool2d", "Conv2d", "Flatten", "Linear", "SumPool2d")
NEURONS = ("CubaLIF", "IF", "LIF")
_WEIGHTS = {"Affine": "dense", "Linear": "dense", "Conv2d": "conv"}


@dataclass(frozen=True)
class Stage:
    """One linear node of a chain.

    Attributes:
        node: name of the NIR node.
        kind: 'conv', 'dense', 'pool' (a sum over windows) or 'reshape'.
        given: shape of its input.
        shape: shape of its output.
        kernel: window of a pool, (y, x).
        options: stride, padding, dilation and groups of a 'conv'; stride and padding of a 'pool'.
        factor: what the sum is multiplied with: 1 / (window size) for AvgPool2d, else 1.
    """

    node: str
    kind: Literal["conv", "dense", "pool", "reshape"]
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
        kernel: the stage whose weights are kept in their own shape behind disjoint pools; None: the chain is
            composed into one matrix [target neurons, source neurons].
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
        return self.kernel.kind if self.kernel else "dense"

    @property
    def factor(self) -> float:
        """Product of the pools' factors that a kept kernel takes over."""
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
        lag: largest number of connections between an Input and it.
        earliest: smallest number.
        fires: False where it only integrates and is shown by an Output (I, LI, CubaLI).
        constants: the input that flows while every source is silent, where the bias register does not hold it.
    """

    name: str
    shape: Shape
    connections: tuple[Connection, ...]
    bias: NDArray[np.float64]
    lag: int
    earliest: int
    fires: bool = True
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True)
class Readout:
    """An Output: the spikes of one population in another shape, without delay."""

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


def lower(graph: nir.NIRGraph) -> Network:
    """The network a graph stands for.

    Raises:
        UnsupportedError: a cycle, several Inputs, a node type out of scope, or an Output that does not show
            one population alone; naming the node.
        GraphError: shapes that disagree.
    """
    for name, node in graph.nodes.items():
        if graphs.type_name(node) not in (*LINEAR, *NEURONS, "Input", "Output"):
            raise UnsupportedError(f"type {graphs.type_name(node)} is not supported on Loihi", node=name)
    for source, target in graphs.feedback_edges(graph):
        raise UnsupportedError(f"edge from {source!r} closes a cycle; recurrence is not supported", node=target)
    inputs = graphs.input_names(graph)
    if len(inputs) != 1:
        raise UnsupportedError(f"{len(inputs)} Inputs {inputs}; one is supported")
    shapes = graphs.shapes(graph)
    lags: dict[str, tuple[int, int]] = {inputs[0]: (0, 0)}
    layers: list[Layer] = []
    readouts: list[Readout] = []
    rest = _at_rest(graph, shapes)
    for population in graphs.populations(graph):
        if isinstance(graph.nodes[population.name], nir.Output):
            readouts.append(_readout(graph, population, shapes, lags))
            continue
        found = [lags[path.source] for path in population.paths]
        lags[population.name] = 1 + min(f[0] for f in found), 1 + max(f[1] for f in found)
        layers.append(
            Layer(
                name=population.name,
                shape=shapes[population.name].output,
                connections=tuple(_connection(graph, population.name, p, shapes) for p in population.paths),
                bias=rest[population.name],
                earliest=lags[population.name][0],
                lag=lags[population.name][1],
            )
        )
    return Network(inputs[0], shapes[inputs[0]].output, _named(layers), tuple(readouts))


def _readout(
    graph: nir.NIRGraph,
    population: graphs.Population,
    shapes: Mapping[str, graphs.Shapes],
    lags: Mapping[str, tuple[int, int]],
) -> Readout:
    name = population.name
    if len(population.paths) != 1:
        raise UnsupportedError(f"{len(population.paths)} paths lead into the Output, one is supported", node=name)
    path = population.paths[0]
    for node in path.nodes:
        if not isinstance(graph.nodes[node], nir.Flatten):
            raise UnsupportedError(
                f"{graphs.type_name(graph.nodes[node])} {node!r} before the Output has no neurons to hold it",
                node=name,
                remedy="Put a population after it.",
            )
    if isinstance(graph.nodes[path.source], nir.Input):
        raise UnsupportedError("the Output shows the Input itself", node=name, remedy="Put a population between.")
    return Readout(name, path.source, shapes[name].output, lags[path.source][1])


def _connection(graph: nir.NIRGraph, target: str, path: graphs.Path, shapes: Mapping[str, graphs.Shapes]) -> Connection:
    stages = tuple(_stage(graph, name, shapes[name]) for name in path.nodes)
    weights = [i for i, stage in enumerate(stages) if stage.kind in ("conv", "dense")]
    kernel = None
    if len(weights) == 1:
        before, after = stages[: weights[0]], stages[weights[0] + 1 :]
        if all(stage.disjoint for stage in before) and all(stage.kind == "reshape" for stage in after):
            kernel = stages[weights[0]]
    preferred = stages[weights[-1]].node if weights else (stages[-1].node if stages else f"{path.source}->{target}")
    return Connection(
        name=preferred,
        source=path.source,
        target=target,
        source_shape=shapes[path.source].output,
        target_shape=shapes[target].output,
        stages=stages,
        kernel=kernel,
    )


def _stage(graph: nir.NIRGraph, name: str, shape: graphs.Shapes) -> Stage:
    node = graph.nodes[name]
    kind = graphs.type_name(node)
    if kind == "Flatten":
        return Stage(name, "reshape", shape.input, shape.output)
    if kind == "Conv2d":
        return Stage(name, "conv", shape.input, shape.output, options=graphs.conv2d_options(node, name))
    if kind in _WEIGHTS:
        return Stage(name, "dense", shape.input, shape.output)
    window = graphs.pair(node.kernel_size)
    options = {"stride": graphs.pair(node.stride), "padding": graphs.pair(node.padding)}
    factor = 1.0 / (window[0] * window[1]) if kind == "AvgPool2d" else 1.0
    return Stage(name, "pool", shape.input, shape.output, window, options, factor)


def _named(layers: list[Layer]) -> tuple[Layer, ...]:
    """Layers whose connections have distinct names, but for copies of one kernel within a population.

    A node's name goes to the connection that ends in it. Where several connections claim a name and do not
    hold the same integers, each is called by its whole path, 'source->node->target'.
    """
    claims: dict[str, set[tuple[Any, ...]]] = {}
    for layer in layers:
        for number, c in enumerate(layer.connections):
            # copies of a kernel in one population have equal integers, as they share scale and factor
            same = (layer.name, c.factor) if c.kernel else (layer.name, "composed", number)
            claims.setdefault(c.name, set()).add(same)

    def renamed(c: Connection) -> Connection:
        if len(claims[c.name]) == 1:
            return c
        return replace(c, name="->".join((c.source, *(s.node for s in c.stages), c.target)))

    return tuple(replace(layer, connections=tuple(map(renamed, layer.connections))) for layer in layers)


def _at_rest(graph: nir.NIRGraph, shapes: Mapping[str, graphs.Shapes]) -> dict[str, NDArray[np.float64]]:
    """What the biases of stateless nodes bring to each population while populations and Inputs are silent."""
    sources = graphs.predecessors(graph)
    given: dict[str, NDArray[np.float64] | None] = {}  # None: zeros, for which nothing is computed or allocated
    found: dict[str, NDArray[np.float64]] = {}
    for name in graphs.order(graph):
        node, total = graph.nodes[name], None
        for value in (given[source] for source in sources[name]):
            if value is not None:
                total = value if total is None else total + value
        if graphs.is_neuron(node):
            found[name] = np.broadcast_to(0.0, shapes[name].input) if total is None else total
            if not np.isfinite(found[name]).all():
                raise GraphError("its biases add up to a value that is not finite", node=name)
        passed = graphs.is_neuron(node) or isinstance(node, nir.Input | nir.Output)
        given[name] = None if passed else _stage_at_rest(_stage(graph, name, shapes[name]), node, total)
    return found


def _stage_at_rest(stage: Stage, node: nir.NIRNode, x: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    from nirdeploy_loihi.linear import bias_of, float_stage

    if x is not None:
        passed: NDArray[np.float64] = float_stage(stage, node, x[None], bias=True)[0]
        return passed
    bias = bias_of(node) if stage.kind in ("conv", "dense") else None
    if bias is None or not bias.any():
        return None
    found: NDArray[np.float64] = np.broadcast_to(bias.reshape(-1, *[1] * (len(stage.shape) - 1)), stage.shape)
    return found
