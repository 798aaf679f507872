"""Deployment folders: `deployment.h5`, which alone is read back, and files derived from it.

These are `chip.json` and what the backend adds; each carries the hash of `deployment.h5` and is refused when stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import files
from nirdeploy import graph as graphs
from nirdeploy.backend import backend_of, derived_files, find_target, targets
from nirdeploy.errors import FileError, GraphError, QuantizationError, TargetError, UnsupportedError
from nirdeploy.io import load_graph, store_graph
from nirdeploy.names import escape, unescape, unstorable
from nirdeploy.pipeline import Deployment
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding, Report
from nirdeploy.version import __version__

__all__ = ["layers_sha256", "load_deployment", "save_deployment", "write_main_file"]

FORMAT = "nirdeploy-deployment"
FORMAT_VERSION = 1


def save_deployment(deployment: Deployment, folder: str | Path) -> None:
    """Write a deployment into a folder, made if missing; wherever this process ends, what is there loads.

    Raises:
        FileError: the folder cannot be written.
        GraphError: a node name that no file can hold.
        TargetError: a target that no installed backend has.
    """
    backend = backend_of(deployment.target.backend)
    chip = backend.chip_configuration(deployment.quantized, deployment.placement)
    further = derived_files(backend, deployment.quantized, deployment.placement)
    _check_storable(deployment)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"cannot make folder {str(target)!r}: {getattr(error, 'strerror', None) or error}") from error
    main, derived = target / "deployment.h5", target / "chip.json"
    with files.locked(target):
        with files.atomic(main) as temporary:
            with files.new_hdf5(temporary) as file:
                _store(file, deployment)
            digest = files.sha256(temporary)
            # a stale one would be refused: from here on deployment.h5 alone loads, wherever this process ends
            for path in {derived, *(target / name for name in further), *_derived_before(target)}:
                _discard(path)
        for name, write in further.items():
            _derive(target / name, write, digest)
        chip = {"deployment_sha256": digest, "target": deployment.target.name, **chip}
        files.write_text(derived, json.dumps(chip, indent=1))


def write_main_file(deployment: Deployment, path: str | Path) -> None:
    """Write the file of a deployment that is read back, and nothing derived from it.

    Raises:
        FileError: it cannot be written.
        GraphError: a node name that no file can hold.
        TargetError: a target that no installed backend has.
    """
    _check_storable(deployment)
    with files.atomic(path) as temporary, files.new_hdf5(temporary) as file:
        _store(file, deployment)


def _check_storable(deployment: Deployment) -> None:
    if targets().get(deployment.target.name) != deployment.target:
        raise TargetError(
            f"target {deployment.target.name!r} is not as a backend provides it; a file holds its name alone",
            remedy="Deploy to a target of an installed backend.",
        )
    for name in deployment.quantized.layers:
        if reason := unstorable(name):
            raise GraphError(f"the name {reason}; a file cannot hold it", node=name, remedy="Rename the node.")


def _derive(path: Path, write: Callable[[Path], None], digest: str) -> None:
    """Write a derived file with the hash of what it is derived from, unless its format cannot hold the network."""
    try:
        with files.atomic(path) as temporary:
            write(temporary)
            with files.new_hdf5(temporary, mode="r+") as file:
                files.set_attribute(file, "deployment_sha256", digest)
    except (UnsupportedError, QuantizationError):
        return


def _derived_before(folder: Path) -> Iterator[Path]:
    """HDF5 files that another backend's deployment left here: those with the hash of a deployment."""
    for path in folder.iterdir():
        if path.name == "deployment.h5" or not path.is_file() or files.unreadable(path):
            continue
        with contextlib.suppress(OSError, FileError):  # no file of ours
            with h5py.File(path, "r") as file:
                ours = "deployment_sha256" in file.attrs
            if ours:
                yield path


def _discard(path: Path) -> None:
    if path.exists() and (reason := files.unreadable(path)):
        raise FileError(f"cannot replace {str(path)!r}: it {reason}")
    path.unlink(missing_ok=True)


