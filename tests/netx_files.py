"""lava-dl files and programs of a few layers, for tests."""

from __future__ import annotations

import h5py
import numpy as np
from nirdeploy_loihi import execute
from nirdeploy_loihi.program import Compartments, Program, Shown, Synapses, Window

NEURON = {"type": b"CUBA", "iDecay": 4096, "vDecay": 100, "vThMant": 50}


def dense(weight=((10, -20), (4, 6), (2, 8)), neuron=NEURON, **more):
    return {"type": b"dense", "shape": [len(weight), 1, 1], "weight": weight, "neuron": neuron, **more}


def recurrent(weight=((10, -20), (4, 6)), back=((2, 0), (-4, 6)), neuron=NEURON, **more):
    return {**dense(weight, neuron), "type": b"dense_rec", "weight_rec": back, **more}


def conv(weight=None, neuron=NEURON, **more):
    weight = np.full((2, 1, 2, 2), 6) if weight is None else weight
    return {"type": b"conv", "shape": [2, 3, 4], "weight": weight, "neuron": neuron, **more}


def given(*shape):
    return {"type": b"input", "shape": list(shape)}


def put(group, values):
    """Datasets and groups; bytes as lava-dl writes text, anything else as h5py would."""
    for name, value in values.items():
        if isinstance(value, dict):
            put(group.create_group(name), value)
        elif isinstance(value, bytes):
            group.create_dataset(name, (1,), "S10", [value])
        else:
            group.create_dataset(name, data=value if isinstance(value, h5py.Empty | str) else np.asarray(value))


def net_file(path, *layers, names=None):
    with h5py.File(path, "w") as file:
        root = file.create_group("layer")
        for name, layer in zip(names or map(str, range(len(layers))), layers, strict=True):
            put(root.create_group(name), layer)
    return path


# ---------------------------------------------------------------- programs


def integers(values):
    return np.atleast_1d(np.asarray(values, np.int64))


def population(name, *shape, bias=0, exponent=6, **fields):
    values = {"decay_u": 700, "decay_v": 300, "threshold": 150 << 6, "v_start": 0} | fields
    refractory = values.pop("refractory", 1)
    registers = {key: integers(value) for key, value in values.items()}
    return Compartments(
        name, shape, bias_mantissa=integers(bias), bias_exponent=exponent, refractory=refractory, **registers
    )


def synapses(source, target, weight, delay=((0,),), window=None):
    return Synapses(f"{source}>{target}", source, target, integers(weight), integers(delay), window)


def program(populations, connections, shape, outputs=None, always_on=()):
    last = populations[-1]
    shown = (Shown("out", last.name, last.shape),) if outputs is None else outputs
    return Program("in", shape, tuple(populations), tuple(connections), always_on, shown)


def even(rng, *shape):
    return rng.integers(-30, 45, shape) * 2


def delayed(rng):
    """Delays of inputs where there are as many outputs, and where there are not; biases one a neuron."""
    a, b = population("a", 6, bias=3), population("b", 5, bias=rng.integers(-5, 6, 5) * 128, exponent=0)
    first = synapses("in", "a", even(rng, 6, 6), rng.integers(0, 63, (1, 6)))
    return program([a, b], [first, synapses("a", "b", even(rng, 5, 6), rng.integers(0, 9, (1, 6)))], (6,))


def looped(rng):
    """An image, a delay for all and one an output, a loop."""
    a, b, c = population("a", 6, bias=3), population("b", 6), population("c", 5)
    forward = [
        synapses("in", "a", even(rng, 6, 24), [[7]]),
        synapses("a", "b", even(rng, 6, 6), rng.integers(0, 63, (6, 1))),
        synapses("b", "c", even(rng, 5, 6)),
    ]
    return program([a, b, c], [*forward, synapses("c", "c", even(rng, 5, 5))], (2, 3, 4))


def convolved(rng):
    """Strides, paddings, dilations and groups that differ between the axes; biases a neuron and a channel."""
    first = Window((2, 6, 8), (4, 3, 7), (2, 1), (1, 0), (1, 1), 2)
    second = Window((4, 3, 7), (3, 3, 4), (1, 2), (1, 1), (1, 2), 1)
    a = population("a", 4, 3, 7, bias=rng.integers(-9, 9, 84), decay_u=4096)
    b = population("b", 3, 3, 4, bias=np.repeat([1, -2, 5], 12))
    connections = [
        synapses("in", "a", even(rng, 4, 1, 3, 2), window=first),
        synapses("a", "b", rng.integers(-50, 60, (3, 4, 3, 2)), window=second),
        synapses("b", "c", even(rng, 5, 36)),
    ]
    return program([a, b, population("c", 5)], connections, (2, 6, 8))


NETS = {"delayed": delayed, "looped": looped, "convolved": convolved}


def net(name):
    """A program of `NETS`, seeded."""
    return NETS[name](np.random.default_rng(1))


def raster(shape, steps=120):
    return (np.random.default_rng(2).random((steps, *shape)) < 0.3).astype(np.int8)


def states(program, spikes, read_out="registers"):
    """u, v and spikes [step, neuron] of every population on the emulator, of one sample [step, ...]."""
    names = {"u": "i_syn", "v": "v_mem", "s": "spikes"}
    keep = {p.name: set(names.values()) for p in program.populations}
    given = np.asarray(spikes).reshape(len(spikes), 1, *program.input_shape).astype(np.int32)
    traces = execute.execute(program, given, keep, read_out=read_out).traces
    return {
        p.name: {key: traces[p.name, variable].reshape(len(spikes), -1) for key, variable in names.items()}
        for p in program.populations
    }
