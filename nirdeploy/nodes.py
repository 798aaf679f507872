"""NIR nodes and graphs under any nir version from 1.0.4 on: building them, and reading their parameters.

Differences between nir versions live here and in `io.py`, nowhere else.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import nir
import numpy as np

from nirdeploy.errors import GraphError

__all__ = [
    "declared_shape",
    "keeps_state",
    "make_graph",
    "make_node",
    "node_fields",
    "parameters",
    "stored_shape",
    "type_name",
]

Edge = tuple[str, str]
Shape = tuple[int, ...]

_DERIVED = {"input_type", "output_type", "metadata", "nodes", "edges"}


def keeps_state(node: nir.NIRNode) -> bool:
    """Whether a node's output depends on earlier steps."""
    kinds = ("CubaLI", "CubaLIF", "Delay", "I", "IF", "LI", "LIF", "NIRGraph")
    return type(node).__name__ in kinds


def type_name(node: nir.NIRNode) -> str:
    """The primitive's name as NIR files write it, e.g. 'Conv2d'."""
    return type(node).__name__


_ACCEPTED: dict[Any, frozenset[str]] = {}  # of each type, once: inspecting a signature takes long


def _accepted(kind: type[nir.NIRNode]) -> frozenset[str]:
    if kind not in _ACCEPTED:
        _ACCEPTED[kind] = frozenset(inspect.signature(kind).parameters)
    return _ACCEPTED[kind]


def node_fields(kind: type[nir.NIRNode]) -> tuple[str, ...]:
    """Names of a primitive's own parameters in declaration order (no types, no metadata)."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.name not in _DERIVED)


def make_node(kind: type[nir.NIRNode], **values: Any) -> nir.NIRNode:
    """Build a node by keyword under any nir version.

    Raises:
        GraphError: a value the installed nir cannot hold (v_reset other than 0 needs nir >= 1.0.6), or fails on.
    """
    accepted = _accepted(kind)
    if "v_reset" in values and "v_reset" not in accepted:
        if np.any(np.asarray(values["v_reset"]) != 0):
            raise GraphError(
                f"{kind.__name__} has v_reset != 0, which nir {nir.version} cannot hold",
                remedy="Install nir >= 1.0.6.",
            )
        values.pop("v_reset")
    extra = values.pop("metadata", None)
    try:
        node = _held(kind, values)
    except AttributeError as error:
        raise GraphError(
            f"nir {nir.version} cannot build this {kind.__name__}: {error}", remedy="Install a newer nir."
        ) from error
    if extra and hasattr(node, "metadata"):
        node.metadata = dict(extra)
    return node


def _held(kind: type[nir.NIRNode], values: dict[str, Any]) -> nir.NIRNode:
    """A node; padding 'same', which nir 1.0.4 fails on, in numbers where that is needed and possible.

    Raises:
        AttributeError: out of nir.
    """
    try:
        return kind(**values)
    except AttributeError:
        if values.get("padding") != "same":
            raise
        kernel = np.shape(values["weight"])[2:]
        dilation = np.broadcast_to(values["dilation"], len(kernel))
        total = [int(d) * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
        if any(n % 2 for n in total):
            raise
        rows = tuple(n // 2 for n in total)
        return kind(**{**values, "padding": rows if len(rows) > 1 else rows[0]})


def make_graph(
    nodes: Mapping[str, nir.NIRNode], edges: Sequence[Edge], meta: Mapping[str, Any] | None = None
) -> nir.NIRGraph:
    """A NIRGraph exactly as given: nir's own inference, which changes graphs, is switched off."""
    options: dict[str, Any] = {"nodes": dict(nodes), "edges": [(a, b) for a, b in edges]}
    options["metadata"] = dict(meta or {})
    if "type_check" in inspect.signature(nir.NIRGraph).parameters:
        options["type_check"] = False
    return nir.NIRGraph(**options)


def parameters(node: nir.NIRNode) -> dict[str, Any]:
    """Own parameters of a node by name; `v_reset` is 0 where the installed nir lacks the field."""
    values = {name: getattr(node, name) for name in node_fields(type(node))}
    if "v_threshold" in values and values.get("v_reset") is None:
        values["v_reset"] = np.zeros_like(np.asarray(values["v_threshold"]))
    return values


def stored_shape(node: nir.NIRNode, port: str) -> np.ndarray | None:
    """What a node says of its 'input' or 'output' shape; None where it says nothing."""
    types = node.input_type if port == "input" else node.output_type
    value = types.get(port) if isinstance(types, Mapping) else types
    if isinstance(value, Mapping) and len(value) == 1:
        (value,) = value.values()  # nir 1.0.4 nests the type of a subgraph's port
    if value is None:
        return None
    array = np.atleast_1d(np.asarray(value))
    if array.dtype.kind not in "iuf" or not np.array_equal(array, np.rint(array)) or (array.size and array.min() < 1):
        raise GraphError(f"{type_name(node)} declares the shape {value!r}, expected whole numbers from 1 on")
    return array.astype(int)


def declared_shape(name: str, node: nir.NIRNode, port: str) -> Shape:
    """The shape an Input or Output declares; a GraphError naming it where it declares none."""
    try:
        stored = stored_shape(node, port)
    except GraphError as error:
        raise GraphError(str(error), node=name) from error
    if stored is None:
        raise GraphError(f"{type_name(node)} declares no shape", node=name, remedy="Give it one.")
    return tuple(int(v) for v in np.atleast_1d(stored))
