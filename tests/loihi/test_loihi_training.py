"""Quantisation-aware training for Loihi: the integers that are trained are those that the chip gets."""

from dataclasses import replace

import nets as shared_nets
import nir
import numpy as np
import pytest
import torch
from nirdeploy_loihi import simulated
from training_steps import nearest, parameters_of, refused, train

import nirdeploy as nd
from nirdeploy.errors import QuantizationError


def drawn(*shape, times=1.0):
    return np.random.default_rng([5, *shape]).normal(0.1, 0.4, shape) * times


def dense(nets):
    """IF without biases: every step is exact on the chip."""
    return nets.chain(
        input=nets.source(6), w1=nets.linear(drawn(8, 6)), n=nets.if_(8),
        w2=nets.linear(drawn(4, 8)), m=nets.if_(4, threshold=0.7), output=nets.output(4),
    )  # fmt: skip


def images(nets):
    """Convolutions with biases, the second behind an average pool, and NIR's input gain r dt."""
    return nets.chain(
        input=nets.source(2, 6, 6),
        c1=nets.conv(drawn(3, 2, 3, 3), drawn(3, times=0.2), (6, 6), padding=(1, 1)), n=nets.if_(3, 6, 6),
        pool=nets.pool((2, 2), average=True),
        c2=nets.conv(drawn(4, 3, 3, 3, times=2), drawn(4, times=0.2), (3, 3)), m=nets.if_(4, 1, 1),
        flatten=nets.flatten(4, 1, 1), output=nets.output(4),
    )  # fmt: skip


def leaky(nets):
    """LIF with a leak, then LIF whose neurons differ in time constant, resistance and reset value."""
    tau, threshold = np.linspace(0.005, 0.03, 4), np.linspace(0.6, 1.4, 4)
    differing = nd.graph.make_node(
        nir.LIF, tau=tau, r=2 * np.ones(4), v_leak=-0.2 * np.ones(4), v_threshold=threshold, v_reset=np.zeros(4)
    )
    return nets.chain(
        input=nets.source(6), w1=nets.linear(drawn(8, 6, times=20)), n=nets.lif(8, leak=0.3),
        w2=nets.affine(drawn(4, 8, times=8), drawn(4)), m=differing, output=nets.output(4),
    )  # fmt: skip


def recurrent(nets):
    """CubaLIF with biases, which always-on axons carry, and a matrix onto itself."""
    nodes = {
        "input": nets.source(6),
        "w": nets.affine(drawn(8, 6), drawn(8, times=0.2)),
        "n": nets.cuba(8),
        "back": nets.linear(drawn(8, 8, times=0.4)),
        "w2": nets.affine(drawn(4, 8), drawn(4, times=0.2)),
        "m": nets.cuba(4, tau_syn=0.01, w_in=10.0),
        "output": nets.output(4),
    }
    edges = [("input", "w"), ("w", "n"), ("n", "back"), ("back", "n"), ("n", "w2"), ("w2", "m"), ("m", "output")]
    return nets.graph(nodes, edges)


def merged(nets):
    """Two weight nodes with biases into one population, a scale behind one of them."""
    nodes = {
        "input": nets.source(6),
        "a": nets.affine(drawn(8, 6), drawn(8, times=0.1)),
        "n": nets.if_(8),
        "b": nets.affine(drawn(4, 8), drawn(4, times=0.1)),
        "c": nets.affine(drawn(4, 6), drawn(4, times=0.1)),
        "scale": nd.graph.make_node(nir.Scale, scale=np.array([0.5, 1.0, 1.7, 3.0])),
        "m": nets.if_(4, r=3.0),
        "output": nets.output(4),
    }
    edges = [("input", "a"), ("a", "n"), ("n", "b"), ("b", "m"), ("input", "c"), ("c", "scale"), ("scale", "m")]
    return nets.graph(nodes, [*edges, ("m", "output")])


def shifted(nets):
    """Populations that are reset below 0, where v starts, and one that is reset to where it starts."""
    resetting = nd.graph.make_node(
        nir.LIF,
        tau=0.01 * np.ones(4), r=8 * np.ones(4), v_leak=0.1 * np.ones(4), v_threshold=np.ones(4),
        v_reset=np.array([-0.4, -0.2, 0.0, 0.2]),
    )  # fmt: skip
    return nets.chain(
        input=nets.source(6), w1=nets.linear(drawn(8, 6)), n=nets.if_(8, v_reset=-0.5),
        w2=nets.affine(drawn(4, 8), drawn(4, times=0.1)), m=resetting, output=nets.output(4),
    )  # fmt: skip


