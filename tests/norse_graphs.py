"""Graphs of what Norse's importer knows, drawn at random, and small ones; Norse itself is not needed for them."""

from __future__ import annotations

import nir
import numpy as np
from hypothesis import strategies as st

import nirdeploy as nd
from nirdeploy.nodes import make_graph, make_node, parameters

CLOSE = 1e-5


class Draws:
    """Choices of hypothesis, and numbers by a drawn seed."""

    def __init__(self, draw):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**31 - 1)))

    def one(self, *values):
        return self.draw(st.sampled_from(values))


def population(build, shape):
    """A node of each kind that Norse imports, with parameters one a neuron."""

    def some(*values):
        return build.rng.choice(values, shape).astype(np.float32)

    kind = build.one("LIF", "IF", "CubaLIF")
    values = {"r": some(0.5, 1.0, 2.0), "v_threshold": some(0.4, 0.6, 1.0), "v_reset": some(0.0)}
    if kind == "LIF":
        values |= {"tau": some(2e-3, 5e-3, 1e-2), "v_leak": some(0.0)}
    if kind == "CubaLIF":
        values |= {
            "tau_mem": some(5e-3, 1e-2),
            "tau_syn": some(2e-3, 5e-3),
            "v_leak": some(0.0),
            "w_in": some(1.0, 2.0),
        }
    return make_node(getattr(nir, kind), **values)


@st.composite
def importable(draw):
    """A graph of what Norse's importer knows, its raster and a convention that it can follow."""
    build = Draws(draw)
    fields = {"reset": build.one("zero", "v_reset"), "if_gain": "r", "feedback_start": "zero"}
    fields |= {"integrator": build.one("euler", "exponential"), "gain": build.one("euler", "decay", "unit")}
    fields |= {"use_r": build.one(True, False), "synapse_gain": build.one("same", "unit", "decayed")}
    shape, nodes, edges, last = (build.one(3, 5),), {}, [], "input"
    if build.one(True, False):
        shape = (2, 6, 5)
    nodes["input"] = make_node(nir.Input, input_type={"input": np.array(shape)})
    for index in range(build.one(1, 2, 3)):
        layer, after = stateless(build, shape)
        for kind, node in [*layer, ("neuron", population(build, after))]:
            name = f"{build.one('a', 'z')}{index}.{kind}"
            nodes[name] = node
            edges.append((last, name))
            last = name
        if len(after) == 1 and build.one(True, False):
            back = f"{build.one('a', 'z')}{index}.back"
            nodes[back] = affine(build, after[0], after[0])
            edges += [(last, back), (back, last)]
        shape = after
    nodes["output"] = make_node(nir.Output, output_type={"output": np.array(shape)})
    raster = build.rng.poisson(0.7, (20, 2, *nodes["input"].input_type["input"])).astype(np.float32)
    return make_graph(nodes, [*edges, (last, "output")]), raster, nd.Convention(dt=build.one(1e-3, 5e-4), **fields)


def affine(build, inputs, outputs):
    weight, bias = (build.rng.uniform(-0.5, 1.0, s).astype(np.float32) for s in ((outputs, inputs), outputs))
    return make_node(nir.Affine, weight=weight * 2 / inputs, bias=bias * 0.2)


def stateless(build, shape):
    """Weights, a convolution with groups, a pool or a flattening, and the shape that comes out."""
    if len(shape) == 1:
        outputs = build.one(2, 4)
        return [("affine", affine(build, shape[0], outputs))], (outputs,)
    if build.one(True, False) or min(shape[1:]) < 3:
        size = int(np.prod(shape))
        start, end = build.one((0, -1), (0, len(shape) - 1), (-len(shape), -1))
        flat = make_node(nir.Flatten, input_type={"input": np.array(shape)}, start_dim=start, end_dim=end)
        return [("flat", flat), ("affine", affine(build, size, 3))], (3,)
    groups = build.one(1, shape[0])
    weight = build.rng.uniform(-0.2, 0.6, (2 * groups, shape[0] // groups, 3, 3)).astype(np.float32)
    padding = build.one((0, 0), (1, 1))
    options = {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": groups}
    node = make_node(nir.Conv2d, input_shape=shape[1:], weight=weight, bias=weight[:, 0, 0, 0] * 0.1, **options)
    after = (2 * groups, shape[1] - 2 + 2 * padding[0], shape[2] - 2 + 2 * padding[1])
    if min(after[1:]) < 4:
        return [("conv", node)], after
    pool = {key: np.array(value) for key, value in (("kernel_size", [2, 2]), ("stride", [2, 2]), ("padding", [0, 0]))}
    pooled = (after[0], after[1] // 2, after[2] // 2)
    return [("conv", node), ("pool", make_node(nir.SumPool2d, **pool))], pooled


def steady(graph, raster, convention):
    """The output, where thresholds a little higher or lower give the same one; None where rounding decides a spike."""

    def shifted(factor):
        nodes = {
            name: make_node(type(node), **{**parameters(node), "v_threshold": np.float32(factor) * node.v_threshold})
            if hasattr(node, "v_threshold")
            else node
            for name, node in graph.nodes.items()
        }
        return nd.run(make_graph(nodes, list(graph.edges)), raster, convention=convention).outputs

    found = [shifted(factor) for factor in (1.0, 1.0 + CLOSE, 1.0 - CLOSE)]
    return found[0] if all(np.array_equal(found[0], other) for other in found[1:]) else None


def simple(node):
    """A graph of one population or other node between an Input and an Output."""
    shape = np.array([2])
    nodes = {
        "input": make_node(nir.Input, input_type={"input": shape}),
        "node": node,
        "output": make_node(nir.Output, output_type={"output": shape}),
    }
    return make_graph(nodes, [("input", "node"), ("node", "output")])


def full(**values):
    return {key: np.full(2, value, np.float32) for key, value in values.items()}


def spiking(kind, **values):
    given = {"r": 1.0, "v_threshold": 1.0, "v_reset": 0.0}
    given |= {"tau": 1e-2, "v_leak": 0.0} if kind == "LIF" else {}
    given |= {"tau_mem": 1e-2, "tau_syn": 5e-3, "v_leak": 0.0, "w_in": 1.0} if kind == "CubaLIF" else {}
    return simple(make_node(getattr(nir, kind), **full(**{**given, **values})))


def between(*extra, edges):
    """input -> node -> output with more nodes and edges."""
    graph = spiking("LIF")
    matrix = make_node(nir.Linear, weight=np.eye(2, dtype=np.float32))
    return make_graph({**graph.nodes, **dict.fromkeys(extra, matrix)}, [*graph.edges, *edges])
