"""Lowering: a NIR graph as DYNAP-CNN layers, every obstacle a Finding."""

from __future__ import annotations

import math
from collections.abc import Mapping

import nir
import numpy as np

from nirdeploy import exact
from nirdeploy import graph as graphs
from nirdeploy.errors import NirdeployError, PlacementError, QuantizationError
from nirdeploy.graph import Population
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy_speck.dvs import DvsLayer, with_options
from nirdeploy_speck.layers import Feed, Inlet, Layer, Map, Network, log2_ceil
from nirdeploy_speck.lowering import MOST_WEIGHTS, lower_layer
from nirdeploy_speck.paths import POOLS, WEIGHTS, Findings, input_pooling, map_of

__all__ = ["Feed", "Inlet", "Layer", "Map", "Network", "draft", "log2_ceil", "lower", "lowered"]

_LARGEST = float(np.finfo(np.float32).max)
_KNOWN = (nir.Input, nir.Output, nir.Flatten, nir.IF, nir.LIF, *WEIGHTS, *POOLS)


def lower(graph: nir.NIRGraph, convention: Convention) -> tuple[Network | None, list[Finding]]:
    """Layers of a graph, or None, with every obstacle found.

    Args:
        graph: a valid graph.
        convention: what it is run with.

    Returns:
        The network, None where an error was found, and the findings: what cannot be expressed as layers at all;
        limits of a chip are `rules`.
    """
    network, found = draft(graph, convention)
    return (None if any(f.severity == "error" for f in found) else network), found


def lowered(quantized: Quantized, placement: Placement | None = None) -> Network:
    """The layers of a quantised graph; with a placement, the DVS layer as its options set it, too.

    Raises:
        QuantizationError: the graph is not one that can have been quantised for this chip.
        PlacementError: the options of the DVS layer do not go with the graph.
    """
    network, found = lower(quantized.graph, quantized.convention)
    if network is None:
        raise QuantizationError(f"{quantized.target.name} cannot hold this graph: {found[0]}")
    if placement is None or "dvs" not in placement.options:
        return network
    if len(network.input_shape) != 3:
        raise PlacementError(f"dvs gives maps, the graph's Input is {network.input_shape}", node=network.input_name)
    a, b, c = network.input_shape
    layer = with_options(
        placement.options["dvs"], (a, b, c), network.dvs, quantized.target.table["dvs"], network.input_name
    )
    return Network(network.layers, network.outputs, network.input_name, layer.input_shape, network.input_map, dvs=layer)


def draft(graph: nir.NIRGraph, convention: Convention) -> tuple[Network | None, list[Finding]]:
    """The layers that can be made out, also where others cannot, so that their limits are checked all the same.

    Returns:
        The network, None where not even shapes are known, and the findings; an error among them says that layers of
        the network are missing or do not compute what the graph does.
    """
    notes = Findings()
    typed = _types_known(graph, notes)
    if not _values_known(graph, notes) or any(isinstance(node, nir.NIRGraph) for node in graph.nodes.values()):
        return None, notes.found
    shapes = _shapes(graph, notes if typed else Findings())
    if shapes is None:
        return None, notes.found
    for source, target in graphs.feedback_edges(graph):
        notes.add(
            "recurrence",
            target,
            f"recurrent edge from {source!r}: events go round at once, not a step later, and cores that wait for each "
            "other stop the chip",
            "Remove the loop.",
        )
    inputs = graphs.input_names(graph)
    if len(inputs) != 1:
        notes.add("inputs", inputs[1], f"{len(inputs)} Inputs, at most 1", "Merge the inputs into one.")
        return None, notes.found
    try:
        populations = graphs.populations(graph)
    except NirdeployError as error:
        notes.refuse("paths", error)
        return None, notes.found
    return _network(graph, populations, shapes, convention, notes), notes.found


def _shapes(graph: nir.NIRGraph, notes: Findings) -> Mapping[str, graphs.Shapes] | None:
    try:
        return graphs.shapes(graph)
    except NirdeployError as error:
        notes.refuse("shape", error)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"the shapes cannot be told: {type(error).__name__}: {error}"
        notes.add("shape", "", problem, "Check options and parameters of every node.")
    return None


