"""Hints are told of what was done to the records, and of nothing else."""

import re

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import chain, if_node, linear_node

from nirdeploy.comparison import compare
from nirdeploy.comparison.hints import hints
from nirdeploy.outline import Outline
from nirdeploy.trajectory import Record, Trajectory


def trajectory(spikes, v_mem=None, counters=None, outline=None, **fields):
    records = {("n", "spikes"): Record("n", "spikes", spikes, **fields)}
    if v_mem is not None:
        records["n", "v_mem"] = Record("n", "v_mem", v_mem, threshold=1.0, **fields)
    return Trajectory(records, counters=counters or {}, outline=outline)


def trains(*shape, rate=0.1, seed=0):
    return (np.random.default_rng(seed).random(shape) < rate).astype(np.int8)


def flipped(spikes, share, seed=1):
    return spikes ^ (np.random.default_rng(seed).random(spikes.shape) < share)


def told(*args):
    """Hints of two runs, each spikes or (spikes, v_mem)."""
    runs = [trajectory(*arg) if isinstance(arg, tuple) else trajectory(arg) for arg in args]
    found = compare(*runs)
    assert found.first_divergence is not None
    return found.hints


# ---------------------------------------------------------------- spikes


@pytest.mark.parametrize("shift", [1, 2, 3, 4, -1, -2, -3, -4])
def test_whole_steps_are_found_in_both_directions(shift):
    reference = trains(60, 3, 20)
    (hint,) = told(reference, np.roll(reference, shift, axis=0))
    words = "1 step" if abs(shift) == 1 else f"{abs(shift)} steps"
    sign = "-" if shift < 0 else ""
    assert hint.startswith(f"shifted by {sign}{words}, ")
    assert f"costs {words} {'more' if shift > 0 else 'less'} than" in hint


def test_a_shift_beyond_the_lag_that_is_known_is_told_by_what_is_missing():
    reference = trains(60, 3, 20)
    (hint,) = compare(trajectory(reference), trajectory(np.roll(reference, 3, axis=0), lag=2)).hints
    assert hint.startswith("shifted by 1 step, 100.00 % of n's spikes agree (")


def test_what_feeds_the_node_is_named():
    outline = Outline.of(chain((2,), fc=linear_node(np.ones((20, 2))), n=if_node((20,))))
    reference = trains(60, 3, 20)
    found = compare(trajectory(reference, outline=outline), trajectory(np.roll(reference, 1, axis=0)))
    assert "what leads there from fc costs 1 step more" in found.hints[0]


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1), (0.02, 1), (0.06, 0)])
def test_a_shift_among_other_differences_is_told_where_it_leaves_few(noise, expected):
    reference = trains(60, 3, 20)
    assert len(told(reference, flipped(np.roll(reference, 1, axis=0), noise))) == expected


def test_a_slip_in_the_middle_of_a_run_is_told_from_there_on():
    reference = trains(120, 3, 20)
    late = np.concatenate([reference[:60], reference[59:119]])
    (hint,) = told(reference, late)
    assert re.match(r"shifted by 1 step, 100\.00 % of n's spikes from step 60 on agree \(", hint)


def test_a_shift_of_half_of_the_neurons_is_none_of_the_node():
    reference = trains(120, 3, 20)
    late = reference.copy()
    late[:, :, ::2] = np.roll(late[:, :, ::2], 1, axis=0)
    assert told(reference, late) == ()


def test_few_spikes_tell_nothing():
    reference = np.zeros((30, 1, 4), np.int8)
    reference[[3, 9, 14, 20, 25], 0, [0, 1, 2, 3, 0]] = 1
    assert told(reference, np.roll(reference, 1, axis=0)) == ()


def test_several_spikes_a_step_on_one_side_only_are_told():
    many = np.random.default_rng(0).poisson(0.5, (60, 3, 20))
    (hint,) = told(np.minimum(many, 1), many)
    assert hint.startswith(f"the reference never spikes more than once a step, the chip up to {many.max()} times")
    assert told(many, np.minimum(many, 1))[0].startswith("the chip never spikes more than once a step, the reference")
    assert told(np.minimum(many, 2), many) == ()
    other = np.random.default_rng(1).poisson(0.5, (60, 3, 20))
    assert told(np.minimum(other, 1), many) == ()  # not where the one has no spike at all


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda x: np.swapaxes(x, -1, -2), "with y and x exchanged, 100"),
        (lambda x: x[..., ::-1, :], "with y mirrored, 100"),
        (lambda x: x[..., ::-1], "with x mirrored, 100"),
        (lambda x: x[..., ::-1, ::-1], "with y and x mirrored, 100"),
    ],
)
@pytest.mark.parametrize("size", [6, 64])
def test_turned_maps_are_found(turn, words, size):
    reference = trains(30, 2, 3, size, size)
    (hint,) = told(reference, turn(reference))
    assert hint.startswith(words)


