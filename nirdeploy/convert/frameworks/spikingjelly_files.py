"""Files of SpikingJelly's exporter, and graphs for its importer: `nir_exchange` of 2.0.0 on nirtorch 2.6.

The exporter leaves out dt, which r tells: 1/dt (IF), tau/dt (CubaLIF, and LIF whose input does not decay; 1 where it
does). What else it loses leaves no trace in a file: constants added in forward, a value added to itself, a surrogate
with spiking=False, set_reset_value; `torch_to_nir` keeps or refuses them.

The importer takes one value of every neuron parameter, fires at v >= v_threshold, resets to v_reset in the same step,
starts there, and takes dt as an argument.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from nirdeploy.convert.frameworks.framework import Repair
from nirdeploy.convert.frameworks.spikingjelly_neurons import full
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.graph import make_graph, metadata, with_metadata
from nirdeploy.nodes import make_node, parameters, type_name
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.dynamics import coefficients, synapse_convention
from nirdeploy.reference.presets import convention as preset
from nirdeploy.schedule import Schedule, dotted, schedule

__all__ = ["adapt", "repair"]

_TAKEN = (nir.Input, nir.Output, nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.AvgPool2d, nir.Flatten)
_NEURONS = (nir.IF, nir.LIF, nir.CubaLIF)
_CLOSE = 1e-6  # the importer's own tolerance for r, w_in and v_leak
# what the importer does whatever the file says; a convention's other values are refused
_FIXED = {
    "spikes_per_step": ("one",),
    "reset": ("v_reset", "zero"),
    "reset_time": ("same_step",),
    "fires": ("after_update",),
    "v_min": (None,),
    "integrator": ("euler", "exponential"),
}
_Path = tuple[str, ...]


def adapt(graph: nir.NIRGraph, convention: Convention | None) -> nir.NIRGraph:
    """A graph of which SpikingJelly's importer makes the same network.

    Args:
        graph: any graph; subgraphs are dissolved, their nodes get dotted names.
        convention: how it is stepped.

    Returns:
        The graph in the terms of the preset 'spikingjelly', which it carries: r = 1/dt (IF), 1 or tau/dt (LIF), tau/dt
        (CubaLIF), and v > v_threshold as v >= the next float32. Import it with
        `import_from_nir(path, dt=convention.dt)`.

    Raises:
        UnsupportedError: what the importer refuses, or would make something else of; naming the node.
        ConventionError: populations without a convention, or without its dt.
    """
    plan = schedule(graph, None if convention is None else convention.feedback_edges)
    _check_names(plan)
    _check_loops(plan, convention)
    nodes: dict[str, nir.NIRNode] = {}
    for path, node in plan.nodes.items():
        name = dotted(path)
        nodes[name] = _adapted(name, node, convention) if isinstance(node, _NEURONS) else _stateless(name, node)
    edges = [(dotted(source), dotted(path)) for path, sources in plan.sources.items() for source in sources]
    found = make_graph(nodes, edges)
    paths = {name: path for name, path in metadata(graph).get("torch_paths", {}).items() if name in nodes}
    own = None if convention is None else _own(nodes, convention.dt).to_dict()
    return with_metadata(found, convention=own, torch_paths=paths or None)


def _own(nodes: Mapping[str, Any], dt: float | None) -> Convention:
    """The preset, with those input gains exact that are 1 in its layers: r dt / tau can be a rounding off."""
    exact = [name for name, node in nodes.items() if isinstance(node, _NEURONS) and not _decays_input(node)]
    return preset("spikingjelly", dt=dt, overrides={name: {"gain": "unit"} for name in exact})


def _decays_input(node: Any) -> bool:
    return isinstance(node, nir.LIF) and bool(np.all(np.asarray(node.r) == 1.0))


def repair(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, tuple[Repair, ...]]:
    """A file's graph with its convention, where a population's r tells dt.

    Raises:
        UnsupportedError: populations whose r belong to different dt, which no such file has; naming the node.
    """
    found: dict[str, float] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, _NEURONS) and not _decays_input(node):
            tau = {nir.IF: "", nir.LIF: "tau", nir.CubaLIF: "tau_mem"}[type(node)]
            top = np.asarray(getattr(node, tau), np.float64) if tau else 1.0
            steps = np.broadcast_to(top / np.asarray(node.r, np.float64), np.shape(node.r))
            found[name] = _one(name, "dt that r tells", [float(f"{value:.12g}") for value in np.ravel(steps)])
    if not found or "convention" in metadata(graph):
        return graph, ()
    first, dt = next(iter(found.items()))
    for name, other in found.items():
        if other != dt:
            raise UnsupportedError(
                f"its r belongs to dt={other:.6g} s, that of {first!r} to {dt:.6g} s; SpikingJelly exports with one dt",
                node=name,
                remedy="Leave exported_by out, and give the convention yourself.",
            )
    text = f"SpikingJelly's exporter leaves out dt; r says {dt:.6g} s, and the graph carries SpikingJelly's convention."
    return with_metadata(graph, convention=_own(graph.nodes, dt).to_dict()), (Repair(first, text),)


# ---------------------------------------------------------------- structure


def _check_names(plan: Schedule) -> None:
    """One Input, one Output with one edge, names that stay different and are free in an nn.ModuleDict."""
    for kind, paths in (("Input", plan.inputs), ("Output", plan.outputs)):
        if len(paths) != 1:
            raise UnsupportedError(
                f"a graph with {len(paths)} {kind} nodes; SpikingJelly imports graphs with one",
                remedy="Write a file for each.",
            )
    if len(plan.sources[plan.outputs[0]]) != 1:
        raise UnsupportedError(
            "several edges into an Output, which the importer returns one by one instead of their sum",
            node=dotted(plan.outputs[0]),
            remedy="Sum them in a layer before it.",
        )
    seen: dict[str, str] = {}
    for path in plan.nodes:
        name = dotted(path)
        known = name.replace(".", "_")
        if keyword.iskeyword(known):
            known = f"nir_node_{known}"
        if hasattr(nn.ModuleDict, known) or known in ("training", "state"):
            raise UnsupportedError(
                f"the name {known!r} belongs to torch, and the importer names modules after nodes",
                node=name,
                remedy="Rename it.",
            )
        if known in seen:
            raise UnsupportedError(
                f"the importer calls it {known!r}, as it does {seen[known]!r}", node=name, remedy="Rename one of them."
            )
        seen[known] = name
        sources = plan.sources[path]
        if len(set(sources)) != len(sources):
            raise UnsupportedError(
                f"two routes from {dotted(next(s for s in sources if sources.count(s) > 1))!r}, of which the importer "
                "takes one",
                node=name,
                remedy="Put a Linear of weight 2 between them.",
            )


def _check_loops(plan: Schedule, convention: Convention | None) -> None:
    """The importer delays an edge of a loop where its target has other inputs, too; it must be ours, and start at 0."""
    after = _reachable(plan)
    delayed = {
        (source, path)
        for path, sources in plan.sources.items()
        if len(sources) > 1
        for source in sources
        if source in after[path]
    }
    if delayed != set(plan.feedback):
        (source, target), *_ = sorted(delayed ^ set(plan.feedback))
        raise UnsupportedError(
            f"the importer and this graph delay different edges of a loop: {dotted(source)!r} -> {dotted(target)!r} is "
            "delayed by one of them",
            node=dotted(target),
            remedy="Let each loop be entered at one node only, which has an input from outside.",
        )
    if convention is None or convention.feedback_start == "zero":
        return
    for _, target in plan.feedback:
        for path in after[target]:
            bias = getattr(plan.nodes[path], "bias", None)
            if target in after[path] and bias is not None and np.any(bias):
                raise UnsupportedError(
                    "feedback_start='silence' with a bias inside a loop: the importer starts loops at 0",
                    node=dotted(path),
                    remedy="Move the bias in front of the loop, or use feedback_start='zero'.",
                )


def _reachable(plan: Schedule) -> Mapping[_Path, set[_Path]]:
    """What each node reaches over edges, itself only on a loop."""
    following: dict[_Path, list[_Path]] = {path: [] for path in plan.nodes}
    for path, sources in plan.sources.items():
        for source in sources:
            following[source].append(path)
    found: dict[_Path, set[_Path]] = {}
    for path in plan.nodes:
        seen: set[_Path] = set()
        waiting = list(following[path])
        while waiting:
            here = waiting.pop()
            if here not in seen:
                seen.add(here)
                waiting.extend(following[here])
        found[path] = seen
    return found


def _stateless(name: str, node: nir.NIRNode) -> nir.NIRNode:
    if not isinstance(node, _TAKEN):
        raise UnsupportedError(
            f"SpikingJelly's importer knows no {type_name(node)}",
            node=name,
            remedy="Use Affine, Linear, Conv1d, Conv2d, AvgPool2d, Flatten, IF, LIF and CubaLIF only.",
        )
    if isinstance(node, nir.Conv1d | nir.Conv2d) and int(np.max(node.groups)) != 1:
        raise UnsupportedError(
            f"{type_name(node)} with groups={int(np.max(node.groups))}; SpikingJelly imports groups=1",
            node=name,
            remedy="Write its kernels out with zeros between groups.",
        )
    return node


# ---------------------------------------------------------------- populations


def _adapted(name: str, node: Any, convention: Convention | None) -> nir.NIRNode:
    if convention is None or convention.dt is None:
        raise ConventionError(
            f"{type_name(node)} is written for SpikingJelly without {'a convention' if convention is None else 'dt'}",
            node=name,
            remedy="Pass convention=nd.convention(..., dt=...) to write.",
        )
    here = convention.for_node(name, type_name(node))
    for field, allowed in _FIXED.items():
        value = getattr(here, field)
        if value not in allowed:
            raise UnsupportedError(
                f"{field}={value!r}; SpikingJelly's importer makes a layer with {allowed[0]!r}",
                node=name,
                remedy="Convert the network with nd.torch_to_nir and run it here, or train it so.",
            )
    if convention.population_delay:
        raise UnsupportedError(
            "population_delay=1; SpikingJelly's layers read what comes in at once", node=name, remedy="Use 0."
        )
    values = {key: _one(name, key, value) for key, value in parameters(node).items()}
    v_reset = 0.0 if here.reset == "zero" else values.get("v_reset", 0.0)
    start = 0.0 if here.v_start == "zero" else values.get(here.v_start, 0.0) if here.v_start == "v_leak" else v_reset
    if start != v_reset:
        raise UnsupportedError(
            f"it starts at {start} and is reset to {v_reset}; SpikingJelly's layers start where they are reset to",
            node=name,
            remedy="Use v_start='v_reset'.",
        )
    threshold = values["v_threshold"]
    if here.crossing == "strict":
        threshold = float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
    shape = np.shape(node.v_threshold)
    found = {**_equation(name, node, values, here, v_reset), "v_threshold": threshold, "v_reset": v_reset}
    return make_node(type(node), **{key: full(shape, value) for key, value in found.items()})


def _equation(name: str, node: Any, values: dict[str, float], here: Convention, v_reset: float) -> dict[str, float]:
    """Parameters with which forward Euler, r as the importer wants it, is what the convention makes of the node."""
    dt = float(here.dt or 0.0)
    kind = type_name(node)
    tau_name = {"LIF": "tau", "CubaLIF": "tau_mem"}.get(kind)
    decay, gain = _numbers(kind, here, values, tau_name)
    if tau_name is None:
        _require(name, "input gain of IF", gain, 1.0)
        return {"r": 1.0 / dt}
    _require(name, "v_leak", values.get("v_leak", 0.0), v_reset if kind == "LIF" else 0.0)
    steps = _steps(name, tau_name, decay, allow_one=kind == "CubaLIF")
    if kind == "LIF":
        fed = min((1.0, 1.0 / steps), key=lambda wanted: abs(gain - wanted) / wanted)
        _require(name, "input gain of LIF", gain, fed, f"1 or dt / tau = {1.0 / steps:.6g}")
        return {"tau": steps * dt, "r": steps if fed == 1.0 else 1.0, "v_leak": v_reset}
    _require(name, "input gain of the membrane", gain, 1.0)
    decay_syn, gain_syn = _numbers(kind, here, values, "tau_syn")
    _require(name, "input gain of the synapse", gain_syn, 1.0)
    synapse = _steps(name, "tau_syn", decay_syn, allow_one=True)
    return {"tau_syn": synapse * dt, "w_in": synapse, "tau_mem": steps * dt, "r": steps, "v_leak": 0.0}


def _numbers(kind: str, here: Convention, values: dict[str, float], tau: str | None) -> tuple[float, float]:
    """Decay and input gain of one step."""
    used = synapse_convention(here) if tau == "tau_syn" else here
    r = torch.tensor(values["w_in" if tau == "tau_syn" else "r"], dtype=torch.float64)
    known = None if tau is None else torch.tensor(values[tau], dtype=torch.float64)
    decay, gain, _ = coefficients(kind, used, r=r, tau=known)
    if tau == "tau_syn" and here.synapse_gain == "decayed":
        gain = decay
    return float(decay), float(gain)


def _steps(name: str, what: str, decay: float, *, allow_one: bool) -> float:
    """tau / dt of a decay of forward Euler, 1 - dt / tau."""
    steps = 1.0 / (1.0 - decay) if decay < 1.0 else np.inf
    if not np.isfinite(steps) or not (steps >= 1.0 if allow_one else steps > 1.0):
        raise UnsupportedError(
            f"{what} is {steps:.6g} steps; SpikingJelly takes a finite number {'from' if allow_one else 'above'} 1",
            node=name,
            remedy="Use a smaller dt, or IF for a neuron without leak.",
        )
    return float(steps)


def _require(name: str, what: str, value: float, wanted: float, shown: str = "") -> None:
    if not np.isclose(value, wanted, rtol=_CLOSE, atol=1e-12):
        raise UnsupportedError(
            f"{what} is {value:.6g}, SpikingJelly's importer takes {shown or f'{wanted:.6g}'} only",
            node=name,
            remedy="Multiply the weights before it and its voltages, so that it is.",
        )


def _one(name: str, key: str, value: Any) -> float:
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0 or np.any(array != array.flat[0]):
        raise UnsupportedError(
            f"{key} differs between neurons ({array.min():.6g} to {array.max():.6g}); SpikingJelly has one a layer"
            if array.size
            else f"{key} is empty",
            node=name,
            remedy="Use one value, or a node for each.",
        )
    return float(array.flat[0])
