"""What the verbs of the command line share: the application, options, tables, progress, arguments."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nirdeploy.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nirdeploy.reference.convention import Convention
    from nirdeploy.rules import Report

__all__ = [
    "CTRL_C",
    "ExportedBy",
    "Fields",
    "Json",
    "Mode",
    "On",
    "Options",
    "Preset",
    "Step",
    "TargetName",
    "app",
    "are_events",
    "asked_convention",
    "assigned",
    "complain",
    "counts_of",
    "env_app",
    "is_deployment",
    "missed",
    "options_of",
    "print_json",
    "print_report",
    "print_results",
    "print_table",
    "progress_bar",
    "progress_lines",
    "raster_of",
    "refuse_convention",
    "say",
    "say_missed",
    "waiting",
]

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
ExportedBy = Annotated[
    str | None,
    typer.Option(help="Library whose exporter wrote the file (snntorch, norse, sinabs, spikingjelly): repair it."),
]
On = Annotated[str, typer.Option(help="emulator, simulator or chip; for deployments.")]
Mode = Annotated[str | None, typer.Option(help="Of the emulator, e.g. step or event on Speck.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="Option of a deployment's run, NAME=VALUE, e.g. leak_clock_hz=0; repeatable."),
]


# whether a run asks between its chunks for Ctrl-C, and whether it came
CTRL_C = {"awaited": False, "came": False}


def complain(text: str, code: int) -> int:
    """One line on standard error; gives the exit code back."""
    line = " ".join(text.split())
    typer.echo(f"nirdeploy: {line}", err=True)
    return code


# ---------------------------------------------------------------- printing


def say(text: str) -> None:
    """A line on standard output."""
    typer.echo(text)


def print_json(value: Any) -> None:
    """JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))


def _print(*items: Any) -> None:
    from rich.console import Console

    # a pipe has no width of its own: 80 columns would fold paths and names apart
    console = Console(width=None if sys.stdout.isatty() else 120)
    for item in items:
        console.print(item)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A title line and a table; cells are Text, so that a node name with brackets is no markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    _print(Text(title), table)


def print_report(report: Report) -> None:
    """Findings as a table."""
    if not report.findings:
        say(report.headline)
        return
    rows = []
    for found in report.findings:
        node = found.node if found.torch_path in (None, found.node) else f"{found.node} ({found.torch_path})"
        rows.append((found.severity, node or "graph", found.code, found.problem, found.remedy))
    print_table(report.headline, ("severity", "node", "code", "problem", "remedy"), rows)


# ---------------------------------------------------------------- progress


@contextlib.contextmanager
def progress_bar(hidden: bool, what: str = "steps") -> Iterator[Callable[[int, int], None]]:
    """What a run tells how far it is: a bar on the terminal, which is gone afterwards; here Ctrl-C takes effect.

    An exception that a signal handler raises is lost where the interpreter happens to be in a callback.
    """

    def stop() -> None:
        if CTRL_C["came"]:
            raise KeyboardInterrupt

    CTRL_C.update(awaited=True, came=False)
    try:
        if hidden or not sys.stderr.isatty():
            yield lambda _done, _total: stop()
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)
                stop()

            yield show
    except KeyboardInterrupt as error:
        complain(" ".join(["interrupted", *(f"; {note}" for note in getattr(error, "__notes__", []))]), 130)
        raise typer.Exit(130) from None
    finally:
        CTRL_C.update(awaited=False, came=False)


@contextlib.contextmanager
def waiting(hidden: bool, what: str) -> Iterator[None]:
    """A spinner and the seconds so far on the terminal, gone afterwards, for what cannot tell how far it is."""
    if hidden or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(what, markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as spinner:
        spinner.add_task(what)
        yield


@contextlib.contextmanager
def progress_lines(hidden: bool) -> Iterator[Callable[[str], None]]:
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


# ---------------------------------------------------------------- arguments


def is_deployment(path: Path) -> bool:
    """Whether a path is meant as a deployment: a folder, or the file in it."""
    return path.is_dir() or path.suffix == ".h5"


def refuse_convention(
    preset: str | None, dt: float | None, fields: list[str] | None, exported_by: str | None = None
) -> None:
    """Refuse the options of a graph's convention and file where a deployment has its own.

    Raises:
        ConfigurationError: one is given.
    """
    if preset is not None or dt is not None or fields:
        raise ConfigurationError("a deployment has its convention already", remedy="Leave --preset, --dt, --set.")
    if exported_by is not None:
        raise ConfigurationError("--exported-by repairs a .nir file", remedy="Leave it for deployments.")


def print_results(found: Any, output: Path | None, *, as_json: bool) -> None:
    """What an evaluation or sweep gave, and where it is."""
    if as_json:
        print_json(found.to_dict())
        return
    say(found.summary())
    if output is not None:
        say(f"written to {output}")


def say_missed(failures: Sequence[str], *, as_json: bool) -> None:
    """The limits that were missed, if any; JSON has the numbers."""
    if failures and not as_json:
        say(f"beyond the limits: {'; '.join(failures)}")


def missed(name: str, value: float | None, least: float | None) -> str:
    """What is wrong with a share that has a least value; '' where it holds it, or there is none."""
    if least is None or (value is not None and value >= least):
        return ""
    return f"{name} {'not measured' if value is None else f'{value:.4f}'}, asked {least:g}"


def options_of(items: list[str] | None) -> dict[str, Any]:
    """What --option asks for."""
    return assigned(items, "--option", "leak_clock_hz=0")


def asked_convention(
    preset: str | None, dt: float | None, fields: list[str] | None, base: Convention | None = None
) -> Convention | None:
    """What --preset, --dt and --set ask for; without a preset they change `base`, and `nir` where there is none."""
    if preset is None and dt is None and not fields:
        return base
    from nirdeploy.configuration import refuse_separate
    from nirdeploy.reference.convention import Convention
    from nirdeploy.reference.presets import convention

    values = assigned(fields, "--set", "reset=zero")
    refuse_separate(values, "fields of --set", "Use --preset and --dt.")
    if preset is None and base is not None:
        return Convention.from_dict({**base.to_dict(), **values, "dt": base.dt if dt is None else dt})
    return convention(preset or "nir", dt=dt, **values)


def assigned(items: list[str] | None, flag: str, example: str) -> dict[str, Any]:
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


def counts_of(path: Path, step_us: int | None, used: Convention | None) -> tuple[Any, Any]:
    """A raster and its labels; events are counted into steps of the convention's dt, and into no others."""
    from nirdeploy.binning import whole_microseconds
    from nirdeploy.raster import load_raster

    dt = None if used is None else used.dt
    if step_us is not None and dt is not None and whole_microseconds(dt) != step_us:
        raise ConfigurationError(
            f"--step-us {step_us} with a convention whose dt is {dt} s", remedy="Give one of them, or --dt to match."
        )
    if step_us is None and dt is not None and are_events(path):
        step_us = whole_microseconds(dt)
    return load_raster(path, step_us=step_us)


def are_events(path: Path) -> bool:
    """Whether a file holds recorded events, not counts."""
    from nirdeploy.event_files import is_event_file

    return path.is_file() and is_event_file(path)


def raster_of(path: Path | None) -> Any:
    """The counts of a file, without labels; None where there is none."""
    from nirdeploy.raster import load_raster

    return None if path is None else load_raster(path)[0]
