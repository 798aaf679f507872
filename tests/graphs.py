"""Random graphs that can be run, with random conventions: every primitive, fan-in, skips, cycles, several ports.

A strategy is either exact, all numbers being small multiples of powers of two, so that sums are the same in every
order, or has real numbers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from hypothesis import strategies as st
from nets import chain, conv_node, flatten_node, input_node, linear_node, output_node, pool_node

import nirdeploy as nd
from nirdeploy.graph import make_graph, make_node, output_shape

HAS_V_RESET = "v_reset" in nir.IF.__dataclass_fields__
FLAT = ("Affine", "Linear")
MAPS = ("Conv2d", "AvgPool2d", "SumPool2d")
NEURONS = ("IF", "LIF", "CubaLIF")
ANY = ("Scale", "Threshold", "Delay", "Flatten", "I", "LI", *(("CubaLI",) if hasattr(nir, "CubaLI") else ()), *NEURONS)


@dataclass
class Maker:
    """Draws nodes.

    Attributes:
        draw: of hypothesis.
        convention: that they are to be run with.
        exact: whether all numbers are small multiples of powers of two.
    """

    draw: Any
    convention: nd.Convention
    exact: bool

    def one(self, *values):
        return self.draw(st.sampled_from(values))

    def rng(self):
        return np.random.default_rng(self.draw(st.integers(0, 99)))

    def weight(self, *shape):
        rng = self.rng()
        if self.exact:
            return (rng.integers(-4, 7, shape) / 4).astype(np.float32)
        return rng.normal(0.2, 1.0, shape) / np.sqrt(np.prod(shape[1:]))

    def full(self, shape, *values):
        """The same number for all neurons, or one each."""
        if self.draw(st.booleans()):
            return np.full(shape, self.one(*values))
        drawn = self.rng().choice(values, shape)
        return drawn if self.exact else drawn * self.rng().uniform(0.9, 1.1, shape)

    def population(self, kind, shape):
        dt, per_second = self.convention.dt, 1.0
        if kind in ("IF", "I") and self.convention.if_gain == "r_dt":
            per_second = 1 / dt
        values = {"r": per_second * self.full(shape, 0.5, 1.0, 2.0)}
        if kind not in ("IF", "I"):
            values["v_leak"] = self.full(shape, 0.0, 0.0, 0.25, -0.5)
            name = "tau_mem" if kind.startswith("Cuba") else "tau"
            values[name] = dt * self.full(shape, 2.0, 4.0)
        if kind.startswith("Cuba"):
            values["tau_syn"] = dt * self.full(shape, 2.0, 4.0)
            values["w_in"] = self.full(shape, 1.0, 2.0, -0.5)
        if kind in NEURONS:
            values["v_threshold"] = self.full(shape, 0.5, 1.0, 2.0)
            if HAS_V_RESET:
                values["v_reset"] = self.full(shape, 0.0, 0.25, -0.5)
        return make_node(getattr(nir, kind), **values)

    def node(self, kind, shape):
        if kind in ("I", "LI", "CubaLI", *NEURONS):
            return self.population(kind, shape)
        return getattr(self, kind.lower())(shape)

    def linear(self, shape):
        return linear_node(self.weight(self.one(shape[0], 2), shape[0]))

    def affine(self, shape):
        size = self.one(shape[0], 2)
        return nir.Affine(self.weight(size, shape[0]), self.weight(size))

    def scale(self, shape):
        return nir.Scale(self.full(shape, 0.5, 1.0, -1.0))

    def threshold(self, shape):
        return nir.Threshold(self.full(shape, 0.0, 0.5, 1.0))

    def delay(self, shape):
        steps = self.rng().integers(0, 4, shape) if self.draw(st.booleans()) else np.full(shape, self.one(0, 1, 2))
        return nir.Delay(steps * self.convention.dt)

    def flatten(self, shape):
        start = self.one(0, len(shape) - 1, len(shape) - 2) if len(shape) > 1 else 0
        if start <= 0:
            return flatten_node(shape)
        return make_node(nir.Flatten, input_type={"input": np.array(shape)}, start_dim=start, end_dim=-1)

    def conv1d(self, shape):
        channels, size = shape
        groups = self.one(1, channels)
        kernel, dilation = self.one((1, 1), (2, 1), (2, 2), (3, 1))
        out = channels * self.one(1, 2)
        weight = self.weight(out, channels // groups, kernel)
        return nir.Conv1d(size, weight, self.one(1, 2), self.one(0, 1), dilation, groups, self.weight(out))

    def conv2d(self, shape):
        channels = shape[0]
        groups = self.one(1, 1, channels)
        out, kernel = channels * self.one(1, 2), self.one((1, 1), (2, 1), (2, 3), (3, 3))
        return conv_node(
            self.weight(out, channels // groups, *kernel),
            shape[1:],
            stride=self.one(1, 2, (1, 2)),
            padding=self.one(1, 2, (1, 0)),
            bias=self.weight(out),
            dilation=self.one(1, 1, 2) if kernel != (3, 3) and min(shape[1:]) > 2 else 1,
            groups=groups,
        )

    def sumpool2d(self, shape, kind=nir.SumPool2d):
        window, stride, padding = self.one((1, 1, 0), (2, 1, 1), (2, 2, 0), (2, 2, 1), (2, 1, 0))
        if min(shape[1:]) + 2 * padding < window:
            window, stride, padding = 2, 1, 1
        return pool_node(kind, window, stride, padding)

    def avgpool2d(self, shape):
        return self.sumpool2d(shape, nir.AvgPool2d)

    def kinds(self, shape):
        found = (*ANY, *NEURONS)
        if len(shape) == 1:
            return (*found, *FLAT, *FLAT, *FLAT)
        if len(shape) == 2:
            return (*found, "Conv1d", "Conv1d")
        return (*found, *MAPS, "Conv2d", "Conv2d")


def _fits(node, name, shape):
    try:
        out = output_shape(name, node, shape)
    except ValueError:
        return None
    return out if all(n > 0 for n in out) else None


@st.composite
def runnable_graphs(draw, convention, exact, most=7, depth=1, shapes=((3,), (2, 5), (2, 4, 3))):
    """A graph with one or two Inputs."""
    maker = Maker(draw, convention, exact)
    nodes, edges, gets, gives = {}, [], {}, {}
    fans_in, loops = draw(st.booleans()), draw(st.booleans())
    for index in range(draw(st.integers(1, 2)) if depth else 1):
        name, shape = f"in{index}" if depth else "i", draw(st.sampled_from(shapes))
        nodes[name], gets[name], gives[name] = input_node(*shape), shape, shape
    for index in range(draw(st.integers(1, most))):
        source = draw(st.sampled_from(list(nodes)))
        # the longer the chain, the more can go wrong
        source = list(nodes)[-1] if draw(st.booleans()) else source
        shape = gives[source]
        name = f"{draw(st.sampled_from('abcz'))}{index}"
        kinds = (*maker.kinds(shape), *(("sub",) if depth else ()))
        weights = [k for k in kinds if k in ("Linear", "Affine", "Conv1d", "Conv2d")]
        # weight and population in turn is what networks are made of
        usual = NEURONS if type(nodes[source]).__name__ in ("Linear", "Affine", "Conv1d", "Conv2d") else weights
        kind = draw(st.sampled_from(usual if draw(st.booleans()) else kinds))
        if kind == "sub":
            node = draw(runnable_graphs(convention, exact, 2, 0, (shape,)))
            (last,) = [n for n in node.nodes.values() if isinstance(n, nir.Output)]
            # a subgraph of wires alone may close a loop of wires, which is refused
            out = tuple(int(n) for n in last.output_type["output"]) if len(node.nodes) > 2 else None
        else:
            node = maker.node(kind, shape)
            out = _fits(node, name, shape)
        if out is None:
            continue
        others = [n for n in nodes if gives[n] == shape and n != source] if fans_in else []
        edges += [(other, name) for other in others if draw(st.integers(0, 3)) == 0]
        nodes[name], gets[name], gives[name] = node, shape, out
        edges.append((source, name))
    inner = [n for n in nodes if not isinstance(nodes[n], nir.Input)]
    for source in inner if loops else ():
        for target in inner:
            if gives[source] == gets[target] and (source, target) not in edges and draw(st.integers(0, 4)) == 0:
                edges.append((source, target))
    used = {source for source, _ in edges}
    ends = [n for n in nodes if n not in used]
    if not depth or not ends:
        ends = [list(nodes)[-1]]
    for index, end in enumerate(ends):
        name = f"out{index}" if depth else "o"
        nodes[name] = output_node(*gives[end])
        edges.append((end, name))
        others = [n for n in inner if n != end and gives[n] == gives[end]] if depth and fans_in else []
        edges += [(other, name) for other in others if draw(st.integers(0, 5)) == 0]
    return make_graph(nodes, edges)


@st.composite
def feed_forward(draw, convention, exact):
    """Weights and populations in turn, with pools and flattening between them: what events can drive."""
    maker = Maker(draw, convention, exact)
    now, nodes = (2, 5, 4), {}
    for n in range(draw(st.integers(1, 3))):
        maps = ("none", "none", "SumPool2d", "AvgPool2d", "Flatten") if len(now) == 3 else ("none",)
        weights = ("Linear", "Affine") if len(now) == 1 else ("Conv2d",)
        kind = draw(st.sampled_from(maps))
        weights = ("Linear", "Affine") if kind == "Flatten" else weights
        for name, made in ((f"m{n}", kind), (f"w{n}", draw(st.sampled_from(weights)))):
            node = None if made == "none" else flatten_node(now) if made == "Flatten" else maker.node(made, now)
            out = now if node is None else _fits(node, name, now)
            if node is not None and out is not None:
                nodes[name], now = node, out
        nodes[f"n{n}"] = maker.population(maker.one("IF", "LIF", "CubaLIF", "I"), now)
    return chain((2, 5, 4), **nodes)


@st.composite
def recurrent_stacks(draw, convention, exact):
    """Layers one behind the other, each a matrix and a population, some with a matrix back into itself."""
    maker = Maker(draw, convention, exact)
    nodes, edges, last, size = {"in0": input_node(3)}, [], "in0", 3
    for n in range(draw(st.integers(1, 3))):
        width = maker.one(2, 5)
        weight, bias = maker.weight(width, size), maker.weight(width)
        nodes[f"w{n}"] = nir.Affine(weight, bias) if draw(st.booleans()) else linear_node(weight)
        nodes[f"n{n}"] = maker.population(maker.one("IF", "LIF", "CubaLIF", "LI"), (width,))
        edges += [(last, f"w{n}"), (f"w{n}", f"n{n}")]
        if n == 0 or draw(st.booleans()):
            weight = maker.weight(width, width)
            nodes[f"b{n}"] = nir.Affine(weight, maker.weight(width)) if draw(st.booleans()) else linear_node(weight)
            edges += [(f"n{n}", f"b{n}"), (f"b{n}", f"n{n}")]
        last, size = f"n{n}", width
    nodes["out0"] = output_node(size)
    return make_graph(nodes, [*edges, (last, "out0")])


CHOICES = {
    "use_r": (True, True, False),
    "reset": ("v_reset", "zero", "subtract"),
    "crossing": ("strict", "inclusive"),
    "spikes_per_step": ("one", "many"),
    "v_min": (None, None, -0.25, "-threshold"),
    "v_start": ("zero", "v_reset", "v_leak"),
    "v_unit": ("model", "gain", "threshold"),
    "late_reset": ("usual", "before_update", "after_update"),
}


@st.composite
def conventions(draw, exact):
    """Any legal convention; in exact ones all coefficients are multiples of powers of two."""
    fields = {name: draw(st.sampled_from(values)) for name, values in CHOICES.items()}
    fields["if_gain"] = draw(st.sampled_from(("r", "r_dt")))
    fields["population_delay"] = draw(st.sampled_from((0, 0, 1)))
    fields["feedback_start"] = draw(st.sampled_from(("silence", "zero")))
    fields["integrator"] = "euler" if exact else draw(st.sampled_from(("euler", "exponential", "exact")))
    overrides = {}
    if fields["integrator"] == "exact":
        fields["gain"] = draw(st.sampled_from(("euler", "decay")))
        overrides = {kind: {"integrator": "exponential"} for kind in ("CubaLIF", "CubaLI")}
        for kind in ("IF", "LIF", "LI"):
            if draw(st.integers(0, 3)) == 0:
                overrides[kind] = {"integrator": "euler"}
    else:
        late = [("after_update", "same_step"), ("after_update", "next_step"), ("before_update", "same_step")]
        late += [("after_update", "brought_forward")] * (fields["reset"] == "subtract")
        fields["fires"], fields["reset_time"] = draw(st.sampled_from(late))
        fields["gain"] = draw(st.sampled_from(("euler", "decay", "unit")))
    fields["synapse_gain"] = draw(st.sampled_from(("same", "euler", "decay", "unit", "decayed")))
    integrators = ("same", "euler") if exact else ("same", "euler", "exponential")
    fields["synapse_integrator"] = draw(st.sampled_from(integrators))
    for key in draw(st.lists(st.sampled_from((*NEURONS, "LI", "I")), max_size=2)):
        choices = set(CHOICES) - ({"reset"} if fields.get("reset_time") == "brought_forward" else set())
        name = draw(st.sampled_from(sorted(choices)))
        overrides[key] = {**overrides.get(key, {}), name: draw(st.sampled_from(CHOICES[name]))}
    return nd.Convention(dt=2.0**-10 if exact else 1e-3, overrides=overrides, **fields)


@dataclass
class Case:
    """A graph to run with what comes in."""

    module: Any
    rasters: dict[str, np.ndarray]
    convention: nd.Convention
    graph: nir.NIRGraph


@st.composite
def cases(draw, exact, dtype, steps=6, graphs=runnable_graphs):
    """A graph, a convention with overrides by name too, and rasters with a batch of 1 or 5 or none."""
    convention = draw(conventions(exact))
    graph = draw(graphs(convention, exact))
    neurons = [n for n, node in graph.nodes.items() if type(node).__name__ in NEURONS]
    if neurons and draw(st.booleans()):
        # a reset brought forward is one by subtraction, at every node
        left = {"reset"} if convention.reset_time == "brought_forward" else set()
        name = draw(st.sampled_from(sorted(set(CHOICES) - left)))
        mine = {draw(st.sampled_from(neurons)): {name: draw(st.sampled_from(CHOICES[name]))}}
        convention = dataclasses.replace(convention, overrides={**convention.overrides, **mine})
    module = nd.nir_to_torch(graph, convention=convention, dtype=dtype)
    batch = draw(st.sampled_from((None, 1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rate = draw(st.sampled_from((0.1, 0.5, 1.5)))
    rasters = {}
    for path in module.plan.inputs:
        shape = module.shapes[path].input
        drawn = rng.poisson(rate, (steps, *(() if batch is None else (batch,)), *shape))
        rasters[".".join(path)] = drawn.astype(rng.choice(["u1", "i8", "f4", "f8"]))
    return Case(module, rasters, convention, graph)