def _store(file: h5py.File, deployment: Deployment) -> None:
    quantized = deployment.quantized
    attributes = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "producer": f"nirdeploy {__version__}",
        "target": quantized.target.name,
        "quantizer": quantized.quantizer,
        "graph_sha256": graphs.sha256(quantized.graph),
    }
    texts = _texts(deployment)
    for name, text in texts.items():  # datasets, not attributes: those stop at 64 KiB
        files.put_text(file, name, text)
    store_graph(file.create_group("graph"), quantized.graph, fixed=True)
    layers = file.create_group("layers")
    for name, layer in quantized.layers.items():
        group = layers.create_group(escape(name))
        files.set_attribute(group, "type", type(layer).__name__)
        for field, value in vars(layer).items():
            if isinstance(value, np.ndarray):
                group.create_dataset(field, data=value, compression="gzip" if value.size > 64 else None)
            elif value is not None:
                files.set_attribute(group, field, value)
    if quantized.activity:
        measured = file.create_group("activity")
        for name, values in quantized.activity.items():
            measured.create_dataset(escape(name), data=np.asarray(values, dtype=np.float64), compression="gzip")
    attributes["layers_sha256"] = _digest(quantized.layers, texts, quantized.activity)
    for name, value in attributes.items():
        files.set_attribute(file, name, value)


def layers_sha256(deployment: Deployment) -> str:
    """What its file is known by: a hash of all integers and of what is said and was measured about them."""
    return _digest(deployment.quantized.layers, _texts(deployment), deployment.quantized.activity)


def _texts(deployment: Deployment) -> dict[str, str]:
    quantized = deployment.quantized
    return {
        "convention": quantized.convention.to_json(),
        "report": deployment.report.to_json(),
        "placement": json.dumps(deployment.placement.to_dict()),
        "notes": json.dumps(list(quantized.notes)),
    }


def _digest(
    layers: Mapping[str, QuantizedWeight | QuantizedNeuron], texts: Mapping[str, str], activity: Mapping[str, Any]
) -> str:
    digest = hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode())
    for name in sorted(layers):
        digest.update(f"\n{name!r} {type(layers[name]).__name__}".encode())
        for field, value in sorted(vars(layers[name]).items()):
            if isinstance(value, np.ndarray):
                digest.update(f" {field} {value.shape} ".encode())
                kind = np.float64 if value.dtype.kind == "f" else np.int64
                digest.update(np.ascontiguousarray(value, dtype=kind).tobytes())
            else:
                digest.update(f" {field}={value!r}".encode())
    for name in sorted(activity):
        digest.update(f"\nactivity {name!r} ".encode())
        digest.update(np.ascontiguousarray(activity[name], dtype=np.float64).tobytes())
    return digest.hexdigest()


def load_deployment(folder: str | Path) -> Deployment:
    """Read a deployment folder (or its `deployment.h5`).

    Args:
        folder: the folder, or the file in it.

    Returns:
        The deployment as it was saved.

    Raises:
        FileError: not a deployment, damaged, or a derived file is stale.
        TargetError: its target is not installed.
    """
    path = Path(folder)
    path = path / "deployment.h5" if path.is_dir() else path
    if reason := files.unreadable(path):
        raise FileError(f"{str(path)!r} {reason}, expected a deployment")
    with files.locked(path.parent, shared=True):
        with files.open_hdf5(path, "a deployment") as file:
            if "format" not in file.attrs or files.attribute(file, "format", str) != FORMAT:
                raise FileError(f"{str(path)!r} is HDF5 but not a deployment")
            if files.attribute(file, "version", int) > FORMAT_VERSION:
                raise FileError(
                    f"{str(path)!r} has a newer deployment format than this nirdeploy reads",
                    remedy="Update nirdeploy.",
                )
            deployment = _load(file, str(path))
        _refuse_stale(path, deployment)
    return deployment


def _refuse_stale(path: Path, deployment: Deployment) -> None:
    further = derived_files(backend_of(deployment.target.backend), deployment.quantized, deployment.placement)
    read = {"chip.json": _digest_in_json, **dict.fromkeys(further, _digest_in_hdf5)}
    found = {path.with_name(name): digest for name, digest in read.items() if path.with_name(name).exists()}
    expected = files.sha256(path) if found else ""
    for derived, digest in found.items():
        if digest(derived) != expected:
            raise FileError(
                f"{str(derived)!r} was derived from another {path.name}", remedy="Save the deployment again."
            )


