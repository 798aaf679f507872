"""Which spikes arrived at a neuron in a step, and over which weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.binning import events_to_raster, whole_microseconds
from nirdeploy.comparison.align import Aligned
from nirdeploy.errors import GraphError, NirdeployError
from nirdeploy.events import Events
from nirdeploy.nodes import make_graph, make_node, type_name
from nirdeploy.reference.convention import Convention
from nirdeploy.schedule import NodePath, Schedule, dotted, schedule

__all__ = ["Arrival", "arrivals"]

MOST_ARRIVALS = 64
_LINEAR = ("Affine", "AvgPool2d", "Conv1d", "Conv2d", "Delay", "Flatten", "Linear", "Scale", "SumPool2d")
_MOST_WEIGHTS = 1 << 26  # of the layers before one population; building them twice as many takes a second


@dataclass(frozen=True)
class Arrival:
    """A presynaptic neuron whose spikes arrived in the step.

    Attributes:
        source: population or Input it belongs to.
        neuron: index in the source's own shape.
        reference: its spikes in the reference; of an Input what the raster holds, which need not be whole.
        chip: its spikes on the chip; an Input's are those of the one raster.
        weight: what one of its spikes adds, in units of the graph's weights, over all ways that lead here.
        delay: steps the spikes took.
    """

    source: str
    neuron: tuple[int, ...]
    reference: float
    chip: float
    weight: float
    delay: int = 0


class _Place(NamedTuple):
    """A node in front of a population, and the steps that edges take from it to there."""

    path: NodePath
    late: int


def arrivals(
    graph: nir.NIRGraph,
    convention: Convention | None,
    pairs: Mapping[tuple[str, str], Aligned],
    node: str,
    neuron: tuple[int, ...],
    sample: int,
    step: int,
    raster: Any = None,
) -> tuple[tuple[Arrival, ...], str]:
    """Spikes that arrived at one neuron in one step of the reference, those that differ and then the strongest first.

    The weight from a source to the neuron is the derivative of the stateless layers between them, which are linear.

    Args:
        graph: the network.
        convention: has dt for Delays and says where an edge costs a step.
        pairs: aligned records; the spikes of the sources are among them.
        node: population, dotted inside a subgraph.
        neuron: its index.
        sample: of the batch.
        step: of the reference's run.
        raster: what came in, [step, batch, ...] or [step, ...]; a mapping by name with several Inputs; None: not known.

    Returns:
        At most 64 arrivals, and what is missing from them, '' where nothing is.
    """
    if convention is None:
        plan = schedule(graph)
    else:  # with a population_delay the edges into populations are among those that cost a step
        plan = schedule(graph, convention.feedback_edges, population_delay=convention.population_delay)
    target = next((path for path in plan.order if dotted(path) == node), None)
    if target is None:
        return (), f"the graph has no node {node!r}"
    cone = _cone(plan, target)
    if isinstance(cone, str):
        return (), cone
    sent = raster if isinstance(raster, Mapping) or len(plan.inputs) > 1 else {dotted(plan.inputs[0]): raster}
    sent = {str(name): _binned(one, convention) for name, one in sent.items()} if isinstance(sent, Mapping) else {}
    try:
        weights = _weights(plan, target, cone, _flat(pairs.get((node, "spikes")), neuron), convention)
    except NirdeployError as error:
        return (), str(error)
    found: list[Arrival] = []
    missing: list[str] = []
    for source, weight in weights.items():
        for delay, row in enumerate(weight):
            took = delay + source.late
            if took > step or not row.any():
                continue
            counts = _counts(plan, source.path, pairs, (sample, step - took), row.shape, sent)
            if isinstance(counts, str):
                missing.append(counts)
                continue
            found.extend(_arrived(dotted(source.path), row, counts, took))
    found.sort(key=lambda one: (one.reference == one.chip, -abs(one.weight * max(one.reference, one.chip))))
    if len(found) > MOST_ARRIVALS:
        missing.append(f"{len(found) - MOST_ARRIVALS} weaker ones are left out")
    return tuple(found[:MOST_ARRIVALS]), "; ".join(dict.fromkeys(missing))


def _arrived(
    source: str, row: NDArray[Any], counts: tuple[NDArray[Any], NDArray[Any]], delay: int
) -> Iterator[Arrival]:
    ours, theirs = counts
    for flat in np.flatnonzero((row.reshape(-1) != 0) & ((ours != 0) | (theirs != 0))):
        index = tuple(int(i) for i in np.unravel_index(int(flat), row.shape))
        yield Arrival(source, index, _amount(ours[flat]), _amount(theirs[flat]), float(row[index]), delay)


def _amount(value: Any) -> float:
    """A count as an integer; a raster of a reference run may hold parts of one."""
    return int(value) if value == int(value) else float(value)


# ---------------------------------------------------------------- the layers between


_Cone = tuple[set[_Place], set[_Place], Mapping[tuple[_Place, _Place], int]]


def _cone(plan: Schedule, target: NodePath) -> _Cone | str:
    """Stateless nodes in front of a population, its sources and the edges among them; or why they are not known.

    Of every edge how often it is there: two routes through subgraphs of wires are two edges.
    """
    back = set(plan.feedback)
    inner: set[_Place] = set()
    sources: set[_Place] = set()
    edges: Counter[tuple[_Place, _Place]] = Counter()
    waiting = [_Place(target, 0)]
    while waiting:
        place = waiting.pop()
        for path in plan.sources[place.path]:
            before = _Place(path, place.late + ((path, place.path) in back))
            edges[before, place] += 1
            kind = type_name(plan.nodes[path])
            if kind == "Threshold":
                return f"{dotted(path)!r} in front of {dotted(target)!r} is not linear"
            if before.late > len(back):
                return f"a loop of linear layers leads to {dotted(target)!r}"
            if kind not in _LINEAR:
                sources.add(before)
            elif before not in inner:
                inner.add(before)
                waiting.append(before)
    size = sum(np.size(getattr(plan.nodes[place.path], "weight", 0)) for place in inner)
    if size > _MOST_WEIGHTS:
        return f"{size} weights lead to {dotted(target)!r}, more than are looked through"
    return inner, sources, edges


def _flat(pair: Aligned | None, neuron: tuple[int, ...]) -> int | tuple[int, ...]:
    """The neuron's flat index in its node: a recording may know the node in another shape than the graph does."""
    return neuron if pair is None else int(np.ravel_multi_index(neuron, pair.shape))