def _network(
    graph: nir.NIRGraph,
    populations: list[Population],
    shapes: Mapping[str, graphs.Shapes],
    convention: Convention,
    notes: Findings,
) -> Network:
    (source,) = graphs.input_names(graph)
    shape = shapes[source].output
    pooling = input_pooling(graph, source, populations, notes)
    dvs = _dvs(shape, pooling or (1, 1))
    input_map = _input_map(graph, source, shape) if dvs is None else dvs.output_shape
    maps: dict[str, Map] = {} if pooling is None else {source: input_map}
    for population in populations:  # what a loop feeds back comes before its own turn
        maps.setdefault(population.name, map_of(shapes[population.name].output))
    layers: list[Layer] = []
    outputs: dict[str, str] = {}
    for population in populations:
        if isinstance(graph.nodes[population.name], nir.Output):
            read = _output(graph, population, notes)
            if read is not None:
                outputs[population.name] = read
            continue
        if not isinstance(graph.nodes[population.name], _KNOWN):
            continue  # named by its type
        layer = lower_layer(graph, population, shapes, maps, convention, notes)
        if layer is not None:
            layers.append(layer)
            maps[layer.name] = layer.output_shape
    if not layers and not notes.found:  # otherwise what was found says why
        notes.add("empty", "", "no population to place", "Add a convolution or matrix and an IF population.")
    return Network(tuple(layers), outputs, source, shape, input_map, dvs)


def _input_map(graph: nir.NIRGraph, source: str, shape: tuple[int, ...]) -> Map:
    """The Input on the chip: a map as it is, a line that a Conv1d reads as a map one pixel high, the rest channels."""
    line = len(shape) == 2 and any(
        isinstance(graph.nodes[name], nir.Conv1d) for name in graphs.successors(graph)[source]
    )
    return map_of(shape) if len(shape) == 3 or line else (math.prod(shape), 1, 1)


def _dvs(shape: tuple[int, ...], pooling: tuple[int, int]) -> DvsLayer | None:
    """The DVS layer that pools the Input; None where the graph does not pool it."""
    if pooling == (1, 1) or len(shape) != 3:
        return None
    cut = (shape[1] // pooling[0] - 1, shape[2] // pooling[1] - 1)
    size = (shape[0], shape[1], shape[2])
    # of one polarity, events of either kind are meant
    return DvsLayer(size, merge=shape[0] == 1, pooling=pooling, origin=(0, 0), cut=cut)


def _types_known(graph: nir.NIRGraph, notes: Findings) -> bool:
    bad = [name for name, node in graph.nodes.items() if not isinstance(node, _KNOWN)]
    for name in bad:
        notes.add(
            "type",
            name,
            f"type {graphs.type_name(graph.nodes[name])} does not exist on this chip",
            "Use Conv1d, Conv2d, Affine, Linear, SumPool2d, AvgPool2d, Flatten and IF.",
        )
    return not bad


def _values_known(graph: nir.NIRGraph, notes: Findings) -> bool:
    """Whether all weights and neuron parameters are real, finite numbers that 32-bit floats hold."""
    before = len(notes.found)
    for name, node in graph.nodes.items():
        if not isinstance(node, (*WEIGHTS, nir.IF, nir.LIF)):
            continue
        for field_name, value in graphs.parameters(node).items():
            if isinstance(node, WEIGHTS) and field_name not in ("weight", "bias"):
                continue
            size = np.size(value)
            if size > MOST_WEIGHTS:
                problem = f"{field_name} has {size} values, at most {MOST_WEIGHTS} are possible"
                notes.add("size", name, problem, "Use a smaller layer.", value=size, limit=MOST_WEIGHTS)
            elif found := exact.fault(value):
                notes.add(found[0], name, f"{field_name} {found[1]}", "Check the training.", value=found[2], limit=0)
            elif isinstance(node, WEIGHTS) and not isinstance(value, np.ndarray):
                problem = f"{field_name} is a {type(value).__name__}, expected an array"
                notes.add("dtype", name, problem, "Use a NumPy array.")
            elif size and (worst := _largest(value)) > _LARGEST:
                problem = f"{field_name} reaches {worst:.4g}, the quantiser's 32-bit floats hold {_LARGEST:.4g}"
                notes.add("finite", name, problem, "Rescale the network.", value=worst, limit=_LARGEST)
    return len(notes.found) == before


def _largest(value: object) -> float:
    array = np.asarray(value)
    with np.errstate(over="ignore"):
        return max(abs(float(array.max())), abs(float(array.min())))


def _output(graph: nir.NIRGraph, population: Population, notes: Findings) -> str | None:
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
        node = graph.nodes[name]
        if not isinstance(node, nir.Flatten):
            if isinstance(node, _KNOWN):
                kind = graphs.type_name(node)
                problem = f"{kind} between the last population and the Output"
                notes.add("output", name, problem, "Let an IF follow it.")
            return None
    if isinstance(graph.nodes[path.source], nir.Input):
        notes.add("output", population.name, "the Input leads straight to the Output", "Put a population between.")
        return None
    return path.source
