"""snnTorch live: networks of its layers, converted, against their own forward."""

from __future__ import annotations

import re

import numpy as np
import pytest
import snntorch as snn
import torch
from example_runs import printed
from frameworks.live_common import Seen, assert_same, fill_weights, graph_convention, off_grid
from frameworks.snntorch_networks import Hidden, networks, own
from hypothesis import HealthCheck, given, settings
from make_gallery import differences
from snntorch import surrogate
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConversionError

FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
X = torch.zeros(3, 6)


def check(drawn):
    network, raster = drawn
    assert_same(network, raster, lambda given: own(network, given))


@FEW
@given(networks())
def test_networks_give_the_librarys_own_spikes_and_v(drawn):
    check(drawn)


@pytest.mark.long
@MANY
@given(networks())
def test_many_networks_give_the_librarys_own_spikes_and_v(drawn):
    check(drawn)


# ---------------------------------------------------------------- forms of forward


class Net(nn.Module):
    """Two Leaky layers, whose states forward gets and returns as `body` says."""

    def __init__(self, body=None, **options):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(beta=0.9, **options)
        self.fc2, self.lif2 = nn.Linear(8, 8), snn.Leaky(beta=0.8, threshold=0.5, **options)
        self.body = body
        fill_weights(self, np.random.default_rng(0))

    def forward(self, x, mem1, spk1, mem2):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return self.body(spk1, mem1, spk2, mem2)


def spike_raster(steps=30, batch=4, width=6, seed=1):
    return torch.tensor(np.random.default_rng(seed).integers(0, 3, (steps, batch, width)), dtype=torch.float32)


def by_hand(network, raster):
    """spk2 and both mem of a Net, its states carried by who calls it."""
    mem1 = mem2 = torch.zeros(raster.shape[1], 8)
    found = []
    for x in raster:
        mem1, _, mem2, spk2 = network(x, mem1, None, mem2)
        found.append((spk2, mem1, mem2))
    return [np.stack([step[n].detach().numpy() for step in found]) for n in range(3)]


@pytest.mark.parametrize("dt", [None, 1e-3])
def test_states_with_arguments_of_their_own_come_back_among_the_outputs(dt):
    network = Net(lambda spk1, mem1, spk2, mem2: (mem1, spk1, mem2, spk2))
    raster = spike_raster()
    spikes, mem1, mem2 = by_hand(network, raster)
    found = nd.run(nd.torch_to_nir(network, sample_input=X, dt=dt), raster)
    assert spikes.sum() > 50
    assert found.convention.dt == (dt or 1e-4)
    assert np.array_equal(found.outputs["output_1"], spikes)
    assert np.array_equal(found["lif1", "v_mem"].data, mem1)
    assert np.array_equal(found["lif2", "v_mem"].data, mem2)


@pytest.mark.parametrize(
    "body",
    [
        lambda spk1, mem1, spk2, mem2: (spk2, mem1, mem2),
        lambda spk1, mem1, spk2, mem2: (spk2, (mem1, mem2)),
        lambda spk1, mem1, spk2, mem2: (mem1, mem2, spk2),
    ],
)
def test_the_output_is_what_is_no_state(body):
    graph = nd.torch_to_nir(Net(body), sample_input=X)
    assert list(graph.nodes) == ["input", "fc1", "lif1", "fc2", "lif2", "output"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda spk1, mem1, spk2, mem2: (spk2, mem2, mem1), "mem2, the state of 'lif2', comes back in another order"),
        (lambda spk1, mem1, spk2, mem2: (spk2, mem1), r"state of 'lif2' is read from state\['mem2'\]"),
        (
            lambda spk1, mem1, spk2, mem2: mem2,
            "(?s)the state of 'lif2' as a signal, which NIR cannot tap.*a run records its states",
        ),
    ],
)
def test_a_state_that_does_not_come_back_is_refused(body, message):
    with pytest.raises(ConversionError, match=message):
        nd.torch_to_nir(Net(body), sample_input=X)


class Pair(nn.Module):
    """One layer of several states, called and returned as `body` says."""

    def __init__(self, layer, body):
        super().__init__()
        self.fc, self.lif, self.body = nn.Linear(6, 8), layer, body

    def forward(self, x, first, second):
        return self.body(self, self.fc(x), first, second)


def swapped(self, x, first, second):
    spk, first, second = self.lif(x, second, first)
    return spk, first, second


