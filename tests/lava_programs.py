"""Programs of the Loihi built by hand, and out of recorded lava-dl files: what Lava and the emulator must agree on."""

import zlib

import h5py
import numpy as np
from nirdeploy_loihi.lower_program import Lowered, lowered
from nirdeploy_loihi.program import AlwaysOn, Compartments, Program, Shown, Synapses, Window

STEPS = 80  # longer than the longest delay


def whole(values):
    return np.atleast_1d(np.asarray(values, np.int64))


def population(name, *shape, decay_u=4096, decay_v=300, vth=120, bias=0, exponent=0, v=0, refractory=1):
    """Compartments; `vth` is a mantissa."""
    registers = (whole(value) for value in (decay_u, decay_v, np.asarray(vth) * 64, bias))
    return Compartments(name, shape, *registers, exponent, whole(v), refractory)


def synapses(name, source, target, weight, delay=0, window=None):
    return Synapses(name, source, target, np.asarray(weight, np.int64), np.atleast_2d(whole(delay)), window)


def window(source, kernel, out, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    def size(n, k, s, p, d):
        return (n + 2 * p - d * (k - 1) - 1) // s + 1

    spatial = map(size, source[1:], kernel, stride, padding, dilation)
    return Window(tuple(source), (out, *spatial), stride, padding, dilation, groups)


def program(shape, populations, connections, always_on=(), outputs=None):
    """A program whose Input is 'in' and that shows the spikes of its last population, or the Outputs given."""
    last = populations[-1]
    shown = (Shown("out", last.name, last.shape),) if outputs is None else tuple(outputs)
    return Program("in", tuple(shape), tuple(populations), tuple(connections), tuple(always_on), shown)


def all_states(found):
    """What a run keeps to give all states of all populations."""
    return {p.name: ("spikes", "v_mem", "i_syn") for p in found.populations}


def raster(name, shape, batch=2, steps=STEPS, rate=0.35):
    """Seeded spikes, [step, batch, *shape]."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.random((steps, batch, *shape)) < rate).astype(np.int32)


def convolved(rng, source, out, kernel, low=-40, high=60, target="a", **options):
    found = window(source, kernel, out, **options)
    weight = rng.integers(low, high, (out, source[0] // found.groups, *kernel))
    return found.target_shape, synapses("conv", "in", target, weight, window=found)


def programs():
    """The programs by what they are about."""
    rng = np.random.default_rng(20241201)

    def even(*shape):
        return rng.integers(-50, 60, shape) * 2

    def odd(*shape):
        return rng.integers(-40, 64, shape) * 2 + 1

    def positive(*shape):
        return rng.integers(0, 128, shape) * 2 + 1

    found = {
        "dense": program(
            (6,),
            [population("a", 5, decay_u=1200), population("b", 3, vth=420, bias=[40, -30, 0], exponent=6)],
            [synapses("w", "in", "a", even(5, 6)), synapses("x", "a", "b", positive(3, 5))],
        ),
        "odd weights of both signs": program(
            (6,), [population("a", 5, decay_u=900)], [synapses("w", "in", "a", [*odd(4, 6), [127, -127, 1, -1, 3, 0]])]
        ),
        "negative weights, one of them 0": program(
            (6,), [population("a", 4, bias=90, exponent=6)], [synapses("w", "in", "a", [*-positive(3, 6), [0] * 6])]
        ),
        "weights at the limits": program(
            (4,),
            [population("a", 3, bias=300, exponent=5)],
            [
                synapses("w", "in", "a", [[-256, 254, 0, 2], [254, 254, 254, 254], [-2, 4, 6, 8]]),
                synapses("x", "in", "a", [[-255, -1, 0, -3]] * 3),
                synapses("y", "in", "a", [[-128, 127, 1, -1]] * 3),
            ],
        ),
    }
    shape, conv = convolved(rng, (2, 6, 5), 3, (3, 2), stride=(2, 1), padding=(1, 0))
    n = int(np.prod(shape))
    found["convolution with stride and padding, flattened"] = program(
        (2, 6, 5),
        [population("a", *shape, bias=rng.integers(-40, 60, n), exponent=3), population("b", 4, decay_u=2500)],
        [conv, synapses("x", "a", "b", even(4, n))],
    )
    shape, conv = convolved(rng, (4, 7, 6), 6, (2, 3), dilation=(3, 2), groups=2)
    found["convolution with dilation and groups"] = program((4, 7, 6), [population("a", *shape, decay_u=700)], [conv])
    shape, conv = convolved(rng, (130, 2, 3), 130, (1, 2), low=60, high=200, groups=130)
    found["130 groups"] = program((130, 2, 3), [population("a", *shape)], [conv])
    shape, conv = convolved(rng, (1, 5, 6), 2, (2, 2))
    n = int(np.prod(shape))
    again = window(shape, (2, 3), 2, padding=(1, 1))
    found["a convolution, a matrix and itself into one image"] = program(
        (1, 5, 6),
        [population("a", *shape, vth=rng.integers(80, 160, n)), population("b", *again.target_shape)],
        [
            conv,
            synapses("m", "in", "a", rng.integers(-9, 10, (n, 30)) * 2),
            synapses("r", "a", "a", rng.integers(-9, 6, (n, n))),
            synapses("c", "a", "b", rng.integers(20, 90, (2, 2, 2, 3)), window=again),
            synapses("d", "b", "a", rng.integers(-20, 10, (n, int(np.prod(again.target_shape))))),
        ],
    )
    shape, conv = convolved(rng, (1, 3, 4), 1, (2, 2))
    flat = window((1, 2, 3), (2, 2), 2)
    found["an image seen in two shapes"] = program(
        (1, 3, 4),
        [population("a", 6), population("b", *flat.target_shape)],
        [
            synapses("w", "in", "a", even(6, 12)),
            synapses("c", "a", "b", even(2, 1, 2, 2), window=flat),
            synapses("e", "in", "b", even(2, 1, 2, 1), window=window((1, 2, 6), (2, 1), 2, stride=(1, 3))),
        ],
    )
    found["mixed delays up to 62"] = program(
        (5,),
        [population("a", 4), population("b", 3, decay_u=2000), population("c", 3)],
        [
            synapses("w", "in", "a", even(4, 5), rng.integers(0, 63, (4, 5))),
            synapses("x", "a", "b", positive(3, 4), [[62]]),
            synapses("y", "in", "b", odd(3, 5), [[0], [7], [62]]),
            synapses("z", "b", "c", positive(3, 3), [[0, 1, 2]]),
        ],
    )
    shape, conv = convolved(rng, (2, 4, 4), 2, (3, 3), padding=(1, 1), low=-60, high=64)
    late = Synapses(conv.name, "in", "a", conv.weight, rng.integers(0, 9, (32, 32)), conv.window)
    found["convolution with delays"] = program((2, 4, 4), [population("a", *shape)], [late])
    found["self loop"] = program(
        (4,),
        [population("a", 6, decay_u=1500, bias=20, exponent=4)],
        [synapses("w", "in", "a", even(6, 4)), synapses("r", "a", "a", odd(6, 6), rng.integers(0, 5, (6, 6)))],
    )
    found["two loops and a skip"] = program(
        (4,),
        [population("a", 5), population("b", 4), population("c", 3)],
        [
            synapses("w", "in", "a", positive(5, 4)),
            synapses("x", "a", "b", even(4, 5)),
            synapses("back", "b", "a", -positive(5, 4), [[3]]),
            synapses("y", "b", "c", positive(3, 4)),
            synapses("z", "c", "b", odd(4, 3)),
            synapses("skip", "in", "c", even(3, 4)),
        ],
    )
    found["fan-in, one connection of zeros"] = program(
        (4,),
        [population("a", 5), population("b", 5), population("c", 3)],
        [
            synapses("w", "in", "a", positive(5, 4)),
            synapses("x", "in", "b", even(5, 4)),
            synapses("y", "a", "c", even(3, 5)),
            synapses("z", "b", "c", odd(3, 5)),
            synapses("zeros", "in", "c", np.zeros((3, 4))),
            synapses("zeros late", "in", "c", np.zeros((3, 4)), [[2]]),
        ],
    )
    found["u wraps"] = program(
        (90,),
        [population("a", 2, decay_u=40, decay_v=2000, vth=131071)],
        [synapses("w", "in", "a", [[255] * 90, [255 - k for k in range(90)]])],
    )
    found["v clips at the lower end"] = program(
        (40,),
        [population("a", 2, decay_u=60, decay_v=0, vth=131071), population("b", 2, decay_u=60, decay_v=1)],
        [synapses("w", "in", "a", [[0] * 40, [200] * 40]), synapses("x", "in", "b", [[-200] * 40, [-3] * 40])],
    )
    found["registers of every neuron"] = program(
        (5,),
        [
            population(
                "a",
                8,
                decay_u=[0, 1, 2000, 4095, 4096, 4096, 10, 4096],
                decay_v=[4096, 0, 1, 4095, 128, 300, 4096, 2],
                vth=[131071, 1, 100, 0, 20, 600, 10, 131071],
                bias=[4095, -4096, 0, 1, -1, 700, 0, 4000],
                exponent=7,
                v=[0, 8388607, -8388607, 64, 1, 0, 0, -5],
            )
        ],
        [synapses("w", "in", "a", even(8, 5))],
    )
    found["always-on axons"] = program(
        (3,),
        [population("a", 4, decay_u=400, vth=900), population("b", 2)],
        [
            synapses("w", "in", "a", even(4, 3)),
            synapses("one", "from 0", "a", positive(4, 2)),
            synapses("two", "from 5", "a", even(4, 1), [[3]]),
            synapses("x", "a", "b", positive(2, 4)),
            synapses("three", "from 5", "b", [[30], [-2]]),
        ],
        [AlwaysOn("from 0", 2, 0), AlwaysOn("from 5", 1, 5)],
    )
    found["states that do not start at 0"] = program(
        (3,),
        [population("a", 4, v=[9000, -9000, 7680, 7681], decay_v=20), population("b", 2, v=-3000)],
        [synapses("w", "in", "a", odd(4, 3)), synapses("x", "a", "b", positive(2, 4))],
    )
    found["populations on their own"] = program(
        (3,),
        [
            population("a", 2, bias=[50, 20], exponent=5),
            population("b", 3, bias=99, exponent=4),
            population("c", 1, v=20000),
        ],
        [],
    )
    return found


def read_net(path):
    """A feed-forward or recurrent file of lava-dl as a program, with the names that nirdeploy gives its nodes.

    A bias is added 6 bits up; iDecay, vDecay and vThMant are the registers themselves.
    """
    with h5py.File(path) as file:
        layers = [file["layer"][str(n)] for n in range(len(file["layer"]))]
        kinds = [layer["type"][0].decode() for layer in layers]
        shape = tuple(int(n) for n in layers[0]["shape"])
        shape = shape if kinds[1] == "conv" else (int(np.prod(shape)),)
        populations, connections, before, given = [], [], "input", shape
        for n, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
            if kind in ("input", "flatten"):
                continue
            name, weight = f"{n}.neuron", layer["weight"][...].astype(np.int64)
            sent = None
            if kind == "conv":
                options = {k: tuple(int(v) for v in layer[k][...]) for k in ("stride", "padding", "dilation")}
                sent = window(given, weight.shape[2:], len(weight), groups=int(layer["groups"][()]), **options)
            own = sent.target_shape if sent else (len(weight),)
            delay = layer["delay"][...][:, None] if "delay" in layer else 0
            connections.append(synapses(f"{n}.synapse", before, name, weight, delay, sent))
            if kind == "dense_rec":
                connections.append(synapses(f"{n}.recurrent", name, name, layer["weight_rec"][...]))
            bias = layer["bias"][...].astype(np.int64) if "bias" in layer else 0
            if sent and np.ndim(bias):
                bias = np.repeat(bias, own[1] * own[2])
            registers = {k: int(layer["neuron"][k][()]) for k in ("iDecay", "vDecay", "vThMant")}
            populations.append(
                population(
                    name,
                    *own,
                    decay_u=registers["iDecay"],
                    decay_v=registers["vDecay"],
                    vth=registers["vThMant"],
                    bias=bias,
                    exponent=6,
                )
            )
            before, given = name, own
    shown = (Shown("output", before, given),)
    return Program("input", shape, tuple(populations), tuple(connections), (), shown)


def read_mesh(stored):
    """A network of tests/golden/lava_loops.npz or lava_skips.npz as a program with populations '1', '2', ..."""
    inputs = stored["input"].shape[1]
    sizes = {int(end): len(stored[f"weight{k}"]) for k, (_, end) in enumerate(stored["wires"])}
    populations = [
        population(str(k), sizes[k], decay_u=du, decay_v=dv, vth=vth)
        for k, (du, dv, vth) in enumerate(stored["registers"], start=1)
    ]
    connections = [
        synapses(f"w{k}", str(start) if start else "in", str(end), stored[f"weight{k}"], stored[f"delay{k}"])
        for k, (start, end) in enumerate(stored["wires"])
    ]
    return program((inputs,), populations, connections)


def run_elsewhere(run, deployment, found, data, record, nodes=None, mode=None, options=None):
    """A program through `simulator.run` or `lava_runner.run`, with the lags of its deployment."""
    return run(
        deployment.quantized,
        deployment.placement,
        data,
        lowered=Lowered(found, lowered(deployment.quantized).lags),
        mode=mode,
        record=record,
        nodes=nodes,
        options=options or {},
    )
