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

from nirdeploy.comparison.views import through_views
from nirdeploy.errors import ComparisonError
from nirdeploy.names import suggest
from nirdeploy.trajectory import Record, Trajectory

__all__ = ["Aligned", "Alignment", "Side", "Unaligned", "align", "labels"]

_BLOCK = 1 << 17  # entries compared at once: 1 MiB in float64, so both sides stay in cache
Key = tuple[str, str]


class Unaligned(NamedTuple):
    """A record, or a part of one, that was not compared, and why."""

    node: str
    variable: str
    reason: str


class Clock(NamedTuple):
    """Steps of the run at which something is recorded: the first, and the distance between two."""

    start: int = 0
    stride: int = 1

    def __str__(self) -> str:
        return (
            f"every step from {self.start} on" if self.stride == 1 else f"{self.start}, {self.start + self.stride}, ..."
        )


class _Misfit(Exception):  # noqa: N818 - never leaves this module
    """Two records cannot be aligned; the text is the reason."""


@dataclass(frozen=True, eq=False)
class Side:
    """One variable of one source node in one trajectory, from one record or from the slices of a split layer.

    Attributes:
        parts: the records, side by side.
        index: for each neuron of the parts in order, the flat index in the source node; None: the same.
    """

    parts: tuple[Record, ...]
    index: NDArray[np.int64] | None

    @property
    def count(self) -> int:
        """Number of neurons."""
        return sum(_count(part) for part in self.parts)

    @property
    def batch(self) -> int:
        """Number of samples; 1 for a run without a batch axis."""
        return self.parts[0].n_samples

    @property
    def n_steps(self) -> int:
        """Number of recorded steps."""
        return self.parts[0].n_steps

    @property
    def clock(self) -> Clock:
        """Which steps of the run are recorded: the first, and how many steps lie between two."""
        steps = self.parts[0].steps
        return Clock() if steps is None else Clock(steps.start, steps.step)

    def block(self, steps: slice, samples: slice, columns: NDArray[np.int64] | None) -> NDArray[Any]:
        """Part of the record in model units, [step, batch, neuron], neurons chosen by `columns`."""
        pieces = [_scaled(part.read_batch(steps.start, steps.stop)[:, samples], part) for part in self.parts]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=2)
        return whole if columns is None else whole.take(columns, axis=2)

    def sample(self, sample: int, first: int, last: int, columns: NDArray[np.int64] | None) -> NDArray[Any]:
        """Steps [first, last) of one sample in model units, [step, neuron]."""
        return self.block(slice(first, last), slice(sample, sample + 1), columns)[:, 0]

    def threshold(self, columns: NDArray[np.int64] | None) -> NDArray[np.float64] | None:
        """Threshold in model units, one a neuron or a single one, shape [1]; None where a part has none."""
        found = []
        for part in self.parts:
            if part.threshold is None:
                return None
            values = np.asarray(part.threshold, dtype=np.float64).reshape(-1) * part.scale
            values = values + np.reshape(part.offset, -1)
            found.append(np.broadcast_to(values, (_count(part),)) if len(self.parts) > 1 else values)
        whole = np.concatenate(found)
        return whole if columns is None or whole.size == 1 else whole.take(columns)


def _count(record: Record) -> int:
    return int(np.prod(record.neuron_axes, dtype=np.int64))


