import dataclasses

import nir
import numpy as np
import pytest

from nirdeploy.graph import make_node, with_metadata
from nirdeploy.pipeline import check, quantize
from nirdeploy.reference.presets import convention

needs_v_reset = pytest.mark.skipif("v_reset" not in nir.IF.__dataclass_fields__, reason="nir 1.0.4 has no v_reset")


def small(nets, neuron=None, weight=((1.0, -1.0),)):
    neuron = nets.if_(1) if neuron is None else neuron
    return nets.chain(input=nets.source(2), w=nets.linear(weight), n=neuron, output=nets.output(1))


def lif(size=1, kind=nir.LIF, **changes):
    values = {"tau": 0.02, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **changes}
    return make_node(kind, **{key: np.full(size, value) for key, value in values.items()})


def cuba(size=1, kind=nir.CubaLIF, **changes):
    values = {"tau_syn": 0.004, "tau_mem": 0.02, "r": 1.0, "v_leak": 0.0, "w_in": 1.0}
    values |= {"v_threshold": 1.0, "v_reset": 0.0} if kind is nir.CubaLIF else {}
    return make_node(kind, **{key: np.full(size, value) for key, value in (values | changes).items()})


def found(graph, used, target="loihi1"):
    return {f.code: f for f in check(graph, target, convention=used).findings}


def test_a_plain_graph_has_no_findings(nets):
    assert found(small(nets), nets.plain) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reset", "subtract", "cannot subtract"),
        ("v_min", -1.0, "no lower bound"),
        ("spikes_per_step", "many", "once a step"),
        ("integrator", "exact", "fixed decay"),
        ("fires", "before_update", "compares after"),
        ("reset_time", "next_step", "step of the spike"),
    ],
)
def test_a_convention_the_chip_does_not_have_is_an_error(nets, field, value, message):
    report = found(small(nets), dataclasses.replace(nets.plain, **{field: value}))
    assert message in report[field].problem
    assert report[field].value == value
    assert (report[field].node, report[field].severity) == ("n", "error")


def test_an_override_of_one_node_counts(nets):
    used = dataclasses.replace(nets.plain, overrides={"n": {"reset": "subtract"}})
    assert "reset" in found(small(nets), used)
    assert found(small(nets), dataclasses.replace(nets.plain, overrides={"LIF": {"reset": "subtract"}})) == {}


@pytest.mark.parametrize("delay", [0, 1])
def test_both_timings_of_populations_are_fine(nets, delay):
    assert found(small(nets), dataclasses.replace(nets.plain, population_delay=delay)) == {}


@needs_v_reset
def test_a_reset_potential_is_shifted_and_only_a_start_elsewhere_is_told(nets):
    graph = small(nets, lif(v_reset=-0.5, v_leak=-0.5))
    used = dataclasses.replace(nets.plain, reset="v_reset")
    assert found(graph, dataclasses.replace(used, v_start="v_reset")) == {}
    assert found(small(nets, lif(v_reset=-0.5)), used) == {}  # starts at its leak of 0, above the reset
    finding = found(graph, used)["v_start"]
    assert (finding.severity, finding.value) == ("warning", 1)
    assert "v starts at 0, where it does not stay: it drifts from step 0" in finding.problem


@pytest.mark.parametrize("kind", ["lif", "if_"])
def test_a_missing_dt_is_an_error(nets, kind):
    used = dataclasses.replace(nets.plain, dt=None, if_gain="r_dt")
    report = found(small(nets, getattr(nets, kind)(1)), used)
    assert "needs dt" in report["dt"].problem


def test_the_neurons_of_the_chip_are_counted(nets):
    graph = nets.chain(
        input=nets.source(1, 1, 1),
        w=nets.conv(np.ones((2, 1, 1, 1)), padding=(150, 150)),
        n=nets.if_(2, 301, 301),
        output=nets.output(2, 301, 301),
    )
    finding = found(graph, nets.plain)["neurons"]
    assert (finding.value, finding.limit) == (2 * 301 * 301, 128 * 1024)


