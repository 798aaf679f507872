"""Random networks that sinabs and the graph both can be: drawn by hypothesis, built as NIR here and as modules there.

A network is plain data: `{"seed", "input": [channel, y, x], "layers": [layer], "residual": position or None,
"subtract", "many"}`; a layer is `{"kind": "conv" or "linear", "out", "kernel", "stride", "padding": [y, x], "bias",
"threshold", "v_min": number or None, "pools": [["avg" or "sum", side]]}`. With a residual at k, layer k + 2 reads the
sum of layers k and k + 1.
"""

from __future__ import annotations

import nir
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from nets import chain, conv_node, flatten_node, if_node, linear_node, pool_node

import nirdeploy as nd
from nirdeploy.graph import make_graph

STEPS = 16


def convolved(size, layer):
    y, x = (
        (n + 2 * p - layer["kernel"]) // s + 1
        for n, p, s in zip(size[1:], layer["padding"], layer["stride"], strict=True)
    )
    return (layer["out"], y, x)


def pooled(size, layer):
    side = int(np.prod([side for _, side in layer["pools"]] or [1]))
    return (size[0], size[1] // side, size[2] // side)


def maps(network):
    """(channel, y, x) that reaches each layer, and that of its neurons."""
    size, found = tuple(network["input"]), []
    for layer in network["layers"]:
        out = (layer["out"], 1, 1) if layer["kind"] == "linear" else convolved(size, layer)
        found.append((size, out))
        size = pooled(out, layer)
    return found


def weights(network):
    """float32 weights and biases, a pair a layer."""
    rng, found = np.random.default_rng(network["seed"]), []
    for layer, (before, _) in zip(network["layers"], maps(network), strict=True):
        if layer["kind"] == "linear":
            shape = (layer["out"], int(np.prod(before)))
        else:
            shape = (layer["out"], before[0], layer["kernel"], layer["kernel"])
        weight = rng.normal(0.12, 1.6 / np.prod(shape[1:]) ** 0.5, shape).astype(np.float32)
        bias = rng.normal(0, 0.1, shape[0]).astype(np.float32) if layer["bias"] else None
        found.append((weight, bias))
    return found


def counts(network):
    """An input raster [step, channel, y, x]."""
    return np.random.default_rng(network["seed"] + 1).poisson(0.4, (STEPS, *network["input"])).astype(np.int16)


def graph(network):
    """The network as NIR: w0, if0, pool0_0, w1, ..."""
    nodes = {}
    for k, (layer, (weight, bias), (before, out)) in enumerate(
        zip(network["layers"], weights(network), maps(network), strict=True)
    ):
        if layer["kind"] == "linear":
            nodes[f"flatten{k}"] = flatten_node(before)
            nodes[f"w{k}"], shape = linear_node(weight), out[:1]
        else:
            nodes[f"w{k}"] = conv_node(weight, None, tuple(layer["stride"]), tuple(layer["padding"]), bias)
            shape = out
        nodes[f"if{k}"] = if_node(shape, layer["threshold"])
        for n, (kind, side) in enumerate(layer["pools"]):
            nodes[f"pool{k}_{n}"] = pool_node({"avg": nir.AvgPool2d, "sum": nir.SumPool2d}[kind], side)
    found = chain(network["input"], **nodes)
    if network["residual"] is None:
        return found
    k = network["residual"]
    into = f"flatten{k + 2}" if network["layers"][k + 2]["kind"] == "linear" else f"w{k + 2}"
    return make_graph(found.nodes, [*found.edges, (f"if{k}", into)])


def convention(network):
    overrides = {f"if{k}": {"v_min": layer["v_min"]} for k, layer in enumerate(network["layers"])}
    return nd.convention(
        "sinabs",
        overrides=overrides,
        reset="subtract" if network["subtract"] else "zero",
        spikes_per_step="many" if network["many"] else "one",
    )


@st.composite
def networks(draw):
    """Up to four layers, most of them convolutions."""
    size = tuple(draw(st.tuples(st.integers(1, 3), st.integers(5, 9), st.integers(5, 9))))
    network = {
        "seed": draw(st.integers(0, 2**20)),
        "input": list(size),
        "layers": [],
        "residual": None,
        "subtract": draw(st.booleans()),
        "many": draw(st.booleans()),
    }
    count = draw(st.integers(1, 4))
    if draw(st.booleans()):
        network["residual"] = draw(st.integers(0, 1))
        count = max(count, network["residual"] + 3)  # layer 0, the only one before it, is a convolution
    for k in range(count):
        layer = _layer(draw, size, k, network)
        network["layers"].append(layer)
        if k == count - 1:
            layer["pools"] = []  # the chip's output is that of neurons
        size = pooled((layer["out"], 1, 1) if layer["kind"] == "linear" else convolved(size, layer), layer)
    return network


def _layer(draw, size, k, network):
    joined = network["residual"] is not None and k == network["residual"] + 1  # keeps the shape of the one before
    alone = network["residual"] is None or k not in (network["residual"], network["residual"] + 1)
    threshold = draw(st.sampled_from([0.7, 1.0, 1.3]))
    layer = {
        "kind": "conv",
        "out": size[0] if joined else draw(st.integers(1, 4)),
        "kernel": draw(st.sampled_from([1, 3])) if joined else draw(st.integers(1, min(4, *size[1:]))),
        "stride": [1, 1],
        "padding": [0, 0],
        "bias": draw(st.booleans()),
        "threshold": threshold,
        "v_min": draw(st.sampled_from([-threshold, -0.4, -2.0])),
        "pools": [],
    }
    if joined:
        layer["padding"] = [layer["kernel"] // 2] * 2
        return layer
    after_linear = k > 0 and network["layers"][-1]["kind"] == "linear"
    if after_linear or (alone and k and size[1] == size[2] and draw(st.integers(0, 3)) == 0):
        return {**layer, "kind": "linear", "kernel": size[1], "bias": False}
    layer["stride"] = [draw(st.sampled_from([1, 2])) for _ in range(2)]
    layer["padding"] = [draw(st.integers(0, 2)) for _ in range(2)]
    out = convolved(size, layer)
    for _ in range(2 if alone else 0):
        side = int(np.prod([side for _, side in layer["pools"]] or [1])) * 2
        if side <= 4 and not (out[1] % side or out[2] % side) and draw(st.booleans()):
            layer["pools"].append([draw(st.sampled_from(["avg", "sum"])), 2])
    return layer


def drawn(count):
    """`count` different networks, others in every run."""
    found = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(networks())
    def collect(network):
        if network not in found:
            found.append(network)

    collect()
    return found


def conv(out, kernel=3, stride=1, padding=1, pools=(), bias=False, threshold=1.0, v_min=-1.0, kind="conv"):
    return {
        "kind": kind,
        "out": out,
        "kernel": kernel,
        "stride": [stride, stride],
        "padding": [padding, padding],
        "bias": bias,
        "threshold": threshold,
        "v_min": v_min,
        "pools": [list(pool) for pool in pools],
    }


PINNED = [  # what every run covers, whatever is drawn beside it
    {
        "seed": seed,
        "input": [2, 8, 8],
        "layers": layers,
        "residual": residual,
        "subtract": subtract,
        "many": many,
    }
    for seed, (layers, residual, subtract, many) in enumerate(
        [
            (
                [conv(3, pools=[("avg", 2)]), conv(4, pools=[("sum", 2)]), conv(5, 2, padding=0, kind="linear")],
                None,
                True,
                True,
            ),
            ([conv(3, pools=[("avg", 2), ("sum", 2)]), conv(4, 2, padding=0, v_min=-3.0)], None, False, False),
            ([conv(4, bias=True), conv(4), conv(3, stride=2)], 0, True, False),
            ([conv(2), conv(4, threshold=0.6), conv(4, 1, padding=0), conv(2, 4, stride=2)], 1, False, True),
            ([conv(3, v_min=None, threshold=1.3)], None, True, True),
        ]
    )
]