def _scaled(data: NDArray[Any], record: Record) -> NDArray[Any]:
    """Data [step, batch, neuron] of a record in model units."""
    found = data if record.scale == 1.0 else data * record.scale
    return found + np.reshape(record.offset, -1) if np.any(record.offset) else found


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
        lag: recorded steps by which the chip is later.
        start: first compared step of the reference.
        steps: number of compared steps.
    """

    node: str
    variable: str
    reference: Side
    chip: Side
    columns: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]
    neurons: NDArray[np.int64] | None
    shape: tuple[int, ...]
    lag: int
    start: int
    steps: int

    @property
    def count(self) -> int:
        """Number of compared neurons."""
        return self.reference.count if self.neurons is None else int(self.neurons.size)

    def blocks(self) -> Iterator[tuple[int, int, NDArray[Any], NDArray[Any]]]:
        """Both sides piece by piece, so that whole records are never copied.

        Yields:
            First reference step, first sample, reference and chip as [step, batch, neuron] in model units; in
            order of steps, then samples: several steps of all samples, or some samples of one step.
        """
        batch, end = self.reference.batch, self.start + self.steps
        n_steps = max(1, _BLOCK // (batch * self.count))
        n_samples = batch if n_steps > 1 else max(1, _BLOCK // self.count)
        for first in range(self.start, end, n_steps):
            last = min(end, first + n_steps)
            for sample in range(0, batch, n_samples):
                samples = slice(sample, sample + n_samples)
                yield (
                    first,
                    sample,
                    self.reference.block(slice(first, last), samples, self.columns[0]),
                    self.chip.block(slice(first + self.lag, last + self.lag), samples, self.columns[1]),
                )

    def sample(self, sample: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """All compared steps of one sample: reference and chip as [step, neuron] in model units."""
        first, last = self.start, self.start + self.steps
        return (
            self.reference.sample(sample, first, last, self.columns[0]),
            self.chip.sample(sample, first + self.lag, last + self.lag, self.columns[1]),
        )

    def thresholds(self) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
        """Thresholds of reference and chip in model units, one a compared neuron or shape [1]; None: none."""
        return self.reference.threshold(self.columns[0]), self.chip.threshold(self.columns[1])

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
        notes: entries that are left out because a read-out hides them.
    """

    pairs: Mapping[Key, Aligned]
    unaligned: tuple[Unaligned, ...]
    notes: tuple[str, ...] = ()


def labels(a: Trajectory, b: Trajectory) -> tuple[str, str]:
    """Two different names for the two sides, e.g. 'reference' and 'speck2f (emulator)'."""
    first, second = (
        "reference" if t.target == t.executor == "reference" else f"{t.target} ({t.executor})" for t in (a, b)
    )
    return (f"first {first}", f"second {second}") if first == second else (first, second)


def align(a: Trajectory, b: Trajectory, lag: int | Mapping[str, int] | None = None) -> Alignment:
    """Pair every record of `b` with the same variable of its source in `a`.

    Args:
        a: the reference.
        b: the chip's run.
        lag: steps by which `b` is later, for all nodes or by node; None: the difference of the records' lags.

    Raises:
        ComparisonError: `lag` is not whole or names an unknown node.
    """
    _check_lag(lag, {record.source for trajectory in (a, b) for record in trajectory.records.values()})
    seen_a, seen_b, notes = through_views(a, b, lag)
    ours, theirs = _by_source(seen_a), _by_source(seen_b)
    name_a, name_b = labels(a, b)
    pairs: dict[Key, Aligned] = {}
    unaligned: list[Unaligned] = []
    for key, records in ours.items():
        node, variable = key
        if key not in theirs:
            unaligned.append(Unaligned(node, variable, f"not recorded by {name_b}"))
            continue
        try:
            pair = _pair(key, _side(records, name_a), _side(theirs[key], name_b), lag, (name_a, name_b))
        except _Misfit as misfit:
            unaligned.append(Unaligned(node, variable, str(misfit)))
            continue
        pairs[key] = pair
        unaligned.extend(Unaligned(node, variable, reason) for reason in _left_out(pair))
    sources = {node for node, _ in ours}
    for (source, variable), records in theirs.items():
        if (source, variable) not in ours:
            known = f"not recorded by {name_a}"
            reason = known if source in sources else f"its source {source!r} is not recorded by {name_a}"
            unaligned.extend(Unaligned(record.node, variable, reason) for record in records)
    kept, dropped = _one_clock(pairs)
    return Alignment(kept, (*unaligned, *dropped), notes)


