"""How close do the models of a Speck core come to a Speck 2f, and are two lanes more than a fit?

Run `python benchmarks/speck_core_model.py`. It needs the NIR paper's network, events and recorded counts, in
`reference/cnn` of the folder that `NIRDEPLOY_SHARED` names, and takes about a minute. Each number is how many of 4,096
neurons differ in their spike count. docs/speck_core_model.md has them, and what else was tried.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from typing import Any

import numpy as np
import workloads
from rich.console import Console
from rich.table import Table

import nirdeploy as nd

SLOWER = {0: 1, 1: 0, 2: 0, 4: 0, 6: 0, 7: 0}  # seen after the fact: no rule is known
GRID = {
    "lane_us": (18.6, 18.8, 19.0, 19.2, 19.4, 19.6),
    "lane_ratio": tuple(round(1.004 + 0.002 * i, 3) for i in range(13)),
    "lane_fifo": (9, 10, 11),
}
FITTED = ((0, 2, 6), (0, 4, 7), (2, 4, 6))


class Recording:
    """The events of one digit and what the chip made of them, beside what the emulator does."""

    def __init__(self, deployment: nd.Deployment, events: nd.Events, counts: np.ndarray) -> None:
        self._deployment, self._events, self._counts = deployment, events, counts

    def differ(self, **options: Any) -> int:
        """Neurons whose count differs."""
        run = self._deployment.run(self._events, mode="event", record=("spikes",), nodes=["1"], **options)
        return int(np.count_nonzero(run["1", "spikes"].data.sum(0) != self._counts))


def recordings() -> dict[int, Recording]:
    """By digit."""
    path = workloads.published_path("cnn", "speck_layer1_counts.npz")
    if not path.exists():
        sys.exit(f"{path} is not there")
    counts, events = np.load(path), np.load(path.parent / "nmnist_test_events.npz")
    graph = nd.read(path.parent / "cnn_sinabs.nir")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convention = nd.convention("sinabs", v_min="-threshold")
        deployment = nd.deploy(graph, "speck2f", convention=convention, quantizer="max", cores={"1": 0})
    found = {}
    for digit, sample, count in zip(counts["digit"], counts["sample_id"], counts["counts"], strict=True):
        at = events["sample_id"].tolist().index(sample)
        part = slice(events["offset"][at], events["offset"][at + 1])
        given = nd.Events(*(events[name][part] for name in ("t_us", "p", "y", "x")))
        found[int(digit)] = Recording(deployment, given, count)
    return found


def main() -> None:
    """Measure and print."""
    digits = recordings()
    console = Console(width=120)
    table = Table("core model", *map(str, digits), title="neurons that differ from a Speck 2f")
    lanes = {"core_model": "two_lanes"}
    for name, options in (
        ("in_order", lambda _: {}),
        ("two_lanes", lambda d: {**lanes, "slower_lane": SLOWER[d]}),
        ("two_lanes, the other lane slower", lambda d: {**lanes, "slower_lane": 1 - SLOWER[d]}),
        ("two_lanes of equal speed", lambda _: {**lanes, "slower_lane": 0, "lane_ratio": 1.0}),
    ):
        table.add_row(name, *(str(one.differ(**options(d))) for d, one in digits.items()))
    console.print(table)

    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    rows = [{d: one.differ(**lanes, slower_lane=SLOWER[d], **p) for d, one in digits.items()} for p in points]
    table = Table("fitted on", "found", "their sum", "the others", title="fitted on three, reported on three")
    for three in FITTED:
        at = min(range(len(points)), key=lambda i: sum(rows[i][d] for d in three))
        others = ", ".join(f"{d}: {n}" for d, n in rows[at].items() if d not in three)
        found = ", ".join(f"{name} {value}" for name, value in points[at].items())
        table.add_row(", ".join(map(str, three)), found, str(sum(rows[at][d] for d in three)), others)
    console.print(table)


if __name__ == "__main__":
    main()
