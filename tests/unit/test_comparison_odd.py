"""Comparisons of odd things: scalars, other batches, infinities, half precision, negative counts, two routes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest

import nirdeploy as nd
from nirdeploy.comparison.metrics import ErrorSums, error_sums
from nirdeploy.errors import ComparisonError, FileError
from nirdeploy.graph import make_graph, make_node
from nirdeploy.outline import Outline
from nirdeploy.trajectory import Record, Trajectory

RNG = np.random.default_rng(0)
SPIKES = (RNG.random((20, 2, 4)) < 0.4).astype(np.int32)
OTHER = (RNG.random((20, 2, 4)) < 0.4).astype(np.int32)
V = RNG.random((20, 2, 4))


def run(*records: Record, **fields: Any) -> Trajectory:
    return Trajectory({(r.node, r.variable): r for r in records}, **fields)


def spikes(data: Any, node: str = "a", **fields: Any) -> Record:
    return Record(node, "spikes", data, units="count", **fields)


def v_mem(data: Any, node: str = "a", **fields: Any) -> Record:
    return Record(node, "v_mem", data, **fields)


def test_a_population_of_scalar_shape_is_compared(tmp_path):
    found = nd.compare(run(spikes(SPIKES[:, :, 0])), run(spikes(OTHER[:, :, 0]), target="x"))
    first = found.first_divergence
    assert first is not None
    step, sample = np.argwhere(SPIKES[:, :, 0] != OTHER[:, :, 0])[0]
    assert (first.step, first.sample, first.neuron) == (step, sample, ())
    found.to_html(tmp_path / "page.html")


def test_voltages_of_other_samples_than_the_spikes_are_compared_and_shown(tmp_path):
    late = SPIKES.copy()
    late[5:, 1] = OTHER[5:, 1]
    found = nd.compare(run(spikes(SPIKES), v_mem(V[:, :1])), run(spikes(late), v_mem(2 * V[:, :1]), target="x"))
    first = found.first_divergence
    assert first is not None
    assert (first.sample, first.v_reference) == (1, None)
    assert found.per_node["a"].v_mem_max_error == V[:, 0].max()
    found.to_html(tmp_path / "page.html")


def test_an_empty_population_with_thresholds_is_listed():
    empty = v_mem(np.zeros((20, 2, 0)), threshold=np.ones(0), units="gain")
    found = nd.compare(
        run(empty, spikes(SPIKES, "b")),
        run(v_mem(np.zeros((20, 2, 0)), threshold=np.ones(0)), spikes(SPIKES, "b"), target="x"),
    )
    assert [e.node for e in found.unaligned] == ["a"]


@pytest.mark.parametrize("scale", [6.25e-5, 100.0])
def test_half_precision_is_scaled_without_its_own_rounding(scale: float):
    data = np.full((4, 1, 2), 1000.5)
    a, b = (run(v_mem(data.astype(kind), scale=scale, offset=1.0)) for kind in (np.float16, np.float64))
    error = nd.compare(a, b).per_node["a"].v_mem_max_error
    assert error is not None
    assert error <= 2**-23 * float(b["a", "v_mem"].values[0, 0, 0])  # a rounding of single precision, or two
    assert np.isfinite(a["a", "v_mem"].values).all()


def test_equal_infinities_are_equal_and_nan_equals_nothing():
    infinite = np.array([np.inf, -np.inf, np.inf, 1.0])
    assert error_sums(infinite, infinite) == ErrorSums(0.0, 0.0, 0, 4)
    opposite = error_sums(infinite, -infinite)
    assert (opposite.differing, opposite.largest) == (4, np.inf)
    assert np.isnan(error_sums(np.array([np.nan, np.inf]), np.array([np.nan, np.inf])).largest)
    a = run(spikes(SPIKES), v_mem(np.full_like(V, np.inf)))
    assert nd.compare(a, a).equal
    wrong = SPIKES.copy()
    wrong[7, 0, 0] ^= 1
    told = nd.compare(a, run(spikes(wrong), v_mem(np.full_like(V, np.inf)), target="x")).first_divergence
    assert told is not None
    assert "until then v_mem of this neuron was the same on both sides" in told.cause


def test_integers_that_floats_do_not_tell_apart_differ(tmp_path):
    a, b = (run(v_mem(np.full((4, 1, 2), 2**53 + k, dtype=np.int64)), target=f"t{k}") for k in (1, 0))
    found = nd.compare(a, b)
    assert not found.equal
    found.to_html(tmp_path / "page.html")


def test_negative_counts_and_numbers_that_are_none_are_refused():
    with pytest.raises(ComparisonError, match="a/spikes: spikes of reference hold -1, expected counts"):
        nd.compare(run(spikes(-SPIKES)), run(spikes(SPIKES), target="x"))
    with pytest.raises(ComparisonError, match="a/v_mem: values of type complex128 in x"):
        nd.compare(run(v_mem(V)), run(v_mem(V + 1j), target="x"))


@pytest.mark.parametrize("shape", ["[-2, -2]", "[1e999]", "[2.0]", '"12"', "[true]", "[1" + "0" * 4000 + "]"])
def test_an_outline_of_a_shape_that_is_none_is_refused(shape: str):
    with pytest.raises(FileError, match="the outline of the graph cannot be read: a shape is no list of whole numbers"):
        Outline.from_json(f'{{"nodes": [["a", "IF", {shape}]], "edges": [], "feedback": []}}')


# ---------------------------------------------------------------- what arrived


def if_node(shape: tuple[int, ...], threshold: float) -> nir.NIRNode:
    ones = np.ones(shape)
    return make_node(nir.IF, r=ones, v_threshold=threshold * ones, v_reset=0 * ones)


def ports(*shape: int) -> tuple[nir.NIRNode, nir.NIRNode]:
    size = np.array(shape)
    return make_node(nir.Input, input_type={"input": size}), make_node(nir.Output, output_type={"output": size})


def driven(graph: nir.NIRGraph, raster: Any, **fields: Any) -> Trajectory:
    record = ("spikes", "v_mem", "output")
    return nd.run(graph, raster, convention=nd.Convention(if_gain="r", **fields), record=record)


def two_routes(threshold: float) -> nir.NIRGraph:
    (source, sink), (inner, outer) = ports(3), ports(3)
    nodes = {
        "in": source,
        "wire": make_graph({"i": inner, "o": outer}, [("i", "o")]),
        "w": make_node(nir.Linear, weight=np.eye(3)),
        "l": if_node((3,), threshold),
        "out": sink,
    }
    return make_graph(nodes, [("in", "wire"), ("in", "w"), ("wire", "w"), ("w", "l"), ("l", "out")])


def test_what_arrives_on_two_routes_counts_twice_and_an_analogue_raster_in_parts():
    raster = np.zeros((4, 1, 3))
    raster[1, 0, 0] = 0.25
    first = nd.compare(driven(two_routes(0.4), raster), driven(two_routes(9.0), raster)).first_divergence
    assert first is not None
    (one,) = first.inputs
    assert (one.source, one.neuron, one.weight, one.reference) == ("in", (0,), 2.0, 0.25)
    assert first.v_chip == one.weight * one.reference
    assert first.arrived() == "In that step 1 input arrived, together 0.5: in 0 x 0.25 weight 2."


@pytest.mark.parametrize("delay", [0, 1])
def test_what_arrives_over_a_loop_is_a_step_old_with_and_without_population_delay(delay: int):
    (source, sink), back = ports(3), np.array([[0.0, 1, 0.5], [0.25, 0, 1], [1, 0.5, 0]])

    def net(threshold: float) -> nir.NIRGraph:
        nodes = {
            "in": source,
            "w": make_node(nir.Linear, weight=np.eye(3)),
            "l": if_node((3,), 1.0),
            "b": make_node(nir.Linear, weight=back),
            "m": if_node((3,), threshold),
            "out": sink,
        }
        edges = [("in", "w"), ("w", "l"), ("l", "b"), ("b", "l"), ("l", "m"), ("m", "out"), ("m", "l")]
        return make_graph(nodes, edges)

    raster = (np.random.default_rng(1).random((12, 1, 3)) < 0.6).astype(np.float32)
    reference = driven(net(1.5), raster, population_delay=delay)
    data = np.array(reference["l", "spikes"].data)
    data[8, 0, 1] += 1
    records = {**reference.records, ("l", "spikes"): replace(reference["l", "spikes"], data=data)}
    first = nd.compare(reference, run(*records.values(), target="x", graph=reference.graph)).first_divergence
    assert first is not None
    assert (first.node, first.step, first.neuron, first.inputs_note) == ("l", 8, (1,), "")
    drive = raster[8 - delay, 0, 1] + reference["b", "output"].data[7, 0, 1] + reference["m", "spikes"].data[7, 0, 1]
    assert sum(i.reference * i.weight for i in first.inputs) == drive
    assert drive > 0


def test_what_arrives_is_known_of_a_recording_in_another_shape():
    (source, _), (_, sink) = ports(1, 5), ports(1, 5)
    nodes = {"in": source, "l": if_node((1, 5), 1.0), "out": sink}
    graph = make_graph(nodes, [("in", "l"), ("l", "out")])
    raster = np.ones((6, 1, 1, 5))
    reference = driven(graph, raster)
    flat = reference["l", "spikes"].data.reshape(6, 1, 5)
    wrong = np.array(flat)
    wrong[3, 0, 4] ^= 1
    found = nd.compare(run(spikes(flat, "l")), run(spikes(wrong, "l"), target="x"), graph=graph, raster=raster)
    first = found.first_divergence
    assert first is not None
    assert [(i.source, i.neuron) for i in first.inputs] == [("in", (0, 4))]
    part = np.array([4, 2])
    found = nd.compare(
        run(spikes(flat[:, :, part], "l", neurons=part)),
        run(spikes(wrong[:, :, part], "l", neurons=part), target="x"),
        graph=graph,
        raster=raster,
    )
    first = found.first_divergence
    assert first is not None
    assert [(i.source, i.neuron) for i in first.inputs] == [("in", (0, 4))]
    wide = np.ones((6, 1, 9), dtype=int)
    other = nd.compare(run(spikes(wide, "l")), run(spikes(wide * np.arange(9) // 8, "l"), target="x"), graph=graph)
    assert other.first_divergence is not None
    beyond = nd.compare(
        run(spikes(wide, "l")), run(spikes(np.where(np.arange(9) < 8, wide, 0), "l"), target="x"), graph=graph
    )
    assert beyond.first_divergence is not None
    assert "has 5 neurons in the graph, none of index 8" in beyond.first_divergence.inputs_note


# ---------------------------------------------------------------- lags


def test_a_lag_that_only_cuts_off_what_differs_is_not_found():
    a, b = np.zeros((20, 1, 2), dtype=int), np.zeros((20, 1, 2), dtype=int)
    a[19], b[0] = 1, 1
    for one, other in ((spikes(a), spikes(b)), (v_mem(a), v_mem(b)), (v_mem(a), v_mem(0 * b))):
        found = nd.compare(run(one), run(other, target="x"), lag="find")
        assert found.per_node["a"].lag == 0
        assert not found.equal


def test_a_lag_found_tells_how_many_spikes_it_leaves_out():
    a = (np.random.default_rng(3).random((40, 2, 6)) < 0.3).astype(int)
    b = np.concatenate([np.ones_like(a[:2]), a[:-2]])
    found = nd.compare(run(spikes(a)), run(spikes(b), target="x"), lag="find")
    assert found.per_node["a"].lag == 2
    outside = int(a[-2:].sum() + b[:2].sum())
    assert found.notes[-1].endswith(f" at the declared 0; {outside} spikes outside the steps in common)")


def test_a_lag_found_in_the_first_samples_is_held_against_all(monkeypatch):
    monkeypatch.setattr("nirdeploy.comparison.lags._MOST_ENTRIES", 40 * 6)  # one sample
    a = (np.random.default_rng(3).random((40, 3, 6)) < 0.3).astype(int)
    b = a.copy()
    b[:, 0] = np.roll(a[:, 0], 2, axis=0)  # the first sample alone is late
    assert nd.compare(run(spikes(a)), run(spikes(b), target="x"), lag="find").per_node["a"].lag == 0
    b = np.roll(a, 2, axis=0)
    assert nd.compare(run(spikes(a)), run(spikes(b), target="x"), lag="find").per_node["a"].lag == 2


def test_an_estimate_of_a_run_without_recorded_steps():
    found = nd.estimate(run(spikes(SPIKES[:0], steps=range(0, 0)), target="loihi1"))
    assert found.seconds == 0


# ---------------------------------------------------------------- trials


def test_what_one_trial_alone_has_is_listed():
    one, chip = run(spikes(SPIKES)), run(spikes(SPIKES), target="x")
    longer = np.concatenate([SPIKES, SPIKES])
    for sides in (([one, run(spikes(longer))], chip), (one, [chip, run(spikes(longer), target="x")])):
        found = nd.compare(*sides)
        assert not found.equal
        assert [e.reason[:35] for e in found.unaligned] == ["only steps 0 to 19 are on both sides"[:35]]
    more = nd.compare(
        [one, run(spikes(SPIKES), spikes(SPIKES, "b"))],
        [chip, run(spikes(SPIKES), spikes(1 - SPIKES, "b"), target="x")],
    )
    assert not more.equal
    assert {(e.node, e.variable) for e in more.unaligned} == {("b", "spikes")}


def test_trials_of_different_runs_and_runs_that_were_cut_off_are_noted():
    one = run(spikes(SPIKES), graph_sha256="1" * 64)
    trials = [
        run(spikes(SPIKES), target="x", graph_sha256="1" * 64),
        run(spikes(SPIKES), target="y", graph_sha256="2" * 64, complete=False, reason="No space left on device"),
    ]
    assert nd.compare(one, trials).notes[:3] == (
        "trial 1 of x (reference) is a run of y (reference)",
        "trial 1 of x (reference) was cut off: No space left on device",
        f"the two runs are of different graphs: sha256 {'1' * 12} and {'2' * 12}",
    )
    assert nd.compare(replace(one, complete=False), trials[0]).notes == ("reference was cut off",)


def test_steps_that_were_recorded_are_told_to_the_last():
    found = nd.compare(
        run(spikes(np.zeros((100, 1, 2), dtype=int))),
        run(spikes(np.zeros((25, 1, 2), dtype=int), steps=range(0, 50, 2)), target="x"),
    )
    assert found.notes == ("a spikes: x (reference) is recorded at 0, 2, ... 48 only",)


# ---------------------------------------------------------------- causes


def test_only_what_leads_to_a_node_can_have_been_inherited():
    outline = Outline.from_json(
        '{"nodes": [["in", "Input", [4]], ["a", "IF", [4]], ["b", "IF", [4]], ["c", "IF", [4]], ["d", "IF", [4]]],'
        ' "edges": [["in", "a"], ["in", "b"], ["a", "c"], ["c", "a"], ["b", "d"]], "feedback": [["c", "a"]]}'
    )
    assert outline.before() == {"in": 0, "a": 0b01011, "b": 0b00001, "c": 0b01011, "d": 0b00101}

    def wrong(step: int) -> Any:
        data = SPIKES.copy()
        data[step, 0, 0] ^= 1
        return data

    names = "abcd"
    ours = [spikes(SPIKES, name) for name in names]
    theirs = [spikes(wrong(step), name) for name, step in zip(names, (5, 2, 9, 9), strict=True)]
    found = nd.compare(run(*ours, outline=outline), run(*theirs, target="x"))
    causes = {name: node.first_divergence.cause for name, node in found.per_node.items() if node.first_divergence}
    assert causes["a"].startswith("Not inherited from any compared layer: none that leads to it differed before")
    assert causes["b"].startswith("Not inherited from any compared layer: none differed before in this sample;")
    assert causes["c"].startswith("Probably inherited: 'a' already differed in this sample (step 5);")
    assert causes["d"].startswith("Probably inherited: 'b' already differed in this sample (step 2);")
    bare = nd.compare(run(*ours), run(*theirs, target="x"))  # nothing tells what leads where
    told = bare.per_node["c"].first_divergence
    assert told is not None
    assert told.cause.startswith("Probably inherited: 'b' and 1 more already differed in this sample (step 2);")


def test_samples_matched_together_are_matched_as_one_by_one(monkeypatch):
    found = nd.compare(run(spikes(SPIKES)), run(spikes(OTHER), target="x"))
    whole = found.overall_match(1)
    assert whole is not None
    assert 0 < whole.matched < whole.reference
    monkeypatch.setattr("nirdeploy.comparison.trains._ENTRIES", 1)
    assert found.overall_match(1) == whole


def test_values_of_a_lag_found_differ_less():
    rng = np.random.default_rng(5)
    for _ in range(50):
        steps = int(rng.integers(4, 20))
        a, b = rng.poisson(1.0, (2, steps, 1, 3)).astype(float)
        declared = nd.compare(run(v_mem(a)), run(v_mem(b), target="x"))
        found = nd.compare(run(v_mem(a)), run(v_mem(b), target="x"), lag="find")
        one, other = found.per_node["a"], declared.per_node["a"]
        assert one.lag == other.lag or (one.v_mem_rmse or 0) < (other.v_mem_rmse or 0)