def test_maps_that_are_not_square_are_mirrored_at_most():
    reference = trains(30, 2, 3, 4, 6)
    assert told(reference, np.swapaxes(reference, -1, -2).reshape(reference.shape)) == ()
    assert "with x mirrored" in told(reference, reference[..., ::-1])[0]


def test_exchanged_channels_are_named_and_a_longer_order_listed():
    reference = trains(40, 2, 9, 3, 3)
    order = np.arange(9)
    order[[2, 5]] = order[[5, 2]]
    assert "with channels 2 and 5 exchanged, 100" in told(reference, reference[:, :, order])[0]
    order = np.roll(np.arange(9), 1)  # the chip's channel k is the reference's k - 1
    words = "with channels reordered (0 at 1, 1 at 2, 2 at 3, 3 at 4, 4 at 5, 5 at 6, ...), 100"
    assert words in told(reference, reference[:, :, order])[0]


def test_hundreds_of_neurons_in_another_order_are_found_where_they_are_equal():
    reference = trains(100, 2, 700)
    assert "with neurons reordered" in told(reference, reference[:, :, np.random.default_rng(2).permutation(700)])[0]


def test_channels_that_are_not_quite_equal_are_assigned():
    reference = trains(80, 2, 40, 2, 2)
    order = np.random.default_rng(3).permutation(40)
    (hint,) = told(reference, flipped(reference[:, :, order], 0.005))
    first = int(np.flatnonzero(order == 0)[0])
    assert f"(0 at {first}, " in hint
    assert 90 < float(re.search(r"([\d.]+) % of n's", hint)[1]) < 100


def test_channels_with_next_to_no_spikes_could_agree_by_chance_and_are_not_told():
    reference = trains(20, 1, 60, rate=0.03)
    assert told(reference, trains(20, 1, 60, rate=0.03, seed=5)) == ()


def test_single_spikes_can_always_be_reordered_and_are_not_told():
    reference, chip = np.zeros((20, 1, 60), np.int8), np.zeros((20, 1, 60), np.int8)
    reference[np.arange(60) % 20, 0, np.arange(60)] = 1
    chip[np.random.default_rng(7).permutation(60) % 20, 0, np.arange(60)] = 1
    assert told(reference, chip) == ()
    thrice = [np.concatenate([side, side[::-1], side]) for side in (reference, chip)]
    assert "with neurons reordered" in told(*thrice)[0]


def test_unlike_trains_give_no_hint():
    for seed in range(20):
        assert told(trains(50, 2, 6, 5, 5, seed=seed), trains(50, 2, 6, 5, 5, seed=100 + seed)) == ()


# ---------------------------------------------------------------- v_mem


def integrated(x, *, threshold=1.0, subtract=False, low=None, high=None, gain=1.0):
    """Spikes and v of neurons that integrate, inclusive."""
    v, spikes, states = np.zeros(x.shape[1:]), [], []
    for now in x:
        v = v + gain * now
        v = v if high is None else np.minimum(v, high)
        s = v >= threshold
        v = np.where(s, v - threshold if subtract else 0.0, v)
        v = v if low is None else np.maximum(v, low)
        spikes.append(s.astype(np.int8))
        states.append(v)
    return np.array(spikes), np.array(states)


DRIVE = np.random.default_rng(4).normal(0.15, 0.4, (60, 4, 16))


@pytest.mark.parametrize("gain", [2.0, 0.5, -1.0])
def test_a_factor_of_v_is_found(gain):
    (hint, *_) = told(integrated(DRIVE), integrated(DRIVE, gain=gain))
    assert f"before any spike the chip's v_mem is {gain:.4g} times the reference's, in 100 %" in hint


def test_a_factor_within_two_percent_is_none():
    assert told(integrated(DRIVE), integrated(DRIVE, gain=1.015)) == ()


def test_another_reset_is_found_on_either_side():
    zero, less = integrated(DRIVE), integrated(DRIVE, subtract=True)
    assert told(zero, less)[0].startswith("after a spike the reference's v_mem is always 0, the chip's in 0 % of cases")
    assert told(less, zero)[0].startswith("after a spike the chip's v_mem is always 0, the reference's in 0 % of cases")


