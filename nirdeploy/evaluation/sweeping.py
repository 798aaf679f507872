"""sweep: the same evaluation at every point of some axes, a refused point being a row like any other."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import nir

from nirdeploy import graph as graphs
from nirdeploy.errors import (
    CheckError,
    ConfigurationError,
    FileError,
    NirdeployError,
    PlacementError,
    QuantizationError,
    QuantizationWarning,
    RasterError,
    UnavailableError,
    UnsupportedError,
)
from nirdeploy.evaluation.datasets import Sample, Samples, open_samples
from nirdeploy.evaluation.engine import evaluate
from nirdeploy.evaluation.job import Job, Runner
from nirdeploy.evaluation.points import Axes, Point, axes_of
from nirdeploy.evaluation.result import Evaluation
from nirdeploy.evaluation.sweep_table import Sweep, SweepRow
from nirdeploy.evaluation.timesteps import at_dt, calibration_at
from nirdeploy.pipeline import Deployment, deploy
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.version import __version__

__all__ = ["sweep"]

_EXECUTORS = ("emulator", "simulator", "chip")
_PRICED = 16  # samples that the energy is estimated of
_REFUSALS = (CheckError, QuantizationError, PlacementError, UnsupportedError, UnavailableError, RasterError)


def sweep(
    network: nir.NIRGraph,
    dataset: Any,
    *,
    targets: Any,
    quantizers: Any = ("calibrated",),
    bits: Any = (None,),
    dt: Any = (None,),
    calibration: Any = None,
    convention: Convention | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    mode: str | None = None,
    on: str = "emulator",
    options: Mapping[str, Any] | None = None,
    step_us: int | None = None,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Evaluate a network at every point of targets x quantizers x bits x dt, and lay the results side by side.

    Args:
        network: a NIRGraph.
        dataset: as of `evaluate`.
        targets: names of chips; 'reference' may be among them.
        quantizers: 'calibrated', 'max', 'exact'.
        bits: of a weight, as of `deploy`; None: the chip's own.
        dt: seconds of a step; None: the convention's own.
        calibration: the quantisers' data: a raster [step, batch, ...] of the convention's own dt, Events, or a
            sequence of Events.
        convention: None: the one the network carries; its dt is that of a raster's steps.
        output: a folder, made if missing: the results of every point, `<point>.h5`, each as `evaluate` writes it;
            `sweep.json`, `sweep.csv`, `sweep.png` and `sweep.svg` once all are there.
        resume: go on in `output`: what is finished there is not computed again. More values may be on the axes than
            before.
        workers: processes, as of `evaluate`.
        scheduler: dask's, as of `evaluate`.
        mode: of the chips' runs, e.g. 'event' on Speck.
        on: 'emulator', 'simulator' or 'chip'.
        options: of the chips' runs.
        step_us: microseconds of a step for recorded events; not together with dt.
        batch: samples run together, as of `evaluate`.
        progress: called with the samples done and all samples, of all points together.

    Returns:
        A row a point: for every dt first the float reference, which the chips of this dt are held against, then all
        of targets x quantizers x bits. A reference has no quantiser and no bits, so it is one row a dt, whether
        'reference' is a target or not.

    Recorded events are counted into steps of each dt, which must be whole microseconds. A raster has steps of the
    convention's own dt; another dt must be a whole multiple of it: so many steps are added up to one. A finer dt, and
    samples whose number of steps the multiple does not divide, are refused, and so is calibration data.

    A target that does not take the network, the quantiser, the bits, the mode or an option, or what a coarser dt makes
    of the data, is a row with its reasons, as is a simulator or chip that is not there. What the reference cannot run
    either ends the sweep; so do vendors' software and workers that fail: the points finished stay in `output`.

    Raises:
        ConfigurationError: an axis without values or with one twice; step_us beside dt; a resume without output.
        TargetError: an unknown target.
        QuantizationError: 'calibrated' without calibration data, or a quantiser no target has.
        FileError: an `output` that is there without `resume`, or of another network, convention or data set.
        RasterError: no samples; data that cannot have a dt asked for.
        UnsupportedError: no NIRGraph; an unknown `on`.
        VendorError: as `evaluate`.
    """
    if not isinstance(network, nir.NIRGraph):
        raise UnsupportedError(f"a sweep of a {type(network).__name__}", remedy="Give a NIRGraph, as to deploy.")
    axes = axes_of(targets, quantizers, bits, dt, calibration)
    _check_arguments(axes, on, step_us, output, resume)
    from nirdeploy.reference.executor import resolve_convention

    used = resolve_convention(network, convention)
    points = axes.points(used.dt)
    shape = graphs.shapes(network)[graphs.input_names(network)[0]].input
    with open_samples(dataset) as samples:
        stages = {
            point.dt: _Stage(
                replace(used, dt=point.dt),
                at_dt(samples, used.dt, point.dt),
                calibration_at(calibration, shape, used.dt, point.dt, step_us) if axes.chips else None,
            )
            for point in points
            if point.is_reference
        }
        folder = _folder(output, resume=resume)
        shared = _Shared(workers=workers, scheduler=scheduler, resume=resume, step_us=step_us, batch=batch)
        run = _Run(network, folder, shared, {"on": on, "mode": mode, "options": options})
        rows = tuple(_rows(run, points, stages, progress))
        ran = on if axes.chips else "reference"
        found = Sweep(rows, samples.count, graphs.sha256(network), samples.fingerprint, ran, folder)
    if folder is not None:
        found.save(folder)
    return found


