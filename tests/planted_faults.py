"""Faults as a table: how each is planted, and which node and which rung must be named for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import fault_nets
import nir
import numpy as np
import slow_lava
from fault_nets import DT, LOIHI_NETS, SPECK_NETS, Net, deployed
from nirdeploy_loihi.emulator import emulate
from nirdeploy_loihi.lower_program import lowered
from nirdeploy_speck.ladder import integer_graph
from planting import (
    CONVENTION,
    ORDER,
    PARAMETERS,
    STATES,
    Fault,
    Planted,
    backend_steps,
    on_speck,
    reference,
    spliced,
    trained,
    with_layers,
    with_run,
    with_weights,
)

import nirdeploy as nd
from nirdeploy.comparison.ladder import in_reference
from nirdeploy.graph import make_graph, make_node

CONV_NETS = (fault_nets.speck_conv, fault_nets.speck_sum, fault_nets.loihi_conv)


# ---------------------------------------------------------------- parameters


def weight_bit(net: Net) -> Planted:
    """Bit 6 of one weight, in the middle of its kernel, from a channel that spikes."""
    name = net.feeds[net.second][0]
    weight = deployed(net).quantized[name].weight
    middle = tuple(n // 2 for n in weight.shape[2:])
    low, high = (64, 127) if on_speck(net) else (128, 128)
    spikes = reference(net)[net.source(name), "spikes"].data
    busy = np.argsort(-spikes.sum(axis=tuple(n for n in range(spikes.ndim) if n != 2)))
    index = next(
        (o, i, *middle) for i in busy.tolist() for o in range(len(weight)) if low <= weight[(o, i, *middle)] <= high
    )
    flipped = weight.copy()
    flipped[index] ^= 64
    return with_weights(net, [name], lambda _: flipped, net.second, channels=index[:1], entry=(name, index))


def threshold_off_by_one(net: Net) -> Planted:
    layer = deployed(net).quantized[net.second]
    if on_speck(net):
        changed = dataclasses.replace(layer, threshold=layer.threshold + 1)
    else:
        changed = dataclasses.replace(layer, threshold=layer.threshold - 64, mantissa=layer.mantissa - 1)
    return with_layers(net, {net.second: changed}, net.second)


def transposed_kernel(net: Net) -> Planted:
    name, node = net.kernel
    return with_weights(net, [name], lambda w: np.ascontiguousarray(np.swapaxes(w, -1, -2)), node)


def flipped_kernel(net: Net) -> Planted:
    """A convolution in place of a correlation."""
    name, node = net.kernel
    return with_weights(net, [name], lambda w: np.ascontiguousarray(w[..., ::-1, ::-1]), node)


def swapped_channels(net: Net) -> Planted:
    def exchanged(weight: np.ndarray) -> np.ndarray:
        return weight[[2, 1, 0, *range(3, len(weight))]]

    return with_weights(net, net.feeds[net.second], exchanged, net.second, channels=(0, 2))


def dropped_edge(net: Net) -> Planted:
    edge, node = net.edge
    if isinstance(edge, str):
        return with_weights(net, [edge], np.zeros_like, node)
    without = dataclasses.replace(
        net, graph=make_graph(dict(net.graph.nodes), [e for e in net.graph.edges if e != edge])
    )
    healthy, faulty = deployed(net), deployed(without)
    return Planted(
        reference(net),
        faulty.run(net.raster),
        node,
        healthy,
        net.raster,
        steps=lambda steps: spliced(steps, backend_steps(faulty), PARAMETERS),
    )


# ---------------------------------------------------------------- conventions


def dt_doubled(net: Net) -> Planted:
    return trained(net, net.populations[0], dt=2 * DT)


def wrong_reset(net: Net) -> Planted:
    return trained(net, net.second, overrides={net.second: {"reset": "zero" if on_speck(net) else "subtract"}})


def wrong_crossing(net: Net) -> Planted:
    return trained(net, net.second, overrides={net.second: {"crossing": "strict" if on_speck(net) else "inclusive"}})


def spikes_per_step(net: Net) -> Planted:
    return trained(net, net.second, overrides={net.second: {"spikes_per_step": "one" if on_speck(net) else "many"}})


def v_min_missing(net: Net) -> Planted:
    return trained(net, net.second, overrides={net.second: {"v_min": None if on_speck(net) else -96.0}})


# ---------------------------------------------------------------- states


def one_step_lag(net: Net) -> Planted:
    """What leads to the second population takes a step more."""
    healthy = deployed(net)
    if on_speck(net):
        graph, convention = integer_graph(healthy.quantized)
        nodes, edges = dict(graph.nodes), []
        for source, target in graph.edges:
            if target != net.second:
                edges.append((source, target))
                continue
            size = (net.graph.nodes[net.second].v_threshold).shape
            nodes[f"late_{source}"] = make_node(nir.Delay, delay=np.full(size, DT))
            edges += [(source, f"late_{source}"), (f"late_{source}", target)]
        late = make_graph(nodes, edges)

        def run(raster: Any) -> nd.Trajectory:
            found = in_reference(late, convention)(raster)
            return dataclasses.replace(found, target=net.target, executor="emulator")

    else:
        found = lowered(healthy.quantized)
        synapses = [
            dataclasses.replace(s, delay=s.delay + 1) if s.target == net.second else s for s in found.program.synapses
        ]
        program = dataclasses.replace(found.program, synapses=tuple(synapses))

        def run(raster: Any) -> nd.Trajectory:
            late = dataclasses.replace(found, program=program)
            return emulate(healthy.quantized, raster, record=("spikes", "v_mem"), nodes=None, found=late)

    return with_run(net, healthy, run, net.second)


def transposed_map(net: Net) -> Planted:
    """y and x exchanged where the input comes in: the first population's map lies on its side, as its kernel does."""
    name = net.feeds[net.populations[0]][0]
    integers = deployed(net)
    turned = np.ascontiguousarray(np.swapaxes(integers.quantized[name].weight, -1, -2))
    layers = {**integers.quantized.layers, name: dataclasses.replace(integers.quantized[name], weight=turned)}
    faulty = dataclasses.replace(integers, quantized=dataclasses.replace(integers.quantized, layers=layers))
    return with_run(net, integers, lambda x: faulty.run(np.swapaxes(x, -1, -2)), net.populations[0])


