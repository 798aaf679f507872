"""A quantised network as the chip runs it: compartments, synapses and their delays, integers alone.

Every stage behind quantisation reads this and nothing else: emulator, Lava, placement, lava-dl files, chip.json.

Time: a spike of step t arrives in step t + 1 + delay. The Input's spikes, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST_DELAY", "SYNAPSE_SHIFT", "AlwaysOn", "Compartments", "Program", "Shown", "Synapses", "Window"]

Integers = NDArray[np.int64]
Shape = tuple[int, ...]
LONGEST_DELAY = 62  # extra steps: 6 bits, of which the last value is not used (Lava, dense/process.py and netx)
SYNAPSE_SHIFT = 6  # weights and thresholds stand 6 bits above the last bit of u and v (Lava lif/models.py)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution (a correlation: the kernel is not flipped); pairs are (y, x).

    Attributes:
        source_shape: channel, y, x.
        target_shape: channel, y, x.
        stride: of the kernel.
        padding: zeros on both sides.
        dilation: of the kernel.
        groups: blocks of channels that do not mix.
    """

    source_shape: tuple[int, int, int]
    target_shape: tuple[int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, eq=False)
class Synapses:
    """All synapses of one connection. Neurons are counted row-major over their population's shape.

    Attributes:
        name: its key in `Quantized`.
        source: a population, the Input, or an always-on axon.
        target: a population.
        weight: [target neurons, source neurons], or with a window [out, in / groups, y, x].
        delay: extra steps, broadcast to [target neurons, source neurons]: each axis has 1 entry or all.
        window: None: dense.
    """

    name: str
    source: str
    target: str
    weight: Integers
    delay: Integers
    window: Window | None = None

    @property
    def n_sources(self) -> int:
        """Source neurons."""
        return math.prod(self.window.source_shape) if self.window else int(self.weight.shape[1])

    @property
    def n_targets(self) -> int:
        """Target neurons."""
        return math.prod(self.window.target_shape) if self.window else int(self.weight.shape[0])

    @property
    def largest_sum(self) -> int:
        """Most that one neuron's synapses can add in a step, of either sign."""
        return int(np.abs(self.weight).reshape(len(self.weight), -1).sum(axis=1).max(initial=0))


@dataclass(frozen=True, eq=False)
class Compartments:
    """Registers of one population. Arrays are flat with 1 entry for all neurons or one a neuron.

    Attributes:
        name: the node.
        shape: shape of the population.
        decay_u: of 4096, what u loses a step.
        decay_v: of 4096, what v loses a step.
        threshold: mantissa << 6; a neuron spikes where v > threshold.
        bias_mantissa: mantissa << exponent is added to v each step.
        bias_exponent: see `bias_mantissa`.
        v_start: v before step 0.
        refractory: steps v is held at 0 from the step of a spike on; 1: in that step alone (refDelay).
    """

    name: str
    shape: Shape
    decay_u: Integers
    decay_v: Integers
    threshold: Integers
    bias_mantissa: Integers
    bias_exponent: int
    v_start: Integers
    refractory: int = 1

    @property
    def size(self) -> int:
        """Neurons."""
        return math.prod(self.shape)

    @property
    def bias(self) -> Integers:
        """The bias register, mantissa << exponent."""
        return self.bias_mantissa << self.bias_exponent


@dataclass(frozen=True)
class AlwaysOn:
    """Axons that spike in every step from one step on: a current bias.

    Attributes:
        name: its name as a source of synapses.
        count: axons.
        start: first step of the chip in which they spike.
    """

    name: str
    count: int
    start: int


@dataclass(frozen=True)
class Shown:
    """An Output: one population in another shape, without delay.

    Attributes:
        name: the Output node.
        source: the population.
        shape: shape of the Output.
        variable: 'spikes', or 'v_mem' of a population that only integrates.
    """

    name: str
    source: str
    shape: Shape
    variable: str = "spikes"


@dataclass(frozen=True, eq=False)
class Program:
    """A network of integers.

    Attributes:
        input: name of the Input node.
        input_shape: its shape.
        populations: each after those it depends on, but for cycles.
        synapses: all connections, those of a population in the order in which they were found.
        always_on: sources of constant spikes.
        outputs: what is shown.
    """

    input: str
    input_shape: Shape
    populations: tuple[Compartments, ...]
    synapses: tuple[Synapses, ...]
    always_on: tuple[AlwaysOn, ...]
    outputs: tuple[Shown, ...]

    @property
    def sizes(self) -> Mapping[str, int]:
        """Neurons (or axons) of every source and population."""
        found = {self.input: math.prod(self.input_shape)}
        found |= {axons.name: axons.count for axons in self.always_on}
        found |= {p.name: p.size for p in self.populations}
        return MappingProxyType(found)

    def into(self, target: str) -> tuple[Synapses, ...]:
        """Connections into a population."""
        return tuple(s for s in self.synapses if s.target == target)

    def population(self, name: str) -> Compartments:
        """A population by name."""
        return next(p for p in self.populations if p.name == name)
