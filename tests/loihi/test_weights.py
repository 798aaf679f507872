import numpy as np
import pytest
from nirdeploy_loihi.weights import always_on, kept_by_lava, round_weights, sign_mode

LIMITS = {"mixed": [-256, 254], "positive": [0, 255], "negative": [-255, 0]}


def test_mixed_signs_round_to_even_integers():
    assert round_weights(np.array([[3.1, -5.0, 254.0, -300.0]]), LIMITS).tolist() == [[4, -4, 254, -256]]


def test_one_sign_keeps_odd_integers():
    assert round_weights(np.array([[3.0, 0.5, 1.5, 254.9]]), LIMITS).tolist() == [[3, 0, 2, 255]]


def test_odd_negative_weights_with_a_zero_are_made_even():
    assert round_weights(np.array([[-201.0, 0.0, -3.0]]), LIMITS).tolist() == [[-200, 0, -4]]


def test_a_negative_minimum_that_is_a_power_of_two_moves_towards_zero():
    assert round_weights(np.array([[-128.0, -3.0]]), LIMITS).tolist() == [[-127, -3]]


@pytest.mark.parametrize(
    ("weight", "kept"),
    [
        ([0, 0], False),  # Lava divides by zero
        ([200, -3], True),
        ([255, -2], False),  # clipped to 254
        ([-257, 2], False),
        ([256, 0], False),  # all become 0
        ([255, 0], True),
        ([-201, 0], False),  # all become 0
        ([-200, 0], True),
        ([-201, -1], True),
        ([-128, -1], False),  # shifted to -256, clipped to -255
        ([-127, -1], True),
        ([127, -128], True),
    ],
)
def test_which_weights_lava_multiplies_with_unchanged(weight, kept):
    # each of these was run through the real chain of netx 0.6 and Lava 0.10
    assert kept_by_lava(np.array([weight])) is kept


def test_sign_modes():
    assert [sign_mode(np.array(w)) for w in ([0, 1], [0, -1], [1, -1], [0, 0])] == [
        "positive",
        "negative",
        "mixed",
        "positive",
    ]


def test_axons_add_up_to_the_nearest_sums():
    assert always_on(np.array([600.4, 3.0]), LIMITS).tolist() == [[254, 254, 92], [3, 0, 0]]
    assert always_on(np.array([600.4, -3.9]), LIMITS).tolist() == [[254, 254, 92], [-4, 0, 0]]
    assert always_on(np.array([0.2]), LIMITS).tolist() == [[0]]


@pytest.mark.parametrize("sums", [[-300.0, -11.0], [-300.0], [-201.0, 0.0, -7.0], [-128.0, -5.0], [-64.0], [-4.0]])
def test_negative_axons_are_spread_such_that_lava_keeps_them(sums):
    found = always_on(np.array(sums), LIMITS)
    assert found.sum(1).tolist() == sums
    assert kept_by_lava(found)
    assert found.min() >= -254