@pytest.mark.parametrize(
    ("field", "start", "step", "values", "count", "limit"),
    [
        ("tau", 0.02, 0.001, 40, 40, 32),
        ("v_threshold", 1.0, 0.1, 20, 20, 16),  # gain 0.05, k = 5080
        ("v_threshold", 1.0, 0.1, 16, 0, 0),
        ("v_threshold", 1.0, 1e-6, 20, 0, 0),  # all round to one mantissa
    ],
)
def test_registers_that_a_core_has_few_sets_of_are_counted(nets, field, start, step, values, count, limit):
    neuron = lif(size=50)
    setattr(neuron, field, np.resize(start + step * np.arange(values), 50))
    graph = nets.chain(input=nets.source(2), w=nets.linear(np.ones((50, 2))), n=neuron, output=nets.output(50))
    report = found(graph, nets.plain)
    if count:
        finding = report["configurations"]
        assert (finding.value, finding.limit, finding.severity) == (count, limit, "warning")
        assert f"a core holds {limit}: it will be split" in finding.problem
    else:
        assert report == {}
    assert "configurations" not in found(graph, nets.plain, "loihi2")


def test_more_sets_of_registers_than_all_cores_hold_are_an_error(nets):
    neuron = lif(size=2049)
    neuron.v_threshold = 1.0 + 0.005 * np.arange(2049)  # at k = 254 each a mantissa of its own
    graph = nets.chain(input=nets.source(2), w=nets.linear(np.ones((2049, 2))), n=neuron, output=nets.output(2049))
    finding = found(graph, nets.plain)["configurations"]
    assert (finding.severity, finding.value, finding.limit) == ("error", 2049, 16 * 128)


@pytest.mark.parametrize(
    ("neuron", "code", "message"),
    [
        ({"threshold": 0.0}, "threshold", "v_threshold is 0.0"),
        ({"tau": -1.0}, "tau", "tau is -1.0 s"),
        ({"tau": 5e-4}, "decay", "would lose 8192 of 4096"),
        ({"r": 0.0}, "gain", "input gain is 0"),
        ({"r": np.nan}, "finite", "r holds 1 of 1 values that are not finite"),
    ],
)
def test_numbers_no_register_holds_are_errors(nets, neuron, code, message):
    report = found(small(nets, nets.lif(1, **neuron)), nets.plain)
    assert message in report[code].problem
    assert report[code].severity == "error"


def test_a_leak_that_rounds_to_nothing_is_a_warning(nets):
    finding = found(small(nets, nets.lif(1, tau=100.0)), nets.plain)["decay"]
    assert finding.severity == "warning"
    assert "rounds to 0 of 4096" in finding.problem


def test_weights_that_are_zero_or_not_finite_are_errors(nets):
    assert (
        "all weights from 'input' are 0" in found(small(nets, weight=[[0.0, 0.0]]), nets.plain)["zero_weights"].problem
    )
    report = found(small(nets, weight=[[np.nan, 1.0]]), nets.plain)
    assert (report["finite"].node, report["finite"].value) == ("w", 1)


def test_an_unsupported_type_is_named_with_what_to_use(nets):
    node = make_node(nir.Threshold, threshold=np.ones(2))
    graph = nets.chain(input=nets.source(2), s=node, w=nets.linear([[1.0, 1.0]]), n=nets.if_(1), output=nets.output(1))
    finding = found(graph, nets.plain)["type"]
    assert (finding.node, finding.value) == ("s", "Threshold")
    assert "Use an IF population" in finding.remedy


def test_a_loop_of_one_population_is_fine_and_a_faster_one_is_named(nets):
    nodes = {"input": nets.source(1), "w": nets.linear([[1.0]]), "n": nets.if_(1), "back": nets.linear([[1.0]])}
    edges = [("input", "w"), ("w", "n"), ("n", "back"), ("back", "n"), ("n", "output")]
    assert found(nets.graph({**nodes, "output": nets.output(1)}, edges), nets.plain) == {}
    nodes |= {"m": nets.if_(1), "up": nets.linear([[1.0]]), "output": nets.output(1)}
    edges = [("input", "w"), ("w", "n"), ("n", "up"), ("up", "m"), ("m", "back"), ("back", "n"), ("m", "output")]
    finding = found(nets.graph(nodes, edges), nets.plain)["loop"]
    assert "takes 1 of the graph's steps, on the chip at least 2" in finding.problem
    assert "population_delay=1" in finding.remedy


