"""Lowered networks keep the graph's timing: run connection by connection in float, they give the reference's spikes."""

import nir
import numpy as np
import pytest
from nirdeploy_loihi.linear import float_weight
from nirdeploy_loihi.lowering import lower

import nirdeploy as nd
from nirdeploy.errors import UnsupportedError
from nirdeploy.graph import make_graph, make_node
from nirdeploy.reference.convention import Convention

DT = 1e-3


def delay(*steps):
    return make_node(nir.Delay, delay=DT * np.array(steps, dtype=float))


def scale(values):
    return make_node(nir.Scale, scale=np.asarray(values, dtype=float))


def conv1d(weight, size, padding=0, stride=1):
    return make_node(
        nir.Conv1d,
        input_shape=size,
        weight=np.asarray(weight, dtype=float),
        stride=stride,
        padding=padding,
        dilation=1,
        groups=1,
        bias=np.zeros(len(weight)),
    )


class Chip:
    """A lowered network in float64, every synapse a step and its delay late."""

    def __init__(self, graph, convention):
        self.graph, self.network = graph, lower(graph, convention)

    def run(self, raster, record=None):
        steps = len(raster)
        spikes = {self.network.input: raster.reshape(steps, -1).astype(float)}
        matrices, state = {}, {}
        for layer in self.network.layers:
            n = int(np.prod(layer.shape))
            spikes[layer.name] = np.zeros((steps, n))
            state[layer.name] = [np.zeros(n), np.zeros(n)]
            for c in layer.connections:
                matrices[id(c)] = matrix(self.graph, c)
        for t in range(steps):
            for layer in self.network.layers:
                a = np.zeros(int(np.prod(layer.shape)))
                for c in layer.connections:
                    w = matrices[id(c)]
                    when = t - 1 - np.broadcast_to(c.delay, w.shape)
                    came = np.where(when >= 0, spikes[c.source][when, np.arange(w.shape[1])], 0.0)
                    a += (w * came).sum(1)
                a += layer.bias.reshape(-1)
                for constant in layer.constants:
                    if t - 1 >= constant.start:
                        a += constant.value.reshape(-1)
                spikes[layer.name][t] = step(self.graph.nodes[layer.name], state[layer.name], a)
        return spikes


def matrix(graph, connection):
    """A connection's weights [target, source] by its definition: whatever each source neuron alone gives."""
    from nirdeploy_loihi.linear import float_stage

    size = int(np.prod(connection.source_shape))
    x = np.eye(size).reshape(-1, *connection.source_shape)
    for stage in connection.stages:
        x = float_stage(stage, graph.nodes[stage.node], x, bias=False)
    return x.reshape(size, -1).T


def step(node, state, a):
    i, v = state
    threshold = np.asarray(node.v_threshold).reshape(-1)
    if isinstance(node, nir.CubaLIF):
        flat = {k: np.asarray(getattr(node, k)).reshape(-1) for k in ("tau_syn", "tau_mem", "r", "w_in")}
        i = (1 - DT / flat["tau_syn"]) * i + flat["w_in"] * DT / flat["tau_syn"] * a
        v = (1 - DT / flat["tau_mem"]) * v + flat["r"] * DT / flat["tau_mem"] * i
    else:  # IF with gain r
        v = v + np.asarray(node.r).reshape(-1) * a
    fired = v > threshold
    state[0], state[1] = i, np.where(fired, 0.0, v)
    return fired.astype(float)


def difference(graph, convention, steps=60, seed=0, density=0.3):
    """Populations of which the chip differs from the reference, once shifted by its lag; and all spikes."""
    rng = np.random.default_rng(seed)
    chip = Chip(graph, convention)
    raster = (rng.random((steps, *chip.network.input_shape)) < density).astype(np.int64)
    reference = nd.run(graph, raster, convention=convention, record=("spikes",))
    found = chip.run(raster)
    wrong, total = [], 0
    for layer in chip.network.layers:
        wanted = np.asarray(reference[layer.name, "spikes"].data).reshape(steps, -1)
        total += wanted.sum()
        if not np.array_equal(found[layer.name][layer.lag :], wanted[: steps - layer.lag]):
            wrong.append(layer.name)
    assert total > 0
    return wrong


def random_weights(rng, out, into):
    return rng.normal(0.3, 0.6, (out, into))


