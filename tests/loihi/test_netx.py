import h5py
import nirdeploy_loihi
import numpy as np
import pytest
from netx_files import NEURON, conv, dense, given, net_file, recurrent, states
from nirdeploy_loihi.lower_program import program_of

from nirdeploy.errors import FileError, TargetError, UnsupportedError


@pytest.fixture
def write(tmp_path):
    return lambda *layers, names=None: net_file(tmp_path / "net.net", *layers, names=names)


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


# ---------------------------------------------------------------- delays


def steps_of(deployment, name):
    return np.rint(deployment.graph.nodes[name].delay / deployment.convention.dt).astype(int).tolist()


@pytest.mark.parametrize(
    ("delay", "edge", "steps"),
    [
        (62.0, ("1.delay", "1.synapse"), [62, 62]),
        ([1.0, 0.0, 5.0], ("1.synapse", "1.delay"), [1, 0, 5]),
        ([4.0, 9.0], ("1.delay", "1.synapse"), [4, 9]),
        (np.full((3, 2), 3), ("1.delay", "1.synapse"), [3, 3]),
        ([[4, 9], [4, 9], [4, 9]], ("1.delay", "1.synapse"), [4, 9]),
        ([[1, 1], [0, 0], [5, 5]], ("1.synapse", "1.delay"), [1, 0, 5]),
    ],
)
def test_a_delay_stands_before_the_weights_or_behind_them(write, delay, edge, steps):
    deployment = nirdeploy_loihi.netx.read(write(given(2), dense(delay=delay)))
    assert edge in deployment.graph.edges
    assert steps_of(deployment, "1.delay") == steps


def test_delays_as_many_as_outputs_and_inputs_belong_to_the_outputs(write):
    deployment = nirdeploy_loihi.netx.read(write(given(2), dense(weight=[[2, 4], [6, 8]], delay=[0, 3])))
    assert ("1.synapse", "1.delay") in deployment.graph.edges


def test_delays_of_zero_make_no_node(write):
    deployment = nirdeploy_loihi.netx.read(write(given(2), dense(delay=[0.0, 0.0, 0.0])))
    assert sorted(deployment.graph.nodes) == ["1.neuron", "1.synapse", "input", "output"]


def test_a_bias_behind_a_delay_is_the_neurons_own_and_not_late(write):
    deployment = nirdeploy_loihi.netx.read(write(given(2), dense(delay=[1, 2, 3], bias=[1, -2, 3])))
    assert type(deployment.graph.nodes["1.synapse"]).__name__ == "Linear"
    leak = deployment.graph.nodes["1.neuron"].v_leak
    assert np.allclose(leak * 100 / 4096, [1, -2, 3])


# ---------------------------------------------------------------- recurrence


def test_a_recurrent_layer_is_a_loop_of_the_population_to_itself(write):
    deployment = nirdeploy_loihi.netx.read(write(given(2), recurrent(), dense()))
    assert {("1.neuron", "1.recurrent"), ("1.recurrent", "1.neuron"), ("1.neuron", "2.synapse")} < set(
        deployment.graph.edges
    )
    assert deployment.quantized["1.recurrent"].weight.tolist() == [[2, 0], [-4, 6]]
    assert deployment.quantized["1.synapse"].weight.tolist() == [[10, -20], [4, 6]]


def test_one_matrix_of_a_recurrent_layer_may_be_zero(write):
    deployment = nirdeploy_loihi.netx.read(write(given(2), recurrent(back=np.zeros((2, 2)))))
    assert not deployment.quantized["1.recurrent"].weight.any()


def test_recorded_delays_and_loops_are_reproduced_bit_for_bit(cases):
    stored = np.load(cases / "delay_rec.npz")
    quantized, _ = nirdeploy_loihi.netx.read_quantized(cases / "delay_rec.net")
    found = states(program_of(quantized), stored["input"])
    for number, name in enumerate(("1.neuron", "2.neuron")):
        for key in "uvs":
            assert np.array_equal(found[name][key], stored[f"L{number}_{key}"]), f"{name} {key}"


# ---------------------------------------------------------------- forms of a file


def test_one_bias_holds_for_all_neurons_of_a_dense_layer(write):
    for bias in (3.0, [3.0]):
        deployment = nirdeploy_loihi.netx.read(write(given(2), dense(bias=bias)))
        assert deployment.quantized["1.neuron"].bias.tolist() == [3, 3, 3]


def test_weights_of_one_axis_are_rows_of_the_stated_shape(write):
    layer = {**dense(), "shape": [1], "weight": [2, -4]}
    deployment = nirdeploy_loihi.netx.read(write(given(2), layer))
    assert deployment.quantized["1.synapse"].weight.tolist() == [[2, -4]]


def test_a_part_of_a_file_keeps_its_group_numbers(write):
    front = {"type": b"input", "shape": [1, 4, 5], "weight": 40.0, "bias": 36.0, "neuron": NEURON}
    path = write(front, conv(), {"type": b"average", "shape": [2]})
    deployment = nirdeploy_loihi.netx.read(path, skip_layers=1, num_layers=2)
    assert list(deployment.graph.nodes) == ["input", "1.synapse", "1.neuron", "output"]
    assert deployment.graph.nodes["input"].input_type["input"].tolist() == [1, 4, 5]


def test_the_input_stands_for_the_layers_skipped(write):
    path = write(given(1, 4, 5), conv(), {"type": b"flatten"}, dense(weight=np.full((3, 24), 2)), dense([[2, 2, 4]]))
    for skip, shape in ((2, [2, 3, 4]), (4, [3])):
        deployment = nirdeploy_loihi.netx.read(path, skip_layers=skip)
        assert deployment.graph.nodes["input"].input_type["input"].tolist() == shape


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"num_layers": 3}, {"skip_layers": 2}, {"skip_layers": -1}])
def test_parts_that_the_file_does_not_have_are_refused(write, options):
    with pytest.raises(UnsupportedError, match=r"num_layers is .* and skip_layers .*; the file has 2 layers"):
        nirdeploy_loihi.netx.read(write(given(2), dense()), **options)


def test_fields_of_training_are_no_warning_and_unknown_ones_are(write):
    neuron = {**NEURON, "scaleRho": 0.5, "tauRho": 0.1, "theta": 3200, "wgtExp": 0, "sinDecay": 5}
    report = nirdeploy_loihi.netx.read(write(given(2), dense(neuron=neuron))).report
    assert [f.problem for f in report.warnings] == ["layer 1 neuron has 'sinDecay', which netx ignores"]
