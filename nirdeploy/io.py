"""Guarded reader and atomic writer of .nir files, independent of the installed nir version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from nirdeploy import files
from nirdeploy.errors import FileError, GraphError
from nirdeploy.graph import make_graph, make_node, node_fields, parameters, with_metadata
from nirdeploy.graph import validate as validate_graph
from nirdeploy.names import escape, suggest, unescape
from nirdeploy.reference.convention import Convention

__all__ = ["load_graph", "read", "store_graph", "write"]

_OPTIONAL = {"input_shape", "v_reset", "w_in"}
_STRINGS = {"padding"}


def read(
    path: str | Path, rename: Mapping[str, str] | None = None, *, max_bytes: int = files.MAX_BYTES
) -> nir.NIRGraph:
    """Read a .nir file of any nir version from 1.0.4 on.

    Args:
        path: the file.
        rename: node names to replace in edges and nodes, old -> new, for files whose edges name nodes wrongly.
        max_bytes: most bytes that the file's arrays together may declare.

    Returns:
        The graph exactly as stored: nothing is inferred or added.

    Raises:
        FileError: not HDF5, not NIR, damaged, too large, or linking out of the file.
        GraphError: nodes or edges that make no graph; the message names them.
    """
    with files.open_hdf5(path, "a NIR graph", max_bytes=max_bytes) as file:
        if "node" not in file or not isinstance(file["node"], h5py.Group):
            raise FileError(f"{str(path)!r} is HDF5 but not a NIR graph: it has no group 'node'")
        root = file["node"]
        if "type" not in root or files.text_of(root["type"][()]) != "NIRGraph":
            raise FileError(f"{str(path)!r} holds a single node, not a NIRGraph")
        graph = load_graph(root, rename or {})
    validate_graph(graph)
    return graph


def write(path: str | Path, graph: nir.NIRGraph, convention: Convention | None = None) -> None:
    """Write a .nir file that every nir from 1.0.4 on reads.

    Args:
        path: the file; written under a temporary name and renamed.
        graph: the graph; a convention it already carries stays.
        convention: stored in the graph's metadata, where `read`, `run`, `check` and `deploy` find it.

    Raises:
        FileError: the folder cannot be written.
        GraphError: the graph is not well formed.
    """
    validate_graph(graph)
    if convention is not None:
        graph = with_metadata(graph, convention=convention.to_dict())
    with files.atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("version", data=nir.version, dtype=h5py.string_dtype())
        store_graph(file.create_group("node"), graph)


# ---------------------------------------------------------------- writing


def store_graph(group: h5py.Group, graph: nir.NIRGraph) -> None:
    """Write a graph into an HDF5 group in NIR's layout."""
    group.create_dataset("type", data="NIRGraph", dtype=h5py.string_dtype())
    nodes = group.create_group("nodes")
    for name, node in graph.nodes.items():
        _store_node(nodes.create_group(_stored_name(name)), node)
    edges = np.array([[_stored_name(a), _stored_name(b)] for a, b in graph.edges], dtype=object)
    group.create_dataset("edges", data=edges.reshape(-1, 2), dtype=h5py.string_dtype())
    meta = graph.metadata if isinstance(graph.metadata, Mapping) else {}
    _store_metadata(group, meta)


def _stored_name(name: str) -> str:
    # '/' would make a nested group, which no nir version reads back
    return escape(name)


def _store_node(group: h5py.Group, node: nir.NIRNode) -> None:
    if isinstance(node, nir.NIRGraph):
        store_graph(group, node)
        return
    group.create_dataset("type", data=type(node).__name__, dtype=h5py.string_dtype())
    if isinstance(node, nir.Input):
        group.create_dataset("shape", data=np.asarray(node.input_type["input"]))
    elif isinstance(node, nir.Output):
        group.create_dataset("shape", data=np.asarray(node.output_type["output"]))
    else:
        for name, value in parameters(node).items():
            _store_value(group, name, value)
        if isinstance(node, nir.Flatten) and node.input_type["input"] is not None:
            group.create_dataset("input_type", data=np.asarray(node.input_type["input"]))
    _store_metadata(group, getattr(node, "metadata", None) or {})


def _store_metadata(group: h5py.Group, meta: Mapping[str, Any]) -> None:
    if not meta:
        return
    inner = group.create_group("metadata")
    for key, value in meta.items():
        if isinstance(value, Mapping):
            _store_mapping(inner.create_group(str(key)), value)
        else:
            _store_value(inner, str(key), value)