@pytest.mark.parametrize(
    ("delay", "message"),
    [
        (0.0005, "a delay of 0.0005 s is 0.5 steps of dt=0.001"),
        (0.063, "delayed by 63 steps, at most 62 are possible"),
        (0.062, ""),
    ],
)
def test_delays_the_chip_cannot_keep_are_errors(nets, delay, message):
    late = make_node(nir.Delay, delay=np.full(2, delay))
    graph = nets.chain(input=nets.source(2), d=late, w=nets.linear([[1.0, -1.0]]), n=nets.if_(1), output=nets.output(1))
    report = found(graph, nets.plain)
    assert set(report) == ({"delay"} if message else set())
    if message:
        assert message in report["delay"].problem
        assert report["delay"].severity == "error"


def test_a_delay_without_dt_is_an_error(nets):
    late = make_node(nir.Delay, delay=np.full(2, 0.002))
    graph = nets.chain(input=nets.source(2), d=late, w=nets.linear([[1.0, -1.0]]), n=nets.if_(1), output=nets.output(1))
    finding = found(graph, dataclasses.replace(nets.plain, dt=None))["delay"]
    assert (finding.node, finding.problem) == ("d", "Delay needs dt")


def test_analogue_values_between_populations_are_all_named(nets):
    ones = np.ones(1)
    nodes = {
        "input": nets.source(1),
        "a": make_node(nir.LI, tau=0.02 * ones, r=ones, v_leak=0 * ones),
        "b": make_node(nir.I, r=ones),
        "n": nets.if_(1),
        "m": nets.if_(1),
        "output": nets.output(1),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "n"), ("b", "m"), ("n", "output"), ("m", "o2")]
    report = check(nets.graph({**nodes, "o2": nets.output(1)}, edges), "loihi1", convention=nets.plain)
    problems = {f.node: f.problem for f in report.errors if f.code == "analogue"}
    assert problems["a"] == "LI gives analogue values to 'n', synapses carry spikes alone"
    assert problems["b"] == "I gives analogue values to 'm', synapses carry spikes alone"


def test_an_integrator_shown_by_an_output_is_fine(nets):
    graph = small(nets, cuba(kind=nir.CubaLI))
    used = dataclasses.replace(nets.plain, reset="subtract", v_min=-1.0, spikes_per_step="many")
    assert found(graph, used) == {}
    assert "fixed decay" in found(graph, dataclasses.replace(nets.plain, integrator="exact"))["integrator"].problem


def test_two_inputs_are_refused(nets):
    graph = nets.graph(
        {"i": nets.source(1), "j": nets.source(1), "n": nets.if_(1), "output": nets.output(1)},
        [("i", "n"), ("j", "n"), ("n", "output")],
    )
    assert found(graph, nets.plain)["input"].value == 2


def test_an_output_needs_a_population_before_it(nets):
    graph = nets.chain(
        input=nets.source(1, 2, 2),
        n=nets.if_(1, 2, 2),
        p=nets.pool((2, 2)),
        output=nets.output(1, 1, 1),
    )
    finding = found(graph, nets.plain)["output"]
    assert "SumPool2d 'p' before the Output" in finding.problem
    straight = nets.graph(
        {"input": nets.source(1), "n": nets.if_(1), "output": nets.output(1), "o2": nets.output(1)},
        [("input", "n"), ("n", "output"), ("input", "o2")],
    )
    assert "shows the Input itself" in found(straight, nets.plain)["output"].problem


def test_a_matrix_too_large_to_compose_is_an_error(nets):
    graph = nets.chain(input=nets.source(1, 70, 70), n=nets.if_(1, 70, 70), output=nets.output(1, 70, 70))
    finding = found(graph, nets.plain)["matrix"]
    assert finding.value == 4900**2
    assert finding.value > finding.limit


def test_a_bias_behind_a_delay_is_a_warning(nets):
    graph = nets.chain(input=nets.source(2), w=nets.affine([[1.0, -1.0]], [0.2]), n=nets.if_(1), output=nets.output(1))
    finding = found(graph, nets.plain)["bias_start"]
    assert finding.severity == "warning"
    assert "acts from step 0" in finding.problem
    assert "bias_start" in found(small(nets, nets.lif(1, leak=0.1)), nets.plain)


