"""Lowering: a NIR graph as DYNAP-CNN layers, every obstacle a Finding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import ConversionError, NirdeployError, QuantizationError
from nirdeploy.graph import Path, Population
from nirdeploy.quantization import Quantized
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding

__all__ = ["Feed", "Layer", "Network", "log2_ceil", "lower", "lowered"]

_WEIGHTS = (nir.Conv2d, nir.Affine, nir.Linear)
_POOLS = (nir.SumPool2d, nir.AvgPool2d)


@dataclass(frozen=True)
class Feed:
    """Where a layer's events come from: a population or Input, pooled by summing on the way.

    Attributes:
        source: population or Input.
        pool: side of the pooling window, 1 for none.
        rescale: factor on the layer's weights, 1/pool**2 for each average pooling.
        nodes: the pooling and flatten nodes on the way.
    """

    source: str
    pool: int
    rescale: float
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One DYNAP-CNN layer: convolution, then a population.

    Attributes:
        name: population node.
        weight_node: convolution or matrix node.
        weight: float32 [out, in, y, x], input gain and rescaling applied; a matrix is a full-size kernel.
        bias: float32 [out], input gain applied, or None where all are zero.
        stride, padding: (y, x).
        input_shape: (channel, y, x) at the core's input, after pooling.
        output_shape: (channel, y, x) of the population on the core.
        node_shape: shape of the population in the graph.
        threshold: firing threshold, model units.
        v_min: lower bound of v, model units, or None.
        convention: what holds at this population.
        feeds: where events come from.
    """

    name: str
    weight_node: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    node_shape: tuple[int, ...]
    threshold: np.float32
    v_min: np.float32 | None
    convention: Convention
    feeds: tuple[Feed, ...]

    @property
    def memory(self) -> dict[str, int]:
        """Words taken of each memory of a core (sinabs dynapcnn_layer.py memory_summary; DS 3.2.4.1)."""
        inputs, (outputs, height, width) = self.input_shape[0], self.output_shape
        kernel = self.weight.shape[2] * self.weight.shape[3]
        return {
            "kernel_memory": inputs << (log2_ceil(kernel) + log2_ceil(outputs)),
            "neuron_memory": outputs << (log2_ceil(height) + log2_ceil(width)),
            "bias_memory": 0 if self.bias is None else outputs,
        }


@dataclass(frozen=True)
class Network:
    """Layers in execution order, and where the Outputs read."""

    layers: tuple[Layer, ...]
    outputs: Mapping[str, str]
    input_name: str
    input_shape: tuple[int, ...]


@dataclass
class _Findings:
    found: list[Finding] = field(default_factory=list)

    def add(self, code: str, node: str, problem: str, remedy: str, **more: Any) -> None:
        self.found.append(Finding(code, node, problem, remedy, **more))


def log2_ceil(value: int) -> int:
    """ceil(log2(value)) of a positive integer."""
    return (value - 1).bit_length()


def lower(graph: nir.NIRGraph, convention: Convention) -> tuple[Network | None, list[Finding]]:
    """Layers of a graph, or None, with every obstacle found.

    Args:
        graph: a valid graph.
        convention: what it is run with.

    Returns:
        The network, None where a layer could not be formed, and findings about structure and neurons; the
        limits of a chip are `rules`.
    """
    notes = _Findings()
    if not _types_known(graph, notes):
        return None, notes.found
    try:
        shapes = graphs.shapes(graph)
    except NirdeployError as error:
        notes.add("shape", error.node or "", str(error), "Correct the shapes of the graph.")
        return None, notes.found
    for source, target in graphs.feedback_edges(graph):
        notes.add("recurrence", target, f"recurrent edge from {source!r}", "Remove the loop: not supported yet.")
    inputs = graphs.input_names(graph)
    if len(inputs) != 1:
        notes.add("inputs", inputs[1], f"{len(inputs)} Inputs, at most 1", "Merge the inputs into one.")
    if any(f.severity == "error" for f in notes.found):
        return None, notes.found
    layers: list[Layer] = []
    outputs: dict[str, str] = {}
    for population in graphs.populations(graph):
        if isinstance(graph.nodes[population.name], nir.Output):
            read = _output(graph, population, notes)
            if read is not None:
                outputs[population.name] = read
            continue
        layer = _layer(graph, population, shapes, convention, notes)
        if layer is not None:
            layers.append(layer)
    if not layers:
        notes.add("empty", "", "no population to place", "Add a convolution or matrix and an IF population.")
    if any(f.severity == "error" for f in notes.found):
        return None, notes.found
    return Network(tuple(layers), outputs, inputs[0], shapes[inputs[0]].output), notes.found


