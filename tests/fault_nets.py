"""Networks that a chip runs without any loss, so that a planted fault is the only cause of what differs.

Speck: whole weights up to 127, whole even thresholds and bounds, resets by subtraction. Neurons and channels belong to
two groups, the even and the odd; weights within a group excite, those across inhibit, and no weight passes the
threshold. Where only one group's inputs come in a step, only that group spikes, every neuron gets events of one sign,
and their order does not matter: event by event and step by step are the same, and inhibition reaches the lower bound.

Loihi: weights are multiples of 64 and leaks are a half, so that every register of a run of 12 steps is a whole number.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from nets import conv_node, flatten_node, input_node, linear_node, output_node, pool_node

import nirdeploy as nd
from nirdeploy.graph import make_graph, make_node
from nirdeploy.pipeline import Deployment

DT = 2.0**-10
SPECK = nd.Convention(
    dt=DT, reset="subtract", crossing="inclusive", spikes_per_step="many", v_min=-300.0, if_gain="r_dt"
)
LOIHI = nd.Convention(dt=DT, reset="zero", if_gain="r_dt")


@dataclass(frozen=True)
class Net:
    """A network, what it is run with, and where faults are planted.

    Attributes:
        name: of the network.
        target: the chip.
        graph: float parameters that are the chip's integers.
        convention: that the chip follows without loss.
        raster: counts [step, batch, ...] on which the chip does what the reference does.
        populations: in order.
        feeds: population -> the weight nodes that lead to it.
        kernel: weight node with a square kernel, or a square matrix, and its population.
        edge: weight node of a path beside the main one, and its population; or an edge (source, target) and that.
        mixed: a raster in which the order of events matters, and the population at which it does (Speck).
    """

    name: str
    target: str
    graph: nir.NIRGraph
    convention: nd.Convention
    raster: np.ndarray
    populations: tuple[str, ...]
    feeds: dict[str, tuple[str, ...]]
    kernel: tuple[str, str]
    edge: tuple[str | tuple[str, str], str]
    mixed: tuple[np.ndarray, str] | None = None

    @property
    def second(self) -> str:
        """Where most faults are planted: something stands before it, and something behind."""
        return self.populations[1]

    def source(self, weight: str) -> str:
        """The population or Input that a weight node reads, through pools and reshaping."""
        before = {target: source for source, target in self.graph.edges}
        name = before[weight]
        while name not in self.populations and name != "input":
            name = before[name]
        return name

    def with_nodes(self, **nodes: nir.NIRNode) -> Net:
        """Other nodes under the same names."""
        graph = make_graph({**self.graph.nodes, **nodes}, list(self.graph.edges))
        return dataclasses.replace(self, graph=graph)


def deployed(net: Net) -> Deployment:
    """The network on its chip, integers as they stand in the graph."""
    if net.target.startswith("speck"):
        return nd.deploy(net.graph, net.target, convention=net.convention, quantizer="max")
    found = nd.deploy(net.graph, net.target, convention=net.convention, quantizer="max")
    layers: dict[str, Any] = {}
    for name, layer in found.quantized.layers.items():
        node = net.graph.nodes[name]
        if name in net.populations:
            layers[name] = dataclasses.replace(layer, scale=1 / 64, scale_u=None)
            if layer.fires:
                threshold = int(np.asarray(node.v_threshold).flat[0])
                layers[name] = dataclasses.replace(layers[name], threshold=threshold << 6, mantissa=threshold)
        else:
            layers[name] = dataclasses.replace(layer, weight=np.asarray(node.weight).astype(np.int64), scale=1.0)
    return dataclasses.replace(found, quantized=dataclasses.replace(found.quantized, layers=layers))


# ---------------------------------------------------------------- Speck


def if_node(shape, threshold=254.0):
    ones = np.ones(shape, np.float32)
    return make_node(nir.IF, r=ones / DT, v_threshold=threshold * ones, v_reset=0 * ones)


def grouped(rng, out, inputs, *kernel, low=10, across=1.0):
    """Whole weights [out, inputs, *kernel], positive within a group and negative across; the largest is 127."""
    size = rng.integers(low, 128, (out, inputs, *kernel))
    own = (np.arange(out)[:, None] + np.arange(inputs)) % 2 == 0
    own = own.reshape(out, inputs, *[1] * len(kernel))
    weight = np.where(own, size, -np.rint(across * size))
    weight[0, 0] = 127
    return weight


def alternating(rng, shape, steps=40, batch=6, rate=0.35, most=2):
    """Counts [step, batch, channel, ...] of the even channels in even steps, of the odd ones in odd steps."""
    counts = np.minimum(rng.poisson(rate, (steps, batch, *shape)), most)
    channel = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    step = np.arange(steps).reshape(-1, *[1] * (len(shape) + 1))
    return np.where((channel + step) % 2 == 0, counts, 0)


def by_position(weight, channels, size):
    """Weights [out, channels] of groups as a matrix over (channel, position), each position its own magnitude."""
    rng = np.random.default_rng(weight.shape[0])
    wide = np.repeat(weight, size, axis=1)
    wide = np.sign(wide) * np.maximum(1, np.abs(wide) * rng.integers(3, 11, wide.shape) // 10)
    wide[0, 0] = 127
    return wide


def speck_conv(threshold=254.0, seed=0):
    """Convolutions, pools and a side path into the second population; its first layer keeps the groups apart."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": input_node(2, 8, 8),
        "conv1": conv_node(grouped(rng, 4, 2, 3, 3, low=40, across=0), (8, 8), padding=1),
        "if1": if_node((4, 8, 8), threshold),
        "pool": pool_node(nir.SumPool2d, 2),
        "conv2": conv_node(grouped(rng, 4, 4, 3, 3), (4, 4), padding=1),
        "side": conv_node(grouped(rng, 4, 4, 1, 1), (4, 4)),
        "if2": if_node((4, 4, 4)),
        "flatten": flatten_node((4, 4, 4)),
        "fc": linear_node(by_position(grouped(rng, 6, 4), 4, 16)),
        "if3": if_node((6,)),
        "output": output_node(6),
    }
    edges = [("input", "conv1"), ("conv1", "if1"), ("if1", "pool"), ("pool", "conv2"), ("conv2", "if2")]
    edges += [("pool", "side"), ("side", "if2"), ("if2", "flatten"), ("flatten", "fc"), ("fc", "if3")]
    return Net(
        "speck conv",
        "speck2f",
        make_graph(nodes, [*edges, ("if3", "output")]),
        SPECK,
        alternating(rng, (2, 8, 8), rate=0.08),
        ("if1", "if2", "if3"),
        {"if1": ("conv1",), "if2": ("conv2", "side"), "if3": ("fc",)},
        ("conv2", "if2"),
        ("side", "if2"),
        (np.minimum(rng.poisson(0.2, (40, 6, 2, 8, 8)), 1), "if2"),
    )