def read_out(nets):
    """LI in front of the Output."""
    li = nd.graph.make_node(nir.LI, tau=0.01 * np.ones(3), r=10 * np.ones(3), v_leak=np.zeros(3))
    return nets.chain(
        input=nets.source(6), w1=nets.linear(drawn(8, 6)), n=nets.if_(8),
        w2=nets.linear(drawn(3, 8)), li=li, output=nets.output(3),
    )  # fmt: skip


NETS = {
    "dense": (dense, (6,), {}),
    "images": (images, (2, 6, 6), {"if_gain": "r_dt", "overrides": {"n": {"if_gain": "r"}, "m": {"gain": "unit"}}}),
    "leaky": (leaky, (6,), {"integrator": "exponential"}),
    "recurrent": (recurrent, (6,), {}),
    "merged": (merged, (6,), {"crossing": "inclusive"}),
    "read_out": (read_out, (6,), {}),
    "shifted": (shifted, (6,), {"reset": "v_reset"}),
}


def made(nets, name):
    build, shape, changes = NETS[name]
    return build(nets), shared_nets.raster(shape, 20, 4, 1), replace(nets.plain, **changes)


def chip_run(graph, data, bits):
    return nd.deploy(graph, "loihi2", quantizer="exact", weight_bits=bits).run(data, record=("spikes",))


def shown(trajectory):
    """What an Output shows, in the graph's own time: the chip's is `lag` steps later."""
    record = trajectory["output", "output"]
    return record.data[record.lag :], len(record.data) - record.lag


# ---------------------------------------------------------------- integers out are integers simulated


@pytest.mark.parametrize("bits", [None, 4, 3])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", list(NETS))
def test_what_is_trained_is_what_the_chip_gets(nets, name, calibrated, bits):
    graph, data, convention = made(nets, name)
    aware = nd.quantization_aware(
        graph, "loihi2", bits=bits, convention=convention, calibration=data if calibrated else None
    )
    before = parameters_of(aware)
    train(aware, data, steps=3)
    after = parameters_of(aware)
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    trained, simulated_integers = aware.graph(), aware.integers()
    quantized = nd.quantize(trained, "loihi2", quantizer="exact", weight_bits=bits)
    for (node, field), value in after.items():
        own = aware.grid.trained[node][field]
        assert np.array_equal(simulated_integers[node][field], nearest(value, own)), (node, field)
    for population, neuron in aware.grid.neurons.items():
        found = quantized[population]
        times = neuron.scale / found.scale
        assert times == round(times) > 0 or 1 / times == round(1 / times)
        assert np.array_equal(found.decay_u, neuron.decay_u)
        assert np.array_equal(found.decay_v, neuron.decay_v)
        if neuron.fires:
            assert np.array_equal(found.threshold, np.asarray(neuron.threshold) * times)
        for node in feeding(trained, population):
            wanted = simulated_integers[node]["weight"] * times
            assert np.array_equal(quantized[node].weight.reshape(wanted.shape), wanted), node


def feeding(graph, population):
    paths = next(p.paths for p in nd.graph.populations(graph, integrators=True) if p.name == population)
    return [name for path in paths for name in path.nodes if hasattr(graph.nodes[name], "weight")]


@pytest.mark.parametrize("name", list(NETS))
def test_registers_are_what_quantisation_after_training_would_take(nets, name):
    """Decays to the integer; threshold, leak and biases to rounding and to the unit's few bits."""
    graph, _, convention = made(nets, name)
    aware = nd.quantization_aware(graph, "loihi2", convention=convention)
    after = nd.quantize(graph, "loihi2", convention=convention, quantizer="max")
    trained = nd.quantize(aware.graph(), "loihi2", quantizer="exact")
    for population in aware.grid.neurons:
        a, b = after[population], trained[population]
        assert np.array_equal(a.decay_u, b.decay_u)
        assert np.array_equal(a.decay_v, b.decay_v)
        if a.fires:
            # an inclusive threshold is met by the next one below, a rounded one by half a mantissa
            assert np.abs(a.threshold * a.scale - b.threshold * b.scale).max() <= 64 * (a.scale + b.scale)
        bias = [0 if q.bias is None else (q.bias << q.bias_exponent) * q.scale for q in (a, b)]
        half = sum(2.0**q.bias_exponent * q.scale * 2 for q in (a, b)) * 16
        assert np.abs(np.asarray(bias[0] - bias[1])).max() <= half


