import h5py
import nirdeploy_loihi
import numpy as np
import pytest

from nirdeploy.errors import FileError, NirdeployError, QuantizationError, TargetError, UnsupportedError

NEURON = {"type": b"CUBA", "iDecay": 4096, "vDecay": 100, "vThMant": 50}


def dense(weight=((10, -20), (4, 6), (2, 8)), neuron=NEURON, **more):
    return {"type": b"dense", "shape": [len(weight), 1, 1], "weight": weight, "neuron": neuron, **more}


def conv(weight=None, neuron=NEURON, **more):
    weight = np.full((2, 1, 2, 2), 6) if weight is None else weight
    return {"type": b"conv", "shape": [2, 3, 4], "weight": weight, "neuron": neuron, **more}


def given(*shape):
    return {"type": b"input", "shape": list(shape)}


@pytest.fixture
def write(tmp_path):
    def put(group, values):
        for name, value in values.items():
            if isinstance(value, dict):
                put(group.create_group(name), value)
            elif isinstance(value, bytes):
                group.create_dataset(name, (1,), "S10", [value])
            else:
                group.create_dataset(name, data=np.asarray(value))

    def write(*layers, names=None):
        path = tmp_path / "net.net"
        with h5py.File(path, "w") as file:
            root = file.create_group("layer")
            for name, layer in zip(names or map(str, range(len(layers))), layers, strict=True):
                put(root.create_group(name), layer)
        return path

    return write


def test_nodes_are_named_by_group_and_hold_the_files_integers(write):
    deployment = nirdeploy_loihi.netx.read(write(given(2, 1, 1), dense(bias=[1, -2, 3])))
    assert sorted(deployment.graph.nodes) == ["1.neuron", "1.synapse", "input", "output"]
    q = deployment.quantized
    assert q.quantizer == "given"
    assert q["1.synapse"].weight.tolist() == [[10, -20], [4, 6], [2, 8]]
    assert q["1.synapse"].bias.tolist() == [1, -2, 3]
    assert (q["1.neuron"].threshold, q["1.neuron"].mantissa, q["1.neuron"].exponent) == (3200, 50, 6)
    assert (q["1.neuron"].decay_u, q["1.neuron"].decay_v) == (4096, 100)
    assert (q["1.neuron"].bias.tolist(), q["1.neuron"].bias_exponent) == ([1, -2, 3], 6)
    assert deployment.target.name == "loihi2"
    assert deployment.placement.cores["1.neuron"] == (0,)


@pytest.mark.parametrize(
    ("decay_u", "decay_v", "kind"), [(4096, 0, "IF"), (4096, 7, "LIF"), (1000, 7, "CubaLIF"), (0, 0, "CubaLIF")]
)
def test_eulers_equations_of_the_graph_are_the_register_equations(write, decay_u, decay_v, kind):
    neuron = {**NEURON, "iDecay": decay_u, "vDecay": decay_v}
    deployment = nirdeploy_loihi.netx.read(write(given(2, 1, 1), dense(neuron=neuron)))
    node = deployment.graph.nodes["1.neuron"]
    assert type(node).__name__ == kind
    dt = deployment.convention.dt
    if kind == "IF":
        assert np.allclose(node.r * dt, 1)
        return
    assert np.allclose(4096 * dt / node.tau_mem if kind == "CubaLIF" else 4096 * dt / node.tau, decay_v, atol=1e-8)
    if kind == "CubaLIF":
        assert np.allclose(4096 * dt / node.tau_syn, decay_u, atol=1e-8)
        assert np.allclose(node.w_in * dt / node.tau_syn, 1)
        assert np.allclose(node.r * dt / node.tau_mem, 1)


def test_a_network_without_a_synaptic_filter_runs_in_the_reference(write):
    from nirdeploy.reference.executor import run

    deployment = nirdeploy_loihi.netx.read(write(given(2, 1, 1), dense(bias=[1, -2, 3])))
    raster = (np.random.default_rng(0).random((50, 2)) < 0.5).astype(int)
    chip = deployment.run(raster, record=("v_mem",))["1.neuron", "v_mem"]
    reference = run(deployment.graph, raster[:3], convention=deployment.convention)["1.neuron", "v_mem"]
    # one integer of v is 1/64; the bias acts once more before the first spikes arrive
    first = chip.values[1] - chip.values[0] * (1 - 100 / 4096)
    assert np.allclose(first, reference.values[0], atol=0.05)


def test_a_bias_of_every_neuron_of_an_image_is_transposed(write):
    bias = np.arange(24).reshape(4, 3, 2)  # x, y, channel
    deployment = nirdeploy_loihi.netx.read(write(given(1, 4, 5), conv(bias=bias)))
    assert np.array_equal(deployment.quantized["1.neuron"].bias, bias.transpose(2, 1, 0))
    assert deployment.quantized["1.synapse"].bias is None


def test_a_dense_file_needs_no_input_layer(write):
    deployment = nirdeploy_loihi.netx.read(write(dense()))
    assert deployment.run(np.ones((3, 2), dtype=int)).outputs.shape == (3, 3)


