"""sinabs's layers, converted and run, against sinabs; runs in its environment."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import sinabs
import sinabs.layers as sl
import torch
from example_runs import printed
from frameworks.nets_sinabs import Drawn, check, check_drawn, fill, networks, on_grid, reset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_gallery import differences
from nets import ROOT
from sinabs import activation
from sinabs.from_torch import from_model
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConversionError

FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
MANY = settings(FEW, max_examples=50)


@FEW
@given(networks())
def test_networks_give_sinabs_own_spikes(drawn):
    check_drawn(drawn)


@pytest.mark.long
@MANY
@given(networks())
def test_many_networks_give_sinabs_own_spikes(drawn):
    check_drawn(drawn)


@pytest.mark.parametrize("family", ["IAF", "LIF", "ExpLeak"])
@FEW
@given(data=st.data())
def test_each_family_gives_sinabs_own_spikes(family, data):
    check_drawn(data.draw(networks(family, recurrent=False)))


@pytest.mark.parametrize("family", ["IAF", "LIF"])
@FEW
@given(data=st.data())
def test_each_recurrent_family_gives_sinabs_own_spikes(family, data):
    check_drawn(data.draw(networks(family, recurrent=True, kind=data.draw(st.sampled_from(["dense", "repeated"])))))


# ---------------------------------------------------------------- what else networks are made of


def drawn(network, *shape, squeezed=False, steps=12, batch=3, seed=0, weights=True):
    """A network with weights on the grid, and counts for it."""
    rng = np.random.default_rng(seed)
    if weights:
        fill(network, rng)
    raster = torch.tensor(rng.choice(3, (steps, batch, *shape), p=(0.5, 0.3, 0.2)), dtype=torch.float32)
    given = raster.transpose(0, 1).contiguous()
    return Drawn(network.eval(), given.flatten(0, 1) if squeezed else given, raster)


class Residual(nn.Module):
    """Two ways that meet in a Merge; its layers are made in another order than they are called."""

    def __init__(self):
        super().__init__()
        self.out = sl.LIF(tau_mem=12.0, norm_input=False)
        self.merge = sl.Merge()
        self.second = sl.IAF(min_v_mem=-1.0)
        self.first = sl.IAF()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        left = self.first(self.a(x))
        return self.out(self.c(self.merge(left, self.second(self.b(left)))))


class Turned(nn.Module):
    """Takes [batch, step, ...], makes one axis of the two and two of the one again."""

    def __init__(self, batch):
        super().__init__()
        self.parts = nn.Sequential(
            sl.FlattenTime(),
            nn.Conv2d(1, 3, 3, padding=1),
            sl.IAFSqueeze(batch_size=batch, min_v_mem=-1.0),
            sl.SumPool2d(2),
            nn.Flatten(),
            sl.UnflattenTime(batch),
        )
        self.head, self.last = nn.Linear(27, 4), sl.LIF(tau_mem=9.0, norm_input=False)

    def forward(self, x):
        return self.last(self.head(self.parts(x)))


def test_merge_adds_and_order_of_making_does_not_matter():
    graph = check(drawn(Residual(), 5))
    assert sorted(graph.edges).count(("first", "c")) == 1
    assert ("second", "c") in graph.edges


def test_merge_of_other_shapes_is_refused_as_sinabs_would_pad_it():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.merge, self.out = nn.Linear(5, 4), nn.Linear(5, 3), sl.Merge(), sl.IAF()

        def forward(self, x):
            return self.out(self.merge(self.a(x), self.b(x)))

    with pytest.raises(ConversionError, match=r"broadcasts \(4,\) with \(3,\).*Give both the same shape.*'merge'"):
        nd.torch_to_nir(Padded(), sample_input=torch.zeros(1, 2, 5))


def test_flatten_and_unflatten_time_change_what_a_layer_may_take():
    check(drawn(Turned(3), 1, 6, 6))


def test_convolutions_in_repeat_and_flatten_behind_the_step():
    layers = (sl.Repeat(nn.Conv2d(1, 2, 3)), sl.IAF(), sl.Repeat(nn.Sequential(sl.SumPool2d(2))), nn.Flatten(2))
    graph = check(drawn(nn.Sequential(*layers, nn.Linear(8, 3), sl.ExpLeak(tau_mem=7.0)), 1, 6, 6))
    assert (int(graph.nodes["3"].start_dim), int(graph.nodes["3"].end_dim)) == (0, -1)


def test_squeezed_layers_in_repeat():
    layers = (
        nn.Conv2d(1, 2, 3),
        sl.IAFSqueeze(batch_size=3),
        nn.Conv2d(2, 2, 3),
        sl.LIFSqueeze(tau_mem=5.0, batch_size=3),
    )
    check(drawn(nn.Sequential(sl.Repeat(nn.Sequential(*layers)), sl.IAF()), 1, 6, 6))


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ((nn.Linear(4, 4), sl.IAF(), sl.IAFSqueeze(batch_size=1)), (4,), "'2' takes one step at a time, '1' all"),
        ((sl.FlattenTime(), nn.Linear(4, 4), sl.IAF()), (4,), "IAF takes all steps.*gets one step"),
        ((nn.Conv2d(1, 2, 3), sl.IAF()), (1, 4, 4), "Conv2d takes one step.*gets all steps.*Use one of the two"),
        ((sl.IAF(), nn.Flatten(1), nn.Linear(4, 2)), (4,), r"Flatten\(start_dim=1\) merges the batch.*start_dim=2"),
    ],
)
def test_layers_that_take_one_step_do_not_meet_layers_that_take_all(layers, shape, message):
    with pytest.raises(ConversionError, match=message):
        nd.torch_to_nir(nn.Sequential(*layers), sample_input=torch.zeros(1, 3, *shape))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", [{"batch_size": 3}, {"num_timesteps": 12}])
def test_what_from_model_makes_is_a_network_as_it_is(bias, how):
    analog = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=bias), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5, bias=bias), nn.ReLU()
    )
    network = from_model(fill(analog, np.random.default_rng(3)), **how)
    graph = check(drawn(network, 1, 6, 6, squeezed=True, weights=False))
    assert "spiking_model.1" in graph.nodes
    check(drawn(network.spiking_model, 1, 6, 6, squeezed=True, weights=False))
    assert nd.convention_of(network).v_min == "-threshold"


@pytest.mark.parametrize("seed", [0, 5, 11])
def test_batch_norm_before_the_neurons_is_folded(seed):
    torch.manual_seed(seed)
    analog = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5),
    )
    for norm in (analog[1], analog[6]):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.2, 1)
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.1)
    network = from_model(analog, batch_size=3, add_spiking_output=True)
    with pytest.raises(ConversionError, match="BatchNorm2d is in training mode"):
        nd.torch_to_nir(network, input_shape=(1, 6, 6))
    graph = check(drawn(network, 1, 6, 6, squeezed=True, weights=False, seed=seed))
    assert not any("BatchNorm" in type(node).__name__ for node in graph.nodes.values())


def test_layers_that_sinabs_counts_operations_of_are_refused():
    with pytest.warns(DeprecationWarning, match="SNNAnalyzer is deprecated"):
        network = from_model(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), batch_size=1, synops=True)
    with pytest.raises(ConversionError, match=r"'spiking_model.0': Linear has forward hooks"):
        nd.torch_to_nir(network, input_shape=(4,))


def test_what_from_model_makes_goes_to_speck(tmp_path):
    analog = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5, bias=False),
        nn.ReLU(),
    )
    case = drawn(
        from_model(fill(analog, np.random.default_rng(3)), batch_size=3), 1, 6, 6, squeezed=True, weights=False
    )
    graph = nd.torch_to_nir(case.network, sample_input=case.given)
    deployment = nd.deploy(graph, "speck2f", calibration=case.raster.numpy().astype(np.int64))
    deployment.save(tmp_path / "build")
    chip = nd.load_deployment(tmp_path / "build").run(case.raster.numpy().astype(np.int64), on="emulator")
    assert chip["spiking_model.1", "spikes"].data.sum() > 100
    assert nd.compare(nd.run(case.network, case.raster), chip).per_node["spiking_model.1"].spike_agreement > 0.9


def test_a_network_made_ready_for_a_chip_is_refused():
    ready = type("DynapcnnNetwork", (nn.Module,), {"__module__": "sinabs.backend.dynapcnn.dynapcnn_network"})
    with pytest.raises(ConversionError, match="DynapcnnNetwork is a network that sinabs has made ready.*made from"):
        nd.torch_to_nir(ready(), input_shape=(1, 4, 4))


def test_the_run_by_which_from_model_finds_shapes_leaves_v_behind():
    analog = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    network = from_model(analog, input_shape=(4,), batch_size=1, num_timesteps=1)
    with pytest.raises(
        ConversionError, match=r"'spiking_model.1'.*still has the v_mem of an earlier run.*reset_states"
    ):
        nd.torch_to_nir(network, input_shape=(4,))
    sinabs.reset_states(network)
    assert "spiking_model.1" in nd.torch_to_nir(network, input_shape=(4,)).nodes


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_layer_learns_its_shape_from_its_own_state(squeezed):
    layer = sl.IAFSqueeze(batch_size=1) if squeezed else sl.IAF(shape=(1, 4))
    if squeezed:
        layer(torch.zeros(2, 4))
    assert nd.torch_to_nir(nn.Sequential(layer, nn.Identity())).nodes["0"].v_threshold.shape == (4,)


def test_a_checkpoint_is_what_counts():
    made = {"tau_mem": torch.full((4,), 20.0), "spike_threshold": torch.ones(4), "min_v_mem": -1.0, "norm_input": False}
    network = nn.Sequential(nn.Linear(5, 4), sl.LIF(**made), nn.Linear(4, 2), sl.IAF(min_v_mem=-1.0)).eval()
    trained = copy.deepcopy(network.state_dict())
    trained.update(
        {"1.tau_mem": torch.tensor([3.0, 5.0, 9.0, 17.0]), "1.spike_threshold": torch.tensor([1.0, 2, 0.5, 1])}
    )
    trained.update({"3.min_v_mem": torch.tensor(-0.25), "0.weight": on_grid(np.random.default_rng(5), (4, 5))})
    plain = nd.torch_to_nir(network, input_shape=(5,))
    network.load_state_dict(trained, strict=False)
    graph = check(drawn(network, 5, weights=False))
    assert not np.array_equal(graph.nodes["1"].tau, plain.nodes["1"].tau)
    assert nd.convention_of(network).overrides["3"]["v_min"] == -0.25


# ---------------------------------------------------------------- numbers


def test_the_decay_is_the_layers_own_bit_for_bit():
    steps = torch.tensor(np.random.default_rng(0).uniform(2, 400, 3000), dtype=torch.float32)
    layer = sl.LIF(tau_mem=steps, norm_input=False)
    for dt in (None, 1e-3, 1.0, 2.0**-10):
        tau = torch.as_tensor(nd.torch_to_nir(layer, dt=dt).tau)
        assert torch.equal(torch.exp(-((dt or 1e-4) / tau)), layer.alpha_mem_calculated)
        assert np.allclose(tau / (dt or 1e-4), steps, rtol=1e-6)


def test_dt_is_what_is_given_and_changes_no_spike():
    network = nn.Sequential(nn.Linear(5, 4), sl.LIF(tau_mem=8.0, norm_input=False), nn.Linear(4, 3), sl.IAF())
    graph = check(drawn(network, 5), dt=1e-3)
    assert nd.convention_of(network, dt=1e-3).dt == 1e-3
    assert np.allclose(graph.nodes["1"].tau, 8e-3)


def test_a_graph_of_a_recurrent_layer_alone_carries_its_convention():
    layer = sl.IAFRecurrent(rec_connect=nn.Linear(3, 3), tau_syn=4.0)
    fill(layer, np.random.default_rng(1))
    graph = nd.torch_to_nir(layer, input_shape=(3,))
    raster = np.random.default_rng(2).poisson(0.5, (20, 2, 3)).astype(np.float32)
    with torch.no_grad():
        own = layer(torch.tensor(raster).transpose(0, 1)).transpose(0, 1).numpy()
    assert own.sum() > 10
    assert np.array_equal(nd.run(graph, raster, convention=nd.convention_of(layer)).outputs, own)
    assert np.array_equal(nd.run(graph, raster).outputs, own)


def test_a_file_of_ours_keeps_what_a_network_does(tmp_path):
    network = nn.Sequential(nn.Linear(5, 4), sl.LIFRecurrent(tau_mem=8.0, rec_connect=nn.Linear(4, 4)), sl.IAF())
    case = drawn(network, 5)
    graph = check(case)
    nd.write(tmp_path / "net.nir", graph)
    found = nd.read(tmp_path / "net.nir")
    assert np.array_equal(nd.run(found, case.raster).outputs, nd.run(graph, case.raster).outputs)


# ---------------------------------------------------------------- what is refused


def lif(**options):
    return sl.LIF(**{"tau_mem": 10.0, **options})


class OwnForward(sl.IAF):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnLayer(sl.StatefulLayer):
    def __init__(self):
        super().__init__(["v_mem"])

    def forward(self, x):
        return x


class OwnSpike(activation.MultiSpike):
    pass


REFUSED = {
    "ALIF": (lambda: sl.ALIF(tau_mem=5.0, tau_adapt=5.0, adapt_scale=1.0), "ALIF adapts its threshold"),
    "ALIFRecurrent": (
        lambda: sl.ALIFRecurrent(tau_mem=5.0, tau_adapt=5.0, adapt_scale=1.0, rec_connect=nn.Linear(4, 4)),
        "ALIFRecurrent adapts its threshold",
    ),
    "MaxSpike": (
        lambda: lif(spike_fn=activation.MaxSpike(5)),
        r"LIF has spike_fn=MaxSpike\(5\).*MultiSpike, SingleSpike",
    ),
    "own spike_fn": (lambda: lif(spike_fn=OwnSpike), r"LIF has the spike_fn .*OwnSpike, which no Convention"),
    "subtract": (
        lambda: lif(reset_fn=activation.MembraneSubtract(0.5)),
        r"LIF subtracts 0.5 at a spike, its threshold is 1. Use MembraneSubtract\(\)",
    ),
    "reset": (lambda: lif(reset_fn=activation.MembraneReset(0.1)), r"reset_value=0.1\).*adds to v at every step"),
    "own reset_fn": (lambda: lif(reset_fn=lambda s, state, t: state), "LIF has the reset_fn builtins.function"),
    "min_v_mem each": (
        lambda: lif(min_v_mem=torch.tensor([-1.0, -2, -3, -4])),
        r"min_v_mem of its own for each neuron \(-4.0 to -1.0\)",
    ),
    "min_v_mem of ExpLeak": (
        lambda: sl.ExpLeak(5.0, min_v_mem=-1.0),
        "ExpLeak has min_v_mem=-1, and NIR's integrators",
    ),
    "no spikes behind tau_syn": (lambda: lif(tau_syn=5.0, spike_fn=None), "LIF with tau_syn and without spike_fn"),
    "threshold": (
        lambda: lif(spike_threshold=torch.tensor([1.0, 1, 0, 1])),
        "spike_threshold of 0.0, with which Multi",
    ),
    "threshold shape": (
        lambda: lif(spike_threshold=torch.ones(3)),
        r"spike_threshold of shape \(3,\), its neurons have \(4,\)",
    ),
    "no threshold": (lambda: lif(spike_threshold=None), "LIF has no spike_threshold"),
    "tau": (lambda: sl.LIF(tau_mem=torch.inf), "LIF has alpha_mem 1, no decay between 0 and 1.*or IAF"),
    "tau_syn": (lambda: lif(tau_syn=-3.0), "LIF has alpha_syn 1.39.*more than 0 steps"),
    "rec_connect with state": (
        lambda: sl.IAFRecurrent(rec_connect=nn.Sequential(nn.Linear(4, 4), sl.IAF())),
        "'1.rec_connect': rec_connect holds a layer with state",
    ),
    "rec_connect of another shape": (
        lambda: sl.IAFRecurrent(rec_connect=nn.Sequential(nn.Unflatten(1, (2, 2)))),
        "rec_connect cannot be converted: .*Unflatten is not supported",
    ),
    "own forward": (OwnForward, "OwnForward has a forward of its own, so it is no plain IAF.*module_map="),
    "own layer": (OwnLayer, "OwnLayer has a forward of its own, so it is no plain StatefulLayer"),
    "repeated": (lambda: sl.Repeat(sl.IAF()), "'1.module': IAF takes all steps.*and gets one step"),
    "image": (lambda: sl.Img2SpikeLayer((4,)), "Img2SpikeLayer makes spikes by chance"),
    "analog": (sl.NeuromorphicReLU, "NeuromorphicReLU belongs to a network without spikes.*from_model"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_held_is_refused_by_name(what):
    make, message = REFUSED[what]
    with pytest.raises(ConversionError, match=message) as error:
        nd.torch_to_nir(nn.Sequential(nn.Linear(4, 4), make(), sl.IAF()), sample_input=torch.zeros(1, 2, 4))
    assert "'1" in str(error.value)


def test_pools_of_another_kind_are_refused():
    pooled = nn.Sequential(nn.Conv2d(1, 1, 1), sl.SumPool2d(2, ceil_mode=True), sl.IAFSqueeze(batch_size=1))
    with pytest.raises(ConversionError, match="'1': SumPool2d with ceil_mode does not exist in NIR"):
        nd.torch_to_nir(pooled, input_shape=(1, 4, 4))
    pooled[1] = sl.SpikingMaxPooling2dLayer((2, 2))
    with pytest.raises(ConversionError, match="'1': SpikingMaxPooling2dLayer lets the input through.*SumPool2d"):
        nd.torch_to_nir(pooled, input_shape=(1, 4, 4))


def test_recurrence_that_another_shape_comes_out_of_is_refused():
    layer = sl.IAFRecurrent(rec_connect=nn.Sequential(nn.Flatten(), nn.Linear(8, 8)))
    with pytest.raises(
        ConversionError, match=r"rec_connect makes \(8,\) of \(2, 2, 2\), and NIR has nothing that folds"
    ):
        nd.torch_to_nir(nn.Sequential(layer, sl.ExpLeak(3.0)), input_shape=(2, 2, 2))


@pytest.mark.parametrize("layer", [lif(), lif(tau_syn=4.0), sl.IAFRecurrent(rec_connect=nn.Linear(4, 4))])
def test_what_an_earlier_run_left_behind_is_refused_until_it_is_reset(layer):
    network = nn.Sequential(layer, nn.Identity())
    case = drawn(network, 4, seed=3)
    with torch.no_grad():
        network(case.given)
    recurrent = hasattr(layer, "rec_connect")
    message = r"'0': \w+ still has the v_mem of an earlier run \(up to [0-9.]+\), and goes on from there. Call "
    with pytest.raises(
        ConversionError,
        match=message + ("reset_states\\(\\) of the layer, which" if recurrent else "sinabs.reset_states"),
    ):
        nd.torch_to_nir(network, sample_input=case.given)
    reset(network)
    check(case)


def test_dropout_in_training_and_hooks_are_refused():
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), sl.IAF())
    with pytest.raises(ConversionError, match=re.escape("'1': Dropout is in training mode") + ".*eval()"):
        nd.torch_to_nir(network, input_shape=(4,))
    check(drawn(network, 4))
    network[2].register_forward_hook(lambda *_: None)
    with pytest.raises(ConversionError, match="'2': IAF has forward hooks"):
        nd.torch_to_nir(network, input_shape=(4,))


@pytest.mark.parametrize("name", ["batch_size", "num_timesteps"])
def test_layers_that_cut_time_in_other_places_are_refused(name):
    def squeezed(size):
        return nn.Sequential(
            nn.Linear(4, 4), sl.IAFSqueeze(**{name: 3}), nn.Linear(4, 4), sl.IAFSqueeze(**{name: size})
        )

    with pytest.raises(
        ConversionError, match=f"node '3': IAFSqueeze has {name}=1, '1' 3.*Build all layers with one {name}"
    ):
        nd.torch_to_nir(squeezed(1), sample_input=torch.zeros(6, 4))
    assert {"1", "3"} < set(nd.torch_to_nir(squeezed(3), sample_input=torch.zeros(6, 4)).nodes)


def test_a_convention_of_what_is_refused_is_refused():
    with pytest.raises(ConversionError, match=r"LIF has spike_fn=MaxSpike\(5\)"):
        nd.convention_of(nn.Sequential(lif(spike_fn=activation.MaxSpike(5))))


# ---------------------------------------------------------------- the tutorial


def test_the_tutorial_gives_what_it_says(tmp_path):
    script = ROOT / "examples" / "sinabs_digits.py"
    assert script.read_text().startswith("# %% [markdown]\n# # ")
    text = printed("sinabs_digits", tmp_path)
    assert differences("sinabs_digits", text) == []
    accuracies = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", text)]
    assert len(accuracies) == 4
    assert min(accuracies) > 0.85
    assert "reference: 0 of 72000 output counts differ from sinabs's" in text
    assert "through a file and sinabs's importer: 0 differ" in text
    assert "the chip's integers in sinabs: 0 of 72000 counts differ" in text
    assert "; 0 counts of the reference differ" in text
    assert "loihi2, error: spikes_per_step is 'many', 'one' is possible" in text
