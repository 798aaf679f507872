"""Lowering: a NIR graph as DYNAP-CNN layers, every obstacle a Finding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import exact
from nirdeploy import graph as graphs
from nirdeploy.errors import ConversionError, NirdeployError, QuantizationError
from nirdeploy.graph import Path, Population
from nirdeploy.quantization import Quantized
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding

__all__ = ["Feed", "Layer", "Network", "log2_ceil", "lower", "lowered"]

_WEIGHTS = (nir.Conv2d, nir.Affine, nir.Linear)
_POOLS = (nir.SumPool2d, nir.AvgPool2d)
_MOST_WEIGHTS = 1 << 24  # 1024 features to and from with a kernel of 4 by 4, far beyond any core
_LARGEST = float(np.finfo(np.float32).max)

Map = tuple[int, int, int]


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
        input_shape: (channel, y, x) of the events that reach the core: the source core's map, pooled.
        output_shape: (channel, y, x) of the population on the core.
        node_shape: shape of the population in the graph.
        threshold: firing threshold, model units.
        v_min: lower bound of v, model units, or None.
        gain: input gain of the neuron, already in `weight` and `bias`.
        convention: what holds at this population.
        feeds: where events come from.
    """

    name: str
    weight_node: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_shape: Map
    output_shape: Map
    node_shape: tuple[int, ...]
    threshold: np.float32
    v_min: np.float32 | None
    gain: float
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
    """Layers in execution order, and where the Outputs read.

    Attributes:
        layers: one a core.
        outputs: Output -> the population it reads.
        input_name: the Input.
        input_shape: its shape in the graph.
        input_map: its shape on the chip.
    """

    layers: tuple[Layer, ...]
    outputs: Mapping[str, str]
    input_name: str
    input_shape: tuple[int, ...]
    input_map: Map

    def events(self, raster: NDArray[Any]) -> NDArray[Any]:
        """A raster [step, batch, ...] in the Input's shape as one in the shape it has on the chip."""
        return raster.reshape(*raster.shape[:2], *self.input_map)


@dataclass
class _Findings:
    found: list[Finding] = field(default_factory=list)

    def add(self, code: str, node: str, problem: str, remedy: str, **more: Any) -> None:
        self.found.append(Finding(code, node, problem, remedy, **more))

    def refuse(self, code: str, error: NirdeployError) -> None:
        """An error of this package as a finding."""
        # an error that only adds to another one has the node of that
        node = error.node or getattr(error.__cause__, "node", None) or ""
        problem = str(error).removeprefix(f"node {node!r}: ")
        if error.remedy:
            problem = problem.removesuffix(f". {error.remedy}")
        self.add(code, node, problem, error.remedy or "Change the graph.")


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
    shapes = _shapes(graph, notes) if _types_known(graph, notes) and _values_known(graph, notes) else None
    if shapes is None:
        return None, notes.found
    for source, target in graphs.feedback_edges(graph):
        notes.add("recurrence", target, f"recurrent edge from {source!r}", "Remove the loop: not supported yet.")
    inputs = graphs.input_names(graph)
    if len(inputs) != 1:
        notes.add("inputs", inputs[1], f"{len(inputs)} Inputs, at most 1", "Merge the inputs into one.")
    if any(f.severity == "error" for f in notes.found):
        return None, notes.found
    try:
        populations = graphs.populations(graph)
    except NirdeployError as error:
        notes.refuse("paths", error)
        return None, notes.found
    network = _layers(graph, populations, shapes, convention, notes)
    return (None if any(f.severity == "error" for f in notes.found) else network), notes.found


def _shapes(graph: nir.NIRGraph, notes: _Findings) -> Mapping[str, graphs.Shapes] | None:
    try:
        return graphs.shapes(graph)
    except NirdeployError as error:
        notes.refuse("shape", error)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"the shapes cannot be told: {type(error).__name__}: {error}"
        notes.add("shape", "", problem, "Check options and parameters of every node.")
    return None


