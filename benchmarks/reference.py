"""How fast is the reference executor, against the fastest peer in the same process?

Run `.venv-bench/bin/python benchmarks/reference.py [WORKLOAD ...]` (README.md says how to build that environment).
For each workload every peer and nirdeploy run in turn, round after round; printed are the times, the ratios to the
fastest library and to a loop written by hand in plain torch, how many output entries differ from that loop, and the
ratio to the library that was aimed at. Beside
event figures stands a sweep of input densities. What the first call costs (kernels compiled, or read from numba's
cache) is printed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import REFERENCE, best_peer, fastest, loss, table
from rich.console import Console
from timing import seconds
from workloads import Workload, workload

import nirdeploy as nd

# workload -> (ratio of 'dense', of 'event') aimed at
AIMS: dict[str, tuple[float | None, float | None]] = {
    "cnn-1": (7.0, 12.0),
    "cnn-32": (1.6, 4.0),
    "braille-1": (200.0, None),
    "braille-64": (24.0, None),
    "mlp": (1.5, 5.0),
    "mlp-training": (1.5, 3.0),
    "scan": (100.0, None),
}
SWEEP = {"cnn-1": (0.001, 0.01, 0.02, 0.05, 0.1, 0.2), "mlp": (0.01, 0.05, 0.1, 0.2, 0.5)}
_FIRST = """
import sys, time
sys.path.insert(0, sys.argv[1])
from workloads import workload
import nirdeploy as nd
given = workload("cnn-1", steps=2)
module = nd.nir_to_torch(given.graph, convention=given.convention)
for method in ("dense", "event"):
    started = time.perf_counter()
    nd.run(module, given.raster, record=(), method=method)
    print(f"{time.perf_counter() - started:.2f}")
"""


def runner(given: Workload, method: str) -> Callable[[torch.Tensor], Any]:
    """nirdeploy on a workload: a call with the raster, returning what `peers` compares."""
    module = nd.nir_to_torch(given.graph, convention=given.convention)
    if given.labels is not None:
        weights = [p for name, p in module.named_parameters() if name.rpartition(".")[2] in ("weight", "bias")]
        for parameter in module.parameters():
            parameter.requires_grad_(any(parameter is w for w in weights))

        def train(raster: torch.Tensor) -> list[torch.Tensor]:
            out, _ = module.sequence(raster, method=method)
            for weight in weights:
                weight.grad = None
            loss(out, given).backward()
            return [out.detach(), *(w.grad for w in weights)]

        return train
    record = ("v_mem",) if given.record else ()

    def infer(raster: torch.Tensor) -> Any:
        found = nd.run(module, raster, record=record, method=method)
        return None if given.record else found.outputs

    return infer


def compare(name: str, repeats: int, threads: int | None, peers: bool) -> dict[str, float]:
    """Print the table of a workload; the ratios by method."""
    given, (dense, event) = workload(name), AIMS.get(name, (None, None))
    extra = [(f"nirdeploy {m}", runner(given, m)) for m, aim in (("dense", dense), ("event", event)) if aim]
    options: dict[str, Any] = {} if peers else {"peers": []}
    rows = fastest(given, repeats, extra=extra, threads=threads, **options)
    console.print(table(rows, given.title))
    if not peers:
        return {}
    best, by_hand = best_peer(rows), next(row for row in rows if row.name == REFERENCE)
    found = {}
    for label, aim in (("dense", dense), ("event", event)):
        for row in rows:
            if aim and row.name == f"nirdeploy {label}":
                found[label] = best.best / row.best
                verdict = "reached" if found[label] >= aim else "NOT reached"
                other = f"{by_hand.best / row.best:.1f}x of the {REFERENCE}"
                console.print(f"{label}: {found[label]:.1f}x of {best.name} ({other}), aimed at {aim:g}x: {verdict}")
    return found


def sweep(name: str, repeats: int) -> None:
    """Both methods over input densities."""
    for density in SWEEP[name]:
        given = workload(name, density=density)
        times = []
        for method in ("dense", "event"):
            run = runner(given, method)
            run(given.raster)
            times.append(1e3 * seconds(lambda run=run, given=given: run(given.raster), repeats))
        console.print(
            f"{name}, input density {density:6.1%}: dense {times[0]:8.2f} ms, event {times[1]:8.2f} ms, "
            f"{times[0] / times[1]:5.2f}x"
        )


def recording(repeats: int) -> float:
    """Time with v of every neuron recorded over time without."""
    plain, full = workload("cnn-8"), workload("cnn-8-record")
    runs = [runner(given, "dense") for given in (plain, full)]
    best = [float("inf")] * 2
    for _ in range(repeats + 1):  # in turn, so that a slow moment of the machine meets both
        for n, (run, given) in enumerate(zip(runs, (plain, full), strict=True)):
            best[n] = min(best[n], seconds(lambda run=run, given=given: run(given.raster), 1))
    console.print(
        f"recording v of every neuron, CNN, batch 8: {1e3 * best[1]:.1f} ms against {1e3 * best[0]:.1f} ms without: "
        f"{best[1] / best[0]:.2f}x, aimed at 1.10x"
    )
    return best[1] / best[0]


def first_call() -> None:
    """What compiling costs once, and reading it from the cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        for label in ("compiled", "from the cache"):
            command = [sys.executable, "-c", _FIRST, str(Path(__file__).parent)]
            found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            dense, event = found.stdout.split()
            console.print(f"first call, kernels {label}: dense {dense} s, event {event} s")


console = Console(width=140)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(AIMS), help=f"of {', '.join(AIMS)}; all if none is given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-peers", action="store_true", help="nirdeploy alone")
    parser.add_argument("--json", type=Path, help="write the ratios here")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    ratios: dict[str, Any] = {}
    for name in given.names:
        ratios[name] = compare(name, given.repeats, given.threads, not given.no_peers)
        if name in SWEEP:
            sweep(name, given.repeats)
    if given.names == list(AIMS):
        ratios["recording"] = recording(given.repeats)
        first_call()
    if given.json:
        given.json.write_text(json.dumps(ratios, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
