"""The report: one self-contained HTML page for all targets, for light and dark screens and for paper."""

from __future__ import annotations

import base64
import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nirdeploy import files
from nirdeploy.comparison.align import labels
from nirdeploy.comparison.core_map import core_map
from nirdeploy.comparison.excerpt import PAPER, excerpt
from nirdeploy.comparison.network import network, outline_of
from nirdeploy.comparison.page_data import as_json, payload
from nirdeploy.comparison.picture import Picture, picture
from nirdeploy.comparison.text import neuron_text, number, percent, several, shown
from nirdeploy.errors import ComparisonError, TargetError
from nirdeploy.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nirdeploy.comparison.ladder import Ladder, Rung
    from nirdeploy.comparison.result import Comparison
    from nirdeploy.energy import Estimate
    from nirdeploy.placement import Placement
    from nirdeploy.rules import Report
    from nirdeploy.target import Target
    from nirdeploy.trajectory import Trajectory

__all__ = ["Section", "verdict", "write_report"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_ON_PAPER = 3  # nodes whose raster and trace stand on paper
_SIDES = ("reference", "chip")
_OPEN = 3  # with more sections, all but one are folded


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
        ladder: what each step from the reference to this target costs.
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
    ladder: Ladder | None = None
    estimate: Estimate | None = None


def write_report(
    path: str | Path,
    sections: Sequence[Section],
    *,
    title: str = "From simulation to chip",
    lead: str = "",
    facts: Mapping[str, str] | None = None,
    ladder: Ladder | None = None,
) -> None:
    """Write one HTML file that needs nothing from outside: no network, no font, no script but its own.

    Its Content-Security-Policy allows the page's one script and one style by their hashes and nothing else.

    Args:
        path: the file; replaced only when the new one is complete.
        sections: one a target, in the order to show them.
        title: heading of the page.
        lead: a sentence below it.
        facts: name -> value, shown beside the versions under 'Provenance', e.g. the data set.
        ladder: the ladder whose rungs the sections are; it comes first and the sections are folded.

    Raises:
        ComparisonError: there is no section.
        FileError: the folder cannot be written.
    """
    if not sections:
        raise ComparisonError("a report needs at least one section", remedy="Compare at least one target.")
    style, script = _own("page.css"), _own("page.js")
    found = [_section(section, f"target-{i}", len(sections)) for i, section in enumerate(sections, 1)]
    anchors = {id(section.comparison): entry["anchor"] for section, entry in zip(sections, found, strict=True)}
    page = _template().render(
        title=title,
        lead=lead,
        sections=found,
        ladder=_ladder(ladder, anchors) if ladder is not None else None,
        fold=ladder is not None or len(sections) > _OPEN,
        unfolded=_unfolded(sections, ladder),
        facts={**_versions(), **(facts or {})},
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
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

    from nirdeploy.energy import with_unit

    environment = Environment(
        loader=PackageLoader("nirdeploy.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shown=shown, percent=percent, number=number, neuron=neuron_text, several=several)
    environment.filters["with_unit"] = with_unit
    return environment.get_template("report.html.j2")


def _own(name: str) -> Any:
    """A file of this package, as it stands on the page."""
    from markupsafe import Markup

    text = resources.files("nirdeploy.comparison").joinpath(name).read_text(encoding="utf-8")
    return Markup(text.replace("\r\n", "\n"))  # noqa: S704 - our own file


def _hash(text: str) -> str:
    """A source of a Content-Security-Policy: this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _versions() -> dict[str, str]:
    found = {"nirdeploy": __version__, "Python": platform.python_version()}
    for name in ("nir", "torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _section(section: Section, anchor: str, n_sections: int) -> dict[str, Any]:
    from markupsafe import Markup

    comparison, first = section.comparison, section.comparison.first_divergence
    target = section.target or _find_target(section.chip.target)
    outline = outline_of(comparison)
    drawn = network(comparison, outline)
    data = payload(section, [box["name"] for box in drawn["boxes"]], outline, n_sections)
    return {
        "anchor": anchor,
        "name": section.name,
        "verdict": verdict(section),
        "remark": verdict(section).removeprefix(shown(section.name)).lstrip(": "),
        "state": _state(comparison),
        "comparison": comparison,
        "nodes": list(comparison.per_node.values()),
        "first": first,
        "drive": [sum(getattr(i, side) * i.weight for i in first.inputs) for side in _SIDES] if first else [],
        "accuracy": section.accuracy,
        "reference_accuracy": section.reference_accuracy,
        "seconds": section.seconds,
        "side_names": labels(section.reference, section.chip),
        "network": drawn,
        "numbers": {box["name"]: i for i, box in enumerate(drawn["boxes"])},
        "data": Markup(as_json(data)),  # noqa: S704 - escaped there
        "explorable": any(node["views"] for node in data["nodes"]),
        "pictures": _pictures(comparison),
        "cores": core_map(section.placement, target),
        "placement": section.placement,
        "counters": {node: dict(found) for node, found in section.chip.counters.items() if found},
        "report": section.report,
        "notes": (*comparison.notes, *map(str, comparison.bands.values()), *section.notes),
        "ladder": _ladder(section.ladder, {}) if section.ladder is not None else None,
        "estimate": section.estimate,
        "provenance": _provenance(section, target),
    }


def _state(comparison: Comparison) -> str:
    if comparison.equal:
        return "equal"
    return "differs" if comparison.first_divergence or comparison.spike_agreement is None else "partly"


def _unfolded(sections: Sequence[Section], ladder: Ladder | None) -> int:
    """Which section is open from the start: the dominating rung's, else the first."""
    worst = ladder.dominating if ladder is not None else None
    return next((i for i, s in enumerate(sections) if worst is not None and s.comparison is worst.cost), 0)


def _pictures(comparison: Comparison) -> list[tuple[str, Picture]]:
    """Raster and trace of the nodes that differ first, else of the first node, as (caption, picture)."""
    nodes = list(comparison.per_node.values())
    differing = [(n.first_divergence.step, n) for n in nodes if n.first_divergence is not None]
    chosen = [n for _, n in sorted(differing, key=lambda entry: entry[0])] or nodes[:1]
    found = []
    for node in chosen[:_ON_PAPER]:
        sample = node.first_divergence.sample if node.first_divergence else 0
        part = excerpt(comparison, node.node, sample, PAPER)
        if part is None or not (part.neurons or part.traces):
            continue
        rows = f"{len(part.neurons)} of {several(part.total, 'neuron')} by flat index" if part.neurons else ""
        steps = (
            f"steps {part.steps.start} to {part.steps.stop - 1} of {part.compared.start} to {part.compared.stop - 1}"
        )
        about = [f"{shown(node.node)}, sample {sample}", *([rows] if rows else []), steps]
        found.append(("; ".join(about) + ".", picture(part)))
    return found


def _ladder(ladder: Ladder, anchors: Mapping[int, str]) -> dict[str, Any]:
    most = max(1, *(rung.differing for rung in ladder.rungs))
    return {
        "verdict": ladder.verdict(),
        "labelled": any(rung.accuracy is not None for rung in ladder.rungs),
        "rungs": [_rung(rung, most, rung is ladder.dominating, anchors) for rung in ladder.rungs],
    }


def _rung(rung: Rung, most: int, dominating: bool, anchors: Mapping[int, str]) -> dict[str, Any]:
    return {
        "rung": rung,
        "dominating": dominating,
        "share": rung.differing / most if rung.cost else None,
        "anchor": anchors.get(id(rung.cost)) if rung.cost else None,
    }


def _provenance(section: Section, target: Target | None) -> dict[str, str]:
    chip, reference = section.chip, section.reference
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
