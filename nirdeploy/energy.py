"""An estimate of a run's energy and time: what it counted, times what is published of one such operation.

The figures are data of the target (`[energy]` in its table), each with its source. Nothing is guessed: where a count or
a figure is missing there is no sum, and a note says what is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from nirdeploy.backend import targets
from nirdeploy.comparison.text import number, shown, table
from nirdeploy.errors import ComparisonError
from nirdeploy.outline import OutlineNode
from nirdeploy.target import Energy, Figure
from nirdeploy.trajectory import Record, Trajectory

__all__ = ["EnergyRow", "Estimate", "estimate", "with_unit"]

_ALWAYS = ("synaptic_operations", "spikes")  # shown for every chip, priced or not


@dataclass(frozen=True)
class EnergyRow:
    """One quantity of one population over the whole run, all samples together.

    Attributes:
        node: the population; '' for the chip.
        quantity: 'synaptic_operations', 'spikes', 'neuron_updates' (neurons times steps), or
            'seconds_at_rest'.
        count: how many; seconds where the quantity is one of time.
        joules_each: of one of them; None: not published.
        joules: their product.
        source: where the figure stands; '' without one.
    """

    node: str
    quantity: str
    count: float
    joules_each: float | None
    joules: float | None
    source: str


@dataclass(frozen=True)
class Estimate:
    """Energy and time of a run as far as published figures go: an estimate, never a measurement.

    Attributes:
        target: the chip.
        rows: what is counted, and priced where there is a figure.
        joules: sum of all rows, for all samples together; None where something counted has no figure, or something
            that has one was not counted.
        seconds: how long one sample takes; None: not known.
        samples: size of the batch.
        notes: what the figures are of, and what is missing.
    """

    target: str
    rows: tuple[EnergyRow, ...] = field(repr=False)  # `summary` shows them
    joules: float | None
    seconds: float | None
    samples: int
    notes: tuple[str, ...] = field(repr=False)

    @property
    def joules_per_sample(self) -> float | None:
        """`joules` divided by the number of samples."""
        return None if self.joules is None or not self.samples else self.joules / self.samples

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "estimate": True,
            "target": self.target,
            "joules": self.joules,
            "joules_per_sample": self.joules_per_sample,
            "seconds": self.seconds,
            "samples": self.samples,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Plain text: the sum, a table of the rows, the sources, the notes."""
        each = "energy not known" if self.joules is None else f"{with_unit(self.joules_per_sample, 'J')} a sample"
        time = "time not known" if self.seconds is None else f"{with_unit(self.seconds, 's')} a sample"
        lines = [f"estimate for {shown(self.target)}, not a measurement: {each}, {time}", ""]
        sources = list(dict.fromkeys(row.source for row in self.rows if row.source))
        if self.rows:
            lines += [*table(_HEAD, [_cells(row, sources) for row in self.rows]), ""]
        lines += [f"[{i}] {source}" for i, source in enumerate(sources, 1)]
        return "\n".join([*lines, *self.notes])


_HEAD = ("node", "quantity", "count", "each", "energy", "source")


def _cells(row: EnergyRow, sources: list[str]) -> tuple[str, ...]:
    cited = f"[{sources.index(row.source) + 1}]" if row.source else "none published"
    name = row.quantity.replace("_", " ")
    return (
        shown(row.node) or "-",
        name,
        number(row.count),
        with_unit(row.joules_each, "J"),
        with_unit(row.joules, "J"),
        cited,
    )


def with_unit(value: float | None, unit: str) -> str:
    """A value with four digits and an SI prefix, e.g. '23.6 pJ'; '-' for None."""
    if value is None:
        return "-"
    prefixes = {0: "", -3: "m", -6: "u", -9: "n", -12: "p"}
    power = min(0, max(-12, 3 * math.floor(math.log10(abs(value)) / 3))) if value else 0
    return f"{value / 10.0**power:.4g} {prefixes[power]}{unit}"


def estimate(trajectory: Trajectory, *, seconds_per_step: float | None = None) -> Estimate:
    """Energy and time of a chip's run from its counters and the figures published of the chip.

    E = sum over populations and quantities of count times joules each, plus watts at rest times seconds.

    Args:
        trajectory: what a deployment's run left; its counters are of all samples together.
        seconds_per_step: how long a step takes on the chip; None: the shortest one published, if any.

    Returns:
        Joules and seconds of all samples together, a row for each population and quantity.

    Raises:
        ComparisonError: seconds_per_step is not above 0.
    """
    if seconds_per_step is not None and not _positive(seconds_per_step):
        raise ComparisonError(f"seconds_per_step is {seconds_per_step!r}, expected a number above 0")
    found = targets().get(trajectory.target)
    unknown = f"{shown(trajectory.target)} is no target of an installed backend: no figures are known of it."
    energy = found.energy if found else Energy(notes=(unknown,))
    samples = max((record.n_samples for record in trajectory.records.values()), default=1)
    missing: list[str] = []
    rows = list(_rows(trajectory, energy, missing) if found else ())
    seconds, timed = _seconds(trajectory, energy, seconds_per_step)
    if energy.rest and seconds_per_step is not None and seconds is not None:
        rows.append(_row("", replace(energy.rest, quantity="seconds_at_rest"), seconds * samples))
    priced = [row.joules for row in rows if row.joules is not None]
    whole = bool(rows) and len(priced) == len(rows) and not missing
    return Estimate(
        trajectory.target,
        tuple(rows),
        math.fsum(priced) if whole else None,
        seconds,
        samples,
        (*energy.notes, *missing, *timed, *_measured(trajectory)),
    )


