"""How long does `compare` take for two trajectories of 10 million values each?

Run `python benchmarks/compare.py`. Two runs of six populations, v as float32 and spikes as int8, of which a few entries
differ; in memory, from files read whole, and from files read lazily. The yardstick, in the same process, is the least
that plain numpy needs for the same figures on the same arrays: whether spikes differ and how many are shared, and the
squared and the largest error of v. What it lacks: alignment, units, lags, and the first spike that differs with its
reason. A second pair comes as chips' runs do: v in integers with a scale, one step late, the two widest populations
split over two records each with their index maps, and one spike entry in a hundred different.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from timing import seconds

import nirdeploy as nd

STEPS, BATCH = 100, 8
POPULATIONS = (2048, 2048, 1024, 1024, 96, 10)  # 6,250 neurons: 5 million values of v and as many spikes
LIMIT = 1.0  # seconds


def trajectory(target: str, seed: int, *, like: nd.Trajectory | None = None) -> nd.Trajectory:
    """A run of random states; or one like another, in which one value in 100,000 differs."""
    rng = np.random.default_rng(seed)
    records = {}
    for i, n in enumerate(POPULATIONS):
        shape, node = (STEPS, BATCH, n), f"n{i}"
        if like is None:
            v = rng.normal(0, 0.4, shape).astype(np.float32)
            spikes = (rng.random(shape, dtype=np.float32) < 0.05).view(np.int8)
        else:
            v = like[node, "v_mem"].data + np.float32(1e-6)
            spikes = like[node, "spikes"].data ^ (rng.random(shape, dtype=np.float32) < 1e-5).view(np.int8)
        records[node, "spikes"] = nd.Record(node, "spikes", spikes, units="count")
        records[node, "v_mem"] = nd.Record(node, "v_mem", v, threshold=1.0)
    return nd.Trajectory(records, target=target, executor="reference" if like is None else "emulator")


def as_chip(run: nd.Trajectory) -> nd.Trajectory:
    """The run as a chip would leave it."""
    rng, records = np.random.default_rng(2), {}
    for (node, variable), found in run.records.items():
        late = np.concatenate([np.zeros_like(found.data[:1]), found.data])
        if variable == "v_mem":
            integers = np.rint(late * 4096).astype(np.int32)
            record = replace(found, data=integers, scale=1 / 4096, threshold=4096, lag=1)
        else:
            record = replace(found, data=late ^ (rng.random(late.shape) < 0.01).astype(np.int8), lag=1)
        split = found.shape[2] > 2000
        for i, part in enumerate(np.array_split(rng.permutation(found.shape[2]), 2 if split else 1)):
            name = f"{node} part {i}" if split else node
            own = replace(record, node=name, source=node, data=record.data[:, :, part], index_map=part)
            records[name, variable] = own if split else record
    return nd.Trajectory(records, target="chip", executor="emulator")


def plain(a: nd.Trajectory, b: nd.Trajectory) -> tuple[int, int, float, float]:
    """The same sums by numpy, whole records at once."""
    differing = shared = 0
    squares = largest = 0.0
    for key, record in a.records.items():
        x, y = record.data, b.records[key].data
        if key[1] == "spikes":
            differing += int(np.count_nonzero(x != y))
            shared += int(np.minimum(x, y).sum(dtype=np.int64))
        else:
            error = np.subtract(x, y, dtype=np.float64)
            squares += float(np.square(error).sum())
            largest = max(largest, float(np.abs(error).max()))
    return differing, shared, squares, largest


def main() -> None:
    """Time the three ways, and hold the figures against numpy's."""
    a = trajectory("reference", 0)
    b = trajectory("chip", 1, like=a)
    values = sum(int(np.prod(record.shape)) for record in a.records.values())
    found = nd.compare(a, b)
    differing, shared, squares, largest = plain(a, b)
    sums = [node.variables["v_mem"].sums for node in found.per_node.values()]
    assert found.spikes is not None  # noqa: S101 - narrows the type
    if (found.spikes.differing, found.spikes.shared) != (differing, shared):
        raise SystemExit("the figures are not numpy's")
    if not np.isclose(sum(s.squares for s in sums), squares) or max(s.largest for s in sums) != largest:
        raise SystemExit("the errors are not numpy's")
    chip = as_chip(b)
    if nd.compare(a, chip).unaligned:
        raise SystemExit("the chip's run does not align")
    yardstick = seconds(lambda: plain(a, b), 5)
    print(f"{values:,} values a trajectory, {differing} spikes differ")
    print(f"{'':28s} {'s':>7s} {'x numpy':>8s}")
    print(f"{'plain numpy, in memory':28s} {yardstick:7.3f} {1.0:8.2f}")
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "a.h5", Path(folder) / "b.h5"
        for run, path in zip((a, b), paths, strict=True):
            run.save(path)
        ways = {
            "compare, in memory": lambda: nd.compare(a, b),
            "as a chip's run, in memory": lambda: nd.compare(a, chip),
            "from files, read whole": lambda: nd.compare(*map(nd.load_trajectory, paths)),
            "from files, lazily": lambda: nd.compare(*(nd.load_trajectory(path, lazy=True) for path in paths)),
        }
        took = {name: seconds(work, 5) for name, work in ways.items()}
    for name, time in took.items():
        print(f"{name:28s} {time:7.3f} {time / yardstick:8.2f}")
    if max(time for name, time in took.items() if name.endswith("in memory")) > LIMIT:
        raise SystemExit(f"more than {LIMIT} s")


if __name__ == "__main__":
    main()
