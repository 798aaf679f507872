"""The report: one self-contained HTML page for all targets, for light and dark screens and for paper."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nirdeploy import files
from nirdeploy.comparison.align import labels
from nirdeploy.comparison.excerpt import MAX_LAYERS, MAX_NEURONS, MAX_TRACES, Excerpt, excerpt
from nirdeploy.comparison.text import neuron_text, number, percent, several, shown
from nirdeploy.errors import ComparisonError, TargetError
from nirdeploy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from nirdeploy.comparison.result import Comparison
    from nirdeploy.energy import Estimate
    from nirdeploy.placement import Placement, Usage
    from nirdeploy.rules import Report
    from nirdeploy.target import Target
    from nirdeploy.trajectory import Trajectory

__all__ = ["Section", "verdict", "write_report"]

_MAX_CORES = 24
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, eq=False)
class Section:
    """One target on the page.

    Attributes:
        name: heading, e.g. 'speck2f'.
        comparison: what `compare` found.
        reference: trajectory of the reference.
        chip: trajectory of the chip.
        accuracy: accuracy of the chip's run, 0 to 1.
        reference_accuracy: accuracy of the reference on the same samples, 0 to 1.
        labels: class of each sample [batch].
        placement: where the layers are; the occupancy is drawn from its usage.
        report: findings of `check`.
        seconds: wall time of the chip's run.
        notes: sentences to show, e.g. what the quantiser says.
        target: the chip; None: looked up by the trajectory's target name.
        estimate: energy and time of the chip's run, marked as an estimate.
    """

    name: str
    comparison: Comparison
    reference: Trajectory
    chip: Trajectory
    accuracy: float | None = None
    reference_accuracy: float | None = None
    labels: NDArray[Any] | None = None
    placement: Placement | None = None
    report: Report | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    target: Target | None = None
    estimate: Estimate | None = None


def write_report(
    path: str | Path,
    sections: Sequence[Section],
    *,
    title: str = "From simulation to chip",
    lead: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write one HTML file that needs nothing from outside: no network, script or font.

    Args:
        path: the file; replaced only when the new one is complete.
        sections: one a target, in the order to show them.
        title: heading of the page.
        lead: a sentence below it.
        facts: name -> value, shown beside the versions under 'Provenance', e.g. the data set.

    Raises:
        ComparisonError: there is no section.
        FileError: the folder cannot be written.
    """
    if not sections:
        raise ComparisonError("a report needs at least one section", remedy="Compare at least one target.")
    page = _template().render(
        title=title,
        lead=lead,
        sections=[_section(section, f"target-{i}") for i, section in enumerate(sections, 1)],
        facts={**_versions(), **(facts or {})},
    )
    safe = _CONTROL.sub("\ufffd", page).encode("utf-8", "backslashreplace").decode("utf-8")
    files.write_text(path, safe)


def verdict(section: Section) -> str:
    """One sentence: agreement, accuracy against the reference's, the first spike that differs."""
    comparison = section.comparison
    agreement, first = comparison.spike_agreement, comparison.first_divergence
    if agreement is None:
        parts = [f"{shown(section.name)}: no spikes could be compared"]
    elif first is None:
        parts = [f"{shown(section.name)} agrees in every spike"]
    else:
        parts = [f"{shown(section.name)} agrees in {percent(agreement, 1)} of spikes"]
    if section.accuracy is not None:
        against = f" against {section.reference_accuracy:.3f}" if section.reference_accuracy is not None else ""
        parts.append(f"accuracy {section.accuracy:.3f}{against}")
    if first is not None:
        parts.append(f"first difference: {shown(first.node)} neuron {neuron_text(first.neuron)} at step {first.step}")
    if comparison.unaligned:
        parts.append(f"{several(len(comparison.unaligned), 'record')} not or not wholly compared")
    return "; ".join(parts)


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nirdeploy.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shown=shown, percent=percent, number=number, neuron=neuron_text, several=several)
    return environment.get_template("report.html.j2")


