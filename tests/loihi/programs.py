"""Programs that the Loihi tests share: built by hand, at random, and out of recorded lava-dl files."""

import h5py
import numpy as np
from nirdeploy_loihi.program import AlwaysOn, Compartments, Program, Shown, Synapses, Window

NO_DELAY = np.zeros((1, 1), np.int64)


def flat(value):
    return np.asarray(value, dtype=np.int64).reshape(-1)


def compartments(name, *shape, threshold=0, decay_u=4096, decay_v=0, bias=0, bias_exponent=0, v_start=0, refractory=1):
    """A population; `threshold` is the mantissa."""
    registers = (flat(x) for x in (decay_u, decay_v, flat(threshold) << 6, bias))
    return Compartments(name, shape, *registers, bias_exponent, flat(v_start), refractory)


def synapses(source, target, weight, delay=0, window=None):
    """A connection called 'source>target'."""
    delay = np.asarray(delay, dtype=np.int64)
    delay = delay.reshape(1, 1) if delay.ndim == 0 else delay
    return Synapses(f"{source}>{target}", source, target, np.asarray(weight, dtype=np.int64), delay, window)


def program(shape, populations, connections, always_on=(), outputs=()):
    """A program whose Input is called 'input'."""
    return Program("input", shape, tuple(populations), tuple(connections), tuple(always_on), tuple(outputs))


ALL = ("spikes", "v_mem", "i_syn")


def everything(found):
    """What `execute` keeps to give all states of all populations."""
    return {p.name: ALL for p in found.populations}


# ---------------------------------------------------------------- at random


def _registers(rng, name, shape):
    size = int(np.prod(shape))
    some = size if rng.random() < 0.5 else 1
    return compartments(
        name,
        *shape,
        threshold=rng.integers(0, 300, some),
        decay_u=rng.integers(0, 4097, some),
        decay_v=rng.integers(0, 4097, some),
        bias=rng.integers(-20, 30, some),
        bias_exponent=int(rng.integers(0, 7)),
        v_start=rng.integers(-300, 300, some),
        refractory=int(rng.integers(1, 4)),
    )


def _delay(rng, targets, sources):
    shapes = [(1, 1), (1, 1), (targets, 1), (1, sources), (targets, sources)]
    kind = rng.integers(0, len(shapes))
    return rng.integers(0, 63, shapes[kind]) if kind else NO_DELAY


def random_window(rng):
    """Kernel shape and geometry of a small convolution that has an output."""
    while True:
        channels, down, across = (int(n) for n in rng.integers((1, 3, 3), (5, 7, 7)))
        groups = int(rng.choice([n for n in (1, 2, 3, 4) if channels % n == 0]))
        kernel, stride, dilation = rng.integers(1, 4, 2), rng.integers(1, 4, 2), rng.integers(1, 3, 2)
        padding = rng.integers(0, 3, 2)
        out = (np.array([down, across]) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if (out > 0).all():
            break
    channels_out = groups * int(rng.integers(1, 4))
    pairs = [tuple(int(n) for n in pair) for pair in (stride, padding, dilation)]
    window = Window((channels, down, across), (channels_out, *(int(n) for n in out)), *pairs, groups)
    return (channels_out, channels // groups, *kernel), window


def random_program(seed, large=False):
    """Three populations: a convolution with a loop over the second, which feeds itself, and a fan-in with a skip.

    Args:
        seed: of everything.
        large: weights that make u wrap and v clip.
    """
    rng = np.random.default_rng(seed)
    kernel, window = random_window(rng)
    most = 1 << 18 if large else 120
    n_in, n_a = int(np.prod(window.source_shape)), int(np.prod(window.target_shape))
    n_b, n_c = int(rng.integers(1, 9)), 6

    def weight(*shape):
        return rng.integers(-most, most, shape)

    def dense(source, target, targets, sources):
        return synapses(source, target, weight(targets, sources), _delay(rng, targets, sources))

    return program(
        window.source_shape,
        [_registers(rng, "a", window.target_shape), _registers(rng, "b", (n_b,)), _registers(rng, "c", (2, 3))],
        [
            synapses("input", "a", weight(*kernel), _delay(rng, n_a, n_in), window),
            dense("b", "a", n_a, n_b),
            dense("a", "b", n_b, n_a),
            dense("b", "b", n_b, n_b),
            dense("input", "c", n_c, n_in),
            dense("a", "c", n_c, n_a),
            dense("on", "c", n_c, 2),
        ],
        [AlwaysOn("on", 2, int(rng.integers(0, 5)))],
        [Shown("output", "c", (3, 2))],
    )


def random_raster(seed, shape, steps=70, batch=2, density=0.15):
    """0 and 1, [step, batch, *shape]."""
    return (np.random.default_rng(seed).random((steps, batch, *shape)) < density).astype(np.int32)


# ---------------------------------------------------------------- lava-dl files


def _pair(value):
    return tuple(int(n) for n in np.broadcast_to(value, (2,)))


def _net_population(group, name):
    neuron, shape = group["neuron"], [int(n) for n in group["shape"]]
    shape = shape if "kernelSize" in group else [shape[0]]
    return compartments(
        name,
        *shape,
        threshold=neuron["vThMant"][()],
        decay_u=neuron["iDecay"][()],
        decay_v=neuron["vDecay"][()],
        bias=group["bias"][()] if "bias" in group else 0,
        bias_exponent=6,
    )


def _net_synapses(group, source, name, shape):
    weight = group["weight"][()].astype(np.int64)
    if "kernelSize" in group:
        out = tuple(int(n) for n in group["shape"])
        geometry = [_pair(group[key][()]) for key in ("stride", "padding", "dilation")]
        window = Window(shape, out, *geometry, int(group["groups"][()]))
        return [synapses(source, name, weight.reshape(weight.shape[:4]), 0, window)]
    delay = np.zeros(1) if "delay" not in group else group["delay"][()].reshape(-1)
    found = [synapses(source, name, weight, delay.astype(np.int64).reshape(-1, 1))]  # one a target
    if "weight_rec" in group:
        found.append(synapses(name, name, group["weight_rec"][()]))
    return found


def net_program(path, shape):
    """The layers of a lava-dl file (dense, dense_rec, conv, flatten) as populations '1', '2', ..."""
    populations, connections = [], []
    source = "input"
    given = shape
    with h5py.File(path) as file:
        for name in sorted(file["layer"], key=int):
            group = file["layer"][name]
            if "neuron" not in group:
                continue
            populations.append(_net_population(group, name))
            connections += _net_synapses(group, source, name, given)
            source, given = name, populations[-1].shape
    return program(shape, populations, connections, outputs=[Shown("output", source, given)])