def below_zero(nets):
    """IF that are reset below 0, where v starts."""
    return nets.chain(
        input=nets.source(6), w1=nets.linear(drawn(8, 6)), n=nets.if_(8, v_reset=-0.5),
        w2=nets.linear(drawn(4, 8)), m=nets.if_(4, threshold=0.7, v_reset=-0.1), output=nets.output(4),
    )  # fmt: skip


@pytest.mark.parametrize("bits", [None, 4, 2])
@pytest.mark.parametrize("build", [dense, below_zero])
@pytest.mark.parametrize("seed", range(2))
def test_networks_without_decays_fire_the_chips_spikes(nets, seed, build, bits):
    graph, convention = build(nets), replace(nets.plain, reset="v_reset")
    data = shared_nets.raster((6,), 60, 8, seed, rate=0.5)
    aware = nd.quantization_aware(graph, "loihi2", bits=bits, convention=convention)
    train(aware, data, steps=3, seed=seed)
    chip = chip_run(aware.graph(), data, bits)
    own = aware.sequence(torch.tensor(data, dtype=torch.float32))[0].detach().numpy()
    found, steps = shown(chip)
    assert chip["output", "output"].lag == 2
    assert found.sum() > 100
    assert np.array_equal(found, own[:steps])
    assert chip.counters["n"]["wraps"] == chip.counters["n"]["saturations"] == 0


def test_biases_without_decays_are_exact_but_for_their_first_steps(nets):
    """The chip adds them from its first step on, a lag before the graph does: with that in v, spikes are equal."""
    graph = nets.chain(
        input=nets.source(6), w1=nets.affine(np.abs(drawn(8, 6)) + 0.1, np.full(8, 0.05)), n=nets.if_(8, threshold=2.0),
        output=nets.output(8),
    )  # fmt: skip
    data = shared_nets.raster((6,), 60, 4, 2)
    aware = nd.quantization_aware(graph, "loihi2", bits=5, convention=nets.plain)
    trained = aware.graph()
    chip = chip_run(trained, data, 5)
    lag = chip["n", "spikes"].lag
    early = torch.tensor(trained.nodes["w1"].bias, dtype=torch.float32).expand(4, 8) * lag
    own = aware.sequence(torch.tensor(data, dtype=torch.float32), state={"n": early})[0].detach().numpy()
    found, steps = shown(chip)
    assert lag == 1
    assert found.sum() > 50
    assert np.array_equal(found, own[:steps])


def test_lava_fires_the_trained_spikes(nets, monkeypatch):
    """The vendor's own integers, in its own interpreter."""
    monkeypatch.setenv("NIRDEPLOY_PYTHON_LOIHI", str(shared_nets.vendor_python(".venv-lava")))
    graph, _, convention = made(nets, "dense")
    data = shared_nets.raster((6,), 40, 2, 7, rate=0.5)
    aware = nd.quantization_aware(graph, "loihi2", bits=4, convention=convention)
    train(aware, data, steps=3)
    deployment = nd.deploy(aware.graph(), "loihi2", quantizer="exact", weight_bits=4)
    found, steps = shown(deployment.run(data, on="simulator", record=("spikes",)))
    own = aware.sequence(torch.tensor(data, dtype=torch.float32))[0].detach().numpy()
    assert found.sum() > 20
    assert np.array_equal(found, own[:steps])


@pytest.mark.parametrize("name", ["dense", "leaky", "recurrent"])
def test_the_rung_of_integer_parameters_loses_nothing_more(nets, name):
    """After training, what differs on the chip is its rounding of u and v alone."""
    graph, data, convention = made(nets, name)
    aware = nd.quantization_aware(graph, "loihi2", bits=4, convention=convention)
    train(aware, data, steps=2)
    deployment = nd.deploy(aware.graph(), "loihi2", quantizer="exact", weight_bits=4)
    rungs = {rung.name: rung for rung in nd.ladder(deployment, data).rungs}
    assert rungs["chip convention"].differing == 0
    assert rungs["quantised parameters"].differing == 0
    before = nd.deploy(graph, "loihi2", convention=convention, quantizer="max", weight_bits=4)
    lost = {rung.name: rung.differing for rung in nd.ladder(before, data).rungs}
    assert lost["quantised parameters"] > 0


