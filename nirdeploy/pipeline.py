"""check -> quantize -> place -> Deployment: the stages in order, each with its own frozen type."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from nirdeploy import files
from nirdeploy import graph as graphs
from nirdeploy.backend import backend_of, find_target, known_options
from nirdeploy.errors import (
    CheckError,
    ConfigurationError,
    ConventionError,
    FileError,
    GraphError,
    NirdeployError,
    QuantizationWarning,
    RasterError,
    TargetError,
    UnsupportedError,
)
from nirdeploy.io import load_graph, store_graph
from nirdeploy.names import escape, suggest, unescape, unstorable
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, require_calibration
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding, Report
from nirdeploy.target import Target
from nirdeploy.trajectory import Trajectory
from nirdeploy.version import __version__

__all__ = ["Deployment", "check", "deploy", "load_deployment", "place", "quantize"]

FORMAT = "nirdeploy-deployment"
FORMAT_VERSION = 1


def check(graph: nir.NIRGraph, target: str | Target, *, convention: Convention | None = None) -> Report:
    """Every limit of the target that the graph breaks, all at once.

    Args:
        graph: the graph.
        target: a target's name.
        convention: None: the one the graph carries.

    Returns:
        A report; it never raises for what it finds.

    Raises:
        TargetError: unknown target.
        GraphError: the graph has no meaning at all (an edge to a missing node, no Input).
        ConventionError: `convention` is no Convention.
    """
    chip = find_target(target)
    _require_convention(convention)
    graphs.validate(graph)
    found: list[Finding] = []
    used = _convention_or_finding(graph, convention, found)
    if used is not None:
        found.extend(backend_of(chip.backend).check(graph, chip, used))
    return _report(graph, chip, found)


def _require_convention(convention: Any) -> None:
    if convention is not None and not isinstance(convention, Convention):
        name = convention if isinstance(convention, str) else "nir"
        raise ConventionError(
            f"convention is {convention!r}, expected a Convention",
            remedy=f"Pass nd.convention({name!r}, dt=...).",
        )


def _report(graph: nir.NIRGraph, target: Target, found: list[Finding]) -> Report:
    named = [replace(f, torch_path=f.torch_path or graphs.torch_path(graph, f.node)) for f in found]
    errors = [f for f in named if f.severity == "error"]
    return Report(target.name, (*errors, *(f for f in named if f.severity != "error")))


def _convention_or_finding(graph: nir.NIRGraph, given: Convention | None, found: list[Finding]) -> Convention | None:
    from nirdeploy.reference.executor import resolve_convention

    try:
        return resolve_convention(graph, given)
    except NirdeployError as error:
        found.append(Finding("convention", "", str(error).split(". ")[0], error.remedy or "Pass convention=."))
        return None


def quantize(
    graph: nir.NIRGraph,
    target: str | Target,
    *,
    convention: Convention | None = None,
    calibration: Any = None,
    quantizer: str = "calibrated",
) -> Quantized:
    """Integers for every layer.

    Args:
        graph: the graph.
        target: a target's name.
        convention: None: the one the graph carries.
        calibration: raster [step, batch, ...] that 'calibrated' fits the integers to.
        quantizer: 'calibrated', or 'max' (scale by the largest weight; sinabs's rule on Speck).

    Raises:
        CheckError: the target cannot hold the graph; carries the report.
        QuantizationError: no calibration data, or numbers that fit no register.
        RasterError: calibration data of the wrong shape.
    """
    from nirdeploy.reference.executor import resolve_convention

    chip = find_target(target)
    _require_convention(convention)
    require_calibration(quantizer, calibration)
    report = check(graph, chip, convention=convention)
    if not report.ok:
        raise CheckError(report)
    if calibration is not None:
        shape = graphs.shapes(graph)[graphs.input_names(graph)[0]].input
        calibration, _ = check_raster(calibration, shape, integer=True)
    used = resolve_convention(graph, convention)
    own = graphs.copy_graph(graph)  # the caller may change the one given
    found = backend_of(chip.backend).quantize(own, chip, used, quantizer=quantizer, calibration=calibration)
    if quantizer == "max":
        for note in found.notes:
            warnings.warn(note, QuantizationWarning, stacklevel=2)
    return found


def place(quantized: Quantized, **options: Any) -> Placement:
    """Cores for every layer of a quantised graph; options are the backend's, e.g. `avoid_cores`, `cores`.

    Raises:
        PlacementError: what fits where is said per layer.
        UnsupportedError: an option the backend does not have.
        ConfigurationError: an option of the wrong type.
    """
    backend = backend_of(quantized.target.backend)
    _refuse_unknown(options, backend.place, f"placement on {quantized.target.name}")
    try:
        return backend.place(quantized, **options)
    except NirdeployError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        if not options:
            raise  # nothing but the backend itself can be wrong
        _refuse_unaccepted(error, options, f"placement on {quantized.target.name}", backend.place)
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ConfigurationError(
            f"placement on {quantized.target.name} cannot use {given} ({error})", remedy=_said(backend.place)
        ) from error


def _refuse_unknown(options: Mapping[str, Any], function: Callable[..., Any], where: str) -> None:
    known = known_options(function)
    for name in options:
        if known is not None and name not in known:
            raise UnsupportedError(f"{where} has no option {name!r}", remedy=suggest(name, known))


def _refuse_unaccepted(error: Exception, options: Mapping[str, Any], where: str, function: Callable[..., Any]) -> None:
    """Turn Python's refusal of a keyword that the backend only passed on into ours."""
    for name in options:
        if f"unexpected keyword argument {name!r}" in str(error):
            raise UnsupportedError(f"{where} has no option {name!r}", remedy=_said(function)) from error


def _said(function: Callable[..., Any]) -> str:
    """What a backend says of its options, in the first line of its documentation."""
    return f"It says: {(function.__doc__ or 'nothing').strip().splitlines()[0]}"


def deploy(
    graph: nir.NIRGraph,
    target: str | Target,
    *,
    convention: Convention | None = None,
    calibration: Any = None,
    quantizer: str = "calibrated",
    **options: Any,
) -> Deployment:
    """check, quantize and place.

    Args:
        graph: the graph; never changed.
        target: a target's name.
        convention: None: the one the graph carries.
        calibration: raster [step, batch, ...] for the quantiser.
        quantizer: 'calibrated' or 'max'.
        **options: placement options of the backend.

    Raises:
        CheckError, QuantizationError, PlacementError: as the stages do.
    """
    chip = find_target(target)
    report = check(graph, chip, convention=convention)
    quantized = quantize(graph, chip, convention=convention, calibration=calibration, quantizer=quantizer)
    return Deployment(report, quantized, place(quantized, **options))


@dataclass(frozen=True)
class Deployment:
    """A graph quantised and placed for one chip, ready to run.

    Attributes:
        report: what the check found; warnings may remain.
        quantized: integers of every layer.
        placement: cores of every layer.
    """

    report: Report
    quantized: Quantized
    placement: Placement

    @property
    def graph(self) -> nir.NIRGraph:
        """The float graph."""
        return self.quantized.graph

    @property
    def target(self) -> Target:
        """The chip."""
        return self.quantized.target

    @property
    def convention(self) -> Convention:
        """What the float graph is run with."""
        return self.quantized.convention

    def run(
        self,
        raster: Any,
        on: str = "emulator",
        mode: str | None = None,
        record: Iterable[str] = ("spikes", "v_mem"),
        nodes: Iterable[str] | None = None,
        **options: Any,
    ) -> Trajectory:
        """Run a raster.

        Args:
            raster: counts, [step, batch, ...] or [step, ...].
            on: 'emulator', 'simulator' or 'chip'.
            mode: the emulator's mode, where the backend has several.
            record: variables to record.
            nodes: nodes to record; None: all.
            **options: the backend's own.

        Raises:
            RasterError: a raster of wrong shape, or counts that are negative, NaN or too large.
            UnavailableError: the vendor's SDK or device is not there.
            UnsupportedError: an option the backend does not have.
        """
        from nirdeploy.reference.executor import check_record

        backend = backend_of(self.target.backend)
        _refuse_unknown(options, backend.run, f"a run on {self.target.name}")
        for name, value in (("on", on), ("mode", mode)):
            if not isinstance(value, str | (type(None) if name == "mode" else str)):
                raise UnsupportedError(f"{name} is {value!r}, expected text")
        return backend.run(
            self.quantized,
            self.placement,
            raster,
            on=on,
            mode=mode,
            record=check_record(_names(record, "record", "Pass variables, e.g. ('spikes', 'v_mem').")),
            nodes=None if nodes is None else _names(nodes, "nodes", "Pass node names, or None for all."),
            **options,
        )

    def utilization(self) -> list[dict[str, Any]]:
        """Rows of core, node, resource, used, limit and share."""
        return [
            {
                "core": u.core,
                "node": u.node,
                "resource": u.resource,
                "used": u.used,
                "limit": u.limit,
                "share": u.share,
            }
            for u in self.placement.usage
        ]

    def save(self, folder: str | Path) -> None:
        """Write `deployment.h5` and, derived from it, `chip.json` into a folder, made if missing.

        Raises:
            FileError: the folder cannot be written.
        """
        chip = backend_of(self.target.backend).chip_configuration(self.quantized, self.placement)
        for name in self.quantized.layers:
            if reason := unstorable(name):
                raise GraphError(f"the name {reason}; a file cannot hold it", node=name, remedy="Rename the node.")
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise FileError(
                f"cannot make folder {str(target)!r}: {getattr(error, 'strerror', None) or error}"
            ) from error
        main, derived = target / "deployment.h5", target / "chip.json"
        with files.locked(target):
            with files.atomic(main) as temporary:
                with h5py.File(temporary, "w") as file:
                    _store(file, self)
                digest = files.sha256(temporary)
                # a stale one would be refused: from here on deployment.h5 alone loads, wherever this process ends
                _discard(derived)
            chip = {"deployment_sha256": digest, "target": self.target.name, **chip}
            files.write_text(derived, json.dumps(chip, indent=1))


def _discard(path: Path) -> None:
    if path.exists() and (reason := files.unreadable(path)):
        raise FileError(f"cannot replace {str(path)!r}: it {reason}")
    path.unlink(missing_ok=True)


def _names(given: Any, what: str, remedy: str) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    for name in names:
        if not isinstance(name, str):
            raise RasterError(f"{what} is {given!r}, expected names", remedy=remedy)
    return names


# ---------------------------------------------------------------- deployment.h5


def _store(file: h5py.File, deployment: Deployment) -> None:
    quantized = deployment.quantized
    attributes = file.attrs
    attributes["format"], attributes["version"] = FORMAT, FORMAT_VERSION
    attributes["producer"] = f"nirdeploy {__version__}"
    attributes["target"] = quantized.target.name
    attributes["quantizer"] = quantized.quantizer
    attributes["graph_sha256"] = graphs.sha256(quantized.graph)
    # datasets, not attributes: those stop at 64 KiB
    texts = {
        "convention": quantized.convention.to_json(),
        "report": deployment.report.to_json(),
        "placement": json.dumps(deployment.placement.to_dict()),
        "notes": json.dumps(list(quantized.notes)),
    }
    for name, text in texts.items():
        file.create_dataset(name, data=text, dtype=h5py.string_dtype())
    store_graph(file.create_group("graph"), quantized.graph)
    layers = file.create_group("layers")
    for name, layer in quantized.layers.items():
        group = layers.create_group(escape(name))
        group.attrs["type"] = type(layer).__name__
        for field, value in vars(layer).items():
            if isinstance(value, np.ndarray):
                group.create_dataset(field, data=value, compression="gzip" if value.size > 64 else None)
            elif value is not None:
                group.attrs[field] = value
    attributes["layers_sha256"] = _digest(quantized.layers, texts)


def _digest(layers: Mapping[str, QuantizedWeight | QuantizedNeuron], texts: Mapping[str, str]) -> str:
    """Hash of all integers and of what is said about them."""
    digest = hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode())
    for name in sorted(layers):
        digest.update(f"\n{name!r} {type(layers[name]).__name__}".encode())
        for field, value in sorted(vars(layers[name]).items()):
            if isinstance(value, np.ndarray):
                digest.update(f" {field} {value.shape} ".encode())
                digest.update(np.ascontiguousarray(value, dtype=np.int64).tobytes())
            else:
                digest.update(f" {field}={value!r}".encode())
    return digest.hexdigest()


