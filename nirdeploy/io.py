"""Guarded reader and atomic writer of .nir files, independent of the installed nir version."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from nirdeploy import files
from nirdeploy.errors import ConventionError, FileError, GraphError
from nirdeploy.graph import check_finite, make_graph, make_node, metadata, node_fields, parameters, with_metadata
from nirdeploy.graph import validate as validate_graph
from nirdeploy.names import escape, suggest, unescape, unstorable
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.graph_convention import stored_convention

__all__ = ["load_graph", "read", "store_graph", "write"]

_OPTIONAL = {"input_shape", "v_reset", "w_in"}
_STRINGS = {"padding"}
_MAX_ELEMENTS = 1 << 28  # of one sample: everything behind a declared shape allocates by it
_MAX_AXES = 32
_SEPARATOR = "/"  # between the names of a subgraph and its node in `rename`


def read(
    path: str | Path,
    rename: Mapping[str, str] | None = None,
    *,
    max_bytes: int = files.MAX_BYTES,
    exported_by: str | None = None,
) -> nir.NIRGraph:
    """Read a .nir file of any nir version from 1.0.4 on.

    Args:
        path: the file.
        rename: node names to replace in edges and nodes, old -> new, for files whose edges name nodes wrongly.
            A name inside a subgraph is written with its path: {"sub/old": "sub/new"}.
        max_bytes: most bytes that the file's arrays together may declare.
        exported_by: 'snntorch', 'norse', 'sinabs' or 'spikingjelly', where that library's exporter wrote the file: what
            it is known to write wrongly is repaired, and `check` lists each repair.

    Returns:
        The graph exactly as stored: nothing is inferred or added, but for those repairs.

    Raises:
        FileError: not HDF5, not NIR, damaged, too large, or linking out of the file.
        GraphError: nodes or edges that make no graph; the message names them.
        UnsupportedError: what the exporter has lost; naming the node.
    """
    with files.open_hdf5(path, "a NIR graph", max_bytes=max_bytes) as file:
        root = file.get("node")
        if not isinstance(root, h5py.Group):
            raise FileError(f"{str(path)!r} is HDF5 but not a NIR graph: it has no group 'node'")
        if _text(root, "type") != "NIRGraph":
            raise FileError(f"{str(path)!r} holds a single node, not a NIRGraph")
        graph = load_graph(root, rename or {}, finite=exported_by is None)
    if exported_by is not None:
        graph = _repaired(graph, exported_by)
        _check_finite(graph)
    _validate(graph)
    _check_convention(graph, str(path))
    return graph


def _repaired(graph: nir.NIRGraph, library: str) -> nir.NIRGraph:
    from nirdeploy.convert.frameworks.framework import framework

    found, repairs = framework(library).repair(graph)
    return with_metadata(found, repairs=[list(repair) for repair in repairs] or None)


def _validate(graph: nir.NIRGraph, prefix: str = "") -> None:
    """`graph.validate` of a graph and of its subgraphs, whose path the message then names."""
    try:
        validate_graph(graph)
    except GraphError as error:
        if not prefix:
            raise
        raise GraphError(
            f"in subgraph {prefix.rstrip(_SEPARATOR)!r}: {error}",
            remedy=f"Read it with rename={{'{prefix}OLD': '{prefix}NEW'}} if a name is wrong.",
        ) from error
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            _validate(node, f"{prefix}{name}{_SEPARATOR}")


def _check_convention(graph: nir.NIRGraph, label: str) -> None:
    stored = metadata(graph).get("convention")
    if stored is None:
        return
    try:
        Convention.from_dict(stored)
    except ConventionError:
        return  # one to be replaced by the caller's; the run says so
    except (TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{label!r} carries a convention that is damaged: {error}") from error


def write(
    path: str | Path, graph: nir.NIRGraph, convention: Convention | None = None, *, for_library: str | None = None
) -> None:
    """Write a .nir file that every nir from 1.0.4 on reads.

    Args:
        path: the file; written under a temporary name and renamed.
        graph: the graph; a convention it already carries stays.
        convention: stored in the graph's metadata, where `read`, `run`, `check` and `deploy` find it.
        for_library: 'snntorch', 'norse', 'sinabs' or 'spikingjelly', whose importer is to read it: the graph is brought
            to what that makes the same network of.

    Raises:
        FileError: the folder cannot be written.
        UnsupportedError: something that importer would make something else of; naming the node.
        GraphError: the graph is not well formed, or holds a name or value that a file cannot.
    """
    validate_graph(graph)
    if convention is not None:
        if not isinstance(convention, Convention):
            raise ConventionError(
                f"convention is {convention!r}, expected a Convention",
                remedy="Pass nd.convention('nir', dt=...), or another preset.",
            )
        graph = with_metadata(graph, convention=convention.to_dict())
    if for_library is not None:
        from nirdeploy.convert.frameworks.framework import framework

        graph = framework(for_library).adapt(graph, stored_convention(graph))
        validate_graph(graph)
    with files.atomic(path) as temporary, files.new_hdf5(temporary) as file:
        file.create_dataset("version", data=nir.version, dtype=h5py.string_dtype())
        store_graph(file.create_group("node"), graph)


# ---------------------------------------------------------------- writing


def store_graph(group: h5py.Group, graph: nir.NIRGraph, *, fixed: bool = False) -> None:
    """Write a graph into an HDF5 group in NIR's layout; with `fixed`, text has a length of its own."""
    _put_text(group, "type", "NIRGraph", fixed)
    nodes = group.create_group("nodes")
    for name, node in graph.nodes.items():
        _store_node(nodes.create_group(_stored_name(name)), name, node, fixed)
    edges = [[_stored_name(a), _stored_name(b)] for a, b in graph.edges]
    _put_text(group, "edges", np.array(edges, dtype=object).reshape(-1, 2), fixed)
    meta = graph.metadata if isinstance(graph.metadata, Mapping) else {}
    _store_metadata(group, meta, None, fixed)


