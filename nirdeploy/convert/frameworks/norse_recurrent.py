"""Norse's RecurrentSequential: a chain whose output is added to its input of the next step (module/sequential.py)."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
from torch import nn

from nirdeploy import graph as graphs
from nirdeploy.convert.frameworks.framework import Fields, leading_axes, row_of
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_graph, make_node
from nirdeploy.schedule import schedule

__all__ = ["chain_fields", "chain_step", "chain_to_nir"]


class _Chain(nn.Module):
    """One step of the chain from rest, with the submodule paths of the RecurrentSequential."""

    carries_states = True  # from step to step, by the container it stands for

    def __init__(self, recurrent: Any) -> None:
        super().__init__()
        self.module = recurrent.module

    def forward(self, x: Any) -> Any:
        """The output of the last module."""
        for part, keeps_state in zip(self.module.children(), self.module.stateful_layers, strict=True):
            x = part(x, None)[0] if keeps_state else part(x)
        return x


def chain_to_nir(module: Any, context: TraceContext) -> nir.NIRGraph:
    """The chain as a graph, with an edge from what it puts out back to what it takes in.

    Raises:
        ConversionError: an output that is not the last module's, or does not fit the input; layers that take all steps.
    """
    from nirdeploy.convert.trace import torch_to_nir  # which looks up this table

    path, count = context.path, len(module.module)
    if not isinstance(module.output_modules, int) or module.output_modules not in (-1, count - 1):
        raise ConversionError(
            f"output_modules={module.output_modules!r}: only what the last module puts out can come back",
            node=path,
            remedy="Leave out the modules behind it, whose output Norse does not use.",
        )
    if leading_axes(module.module) > 1:
        raise ConversionError(
            "RecurrentSequential of layers that take all steps at once feeds nothing back within a run",
            node=path,
            remedy="Use cells, in a Lift(RecurrentSequential(...)).",
        )
    if module.module._forward_hooks or module.module._forward_pre_hooks:
        raise ConversionError("SequentialState has forward hooks", node=f"{path}.module", remedy="Remove them.")
    graph = torch_to_nir(_Chain(module), input_shape=context.input_shape, dt=context.dt)
    (taken,), (given,) = graphs.input_names(graph), graphs.output_names(graph)
    shapes = graphs.shapes(graph)
    if shapes[taken].input != shapes[given].output:
        raise ConversionError(
            f"its output {shapes[given].output} is added to its input {shapes[taken].input}, which broadcasts",
            node=path,
            remedy="Give both one shape.",
        )
    return _closed(graph, taken, given, shapes[taken].input, path)


def _closed(graph: nir.NIRGraph, taken: str, given: str, shape: tuple[int, ...], path: str) -> nir.NIRGraph:
    """The graph with edges from what feeds its Output to what its Input feeds, all of which carry the step before.

    Where the Input feeds several nodes, they get the sum from one Scale of ones, so that the loop has one entry.
    """
    nodes, edges = dict(graph.nodes), list(graph.edges)
    entries = [target for source, target in edges if source == taken]
    if len(entries) > 1:
        ones = make_node(nir.Scale, scale=np.ones(shape, np.float32))
        nodes["entry"], edges = ones, [("entry" if a == taken else a, b) for a, b in edges] + [(taken, "entry")]
        entries = ["entry"]
    back = [(source, entry) for source, target in edges if target == given for entry in entries]
    if any(taken == source or given == target for source, target in back):
        raise ConversionError("its input goes round its layers", node=path, remedy="Use a plain chain.")
    before = schedule(make_graph(nodes, edges))
    closed = make_graph(nodes, [*edges, *(edge for edge in back if edge not in edges)])
    into = [target for target in before.order for source in before.sources[target] if source == (taken,)]
    wanted = {(source, target) for source in before.sources[(given,)] for target in into}
    if set(schedule(closed).feedback) != set(before.feedback) | wanted or len(set(back) & set(edges)):
        raise ConversionError(
            "its loop and those inside it have no common order in NIR", node=path, remedy="Use a plain chain."
        )
    return closed


def chain_fields(module: Any) -> Fields:
    """Fields of the Convention of each layer in the chain."""
    found: dict[str, Any] = {}
    for name, part in module.module.named_modules():
        row = row_of(part)
        if row is not None:
            found |= {".".join(p for p in ("module", name, inner) if p): v for inner, v in row.fields(part).items()}
    return found


def chain_step(module: Any) -> float | None:
    """Seconds a step of the first layer that has a dt."""
    return next((float(part.dt) for part in module.modules() if hasattr(part, "dt")), None)
