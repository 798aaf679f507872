import math

import numpy as np
import pytest
from nirdeploy_loihi.bounds import fixpoint, reach


def iterated(push, decay):
    x, before = 0, -1
    while x != before:
        before, x = x, ((x * (4096 - decay)) >> 12) + push
    return x


@pytest.mark.parametrize("decay", [1, 7, 205, 1024, 4095, 4096])
@pytest.mark.parametrize("push", [0, 1, 2, 63, 64, 4097, 812_864])
def test_the_fixpoint_is_where_the_integer_decay_settles(push, decay):
    assert fixpoint(push, decay) == iterated(push, decay)


def test_without_decay_a_push_has_no_bound():
    assert fixpoint([0, 3], 0).tolist() == [0, math.inf]


def test_both_registers_by_hand():
    # u: floor((640 - 1) 4096 / 2048) + 1 = 1279 up, floor((64 - 1) 2) + 1 = 127 down
    # v: 1279 + 5 up, 127 - 5 down: floor(1283 * 4) + 1 = 5133, floor(121 * 4) + 1 = 485
    found = reach(np.array([-1]), np.array([10]), 2048, 1024, 5, 0, 6)
    assert (found.u, found.v_high, found.v_low, found.v) == (1279, 5133, 485, 5133)


def test_the_start_counts_where_nothing_pushes_further():
    found = reach(np.array([0]), np.array([1]), 4096, 4096, 0, -900, 6)
    assert (found.v_high, found.v_low) == (64, 900)
