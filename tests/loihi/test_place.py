import dataclasses
import json

import numpy as np
import placed_programs as small
import pytest
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.config import program_configuration
from nirdeploy_loihi.place import core_contents, place_program
from nirdeploy_loihi.program import AlwaysOn
from nirdeploy_loihi.resources import axon_bits

from nirdeploy.errors import PlacementError, QuantizationError
from nirdeploy.pipeline import deploy, place, quantize
from nirdeploy.placement import Placement

SYNAPSES = BACKEND.targets()["loihi1"].table["synapses"]


def two(nets, hidden=30, inputs=20, out=4):
    rng = np.random.default_rng(2)
    return nets.chain(
        input=nets.source(inputs),
        a=nets.linear(rng.normal(size=(hidden, inputs))),
        n=nets.if_(hidden),
        b=nets.linear(rng.normal(size=(out, hidden))),
        m=nets.if_(out),
        output=nets.output(out),
    )


def integers(nets, graph, target="loihi1"):
    return quantize(graph, target, convention=nets.plain, quantizer="max")


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        (0, 0),
        (1, 64),  # 8 + 10 = 18, one word
        (6, 64),  # 48 + 10 = 58
        (7, 128),  # 56 + 10 = 66, two words
        (64, 576),  # 512 + 10 = 522, nine words
        (65, 640),  # and another entry of one word
    ],
)
def test_memory_of_a_dense_axon_by_hand(weights, bits):
    assert axon_bits(weights, 8, SYNAPSES) == bits


def test_memory_of_a_core_by_hand(nets):
    rows = {(u.node, u.resource): u.used for u in place(integers(nets, two(nets))).usage}
    # 30 weights an axon: 250 bits in 4 words; 20 axons
    assert rows["n", "synapse_bits"] == 20 * 256
    assert rows["n", "in_axons"] == 20
    assert rows["n", "out_axons"] == 30
    assert rows["n", "neurons"] == 30
    # 4 weights an axon: one word
    assert rows["m", "synapse_bits"] == 30 * 64
    assert rows["m", "out_axons"] == 0


def test_a_sparse_axon_pays_for_its_target_indices(nets):
    weight = np.zeros((100, 2))
    weight[:5, 0] = 1.0
    weight[:, 1] = 1.0
    graph = nets.chain(input=nets.source(2), a=nets.linear(weight), n=nets.if_(100), output=nets.output(100))
    rows = {u.resource: u.used for u in place(integers(nets, graph)).usage}
    # 5 weights with 7 index bits: 85 bits, two words; 100 without: 576 + (36 * 8 + 10 = 298, five words)
    assert rows["synapse_bits"] == 128 + 576 + 320


def test_a_population_is_split_by_its_neurons(nets):
    graph = nets.chain(
        input=nets.source(1, 40, 60),
        c=nets.conv(np.ones((1, 1, 3, 3)), padding=(1, 1)),
        n=nets.if_(1, 40, 60),
        output=nets.output(1, 40, 60),
    )
    found = place(integers(nets, graph))
    assert found.cores["n"] == (0, 1, 2)
    # three strips of 20 columns reach 21, 22 and 21 columns of 40; of rows they would reach 15, 15 and 14 of 60
    assert found.tiles["n"] == tuple(((0, 1), (0, 40), (x, x + 20)) for x in (0, 20, 40))
    assert not found.slices
    rows = {(u.core, u.resource): u for u in found.usage}
    assert [rows[core, "in_axons"].used for core in (0, 1, 2)] == [21 * 40, 22 * 40, 21 * 40]
    assert rows[0, "neurons"].limit == 1024
    assert place(integers(nets, graph, "loihi2")).cores["n"] == (0,)


def test_a_population_is_split_by_its_memory_and_output_axons(nets):
    # 1024 weights an axon take 16 entries of 576 bits: 2000 axons are 18.4 Mbit
    found = place(integers(nets, two(nets, hidden=1000, inputs=1200, out=4)))
    # each axon of the 1000 neurons takes 15 entries of 576 bits and one of 384: 10.8 Mbit, on 11 cores and more
    assert len(found.cores["n"]) == 11
    for row in found.usage:
        assert row.used <= row.limit


