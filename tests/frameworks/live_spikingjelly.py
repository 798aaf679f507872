"""SpikingJelly's layers, converted and run, against SpikingJelly; runs in its environment."""

from __future__ import annotations

import inspect
import json
import operator
import re
import tempfile
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from example_runs import printed
from frameworks.nets_spikingjelly import (
    NEURONS,
    Drawn,
    check,
    convolutional,
    dense,
    make_neuron,
    on_grid,
    own_run,
    steady,
    usable,
)
from frameworks.trips_spikingjelly import imported, survives, there
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from make_gallery import differences
from nets import GOLDEN
from spikingjelly.activation_based import base, functional, lava_exchange, layer, neuron, rnn, surrogate
from spikingjelly.activation_based.nir_exchange import export_to_nir
from torch import nn

import nirdeploy as nd
from nirdeploy.convert.frameworks import row_of
from nirdeploy.convert.frameworks.framework import framework_of
from nirdeploy.errors import ConversionError, UnsupportedError
from nirdeploy.graph import make_graph

FEW = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=50)


def raster(steps, batch, *shape, seed=0, rate=0.5):
    return torch.tensor(np.random.default_rng(seed).poisson(rate, (steps, batch, *shape)), dtype=torch.float32)


def network(*parts, multi=False, seed=0):
    module = nn.Sequential(*parts)
    functional.set_step_mode(module, "m" if multi else "s")
    on_grid(module, np.random.default_rng(seed), strength=1.0 + seed % 3)
    return module.eval()


# ---------------------------------------------------------------- the contract


@FEW
@given(dense())
def test_drawn_dense_networks_give_the_librarys_spikes(drawn):
    check(drawn, methods=("dense", "event"))


@FEW
@given(convolutional())
def test_drawn_convolutional_networks_give_the_librarys_spikes(drawn):
    check(drawn)


@pytest.mark.long
@pytest.mark.timeout(1200)
@MANY
@given(dense())
def test_many_dense_networks_give_the_librarys_spikes(drawn):
    check(drawn, methods=("dense", "event", "loop"))


@pytest.mark.long
@pytest.mark.timeout(1200)
@MANY
@given(convolutional())
def test_many_convolutional_networks_give_the_librarys_spikes(drawn):
    check(drawn, methods=("dense", "event", "loop"))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.25, 0.125])
@pytest.mark.parametrize("kind", NEURONS)
def test_every_population_and_reset(kind, v_reset, multi):
    if kind == "simple_lif" and v_reset is None:
        pytest.skip("SimpleLIFNode cannot run without v_reset; it is refused below")

    def make(seed):
        parts = layer.Linear(5, 7), make_neuron(kind, v_reset=v_reset), layer.Linear(7, 6), make_neuron(kind)
        return Drawn(network(*parts, multi=multi, seed=seed), raster(40, 2, 5, seed=seed), multi)

    check(steady(make), methods=("dense", "event", "loop"))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("kind", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, neuron.CUBALIFNode])
def test_defaults(kind, multi):
    def make(seed):
        parts = layer.Linear(5, 7), kind(), layer.Linear(7, 6), kind()
        return Drawn(network(*parts, multi=multi, seed=seed), raster(40, 2, 5), multi, kind is neuron.IFNode)

    check(steady(make))