def test_a_bias_behind_a_synaptic_filter_starts_in_time(nets):
    graph = nets.chain(input=nets.source(2), w=nets.affine([[1.0, -1.0]], [0.2]), n=cuba(), output=nets.output(1))
    assert found(graph, nets.plain) == {}
    leaking = nets.chain(input=nets.source(2), w=nets.linear([[1, -1]]), n=cuba(v_leak=0.1), output=nets.output(1))
    assert "bias_start" in found(leaking, nets.plain)


def test_paths_of_unequal_length_are_fine(nets):
    graph = nets.graph(
        {"input": nets.source(1), "n": nets.if_(1), "m": nets.if_(1), "output": nets.output(1)},
        [("input", "n"), ("n", "m"), ("input", "m"), ("m", "output")],
    )
    assert found(graph, nets.plain) == {}


def test_registers_that_one_scale_cannot_fill_are_named(nets):
    # 131071 / 1 = 131071.5 integers a unit: 1e-6 is 0.13 of one
    report = found(small(nets, weight=[[1e-6, -1e-6]]), nets.plain)
    assert "all weights from 'input' become 0, the largest is 0.131 at the scale that holds v_threshold in 131071" in (
        report["weights"].problem
    )
    assert (
        "becomes mantissa 0, at least 1"
        in found(small(nets, nets.if_(1, threshold=1e-3)), nets.plain)["threshold"].problem
    )
    graph = nets.chain(input=nets.source(2), w=nets.affine([[1.0, -1.0]], [9e3]), n=nets.if_(1), output=nets.output(1))
    assert "all weights from 'input' become 0" in found(graph, nets.plain)["weights"].problem
    assert "the bias in 4095 << 7" in found(graph, nets.plain)["weights"].problem


def test_weights_of_few_integers_are_a_warning(nets):
    finding = found(small(nets, nets.if_(1, threshold=4e4)), nets.plain)["weights"]
    assert (finding.severity, finding.limit) == ("warning", 8)
    assert "the largest weight from 'input' is the integer 3 at the scale that holds v_threshold" in finding.problem


def test_more_sources_than_a_core_takes_are_an_error(nets):
    graph = nets.chain(input=nets.source(5000), w=nets.linear(np.ones((2, 5000))), n=nets.if_(2), output=nets.output(2))
    finding = found(graph, nets.plain)["in_axons"]
    assert (finding.node, finding.value, finding.limit, finding.severity) == ("n", 5000, 4096, "error")
    assert found(graph, nets.plain, "loihi2") == {}
    graph.nodes["w"].weight[:, 4096:] = 0
    assert found(graph, nets.plain) == {}


def test_synapses_of_one_neuron_beyond_a_cores_memory_are_an_error(nets):
    graph = nets.chain(
        input=nets.source(17000), w=nets.linear(np.ones((1, 17000))), n=nets.if_(1), output=nets.output(1)
    )
    finding = found(graph, nets.plain, "loihi2")["synapse_bits"]
    assert (finding.value, finding.limit) == (17000 * 64, 1048576)


def test_sources_behind_a_pool_are_counted(nets):
    graph = nets.chain(
        input=nets.source(1, 80, 80),
        p=nets.pool((80, 80)),
        c=nets.conv([[[[1.0]]]]),
        n=nets.if_(1, 1, 1),
        output=nets.output(1, 1, 1),
    )
    assert found(graph, nets.plain)["in_axons"].value == 6400


def test_gains_that_differ_within_a_channel_make_a_matrix(nets):
    neuron = nets.if_(1, 2, 2)
    graph = nets.chain(
        input=nets.source(1, 3, 3), c=nets.conv(np.ones((1, 1, 2, 2))), n=neuron, output=nets.output(1, 2, 2)
    )
    assert found(graph, nets.plain) == {}
    neuron.r = np.array([[[1.0, 2.0], [1.0, 1.0]]])
    finding = found(graph, nets.plain)["kernel_gain"]
    assert (finding.node, finding.value, finding.severity) == ("n", 36, "warning")