def _stored_name(name: str) -> str:
    # '/' would make a nested group, which no nir version reads back
    if reason := unstorable(name):
        raise GraphError(f"the name {reason}; a file cannot hold it", node=name, remedy="Rename the node.")
    return escape(name)


def _put_text(group: h5py.Group, name: str, value: Any, fixed: bool) -> None:
    """Text of variable length, as nir writes it; or of a length of its own, as HDF5 can hang on damaged such text."""
    if not fixed:
        group.create_dataset(name, data=value, dtype=h5py.string_dtype())
    else:
        files.put_text(group, name, value)


def _store_node(group: h5py.Group, name: str, node: nir.NIRNode, fixed: bool) -> None:
    if isinstance(node, nir.NIRGraph):
        store_graph(group, node, fixed=fixed)
        return
    _put_text(group, "type", type(node).__name__, fixed)
    if isinstance(node, nir.Input):
        _store_value(group, "shape", node.input_type["input"], name, fixed)
    elif isinstance(node, nir.Output):
        _store_value(group, "shape", node.output_type["output"], name, fixed)
    else:
        values = parameters(node)
        if _left_out(values):
            # nir 1.0.4 refuses files that have the field at all; every later reader takes 0 for it
            del values["v_reset"]
        for field, value in values.items():
            _store_value(group, field, value, name, fixed)
        if isinstance(node, nir.Flatten):
            _store_value(group, "input_type", node.input_type["input"], name, fixed)
    meta = getattr(node, "metadata", None)
    _store_metadata(group, meta if isinstance(meta, Mapping) else {}, name, fixed)


def _left_out(values: Mapping[str, Any]) -> bool:
    """Whether v_reset is exactly what a reader makes of its absence: zeros like v_threshold."""
    if values.get("v_reset") is None or values.get("v_threshold") is None:
        return False
    stored, absent = np.asarray(values["v_reset"]), np.zeros_like(np.asarray(values["v_threshold"]))
    same = stored.dtype == absent.dtype and stored.shape == absent.shape
    return bool(same and stored.tobytes() == absent.tobytes())


def _store_metadata(group: h5py.Group, meta: Mapping[str, Any], node: str | None, fixed: bool) -> None:
    if not meta:
        return
    inner = group.create_group("metadata")
    try:
        _store_mapping(inner, meta, node, fixed)
    except (TypeError, ValueError) as error:  # what h5py raises for a key or value it cannot hold
        if isinstance(error, GraphError):
            raise
        raise GraphError(f"metadata that a file cannot hold: {error}", node=node, remedy="Remove it.") from error


