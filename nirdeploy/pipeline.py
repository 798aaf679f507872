"""check -> quantize -> place -> Deployment: the stages in order, each with its own frozen type."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nir

from nirdeploy import graph as graphs
from nirdeploy.backend import backend_of, find_target, known_options, tells_progress
from nirdeploy.errors import (
    CheckError,
    ConfigurationError,
    NirdeployError,
    QuantizationWarning,
    RasterError,
    UnsupportedError,
)
from nirdeploy.names import suggest
from nirdeploy.once import once
from nirdeploy.outline import Outline
from nirdeploy.placement import Placement
from nirdeploy.quantization import QUANTIZERS, Quantized, own_integer, require_calibration
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention, require_convention
from nirdeploy.reference.graph_convention import resolve_convention
from nirdeploy.rules import Finding, Report
from nirdeploy.target import Target
from nirdeploy.trajectory import Record, Trajectory, check_record

__all__ = ["Deployment", "check", "deploy", "place", "quantize"]


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
    require_convention(convention)
    graphs.validate(graph)
    graph = graphs.dissolved(graph)
    found: list[Finding] = list(repaired(graph))
    used = _convention_or_finding(graph, convention, found)
    if used is not None:
        found.extend(unused_fields(graph, used))
        found.extend(backend_of(chip.backend).check(graph, chip, used))
    return _report(graph, chip, found)


def repaired(graph: nir.NIRGraph) -> Iterator[Finding]:
    """What `read(exported_by=)` changed in a file that a library's exporter wrote wrongly."""
    for node, text in graphs.metadata(graph).get("repairs", ()):
        yield Finding("repaired", str(node), str(text), "Look whether that is what was trained.", severity="warning")


def unused_fields(graph: nir.NIRGraph, convention: Convention) -> Iterator[Finding]:
    """Fields of the convention that name something the graph does not have, and would be passed over."""
    if any(isinstance(node, nir.NIRGraph) for node in graph.nodes.values()):
        return  # refused by type; names inside it are not looked up
    for key in sorted(set(convention.overrides) - set(graph.nodes)):
        kind = getattr(nir, key, None)
        if key != "CubaLI" and not (isinstance(kind, type) and issubclass(kind, nir.NIRNode)):
            yield Finding(
                "convention",
                "",
                f"overrides names {key!r}, which is neither a node of the graph nor a primitive type",
                suggest(key, graph.nodes),
                value=key,
            )
    if convention.feedback_edges and not graphs.feedback_edges(graph):
        listed = ", ".join(f"{a!r} -> {b!r}" for a, b in convention.feedback_edges)
        yield Finding(
            "convention",
            convention.feedback_edges[0][1],
            f"feedback_edges names {listed}, but the graph has no cycle: the chip delays no such edge",
            "Use feedback_edges=None.",
        )


def _report(graph: nir.NIRGraph, target: Target, found: list[Finding]) -> Report:
    named = [replace(f, torch_path=f.torch_path or graphs.torch_path(graph, f.node)) for f in found]
    errors = [f for f in named if f.severity == "error"]
    return Report(target.name, (*errors, *(f for f in named if f.severity != "error")))


def _convention_or_finding(graph: nir.NIRGraph, given: Convention | None, found: list[Finding]) -> Convention | None:
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
    weight_bits: int | None = None,
) -> Quantized:
    """Integers for every layer.

    Args:
        graph: the graph.
        target: a target's name.
        convention: None: the one the graph carries.
        calibration: raster [step, batch, ...] that 'calibrated' fits the integers to.
        quantizer: 'calibrated', or 'max' (scale by the largest weight; sinabs's rule on Speck), or, where the backend
            has it, 'exact': the integers that the graph's values already are, times one number a layer.
        weight_bits: bits of a weight, sign included, where fewer than the chip's are wanted; None: the chip's.

    Returns:
        Integers, scale, threshold and registers of every layer, by node.

    Raises:
        CheckError: the target cannot hold the graph; carries the report.
        UnsupportedError: weight_bits on a backend that does not take it.
        QuantizationError: no calibration data, or numbers that fit no register.
        RasterError: calibration data of the wrong shape.
    """
    chip = find_target(target)
    require_convention(convention)
    return _quantized(graph, chip, None, convention, calibration, quantizer, weight_bits)


def _quantized(
    graph: nir.NIRGraph,
    chip: Target,
    report: Report | None,
    convention: Convention | None,
    calibration: Any,
    quantizer: str,
    weight_bits: int | None,
) -> Quantized:
    """`quantize`, with the report of `check` where there is one already."""
    backend = backend_of(chip.backend)
    require_calibration(quantizer, calibration, getattr(backend, "quantizers", QUANTIZERS))
    options = {} if weight_bits is None else {"weight_bits": own_integer(weight_bits)}
    _refuse_unknown(options, backend.quantize, f"quantisation for {chip.name}")
    report = check(graph, chip, convention=convention) if report is None else report
    if not report.ok:
        raise CheckError(report)
    if calibration is not None:
        shape = graphs.shapes(graph)[graphs.input_names(graph)[0]].input
        calibration, _ = check_raster(calibration, shape, integer=True)
    used = resolve_convention(graph, convention)
    own = graphs.copy_graph(graphs.dissolved(graph))  # the caller may change the one given
    found = backend.quantize(own, chip, used, quantizer=quantizer, calibration=calibration, **options)
    if quantizer == "max":
        for note in found.notes:
            warnings.warn(note, QuantizationWarning, stacklevel=3)  # at who called quantize or deploy
    return found


