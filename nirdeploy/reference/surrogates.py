"""Surrogate gradients: what training takes for the derivative of a spike with respect to v - threshold.

Each is plain arithmetic, so that torch (the step loop) and numba (the folded backward pass) run the same expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nirdeploy.errors import ConventionError
from nirdeploy.names import suggest

__all__ = ["SURROGATES", "Surrogate", "atan", "fast_sigmoid", "heaviside", "rectangle", "surrogate_of", "triangle"]


def fast_sigmoid(distance: Any, factor: Any, one: Any) -> Any:
    """1 / (1 + slope |d|)^2 (Zenke and Ganguli, Neural Computation 30, 2018; SuperSpike)."""
    below = one + factor * abs(distance)
    return one / (below * below)


def atan(distance: Any, factor: Any, one: Any) -> Any:
    """1 / (1 + (pi slope d / 2)^2) (Fang et al., ICCV 2021)."""
    scaled = factor * distance
    return one / (one + scaled * scaled)


def triangle(distance: Any, factor: Any, one: Any) -> Any:
    """max(0, 1 - slope |d|) (Bellec et al., NeurIPS 2018)."""
    height = one - factor * abs(distance)
    return (height + abs(height)) / (one + one)


def rectangle(distance: Any, factor: Any, one: Any) -> Any:
    """Slope where |d| < 1 / (2 slope), else 0 (Wu et al., Frontiers in Neuroscience 12, 2018)."""
    return factor * ((factor + factor) * abs(distance) < one)


# function, default slope, and what the slope is multiplied by; the order is the code of the native backward pass
SURROGATES: Mapping[str, tuple[Callable[[Any, Any, Any], Any], float, float]] = {
    "fast_sigmoid": (fast_sigmoid, 10.0, 1.0),
    "atan": (atan, 2.0, 0.5 * math.pi),
    "triangle": (triangle, 1.0, 1.0),
    "rectangle": (rectangle, 1.0, 1.0),
}


@dataclass(frozen=True)
class Surrogate:
    """A surrogate gradient with its slope, in 1 / model units.

    Attributes:
        kind: one of `SURROGATES`.
        slope: how narrow it is; None: the kind's default.
    """

    kind: str = "fast_sigmoid"
    slope: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in SURROGATES:
            raise ConventionError(f"unknown surrogate {self.kind!r}", remedy=suggest(str(self.kind), SURROGATES))
        if self.slope is None:
            object.__setattr__(self, "slope", SURROGATES[self.kind][1])
        if not (isinstance(self.slope, int | float) and math.isfinite(self.slope) and self.slope > 0):
            raise ConventionError(f"surrogate slope is {self.slope!r}, expected a positive number")

    @property
    def code(self) -> int:
        """Its number in the native backward pass."""
        return list(SURROGATES).index(self.kind)

    @property
    def factor(self) -> float:
        """What the distance is multiplied by."""
        return float(self.slope or 0.0) * SURROGATES[self.kind][2]

    def __call__(self, distance: Tensor) -> Tensor:
        """The derivative at v - threshold = `distance`."""
        found: Tensor = SURROGATES[self.kind][0](distance, self.factor, 1.0)
        return found


def surrogate_of(given: str | Surrogate) -> Surrogate:
    """A Surrogate from its name or itself."""
    return given if isinstance(given, Surrogate) else Surrogate(given)


class _Spike(torch.autograd.Function):
    """Heaviside step whose gradient is a surrogate."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, inclusive: bool, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.surrogate = surrogate
        return (distance >= 0 if inclusive else distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate(distance), None, None


def heaviside(distance: Tensor, inclusive: bool, surrogate: Surrogate) -> Tensor:
    """1 where distance > 0 (>= 0 if inclusive), else 0, with the surrogate's gradient."""
    found: Tensor = _Spike.apply(distance, inclusive, surrogate)  # type: ignore[no-untyped-call]
    return found