def test_loihi1_has_it_too(nets):
    graph, data, convention = made(nets, "leaky")
    aware = nd.quantization_aware(graph, "loihi1", bits=6, convention=convention)
    train(aware, data, steps=1)
    assert nd.deploy(aware.graph(), "loihi1", quantizer="exact", weight_bits=6).target.name == "loihi1"


# ---------------------------------------------------------------- what a forward pass does


def test_gradients_are_those_of_the_given_units(nets):
    """A float behind the integers moves v by input gain and scale, as it did in the network that was given."""
    graph, data, convention = made(nets, "merged")
    aware = nd.quantization_aware(graph, "loihi2", convention=convention)
    plain = nd.nir_to_torch(aware.graph())
    x = torch.tensor(data, dtype=torch.float32)
    for module in (aware, plain):
        (module.sequence(x)[0].sum(0) ** 2).mean().backward()
    gains = {"a": np.ones((8, 1)), "b": np.full((4, 1), 3.0), "c": 3 * np.array([[0.5], [1.0], [1.7], [3.0]])}
    for node, gain in gains.items():
        for field, times in (("weight", gain), ("bias", gain[:, 0])):
            found = getattr(aware.network.get((node,)), field).grad.numpy()
            wanted = getattr(plain.get((node,)), field).grad.numpy() * times
            own = aware.grid.trained[node][field]
            inside = np.abs(aware.integers()[node][field]) < own.highest
            assert np.abs(wanted).sum() > 0
            assert found[inside] == pytest.approx(wanted[inside], rel=1e-6)  # one rounding of 24 bits


def test_steps_are_the_unit_over_the_gain_in_front(nets):
    graph, _, convention = made(nets, "leaky")
    grid = nd.quantization_aware(graph, "loihi2", convention=convention).grid
    gain = 2 * (1e-3 / np.linspace(0.005, 0.03, 4))  # r dt / tau
    unit = grid.neurons["m"].scale * 64
    assert grid.trained["w2"]["weight"].unit == unit
    assert grid.trained["w2"]["weight"].step[:, 0] == pytest.approx(unit / gain, rel=1e-12)
    mantissa = np.frexp(unit)[0] * 2**7
    assert mantissa == int(mantissa)
    assert grid.trained["w2"]["weight"].every == 2


def test_what_is_given_is_left_as_it_is_and_a_file_keeps_the_integers(nets, tmp_path):
    graph, data, convention = made(nets, "recurrent")
    before = nd.graph.copy_graph(graph)
    aware = nd.quantization_aware(graph, "loihi2", bits=4, convention=convention)
    train(aware, data, steps=2)
    for name, node in before.nodes.items():
        for field, value in nd.graph.parameters(node).items():
            assert np.array_equal(value, getattr(graph.nodes[name], field)), (name, field)
    nd.write(tmp_path / "trained.nir", aware.graph())
    again = nd.quantize(nd.read(tmp_path / "trained.nir"), "loihi2", quantizer="exact", weight_bits=4)
    straight = nd.quantize(aware.graph(), "loihi2", quantizer="exact", weight_bits=4)
    for node in ("w", "back", "w2"):
        assert np.array_equal(again[node].weight, straight[node].weight)
    nd.deploy(aware.graph(), "loihi2", quantizer="exact", weight_bits=4).save(tmp_path / "build")
    loaded = nd.load_deployment(tmp_path / "build").quantized
    assert loaded.quantizer == "exact"
    assert np.array_equal(loaded["back"].weight, straight["back"].weight)


def test_thresholds_and_time_constants_take_no_gradient(nets):
    graph, _, convention = made(nets, "recurrent")
    aware = nd.quantization_aware(graph, "loihi2", convention=convention)
    trainable = {n.removeprefix("_call.network.") for n, p in aware.named_parameters() if p.requires_grad}
    assert trainable == {"w.weight", "w.bias", "back.weight", "w2.weight", "w2.bias"}