def wrong_decay_rounding(net: Net) -> Planted:
    """The second population's decays keep 10 bits less."""
    healthy = deployed(net)
    exact, neurons = slow_lava.decayed, slow_lava.Neurons

    def coarse(x: np.ndarray, loss: np.ndarray) -> np.ndarray:
        found = exact(x, loss)
        return np.sign(found) * (np.abs(found) >> 10 << 10)

    class Coarse(neurons):
        def step(self, total: np.ndarray, read_out: str) -> Any:
            with mock.patch.object(slow_lava, "decayed", coarse if self.p.name == net.second else exact):
                return super().step(total, read_out)

    def run(raster: Any) -> nd.Trajectory:
        found = healthy.run(raster)
        with mock.patch.object(slow_lava, "Neurons", Coarse):
            traces = slow_lava.execute(lowered(healthy.quantized).program, np.asarray(raster))
        records = {
            key: dataclasses.replace(record, data=traces[key]) if key in traces else record
            for key, record in found.records.items()
        }
        return dataclasses.replace(found, records=records)

    return with_run(net, healthy, run, net.second)


def saturating_state(net: Net) -> Planted:
    """Sums that the chip's registers do not hold, in the first population; see `filled` for the network."""
    healthy = deployed(net)
    mode = "event" if on_speck(net) else None
    return Planted(reference(net), healthy.run(net.raster, mode=mode), net.populations[0], healthy, net.raster)


def filled(make: Callable[..., Net], *, over: bool) -> Net:
    """A network whose first population's v comes to its register's end, or nearly."""
    rng = np.random.default_rng(6)
    if make in SPECK_NETS:
        net = make(threshold=32766.0 if over else 32640.0)
        shape = net.raster.shape[2:]
        raster = rng.poisson(6.0, (160, 2, *shape))
        raster[:, :, 1::2] = 0
        return dataclasses.replace(net, raster=raster)
    net = make("IF")
    name = net.feeds[net.populations[0]][0]
    weight = np.full(np.asarray(net.graph.nodes[name].weight).shape, 254.0)
    half = weight.shape[1] // 2
    weight[:, :half] = -254.0
    node = net.graph.nodes[name]
    other = fault_nets.conv_node(weight, (6, 6), padding=1) if weight.ndim == 4 else fault_nets.linear_node(weight)
    assert type(other) is type(node)
    steps = 160 if over else 20
    raster = np.zeros((360, 2, *net.raster.shape[2:]), np.int64)
    raster[:steps, :, :half] = 1
    raster[steps:, :, half:] = rng.random(raster[steps:, :, half:].shape) < 0.9
    last = net.feeds[net.populations[2]][0]
    positive = fault_nets.linear_node(
        np.abs(net.graph.nodes[last].weight)
    )  # nothing else comes near its register's end
    return dataclasses.replace(net.with_nodes(**{name: other, last: positive}), raster=raster)


