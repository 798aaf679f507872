"""How fast is the Speck emulator, and how fast is sinabs's DynapcnnNetwork in the same process?

    PYTHONPATH=.:backends .venv-sinabs/bin/python benchmarks/speck.py  # with sinabs, as `make oracles` installs it
    .venv/bin/python benchmarks/speck.py  # nirdeploy alone

The network is the CNN for N-MNIST of the NIR paper. Where its published weights and recorded events are at hand (in
`reference/cnn` of the folder that `NIRDEPLOY_SHARED` names) they are used, otherwise seeded ones of like density.
Event mode: synaptic operations a second on one core, and how that compares with the length of the recording; accuracy
where there are labels. Step mode: whole runs at batch 1, sinabs's result compared integer by integer.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
import workloads
from rich.console import Console
from rich.table import Table

import nirdeploy as nd

ROOT = Path(__file__).resolve().parents[1]
STEPS = 300
REPEATS = 15
CONVENTION = nd.convention("sinabs", dt=1e-3, v_min="-threshold")


def best(*works: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Least wall time of each call, all of them in turn."""
    least = [float("inf")] * len(works)
    for _ in range(repeats + 1):  # the first compiles
        for at, work in enumerate(works):
            started = time.perf_counter()
            work()
            least[at] = min(least[at], time.perf_counter() - started)
    return least


def recordings() -> tuple[nir.NIRGraph, list[nd.Events]]:
    """The network and events of some samples, 300 ms each."""
    path = workloads.published_path("cnn", "nmnist_test_events.npz")
    if not path.exists():
        graph, rng = workloads.cnn(), np.random.default_rng(workloads.SEED)
        rasters = [rng.random((STEPS, 2, 34, 34)) < 0.005 for _ in range(8)]
        return graph, [nd.raster_to_events(raster, order="sinabs") for raster in rasters]
    data = np.load(path)
    found = []
    for at, label in enumerate(data["label"]):
        part = slice(data["offset"][at], data["offset"][at + 1])
        time_us = data["t_us"][part] - data["t_us"][part][0]
        columns = [data[name][part] for name in ("p", "y", "x")]
        events = nd.Events(time_us, *columns, shape=(2, 34, 34), label=int(label))
        found.append(events.between(0, STEPS * 1000))
    return nd.read(path.parent / "cnn_sinabs.nir"), found


def raster_of(events: nd.Events) -> np.ndarray:
    """Counts of 300 steps of 1 ms."""
    return nd.events_to_raster(events, step_us=1000, n_steps=STEPS)


def event_table(deployment: nd.Deployment, samples: list[nd.Events]) -> Table:
    """Event mode, from the call to the counts of the output."""
    table = Table(title="event mode, one core: dep.run(events, mode='event')")
    for name in ("recording", "events", "synaptic operations", "ms", "million a second", "x faster than it lasts"):
        table.add_column(name, justify="right")
    rows = []
    for at, events in enumerate(samples):
        run = deployment.run(events, mode="event", record=())
        operations = sum(found["synaptic_operations"] for found in run.counters.values())
        (took,) = best(lambda e=events: deployment.run(e, mode="event", record=()), repeats=3)
        rows.append((at, len(events), operations, took, STEPS * 1e-3))
    slowest = min(rows, key=lambda row: row[4] / row[3])
    total = ("all", *(sum(row[i] for row in rows) for i in (1, 2, 3, 4)))
    for name, n, operations, took, lasts in (rows[0], slowest, total):
        label = f"{name} (slowest)" if name == slowest[0] else str(name)
        rate = operations / took / 1e6
        table.add_row(label, f"{n:,}", f"{operations:,}", f"{took * 1e3:.1f}", f"{rate:.0f}", f"{lasts / took:.1f}")
    return table


def accuracy_table(graph: nir.NIRGraph, samples: list[nd.Events]) -> Table:
    """Share of samples whose strongest output is their label."""
    labels = np.array([events.label for events in samples])
    raster = np.stack([raster_of(events) for events in samples], axis=1)
    table = Table(title=f"accuracy on {len(samples)} N-MNIST samples, calibrated on 6 of them")
    for name in ("quantizer", "reference", "step mode", "event mode, recorded events"):
        table.add_column(name, justify="right")

    def share(outputs: Any) -> str:
        return f"{np.mean(np.asarray(outputs).argmax(-1) == labels):.3f}"

    reference = share(nd.run(graph, raster, convention=CONVENTION, record=()).outputs.sum(0))
    for quantizer in ("max", "calibrated"):
        deployment = deploy(graph, quantizer, raster[:, ::8])
        events = [deployment.run(e, mode="event", record=()).outputs.sum(0) for e in samples]
        table.add_row(quantizer, reference, share(deployment.run(raster, record=()).outputs.sum(0)), share(events))
    return table


