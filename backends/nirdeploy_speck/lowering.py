"""Lowering of one population: all that feeds it as the feeds, the kernel and the neuron of one core."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import ConversionError, NirdeployError
from nirdeploy.graph import Population
from nirdeploy.reference.convention import Convention
from nirdeploy_speck.geometry import Axis, Square, square
from nirdeploy_speck.layers import Feed, Inlet, Layer, Map
from nirdeploy_speck.neurons import input_gain, neuron_findings
from nirdeploy_speck.paths import Findings, feed_of, map_of, weights_of

__all__ = ["MOST_WEIGHTS", "lower_layer"]

MOST_WEIGHTS = 1 << 24  # 1024 features to and from with a kernel of 4 by 4, far beyond any core


@dataclass(frozen=True)
class _Part:
    """One weight node of a population, as a kernel over the map its feeds bring.

    Attributes:
        node: the weight node.
        feeds: what it reads.
        before: (channel, y, x) of that.
        after: (channel, y, x) of what it makes of it.
        kernel: [out, in, y, x].
        stride, padding: (y, x).
    """

    node: str
    feeds: tuple[Feed, ...]
    before: Map
    after: Map
    kernel: NDArray[Any]
    stride: tuple[int, int]
    padding: tuple[int, int]


def lower_layer(
    graph: nir.NIRGraph,
    population: Population,
    shapes: Mapping[str, graphs.Shapes],
    maps: Mapping[str, Map],
    convention: Convention,
    notes: Findings,
) -> Layer | None:
    """A population with all that feeds it; findings say what is in the way, None where there is no layer at all.

    Args:
        graph: the graph.
        population: a neuron node and its paths.
        shapes: of every node.
        maps: (channel, y, x) on the chip of populations and, unless readers pool it differently, of the Input.
        convention: what the graph is run with.
        notes: what is found is added here.
    """
    name = population.name
    notes.found.extend(neuron_findings(graph, name, convention))
    feeds: dict[str, list[Feed]] = {}
    complete = bool(population.paths)
    for path in population.paths:
        weights = weights_of(graph, path)
        if len(weights) != 1:
            notes.add(
                "structure",
                name,
                f"{len(weights)} weight nodes ({', '.join(sorted(weights)) or 'none'}) between this population and the "
                "one before, exactly 1 is possible",
                "Put one convolution or matrix on every way into a population.",
            )
            complete = False
            continue
        feed = feed_of(graph, path, weights[0], notes)
        complete = complete and feed is not None
        if feed is not None:
            feeds.setdefault(weights[0], []).append(feed)
    parts = [_part(graph, node, tuple(found), shapes, maps, notes) for node, found in feeds.items()]
    # the Input's come first: the DVS layer has no feature shift
    known = sorted((p for p in parts if p is not None), key=lambda p: not _reads_input(graph, p))
    if not complete or len(known) != len(parts):
        return None
    return _assemble(graph, name, known, shapes, convention, notes)


def _reads_input(graph: nir.NIRGraph, part: _Part) -> bool:
    return any(isinstance(graph.nodes[feed.source], nir.Input) for feed in part.feeds)


def _part(
    graph: nir.NIRGraph,
    weight_node: str,
    feeds: tuple[Feed, ...],
    shapes: Mapping[str, graphs.Shapes],
    maps: Mapping[str, Map],
    notes: Findings,
) -> _Part | None:
    if len({feed.rescale for feed in feeds}) > 1:
        notes.add(
            "rescale",
            weight_node,
            f"its inputs are average-pooled by different factors {sorted(1 / f.rescale for f in feeds)}",
            "Pool all inputs of a merge alike, or give each a node of its own with these weights.",
        )
        return None
    before = _merged(graph, weight_node, feeds, shapes, maps, notes)
    if before is None:
        return None
    try:
        kernel, stride, padding = _kernel(graph.nodes[weight_node], weight_node, before)
    except NirdeployError as error:
        notes.refuse("structure", error)
        return None
    return _Part(weight_node, feeds, before, map_of(shapes[weight_node].output), kernel, stride, padding)


def _merged(
    graph: nir.NIRGraph,
    weight_node: str,
    feeds: tuple[Feed, ...],
    shapes: Mapping[str, graphs.Shapes],
    maps: Mapping[str, Map],
    notes: Findings,
) -> Map | None:
    """The map all feeds bring to a core; None, with a finding, where they differ or the graph reshapes it."""
    if any(feed.source not in maps for feed in feeds):
        return None  # an Input that is pooled in several ways, which is said already
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
    node, given = graph.nodes[weight_node], shapes[weight_node].input
    expected: tuple[int, ...] = (math.prod(before),)
    if isinstance(node, nir.Conv2d):
        expected = before
    elif isinstance(node, nir.Conv1d):
        expected = (before[0], before[2]) if before[1] == 1 else before
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


def _kernel(node: nir.NIRNode, weight_node: str, before: Map) -> tuple[NDArray[Any], tuple[int, int], tuple[int, int]]:
    """[out, in, y, x], stride and padding; a matrix over a map (row-major C, y, x) is a kernel of the map's size."""
    weight = np.asarray(node.weight)
    if isinstance(node, nir.Conv2d):
        options = graphs.conv2d_options(node, weight_node)
        plain = options["dilation"] == (1, 1)
    elif isinstance(node, nir.Conv1d):
        options = graphs.conv1d_options(node, weight_node)
        plain = options["dilation"] == 1
        options = {**options, "stride": (1, options["stride"]), "padding": (0, options["padding"])}
        weight = weight[:, :, None, :]
    else:
        return weight.reshape(weight.shape[0], *before), (1, 1), (0, 0)
    if not plain or options["groups"] != 1:
        raise ConversionError(
            f"dilation {options['dilation']} and groups {options['groups']}; the chip has neither",
            node=weight_node,
        )
    return weight, options["stride"], options["padding"]