def _versions() -> dict[str, str]:
    found = {"nirdeploy": __version__, "Python": platform.python_version()}
    for name in ("nir", "torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _section(section: Section, anchor: str) -> dict[str, Any]:
    comparison = section.comparison
    part = excerpt(comparison)
    reference, chip = labels(section.reference, section.chip)
    return {
        "anchor": anchor,
        "name": section.name,
        "verdict": verdict(section),
        "state": _state(comparison),
        "comparison": comparison,
        "nodes": list(comparison.per_node.values()),
        "first": comparison.first_divergence,
        "accuracy": section.accuracy,
        "reference_accuracy": section.reference_accuracy,
        "seconds": section.seconds,
        "side_names": (reference, chip),
        "raster": _rasters(part, section),
        "traces": _traces(part),
        "cores": _cores(section.placement.usage if section.placement else ()),
        "placement": section.placement,
        "counters": {node: dict(found) for node, found in section.chip.counters.items() if found},
        "report": section.report,
        "notes": (*comparison.notes, *section.notes),
        "provenance": _provenance(section),
    }


def _state(comparison: Comparison) -> str:
    if comparison.equal:
        return "equal"
    return "differs" if comparison.first_divergence or comparison.spike_agreement is None else "partly"


def _pictures(draw: Any, part: Excerpt) -> dict[str, str]:
    from nirdeploy.comparison.plots import DARK, LIGHT

    return {"light": draw(part, LIGHT), "dark": draw(part, DARK)}


def _rasters(part: Excerpt, section: Section) -> dict[str, Any] | None:
    if not part.rasters:
        return None
    from nirdeploy.comparison.plots import draw_rasters

    label = section.labels[part.sample] if section.labels is not None and len(section.labels) > part.sample else None
    about = [f"Sample {part.sample}" + (f" (label {label})" if label is not None else "")]
    if part.divergence:
        about[0] += ", the one of the first difference"
    about.append(_window_text(part))
    if any(len(panel.neurons) < panel.total for panel in part.rasters):
        about.append(f"of each layer the {MAX_NEURONS} neurons that differ most, then spike most, by flat index")
    if part.n_layers > len(part.rasters):
        about.append(f"{MAX_LAYERS} of {part.n_layers} layers, those that differ first")
    panels = [(shown(panel.node), *panel.counts) for panel in part.rasters]
    told = "; ".join(f"{name}: {b} both, {r} reference only, {c} chip only" for name, b, r, c in panels)
    return {
        "caption": "; ".join(about) + ".",
        "alt": f"Spike rasters of reference and chip over each other, sample {part.sample}. {told}.",
        **_pictures(draw_rasters, part),
    }


def _traces(part: Excerpt) -> dict[str, Any] | None:
    if not part.traces:
        return None
    from nirdeploy.comparison.plots import draw_traces

    told = "; ".join(
        f"{shown(p.node)} neuron {neuron_text(p.neuron)}, sample {p.sample}"
        + (f", first difference at step {p.divergence.step}" if p.divergence else "")
        for p in part.traces
    )
    which = (
        f"The neuron that differs first in each layer, at most {MAX_TRACES} layers, earliest first"
        if part.divergence
        else f"No spike differs; the most active neuron of at most {MAX_TRACES} layers"
    )
    return {
        "caption": f"{which}; v_mem after the reset; {_window_text(part)}.",
        "alt": f"Membrane traces of reference and chip with threshold and spikes: {told}.",
        **_pictures(draw_traces, part),
    }


def _window_text(part: Excerpt) -> str:
    first, last = part.window
    every = last - first + 1 == part.n_steps
    return f"steps {first} to {last}" + ("" if every else f" of {part.n_steps}") + " in the reference's time"


def _cores(usage: Iterable[Usage]) -> dict[str, Any]:
    """Usage by core and resource: the fullest cores, in order of their index, and how full the others are."""
    by_core: dict[int, dict[str, list[Usage]]] = {}
    for entry in usage:
        by_core.setdefault(entry.core, {}).setdefault(entry.resource, []).append(entry)
    cores = [_core(core, resources) for core, resources in sorted(by_core.items())]
    cores.sort(key=lambda core: -core["fullest"])  # stable: equally full ones stay in order of their index
    rest = cores[_MAX_CORES:]
    return {
        "shown": sorted(cores[:_MAX_CORES], key=lambda core: int(core["core"])),
        "rest": len(rest),
        "rest_fullest": rest[0]["fullest"] if rest else 0.0,
    }


def _core(core: int, resources: Mapping[str, list[Usage]]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    fullest = 0.0
    for name, entries in resources.items():
        used, limit = sum(entry.used for entry in entries), entries[0].limit
        share = used / limit if limit else float(used > 0)
        fullest = max(fullest, share)
        widest = max(1.0, share)
        segments = [
            {"node": e.node, "used": e.used, "width": f"{100 * e.share / widest:.2f}"} for e in entries if e.used
        ]
        rows.append({"name": name, "used": used, "limit": limit, "share": share, "segments": segments})
    nodes = list(dict.fromkeys(entry.node for entries in resources.values() for entry in entries))
    return {"core": core, "nodes": nodes, "rows": rows, "fullest": fullest}


def _provenance(section: Section) -> dict[str, str]:
    chip, reference = section.chip, section.reference
    target = section.target or _find_target(chip.target)
    found = {
        "target": f"{chip.target} ({target.title})" if target else chip.target,
        "chip side run by": chip.executor + (f", {chip.producer}" if chip.producer else ""),
        "reference run by": f"{reference.executor} ({reference.target})"
        + (f", {reference.producer}" if reference.producer else ""),
        "graph sha256": chip.graph_sha256 or reference.graph_sha256 or "not recorded",
    }
    conventions = _convention(reference), _convention(chip)
    if conventions[0] == conventions[1]:
        found["convention of both"] = conventions[0]
    else:
        found["convention of the reference"], found["convention of the chip"] = conventions
    for stage, oracle in (target.verified if target else {}).items():
        found[f"{stage} verified against"] = oracle
    if not target:
        found["verified against"] = "not known: no installed backend has this target"
    found["silicon"] = _silicon(chip.executor, target)
    return found


def _convention(trajectory: Trajectory) -> str:
    if trajectory.convention is None:
        return "not recorded"
    fields = trajectory.convention.to_dict().items()
    return ", ".join(f"{name} {value}" for name, value in fields if value not in (None, "", {}))


def _silicon(executor: str, target: Target | None) -> str:
    if executor == "chip":
        return "this run is from the chip itself"
    known = f"; the target: {target.on_chip}" if target and target.on_chip else ""
    return f"this run is from the {executor}, not from silicon{known}"


def _find_target(name: str) -> Target | None:
    from nirdeploy.backend import find_target

    try:
        return find_target(name)
    except TargetError:
        return None