def named(self, x, first, second):
    spk, first, second = self.lif(x, mem=second, syn=first)
    return spk, first, second


def whole(self, x, first, second):
    return self.lif(x, first, second)


def test_states_of_one_layer_keep_their_places():
    with pytest.raises(ConversionError, match="'lif', comes back in another order"):
        nd.torch_to_nir(Pair(snn.Synaptic(alpha=0.7, beta=0.9), swapped), sample_input=X)
    for body in (named, whole):
        graph = nd.torch_to_nir(Pair(snn.Synaptic(alpha=0.7, beta=0.9), body), sample_input=X)
        assert list(graph.nodes) == ["input", "fc", "lif", "output"]
    graph = nd.torch_to_nir(Pair(snn.RLeaky(beta=0.9, linear_features=8), whole), sample_input=X)
    assert list(graph.nodes["lif"].nodes) == ["input", "lif", "w_rec", "output"]


def test_one_state_given_to_two_layers_is_refused():
    class Crossed(Net):
        def forward(self, x, mem):
            spk1, mem1 = self.lif1(self.fc1(x), mem)
            spk2, _ = self.lif2(self.fc2(spk1), mem)
            return spk2, mem1

    with pytest.raises(ConversionError, match="'lif2' gets state, which 'lif1' gets, too"):
        nd.torch_to_nir(Crossed(), sample_input=X)


STEPS = 12


class Looping(nn.Module):
    """As in snnTorch's tutorials: forward resets its layers, loops over time and stacks what each step gives."""

    def __init__(self, kind="static", steps=STEPS):
        super().__init__()
        self.kind, self.steps = kind, steps
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(8, 5), snn.RLeaky(beta=0.8, linear_features=5)
        self.fc3, self.lif3 = nn.Linear(5, 4), snn.Synaptic(alpha=0.7, beta=0.8, threshold=0.5)
        fill_weights(self, np.random.default_rng(0))

    def forward(self, x):
        mem1, (spk2, mem2), (syn3, mem3) = self.lif1.init_leaky(), self.lif2.init_rleaky(), self.lif3.reset_mem()
        spikes, states = [], []
        current = self.fc1(x) if self.kind == "hoisted" else None
        for step in range(self.steps or x.size(0)):
            if self.kind == "reset inside" and step == 7:
                mem1 = self.lif1.reset_mem()
            if self.kind != "hoisted":
                current = self.fc1(x[step] if self.kind in ("indexed", "both") else x)
            if self.kind == "both":
                current = current + self.fc1(x)
            spk1, mem1 = self.lif1(current, mem1)
            if self.kind == "another step" and step == 7:
                spk1 = 2 * spk1
            spk2, mem2 = self.lif2(self.fc2(spk1), spk2, mem2)
            spk3, syn3, mem3 = self.lif3(self.fc3(spk2), syn3, mem3)
            if self.kind == "changed state":
                mem1 = 0.5 * mem1
            if self.kind == "swapped states":
                syn3, mem3 = mem3, syn3
            spikes.append(spk3)
            states.append(mem3)
        return {
            "sum": lambda: torch.stack(spikes).sum(0),
            "last spikes": lambda: spk3,
            "behind the batch": lambda: torch.stack(spikes, dim=1),
            "last state": lambda: (torch.stack(spikes), mem3),
        }.get(self.kind, lambda: (torch.stack(spikes, dim=0), torch.stack(states, dim=0)))()


@pytest.mark.parametrize("kind", ["static", "hoisted", "indexed", "last state", "all of the input"])
def test_a_forward_that_loops_over_equal_steps_gives_one_of_them(kind):
    network = Looping(kind)
    if kind == "all of the input":
        kind, network = "indexed", Looping("indexed", steps=None)
    x = spike_raster(steps=STEPS) if kind == "indexed" else spike_raster(steps=1)[0]
    with torch.no_grad():
        spikes, states = (part.numpy() for part in network(x))
    graph = nd.torch_to_nir(network, sample_input=x)
    assert list(graph.nodes) == ["input", "fc1", "lif1", "fc2", "lif2", "fc3", "lif3", "output"]
    assert graph_convention(graph) == nd.convention_of(network)
    raster = x if kind == "indexed" else x.expand(STEPS, *x.shape)
    found = nd.run(graph, raster.numpy())
    assert spikes.sum() > 20
    assert np.array_equal(np.asarray(found.outputs), spikes)
    v = found["lif3", "v_mem"].data
    assert np.array_equal(v[-1] if kind == "last state" else v, states)
    assert "reset_mem" not in vars(network.lif1)  # tracing left nothing behind