@pytest.mark.parametrize(
    ("population", "x"),
    [
        (neuron.IFNode(v_threshold=1.0), 1.0),
        (neuron.IFNode(v_threshold=1.0, v_reset=None), 0.5),
        (neuron.LIFNode(tau=2.0), 2.0),
        (neuron.LIFNode(tau=2.0, decay_input=False), 1.0),
        (neuron.LIFNode(tau=5.0, decay_input=False), 1.0),
        (neuron.ParametricLIFNode(init_tau=2.0, v_reset=None), 2.0),
        (neuron.CUBALIFNode(v_threshold=0.5), 0.5),
    ],
)
def test_v_equal_to_the_threshold_fires(population, x):
    module = network(layer.Linear(1, 1, bias=False), population)
    module[0].weight.data.fill_(1.0)
    own = check(Drawn(module, torch.full((4, 1, 1), x), False, exact=True))
    assert own.margin == 0.0
    assert own.output.sum() > 0


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.25])
def test_integrators_on_a_grid_are_equal_to_the_last_bit(v_reset):
    def make(seed):
        module = network(
            layer.Conv2d(2, 4, 3, padding=1, bias=False),
            neuron.IFNode(v_reset=v_reset),
            layer.AvgPool2d(2),
            layer.Flatten(),
            layer.Linear(4 * 9, 5, bias=False),
            neuron.IFNode(v_reset=v_reset),
            multi=True,
            seed=seed,
        )
        return Drawn(module, raster(60, 3, 2, 6, 6, rate=0.2), True, exact=True)

    drawn = steady(make)
    own = check(drawn)
    assert own.margin == 0.0  # ties happen, and none of them differs
    graph = nd.torch_to_nir(drawn.module, sample_input=drawn.sample)
    found = nd.run(graph, drawn.raster.numpy())
    for name in ("1", "5"):
        np.testing.assert_array_equal(found[name, "v_mem"].values, own.v[name])


