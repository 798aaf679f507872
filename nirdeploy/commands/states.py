"""Verbs that compare states: compare, ladder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nirdeploy.commands.shared import (
    Fields,
    Json,
    Preset,
    Step,
    app,
    asked_convention,
    counts_of,
    is_deployment,
    print_json,
    progress_lines,
    say,
    waiting,
)
from nirdeploy.errors import ConfigurationError

if TYPE_CHECKING:
    from nirdeploy.comparison import Comparison

__all__ = ["compare", "ladder"]

Html = Annotated[Path | None, typer.Option(help="Write a page with rasters and traces.")]
MinAgreement = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of spikes that must agree, 0 to 1; then fewer differences are no failure."),
]
MaxError = Annotated[
    float | None, typer.Option(min=0, help="Largest RMS difference of v_mem, in thresholds where there are any.")
]


@app.command(epilog="Example: `nirdeploy compare ref.h5 chip.h5 --html report.html --min-agreement 0.99`")
def compare(
    reference: Annotated[Path, typer.Argument(help="Trajectory of the reference.")],
    other: Annotated[list[Path], typer.Argument(help="Trajectory to hold against it; several are trials of one run.")],
    html: Html = None,
    lag: Annotated[
        list[str] | None,
        typer.Option(help="Steps the second is later, for all nodes or NODE=STEPS, or 'find'; default: what it says."),
    ] = None,
    node: Annotated[list[str] | None, typer.Option(help="Compare this node alone; repeatable.")] = None,
    window: Annotated[
        int | None, typer.Option(min=0, help="Also the spikes that find a partner at most so many steps away.")
    ] = None,
    graph: Annotated[Path | None, typer.Option(help="The network, for the weights of what arrived.")] = None,
    raster: Annotated[Path | None, typer.Option(help="What came in, for the same.")] = None,
    min_agreement: MinAgreement = None,
    max_v_error: MaxError = None,
    as_json: Json = False,
) -> None:
    """Say which spike differs first, and why. Exit code 1 if one (without spikes: a value) does, or beyond limits."""
    from nirdeploy.comparison import compare as compare_trajectories
    from nirdeploy.io import read
    from nirdeploy.trajectory import load_trajectory

    _not_an_input(html, reference, *other, *filter(None, (graph, raster)))
    ours, theirs = load_trajectory(reference), [load_trajectory(path) for path in other]
    network = None if graph is None else read(graph)
    sent = None if raster is None else counts_of(raster, None, ours.convention)[0]
    with waiting(as_json, "comparing"):
        comparison = compare_trajectories(ours, theirs, lag=_lag(lag), nodes=node or None, graph=network, raster=sent)
        if html is not None:
            comparison.to_html(html)
    match = None if window is None else comparison.overall_match(window)
    if as_json:
        within = (
            {} if match is None else {"window": {**asdict(match), "precision": match.precision, "recall": match.recall}}
        )
        print_json({**comparison.to_dict(), **within})
    else:
        say(comparison.summary())
        if match is not None:
            say(f"within {match.window} steps: precision {match.precision:.4f}, recall {match.recall:.4f}")
        if html is not None:
            say(f"written to {html}")
    if failures := _failures(comparison, min_agreement, max_v_error):
        if not as_json and (min_agreement is not None or max_v_error is not None):
            say(f"beyond the limits: {'; '.join(failures)}")
        raise typer.Exit(1)


def _lag(given: list[str] | None) -> Any:
    """None, 'find', steps for all nodes, or steps by node."""
    if not given:
        return None
    if given == ["find"]:
        return "find"
    try:
        if len(given) == 1 and "=" not in given[0]:
            return int(given[0])
        named = [entry.rpartition("=") for entry in given]
        found = {node: int(steps) for node, _, steps in named}
        if all(found) and len(found) == len(named):
            return found
    except ValueError:
        pass
    raise ConfigurationError(f"--lag is {' '.join(given)!r}, expected steps, NODE=STEPS for each node, or 'find'")


def _not_an_input(html: Path | None, *inputs: Path) -> None:
    """Refuse a page in the place of what is read."""
    for path in inputs if html is not None and html.exists() else ():
        if path.exists() and html is not None and html.samefile(path):
            raise ConfigurationError(f"--html is {str(html)!r}, which is read", remedy="Give the page another name.")


def _failures(comparison: Comparison, min_agreement: float | None, max_v_error: float | None) -> list[str]:
    """What makes a comparison fail; without limits any spike that differs does. What is not compared always does."""
    found = [f"{e.node} {e.variable} is not compared: {e.reason}" for e in comparison.unaligned]
    agreement, error = comparison.spike_agreement, comparison.v_mem_error
    if min_agreement is None and max_v_error is None:
        found += [str(d) for d in [comparison.first_divergence] if d is not None]
        if agreement is None and comparison.first_departure is not None:  # nothing but values is compared
            found.append("{} {} differs".format(*comparison.first_departure))
        return found
    if min_agreement is not None and (agreement is None or agreement < min_agreement):
        found.append(
            f"agreement {'not measured' if agreement is None else f'{agreement:.6g}'}, asked {min_agreement:g}"
        )
    if max_v_error is not None and (error is None or not error <= max_v_error):
        found.append(f"v_mem RMS {'not measured' if error is None else f'{error:.6g}'}, at most {max_v_error:g} asked")
    return found


@app.command(epilog="Example: `nirdeploy ladder build/ data.npz --html ladder.html`")
def ladder(
    deployment: Annotated[Path, typer.Argument(help="A deployment folder.")],
    raster: Annotated[Path, typer.Argument(help="Counts: .npz with 'raster' (and 'labels'), or .npy; or events.")],
    html: Html = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of spikes that the last rung that ran must share with the first."),
    ] = None,
    preset: Preset = None,
    dt: Step = None,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """From the reference to the chip one change at a time: what each costs. --preset, --set: what it was trained in."""
    from nirdeploy.comparison.ladder import ladder as climb
    from nirdeploy.storage import load_deployment

    if not is_deployment(deployment):
        raise ConfigurationError(f"{str(deployment)!r} is no deployment", remedy="Run `nirdeploy deploy` first.")
    _not_an_input(html, raster, deployment / "deployment.h5" if deployment.is_dir() else deployment)
    found = load_deployment(deployment)
    counts, labels = counts_of(raster, None, found.convention)
    trained = asked_convention(preset, dt, fields, found.convention)
    with progress_lines(as_json) as progress:
        result = climb(found, counts, labels, convention=trained, progress=progress)
    if html is not None:
        result.to_html(html)
    if as_json:
        print_json(result.to_dict())
    else:
        say(result.summary())
        if html is not None:
            say(f"written to {html}")
    last = next(rung for rung in reversed(result.rungs) if rung.total is not None)
    agreement = last.total.spike_agreement if last.total else None
    if min_agreement is not None and (agreement is None or agreement < min_agreement):
        if not as_json:
            say(f"beyond the limit: {last.name!r} agrees in {agreement}, asked {min_agreement:g}")
        raise typer.Exit(1)
