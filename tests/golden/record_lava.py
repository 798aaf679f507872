"""Record the Loihi goldens in real Lava: four small seeded networks, every u, v and spike.

Runs in the vendor's interpreter, not in nirdeploy's (lava-nc 0.10 needs Python 3.10 and numpy < 2):

    python3.10 -m venv .venv-lava
    .venv-lava/bin/pip install --no-deps lava-nc==0.10.0 numpy==1.26.4 scipy==1.15.3 networkx==2.8.7 \
        asteval==0.9.31 h5py
    .venv-lava/bin/python tests/golden/record_lava.py tests/golden

Writes `lava_<name>.net` (lava-dl's layout) and `lava_<name>.npz`: `input` [step, ...] and for each layer with
neurons `L<group>_u`, `_v`, `_s` [step, ...], images as channel, y, x.

Loops and skips, which lava-dl's layout cannot hold, are in `lava_<name>.npz` alone: `registers` [population, (iDecay,
vDecay, vThMant)], `wires` [connection, (source, target)] with populations counted from 1 and the input 0, and
`weight<k>`, `delay<k>` [target, source] of every connection.
"""

import argparse
import math
import warnings
from pathlib import Path

import h5py
import numpy as np

STEPS = 60


def networks():
    """The networks: name -> (input shape, layers)."""
    rng = np.random.default_rng(20240611)
    cuba = {"iDecay": 1200, "vDecay": 310, "vThMant": 170}
    lif = {"iDecay": 4096, "vDecay": 90, "vThMant": 420}
    dense = [
        {
            "type": "dense",
            "weight": rng.integers(-60, 64, (5, 6)) * 2,
            "bias": rng.integers(-30, 40, 5),
            "neuron": cuba,
        },
        {"type": "dense", "weight": rng.integers(0, 128, (3, 5)) * 2 + 1, "bias": None, "neuron": lif},
    ]
    conv = [
        {
            "type": "conv",
            "weight": rng.integers(0, 40, (3, 2, 3, 2)) * 2 + 1,
            "bias": np.array([-40, 12, 0]),
            "stride": (1, 2),
            "padding": (1, 0),
            "dilation": (1, 1),
            "groups": 1,
            "neuron": {"iDecay": 4096, "vDecay": 0, "vThMant": 260},
        },
        {"type": "flatten"},
        {
            "type": "dense",
            "weight": -(rng.integers(0, 55, (4, 36)) * 2 + 1),
            "bias": np.array([500, 700, 900, 1200]),
            "neuron": {"iDecay": 2500, "vDecay": 128, "vThMant": 610},
        },
    ]
    # the last layer has odd negative weights: without a zero and with this minimum, netx's scaling keeps them
    return {"dense": ((6,), dense), "conv": ((2, 6, 5), conv)}


def meshes():
    """Networks with loops and skips: name -> (inputs, registers, connections (source, target, weight, delay))."""
    rng = np.random.default_rng(20241202)

    def even(out, given):
        return rng.integers(-40, 63, (out, given)) * 2

    def late(out, given, most):
        return rng.integers(0, most + 1, (out, given))

    loops = [
        (0, 1, even(5, 6), late(5, 6, 3)),
        (1, 1, even(5, 5), late(5, 5, 9)),
        (1, 2, even(4, 5), late(4, 5, 0)),
        (2, 1, even(5, 4), late(5, 4, 21)),
    ]
    skips = [
        (0, 1, even(5, 6), late(5, 6, 0)),
        (1, 2, even(4, 5), late(4, 5, 0)),
        (0, 3, even(3, 6), late(3, 6, 2)),
        (1, 3, even(3, 5), late(3, 5, 0)),
        (2, 3, -(rng.integers(0, 40, (3, 4)) * 2 + 1), late(3, 4, 0)),
    ]
    return {
        "loops": (6, [(1500, 200, 150), (4096, 60, 210)], loops),
        "skips": (6, [(4096, 300, 120), (900, 150, 260), (2000, 500, 140)], skips),
    }


def trace_mesh(inputs, registers, wires, spikes):
    """As `trace`, of a network with loops and skips."""
    from lava.proc.dense.process import DelayDense, Dense
    from lava.proc.io.source import RingBuffer
    from lava.proc.lif.process import LIF

    source = RingBuffer(data=spikes.T.astype(np.int32))
    sizes = {target: len(weight) for _, target, weight, _ in wires}
    lifs = [
        LIF(shape=(sizes[k],), du=du - 1, dv=dv, vth=vth, bias_mant=0, bias_exp=6)
        for k, (du, dv, vth) in enumerate(registers, start=1)
    ]
    ports = [source.s_out, *(lif.s_out for lif in lifs)]
    for start, end, weight, delay in wires:
        values, exponent, bits = scaled(weight)
        options = {"weights": values, "weight_exp": exponent, "num_weight_bits": bits, "num_message_bits": 0}
        synapse = DelayDense(delays=delay, **options) if delay.any() else Dense(**options)
        ports[start].connect(synapse.s_in)
        synapse.a_out.connect(lifs[end - 1].a_in)
    return watched(source, list(enumerate(lifs, start=1)), len(spikes))


def raster(shape):
    """Seeded input spikes, [step, *shape]."""
    rng = np.random.default_rng(len(shape))
    return (rng.random((STEPS, *shape)) < 0.35).astype(np.int32)