# ---------------------------------------------------------------- what is shown


def read_out_weight(net: Net) -> Planted:
    """A weight's sign, into a last population that only integrates: no spike tells of it."""
    seen = fault_nets.integrating(net)
    node = net.populations[-1]
    name = net.feeds[node][0]
    weight = deployed(seen).quantized[name].weight.copy()
    weight[1] *= -1
    return with_weights(seen, [name], lambda _: weight, node)


def swapped_outputs(net: Net) -> Planted:
    """The Output shows its first two channels in each other's place."""
    healthy = deployed(net)

    def run(raster: Any) -> nd.Trajectory:
        found = healthy.run(raster)
        shown = found["output", "output"]
        order = [1, 0, *range(2, shown.shape[2])]
        records = {**found.records, ("output", "output"): dataclasses.replace(shown, data=shown.data[:, :, order])}
        return dataclasses.replace(found, records=records)

    return with_run(net, healthy, run, "output")


# ---------------------------------------------------------------- order


def event_order(net: Net) -> Planted:
    """The same events in another order within their step; the ladder has steps against events."""
    assert net.mixed is not None
    raster, node = net.mixed
    healthy = deployed(net)
    events = nd.raster_to_events(raster[:, 0], step_us=1000)
    order = np.lexsort((np.random.default_rng(7).random(len(events)), events.time_us // 1000))
    shuffled = nd.Events(
        events.time_us // 1000 * 1000,
        index=[axis[order] for axis in events.index],
        shape=events.shape,
        stop_us=events.stop_us,
    )
    runs = [healthy.run(found, mode="event", step_us=1000) for found in (events, shuffled)]
    return Planted(*runs, node, healthy, raster)


BOTH = (*SPECK_NETS, *LOIHI_NETS)
FAULTS = (
    Fault("weight bit", weight_bit, PARAMETERS, BOTH),
    Fault("threshold off by one", threshold_off_by_one, PARAMETERS, BOTH),
    Fault("transposed kernel", transposed_kernel, PARAMETERS, BOTH),
    Fault("flipped kernel", flipped_kernel, PARAMETERS, CONV_NETS),
    Fault(
        "swapped channels",
        swapped_channels,
        PARAMETERS,
        BOTH,
        (r"with (channels|neurons) 0 and 2 exchanged, 100\.00 % of {node}'s spikes( from step \d+ on)? agree",),
    ),
    Fault("dropped edge", dropped_edge, PARAMETERS, BOTH),
    # with leaks, another dt is no constant factor of v
    Fault("dt doubled", dt_doubled, CONVENTION, BOTH, (), {"speck2f": (CONVENTION, ("v_mem is 0.5 times",))}),
    Fault(
        "wrong reset",
        wrong_reset,
        CONVENTION,
        BOTH,
        ("after a spike the chip's v_mem is always 0, the reference's",),
        {"speck2f": (CONVENTION, ("after a spike the reference's v_mem is always 0, the chip's",))},
    ),
    Fault("wrong crossing", wrong_crossing, CONVENTION, BOTH),
    Fault(
        "spikes per step",
        spikes_per_step,
        CONVENTION,
        BOTH,
        ("the chip never spikes more than once a step, the reference up to",),
        {"speck2f": (CONVENTION, ("the reference never spikes more than once a step, the chip up to",))},
    ),
    Fault(
        "v_min missing",
        v_min_missing,
        CONVENTION,
        BOTH,
        ("the reference's v_mem never falls below -96,",),
        {"speck2f": (CONVENTION, ("the chip's v_mem never falls below -300,",))},
    ),
    Fault(
        "one-step lag",
        one_step_lag,
        STATES,
        BOTH,
        (r"shifted by 1 step, 100\.00 % of {node}'s spikes( from step \d+ on)? agree",),
    ),
    Fault("transposed map", transposed_map, STATES, CONV_NETS, ("with y and x exchanged, 100",)),
    Fault("wrong decay rounding", wrong_decay_rounding, STATES, LOIHI_NETS),
    Fault(
        "saturating state",
        saturating_state,
        STATES,
        BOTH,
        ("the chip's v_mem never falls below -1.311e\\+05,", "counts .* saturations of v at {node}"),
        {"speck2f": (ORDER, ("counts .* saturations of v at {node}",))},
    ),
    Fault("read-out weight", read_out_weight, PARAMETERS, LOIHI_NETS),
    Fault("swapped outputs", swapped_outputs, STATES, BOTH),
    Fault("event order", event_order, ORDER, SPECK_NETS),
)
