"""The networks that are timed: the same graph, weights and input for nirdeploy and for every peer.

All is seeded; no file is needed. Densities are spikes per neuron and step. Where the published networks of the NIR
paper (Pedersen et al., Nature Communications 15, 8122, 2024) are at hand, `published=True` takes their weights.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch

import nirdeploy as nd
from nirdeploy.graph import make_graph, make_node

ROOT = Path(__file__).resolve().parents[1]
SEED = 20260

# Weights are normal, of standard deviation gain / sqrt(fan-in). At 2 % input the five populations of the CNN then
# fire at about 0.8, 1.6, 6.6, 4.4 and 2.5 %, as with the published weights.
CNN_GAINS = (0.694, 4.55, 2.18, 0.329, 0.486)
BRAILLE_GAINS = {"fc1": 0.4, "rec": 0.7, "fc2": 6.0}  # about 2 % in the hidden population, 30 % in the last
BRAILLE_DENSITY = 0.175  # of the published sample
MLP_GAINS = (36.5, 30.4, 54.0)  # 5 % in each layer at 5 % input
MLP_TAU = 16  # steps, and r = 1: a gain of 2 ** -4, so that libraries that want a gain of 1 scale without rounding


@dataclass(frozen=True, eq=False)
class Workload:
    """One network and its input.

    Attributes:
        name: as in `NAMES`.
        title: what it is, for the table.
        graph: the network.
        raster: input, [step, batch, ...], float32.
        dt: step in seconds.
        labels: class of each sample, where gradients are to be taken; None for inference.
        record: whether v of every neuron is to be recorded.
    """

    name: str
    title: str
    graph: nir.NIRGraph
    raster: torch.Tensor
    dt: float
    labels: torch.Tensor | None = None
    record: bool = False

    @property
    def convention(self) -> nd.Convention:
        """Forward Euler, reset to zero in the same step, v > threshold, IF gain r."""
        return nd.convention("nir", dt=self.dt, reset="zero", if_gain="r")

    def nodes(self) -> list[tuple[str, nir.NIRNode]]:
        """Nodes in order of the forward path, without Input, Output and recurrent connections."""
        edges = set(self.graph.edges)
        (name,) = (name for name, node in self.graph.nodes.items() if isinstance(node, nir.Input))
        path: list[str] = []
        while not isinstance(self.graph.nodes[name], nir.Output):
            path.append(name)
            (name,) = (b for a, b in edges if a == name and (b, a) not in edges)
        return [(name, self.graph.nodes[name]) for name in path[1:]]

    def recurrent(self, name: str) -> nir.NIRNode | None:
        """The connection of a population to itself."""
        edges = set(self.graph.edges)
        return next((self.graph.nodes[b] for a, b in edges if a == name and (b, a) in edges), None)


# ---------------------------------------------------------------- networks


def _normal(rng: np.random.Generator, shape: tuple[int, ...], gain: float) -> np.ndarray:
    return (rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _full(shape: tuple[int, ...], **values: float) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, np.float32) for name, value in values.items()}


def _if(*shape: int) -> nir.NIRNode:
    return make_node(nir.IF, **_full(shape, r=1.0, v_threshold=1.0, v_reset=0.0))


def _lif(size: int, dt: float) -> nir.NIRNode:
    return make_node(nir.LIF, **_full((size,), tau=MLP_TAU * dt, r=1.0, v_leak=0.0, v_threshold=1.0, v_reset=0.0))


def _cuba(size: int, tau_syn: float, tau_mem: float, dt: float) -> nir.NIRNode:
    """A CubaLIF whose input gains are both 1."""
    values = {"tau_syn": tau_syn, "tau_mem": tau_mem, "r": tau_mem / dt, "w_in": tau_syn / dt}
    return make_node(nir.CubaLIF, **_full((size,), **values, v_leak=0.0, v_threshold=1.0, v_reset=0.0))


def _affine(weight: np.ndarray, bias: float | np.ndarray = 0.0) -> nir.NIRNode:
    return make_node(nir.Affine, weight=weight, bias=np.broadcast_to(np.float32(bias), weight.shape[:1]).copy())


def _conv(weight: np.ndarray, size: int, stride: int) -> nir.NIRNode:
    return make_node(
        nir.Conv2d,
        input_shape=(size, size),
        weight=weight,
        stride=(stride, stride),
        padding=(1, 1),
        dilation=(1, 1),
        groups=1,
        bias=np.zeros(weight.shape[0], np.float32),
    )


def _pool() -> nir.NIRNode:
    pair = np.array([2, 2])
    return make_node(nir.SumPool2d, kernel_size=pair, stride=pair, padding=np.array([0, 0]))


def _sequence(nodes: Mapping[str, nir.NIRNode], inputs: Sequence[int], outputs: int) -> nir.NIRGraph:
    everything = {
        "input": make_node(nir.Input, input_type={"input": np.array(inputs)}),
        **nodes,
        "output": make_node(nir.Output, output_type={"output": np.array([outputs])}),
    }
    names = list(everything)
    return make_graph(everything, list(itertools.pairwise(names)))


def cnn(gains: Sequence[float] = CNN_GAINS) -> nir.NIRGraph:
    """The CNN for N-MNIST of the NIR paper: 2 x 34 x 34 -> 10, 8,970 IF neurons."""
    rng = np.random.default_rng(SEED)
    shapes = ((16, 2, 5, 5), (16, 16, 3, 3), (8, 16, 3, 3), (256, 128), (10, 256))
    weights = [_normal(rng, shape, gain) for shape, gain in zip(shapes, gains, strict=True)]
    nodes = {
        "conv1": _conv(weights[0], 34, 2),
        "if1": _if(16, 16, 16),
        "conv2": _conv(weights[1], 16, 1),
        "if2": _if(16, 16, 16),
        "pool1": _pool(),
        "conv3": _conv(weights[2], 8, 1),
        "if3": _if(8, 8, 8),
        "pool2": _pool(),
        "flatten": make_node(nir.Flatten, input_type={"input": np.array([8, 4, 4])}, start_dim=0, end_dim=-1),
        "fc1": _affine(weights[3]),
        "if4": _if(256),
        "fc2": _affine(weights[4]),
        "if5": _if(10),
    }
    return _sequence(nodes, (2, 34, 34), 10)


def braille(gains: Mapping[str, float] = BRAILLE_GAINS, dt: float = 1e-4) -> nir.NIRGraph:
    """The recurrent Braille reader of the NIR paper: 12 -> 38 CubaLIF, recurrent -> 7 CubaLIF."""
    rng = np.random.default_rng(SEED + 1)
    fc1, rec, fc2 = (
        _normal(rng, shape, gains[name]) for name, shape in (("fc1", (38, 12)), ("rec", (38, 38)), ("fc2", (7, 38)))
    )
    nodes = {
        "input": make_node(nir.Input, input_type={"input": np.array([12])}),
        "fc1": _affine(fc1, -0.1 * rng.random(38)),
        "lif1": _cuba(38, 20 / 9 * dt, 10 * dt, dt),
        "rec": _affine(rec, -0.1 * rng.random(38)),
        "fc2": _affine(fc2, 0.05 * rng.random(7)),
        "lif2": _cuba(7, 2 * dt, 20 / 9 * dt, dt),
        "output": make_node(nir.Output, output_type={"output": np.array([7])}),
    }
    path = [("input", "fc1"), ("fc1", "lif1"), ("lif1", "fc2"), ("fc2", "lif2"), ("lif2", "output")]
    # the loop first: norse returns the output of whatever node it reaches last
    return make_graph(nodes, [("lif1", "rec"), ("rec", "lif1"), *path])


def mlp(gains: Sequence[float] = MLP_GAINS, dt: float = 1e-4) -> nir.NIRGraph:
    """784-512-512-10 LIF neurons, dense."""
    rng = np.random.default_rng(SEED + 2)
    sizes = (784, 512, 512, 10)
    nodes: dict[str, nir.NIRNode] = {}
    for i, gain in enumerate(gains):
        weight = _normal(rng, (sizes[i + 1], sizes[i]), gain)
        nodes[f"fc{i + 1}"] = _affine(weight, 0.1 * rng.standard_normal(sizes[i + 1]))
        nodes[f"lif{i + 1}"] = _lif(sizes[i + 1], dt)
    return _sequence(nodes, (784,), 10)


def population(size: int, dt: float = 1e-4) -> nir.NIRGraph:
    """LIF neurons and nothing else."""
    return _sequence({"lif": _lif(size, dt)}, (size,), size)


def published_path(*parts: str) -> Path:
    """A file of the NIR paper, in the folder $NIRDEPLOY_SHARED names or in one called shared beside the repository."""
    return Path(os.environ.get("NIRDEPLOY_SHARED") or ROOT.parent / "shared").joinpath("reference", *parts)


def _read(*parts: str) -> nir.NIRGraph:
    """A published network, all in float32, as every library computes."""
    graph = nd.read(published_path(*parts))
    for node in graph.nodes.values():
        for name, value in vars(node).items():
            if isinstance(value, np.ndarray) and value.dtype == np.float64:
                setattr(node, name, value.astype(np.float32))
    return graph


# ---------------------------------------------------------------- workloads


def _spikes(shape: tuple[int, ...], density: float, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(SEED + seed)
    return torch.from_numpy((rng.random(shape, dtype=np.float32) < density).astype(np.float32))


def _cnn(batch: int, record: bool, density: float = 0.02, steps: int = 300, published: bool = False) -> dict[str, Any]:
    return {
        "title": f"CNN of the NIR paper, batch {batch}, {steps} steps, {density:.1%} input"
        + (", v of every neuron recorded" if record else ""),
        "graph": _read("cnn", "cnn_sinabs.nir") if published else cnn(),
        "raster": _spikes((steps, batch, 2, 34, 34), density, 10),
        "dt": 1.0,
        "record": record,
    }


def _braille(batch: int, density: float = BRAILLE_DENSITY, steps: int = 256, published: bool = False) -> dict[str, Any]:
    return {
        "title": f"recurrent Braille reader, batch {batch}, {steps} steps, {density:.1%} input",
        "graph": _read("braille", "braille_noDelay_bias_zero.nir") if published else braille(),
        "raster": _spikes((steps, batch, 12), density, 11),
        "dt": 1e-4,
    }


def _mlp(training: bool, batch: int = 64, density: float = 0.05, steps: int = 100) -> dict[str, Any]:
    what = "training" if training else "inference"
    labels = torch.from_numpy(np.random.default_rng(SEED + 13).integers(0, 10, batch)) if training else None
    return {
        "title": f"784-512-512-10 LIF, {what}, batch {batch}, {steps} steps, {density:.1%} input",
        "graph": mlp(),
        "raster": _spikes((steps, batch, 784), density, 12),
        "dt": 1e-4,
        "labels": labels,
    }


def _scan(steps: int = 1000, size: int = 1000) -> dict[str, Any]:
    current = np.random.default_rng(SEED + 14).exponential(1.0, (steps, 1, size)).astype(np.float32)
    return {
        "title": f"{size:,} LIF neurons alone, {steps:,} steps",
        "graph": population(size),
        "raster": torch.from_numpy(current),
        "dt": 1e-4,
    }


_MAKERS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "cnn-1": partial(_cnn, 1, False),
    "cnn-32": partial(_cnn, 32, False),
    "braille-1": partial(_braille, 1),
    "braille-64": partial(_braille, 64),
    "mlp": partial(_mlp, False),
    "mlp-training": partial(_mlp, True),
    "scan": _scan,
    "cnn-8": partial(_cnn, 8, False),
    "cnn-8-record": partial(_cnn, 8, True),
}
NAMES = tuple(_MAKERS)
DENSITIES = (0.001, 0.01, 0.02, 0.05, 0.10, 0.20)  # of the input, to sweep the CNN over


def workload(name: str, **options: Any) -> Workload:
    """Build one of `NAMES`.

    Options, where the workload has them: `density` of the input, `steps`, `batch` (mlp), `size` (scan), and
    `published`, which takes the weights of the NIR paper's files.
    """
    if name not in _MAKERS:
        raise ValueError(f"unknown workload {name!r}, expected one of {', '.join(NAMES)}")
    return Workload(name, **_MAKERS[name](**options))