def _layers(
    graph: nir.NIRGraph,
    populations: list[Population],
    shapes: Mapping[str, graphs.Shapes],
    convention: Convention,
    notes: _Findings,
) -> Network:
    (source,) = graphs.input_names(graph)
    shape = shapes[source].output
    maps: dict[str, Map] = {source: shape if len(shape) == 3 else (math.prod(shape), 1, 1)}
    layers: list[Layer] = []
    outputs: dict[str, str] = {}
    for population in populations:
        if isinstance(graph.nodes[population.name], nir.Output):
            read = _output(graph, population, notes)
            if read is not None:
                outputs[population.name] = read
            continue
        layer = _layer(graph, population, shapes, maps, convention, notes)
        if layer is not None:
            layers.append(layer)
            maps[layer.name] = layer.output_shape
    if not layers and not notes.found:  # otherwise what was found says why
        notes.add("empty", "", "no population to place", "Add a convolution or matrix and an IF population.")
    return Network(tuple(layers), outputs, source, shape, maps[source])


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


def _values_known(graph: nir.NIRGraph, notes: _Findings) -> bool:
    """Whether all weights and neuron parameters are real, finite numbers that 32-bit floats hold."""
    before = len(notes.found)
    for name, node in graph.nodes.items():
        if not isinstance(node, (*_WEIGHTS, nir.IF, nir.LIF)):
            continue
        for field_name, value in graphs.parameters(node).items():
            if isinstance(node, _WEIGHTS) and field_name not in ("weight", "bias"):
                continue
            size = np.size(value)
            if size > _MOST_WEIGHTS:
                problem = f"{field_name} has {size} values, at most {_MOST_WEIGHTS} are possible"
                notes.add("size", name, problem, "Use a smaller layer.", value=size, limit=_MOST_WEIGHTS)
            elif found := exact.fault(value):
                notes.add(found[0], name, f"{field_name} {found[1]}", "Check the training.", value=found[2], limit=0)
            elif isinstance(node, _WEIGHTS) and not isinstance(value, np.ndarray):
                problem = f"{field_name} is a {type(value).__name__}, expected an array"
                notes.add("dtype", name, problem, "Use a NumPy array.")
            elif size and (worst := _largest(value)) > _LARGEST:
                problem = f"{field_name} reaches {worst:.4g}, the quantiser's 32-bit floats hold {_LARGEST:.4g}"
                notes.add("finite", name, problem, "Rescale the network.", value=worst, limit=_LARGEST)
    return len(notes.found) == before


def _largest(value: Any) -> float:
    with np.errstate(over="ignore"):
        return float(np.abs(np.asarray(value, dtype=np.float64)).max())


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
    maps: Mapping[str, Map],
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
    before = _merged(graph, weight_node, known, shapes, maps, notes)
    if before is None:
        return None
    return _assemble(graph, name, weight_node, known, before, shapes, convention, notes)


def _merged(
    graph: nir.NIRGraph,
    weight_node: str,
    feeds: tuple[Feed, ...],
    shapes: Mapping[str, graphs.Shapes],
    maps: Mapping[str, Map],
    notes: _Findings,
) -> Map | None:
    """The map all feeds bring to a core; None, with a finding, where they differ or the graph reshapes it."""
    if any(feed.source not in maps for feed in feeds):
        return None  # that layer has findings of its own
    found = [(feed.source, _pooled(maps[feed.source], feed.pool)) for feed in feeds]
    source, before = found[0]
    if any(other != before for _, other in found):
        listed = ", ".join(f"{name!r} {size[0]}x{size[1]}x{size[2]}" for name, size in found)
        notes.add(
            "merge_shape",
            weight_node,
            f"its inputs arrive as different maps (channel, y, x): {listed}; events carry their source's coordinates",
            "Give the merged populations maps of one shape.",
        )
        return None
    given = shapes[weight_node].input
    expected = before if isinstance(graph.nodes[weight_node], nir.Conv2d) else (math.prod(before),)
    if given != expected:
        notes.add(
            "reshape",
            weight_node,
            f"expects {given} where {source!r} sends a map {before} (channel, y, x); cores cannot reshape",
            "Use a matrix after Flatten, or a convolution over the map as it is.",
        )
        return None
    return before


