"""What a comparison says: per node, overall, and the first spike that differs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from nirdeploy.comparison.align import Aligned, Unaligned, labels
from nirdeploy.comparison.arrivals import Arrival
from nirdeploy.comparison.bands import NodeBand
from nirdeploy.comparison.metrics import ErrorSums, SpikeSums
from nirdeploy.comparison.text import neuron_text, number, percent, several, shown, table
from nirdeploy.errors import ComparisonError
from nirdeploy.names import suggest
from nirdeploy.trajectory import Trajectory

if TYPE_CHECKING:
    from nirdeploy.comparison.trains import Distances, WindowMatch

__all__ = ["Comparison", "Difference", "Divergence", "NodeComparison"]

Unit = Literal["threshold", "model"]


@dataclass(frozen=True)
class Divergence:
    """The first entry of a node, or of a run, whose spike counts differ.

    Attributes:
        node: name in the original graph.
        neuron: index in the node's own shape.
        sample: index in the batch.
        step: step of the reference.
        chip_step: the same moment as a step of the chip's run.
        expected: spikes of the reference in that step.
        observed: spikes of the chip in that step.
        v_reference: v_mem of the reference at the end of that step, after the reset, in model units.
        v_chip: v_mem of the chip at the end of that step, after the reset, in model units.
        threshold_reference: threshold of the reference in model units, where recorded.
        threshold_chip: threshold of the chip in model units, where recorded.
        cause: one sentence on what the records say about why; no more than they can tell.
        core: the chip's core that holds the neuron, where known.
        inputs: spikes that arrived at the neuron in that step on either side; of the first divergence of a comparison,
            where the graph is known.
        inputs_note: what is missing from `inputs`, or why there are none; '' where nothing is.
    """

    node: str
    neuron: tuple[int, ...]
    sample: int
    step: int
    chip_step: int
    expected: int
    observed: int
    v_reference: float | None = None
    v_chip: float | None = None
    threshold_reference: float | None = None
    threshold_chip: float | None = None
    cause: str = ""
    core: int | None = None
    inputs: tuple[Arrival, ...] = ()
    inputs_note: str = ""

    def __str__(self) -> str:
        lagged = f" (chip step {self.chip_step})" if self.chip_step != self.step else ""
        core = "" if self.core is None else f" (core {self.core})"
        text = (
            f"{shown(self.node)} neuron {neuron_text(self.neuron)}{core}, sample {self.sample}, "
            f"step {self.step}{lagged}: {several(self.expected, 'spike')} expected, {self.observed} observed"
        )
        if self.v_reference is not None and self.v_chip is not None:
            text += f"; v_mem after the reset {number(self.v_reference)} against {number(self.v_chip)}"
        if self.threshold_reference is not None and self.threshold_chip is not None:
            text += f"; threshold {number(self.threshold_reference)} against {number(self.threshold_chip)}"
        return text

    def arrived(self, most: int = 6) -> str:
        """One sentence on the spikes that arrived at the neuron in that step; '' where nothing is known of them."""
        if not self.inputs:
            return f"Spikes that arrived: {self.inputs_note}." if self.inputs_note else ""
        drive = [sum(getattr(one, side) * one.weight for one in self.inputs) for side in ("reference", "chip")]
        sums = (
            number(drive[0])
            if drive[0] == drive[1]
            else f"{number(drive[0])} in the reference, {number(drive[1])} on the chip"
        )
        told = [_arrival_text(one) for one in self.inputs[:most]]
        more = f", and {len(self.inputs) - most} more" if len(self.inputs) > most else ""
        note = f" ({self.inputs_note})" if self.inputs_note else ""
        listed = f"{', '.join(told)}{more}{note}"
        return f"In that step {several(len(self.inputs), 'input')} arrived, together {sums}: {listed}."


def _arrival_text(arrival: Arrival) -> str:
    """'if1 (0, 3, 4) 0.41', with the counts where they are not one on both sides, and the delay."""
    ours, theirs = arrival.reference, arrival.chip
    counts = f" x {number(ours)}" if ours == theirs else f" x {number(ours)} against {number(theirs)}"
    counts = "" if ours == theirs == 1 else counts
    late = f" after {several(arrival.delay, 'step')}" if arrival.delay else ""
    return f"{shown(arrival.source)} {neuron_text(arrival.neuron)}{counts} weight {number(arrival.weight)}{late}"


@dataclass(frozen=True)
class Difference:
    """How far one variable other than the spikes is apart.

    Attributes:
        sums: the sums it is made of, in `unit`.
        unit: 'threshold' where a threshold is recorded, else 'model' units.
    """

    sums: ErrorSums
    unit: Unit = "model"

    @property
    def rmse(self) -> float:
        """Root mean square of the differences."""
        return self.sums.rmse

    @property
    def max_error(self) -> float:
        """Largest absolute difference."""
        return self.sums.largest

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        differing, entries = self.sums.differing, self.sums.entries
        return {
            "rmse": self.rmse,
            "max_error": self.max_error,
            "unit": self.unit,
            "differing_entries": differing,
            "entries": entries,
        }


@dataclass(frozen=True)
class NodeComparison:
    """One node on both sides.

    Attributes:
        node: name in the original graph.
        spikes: sums of the spike counts, or None where spikes are not compared.
        variables: how far 'v_mem', 'i_syn' and 'output' are apart, those that are compared.
        lag: steps by which the chip is later.
        first_divergence: its first entry with different spike counts.
        counters: what the chip's run counted at it, e.g. 'saturations' and 'clamps'.
    """

    node: str
    spikes: SpikeSums | None
    variables: Mapping[str, Difference]
    lag: int = 0
    first_divergence: Divergence | None = None
    counters: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", MappingProxyType(dict(self.variables)))
        object.__setattr__(self, "counters", MappingProxyType(dict(self.counters)))

    @property
    def spike_agreement(self) -> float | None:
        """2 sum(min(r, c)) / (sum(r) + sum(c)) over counts (step, sample, neuron): the Dice coefficient.

        1.0 when every spike is at the same neuron in the same step, and when both are silent; None: not
        compared.
        """
        return self.spikes.agreement if self.spikes else None

    @property
    def spikes_reference(self) -> int | None:
        """Spikes of the reference."""
        return self.spikes.reference if self.spikes else None

    @property
    def spikes_chip(self) -> int | None:
        """Spikes of the chip."""
        return self.spikes.chip if self.spikes else None

    @property
    def rate_reference(self) -> float | None:
        """Spikes of the reference a neuron and step."""
        return self.spikes.reference / self.spikes.entries if self.spikes else None

    @property
    def rate_chip(self) -> float | None:
        """Spikes of the chip a neuron and step."""
        return self.spikes.chip / self.spikes.entries if self.spikes else None

    @property
    def differing_entries(self) -> int | None:
        """Entries (step, sample, neuron) whose spike counts differ."""
        return self.spikes.differing if self.spikes else None

    @property
    def entries(self) -> int | None:
        """Compared entries (step, sample, neuron) of the spikes."""
        return self.spikes.entries if self.spikes else None

    @property
    def differing_variables(self) -> tuple[str, ...]:
        """Variables other than the spikes that are not the same in every entry."""
        return tuple(name for name, found in self.variables.items() if found.sums.differing)

    @property
    def v_mem_rmse(self) -> float | None:
        """Root mean square difference of v_mem in `v_unit`; None: not compared."""
        return self.variables["v_mem"].rmse if "v_mem" in self.variables else None

    @property
    def v_mem_max_error(self) -> float | None:
        """Largest difference of v_mem in `v_unit`; None: not compared."""
        return self.variables["v_mem"].max_error if "v_mem" in self.variables else None

    @property
    def v_unit(self) -> Unit | None:
        """'threshold': parts of the reference's threshold; 'model': there is none; None: not compared."""
        return self.variables["v_mem"].unit if "v_mem" in self.variables else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "node": self.node,
            "spike_agreement": self.spike_agreement,
            "spikes_reference": self.spikes_reference,
            "spikes_chip": self.spikes_chip,
            "rate_reference": self.rate_reference,
            "rate_chip": self.rate_chip,
            "differing_entries": self.differing_entries,
            "entries": self.entries,
            "v_mem_rmse": self.v_mem_rmse,
            "v_mem_max_error": self.v_mem_max_error,
            "v_unit": self.v_unit,
            "variables": {name: found.to_dict() for name, found in self.variables.items()},
            "lag": self.lag,
            "counters": dict(self.counters),
            "first_divergence": asdict(self.first_divergence) if self.first_divergence else None,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two trajectories held against each other, state by state.

    Attributes:
        reference: the first trajectory.
        chip: the second one.
        per_node: node of the original graph -> its comparison, in order of execution; where no graph is known, in the
            reference's order of recording.
        unaligned: what was not compared, as (node, variable, reason).
        notes: differences between the two runs as such: other graph, other convention.
        pairs: (node, variable) -> both sides at the same neurons and steps.
        bands: node -> its spikes over all trials, where there were several.
        hints: what could explain the first divergence and its records bear out, a sentence each; see `hints.hints`.
    """

    reference: Trajectory = field(repr=False)
    chip: Trajectory = field(repr=False)
    per_node: Mapping[str, NodeComparison]
    unaligned: tuple[Unaligned, ...] = ()
    notes: tuple[str, ...] = ()
    pairs: Mapping[tuple[str, str], Aligned] = field(default_factory=dict, repr=False)
    bands: Mapping[str, NodeBand] = field(default_factory=dict)
    hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_node", MappingProxyType(dict(self.per_node)))
        object.__setattr__(self, "pairs", MappingProxyType(dict(self.pairs)))
        object.__setattr__(self, "bands", MappingProxyType(dict(self.bands)))

    @property
    def target(self) -> str:
        """Target of the second trajectory, e.g. 'speck2f'."""
        return self.chip.target

    @property
    def spikes(self) -> SpikeSums | None:
        """Sums of the spike counts over all nodes; None: no spikes compared."""
        found = [node.spikes for node in self.per_node.values() if node.spikes]
        return sum(found, SpikeSums()) if found else None

    @property
    def spike_agreement(self) -> float | None:
        """Dice coefficient of all spikes of all compared nodes together; None: no spikes compared."""
        sums = self.spikes
        return sums.agreement if sums else None

    @property
    def v_unit(self) -> Unit | None:
        """Unit of `v_mem_error`: 'threshold' where any node has one, else 'model'; None: not compared."""
        units = {node.v_unit for node in self.per_node.values()}
        return "threshold" if "threshold" in units else "model" if "model" in units else None

    @property
    def v_mem_error(self) -> float | None:
        """Root mean square difference of v_mem over all entries of the nodes that have it in `v_unit`."""
        nodes = [node.variables["v_mem"] for node in self.per_node.values() if node.v_unit]
        unit = self.v_unit
        found = [difference.sums for difference in nodes if difference.unit == unit]
        return sum(found, ErrorSums()).rmse if found else None

    @property
    def first_divergence(self) -> Divergence | None:
        """The first spike that differs: smallest step, then order of nodes, then sample, then neuron."""
        found = [node.first_divergence for node in self.per_node.values() if node.first_divergence]
        return min(found, key=lambda divergence: divergence.step, default=None)

    @property
    def first_departure(self) -> tuple[str, str] | None:
        """Node and variable of `first_divergence`; where no spike differs, of the first node with other values."""
        first = self.first_divergence
        if first:
            return first.node, "spikes"
        differing = ((node.node, name) for node in self.per_node.values() for name in node.differing_variables)
        return next(differing, None)

    def window_match(self, window: int) -> dict[str, WindowMatch]:
        """Spikes of each node that find a partner at most `window` steps away: precision and recall.

        Args:
            window: steps, 0 or more.

        Returns:
            By node.

        Raises:
            ComparisonError: a window that is no whole number from 0 on.
        """
        from nirdeploy.comparison.trains import window_match

        return {n: window_match(pair, window) for (n, variable), pair in self.pairs.items() if variable == "spikes"}

    def rate_cosine(self) -> dict[str, float]:
        """Cosine of the spike counts (an entry a neuron and sample, over all compared steps) of each node.

        What publications report of platforms; blind to timing and to scale, so that no verdict rests on it.
        """
        from nirdeploy.comparison.trains import rate_cosine

        return {n: rate_cosine(pair) for (n, variable), pair in self.pairs.items() if variable == "spikes"}

    def overall_match(self, window: int) -> WindowMatch | None:
        """`window_match` of all spikes of all compared nodes together; None: no spikes compared.

        Args:
            window: as of `window_match`.

        Raises:
            ComparisonError: as of `window_match`.
        """
        found = list(self.window_match(window).values())
        return sum(found[1:], found[0]) if found else None

    def distances(self, *, cost: float, tau: float, nodes: Iterable[str] | None = None) -> dict[str, Distances]:
        """Victor-Purpura and van Rossum distances of each neuron and sample; see `trains.Distances`.

        Args:
            cost: of moving a spike by a step.
            tau: time constant of van Rossum's filter, in steps.
            nodes: which nodes; None: all whose spikes are compared.

        Raises:
            ComparisonError: a cost or tau that is not above 0, or a node whose spikes are not compared.
            UnavailableError: elephant is not installed.
        """
        from nirdeploy.comparison.trains import distances

        known = {n: pair for (n, variable), pair in self.pairs.items() if variable == "spikes"}
        chosen = list(known if nodes is None else nodes)
        for name in chosen:
            if name not in known:
                raise ComparisonError("its spikes are not compared", node=name, remedy=suggest(str(name), known))
        return {name: distances(known[name], cost=cost, tau=tau) for name in chosen}

    @property
    def equal(self) -> bool:
        """Whether every compared entry of every variable is equal and nothing was left out."""
        return not self.unaligned and not any(
            (node.differing_entries or 0) or any(found.sums.differing for found in node.variables.values())
            for node in self.per_node.values()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; numbers that are not finite become the texts 'nan', 'inf' and '-inf'."""
        first = self.first_divergence
        values = {
            "target": self.target,
            "executor": self.chip.executor,
            "reference": {"target": self.reference.target, "executor": self.reference.executor},
            "graph_sha256": self.chip.graph_sha256,
            "equal": self.equal,
            "spike_agreement": self.spike_agreement,
            "v_mem_error": self.v_mem_error,
            "v_unit": self.v_unit,
            "first_divergence": asdict(first) if first else None,
            "first_departure": self.first_departure,
            "hints": list(self.hints),
            "per_node": {name: node.to_dict() for name, node in self.per_node.items()},
            "unaligned": [entry._asdict() for entry in self.unaligned],
            "notes": list(self.notes),
            "bands": {name: band.to_dict() for name, band in self.bands.items()},
        }
        plain: dict[str, Any] = _plain(values)
        return plain

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def summary(self) -> str:
        """Plain text: verdict, a table of the nodes, the first difference, what was not compared."""
        reference, chip = labels(self.reference, self.chip)
        agreement, error = self.spike_agreement, self.v_mem_error
        verdict = f"{shown(chip)} against {shown(reference)}: "
        verdict += "no spikes compared" if agreement is None else f"{percent(agreement)} of spikes agree"
        if error is not None:
            verdict += f", v_mem differs by {number(error)} {_UNITS[self.v_unit or 'model']} (RMS)"
        shared = [node for node in self.per_node.values() if node.spikes or node.v_unit]
        rows = [_row(node, self.bands.get(node.node)) for node in shared]
        lines = [verdict, "", *(table(_HEAD, rows) if rows else ()), ""]
        for node in self.per_node.values():
            lines += [
                f"{shown(node.node)} {name}: RMS {number(found.rmse)}, largest {number(found.max_error)} model units"
                for name, found in node.variables.items()
                if name != "v_mem"
            ]
        lines += [str(band) for band in self.bands.values()]
        for node in self.per_node.values():
            bounded = [f"{number(node.counters[n])} {n}" for n in _BOUNDED if node.counters.get(n)]
            lines += [f"{shown(node.node)} on the chip: {', '.join(bounded)}"] if bounded else []
        first = self.first_divergence
        if first:
            lines += [f"first difference: {first}", f"  {first.cause}"]
            lines += [f"  {first.arrived()}"] if first.arrived() else []
            lines += [f"  hint: {hint}" for hint in self.hints]
        elif agreement is not None:
            lines.append(f"no spike differs{_values_of(self.first_departure)}")
        lines += [f"note: {note}" for note in self.notes]
        if self.unaligned:
            lines.append("not compared:")
            lines += [f"  {shown(e.node)} {e.variable}: {e.reason}" for e in self.unaligned]
        return "\n".join(lines)

    def to_html(self, path: str | Path) -> None:
        """Write the report page with this comparison as its only section.

        Args:
            path: the file.

        Raises:
            FileError: the folder cannot be written.
        """
        from nirdeploy.comparison.report import Section, write_report

        section = Section(self.target, self, self.reference, self.chip)
        write_report(path, [section], title=f"{self.target}: comparison with the reference")


def _values_of(departure: tuple[str, str] | None) -> str:
    return f"; the first node with other values is {shown(departure[0])} ({departure[1]})" if departure else ""


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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
