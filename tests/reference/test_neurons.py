import dataclasses

import nir
import numpy as np
import pytest
import torch
from nets import chain, if_node, lif_node, linear_node

import nirdeploy as nd
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.reference.presets import PRESETS


def run(node, inputs, **fields):
    convention = nd.Convention(**{"dt": 1e-3, "if_gain": "r", **fields})
    data = np.asarray(inputs, float)[:, None]
    trajectory = nd.run(chain((1,), n=node), data, convention=convention)
    return trajectory["n", "spikes"].data[:, 0].tolist(), trajectory["n", "v_mem"].data[:, 0].tolist()


HAS_V_RESET = "v_reset" in nir.IF.__dataclass_fields__
needs_v_reset = pytest.mark.skipif(not HAS_V_RESET, reason="nir 1.0.4 has no v_reset")


@needs_v_reset
def test_if_integrates_and_resets_to_v_reset():
    # v: 0.6, 1.2 -> spike, reset to 0.25; 0.85, 1.45 -> spike
    spikes, v = run(if_node((1,), v_reset=0.25), [0.6, 0.6, 0.6, 0.6])
    assert spikes == [0, 1, 0, 1]
    assert v == pytest.approx([0.6, 0.25, 0.85, 0.25], abs=1e-6)


@needs_v_reset
def test_reset_zero_ignores_v_reset():
    assert run(if_node((1,), v_reset=0.25), [2.0], reset="zero")[1] == [0.0]


def test_subtract_keeps_the_remainder():
    spikes, v = run(if_node((1,)), [1.75, 0.5], reset="subtract")
    assert spikes == [1, 1]
    assert v == [0.75, 0.25]


def test_many_spikes_a_step():
    spikes, v = run(if_node((1,), 0.5), [1.75], reset="subtract", spikes_per_step="many")
    assert (spikes, v) == ([3], [0.25])


@pytest.mark.parametrize(("crossing", "many"), [("strict", 1), ("inclusive", 2)])
def test_threshold_met_exactly(crossing, many):
    assert run(if_node((1,)), [1.0], crossing=crossing)[0] == [int(crossing == "inclusive")]
    assert run(if_node((1,)), [2.0], crossing=crossing, spikes_per_step="many", reset="subtract")[0] == [many]


def test_lower_bound_holds_after_the_reset():
    graph = chain((2,), w=linear_node([[-3.0, 0.5]]), n=if_node((1,)))
    for v_min, expected in (("-threshold", [-1.0, -0.5]), (-0.25, [-0.25, 0.25]), (None, [-3.0, -2.5])):
        convention = nd.Convention(if_gain="r", v_min=v_min)
        found = nd.run(graph, np.array([[1, 0], [0, 1]]), convention=convention)
        assert found["n", "v_mem"].data[:, 0].tolist() == expected


def test_if_gain_with_dt_follows_nir():
    assert run(if_node((1,), r=500.0), [1.0], if_gain="r_dt")[1] == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # tau 4 ms, dt 1 ms, r 2, leak 0.4, from rest v = 0: decay 0.75 or exp(-0.25)
        ({}, 0.25 * 0.4 + 2 * 0.25 * 0.8),
        ({"use_r": False}, 0.25 * 0.4 + 0.25 * 0.8),
        ({"gain": "unit"}, 0.25 * 0.4 + 0.8),
        ({"integrator": "exponential", "gain": "decay"}, (1 - np.exp(-0.25)) * (0.4 + 2 * 0.8)),
        ({"integrator": "exponential"}, (1 - np.exp(-0.25)) * 0.4 + 2 * 0.25 * 0.8),
    ],
)
def test_lif_first_step_by_hand(fields, expected):
    assert run(lif_node((1,), tau=4e-3, r=2.0, v_leak=0.4), [0.8], **fields)[1] == pytest.approx([expected], abs=1e-6)


def test_v_unit_gain_divides_by_the_input_gain():
    _, v = run(lif_node((1,), tau=4e-3, threshold=9.0), [1.0], v_unit="gain")
    assert v == pytest.approx([1.0])


def test_overrides_apply_by_type_and_win_by_name():
    convention = nd.Convention(if_gain="r", overrides={"IF": {"v_min": -0.5}, "b": {"v_min": -0.25}})
    graph = chain((1,), a=if_node((1,)), b=if_node((1,)))
    module = nd.nir_to_torch(graph, convention=convention)
    assert module.get(("a",)).convention.v_min == -0.5
    assert module.get(("b",)).convention.v_min == -0.25


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dt": 0.0}, "dt is 0.0"),
        ({"dt": float("nan")}, "dt is nan"),
        ({"reset": "soft"}, r"reset is 'soft', expected one of \['v_reset'"),
        ({"use_r": 1}, "use_r is 1"),
        ({"v_min": "-1"}, "v_min is '-1'"),
        ({"overrides": {"a": {"dt": 1}}}, r"overrides\['a'\] sets 'dt'"),
        ({"overrides": {"a": {"reset": "x"}}}, "reset is 'x'"),
    ],
)
def test_conventions_refuse_bad_values(fields, words):
    with pytest.raises(ConventionError, match=words):
        nd.Convention(**fields)