def test_output_axons_count_every_core_reached(nets):
    graph = two(nets, hidden=30, out=8)
    found = place(integers(nets, graph), cores={"m": [7, 3]})
    rows = {(u.node, u.resource): u.used for u in found.usage}
    assert rows["n", "out_axons"] == 60


def test_the_users_cores_are_kept(nets):
    found = deploy(two(nets), "loihi1", convention=nets.plain, quantizer="max", cores={"n": [3, 0]}).placement
    # m goes where half of what it hears is
    assert found.cores == {"n": (3, 0), "m": (3,)}
    assert found.tiles["n"] == (((0, 15),), ((15, 30),))
    apart = place(integers(nets, two(nets)), cores={"n": [3, 0]}, one_population_per_core=True)
    assert apart.cores == {"n": (3, 0), "m": (1,)}
    again = place(integers(nets, two(nets)), cores=dict(apart.cores))
    assert (again.cores, again.tiles) == (apart.cores, apart.tiles)


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        ({"n": [1, 1]}, "'n': core 1 is already taken by 'n'"),
        ({"n": [128]}, "'n': core 128 does not exist, the chip has 0 to 127"),
        ({"x": [0]}, "cores names 'x', which is no population"),
        ({"n": 4}, r"'n': cores\['n'\] is 4, expected a list of core numbers"),
        ({"n": "12"}, r"'n': cores\['n'\] is '12', expected a list of core numbers"),
        ({"n": [2.5]}, r"'n': cores\['n'\] has 2.5, expected core numbers from 0 to 127"),
        ({"n": [True]}, r"'n': cores\['n'\] has True, expected core numbers"),
        ({"n": ["1"]}, r"'n': cores\['n'\] has '1', expected core numbers"),
        ({"n": [-1]}, "'n': core -1 does not exist"),
        ({5: [1]}, "cores names 5, which is no population"),
        (0, "cores is 0, expected {population"),
        ({"n": []}, "'n': 0 cores for 30 neurons"),
        ([1, 2], r"cores is \[1, 2\], expected {population"),
    ],
)
def test_cores_that_cannot_be_used_are_refused(nets, cores, message):
    with pytest.raises(PlacementError, match=message):
        place(integers(nets, two(nets)), cores=cores)


def test_unknown_options_are_refused(nets):
    with pytest.raises(PlacementError, match=r"unknown placement option 'avoid' \(\[1\]\). Possible: cores="):
        place(integers(nets, two(nets)), avoid=[1])


def test_populations_share_a_core_where_the_user_says_so(nets):
    found = place(integers(nets, two(nets)), cores={"n": [5], "m": [5]})
    assert found.cores == {"n": (5,), "m": (5,)}
    with pytest.raises(PlacementError, match="'m': core 5 is already taken by 'n'"):
        place(integers(nets, two(nets)), cores={"n": [5], "m": [5]}, one_population_per_core=True)
    with pytest.raises(
        PlacementError, match=r"'n': neurons 1030 exceeds 1024 of core 5, which cores gives to 'n' and "
    ):
        place(integers(nets, two(nets, hidden=1000, out=30)), cores={"n": [5], "m": [5]})


def test_the_users_cores_are_checked(nets):
    q = integers(nets, two(nets, hidden=1000, inputs=1200, out=4))
    with pytest.raises(PlacementError, match=r"'n': synapse_bits \d+ exceeds 1048576 of core 5. Prune"):
        place(q, cores={"n": [5]})


def dense_program(outputs, inputs, **fields):
    return small.program(
        small.population("n", outputs, **fields), small.dense("input", "n", np.ones((outputs, inputs))), shape=(inputs,)
    )