def _one_clock(pairs: Mapping[Key, Aligned]) -> tuple[dict[Key, Aligned], list[Unaligned]]:
    """The pairs that are recorded at the same steps of the run, so that a row means one step, and the rest."""
    clocks = {key: pair.reference.clock for key, pair in pairs.items()}
    leading = Clock() if Clock() in clocks.values() else next(iter(clocks.values()), Clock())
    kept = {key: pair for key, pair in pairs.items() if clocks[key] == leading}
    dropped = [
        Unaligned(*key, f"recorded at steps {clock}, others at {leading}")
        for key, clock in clocks.items()
        if clock != leading
    ]
    if leading != Clock():
        counted = f"recorded at steps {leading} only; the comparison counts those, from 0"
        dropped.extend(Unaligned(*key, counted) for key in kept)
    return kept, dropped


def _by_source(trajectory: Trajectory) -> dict[Key, list[Record]]:
    found: dict[Key, list[Record]] = {}
    for record in trajectory.records.values():
        found.setdefault((record.source, record.variable), []).append(record)
    return found


def _check_lag(lag: int | Mapping[str, int] | None, known: set[str]) -> None:
    given: Mapping[str, object] = lag if isinstance(lag, Mapping) else {} if lag is None else {"": lag}
    for node, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ComparisonError(f"lag is {value!r}, expected a whole number of steps", node=node or None)
        if isinstance(lag, Mapping) and node not in known:
            raise ComparisonError(f"lag names the unknown node {node!r}", remedy=suggest(str(node), known))


def _side(records: list[Record], label: str) -> Side:
    """One side from the records that name the same source.

    Raises:
        _Misfit: index maps of wrong length, overlapping or missing; slices that do not go together.
    """
    indices = [_index(record, label) for record in records]
    if len(records) == 1:
        return Side((records[0],), indices[0])
    known = [index for index in indices if index is not None]
    if len(known) < len(records):
        raise _Misfit(f"{len(records)} records of {label} name this source, not all with an index map")
    for what, values in (
        ("step counts", {record.n_steps for record in records}),
        ("batch sizes", {record.n_samples for record in records}),
        ("lags", {record.lag for record in records}),
        ("views", {record.view for record in records}),
        ("recorded steps", {record.steps for record in records}),
    ):
        if len(values) > 1:
            raise _Misfit(f"the slices of {label} differ in {what}: {sorted(map(str, values))}")
    return Side(tuple(records), _distinct(np.concatenate(known), label))


def _index(record: Record, label: str) -> NDArray[np.int64] | None:
    # without a map the node's own neurons are the source's
    found = record.neurons if record.index_map is None else record.index_map
    if found is None:
        return None
    index = np.asarray(found, dtype=np.int64).reshape(-1)
    if index.size != _count(record):
        raise _Misfit(f"the index map of {label} has {index.size} entries for {_count(record)} neurons")
    if index.size and index.min() < 0:
        raise _Misfit(f"the index map of {label} holds the negative index {int(index.min())}")
    return _distinct(index, label)


def _distinct(index: NDArray[np.int64], label: str) -> NDArray[np.int64]:
    found, times = np.unique(index, return_counts=True)
    if found.size < index.size:
        twice = int(found[times > 1][0])
        raise _Misfit(f"the index maps of {label} overlap: neuron {twice} is in them more than once")
    return index