def test_unknown_presets_and_fields_suggest_the_nearest():
    with pytest.raises(ConventionError, match="Did you mean 'sinabs'"):
        nd.convention("sinab")
    with pytest.raises(ConventionError, match="Did you mean 'reset'"):
        nd.convention("nir", rset="zero")


def test_conventions_survive_json():
    convention = nd.convention("sinabs", dt=1e-4, feedback_edges=(("a", "b"),))
    assert nd.Convention.from_dict(convention.to_dict()) == convention


def test_every_preset_says_what_it_was_held_against():
    for name, preset in PRESETS.items():
        assert preset.verified_against, name
        assert nd.convention(name).preset == name


def test_reset_in_the_next_step_shows_v_above_the_threshold():
    # v: 1.5 (spike, kept), then 1.5 - 1 + 0.25 = 0.75, then 1.0
    spikes, v = run(if_node((1,)), [1.5, 0.25, 0.25], reset="subtract", reset_time="next_step")
    assert (spikes, v) == ([1, 0, 0], [1.5, 0.75, 1.0])


def test_subtraction_in_the_next_step_comes_after_the_decay():
    # tau 4 ms: decay 0.75, gain 0.25. v: 2, then 0.75 * 2 - 1 = 0.5, then 0.375
    fields = {"reset": "subtract", "reset_time": "next_step"}
    assert run(lif_node((1,), tau=4e-3), [8.0, 0.0, 0.0], **fields) == ([1, 0, 0], [2.0, 0.5, 0.375])


def test_reset_to_zero_in_the_next_step_comes_before_the_input():
    # v: 2, then 0 + 0.25 * 2 = 0.5
    fields = {"reset": "zero", "reset_time": "next_step"}
    assert run(lif_node((1,), tau=4e-3), [8.0, 2.0], **fields) == ([1, 0], [2.0, 0.5])


def test_a_subtraction_brought_forward_is_that_of_the_same_step_until_v_stays_above_the_threshold():
    fields = {"reset": "subtract", "reset_time": "brought_forward"}
    assert run(if_node((1,)), [1.5, 0.25, 0.5], **fields) == ([1, 0, 1], [0.5, 0.75, 0.25])
    # 2.5 - 1 = 1.5; then 1.5 + 0.25 is compared less 1: 0.75, no spike, and the 1 is given back; then 1.75 + 0.5 - 1
    assert run(if_node((1,)), [2.5, 0.25, 0.5], **fields) == ([1, 0, 1], [1.5, 1.75, 1.25])


def test_only_a_subtraction_can_be_brought_forward():
    with pytest.raises(ConventionError, match="about what a subtraction leaves; reset is 'zero'"):
        nd.Convention(reset="zero", reset_time="brought_forward")


def test_comparing_before_the_update_emits_a_step_late():
    fields = {"reset": "subtract", "fires": "before_update"}
    assert run(lif_node((1,), tau=4e-3), [8.0, 0.0, 0.0], **fields) == ([0, 1, 0], [2.0, 0.5, 0.375])


def test_comparing_before_the_update_and_resetting_after_it_is_refused():
    with pytest.raises(ConventionError, match="fires='before_update' resets in the step it fires in"):
        run(lif_node((1,)), [1.0], fires="before_update", reset_time="next_step")


def test_exact_if_resets_inside_the_step():
    # v rises by 2.5 a step from 0: crosses 1 after 0.4 of it, then goes on from 0 for 0.6: 1.5
    spikes, v = run(if_node((1,), r=1.0), [2.5], integrator="exact")
    assert (spikes, v) == ([1], [pytest.approx(1.5)])
    # with 'many' it crosses again 0.4 later and ends at 0.2 * 2.5
    spikes, v = run(if_node((1,), r=1.0), [2.5], integrator="exact", spikes_per_step="many")
    assert (spikes, v) == ([2], [pytest.approx(0.5)])


def test_exact_lif_by_hand():
    # tau 4 ms, drive 4: crosses 1 at t* = tau ln(4 / 3), then from 0 for the rest of the millisecond
    tau, rest = 4e-3, 1e-3 - 4e-3 * np.log(4 / 3)
    spikes, v = run(lif_node((1,), tau=tau, r=1.0), [8.0], integrator="exact")
    assert spikes == [1]
    rest = 1e-3 - tau * np.log(8 / 7)
    assert v == [pytest.approx(8 * (1 - np.exp(-rest / tau)), abs=1e-6)]