def _digest_in_json(chip: Path) -> Any:
    if reason := files.unreadable(chip):
        raise FileError(f"{str(chip)!r} {reason}, expected a chip configuration")
    try:
        if chip.stat().st_size > files.MAX_BYTES:
            raise ValueError(f"more than {files.MAX_BYTES} bytes")  # noqa: TRY301 (one message for all damage)
        return json.loads(chip.read_text(encoding="utf-8"))["deployment_sha256"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FileError(f"{str(chip)!r} is damaged: {error}", remedy="Save the deployment again.") from error


def _digest_in_hdf5(derived: Path) -> str:
    try:
        with files.open_hdf5(derived, "a file derived from a deployment") as file:
            return files.attribute(file, "deployment_sha256", str)
    except FileError as error:
        raise FileError(f"{str(derived)!r} is damaged: {error}", remedy="Save the deployment again.") from error


def _load(file: h5py.File, label: str) -> Deployment:
    try:
        texts = {
            name: files.text_of(files.member(file, name, h5py.Dataset)[()])
            for name in ("convention", "report", "placement", "notes")
        }
        graph = load_graph(files.member(file, "graph", h5py.Group))
        graphs.validate(graph)
        if graphs.sha256(graph) != files.attribute(file, "graph_sha256", str):
            raise FileError("its graph does not have the hash it was saved with")
        stored = files.member(file, "layers", h5py.Group)
        layers = {unescape(name): _load_layer(files.member(stored, name, h5py.Group)) for name in stored}
        _check_layers(graph, layers)
        activity = _load_activity(file)
        if _digest(layers, texts, activity) != files.attribute(file, "layers_sha256", str):
            raise FileError("its integers do not have the hash they were saved with")
        quantized = Quantized(
            graph=graph,
            target=find_target(files.attribute(file, "target", str)),
            convention=Convention.from_dict(json.loads(texts["convention"])),
            quantizer=files.attribute(file, "quantizer", str),
            layers=layers,
            notes=tuple(str(note) for note in json.loads(texts["notes"])),
            activity=activity,
        )
        report = json.loads(texts["report"])
        if report["target"] != quantized.target.name:
            raise FileError(f"its integers are those of {report['target']}, its target is {quantized.target.name}")
        findings = tuple(Finding(**finding) for finding in report["findings"])
        placement = Placement.from_dict(json.loads(texts["placement"]))
        return Deployment(Report(str(report["target"]), findings), quantized, placement)
    except TargetError:
        raise  # the file is whole, the target is not installed
    # FileErrors and GraphErrors are ValueErrors; the rest is what JSON of another shape and damaged bytes raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{label!r} is a damaged deployment: {error}", remedy="Deploy again.") from error


# least and largest value of every whole number a layer holds; wider than any chip, as the backends' loops need it
_INT32 = (-(1 << 31), (1 << 31) - 1)
_RANGES = {
    "threshold": (1, _INT32[1]),
    "v_min": _INT32,
    "decay_v": (0, 4096),
    "decay_u": (0, 4096),
    "mantissa": (0, _INT32[1]),
    "exponent": (-32, 32),
    "bias_exponent": (-32, 32),
    "many": (0, 1),
    "fires": (0, 1),
    "v_start": _INT32,
}
_FLAGS = ("fires", "many")
_SEVERAL = ("decay_u", "decay_v", "mantissa", "threshold", "v_start")  # a number, or one a neuron


def _load_activity(file: h5py.File) -> dict[str, Any]:
    if "activity" not in file:
        return {}
    stored = files.member(file, "activity", h5py.Group)
    found = {unescape(name): files.numbers(files.member(stored, name, h5py.Dataset), "f") for name in stored}
    for name, values in found.items():
        if values.ndim != 1 or not np.isfinite(values).all() or (values.size and values.min() < 0):
            raise FileError("its activity is not one number from 0 on for each neuron", node=name)
    return found


def _load_layer(group: h5py.Group) -> QuantizedWeight | QuantizedNeuron:
    values: dict[str, Any] = {name: _array_of(group, name) for name in group}
    values |= {name: _attribute_of(group, name) for name in group.attrs}
    kind = values.pop("type", "")
    for name in ("scale", "scale_u"):
        if not (math.isfinite(values.get(name, 1.0)) and values.get(name, 1.0) > 0):
            raise FileError(f"{group.name} has {name} {values[name]}, expected a positive number")
    if not np.isfinite(values.get("offset", 0.0)).all():
        raise FileError(f"{group.name} has an offset that is not finite")
    if kind == "QuantizedWeight":
        values.setdefault("bias", None)
        return QuantizedWeight(**values)
    if kind != "QuantizedNeuron" or values.get("reset", "zero") not in ("zero", "subtract"):
        raise FileError(f"layer {group.name} has unknown type {kind!r} or reset {values.get('reset')!r}")
    values.setdefault("v_min", None)
    return QuantizedNeuron(**values)


def _array_of(group: h5py.Group, name: str) -> NDArray[Any]:
    if name == "offset":
        return files.numbers(group[name], "f")
    found = files.numbers(group[name], "i")
    low, high = _RANGES[name] if name in _SEVERAL else _INT32
    if found.size and not (found.min() >= low and found.max() <= high):
        raise FileError(f"{group.name}/{name} holds {found.min()} to {found.max()}, expected {low} to {high}")
    return found.astype(np.int64)


def _attribute_of(group: h5py.Group, name: str) -> Any:
    if name in ("type", "reset"):
        return files.attribute(group, name, str)
    if name in ("offset", "scale", "scale_u"):
        return files.attribute(group, name, float)
    if name not in _RANGES:
        raise FileError(f"{group.name} has an unknown field {name!r}")
    number = files.attribute(group, name, int)
    if not _RANGES[name][0] <= number <= _RANGES[name][1]:
        raise FileError(f"{group.name} has {name} {number}, expected {_RANGES[name][0]} to {_RANGES[name][1]}")
    return bool(number) if name in _FLAGS else number


def _check_layers(graph: nir.NIRGraph, layers: Mapping[str, QuantizedWeight | QuantizedNeuron]) -> None:
    """Hold integers against the graph: a weight has its node's shape, or is [target neurons, source neurons].

    Raises:
        FileError: a population without integers, integers of nothing, or another shape.
    """
    if any(isinstance(node, nir.NIRGraph) for node in graph.nodes.values()):
        return  # its integers are named after nodes of the dissolved graph, which the backend knows
    shapes = graphs.shapes(graph)
    sizes = {math.prod(s.output) for s in shapes.values()}
    for name, layer in layers.items():
        node = graph.nodes.get(name)
        if isinstance(layer, QuantizedNeuron):
            if node is None or graphs.type_name(node) not in graphs.MEMBRANES:
                raise FileError("integers of a population that the graph does not have", node=name)
            _check_bias(name, layer.bias, {shapes[name].output})
            for field in (*_SEVERAL, "offset"):
                value = getattr(layer, field)
                if isinstance(value, np.ndarray) and value.shape != shapes[name].output:
                    raise FileError(f"{field} of shape {value.shape}, expected {shapes[name].output}", node=name)
            continue
        # a name of a path is that of a node whose weights several connections have, each with integers of its own
        possible = [_own_shape(n, graph.nodes[n], shapes) for n in (graph.nodes if node is None else (name,))]
        own = possible[0] if len(possible) == 1 else None
        shape = layer.weight.shape
        if shape in possible:
            own = shape
        constant = node is None and len(shape) == 2 and shape[0] in sizes  # always-on axons of a population
        if shape != own and not constant and not (len(shape) == 2 and shape[0] in sizes and shape[1] in sizes):
            raise FileError(f"integers of shape {shape}, the graph has {own}", node=name)
        _check_bias(name, layer.bias, {shape[:1]})
    for name, node in graph.nodes.items():
        if graphs.is_neuron(node) and not isinstance(layers.get(name), QuantizedNeuron):
            raise FileError("a population without integers", node=name)


def _own_shape(name: str, node: nir.NIRNode, shapes: Mapping[str, graphs.Shapes]) -> tuple[int, ...] | None:
    """Shape of a node's own weights; a pool alone is a kernel [channel, 1, y, x]."""
    if hasattr(node, "weight"):
        return tuple(np.asarray(node.weight).shape)
    if hasattr(node, "kernel_size"):
        return (shapes[name].input[0], 1, *graphs.pair(node.kernel_size))
    return None


def _check_bias(name: str, bias: Any, allowed: set[tuple[int, ...]]) -> None:
    if bias is not None and bias.shape not in {*allowed, (math.prod(next(iter(allowed))),)}:
        raise FileError(f"a bias of shape {bias.shape}, expected {next(iter(allowed))}", node=name)
