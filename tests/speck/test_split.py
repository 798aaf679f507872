"""A layer split over cores computes what it computes whole: chip programs run by plain numpy, integers compared."""

import itertools

import nir
import numpy as np
import pytest
from chips import simulate
from nets import chain, conv_node, flatten_node, if_node, input_node, linear_node, output_node, pool_node, raster
from nirdeploy_speck.cores import chip_program
from nirdeploy_speck.network import lowered

import nirdeploy as nd
from nirdeploy.errors import PlacementError
from nirdeploy.graph import make_graph
from nirdeploy.placement import Placement

PLAIN = nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", crossing="inclusive", v_min=-4.0)


def deployed(graph, **options):
    return nd.deploy(graph, "speck2f", convention=PLAIN, quantizer="max", **options)


def assert_program_equals_layers(deployment, data):
    """Cores, put together by channel, give the spikes of the layers of the graph."""
    program = chip_program(deployment.quantized, deployment.placement)
    network = lowered(deployment.quantized, deployment.placement)
    found = simulate(program, network.events(data)[:, 0])
    expected = deployment.run(data)
    for name, positions in program.layers.items():
        spikes = np.concatenate([found[at] for at in positions], axis=1)
        wanted = expected[name, "spikes"].data[:, 0]
        assert wanted.sum() > 0, name
        assert np.array_equal(spikes.reshape(wanted.shape), wanted), name
    return program


def net(seed=0):
    """Three layers, an average pool and a matrix behind them, and a bias."""
    rng = np.random.default_rng(seed)
    return chain(
        (2, 8, 8),
        c=conv_node(rng.normal(0.2, 0.4, (6, 2, 3, 3)), None, 1, 1),
        a=if_node((6, 8, 8)),
        pool=pool_node(nir.AvgPool2d, 2),
        d=conv_node(rng.normal(0.3, 0.6, (5, 6, 3, 3)), None, 1, 1, bias=rng.normal(0, 0.2, 5)),
        b=if_node((5, 4, 4)),
        flat=flatten_node((5, 4, 4)),
        fc=linear_node(rng.normal(0.1, 0.3, (7, 80))),
        k=if_node((7,)),
    )


@pytest.mark.parametrize(
    "cores",
    [
        {"a": [2, 3]},
        {"b": [3, 2]},
        {"fc": [5, 6]},
        {"a": [2, 3], "b": [4, 5], "k": [7, 8]},
        {"c": [2, 3, 4, 5, 6]},
    ],
)
def test_split_layers_compute_what_whole_ones_do(cores):
    graph, data = net(), raster((2, 8, 8), steps=8, batch=1, rate=0.6)
    whole, split = deployed(graph), deployed(graph, cores=cores)
    assert_program_equals_layers(whole, data)
    program = assert_program_equals_layers(split, data)
    by_population = {"c": "a", "fc": "k"}
    for key, given in cores.items():
        name = by_population.get(key, key)
        assert [program.cores[at].number for at in program.layers[name]] == given
        assert split.placement.cores[name] == tuple(given)
    assert all(len(core.destinations) <= 2 for core in program.cores)
    for core in program.cores:
        assert all(to.core > program.cores.index(core) for to in core.destinations)


def test_slices_and_utilization_describe_the_parts():
    deployment = deployed(net(), cores={"a": [2, 3], "k": [7, 8]})
    assert deployment.placement.slices["a"] == ((0, 192), (192, 384))
    assert deployment.placement.slices["k"] == ((0, 4), (4, 7))
    rows = {(row["core"], row["resource"]): row for row in deployment.utilization()}
    assert len(rows) == 5 * 3
    assert rows[2, "neuron_memory"]["used"] == 3 << 6
    # 5 channels of 4x4 maps in: taps 16, 4 channels out
    assert rows[7, "kernel_memory"]["used"] == 5 << (4 + 2)
    assert rows[7, "kernel_memory"]["node"] == "k"


def test_parts_of_a_source_shift_what_they_send():
    deployment = deployed(net(), cores={"a": [2, 3], "b": [4, 5]})
    program = chip_program(deployment.quantized, deployment.placement)
    first, second = (program.cores[at] for at in program.layers["a"])
    assert [(to.core, to.feature_shift, to.pooling) for to in first.destinations] == [(2, 0, 2), (3, 0, 2)]
    assert [(to.core, to.feature_shift, to.pooling) for to in second.destinations] == [(2, 3, 2), (3, 3, 2)]