class Residual(nn.Module):
    """What users write: blocks, a sum, several containers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(layer.SeqToANNContainer(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)))
        self.sn1 = neuron.LIFNode(step_mode="m", detach_reset=True, surrogate_function=surrogate.ATan())
        self.block = layer.SeqToANNContainer(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.sn2 = neuron.IFNode(step_mode="m")
        self.head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(3 * 25, 4, step_mode="m"))
        self.sn3 = neuron.ParametricLIFNode(step_mode="m")

    def forward(self, x):
        first = self.sn1(self.first(x))
        return self.sn3(self.head(self.sn2(self.block(first)) + first))


def test_a_residual_network_of_modules_with_time():
    def make(seed):
        module = Residual().eval()
        on_grid(module, np.random.default_rng(seed))
        return Drawn(module, raster(30, 2, 1, 5, 5), True)

    check(steady(make))


def test_weights_of_a_checkpoint(tmp_path):
    def make(seed):
        plif, norm = neuron.ParametricLIFNode(), layer.BatchNorm1d(7)
        module = network(layer.Linear(5, 7), plif, norm, layer.Linear(7, 3), neuron.LIFNode(), seed=seed)
        plif.w.data.fill_(0.7)
        return Drawn(module, raster(40, 2, 5, rate=1.5), False)

    trained = steady(make)
    torch.save(trained.module.state_dict(), tmp_path / "net.pt")
    drawn = make(99)
    drawn.module[1].w.data.fill_(0.0)
    drawn.module.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    own = check(drawn)
    np.testing.assert_array_equal(own.output, own_run(trained).output)


def test_dt_scales_time_constants_and_changes_no_spike():
    def make(seed):
        parts = layer.Linear(5, 7), neuron.LIFNode(tau=3.0), layer.Delay(2), layer.Linear(7, 3), neuron.CUBALIFNode()
        return Drawn(network(*parts, seed=seed), raster(40, 2, 5), False)

    drawn = steady(make)
    module, own = drawn.module, own_run(drawn)
    graph = nd.torch_to_nir(module, sample_input=drawn.sample, dt=1e-3)
    assert graph.nodes["1"].tau[0] == pytest.approx(3e-3)
    assert graph.nodes["2"].delay[0] == pytest.approx(2e-3)
    convention = nd.convention_of(module, dt=1e-3)
    assert convention.dt == 1e-3
    found = nd.run(graph, drawn.raster.numpy(), convention=convention)
    np.testing.assert_array_equal(np.asarray(found.outputs), own.output)


def test_one_layer_alone():
    node = nd.torch_to_nir(neuron.LIFNode(tau=4.0), input_shape=(3,))
    assert type(node).__name__ == "LIF"
    np.testing.assert_allclose(node.tau, 4e-4)
    assert nd.convention_of(neuron.LIFNode(v_reset=None)).reset == "subtract"
    assert nd.convention_of(neuron.IFNode()).crossing == "inclusive"


class Backwards(nn.Module):
    """Layers in another order in the constructor than in forward."""

    def __init__(self):
        super().__init__()
        self.last, self.second = neuron.IFNode(v_reset=None, v_threshold=0.9171), layer.Linear(4, 3)
        self.middle, self.first = neuron.LIFNode(decay_input=False, v_threshold=0.6171), layer.Linear(4, 4)

    def forward(self, x):
        return self.last(self.second(self.middle(self.first(x))))


def test_the_convention_depends_on_no_order():
    def make(seed):
        module = Backwards().eval()
        on_grid(module, np.random.default_rng(seed), 2.0)
        return Drawn(module, raster(30, 2, 4), False)

    drawn = steady(make)
    own = check(drawn)
    found = nd.run(drawn.module, drawn.raster.numpy(), convention=nd.convention_of(drawn.module))
    np.testing.assert_array_equal(np.asarray(found.outputs), own.output)


def test_layers_that_differ_have_overrides():
    module = network(
        layer.Linear(2, 2), neuron.LIFNode(), neuron.IFNode(v_reset=None), neuron.LIFNode(decay_input=False)
    )
    convention = nd.convention_of(module)
    assert convention.reset == "v_reset"
    assert {name: dict(values) for name, values in convention.overrides.items()} == {
        "2": {"reset": "subtract"},
        "3": {"gain": "unit"},
    }


# ---------------------------------------------------------------- refused by name


def classes():
    """Every layer that the library offers."""
    found = {}
    for home in (neuron, layer, rnn, lava_exchange):
        for kind in vars(home).values():
            if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__.startswith("spikingjelly."):
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return found


CONVERTED = {
    "IFNode", "SimpleIFNode", "LIFNode", "SimpleLIFNode", "ParametricLIFNode", "CUBALIFNode",
    "Linear", "WSLinear", "Conv1d", "Conv2d", "WSConv2d", "AvgPool2d", "Flatten", "BatchNorm1d", "BatchNorm2d",
    "ThresholdDependentBatchNorm1d", "ThresholdDependentBatchNorm2d", "Dropout", "Dropout2d", "PrintShapeModule",
    "VotingLayer", "Delay", "LinearRecurrentContainer", "ElementWiseRecurrentContainer",
}  # fmt: skip
CONTAINERS = {"MultiStepContainer", "SeqToANNContainer", "StepModeContainer"}


@pytest.mark.parametrize("name", sorted(classes()))
def test_every_layer_is_converted_or_refused_by_name(name):
    kind = classes()[name]
    bare = nn.Module.__new__(kind)
    nn.Module.__init__(bare)
    bare.eval()
    assert framework_of(bare).package == "spikingjelly"
    row = row_of(bare)
    if kind.__name__ in CONTAINERS:
        assert row is None
    elif kind.__name__ in CONVERTED and "lava" not in name:
        assert row is not None
        assert not row.refuses
    else:
        assert row is not None
        with pytest.raises(ConversionError, match=rf"node 'module': {kind.__name__} cannot be converted: .+\. \w+"):
            nd.torch_to_nir(bare, input_shape=(3,))


def test_refused_layers_inside_a_network_name_their_path():
    for part, text in (
        (neuron.QIFNode(), "node '1': QIFNode cannot be converted: its charge is no linear function"),
        (neuron.KLIFNode(), "node '1': KLIFNode cannot be converted: its membrane is clipped at 0"),
        (neuron.PSN(4), "node '1': PSN cannot be converted: it sees all steps at once"),
        (layer.SynapseFilter(), "node '1': SynapseFilter cannot be converted: its decay depends on its input"),
        (layer.MaxPool2d(2), "node '1': MaxPool2d cannot be converted: NIR has no maximum. Use layer.AvgPool2d"),
        (neuron.HalfThresholdIFNode(), "node '1': HalfThresholdIFNode cannot be converted: it starts at half"),
    ):
        with pytest.raises(ConversionError, match=re.escape(text)):
            nd.torch_to_nir(nn.Sequential(layer.Linear(4, 4), part), input_shape=(4,))


def test_options_that_nir_does_not_have():
    lif = neuron.LIFNode()
    lif.tau = 0.5
    halved = neuron.CUBALIFNode(v_decay=1.0)
    analog = neuron.IFNode(surrogate_function=surrogate.Sigmoid(spiking=False))
    chance = neuron.IFNode(surrogate_function=surrogate.PoissonPass())
    margins = neuron.IFNode()
    functional.set_threshold_margin(margins, torch.ones(2, 4))
    shifted = neuron.LIFNode()
    shifted.set_reset_value("v", 0.3)
    for part, text in (
        (lif, "node '1': tau is 0.5 steps, expected at least 1. Set layer.tau"),
        (halved, "node '1': v_decay is 1.0, expected 0 up to but without 1"),
        (
            analog,
            "spiking=False: the layer emits numbers between 0 and 1, not spikes. Call layer.surrogate_function.set",
        ),
        (chance, "surrogate_function PoissonPass need not give 0 and 1 in forward"),
        (margins, "v_threshold of IFNode is a tensor of shape (2, 4), expected one finite number a layer"),
        (shifted, "LIFNode starts at v = 0.3, set by set_reset_value; a population can only start at 0.0"),
        (neuron.SimpleLIFNode(2.0, True, v_reset=None), "SimpleLIFNode with v_reset=None cannot run"),
        (layer.AvgPool2d(2, ceil_mode=True), "node '1': AvgPool2d with ceil_mode does not exist in NIR"),
        (layer.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "padding_mode 'circular' does not exist in NIR"),
    ):
        with pytest.raises(ConversionError, match=re.escape(text)):
            nd.torch_to_nir(
                nn.Sequential(layer.Flatten(1, -1) if False else nn.Identity(), part), input_shape=(1, 4, 4)
            )


def test_recurrent_containers_around_other_things():
    around = layer.LinearRecurrentContainer(nn.Sequential(layer.Linear(4, 4), neuron.IFNode()), 4, 4)
    with pytest.raises(
        ConversionError, match="node 'module': LinearRecurrentContainer around a Sequential, expected a"
    ):
        nd.torch_to_nir(around, input_shape=(4,))
    for function in (lambda x, y: x + 0.5 * y, operator.mul, lambda x, y: x + x, max):
        weighted = layer.ElementWiseRecurrentContainer(neuron.IFNode(), function)
        with pytest.raises(ConversionError, match="element_wise_function does something else than add its arguments"):
            nd.torch_to_nir(weighted, input_shape=(4,))
    leveled = layer.LinearRecurrentContainer(neuron.ILIFNode(), 4, 4)
    with pytest.raises(ConversionError, match="LinearRecurrentContainer around a ILIFNode, expected a population such"):
        nd.torch_to_nir(leveled, input_shape=(4,))
    wide = layer.LinearRecurrentContainer(neuron.IFNode(), 4, 6)
    with pytest.raises(ConversionError, match="its population has 4 neurons and out_features is 6"):
        nd.torch_to_nir(wide, input_shape=(4,))


# ---------------------------------------------------------------- bad input


def test_memory_of_an_earlier_run_is_named_with_the_remedy():
    module = network(
        layer.Linear(4, 4), neuron.LIFNode(v_reset=-0.25), layer.LinearRecurrentContainer(neuron.IFNode(), 4, 4)
    )
    module(raster(1, 2, 4)[0] + 1)
    text = r"node '1': LIFNode holds v = .+ of an earlier run, a run starts at -0.25. Call .*reset_net\(network\)"
    with pytest.raises(ConversionError, match=text):
        nd.torch_to_nir(module, input_shape=(4,))
    module[1].reset()
    with pytest.raises(ConversionError, match="node '2.*' of an earlier run|node '2.*': .* of an earlier run"):
        nd.torch_to_nir(module, input_shape=(4,))
    functional.reset_net(module)
    nd.torch_to_nir(module, input_shape=(4,))
    delay = layer.Delay(2)
    delay(torch.ones(1, 4))
    with pytest.raises(ConversionError, match="node 'module': Delay holds queue = earlier steps of an earlier run"):
        nd.torch_to_nir(delay, input_shape=(4,))


@pytest.mark.parametrize("part", [layer.Dropout(0.2), layer.Dropout2d(0.2), nn.Dropout(0.2), layer.BatchNorm1d(4)])
def test_training_mode_is_named_with_the_remedy(part):
    module = nn.Sequential(layer.Linear(4, 4), part, neuron.LIFNode())
    with pytest.raises(ConversionError, match=r"node '1': \w+ is in training mode, .* Call eval\(\) on the network"):
        nd.torch_to_nir(module, input_shape=(4,))
    nd.torch_to_nir(module.eval(), input_shape=(4,))


class Slower(neuron.LIFNode):
    """A subclass that only has other defaults."""

    def __init__(self):
        super().__init__(tau=8.0)


class Doubled(neuron.LIFNode):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        return super().single_step_functional_forward((2 * inputs[0],), states, **kwargs)


class Other(neuron.IFNode):
    def forward(self, x):
        return super().forward(2 * x)


class Kept(base.MemoryModule):
    """A user's own: traced, it would look as if it had no memory."""

    def __init__(self):
        super().__init__()
        self.register_memory("y", 0.0)

    def forward(self, x):
        self.y = 0.5 * self.y + x
        return self.y


