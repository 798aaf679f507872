"""Where a run's records go."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from nirdeploy.schedule import NodePath

__all__ = ["NOWHERE", "Sink"]


class Sink:
    """Where a run's records go; this one keeps nothing.

    Attributes:
        wanted: what `wants` depends on; the same for all sinks that want the same.
    """

    wanted: Hashable = None

    def begin(self, steps: int) -> None:
        """A chunk of so many steps begins."""

    def wants(self, path: NodePath, variable: str) -> bool:
        """Whether a variable of a node is recorded."""
        return False

    def target(self, path: NodePath, variable: str, start: int, steps: int) -> np.ndarray | None:
        """An array [step, batch, neuron] to write a chunk into; None where the variable is not recorded."""
        return None

    def put(self, path: NodePath, variable: str, start: int, values: np.ndarray | None) -> None:
        """A chunk is complete: in its target (None), or as `values` [step, batch, neuron]."""


NOWHERE = Sink()