def load_deployment(folder: str | Path) -> Deployment:
    """Read a deployment folder (or its `deployment.h5`).

    Raises:
        FileError: not a deployment, damaged, or `chip.json` is stale.
        TargetError: its target is not installed.
    """
    path = Path(folder)
    path = path / "deployment.h5" if path.is_dir() else path
    if reason := files.unreadable(path):
        raise FileError(f"{str(path)!r} {reason}, expected a deployment")
    with files.locked(path.parent, shared=True):
        with files.open_hdf5(path, "a deployment") as file:
            if file.attrs.get("format") != FORMAT:
                raise FileError(f"{str(path)!r} is HDF5 but not a deployment")
            if files.attribute(file, "version", int) > FORMAT_VERSION:
                raise FileError(
                    f"{str(path)!r} has a newer deployment format than this nirdeploy reads",
                    remedy="Update nirdeploy.",
                )
            deployment = _load(file, str(path))
        _refuse_stale(path)
    return deployment


def _refuse_stale(path: Path) -> None:
    chip = path.with_name("chip.json")
    if not chip.exists():
        return
    if reason := files.unreadable(chip):
        raise FileError(f"{str(chip)!r} {reason}, expected a chip configuration")
    try:
        if chip.stat().st_size > files.MAX_BYTES:
            raise ValueError(f"more than {files.MAX_BYTES} bytes")  # noqa: TRY301 (one message for all damage)
        stored = json.loads(chip.read_text(encoding="utf-8"))["deployment_sha256"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FileError(f"{str(chip)!r} is damaged: {error}", remedy="Save the deployment again.") from error
    if stored != files.sha256(path):
        raise FileError(f"{str(chip)!r} was derived from another {path.name}", remedy="Save the deployment again.")


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
        if _digest(layers, texts) != files.attribute(file, "layers_sha256", str):
            raise FileError("its integers do not have the hash they were saved with")
        quantized = Quantized(
            graph=graph,
            target=find_target(files.attribute(file, "target", str)),
            convention=Convention.from_dict(json.loads(texts["convention"])),
            quantizer=files.attribute(file, "quantizer", str),
            layers=layers,
            notes=tuple(str(note) for note in json.loads(texts["notes"])),
        )
        report = json.loads(texts["report"])
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
}


