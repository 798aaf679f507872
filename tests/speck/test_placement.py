"""Who gets which cores: against trying everything out, and what is said where nothing fits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import chain, conv_node, flatten_node, if_node, input_node, linear_node, output_node
from nirdeploy_speck.capacity import Demand, assign, cut, demands, memories
from nirdeploy_speck.network import lower

import nirdeploy as nd
from nirdeploy.backend import find_target
from nirdeploy.errors import PlacementError
from nirdeploy.graph import make_graph

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)
TARGET = find_target("speck2f")
CORES = memories(TARGET)


def layer(inputs=4, outputs=8, kernel=3, size=8, bias=False):
    weight = np.ones((outputs, inputs, kernel, kernel))
    node = conv_node(weight, None, 1, 0, bias=np.ones(outputs) if bias else None)
    out = size - kernel + 1
    graph = chain((inputs, size, size), c=node, n=if_node((outputs, out, out)))
    return lower(graph, PLAIN)[0].layers[0]


def deployed(graph, target="speck2f", **options):
    return nd.deploy(graph, target, convention=PLAIN, quantizer="max", **options)


def codes(graph, target="speck2f"):
    return {f.code: f for f in nd.check(graph, target, convention=PLAIN).findings}


# ---------------------------------------------------------------- rooms


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 600),
    outputs=st.integers(1, 300),
    kernel=st.integers(1, 5),
    size=st.integers(5, 60),
    bias=st.booleans(),
    spread=st.sampled_from([1, 4]),
)
def test_the_room_of_a_core_is_the_largest_number_of_channels_that_fits(inputs, outputs, kernel, size, bias, spread):
    demand = Demand(layer(inputs, outputs, kernel, size, bias), 2, "", spread)
    for have in (CORES[0], CORES[4], CORES[5], {**CORES[5], "bias_memory": 0}):
        fitting = [n for n in range(1, outputs + 1) if not demand.lacking(have, n)]
        assert demand.room(have) == max(fitting, default=0)


def test_memory_of_the_facts_example():
    demand = Demand(layer(64, 80, 3, 3), 2, "")
    assert demand.needs(80)["kernel_memory"] == 64 << (4 + 7)
    assert demand.needs(40)["kernel_memory"] == 64 << 10
    assert [demand.room(have) for have in CORES] == [16, 16, 16, 32, 32, 64, 64, 16, 16]


@settings(max_examples=200, deadline=None)
@given(rooms=st.lists(st.integers(1, 30), min_size=1, max_size=5), data=st.data())
def test_parts_fill_no_core_beyond_its_room(rooms, data):
    outputs = data.draw(st.integers(len(rooms), max(len(rooms), sum(rooms))))
    if outputs > sum(rooms):
        return
    parts = cut(outputs, rooms)
    assert sum(parts) == outputs
    assert all(0 <= part <= room for part, room in zip(parts, rooms, strict=True))


def test_parts_are_even_where_there_is_room():
    assert cut(10, [64, 64, 64]) == (4, 3, 3)
    assert cut(80, [64, 16]) == (64, 16)
    assert cut(24, [16, 10]) == (12, 12) or cut(24, [16, 10]) == (14, 10)


# ---------------------------------------------------------------- assignment


class Fake:
    """A demand of so many channels, with the room of each core given."""

    def __init__(self, outputs, most_parts, rooms):
        self.outputs, self.most_parts, self.rooms = outputs, most_parts, rooms

    def room(self, have):
        return min(self.outputs, self.rooms[have["core"]])

    def lacking(self, have, outputs=None):
        return [] if self.rooms[have["core"]] >= self.outputs else ["too small"]


def every_assignment(wanted, count):
    """All sets of cores that hold each layer, disjoint."""

    def sets(demand):
        for size in range(1, demand.most_parts + 1):
            for cores in itertools.combinations(range(count), size):
                rooms = [min(demand.outputs, demand.rooms[c]) for c in cores]
                if all(rooms) and sum(rooms) >= demand.outputs:
                    yield cores

    for chosen in itertools.product(*(list(sets(d)) for d in wanted.values())):
        flat = [core for cores in chosen for core in cores]
        if len(set(flat)) == len(flat):
            yield dict(zip(wanted, chosen, strict=True))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_assignments_are_the_best_of_all_there_are(data):
    count = data.draw(st.integers(1, 5))
    names = "abc"[: data.draw(st.integers(1, 3))]
    wanted = {
        name: Fake(
            data.draw(st.integers(1, 12)),
            data.draw(st.integers(1, 3)),
            data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)),
        )
        for name in names
    }
    found = assign(wanted, range(count), [{"core": core} for core in range(count)])
    possible = list(every_assignment(wanted, count))
    if found is None:
        assert not possible
        return
    assert found in possible

    def cost(chosen):
        flat = [core for cores in chosen.values() for core in cores]
        return len(flat), sum(flat)

    assert cost(found) == min(map(cost, possible))


def test_layers_move_to_let_others_in():
    # the matrix fits cores 5 and 6 only, in whatever order the layers come
    graph = chain(
        (1, 3, 3),
        c=conv_node(np.ones((64, 1, 3, 3)), None, 1, 1),
        a=if_node((64, 3, 3)),
        f=flatten_node((64, 3, 3)),
        fc=linear_node(np.ones((40, 576))),
        b=if_node((40,)),
        fd=linear_node(np.ones((30, 40))),
        k=if_node((30,)),
    )
    cores = deployed(graph, avoid_cores=[0, 1, 2, 3, 4, 8]).placement.cores
    assert {cores["a"], cores["b"], cores["k"]} == {(5,), (6,), (7,)}
    assert cores["b"] in ((5,), (6,))


def test_demands_follow_the_destinations_that_sources_have():
    nodes = {
        "input": input_node(1, 4, 4),
        "c": conv_node(np.ones((2, 1, 1, 1)), None),
        "a": if_node((2, 4, 4)),
        "d": conv_node(np.ones((2, 2, 1, 1)), None),
        "b": if_node((2, 4, 4)),
        "e": conv_node(np.ones((2, 2, 1, 1)), None),
        "k": if_node((2, 4, 4)),
        "output": output_node(2, 4, 4),
    }
    pairs = "input c, c a, a d, d b, b e, a e, e k, k output"
    network, _ = lower(make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")]), PLAIN)
    found = demands(network, TARGET)
    assert {name: (d.most_parts, d.bound_by) for name, d in found.items()} == {
        "a": (9, ""),
        "b": (1, "a"),
        "k": (1, "a"),
    }


# ---------------------------------------------------------------- refusals


def wide(outputs, second=None):
    nodes = {
        "c": conv_node(np.ones((64, 1, 3, 3)), None, 1, 1),
        "a": if_node((64, 3, 3)),
        "f": flatten_node((64, 3, 3)),
        "fc": linear_node(np.ones((outputs, 576))),
        "b": if_node((outputs,)),
    }
    return chain((1, 3, 3), **nodes)


def test_a_layer_two_cores_do_not_hold_is_a_finding_with_the_number_that_fits():
    found = codes(wide(200))["kernel_memory"]
    assert (found.node, found.value, found.limit) == ("fc", 64 << 12, 65536)
    assert "the largest core (5) has 65536" in found.problem
    assert found.remedy == (
        "Split over 2, at most 128 of its 200 output channels fit: use fewer, or a smaller kernel or map."
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"avoid_cores": [0, 1, 6]},
            r"'b': fits no core \(core 0: avoided \(kernel_memory 262144 of 16384\); .*core 5: kernel_memory 262144 of "
            r"65536.*nor 2 of them together .*At most 96 output channels of 'b' fit; allow core 6 with "
            r"avoid_cores=\[0, 1\]\.",
        ),
        ({"cores": {"fc": 5}}, r"does not fit core 5: kernel_memory 262144 of 65536. At most 64 output channels fit"),
        ({"cores": {"fc": [3, 4]}}, r"its 128 output channels do not fit \(core 3: 32, core 4: 32\)"),
        ({"cores": {"fc": [5, 6, 7]}}, r"cannot be split over 3 cores: 'a' has 2 destinations for it"),
        ({"cores": {"fc": [5, 5]}}, r"cores\['fc'\] has a core twice: \[5, 5\]"),
        ({"cores": {"fc": []}}, r"cores\['fc'\] is empty"),
        ({"cores": {"fc": [5, "6"]}}, r"cores\['fc'\] has '6', expected core numbers"),
        ({"cores": {"fc": [5, 6], "a": 6}}, r"core 6 is given to two layers"),
    ],
)
def test_what_cannot_be_says_why_and_what_would(options, words):
    graph = wide(128)
    if "avoid_cores" not in options or options["avoid_cores"] == [0, 1, 6]:
        words = words.replace("262144", str(64 << (4 + 7)))
    with pytest.raises(PlacementError, match=words):
        deployed(graph, **options)


def test_more_parts_than_channels_are_refused():
    graph = chain((2,), fc=linear_node(np.ones((2, 2))), n=if_node((2,)))
    with pytest.raises(PlacementError, match="'n': 3 cores for 2 output channels"):
        deployed(graph, cores={"n": [2, 3, 4]})


def crowded(count=3):
    """Matrices that only cores 5 and 6 hold, one behind the other."""
    nodes = {}
    for i in range(count):
        nodes |= {f"c{i}": conv_node(np.ones((64, 64, 3, 3)), None, 1, 1), f"n{i}": if_node((64, 3, 3))}
    return chain((64, 3, 3), **nodes)


def test_layers_that_fit_one_by_one_but_not_together_are_found():
    # 64 to 64 of 3x3 take 64 Ki words each: whole on 5 and 6, over 3 and 4, and, as the host writes to any number of
    # cores, the first over four of those that hold 16 channels
    assert deployed(crowded(3)).placement.cores == {"n0": (3, 4), "n1": (5,), "n2": (6,)}
    found = codes(crowded(5))
    assert found["placement"].severity == "error"
    assert "5 layers fit cores one by one, but not together: 'n0' fits 5, 6;" in found["placement"].problem
    with pytest.raises(PlacementError, match=r"'n0': no core is left: 4 layers.*Allow core 0 with avoid_cores=\[1\]"):
        deployed(crowded(4))
    assert deployed(crowded(4), avoid_cores=[1]).placement.cores["n0"] == (0, 2, 7, 8)
    words = (
        r"'n0': no core is left: 3 layers, 4 cores may be used, and 'n0' fits 5; 'n1' is given 6; 'n2' fits 5. "
        r"Allow core 3 with avoid_cores=\[0, 1, 2, 4\]; make a layer smaller\."
    )
    with pytest.raises(PlacementError, match=words):
        deployed(crowded(3), cores={"n1": 6}, avoid_cores=[0, 1, 2, 3, 4])


def test_needing_a_stochastic_core_is_a_warning_and_the_remedy_works():
    # 16 channels of 64x64 neurons take the 64 Ki of cores 0, 1 and 2
    graph = chain(
        (1, 64, 64),
        c=conv_node(np.ones((16, 1, 1, 1)), None),
        a=if_node((16, 64, 64)),
        d=conv_node(np.ones((16, 16, 1, 1)), None),
        b=if_node((16, 64, 64)),
        e=conv_node(np.ones((16, 16, 1, 1)), None),
        k=if_node((16, 64, 64)),
        g=conv_node(np.ones((16, 16, 1, 1)), None),
        m=if_node((16, 64, 64)),
    )
    found = codes(graph)["stochastic"]
    assert (found.severity, found.value) == ("warning", [0, 1])
    assert "give other spikes in every run" in found.problem
    with pytest.raises(PlacementError, match=r"[Aa]llow core 0 with avoid_cores=\[1\]"):
        deployed(graph)
    assert deployed(graph, avoid_cores=[1]).placement.cores["m"] != ()
    assert "stochastic" not in codes(wide(80))


@pytest.mark.parametrize("target", ["speck2e", "speck2f", "dynapcnn", "speck2cmini", "speck2dmini"])
def test_every_target_has_its_tables(target):
    table = find_target(target).table
    count = len(table["cores"]["kernel_memory_ki"])
    assert count == (5 if "mini" in target else 9)
    assert {len(table["cores"][key]) for key in ("neuron_memory_ki", "bias_memory")} == {count}
    assert find_target(target).core_count == count
    assert table["readout"]["feature_step"] == (4 if target in ("speck2e", "speck2f") else 1)
    assert codes(wide(40), target).get("kernel_memory") is None


def test_what_a_placement_was_told_cannot_be_changed():
    graph = chain((2, 8, 8), c=conv_node(np.ones((1, 2, 1, 1)), None), n=if_node((1, 8, 8)))
    placement = deployed(graph, dvs={"input_shape": (2, 8, 8)}).placement
    assert placement.options["dvs"]["pool"] == (1, 1)
    with pytest.raises(TypeError):
        placement.options["dvs"]["pool"] = (2, 2)
    again = type(placement).from_dict(placement.to_dict())
    assert again == placement
    assert type(placement).from_dict({k: v for k, v in placement.to_dict().items() if k != "options"}).options == {}