def test_weights_that_grow_to_their_ends_do_not_wrap_u(nets):
    """Two thousand inputs of 4 bits: with all of them at their ends the integers are halved until sums fit 2**17."""
    weight = drawn(3, 2000)
    graph = nets.chain(input=nets.source(2000), w=nets.linear(weight), n=nets.if_(3, threshold=30.0), o=nets.output(3))
    aware = nd.quantization_aware(graph, "loihi2", bits=4, convention=nets.plain)
    with torch.no_grad():
        aware.network.get(("w",)).weight.fill_(-1e3)
        aware.network.get(("w",)).weight[:, 0] = 1.0
    trained = nd.quantize(aware.graph(), "loihi2", quantizer="exact", weight_bits=4)
    own = aware.integers()["w"]["weight"]
    assert own[:, 1:].max() == own.min() == -256
    assert np.array_equal(trained["w"].weight * 4, own)
    assert trained["n"].mantissa * 4 == aware.grid.neurons["n"].mantissa


def test_sums_beyond_u_are_refused_where_8_bits_leave_no_room(nets):
    graph = nets.chain(
        input=nets.source(2000), w=nets.linear(drawn(3, 2000)), n=nets.if_(3, threshold=30.0), o=nets.output(3)
    )
    aware = nd.quantization_aware(graph, "loihi2", convention=nets.plain)
    with torch.no_grad():
        aware.network.get(("w",)).weight.fill_(-1e3)
        aware.network.get(("w",)).weight[:, 0] = 1e3
    refused(aware.graph, QuantizationError, "worst synaptic sum of a step", "n")


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("start", ["mixed", "positive", "negative"])
def test_a_matrix_may_lose_one_of_its_signs(nets, start, bits):
    """The chip's coding depends on the signs; with positive ones gone, -256 is no weight any more."""
    weight = {"mixed": drawn(3, 6), "positive": np.abs(drawn(3, 6)), "negative": -np.abs(drawn(3, 6))}[start]
    graph = nets.chain(input=nets.source(6), w=nets.linear(weight), n=nets.if_(3), o=nets.output(3))
    aware = nd.quantization_aware(graph, "loihi2", bits=bits, convention=nets.plain)
    own = aware.network.get(("w",)).weight
    for wanted in (-1e3, 1e3):
        with torch.no_grad():
            own.fill_(wanted)
            own[0, 0] = 0.0
        integers = aware.integers()["w"]["weight"]
        if not integers.any():
            continue  # of a sign that it does not have
        quantized = nd.quantize(aware.graph(), "loihi2", quantizer="exact", weight_bits=bits)
        assert quantized["w"].weight.min() >= -255
        times = quantized["n"].mantissa / aware.grid.neurons["n"].mantissa
        assert np.array_equal(quantized["w"].weight, integers * times)


def test_integers_other_than_the_simulated_are_refused(nets, monkeypatch):
    from nirdeploy_loihi import quantize as stage

    right = stage.exact_layers
    graph, _, convention = made(nets, "recurrent")
    aware = nd.quantization_aware(graph, "loihi2", bits=4, convention=convention)

    def but(name, **changes):
        def wrong(problem):
            found = right(problem)
            if name not in found:
                return found
            made = {field: change(getattr(found[name], field)) for field, change in changes.items()}
            return {**found, name: replace(found[name], **made)}

        monkeypatch.setattr(stage, "exact_layers", wrong)
        words = "the integers for loihi2 are not those that were simulated"
        return lambda: refused(aware.graph, QuantizationError, words)

    def off_by(number):
        def change(values):
            changed = np.array(values)
            changed.flat[-1] += number
            return changed

        return change

    but("w", weight=off_by(2))()
    but("back", weight=off_by(2))()
    but("n.always_on", weight=off_by(1))()
    but("n", threshold=lambda value: value + 64)()
    but("n", decay_u=lambda value: value + 1)()
    but("m", decay_v=lambda value: value - 1)()
    but("m", bias=lambda value: np.full(4, 3))()
    monkeypatch.setattr(stage, "exact_layers", right)
    assert aware.graph() is not None