def _store_mapping(group: h5py.Group, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _store_mapping(group.create_group(str(key)), value)
        else:
            _store_value(group, str(key), value)


def _store_value(group: h5py.Group, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, str | bytes):
        group.create_dataset(name, data=value, dtype=h5py.string_dtype())
        return
    array = np.asarray(value)
    if array.dtype == object:
        raise GraphError(f"parameter {name!r} is a {type(value).__name__}, which a file cannot hold")
    large = array.ndim > 0 and array.size > 64
    group.create_dataset(name, data=array, compression="gzip" if large else None)


# ---------------------------------------------------------------- reading


def load_graph(group: h5py.Group, rename: Mapping[str, str] | None = None) -> nir.NIRGraph:
    """Read a graph from an HDF5 group in NIR's layout."""
    renamed = dict(rename or {})
    for part, kind in (("nodes", h5py.Group), ("edges", h5py.Dataset)):
        if part not in group or not isinstance(group[part], kind):
            raise FileError(f"{group.name}: a NIRGraph without {part!r}")

    def named(text: str) -> str:
        name = unescape(text) if "%" in text else text
        return renamed.get(name, name)

    nodes: dict[str, nir.NIRNode] = {}
    for stored in group["nodes"]:
        name = named(stored)
        nodes[name] = _load_node(group["nodes"][stored], name, renamed)
    table = group["edges"][()]
    if table.size and (table.ndim != 2 or table.shape[1] != 2):
        raise FileError(f"{group.name}/edges has shape {table.shape}, expected (n, 2)")
    edges = [(named(files.text_of(a)), named(files.text_of(b))) for a, b in table.reshape(-1, 2)]
    return make_graph(nodes, edges, _load_metadata(group))


def _load_metadata(group: h5py.Group) -> dict[str, Any]:
    if "metadata" not in group:
        return {}
    return _load_mapping(group["metadata"])


def _load_mapping(group: h5py.Group) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in group.items():
        if isinstance(item, h5py.Group):
            found[key] = _load_mapping(item)
        else:
            value = item[()]
            found[key] = value.decode("utf-8") if isinstance(value, bytes) else value
    return found


def _kinds() -> dict[str, type[nir.NIRNode]]:
    names = (
        "Affine AvgPool2d Conv1d Conv2d CubaLI CubaLIF Delay Flatten I IF Input LI LIF Linear Output Scale "
        "SumPool2d Threshold"
    )
    return {name: getattr(nir, name) for name in names.split() if hasattr(nir, name)}


def _load_node(group: Any, name: str, rename: Mapping[str, str]) -> nir.NIRNode:
    if not isinstance(group, h5py.Group) or "type" not in group:
        raise FileError("has no type", node=name)
    kind = files.text_of(group["type"][()])
    if kind == "NIRGraph":
        return load_graph(group, rename)
    known = _kinds()
    if kind not in known:
        raise FileError(f"unknown NIR type {kind!r}", node=name, remedy=suggest(kind, known))
    values = _load_values(group, known[kind], name)
    try:
        return make_node(known[kind], metadata=_load_metadata(group), **values)
    except (AssertionError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, GraphError):
            raise
        raise FileError(f"{kind} with inconsistent parameters: {error}", node=name) from error


def _load_values(group: h5py.Group, kind: type[nir.NIRNode], name: str) -> dict[str, Any]:
    if kind in (nir.Input, nir.Output):
        if "shape" not in group:
            raise FileError(f"{kind.__name__} without 'shape'", node=name)
        port = "input" if kind is nir.Input else "output"
        return {f"{port}_type": {port: np.asarray(group["shape"][()])}}
    values: dict[str, Any] = {}
    for field in node_fields(kind):
        if field in group:
            value = group[field][()]
            if isinstance(value, bytes) or (
                field in _STRINGS and isinstance(value, np.ndarray) and value.dtype == object
            ):
                value = files.text_of(value)
            elif np.asarray(value).dtype.kind not in "biuf":
                raise FileError(f"{kind.__name__}.{field} is not a number", node=name)
            elif not np.all(np.isfinite(value)):
                raise FileError(f"{kind.__name__}.{field} holds NaN or infinity", node=name)
            values[field] = value
        elif field == "v_reset":
            values[field] = np.zeros_like(group["v_threshold"][()]) if "v_threshold" in group else None
        elif field == "input_shape":
            values[field] = None
        elif field not in _OPTIONAL:
            raise FileError(f"{kind.__name__} without {field!r}", node=name)
    if kind is nir.Flatten:
        stored = group["input_type"][()] if "input_type" in group else None
        values["input_type"] = {"input": stored}
    return values