def test_subclasses():
    check(
        steady(lambda seed: Drawn(network(layer.Linear(4, 4), Slower(), seed=seed), raster(30, 2, 4, rate=2.0), False))
    )
    for part, text in (
        (Doubled(), "Doubled has a single_step_functional_forward of its own, so it is no plain LIFNode"),
        (Other(), "Other has a forward of its own, so it is no plain IFNode"),
        (Kept(), "Kept cannot be converted: its memory has rules of its own. Derive networks from nn.Module"),
    ):
        with pytest.raises(ConversionError, match=f"node '1': {text}.*module_map"):
            nd.torch_to_nir(nn.Sequential(layer.Linear(4, 4), part), input_shape=(4,))


def test_a_neuron_of_a_later_spikingjelly_is_no_lif_because_it_derives_from_it():
    later = type("LaterLIFNode", (Doubled,), {"__module__": "spikingjelly.activation_based.neuron.later"})
    with pytest.raises(
        ConversionError, match="LaterLIFNode has a single_step_functional_forward of its own, so it is no"
    ):
        nd.torch_to_nir(nn.Sequential(layer.Linear(4, 4), later()), input_shape=(4,))


def test_a_surrogate_alone_is_no_layer():
    with pytest.raises(
        ConversionError, match="node '1': Sigmoid cannot be converted: it is the gradient of a spike, and has no memory"
    ):
        nd.torch_to_nir(nn.Sequential(layer.Linear(4, 4), surrogate.Sigmoid()), input_shape=(4,))