def _load_layer(group: h5py.Group) -> QuantizedWeight | QuantizedNeuron:
    values: dict[str, Any] = {}
    for name in group:
        found = files.numbers(group[name], "i")
        if found.size and not (found.min() >= _INT32[0] and found.max() <= _INT32[1]):
            raise FileError(f"{group.name}/{name} holds integers of more than 32 bits")
        values[name] = found.astype(np.int64)
    for name in group.attrs:
        if name in ("type", "reset"):
            values[name] = files.attribute(group, name, str)
        elif name == "scale":
            values[name] = files.attribute(group, name, float)
        elif name in _RANGES:
            number = files.attribute(group, name, int)
            if not _RANGES[name][0] <= number <= _RANGES[name][1]:
                raise FileError(f"{group.name} has {name} {number}, expected {_RANGES[name][0]} to {_RANGES[name][1]}")
            values[name] = bool(number) if name == "many" else number
        else:
            raise FileError(f"{group.name} has an unknown field {name!r}")
    kind = values.pop("type", "")
    if not (math.isfinite(values.get("scale", 1.0)) and values.get("scale", 1.0) > 0):
        raise FileError(f"{group.name} has scale {values['scale']}, expected a positive number")
    if kind == "QuantizedWeight":
        values.setdefault("bias", None)
        return QuantizedWeight(**values)
    if kind != "QuantizedNeuron" or values.get("reset", "zero") not in ("zero", "subtract"):
        raise FileError(f"layer {group.name} has unknown type {kind!r} or reset {values.get('reset')!r}")
    values.setdefault("v_min", None)
    return QuantizedNeuron(**values)


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
            if node is None or not graphs.is_neuron(node):
                raise FileError("integers of a population that the graph does not have", node=name)
            _check_bias(name, layer.bias, {shapes[name].output})
            continue
        own = np.asarray(node.weight).shape if node is not None and hasattr(node, "weight") else None
        shape = layer.weight.shape
        if shape != own and not (len(shape) == 2 and shape[0] in sizes and shape[1] in sizes):
            raise FileError(f"integers of shape {shape}, the graph has {own}", node=name)
        _check_bias(name, layer.bias, {shape[:1]})
    for name, node in graph.nodes.items():
        if graphs.is_neuron(node) and not isinstance(layers.get(name), QuantizedNeuron):
            raise FileError("a population without integers", node=name)


def _check_bias(name: str, bias: Any, allowed: set[tuple[int, ...]]) -> None:
    if bias is not None and bias.shape not in {*allowed, (math.prod(next(iter(allowed))),)}:
        raise FileError(f"a bias of shape {bias.shape}, expected {next(iter(allowed))}", node=name)
