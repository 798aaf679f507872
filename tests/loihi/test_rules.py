import dataclasses

import nir
import numpy as np
import pytest

from nirdeploy.graph import make_node, with_metadata
from nirdeploy.pipeline import check
from nirdeploy.reference.presets import convention


def small(nets, neuron=None, weight=((1.0, -1.0),)):
    neuron = nets.if_(1) if neuron is None else neuron
    return nets.chain(input=nets.source(2), w=nets.linear(weight), n=neuron, output=nets.output(1))


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
        ("population_delay", 1, "not supported yet; the chip's own delay"),
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


def test_a_reset_potential_asks_for_shifted_variables(nets):
    graph = small(nets, nets.if_(1, v_reset=-0.5))
    report = found(graph, dataclasses.replace(nets.plain, reset="v_reset"))
    assert report["v_reset"].value == -0.5
    assert "Shift the variables" in report["v_reset"].remedy
    assert found(graph, nets.plain) == {}


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
    ("field", "kind"), [("tau", "lif"), ("r", "lif"), ("v_threshold", "lif"), ("r", "if_"), ("v_threshold", "if_")]
)
def test_unequal_neurons_in_a_population_are_counted(nets, field, kind):
    neuron = getattr(nets, kind)(3)
    setattr(neuron, field, np.array([1.0, 2.0, 2.0]))
    graph = nets.chain(input=nets.source(2), w=nets.linear(np.ones((3, 2))), n=neuron, output=nets.output(3))
    finding = found(graph, nets.plain)["heterogeneous"]
    assert f"{field} has 2 different values" in finding.problem
    assert (finding.value, finding.limit) == (2, 1)


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


def test_an_unsupported_type_is_named(nets):
    node = make_node(nir.Scale, scale=np.ones(2))
    graph = nets.chain(input=nets.source(2), s=node, w=nets.linear([[1.0, 1.0]]), n=nets.if_(1), output=nets.output(1))
    finding = found(graph, nets.plain)["type"]
    assert (finding.node, finding.value) == ("s", "Scale")
    assert "CubaLIF" not in finding.remedy


def test_a_cycle_is_named(nets):
    graph = nets.graph(
        {
            "input": nets.source(1),
            "w": nets.linear([[1.0]]),
            "n": nets.if_(1),
            "back": nets.linear([[1.0]]),
            "output": nets.output(1),
        },
        [("input", "w"), ("w", "n"), ("n", "back"), ("back", "n"), ("n", "output")],
    )
    finding = found(graph, nets.plain)["cycle"]
    assert (finding.node, finding.value) == ("n", "back")


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


def test_paths_of_unequal_length_are_a_warning(nets):
    graph = nets.graph(
        {"input": nets.source(1), "n": nets.if_(1), "m": nets.if_(1), "output": nets.output(1)},
        [("input", "n"), ("n", "m"), ("input", "m"), ("m", "output")],
    )
    finding = found(graph, nets.plain)["unequal_delays"]
    assert (finding.node, finding.limit, finding.value, finding.severity) == ("m", 1, 2, "warning")


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
    assert "v starts at 0" in found(small(nets, leaking), used)["v_start"].problem
    assert starts_at_zero(leaking, "zero")
    assert not starts_at_zero(leaking, "v_leak")