def test_step_modes_that_differ():
    module = nn.Sequential(layer.Linear(4, 4), neuron.LIFNode(step_mode="m"), layer.Linear(4, 4), neuron.IFNode())
    with pytest.raises(ConversionError, match="'3' takes one step at a time, '1' all steps at once"):
        nd.torch_to_nir(module, sample_input=raster(3, 1, 4))


def test_layers_of_torch_that_would_mix_time_and_batch():
    for part in (nn.Flatten(), nn.BatchNorm1d(4)):
        module = nn.Sequential(layer.Linear(4, 4), part, neuron.IFNode(step_mode="m")).eval()
        with pytest.raises(
            ConversionError,
            match=r"Flatten\(start_dim=1\) merges the batch|operation '1' would take the batch of",
        ):
            nd.torch_to_nir(module, sample_input=raster(3, 1, 4))
    flat = nn.Sequential(nn.Flatten(2), layer.Linear(8, 4), neuron.IFNode(step_mode="m")).eval()
    on_grid(flat, np.random.default_rng(0))
    check(Drawn(flat, raster(9, 2, 2, 2, 2), True, exact=True))


def test_neurons_without_time_in_a_container_of_stateless_layers():
    module = layer.SeqToANNContainer(nn.Linear(4, 4), neuron.IFNode())
    with pytest.raises(ConversionError, match="node '1': IFNode inside SeqToANNContainer gets all steps as one batch"):
        nd.torch_to_nir(module, sample_input=raster(3, 1, 4))
    timed = layer.TLastSeqToANNContainer(nn.Linear(4, 4))
    with pytest.raises(
        ConversionError, match="TLastSeqToANNContainer cannot be converted: it has time as its last axis"
    ):
        nd.torch_to_nir(nn.Sequential(timed, neuron.IFNode(step_mode="m")), sample_input=raster(3, 1, 4))


