"""The points of a sweep one after the other: each a row, whether it has run or its target refuses."""

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

from nirdeploy.errors import (
    CheckError,
    NirdeployError,
    PlacementError,
    QuantizationError,
    QuantizationWarning,
    RasterError,
    UnavailableError,
    UnsupportedError,
)
from nirdeploy.evaluation.datasets import Sample, Samples
from nirdeploy.evaluation.engine import evaluate
from nirdeploy.evaluation.job import Job, Runner, settings_of
from nirdeploy.evaluation.points import Point
from nirdeploy.evaluation.result import Evaluation
from nirdeploy.evaluation.sweep_table import SweepRow
from nirdeploy.pipeline import Deployment, deploy
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding

__all__ = ["Run", "Shared", "Stage", "Who", "rows"]

_PRICED = 16  # samples that the energy is estimated of
_REFUSALS = (CheckError, QuantizationError, PlacementError, UnsupportedError, UnavailableError, RasterError)


class Who(TypedDict):
    """Who computes."""

    workers: int | None
    scheduler: str | None


class Shared(Who):
    """Arguments of every `evaluate`."""

    patience: float
    resume: bool
    step_us: int | None
    batch: int | None


@dataclass(frozen=True)
class Run:
    """What all points share.

    Attributes:
        network: the float graph.
        folder: of the results; None: in memory alone.
        shared: arguments of every evaluation.
        chip: those of a deployment's: on, mode, options.
    """

    network: nir.NIRGraph
    folder: Path | None
    shared: Shared
    chip: dict[str, Any]

    def file(self, point: Point) -> Path | None:
        """Where a point's results are."""
        return None if self.folder is None else self.folder / f"{point.name}.h5"


@dataclass
class Stage:
    """What all points of one dt share.

    Attributes:
        convention: with this dt.
        given: the data set at this dt.
        calibration: [step, batch, ...] likewise; None: none.
        problem: what reading a sample has raised.
        samples: `given`, which remembers that.
    """

    convention: Convention
    given: Samples
    calibration: Any
    problem: Exception | None = None
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


def rows(
    run: Run,
    points: tuple[Point, ...],
    stages: Mapping[float | None, Stage],
    progress: Callable[[int, int], None] | None,
) -> Iterator[SweepRow]:
    """Run the points in their order, the reference of a dt before its chips; a row as soon as its point is done.

    Raises:
        NirdeployError: whatever is no refusal of a target; see `sweep`.
    """
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


def _reference(run: Run, stage: Stage, point: Point, told: Callable[[int, int], None]) -> Evaluation:
    return evaluate(
        run.network, stage.samples, convention=stage.convention, output=run.file(point), progress=told, **run.shared
    )


def _chip(run: Run, stage: Stage, point: Point, reference: Evaluation, told: Callable[[int, int], None]) -> SweepRow:
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


def _joules(deployment: Deployment, samples: Samples, run: Run) -> float | None:
    """Estimated energy a sample; None without published figures, or where not the emulator runs."""
    if run.chip["on"] != "emulator" or not deployment.target.energy.operations:
        return None
    from nirdeploy.energy import estimate

    settings = settings_of("deployment", **run.chip, step_us=run.shared["step_us"])
    runner = Runner(Job(settings, bytes, ""), deployment)
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
