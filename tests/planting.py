"""Ways of planting a fault: other integers, another convention, another run in place of the emulator's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fault_nets import Net, deployed

import nirdeploy as nd
from nirdeploy.comparison.ladder import Step
from nirdeploy.pipeline import Deployment

CONVENTION, PARAMETERS, STATES, ORDER = "chip convention", "quantised parameters", "integer states", "event order"


@dataclass(frozen=True)
class Planted:
    """A fault in a network.

    Attributes:
        reference: the healthy run.
        faulty: the other.
        node: the population that must be named.
        deployment: what the ladder is of.
        raster: what it is run on.
        convention: what the network was trained in; None: what the chip does.
        steps: what becomes of the ladder's steps; None: nothing.
        channels: first indices that a diverging neuron may have; None: all.
        entry: weight node and index of the weight that is changed.
    """

    reference: nd.Trajectory
    faulty: nd.Trajectory
    node: str
    deployment: Deployment
    raster: np.ndarray
    convention: nd.Convention | None = None
    steps: Callable[[Sequence[Step]], Sequence[Step]] | None = None
    channels: tuple[int, ...] | None = None
    entry: tuple[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        kind: of fault.
        plant: puts it into a network.
        rung: that must dominate.
        nets: the networks it is planted in.
        hints: of the comparison, regular expressions in order.
        elsewhere: target -> another rung and other hints.
    """

    kind: str
    plant: Callable[[Net], Planted]
    rung: str
    nets: Sequence[Callable[..., Net]]
    hints: tuple[str, ...] = ()
    elsewhere: dict[str, tuple[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)

    def expected(self, target: str) -> tuple[str, tuple[str, ...]]:
        """Rung and hints on a target."""
        return self.elsewhere.get(target, (self.rung, self.hints))


def reference(net: Net, **changes: Any) -> nd.Trajectory:
    return nd.run(net.graph, net.raster, convention=dataclasses.replace(net.convention, **changes))


def on_speck(net: Net) -> bool:
    return net.target.startswith("speck")


def with_layers(net: Net, layers: dict[str, Any], node: str, **told: Any) -> Planted:
    """The healthy graph deployed with some other integers."""
    healthy = deployed(net)
    changed = dataclasses.replace(healthy.quantized, layers={**healthy.quantized.layers, **layers})
    faulty = dataclasses.replace(healthy, quantized=changed)
    return Planted(reference(net), faulty.run(net.raster), node, faulty, net.raster, **told)


def with_weights(net: Net, names: Sequence[str], change: Callable[[np.ndarray], np.ndarray], node: str, **told: Any):
    integers = deployed(net).quantized
    layers = {name: dataclasses.replace(integers[name], weight=change(integers[name].weight)) for name in names}
    return with_layers(net, layers, node, **told)


def trained(net: Net, node: str, **changes: Any) -> Planted:
    """The reference in what the network was trained in, the chip in its own way."""
    used = dataclasses.replace(net.convention, **changes)
    healthy = deployed(net)
    run = nd.run(net.graph, net.raster, convention=used)
    return Planted(run, healthy.run(net.raster), node, healthy, net.raster, used)


def with_run(net: Net, healthy: Any, run: Callable[[Any], nd.Trajectory], node: str) -> Planted:
    """Another run in place of the emulator's, of its events too."""

    def replaced(steps: Sequence[Step]) -> Sequence[Step]:
        return spliced(steps, [dataclasses.replace(step, run=run) for step in steps], STATES)

    return Planted(reference(net), run(net.raster), node, healthy, net.raster, steps=replaced)


def backend_steps(deployment: Deployment) -> Sequence[Step]:
    from nirdeploy.backend import backend_of

    return backend_of(deployment.target.backend).ladder_steps(deployment.quantized, deployment.placement)


def spliced(steps: Sequence[Step], others: Sequence[Step], rung: str) -> list[Step]:
    """`steps`, from a rung on as in `others`."""
    at = next(n for n, step in enumerate(steps) if step.name == rung)
    return [*steps[:at], *(step for step in others if step.name in {s.name for s in steps[at:]})]
