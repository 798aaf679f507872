"""The part of evaluate that goes through several points: --sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nirdeploy.commands.shared import (
    are_events,
    is_deployment,
    missed,
    print_results,
    progress_bar,
    raster_of,
    say_missed,
)
from nirdeploy.errors import ConfigurationError
from nirdeploy.names import suggest

if TYPE_CHECKING:
    from nirdeploy.evaluation.sweep_table import Sweep

__all__ = ["Sweeps", "axes_of", "finish_sweep", "refuse_single", "run_sweep"]

_OWN = "own"

Sweeps = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        help="An axis, NAME=V1,V2: target (chips, reference), quantizer (calibrated, max, exact), bits (of a weight; "
        "own: the chip's), dt (seconds; own: the convention's); repeatable.",
    ),
]


def _whole(text: str) -> int | None:
    return None if text == _OWN else int(text)


def _seconds(text: str) -> float | None:
    return None if text == _OWN else float(text)


# name -> argument of `sweep`, what reads a value, what a value is
_AXES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "target": ("targets", str, "a name from `nirdeploy targets`, or reference"),
    "quantizer": ("quantizers", str, "calibrated, max or exact"),
    "bits": ("bits", _whole, "a whole number, or own"),
    "dt": ("dt", _seconds, "seconds, or own"),
}


def axes_of(items: list[str]) -> dict[str, Any]:
    """The axes that `--sweep NAME=V1,V2` gives, as arguments of `sweep`; a name may come several times.

    Raises:
        ConfigurationError: no '=', an unknown name, a value of another kind, or no target.
    """
    found: dict[str, Any] = {}
    for item in items:
        name, separator, text = item.partition("=")
        if not separator or name not in _AXES:
            wrong = f"has no axis {name!r}" if separator else "has no '='"
            hint = f"{suggest(name, _AXES)} " if separator else ""
            raise ConfigurationError(
                f"--sweep {item!r} {wrong}", remedy=f"{hint}Axes: {', '.join(_AXES)}, as NAME=V1,V2."
            )
        argument, read, expected = _AXES[name]
        for value in text.split(","):
            try:
                found[argument] = (*found.get(argument, ()), read(value.strip()))
            except ValueError:
                raise ConfigurationError(f"--sweep {item!r} has {value!r}", remedy=f"Give {expected}.") from None
    if "targets" not in found:
        raise ConfigurationError("--sweep has no targets", remedy="Add --sweep target=..., e.g. speck2f,loihi2.")
    return found


def refuse_single(source: Path, method: str, against: Path | None) -> None:
    """Refuse what belongs to the evaluation of one network.

    Raises:
        ConfigurationError: naming it.
    """
    if is_deployment(source):
        raise ConfigurationError(
            f"--sweep with {str(source)!r}, which is quantised already", remedy="Give the .nir file it came from."
        )
    if against is not None or method != "dense":
        raise ConfigurationError(
            "--sweep with --against or --method", remedy="Leave them: every point is held against its reference."
        )


def run_sweep(
    network: Any,
    dataset: Path,
    axes: dict[str, Any],
    calibration: Path | None,
    *,
    hidden: bool,
    **rest: Any,
) -> Sweep:
    """Sweep, with a bar over all samples of all points."""
    from nirdeploy.evaluation.sweeping import sweep

    data = _calibration(calibration)
    with progress_bar(hidden, "samples") as progress:
        return sweep(network, dataset, calibration=data, progress=progress, **axes, **rest)


def _calibration(path: Path | None) -> Any:
    """A raster, or the recorded events of a file or folder."""
    if path is None or not (path.is_dir() or are_events(path)):
        return raster_of(path)
    if path.is_dir():
        from nirdeploy.evaluation.datasets import open_samples

        with open_samples(path) as samples:
            return [events for events, _ in samples.read(0, samples.count)]
    from nirdeploy.event_files import load_events

    return load_events(path)


def finish_sweep(
    found: Sweep, output: Path | None, min_accuracy: float | None, min_agreement: float | None, *, as_json: bool
) -> None:
    """Print the table, and leave with 1 where limits are missed, or nothing has run.

    Raises:
        ConfigurationError: a limit of the agreement without a chip.
    """
    if min_agreement is not None and not found.chips:
        raise ConfigurationError("--min-agreement needs a chip among the targets")
    print_results(found, output, as_json=as_json)
    failures = []
    for row in found.chips or found.rows:
        limits = (("accuracy", row.accuracy, min_accuracy), ("agreement", row.agreement, min_agreement))
        failures += [f"{row}: {text}" for limit in limits if (text := missed(*limit))]
    say_missed(failures, as_json=as_json)
    if failures or (found.chips and all(row.refusals for row in found.chips)):
        raise typer.Exit(1)