def place(quantized: Quantized, **options: Any) -> Placement:
    """Cores for every layer of a quantised graph; options are the backend's, e.g. `avoid_cores`, `cores`.

    Args:
        quantized: integers of every layer.
        **options: of the backend; its page in the reference lists them.

    Returns:
        The cores of every layer.

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
    weight_bits: int | None = None,
    **options: Any,
) -> Deployment:
    """check, quantize and place.

    Args:
        graph: the graph; never changed.
        target: a target's name.
        convention: None: the one the graph carries.
        calibration: raster [step, batch, ...] for the quantiser.
        quantizer: 'calibrated', 'max' or 'exact'.
        weight_bits: bits of a weight, as `quantize` takes them.
        **options: placement options of the backend.

    Returns:
        A deployment that runs, compares and is saved.

    Raises:
        CheckError, QuantizationError, PlacementError: as the stages do.
    """
    chip = find_target(target)
    report = check(graph, chip, convention=convention)
    quantized = _quantized(graph, chip, report, convention, calibration, quantizer, weight_bits)
    return Deployment(report, quantized, place(quantized, **options))


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        cores = "; ".join(f"{node} on {_cores(found)}" for node, found in self.placement.cores.items())
        return f"Deployment({self.target.name}, {self.quantized.quantizer}: {cores or 'nothing placed'})"

    @property
    def graph(self) -> nir.NIRGraph:
        """The float graph."""
        return self.quantized.graph

    @property
    def outline(self) -> Outline:
        """Nodes, shapes and edges of the graph; made once, as that takes a quarter of a short run's time."""
        return once(self, "_outline", lambda: Outline.of(self.graph))

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
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Trajectory:
        """Run a raster.

        Args:
            raster: counts, [step, batch, ...] or [step, ...].
            on: 'emulator', 'simulator' or 'chip'.
            mode: the emulator's mode, where the backend has several.
            record: variables to record.
            nodes: nodes to record; None: all.
            progress: called now and then with the steps done and the steps of all samples, by backends that tell.
            **options: the backend's own.

        Raises:
            RasterError: a raster of wrong shape, or counts that are negative, NaN or too large.
            UnavailableError: the vendor's SDK or device is not there.
            UnsupportedError: an option the backend does not have.
        """
        backend = backend_of(self.target.backend)
        _refuse_unknown(options, backend.run, f"a run on {self.target.name}")
        if progress is not None and tells_progress(backend):
            options["progress"] = progress
        for name, value in (("on", on), ("mode", mode)):
            if not isinstance(value, str | (type(None) if name == "mode" else str)):
                raise UnsupportedError(f"{name} is {value!r}, expected text")
        found = backend.run(
            self.quantized,
            self.placement,
            raster,
            on=on,
            mode=mode,
            record=check_record(_names(record, "record", "Pass variables, e.g. ('spikes', 'v_mem').")),
            nodes=None if nodes is None else _names(nodes, "nodes", "Pass node names, or None for all."),
            **options,
        )
        return self.located(found, raster)

    def located(self, trajectory: Trajectory, raster: Any) -> Trajectory:
        """A run of it with graph and raster, and in every record of a population the cores of its neurons.

        Args:
            trajectory: what running the deployment left.
            raster: what it ran on.
        """

        def with_cores(record: Record) -> Record:
            if record.index_map is not None or record.neurons is not None or record.cores is not None:
                return record
            cores = self.placement.core_of(record.source, record.neuron_axes)
            return record if cores is None else replace(record, cores=cores)

        records = {key: with_cores(record) for key, record in trajectory.records.items()}
        outline = trajectory.outline or self.outline
        return replace(trajectory, records=records, graph=self.graph, outline=outline, raster=raster)

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

        Args:
            folder: where to.

        Raises:
            FileError: the folder cannot be written.
            GraphError: a node name that no file can hold.
            TargetError: a target that no installed backend has.
        """
        from nirdeploy.storage import save_deployment

        save_deployment(self, folder)


def _cores(cores: tuple[int, ...]) -> str:
    """As people say it; a population over many cores names the first and the last."""
    if len(cores) > 4:
        return f"{len(cores)} cores from {min(cores)} to {max(cores)}"
    return f"core{'s' * (len(cores) != 1)} {', '.join(map(str, cores))}"


def _names(given: Any, what: str, remedy: str) -> tuple[str, ...]:
    try:
        names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    except TypeError:  # arrays without an axis say that they can be gone through
        names = (given,)
    for name in names:
        if not isinstance(name, str):
            raise RasterError(f"{what} is {given!r}, expected names", remedy=remedy)
    return names
