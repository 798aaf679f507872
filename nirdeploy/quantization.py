"""Quantised parameters, integers that stay integers, and the search that chooses them on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import MissingLayerError, QuantizationError
from nirdeploy.names import suggest

if TYPE_CHECKING:
    from nirdeploy.reference.convention import Convention
    from nirdeploy.target import Target

__all__ = [
    "QUANTIZERS",
    "Grid",
    "Quantized",
    "QuantizedNeuron",
    "QuantizedWeight",
    "TrainingGrid",
    "best",
    "own_integer",
    "require_bits",
    "require_calibration",
]

QUANTIZERS = ("calibrated", "max")
T = TypeVar("T")


def _seal(layer: Any, *fields: str) -> None:
    """Replace arrays by read-only views; the caller's own stay writable."""
    for name in fields:
        value = getattr(layer, name)
        if value is not None:
            view = np.asarray(value).view()
            view.setflags(write=False)
            object.__setattr__(layer, name, view)


@dataclass(frozen=True, repr=False)
class QuantizedWeight:
    """Integers of one weight node.

    Attributes:
        weight: integers in the NIR node's own shape.
        bias: integers in the NIR node's own shape, or None where the node has none or it is zero.
        scale: model units (after the neuron's input gain) an integer of `weight` stands for.
        bias_exponent: `bias` stands for bias * 2**bias_exponent * scale model units.
    """

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None
    scale: float
    bias_exponent: int = 0

    def __post_init__(self) -> None:
        _seal(self, "weight", "bias")

    def __repr__(self) -> str:
        low, high = (int(self.weight.min()), int(self.weight.max())) if self.weight.size else (0, 0)
        bias = "none" if self.bias is None else f"{self.bias.shape} << {self.bias_exponent}"
        return f"QuantizedWeight(weight {self.weight.shape} of {low} to {high}, bias {bias}, scale={self.scale!r})"


@dataclass(frozen=True)
class QuantizedNeuron:
    """Integers of one population.

    Attributes:
        threshold: the value the chip compares with (Loihi: mantissa << 6, an array in the population's shape where
            neurons differ; so are decay_v, decay_u, mantissa and v_start).
        v_min: lower bound of v, or None.
        scale: model units of v an integer stands for.
        reset: 'zero' or 'subtract' (the threshold).
        decay_v: of 4096, what v loses a step (Loihi).
        decay_u: of 4096, what u loses a step (Loihi).
        bias: what is added to v every step, mantissa << exponent in `bias`/`bias_exponent`; None: nothing.
        mantissa: mantissa of the threshold (Loihi).
        exponent: exponent of the threshold (Loihi).
        many: whether a step may hold several spikes of a neuron.
        v_start: v at the start (Loihi).
        offset: model units of v where the register is 0; one a neuron where they differ (Loihi).
        scale_u: model units of i_syn an integer of u stands for; None: not told (Loihi).
        fires: False where the population only integrates (Loihi).
    """

    threshold: int | NDArray[np.int64]
    v_min: int | None
    scale: float
    reset: str = "zero"
    decay_v: int | NDArray[np.int64] = 0
    decay_u: int | NDArray[np.int64] = 4096
    bias: NDArray[np.int64] | None = None
    bias_exponent: int = 0
    mantissa: int | NDArray[np.int64] | None = None
    exponent: int = 0
    many: bool = False
    v_start: int | NDArray[np.int64] = 0
    offset: float | NDArray[np.float64] = 0.0
    scale_u: float | None = None
    fires: bool = True

    def __post_init__(self) -> None:
        several = ("threshold", "decay_v", "decay_u", "mantissa", "v_start", "offset")
        _seal(self, "bias", *(name for name in several if isinstance(getattr(self, name), np.ndarray)))


@dataclass(frozen=True)
class Grid:
    """The values a parameter may have: integer * step, with lowest <= integer <= highest.

    Attributes:
        step: what an integer stands for; one number, or an array that broadcasts over the parameter.
        lowest: smallest integer.
        highest: largest integer.
        every: integers are multiples of it.
        unit: what an integer stands for in the network that is simulated, where factors behind the parameter (input
            gains, scales) are folded into it; None: `step`.
        exponent: integer * 2**exponent is in units of a weight's integer, as of `QuantizedWeight.bias`.
    """

    step: float | NDArray[np.float64]
    lowest: int
    highest: int
    every: int = 1
    unit: float | None = None
    exponent: int = 0


