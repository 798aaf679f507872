"""Blocks of populations, and the synapses that end in them."""

import math

import numpy as np
import placed_programs as small
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nirdeploy_loihi.cutting import cut_program
from nirdeploy_loihi.reach import Fan, block_rows, blocks_of_range, widest_neuron
from nirdeploy_loihi.resources import tile_of
from nirdeploy_loihi.tiles import evenly, tilings

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


def test_equal_sequential_slices():
    assert evenly(10, 4) == ((0, 3), (3, 6), (6, 8), (8, 10))


def test_grids_come_first_along_the_first_axis():
    found = list(tilings((4, 6), 4))
    assert found[0] == (((0, 1), (0, 6)), ((1, 2), (0, 6)), ((2, 3), (0, 6)), ((3, 4), (0, 6)))
    assert found[1] == (((0, 2), (0, 3)), ((0, 2), (3, 6)), ((2, 4), (0, 3)), ((2, 4), (3, 6)))


def test_a_number_of_parts_that_no_grid_has_cuts_slabs():
    # 5 parts of 2 x 4: rows of 3 and 2 parts
    assert next(tilings((2, 4), 5)) == (
        ((0, 1), (0, 2)),
        ((0, 1), (2, 3)),
        ((0, 1), (3, 4)),
        ((1, 2), (0, 2)),
        ((1, 2), (2, 4)),
    )


@given(SHAPES, st.data())
@settings(max_examples=60, deadline=None)
def test_every_tiling_covers_every_neuron_once(shape, data):
    parts = data.draw(st.integers(1, math.prod(shape)))
    found = list(tilings(shape, parts))
    assert found
    for blocks in found:
        assert len(blocks) == parts
        rows = np.concatenate([block_rows(block, shape) for block in blocks])
        assert sorted(rows.tolist()) == list(range(math.prod(shape)))


@given(SHAPES, st.data())
@settings(max_examples=60, deadline=None)
def test_a_range_is_the_neurons_of_its_blocks(shape, data):
    first = data.draw(st.integers(0, math.prod(shape)))
    last = data.draw(st.integers(first, math.prod(shape)))
    rows = [row for block in blocks_of_range(first, last, shape) for row in block_rows(block, shape).tolist()]
    assert sorted(rows) == list(range(first, last))


# ---------------------------------------------------------------- synapses


@st.composite
def windows(draw):
    groups = draw(st.integers(1, 2))
    shape = (groups * draw(st.integers(1, 2)), draw(st.integers(3, 6)), draw(st.integers(3, 6)))
    pairs = {name: (draw(st.integers(low, 2)), draw(st.integers(low, 2))) for name, low in _PAIRS.items()}
    size = (groups * draw(st.integers(1, 2)), shape[0] // groups, draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return small.conv("input", "n", shape, rng.integers(-1, 3, size), groups=groups, **pairs)


_PAIRS = {"stride": 1, "padding": 0, "dilation": 1}


def check(synapses, shape, block):
    counts = small.connected(synapses)[small.neurons_of(shape, block)].sum(axis=0)
    found = Fan(synapses, shape).reach(block)
    assert found.sources.tolist() == np.flatnonzero(counts).tolist()
    assert found.synapses.tolist() == counts[counts > 0].tolist()


@given(windows(), st.data())
@settings(max_examples=60, deadline=None)
def test_synapses_of_a_convolution_are_those_of_its_definition(synapses, data):
    shape = synapses.window.target_shape
    parts = data.draw(st.integers(1, min(6, math.prod(shape))))
    for block in next(tilings(shape, parts)):
        check(synapses, shape, block)
    # the same neurons as a flat population, cut anywhere
    for piece in evenly(math.prod(shape), parts):
        check(synapses, (math.prod(shape),), (piece,))


def test_a_convolution_along_one_axis_fills_a_map_of_two():
    synapses = small.conv("input", "n", (2, 1, 9), np.ones((3, 2, 1, 3)), stride=(1, 2))
    check(synapses, (3, 4), ((1, 3), (1, 3)))


@pytest.mark.parametrize("block", [((0, 4), (0, 3)), ((1, 3), (0, 3)), ((0, 4), (1, 2))])
def test_synapses_of_a_matrix_are_those_of_its_rows(block):
    weight = np.random.default_rng(1).integers(-1, 2, (12, 7))
    check(small.dense("input", "n", weight), (4, 3), block)
    check(small.dense("input", "n", np.ones((12, 7))), (4, 3), block)


@given(windows())
@settings(max_examples=30, deadline=None)
def test_the_widest_neuron_has_the_largest_fan_in(synapses):
    shape = synapses.window.target_shape
    block = widest_neuron([Fan(synapses, shape)], shape)
    rows = small.connected(synapses).sum(axis=1)
    assert rows[small.neurons_of(shape, block)].tolist() == [rows.max()]


# ---------------------------------------------------------------- tilings that share input axons


def axons(synapses, shape, blocks):
    table = small.limited().target.table
    return [tile_of(small.population("n", *shape), [Fan(synapses, shape)], b, table).in_axons for b in blocks]


def test_square_tiles_copy_fewer_input_axons_than_slices():
    # 1 x 8 x 8 outputs of a 3 x 3 kernel without padding: 100 inputs. Four slices of two rows read 4 rows of 10
    # each; four squares read 6 x 6 each
    synapses = small.conv("input", "n", (1, 10, 10), np.ones((1, 1, 3, 3)))
    slices = [((0, 1), piece, (0, 8)) for piece in evenly(8, 4)]
    assert axons(synapses, (1, 8, 8), slices) == [40, 40, 40, 40]
    given_ = small.program(small.population("n", 1, 8, 8), synapses, shape=(1, 10, 10))
    table = small.limited(neurons=16).target.table
    found = cut_program(given_, table, {"input": np.ones(100), "n": np.ones(64)}, {})["n"]
    assert [tile.block for tile in found.tiles] == [((0, 1), y, x) for y in ((0, 4), (4, 8)) for x in ((0, 4), (4, 8))]
    assert [tile.in_axons for tile in found.tiles] == [36, 36, 36, 36]


def test_channels_of_separate_groups_share_nothing_and_are_cut_apart():
    synapses = small.conv("input", "n", (2, 4, 4), np.ones((2, 1, 3, 3)), padding=(1, 1), groups=2)
    given_ = small.program(small.population("n", 2, 4, 4), synapses, shape=(2, 4, 4))
    found = cut_program(given_, small.limited(neurons=16).target.table, {"input": np.ones(32), "n": np.ones(32)}, {})
    assert [tile.block for tile in found["n"].tiles] == [((c, c + 1), (0, 4), (0, 4)) for c in (0, 1)]
    assert [tile.in_axons for tile in found["n"].tiles] == [16, 16]


def test_activity_moves_the_cut_to_where_little_is_sent():
    # rows of a 3 x 3 window overlap where spikes are many, columns where they are few
    synapses = small.conv("input", "n", (1, 6, 6), np.ones((1, 1, 3, 3)))
    given_ = small.program(small.population("n", 1, 4, 4), synapses, shape=(1, 6, 6))
    spikes = np.ones((6, 6))
    spikes[2:4] = 9.0
    table = small.limited(neurons=8).target.table
    for activity, cut in ((spikes, ((0, 4), (0, 2))), (spikes.T, ((0, 2), (0, 4)))):
        found = cut_program(given_, table, {"input": activity.reshape(-1), "n": np.ones(16)}, {})["n"]
        assert found.tiles[0].block == ((0, 1), *cut)