@pytest.mark.parametrize("population_delay", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_skip_keeps_the_graphs_timing(nets, population_delay, seed):
    rng = np.random.default_rng(seed)
    nodes = {
        "input": nets.source(3),
        "w1": nets.linear(random_weights(rng, 4, 3)),
        "a": nets.if_(4),
        "w2": nets.linear(random_weights(rng, 4, 4)),
        "b": nets.if_(4),
        "w3": nets.linear(random_weights(rng, 2, 4)),
        "skip": nets.linear(random_weights(rng, 2, 3)),
        "c": nets.if_(2),
        "output": nets.output(2),
    }
    edges = [("input", "w1"), ("w1", "a"), ("a", "w2"), ("w2", "b"), ("b", "w3"), ("w3", "c"), ("c", "output")]
    edges += [("input", "skip"), ("skip", "c")]
    graph = make_graph(nodes, edges)
    convention = Convention(dt=DT, reset="zero", if_gain="r", population_delay=population_delay)
    assert difference(graph, convention, seed=seed) == []
    (skip,) = [c for c in lower(graph, convention).layers[2].connections if c.source == "input"]
    assert skip.delay.tolist() == [[2 if population_delay == 0 else 0]]


def recurrent(nets, rng, bias=0.0, middle=None):
    nodes = {
        "input": nets.source(3),
        "w": nets.affine(random_weights(rng, 4, 3), rng.normal(0, bias, 4)),
        "a": nets.cuba(4, threshold=0.3),
        "rec": nets.affine(random_weights(rng, 4, 4) * 0.5, rng.normal(0, bias, 4)),
        "w2": nets.affine(random_weights(rng, 2, 4), rng.normal(0, bias, 2)),
        "b": nets.cuba(2, threshold=0.3),
        "output": nets.output(2),
    }
    edges = [("input", "w"), ("w", "a"), ("a", "rec"), ("rec", "a"), ("a", "w2"), ("w2", "b"), ("b", "output")]
    if middle is not None:
        nodes["delay"] = middle
        edges = [e for e in edges if e != ("rec", "a")] + [("rec", "delay"), ("delay", "a")]
    return make_graph(nodes, edges)


@pytest.mark.parametrize("start", ["silence", "zero"])
@pytest.mark.parametrize("population_delay", [0, 1])
def test_recurrence_with_biases_follows_the_reference_from_its_first_step(nets, start, population_delay):
    for seed in range(4):
        graph = recurrent(nets, np.random.default_rng(seed), bias=0.4)
        convention = Convention(dt=DT, reset="zero", feedback_start=start, population_delay=population_delay)
        assert difference(graph, convention, seed=seed, steps=40, density=0.2) == []


def test_a_recurrent_bias_starts_a_step_later_where_feedback_starts_with_zero(nets):
    graph = recurrent(nets, np.random.default_rng(0), bias=0.4)
    starts = {}
    for name in ("silence", "zero"):
        layer = lower(graph, Convention(dt=DT, reset="zero", feedback_start=name)).layers[0]
        starts[name] = [constant.start for constant in layer.constants]
    assert starts == {"silence": [0], "zero": [0, 1]}


@pytest.mark.parametrize("population_delay", [0, 1])
def test_delays_of_neurons_before_and_behind_the_weights_add_up(nets, population_delay):
    rng = np.random.default_rng(3)
    graph = nets.chain(
        input=nets.source(3),
        before=delay(0, 3, 7),
        w=nets.linear(random_weights(rng, 4, 3)),
        behind=delay(1, 0, 2, 5),
        a=nets.if_(4),
        output=nets.output(4),
    )
    convention = Convention(dt=DT, reset="zero", if_gain="r", population_delay=population_delay)
    assert difference(graph, convention) == []
    (layer,) = lower(graph, convention).layers
    # with population_delay=1 each Delay is late by a step of its own, too
    extra = 2 * population_delay
    assert layer.connections[0].delay[1].tolist() == [0 + extra, 3 + extra, 7 + extra]


def test_a_delayed_loop_through_two_populations_keeps_its_time(nets):
    rng = np.random.default_rng(5)
    nodes = {
        "input": nets.source(3),
        "w": nets.linear(random_weights(rng, 3, 3)),
        "a": nets.if_(3),
        "up": nets.linear(random_weights(rng, 2, 3)),
        "b": nets.if_(2),
        "down": nets.linear(random_weights(rng, 3, 2)),
        "late": delay(2, 2, 4),
        "output": nets.output(2),
    }
    edges = [("input", "w"), ("w", "a"), ("a", "up"), ("up", "b"), ("b", "down"), ("down", "late"), ("late", "a")]
    graph = make_graph(nodes, [*edges, ("b", "output")])
    assert difference(graph, Convention(dt=DT, reset="zero", if_gain="r")) == []


def test_a_loop_faster_than_the_chip_is_refused_by_name(nets):
    nodes = {
        "input": nets.source(2),
        "w": nets.linear(np.eye(2)),
        "a": nets.if_(2),
        "up": nets.linear(np.eye(2)),
        "b": nets.if_(2),
        "down": nets.linear(np.eye(2)),
        "output": nets.output(2),
    }
    edges = [("input", "w"), ("w", "a"), ("a", "up"), ("up", "b"), ("b", "down"), ("down", "a"), ("b", "output")]
    graph = make_graph(nodes, edges)
    with pytest.raises(UnsupportedError, match=r"the loop (a -> b -> a|b -> a -> b) takes 1 of the graph's steps, on"):
        lower(graph, Convention(dt=DT, if_gain="r"))
    assert difference(graph, Convention(dt=DT, reset="zero", if_gain="r", population_delay=1)) == []


def test_a_delay_beyond_the_chips_is_refused_by_name(nets):
    graph = nets.chain(
        input=nets.source(2), late=delay(63, 1), w=nets.linear(np.eye(2)), a=nets.if_(2), output=nets.output(2)
    )
    with pytest.raises(UnsupportedError, match=r"node 'a': spikes of 'input' are delayed by 63 steps, at most 62"):
        lower(graph, Convention(dt=DT, if_gain="r"))


def test_unequal_delays_between_two_weights_are_refused_by_name(nets):
    graph = nets.chain(
        input=nets.source(2),
        w=nets.linear(np.eye(2)),
        late=delay(3, 1),
        w2=nets.linear(np.eye(2)),
        a=nets.if_(2),
        output=nets.output(2),
    )
    with pytest.raises(UnsupportedError, match=r"node 'late': its delays of 1 to 3 steps lie between 'w' and 'w2'"):
        lower(graph, Convention(dt=DT, if_gain="r"))


def test_convolutions_of_one_axis_and_scales_are_composed(nets):
    rng = np.random.default_rng(1)
    graph = nets.chain(
        input=nets.source(2, 9),
        w=conv1d(rng.normal(0.3, 0.5, (3, 2, 3)), 9, padding=1, stride=2),
        gain=scale(np.repeat([[0.5], [1.0], [2.0]], 5, axis=1)),
        a=nets.if_(3, 5),
        flat=nets.flatten(3, 5),
        factor=scale(rng.random(15) + 0.5),
        w2=nets.linear(random_weights(rng, 4, 15)),
        b=nets.if_(4),
        output=nets.output(4),
    )
    convention = Convention(dt=DT, reset="zero", if_gain="r")
    assert difference(graph, convention) == []
    first, second = lower(graph, convention).layers
    assert first.connections[0].kernel is not None
    kept = float_weight(graph, first.connections[0])
    assert np.allclose(kept[2], 2.0 * graph.nodes["w"].weight[2], atol=0)
    assert second.connections[0].kernel is None
    assert np.allclose(
        float_weight(graph, second.connections[0]), graph.nodes["w2"].weight * graph.nodes["factor"].scale
    )


def test_an_integrator_may_be_shown_but_not_read(nets):
    ones = np.ones(2)
    li = make_node(nir.LI, tau=0.01 * ones, r=ones, v_leak=0 * ones)
    shown = nets.chain(input=nets.source(2), w=nets.linear(np.eye(2)), li=li, output=nets.output(2))
    network = lower(shown, Convention(dt=DT))
    assert [layer.fires for layer in network.layers] == [False]
    read = nets.chain(
        input=nets.source(2),
        w=nets.linear(np.eye(2)),
        li=li,
        w2=nets.linear(np.eye(2)),
        a=nets.if_(2),
        output=nets.output(2),
    )
    with pytest.raises(UnsupportedError, match="node 'li': LI gives analogue values to 'a', synapses carry spikes"):
        lower(read, Convention(dt=DT, if_gain="r"))