def test_hooks_of_monitors_are_named():
    module = network(layer.Linear(4, 4), neuron.IFNode())
    handle = module[1].register_forward_hook(lambda part, x, y: None)  # as SpikingJelly's monitors do
    with pytest.raises(ConversionError, match="node '1': IFNode has forward hooks, which NIR cannot hold. Remove them"):
        nd.torch_to_nir(module, input_shape=(4,))
    handle.remove()
    nd.torch_to_nir(module, input_shape=(4,))


# ---------------------------------------------------------------- files


def test_what_survives_the_trip_there_and_back():
    golden = json.loads((GOLDEN / "trips_spikingjelly.json").read_text())
    found = [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]
    assert found == golden
    assert {"to": "equal", "back": "equal"} in [{"to": row["to"], "back": row["back"]} for row in found]


@FEW
@given(dense())
def test_drawn_networks_load_in_spikingjelly_or_are_refused(drawn):
    trip(drawn)


@pytest.mark.long
@pytest.mark.timeout(1200)
@settings(MANY, max_examples=100)
@given(st.one_of(dense(), convolutional()))
def test_many_networks_load_in_spikingjelly_or_are_refused(drawn):
    trip(drawn)


def trip(drawn):
    assume(usable(drawn, own_run(drawn)))
    functional.reset_net(drawn.module)
    with tempfile.TemporaryDirectory() as folder:
        found = there(drawn, Path(folder))
    assert found == "equal" or found.startswith("refused: "), found


def graph_of(node, weight, bias):
    ends = {
        "input": nir.Input(input_type={"input": np.array([5])}),
        "output": nir.Output(output_type={"output": np.array([3])}),
    }
    nodes = {**ends, "fc": nir.Affine(weight=weight, bias=bias), "neuron": node}
    return make_graph(nodes, [("input", "fc"), ("fc", "neuron"), ("neuron", "output")])