def _check_arguments(axes: Axes, on: str, step_us: int | None, output: Any, resume: bool) -> None:
    """Refuse what would be refused at every point."""
    if on not in _EXECUTORS:
        raise UnsupportedError(f"on={on!r} is unknown", remedy=f"Use one of {', '.join(_EXECUTORS)}.")
    if resume and output is None:
        raise ConfigurationError("resume needs output, the folder to go on with")
    if step_us is not None and any(dt is not None for dt in axes.dt):
        raise ConfigurationError("step_us and dt are both given", remedy="Leave step_us: dt is the length of a step.")


def _folder(output: str | Path | None, *, resume: bool) -> Path | None:
    if output is None:
        return None
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise FileError(f"cannot write into {str(folder)!r}: {error.strerror or error}") from error
    if taken and not resume:
        raise FileError(
            f"{str(folder)!r} has files already", remedy="Pass resume=True to go on with them, or another output."
        )
    return folder


# ---------------------------------------------------------------- points


class _Shared(TypedDict):
    """Arguments of every `evaluate`."""

    workers: int | None
    scheduler: str | None
    resume: bool
    step_us: int | None
    batch: int | None


@dataclass(frozen=True)
class _Run:
    """What all points share."""

    network: nir.NIRGraph
    folder: Path | None
    shared: _Shared
    chip: dict[str, Any]  # of a deployment's evaluation: on, mode, options

    def file(self, point: Point) -> Path | None:
        return None if self.folder is None else self.folder / f"{point.name}.h5"


@dataclass
class _Stage:
    """What all points of one dt share."""

    convention: Convention
    given: Samples
    calibration: Any
    problem: Exception | None = None  # of reading a sample
    samples: Samples = field(init=False)

    def __post_init__(self) -> None:
        self.samples = replace(self.given, read=self._read)

    def _read(self, first: int, last: int) -> list[Sample]:
        """Remember what goes wrong here: it is no refusal of a target."""
        try:
            return self.given.read(first, last)
        except Exception as error:
            self.problem = error
            raise


