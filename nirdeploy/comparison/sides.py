"""One variable of one node of one trajectory: from one record, or from the slices of a split layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.trajectory import Record, wide

__all__ = ["Misfit", "Side", "check_whole", "every", "side_of", "together"]

NO_NEURON = -1
"""In an index map: a neuron of the chip that stands for none of the source's (padding, or another source's)."""


class Misfit(Exception):  # noqa: N818 - never leaves the comparison
    """Two records cannot be aligned; the text is the reason."""


def every(steps: range) -> str:
    """Steps for people: '0, 10, ... 90', 'every step from 5 to 19' or 'step 9'."""
    if len(steps) == 1:
        return f"step {steps.start}"
    if steps.step == 1:
        return f"every step from {steps.start} to {steps[-1]}"
    return f"{steps.start}, {steps[1]}, ... {steps[-1]}" if len(steps) > 2 else f"{steps.start} and {steps[1]}"


def together(a: range, b: range) -> range:
    """The steps that are in both, in order."""
    stride = math.lcm(a.step, b.step)
    first = max(a.start, b.start)
    end = min(a.stop, b.stop)
    start = next((s for s in range(first, min(end, first + stride)) if s in a and s in b), end)
    return range(start, max(start, end), stride)


@dataclass(frozen=True, eq=False)
class Side:
    """One variable of one source node in one trajectory.

    Attributes:
        parts: the records, side by side.
        index: for each neuron of the parts in order, the flat index in the source node, or `NO_NEURON`; None: the same.
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
    def lag(self) -> int:
        """Steps by which it is later than the source node in a run without delays."""
        return self.parts[0].lag

    @property
    def steps(self) -> range:
        """Steps of the run that are recorded."""
        first = self.parts[0]
        return range(first.n_steps) if first.steps is None else first.steps

    def block(self, rows: slice, samples: slice, columns: NDArray[np.int64] | None) -> NDArray[Any]:
        """Recorded rows in model units, [row, batch, neuron], neurons chosen by `columns`."""
        pieces = [_scaled(_read(part, rows)[:, samples], part) for part in self.parts]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=2)
        return whole if columns is None else whole.take(columns, axis=2)

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

    def core(self, column: int) -> int | None:
        """Core of a neuron of the parts; None where the record does not tell."""
        for part in self.parts:
            count = _count(part)
            if column < count:
                cores = part.cores
                return None if cores is None else int(np.broadcast_to(cores, part.neuron_axes).reshape(-1)[column])
            column -= count
        return None


def _read(record: Record, rows: slice) -> NDArray[Any]:
    """Rows of a record as [row, batch, neuron]; a stride leaves out what lies between."""
    return record.read_batch(rows.start, rows.stop)[:: rows.step]


def _count(record: Record) -> int:
    return int(np.prod(record.neuron_axes, dtype=np.int64))


def _scaled(data: NDArray[Any], record: Record) -> NDArray[Any]:
    """Data [step, batch, neuron] of a record in model units."""
    found = data if record.scale == 1.0 else wide(data) * record.scale
    return wide(found) + np.reshape(record.offset, -1) if np.any(record.offset) else found


def side_of(records: list[Record], label: str) -> Side:
    """One side from the records that name the same source.

    Raises:
        Misfit: index maps of wrong length, overlapping or missing; slices that do not go together.
    """
    indices = [_index(record, label) for record in records]
    if len(records) == 1:
        return Side((records[0],), indices[0])
    known = [index for index in indices if index is not None]
    if len(known) < len(records):
        raise Misfit(f"{len(records)} records of {label} name this source, not all with an index map")
    differing: tuple[tuple[str, Iterable[Any]], ...] = (
        ("step counts", {record.n_steps for record in records}),
        ("batch sizes", {record.n_samples for record in records}),
        ("lags", {record.lag for record in records}),
        ("views", {record.view for record in records}),
        ("recorded steps", {record.steps for record in records}),
    )
    for what, values in differing:
        if len(set(values)) > 1:
            raise Misfit(f"the slices of {label} differ in {what}: {sorted(map(str, values))}")
    return Side(tuple(records), _distinct(np.concatenate(known), label))


def _index(record: Record, label: str) -> NDArray[np.int64] | None:
    # without a map the node's own neurons are the source's
    found = record.neurons if record.index_map is None else record.index_map
    if found is None:
        return None
    index = np.asarray(found, dtype=np.int64).reshape(-1)
    if index.size != _count(record):
        raise Misfit(f"the index map of {label} has {index.size} entries for {_count(record)} neurons")
    if index.size and index.min() < NO_NEURON:
        raise Misfit(f"the index map of {label} holds the negative index {int(index.min())}")
    return _distinct(index, label)


def _distinct(index: NDArray[np.int64], label: str) -> NDArray[np.int64]:
    used = index[index != NO_NEURON]
    found, times = np.unique(used, return_counts=True)
    if found.size < used.size:
        twice = int(found[times > 1][0])
        raise Misfit(f"the index maps of {label} overlap: neuron {twice} is in them more than once")
    return index


def _check_sign(part: Record, label: str) -> None:
    for start, stop in part.blocks():
        least = int(part.read(start, stop).min(initial=0))
        if least < 0:
            raise Misfit(f"spikes of {label} hold {least}, expected counts")


def check_whole(side: Side, label: str) -> None:
    """Refuse spikes that are no whole counts.

    Raises:
        Misfit: naming the step.
    """
    whole_parts = (part.dtype.kind in "biu" and part.scale == 1.0 and not np.any(part.offset) for part in side.parts)
    if all(whole_parts):
        for part in side.parts:
            if part.dtype.kind == "i" and not part.is_packed:
                _check_sign(part, label)
        return
    for row, step in enumerate(side.steps):
        counts = side.block(slice(row, row + 1), slice(None), None)
        whole = counts == np.rint(counts)  # False for NaN
        if not whole.all() or np.isinf(counts).any() or counts.min(initial=0) < 0:
            raise Misfit(f"spikes of {label} are not whole counts at step {step}")
