"""Verbs that take a data set: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nirdeploy.commands.shared import (
    ExportedBy,
    Fields,
    Json,
    Mode,
    On,
    Options,
    Preset,
    Step,
    app,
    asked_convention,
    is_deployment,
    missed,
    options_of,
    print_results,
    progress_bar,
    refuse_convention,
    say_missed,
)
from nirdeploy.commands.sweeps import Sweeps, axes_of, finish_sweep, refuse_single, run_sweep
from nirdeploy.errors import ConfigurationError

if TYPE_CHECKING:
    from nirdeploy.evaluation.result import Evaluation

__all__ = ["evaluate"]


@app.command(
    epilog="Examples: `nirdeploy evaluate net.nir test.npz --output ref.h5` runs the reference, "
    "`nirdeploy evaluate build/ test.npz --mode event --workers 2 --output chip.h5 --against ref.h5` the emulator, "
    "`nirdeploy evaluate build/ N-MNIST/Test --mode event --output chip.h5 --resume` recorded events, "
    "`nirdeploy evaluate net.nir test.npz --sweep target=speck2f,loihi2 --sweep bits=own,8,4 --calibration cal.npz "
    "--output sweep/` a table and a plot of six points"
)
def evaluate(
    source: Annotated[Path, typer.Argument(help="A .nir file, or a deployment folder.")],
    dataset: Annotated[
        Path,
        typer.Argument(help="`.npz` or HDF5 with 'raster' (and 'labels'), or a folder of recordings, by class."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results, a row a sample (HDF5); of a sweep a folder.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the output ends.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: this one.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask's, e.g. tcp://host:8786; 'local' starts one with --workers.")
    ] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait while a scheduler has no workers.")] = 60.0,
    on: On = "emulator",
    mode: Mode = None,
    options: Options = None,
    method: Annotated[str, typer.Option(help="dense, event or loop; for .nir files.")] = "dense",
    step_us: Annotated[int | None, typer.Option(min=1, help="Microseconds of a step, for recorded events.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples run together, and written together.")] = None,
    against: Annotated[Path | None, typer.Option(help="Results to hold these against, e.g. the reference's.")] = None,
    sweeps: Sweeps = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Of a sweep's quantizers: a raster, or a file or folder of recorded events.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least accuracy, of a sweep at every point; below it: exit 1.")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least share of predictions shared with --against, of a sweep with its dt's."),
    ] = None,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    exported_by: ExportedBy = None,
    as_json: Json = False,
) -> None:
    """Run a data set: accuracy, confusion, spikes. A run that was cut off goes on with --resume.

    With --sweep a graph is run at every point of targets, quantizers, bits and dt, held against the reference. A
    target that refuses is a row of the table. Exit code 1 where all refuse, or where a limit is given and a chip's
    point misses it or is refused.
    """
    from nirdeploy.evaluation.engine import evaluate as run_all

    shared: dict[str, Any] = {
        "workers": workers,
        "scheduler": scheduler,
        "patience": patience,
        "output": output,
        "resume": resume,
        "on": on,
        "mode": mode,
        "options": options_of(options),
        "step_us": step_us,
        "batch": batch,
    }
    if sweeps:
        refuse_single(source, method, against)
        axes = axes_of(sweeps)
        network, convention = _network(source, preset, dt, fields, exported_by)
        table = run_sweep(network, dataset, axes, calibration, hidden=as_json, convention=convention, **shared)
        finish_sweep(table, output, min_accuracy, min_agreement, as_json=as_json)
        return
    if calibration is not None:
        raise ConfigurationError("--calibration is a sweep's", remedy="Add --sweep target=..., or leave it out.")
    if min_agreement is not None and against is None:
        raise ConfigurationError("--min-agreement needs --against")
    network, convention = _network(source, preset, dt, fields, exported_by)
    with progress_bar(as_json, "samples") as progress:
        found = run_all(
            network,
            dataset,
            convention=convention,
            method=method,
            against=against,
            progress=progress,
            **shared,
        )
    print_results(found, output, as_json=as_json)
    if failures := _failures(found, min_accuracy, min_agreement):
        say_missed(failures, as_json=as_json)
        raise typer.Exit(1)


def _network(
    source: Path, preset: str | None, dt: float | None, fields: list[str] | None, exported_by: str | None
) -> tuple[Any, Any]:
    """A deployment, or a graph and its convention."""
    from nirdeploy import io, storage
    from nirdeploy.reference.graph_convention import stored_convention

    if is_deployment(source):
        refuse_convention(preset, dt, fields, exported_by)
        return storage.load_deployment(source), None
    network = io.read(source, exported_by=exported_by)
    return network, asked_convention(preset, dt, fields, stored_convention(network))


def _failures(found: Evaluation, min_accuracy: float | None, min_agreement: float | None) -> list[str]:
    limits = (("accuracy", found.accuracy, min_accuracy), ("agreement", found.agreement, min_agreement))
    return [text for limit in limits if (text := missed(*limit))]
