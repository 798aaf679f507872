"""Lowering: a NIR graph under a convention as populations, connections and their timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.errors import UnsupportedError
from nirdeploy.nodes import keeps_state
from nirdeploy.reference.convention import Convention
from nirdeploy.schedule import lateness, schedule
from nirdeploy_loihi.network import (
    INTEGRATORS,
    SUPPORTED,
    Connection,
    Constant,
    Layer,
    Network,
    Readout,
    Stage,
    stage_of,
)
from nirdeploy_loihi.program import LONGEST_DELAY
from nirdeploy_loihi.rest import Rest, at_rest
from nirdeploy_loihi.timing import Route, lags, route

__all__ = ["lower"]

_GAINS = ("tau", "tau_mem", "tau_syn", "r", "w_in")  # what scales the weights of a neuron
_FILTERED = ("CubaLI", "CubaLIF")  # with a synaptic filter, behind which the bias register stands


@dataclass(frozen=True)
class _Plan:
    """What every step of lowering reads."""

    graph: nir.NIRGraph
    convention: Convention
    shapes: Mapping[str, graphs.Shapes]
    back: set[tuple[str, str]]


def lower(graph: nir.NIRGraph, convention: Convention) -> Network:
    """The network a graph stands for.

    Raises:
        UnsupportedError: several Inputs, a node type out of scope, a loop faster than the chip, a delay beyond 62
            steps, analogue values between populations, or an Output that does not show one population alone;
            naming the node.
        GraphError: shapes that disagree.
        ConventionError: a Delay without dt, or of no whole steps.
    """
    for name, node in graph.nodes.items():
        if graphs.type_name(node) not in SUPPORTED:
            raise UnsupportedError(f"type {graphs.type_name(node)} is not supported on Loihi", node=name)
    inputs = graphs.input_names(graph)
    if len(inputs) != 1:
        raise UnsupportedError(f"{len(inputs)} Inputs {inputs}; one is supported")
    timed = schedule(graph, convention.feedback_edges, population_delay=convention.population_delay)
    plan = _Plan(graph, convention, graphs.shapes(graph), {(a[-1], b[-1]) for a, b in timed.feedback})
    found = graphs.populations(graph, integrators=True)
    populations = [p for p in found if not isinstance(graph.nodes[p.name], nir.Output)]
    _refuse_analogue(plan, found)
    routes = {
        p.name: [route(graph, p.name, path, plan.shapes, plan.back, convention) for path in p.paths]
        for p in populations
    }
    rest = at_rest(graph, plan.shapes, plan.back, convention)
    lag = lags(
        [r for listed in routes.values() for r in listed],
        {inputs[0]: 0, **{p.name: _earliest(plan, p.name, rest[p.name]) for p in populations}},
    )
    slow = {path for path, node in timed.nodes.items() if keeps_state(node)}
    late = {path[-1]: n for path, n in lateness(timed, slow).items()} if convention.population_delay else {}
    layers = [_layer(plan, p, routes[p.name], rest[p.name], lag, late.get(p.name, 0)) for p in populations]
    readouts = [_readout(plan, p, lag, late) for p in found if isinstance(graph.nodes[p.name], nir.Output)]
    return Network(inputs[0], plan.shapes[inputs[0]].output, _named(layers), tuple(readouts))


def _refuse_analogue(plan: _Plan, populations: list[graphs.Population]) -> None:
    for population in populations:
        for path in population.paths:
            kind = graphs.type_name(plan.graph.nodes[path.source])
            if kind in INTEGRATORS and not isinstance(plan.graph.nodes[population.name], nir.Output):
                raise UnsupportedError(
                    f"{kind} gives analogue values to {population.name!r}, synapses carry spikes alone",
                    node=path.source,
                    remedy="Let it spike, or show it by an Output alone.",
                )


def _earliest(plan: _Plan, name: str, rest: Rest) -> int:
    """An always-on axon takes a step to arrive, so a population with one starts a step late."""
    if graphs.type_name(plan.graph.nodes[name]) not in _FILTERED or not rest:
        return 0
    return max(0, 1 - min(rest))


# ---------------------------------------------------------------- populations


def _layer(
    plan: _Plan,
    population: graphs.Population,
    routes: list[Route],
    rest: Rest,
    lag: Mapping[str, int],
    late: int,
) -> Layer:
    name = population.name
    shape = plan.shapes[name].output
    kind = graphs.type_name(plan.graph.nodes[name])
    filtered = kind in _FILTERED
    constants = [
        Constant(_constant_name(plan.graph, name, i), rest[s], lag[name] + s - 1) for i, s in enumerate(sorted(rest))
    ]
    connections = [
        _connection(plan, name, path, _delay(r, lag)) for path, r in zip(population.paths, routes, strict=True)
    ]
    total = sum(rest.values(), np.broadcast_to(0.0, shape))
    return Layer(
        name=name,
        shape=shape,
        connections=tuple(connections),
        bias=np.broadcast_to(0.0, shape) if filtered else total,
        lag=lag[name],
        late=late,
        fires=kind not in INTEGRATORS,
        constants=tuple(constants) if filtered else (),
    )


def _constant_name(graph: nir.NIRGraph, name: str, number: int) -> str:
    found = f"{name}.always_on{number or ''}"
    while found in graph.nodes:
        found += "_"
    return found


def _delay(r: Route, lag: Mapping[str, int]) -> Any:
    delay = r.delay + (lag[r.target] - lag[r.source] + r.feedback - 1)
    if delay.max() > LONGEST_DELAY:
        raise UnsupportedError(
            f"spikes of {r.source!r} are delayed by {int(delay.max())} steps, at most {LONGEST_DELAY} are possible",
            node=r.target,
            remedy="Use shorter delays, or a larger dt; a skip waits as long as the way round takes.",
        )
    return delay


def _readout(plan: _Plan, population: graphs.Population, lag: Mapping[str, int], late: Mapping[str, int]) -> Readout:
    name = population.name
    if len(population.paths) != 1:
        raise UnsupportedError(f"{len(population.paths)} paths lead into the Output, one is supported", node=name)
    path = population.paths[0]
    for node in path.nodes:
        if not isinstance(plan.graph.nodes[node], nir.Flatten):
            raise UnsupportedError(
                f"{graphs.type_name(plan.graph.nodes[node])} {node!r} before the Output has no neurons to hold it",
                node=name,
                remedy="Put a population after it.",
            )
    if isinstance(plan.graph.nodes[path.source], nir.Input):
        raise UnsupportedError("the Output shows the Input itself", node=name, remedy="Put a population between.")
    return Readout(name, path.source, plan.shapes[name].output, lag[path.source] + late.get(path.source, 0))


# ---------------------------------------------------------------- connections


def _connection(plan: _Plan, target: str, path: graphs.Path, delay: Any) -> Connection:
    graph = plan.graph
    nodes = [name for name in path.nodes if graphs.type_name(graph.nodes[name]) != "Delay"]
    stages = tuple(stage_of(graph, name, plan.shapes[name]) for name in nodes)
    weights = [i for i, stage in enumerate(stages) if stage.kind in ("conv", "dense")]
    kernel = _kernel(plan, target, stages)
    if kernel is not None:
        preferred = kernel.node
    elif weights:
        preferred = stages[weights[-1]].node
    else:
        preferred = stages[-1].node if stages else f"{path.source}->{target}"
    return Connection(
        name=preferred,
        source=path.source,
        target=target,
        source_shape=plan.shapes[path.source].output,
        target_shape=plan.shapes[target].output,
        stages=stages,
        kernel=kernel,
        delay=delay,
    )


def _kernel(plan: _Plan, target: str, stages: tuple[Stage, ...]) -> Stage | None:
    """The stage whose weights can be kept in their own shape."""
    weights = [i for i, stage in enumerate(stages) if stage.kind in ("conv", "dense")]
    pools = [i for i, stage in enumerate(stages) if stage.kind == "pool"]
    if len(weights) > 1 or (not weights and len(pools) != 1):
        return None
    at = weights[0] if weights else pools[0]
    kept = stages[at]
    if not all(stage.disjoint or _scalar(plan.graph, stage) for stage in stages[:at]):
        return None
    if not all(_foldable(plan.graph, kept, stage) for stage in stages[at + 1 :]):
        return None
    return kept if _gain_fits(plan, target, kept) else None


def _scalar(graph: nir.NIRGraph, stage: Stage) -> bool:
    return stage.kind == "scale" and len(np.unique(np.asarray(graph.nodes[stage.node].scale))) == 1


def _foldable(graph: nir.NIRGraph, kept: Stage, stage: Stage) -> bool:
    """Whether a stage behind the kept weights only reshapes, or scales each of its outputs as a whole."""
    if stage.kind == "reshape":
        return True
    return stage.kind == "scale" and _uniform(np.asarray(graph.nodes[stage.node].scale), kept)


def _uniform(values: Any, kept: Stage) -> bool:
    """Whether values of the target's neurons are one an output of the kept weights."""
    size = int(np.prod(kept.shape))
    if values.size == 1 or kept.kind == "dense":
        return values.size == 1 or len(kept.shape) == 1
    if values.size != size:
        return False
    rows = values.reshape(kept.shape[0], -1)
    return bool((rows == rows[:, :1]).all())


def _gain_fits(plan: _Plan, target: str, kept: Stage) -> bool:
    values = graphs.parameters(plan.graph.nodes[target])
    return all(_uniform(np.asarray(values[name]), kept) for name in _GAINS if name in values)


def _named(layers: list[Layer]) -> tuple[Layer, ...]:
    """Layers whose connections have distinct names, but for copies of one kernel within a population.

    A node's name goes to the connection that ends in it. Where several connections claim a name and do not
    hold the same integers, each is called by its whole path, 'source->node->target'.
    """
    claims: dict[str, set[tuple[Any, ...]]] = {}
    for layer in layers:
        for number, c in enumerate(layer.connections):
            # copies of a kernel in one population have equal integers, as they share scale and factor
            scales = tuple(s.node for s in c.stages if s.kind == "scale")
            same = (layer.name, c.factor, scales) if c.kernel else (layer.name, "composed", number)
            claims.setdefault(c.name, set()).add(same)

    def renamed(c: Connection) -> Connection:
        if len(claims[c.name]) == 1:
            return c
        return replace(c, name="->".join((c.source, *(s.node for s in c.stages), c.target)))

    return tuple(replace(layer, connections=tuple(map(renamed, layer.connections))) for layer in layers)