def write(path, shape, layers):
    """Store layers in lava-dl's layout."""
    with h5py.File(path, "w", track_order=False) as file:
        root = file.create_group("layer")
        described = [{"type": "input", "shape": [*shape, 1, 1][:3]}, *layers]
        for number, layer in enumerate(described):
            group = root.create_group(str(number))
            group.create_dataset("type", (1,), "S10", [layer["type"].encode()])
            for name, value in layer.items():
                if name == "neuron":
                    neuron = group.create_group("neuron")
                    neuron.create_dataset("type", (1,), "S10", [b"CUBA"])
                    for key, number_ in {**value, "refDelay": 1, "gradedSpike": False}.items():
                        neuron.create_dataset(key, data=number_)
                elif name != "type" and value is not None:
                    array = np.asarray(value)
                    group.create_dataset(name, data=array.astype(np.float32) if name in ("weight", "bias") else array)


def scaled(weight):
    """Weights, exponent and bits as netx 0.6 hands them to Dense: shifted up to fill eight bits."""
    high, low = int(weight.max()), int(weight.min())
    mixed = high >= 0 > low
    above = (127 if mixed else 255) / high if high > 0 else math.inf
    below = (-128 if mixed else -256) / low if low < 0 else math.inf
    shift = math.floor(math.log2(min(above, below))) + mixed
    zeros = next((n for n in range(8, 0, -1) if not np.any(weight % (1 << n))), 0) - mixed
    return weight << shift, -shift, 8 - shift - zeros


def build(shape, layers):
    """Lava processes: the first input port, and for each population its group number and LIF."""
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense
    from lava.proc.lif.process import LIF

    ports, found, flat = [], [], False
    shape = tuple(shape)[::-1]  # Lava's images are x, y, channel
    for number, layer in enumerate(layers, start=1):
        if layer["type"] == "flatten":
            flat = True
            continue
        weight = np.asarray(layer["weight"]).astype(int)
        if layer["type"] == "dense":
            values, exponent, bits = scaled(weight)
            synapse = Dense(weights=values, weight_exp=exponent, num_weight_bits=bits, num_message_bits=0)
            shape = (len(weight),)
        else:
            # Lava convolves over x, y; the file's kernel correlates over y, x
            kernel = weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
            options = {k: np.array(layer[k])[::-1] for k in ("stride", "padding", "dilation")}
            synapse = Conv(weight=kernel, input_shape=shape, groups=layer["groups"], num_message_bits=0, **options)
            shape = tuple(synapse.a_out.shape)
        neuron = layer["neuron"]
        bias = 0 if layer["bias"] is None else np.broadcast_to(layer["bias"], shape).astype(np.int32)
        lif = LIF(
            shape=shape,
            vth=neuron["vThMant"],
            du=neuron["iDecay"] - 1,
            dv=neuron["vDecay"],
            bias_mant=bias,
            bias_exp=6,
        )
        synapse.a_out.connect(lif.a_in)
        if found:
            before = found[-1][1].s_out
            (before.transpose([2, 1, 0]).flatten() if flat else before).connect(synapse.s_in)
        flat = False
        ports.append(synapse.s_in)
        found.append((number, lif))
    return ports[0], found


def trace(shape, layers, spikes):
    """Run Lava's fixed_pt models and return every state, images as channel, y, x."""
    from lava.proc.io.source import RingBuffer

    port, populations = build(shape, layers)
    given = spikes.transpose(0, 3, 2, 1) if spikes.ndim == 4 else spikes
    source = RingBuffer(data=np.moveaxis(given, 0, -1).astype(np.int32))
    source.s_out.connect(port)
    return watched(source, populations, len(spikes))


def watched(source, populations, steps):
    """Run with a Monitor on every state."""
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.monitor.process import Monitor

    monitors = {}
    for number, lif in populations:
        for name, variable in (("u", lif.u), ("v", lif.v), ("s", lif.s_out)):
            monitor = Monitor()
            monitor.probe(variable, steps)
            monitors[f"L{number}_{name}"] = monitor
    source.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    found = {}
    for name, monitor in monitors.items():
        data = next(iter(next(iter(monitor.get_data().values())).values()))
        data = np.asarray(data).astype(np.int32)
        found[name] = data.transpose(0, 3, 2, 1) if data.ndim == 4 else data
    source.stop()
    return found


def main():
    """Record every network into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the goldens go")
    folder = parser.parse_args().folder
    warnings.filterwarnings("ignore")
    for name, (shape, layers) in networks().items():
        spikes = raster(shape)
        write(folder / f"lava_{name}.net", shape, layers)
        found = trace(shape, layers, spikes)
        np.savez_compressed(folder / f"lava_{name}.npz", input=spikes.astype(np.int8), **found)
        counts = {key: int(value.sum()) for key, value in found.items() if key.endswith("_s")}
        print(name, counts)
    for name, (inputs, registers, wires) in meshes().items():
        spikes = raster((inputs,))
        found = trace_mesh(inputs, registers, wires, spikes)
        given = {"registers": np.array(registers), "wires": np.array([wire[:2] for wire in wires])}
        for k, (_, _, weight, delay) in enumerate(wires):
            given |= {f"weight{k}": weight.astype(np.int16), f"delay{k}": delay.astype(np.int16)}
        np.savez_compressed(folder / f"lava_{name}.npz", input=spikes.astype(np.int8), **given, **found)
        print(name, {key: int(value.sum()) for key, value in found.items() if key.endswith("_s")})


if __name__ == "__main__":
    main()