def _types_known(graph: nir.NIRGraph, notes: _Findings) -> bool:
    known = (nir.Input, nir.Output, nir.Flatten, nir.IF, nir.LIF, *_WEIGHTS, *_POOLS)
    bad = [name for name, node in graph.nodes.items() if not isinstance(node, known)]
    for name in bad:
        notes.add(
            "type",
            name,
            f"type {graphs.type_name(graph.nodes[name])} does not exist on this chip",
            "Use Conv2d, Affine, Linear, SumPool2d, AvgPool2d, Flatten and IF.",
        )
    return not bad


def _output(graph: nir.NIRGraph, population: Population, notes: _Findings) -> str | None:
    if len(population.paths) != 1:
        notes.add(
            "output",
            population.name,
            f"{len(population.paths)} paths lead here, at most 1",
            "Add one Output each.",
        )
        return None
    path = population.paths[0]
    for name in path.nodes:
        if not isinstance(graph.nodes[name], nir.Flatten):
            kind = graphs.type_name(graph.nodes[name])
            notes.add("output", name, f"{kind} between the last population and the Output", "Let an IF follow it.")
            return None
    if isinstance(graph.nodes[path.source], nir.Input):
        notes.add("output", population.name, "the Input leads straight to the Output", "Put a population between.")
        return None
    return path.source


def _layer(
    graph: nir.NIRGraph,
    population: Population,
    shapes: Mapping[str, graphs.Shapes],
    convention: Convention,
    notes: _Findings,
) -> Layer | None:
    name = population.name
    weights = {w for path in population.paths for w in path.nodes if isinstance(graph.nodes[w], _WEIGHTS)}
    if len(weights) != 1 or any(not weights & set(path.nodes) for path in population.paths):
        notes.add(
            "structure",
            name,
            f"{len(weights)} weight nodes ({', '.join(sorted(weights)) or 'none'}) between this population and the "
            "one before, exactly 1 is possible",
            "Put one convolution or matrix before every population, shared by all its inputs.",
        )
        return None
    weight_node = weights.pop()
    feeds = [_feed(graph, path, weight_node, notes) for path in population.paths]
    if any(feed is None for feed in feeds) or not _neuron(graph, name, convention, notes):
        return None
    known = tuple(feed for feed in feeds if feed is not None)
    if len({feed.rescale for feed in known}) > 1:
        notes.add(
            "rescale",
            weight_node,
            f"its inputs are average-pooled by different factors {sorted(1 / f.rescale for f in known)}",
            "Pool all inputs of a merge alike.",
        )
        return None
    return _assemble(graph, name, weight_node, known, shapes, convention, notes)


def _feed(graph: nir.NIRGraph, path: Path, weight_node: str, notes: _Findings) -> Feed | None:
    pool, rescale = 1, 1.0
    at = path.nodes.index(weight_node)
    for name in path.nodes[at + 1 :]:
        if not isinstance(graph.nodes[name], nir.Flatten):
            notes.add(
                "structure",
                name,
                f"{graphs.type_name(graph.nodes[name])} between {weight_node!r} and its population",
                "Pool after the population, not before it.",
            )
            return None
    for name in path.nodes[:at]:
        node = graph.nodes[name]
        if isinstance(node, nir.Flatten):
            continue
        kernel, stride, padding = (graphs.pair(v) for v in (node.kernel_size, node.stride, node.padding))
        if kernel[0] != kernel[1] or stride != kernel or padding != (0, 0):
            notes.add(
                "pooling",
                name,
                f"window {kernel}, stride {stride}, padding {padding}: the chip pools square windows side by side",
                "Use a square window with stride equal to it and no padding.",
            )
            return None
        pool *= kernel[0]
        rescale *= 1.0 / kernel[0] ** 2 if isinstance(node, nir.AvgPool2d) else 1.0
    if pool > 1 and isinstance(graph.nodes[path.source], nir.Input):
        notes.add(
            "pooling",
            path.nodes[0],
            "pooling before the first convolution needs the sensor's input layer, which is not supported yet",
            "Pool the raster before the run, or use a convolution with stride.",
        )
        return None
    return Feed(path.source, pool, rescale, tuple(path.nodes[:at]))


def _neuron(graph: nir.NIRGraph, name: str, convention: Convention, notes: _Findings) -> bool:
    """Whether the chip's integrate-and-fire neuron can stand for this node; findings say why not."""
    node = graph.nodes[name]
    kind = graphs.type_name(node)
    here = convention.for_node(name, kind)
    before = len(notes.found)
    if not isinstance(node, nir.IF):
        notes.add("neuron", name, f"{kind}: the chip has integrate-and-fire neurons only", "Use IF.")
        return False
    for field_name, value in graphs.parameters(node).items():
        distinct = np.unique(np.asarray(value))
        if distinct.size > 1:
            notes.add(
                "heterogeneous",
                name,
                f"{field_name} has {distinct.size} different values, one per core is possible",
                f"Use one {field_name} for the population.",
                value=int(distinct.size),
                limit=1,
            )
    if here.reset == "v_reset" and np.any(np.asarray(graphs.parameters(node)["v_reset"]) != 0):
        notes.add("v_reset", name, "v_reset is not 0: the chip resets to 0 or subtracts", "Use v_reset = 0.")
    if np.any(np.asarray(node.v_threshold) <= 0):
        notes.add("threshold", name, "v_threshold is not positive", "Use a positive threshold.")
    for option, only in (("fires", "after_update"), ("reset_time", "same_step"), ("population_delay", 0)):
        value = getattr(here, option)
        if value != only:
            notes.add("convention", name, f"{option}={value!r} is not how the chip works", f"Use {only!r}.")
    if here.if_gain == "r_dt" and here.gain != "unit" and here.dt is None:
        notes.add("convention", name, "IF with input gain r dt needs dt", "Give dt, or if_gain='r'.")
    return len(notes.found) == before


