import numpy as np
import pytest
from lava_programs import population
from nirdeploy_loihi.registers import integrate

HALF = 1 << 23


def neurons(size, **registers):
    return population("n", size, **{"vth": 1 << 24, "decay_v": 0, **registers})


def run(a, **registers):
    a = np.array(a, dtype=np.int32).reshape(len(a), -1)
    return integrate(neurons(a.shape[1], **registers), a, keep_u=True, keep_v=True)


@pytest.mark.parametrize(
    ("first", "decay", "second"),
    [
        (1, 2048, 32),  # 64 * 2048 >> 12
        (-1, 2048, -32),
        (-1, 4095, 0),  # 64 * 1 >> 12 = 0, towards zero and not -1
        (1, 4095, 0),
        (0, 100, 0),
        (3, 1, 191),  # 192 * 4095 >> 12 = 191.95
        (-3, 1, -191),  # towards zero: an arithmetic shift would give -192
        (5, 0, 320),
        (5, 4096, 0),
    ],
)
def test_u_decays_towards_zero(first, decay, second):
    assert run([first, 0], decay_u=decay).u[:, 0].tolist() == [64 * first, second]


@pytest.mark.parametrize(("bias", "kept"), [(-1, -1), (1, 1), (0, 0)])
def test_v_of_one_is_kept_without_decay(bias, kept):
    states = run([0, 0], bias=[bias])
    assert states.v[:, 0].tolist() == [kept, 2 * kept]


def test_v_of_minus_one_decays_to_zero():
    # dec(-1, 1) = -((1 * 4095) >> 12) = 0, then the bias of -1 again
    assert run([0, 0, 0], bias=[-1], decay_v=1).v[:, 0].tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("total", "wrapped", "count"),
    [
        (HALF, HALF, 0),  # the upper bound itself stays
        (HALF + 64, HALF + 64 - 2 * HALF, 1),
        (-HALF, HALF, 1),  # the lower bound itself is folded
        (-HALF + 64, -HALF + 64, 0),
        (-HALF - 64, HALF - 64, 1),
    ],
)
def test_u_wraps_at_two_to_the_23(total, wrapped, count):
    states = run([total >> 6])
    assert states.u[0, 0] == wrapped
    assert states.wraps == count


def test_v_clips_instead_of_wrapping():
    up = run([100_000] * 3)
    assert up.v[:, 0].tolist() == [6_400_000, HALF - 1, HALF - 1]
    assert up.clips == 2
    down = run([-100_000] * 3)
    assert down.v[:, 0].tolist() == [-6_400_000, 1 - HALF, 1 - HALF]
    assert down.clips == 2


def test_a_spike_needs_v_above_the_threshold():
    states = run([2, 1], vth=2)
    assert states.s[:, 0].tolist() == [0, 1]
    assert states.v[:, 0].tolist() == [128, 0]


def test_the_reset_leaves_u_alone():
    states = run([10, 0], vth=1, decay_u=2048)
    assert states.u[:, 0].tolist() == [640, 320]
    assert states.s[:, 0].tolist() == [1, 1]
    assert states.v[:, 0].tolist() == [0, 0]


def test_the_bias_is_shifted_by_its_exponent_and_differs_a_neuron():
    states = run([[0, 0], [0, 0]], bias=[3, -2], exponent=6)
    assert states.v.tolist() == [[192, -128], [384, -256]]


def test_samples_share_the_bias_of_their_neuron():
    a = np.zeros((1, 4), dtype=np.int32)
    states = integrate(neurons(2, bias=[5, 7]), a, keep_u=False, keep_v=True)
    assert states.v.tolist() == [[5, 7, 5, 7]]
    assert states.u.size == 0
