"""Where layers go: cores, and how much of each core's resources they take."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import PlacementError

__all__ = ["Placement", "Usage", "core_number", "core_numbers", "require_options"]


def require_options(options: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Refuse placement options that a backend does not have.

    Args:
        options: what was given.
        known: option -> what it expects.

    Raises:
        PlacementError: naming the option, its value and all that are known.
    """
    for name in sorted(set(options) - set(known)):
        listed = ", ".join(f"{option}={expected}" for option, expected in known.items())
        # what `quantization_aware` calls bits
        meant = "Bits of a weight are weight_bits. " if name == "bits" else ""
        raise PlacementError(
            f"unknown placement option {name!r} ({options[name]!r})", remedy=f"{meant}Possible: {listed}."
        )


def core_number(value: Any, count: int, *, option: str, node: str | None = None) -> int:
    """One core of a chip with `count` cores; booleans, floats and text are no core numbers.

    Raises:
        PlacementError: naming option, value and what is expected.
    """
    try:
        core = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        core = None
    if core is None:
        raise PlacementError(f"{option} has {value!r}, expected core numbers from 0 to {count - 1}", node=node)
    if not 0 <= core < count:
        raise PlacementError(f"core {core} does not exist, the chip has 0 to {count - 1}", node=node)
    return core


def core_numbers(values: Any, count: int, *, option: str, node: str | None = None) -> tuple[int, ...]:
    """Cores of a chip with `count` cores, each as `core_number`.

    Raises:
        PlacementError: naming option, value and what is expected.
    """
    # arrays without axes are Iterable, too
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise PlacementError(f"{option} is {values!r}, expected a list of core numbers", node=node)
    return tuple(core_number(value, count, option=option, node=node) for value in values)


def _sealed(value: Any) -> Any:
    """Plain JSON data that cannot be changed: lists as tuples."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(key): _sealed(item) for key, item in value.items()})
    return tuple(_sealed(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Inverse of `_sealed`."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Usage:
    """One resource of one core: how much of it a layer takes.

    Attributes:
        core: core index.
        node: the population on it.
        resource: e.g. 'kernel_memory'.
        used: amount taken.
        limit: amount there is.
    """

    core: int
    node: str
    resource: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        """Used part of the limit, 0 to 1."""
        return self.used / self.limit if self.limit else 0.0


@dataclass(frozen=True, repr=False)
class Placement:
    """Cores of every population.

    Attributes:
        cores: population node -> core indices, in order of its slices.
        usage: every resource of every core taken.
        slices: population node -> for each core the flat neuron indices [first, last) it holds.
        options: what else the backend was told, e.g. of the sensor; plain JSON data.
        tiles: population node -> for each core the block of neurons it holds: [first, last) along each axis of the
            population's shape. Where it is empty, `slices` tells.
    """

    cores: Mapping[str, tuple[int, ...]]
    usage: tuple[Usage, ...] = ()
    slices: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tiles: Mapping[str, tuple[tuple[tuple[int, int], ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cores = {node: tuple(int(c) for c in found) for node, found in self.cores.items()}
        object.__setattr__(self, "cores", MappingProxyType(cores))
        slices = {n: tuple((int(a), int(b)) for a, b in s) for n, s in self.slices.items()}
        object.__setattr__(self, "slices", MappingProxyType(slices))
        object.__setattr__(self, "options", _sealed(self.options))
        tiles = {
            n: tuple(tuple((int(a), int(b)) for a, b in tile) for tile in found) for n, found in self.tiles.items()
        }
        object.__setattr__(self, "tiles", MappingProxyType(tiles))

    def __repr__(self) -> str:
        return f"Placement({dict(self.cores)})"

    def core_of(self, node: str, shape: tuple[int, ...]) -> int | NDArray[np.int64] | None:
        """The core of each neuron of a population of this shape: one number where there is one core.

        None where the population is not placed, or the placement does not tell which neurons are on which core.

        Args:
            node: the population.
            shape: of it, without steps and batch.
        """
        cores = self.cores.get(node, ())
        if len(cores) < 2:
            return cores[0] if cores else None
        found = np.full(shape, -1, dtype=np.int64)
        for core, tile in zip(cores, self.tiles.get(node, ()), strict=False):
            found[tuple(slice(first, last) for first, last in tile)] = core
        for core, (first, last) in zip(cores, self.slices.get(node, ()), strict=False):
            found.reshape(-1)[first:last] = core
        return None if (found < 0).any() else found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is its inverse."""
        return {
            "cores": {node: list(found) for node, found in self.cores.items()},
            "slices": {node: [list(s) for s in found] for node, found in self.slices.items()},
            "usage": [[u.core, u.node, u.resource, u.used, u.limit] for u in self.usage],
            "options": _plain(self.options),
            "tiles": {node: [[list(axis) for axis in tile] for tile in found] for node, found in self.tiles.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Placement:
        """Build from plain data.

        Args:
            values: what `to_dict` gave.
        """
        return cls(
            cores=values["cores"],
            usage=tuple(Usage(int(c), str(n), str(r), int(u), int(m)) for c, n, r, u, m in values["usage"]),
            slices=values["slices"],
            options=values.get("options", {}),
            tiles=values.get("tiles", {}),
        )
