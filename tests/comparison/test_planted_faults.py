"""Every planted fault is named: the node, where a hand can tell the neuron, the rung, and a hint where there is one."""

import dataclasses
import functools
import re

import fault_nets
import numpy as np
import planted_faults
import planting
import pytest
from fault_nets import LOIHI_NETS, SPECK_NETS, deployed
from nets import ROOT
from planted_faults import FAULTS

import nirdeploy as nd
from nirdeploy.comparison import ladder as ladders

UNPLACED = ("one-step lag",)  # a run of the reference executor or the program alone stands for the chip's
VENDORS = ("sinabs", "lava", "chip")
CASES = [pytest.param(fault, make, id=f"{fault.kind}-{make.__name__}") for fault in FAULTS for make in fault.nets]


@functools.cache
def planted(kind, make):
    fault = next(f for f in FAULTS if f.kind == kind)
    net = planted_faults.filled(make, over=True) if kind == "saturating state" else make()
    return fault.plant(net)


@functools.cache
def compared(kind, make):
    found = planted(kind, make)
    return nd.compare(found.reference, found.faulty)


@pytest.fixture
def climb(monkeypatch):
    """The ladder of a deployment without the vendors' rungs, its steps replaced where asked to."""
    real = ladders._steps

    def run(deployment, raster, convention=None, steps=None):
        own = [step for step in real(deployment) if step.name not in VENDORS]
        monkeypatch.setattr(ladders, "_steps", lambda _: own if steps is None else steps(own))
        return nd.ladder(deployment, raster, convention=convention)

    return run


def speck(make):
    return make in SPECK_NETS


# ---------------------------------------------------------------- without a fault


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_without_a_fault_every_state_is_equal_and_no_rung_costs_anything(make, climb):
    net = make()
    deployment = deployed(net)
    run = deployment.run(net.raster)
    found = nd.compare(nd.run(net.graph, net.raster, convention=net.convention), run)
    assert found.equal
    assert found.hints == ()
    assert found.first_departure is None
    assert all(found.per_node[name].spikes_reference > 50 for name in net.populations)
    if speck(make):
        assert all(run.counters[name]["clamps"] > 50 for name in net.populations[1:])
    climbed = climb(deployment, net.raster)
    assert [r.name for r in climbed.rungs if r.cost] == [
        "chip convention",
        "quantised parameters",
        "integer states",
        *(["event order"] if speck(make) else []),
    ]
    assert all(r.cost.equal for r in climbed.rungs if r.cost)
    assert climbed.dominating is None


@pytest.mark.parametrize("make", LOIHI_NETS)
def test_integrating_read_outs_are_equal_too(make, climb):
    net = fault_nets.integrating(make())
    climbed = climb(deployed(net), net.raster)
    assert all(r.cost.equal for r in climbed.rungs if r.cost)
    assert np.abs(climbed.rungs[-1].trajectory.outputs).max() > 100


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_registers_that_are_nearly_full_are_equal_too(make):
    found = planted_faults.saturating_state(planted_faults.filled(make, over=False))
    told = nd.compare(found.reference, found.faulty)
    assert told.equal
    assert told.per_node[found.node].spikes_reference > 100


# ---------------------------------------------------------------- with one


@pytest.mark.parametrize(("fault", "make"), CASES)
def test_the_node_is_named_and_nothing_before_it_differs(fault, make):
    found, told = planted(fault.kind, make), compared(fault.kind, make)
    nodes = list(told.per_node)
    assert not told.equal
    assert told.unaligned == ()
    assert told.first_departure[0] == found.node
    before = [told.per_node[name] for name in nodes[: nodes.index(found.node)]]
    assert all(not node.differing_entries and not node.differing_variables for node in before)
    assert bool(before) == (found.node != nodes[0])
    if "read-out" in fault.kind or "output" in fault.kind:
        assert told.first_divergence is None
        return
    assert told.first_divergence.node == found.node
    if found.channels is not None:
        assert told.first_divergence.neuron[0] in found.channels
    assert all(one.reference == one.chip for one in told.first_divergence.inputs)  # the same came in on both sides
    if fault.kind not in UNPLACED:
        assert told.first_divergence.core in np.ravel(found.deployment.placement.cores[found.node])


