"""Programs of the Loihi at random, with loops, delays, convolutions and constants."""

from dataclasses import replace

import numpy as np
from lava_programs import population, program, synapses
from nirdeploy_loihi.program import AlwaysOn, Shown, Window


def _registers(rng, name, shape):
    size = int(np.prod(shape))
    some = size if rng.random() < 0.5 else 1
    return population(
        name,
        *shape,
        vth=rng.integers(0, 300, some),
        decay_u=rng.integers(0, 4097, some),
        decay_v=rng.integers(0, 4097, some),
        bias=rng.integers(-20, 30, some),
        exponent=int(rng.integers(0, 7)),
        v=rng.integers(-300, 300, some),
        refractory=int(rng.integers(1, 4)),
    )


def _delay(rng, targets, sources):
    shapes = [(1, 1), (1, 1), (targets, 1), (1, sources), (targets, sources)]
    kind = rng.integers(0, len(shapes))
    return rng.integers(0, 63, shapes[kind]) if kind else 0


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
        return synapses(f"{source}>{target}", source, target, weight(targets, sources), _delay(rng, targets, sources))

    found = program(
        window.source_shape,
        [_registers(rng, "a", window.target_shape), _registers(rng, "b", (n_b,)), _registers(rng, "c", (2, 3))],
        [
            synapses("conv", "in", "a", weight(*kernel), _delay(rng, n_a, n_in), window),
            dense("b", "a", n_a, n_b),
            dense("a", "b", n_b, n_a),
            dense("b", "b", n_b, n_b),
            dense("in", "c", n_c, n_in),
            dense("a", "c", n_c, n_a),
            dense("on", "c", n_c, 2),
        ],
        [AlwaysOn("on", 2, int(rng.integers(0, 5)))],
        [Shown("output", "c", (3, 2))],
    )
    return _within_32_bits(found)


def _within_32_bits(found):
    """The same with smaller weights where u could pass 32 bits, which the emulator refuses.

    Lava folds u once a step: sums below 2**18 stay within 24 bits, larger ones pile up to 4096 / decay_u times 64.
    """
    most = {p.name: max(1 << 18, ((1 << 25) - (1 << 18)) * int(p.decay_u.min()) // 4096) for p in found.populations}
    smaller = {name: 1 + sum(s.largest_sum for s in found.into(name)) // limit for name, limit in most.items()}
    return replace(found, synapses=tuple(replace(s, weight=s.weight // smaller[s.target]) for s in found.synapses))


def random_raster(seed, shape, steps=70, batch=2, density=0.15):
    """0 and 1, [step, batch, *shape]."""
    return (np.random.default_rng(seed).random((steps, batch, *shape)) < density).astype(np.int32)
