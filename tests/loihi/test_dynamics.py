"""Coefficients for the registers are those of the reference, rescaled and shifted."""

import dataclasses
from itertools import product

import nir
import numpy as np
import pytest
import torch
from nirdeploy_loihi.dynamics import dynamics

import nirdeploy as nd
from nirdeploy.errors import MissingTimeStepError, UnsupportedError
from nirdeploy.graph import make_node
from nirdeploy.reference.convention import Convention

DT = 1e-3
KINDS = ("CubaLI", "CubaLIF", "I", "IF", "LI", "LIF")

needs_v_reset = pytest.mark.skipif("v_reset" not in nir.IF.__dataclass_fields__, reason="nir 1.0.4 has no v_reset")
FIELDS = {
    "tau": (0.004, 0.03),
    "tau_mem": (0.004, 0.03),
    "tau_syn": (0.002, 0.02),
    "r": (0.5, 3.0),
    "w_in": (0.5, 3.0),
    "v_leak": (-0.3, 0.3),
    "v_threshold": (0.2, 0.9),
    "v_reset": (-0.6, 0.1),
}


def node_of(kind, rng, size):
    names = {f.name for f in dataclasses.fields(getattr(nir, kind))} & set(FIELDS)
    return make_node(getattr(nir, kind), **{name: rng.uniform(*FIELDS[name], size) for name in names})


def stepped(step, x):
    """v of the float recurrence that the registers follow, in model units, and u in units of i_syn; [step, neuron]."""
    u = np.zeros(x.shape[1])
    v = np.zeros(x.shape[1]) + step.v_start
    found_v, found_u = [], []
    for now in x:
        u = (1 - step.loss_u) * u + step.gain * now
        v = (1 - step.loss_v) * v + step.leak + u
        v = np.where(v > step.threshold, 0.0, v)
        found_v.append(v + step.offset)
        found_u.append(u / step.membrane_gain)
    return np.array(found_v), np.array(found_u)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("integrator", "gain", "use_r", "if_gain"),
    list(product(("euler", "exponential"), ("euler", "decay", "unit"), (True, False), ("r", "r_dt"))),
)
def test_the_float_recurrence_is_the_references(nets, kind, integrator, gain, use_r, if_gain):
    rng = np.random.default_rng(len(kind) + 7 * use_r)
    choices = {
        "reset": ("zero", "v_reset"),
        "v_start": ("zero", "v_reset", "v_leak"),
        "synapse_integrator": ("same", "euler", "exponential"),
        "synapse_gain": ("same", "euler", "decay", "unit", "decayed"),
    }
    for _ in range(4):
        drawn = {field: str(rng.choice(values)) for field, values in choices.items()}
        used = Convention(dt=DT, integrator=integrator, gain=gain, use_r=use_r, if_gain=if_gain, **drawn)
        node = node_of(kind, rng, 3)
        graph = nets.chain(input=nets.source(3), n=node, output=nets.output(3))
        x = rng.integers(0, 4, (60, 3))
        step = dynamics("n", node, used)
        v, i_syn = stepped(step, x)
        module = nd.nir_to_torch(graph, convention=used, dtype=torch.float64)
        reference = nd.run(module, x, record=("v_mem", "i_syn"))
        wanted = reference["n", "v_mem"].values
        assert np.allclose(v, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())
        if kind.startswith("Cuba"):
            wanted = reference["n", "i_syn"].values
            assert np.allclose(i_syn, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


def cuba(**changes):
    values = {"tau_syn": 0.004, "tau_mem": 0.02, "r": 3.0, "v_leak": 0.5, "v_threshold": 1.0, "w_in": 2.0}
    values |= {"v_reset": 0.0, **changes}
    size = max(np.size(value) for value in values.values())
    return make_node(
        nir.CubaLIF, **{key: np.broadcast_to(np.array(value, float), size) for key, value in values.items()}
    )


def test_a_current_based_neuron_by_hand():
    step = dynamics("n", cuba(), Convention(dt=DT))
    # A = 1/4, B = 1/20: 4096 / 4 = 1024, 4096 / 20 = 204.8; gain w_in A r B = 2 * 0.25 * 3 * 0.05
    assert (step.decay_u, step.decay_v) == (1024, 205)
    assert step.gain == pytest.approx(0.075)
    assert step.membrane_gain == pytest.approx(0.15)
    assert step.leak == pytest.approx(0.025)
    assert (step.threshold, step.offset, step.v_start) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("fields", "decay_u", "gain"),
    [
        ({"synapse_integrator": "exponential"}, 906, 0.075),  # 4096 (1 - exp(-1/4)) = 906.0
        ({"synapse_gain": "unit"}, 1024, 0.15),
        ({"synapse_gain": "decayed"}, 1024, 0.75 * 0.15),
        ({"use_r": False}, 1024, 2 * 0.25 * 0.05),
        ({"gain": "unit"}, 1024, 1.0),
    ],
)
def test_fields_of_the_synapse_by_hand(fields, decay_u, gain):
    step = dynamics("n", cuba(), Convention(dt=DT, **fields))
    assert step.decay_u == decay_u
    assert step.gain == pytest.approx(gain)


@needs_v_reset
def test_a_reset_potential_is_a_shift_of_variables():
    used = Convention(dt=DT, reset="v_reset", v_start="v_leak")
    step = dynamics("n", cuba(v_reset=-0.5), used)
    assert (step.offset, step.threshold, step.v_start) == (-0.5, 1.5, 1.0)
    assert step.leak == pytest.approx(0.05)  # (0.5 + 0.5) / 20
    zero = dynamics("n", cuba(v_reset=-0.5), dataclasses.replace(used, reset="zero"))
    assert (zero.offset, zero.threshold, zero.v_start) == (0.0, 1.0, 0.5)


def test_neurons_that_differ_have_arrays_and_equal_ones_a_number():
    step = dynamics("n", cuba(tau_mem=[0.02, 0.01], r=[3.0, 3.0]), Convention(dt=DT))
    assert step.decay_v.tolist() == [205, 410]
    assert step.decay_u == 1024
    assert step.gain == pytest.approx([0.075, 0.15])


def test_decays_that_round_to_one_register_are_one_number():
    step = dynamics("n", cuba(tau_mem=[0.02, 0.0200001]), Convention(dt=DT))
    assert step.decay_v == 205
    assert isinstance(step.loss_v, np.ndarray)


@needs_v_reset
@pytest.mark.parametrize(("unit", "expected"), [("model", 1.0), ("gain", 0.075), ("threshold", 1.0)])
def test_the_unit_v_is_recorded_in(unit, expected):
    step = dynamics("n", cuba(v_reset=-0.5), Convention(dt=DT, v_unit=unit))
    assert step.unit(unit) == pytest.approx(expected)


def test_a_missing_dt_and_a_node_without_membrane_are_refused_by_name():
    with pytest.raises(MissingTimeStepError, match="node 'n': CubaLIF with a time constant needs dt"):
        dynamics("n", cuba(), Convention())
    with pytest.raises(UnsupportedError, match="node 'd': Delay has no membrane to quantise"):
        dynamics("d", make_node(nir.Delay, delay=np.ones(1)), Convention(dt=DT))
