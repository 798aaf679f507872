"""sweep: the same evaluation at every point of some axes, a refused point being a row like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir

from nirdeploy import graph as graphs
from nirdeploy.errors import ConfigurationError, FileError, UnsupportedError
from nirdeploy.evaluation.datasets import open_samples
from nirdeploy.evaluation.engine import require_whole
from nirdeploy.evaluation.points import Axes, axes_of
from nirdeploy.evaluation.sweep_runs import Run, Shared, Stage, Who, rows
from nirdeploy.evaluation.sweep_table import FORMAT, Sweep
from nirdeploy.evaluation.timesteps import at_dt, calibration_at
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.graph_convention import resolve_convention

__all__ = ["sweep"]

_EXECUTORS = ("emulator", "simulator", "chip")


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
    patience: float = 60.0,
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
        scheduler: dask's, as of `evaluate`; 'local' starts one for all points.
        patience: as of `evaluate`.
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
    for name, value in (("workers", workers), ("batch", batch), ("step_us", step_us)):
        require_whole(name, value)
    _check_arguments(axes, on, step_us, output, resume)

    used = resolve_convention(network, convention)
    points = axes.points(used.dt)
    shape = graphs.shapes(network)[graphs.input_names(network)[0]].input
    with open_samples(dataset) as samples:
        stages = {
            point.dt: Stage(
                replace(used, dt=point.dt),
                at_dt(samples, used.dt, point.dt),
                calibration_at(calibration, shape, used.dt, point.dt, step_us) if axes.chips else None,
            )
            for point in points
            if point.is_reference
        }
        folder = _folder(output, resume=resume)
        if folder is not None:
            _require_same(folder, graphs.sha256(network), samples.fingerprint)
        with _computing(workers, scheduler) as who:
            shared = Shared(**who, patience=patience, resume=resume, step_us=step_us, batch=batch)
            run = Run(network, folder, shared, {"on": on, "mode": mode, "options": options})
            done = tuple(rows(run, points, stages, progress))
        ran = on if axes.chips else "reference"
        found = Sweep(done, samples.count, graphs.sha256(network), samples.fingerprint, ran, folder)
    if folder is not None:
        found.save(folder)
    return found


@contextmanager
def _computing(workers: int | None, scheduler: str | None) -> Iterator[Who]:
    """Who computes every point; a cluster of this machine is started once."""
    if scheduler != "local":
        yield {"workers": workers, "scheduler": scheduler}
        return
    from nirdeploy.evaluation.daskwise import cluster_of_this_machine

    with cluster_of_this_machine(workers or os.cpu_count() or 1) as address:
        yield {"workers": None, "scheduler": address}


def _check_arguments(axes: Axes, on: str, step_us: int | None, output: Any, resume: bool) -> None:
    """Refuse what would be refused at every point."""
    if on not in _EXECUTORS:
        raise UnsupportedError(f"on={on!r} is unknown", remedy=f"Use one of {', '.join(_EXECUTORS)}.")
    if resume and output is None:
        raise ConfigurationError("resume needs output, the folder to go on with")
    if step_us is not None and any(dt is not None for dt in axes.dt):
        raise ConfigurationError("step_us and dt are both given", remedy="Leave step_us: dt is the length of a step.")


def _require_same(folder: Path, graph_sha256: str, data: str) -> None:
    """Refuse a folder whose table is of another sweep, although no file of a point may tell."""
    path = folder / "sweep.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none, or damaged: it is made anew from the points
        return
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileError(f"{str(path)!r} is no table of a sweep, and would be replaced", remedy="Use another output.")
    for name, mine, what in (("graph_sha256", graph_sha256, "network"), ("data", data, "data set")):
        if found.get(name) != mine:
            raise FileError(
                f"{str(path)!r} is of a sweep of another {what}, and would be replaced", remedy="Use another output."
            )


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
            f"{str(folder)!r} has files already",
            remedy="Pass resume=True (--resume) to go on with them, or another output.",
        )
    return folder