def _store_mapping(group: h5py.Group, values: Mapping[str, Any], node: str | None, fixed: bool) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _store_mapping(group.create_group(str(key)), value, node, fixed)
        else:
            _store_value(group, str(key), value, node, fixed)


def _store_value(group: h5py.Group, name: str, value: Any, node: str | None, fixed: bool) -> None:
    if value is None:
        return
    if isinstance(value, str | bytes):
        if reason := unstorable(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value):
            raise GraphError(f"{name!r} {reason}; a file cannot hold it", node=node)
        _put_text(group, name, value, fixed)
        return
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise GraphError(f"{name!r} is a {type(value).__name__} ({array.dtype}), which a file cannot hold", node=node)
    large = array.ndim > 0 and array.size > 64
    group.create_dataset(name, data=array, compression="gzip" if large else None)


# ---------------------------------------------------------------- reading


def load_graph(
    group: h5py.Group, rename: Mapping[str, str] | None = None, prefix: str = "", *, finite: bool = True
) -> nir.NIRGraph:
    """Read a graph from an HDF5 group in NIR's layout.

    Args:
        group: where it is.
        rename: as in `read`.
        prefix: path of the subgraph with a '/' behind it, '' for the whole graph.
        finite: whether to refuse parameters that are NaN or infinite, which some exporters write.

    Raises:
        FileError: a part is missing, damaged or of another type.
        GraphError: a rename that has no meaning.
    """
    renamed = dict(rename or {})
    for part, kind in (("nodes", h5py.Group), ("edges", h5py.Dataset)):
        if not isinstance(group.get(part), kind):
            raise FileError(f"{group.name}: a NIRGraph without {part!r}")
    nodes: dict[str, nir.NIRNode] = {}
    for stored in group["nodes"]:
        old = _plain_name(stored)
        name = _renamed(old, renamed, prefix)
        if name in nodes:
            raise GraphError("two nodes have this name", node=name, remedy="Rename one of them.")
        nodes[name] = _load_node(group["nodes"][stored], old, renamed, prefix)
    edges = [
        (_renamed(_plain_name(a), renamed, prefix), _renamed(_plain_name(b), renamed, prefix))
        for a, b in _edge_table(group["edges"])
    ]
    graph = make_graph(nodes, edges, _load_metadata(group))
    if finite and not prefix:
        _check_finite(graph)
    return graph


def _check_finite(graph: nir.NIRGraph) -> None:
    try:
        check_finite(graph)
    except GraphError as error:
        raise FileError(str(error)) from error


def _plain_name(stored: str) -> str:
    name = unescape(stored) if "%" in stored else stored
    if reason := unstorable(name):
        raise FileError(f"the name {name!r} {reason}")
    return name


def _renamed(name: str, rename: Mapping[str, str], prefix: str) -> str:
    """The new name of a node; a name inside a subgraph has to stay in it."""
    new = rename.get(prefix + name)
    if new is None:
        return name
    if not isinstance(new, str) or not new.startswith(prefix) or new == prefix:
        raise GraphError(
            f"rename gives {prefix + name!r} the name {new!r}, which is not in the same graph",
            remedy=f"Write {{{prefix + name!r}: '{prefix}NEW'}}.",
        )
    return new.removeprefix(prefix)


def _edge_table(dataset: h5py.Dataset) -> list[tuple[str, str]]:
    if dataset.shape is None or not (dataset.size == 0 or dataset.shape[1:] == (2,)):
        raise FileError(f"{dataset.name} has shape {dataset.shape}, expected (n, 2)")
    if dataset.size == 0:
        return []
    return [(files.text_of(a), files.text_of(b)) for a, b in dataset[()]]


def _text(group: h5py.Group, name: str) -> str:
    """A string of a group, '' where there is none."""
    found = group.get(name)
    return files.text_of(found[()]) if isinstance(found, h5py.Dataset) and found.shape is not None else ""


