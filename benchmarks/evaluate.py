"""How well does `evaluate` scale over processes, what does it cost, and what do killed workers change?

    .venv/bin/python benchmarks/evaluate.py            # all of it, five minutes
    .venv/bin/python benchmarks/evaluate.py scaling    # or overhead, memory, kills

The digits network of the demo on a Speck 2f in event mode over the 360 test digits, and the CNN of the NIR paper over
recorded N-MNIST samples where they are at hand (in `reference/cnn` of the folder that `NIRDEPLOY_SHARED` names).
Cold: the worker is started, and imports what it needs, within the time measured; warm: it was kept from a call before.
Seconds of processor time are given beside those of the clock, as other programs take a part of both; what idle
processors would reach at best is the time of one process over the larger of the two processes' own.
Every result is held against that of one process, row by row.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import workloads
from rich.console import Console
from rich.table import Table

import nirdeploy as nd
from nirdeploy.demonstration import digits
from nirdeploy.evaluation import crew
from nirdeploy.evaluation.engine import BATCH
from nirdeploy.raster import load_raster
from nirdeploy.reference.threads import one_thread

ROOT = Path(__file__).resolve().parents[1]
SINABS = nd.convention("sinabs", dt=1e-3, v_min="-threshold")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def same(a: nd.Evaluation, b: nd.Evaluation) -> bool:
    return (
        all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("labels", "predictions", "outputs", "steps"))
        and list(a.spikes) == list(b.spikes)
        and all(np.array_equal(a.spikes[n], b.spikes[n]) for n in a.spikes)
    )


def on_digits() -> tuple[nd.Deployment, tuple[np.ndarray, np.ndarray]]:
    calibration, _ = load_raster(ROOT / "configs" / "digits_calibration.npz")
    data = digits()
    dep = nd.deploy(nd.read(ROOT / "configs" / "digits.nir"), "speck2f", calibration=calibration)
    return dep, (data.test, data.test_labels)


def repeated(copies: int) -> tuple[nd.Deployment, tuple[np.ndarray, np.ndarray]]:
    dep, (raster, labels) = on_digits()
    return dep, (np.tile(raster, (1, copies, 1, 1, 1)), np.tile(labels, copies))


def on_recordings() -> tuple[nd.Deployment, list[nd.Events]] | None:
    path = workloads.published_path("cnn", "nmnist_test_events.npz")
    if not path.exists():
        return None
    stored = np.load(path)
    found = []
    for at, label in enumerate(stored["label"]):
        part = slice(stored["offset"][at], stored["offset"][at + 1])
        time_us = stored["t_us"][part] - stored["t_us"][part][0]
        columns = [stored[name][part] for name in ("p", "y", "x")]
        events = nd.Events(time_us, *columns, shape=(2, 34, 34), label=int(label))
        found.append(events.between(0, 300_000))
    raster = np.stack([nd.events_to_raster(e, step_us=1000, n_steps=300) for e in found[::8]], axis=1)
    graph = nd.read(path.parent / "cnn_sinabs.nir")
    return nd.deploy(graph, "speck2f", convention=SINABS, calibration=raster), found


def scaling(console: Console) -> None:
    table = Table(title="Speck event mode, seconds (of processor time: here + in the worker)")
    for name in ("data set", "samples", "one", "two, cold", "two, warm", "cold", "warm", "idle", "equal"):
        table.add_column(name, justify="right")
    recorded = on_recordings()
    cases: dict[str, Any] = {"digits": on_digits(), "digits x20": repeated(20), "N-MNIST": recorded}
    if recorded is not None:
        cases["N-MNIST x5"] = (recorded[0], recorded[1] * 5)
    for name, case in cases.items():
        if case is None:
            console.print(f"{name}: not at hand")
            continue
        dep, data = case
        batch = BATCH if name.startswith("digits") else 2
        call = partial(nd.evaluate, dep, data, mode="event", batch=batch)
        nd.evaluate(dep, data[:4] if isinstance(data, list) else (data[0][:, :4], data[1][:4]), mode="event")
        best: dict[str, tuple[float, float, float]] = {}
        equal = True
        for _ in range(3 if "x" in name else 9):
            crew.dismiss()
            expected = None
            for how in ("one", "cold", "warm"):
                took, here, there, found = spent(partial(call, workers=1 if how == "one" else 2))
                best[how] = min(best.get(how, (np.inf,) * 3), (took, here, there))
                settle()  # of a worker that came too late
                expected = expected or found
                equal &= same(found, expected)
        one, cold, warm = (best[how] for how in ("one", "cold", "warm"))
        table.add_row(
            name,
            str(expected.n if expected else 0),
            f"{one[0]:.2f} ({one[1]:.2f})",
            f"{cold[0]:.2f} ({cold[1]:.2f} + {cold[2]:.2f})",
            f"{warm[0]:.2f} ({warm[1]:.2f} + {warm[2]:.2f})",
            f"{one[0] / cold[0]:.2f}",
            f"{one[0] / warm[0]:.2f}",
            f"{one[1] / max(warm[1:]):.2f}",
            str(equal),
        )
    console.print(table)


def spent(work: Callable[[], Any]) -> tuple[float, float, float, Any]:
    """Seconds, of processor time here and in the workers, and what came of it."""
    here, there = time.process_time(), workers_time()
    took, found = timed(work)
    return took, time.process_time() - here, workers_time() - there, found


def workers_time() -> float:
    """Seconds of processor time that live workers have taken so far."""
    ticks = 0
    for pid in crew.pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def settle() -> None:
    """Wait until the workers have done what they were asked for."""
    while crew.busy():
        time.sleep(0.05)


def overhead(console: Console) -> None:
    """Chunks of about a second each, through evaluate with a file, and as plain runs, both on one thread a chunk."""
    dep, data = repeated(24)
    raster = data[0]
    run = partial(dep.run, mode="event", record=("spikes",))
    with one_thread():
        run(raster[:, :2])
        alone, _ = timed(lambda: run(raster[:, :720]))
    batch = max(1, round(720 / alone))
    chunks = [raster[:, k : k + batch] for k in range(0, raster.shape[1], batch)]
    plain = whole = float("inf")
    for _ in range(3):
        with one_thread():
            took, _ = timed(lambda: [run(chunk) for chunk in chunks])
        plain = min(plain, took)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "out.h5")
            took, _ = timed(partial(nd.evaluate, dep, data, mode="event", batch=batch, output=file))
        whole = min(whole, took)
    each = plain / len(chunks)
    console.print(
        f"overhead: {len(chunks)} chunks of {each:.2f} s: plain runs {plain:.2f} s, evaluate with a file {whole:.2f} s:"
        f" {whole / plain - 1:+.1%}"
    )


def memory(console: Console) -> None:
    """100,000 samples of results, ten classes and three populations, evaluated with a file, a network of two nodes."""
    dep, (raster, labels) = on_digits()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    class Many:
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return raster[:1, index % 360], int(labels[index % 360])  # one step: the results are what counts

    nd.evaluate(dep, (raster[:1, :256], labels[:256]), batch=256)
    ready = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        took, found = timed(lambda: nd.evaluate(dep, Many(), batch=256, output=Path(folder, "out.h5")))
        size = Path(folder, "out.h5").stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    console.print(
        f"memory: {found.n} samples in {took:.0f} s, file {size:.1f} MB; peak {peak / 1e3:.0f} MB, "
        f"{(peak - ready) / 1e3:.0f} MB more than a run of 256, {(peak - base) / 1e3:.0f} MB more than before any"
    )


def kills(console: Console, seconds: float = 60, every: float = 5) -> None:
    """A worker is killed every 5 s for a minute."""
    dep, (raster, labels) = on_digits()
    copies = 280
    data = (np.tile(raster, (1, copies, 1, 1, 1)), np.tile(labels, copies))
    dead, over = [], threading.Event()

    def killer() -> None:
        started = time.monotonic()
        while not over.wait(every) and time.monotonic() - started < seconds:
            children = [
                int(pid) for tid in os.listdir("/proc/self/task") for pid in _children(Path("/proc/self/task", tid))
            ]
            if children:
                os.kill(victim := children[len(dead) % len(children)], signal.SIGKILL)
                dead.append(victim)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        took, found = timed(lambda: nd.evaluate(dep, data, mode="event", workers=2, batch=BATCH))
    finally:
        over.set()
        thread.join()
    expected = nd.evaluate(dep, (raster, labels), mode="event")
    whole = np.array_equal(found.outputs, np.tile(expected.outputs, (copies, 1)))
    whole &= all(np.array_equal(found.spikes[n], np.tile(expected.spikes[n], copies)) for n in expected.spikes)
    console.print(f"kills: {len(dead)} workers killed within {took:.0f} s over {found.n} samples; rows equal: {whole}")


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def main() -> None:
    console = Console(width=120)
    parts = {"scaling": scaling, "overhead": overhead, "memory": memory, "kills": kills}
    for name in sys.argv[1:] or parts:
        parts[name](console)


if __name__ == "__main__":
    main()