def test_a_reset_that_later_events_of_the_step_blur_is_no_other_reset():
    spikes, v_mem = integrated(DRIVE)
    other, state = integrated(DRIVE[::-1])
    later = np.random.default_rng(5).normal(0, 0.2, v_mem.shape)
    assert told((spikes, v_mem), (other, state + later)) == ()
    often = later * (np.random.default_rng(6).random(v_mem.shape) < 0.5)
    assert told((spikes, v_mem), (other, state + np.abs(often))) == ()


def test_a_bound_on_one_side_is_found():
    free, held = integrated(DRIVE), integrated(DRIVE, low=-0.3)
    (hint,) = told(free, held)
    assert re.match(r"the chip's v_mem never falls below -0\.3, where it stands \d+ times, the reference's does", hint)
    top = integrated(DRIVE, threshold=2.0, high=0.9)
    (hint,) = told(integrated(DRIVE, threshold=2.0), (top[0] | flipped(top[0], 0.02), top[1]))
    assert "the chip's v_mem never rises above 0.9, where" in hint


def test_bounds_that_differ_by_rounding_or_stand_at_rest_are_none():
    assert told(integrated(DRIVE, low=-0.3), integrated(DRIVE, low=-0.297)) == ()
    spikes = trains(60, 4, 16)
    held_down = -np.abs(np.random.default_rng(7).normal(0.3, 0.1, spikes.shape))
    assert told((spikes, np.zeros(spikes.shape)), (np.concatenate([spikes[:59], 1 - spikes[59:]]), held_down)) == ()


def test_registers_that_overflow_are_told_from_the_counters():
    spikes = trains(30, 2, 8)
    run = trajectory(flipped(spikes, 0.05), counters={"n": {"saturations": 1, "wraps": 4_000}})
    assert compare(trajectory(spikes), run).hints == (
        "the chip's run counts 1 saturation of v at n: sums that its register does not hold",
        "the chip's run counts 4 000 wraps of u at n: sums that its register does not hold",
    )


# ---------------------------------------------------------------- how much is looked at


class Counting:
    """Data that knows how many of its entries were read."""

    def __init__(self, data):
        self.data, self.shape, self.dtype, self.entries = data, data.shape, data.dtype, 0

    def read(self, start=0, stop=None):
        found = self.data[start:stop].copy()
        self.entries += found.size
        return found

    def read_packed(self, start=0, stop=None):
        return None


@pytest.mark.parametrize("shape", [(200, 100, 500), (300, 2, 16, 32, 32), (40, 1, 64, 64, 64), (20_000, 4, 100)])
def test_a_small_part_of_long_records_is_read(shape):
    reference = trains(*shape)
    sides = [Counting(reference), Counting(np.roll(reference, 1, axis=0))]
    found = compare(*(trajectory(side) for side in sides))
    assert found.hints[0].startswith("shifted by 1 step, 100")
    before = [side.entries for side in sides]
    hints(found.pairs, None, found.first_divergence)
    assert all(
        side.entries - n <= max(0.15 * reference.size, 24 * reference[0].size + 2e6)
        for side, n in zip(sides, before, strict=True)
    )
    assert all(side.entries - n < 0.7 * reference.size for side, n in zip(sides, before, strict=True))


def test_what_is_looked_at_lies_around_the_divergence():
    reference = trains(20_000, 1, 100)
    late = np.concatenate([reference[:15_000], reference[14_999:19_999]])
    assert told(reference, late)[0].startswith("shifted by 1 step")
    reference = np.zeros((60, 1000, 200), np.int8)
    reference[:, 777] = trains(60, 200)
    assert told(reference, np.roll(reference, 1, axis=0))[0].startswith("shifted by 1 step")


def test_a_large_map_is_seen_turned_and_its_channels_exchanged():
    reference = trains(30, 1, 16, 48, 48)
    assert "with y and x exchanged" in told(reference, np.swapaxes(reference, -1, -2))[0]
    order = np.arange(16)
    order[[0, 9]] = [9, 0]
    assert "with channels 0 and 9 exchanged" in told(reference, reference[:, :, order])[0]


# ---------------------------------------------------------------- whatever is recorded


def test_records_of_some_neurons_are_compared_as_those():
    reference = trains(60, 2, 30)
    kept = np.array([3, 28, 7, 11])
    run = trajectory(np.roll(reference, 1, axis=0)[:, :, kept], neurons=kept)
    (hint,) = compare(trajectory(reference), run).hints
    assert hint.startswith("shifted by 1 step, 100")


def test_records_of_every_third_step_are_shifted_by_three():
    reference = trains(60, 2, 30)
    steps = range(5, 5 + 3 * 60, 3)
    runs = [trajectory(data, steps=steps) for data in (reference, np.roll(reference, 1, axis=0))]
    (hint,) = compare(*runs).hints
    assert hint.startswith("shifted by 3 steps, 100")
    assert "costs 3 steps more" in hint


