"""`compare`: align two trajectories, measure every pair and find the first spike that differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.align import Aligned, Alignment, Lags, align, labels
from nirdeploy.comparison.arrivals import arrivals
from nirdeploy.comparison.bands import align_trials, node_bands
from nirdeploy.comparison.cause import explain
from nirdeploy.comparison.divergence import Divergence
from nirdeploy.comparison.hints import hints
from nirdeploy.comparison.lags import find_lags
from nirdeploy.comparison.metrics import ErrorSums, SpikeSums, error_sums, first_difference, spike_sums
from nirdeploy.comparison.per_node import Difference, NodeComparison, Unit
from nirdeploy.comparison.result import Comparison
from nirdeploy.comparison.spread import NEVER, Spread
from nirdeploy.comparison.text import several
from nirdeploy.errors import ComparisonError, NirdeployError
from nirdeploy.names import suggest
from nirdeploy.outline import Outline
from nirdeploy.trajectory import Trajectory

__all__ = ["compare"]


def compare(
    a: Trajectory | Sequence[Trajectory],
    b: Trajectory | Sequence[Trajectory],
    *,
    lag: int | Mapping[str, int] | Literal["find"] | None = None,
    nodes: Iterable[str] | None = None,
    graph: nir.NIRGraph | None = None,
    raster: Any = None,
) -> Comparison:
    """Hold a chip's run against the reference, state by state.

    Records are paired by their source node and variable, shifted by the difference of their lags, brought to
    the same neurons by their index maps, and compared in model units; spikes as whole numbers with ==.
    Records whose read-out view hides the state on one side only are not compared but listed; of Loihi's v, which its
    probes hide in refractory steps alone, the other steps are compared.

    Args:
        a: the reference; several trials of it make bands (`bands.Banded`), inside which nothing counts as a difference.
        b: the chip's run, or several trials of it.
        lag: steps by which `b` is later, for all nodes or by node; None: what the records say; 'find': for each node
            the one at which it agrees best (`lags.find_lags`), told in the notes.
        nodes: of the original graph, those to compare; None: all that are recorded.
        graph: the network, for the order of the nodes, and the weights of what arrived at the first difference; None:
            the one `a` or `b` ran.
        raster: what came in, for the same; None: what `a` was given.

    Returns:
        The comparison; whatever could not be aligned is in `Comparison.unaligned` with the reason.

    Raises:
        ComparisonError: nothing at all aligns, `lag` is not whole, or it or `nodes` names an unknown node.
    """
    ours, theirs = _trials(a), _trials(b)
    if nodes is not None:
        ours, theirs = _of_nodes((ours, theirs), [nodes] if isinstance(nodes, str) else list(nodes))
    a, b = ours[0], theirs[0]
    outline = _outline(a, b, graph)
    alignment = _in_order(_aligned(ours, theirs, lag), outline)
    if not alignment.pairs:
        raise ComparisonError(_nothing(a, b, alignment), remedy="Record the same nodes and variables on both sides.")
    spikes = {node: _measure_spikes(p) for (node, variable), p in alignment.pairs.items() if variable == "spikes"}
    spread = Spread({node: found.first_steps for node, found in spikes.items()}, outline)
    found = Comparison(
        reference=a,
        chip=b,
        per_node={node: _node(node, mine, spikes.get(node), spread, b) for node, mine in alignment.by_node().items()},
        unaligned=alignment.unaligned,
        notes=(*_notes(ours, theirs), *alignment.notes),
        pairs=alignment.pairs,
        bands=node_bands(alignment.pairs),
    )
    return _with_hints(_with_inputs(found, graph, raster), outline)


def _trials(given: Any) -> tuple[Trajectory, ...]:
    trials = tuple(given) if isinstance(given, list | tuple) else (given,)
    for one in trials:
        if not isinstance(one, Trajectory):
            raise ComparisonError(
                f"compare takes two trajectories, got {type(one).__name__}",
                remedy="Pass what nd.run(...) and Deployment.run(...) return, or lists of such trials.",
            )
    if not trials:
        raise ComparisonError("no trial is given", remedy="Pass one trajectory at least for each side.")
    return trials


def _of_nodes(
    sides: tuple[tuple[Trajectory, ...], tuple[Trajectory, ...]], nodes: list[str]
) -> list[tuple[Trajectory, ...]]:
    """All trials with the records of these nodes alone."""
    known = {record.source for side in sides for one in side for record in one.records.values()}
    for node in nodes:
        if node not in known:
            raise ComparisonError("is recorded by neither", node=node, remedy=suggest(str(node), known))

    def kept(one: Trajectory) -> Trajectory:
        return replace(one, records={k: r for k, r in one.records.items() if r.source in nodes or r.node in nodes})

    return [tuple(kept(one) for one in side) for side in sides]


def _aligned(a: Sequence[Trajectory], b: Sequence[Trajectory], lag: Lags | str) -> Alignment:
    notes: tuple[str, ...] = ()
    if isinstance(lag, str):
        if lag != "find":
            raise ComparisonError(f"lag is {lag!r}, expected a whole number of steps or 'find'")
        found = find_lags(align(a[0], b[0]), labels(a[0], b[0]))
        lag = {node: one.lag for node, one in found.items()}
        notes = tuple(one.note for one in found.values() if one.note)
    if len(a) == len(b) == 1:
        alignment = align(a[0], b[0], lag)
    else:
        alignment = align_trials(a, b, lag)
        counts = f"{several(len(a), 'trial')} of the reference, {len(b)} of the chip"
        notes = (*notes, f"{counts}: what lies inside their bands counts as equal")
    return Alignment(alignment.pairs, alignment.unaligned, (*alignment.notes, *notes))


def _outline(a: Trajectory, b: Trajectory, graph: nir.NIRGraph | None) -> Outline | None:
    known = a.outline or b.outline
    if known is not None or graph is None:
        return known
    try:
        return Outline.of(graph)
    except NirdeployError:
        return None  # `arrivals` says so


def _in_order(alignment: Alignment, outline: Outline | None) -> Alignment:
    """Pairs in the order in which the nodes are executed, so that of those that differ in one step the first is named.

    A recording may list them in any order; where no graph is known, that order stays.
    """
    if outline is None:
        return alignment
    place = {name: k for k, name in enumerate(outline.nodes)}
    ordered = sorted(alignment.pairs.items(), key=lambda item: place.get(item[0][0], len(place)))
    return replace(alignment, pairs=dict(ordered))


def _with_inputs(found: Comparison, graph: nir.NIRGraph | None, raster: Any) -> Comparison:
    """The same with what arrived at the first difference."""
    first = found.first_divergence
    known = next((g for g in (graph, found.reference.graph, found.chip.graph) if g is not None), None)
    if first is None or known is None:
        return found
    convention = found.reference.convention or found.chip.convention
    given = found.reference.raster if raster is None else raster
    place = first.node, first.neuron, first.sample, first.step
    inputs, note = arrivals(known, convention, found.pairs, *place, raster=given)
    node = found.per_node[first.node]
    told = replace(node, first_divergence=replace(first, inputs=inputs, inputs_note=note))
    return replace(found, per_node={**found.per_node, first.node: told})


def _with_hints(found: Comparison, outline: Outline | None) -> Comparison:
    first = found.first_divergence
    if first is None:
        return found
    return replace(found, hints=hints(found.pairs, outline, first, found.per_node[first.node].counters))


def _nothing(a: Trajectory, b: Trajectory, alignment: Alignment) -> str:
    sides = "; ".join(
        f"{name} records {_listed([f'{node}/{variable}' for node, variable in t.records])}"
        for name, t in zip(labels(a, b), (a, b), strict=True)
    )
    reasons = [f"{entry.node}/{entry.variable}: {entry.reason}" for entry in alignment.unaligned]
    return f"nothing can be compared: {sides}. Reasons: {_listed(reasons, '; ')}"


def _listed(items: list[str], separator: str = ", ") -> str:
    more = f" and {len(items) - 12} more" if len(items) > 12 else ""
    return separator.join(items[:12]) + more if items else "nothing"


def _notes(ours: Sequence[Trajectory], theirs: Sequence[Trajectory]) -> tuple[str, ...]:
    """What differs between the runs as such, between trials of one side too; and which of them were cut off."""
    names = labels(ours[0], theirs[0])
    notes: list[str] = []
    for trials, name in zip((ours, theirs), names, strict=True):
        for k, one in enumerate(trials):
            which = f"trial {k} of {name}" if len(trials) > 1 else name
            if (one.target, one.executor) != (trials[0].target, trials[0].executor):
                notes.append(f"{which} is a run of {one.target} ({one.executor})")
            if not one.complete:
                notes.append(f"{which} was cut off{f': {one.reason}' if one.reason else ''}")
    for one, other in (*((ours[0], one) for one in (*theirs, *ours[1:])), *((theirs[0], one) for one in theirs[1:])):
        notes += _differences(one, other)
    return tuple(dict.fromkeys(notes))


def _differences(a: Trajectory, b: Trajectory) -> list[str]:
    notes = []
    if a.graph_sha256 and b.graph_sha256 and a.graph_sha256 != b.graph_sha256:
        notes.append(f"the two runs are of different graphs: sha256 {a.graph_sha256[:12]} and {b.graph_sha256[:12]}")
    if a.convention and b.convention and a.convention != b.convention:
        ours, theirs = a.convention.to_dict(), b.convention.to_dict()
        fields = [
            f"{name} {ours[name]!r} against {theirs[name]!r}"
            for name in ours
            if ours[name] != theirs[name] and name != "preset"
        ]
        notes.append(f"the conventions differ: {', '.join(fields)}")
    return notes


@dataclass(frozen=True, eq=False)
class _Spikes:
    """Spikes of one node: sums, the first entry that differs, and for each sample the first such step."""

    pair: Aligned
    sums: SpikeSums
    first: _Entry | None
    first_steps: NDArray[np.int64]


class _Entry(NamedTuple):
    """One entry: reference step, sample, position among the compared neurons, both counts."""

    step: int
    sample: int
    position: int
    expected: int
    observed: int


def _measure_spikes(pair: Aligned) -> _Spikes:
    sums, first = SpikeSums(), None
    first_steps = np.full(pair.reference.batch, NEVER)
    for start, sample, reference, chip in pair.blocks():
        found = spike_sums(reference, chip)
        sums = sums + found
        if not found.differing:
            continue
        differs = (reference != chip).any(axis=2)
        first_rows = differs.argmax(axis=0)
        steps = np.where(differs.any(axis=0), pair.when.start + (start + first_rows) * pair.when.step, NEVER)
        mine = first_steps[sample : sample + steps.size]
        np.minimum(mine, steps, out=mine)
        if first is None:
            index = first_difference(reference, chip)
            if index is not None:
                expected, observed = int(reference[index]), int(chip[index])
                first = _Entry(pair.when[start + index[0]], sample + index[1], index[2], expected, observed)
    return _Spikes(pair, sums, first, first_steps)


def _measure_values(pair: Aligned) -> Difference:
    unit, divisor = _unit_of(pair)
    sums = ErrorSums()
    for _, _, reference, chip in pair.blocks():
        sums = sums + error_sums(reference, chip, divisor)
    return Difference(sums, unit)


def _unit_of(pair: Aligned) -> tuple[Unit, float | NDArray[np.float64]]:
    """The reference's threshold as the unit of v_mem, else the chip's, else model units."""
    if pair.variable == "v_mem":
        for threshold in pair.thresholds():
            if threshold is not None and np.isfinite(threshold).all() and (threshold > 0).all():
                return "threshold", float(threshold[0]) if threshold.size == 1 else threshold
    return "model", 1.0


def _node(
    node: str, mine: Mapping[str, Aligned], found: _Spikes | None, spread: Spread, chip: Trajectory
) -> NodeComparison:
    leading: Aligned = mine.get("spikes") or mine.get("v_mem") or next(iter(mine.values()))
    return NodeComparison(
        node=node,
        spikes=found.sums if found else None,
        variables={v: _measure_values(pair) for v, pair in mine.items() if v != "spikes"},
        lag=leading.lag,
        counters=_counters(leading, chip),
        first_divergence=_divergence(node, found, mine.get("v_mem"), spread, chip) if found else None,
    )


def _divergence(
    node: str, found: _Spikes, v_mem: Aligned | None, spread: Spread, chip: Trajectory
) -> Divergence | None:
    entry = found.first
    if entry is None:
        return None
    state = _state(found.pair, v_mem, entry)
    return Divergence(
        node=node,
        neuron=found.pair.neuron(entry.position),
        sample=entry.sample,
        step=entry.step,
        chip_step=entry.step + found.pair.lag,
        expected=entry.expected,
        observed=entry.observed,
        v_reference=state.at(0, entry.step) if state else None,
        v_chip=state.at(1, entry.step) if state else None,
        threshold_reference=state.thresholds[0] if state else None,
        threshold_chip=state.thresholds[1] if state else None,
        core=found.pair.core(entry.position),
        cause=explain(
            step=entry.step,
            missing=entry.observed < entry.expected,
            voltages=state.voltages if state else None,
            steps=state.steps if state else range(0),
            thresholds=state.thresholds if state else (None, None),
            earlier=spread.earlier(node, entry.step, entry.sample),
            saturations=_counters(found.pair, chip).get("saturations", 0),
        ),
    )


class _State(NamedTuple):
    """v_mem of one neuron of one sample on both sides, in model units."""

    voltages: tuple[NDArray[Any], NDArray[Any]]
    thresholds: tuple[float | None, float | None]
    steps: range

    def at(self, side: int, step: int) -> float | None:
        """v_mem at a reference step, or None outside the compared steps."""
        return float(self.voltages[side][self.steps.index(step)]) if step in self.steps else None


def _state(spikes: Aligned, v_mem: Aligned | None, entry: _Entry) -> _State | None:
    position = v_mem.position(spikes.flat(entry.position)) if v_mem else None
    if v_mem is None or position is None or entry.sample >= v_mem.reference.batch:
        return None
    reference, chip = v_mem.sample(entry.sample)
    own, its = (None if t is None else float(t[0] if t.size == 1 else t[position]) for t in v_mem.thresholds())
    return _State((reference[:, position], chip[:, position]), (own, its), v_mem.when)


def _counters(pair: Aligned, chip: Trajectory) -> dict[str, int]:
    """What the chip's run counted at a node, over the records it is made of."""
    found: dict[str, int] = {}
    for name in {record.node for record in pair.chip.parts} | {pair.node}:
        for counter, value in chip.counters.get(name, {}).items():
            found[counter] = found.get(counter, 0) + int(value)
    return found