def test_a_loop_over_layers_that_keep_their_states_is_one_step_from_rest():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 8), snn.Leaky(beta=0.9, init_hidden=True)

        def forward(self, x):
            return torch.stack([self.lif(self.fc(x[step])) for step in range(STEPS)])

    network, raster = fill_weights(Keeping(), np.random.default_rng(0)), spike_raster(steps=STEPS)
    graph = nd.torch_to_nir(network, sample_input=raster)
    with torch.no_grad():
        assert np.array_equal(np.asarray(nd.run(graph, raster).outputs), network(raster).numpy())
    with pytest.raises(ConversionError, match="node 'lif': Leaky still holds mem of an earlier run"):
        nd.torch_to_nir(network, sample_input=raster)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("reset inside", "node 'lif1': forward resets it, and no loop over time of equal steps follows"),
        ("another step", "node 'lif1': forward resets it, and no loop over time of equal steps follows"),
        ("changed state", "node 'lif1': forward resets it, and no loop over time of equal steps follows"),
        ("swapped states", "node 'lif1': forward resets it, and no loop over time of equal steps follows"),
        ("both", "node 'lif1': forward resets it, and no loop over time of equal steps follows"),
        ("sum", "tensor method 'sum' does not exist in NIR"),
        ("behind the batch", "operation 'stack' does not exist in NIR"),
        ("last spikes", "takes what one step of the loop over time gives"),
    ],
)
def test_a_loop_whose_steps_are_not_one_and_the_same_is_refused(kind, message):
    x = spike_raster(steps=STEPS) if kind == "both" else X
    with pytest.raises(ConversionError, match=message):
        nd.torch_to_nir(Looping(kind), sample_input=x)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (1, "node 'lif1': forward resets it, and no loop over time of equal steps follows"),
        (None, "forward of Looping loops over an axis of its input"),
    ],
)
def test_a_loop_whose_steps_are_not_known_is_refused_with_the_remedy(steps, message):
    with pytest.raises(ConversionError, match=message) as refused:
        nd.torch_to_nir(Looping("static", steps), input_shape=(6,))
    assert "make the body of its loop a forward of one step" in str(refused.value)


def test_a_layer_called_twice_in_one_step_is_refused():
    class Twice(Net):
        def forward(self, x, mem):
            spk1, mem = self.lif1(self.fc1(x), mem)
            spk2, mem = self.lif1(self.fc2(spk1), mem)
            return spk2, mem

    with pytest.raises(ConversionError, match="node 'lif1': a neuron module is called twice in one step"):
        nd.torch_to_nir(Twice(), sample_input=X)


def test_layers_called_in_another_order_or_not_at_all_have_the_convention_of_the_graph():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="zero")
            self.fc, self.unused = nn.Linear(6, 8), snn.Lapicque(R=1, C=4, init_hidden=True)
            self.early = snn.Synaptic(alpha=0.7, beta=0.9, init_hidden=True)

        def forward(self, x):
            return self.last(self.early(self.fc(x)))

    network = Other()
    graph, convention = nd.torch_to_nir(network, sample_input=X), nd.convention_of(network)
    assert graph_convention(graph) == convention
    assert convention.overrides == {"last": {"reset": "zero"}}
    nd.run(graph, spike_raster(), convention=convention)


# ---------------------------------------------------------------- weights from training


