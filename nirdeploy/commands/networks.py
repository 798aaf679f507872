"""Verbs that take a network: check, deploy, run."""

from __future__ import annotations

import warnings
from functools import partial
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
    TargetName,
    app,
    are_events,
    asked_convention,
    complain,
    counts_of,
    is_deployment,
    options_of,
    print_json,
    print_report,
    print_table,
    progress_bar,
    raster_of,
    refuse_convention,
    say,
    waiting,
)
from nirdeploy.errors import CheckError, ConfigurationError, QuantizationWarning, RasterError

if TYPE_CHECKING:
    from nirdeploy.pipeline import Deployment
    from nirdeploy.trajectory import Trajectory

__all__ = ["check", "deploy", "run"]


@app.command(epilog="Example: `nirdeploy check net.nir --target speck2f --preset sinabs`")
def check(
    graph: Annotated[Path, typer.Argument(help="A .nir file.")],
    target: TargetName,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    exported_by: ExportedBy = None,
    as_json: Json = False,
) -> None:
    """Say everything a chip cannot hold or computes differently. Exit code 1 if there are errors."""
    from nirdeploy import io, pipeline
    from nirdeploy.backend import find_target
    from nirdeploy.reference.graph_convention import stored_convention

    chip = find_target(target)
    network = io.read(graph, exported_by=exported_by)
    report = pipeline.check(network, chip, convention=asked_convention(preset, dt, fields, stored_convention(network)))
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: `nirdeploy deploy --config configs/digits_speck2f.toml`, or "
    "`nirdeploy deploy net.nir --target loihi2 --calibration data.npz --output build/`"
)
def deploy(
    graph: Annotated[Path | None, typer.Argument(help="A .nir file; or use --config.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="A name from `nirdeploy targets`.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the deployment.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A pipeline configuration.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Raster (.npz or .npy) for the quantizer.")] = None,
    quantizer: Annotated[str | None, typer.Option(help="calibrated (default), max or exact.")] = None,
    weight_bits: Annotated[int | None, typer.Option(help="Bits of a weight, where fewer than the chip's.")] = None,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    exported_by: ExportedBy = None,
    as_json: Json = False,
) -> None:
    """Check, quantise and place a graph for a chip; write the deployment. Options win over --config."""
    from nirdeploy import io, pipeline
    from nirdeploy.backend import find_target
    from nirdeploy.configuration import load_configuration
    from nirdeploy.reference.graph_convention import stored_convention

    given = load_configuration(config) if config else None
    source = graph or (given.graph if given else None)
    chip = target or (given.target if given else None)
    folder = output or (given.output if given else None)
    if source is None or chip is None or folder is None:
        missing = [n for n, v in (("GRAPH", source), ("--target", chip), ("--output", folder)) if v is None]
        raise ConfigurationError(f"{', '.join(missing)} missing", remedy="Give them, or --config FILE.")
    network = io.read(source, exported_by=exported_by)
    configured = given.convention.build() if given and given.convention else stored_convention(network)
    convention = asked_convention(preset, dt, fields, configured)
    chosen = quantizer or (given.quantization.quantizer if given else "calibrated")
    bits = weight_bits if weight_bits is not None else (given.quantization.weight_bits if given else None)
    data = calibration or (given.quantization.calibration if given else None)
    try:
        with waiting(as_json, "quantising and placing"), warnings.catch_warnings():
            warnings.simplefilter("ignore", QuantizationWarning)  # the notes below are the same
            deployment = pipeline.deploy(
                network,
                find_target(chip),
                convention=convention,
                calibration=raster_of(data),
                quantizer=chosen,
                weight_bits=bits,
                **(given.placement if given else {}),
            )
    except CheckError as error:
        if not as_json:
            raise
        print_json({"target": error.report.target, "output": None, "report": error.report.to_dict()})
        raise typer.Exit(complain(f"{error.report.target} cannot hold this graph", 1)) from None
    deployment.save(folder)
    _print_deployment(deployment, folder, as_json=as_json)


def _print_deployment(deployment: Deployment, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "target": deployment.target.name,
                "output": str(folder),
                "report": deployment.report.to_dict(),
                "cores": {node: list(cores) for node, cores in deployment.placement.cores.items()},
                "utilization": deployment.utilization(),
                "notes": list(deployment.quantized.notes),
            }
        )
        return
    if deployment.report.findings:
        print_report(deployment.report)
    columns = ("core", "node", "resource", "used", "limit", "share")
    rows = [(*(row[c] for c in columns[:-1]), f"{row['share']:.1%}") for row in deployment.utilization()]
    print_table(f"{deployment.target.name}: placement", columns, rows)
    for note in deployment.quantized.notes:
        say(note)
    say(f"written to {folder}")


@app.command(
    epilog="Examples: `nirdeploy run net.nir data.npz --output ref.h5` runs the reference, "
    "`nirdeploy run build/ data.npz --output chip.h5` the emulator, "
    "`nirdeploy run build/ sample.bin --mode event --option leak_clock_hz=0` a Speck's event by event"
)
def run(
    source: Annotated[Path, typer.Argument(help="A .nir file, or a deployment folder.")],
    raster: Annotated[
        Path, typer.Argument(help="Counts: .npz with 'raster', or .npy; or recorded events, with --step-us.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Trajectory file to write.")] = None,
    on: On = "emulator",
    record: Annotated[str, typer.Option(help="Variables, comma separated.")] = "spikes,v_mem",
    nodes: Annotated[str | None, typer.Option(help="Nodes to record, comma separated; default: all.")] = None,
    method: Annotated[str | None, typer.Option(help="dense (default), event or loop; for .nir files.")] = None,
    packed: Annotated[bool, typer.Option("--packed", help="Keep a bit a spike; for .nir files.")] = False,
    mode: Mode = None,
    options: Options = None,
    step_us: Annotated[int | None, typer.Option(help="Microseconds of a step, for files of events.")] = None,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    exported_by: ExportedBy = None,
    as_json: Json = False,
) -> None:
    """Run a raster on the reference or on a deployment; write the trajectory, print spike counts."""
    from nirdeploy import io, storage
    from nirdeploy.reference.graph_convention import stored_convention

    wanted = tuple(name.strip() for name in record.split(","))
    chosen = None if nodes is None else tuple(name.strip() for name in nodes.split(","))
    streamed = False
    if is_deployment(source):
        refuse_convention(preset, dt, fields, exported_by)
        if method is not None or packed:
            raise ConfigurationError("--method and --packed are the reference's", remedy="Leave them for deployments.")
        deployment = storage.load_deployment(source)
        given = options_of(options)
        labels: Any = None
        if mode == "event" and are_events(raster):  # in their own order
            from nirdeploy.event_files import load_events

            counts: Any = load_events(raster)
            given |= {} if step_us is None else {"step_us": step_us}
        else:
            counts, labels = counts_of(raster, step_us, deployment.convention)
        asked = partial(deployment.run, counts, on=on, mode=mode, record=wanted, nodes=chosen, **given)
        if on == "emulator":
            with progress_bar(as_json) as progress:
                trajectory = asked(progress=progress)
        else:
            with waiting(as_json, on):
                trajectory = asked()
    else:
        _refuse_for_a_graph(source, on, mode, options)
        from nirdeploy.reference.executor import run as run_reference

        network = io.read(source, exported_by=exported_by)
        convention = asked_convention(preset, dt, fields, stored_convention(network))
        counts, labels = counts_of(raster, step_us, convention)
        streamed = output is not None and labels is None  # labels are held against the run before a file is written
        with progress_bar(as_json) as progress:
            trajectory = run_reference(
                network,
                counts,
                convention=convention,
                record=wanted,
                nodes=chosen,
                method=method or "dense",
                packed=packed,
                output=output if streamed else None,
                progress=progress,
            )
    scored = None if labels is None else _accuracy(trajectory, labels, raster)
    if output is not None and not streamed:
        trajectory.save(output)
    _print_run(trajectory, scored, output, as_json=as_json)


def _refuse_for_a_graph(source: Path, on: str, mode: str | None, options: list[str] | None) -> None:
    """Refuse what only a deployment's run has."""
    if mode is not None or options:
        raise ConfigurationError("--mode and --option are those of deployments", remedy="Leave them for .nir files.")
    if on != "emulator":  # the default, which says nothing of a graph
        raise ConfigurationError(
            f"--on {on} with {str(source)!r}, which the reference runs",
            remedy="Run `nirdeploy deploy` first, and give its folder.",
        )


def _print_run(trajectory: Trajectory, scored: float | None, output: Path | None, *, as_json: bool) -> None:
    """Spikes of every population, the accuracy where there is one, and where the run is."""
    spikes = {
        n: sum(int(r.read(a, b).sum()) for a, b in r.blocks())
        for (n, variable), r in trajectory.records.items()
        if variable == "spikes"
    }
    found: dict[str, Any] = {"executor": trajectory.executor, "target": trajectory.target, "spikes": spikes}
    if scored is not None:
        found["accuracy"] = scored
    if as_json:
        print_json({**found, "counters": {k: dict(v) for k, v in trajectory.counters.items()}})
        return
    by = "" if trajectory.executor == trajectory.target else f" ({trajectory.executor})"
    title = f"{trajectory.target}{by}, {trajectory.n_steps} steps"
    print_table(title, ("node", "spikes"), spikes.items())
    if "accuracy" in found:
        say(f"accuracy {found['accuracy']:.4f}")
    if output is not None:
        say(f"written to {output}")


def _accuracy(trajectory: Trajectory, labels: Any, raster: Path) -> float | None:
    """Share of samples whose most active output is the label; None where there is not one Output of classes."""
    from nirdeploy.comparison.metrics import accuracy

    if len(trajectory.output_names) != 1:
        return None
    record = trajectory.records[trajectory.output_names[0], "output"]
    if not record.batched:
        raise RasterError(f"{str(raster)!r} has {len(labels)} labels, and a raster without a batch axis")
    if len(labels) != record.data.shape[1]:
        raise RasterError(f"{str(raster)!r} has {len(labels)} labels for {record.data.shape[1]} samples")
    return accuracy(trajectory.outputs, labels) if len(record.neuron_axes) == 1 else None