def _pair(key: Key, a: Side, b: Side, lag: int | Mapping[str, int] | None, names: tuple[str, str]) -> Aligned:
    node, variable = key
    views = a.parts[0].view, b.parts[0].view
    if views[0] != views[1]:
        shown = ", ".join(f"{view!r} in {name}" for view, name in zip(views, names, strict=True) if view)
        raise _Misfit(f"the state is hidden by the read-out view {shown}")
    if a.batch != b.batch:
        raise _Misfit(f"{a.batch} samples in {names[0]}, {b.batch} in {names[1]}")
    columns, neurons, shape = _match_neurons(a, b, names)
    given = lag.get(node) if isinstance(lag, Mapping) else lag
    shift = b.parts[0].lag - a.parts[0].lag if given is None else int(given)
    if a.clock != b.clock:
        raise _Misfit(f"recorded at steps {a.clock} in {names[0]}, {b.clock} in {names[1]}")
    if shift % a.clock.stride:
        raise _Misfit(f"a lag of {shift} does not fit steps recorded at {a.clock}")
    shift //= a.clock.stride
    start = max(0, -shift)
    steps = min(a.n_steps - start, b.n_steps - start - shift)
    if steps <= 0:
        raise _Misfit(f"no step in common: {a.n_steps} and {b.n_steps} steps at a lag of {shift}")
    pair = Aligned(node, variable, a, b, columns, neurons, shape, shift, start, steps)
    if not pair.count or not a.batch:
        raise _Misfit("the records are empty")
    if variable == "spikes":
        for side, name in ((a, names[0]), (b, names[1])):
            _check_whole(side, name)
    return pair


def _match_neurons(
    a: Side, b: Side, names: tuple[str, str]
) -> tuple[tuple[NDArray[np.int64] | None, NDArray[np.int64] | None], NDArray[np.int64] | None, tuple[int, ...]]:
    """Columns of both sides that are the same neurons, their flat index in the node, and the node's shape."""
    if a.index is None and b.index is None:
        shapes = a.parts[0].neuron_axes, b.parts[0].neuron_axes
        if _without_ones(shapes[0]) != _without_ones(shapes[1]):
            raise _Misfit(f"shape {shapes[0]} in {names[0]}, {shapes[1]} in {names[1]}, and no index map")
        return (None, None), None, shapes[0]
    for side, other, name in ((a, b, names[1]), (b, a, names[0])):
        if side.index is not None and other.index is None and int(side.index.max(initial=0)) >= other.count:
            raise _Misfit(f"an index map reaches neuron {int(side.index.max())}, {name} has {other.count}")
    index_a = np.arange(a.count) if a.index is None else a.index
    index_b = np.arange(b.count) if b.index is None else b.index
    common, columns_a, columns_b = np.intersect1d(index_a, index_b, assume_unique=True, return_indices=True)
    if not common.size:
        raise _Misfit("no neuron in common")
    whole = next((side.parts[0].neuron_axes for side in (a, b) if side.index is None), None)
    shape = whole or (int(max(index_a.max(), index_b.max())) + 1,)
    return (_unless_all(columns_a, a.count), _unless_all(columns_b, b.count)), common, shape


def _unless_all(columns: NDArray[np.int64], count: int) -> NDArray[np.int64] | None:
    return None if columns.size == count and np.array_equal(columns, np.arange(count)) else columns


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _check_whole(side: Side, label: str) -> None:
    if all(part.dtype.kind in "biu" and part.scale == 1.0 and not np.any(part.offset) for part in side.parts):
        return
    for step in range(side.n_steps):
        counts = side.block(slice(step, step + 1), slice(None), None)
        whole = counts == np.rint(counts)  # False for NaN
        if not whole.all() or np.isinf(counts).any() or counts.min(initial=0) < 0:
            raise _Misfit(f"spikes of {label} are not whole counts at step {step}")


def _left_out(pair: Aligned) -> Iterator[str]:
    """What of an aligned pair is on one side only, apart from the steps that the lag itself cuts off."""
    n_a, n_b = pair.reference.n_steps, pair.chip.n_steps
    if n_b not in (n_a, n_a + pair.lag):
        last = pair.start + pair.steps - 1
        yield (f"only steps {pair.start} to {last} are on both sides: {n_a} against {n_b} steps at a lag of {pair.lag}")
    most = max(pair.reference.count, pair.chip.count)
    if pair.count < most:
        yield f"only {pair.count} of {most} neurons are on both sides"