def _assemble(
    graph: nir.NIRGraph,
    name: str,
    weight_node: str,
    feeds: tuple[Feed, ...],
    shapes: Mapping[str, graphs.Shapes],
    convention: Convention,
    notes: _Findings,
) -> Layer | None:
    node, neuron = graph.nodes[weight_node], graph.nodes[name]
    here = convention.for_node(name, "IF")
    gain = np.float32(_gain(neuron, here))
    if gain == 0 or not math.isfinite(gain):
        notes.add("gain", name, f"input gain r is {gain}", "Use a finite r other than 0.")
        return None
    try:
        kernel, stride, padding = _kernel(graph, weight_node, feeds, shapes)
    except NirdeployError as error:
        notes.add("structure", weight_node, str(error), "Change the layer.")
        return None
    weight = kernel.astype(np.float32) * np.float32(feeds[0].rescale)
    bias = np.asarray(getattr(node, "bias", 0.0), dtype=np.float32) * np.ones(kernel.shape[0], np.float32)
    if gain != 1:
        weight, bias = weight * gain, bias * gain
    out = shapes[weight_node].output
    output_shape = (out[0], 1, 1) if len(out) == 1 else (out[0], out[1], out[2])
    before = _core_input(weight_node, node, feeds, shapes)
    threshold = np.float32(np.asarray(neuron.v_threshold).flat[0])
    v_min = None if here.v_min is None else -threshold if here.v_min == "-threshold" else np.float32(here.v_min)
    return Layer(
        name,
        weight_node,
        weight,
        bias if np.any(bias) else None,
        stride,
        padding,
        before,
        output_shape,
        shapes[name].output,
        threshold,
        v_min,
        here,
        feeds,
    )


def _gain(node: nir.IF, here: Convention) -> float:
    r = float(np.asarray(node.r).flat[0]) if here.use_r else 1.0
    if here.gain == "unit":
        return 1.0
    return r if here.if_gain == "r" else r * float(here.dt or 0.0)


def _core_input(
    weight_node: str, node: nir.NIRNode, feeds: tuple[Feed, ...], shapes: Mapping[str, graphs.Shapes]
) -> tuple[int, int, int]:
    """Shape of the events that reach the core: the source's map after pooling, before any Flatten."""
    shape: tuple[int, ...] = shapes[weight_node].input
    if not isinstance(node, nir.Conv2d):
        for feed in feeds:
            source = shapes[feed.source].output
            if len(source) == 3:
                shape = (source[0], source[1] // feed.pool, source[2] // feed.pool)
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _kernel(
    graph: nir.NIRGraph, weight_node: str, feeds: tuple[Feed, ...], shapes: Mapping[str, graphs.Shapes]
) -> tuple[NDArray[Any], tuple[int, int], tuple[int, int]]:
    """[out, in, y, x], stride and padding; a matrix over a map is a kernel of the map's size."""
    node = graph.nodes[weight_node]
    if isinstance(node, nir.Conv2d):
        options = graphs.conv2d_options(node, weight_node)
        if options["dilation"] != (1, 1) or options["groups"] != 1:
            raise ConversionError(
                f"dilation {options['dilation']} and groups {options['groups']}; the chip has neither",
                node=weight_node,
            )
        if any(isinstance(graph.nodes[n], nir.Flatten) for feed in feeds for n in feed.nodes):
            raise ConversionError("a Flatten before a convolution", node=weight_node)
        return node.weight, options["stride"], options["padding"]
    channel, height, width = _core_input(weight_node, node, feeds, shapes)
    outputs, inputs = node.weight.shape
    if channel * height * width != inputs:
        raise ConversionError(
            f"a matrix over {inputs} inputs after a map of {channel}x{height}x{width}", node=weight_node
        )
    return node.weight.reshape(outputs, channel, height, width), (1, 1), (0, 0)


def lowered(quantized: Quantized) -> Network:
    """The layers of a quantised graph.

    Raises:
        QuantizationError: the graph is not one that can have been quantised for this chip.
    """
    network, found = lower(quantized.graph, quantized.convention)
    if network is None:
        raise QuantizationError(f"{quantized.target.name} cannot hold this graph: {found[0]}")
    return network
