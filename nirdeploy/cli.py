"""The command line: the same verbs as the library.

Exit codes: 0 fine, 1 findings or a mismatch, 2 wrong usage or something that is not there.
"""

from __future__ import annotations

import sys

try:
    import atexit
    import contextlib
    import json
    import os
    import signal
    from pathlib import Path
    from typing import TYPE_CHECKING, Annotated, Any

    import typer

    from nirdeploy.errors import CheckError, ConfigurationError, NirdeployError, PlacementError, RasterError
    from nirdeploy.version import __version__
except KeyboardInterrupt:  # Ctrl-C while the imports run
    if sys.stderr is not None:
        sys.stderr.write("nirdeploy: interrupted\n")
    raise SystemExit(130) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nirdeploy.demonstration import Demo
    from nirdeploy.pipeline import Deployment
    from nirdeploy.reference.convention import Convention
    from nirdeploy.rules import Report
    from nirdeploy.trajectory import Trajectory

__all__ = ["app", "main"]

app = typer.Typer(
    name="nirdeploy",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a trained spiking network to a neuromorphic chip, and compare the states.",
)

env_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(env_app, name="env", help="Interpreters of their own for the vendors' software.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]
TargetName = Annotated[str, typer.Option("--target", "-t", help="A name from `nirdeploy targets`.")]
Preset = Annotated[str | None, typer.Option(help="Convention preset, e.g. nir, norse, snntorch, sinabs, lava.")]
Step = Annotated[float | None, typer.Option("--dt", help="Step in seconds.")]
Fields = Annotated[
    list[str] | None, typer.Option("--set", help="A convention field, e.g. --set reset=zero; repeatable.")
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Options that stand before a verb."""
    if version:
        _say(__version__)
        raise typer.Exit


# ---------------------------------------------------------------- printing


def _say(text: str) -> None:
    typer.echo(text)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))


def _print(*items: Any) -> None:
    from rich.console import Console

    # a pipe has no width of its own: 80 columns would fold paths and names apart
    console = Console(width=None if sys.stdout.isatty() else 120)
    for item in items:
        console.print(item)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A title line and a table; cells are Text, so that a node name with brackets is no markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    _print(Text(title), table)


# ---------------------------------------------------------------- arguments


def _convention(
    preset: str | None, dt: float | None, fields: list[str] | None, base: Convention | None = None
) -> Convention | None:
    """What --preset, --dt and --set ask for; without a preset they change `base`, and `nir` where there is none."""
    if preset is None and dt is None and not fields:
        return base
    from nirdeploy.configuration import refuse_separate
    from nirdeploy.reference.convention import Convention
    from nirdeploy.reference.presets import convention

    values = _assigned(fields, "--set", "reset=zero")
    refuse_separate(values, "fields of --set", "Use --preset and --dt.")
    if preset is None and base is not None:
        return Convention.from_dict({**base.to_dict(), **values, "dt": base.dt if dt is None else dt})
    return convention(preset or "nir", dt=dt, **values)


def _assigned(items: list[str] | None, flag: str, example: str) -> dict[str, Any]:
    """NAME=VALUE options; values are JSON where they are any, and text otherwise."""
    values: dict[str, Any] = {}
    for item in items or []:
        name, separator, text = item.partition("=")
        if not separator:
            raise ConfigurationError(f"{flag} {item!r} has no '='", remedy=f"Write {flag} {example}.")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def _counts(path: Path, step_us: int | None, used: Convention | None) -> tuple[Any, Any]:
    """A raster and its labels; events are counted into steps of the convention's dt, and into no others."""
    from nirdeploy.events import whole_microseconds
    from nirdeploy.raster import load_raster

    dt = None if used is None else used.dt
    if step_us is not None and dt is not None and whole_microseconds(dt) != step_us:
        raise ConfigurationError(
            f"--step-us {step_us} with a convention whose dt is {dt} s", remedy="Give one of them, or --dt to match."
        )
    if step_us is None and dt is not None and _are_events(path):
        step_us = whole_microseconds(dt)
    return load_raster(path, step_us=step_us)


def _are_events(path: Path) -> bool:
    from nirdeploy.event_files import is_event_file

    return path.is_file() and is_event_file(path)


def _raster(path: Path | None) -> Any:
    from nirdeploy.raster import load_raster

    return None if path is None else load_raster(path)[0]


def _print_report(report: Report) -> None:
    if not report.findings:
        _say(f"{report.target}: no findings")
        return
    rows = []
    for found in report.findings:
        node = found.node if found.torch_path in (None, found.node) else f"{found.node} ({found.torch_path})"
        rows.append((found.severity, node or "graph", found.code, found.problem, found.remedy))
    title = f"{report.target}: {len(report.errors)} errors, {len(report.warnings)} warnings"
    _print_table(title, ("severity", "node", "code", "problem", "remedy"), rows)


# ---------------------------------------------------------------- verbs


@app.command(epilog="Example: `nirdeploy demo --output out/demo`")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it writes.")] = Path("out/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 16,
    as_json: Json = False,
) -> None:
    """Train on handwritten digits, put the network on two chips, compare the states."""
    from nirdeploy.demonstration import demo as run_demo

    result = run_demo(output, epochs=epochs, show_progress=not as_json)
    if as_json:
        _print_json(result.summary)
    else:
        _print_demo(result)
        _say(f"{result.summary['seconds']:.0f} s; read {output / 'report.html'}")


def _print_demo(result: Demo) -> None:
    found = result.summary["targets"]
    nodes = list(dict.fromkeys(n for target in found.values() for n in target["spike_agreement"]))
    title = (
        f"{result.summary['test_images']} held-out images, reference accuracy {result.reference_accuracy:.3f}\n"
        f"{', '.join(nodes)}: share of spikes at the same neuron in the same step as in the reference"
    )
    rows = []
    for name, target in found.items():
        first = target["first_divergence"]
        where = "none" if first is None else f"{first['node']} {tuple(first['neuron'])} step {first['step']}"
        agree = [f"{target['spike_agreement'].get(n, float('nan')):.3f}" for n in nodes]
        cores = ", ".join(f"{n}: {' '.join(map(str, on))}" for n, on in target["cores"].items())
        rows.append((name, f"{target['accuracy']:.3f}", *agree, where, cores, f"{target['seconds']:.1f}"))
    _print_table(title, ("target", "accuracy", *nodes, "first divergence", "cores", "seconds"), rows)


@app.command(epilog="Example: `nirdeploy targets --json`")
def targets(as_json: Json = False) -> None:
    """List the chips, what each was verified against, and backends that do not load."""
    from nirdeploy.backend import listed_backends
    from nirdeploy.backend import targets as known

    broken = {name: reason for name, reason in listed_backends().items() if reason}
    found = known()
    if as_json:
        listed = [
            {
                "name": t.name,
                "title": t.title,
                "backend": t.backend,
                "verified": dict(t.verified),
                "on_chip": t.on_chip,
            }
            for t in found.values()
        ]
        _print_json({"targets": listed, "broken_backends": broken})
        return
    rows = [
        (t.name, t.title, "\n".join(f"{stage}: {what}" for stage, what in t.verified.items()), t.on_chip)
        for t in found.values()
    ]
    _print_table(f"{len(found)} targets", ("name", "chip", "verified against", "on chip"), rows)
    for name, reason in broken.items():
        _say(f"backend {name}: {reason}")


@app.command(epilog="Example: `nirdeploy check net.nir --target speck2f --preset sinabs`")
def check(
    graph: Annotated[Path, typer.Argument(help="A .nir file.")],
    target: TargetName,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """Say everything a chip cannot hold or computes differently. Exit code 1 if there are errors."""
    from nirdeploy import io, pipeline
    from nirdeploy.backend import find_target
    from nirdeploy.convert.build import stored_convention

    chip = find_target(target)
    network = io.read(graph)
    report = pipeline.check(network, chip, convention=_convention(preset, dt, fields, stored_convention(network)))
    if as_json:
        _print_json(report.to_dict())
    else:
        _print_report(report)
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
    quantizer: Annotated[str | None, typer.Option(help="calibrated (default) or max.")] = None,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """Check, quantise and place a graph for a chip; write the deployment. Options win over --config."""
    from nirdeploy import io, pipeline
    from nirdeploy.backend import find_target
    from nirdeploy.configuration import load_configuration
    from nirdeploy.convert.build import stored_convention

    given = load_configuration(config) if config else None
    source = graph or (given.graph if given else None)
    chip = target or (given.target if given else None)
    folder = output or (given.output if given else None)
    if source is None or chip is None or folder is None:
        missing = [n for n, v in (("GRAPH", source), ("--target", chip), ("--output", folder)) if v is None]
        raise ConfigurationError(f"{', '.join(missing)} missing", remedy="Give them, or --config FILE.")
    network = io.read(source)
    configured = given.convention.build() if given and given.convention else stored_convention(network)
    convention = _convention(preset, dt, fields, configured)
    chosen = quantizer or (given.quantization.quantizer if given else "calibrated")
    data = calibration or (given.quantization.calibration if given else None)
    deployment = pipeline.deploy(
        network,
        find_target(chip),
        convention=convention,
        calibration=_raster(data),
        quantizer=chosen,
        **(given.placement if given else {}),
    )
    deployment.save(folder)
    _print_deployment(deployment, folder, as_json=as_json)


def _print_deployment(deployment: Deployment, folder: Path, *, as_json: bool) -> None:
    if as_json:
        _print_json(
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
        _print_report(deployment.report)
    columns = ("core", "node", "resource", "used", "limit", "share")
    rows = [(*(row[c] for c in columns[:-1]), f"{row['share']:.1%}") for row in deployment.utilization()]
    _print_table(f"{deployment.target.name}: placement", columns, rows)
    for note in deployment.quantized.notes:
        _say(note)
    _say(f"written to {folder}")


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
    on: Annotated[str, typer.Option(help="emulator, simulator or chip; for deployments.")] = "emulator",
    record: Annotated[str, typer.Option(help="Variables, comma separated.")] = "spikes,v_mem",
    nodes: Annotated[str | None, typer.Option(help="Nodes to record, comma separated; default: all.")] = None,
    method: Annotated[str | None, typer.Option(help="dense (default), event or loop; for .nir files.")] = None,
    packed: Annotated[bool, typer.Option("--packed", help="Keep a bit a spike; for .nir files.")] = False,
    mode: Annotated[str | None, typer.Option(help="Of the emulator, e.g. step or event on Speck.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="Option of a deployment's run, NAME=VALUE, e.g. leak_clock_hz=0; repeatable."),
    ] = None,
    step_us: Annotated[int | None, typer.Option(help="Microseconds of a step, for files of events.")] = None,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """Run a raster on the reference or on a deployment; write the trajectory, print spike counts."""
    from nirdeploy import io, storage
    from nirdeploy.convert.build import stored_convention
    from nirdeploy.reference.executor import run as run_reference

    wanted = tuple(name.strip() for name in record.split(","))
    chosen = None if nodes is None else tuple(name.strip() for name in nodes.split(","))
    streamed = False
    if source.is_dir() or source.suffix == ".h5":
        if preset is not None or dt is not None or fields:
            raise ConfigurationError("a deployment has its convention already", remedy="Leave --preset, --dt, --set.")
        if method is not None or packed:
            raise ConfigurationError("--method and --packed are the reference's", remedy="Leave them for deployments.")
        deployment = storage.load_deployment(source)
        given = _assigned(options, "--option", "leak_clock_hz=0")
        labels: Any = None
        if mode == "event" and _are_events(raster):  # in their own order
            from nirdeploy.event_files import load_events

            counts: Any = load_events(raster)
            given |= {} if step_us is None else {"step_us": step_us}
        else:
            counts, labels = _counts(raster, step_us, deployment.convention)
        trajectory = deployment.run(counts, on=on, mode=mode, record=wanted, nodes=chosen, **given)
    else:
        if mode is not None or options:
            raise ConfigurationError(
                "--mode and --option are those of deployments", remedy="Leave them for .nir files."
            )
        network = io.read(source)
        convention = _convention(preset, dt, fields, stored_convention(network))
        counts, labels = _counts(raster, step_us, convention)
        streamed = output is not None and labels is None  # labels are held against the run before a file is written
        with _progress(as_json) as progress:
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
    spikes = {
        n: sum(int(r.read(a, b).sum()) for a, b in r.blocks())
        for (n, variable), r in trajectory.records.items()
        if variable == "spikes"
    }
    found: dict[str, Any] = {"executor": trajectory.executor, "target": trajectory.target, "spikes": spikes}
    if scored is not None:
        found["accuracy"] = scored
    if as_json:
        _print_json({**found, "counters": {k: dict(v) for k, v in trajectory.counters.items()}})
        return
    title = f"{trajectory.target} ({trajectory.executor}), {trajectory.n_steps} steps"
    _print_table(title, ("node", "spikes"), spikes.items())
    if "accuracy" in found:
        _say(f"accuracy {found['accuracy']:.4f}")


@contextlib.contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """What a run tells how far it is: a bar on the terminal, which is gone afterwards; here Ctrl-C takes effect.

    An exception that a signal handler raises is lost where the interpreter happens to be in a callback.
    """

    def stop() -> None:
        if _ctrl_c["came"]:
            raise KeyboardInterrupt

    _ctrl_c.update(awaited=True, came=False)
    try:
        if hidden or not sys.stderr.isatty():
            yield lambda _done, _total: stop()
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("steps", total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)
                stop()

            yield show
    except KeyboardInterrupt as error:
        _complain(" ".join(["interrupted", *(f"; {note}" for note in getattr(error, "__notes__", []))]), 130)
        raise typer.Exit(130) from None
    finally:
        _ctrl_c.update(awaited=False, came=False)


def _accuracy(trajectory: Trajectory, labels: Any, raster: Path) -> float | None:
    """Share of samples whose most active output is the label; None where there is not one Output of classes."""
    from nirdeploy.demonstration import accuracy

    if len(trajectory.output_names) != 1:
        return None
    record = trajectory.records[trajectory.output_names[0], "output"]
    if not record.batched:
        raise RasterError(f"{str(raster)!r} has {len(labels)} labels, and a raster without a batch axis")
    if len(labels) != record.data.shape[1]:
        raise RasterError(f"{str(raster)!r} has {len(labels)} labels for {record.data.shape[1]} samples")
    return accuracy(trajectory, labels) if len(record.neuron_axes) == 1 else None


@app.command(epilog="Example: `nirdeploy compare ref.h5 chip.h5 --html report.html`")
def compare(
    reference: Annotated[Path, typer.Argument(help="Trajectory of the reference.")],
    other: Annotated[Path, typer.Argument(help="Trajectory to hold against it.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with rasters and traces.")] = None,
    lag: Annotated[int | None, typer.Option(help="Steps the second is later; default: what it says itself.")] = None,
    as_json: Json = False,
) -> None:
    """Say which spike differs first, and why. Exit code 1 if one does or a record cannot be aligned."""
    from nirdeploy.comparison import compare as compare_trajectories
    from nirdeploy.trajectory import load_trajectory

    comparison = compare_trajectories(load_trajectory(reference), load_trajectory(other), lag=lag)
    if html is not None:
        comparison.to_html(html)
    if as_json:
        _print_json(comparison.to_dict())
    else:
        _say(comparison.summary())
    if comparison.first_divergence is not None or comparison.unaligned:
        raise typer.Exit(1)


@app.command(epilog="Example: `nirdeploy doctor --json`")
def doctor(as_json: Json = False) -> None:
    """Print versions, which vendor SDKs are really there, and what is missing."""
    from nirdeploy.environments import doctor as examine

    found = examine()
    if as_json:
        _print_json(found)
        return
    rows = [(name, version or "missing", "") for name, version in found["packages"].items()]
    rows.append(("CUDA device", found["cuda"] or "none", "training and reference runs on a GPU"))
    rows += [(name, e["version"] or "not installed", e["for"]) for name, e in found["optional"].items()]
    rows += [(name, e["state"], e["for"]) for name, e in found["vendors"].items()]
    rows += [(f"environment {name}", e["state"], e["python"] or "") for name, e in found["environments"].items()]
    rows += [(f"backend {name}", state, "") for name, state in found["backends"].items()]
    _print_table(f"nirdeploy {found['nirdeploy']}, Python {found['python']}", ("what", "state", "for"), rows)
    if any(state != "ok" for state in found["backends"].values()):
        raise typer.Exit(2)


@env_app.command("list", epilog="Example: `nirdeploy env list --json`")
def env_list(as_json: Json = False) -> None:
    """List the environments: what each is for, whether it is built, and where."""
    from nirdeploy.environments import environments

    found = environments().values()
    if as_json:
        _print_json([_environment_as_data(environment) for environment in found])
        return
    rows = [(e.name, e.state, e.purpose, e.folder, "\n".join(e.holds)) for e in found]
    _print_table(f"{len(rows)} environments", ("name", "state", "for", "folder", "holds"), rows)


@env_app.command("create", epilog="Example: `nirdeploy env create speck`")
def env_create(
    name: Annotated[str, typer.Argument(help="A name from `nirdeploy env list`.")],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again although it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Build an environment, unless this very one is there. Needs a package index; installs nothing elsewhere."""
    from nirdeploy.environments import create

    with _lines(as_json) as progress:
        found = create(name, progress=progress, rebuild=rebuild)
    if as_json:
        _print_json(_environment_as_data(found))
    else:
        _say(f"{found.name}: {found.state}, {found.python}")


def _environment_as_data(environment: Any) -> dict[str, Any]:
    return {
        "name": environment.name,
        "state": environment.state,
        "for": environment.purpose,
        "folder": str(environment.folder),
        "python": None if environment.python is None else str(environment.python),
        "holds": list(environment.holds),
    }


@contextlib.contextmanager
def _lines(hidden: bool) -> Iterator[Callable[[str], None]]:
    """What a long installation says: its latest line beside a spinner, or line by line where there is no terminal."""
    if hidden:
        yield lambda _line: None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: typer.echo(line, err=True)
        return
    with console.status("starting") as status:
        yield lambda line: status.update(Text(line[:200], overflow="ellipsis", no_wrap=True))


# ---------------------------------------------------------------- edges


def main() -> None:
    """Entry point: every error becomes one line and an exit code."""
    _open_streams()
    before = signal.signal(signal.SIGINT, _interrupt)
    # once the interpreter is leaving there is nothing more to interrupt
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        code = _code()
    except KeyboardInterrupt:
        code = _complain("interrupted", 130)
    finally:
        signal.signal(signal.SIGINT, before)
    sys.exit(code)


def _code() -> int:
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except CheckError as error:
        _print_report(error.report)
        return _complain(f"{error.report.target} cannot hold this graph", 1)
    except PlacementError as error:
        return _complain(str(error), 1)
    except NirdeployError as error:
        return _complain(str(error), 2)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.Abort:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        _forget_output()
        return 2
    except Exception as error:
        if os.environ.get("NIRDEPLOY_DEBUG"):
            raise
        return _unexpected(error)
    return int(code)


# whether a run asks between its chunks for Ctrl-C, and whether it came
_ctrl_c = {"awaited": False, "came": False}


def _interrupt(*_: Any) -> None:
    """Ctrl-C: unwind where a file is half written, else leave at once, as libraries swallow KeyboardInterrupt."""
    files = sys.modules.get("nirdeploy.files")
    if files is not None and files.UNFINISHED:
        if _ctrl_c["awaited"] and not _ctrl_c["came"]:
            _ctrl_c["came"] = True  # the second time it is raised here
            return
        raise KeyboardInterrupt
    if sys.stderr is not None:
        os.write(2, b"nirdeploy: interrupted\n")
    os._exit(130)


def _open_streams() -> None:
    """Give closed standard streams (`>&-`) the null device, before a data file gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _forget_output() -> None:
    """The reader of our output has left or its disk is full: leave nothing to flush."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str, code: int) -> int:
    line = " ".join(text.split())
    typer.echo(f"nirdeploy: {line}", err=True)
    return code


def _unexpected(error: Exception) -> int:
    show = getattr(error, "show", None)
    if callable(show):  # click's own usage errors print themselves
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError):
        _forget_output()
        return _complain(str(error), 2)
    if isinstance(error, MemoryError):
        return _complain("out of memory; use a smaller raster or fewer recorded nodes", 2)
    return _complain(
        f"internal error, please report it: {type(error).__name__}: {error} (NIRDEPLOY_DEBUG=1 shows where)",
        2,
    )