@pytest.mark.parametrize(
    ("program", "limits", "message"),
    [
        (
            dense_program(2, 5000),
            {},
            r"'n': in_axons 5000 exceeds 4096 of a core, even split over 2 cores: neuron \(0\) alone takes 5000. ",
        ),
        (
            dense_program(3, 20),
            {"synapse_bits": 1279},
            r"'n': synapse_bits 1280 exceeds 1279 of a core, even split over 3 cores: neuron .0. alone takes 1280",
        ),
        (
            dense_program(9, 2),
            {"neurons": 2, "count": 4},
            "'n': neurons 3 exceeds 2 of a core, even split over 4 cores",
        ),
        (
            dense_program(9, 2, threshold=64 * np.arange(1, 10)),
            {"threshold_configs": 2, "count": 4},
            "'n': threshold_configs 3 exceeds 2 of a core, even split over 4 cores. Give its neurons fewer different",
        ),
        (
            dense_program(9, 2, decay_v=np.arange(9)),
            {"compartment_configs": 2, "count": 4},
            "'n': compartment_configs 3 exceeds 2 of a core, even split over 4 cores. Give its neurons fewer different",
        ),
        (
            dense_program(9, 2),
            {"synapse_configs": 0},
            r"'n': synapse_configs 1 exceeds 0 of .* alone takes 1. Give its",
        ),
    ],
)
def test_what_fits_no_core_is_refused_with_value_and_limit(program, limits, message):
    with pytest.raises(PlacementError, match=message):
        place_program(program, small.limited(**limits))


def test_output_axons_beyond_a_core_are_refused():
    program = small.program(
        small.population("n", 2), small.population("m", 3), small.dense("input", "n", np.ones((2, 4))),
        small.dense("n", "m", np.ones((3, 2))),
    )  # fmt: skip
    message = r"'n': out_axons 3 exceeds 2 of a core, even split over 2 cores: neuron \(0\) alone takes 3. Make the"
    with pytest.raises(PlacementError, match=message):
        place_program(program, small.limited(out_axons=2), cores={"m": [0, 1, 2]})
    with pytest.raises(PlacementError, match="'n': out_axons 4 exceeds 3 of core 7. Give it more cores"):
        place_program(program, small.limited(out_axons=3), cores={"n": [7], "m": [0, 1]})


def test_axon_limits_that_are_not_published_are_not_checked():
    assert place_program(dense_program(2, 5000), small.limited("loihi2")).cores["n"] == (0,)


def test_a_loop_is_cut_until_its_own_output_axons_fit():
    # 12 neurons, all to all: k tiles take 12 / k * k = 12 output axons a tile, k tiles of a and of b twice as many
    program = small.program(
        small.population("a", 12),
        small.population("b", 12),
        small.dense("input", "a", np.ones((12, 4))),
        small.dense("a", "b", np.ones((12, 12))),
        small.dense("b", "a", np.eye(12)),
    )
    found = place_program(program, small.limited(out_axons=12, neurons=4))
    assert {name: len(cores) for name, cores in found.cores.items()} == {"a": 3, "b": 3}
    assert {u.used for u in found.usage if u.resource == "out_axons" and u.node == "a"} <= {8, 12}


def test_too_few_cores_are_refused_with_the_cores_of_each_population(nets):
    graph = two(nets, hidden=1100)
    with pytest.raises(PlacementError, match=r"'n': neurons 1100 exceeds 1024 of core 5"):
        place(integers(nets, graph), cores={"m": [0, 1, 2, 3]} | {"n": [5]})
    three = small.program(
        small.population("n", 9),
        small.population("m", 3),
        small.population("k", 3),
        small.dense("input", "n", np.ones((9, 4))),
        small.dense("n", "m", np.ones((3, 9))),
        small.dense("m", "k", np.ones((3, 3))),
    )
    message = r"takes 5 cores \(n: 3, as neurons 5 exceeds 4 on fewer; m: 1; k: 1\), 4 of 4 are free, and too few of"
    with pytest.raises(PlacementError, match=message):
        place_program(three, small.limited(neurons=4, count=4))
    assert len(place_program(three, small.limited(neurons=6, count=3)).cores["n"]) == 2


