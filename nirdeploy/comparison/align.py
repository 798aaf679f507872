"""Bringing two trajectories to the same neurons, the same steps and the same units.

Both sides are taken back to the node of the original graph they come from (`Record.source`, `index_map`),
shifted by the difference of their lags and read in model units. What cannot be aligned is listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.sides import NO_NEURON, Misfit, Side, check_whole, every, side_of, together
from nirdeploy.comparison.views import through_views
from nirdeploy.errors import ComparisonError
from nirdeploy.names import suggest
from nirdeploy.trajectory import Record, Trajectory

__all__ = ["Aligned", "Alignment", "Lags", "Side", "Unaligned", "align", "labels", "pair_up"]

_BLOCK = 1 << 17  # entries compared at once: 1 MiB in float64, so both sides stay in cache
Key = tuple[str, str]
Lags = int | Mapping[str, int] | None


class Unaligned(NamedTuple):
    """A record, or a part of one, that was not compared, and why."""

    node: str
    variable: str
    reason: str


@dataclass(frozen=True, eq=False)
class Aligned:
    """One variable of one node on both sides, at the same neurons and steps.

    Attributes:
        node: name in the original graph.
        variable: 'spikes', 'v_mem', 'i_syn' or 'output'.
        reference: first trajectory's side.
        chip: second trajectory's side.
        columns: for reference and chip, which neurons of the side to take; None: all in order.
        neurons: flat index in the node of each compared neuron; None: all in order.
        shape: the node's shape, for showing a neuron as a tuple.
        lag: steps by which the chip is later.
        when: the compared steps, as steps of the reference's run.
    """

    node: str
    variable: str
    reference: Side
    chip: Side
    columns: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]
    neurons: NDArray[np.int64] | None
    shape: tuple[int, ...]
    lag: int
    when: range

    @property
    def start(self) -> int:
        """First compared step of the reference."""
        return self.when.start

    @property
    def steps(self) -> int:
        """Number of compared steps."""
        return len(self.when)

    @property
    def count(self) -> int:
        """Number of compared neurons."""
        return self.reference.count if self.neurons is None else int(self.neurons.size)

    def rows(self, first: int, last: int) -> tuple[slice, slice]:
        """Rows of the reference's and of the chip's records for entries [first, last) of `when`."""

        def of(side: Side, lag: int) -> slice:
            steps, stride = side.steps, self.when.step // side.steps.step
            start = steps.index(self.when.start + lag)
            return slice(start + first * stride, start + (last - 1) * stride + 1, stride)

        return of(self.reference, 0), of(self.chip, self.lag)

    def blocks(self, most: int | None = None) -> Iterator[tuple[int, int, NDArray[Any], NDArray[Any]]]:
        """Both sides piece by piece, so that whole records are never copied.

        Args:
            most: samples, from the first on; None: all.

        Yields:
            Index into `when` of the first step, first sample, reference and chip as [step, batch, neuron] in model
            units; in order of steps, then samples: several steps of all samples, or some samples of one step.
        """
        batch = self.reference.batch if most is None else min(most, self.reference.batch)
        n_steps = max(1, _BLOCK // (batch * self.count))
        n_samples = batch if n_steps > 1 else max(1, _BLOCK // self.count)
        for first in range(0, self.steps, n_steps):
            ours, theirs = self.rows(first, min(self.steps, first + n_steps))
            for sample in range(0, batch, n_samples):
                samples = slice(sample, min(batch, sample + n_samples))
                yield (
                    first,
                    sample,
                    self.reference.block(ours, samples, self.columns[0]),
                    self.chip.block(theirs, samples, self.columns[1]),
                )

    def samples(self, chosen: slice, first: int = 0, last: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Entries [first, last) of `when` of some samples: both sides as [step, sample, neuron] in model units."""
        ours, theirs = self.rows(first, self.steps if last is None else last)
        return (
            self.reference.block(ours, chosen, self.columns[0]),
            self.chip.block(theirs, chosen, self.columns[1]),
        )

    def sample(self, sample: int, first: int = 0, last: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Likewise of one: [step, neuron]."""
        ours, theirs = self.samples(slice(sample, sample + 1), first, last)
        return ours[:, 0], theirs[:, 0]

    def at(self, step: int, sample: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """One step of the reference of one sample: both sides as [neuron]; None where it is not compared."""
        if step not in self.when:
            return None
        first = self.when.index(step)
        ours, theirs = self.rows(first, first + 1)
        chosen = slice(sample, sample + 1)
        return (
            self.reference.block(ours, chosen, self.columns[0])[0, 0],
            self.chip.block(theirs, chosen, self.columns[1])[0, 0],
        )

    def thresholds(self) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
        """Thresholds of reference and chip in model units, one a compared neuron or shape [1]; None: none."""
        return self.reference.threshold(self.columns[0]), self.chip.threshold(self.columns[1])

    def core(self, position: int) -> int | None:
        """Core that holds the compared neuron at `position` on the chip; None: not known."""
        columns = self.columns[1]
        return self.chip.core(position if columns is None else int(columns[position]))

    def flat(self, position: int) -> int:
        """Flat index in the node of the compared neuron at `position`."""
        return position if self.neurons is None else int(self.neurons[position])

    def position(self, flat: int) -> int | None:
        """Inverse of `flat`; None where that neuron is not compared."""
        if self.neurons is None:
            return flat if flat < self.count else None
        found = int(np.searchsorted(self.neurons, flat))
        return found if found < self.neurons.size and int(self.neurons[found]) == flat else None

    def neuron(self, position: int) -> tuple[int, ...]:
        """Index in the node's own shape of the compared neuron at `position`."""
        return tuple(int(i) for i in np.unravel_index(self.flat(position), self.shape))


@dataclass(frozen=True, eq=False)
class Alignment:
    """Everything that can be compared, in the reference's order of recording, and what cannot.

    Attributes:
        pairs: (node, variable) -> both sides.
        unaligned: what is not compared, whole records or parts of them.
        notes: entries that are left out because a read-out hides them, and steps that alone are recorded.
    """

    pairs: Mapping[Key, Aligned]
    unaligned: tuple[Unaligned, ...]
    notes: tuple[str, ...] = ()

    def by_node(self) -> dict[str, dict[str, Aligned]]:
        """Node -> variable -> both sides."""
        found: dict[str, dict[str, Aligned]] = {}
        for (node, variable), pair in self.pairs.items():
            found.setdefault(node, {})[variable] = pair
        return found


def labels(a: Trajectory, b: Trajectory) -> tuple[str, str]:
    """Two different names for the two sides, e.g. 'reference' and 'speck2f (emulator)'."""
    first, second = (
        "reference" if t.target == t.executor == "reference" else f"{t.target} ({t.executor})" for t in (a, b)
    )
    return (f"first {first}", f"second {second}") if first == second else (first, second)


def align(a: Trajectory, b: Trajectory, lag: Lags = None) -> Alignment:
    """Pair every record of `b` with the same variable of its source in `a`.

    Args:
        a: the reference.
        b: the chip's run.
        lag: steps by which `b` is later, for all nodes or by node; None: the difference of the records' lags.

    Raises:
        ComparisonError: `lag` is not whole or names an unknown node.
    """
    _check_lag(lag)
    seen_a, seen_b, notes = through_views(a, b, lag)
    _check_named(lag, {record.source for seen in (seen_a, seen_b) for record in seen.records.values()})
    ours, theirs = _by_source(seen_a), _by_source(seen_b)
    name_a, name_b = labels(a, b)
    pairs: dict[Key, Aligned] = {}
    unaligned: list[Unaligned] = []
    snapshots: list[str] = []
    for key, records in ours.items():
        node, variable = key
        if key not in theirs:
            unaligned.append(Unaligned(node, variable, f"not recorded by {name_b}"))
            continue
        try:
            pair = pair_up(key, side_of(records, name_a), side_of(theirs[key], name_b), lag, (name_a, name_b))
        except Misfit as misfit:
            unaligned.append(Unaligned(node, variable, str(misfit)))
            continue
        pairs[key] = pair
        unaligned.extend(Unaligned(node, variable, reason) for reason in _left_out(pair))
        snapshots.extend(_snapshots(pair, (name_a, name_b)))
    sources = {node for node, _ in ours}
    for (source, variable), records in theirs.items():
        if (source, variable) not in ours:
            known = f"not recorded by {name_a}"
            reason = known if source in sources else f"its source {source!r} is not recorded by {name_a}"
            unaligned.extend(Unaligned(record.node, variable, reason) for record in records)
    return Alignment(pairs, tuple(unaligned), (*notes, *snapshots))


def _by_source(trajectory: Trajectory) -> dict[Key, list[Record]]:
    found: dict[Key, list[Record]] = {}
    for record in trajectory.records.values():
        found.setdefault((record.source, record.variable), []).append(record)
    return found


def _check_lag(lag: Lags) -> None:
    given: Mapping[str, object] = lag if isinstance(lag, Mapping) else {} if lag is None else {"": lag}
    for node, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ComparisonError(f"lag is {value!r}, expected a whole number of steps or 'find'", node=node or None)


def _check_named(lag: Lags, known: set[str]) -> None:
    for node in lag if isinstance(lag, Mapping) else ():
        if node not in known:
            raise ComparisonError(f"lag names the unknown node {node!r}", remedy=suggest(str(node), known))


def pair_up(key: Key, a: Side, b: Side, lag: Lags, names: tuple[str, str]) -> Aligned:
    """Both sides at the neurons and steps they have in common.

    Raises:
        Misfit: there are none, or the sides differ in batch, shape or read-out, or spikes are no counts.
    """
    node, variable = key
    views = a.parts[0].view, b.parts[0].view
    if views[0] != views[1]:
        shown = ", ".join(f"{view!r} in {name}" for view, name in zip(views, names, strict=True) if view)
        raise Misfit(f"the state is hidden by the read-out view {shown}")
    units = a.parts[0].units, b.parts[0].units
    if units[0] != units[1] and variable in ("v_mem", "i_syn"):
        raise Misfit(f"in units of {units[0]!r} in {names[0]}, {units[1]!r} in {names[1]}")
    for side, name in ((a, names[0]), (b, names[1])):
        if strange := next((part.dtype for part in side.parts if part.dtype.kind not in "biuf"), None):
            raise Misfit(f"values of type {strange} in {name}")
    if a.batch != b.batch:
        raise Misfit(f"{a.batch} samples in {names[0]}, {b.batch} in {names[1]}")
    columns, neurons, shape = _match_neurons(a, b, names)
    given = lag.get(node) if isinstance(lag, Mapping) else lag
    shift = b.lag - a.lag if given is None else int(given)
    later = b.steps
    when = together(a.steps, range(later.start - shift, later.stop - shift, later.step))
    if not len(when):
        lengths = f"{len(a.steps)} and {len(b.steps)} steps"
        if a.steps.step == b.steps.step == 1:
            raise Misfit(f"no step in common: {lengths} at a lag of {shift}")
        recorded = f"recorded at steps {every(a.steps)} in {names[0]}, {every(b.steps)} in {names[1]}"
        raise Misfit(f"no step in common at a lag of {shift}: {recorded}")
    pair = Aligned(node, variable, a, b, columns, neurons, shape, shift, when)
    if not pair.count or not a.batch:
        raise Misfit("the records are empty")
    if variable == "spikes":
        for side, name in ((a, names[0]), (b, names[1])):
            check_whole(side, name)
    return pair


def _match_neurons(
    a: Side, b: Side, names: tuple[str, str]
) -> tuple[tuple[NDArray[np.int64] | None, NDArray[np.int64] | None], NDArray[np.int64] | None, tuple[int, ...]]:
    """Columns of both sides that are the same neurons, their flat index in the node, and the node's shape."""
    if a.index is None and b.index is None:
        shapes = a.parts[0].neuron_axes, b.parts[0].neuron_axes
        if _without_ones(shapes[0]) != _without_ones(shapes[1]):
            raise Misfit(f"shape {shapes[0]} in {names[0]}, {shapes[1]} in {names[1]}, and no index map")
        return (None, None), None, shapes[0]
    for side, other, name in ((a, b, names[1]), (b, a, names[0])):
        if side.index is not None and other.index is None and int(side.index.max(initial=0)) >= other.count:
            raise Misfit(f"an index map reaches neuron {int(side.index.max())}, {name} has {other.count}")
    (index_a, used_a), (index_b, used_b) = _used(a), _used(b)
    common, places_a, places_b = np.intersect1d(index_a, index_b, assume_unique=True, return_indices=True)
    if not common.size:
        raise Misfit("no neuron in common")
    columns_a, columns_b = used_a[places_a], used_b[places_b]
    whole = next((side.parts[0].neuron_axes for side in (a, b) if side.index is None), None)
    shape = whole or (int(max(index_a.max(), index_b.max())) + 1,)
    return (_unless_all(columns_a, a.count), _unless_all(columns_b, b.count)), common, shape


def _used(side: Side) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat indices in the node, and the columns of the side that have one."""
    if side.index is None:
        every_one = np.arange(side.count)
        return every_one, every_one
    columns = np.flatnonzero(side.index != NO_NEURON)
    return side.index[columns], columns


def _unless_all(columns: NDArray[np.int64], count: int) -> NDArray[np.int64] | None:
    return None if columns.size == count and np.array_equal(columns, np.arange(count)) else columns


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _left_out(pair: Aligned) -> Iterator[str]:
    """What of an aligned pair is on one side only, apart from the steps that the lag itself cuts off."""
    ours, theirs = pair.reference.steps, pair.chip.steps
    whole = ours.start == theirs.start and ours.step == theirs.step
    if whole and len(theirs) not in (len(ours), len(ours) + pair.lag // ours.step):
        counts = f"{len(ours)} against {len(theirs)} steps at a lag of {pair.lag}"
        yield f"only steps {pair.when[0]} to {pair.when[-1]} are on both sides: {counts}"
    used = [side.count if side.index is None else int((side.index != NO_NEURON).sum()) for side in _sides(pair)]
    if pair.count < max(used):
        yield f"only {pair.count} of {max(used)} neurons are on both sides"


def _snapshots(pair: Aligned, names: tuple[str, str]) -> Iterator[str]:
    """That a side was recorded at some steps only, which says all that there is to say about the others."""
    for side, name in zip(_sides(pair), names, strict=True):
        if side.steps != range(len(side.steps)):
            yield f"{pair.node} {pair.variable}: {name} is recorded at {every(side.steps)} only"


def _sides(pair: Aligned) -> tuple[Side, Side]:
    return pair.reference, pair.chip
