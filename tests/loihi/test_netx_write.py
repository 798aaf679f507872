from dataclasses import replace

import h5py
import nirdeploy_loihi
import numpy as np
import pytest
import torch
from netx_files import NETS, even, net, population, program, raster, states, synapses
from nirdeploy_loihi.lower_program import program_of
from nirdeploy_loihi.netx_write import write_program
from nirdeploy_loihi.program import AlwaysOn, Shown, Window

import nirdeploy as nd
from nirdeploy.demonstration import CONVENTION, DigitsNetwork
from nirdeploy.errors import FileError, TargetError, UnsupportedError

RNG = np.random.default_rng(7)


def again(made, path):
    """The program that is read from the file of a program."""
    write_program(made, path)
    return program_of(nirdeploy_loihi.netx.read_quantized(path)[0])


def fields(path):
    """Every dataset of a file by its path."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", NETS)
def test_a_program_written_and_read_again_has_the_same_integers(tmp_path, name):
    made = net(name)
    found = again(made, tmp_path / "net.net")
    for a, b in zip(made.synapses, sorted(found.synapses, key=lambda s: s.source == s.target), strict=True):
        assert np.array_equal(a.weight, b.weight)
        assert a.window == b.window
        shape = (a.n_targets, a.n_sources)
        assert np.array_equal(np.broadcast_to(a.delay, shape), np.broadcast_to(b.delay, shape))
    for a, b in zip(made.populations, found.populations, strict=True):
        assert np.array_equal(np.broadcast_to(a.bias, a.size), np.broadcast_to(b.bias, b.size))
        assert (a.shape, a.threshold, a.decay_u, a.decay_v) == (b.shape, b.threshold, b.decay_u, b.decay_v)


@pytest.mark.parametrize("name", NETS)
def test_a_program_written_and_read_again_runs_the_same(tmp_path, name):
    made = net(name)
    found, spikes = again(made, tmp_path / "net.net"), raster(made.input_shape)
    runs = zip(states(made, spikes).values(), states(found, spikes).values(), strict=True)
    for a, b in runs:
        assert a["s"].any()
        for key in "uvs":
            assert np.array_equal(a[key], b[key])


@pytest.mark.parametrize("name", ["conv", "delay_rec", "dense"])
def test_recorded_files_are_written_again_dataset_for_dataset(cases, tmp_path, name):
    again(program_of(nirdeploy_loihi.netx.read_quantized(cases / f"{name}.net")[0]), tmp_path / "net.net")
    expected, found = fields(cases / f"{name}.net"), fields(tmp_path / "net.net")
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert np.array_equal(found[key], value), key


def test_a_deployment_of_digits_written_and_read_again_runs_the_same(tmp_path):
    spikes = (np.random.default_rng(3).random((12, 5, 1, 8, 8)) < 0.4).astype(int)
    torch.manual_seed(0)
    network = DigitsNetwork()
    with torch.no_grad():
        network.fc.weight.mul_(8)  # untrained, it would not spike
    graph = nd.torch_to_nir(network, input_shape=(1, 8, 8))
    made = nd.deploy(graph, "loihi2", convention=CONVENTION, calibration=spikes)
    nirdeploy_loihi.netx.write(made, tmp_path / "net.net")
    found = nirdeploy_loihi.netx.read(tmp_path / "net.net")
    keep = ("spikes", "v_mem", "i_syn")
    a, b = made.run(spikes, record=keep), found.run(spikes, record=keep)
    for ours, theirs in (("if1", "1.neuron"), ("if2", "2.neuron"), ("if3", "4.neuron")):
        assert a[ours, "spikes"].data.any()
        for key in keep:
            assert np.array_equal(a[ours, key].data, b[theirs, key].data)
    assert np.array_equal(a.outputs, b.outputs)


# ---------------------------------------------------------------- layout


def test_layers_have_the_fields_that_lava_dl_exports(tmp_path):
    write_program(net("convolved"), tmp_path / "net.net")
    found = fields(tmp_path / "net.net")
    kinds = [found[f"layer/{i}/type"][0] for i in range(5)]
    assert kinds == [b"input", b"conv", b"conv", b"flatten", b"dense"]
    assert found["layer/1/shape"].tolist() == [4, 3, 7]
    assert found["layer/1/stride"].tolist() == [2, 1]
    assert found["layer/1/bias"].shape == (7, 3, 4)  # x, y, channel
    assert found["layer/2/bias"].tolist() == [1, -2, 5]
    assert found["layer/4/shape"].tolist() == [5, 1, 1]
    assert found["layer/4/weight"].dtype == np.float32
    assert found["layer/4/neuron/type"].tolist() == [b"CUBA"]
    assert {key: found[f"layer/4/neuron/{key}"] for key in ("iDecay", "vDecay", "vThMant", "refDelay")} == {
        "iDecay": 700,
        "vDecay": 300,
        "vThMant": 150,
        "refDelay": 1,
    }


def test_a_bias_is_a_multiple_of_64(tmp_path):
    made = program([population("a", 2, bias=[384, -256], exponent=0)], [synapses("in", "a", [[2], [4]])], (1,))
    write_program(made, tmp_path / "net.net")
    assert fields(tmp_path / "net.net")["layer/1/bias"].tolist() == [6, -4]


def test_delays_of_the_inputs_are_a_matrix_where_there_are_as_many_outputs(tmp_path):
    for outputs, expected in ((2, [[3, 4], [3, 4]]), (3, [3, 4])):
        made = program([population("a", outputs)], [synapses("in", "a", even(RNG, outputs, 2), [[3, 4]])], (2,))
        write_program(made, tmp_path / "net.net")
        assert fields(tmp_path / "net.net")["layer/1/delay"].tolist() == expected


def test_the_same_program_makes_the_same_bytes(tmp_path):
    for name in "ab":
        write_program(net("looped"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_refused_program_leaves_what_was_there(tmp_path):
    write_program(net("looped"), tmp_path / "net.net")
    before = (tmp_path / "net.net").read_bytes()
    with pytest.raises(UnsupportedError, match="v starts at"):
        write_program(one(v_start=5), tmp_path / "net.net")
    assert (tmp_path / "net.net").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.net"]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileError, match="cannot write"):
        write_program(net("looped"), tmp_path / "none" / "net.net")


def test_a_deployment_on_another_chip_is_refused(tmp_path):
    graph = nd.torch_to_nir(DigitsNetwork(), input_shape=(1, 8, 8))
    made = nd.deploy(graph, "speck2f", convention=CONVENTION, calibration=np.ones((2, 1, 1, 8, 8), int))
    with pytest.raises(TargetError, match="a deployment on speck2f, lava-dl's files are for Loihi"):
        nirdeploy_loihi.netx.write(made, tmp_path / "net.net")


# ---------------------------------------------------------------- refusals


def one(weight=((2, -4), (6, 8)), delay=((0,),), **registers):
    """One dense population of two."""
    return program([population("a", 2, **registers)], [synapses("in", "a", weight, delay)], (2,))


def two(*connections, **more):
    """Two populations of two in a row, and what else there is between them."""
    usual = [synapses("in", "a", even(RNG, 2, 2)), synapses("a", "b", even(RNG, 2, 2))]
    return program([population("a", 2), population("b", 2)], [*usual, *connections], (2,), **more)


def windowed(weight=((((2,),),),), delay=((0,),), target=(1, 2, 2), extra=(), stride=(1, 1)):
    """One convolution of 1 x 1."""
    link = synapses("in", "a", weight, delay, Window((1, 2, 2), target, stride, (0, 0), (1, 1), 1))
    return program([population("a", *target)], [link, *extra], (1, 2, 2))


SECOND = [[2, -4], [6, 8]]
LOOP = synapses("a", "a", SECOND)
CONSTANT = replace(two(synapses("on", "b", SECOND)), always_on=(AlwaysOn("on", 2, 0),))
INTEGRATES = (Shown("out", "b", (2,), "v_mem"),)
BEHIND_DENSE = program(
    [population("a", 4), population("b", 1, 2, 2)],
    [
        synapses("in", "a", even(RNG, 4, 2)),
        synapses("a", "b", [[[[2]]]], window=Window((1, 2, 2), (1, 2, 2), (1, 1), (0, 0), (1, 1), 1)),
    ],
    (2,),
)


@pytest.mark.parametrize(
    ("made", "node", "message"),
    [
        (CONSTANT, "b", "comes by 2 always-on axons"),
        (two(synapses("in", "b", SECOND)), "b", "2 connections lead into it, from 'a', 'in'"),
        (replace(two(), synapses=(two().synapses[0], synapses("in", "b", SECOND))), "b", "fed by 'in' past 'a'"),
        (two(synapses("b", "a", SECOND)), "a", "'b' feeds back to it in a loop over several populations"),
        (two(LOOP, synapses("a", "a", SECOND)), "a", "feeds itself by 2 connections"),
        (two(synapses("a", "a", SECOND, [[3]])), "a", "feeds itself by 1 connections with delays up to 3"),
        (two(outputs=(Shown("x", "a", (2,)), Shown("y", "b", (2,)))), "", "2 Outputs .'x', 'y'."),
        (two(outputs=(Shown("x", "a", (2,)),)), "x", "the Output shows 'a', the format shows its last layer, 'b'"),
        (two(outputs=INTEGRATES), "b", "it only integrates and is shown by 'out'"),
        (one(decay_u=[1, 2]), "a", "decay_u differs between neurons, 1 to 2"),
        (one(decay_v=[7, 2]), "a", "decay_v differs between neurons, 2 to 7"),
        (one(threshold=[64, 128]), "a", "threshold differs between neurons, 64 to 128"),
        (one(threshold=100), "a", "a threshold of 100, the format holds multiples of 64 up to 8388544"),
        (one(threshold=0), "a", "a threshold of 0"),
        (one(threshold=131072 << 6), "a", "a threshold of 8388608"),
        (one(v_start=[0, -5]), "a", "v starts at -5, the format starts at 0"),
        (one(refractory=2), "a", "refractory for 2 steps, netx ignores refDelay"),
        (one(bias=[1, 0], exponent=5), "a", "a bias of 32, the format holds multiples of 64 from -262144 to 262080"),
        (one(bias=4095, exponent=7), "a", "a bias of 524160"),
        (one([[0, 0], [0, 0]]), "in>a", "all weights are 0, on which netx fails"),
        (one([[-201, 0], [-3, -5]]), "in>a", "netx would change its weights from -201 to 0"),
        (one(delay=[[0, 1], [2, 3]]), "in>a", "delays of 0 to 3 steps that differ both between"),
        (one(delay=[[63]]), "in>a", "delays from 63 to 63 steps, the format holds 0 to 62"),
        (program([population("a", 2)], [synapses("in", "a", SECOND, [[1]]), LOOP], (2,)), "in>a", "feeds itself, for"),
        (windowed(delay=[[2]]), "in>a", "a delay of 2 steps, which netx ignores on a convolution"),
        (windowed([[[[256]]]]), "in>a", "weights from 256 to 256, 8 bits and a sign hold"),
        (windowed(extra=[synapses("a", "a", even(RNG, 4, 4))]), "a", "behind a convolution feeds itself"),
        (windowed(target=(1, 1, 1)), "in>a", "its kernel fits .1, 2, 2. times, .1, 1, 1. are used"),
        (BEHIND_DENSE, "a>b", "a convolution of .1, 2, 2. on a layer that the format holds as .4,."),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(tmp_path, made, node, message):
    with pytest.raises(UnsupportedError, match=message) as caught:
        write_program(made, tmp_path / "net.net")
    assert (caught.value.node or "") == node
    assert not (tmp_path / "net.net").exists()