def _weights(
    plan: Schedule, target: NodePath, cone: _Cone, neuron: int | tuple[int, ...], convention: Convention | None
) -> dict[_Place, NDArray[np.float64]]:
    """For every source the weights to the neuron, [delay, *shape of the source]."""
    import torch

    from nirdeploy import graph as graphs
    from nirdeploy.convert.build import nir_to_torch

    inner, found, edges = cone
    sources = sorted(found)
    shapes = graphs.scheduled_shapes(plan)
    names = {place: f"n{k}" for k, place in enumerate(sorted(inner))}
    names |= {place: f"i{k}" for k, place in enumerate(sources)}
    nodes: dict[str, nir.NIRNode] = {names[place]: plan.nodes[place.path] for place in inner}
    for place in sources:
        nodes[names[place]] = make_node(nir.Input, input_type={"input": np.array(shapes[place.path].output)})
    names[_Place(target, 0)] = "out"
    nodes["out"] = make_node(nir.Output, output_type={"output": np.array(shapes[target].input)})
    ways: list[tuple[str, str]] = []
    for k, ((before, behind), times) in enumerate(sorted(edges.items())):
        if times > 1:
            nodes[f"x{k}"] = make_node(nir.Scale, scale=np.full(shapes[before.path].output, float(times)))
            ways += [(names[before], f"x{k}"), (f"x{k}", names[behind])]
        else:
            ways.append((names[before], names[behind]))
    graph = make_graph(nodes, ways)
    dt = None if convention is None else convention.dt
    module = nir_to_torch(graph, convention=Convention(dt=dt), dtype=torch.float64)
    length = 1 + sum(getattr(m, "longest", 0) for m in module.modules())
    rasters = {
        names[place]: torch.zeros(length, 1, *shapes[place.path].output, dtype=torch.float64, requires_grad=True)
        for place in sources
    }
    out, _ = module.sequence(rasters if len(rasters) > 1 else rasters["i0"], method="dense")
    last = out[-1].reshape(-1 if isinstance(neuron, int) else shapes[target].input)
    if isinstance(neuron, int) and neuron >= last.numel():
        raise GraphError(f"has {last.numel()} neurons in the graph, none of index {neuron}", node=dotted(target))
    gradients = torch.autograd.grad(last[neuron], list(rasters.values()))
    return {place: g[:, 0].flip(0).numpy() for place, g in zip(sources, gradients, strict=True)}


# ---------------------------------------------------------------- the spikes


def _counts(
    plan: Schedule,
    source: NodePath,
    pairs: Mapping[tuple[str, str], Aligned],
    place: tuple[int, int],
    shape: tuple[int, ...],
    sent: Mapping[str, Any],
) -> tuple[NDArray[Any], NDArray[Any]] | str:
    """Spikes of a source in one sample and step on both sides, flat; or why they are not known."""
    name = dotted(source)
    sample, step = place
    if type_name(plan.nodes[source]) == "Input":
        counts = _frame(sent.get(name), sample, step, shape)
        return (counts, counts) if counts is not None else f"the raster of {name!r} is not known"
    pair = pairs.get((name, "spikes"))
    seen = None if pair is None else pair.at(step, sample)
    if pair is None or seen is None:
        return f"spikes of {name!r} are not compared in step {step}"
    size = math.prod(shape)
    if pair.count != size if pair.neurons is None else int(pair.neurons.max()) >= size:
        return f"{name!r} has {size} neurons in the graph, others are compared"
    if pair.neurons is None:
        return np.asarray(seen[0]), np.asarray(seen[1])
    both = np.zeros((2, size), dtype=np.int64)
    both[:, pair.neurons] = seen
    return both[0], both[1]


def _binned(raster: Any, convention: Convention | None) -> Any:
    """Events as the counts that the reference made of them."""
    if not isinstance(raster, Events):
        return raster
    step_us = whole_microseconds(None if convention is None else convention.dt)
    return None if step_us is None or raster.shape is None else events_to_raster(raster, step_us=step_us)


def _frame(raster: Any, sample: int, step: int, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """One step of one sample, flat."""
    if raster is None or not hasattr(raster, "shape") or not 0 <= step < raster.shape[0]:
        return None
    frame = raster[step]
    found = np.asarray(frame.detach().cpu() if hasattr(frame, "detach") else frame)
    if found.ndim == len(shape) + 1 and sample < len(found):
        found = found[sample]
    return found.reshape(-1) if found.size == math.prod(shape) else None