@pytest.mark.parametrize(("fault", "make"), CASES)
def test_the_rung_is_named_and_its_node(fault, make, climb):
    found = planted(fault.kind, make)
    climbed = climb(found.deployment, found.raster, found.convention, found.steps)
    rung = fault.expected(found.deployment.target.name)[0]
    assert climbed.dominating.name == rung
    assert climbed.dominating.cost.first_departure[0] == found.node
    assert [r.name for r in climbed.rungs if r.cost and not r.cost.equal] == [rung]
    assert found.node in climbed.verdict()


@pytest.mark.parametrize(("fault", "make"), CASES)
def test_a_hint_is_given_where_there_is_one_and_no_other(fault, make):
    found, told = planted(fault.kind, make), compared(fault.kind, make)
    wanted = fault.expected(found.deployment.target.name)[1]
    assert len(told.hints) == len(wanted)
    for hint, pattern in zip(told.hints, wanted, strict=True):
        assert re.search(pattern.format(node=found.node), hint), hint
    assert [line for line in told.summary().splitlines() if "hint: " in line] == [f"  hint: {h}" for h in told.hints]
    assert told.to_dict()["hints"] == list(told.hints)


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_the_order_in_which_nodes_are_recorded_does_not_matter(make):
    found, told = planted("transposed kernel", make), compared("transposed kernel", make)
    backwards = dataclasses.replace(found.reference, records=dict(reversed(found.reference.records.items())))
    again = nd.compare(backwards, found.faulty)
    assert again.first_divergence == told.first_divergence
    assert list(again.per_node) == list(told.per_node)
    bare = [dataclasses.replace(run, outline=None, graph=None) for run in (backwards, found.faulty)]
    assert list(nd.compare(*bare).per_node) == list(told.per_node)[::-1]  # nothing tells it
    assert nd.compare(*bare, graph=found.reference.graph).first_divergence.node == found.node


# ---------------------------------------------------------------- what a hand can tell


def first_change(told, node):
    """First reference step in which v of a node differs, and the channels in which it ever does."""
    differs = [
        (start + step, neuron)
        for start, _, reference, chip in told.pairs[node, "v_mem"].blocks()
        for step, _, neuron in np.argwhere(reference != chip)
    ]
    shape = told.pairs[node, "v_mem"].shape
    return min(step for step, _ in differs), {int(np.unravel_index(neuron, shape)[0]) for _, neuron in differs}


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_one_bit_of_a_weight_shows_in_its_channel_from_the_first_spike_of_its_source_on(make):
    found, told = planted("weight bit", make), compared("weight bit", make)
    (name, (out, source, *_)), net = found.entry, make()
    spikes = found.reference[net.source(name), "spikes"].data[:, :, source]
    step = int(np.flatnonzero(spikes.reshape(len(spikes), -1).any(axis=1))[0])
    assert first_change(told, found.node) == (step, {out})


@pytest.mark.parametrize("make", SPECK_NETS)
def test_a_threshold_one_higher_is_missed_by_a_v_that_met_it(make):
    first = compared("threshold off by one", make).first_divergence
    chip = planted("threshold off by one", make).faulty[first.node, "spikes"].data
    before = int(chip[(slice(first.step + 1), first.sample, *first.neuron)].sum())
    assert (first.threshold_reference, first.threshold_chip) == (254, 255)
    assert first.observed == first.expected - 1
    # each of its spikes took one more from the chip's v, since the last time that both were at the lower bound
    assert 254 - before <= first.v_chip - first.v_reference <= 254


@pytest.mark.parametrize("make", LOIHI_NETS)
def test_a_threshold_one_lower_is_crossed_by_a_v_that_met_it(make):
    first = compared("threshold off by one", make).first_divergence
    assert (first.expected, first.observed) == (0, 1)
    assert first.v_reference == first.threshold_reference == first.threshold_chip + 1
    assert first.v_chip == 0


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_another_crossing_is_met_exactly(make):
    first = compared("wrong crossing", make).first_divergence
    waits, fires = (first.v_reference, first.v_chip) if speck(make) else (first.v_chip, first.v_reference)
    assert (waits, fires) == (first.threshold_reference, 0)
    assert first.observed - first.expected == (1 if speck(make) else -1)


