"""The reference run: a graph stepped through a raster, every requested state recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from nirdeploy import graph as graphs
from nirdeploy.convert.build import GraphModule, lookup, nir_to_torch
from nirdeploy.convert.trace import torch_to_nir
from nirdeploy.errors import ConventionError, ConversionError, RasterError, UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.neurons import Membrane, Neuron
from nirdeploy.schedule import NodePath, dotted
from nirdeploy.trajectory import VARIABLES, Record, Trajectory
from nirdeploy.version import __version__

__all__ = ["check_record", "resolve_convention", "run"]


def run(
    graph_or_module: nir.NIRGraph | nn.Module,
    raster: Any,
    *,
    convention: Convention | None = None,
    record: Iterable[str] = ("spikes", "v_mem"),
    nodes: Iterable[str] | None = None,
    state: Mapping[str, Any] | None = None,
    method: str = "dense",
) -> Trajectory:
    """Run the float reference over a raster.

    Args:
        graph_or_module: a NIRGraph, what `nir_to_torch` returned, or a module `torch_to_nir` can trace.
        raster: counts, [step, batch, ...] or [step, ...].
        convention: None: the one the graph or module carries.
        record: variables to record.
        nodes: nodes to record; None: all that have one of the variables.
        state: initial state; missing entries mean rest.
        method: 'dense', the plain loop over steps.

    Returns:
        Records of every neuron node and an 'output' record of every Output node.

    Raises:
        ConventionError: none is known, or the module was built with another.
        RasterError: a raster of wrong shape, or with negative or NaN counts.
        GraphError, UnsupportedError: a graph that cannot be run, naming node and type.
    """
    if method != "dense":
        raise UnsupportedError(f"method {method!r} is not supported yet", remedy="Use 'dense'.")
    module = _as_module(graph_or_module, raster, convention)
    wanted = check_record(record)
    if len(module.plan.inputs) != 1:
        raise UnsupportedError(f"a run of a graph with {len(module.plan.inputs)} Inputs is not supported yet")
    (entry,) = module.plan.inputs
    shape = module.shapes[entry].input
    data, batched = check_raster(raster, shape, integer=False)
    like = next((p for p in module.parameters()), torch.zeros(1))
    exact = 2 ** (53 if like.dtype == torch.float64 else 24)
    if data.max() > exact:
        raise RasterError(f"the raster holds {data.max()}, beyond {exact}, up to which {like.dtype} counts exactly")
    chosen = _chosen(module, nodes)
    traces: dict[tuple[NodePath, str], list[Tensor]] = {}
    with torch.no_grad():
        current: dict[str, Any] = dict(state or {})
        for step in range(data.shape[0]):
            x = torch.tensor(data[step], device=like.device, dtype=like.dtype)
            values, current = module.step({entry: x}, current)
            _collect(module, values, current, chosen, wanted, traces)
    return _trajectory(module, traces, batched, _digest(graph_or_module, module))


def _as_module(given: Any, raster: Any, convention: Convention | None) -> GraphModule:
    if isinstance(given, GraphModule):
        if convention is not None and given.convention is not None and convention != given.convention:
            raise ConventionError(
                "the module was built with another convention than the one given to run",
                remedy="Build it again with nir_to_torch(graph, convention=...).",
            )
        return given
    if isinstance(given, nn.Module):
        given = _traced(given, np.shape(raster))
        own = graphs.metadata(given).get("convention")
        if convention is not None and own is not None and Convention.from_dict(own) != convention:
            raise ConventionError(
                "the module's neurons were built with another convention than the one given to run",
                remedy="Leave convention out, or build the module with it.",
            )
    if not isinstance(given, nir.NIRGraph):
        raise RasterError(f"expected a NIRGraph or a torch module, got {type(given).__name__}")
    graphs.check_finite(given)
    module = nir_to_torch(given, convention=resolve_convention(given, convention))
    if not isinstance(module, GraphModule):
        raise UnsupportedError(f"a run of a {type(module).__name__}")
    return module


def _unit(node: nn.Module | None, variable: str) -> str:
    gain = variable == "v_mem" and isinstance(node, Membrane) and node.convention.v_unit == "gain"
    return "input gain" if gain else "model"


def _digest(given: Any, module: GraphModule) -> str:
    """Hash of the graph that was run; '' where modules of the user's own have no way back to NIR."""
    if isinstance(given, nir.NIRGraph):
        return graphs.sha256(given)
    try:
        return graphs.sha256(torch_to_nir(module))
    except ConversionError:
        return ""