def _pooled(size: Map, pool: int) -> Map:
    return (size[0], size[1] // pool, size[2] // pool)


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
    for option, only in (
        ("fires", "after_update"),
        ("reset_time", "same_step"),
        ("population_delay", 0),
        ("v_start", "zero"),
        ("integrator", "euler"),
    ):
        value = getattr(here, option)
        if option == "v_start" and graphs.starts_at_zero(node, value):
            continue
        # without a leak 'exponential' is 'euler'; 'exact' resets inside the step
        if value not in (only, "exponential"):
            notes.add("convention", name, f"{option}={value!r} is not how the chip works", f"Use {only!r}.")
    if here.if_gain == "r_dt" and here.gain != "unit" and here.dt is None:
        notes.add("convention", name, "IF with input gain r dt needs dt", "Give dt, or if_gain='r'.")
    return len(notes.found) == before


def _assemble(
    graph: nir.NIRGraph,
    name: str,
    weight_node: str,
    feeds: tuple[Feed, ...],
    before: Map,
    shapes: Mapping[str, graphs.Shapes],
    convention: Convention,
    notes: _Findings,
) -> Layer | None:
    node, neuron = graph.nodes[weight_node], graph.nodes[name]
    here = convention.for_node(name, "IF")
    gain = _gain(neuron, here)
    try:
        kernel, stride, padding = _kernel(node, weight_node, before)
    except NirdeployError as error:
        notes.refuse("structure", error)
        return None
    threshold = np.float32(np.asarray(neuron.v_threshold).flat[0])
    with np.errstate(over="ignore", invalid="ignore"):
        v_min = None if here.v_min is None else -threshold if here.v_min == "-threshold" else np.float32(here.v_min)
        weight = kernel.astype(np.float32) * np.float32(feeds[0].rescale)
        bias = np.asarray(getattr(node, "bias", 0.0), dtype=np.float32) * np.ones(kernel.shape[0], np.float32)
        if gain != 1:
            weight, bias = weight * np.float32(gain), bias * np.float32(gain)
    if np.float32(gain) == 0 or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        notes.add("gain", name, f"input gain is {gain:.4g}: inputs vanish or overflow", "Use an r nearer to 1.")
        return None
    if threshold <= 0:
        notes.add("threshold", name, f"v_threshold is {threshold} in 32-bit floats", "Rescale the network.")
        return None
    return Layer(
        name=name,
        weight_node=weight_node,
        weight=weight,
        bias=bias if np.any(bias) else None,
        stride=stride,
        padding=padding,
        input_shape=before,
        output_shape=_map_of(shapes[weight_node].output),
        node_shape=shapes[name].output,
        threshold=threshold,
        v_min=v_min,
        gain=gain,
        convention=here,
        feeds=feeds,
    )


def _map_of(shape: tuple[int, ...]) -> Map:
    """Map on the core of a convolution's or a matrix's output."""
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _gain(node: nir.IF, here: Convention) -> float:
    r = float(np.asarray(node.r).flat[0]) if here.use_r else 1.0
    if here.gain == "unit":
        return 1.0
    return r if here.if_gain == "r" else r * float(here.dt or 0.0)


def _kernel(node: nir.NIRNode, weight_node: str, before: Map) -> tuple[NDArray[Any], tuple[int, int], tuple[int, int]]:
    """[out, in, y, x], stride and padding; a matrix over a map (row-major C, y, x) is a kernel of the map's size."""
    weight = np.asarray(node.weight)
    if not isinstance(node, nir.Conv2d):
        return weight.reshape(weight.shape[0], *before), (1, 1), (0, 0)
    options = graphs.conv2d_options(node, weight_node)
    if options["dilation"] != (1, 1) or options["groups"] != 1:
        raise ConversionError(
            f"dilation {options['dilation']} and groups {options['groups']}; the chip has neither",
            node=weight_node,
        )
    return weight, options["stride"], options["padding"]


def lowered(quantized: Quantized) -> Network:
    """The layers of a quantised graph.

    Raises:
        QuantizationError: the graph is not one that can have been quantised for this chip.
    """
    network, found = lower(quantized.graph, quantized.convention)
    if network is None:
        raise QuantizationError(f"{quantized.target.name} cannot hold this graph: {found[0]}")
    return network