def _positive(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 < value < math.inf)


def _row(node: str, figure: Figure, count: float) -> EnergyRow:
    return EnergyRow(node, figure.quantity, count, figure.value, figure.value * count, figure.source)


def _rows(trajectory: Trajectory, energy: Energy, missing: list[str]) -> Iterator[EnergyRow]:
    """A row for every quantity of every population; what is not counted is told in `missing`."""
    figures = {figure.quantity: figure for figure in energy.operations}
    uncounted: dict[str, list[str]] = {}
    for node in _populations(trajectory):
        for name in dict.fromkeys((*_ALWAYS, *figures)):
            count = _count(trajectory, node, name)
            if count is None:
                uncounted.setdefault(name, []).append(shown(node))
            elif name in figures:
                yield _row(node, figures[name], count)
            else:
                yield EnergyRow(node, name, count, None, None, "")
    for name, nodes in uncounted.items():
        listed = ", ".join(nodes[:6]) + (f" and {len(nodes) - 6} more" if len(nodes) > 6 else "")
        missing.append(f"Not counted by this run: {name.replace('_', ' ')} of {listed}.")


def _populations(trajectory: Trajectory) -> list[str]:
    """Nodes that hold neurons: those with counters (not the parts of a split one) and those with recorded states."""
    counted = [name for name in trajectory.counters if _is_node(trajectory, name)]
    states = [node for node, variable in trajectory.records if variable != "output"]
    return list(dict.fromkeys((*counted, *states)))


def _is_node(trajectory: Trajectory, name: str) -> bool:
    """Whether counters are of a population: backends also count for each core of a split one, or for the chip."""
    if trajectory.outline is not None:
        return name in trajectory.outline.nodes
    whole = re.fullmatch(r"(.*) \(core \d+\)", name)
    return name != "chip" and not (whole and whole[1] in trajectory.counters)


def _count(trajectory: Trajectory, node: str, name: str) -> int | None:
    """A counter, or what a whole record tells; None: neither."""
    found = trajectory.counters.get(node, {}).get(name)
    if found is not None:
        return int(found)
    spikes = trajectory.records.get((node, "spikes"))
    if name == "spikes":
        return _total(spikes) if spikes is not None and _whole(spikes) else _silent(trajectory, node)
    return _updates(trajectory, node) if name == "neuron_updates" else None


def _silent(trajectory: Trajectory, node: str) -> int | None:
    """0 where the node is one that never spikes."""
    kind = trajectory.outline.nodes[node].kind if trajectory.outline and node in trajectory.outline.nodes else ""
    return 0 if kind in ("LI", "I", "CubaLI") else None


def _total(record: Record) -> int:
    return sum(int(record.read(start, stop).sum(dtype=np.int64)) for start, stop in record.blocks())


def _whole(record: Record) -> bool:
    return record.steps is None and record.neurons is None


def _updates(trajectory: Trajectory, node: str) -> int | None:
    """Neurons times steps times samples: a chip with steps updates every neuron in each."""
    every = [record for record in trajectory.records.values() if _whole(record)]
    own = [record for record in every if record.node == node and record.variable != "output"]
    if own:
        return math.prod(own[0].shape)
    outline: Mapping[str, OutlineNode] = trajectory.outline.nodes if trajectory.outline else {}
    shape = outline[node].shape if node in outline else None
    if shape is None or not every:
        return None
    return math.prod(shape) * every[0].n_steps * every[0].n_samples


def _seconds(trajectory: Trajectory, energy: Energy, given: float | None) -> tuple[float | None, tuple[str, ...]]:
    """Seconds of a sample's run, and what they are."""
    steps = max((r.n_steps if not r.steps else r.steps[-1] + 1 for r in trajectory.records.values()), default=0)
    if given is not None:
        return steps * given, ()
    if energy.step is None:
        return None, ("How long a step takes is not known: pass seconds_per_step.",)
    least = with_unit(energy.step.value, "s")
    return steps * energy.step.value, (f"The time is a lower bound of {least} a step ({energy.step.source}).",)


def _measured(trajectory: Trajectory) -> Iterator[str]:
    """What a chip's own power monitor said in this run."""
    for name, value in trajectory.counters.get("chip", {}).items():
        if rail := re.fullmatch(r"power_(.*)_uw", name):
            yield f"Measured in this run, on rail {rail[1]}: {value} uW."