def _rows(
    run: _Run,
    points: tuple[Point, ...],
    stages: Mapping[float | None, _Stage],
    progress: Callable[[int, int], None] | None,
) -> Iterator[SweepRow]:
    reference: Evaluation | None = None
    for number, point in enumerate(points):
        stage, started = stages[point.dt], time.perf_counter()
        n, every = stage.samples.count, len(points) * stage.samples.count

        def told(done: int, _: int, before: int = number * n, every: int = every) -> None:
            if progress is not None:
                progress(before + done, every)

        if point.is_reference:
            reference = _reference(run, stage, point, told)
            row = _measured(point, reference, reference)
        else:
            assert reference is not None  # noqa: S101 - the first of its dt
            row = _chip(run, stage, point, reference, told)
        told(n, n)
        yield replace(row, seconds=time.perf_counter() - started)


def _reference(run: _Run, stage: _Stage, point: Point, told: Callable[[int, int], None]) -> Evaluation:
    return evaluate(
        run.network, stage.samples, convention=stage.convention, output=run.file(point), progress=told, **run.shared
    )


def _chip(run: _Run, stage: _Stage, point: Point, reference: Evaluation, told: Callable[[int, int], None]) -> SweepRow:
    """The row of a chip's point, whatever becomes of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QuantizationWarning)  # the row's notes have them
            deployment = deploy(
                run.network,
                point.target,
                convention=stage.convention,
                calibration=stage.calibration,
                quantizer=point.quantizer,
                weight_bits=point.bits,
            )
        found = evaluate(
            deployment,
            stage.samples,
            output=run.file(point),
            against=reference,
            progress=told,
            **run.chip,
            **run.shared,
        )
    except _REFUSALS as error:
        if error is stage.problem:
            raise
        reasons = tuple(_reasons(error, point))
        return SweepRow(**vars(point), n=reference.n, reference_spikes=_spikes(reference), refusals=reasons)
    used = {core for cores in deployment.placement.cores.values() for core in cores}
    return replace(
        _measured(point, found, reference),
        agreement=found.agreement,
        cores=len(used),
        of_cores=deployment.target.core_count,
        joules=_joules(deployment, stage.samples, run),
        notes=deployment.quantized.notes,
    )


def _measured(point: Point, found: Evaluation, reference: Evaluation) -> SweepRow:
    return SweepRow(
        **vars(point),
        n=found.n,
        accuracy=found.accuracy,
        spikes=_spikes(found),
        reference_spikes=_spikes(reference),
        file=found.file,
        evaluation=found if found.file is None else None,
    )


def _spikes(found: Evaluation) -> float:
    """Spikes a sample, of all populations."""
    return sum(int(spikes.sum()) for spikes in found.spikes.values()) / found.n


def _reasons(error: NirdeployError, point: Point) -> Iterator[Finding]:
    if isinstance(error, CheckError):
        yield from error.report.errors
        return
    text, remedy = str(error), error.remedy or ""
    if error.node is not None:
        text = text.removeprefix(f"node {error.node!r}: ")
    if remedy:
        text = text.removesuffix(f". {remedy}")
    if re.match(r"sample \d+: ", text):
        remedy = ""  # how to go on: it would end here again
    remedy = remedy or f"Leave {point.target} out, or give it what it takes."
    yield Finding(_code(error), error.node or "", text, remedy)


def _code(error: NirdeployError) -> str:
    return type(error).__name__.removesuffix("Error").lower()


def _joules(deployment: Deployment, samples: Samples, run: _Run) -> float | None:
    """Estimated energy a sample; None without published figures, or where not the emulator runs."""
    if run.chip["on"] != "emulator" or not deployment.target.energy.operations:
        return None
    from nirdeploy.energy import estimate

    options = dict(run.chip["options"] or {})
    settings = {"version": __version__, "kind": "deployment", "method": "dense", "step_us": run.shared["step_us"]}
    runner = Runner(Job(b"", {**settings, **run.chip, "options": options}), deployment)
    n = samples.count
    chosen = sorted({n * k // _PRICED for k in range(_PRICED)})
    found = []
    for k in chosen:
        (sample, _) = samples.read(k, k + 1)[0]
        joules = estimate(runner.trajectory(sample)).joules
        if joules is None:
            return None
        found.append(joules)
    return math.fsum(found) / len(found)
