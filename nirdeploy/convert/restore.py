"""Back from an imported module to the graph it came from, with its present parameters."""

from __future__ import annotations

from typing import Any

import nir

from nirdeploy import graph as graphs
from nirdeploy.convert.build import GraphModule
from nirdeploy.convert.maps import ModuleMap
from nirdeploy.convert.primitives import MODULES, TraceContext, find
from nirdeploy.errors import ConversionError
from nirdeploy.schedule import NodePath, dotted

__all__ = ["restored_graph"]


def restored_graph(module: GraphModule, user_map: ModuleMap) -> nir.NIRGraph:
    """The graph an imported module came from, with its present parameters; its arguments are those of `torch_to_nir`.

    Raises:
        ConversionError: a module that replaced one and that no map takes.
    """

    def level(skeleton: graphs.Skeleton, prefix: NodePath) -> nir.NIRGraph:
        nodes: dict[str, nir.NIRNode] = {}
        for name, sketch in skeleton.nodes.items():
            path = (*prefix, name)
            inner = sketch if isinstance(sketch, graphs.Skeleton) else None
            nodes[name] = level(inner, path) if inner is not None else _restored(module, user_map, path, sketch)
        return graphs.make_graph(nodes, list(skeleton.edges), skeleton.metadata)

    graph = level(module.skeleton, ())
    stored = graphs.metadata(graph).get("convention")
    if stored is not None and stored != module.convention.to_dict():
        # the module was built with another convention than the graph carried
        graph = graphs.with_metadata(graph, convention=module.convention.to_dict())
    return graph


def _restored(module: GraphModule, user_map: ModuleMap, path: NodePath, sketch: Any) -> nir.NIRNode:
    """One node of an imported graph; options that a torch layer cannot hold come from the sketch."""
    inner = module.get(path)
    if inner is None:
        return graphs.make_node(getattr(nir, sketch.kind), metadata=sketch.metadata, **sketch.options)
    function, row = find(user_map, type(inner)), find(MODULES, type(inner))
    if function is not None:
        node: nir.NIRNode = function(inner)
    elif row is not None:
        # per-neuron parameters keep the shape they have
        shape = module.shapes[path].input if sketch.kind in ("Conv1d", "Conv2d", "Flatten") else None
        node = row.to_nir(inner, TraceContext(dotted(path), shape, bare=True))
    else:
        raise ConversionError(
            f"{type(inner).__name__} has no map back to NIR", node=dotted(path), remedy="Pass module_map."
        )
    values = {**graphs.parameters(node), **sketch.options}
    return graphs.make_node(type(node), metadata=sketch.metadata, **values)