@pytest.mark.parametrize(
    ("changes", "severity", "message"),
    [
        ({"tau_syn": 5e-4}, "error", "dt/tau_syn is 2, so u would lose 8192 of 4096"),
        ({"tau_mem": 5e-4}, "error", "dt/tau_mem is 2, so v would lose 8192 of 4096"),
        ({"tau_syn": 10.0}, "warning", "u loses 0.0001 a step, which rounds to 0"),
    ],
)
def test_decays_of_both_registers_are_checked(nets, changes, severity, message):
    finding = found(small(nets, cuba(**changes)), nets.plain)["decay"]
    assert finding.severity == severity
    assert message in finding.problem


def test_shapes_that_disagree_are_a_finding_not_an_exception(nets):
    graph = nets.chain(input=nets.source(3), w=nets.linear([[1.0, 1.0]]), n=nets.if_(1), output=nets.output(1))
    assert "expects (2,), got (3,)" in found(graph, nets.plain)["shape"].problem


def test_all_findings_come_at_once_with_the_torch_path(nets):
    graph = with_metadata(small(nets, nets.if_(1, threshold=-1.0)), torch_paths={"n": "layers.1"})
    report = check(graph, "loihi2", convention=convention("sinabs", dt=1e-3))
    codes = {f.code for f in report.errors}
    assert {"reset", "spikes_per_step", "v_min", "threshold"} <= codes
    assert {f.torch_path for f in report.errors} == {"layers.1"}


def test_v_start_matters_only_where_it_is_not_zero(nets):
    from nirdeploy.graph import starts_at_zero

    for start in ("v_leak", "v_reset"):
        used = dataclasses.replace(nets.plain, v_start=start)
        for target in ("loihi1", "speck2f"):
            assert "v_start" not in found(small(nets), used, target)
            assert "convention" not in found(small(nets), used, target)
    leaking = make_node(
        nir.LIF,
        **{k: np.full(1, v, np.float32) for k, v in {"tau": 1e-2, "r": 1, "v_leak": 0.5, "v_threshold": 1}.items()},
    )
    used = dataclasses.replace(nets.plain, dt=1e-3, v_start="v_leak")
    assert found(small(nets, leaking), used) == {}  # it starts where it stays
    assert starts_at_zero(leaking, "zero")
    assert not starts_at_zero(leaking, "v_leak")


def test_a_constant_current_beyond_the_sum_of_a_step_is_told(nets):
    graph = nets.chain(input=nets.source(2), w=nets.affine([[1.0, -1.0]], [3e5]), n=cuba(), output=nets.output(1))
    finding = found(graph, nets.plain)["weights"]
    assert (
        "all weights from 'input' become 0, the largest is 0.437 at the scale that holds the constant"
        in finding.problem
    )


def test_numbers_whose_products_no_float_holds_are_an_error(nets):
    finding = found(small(nets, nets.if_(1, r=1e200), weight=[[1e200, -1.0]]), nets.plain)["finite"]
    assert (finding.node, finding.severity) == ("n", "error")
    assert finding.problem == "its parameters times its weights are beyond what 64-bit floats hold"


def test_an_inclusive_threshold_of_one_integer_is_too_low(nets):
    # ceil(254 * 0.003) - 1 = 0, while round(254 * 0.003) = 1
    graph = small(nets, nets.if_(1, threshold=0.003))
    assert "threshold" not in found(graph, nets.plain)
    assert (
        "becomes mantissa 0" in found(graph, dataclasses.replace(nets.plain, crossing="inclusive"))["threshold"].problem
    )


@needs_v_reset
@pytest.mark.parametrize("target", ["loihi1", "loihi2"])
def test_a_graph_that_passes_is_quantised(nets, target):
    rng = np.random.default_rng(0)
    for kind in (cuba, lif):
        graph = nets.chain(
            input=nets.source(6),
            w=nets.affine(rng.normal(size=(5, 6)), rng.normal(size=5)),
            n=kind(5, v_leak=0.1, v_reset=-0.2),
            output=nets.output(5),
        )
        used = dataclasses.replace(nets.plain, reset="v_reset")
        assert check(graph, target, convention=used).ok
        assert quantize(graph, target, convention=used, quantizer="max")["n"].offset == -0.2