def first_step(happens):
    """First step in which something happens in any sample and neuron."""
    return int(np.flatnonzero(happens.reshape(len(happens), -1).any(axis=1))[0])


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_a_node_that_is_late_misses_the_first_spike_of_all(make):
    found, first = planted("one-step lag", make), compared("one-step lag", make).first_divergence
    spikes = found.reference[found.node, "spikes"].data
    assert first.step == first_step(spikes)
    assert first.expected == spikes[(first.step, first.sample, *first.neuron)] > first.observed == 0


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_a_bound_on_one_side_shows_where_the_other_first_passes_it(make):
    found, told = planted("v_min missing", make), compared("v_min missing", make)
    free = found.reference if speck(make) else found.faulty
    passes = free[found.node, "v_mem"].values < (-300 if speck(make) else -96)
    lag = 0 if speck(make) else told.per_node[found.node].lag
    assert first_change(told, found.node)[0] == first_step(passes) - lag


@pytest.mark.parametrize("make", LOIHI_NETS)
def test_a_register_that_is_full_shows_where_the_reference_first_passes_it(make):
    found, told = planted("saturating state", make), compared("saturating state", make)
    passes = found.reference[found.node, "v_mem"].data < -(2**23 - 1) / 64
    assert first_change(told, found.node)[0] == first_step(passes)


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_another_reset_shows_at_the_first_spike_that_leaves_something_of_v(make):
    found, told = planted("wrong reset", make), compared("wrong reset", make)
    less = found.faulty if speck(make) else found.reference  # from which the threshold is subtracted
    left = (less[found.node, "spikes"].data > 0) & (less[found.node, "v_mem"].values != 0)
    assert first_change(told, found.node)[0] == first_step(left)


@pytest.mark.parametrize("make", [*SPECK_NETS, *LOIHI_NETS])
def test_a_lag_that_is_told_leaves_the_node_equal(make):
    found = planted("one-step lag", make)
    told = nd.compare(
        found.reference, found.faulty, lag={found.node: compared("one-step lag", make).per_node[found.node].lag + 1}
    )
    assert told.per_node[found.node].differing_entries == 0
    assert told.per_node[found.node].v_mem_rmse == 0


# ---------------------------------------------------------------- beside real losses


@pytest.fixture(scope="module")
def digits():
    stored = np.load(ROOT / "configs" / "digits_calibration.npz")
    graph = nd.read(ROOT / "configs" / "digits.nir")
    return nd.deploy(graph, "speck2f", calibration=stored["raster"]), stored["raster"][:, :8]


@pytest.mark.parametrize("node", ["if1", "if2", "if3"])
def test_a_lag_is_named_by_its_own_rung_whatever_quantisation_costs_before(digits, climb, node):
    deployment, raster = digits

    def late(raster):
        run = deployment.run(raster)
        records = {
            key: dataclasses.replace(r, data=np.roll(r.data, 1, axis=0)) if r.node == node else r
            for key, r in run.records.items()
        }
        return dataclasses.replace(run, records=records)

    climbed = climb(
        deployment,
        raster,
        steps=lambda steps: planting.spliced(
            steps, [dataclasses.replace(step, run=late) for step in steps], planting.STATES
        )[:3],
    )
    costs = {r.name: r.cost for r in climbed.rungs}
    assert costs["quantised parameters"].spikes.differing > 0
    cost = costs[planting.STATES]
    assert [n for n in cost.per_node if cost.per_node[n].differing_entries] == [node]
    assert cost.first_divergence.node == node
    assert any(hint.startswith("shifted by 1 step, 100.00 %") for hint in cost.hints)


def test_at_least_a_dozen_kinds_are_planted_in_three_networks_each():
    assert len({fault.kind for fault in FAULTS}) == len(FAULTS) >= 12
    assert all(len(fault.nets) >= 3 for fault in FAULTS)
