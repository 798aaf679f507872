"""The ways into a population: chains of pools and Flattens around one weight node, and what was found on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import nir

from nirdeploy import graph as graphs
from nirdeploy.errors import NirdeployError
from nirdeploy.graph import Path, Population
from nirdeploy.rules import Finding
from nirdeploy_speck.layers import Feed, Map

__all__ = ["POOLS", "WEIGHTS", "Findings", "feed_of", "input_pooling", "map_of", "weights_of"]

WEIGHTS = (nir.Conv1d, nir.Conv2d, nir.Affine, nir.Linear)
POOLS = (nir.SumPool2d, nir.AvgPool2d)


@dataclass
class Findings:
    """What was found so far."""

    found: list[Finding] = field(default_factory=list)

    def add(self, code: str, node: str, problem: str, remedy: str, **more: Any) -> None:
        """One more, unless the same is there: several paths lead through one node."""
        finding = Finding(code, node, problem, remedy, **more)
        if finding not in self.found:
            self.found.append(finding)

    def refuse(self, code: str, error: NirdeployError) -> None:
        """An error of this package as a finding."""
        # an error that only adds to another one has the node of that
        node = error.node or getattr(error.__cause__, "node", None) or ""
        problem = str(error).removeprefix(f"node {node!r}: ")
        if error.remedy:
            problem = problem.removesuffix(f". {error.remedy}")
        self.add(code, node, problem, error.remedy or "Change the graph.")


def map_of(shape: tuple[int, ...]) -> Map:
    """(channel, y, x) on the chip of a shape in the graph: a line is one pixel high, a vector is all channels."""
    if len(shape) == 3:
        return (shape[0], shape[1], shape[2])
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (math.prod(shape), 1, 1)


# ---------------------------------------------------------------- paths


def weights_of(graph: nir.NIRGraph, path: Path) -> list[str]:
    """Convolutions and matrices on a path."""
    return [name for name in path.nodes if isinstance(graph.nodes[name], WEIGHTS)]


def _pooling(graph: nir.NIRGraph, nodes: tuple[str, ...], notes: Findings) -> tuple[tuple[int, int], float] | None:
    """Window (y, x) and factor of a chain of pools; None where a node is none, with a finding where it is a pool."""
    window, rescale = (1, 1), 1.0
    for name in nodes:
        node = graph.nodes[name]
        if isinstance(node, nir.Flatten):
            continue
        if not isinstance(node, POOLS):
            return None  # named by its type
        kernel, stride, padding = (graphs.pair(v) for v in (node.kernel_size, node.stride, node.padding))
        if stride != kernel or padding != (0, 0):
            notes.add(
                "pooling",
                name,
                f"window {kernel}, stride {stride}, padding {padding}: the chip pools windows side by side",
                "Use a window with stride equal to it and no padding.",
            )
            return None
        window = (window[0] * kernel[0], window[1] * kernel[1])
        # factor by factor: 1/9 is no binary fraction, and the quantiser's bits depend on it
        rescale *= 1.0 / (kernel[0] * kernel[1]) if isinstance(node, nir.AvgPool2d) else 1.0
    return window, rescale


def input_pooling(
    graph: nir.NIRGraph, source: str, populations: list[Population], notes: Findings
) -> tuple[int, int] | None:
    """Window (y, x) that everything behind the Input is pooled by before its first weights.

    None, with a finding, where readers want different ones.
    """
    found: dict[str, tuple[int, int]] = {}
    for population in populations:
        for path in population.paths:
            weights = weights_of(graph, path)
            if path.source != source or not weights:
                continue
            chain = _pooling(graph, path.nodes[: path.nodes.index(weights[0])], Findings())
            if chain is not None:
                found[weights[0]] = chain[0]
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name!r} by {window}" for name, window in found.items())
        notes.add(
            "pooling",
            source,
            f"is pooled differently for each reader ({listed}); the DVS layer pools once",
            "Pool it alike, or use convolutions with stride.",
        )
        return None
    return next(iter(found.values()), (1, 1))


def feed_of(graph: nir.NIRGraph, path: Path, weight_node: str, notes: Findings) -> Feed | None:
    """What a path brings to its weight node; None, with a finding, where a core cannot do it."""
    at = path.nodes.index(weight_node)
    for name in path.nodes[at + 1 :]:
        if not isinstance(graph.nodes[name], nir.Flatten):
            if isinstance(graph.nodes[name], POOLS):
                notes.add(
                    "structure",
                    name,
                    f"{graphs.type_name(graph.nodes[name])} between {weight_node!r} and its population",
                    "Pool after the population, not before it.",
                )
            return None
    chain = _pooling(graph, path.nodes[:at], notes)
    if chain is None:
        return None
    window, rescale = chain
    if isinstance(graph.nodes[path.source], nir.Input):
        window = (1, 1)  # the DVS layer's
    if window[0] != window[1]:
        notes.add(
            "pooling",
            next(n for n in path.nodes[:at] if isinstance(graph.nodes[n], POOLS)),
            f"pools {window[0]}x{window[1]} in all: a core pools square windows",
            "Use a square window.",
            value=list(window),
        )
        return None
    return Feed(path.source, window[0], rescale, tuple(path.nodes[:at]), weight_node=weight_node)