def test_a_trained_checkpoint_gives_the_networks_own_spikes(tmp_path):
    def network():
        torch.manual_seed(3)
        options = {"learn_beta": True, "learn_threshold": True, "init_hidden": True}
        return Hidden(
            nn.Linear(6, 8),
            snn.Leaky(beta=torch.full((8,), 0.9), spike_grad=surrogate.fast_sigmoid(), **options),
            nn.Dropout(0.5),
            nn.Linear(8, 3),
            snn.Synaptic(alpha=0.8, beta=0.9, learn_alpha=True, output=True, **options),
        )

    trained, raster = network(), spike_raster()
    optimiser = torch.optim.Adam(trained.parameters(), lr=0.02)
    for _ in range(5):
        for layer in (trained[1], trained[4]):
            layer.reset_mem()
            layer.mem = layer.mem.detach()
        loss = torch.stack([out[-1] for out in trained.steps(raster)]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    with pytest.raises(ConversionError, match="node '2': Dropout is in training mode.*Call eval"):
        nd.torch_to_nir(trained, sample_input=X)
    with pytest.raises(ConversionError, match="node '1': Leaky still holds mem of an earlier run.*Call reset_mem"):
        nd.torch_to_nir(trained.eval(), sample_input=X)
    loaded = network()
    loaded.load_state_dict(torch.load(tmp_path / "trained.pt"))
    assert not torch.equal(loaded[1].beta, torch.full((8,), 0.9))
    assert_same(loaded.eval(), raster, lambda given: own(loaded, given))


def test_a_state_that_comes_in_from_outside_may_be_left_in_the_layers():
    network = Net(lambda spk1, mem1, spk2, mem2: (mem1, spk1, mem2, spk2))
    by_hand(network, spike_raster() + 1)
    assert bool(network.lif1.mem.any())
    nd.torch_to_nir(network, sample_input=X)


def test_the_documented_lapicque_neuron():
    layer = snn.Lapicque(R=5.1, C=5e-3, time_step=1e-3, threshold=0.5, init_hidden=True, output=True)
    network, raster = Hidden(layer), spike_raster(width=2, steps=100) * 0.2
    graph = nd.torch_to_nir(network, sample_input=raster[0])
    assert np.allclose(graph.nodes["0"].tau, 1e-4 * 5.1 * 5e-3 / 1e-3)
    assert np.allclose(graph.nodes["0"].r, 5.1)
    assert_same(network, raster, lambda given: own(network, given))


# ---------------------------------------------------------------- refusals


class OwnForward(snn.Leaky):
    def forward(self, x, mem=None):
        return super().forward(2 * x, mem)


class OwnFire(snn.Leaky):
    def fire(self, mem):
        return mem


class OwnStart(snn.Leaky):
    def __init__(self):
        super().__init__(beta=0.5, init_hidden=True)


class Surrogate(nn.Module):
    def forward(self, x):
        return surrogate.atan()(x)


def reset_since():
    layer = snn.Leaky(beta=0.9, init_hidden=True)
    layer.reset_mechanism = "zero"
    return layer


def leaky(**options):
    return snn.Leaky(**{"beta": 0.9, "init_hidden": True, **options})


REFUSED = {
    "Alpha": (lambda: snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True), "Alpha has two synapses of opposite sign"),
    "DeltaLeaky": (lambda: snn.DeltaLeaky(beta=0.9, init_hidden=True), "DeltaLeaky fires where v changes"),
    "SLSTM": (lambda: snn.SLSTM(8, 8, init_hidden=True), "SLSTM is an LSTM"),
    "SConv2dLSTM": (lambda: snn.SConv2dLSTM(8, 8, 3, init_hidden=True), "SConv2dLSTM is an LSTM"),
    "StateLeaky": (lambda: snn.StateLeaky(beta=0.9, channels=8), "StateLeaky takes all steps at once"),
    "LinearLeaky": (lambda: snn.LinearLeaky(0.9, 8, 3), "LinearLeaky takes all steps at once"),
    "LeakyParallel": (lambda: snn.LeakyParallel(8, 8), "LeakyParallel takes all steps at once"),
    "AssociativeLeaky": (lambda: snn.AssociativeLeaky(8, 2, 2, 4), "AssociativeLeaky takes all steps at once"),
    "GradedSpikes": (lambda: snn.GradedSpikes(8, 2.0), "GradedSpikes multiplies along the batch"),
    "inhibition": (lambda: leaky(inhibition=True), "inhibition lets one neuron of a layer fire"),
    "state_quant": (lambda: leaky(state_quant=lambda v: v), "state_quant quantises v in each step"),
    "spike_grad": (lambda: leaky(spike_grad=torch.sigmoid), "spike_grad sigmoid, whose forward pass is not 1 where"),
    "beta": (lambda: leaky(beta=torch.rand(5)), r"beta of shape \(5,\) does not fit neurons of shape \(8,\)"),
    "NaN": (lambda: leaky(beta=float("nan")), "beta holds NaN"),
    "threshold": (
        lambda: leaky(threshold=-0.5, reset_mechanism="zero", reset_delay=False),
        "reset_delay=False has the threshold -0.5",
    ),
    "changed": (reset_since, "was built with reset_mechanism='subtract'.*was given 'zero' since"),
    "forward": (lambda: OwnForward(beta=0.9, init_hidden=True), "OwnForward has a forward of its own"),
    "fire": (lambda: OwnFire(beta=0.9, init_hidden=True), "OwnFire has a fire of its own.*module_map={OwnFire"),
    "Lapicque": (lambda: snn.Lapicque(beta=1.0, init_hidden=True), "with which nothing comes in"),
    "RSynaptic": (
        lambda: snn.RSynaptic(0.9, 0.9, linear_features=8, reset_delay=False, init_hidden=True),
        "RSynaptic with reset_delay=False and init_hidden=True cannot be run in snnTorch",
    ),
}


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_cannot_hold_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ConversionError, match=f"node '1': .*{message}"):
        nd.torch_to_nir(nn.Sequential(nn.Linear(6, 8), make()), sample_input=X)


