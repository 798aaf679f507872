"""What the tests on live libraries share: grids of numbers on which float32 does not round, and the comparison itself.

Weights are multiples of 2**-6 and counts are small, so that what goes into a population is exact in any order of
summation, and thresholds lie between the multiples. Then no spike depends on how a sum was rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import nirdeploy as nd

GRID = 2.0**-6
BOUND = 1e-5  # of v, in units of the threshold


@dataclass(frozen=True)
class Seen:
    """What a population of the library did, [step, batch, ...]."""

    spikes: np.ndarray
    v: np.ndarray | None
    threshold: Any = 1.0


@st.composite
def rasters(draw, shape: Sequence[int], most_steps: int = 24, most_batch: int = 5) -> Tensor:
    """Spike counts 0 to 2, [step, batch, *shape], float32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps, batch = draw(st.integers(8, most_steps)), draw(st.integers(1, most_batch))
    counts = rng.choice(3, (steps, batch, *shape), p=(0.6, 0.3, 0.1))
    return torch.tensor(counts, dtype=torch.float32)


def on_grid(rng: np.random.Generator, shape: Sequence[int], low: float = -0.6, high: float = 1.0) -> Tensor:
    """Random multiples of `GRID`."""
    return torch.tensor(rng.integers(round(low / GRID), round(high / GRID) + 1, tuple(shape)) * GRID).float()


def off_grid(rng: np.random.Generator, shape: Sequence[int] = (), low: float = 0.4, high: float = 2.0) -> Tensor:
    """Random positive numbers between the multiples of `GRID`: never what a sum of them can be."""
    return on_grid(rng, shape, low, high) + 0.381966 * GRID


def fill_weights(module: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Give all Linear and Conv layers inside, recurrent ones included, weights on the grid; the module itself."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            reach = max(2.0 / fan_in**0.5, 2 * GRID)
            layer.weight.data = on_grid(rng, layer.weight.shape, -0.6 * reach, reach)
            if layer.bias is not None:
                layer.bias.data = on_grid(rng, layer.bias.shape, -0.1, 0.2)
    return module


def node_of(graph: nir.NIRGraph, path: str) -> str:
    """The population that a layer at this path became: the node itself, or the one among several of its nodes."""
    if path in graph.nodes and not isinstance(graph.nodes[path], nir.NIRGraph):
        return path
    inner = graph.nodes[path].nodes if path in graph.nodes else graph.nodes
    prefix = "" if path in graph.nodes else f"{path}."
    (found,) = [n for n, node in inner.items() if n.startswith(prefix) and hasattr(node, "r")]
    return f"{path}.{found.removeprefix(prefix)}"


def assert_same(
    module: nn.Module,
    raster: Tensor,
    own: Callable[[Tensor], tuple[np.ndarray, Mapping[str, Seen]]],
    *,
    methods: Sequence[str] = ("dense", "event", "loop"),
    dt: float | None = None,
    sample: Any = None,
) -> nir.NIRGraph:
    """Hold the converted network against the library's own run.

    Args:
        module: the network.
        raster: [step, batch, ...].
        own: raster -> what the library's network puts out [step, batch, ...], and what its populations did, by path.
        methods: of `nd.run`.
        dt: handed on.
        sample: the sample input; None: the raster's first step.

    Returns:
        The graph.
    """
    graph = nd.torch_to_nir(module, sample_input=raster[0] if sample is None else sample, dt=dt)
    convention = nd.convention_of(module, dt=dt)
    assert graph_convention(graph) == convention
    output, populations = own(raster)
    assert populations
    for method in methods:
        found = nd.run(graph, raster, convention=convention, method=method)
        assert np.array_equal(np.asarray(found.outputs), output), method
        for path, seen in populations.items():
            node = node_of(graph, path)
            if (node, "spikes") in found.records:
                assert np.array_equal(found[node, "spikes"].data, seen.spikes), (method, path)
            if seen.v is not None:
                error = np.abs(found[node, "v_mem"].data - seen.v)
                # where v runs far beyond the threshold: two roundings a step, of sums in another order
                rounding = 2 * len(seen.v) * np.finfo(np.float32).eps / 2 * np.abs(seen.v).max()
                bound = np.maximum(BOUND * np.abs(np.asarray(seen.threshold)), rounding)
                assert np.all(error <= bound), (method, path, error.max())
    return graph


def graph_convention(graph: nir.NIRGraph) -> nd.Convention:
    """The convention that a graph carries."""
    from nirdeploy.reference.graph_convention import stored_convention

    found = stored_convention(graph)
    assert found is not None
    return found
