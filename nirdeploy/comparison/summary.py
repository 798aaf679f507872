"""A comparison as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nirdeploy.comparison.align import labels
from nirdeploy.comparison.bands import NodeBand
from nirdeploy.comparison.per_node import NodeComparison
from nirdeploy.comparison.text import neuron_text, number, percent, shown, table

if TYPE_CHECKING:
    from nirdeploy.comparison.result import Comparison

__all__ = ["headline", "summary"]

_BOUNDED = ("saturations", "clamps", "wraps")
_UNITS = {"threshold": "thresholds", "model": "model units"}
_HEAD = (
    "node",
    "agreement",
    "spikes",
    "on chip",
    "differing",
    "v_mem RMS",
    "max",
    "unit",
    "lag",
    "first difference",
)


def headline(comparison: Comparison) -> str:
    """One line: who is held against whom, and how far they agree."""
    reference, chip = labels(comparison.reference, comparison.chip)
    agreement, error = comparison.spike_agreement, comparison.v_mem_error
    line = f"{shown(chip)} against {shown(reference)}: "
    line += "no spikes compared" if agreement is None else f"{percent(agreement)} of spikes agree"
    if error is not None:
        line += f", v_mem differs by {number(error)} {_UNITS[comparison.v_unit or 'model']} (RMS)"
    return line


def summary(comparison: Comparison) -> str:
    """Plain text: verdict, a table of the nodes, the first difference, what was not compared."""
    agreement = comparison.spike_agreement
    shared = [node for node in comparison.per_node.values() if node.spikes or node.v_unit]
    rows = [_row(node, comparison.bands.get(node.node)) for node in shared]
    lines = [headline(comparison), "", *(table(_HEAD, rows) if rows else ()), ""]
    for node in comparison.per_node.values():
        lines += [
            f"{shown(node.node)} {name}: RMS {number(found.rmse)}, largest {number(found.max_error)} model units"
            for name, found in node.variables.items()
            if name != "v_mem"
        ]
    lines += [str(band) for band in comparison.bands.values()]
    for node in comparison.per_node.values():
        bounded = [f"{number(node.counters[n])} {n}" for n in _BOUNDED if node.counters.get(n)]
        lines += [f"{shown(node.node)} on the chip: {', '.join(bounded)}"] if bounded else []
    first = comparison.first_divergence
    if first:
        lines += [f"first difference: {first}", f"  {first.cause}"]
        lines += [f"  {first.arrived()}"] if first.arrived() else []
        lines += [f"  hint: {hint}" for hint in comparison.hints]
    elif agreement is not None:
        lines.append(f"no spike differs{_values_of(comparison.first_departure)}")
    lines += [f"note: {note}" for note in comparison.notes]
    if comparison.unaligned:
        lines.append("not compared:")
        lines += [f"  {shown(e.node)} {e.variable}: {e.reason}" for e in comparison.unaligned]
    return "\n".join(lines)


def _values_of(departure: tuple[str, str] | None) -> str:
    return f"; the first node with other values is {shown(departure[0])} ({departure[1]})" if departure else ""


def _row(node: NodeComparison, band: NodeBand | None) -> tuple[str, ...]:
    """A line of the table; of several trials the mean number of spikes."""
    counts = (node.spikes_reference, node.spikes_chip)
    if band is not None:
        counts = round(band.spikes_reference.mean), round(band.spikes_chip.mean)
    first = node.first_divergence
    place = f"step {first.step}, sample {first.sample}, neuron {neuron_text(first.neuron)}" if first else "-"
    return (
        shown(node.node),
        percent(node.spike_agreement),
        number(counts[0]),
        number(counts[1]),
        number(node.differing_entries),
        number(node.v_mem_rmse),
        number(node.v_mem_max_error),
        node.v_unit or "-",
        str(node.lag),
        place,
    )
