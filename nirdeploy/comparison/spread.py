"""How a difference may have spread: which nodes already differ where another one begins to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.cause import Earlier
from nirdeploy.outline import Outline

__all__ = ["NEVER", "Spread"]

NEVER = int(np.iinfo(np.int64).max)


class Spread:
    """When nodes first differ, and which of them lead where.

    Args:
        first: node -> of each sample the first step in which its spikes differ, or `NEVER`; in order of execution.
        outline: of the graph; None: every node may lead to every other.
    """

    def __init__(self, first: Mapping[str, NDArray[np.int64]], outline: Outline | None) -> None:
        self._names = list(first)
        self._steps = np.full((len(first), max((steps.size for steps in first.values()), default=0)), NEVER)
        for row, steps in zip(self._steps, first.values(), strict=True):
            row[: steps.size] = steps
        self._before = outline.before() if outline else {}
        known = {name: k for k, name in enumerate(self._before)}
        self._places = np.array([known.get(name, -1) for name in self._names], dtype=np.int64)

    def earlier(self, node: str, step: int, sample: int) -> Earlier:
        """Other nodes that lead here and already differ in this sample; those recorded before it also in this step."""
        steps, mine = self._steps[:, sample], self._names.index(node)
        differs = (steps < step) | ((steps == step) & (np.arange(steps.size) < mine))
        differs[mine] = False
        places = np.flatnonzero(differs & self._leading(node))
        first = int(places[steps[places].argmin()]) if places.size else None
        return Earlier(
            None if first is None else (self._names[first], int(steps[first])),
            len(places),
            len(self._names) - 1,
            elsewhere=bool(differs.any()),
        )

    def _leading(self, node: str) -> NDArray[np.bool_]:
        """Which of all nodes lead to one; those that the outline does not know might."""
        if node not in self._before:
            return np.ones(len(self._names), dtype=bool)
        data = self._before[node].to_bytes(len(self._before) // 8 + 1, "little")
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return (self._places < 0) | (bits[self._places] > 0)