def test_small_populations_share_cores_when_there_are_more_of_them_than_cores():
    names = [f"n{i}" for i in range(12)]
    program = small.program(
        *(small.population(name, 2) for name in names),
        *(small.dense("input", name, np.eye(2, 24, 2 * i)) for i, name in enumerate(names)),
        shape=(24,),
    )
    found = place_program(program, small.limited(neurons=6, count=4))
    assert sorted(core for cores in found.cores.values() for core in cores) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


# ---------------------------------------------------------------- memory and configurations


def test_delays_take_their_bits_only_where_there_are_any():
    def memory(delay):
        program = small.program(
            small.population("n", 6), small.dense("input", "n", np.ones((6, 4)), delay=delay), shape=(4,)
        )
        return next(u.used for u in place_program(program, small.limited()).usage if u.resource == "synapse_bits")

    assert memory(0) == 4 * 64  # 6 * 8 + 10 = 58 bits
    assert memory(3) == 4 * 128  # 6 * 14 + 10 = 94


def test_configurations_on_a_core_are_different_registers():
    program = small.program(
        small.population("n", 6, decay_v=[1, 1, 2, 2, 2, 1], threshold=[64, 128, 64, 64, 192, 64]),
        small.population("m", 2, decay_v=2),
        small.dense("input", "n", np.ones((6, 4)), delay=1),
        small.dense("n", "m", [[1, 1, 1, 1, 1, 1], [-1, 1, 1, 1, 1, 1]]),
    )
    (core,) = core_contents(program, place_program(program, small.limited()), small.limited().target.table)
    found = core.resources
    assert (found["compartment_configs"], found["threshold_configs"], found["synapse_configs"]) == (2, 3, 2)
    apart = place_program(program, small.limited(threshold_configs=2))
    assert apart.tiles["n"] == (((0, 3),), ((3, 6),))


# ---------------------------------------------------------------- options