def speck_mlp(threshold=254.0, seed=1):
    """Matrices with a path that passes the second population by."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": input_node(12),
        "fc1": linear_node(grouped(rng, 16, 12)),
        "if1": if_node((16,), threshold),
        "fc2": linear_node(grouped(rng, 16, 16)),
        "if2": if_node((16,)),
        "fc3": linear_node(grouped(rng, 8, 16)),
        "side": linear_node(grouped(rng, 8, 16)),
        "if3": if_node((8,)),
        "output": output_node(8),
    }
    edges = [("input", "fc1"), ("fc1", "if1"), ("if1", "fc2"), ("fc2", "if2"), ("if2", "fc3"), ("fc3", "if3")]
    edges += [("if1", "side"), ("side", "if3"), ("if3", "output")]
    return Net(
        "speck mlp",
        "speck2f",
        make_graph(nodes, edges),
        SPECK,
        alternating(rng, (12,), steps=60, rate=0.5),
        ("if1", "if2", "if3"),
        {"if1": ("fc1",), "if2": ("fc2",), "if3": ("fc3", "side")},
        ("fc2", "if2"),
        ("side", "if3"),
        (np.minimum(rng.poisson(0.4, (60, 6, 12)), 1), "if1"),
    )


def speck_sum(threshold=254.0, seed=2):
    """A residual network: the third population reads the sum of the first two."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": input_node(2, 6, 6),
        "conv1": conv_node(grouped(rng, 4, 2, 3, 3), (6, 6), padding=1),
        "if1": if_node((4, 6, 6), threshold),
        "conv2": conv_node(grouped(rng, 4, 4, 3, 3), (6, 6), padding=1),
        "if2": if_node((4, 6, 6)),
        "conv3": conv_node(grouped(rng, 6, 4, 3, 3), (6, 6)),
        "if3": if_node((6, 4, 4)),
        "output": output_node(6, 4, 4),
    }
    edges = [("input", "conv1"), ("conv1", "if1"), ("if1", "conv2"), ("conv2", "if2"), ("if2", "conv3")]
    edges += [("if1", "conv3"), ("conv3", "if3"), ("if3", "output")]
    return Net(
        "speck sum",
        "speck2f",
        make_graph(nodes, edges),
        SPECK,
        alternating(rng, (2, 6, 6), rate=0.15),
        ("if1", "if2", "if3"),
        {"if1": ("conv1",), "if2": ("conv2",), "if3": ("conv3",)},
        ("conv2", "if2"),
        (("if1", "conv3"), "if3"),
        (np.minimum(rng.poisson(0.2, (40, 6, 2, 6, 6)), 1), "if1"),
    )


# ---------------------------------------------------------------- Loihi


def leaky(kind, shape, threshold):
    """Leaks of a half, gains of 1; or, as 'IF', no leak."""
    ones = np.ones(shape)
    values = {"r": 2 * ones, "v_threshold": threshold * ones, "v_reset": 0 * ones}
    if kind == "IF":
        return make_node(nir.IF, **{**values, "r": ones / DT})
    values["v_leak"] = 0 * ones
    if kind == "LIF":
        return make_node(nir.LIF, tau=2 * DT * ones, **values)
    return make_node(nir.CubaLIF, tau_syn=2 * DT * ones, tau_mem=2 * DT * ones, w_in=2 * ones, **values)


