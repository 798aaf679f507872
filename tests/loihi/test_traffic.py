"""Spikes between cores: counted neuron by neuron, and held against all assignments there are."""

import importlib.util

import numpy as np
import placed_programs as small
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nirdeploy_loihi.place import core_contents, place_program
from nirdeploy_loihi.program import AlwaysOn
from nirdeploy_loihi.tiles import evenly

from nirdeploy.errors import PlacementError, UnavailableError
from nirdeploy.placement import Placement

solver = pytest.mark.skipif(importlib.util.find_spec("ortools") is None, reason="OR-tools is not installed")
UNLIMITED = dict.fromkeys(("in_axons", "out_axons", "synapse_bits", "compartment_configs", "threshold_configs"))


def network(seed, density=0.4, loop=True):
    """Input -> a -> b -> c (-> a), a skip from a to c, with delays, some neurons' registers apart."""
    rng = np.random.default_rng(seed)

    def weight(rows, columns):
        return rng.integers(1, 9, (rows, columns)) * (rng.random((rows, columns)) < density)

    return small.program(
        small.population("a", 2, 3, threshold=64 * rng.integers(1, 4, 6)),
        small.population("b", 4, decay_v=rng.integers(0, 3, 4)),
        small.population("c", 5),
        small.dense("input", "a", weight(6, 4)),
        small.dense("a", "b", weight(4, 6), delay=2),
        small.dense("b", "c", weight(5, 4)),
        small.dense("a", "c", -weight(5, 6)),
        small.dense("on", "c", weight(5, 1)),
        *([small.dense("c", "a", weight(6, 5))] if loop else []),
        AlwaysOn("on", 1, 0),
    )


def spikes(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 16, size) / 16 for name, size in (("input", 4), ("a", 6), ("b", 4), ("c", 5))}


@given(st.integers(0, 500), st.booleans(), st.sampled_from([2, 3, 4, 8]))
@settings(max_examples=40, deadline=None)
def test_messages_and_what_cores_hold_are_those_of_the_definitions(seed, loop, neurons):
    program, activity = network(seed, loop=loop), spikes(seed)
    chip = small.limited(activity=activity, neurons=neurons)
    found = place_program(program, chip)
    home = small.homes(program, found)
    assert found.options["traffic"]["messages_per_step"] == small.sent(program, home, activity)
    contents = {core.number: core.resources for core in core_contents(program, found, chip.target.table)}
    assert contents == small.taken(program, home)
    assert max(core["neurons"] for core in contents.values()) <= neurons


@given(st.integers(0, 500), st.sampled_from([3, 4, 5, 9, 15]))
@settings(max_examples=25, deadline=None)
def test_sharing_never_sends_more_than_one_tile_a_core(seed, neurons):
    chip = small.limited(activity=spikes(seed), neurons=neurons)
    shared = place_program(network(seed), chip).options["traffic"]
    apart = place_program(network(seed), chip, one_population_per_core=True)
    assert shared["messages_per_step"] <= shared["one_tile_a_core"] == apart.options["traffic"]["messages_per_step"]
    assert len({core for cores in apart.cores.values() for core in cores}) == sum(map(len, apart.cores.values()))