def test_all_integers_of_a_population_may_be_multiplied(nets):
    graph, _, convention = made(nets, "dense")
    aware = nd.quantization_aware(graph, "loihi2", bits=4, convention=convention)
    quantized = nd.quantize(aware.graph(), "loihi2", quantizer="exact", weight_bits=4)
    own = aware.integers()
    assert simulated.differing(quantized, aware.grid, own) is None
    neuron = quantized["n"]
    other = replace(neuron, threshold=neuron.threshold * 2, mantissa=neuron.mantissa * 2)
    doubled = {"n": other, "w1": replace(quantized["w1"], weight=quantized["w1"].weight * 2)}
    assert simulated.differing(replace(quantized, layers={**quantized.layers, **doubled}), aware.grid, own) is None
    half = {**quantized.layers, "w1": doubled["w1"]}
    assert simulated.differing(replace(quantized, layers=half), aware.grid, own) == "n"


# ---------------------------------------------------------------- refusals of training


def test_what_cannot_be_exact_is_refused(nets):
    def aware(graph, **options):
        options = {"convention": nets.plain, **options}
        return lambda: nd.quantization_aware(graph, "loihi2", **options)

    def around(**middle):
        return nets.chain(input=nets.source(1, 6, 6), **middle)

    conv = nets.conv(drawn(2, 1, 3, 3), size=(6, 6), padding=(1, 1))
    odd = around(c=conv, n=nets.if_(2, 6, 6), pool=nets.pool((3, 3), average=True),
                 d=nets.conv(drawn(2, 2, 1, 1), size=(2, 2)), m=nets.if_(2, 2, 2),
                 output=nets.output(2, 2, 2))  # fmt: skip
    refused(aware(odd), QuantizationError, r"pooling factor is 0\.111111, no power of 2", "pool")
    pooled = around(c=conv, n=nets.if_(2, 6, 6), pool=nets.pool((2, 2)), m=nets.if_(2, 3, 3),
                    output=nets.output(2, 3, 3))  # fmt: skip
    refused(aware(pooled), QuantizationError, "the path from 'n' has no weights", "m")
    two = nets.chain(input=nets.source(4), a=nets.linear(drawn(5, 4)), b=nets.linear(drawn(3, 5)), n=nets.if_(3),
                     output=nets.output(3))  # fmt: skip
    refused(aware(two), QuantizationError, r"those of a chain \(a, b\), not of a node", "n")
    li = nd.graph.make_node(nir.LI, tau=0.01 * np.ones(3), r=np.ones(3), v_leak=0.5 * np.ones(3))
    start = nets.chain(input=nets.source(4), a=nets.linear(drawn(3, 4)), li=li, output=nets.output(3))
    refused(aware(start, convention=replace(nets.plain, v_start="v_leak")), QuantizationError,
            r"its v starts at 0\.5, that of what only integrates must start at 0", "li")  # fmt: skip
    slow = nets.chain(input=nets.source(4), a=nets.linear(drawn(3, 4)), n=nets.lif(3, tau=10.0, r=1e4, leak=500.0),
                      output=nets.output(3))  # fmt: skip
    refused(aware(slow), QuantizationError, "loses less than 1 of 4096 a step, yet v_leak adds", "n")
    negative = nets.chain(input=nets.source(4), a=nets.linear(drawn(3, 4)), n=nets.if_(3, r=-2.0),
                          output=nets.output(3))  # fmt: skip
    refused(aware(negative), QuantizationError, "multiplied with -2 on their way to 'n'", "a")
    gained = read_out(nets)
    refused(aware(gained, convention=replace(nets.plain, v_unit="gain", overrides={"LI": {"use_r": False}})),
            QuantizationError, "divided by its input gain", "li")  # fmt: skip


def test_weights_of_two_populations_are_refused(nets):
    nodes = {"input": nets.source(4), "w": nets.linear(drawn(3, 4)), "n": nets.if_(3),
             "m": nets.if_(3, threshold=2.0), "o": nets.output(3), "p": nets.output(3)}  # fmt: skip
    edges = [("input", "w"), ("w", "n"), ("w", "m"), ("n", "o"), ("m", "p")]
    graph = nets.graph(nodes, edges)
    refused(lambda: nd.quantization_aware(graph, "loihi2", convention=nets.plain), QuantizationError,
            "read along several paths", "w")  # fmt: skip
