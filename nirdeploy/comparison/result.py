"""What a comparison says: per node, overall, and the first spike that differs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nirdeploy.comparison.align import Aligned, Unaligned
from nirdeploy.comparison.bands import NodeBand
from nirdeploy.comparison.divergence import Divergence
from nirdeploy.comparison.metrics import ErrorSums, SpikeSums
from nirdeploy.comparison.per_node import NodeComparison, Unit
from nirdeploy.comparison.summary import headline, summary
from nirdeploy.errors import ComparisonError
from nirdeploy.names import suggest
from nirdeploy.trajectory import Trajectory

if TYPE_CHECKING:
    from nirdeploy.comparison.trains import Distances, WindowMatch

__all__ = ["Comparison"]


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        first = self.first_divergence
        where = f"; first difference at {first.node}, step {first.step}" if first else ""
        return f"Comparison({headline(self)}{where})"

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
        return summary(self)

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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