def integrating(net: Net) -> Net:
    """The same with a last population that only integrates."""
    name = net.populations[-1]
    ones = np.ones(np.shape(net.graph.nodes[name].v_threshold))
    return net.with_nodes(**{name: make_node(nir.LI, tau=2 * DT * ones, r=2 * ones, v_leak=0 * ones)})


def coarse(rng, *shape, excited=0.6):
    """Weights of -128, -64, 0, 64, 128 and 192."""
    up = 64 * rng.integers(1, 4, shape)
    return np.where(rng.random(shape) < excited, up, 64 * rng.integers(-2, 1, shape))


def spikes(rng, shape, steps=12, batch=32, rate=0.35):
    return (rng.random((steps, batch, *shape)) < rate).astype(np.int64)


def loihi_cuba(kind="CubaLIF", seed=3):
    """Three populations one behind the other, and a path that passes the second by."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": input_node(10),
        "w1": linear_node(coarse(rng, 16, 10)),
        "n1": leaky(kind, (16,), 512),
        "w2": linear_node(coarse(rng, 16, 16)),
        "n2": leaky(kind, (16,), 512),
        "w3": linear_node(coarse(rng, 8, 16)),
        "side": linear_node(coarse(rng, 8, 16)),
        "n3": leaky(kind, (8,), 512),
        "output": output_node(8),
    }
    edges = [("input", "w1"), ("w1", "n1"), ("n1", "w2"), ("w2", "n2"), ("n2", "w3"), ("w3", "n3")]
    edges += [("n1", "side"), ("side", "n3"), ("n3", "output")]
    return Net(
        "loihi cuba",
        "loihi2",
        make_graph(nodes, edges),
        LOIHI,
        spikes(rng, (10,)),
        ("n1", "n2", "n3"),
        {"n1": ("w1",), "n2": ("w2",), "n3": ("w3", "side")},
        ("w2", "n2"),
        ("side", "n3"),
    )


def loihi_recurrent(kind="CubaLIF", seed=4):
    """A recurrent population between two others."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": input_node(10),
        "w1": linear_node(coarse(rng, 16, 10)),
        "n1": leaky(kind, (16,), 512),
        "back": linear_node(coarse(rng, 16, 16, excited=0.4)),
        "w2": linear_node(coarse(rng, 12, 16)),
        "n2": leaky(kind, (12,), 512),
        "w3": linear_node(coarse(rng, 8, 12)),
        "n3": leaky(kind, (8,), 512),
        "output": output_node(8),
    }
    edges = [("input", "w1"), ("w1", "n1"), ("n1", "back"), ("back", "n1"), ("n1", "w2"), ("w2", "n2")]
    edges += [("n2", "w3"), ("w3", "n3"), ("n3", "output")]
    return Net(
        "loihi recurrent",
        "loihi2",
        make_graph(nodes, edges),
        LOIHI,
        spikes(rng, (10,)),
        ("n1", "n2", "n3"),
        {"n1": ("w1", "back"), "n2": ("w2",), "n3": ("w3",)},
        ("back", "n1"),
        ("back", "n1"),
    )


def loihi_conv(kind="LIF", seed=5):
    """Convolutions of LIF neurons with a side path into the second population."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": input_node(2, 6, 6),
        "conv1": conv_node(coarse(rng, 4, 2, 3, 3), (6, 6), padding=1),
        "n1": leaky(kind, (4, 6, 6), 384),
        "conv2": conv_node(coarse(rng, 4, 4, 3, 3, excited=0.5), (6, 6), padding=1),
        "side": conv_node(coarse(rng, 4, 4, 1, 1), (6, 6)),
        "n2": leaky(kind, (4, 6, 6), 512),
        "flatten": flatten_node((4, 6, 6)),
        "fc": linear_node(coarse(rng, 8, 144, excited=0.35)),
        "n3": leaky(kind, (8,), 512),
        "output": output_node(8),
    }
    edges = [("input", "conv1"), ("conv1", "n1"), ("n1", "conv2"), ("conv2", "n2"), ("n1", "side"), ("side", "n2")]
    edges += [("n2", "flatten"), ("flatten", "fc"), ("fc", "n3"), ("n3", "output")]
    return Net(
        "loihi conv",
        "loihi2",
        make_graph(nodes, edges),
        LOIHI,
        spikes(rng, (2, 6, 6), batch=12, rate=0.25),
        ("n1", "n2", "n3"),
        {"n1": ("conv1",), "n2": ("conv2", "side"), "n3": ("fc",)},
        ("conv2", "n2"),
        ("side", "n2"),
    )


SPECK_NETS = (speck_conv, speck_mlp, speck_sum)
LOIHI_NETS = (loihi_cuba, loihi_recurrent, loihi_conv)