@given(st.integers(0, 500), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_tiles_send_no_more_than_sequential_slices_of_as_many_cores(seed, parts):
    program = small.program(
        small.population("a", 10),
        small.population("b", 7),
        small.dense("input", "a", np.random.default_rng(seed).random((10, 4)) < 0.4),
        small.dense("a", "b", np.random.default_rng(seed + 1).random((7, 10)) < 0.4),
    )
    chosen = {"a": list(range(parts)), "b": list(range(parts, 2 * parts))}
    given_ = place_program(program, small.limited(), cores=chosen)
    assert given_.options["traffic"]["messages_per_step"] <= _sequential(program, chosen)
    free = place_program(program, small.limited(neurons=-(-10 // parts)))  # b may then need fewer cores than a
    assert free.options["traffic"]["messages_per_step"] <= _sequential(program, free.cores)


def _sequential(program, cores):
    """Messages of flat populations cut evenly over as many cores, one after the other."""
    ends = np.cumsum([0, *(len(cores[name]) for name in ("a", "b"))])
    own = {name: list(range(ends[k], ends[k + 1])) for k, name in enumerate(("a", "b"))}
    tiles = {name: tuple((piece,) for piece in evenly(program.sizes[name], len(own[name]))) for name in own}
    return small.sent(program, small.homes(program, Placement(own, tiles=tiles)))


@pytest.mark.parametrize("seed", range(30))
def test_blocks_of_a_convolution_send_no_more_than_sequential_slices(seed):
    rng = np.random.default_rng(seed)
    shape, taps, step = tuple(rng.integers([1, 4, 4], [3, 9, 9]).tolist()), int(rng.integers(1, 4)), rng.integers(1, 3)
    weight = rng.integers(0, 3, (int(rng.integers(1, 4)), shape[0], taps, taps))
    synapses = small.conv("input", "n", shape, weight, stride=(int(step),) * 2, padding=(taps // 2,) * 2)
    program = small.program(small.population("n", *synapses.window.target_shape), synapses, shape=shape)
    size = program.sizes["n"]
    parts = int(rng.integers(2, min(7, size) + 1))
    slices = {("n", i): core for core, piece in enumerate(evenly(size, parts)) for i in range(*piece)}
    found = place_program(program, small.limited(), cores={"n": range(parts)})
    assert found.options["traffic"]["messages_per_step"] <= small.sent(program, slices)


def test_a_spike_costs_one_message_a_core_and_none_to_its_own():
    # one neuron of a reaches four of b, on two cores; the input reaches a
    program = small.program(
        small.population("a", 1),
        small.population("b", 4),
        small.dense("input", "a", np.ones((1, 4))),
        small.dense("a", "b", np.ones((4, 1))),
    )
    chip = small.limited(activity={"input": np.full(4, 0.25), "a": [0.5]})
    for cores, between in (({"a": [0], "b": [1, 2]}, 1.0), ({"a": [2], "b": [1, 2]}, 0.5), ({"a": [0], "b": [0]}, 0.0)):
        found = place_program(program, chip, cores=cores).options["traffic"]
        assert (found["from_outside"], found["between_cores"]) == (1.0, between)
        assert found["messages_per_step"] == 1.0 + between


def test_populations_that_talk_share_a_core():
    # a feeds c, b feeds d: two cores of 4 neurons hold each pair
    eye = np.eye(2)
    program = small.program(
        *(small.population(name, 2) for name in "abcd"),
        small.dense("input", "a", [[1, 0, 0, 0], [0, 1, 0, 0]]),
        small.dense("input", "b", [[0, 0, 1, 0], [0, 0, 0, 1]]),
        small.dense("a", "c", eye),
        small.dense("b", "d", eye),
    )
    found = place_program(program, small.limited(neurons=4, count=2))
    assert found.cores == {"a": (0,), "b": (1,), "c": (0,), "d": (1,)}
    assert found.options["traffic"]["messages_per_step"] == 4.0


# ---------------------------------------------------------------- all assignments


@pytest.mark.parametrize("limits", [{"neurons": 8}, {"neurons": 9, "in_axons": 10}, {"neurons": 10, "out_axons": 12}])
@pytest.mark.parametrize("seed", range(4))
def test_no_assignment_that_fits_sends_fewer_messages(seed, limits):
    program, activity = network(seed), spikes(seed)
    chip = small.limited(activity=activity, **limits)
    found = place_program(program, chip)
    best = small.least(program, found, chip.target.table, activity)
    assert found.options["traffic"]["messages_per_step"] == best


@solver
@pytest.mark.parametrize("seed", range(4, 8))
@pytest.mark.parametrize(
    "limits",
    [
        {"neurons": 4},
        {"neurons": 9, "in_axons": 9, "out_axons": 11},
        {"synapse_bits": 1300},
        {"neurons": 9, "threshold_configs": 2, "compartment_configs": 2},
    ],
)
def test_the_solver_finds_the_fewest_messages_there_are(seed, limits):
    program, activity = network(seed, density=0.3), spikes(seed)
    chip = small.limited(activity=activity, **limits)
    found = place_program(program, chip, solver="cp-sat")
    traffic = found.options["traffic"]
    assert traffic["proved_least"]
    assert traffic["messages_per_step"] == small.least(program, found, chip.target.table, activity)
    assert traffic["messages_per_step"] == small.sent(program, small.homes(program, found), activity)
    greedy = place_program(program, chip).options["traffic"]
    assert traffic["messages_per_step"] <= greedy["messages_per_step"]


@solver
def test_the_solver_keeps_the_users_cores():
    found = place_program(network(1), small.limited(neurons=8), solver="cp-sat", cores={"c": [9], "a": [9, 4]})
    assert (found.cores["c"], found.cores["a"]) == ((9,), (9, 4))
    assert found.cores["b"][0] in (4, 9)


def packing():
    """Six populations without synapses, of 20 neurons in all: 4 + 3 + 3 twice, and first fit begins with 4 + 4."""
    return small.program(*(small.population(f"n{i}", size) for i, size in enumerate((4, 4, 3, 3, 3, 3))))


def test_a_packing_that_is_not_found_is_refused_with_the_solver_as_remedy():
    with pytest.raises(
        PlacementError, match=r"takes 6 cores .* 2 of 2 are free, .*, or look for a packing with solver="
    ):
        place_program(packing(), small.limited(neurons=10, count=2))


@solver
def test_the_solver_finds_a_packing_where_there_is_one():
    found = place_program(packing(), small.limited(neurons=10, count=2), solver="cp-sat")
    contents = core_contents(packing(), found, small.limited().target.table)
    assert [core.resources["neurons"] for core in contents] == [10, 10]
    with pytest.raises(PlacementError, match=r"takes 6 cores .* Make the largest population smaller\.$"):
        place_program(packing(), small.limited(neurons=9, count=2), solver="cp-sat")


@solver
def test_a_network_too_large_for_the_solver_is_refused(monkeypatch):
    monkeypatch.setattr("nirdeploy_loihi.cpsat._VARIABLES", 10)
    with pytest.raises(
        PlacementError, match=r"solver='cp-sat' would take \d+ variables, at most 10. Use solver='greedy'"
    ):
        place_program(network(1), small.limited(), solver="cp-sat")


def test_the_solver_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"needs OR-tools.*Run pip install 'nirdeploy\[cp-sat\]', or use"):
        place_program(network(1), small.limited(), solver="cp-sat")


# ---------------------------------------------------------------- activity


def test_a_network_is_placed_the_same_every_time():
    chip = small.limited(activity=spikes(2), neurons=5)
    assert place_program(network(2), chip).to_dict() == place_program(network(2), chip).to_dict()


def test_what_was_measured_is_told():
    found = place_program(network(2), small.limited(activity={"a": np.full(6, 0.5), "b": []}))
    assert found.options["traffic"]["measured"] == ("a",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], "'b': activity of 2 neurons, it has 4"),
        ([1.0, -1.0, 0.0, 0.0], "'b': activity that is negative or not finite. Calibrate again"),
        ([np.nan, 0.0, 0.0, 0.0], "'b': activity that is negative or not finite"),
    ],
)
def test_activity_that_cannot_be_is_refused(values, message):
    with pytest.raises(PlacementError, match=message):
        place_program(network(2), small.limited(activity={"b": values}))