def _load_metadata(group: h5py.Group) -> dict[str, Any]:
    found = group.get("metadata")
    if found is None:
        return {}
    if not isinstance(found, h5py.Group):
        raise FileError(f"{group.name}/metadata is no group")
    return _load_mapping(found)


def _load_mapping(group: h5py.Group) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in group.items():
        if isinstance(item, h5py.Group):
            found[key] = _load_mapping(item)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            value = item[()]
            found[key] = value.decode("utf-8") if isinstance(value, bytes) else value
        else:
            raise FileError(f"{group.name}/{key} holds nothing")
    return found


def _kinds() -> dict[str, type[nir.NIRNode]]:
    names = (
        "Affine AvgPool2d Conv1d Conv2d CubaLI CubaLIF Delay Flatten I IF Input LI LIF Linear Output Scale "
        "SumPool2d Threshold"
    )
    return {name: getattr(nir, name) for name in names.split() if hasattr(nir, name)}


def _load_node(group: Any, name: str, rename: Mapping[str, str], prefix: str) -> nir.NIRNode:
    if not isinstance(group, h5py.Group) or "type" not in group:
        raise FileError("has no type", node=name)
    kind = _text(group, "type")
    if kind == "NIRGraph":
        return load_graph(group, rename, f"{prefix}{name}{_SEPARATOR}")
    known = _kinds()
    if kind not in known:
        raise FileError(f"unknown NIR type {kind!r}", node=name, remedy=suggest(kind, known))
    values = _load_values(group, known[kind], name)
    meta = _load_metadata(group)
    try:
        return make_node(known[kind], metadata=meta, **values)
    except GraphError as error:
        raise GraphError(str(error), node=name) from error
    # nir checks with asserts, and with whatever its own arithmetic on wrong shapes raises
    except (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError) as error:
        raise FileError(f"{kind} with inconsistent parameters: {error}", node=name) from error


def _load_values(group: h5py.Group, kind: type[nir.NIRNode], name: str) -> dict[str, Any]:
    if kind in (nir.Input, nir.Output):
        port = "input" if kind is nir.Input else "output"
        shape = _load_shape(group, "shape", name)
        if shape is None:
            raise FileError(f"{kind.__name__} without 'shape'", node=name)
        return {f"{port}_type": {port: shape}}
    values: dict[str, Any] = {}
    for field in node_fields(kind):
        if field in group:
            values[field] = _load_field(group[field], field, f"{kind.__name__}.{field}", name)
        elif field == "v_reset":
            values[field] = np.zeros_like(values["v_threshold"]) if "v_threshold" in values else None
        elif field == "input_shape":
            values[field] = None
        elif field not in _OPTIONAL:
            raise FileError(f"{kind.__name__} without {field!r}", node=name)
    if kind is nir.Flatten:
        values["input_type"] = {"input": _load_shape(group, "input_type", name)}
    return values


def _load_field(item: Any, field: str, label: str, name: str) -> Any:
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise FileError(f"{label} holds no data", node=name)
    if field in _STRINGS and item.dtype.kind in "OS":
        return files.text_of(item[()])
    if item.dtype.kind not in "biuf":
        raise FileError(f"{label} is not a number", node=name)
    return item[()]


def _load_shape(group: h5py.Group, field: str, name: str) -> Any:
    """A declared shape, held against what a sample may have; None where there is none."""
    if field not in group:
        return None
    item = group[field]
    if (
        not isinstance(item, h5py.Dataset)
        or item.shape is None
        or item.dtype.kind not in "iuf"
        or item.size > _MAX_AXES
    ):
        raise FileError(f"{field!r} is no shape", node=name)
    values = item[()]
    whole = [int(v) for v in np.ravel(values) if np.isfinite(v) and v == int(v) and v > 0]
    if len(whole) != item.size:
        raise FileError(f"{field!r} is {np.ravel(values).tolist()}, expected whole numbers from 1 on", node=name)
    if math.prod(whole) > _MAX_ELEMENTS:
        raise FileError(
            f"{field!r} is {whole}, {math.prod(whole)} elements a sample; at most {_MAX_ELEMENTS} are possible",
            node=name,
            remedy="Use a smaller network.",
        )
    return np.asarray(values)