def lif(r=1.0, v_leak=0.0, v_reset=0.0, tau=5e-3):
    values = {"tau": tau, "r": r, "v_leak": v_leak, "v_threshold": 1.0, "v_reset": v_reset}
    return nir.LIF(**{name: np.full(3, value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("preset", "fields", "node"),
    [
        ("nir", {}, lif()),
        ("nir", {}, lif(v_leak=-0.25, v_reset=-0.25)),
        ("norse", {}, lif(r=3.0)),
        ("snntorch", {}, lif(r=5.0)),
        ("spikingjelly", {}, lif(r=5.0)),
        ("nengo", {"overrides": {}}, lif()),
        ("rockpool", {"spikes_per_step": "one", "reset": "zero"}, lif()),
        ("nir", {"if_gain": "r"}, nir.IF(r=np.ones(3), v_threshold=np.full(3, 1.0), v_reset=np.full(3, -0.25))),
    ],
)
def test_graphs_of_other_conventions_load_in_spikingjelly(preset, fields, node, tmp_path):
    convention = nd.convention(preset, dt=1e-3, **{"v_start": "v_reset", **fields})
    generator = np.random.default_rng(5)
    weight = (np.round(generator.uniform(-1, 4, (3, 5)) * 64) / 64 / np.max(node.r)).astype(np.float32)
    graph = graph_of(node, weight, np.zeros(3, np.float32))
    x = raster(60, 2, 5)
    own = np.asarray(nd.run(graph, x.numpy(), convention=convention).outputs)
    nd.write(tmp_path / "net.nir", graph, convention, for_library="spikingjelly")
    np.testing.assert_array_equal(imported(tmp_path / "net.nir", x, dt=1e-3), own)
    np.testing.assert_array_equal(np.asarray(nd.run(nd.read(tmp_path / "net.nir"), x.numpy()).outputs), own)
    assert 0 < own.sum() < own.size


@pytest.mark.parametrize("crossing", ["strict", "inclusive"])
def test_a_tie_crosses_as_the_convention_says(crossing, tmp_path):
    node = nir.IF(r=np.ones(3), v_threshold=np.full(3, 0.75), v_reset=np.zeros(3))
    convention = nd.Convention(dt=1e-4, if_gain="r", crossing=crossing)
    graph = graph_of(node, np.full((3, 5), 0.25, np.float32), np.zeros(3, np.float32))
    x = torch.zeros(4, 1, 5)
    x[..., 0] = 1.0
    nd.write(tmp_path / "net.nir", graph, convention, for_library="spikingjelly")
    found = imported(tmp_path / "net.nir", x)[:, 0, 0]
    assert found.tolist() == ([0, 0, 0, 1] if crossing == "strict" else [0, 0, 1, 0])
    np.testing.assert_array_equal(np.asarray(nd.run(graph, x.numpy(), convention=convention).outputs)[:, 0, 0], found)


def test_a_loop_with_a_bias_starts_as_the_convention_says(tmp_path):
    graph = graph_of(lif(r=5.0), np.eye(3, 5, dtype=np.float32), np.zeros(3, np.float32))
    back = nir.Affine(weight=np.eye(3, dtype=np.float32) * 0.5, bias=np.full(3, 0.25, np.float32))
    edges = [*graph.edges, ("neuron", "back"), ("back", "neuron")]
    looped = make_graph({**graph.nodes, "back": back}, edges)
    convention = nd.convention("spikingjelly", dt=1e-3)
    x = raster(40, 2, 5)
    nd.write(tmp_path / "net.nir", looped, convention, for_library="spikingjelly")
    own = np.asarray(nd.run(looped, x.numpy(), convention=convention).outputs)
    np.testing.assert_array_equal(imported(tmp_path / "net.nir", x, dt=1e-3), own)
    with pytest.raises(UnsupportedError, match="node 'back': feedback_start='silence' with a bias inside a loop"):
        nd.write(tmp_path / "net.nir", looped, nd.convention("nir", dt=1e-3), for_library="spikingjelly")


def test_exported_files_tell_dt_and_check_says_so(tmp_path):
    def make(seed):
        parts = layer.Linear(5, 6), neuron.LIFNode(tau=3.0), layer.Linear(6, 3), neuron.IFNode(v_threshold=0.9171)
        return Drawn(network(*parts, seed=seed), raster(40, 2, 5), False)

    drawn = steady(make)
    export_to_nir(drawn.module, drawn.sample, tmp_path / "net.nir", dt=2e-3)
    graph = nd.read(tmp_path / "net.nir", exported_by="spikingjelly")
    (repair,) = [found for found in nd.check(graph, "loihi2").findings if found.code == "repaired"]
    assert repair.node == "_3"
    assert "leaves out dt; r says 0.002 s" in repair.problem
    functional.reset_net(drawn.module)
    found = np.asarray(nd.run(graph, drawn.raster.numpy()).outputs)
    np.testing.assert_array_equal(found, own_run(drawn).output)


# ---------------------------------------------------------------- the tutorial


@pytest.mark.timeout(300)
def test_the_tutorial_runs_and_says_what_it_shows(tmp_path):
    said = printed("spikingjelly_digits", tmp_path)
    assert differences("spikingjelly_digits", said) == []
    differing = [int(n) for n in re.findall(r"reference: (\d+) of 72000 output bits differ", said)]
    assert len(differing) == 2
    assert max(differing) <= 4, said  # trained weights lie on no grid: a rounding may decide on another processor
    accuracies = [float(n) for n in re.findall(r"(?:SpikingJelly|loihi2|speck2f): (0\.\d+)", said)]
    assert len(accuracies) == 4
    assert min(accuracies) > 0.88, said
    assert said.count("loihi2: '") == 3  # two refused resets and a warning
    assert "after a run: node '2': IFNode holds v =" in said