def test_refractory_steps_are_kept_for_the_program():
    found = place_program(dense_program(2, 4), small.limited(), refractory={"n": np.int64(5)})
    assert found.options["refractory"] == {"n": 5}
    assert "refractory" not in place_program(dense_program(2, 4), small.limited(), refractory=None).options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refractory": 3}, r"refractory is 3, expected \{population: steps\}"),
        ({"refractory": {"m": 3}}, "refractory names 'm', which is no population"),
        ({"refractory": {"n": 0}}, "'n': refractory is 0, expected 1 to 63 whole steps"),
        ({"refractory": {"n": 64}}, "'n': refractory is 64, expected 1 to 63 whole steps"),
        ({"refractory": {"n": 2.0}}, "'n': refractory is 2.0, expected 1 to 63"),
        ({"refractory": {"n": True}}, "'n': refractory is True, expected 1 to 63"),
        ({"solver": "best"}, "solver is 'best', expected 'greedy' or 'cp-sat'"),
        ({"solver": 1}, "solver is 1, expected 'greedy' or 'cp-sat'"),
        ({"one_population_per_core": 1}, "one_population_per_core is 1, expected True or False"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(PlacementError, match=message):
        place_program(dense_program(2, 4), small.limited(), **options)


# ---------------------------------------------------------------- chip.json


def test_the_chip_configuration_is_plain_json(nets):
    deployment = deploy(two(nets), "loihi1", convention=nets.plain, quantizer="max", cores={"n": [3, 0], "m": [3]})
    found = BACKEND.chip_configuration(deployment.quantized, deployment.placement)
    assert json.loads(json.dumps(found)) == found
    first = found["populations"][0]
    assert (first["name"], first["du"], first["dv"]) == ("n", 4095, 0)
    assert first["vth"] == deployment.quantized["n"].mantissa
    assert found["connections"][0]["weight"] == deployment.quantized["a"].weight.tolist()
    assert [row["core"] for row in found["cores"]] == [0, 3]
    core = found["cores"][1]
    assert [(tile["population"], tile["block"]) for tile in core["tiles"]] == [("n", [[0, 15]]), ("m", [[0, 4]])]
    assert core["tiles"][1]["sources"] == {"n": 30}
    # 20 inputs and 30 of n; 15 neurons of n reach core 3 alone
    assert (core["neurons"], core["in_axons"], core["out_axons"]) == (19, 50, 15)
    assert found["traffic"]["messages_per_step"] == 2 * 20 + 15


def test_every_register_and_connection_of_a_program_is_in_the_chip_configuration():
    program = small.program(
        small.population("a", 2, 4, 4, threshold=64 * np.arange(1, 33), refractory=3),
        small.population("b", 3, decay_v=[1, 2, 3]),
        small.conv("input", "a", (1, 4, 4), np.arange(18).reshape(2, 1, 3, 3), padding=(1, 1)),
        small.dense("a", "b", -np.ones((3, 32))),
        dataclasses.replace(small.dense("b", "b", np.eye(3)), delay=np.array([[0], [1], [2]])),
        small.dense("on", "b", np.ones((3, 1))),
        AlwaysOn("on", 1, 2),
        shape=(1, 4, 4),
    )
    chip = small.limited(threshold_configs=None)
    found = program_configuration(program, place_program(program, chip), chip.target.table)
    assert json.loads(json.dumps(found)) == found
    a, b = found["populations"]
    assert (a["vth"], a["refractory"], b["dv"], b["refractory"]) == (list(range(1, 33)), 3, [1, 2, 3], 1)
    first, second, third, fourth = found["connections"]
    assert first["weight"] == np.arange(18).reshape(2, 1, 3, 3).tolist()
    assert first["window"] == {
        "source_shape": [1, 4, 4],
        "target_shape": [2, 4, 4],
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
    }
    assert (first["delay"], third["delay"], third["bits_per_synapse"]) == (0, [[0], [1], [2]], 14)
    assert (second["sign_mode"], second["window"], fourth["source"]) == ("negative", None, "on")
    assert found["always_on"] == [{"name": "on", "axons": 1, "first_step": 2}]
    assert found["cores"][0]["thresholds"] == list(range(1, 33))
    assert found["cores"][0]["compartments"][0] == {"du": 4095, "dv": 0, "bias_exp": 0, "refractory": 3}


def test_a_placement_without_tiles_is_refused():
    with pytest.raises(PlacementError, match="'n': the placement has no tiles of it. Place it again"):
        core_contents(dense_program(2, 4), Placement({"n": (0,)}), small.limited().target.table)


def test_integers_changed_by_hand_beyond_a_register_are_refused(nets):
    graph = nets.chain(input=nets.source(2), w=nets.linear(np.eye(2)), n=nets.if_(2), output=nets.output(2))
    quantized = quantize(graph, "loihi2", convention=nets.plain, quantizer="max")
    layers = {**quantized.layers, "n": dataclasses.replace(quantized["n"], threshold=200000 << 6, mantissa=200000)}
    changed = dataclasses.replace(quantized, layers=layers)
    with pytest.raises(
        QuantizationError, match="node 'n': the threshold's mantissa is 200000, 1 to 131071 is possible"
    ):
        place(changed)


def test_the_rows_of_a_shared_core_add_up_to_what_it_holds(nets):
    nodes = {
        "input": nets.source(6),
        "a": nets.linear(np.ones((4, 6))),
        "n": nets.if_(4),
        "b": nets.linear(np.ones((3, 6))),
        "m": nets.if_(3),
        "o1": nets.output(4),
        "o2": nets.output(3),
    }
    edges = [("input", "a"), ("a", "n"), ("input", "b"), ("b", "m"), ("n", "o1"), ("m", "o2")]
    found = place(integers(nets, nets.graph(nodes, edges)), cores={"n": [2], "m": [2]})
    rows = {(u.node, u.resource): u.used for u in found.usage}
    # the six axons of the Input serve both
    assert (rows["n", "in_axons"], rows["m", "in_axons"]) == (6, 0) or (
        rows["n", "in_axons"],
        rows["m", "in_axons"],
    ) == (0, 6)
    assert rows["n", "neurons"] + rows["m", "neurons"] == 7
    assert rows["n", "threshold_configs"] + rows["m", "threshold_configs"] in (1, 2)