def test_trials_have_hints_where_their_bands_differ():
    reference = trains(60, 2, 30)
    ours = [trajectory(flipped(reference, 0.002, seed)) for seed in (1, 2)]
    theirs = [trajectory(flipped(np.roll(reference, 1, axis=0), 0.002, seed)) for seed in (3, 4)]
    assert compare(ours, theirs).hints[0].startswith("shifted by 1 step")
    assert compare(ours, ours[::-1]).hints == ()


def test_a_layer_in_a_flat_record_has_the_shape_that_the_graph_says():
    graph = chain(
        (1, 6, 6),
        conv=nir.Conv2d((6, 6), np.ones((2, 1, 1, 1), np.float32), 1, 0, 1, 1, np.zeros(2)),
        n=if_node((2, 6, 6)),
    )
    reference = trains(40, 2, 2, 6, 6)
    turned = np.swapaxes(reference, -1, -2).reshape(40, 2, 72)
    run = trajectory(turned, index_map=np.arange(72))
    found = compare(trajectory(reference, outline=Outline.of(graph)), run)
    assert found.hints[0].startswith("with y and x exchanged, 100")


def test_nothing_diverges_nothing_is_said():
    spikes = trains(20, 2, 5)
    assert compare(trajectory(spikes), trajectory(spikes)).hints == ()
    assert hints({}, None, None) == ()


values = st.sampled_from([0.0, 1.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 1e300, -1e-300])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_record_makes_it_fail(data):
    shape = data.draw(st.sampled_from([(5,), (1,), (2, 3), (2, 3, 3), (1, 1, 1)]))
    steps, batch = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    runs = []
    for _ in range(2):
        spikes = rng.poisson(data.draw(st.sampled_from([0.0, 0.3, 3.0])), (steps, batch, *shape))
        v_mem = rng.choice(data.draw(st.lists(values, min_size=1, max_size=4)), spikes.shape)
        if data.draw(st.booleans()):
            v_mem = v_mem[: data.draw(st.integers(1, steps))]
        records = {
            ("n", "spikes"): Record("n", "spikes", spikes, lag=data.draw(st.integers(0, 1)) if steps > 2 else 0),
            ("n", "v_mem"): Record("n", "v_mem", v_mem, scale=data.draw(st.sampled_from([1.0, 0.1]))),
        }
        runs.append(Trajectory(records, counters={"n": {"saturations": 2}}))
    with np.errstate(all="ignore"):  # of the values' own sums
        found = compare(*runs)
    assert bool(found.hints) <= bool(found.first_divergence)


def test_a_shift_is_no_explanation_where_nothing_is_left_to_explain():
    ones = np.ones((40, 1, 4), dtype=np.int32)
    other = ones.copy()
    other[5, 0, 2] = 0  # cut off by a shift of a step the other way
    found = compare(
        Trajectory({("a", "spikes"): Record("a", "spikes", ones)}),
        Trajectory({("a", "spikes"): Record("a", "spikes", other)}, target="x"),
    )
    assert found.hints == ()


def test_two_values_after_spikes_are_two_resets_and_a_neuron_at_rest_is_not_at_a_bound():
    rng = np.random.default_rng(4)
    fired = (rng.random((40, 2, 6)) < 0.3).astype(np.int32)
    wrong = fired.copy()
    wrong[tuple(np.argwhere(fired)[-9])] = 0
    v = np.where(fired > 0, 0.0, rng.random(fired.shape))

    def of(spikes, v_mem, target):
        records = (Record("a", "spikes", spikes), Record("a", "v_mem", v_mem, threshold=1.0))
        return Trajectory({("a", r.variable): r for r in records}, target=target)

    found = compare(of(fired, v, "reference"), of(wrong, v + 0.125, "x"))
    assert [h for h in found.hints if h.startswith("after a spike")] == [
        "after a spike the reference's v_mem is always 0, the chip's always 0.125: each is reset to its own value, or "
        "v is shown with another offset"
    ]
    silent = np.zeros_like(fired)
    silent[30, 0, 0] = 1
    held, free = np.zeros(fired.shape), np.zeros(fired.shape)
    held[10:, 1, 3], free[10:, 1, 3] = -3.75, -4 - np.arange(30) / 8  # once there, nothing drives it
    held[0], free[0] = 1.0, 1.0
    found = compare(of(0 * silent, held, "reference"), of(silent, free, "x"))
    assert not any("bound" in hint for hint in found.hints)