@dataclass(frozen=True)
class TrainingGrid:
    """What a graph's parameters are held to while it is trained for a chip.

    Attributes:
        trained: weight node -> 'weight' or 'bias' -> the values it may have.
        fixed: node -> field -> the one value it has on the chip, or one a neuron.
        convention: what the graph is run with, where the chip differs (lower bounds of v, crossing) as the chip does.
        neurons: population -> its registers while no trained bias is added; empty where `fixed` says everything.
    """

    trained: Mapping[str, Mapping[str, Grid]]
    fixed: Mapping[str, Mapping[str, float | NDArray[np.float64]]]
    convention: Convention
    neurons: Mapping[str, QuantizedNeuron] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Quantized(Mapping[str, "QuantizedWeight | QuantizedNeuron"]):
    """A graph with its integers for one target: a mapping from node name to its integers.

    Attributes:
        graph: the float graph; never changed.
        target: the chip.
        convention: what the graph was to be run with.
        quantizer: 'calibrated', 'max', 'exact' or 'given' (read from a vendor's file).
        layers: node name -> integers.
        notes: what the quantiser has to say, one sentence each.
        activity: Input or population -> mean spikes a step of each neuron on the calibration data, flat; empty where
            nothing was measured. Placement reads it.
    """

    graph: nir.NIRGraph
    target: Target
    convention: Convention
    quantizer: str
    layers: Mapping[str, QuantizedWeight | QuantizedNeuron]
    notes: tuple[str, ...] = field(default=())
    activity: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        object.__setattr__(self, "activity", MappingProxyType(dict(self.activity)))

    # Any, not the union: which of the two it is follows from the node, and scripts read .weight directly
    def __getitem__(self, node: str) -> Any:
        if node not in self.layers:
            raise MissingLayerError(f"no integers of {node!r}", remedy=suggest(str(node), self.layers))
        return self.layers[node]

    def __iter__(self) -> Any:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Quantized({self.target.name}, {self.quantizer}: {', '.join(self.layers) or 'no layers'})"

    def __hash__(self) -> int:
        return id(self)


def require_calibration(quantizer: str, calibration: Any, known: Sequence[str] = QUANTIZERS) -> None:
    """Refuse an unknown quantiser, and 'calibrated' without data.

    Raises:
        QuantizationError: naming the remedy.
    """
    if not isinstance(quantizer, str) or quantizer not in known:
        raise QuantizationError(f"unknown quantizer {quantizer!r}, expected one of {list(known)}")
    if quantizer == "calibrated" and calibration is None:
        raise QuantizationError(
            "quantizer 'calibrated' needs calibration data",
            remedy="Pass calibration=raster (--calibration), or quantizer='max' to scale by the largest weight alone.",
        )


def own_integer(value: Any) -> Any:
    """Python's own number for an integer of numpy; all else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def require_bits(weight_bits: Any) -> None:
    """Refuse a width of weights that a chip of 8-bit weights does not have (1 bit leaves -1 and 0).

    Raises:
        QuantizationError: naming the range.
    """
    if not (isinstance(weight_bits, int) and not isinstance(weight_bits, bool) and 2 <= weight_bits <= 8):
        raise QuantizationError(f"weight_bits is {weight_bits!r}, expected 2 to 8", remedy="Use e.g. weight_bits=4.")


def best(candidates: Iterable[T], cost: Callable[[T], float]) -> tuple[T, float]:
    """The candidate of least cost, the first among equals, with its cost.

    Raises:
        QuantizationError: there is no candidate.
    """
    chosen: tuple[T, float] | None = None
    for candidate in candidates:
        found = cost(candidate)
        if chosen is None or found < chosen[1]:
            chosen = candidate, found
        if found == 0:
            break
    if chosen is None:
        raise QuantizationError("no integer scale fits the target's registers")
    return chosen