def test_a_surrogate_without_a_neuron_is_refused():
    with pytest.raises(ConversionError, match="a surrogate by itself is a spike without a neuron.*as spike_grad"):
        nd.torch_to_nir(nn.Sequential(nn.Linear(6, 8), Surrogate()), sample_input=X)


def test_a_subclass_that_only_sets_itself_up_is_its_base():
    network = nn.Sequential(nn.Linear(6, 8), OwnStart())
    assert type(nd.torch_to_nir(network, sample_input=X).nodes["1"]).__name__ == "LIF"


@pytest.mark.parametrize("name", ["atan", "fast_sigmoid", "sigmoid", "triangular", "straight_through_estimator", "SFS"])
def test_every_surrogate_that_is_a_step_forward_is_taken(name):
    layer = leaky(spike_grad=getattr(surrogate, name)(), threshold=off_grid(np.random.default_rng(0)))
    network, raster = fill_weights(Hidden(nn.Linear(6, 8), layer), np.random.default_rng(1)), spike_raster()
    graph = assert_same(network, raster, lambda given: own(network, given))
    assert type(graph.nodes["1"]).__name__ == "LIF"


def test_the_helpers_find_a_wrong_network():
    network, raster = fill_weights(Hidden(nn.Linear(6, 8), leaky()), np.random.default_rng(1)), spike_raster()
    output, seen = own(network, raster)
    wrong = {"1": Seen(seen["1"].spikes, seen["1"].v + 1e-4, seen["1"].threshold)}
    with pytest.raises(AssertionError):
        assert_same(network, raster, lambda _: (output, wrong))
    with pytest.raises(AssertionError):
        assert_same(network, raster, lambda _: (1 - output, seen))


def test_a_recurrent_network_is_one_that_chips_can_hold():
    same = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
    layers = (nn.Linear(6, 8), snn.RLeaky(beta=0.8, linear_features=8, **same), nn.Linear(8, 4))
    network = fill_weights(Hidden(*layers, snn.Synaptic(alpha=0.7, beta=0.8, **same)), np.random.default_rng(1))
    graph = nd.torch_to_nir(network, sample_input=X)
    assert list(graph.nodes) == ["input", "0", "1", "2", "3", "output"]
    assert nd.feedback_edges(graph) == [("1.w_rec", "1.lif")]
    assert not [f for f in nd.check(graph, "loihi2").findings if f.severity == "error"]


# ---------------------------------------------------------------- tutorial


def test_the_tutorial_takes_a_trained_network_to_two_chips(tmp_path):
    text = printed("snntorch_digits", tmp_path)
    assert differences("snntorch_digits", text) == []
    assert "convention: reset zero, same_step, dt 0.001\n" in text
    assert "reference: 0 of 72000 output entries differ from snnTorch's\n" in text
    shares = {name: float(right) for name, right in re.findall(r"^(\w+): ([\d.]+)% right", text, re.MULTILINE)}
    assert set(shares) == {"snnTorch", "speck2f", "loihi2"}
    assert min(shares.values()) > 90
    assert len(re.findall("of spikes agree", text)) == 2
    assert "loihi2, node 2: reset is 'subtract'" in text
    assert "loihi2, node 2: reset_time is 'next_step'" in text
    assert (tmp_path / "out" / "examples" / "snntorch_speck2f.html").exists()
