"""The processes of one network, as simulator and chip both get them.

A part of `lava_worker`, imported by its interpreter alone. Ports of what the job calls an image carry x, y, channel, as
in lava-dl's networks; all others have one axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


def to_ports(values: Any, shape: Any) -> Any:
    """Neurons in our order [channel * y * x] as the array that a port of `shape` carries."""
    return values.reshape(shape[::-1]).transpose(2, 1, 0) if len(shape) == 3 else values.reshape(shape)


def from_ports(values: Any) -> Any:
    """The array of a port as neurons in our order, one axis."""
    return values.transpose(2, 1, 0).reshape(-1) if values.ndim == 3 else values.reshape(-1)


def port_shape(size: int, image: Any) -> tuple[int, ...]:
    """Shape of a port: x, y, channel of an image given as channel, y, x; or one axis."""
    return tuple(image[::-1]) if image else (size,)


def seen_as(port: Any, image: Any) -> Any:
    """A port with its neurons as an image (channel, y, x), or on one axis where there is none; in our order."""
    size = math.prod(port.shape)
    if port.shape == port_shape(size, image):
        return port
    flat = port.transpose([2, 1, 0]).flatten() if len(port.shape) == 3 else port
    return flat.reshape(tuple(image)).transpose([2, 1, 0]) if image else flat


@dataclass
class Network:
    """Processes of one network.

    Attributes:
        sources: RingBuffers: the Input, then the always-on axons.
        populations: LIFs.
        synapses: Dense, DelayDense or Conv.
    """

    sources: list[Any] = field(default_factory=list)
    populations: list[Any] = field(default_factory=list)
    synapses: list[Any] = field(default_factory=list)


def source_shapes(job: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the ports of the Input and the always-on axons."""
    return [
        port_shape(math.prod(job["input"]), job["image"]),
        *(port_shape(axons["count"], None) for axons in job["always_on"]),
    ]


def build(
    job: dict[str, Any], arrays: Any, processes: Any, *, params: Any, feed: Any = None, at_rest: bool = False
) -> Network:
    """The processes of one network, connected.

    Args:
        job: the network's part of job.json.
        arrays: its part of input.h5.
        processes: the classes RingBuffer, LIF, Dense, DelayDense and Conv.
        params: called with a kind ('source', 'population' or 'synapse') and a position; what the process model is
            given beside Lava's own parameters.
        feed: called with a source and its position: the port its spikes come out of; None: the source's own.
        at_rest: whether v and bias start at 0 instead.
    """
    network = Network()
    ports = []
    for k, shape in enumerate(source_shapes(job)):
        source = _source(processes, shape, params("source", k))
        network.sources.append(source)
        ports.append(source.s_out if feed is None else feed(source, k))
    for k, population in enumerate(job["populations"]):
        own = arrays[f"populations/{k}"]
        lif = _population(processes, population, own, params("population", k), at_rest)
        network.populations.append(lif)
        ports.append(lif.s_out)
    for k, synapses in enumerate(job["synapses"]):
        image = job["populations"][synapses["target"]]["image"]
        lif = network.populations[synapses["target"]]
        source = ports[synapses["source"]]
        made = _synapses(processes, synapses, arrays[f"synapses/{k}"], params("synapse", k))
        window = synapses["window"]
        seen_as(source, window and window["source_shape"]).connect(made.s_in)
        seen_as(made.a_out, image).connect(lif.a_in)
        network.synapses.append(made)
    return network


def _source(processes: Any, shape: Any, params: Any) -> Any:
    import numpy as np

    data = params.pop("data", None)
    source = processes.RingBuffer(data=np.zeros((*shape, 1), np.int32) if data is None else data)
    for name, value in params.items():  # RingBuffer takes none
        source.proc_params[name] = value
    return source


def _population(processes: Any, job: dict[str, Any], arrays: Any, params: Any, at_rest: bool) -> Any:
    shape = port_shape(math.prod(job["shape"]), job["image"])

    def register(name: str) -> Any:
        values = arrays[name][...]
        return int(values[0]) if values.size == 1 else to_ports(values, shape)

    return processes.LIF(
        shape=shape,
        v=0 if at_rest else register("v_start"),
        du=register("decay_u") - 1,  # Lava adds it again (ds_offset)
        dv=register("decay_v"),
        vth=register("threshold"),
        bias_mant=0 if at_rest else register("bias_mantissa"),
        bias_exp=job["bias_exponent"],
        **params,
    )


def _synapses(processes: Any, job: dict[str, Any], arrays: Any, params: Any) -> Any:
    import numpy as np

    weight, window = arrays["weight"][...], job["window"]
    if window is not None:
        made = processes.Conv(
            # Lava convolves over x, y; our kernel correlates over y, x
            weight=weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1).astype(np.int32),
            input_shape=tuple(window["source_shape"][::-1]),
            groups=window["groups"],
            **{name: tuple(window[name][::-1]) for name in ("stride", "padding", "dilation")},
        )
        for name, value in params.items():  # Conv takes none
            made.proc_params[name] = value
        return made
    options = {"weights": (weight << job["shift"]).astype(int), "weight_exp": -job["shift"], "num_weight_bits": 8}
    if job["delayed"]:
        return processes.DelayDense(delays=arrays["delay"][...].astype(int), **options, **params)
    return processes.Dense(**options, **params)
