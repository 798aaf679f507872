"""check -> quantize -> place -> Deployment: the stages in order, each with its own frozen type."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from nirdeploy import files
from nirdeploy import graph as graphs
from nirdeploy.backend import backend_of, find_target
from nirdeploy.errors import CheckError, FileError, NirdeployError, QuantizationWarning
from nirdeploy.io import load_graph, store_graph
from nirdeploy.names import escape, unescape
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
    """
    chip = find_target(target)
    graphs.validate(graph)
    found: list[Finding] = []
    used = _convention_or_finding(graph, convention, found)
    if used is not None:
        found.extend(backend_of(chip.backend).check(graph, chip, used))
    return _report(graph, chip, found)


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
    require_calibration(quantizer, calibration)
    report = check(graph, chip, convention=convention)
    if not report.ok:
        raise CheckError(report)
    if calibration is not None:
        shape = graphs.shapes(graph)[graphs.input_names(graph)[0]].input
        calibration, _ = check_raster(calibration, shape, integer=True)
    used = resolve_convention(graph, convention)
    found = backend_of(chip.backend).quantize(graph, chip, used, quantizer=quantizer, calibration=calibration)
    if quantizer == "max":
        for note in found.notes:
            warnings.warn(note, QuantizationWarning, stacklevel=2)
    return found


def place(quantized: Quantized, **options: Any) -> Placement:
    """Cores for every layer of a quantised graph; options are the backend's, e.g. `avoid_cores`, `cores`.

    Raises:
        PlacementError: what fits where is said per layer.
    """
    return backend_of(quantized.target.backend).place(quantized, **options)


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
        """
        from nirdeploy.reference.executor import check_record

        return backend_of(self.target.backend).run(
            self.quantized,
            self.placement,
            raster,
            on=on,
            mode=mode,
            record=check_record(record),
            nodes=None if nodes is None else ((nodes,) if isinstance(nodes, str) else tuple(nodes)),
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
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make folder {str(target)!r}: {error.strerror or error}") from error
        main = target / "deployment.h5"
        with files.atomic(main) as temporary, h5py.File(temporary, "w") as file:
            _store(file, self)
        chip = backend_of(self.target.backend).chip_configuration(self.quantized, self.placement)
        chip = {"deployment_sha256": files.sha256(main), "target": self.target.name, **chip}
        files.write_text(target / "chip.json", json.dumps(chip, indent=1))


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


def load_deployment(folder: str | Path) -> Deployment:
    """Read a deployment folder (or its `deployment.h5`).

    Raises:
        FileError: not a deployment, damaged, or `chip.json` is stale.
        TargetError: its target is not installed.
    """
    path = Path(folder)
    path = path / "deployment.h5" if path.is_dir() else path
    with files.open_hdf5(path, "a deployment") as file:
        if file.attrs.get("format") != FORMAT:
            raise FileError(f"{str(path)!r} is HDF5 but not a deployment")
        if int(file.attrs.get("version", 0)) > FORMAT_VERSION:
            raise FileError(
                f"{str(path)!r} has a newer deployment format than this nirdeploy reads",
                remedy="Update nirdeploy.",
            )
        try:
            deployment = _load(file)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise FileError(f"{str(path)!r} is a damaged deployment: {error}") from error
    _refuse_stale(path)
    return deployment


def _refuse_stale(path: Path) -> None:
    chip = path.with_name("chip.json")
    if not chip.exists():
        return
    try:
        stored = json.loads(chip.read_text(encoding="utf-8"))["deployment_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{str(chip)!r} is damaged: {error}", remedy="Save the deployment again.") from error
    if stored != files.sha256(path):
        raise FileError(f"{str(chip)!r} was derived from another {path.name}", remedy="Save the deployment again.")


def _load(file: h5py.File) -> Deployment:
    text = {name: files.text_of(file[name][()]) for name in ("convention", "report", "placement", "notes")}
    graph = load_graph(file["graph"])
    if graphs.sha256(graph) != file.attrs["graph_sha256"]:
        raise FileError("its graph does not have the hash it was saved with")
    report = json.loads(text["report"])
    quantized = Quantized(
        graph=graph,
        target=find_target(str(file.attrs["target"])),
        convention=Convention.from_dict(json.loads(text["convention"])),
        quantizer=str(file.attrs["quantizer"]),
        layers={unescape(name): _load_layer(group) for name, group in file["layers"].items()},
        notes=tuple(json.loads(text["notes"])),
    )
    findings = tuple(Finding(**finding) for finding in report["findings"])
    return Deployment(Report(report["target"], findings), quantized, Placement.from_dict(json.loads(text["placement"])))


def _load_layer(group: h5py.Group) -> QuantizedWeight | QuantizedNeuron:
    values: dict[str, Any] = {name: item[()] for name, item in group.items()}
    for name, value in group.attrs.items():
        values[name] = value.item() if isinstance(value, np.generic) else value
    kind = values.pop("type")
    if kind == "QuantizedWeight":
        values.setdefault("bias", None)
        return QuantizedWeight(**values)
    if kind != "QuantizedNeuron":
        raise FileError(f"layer {group.name} has unknown type {kind!r}")
    values.setdefault("v_min", None)
    return QuantizedNeuron(**values)
