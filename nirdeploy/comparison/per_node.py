"""One node on both sides: how far its spikes and its other variables are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from nirdeploy.comparison.divergence import Divergence
from nirdeploy.comparison.metrics import ErrorSums, SpikeSums

__all__ = ["Difference", "NodeComparison", "Unit"]

Unit = Literal["threshold", "model"]


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