def _traced(module: nn.Module, raster_shape: tuple[int, ...]) -> nir.NIRGraph:
    """The graph of a module whose input shape, where it matters, is the raster's with or without batch."""
    failure: ConversionError | None = None
    for shape in (None, raster_shape[2:], raster_shape[1:]):
        try:
            return torch_to_nir(module, input_shape=shape)
        except ConversionError as error:
            failure = failure or error
    raise failure or ConversionError("the module cannot be traced")


def resolve_convention(graph: nir.NIRGraph, convention: Convention | None) -> Convention:
    """The convention given, else the one stored in the graph.

    Raises:
        ConventionError: neither is there although the graph has neurons.
    """
    if convention is not None:
        return convention
    stored = graphs.metadata(graph).get("convention")
    if isinstance(stored, dict):
        return Convention.from_dict(stored)
    neurons = [name for name, node in graph.nodes.items() if graphs.is_neuron(node)]
    if neurons:
        raise ConventionError(
            f"the graph carries no convention, and neuron {neurons[0]!r} needs one",
            remedy="Pass convention=nd.convention('nir', dt=...) or store one with nd.write.",
        )
    return Convention()


def check_record(record: Iterable[str]) -> tuple[str, ...]:
    """Variable names, validated."""
    if not isinstance(record, Iterable):
        raise RasterError(f"record is {record!r}, expected names", remedy=f"Choose from {', '.join(VARIABLES)}.")
    wanted = (record,) if isinstance(record, str) else tuple(record)
    for name in wanted:
        if name not in VARIABLES:
            raise RasterError(f"cannot record {name!r}", remedy=suggest(str(name), VARIABLES))
    return wanted


def _chosen(module: GraphModule, nodes: Iterable[str] | None) -> set[str]:
    known = [dotted(path) for path in module.plan.order]
    if nodes is None:
        return set(known)
    chosen = {nodes} if isinstance(nodes, str) else set(nodes)
    for name in sorted(chosen, key=str):
        if name not in known:
            raise RasterError(f"no node {name!r} to record", remedy=suggest(str(name), known))
    return chosen


def _collect(
    module: GraphModule,
    values: Mapping[NodePath, Tensor],
    state: Mapping[str, Any],
    chosen: set[str],
    wanted: tuple[str, ...],
    traces: dict[tuple[NodePath, str], list[Tensor]],
) -> None:
    for path in module.plan.order:
        node = module.get(path)
        if path in module.plan.outputs:
            traces.setdefault((path, "output"), []).append(values[path])
        elif dotted(path) not in chosen:
            continue
        elif isinstance(node, Membrane):
            own = lookup(state, path)
            found = {"spikes" if isinstance(node, Neuron) else "output": values[path], "v_mem": node.v_mem(own)}
            if isinstance(own, Mapping):
                found["i_syn"] = own["i_syn"]
            for variable, value in found.items():
                if variable in wanted:
                    traces.setdefault((path, variable), []).append(value)
        elif "output" in wanted and path not in module.plan.inputs:
            traces.setdefault((path, "output"), []).append(values[path])


def _trajectory(
    module: GraphModule, traces: Mapping[tuple[NodePath, str], list[Tensor]], batched: bool, digest: str
) -> Trajectory:
    records = {}
    for (path, variable), steps in traces.items():
        name = dotted(path)
        data = torch.stack(steps).cpu().numpy()
        if not batched:
            data = data[:, 0]
        spikes = variable == "spikes"
        if spikes and data.size and not data.max() < 2**31:
            raise RasterError(f"{data.max()} spikes in a step do not fit 32 bits", node=name)
        node = module.get(path)
        threshold = node.threshold_values() if variable == "v_mem" and isinstance(node, Neuron) else None
        records[name, variable] = Record(
            name,
            variable,
            data.astype(np.int32) if spikes else data,
            units="count" if spikes else _unit(node, variable),
            threshold=threshold,
            batched=batched,
        )
    return Trajectory(
        records,
        output_names=tuple(module.output_names),
        convention=module.convention,
        graph_sha256=digest,
        producer=f"nirdeploy {__version__}",
    )
