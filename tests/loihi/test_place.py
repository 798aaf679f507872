import dataclasses
import json

import numpy as np
import pytest
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.place import axon_bits, slices_of

from nirdeploy.errors import PlacementError
from nirdeploy.pipeline import deploy, place, quantize

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


def test_equal_sequential_slices():
    assert slices_of(10, 4) == ((0, 3), (3, 6), (6, 8), (8, 10))


def test_a_population_is_split_by_its_neurons(nets):
    graph = nets.chain(
        input=nets.source(1, 40, 60),
        c=nets.conv(np.ones((1, 1, 3, 3)), padding=(1, 1)),
        n=nets.if_(1, 40, 60),
        output=nets.output(1, 40, 60),
    )
    found = place(integers(nets, graph))
    assert found.cores["n"] == (0, 1, 2)
    assert found.slices["n"] == ((0, 800), (800, 1600), (1600, 2400))
    rows = {(u.core, u.resource): u for u in found.usage}
    # 800 neurons are rows 0 to 12 and 20 cells of row 13; their windows reach to row 13, and 21 cells of row 14
    assert rows[0, "in_axons"].used == 14 * 60 + 21
    assert rows[0, "neurons"].limit == 1024
    assert place(integers(nets, graph, "loihi2")).cores["n"] == (0,)


def test_a_population_is_split_by_its_memory_and_output_axons(nets):
    # 1024 weights an axon take 16 entries of 576 bits: 2000 axons are 18.4 Mbit
    found = place(integers(nets, two(nets, hidden=1000, inputs=1200, out=4)))
    assert len(found.cores["n"]) > 1
    for row in found.usage:
        assert row.used <= row.limit


def test_output_axons_count_every_core_reached(nets):
    graph = two(nets, hidden=30, out=8)
    found = place(integers(nets, graph), cores={"m": [7, 3]})
    rows = {(u.node, u.resource): u.used for u in found.usage}
    assert rows["n", "out_axons"] == 60


def test_the_users_cores_are_kept(nets):
    found = deploy(two(nets), "loihi1", convention=nets.plain, quantizer="max", cores={"n": [3, 0]}).placement
    assert found.cores == {"n": (3, 0), "m": (1,)}
    assert found.slices["n"] == ((0, 15), (15, 30))


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        ({"n": [0], "m": [0]}, "'m': core 0 is already taken by 'n'"),
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


def test_the_users_cores_are_checked(nets):
    q = integers(nets, two(nets, hidden=1000, inputs=1200, out=4))
    with pytest.raises(PlacementError, match=r"'n': synapse_bits \d+ exceeds 1048576 of core 5. Prune"):
        place(q, cores={"n": [5]})


@pytest.mark.filterwarnings("ignore::nirdeploy.errors.QuantizationWarning")
def test_a_fan_in_beyond_the_axons_is_refused_with_value_and_limit(nets):
    weight = np.ones((2, 5000)) * np.array([[1.0], [-1.0]])
    graph = nets.chain(
        input=nets.source(5000), a=nets.linear(weight), n=nets.if_(2, threshold=100.0), output=nets.output(2)
    )
    with pytest.raises(PlacementError, match=r"'n': in_axons 5000 exceeds 4096 of a core, even split over 2 cores"):
        # the rules refuse it first; placement is asked all the same
        place(dataclasses.replace(integers(nets, graph, "loihi2"), target=BACKEND.targets()["loihi1"]))
    assert place(integers(nets, graph, "loihi2")).cores["n"] == (0,)


def test_too_few_cores_are_refused_with_the_cores_of_each_population(nets):
    graph = two(nets, hidden=1100)
    with pytest.raises(PlacementError, match=r"'n': neurons 1100 exceeds 1024 of core 5"):
        place(integers(nets, graph), cores={"m": [0, 1, 2, 3]} | {"n": [5]})
    three = nets.chain(
        input=nets.source(2),
        a=nets.linear(np.ones((130, 2))),
        n=nets.if_(130),
        b=nets.linear(np.ones((3, 130))),
        m=nets.if_(3, threshold=9.0),
        c=nets.linear(np.ones((1, 3))),
        k=nets.if_(1),
        output=nets.output(1),
    )
    with pytest.raises(PlacementError, match=r"takes 2 cores \(n: 127, m: 1, k: 1\), 1 of 128 are free"):
        place(integers(nets, three), cores={"n": list(range(127))})


def test_the_chip_configuration_is_plain_json(nets):
    deployment = deploy(two(nets), "loihi1", convention=nets.plain, quantizer="max", cores={"n": [3, 0]})
    found = BACKEND.chip_configuration(deployment.quantized, deployment.placement)
    assert json.loads(json.dumps(found)) == found
    first = found["populations"][0]
    assert (first["name"], first["du"], first["dv"]) == ("n", 4095, 0)
    assert first["vth"] == deployment.quantized["n"].mantissa
    assert found["connections"][0]["weight"] == deployment.quantized["a"].weight.tolist()
    assert [row["core"] for row in found["cores"]] == [0, 1, 3]
    assert found["cores"][2] == {"core": 3, "population": "n", "first": 0, "last": 15}
