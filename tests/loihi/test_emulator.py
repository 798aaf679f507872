from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import slow_lava
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lava_programs import population, program, synapses
from nirdeploy_loihi import BACKEND, emulator
from nirdeploy_loihi.linear import integer_apply
from nirdeploy_loihi.lower_program import lowered
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.registers import integrate

from nirdeploy.errors import RasterError, UnavailableError, UnsupportedError
from nirdeploy.graph import make_graph, make_node, output_shape
from nirdeploy.pipeline import deploy
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.reference.convention import Convention


def as_program(layers, size):
    """Layers (matrix, registers) as the program that a chain of them should become."""
    names = ["in", *(f"n{number}" for number in range(len(layers)))]
    populations = [
        population(
            name,
            len(weight),
            decay_u=n.decay_u,
            decay_v=n.decay_v,
            vth=n.threshold >> 6,
            bias=0 if n.bias is None else n.bias,
            exponent=n.bias_exponent,
        )
        for name, (weight, n) in zip(names[1:], layers, strict=True)
    ]
    wires = [synapses("w", *pair, weight) for pair, (weight, _) in zip(pairwise(names), layers, strict=True)]
    return program((size,), populations, wires)


@st.composite
def networks(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    layers = []
    for before, after in pairwise(sizes):
        large = draw(st.booleans())
        weight = rng.integers(-(1 << 16) if large else -254, 1 << 16 if large else 255, (after, before))
        bias = rng.integers(-4095, 4096, after) if draw(st.booleans()) else None
        threshold = int(rng.integers(0, 131072 if large else 300)) << 6
        neuron = QuantizedNeuron(
            threshold,
            None,
            1.0,
            decay_v=int(rng.integers(0, 4097)),
            decay_u=int(rng.integers(0, 4097)),
            bias=bias,
            bias_exponent=int(rng.integers(0, 8)) if bias is not None else 0,
        )
        layers.append((weight, neuron))
    raster = (rng.random((draw(st.integers(1, 12)), sizes[0])) < 0.5).astype(int)
    return layers, raster


@settings(max_examples=60, deadline=None)
@given(networks())
def test_the_emulator_equals_a_slow_loop_over_steps(drawn):
    import nir

    layers, raster = drawn
    nodes = {"input": make_node(nir.Input, input_type={"input": np.array(raster.shape[1:])})}
    integers = {}
    for number, (weight, neuron) in enumerate(layers):
        ones = np.ones(len(weight))
        nodes[f"w{number}"] = make_node(nir.Linear, weight=weight.astype(float))
        nodes[f"n{number}"] = make_node(nir.IF, r=ones, v_threshold=ones, v_reset=0 * ones)
        integers[f"w{number}"] = QuantizedWeight(weight, None, 1.0)
        integers[f"n{number}"] = neuron
    nodes["output"] = make_node(nir.Output, output_type={"output": np.array([len(layers[-1][0])])})
    names = list(nodes)
    graph = make_graph(nodes, list(pairwise(names)))
    quantized = Quantized(graph, BACKEND.targets()["loihi2"], Convention(), "given", integers)
    run = emulator.emulate(quantized, raster, record=("spikes", "v_mem", "i_syn"), nodes=None)
    for (name, variable), expected in slow_lava.execute(as_program(layers, raster.shape[1]), raster[:, None]).items():
        assert np.array_equal(run[name, variable].data, expected[:, 0]), (name, variable)


@pytest.fixture
def small(nets):
    """Input -> (weights 2, 1) -> IF at 2.5 -> flatten -> Output."""
    graph = nets.chain(
        input=nets.source(2),
        w=nets.linear([[2.0, 1.0]]),
        n=nets.if_(1, threshold=2.5),
        output=nets.output(1),
    )
    return deploy(graph, "loihi1", convention=nets.plain, quantizer="max")


def test_every_connection_costs_one_step(small):
    # k = 127: weights 254 and 127, threshold round(317.5) = 318
    run = small.run(np.array([[1, 0], [0, 1], [0, 0], [0, 0]]), record=("spikes", "v_mem", "i_syn"))
    assert run["n", "i_syn"].data[:, 0].tolist() == [0, 254 * 64, 127 * 64, 0]
    assert run["n", "v_mem"].data[:, 0].tolist() == [0, 254 * 64, 0, 0]
    assert run["n", "spikes"].data[:, 0].tolist() == [0, 0, 1, 0]
    assert run.outputs[:, 0].tolist() == [0, 0, 1, 0]
    assert run["n", "spikes"].lag == run["output", "output"].lag == 1


def test_records_carry_scale_threshold_and_axes(small):
    run = small.run(np.ones((3, 5, 2), dtype=int), record=("v_mem",))
    record = run["n", "v_mem"]
    assert record.data.shape == (3, 5, 1)
    assert record.scale == 1 / (64 * 127)
    assert record.threshold == 318 << 6
    assert run.target == "loihi1"
    assert run.executor == "emulator"
    assert ("n", "spikes") not in run.records
    assert small.run(np.ones((3, 2), dtype=int), record=("v_mem",))["n", "v_mem"].data.shape == (3, 1)


def test_counters_count_delivered_spikes(small):
    run = small.run(np.ones((3, 2), dtype=int))
    # two steps are delivered, the third would arrive after the run; 381 exceeds 318 at once
    assert run.counters["n"] == {"wraps": 0, "saturations": 0, "synaptic_operations": 4, "spikes": 2}


def test_a_batch_over_threads_gives_the_same_bits(small):
    raster = (np.random.default_rng(0).random((20_000, 7, 2)) < 0.5).astype(int)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        whole = small.run(raster, record=("spikes", "v_mem"))
    finally:
        torch.set_num_threads(before)
    alone = [small.run(raster[:, n], record=("spikes", "v_mem")) for n in range(7)]
    for n, one in enumerate(alone):
        assert np.array_equal(whole["n", "v_mem"].data[:, n], one["n", "v_mem"].data)
    for name, count in whole.counters["n"].items():
        assert count == sum(one.counters["n"][name] for one in alone), name


def test_only_the_named_nodes_are_recorded(small):
    run = small.run(np.ones((2, 2), dtype=int), nodes=["output"])
    assert list(run) == [("output", "output")]
    with pytest.raises(RasterError, match=r"no population 'm' to record"):
        small.run(np.ones((2, 2), dtype=int), nodes=["m"])


def test_counts_other_than_0_and_1_are_refused(small):
    with pytest.raises(RasterError, match="at most 1 a step"):
        small.run(np.full((2, 2), 2))


@pytest.mark.parametrize("on", ["simulator", "chip"])
def test_other_executors_are_unavailable_without_their_environment(small, on, monkeypatch, tmp_path):
    monkeypatch.setenv("NIRDEPLOY_HOME", str(tmp_path))
    monkeypatch.delenv("NIRDEPLOY_PYTHON_LOIHI", raising=False)
    deployment = replace(small, quantized=replace(small.quantized, target=BACKEND.targets()["loihi2"]))
    with pytest.raises(UnavailableError, match="the environment 'loihi', which is not built"):
        deployment.run(np.ones((2, 2), dtype=int), on=on, record=("spikes",))


def test_modes_options_and_unknown_executors_are_refused(small):
    raster = np.ones((2, 2), dtype=int)
    with pytest.raises(UnsupportedError, match="no mode 'event'"):
        small.run(raster, mode="event")
    with pytest.raises(UnsupportedError, match="no option 'slower_lane'"):
        small.run(raster, slower_lane=1)
    with pytest.raises(UnsupportedError, match="on='fpga' is unknown"):
        small.run(raster, on="fpga")


@pytest.mark.parametrize(
    ("size", "pool", "conv"),
    [
        ((2, 8, 6), {"kernel": (2, 2)}, {"padding": (1, 1)}),  # one kernel, twice as wide
        ((2, 9, 7), {"kernel": (2, 2)}, {"stride": (2, 1)}),  # a row and a column are dropped
        ((2, 9, 7), {"kernel": (2, 2)}, {"padding": (1, 1)}),  # what is dropped lies where the kernel pads
        ((2, 8, 8), {"kernel": (1, 2), "stride": (2, 2)}, {}),  # gaps between the windows
        ((2, 10, 8), {"kernel": (2, 2)}, {"dilation": (2, 1), "groups": 2}),
    ],
)
def test_pools_before_a_convolution_add_what_the_chain_adds(nets, size, pool, conv):
    rng = np.random.default_rng(2)
    weight = rng.integers(-60, 60, (4, 2 // conv.get("groups", 1), 2, 2))
    nodes = {"input": nets.source(*size), "p": nets.pool(**pool), "c": nets.conv(weight, **conv)}
    shape = size
    for name in "pc":
        shape = output_shape(name, nodes[name], shape)
    graph = nets.chain(**nodes, n=nets.if_(*shape), output=nets.output(*shape))
    neuron = QuantizedNeuron(100 << 6, None, 1.0, decay_v=200, decay_u=900)
    layers = {"c": QuantizedWeight(weight, None, 1.0), "n": neuron}
    quantized = Quantized(graph, BACKEND.targets()["loihi2"], Convention(), "given", layers)
    raster = (rng.random((20, 3, *size)) < 0.3).astype(np.int32)
    found = emulator.emulate(quantized, raster, record=("spikes", "v_mem", "i_syn"), nodes=None)
    (connection,) = lower(graph, Convention()).layers[0].connections
    a = np.zeros((20, 3, *shape), dtype=np.int32)
    a[1:] = integer_apply(connection, weight, raster[:-1].reshape(-1, *size)).reshape(19, 3, *shape)
    (cells,) = lowered(quantized).program.populations
    states = integrate(cells, a.reshape(20, -1), keep_u=True, keep_v=True)
    for variable, values in (("i_syn", states.u), ("v_mem", states.v), ("spikes", states.s)):
        assert np.array_equal(found["n", variable].data.reshape(20, -1), values), variable
    assert found.counters["n"]["spikes"] == states.s.sum() > 0
