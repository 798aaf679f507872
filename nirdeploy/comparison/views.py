"""Read-out views that a comparison sees through: what they hide in some entries is left out, the rest is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.outline import Outline
from nirdeploy.trajectory import BEFORE_POOL_VIEW, REFRACTORY_VIEW, Record, Trajectory

__all__ = ["hidden", "through_views"]

_MARK = 128  # what v reads for each refractory step that is left (nengo-loihi issue 170)


def through_views(
    a: Trajectory, b: Trajectory, lag: int | Mapping[str, int] | None
) -> tuple[Trajectory, Trajectory, tuple[str, ...]]:
    """Both trajectories as if read alike, and what of them is left out.

    Spikes of a pool shown before it (`BEFORE_POOL_VIEW`) are those of the population that feeds it. Of v shown through
    `REFRACTORY_VIEW` the steps are left out in which it reads something else. v in other units, as conventions with
    `v_unit` give it, is brought to the reference's by the thresholds of both.
    Entries that the view hides get the same value on both sides. A record stays as it is, and is then told as not
    compared, where its own run has no spikes to tell those entries by, or the two sides are of other neurons.

    Args:
        a: the reference.
        b: the chip's run.
        lag: as in `compare`.
    """
    notes: list[str] = []
    outline = a.outline or b.outline
    a, b = (_before_pools(side, outline, notes) for side in (a, b))
    b = _in_units_of(a, b, notes)
    ours, theirs = dict(a.records), dict(b.records)
    for key, record in a.records.items():
        other = theirs.get(key)
        if key[1] != "v_mem" or other is None or record.view == other.view:
            continue
        if REFRACTORY_VIEW not in (record.view, other.view):
            continue
        given = lag.get(key[0]) if isinstance(lag, Mapping) else lag
        shift = other.lag - record.lag if given is None else int(given)
        seen = record.view == REFRACTORY_VIEW
        shown, plain = (record, other) if seen else (other, record)
        spikes = (a if seen else b).records.get((key[0], "spikes"))
        if spikes is None or not _alike(shown, plain, spikes):
            continue
        filled, count = _filled(shown, plain, spikes, -shift if seen else shift)
        ours[key], theirs[key] = (replace(record, view=None), filled) if seen else (filled, replace(other, view=None))
        notes.append(f"{key[0]} v_mem: {count} entries that the chip's read-out hides ({REFRACTORY_VIEW}) are left out")
    return replace(a, records=ours), replace(b, records=theirs), tuple(notes)


def _before_pools(trajectory: Trajectory, outline: Outline | None, notes: list[str]) -> Trajectory:
    """Spikes before a pool as spikes of what feeds it; as they are where the outline does not tell what that is."""
    records = dict(trajectory.records)
    for key, record in trajectory.records.items():
        if record.view != BEFORE_POOL_VIEW or record.variable != "spikes":
            continue
        kind = outline.nodes[record.source].kind if outline and record.source in outline.nodes else ""
        feeding = outline.sources(record.source) if outline and kind.endswith("Pool2d") else []
        if len(feeding) == 1:
            records[key] = replace(record, view=None, source=feeding[0])
            notes.append(f"{record.source} spikes: read before it pools, compared as those of {feeding[0]}")
        elif kind and not kind.endswith("Pool2d"):
            records[key] = replace(record, view=None)
    return replace(trajectory, records=records)


def _in_units_of(a: Trajectory, b: Trajectory, notes: list[str]) -> Trajectory:
    """v of `b` in the units of `a`, neuron by neuron; as it is where thresholds or neurons do not tell the factor."""
    records = dict(b.records)
    for key, record in b.records.items():
        ours = a.records.get((record.source, record.variable))
        if record.variable != "v_mem" or ours is None or record.units == ours.units:
            continue
        levels = [
            None if r.threshold is None else np.asarray(r.threshold, np.float64) * r.scale + r.offset
            for r in (ours, record)
        ]
        mapped = any(r.index_map is not None or r.neurons is not None for r in (ours, record))
        if levels[0] is None or levels[1] is None:
            continue
        if min(levels[0].min(initial=1.0), levels[1].min(initial=1.0)) <= 0:
            continue
        if not mapped and levels[0].size > 1 and levels[0].size != levels[1].size > 1:
            continue
        factor = np.unique(levels[0] / levels[1]) if mapped else levels[0] / levels[1]
        if not factor.size or (mapped and factor.size > 1):
            continue
        flat = float(factor.reshape(-1)[0])
        offset = record.offset * factor
        if np.all(factor == flat):
            changed = replace(record, scale=record.scale * flat, offset=offset)
        else:
            changed = replace(
                record, storage=record.values * factor, scale=1.0, offset=0.0, threshold=levels[1] * factor
            )
        records[key] = replace(changed, units=ours.units)
        notes.append(
            f"{record.source} v_mem: in units of {record.units!r}, brought to {ours.units!r} by the thresholds"
        )
    return replace(b, records=records)


def _alike(shown: Record, plain: Record, spikes: Record) -> bool:
    whole = all(r.steps is None and r.neurons is None and r.index_map is None for r in (shown, plain, spikes))
    return whole and shown.shape == spikes.shape and shown.shape[1:] == plain.shape[1:] and plain.view is None


def hidden(shown: NDArray[Any], spikes: NDArray[Any]) -> NDArray[np.bool_]:
    """Entries [step, ...] that read 128 times the steps left: that of a spike, and those that count down from there."""
    found: NDArray[np.bool_] = spikes > 0
    found = found & (shown > 0) & (shown % _MARK == 0)
    for step in range(1, len(found)):
        counts_down = found[step - 1] & (shown[step] > 0) & (shown[step] == shown[step - 1] - _MARK)
        found[step] |= counts_down
    return found


def _filled(shown: Record, plain: Record, spikes: Record, shift: int) -> tuple[Record, int]:
    """The plain record with the shown one's values where the view hides them, `shift` steps earlier; and how many."""
    marked = hidden(shown.data, spikes.data)
    values = np.array(plain.values, dtype=np.float64)
    start = max(0, -shift)
    steps = max(0, min(len(values) - start, len(marked) - start - shift))
    here, there = slice(start, start + steps), slice(start + shift, start + shift + steps)
    part = marked[there]
    values[here][part] = shown.values[there][part]
    threshold = None
    if plain.threshold is not None:
        threshold = np.asarray(plain.threshold, dtype=np.float64) * plain.scale + plain.offset
    found = replace(plain, storage=values, scale=1.0, offset=0.0, threshold=threshold)
    return found, int(part.sum())