ODD_NEGATIVE = [[-201, 0], [-3, -5]]


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        ([given(2), {"type": b"dens", "shape": [2]}], UnsupportedError, "layer 1 has type 'dens'"),
        ([given(2), {"type": b"average"}], UnsupportedError, "layer 1 has type 'average'"),
        ([given(2), {"type": b"pool"}], UnsupportedError, "layer 1 has type 'pool'"),
        ([given(2), dense(neuron={**NEURON, "type": b"RF"})], UnsupportedError, "layer 1 has neuron type 'RF'"),
        ([given(2), dense(neuron={**NEURON, "type": b"SDNN"})], UnsupportedError, "neuron type 'SDNN'"),
        ([given(2), dense(neuron={**NEURON, "type": b"ALIF"})], UnsupportedError, "neuron type 'ALIF'"),
        ([{**given(2), "neuron": NEURON}, dense()], UnsupportedError, "layer 0 is an input with 'neuron'"),
        ([given(2), {**dense(), "neuron": [1]}], UnsupportedError, "layer 1 has no neuron"),
        ([given(2), dense(neuron={**NEURON, "messageBits": 8})], UnsupportedError, "layer 1 has messageBits"),
        ([given(2), dense(weight_rec=np.eye(3))], UnsupportedError, "layer 1 has recurrent weights"),
        ([conv()], UnsupportedError, "layer 0 is 'conv' and there is no input layer"),
        ([given(2), dense(weight=[[0.5, 1.0]])], QuantizationError, "layer 1 has weight 0.5, expected whole"),
        ([given(2), dense(neuron={**NEURON, "vDecay": 4097})], QuantizationError, "vDecay 4097.*0 to 4096"),
        ([given(2), dense(neuron={**NEURON, "iDecay": -1})], QuantizationError, "iDecay -1"),
        ([given(2), dense(neuron={**NEURON, "vThMant": 131072})], QuantizationError, "vThMant 131072.*0 to 131071"),
        ([given(2), dense(bias=[5000, 0, 0])], QuantizationError, "layer 1 has bias 5000.*-4096 to 4095"),
        ([given(2), dense(weight=[[0, 0]])], QuantizationError, "layer 1 has positive weights from 0 to 0"),
        ([given(2), dense(weight=[[300, 0]])], QuantizationError, "layer 1 has positive weights from 0 to 300"),
        ([given(2), dense(weight=[[256, -2]])], QuantizationError, "layer 1 has mixed weights from -2 to 256"),
        ([given(2), dense(weight=ODD_NEGATIVE)], QuantizationError, "negative weights from -201 to 0"),
        ([given(2), dense(weight=[[-128, -1]])], QuantizationError, "negative weights from -128 to -1"),
        ([given(1, 4, 5), conv(np.full((2, 1, 2, 2), 256))], QuantizationError, "weights from 256 to 256"),
        ([given(3), dense()], FileError, "layer 1 has weight .3, 2., its input has 3 neurons"),
        ([given(1, 4, 5), conv(stride=2)], FileError, "layer 1 states shape .2, 3, 4., its weights give .2, 2, 2."),
        ([given(3, 4, 5), conv()], FileError, "layer 1 has weight .* its input is .3, 4, 5."),
        ([given(1, 4, 5), dense()], FileError, "layer 1 is dense on an image"),
        ([given(2), dense(bias=[1, 2])], FileError, "layer 1 has bias of shape .2,."),
        ([given(2), {**dense(), "shape": [7]}], FileError, "layer 1 states shape .7,."),
        ([given(2)], FileError, "an input layer only"),
        ([{"shape": [2]}, dense()], FileError, "layer 0 has no text 'type'"),
        ([given(2), dense(neuron={"type": b"CUBA"})], FileError, "layer 1 has no numbers 'iDecay'"),
    ],
)
def test_what_lava_cannot_run_faithfully_is_refused_by_name(write, layers, kind, message):
    with pytest.raises(kind, match=message) as caught:
        nirdeploy_loihi.netx.read(write(*layers))
    assert isinstance(caught.value, NirdeployError)


def test_groups_with_gaps_are_refused(write):
    with pytest.raises(FileError, match=r"layer groups \['0', '2'\]"):
        nirdeploy_loihi.netx.read(write(given(2), dense(), names=["0", "2"]))


def test_a_file_without_layers_and_a_missing_file_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.net", "w") as file:
        file["y"] = 1
    with pytest.raises(FileError, match="no group 'layer'"):
        nirdeploy_loihi.netx.read(tmp_path / "x.net")
    with pytest.raises(FileError, match="does not exist"):
        nirdeploy_loihi.netx.read(tmp_path / "none.net")


def test_an_unknown_target_is_refused(write):
    with pytest.raises(TargetError, match=r"unknown target 'loihi3'.*loihi1, loihi2"):
        nirdeploy_loihi.netx.read(write(dense()), target="loihi3")


def test_what_netx_ignores_is_a_warning(write):
    layer = dense(weight=[[201, -3]], neuron={**NEURON, "refDelay": 2}, extra=[1])
    report = nirdeploy_loihi.netx.read(write(given(2), layer)).report
    assert report.ok
    assert [f.code for f in report.warnings] == ["ignored", "odd_weights", "ignored"]
    assert "refDelay is 2" in report.warnings[2].problem