def deploy(graph: nir.NIRGraph, quantizer: str, calibration: np.ndarray | None = None) -> nd.Deployment:
    """On a Speck 2f; the traps of 'max' that are met say so in the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nd.deploy(graph, "speck2f", convention=CONVENTION, quantizer=quantizer, calibration=calibration)


# ---------------------------------------------------------------- sinabs


def sinabs_network(graph: nir.NIRGraph) -> Any:
    """The same network in sinabs, quantised by it; None where sinabs is not installed."""
    if importlib.util.find_spec("sinabs") is None:
        return None
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import record_sinabs  # stands in for samna, before sinabs imports it
    import sinabs.layers as sl
    from torch import nn

    modules: list[nn.Module] = []
    name = nd.graph.input_names(graph)[0]
    edges = dict(graph.edges)
    while name := edges.get(name, ""):
        node = graph.nodes[name]
        if isinstance(node, nir.Conv2d):
            out, inputs, kernel, _ = node.weight.shape
            stride, padding = int(np.ravel(node.stride)[0]), int(np.ravel(node.padding)[0])
            modules.append(nn.Conv2d(inputs, out, kernel, stride, padding, bias=False))
        elif isinstance(node, nir.Affine):
            modules.append(nn.Linear(*node.weight.shape[::-1], bias=False))
        elif isinstance(node, nir.IF):
            threshold = float(np.ravel(node.v_threshold)[0])
            modules.append(record_sinabs.neurons(threshold, -threshold, single=False))
        elif isinstance(node, nir.SumPool2d):
            modules.append(sl.SumPool2d(int(np.ravel(node.kernel_size)[0])))
        elif isinstance(node, nir.Flatten):
            modules.append(nn.Flatten())
        if isinstance(node, nir.Conv2d | nir.Affine):
            modules[-1].weight.data = torch.tensor(np.asarray(node.weight), dtype=torch.float32)
    with torch.no_grad():
        return record_sinabs.DynapcnnNetwork(
            nn.Sequential(*modules), input_shape=(2, 34, 34), discretize=True, dvs_input=False
        ).eval()


def step_table(graph: nir.NIRGraph, deployment: nd.Deployment, raster: np.ndarray) -> Table:
    """Whole runs at batch 1, each beside sinabs keeping the same."""
    network = sinabs_network(graph)
    frames = torch.tensor(raster, dtype=torch.float32)
    works: dict[str, Callable[[], object]] = {
        "nirdeploy, output": lambda: deployment.run(raster, record=()),
        "nirdeploy, spikes of every neuron": lambda: deployment.run(raster, record=("spikes",)),
        "nirdeploy, spikes and v_mem of every neuron": lambda: deployment.run(raster),
    }

    def sinabs_run(keep: bool = False) -> Any:
        spikes: list[torch.Tensor] = []
        hooks = []
        for layer in network.dynapcnn_layers.values():
            layer.spk_layer.reset_states()
            layer.spk_layer.record_states = keep
            if keep:
                hooks.append(layer.spk_layer.register_forward_hook(lambda m, i, out: spikes.append(out)))
        with torch.no_grad():
            found = network(frames)
        for hook in hooks:
            hook.remove()
        return found

    same = ""
    if network is not None:
        works["sinabs DynapcnnNetwork, output"] = sinabs_run
        works["sinabs DynapcnnNetwork, spikes and v_mem of every neuron"] = lambda: sinabs_run(True)
        ours = deployment.run(raster, record=()).outputs
        equal = np.array_equal(ours, sinabs_run().numpy().reshape(ours.shape))
        same = ", the same integers as sinabs" if equal else ", NOT the integers of sinabs"
    took = best(*works.values())
    table = Table(title=f"step mode, batch 1, {len(raster)} steps, one thread{same}")
    for name in ("what", "ms", "sinabs, output alone, takes times", "sinabs keeping all"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name, seconds in zip(works, took, strict=True):
        ratios = [] if network is None else [f"{peer / seconds:.1f}" for peer in took[-2:]]
        table.add_row(name, f"{seconds * 1e3:.2f}", *ratios)
    if network is None:
        table.caption = "sinabs is not installed here; .venv-sinabs has it"
    return table


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    graph, samples = recordings()
    deployment = deploy(graph, "max")
    console = Console(width=120)
    console.print(event_table(deployment, samples))
    console.print(step_table(graph, deployment, raster_of(samples[0])))
    if samples[0].label is not None:
        console.print(accuracy_table(graph, samples))


if __name__ == "__main__":
    main()