def _squared(parts: list[_Part]) -> Square | None:
    def axis(index: int) -> Axis:
        return Axis(
            taps=tuple(part.kernel.shape[2 + index] for part in parts),
            paddings=tuple(part.padding[index] for part in parts),
            strides=tuple(part.stride[index] for part in parts),
            size=max(part.before[1 + index] for part in parts),
            positions=parts[0].after[1 + index],
        )

    return square(axis(0), axis(1))


def _no_square(name: str, parts: list[_Part], notes: Findings) -> None:
    if len(parts) == 1:
        (height, width), part = parts[0].kernel.shape[2:], parts[0]
        notes.add(
            "kernel_square",
            part.node,
            f"kernel {height}x{width} is not square, and zeros around it would give another map than "
            f"{part.after[1]}x{part.after[2]}",
            "Use a square kernel, or sides that differ by an even number.",
            value=[height, width],
        )
        return
    listed = ", ".join(
        f"{p.node!r} {p.kernel.shape[2]}x{p.kernel.shape[3]} stride {p.stride} padding {p.padding}" for p in parts
    )
    notes.add(
        "sum_geometry",
        name,
        f"adds up convolutions that are not one over all their channels: {listed}",
        "Give them one stride, and kernels that are centred alike.",
    )


def _assemble(
    graph: nir.NIRGraph,
    name: str,
    parts: list[_Part],
    shapes: Mapping[str, graphs.Shapes],
    convention: Convention,
    notes: Findings,
) -> Layer | None:
    if len({part.after for part in parts}) > 1:
        listed = ", ".join(f"{p.node!r} {p.after[0]}x{p.after[1]}x{p.after[2]}" for p in parts)
        problem = f"adds up different maps (channel, y, x): {listed}"
        notes.add("sum_shape", name, problem, "Give them maps of one shape.")
        return None
    one = _squared(parts)
    if one is None:
        _no_square(name, parts, notes)
        return None
    size = parts[0].after[0] * sum(part.before[0] for part in parts) * one.kernel**2
    if size > MOST_WEIGHTS:
        problem = f"a square kernel of {one.kernel}x{one.kernel} for it has {size} weights, at most {MOST_WEIGHTS} are"
        notes.add("size", parts[0].node, f"{problem} possible", "Use a smaller layer.", value=size, limit=MOST_WEIGHTS)
        return None
    neuron = graph.nodes[name]
    here = convention.for_node(name, "IF")
    threshold = np.float32(np.asarray(neuron.v_threshold).flat[0])
    with np.errstate(over="ignore", invalid="ignore"):
        gain = np.float32(input_gain(neuron, here))
        v_min = None if here.v_min is None else -threshold if here.v_min == "-threshold" else np.float32(here.v_min)
        inlets, weight = _side_by_side(graph, parts, one, gain)
        bias = sum((inlet.bias for inlet in inlets[1:]), start=inlets[0].bias)
    if gain == 0 or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        notes.add(
            "gain",
            name,
            f"input gain is {input_gain(neuron, here):.4g}: inputs vanish or overflow",
            "Use an r nearer to 1.",
        )
        return None
    if threshold <= 0:
        if np.asarray(neuron.v_threshold).flat[0] > 0:
            notes.add("threshold", name, f"v_threshold is {threshold} in 32-bit floats", "Rescale the network.")
        threshold = np.float32(1)  # stands in, so that the limits of the layer are checked all the same
    return Layer(
        name=name,
        weight_node=parts[0].node,
        weight=weight,
        bias=bias if np.any(bias) else None,
        stride=one.stride,
        padding=one.padding,
        input_shape=(weight.shape[1], *(max(part.before[axis] for part in parts) for axis in (1, 2))),
        output_shape=parts[0].after,
        node_shape=shapes[name].output,
        threshold=threshold,
        v_min=v_min,
        gain=input_gain(neuron, here),
        convention=here,
        feeds=tuple(
            replace(feed, shift=inlet.first) for inlet, part in zip(inlets, parts, strict=True) for feed in part.feeds
        ),
        inlets=inlets,
    )


def _side_by_side(
    graph: nir.NIRGraph, parts: list[_Part], one: Square, gain: np.float32
) -> tuple[tuple[Inlet, ...], NDArray[np.float32]]:
    """Kernels next to each other in the input channels, each where its own padding puts it, zero elsewhere."""
    outputs, inputs = parts[0].after[0], sum(part.before[0] for part in parts)
    weight = np.zeros((outputs, inputs, one.kernel, one.kernel), np.float32)
    inlets: list[Inlet] = []
    for part in parts:
        node = graph.nodes[part.node]
        bias = np.asarray(getattr(node, "bias", 0.0), dtype=np.float32) * np.ones(outputs, np.float32)
        kernel = part.kernel.astype(np.float32, copy=False)
        out, into, height, width = kernel.shape
        inlet = Inlet(
            node=part.node,
            first=sum(done.shape[1] for done in inlets),
            input_shape=part.before,
            shape=(out, into, height, width),
            offset=(one.padding[0] - part.padding[0], one.padding[1] - part.padding[1]),
            node_shape=tuple(np.shape(node.weight)),
            bias=bias if gain == 1 else bias * gain,
        )
        np.multiply(kernel, np.float32(part.feeds[0].rescale), out=weight[inlet.place])
        inlets.append(inlet)
    if gain != 1:
        weight *= gain
    return tuple(inlets), weight
