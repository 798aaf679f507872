"""Aligning, measuring and explaining, on trajectories small enough to count by hand."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nirdeploy.comparison import Comparison, compare
from nirdeploy.comparison import metrics as m
from nirdeploy.comparison.align import labels
from nirdeploy.comparison.text import neuron_text, number, percent, several, shorten, shown, table
from nirdeploy.errors import ComparisonError
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import Record, Trajectory


def spikes(node: str, data: Any, **fields: Any) -> Record:
    return Record(node, "spikes", np.asarray(data), units="count", **fields)


def v_mem(node: str, data: Any, **fields: Any) -> Record:
    return Record(node, "v_mem", np.asarray(data), **fields)


def trajectory(*records: Record, target: str = "reference", **fields: Any) -> Trajectory:
    executor = "reference" if target == "reference" else "emulator"
    return Trajectory({(r.node, r.variable): r for r in records}, target=target, executor=executor, **fields)


def zeros(steps: int = 4, batch: int = 2, *shape: int) -> np.ndarray:
    return np.zeros((steps, batch, *(shape or (3,))), dtype=np.int32)


def with_ones(data: np.ndarray, *indices: tuple[int, ...]) -> np.ndarray:
    changed = data.copy()
    for index in indices:
        changed[index] = 1
    return changed


def later(data: np.ndarray, steps: int) -> np.ndarray:
    """The same, `steps` later, with as many steps more."""
    return np.concatenate([np.zeros_like(data[:steps]), data]) if steps else data


# --- metrics -----------------------------------------------------------------------------------------------------


def test_spike_agreement_counts_shared_spikes_twice_over_all_spikes() -> None:
    reference, chip = np.array([[1, 0, 2, 0]]), np.array([[1, 1, 1, 0]])
    # shared 1 + 0 + 1 + 0 = 2 of 3 and 3
    assert m.spike_agreement(reference, chip) == pytest.approx(2 * 2 / 6)
    assert m.spike_sums(reference, chip) == m.SpikeSums(shared=2, reference=3, chip=3, differing=2, entries=4)


def test_spike_agreement_of_two_silent_sides_is_one() -> None:
    assert m.spike_agreement(np.zeros((3, 2)), np.zeros((3, 2))) == 1.0


def test_spike_agreement_of_a_silent_and_a_loud_side_is_zero() -> None:
    assert m.spike_agreement(np.zeros((1, 2)), np.ones((1, 2))) == 0.0


def test_voltage_errors_are_the_root_mean_square_and_the_largest_difference() -> None:
    reference, chip = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[3.0, 1.0], [2.0, -1.0]])
    # differences -3, 0, 0, 4: squares 9 + 16 over 4
    assert m.rmse(reference, chip) == pytest.approx(2.5)
    assert m.max_error(reference, chip) == pytest.approx(4.0)
    assert m.error_sums(reference, chip) == m.ErrorSums(squares=25.0, largest=4.0, differing=2, entries=4)


def test_voltage_errors_are_divided_by_the_unit_of_each_neuron() -> None:
    reference, chip = np.array([[2.0, 3.0]]), np.array([[1.0, 0.0]])
    assert m.max_error(reference, chip, np.array([0.5, 3.0])) == pytest.approx(2.0)
    assert m.rmse(reference, chip, 2.0) == pytest.approx(np.sqrt((0.25 + 2.25) / 2))


def test_voltage_errors_of_integers_do_not_wrap() -> None:
    assert m.max_error(np.array([200], np.uint8), np.array([201], np.uint8)) == 1.0


def test_nan_is_reported_and_not_hidden_by_later_blocks() -> None:
    bad = m.error_sums(np.array([np.nan]), np.array([0.0]))
    good = m.error_sums(np.array([1.0]), np.array([0.0]))
    assert np.isnan((bad + good).largest)
    assert np.isnan((good + bad).rmse)


def test_sums_of_blocks_add_to_the_sums_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    reference, chip = rng.integers(0, 3, (6, 2, 5)), rng.integers(0, 3, (6, 2, 5))
    whole = m.spike_sums(reference, chip)
    assert m.spike_sums(reference[:2], chip[:2]) + m.spike_sums(reference[2:], chip[2:]) == whole


def test_first_difference_is_in_row_major_order() -> None:
    chip = with_ones(zeros(), (2, 0, 1), (1, 1, 2), (1, 1, 0))
    assert m.first_difference(zeros(), chip) == (1, 1, 0)
    assert m.first_difference(zeros(), zeros()) is None
    assert m.first_difference(np.zeros((0, 2)), np.zeros((0, 2))) is None


def test_empty_arrays_measure_as_equal() -> None:
    assert m.error_sums(np.zeros(0), np.zeros(0)).rmse == 0.0
    assert m.spike_agreement(np.zeros(0), np.zeros(0)) == 1.0


# --- properties --------------------------------------------------------------------------------------------------

counts = hnp.arrays(
    np.int32,
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4)),
    elements=st.integers(0, 3),
)


def pair_of(data: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, data.shape).astype(np.int32)


@given(counts)
def test_a_trajectory_agrees_with_itself(data: np.ndarray) -> None:
    run = trajectory(spikes("a", data), v_mem("a", data * 0.3, threshold=1.0))
    found = compare(run, run)
    assert found.equal
    assert found.spike_agreement == 1.0
    assert found.v_mem_error == 0.0
    assert found.first_divergence is None


@given(counts, st.integers(0, 4))
def test_a_run_shifted_by_its_lag_agrees(data: np.ndarray, lag: int) -> None:
    reference = trajectory(spikes("a", data))
    padded = np.concatenate([np.full((lag, *data.shape[1:]), 7, np.int32), data])
    recorded = compare(reference, trajectory(spikes("a", padded, lag=lag), target="x"))
    given_lag = compare(reference, trajectory(spikes("a", padded), target="x"), lag=lag)
    back = compare(trajectory(spikes("a", padded, lag=lag), target="x"), reference)
    assert recorded.equal
    assert given_lag.equal
    assert back.equal
    assert back.per_node["a"].lag == -lag


@given(counts, st.integers(0, 99))
def test_agreement_lies_between_zero_and_one_and_is_symmetric(data: np.ndarray, seed: int) -> None:
    a, b = trajectory(spikes("a", data)), trajectory(spikes("a", pair_of(data, seed)), target="x")
    forward, backward = compare(a, b), compare(b, a)
    assert forward.spike_agreement is not None
    assert 0.0 <= forward.spike_agreement <= 1.0
    assert forward.spike_agreement == backward.spike_agreement
    assert (forward.spike_agreement == 1.0) == (forward.first_divergence is None)


@given(counts, st.integers(0, 99))
def test_any_split_with_index_maps_compares_as_the_whole(data: np.ndarray, seed: int) -> None:
    n = data.shape[2]
    order = np.random.default_rng(seed).permutation(n)
    cut = seed % (n + 1)
    other = pair_of(data, seed)
    parts = [
        spikes(f"a.{i}", other[:, :, index], source="a", index_map=index)
        for i, index in enumerate((order[:cut], order[cut:]))
        if index.size
    ]
    whole = compare(trajectory(spikes("a", data)), trajectory(spikes("a", other), target="x"))
    split = compare(trajectory(spikes("a", data)), trajectory(*parts, target="x"))
    assert split.to_dict() == whole.to_dict()


@settings(max_examples=30)
@given(counts, st.integers(0, 99), st.integers(1, 40))
def test_the_result_does_not_depend_on_the_block_size(data: np.ndarray, seed: int, block: int) -> None:
    a = trajectory(spikes("a", data), v_mem("a", data * 0.5))
    b = trajectory(spikes("a", pair_of(data, seed)), v_mem("a", data * 0.5), target="x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nirdeploy.comparison.align._BLOCK", block)
        small = compare(a, b).to_dict()
    assert small == compare(a, b).to_dict()


# --- the first divergence ----------------------------------------------------------------------------------------


def test_the_first_divergence_is_the_smallest_step_then_the_earlier_node_then_sample_then_neuron() -> None:
    reference = trajectory(spikes("late", zeros()), spikes("early", zeros()))
    chip = trajectory(
        spikes("early", with_ones(zeros(), (1, 0, 0), (3, 0, 0))),
        spikes("late", with_ones(zeros(), (1, 1, 2), (1, 1, 1), (2, 0, 0))),
        target="x",
    )
    found = compare(reference, chip)
    first = found.first_divergence
    assert first is not None
    assert (first.node, first.step, first.sample, first.neuron) == ("late", 1, 1, (1,))
    assert (first.expected, first.observed) == (0, 1)
    early = found.per_node["early"].first_divergence
    assert early is not None
    assert (early.step, early.sample, early.neuron) == (1, 0, (0,))


def test_the_neuron_is_an_index_in_the_nodes_own_shape_and_steps_are_given_in_both_times() -> None:
    data = zeros(4, 1, 2, 3, 4)
    chip = spikes("c", later(with_ones(data, (2, 0, 1, 2, 3)), 2), lag=2)
    first = compare(trajectory(spikes("c", data)), trajectory(chip, target="x")).first_divergence
    assert first is not None
    assert (first.neuron, first.step, first.chip_step) == ((1, 2, 3), 2, 4)


def test_voltages_and_thresholds_of_the_divergence_are_in_model_units() -> None:
    v = np.array([0.25, 0.9])[:, None, None]
    reference = trajectory(spikes("a", [[[0]], [[0]]]), v_mem("a", v, threshold=1.0))
    chip = trajectory(
        spikes("a", [[[0]], [[1]]]),
        v_mem("a", np.array([30, 2])[:, None, None], scale=0.01, threshold=80),
        target="x",
        counters={"a": {"saturations": 3}},
    )
    first = compare(reference, chip).first_divergence
    assert first is not None
    assert (first.v_reference, first.v_chip) == (pytest.approx(0.9), pytest.approx(0.02))
    assert (first.threshold_reference, first.threshold_chip) == (pytest.approx(1.0), pytest.approx(0.8))
    assert "before, v_mem of this neuron differed by up to 0.05 thresholds (step 0)" in first.cause
    assert "the reference ended the step 0.1 thresholds below its own threshold" in first.cause
    assert "3 saturations" in first.cause
    assert "v_mem after the reset 0.9 against 0.02; threshold 1 against 0.8" in str(first)


def test_the_cause_says_what_the_records_cannot_tell() -> None:
    found = compare(
        trajectory(spikes("a", zeros())), trajectory(spikes("a", with_ones(zeros(), (0, 0, 0))), target="x")
    )
    assert found.first_divergence is not None
    assert found.first_divergence.cause == (
        "Spikes of no other layer were compared, so it may be inherited; "
        "v_mem of this neuron was not compared, so its state before is unknown."
    )
    assert found.first_divergence.v_reference is None


def test_the_cause_names_the_layer_that_differed_before_in_the_same_sample() -> None:
    reference = trajectory(*(spikes(n, zeros()) for n in "abc"))
    chip = trajectory(
        spikes("a", with_ones(zeros(), (2, 0, 0), (0, 1, 0))),
        spikes("b", with_ones(zeros(), (2, 0, 1))),
        spikes("c", with_ones(zeros(), (1, 0, 1))),
        target="x",
    )
    nodes = compare(reference, chip).per_node
    causes = {n: nodes[n].first_divergence.cause for n in "abc"}  # type: ignore[union-attr]
    # b at step 2 of sample 0: c differed at step 1, a in the same step but recorded before; sample 1 does not count
    assert causes["b"].startswith("Probably inherited: 'c' and 1 more already differed in this sample (step 1)")
    assert causes["c"].startswith("Not inherited from any compared layer")
    assert causes["a"].startswith("Not inherited from any compared layer")


def test_the_cause_says_when_the_voltage_was_the_same_until_then() -> None:
    v = np.zeros((2, 1, 1))
    found = compare(
        trajectory(spikes("a", np.zeros((2, 1, 1), int)), v_mem("a", v)),
        trajectory(spikes("a", np.array([[[0]], [[1]]])), v_mem("a", np.array([[[0.0]], [[0.5]]])), target="x"),
    )
    assert found.first_divergence is not None
    assert "until then v_mem of this neuron was the same on both sides" in found.first_divergence.cause
    assert "threshold" not in found.first_divergence.cause


def test_the_first_compared_step_has_no_history() -> None:
    found = compare(
        trajectory(spikes("a", zeros()), v_mem("a", zeros() * 1.0)),
        trajectory(spikes("a", with_ones(zeros(), (0, 0, 0))), v_mem("a", zeros() * 1.0), target="x"),
    )
    assert found.first_divergence is not None
    assert "it is the first compared step" in found.first_divergence.cause


# --- aligning ----------------------------------------------------------------------------------------------------


def test_a_negative_lag_compares_the_steps_both_have() -> None:
    data = np.arange(5, dtype=np.int32)[:, None, None]
    found = compare(trajectory(spikes("a", data)), trajectory(spikes("a", data[2:]), target="x"), lag=-2)
    assert found.equal
    assert found.per_node["a"].entries == 3


def test_lag_by_node_overrides_the_records_lag_of_that_node_only() -> None:
    data = with_ones(zeros(), (1, 0, 0))
    reference = trajectory(spikes("a", data), spikes("b", data))
    chip = trajectory(spikes("a", later(data, 1), lag=3), spikes("b", later(data, 2), lag=2), target="x")
    found = compare(reference, chip, lag={"a": 1})
    assert found.equal
    assert (found.per_node["a"].lag, found.per_node["b"].lag) == (1, 2)


def test_the_reference_may_have_a_lag_too() -> None:
    data = with_ones(zeros(), (1, 0, 0))
    a = trajectory(spikes("a", later(data, 1), lag=1), target="x")
    b = trajectory(spikes("a", later(data, 3), lag=3), target="y")
    assert compare(a, b).equal
    assert compare(a, b).per_node["a"].lag == 2


@pytest.mark.parametrize("lag", [1.5, True, {"a": 0.5}, {"a": "1"}])
def test_refuses_a_lag_that_is_not_whole(lag: Any) -> None:
    run = trajectory(spikes("a", zeros()))
    with pytest.raises(ComparisonError, match="expected a whole number of steps"):
        compare(run, run, lag=lag)


def test_refuses_a_lag_for_an_unknown_node_and_suggests_one() -> None:
    run = trajectory(spikes("conv1", zeros()))
    with pytest.raises(ComparisonError, match=r"unknown node 'conv'\. Did you mean 'conv1'"):
        compare(run, run, lag={"conv": 1})


def test_a_scaled_record_is_compared_in_model_units() -> None:
    found = compare(
        trajectory(v_mem("a", np.array([[[0.5]]]), threshold=2.0)),
        trajectory(v_mem("a", np.array([[[40]]]), scale=0.01, threshold=180), target="x"),
    )
    node = found.per_node["a"]
    assert node.v_unit == "threshold"
    assert node.v_mem_rmse == node.v_mem_max_error == pytest.approx(0.05)  # 0.1 model units of a threshold of 2
    assert node.spike_agreement is None
    assert found.spike_agreement is None
    assert found.v_mem_error == pytest.approx(0.05)


def test_without_a_threshold_errors_are_in_model_units() -> None:
    found = compare(
        trajectory(v_mem("a", np.array([[[0.5]]]))), trajectory(v_mem("a", np.array([[[0.4]]])), target="x")
    )
    assert found.per_node["a"].v_unit == found.v_unit == "model"
    assert found.v_mem_error == pytest.approx(0.1)


def test_the_chips_threshold_serves_where_the_reference_has_none() -> None:
    chip = v_mem("a", np.array([[[2]]]), scale=0.1, threshold=4)
    found = compare(trajectory(v_mem("a", np.array([[[0.4]]]))), trajectory(chip, target="x"))
    assert found.per_node["a"].v_mem_max_error == pytest.approx(0.5)


def test_a_threshold_per_neuron_follows_the_index_map() -> None:
    reference = v_mem("a", np.array([[[1.0, 1.0]]]), threshold=np.array([1.0, 4.0]))
    chip = v_mem("a.0", np.array([[[2.0, 1.0]]]), source="a", index_map=np.array([1, 0]))
    # the chip's first neuron is the reference's second: 1 model unit of a threshold of 4
    found = compare(trajectory(reference), trajectory(chip, target="x"))
    assert found.per_node["a"].v_mem_max_error == pytest.approx(0.25)


def test_overall_voltage_error_pools_the_nodes_that_have_a_threshold() -> None:
    reference = trajectory(v_mem("a", np.zeros((1, 1, 1)), threshold=2.0), v_mem("b", np.zeros((1, 1, 1))))
    chip = trajectory(v_mem("a", np.ones((1, 1, 1))), v_mem("b", np.full((1, 1, 1), 9.0)), target="x")
    assert compare(reference, chip).v_mem_error == pytest.approx(0.5)


def test_runs_with_and_without_a_batch_axis_compare_when_there_is_one_sample() -> None:
    data = with_ones(zeros(4, 1), (2, 0, 1))
    bare = spikes("a", data[:, 0], batched=False)
    assert compare(trajectory(spikes("a", data)), trajectory(bare, target="x")).equal


def test_axes_of_length_one_do_not_matter() -> None:
    assert compare(
        trajectory(spikes("a", zeros(4, 1, 3))), trajectory(spikes("a", zeros(4, 1, 3, 1, 1)), target="x")
    ).equal


def test_a_permuted_copy_is_found_by_source_and_index_map() -> None:
    data = with_ones(zeros(), (1, 0, 0))
    copy = spikes("core 3", data[:, :, [2, 0, 1]], source="a", index_map=np.array([2, 0, 1]))
    assert compare(trajectory(spikes("a", data)), trajectory(copy, target="x")).equal


def test_i_syn_and_output_are_measured_too() -> None:
    one = np.ones((2, 1, 1))
    reference = trajectory(Record("a", "i_syn", one), Record("out", "output", one))
    chip = trajectory(Record("a", "i_syn", one * 1.5), Record("out", "output", one), target="x")
    found = compare(reference, chip)
    assert found.per_node["a"].variables["i_syn"].max_error == 0.5
    assert found.per_node["out"].variables["output"].rmse == 0.0
    assert not found.equal
    assert "a i_syn: RMS 0.5, largest 0.5 model units" in found.summary()


# --- what cannot be aligned --------------------------------------------------------------------------------------


def reasons(a: Trajectory, b: Trajectory, **options: Any) -> dict[tuple[str, str], str]:
    """Reasons of an otherwise good comparison: both sides get a record 'ok'."""
    ok = spikes("ok", zeros())
    both = (replace(t, records={**t.records, ("ok", "spikes"): ok}) for t in (a, b))
    found = compare(*both, **options)
    assert found.per_node["ok"].spike_agreement == 1.0
    assert not found.equal
    return {(node, variable): reason for node, variable, reason in found.unaligned}


def test_lists_what_is_recorded_on_one_side_only() -> None:
    a = trajectory(spikes("a", zeros()), v_mem("b", zeros()))
    b = trajectory(v_mem("b", zeros()), spikes("b", zeros()), spikes("c", zeros(), source="d"), target="x")
    assert reasons(a, b) == {
        ("a", "spikes"): "not recorded by x (emulator)",
        ("b", "spikes"): "not recorded by reference",
        ("c", "spikes"): "its source 'd' is not recorded by reference",
    }


@pytest.mark.parametrize(
    ("chip", "reason"),
    [
        ([spikes("a", zeros(4, 2, 5))], r"shape \(3,\) in reference, \(5,\) in x \(emulator\), and no index map"),
        ([spikes("a", zeros(4, 9))], r"2 samples in reference, 9 in x \(emulator\)"),
        ([spikes("a", zeros(), lag=4)], "no step in common: 4 and 4 steps at a lag of 4"),
        ([spikes("a", zeros(), view="before_pool")], r"hidden by the read-out view 'before_pool' in x \(emulator\)"),
        ([spikes("a", zeros() + 0.5)], r"spikes of x \(emulator\) are not whole counts at step 0"),
        ([spikes("a", zeros() * np.nan)], "not whole counts"),
        ([spikes("a", zeros() - 1.0)], "not whole counts"),
        ([spikes("a", zeros(), index_map=np.array([0, 1]))], "index map .* has 2 entries for 3 neurons"),
        ([spikes("a", zeros(), index_map=np.array([0, 1, 9]))], "reaches neuron 9, reference has 3"),
        ([spikes("a", zeros(), index_map=np.array([0, 1, -2]))], "negative index -2"),
        ([spikes("a", zeros(), index_map=np.array([0, 2, 2]))], "overlap: neuron 2"),
        (
            [spikes(n, zeros(), source="a", index_map=np.arange(3)) for n in "pq"],
            "overlap: neuron 0 is in them more than once",
        ),
        ([spikes(n, zeros(), source="a") for n in "pq"], "2 records .* not all with an index map"),
        (
            [spikes(str(i), zeros(4 + i, 2, 1), source="a", index_map=np.array([i])) for i in range(3)],
            "slices .* differ in step counts",
        ),
        (
            [spikes(str(i), zeros(4, 2, 1), source="a", index_map=np.array([i]), lag=i) for i in range(3)],
            "slices .* differ in lags",
        ),
    ],
)
def test_lists_with_the_reason_what_does_not_fit(chip: list[Record], reason: str) -> None:
    found = reasons(trajectory(spikes("a", zeros())), trajectory(*chip, target="x"))
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found["a", "spikes"])


def test_lists_neurons_and_steps_that_are_on_one_side_only() -> None:
    part = spikes("a", zeros(3, 2, 2), index_map=np.array([2, 0]))
    run = trajectory(spikes("a", zeros(4, 2, 3)))
    a = compare(run, trajectory(part, target="x"))
    assert [entry.reason for entry in a.unaligned] == [
        "only steps 0 to 2 are on both sides: 4 against 3 steps at a lag of 0",
        "only 2 of 3 neurons are on both sides",
    ]
    assert a.per_node["a"].entries == 3 * 2 * 2


def test_steps_that_the_lag_cuts_off_are_no_finding() -> None:
    run = trajectory(spikes("a", zeros(4)))
    assert not compare(run, trajectory(spikes("a", zeros(4), lag=1), target="x")).unaligned
    assert not compare(run, trajectory(spikes("a", zeros(5), lag=1), target="x")).unaligned


def test_the_same_view_on_both_sides_hides_nothing() -> None:
    run = trajectory(spikes("a", zeros(), view="before_pool"), target="x")
    assert compare(run, run).equal


def test_nothing_to_compare_is_an_error_that_names_both_sides_records() -> None:
    with pytest.raises(ComparisonError, match=r"reference records a/spikes; x \(emulator\) records b/v_mem.*Record"):
        compare(trajectory(spikes("a", zeros())), trajectory(v_mem("b", zeros()), target="x"))
    with pytest.raises(ValueError, match="records nothing"):
        compare(trajectory(spikes("a", zeros())), trajectory(target="x"))


def test_refuses_what_is_no_trajectory() -> None:
    with pytest.raises(ComparisonError, match="takes two trajectories, got ndarray"):
        compare(trajectory(spikes("a", zeros())), zeros())  # type: ignore[arg-type]


def test_empty_records_are_listed() -> None:
    empty = trajectory(spikes("a", np.zeros((4, 2, 0), int)))
    assert reasons(empty, empty) == {("a", "spikes"): "the records are empty"}


def test_the_two_sides_never_bear_the_same_name() -> None:
    run = trajectory(spikes("a", zeros()), target="x")
    assert labels(run, run) == ("first x (emulator)", "second x (emulator)")


# --- the value ---------------------------------------------------------------------------------------------------


def example() -> Comparison:
    data = with_ones(zeros(), (1, 0, 0), (2, 1, 1), (3, 1, 1))
    chip = with_ones(zeros(), (1, 0, 0), (2, 1, 1), (3, 1, 2))
    return compare(
        trajectory(spikes("lif\n1", data), v_mem("lif\n1", data * 1.0, threshold=1.0), spikes("gone", data)),
        trajectory(spikes("lif\n1", chip), v_mem("lif\n1", chip * 1.0, threshold=1.0), target="speck2f"),
    )


def test_overall_agreement_pools_the_spikes_of_all_nodes() -> None:
    quiet, loud = with_ones(zeros(), (0, 0, 0)), np.ones_like(zeros())
    reference = trajectory(spikes("a", quiet), spikes("b", loud))
    chip = trajectory(spikes("a", zeros()), spikes("b", loud), target="x")
    # 24 shared, 25 and 24 spikes
    assert compare(reference, chip).spike_agreement == pytest.approx(48 / 49)


def test_node_comparison_holds_the_counts() -> None:
    node = example().per_node["lif\n1"]
    assert (node.spikes_reference, node.spikes_chip, node.differing_entries, node.entries) == (3, 3, 2, 24)
    assert node.spike_agreement == pytest.approx(2 / 3)
    assert node.v_mem_rmse == pytest.approx(np.sqrt(2 / 24))
    assert node.lag == 0


def test_json_is_plain_and_holds_the_divergence_and_what_was_not_compared() -> None:
    values = json.loads(example().to_json())
    assert values["target"] == "speck2f"
    assert values["first_divergence"]["step"] == 3
    assert values["first_divergence"]["neuron"] == [1]
    assert values["per_node"]["lif\n1"]["spike_agreement"] == pytest.approx(2 / 3)
    assert values["unaligned"] == [
        {"node": "gone", "variable": "spikes", "reason": "not recorded by speck2f (emulator)"}
    ]


def test_json_stays_valid_with_numbers_that_are_not_finite() -> None:
    found = compare(
        trajectory(v_mem("a", np.array([[[np.nan]]]))), trajectory(v_mem("a", np.array([[[1.0]]])), target="x")
    )
    assert json.loads(found.to_json())["v_mem_error"] == "nan"


def test_summary_names_the_verdict_the_nodes_the_first_difference_and_what_was_not_compared() -> None:
    lines = example().summary().splitlines()
    assert lines[0].startswith("speck2f (emulator) against reference: 66.67 % of spikes agree, v_mem differs by 0.2887")
    text = "\n".join(lines)
    assert "lif\\n1" in text
    assert "first difference: lif\\n1 neuron 1, sample 1, step 3: 1 spike expected, 0 observed" in text
    assert "  gone spikes: not recorded by speck2f (emulator)" in text


def test_summary_of_equal_runs_says_so() -> None:
    run = trajectory(spikes("a", zeros()))
    assert "no spike differs" in compare(run, run).summary()


def test_notes_name_differing_graphs_and_convention_fields() -> None:
    a = trajectory(spikes("a", zeros()), graph_sha256="1" * 64, convention=Convention(reset="zero"))
    b = trajectory(spikes("a", zeros()), target="x", graph_sha256="2" * 64, convention=Convention(reset="subtract"))
    notes = compare(a, b).notes
    assert notes == (
        "the two runs are of different graphs: sha256 111111111111 and 222222222222",
        "the conventions differ: reset 'zero' against 'subtract'",
    )
    assert not compare(a, a).notes


def test_a_comparison_cannot_be_changed() -> None:
    found = example()
    with pytest.raises(AttributeError):
        found.unaligned = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.per_node["a"] = None  # type: ignore[index]


def test_comparing_changes_neither_side() -> None:
    data = with_ones(zeros(), (0, 0, 0))
    run = trajectory(spikes("a", data), v_mem("a", data * 1.0, threshold=0.5))
    before = {key: record.data.copy() for key, record in run.records.items()}
    compare(run, run)
    assert all(np.array_equal(run.records[key].data, value) for key, value in before.items())


# --- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.00 %"), (0.99999, "> 99.99 %"), (0.987, "98.70 %"), (0.0, "0.00 %"), (1e-9, "< 0.01 %"), (None, "-")],
)
def test_a_percentage_reads_hundred_or_zero_only_when_it_is(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_numbers_names_and_neurons_as_text() -> None:
    assert (number(1234567), number(0.123456), number(None)) == ("1 234 567", "0.1235", "-")
    assert (neuron_text((7,)), neuron_text((3, 1, 2))) == ("7", "(3, 1, 2)")
    assert shown("a\n\x00\u202e/é") == "a\\n\\x00\\u202e/é"
    assert shorten("x" * 60, 11) == "xxxxx…xxxxx"
    assert (several(1, "error"), several(0, "error")) == ("1 error", "0 errors")
    assert table(("a", "b", "c"), [("x", "10", "y")]) == ["a   b  c", "x  10  y"]


# --- size --------------------------------------------------------------------------------------------------------


def test_a_whole_test_set_compares_in_seconds() -> None:
    """360 samples, 20 steps, 3 layers of 1000; about 0.2 s where nothing else runs, the bound is for shared cores."""
    rng = np.random.default_rng(1)
    records = []
    for name in "abc":
        data = (rng.random((20, 360, 1000), dtype=np.float32) < 0.1).astype(np.int8)
        records += [spikes(name, data), v_mem(name, data, scale=0.5, threshold=2)]
    run = trajectory(*records)
    start = time.perf_counter()
    assert compare(run, replace(run, target="x")).equal
    assert time.perf_counter() - start < 5


def test_rates_and_what_the_chip_counted_stand_with_each_node() -> None:
    data = np.zeros((4, 2, 3), dtype=np.int32)
    data[1, 0, 1] = 2
    parts = [spikes(n, data[:, :, k : k + 1], source="a", index_map=np.array([k])) for k, n in enumerate("pqr")]
    counters = {"p": {"saturations": 3, "spikes": 0}, "q": {"saturations": 4, "clamps": 1}}
    found = compare(trajectory(spikes("a", data)), trajectory(*parts, target="x", counters=counters))
    node = found.per_node["a"]
    assert (node.rate_reference, node.rate_chip) == (2 / 24, 2 / 24)
    assert node.counters == {"saturations": 7, "clamps": 1, "spikes": 0}
    assert "a on the chip: 7 saturations, 1 clamps" in found.summary()
    assert found.to_dict()["per_node"]["a"]["counters"]["saturations"] == 7