def test_what_fits_no_core_is_split_by_itself_and_nothing_else_is():
    rng = np.random.default_rng(1)
    # 64 inputs of 3x3 to 80 outputs: 128 Ki kernel words; core 3 holds 32 channels, core 5 holds 64
    graph = chain(
        (2, 3, 3),
        c=conv_node(rng.normal(0.3, 0.5, (64, 2, 3, 3)), None, 1, 1),
        a=if_node((64, 3, 3)),
        flat=flatten_node((64, 3, 3)),
        fc=linear_node(rng.normal(0.01, 0.1, (80, 576))),
        b=if_node((80,)),
    )
    assert nd.check(graph, "speck2f", convention=PLAIN).ok
    deployment = deployed(graph)
    assert len(deployment.placement.cores["a"]) == 1
    assert deployment.placement.cores["b"] == (3, 5)
    assert deployment.placement.slices["b"] == ((0, 32), (32, 80))
    assert_program_equals_layers(deployment, raster((2, 3, 3), steps=4, batch=1, rate=0.6))


def test_residuals_and_sums_side_by_side_survive_a_split():
    rng = np.random.default_rng(2)
    nodes = {
        "input": input_node(2, 6, 6),
        "c": conv_node(rng.normal(0.2, 0.4, (4, 2, 3, 3)), None, 1, 1),
        "a": if_node((4, 6, 6)),
        "d": conv_node(rng.normal(0.2, 0.4, (4, 4, 3, 3)), None, 1, 1),
        "b": if_node((4, 6, 6)),
        "e": conv_node(rng.normal(0.2, 0.4, (3, 4, 3, 3)), None, 1, 1),
        "g": conv_node(rng.normal(0.2, 0.4, (3, 2, 1, 1)), None),
        "k": if_node((3, 6, 6)),
        "output": output_node(3, 6, 6),
    }
    pairs = "input c, c a, a d, d b, a e, b e, e k, input g, g k, k output"
    graph = make_graph(nodes, [tuple(pair.split()) for pair in pairs.split(", ")])
    data = raster((2, 6, 6), steps=6, batch=1, rate=0.5)
    program = assert_program_equals_layers(deployed(graph, cores={"a": [2, 3]}), data)
    assert [len(core.destinations) for core in program.cores] == [2, 2, 1, 0]
    with pytest.raises(PlacementError, match="'k': cannot be split over 2 cores: 'a' has 1 destination for it"):
        deployed(graph, cores={"k": [2, 3]})
    with pytest.raises(PlacementError, match="'b': cannot be split over 2 cores: 'a' has 1 destination for it"):
        deployed(graph, cores={"d": [2, 3]})


def test_placements_of_another_network_are_refused():
    quantized = deployed(net()).quantized
    cores = {"a": (2,), "b": (3,), "k": (4,)}
    good = chip_program(quantized, Placement(cores))
    assert [core.number for core in good.cores] == [2, 3, 4]
    for slices in (((0, 383),), ((0, 100), (100, 384)), ((64, 384),), ((0, 64), (128, 384))):
        given = {**cores, "a": tuple(range(5, 5 + len(slices)))}
        with pytest.raises(PlacementError, match="'a': cores .* are not whole channels of .6, 8, 8."):
            chip_program(quantized, Placement(given, slices={"a": slices}))
    with pytest.raises(PlacementError, match="'b': cores \\[\\] with the neurons"):
        chip_program(quantized, Placement({"a": (2,)}))


def test_splits_come_back_from_a_file(tmp_path):
    deployment = deployed(net(), cores={"a": [2, 3]})
    deployment.save(tmp_path)
    again = nd.load_deployment(tmp_path)
    assert again.placement == deployment.placement
    a, b = (chip_program(d.quantized, d.placement) for d in (deployment, again))
    for one, other in itertools.zip_longest(a.cores, b.cores):
        assert np.array_equal(one.weight, other.weight)
        assert (one.number, one.destinations, one.first) == (other.number, other.destinations, other.first)