def test_exact_refuses_what_has_no_closed_form():
    values = {"tau_syn": 2e-3, "tau_mem": 4e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0}
    node = nir.CubaLIF(**{k: np.full((1,), v, np.float32) for k, v in values.items()})
    with pytest.raises(UnsupportedError, match="node 'n': CubaLIF with integrator 'exact'"):
        run(node, [1.0], integrator="exact")
    with pytest.raises(ConventionError, match="integrator 'exact' with gain='unit'"):
        run(lif_node((1,)), [1.0], integrator="exact", gain="unit")


def test_population_delay_shifts_every_population_by_one():
    graph = chain((1,), w=linear_node([[1.0]]), a=if_node((1,)), u=linear_node([[1.0]]), b=if_node((1,)))
    data = np.array([2, 0, 3, 0, 0, 0], float).reshape(-1, 1, 1)
    plain = nd.run(graph, data, convention=nd.Convention(if_gain="r"))
    late = nd.run(graph, data, convention=nd.Convention(if_gain="r", population_delay=1))
    for name, lag in (("a", 1), ("b", 2)):
        assert late[name, "spikes"].lag == lag
        for variable in ("spikes", "v_mem"):
            assert np.array_equal(late[name, variable].data[lag:], plain[name, variable].data[:-lag])
            assert not late[name, variable].data[:lag].any()
    assert plain["b", "spikes"].data[:, 0, 0].tolist() == [0, 0, 1, 0, 0, 0]
    assert late.outputs[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 0]


def test_population_delay_refuses_a_module_by_itself():
    with pytest.raises(ConventionError, match="IF alone cannot follow population_delay=1"):
        nd.nir_to_torch(if_node((1,)), convention=nd.Convention(if_gain="r", population_delay=1))


def test_run_is_the_loop_over_the_module():
    from nets import conv_net, raster

    convention = nd.Convention(if_gain="r", reset="zero", v_min=-1.0)
    data = raster((1, 6, 6))
    trajectory = nd.run(conv_net(), data, convention=convention)
    module = nd.nir_to_torch(conv_net(), convention=convention)
    state = None
    for step, frame in enumerate(torch.tensor(data, dtype=torch.float32)):
        out, state = module(frame, state)
        assert np.array_equal(trajectory.outputs[step], out.detach().numpy())
        assert np.array_equal(trajectory["if2", "v_mem"].data[step], state["if2"].detach().numpy())


def test_raster_without_a_batch_gives_records_without():
    from nets import conv_net, raster

    convention = nd.Convention(if_gain="r")
    data = raster((1, 6, 6))
    with_batch = nd.run(conv_net(), data[:, :1], convention=convention)
    without = nd.run(conv_net(), data[:, 0], convention=convention)
    assert without["if1", "spikes"].data.shape == (12, 3, 6, 6)
    assert np.array_equal(with_batch["if1", "spikes"].data[:, 0], without["if1", "spikes"].data)
    assert without.outputs.shape == (12, 4)


def test_module_built_with_another_convention_is_refused():
    module = nd.nir_to_torch(chain((1,), n=if_node((1,))), convention=nd.Convention(if_gain="r"))
    with pytest.raises(ConventionError, match="another convention"):
        nd.run(module, np.zeros((2, 1)), convention=nd.Convention(if_gain="r", reset="zero"))


def test_run_without_any_convention_is_refused():
    with pytest.raises(ConventionError, match="'n' needs one"):
        nd.run(chain((1,), n=if_node((1,))), np.zeros((2, 1)))


def test_initial_state_is_taken():
    graph = chain((1,), n=if_node((1,)))
    convention = nd.Convention(if_gain="r")
    found = nd.run(graph, np.zeros((1, 1, 1)), convention=convention, state={"n": torch.full((1, 1), 0.75)})
    assert found["n", "v_mem"].data.item() == 0.75


def test_recording_is_chosen_by_variable_and_node():
    from nets import conv_net, raster

    found = nd.run(
        conv_net(), raster((1, 6, 6)), convention=nd.Convention(if_gain="r"), record=("spikes",), nodes=["if2"]
    )
    assert list(found) == [("if2", "spikes"), ("output", "output")]
    with pytest.raises(ValueError, match="no node 'if9' to record. Did you mean"):
        nd.run(conv_net(), raster((1, 6, 6)), convention=nd.Convention(if_gain="r"), nodes=["if9"])
    with pytest.raises(ValueError, match="cannot record 'spike'. Did you mean 'spikes'"):
        nd.run(conv_net(), raster((1, 6, 6)), convention=nd.Convention(if_gain="r"), record="spike")


def test_plain_module_runs_without_a_shape():
    from nirdeploy.reference.neurons import IF

    convention = nd.Convention(if_gain="r")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False), IF(convention=convention))
    found = nd.run(net, np.ones((3, 2, 1, 5, 5)))
    assert found["1", "spikes"].data.shape == (3, 2, 2, 3, 3)
    assert dataclasses.replace(found.convention) == convention
