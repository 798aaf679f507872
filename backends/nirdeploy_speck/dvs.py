"""The DVS layer, before the cores: polarities merged, pooled, cut out, mirrored (DS 3.2.3; sinabs dvs_layer.py)."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy import exact
from nirdeploy.errors import PlacementError
from nirdeploy.names import suggest

__all__ = ["DVS_OPTIONS", "DvsLayer", "dvs_options", "with_options"]

Map = tuple[int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True)
class DvsLayer:
    """What becomes of events before the first core, in this order: merge, pool, cut, mirror, swap.

    The order is that of sinabs 3.1.3 (dvs_layer.py forward, flipdims.py); the chip's own of mirror and swap is not
    documented.

    Attributes:
        input_shape: (channel, y, x) of what reaches it; the channels are polarities.
        merge: whether polarities are added up into one channel.
        pooling: (y, x) of the windows that are summed.
        origin: (y, x) of the upper left corner, in pooled pixels.
        cut: (y, x) of the lower right corner, inclusive, in pooled pixels.
        mirror: (y, x), whether the coordinate runs backwards.
        swap: whether y and x change places, after the mirror.
        sensor: whether the chip's own sensor feeds it; otherwise events come from the host.
    """

    input_shape: Map
    merge: bool
    pooling: Pair
    origin: Pair
    cut: Pair
    mirror: tuple[bool, bool] = (False, False)
    swap: bool = False
    sensor: bool = False

    @property
    def output_shape(self) -> Map:
        """(channel, y, x) of what it passes on."""
        y, x = (self.cut[axis] - self.origin[axis] + 1 for axis in (0, 1))
        return (1 if self.merge else self.input_shape[0], *((x, y) if self.swap else (y, x)))

    def events(self, raster: NDArray[Any]) -> NDArray[Any]:
        """A raster of counts [step, batch, channel, y, x] as it leaves the layer."""
        x = raster.sum(2, keepdims=True) if self.merge else raster
        if self.pooling != (1, 1):
            flat = x.reshape(-1, *x.shape[2:])
            x = exact.sum_pool2d(flat, self.pooling, self.pooling)
            x = x.reshape(*raster.shape[:2], *x.shape[1:])
        (top, left), (bottom, right) = self.origin, self.cut
        x = x[..., top : bottom + 1, left : right + 1]
        for axis in (0, 1):
            if self.mirror[axis]:
                x = np.flip(x, 3 + axis)
        return np.ascontiguousarray(x.swapaxes(3, 4) if self.swap else x)

    def addresses(
        self, channel: NDArray[Any], y: NDArray[Any], x: NDArray[Any]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Single events: which are passed on, and channel, y and x of those that are, in their order."""
        at = [np.asarray(v, dtype=np.int64) // p for v, p in zip((y, x), self.pooling, strict=True)]
        keep = np.ones(at[0].shape, dtype=np.bool_)
        for axis in (0, 1):
            keep &= (at[axis] >= self.origin[axis]) & (at[axis] <= self.cut[axis])
        kept = [at[axis][keep] for axis in (0, 1)]
        for axis in (0, 1):
            kept[axis] = self.cut[axis] - kept[axis] if self.mirror[axis] else kept[axis] - self.origin[axis]
        channels = np.asarray(channel, dtype=np.int64)[keep]
        rows, columns = reversed(kept) if self.swap else kept
        return keep, channels * 0 if self.merge else channels, rows, columns

    def before_pooling(self, pooling: Pair, node: str) -> DvsLayer:
        """This layer and a sum pooling behind it as one; pooling comes first on the chip, so corners must divide.

        Raises:
            PlacementError: a corner that is not a multiple of the window.
        """
        own = pooling[::-1] if self.swap else pooling
        for axis, letter in ((0, "y"), (1, "x")):
            ends = (self.origin[axis], self.cut[axis] + 1)
            if any(end % own[axis] for end in ends):
                raise PlacementError(
                    f"dvs cuts {letter} {ends[0]} to {ends[1]} before the graph pools by {own[axis]}; the chip pools "
                    "first",
                    node=node,
                    remedy=f"Use multiples of {own[axis]}.",
                )
        return DvsLayer(
            self.input_shape,
            self.merge,
            (self.pooling[0] * own[0], self.pooling[1] * own[1]),
            (self.origin[0] // own[0], self.origin[1] // own[1]),
            ((self.cut[0] + 1) // own[0] - 1, (self.cut[1] + 1) // own[1] - 1),
            self.mirror,
            self.swap,
            self.sensor,
        )


# ---------------------------------------------------------------- options

DVS_OPTIONS = {
    "input_shape": "(channel, y, x) of what reaches it",
    "merge": "bool",
    "pool": "int or (y, x)",
    "crop": "((y first, y end), (x first, x end)), in pooled pixels",
    "mirror": "(y, x) of bool",
    "swap": "bool",
    "sensor": "bool",
}


def dvs_options(given: Any, table: Mapping[str, Any]) -> dict[str, Any]:
    """The option `dvs` of a placement, checked, as plain data.

    Args:
        given: mapping of some of DVS_OPTIONS.
        table: `dvs` of the target.

    Raises:
        PlacementError: naming option, value and what is expected.
    """
    if not isinstance(given, Mapping):
        raise PlacementError(f"dvs is {given!r}, expected a mapping", remedy=f"Possible: {', '.join(DVS_OPTIONS)}.")
    for name in given:
        if name not in DVS_OPTIONS:
            raise PlacementError(f"dvs has an unknown entry {name!r}", remedy=suggest(str(name), DVS_OPTIONS))
    size, polarities = int(table["size"]), int(table["channels"])
    shape = _whole(given, "input_shape", (polarities, size, size), 3)
    if not (1 <= shape[0] <= polarities and all(1 <= n <= size for n in shape[1:])):
        raise PlacementError(f"dvs input_shape {shape} exceeds ({polarities}, {size}, {size})")
    pool = given.get("pool", 1)
    pooling = _whole({"pool": pool if isinstance(pool, tuple | list) else (pool, pool)}, "pool", (1, 1), 2)
    for axis, letter in ((0, "y"), (1, "x")):
        if shape[1 + axis] % max(1, pooling[axis]):
            raise PlacementError(f"dvs pools {letter} by {pooling[axis]}, which does not divide {shape[1 + axis]}")
    _require_window(pooling, table)
    pooled = [shape[1 + axis] // pooling[axis] for axis in (0, 1)]
    crop = [_whole({"crop": pair}, "crop", (), 2) for pair in _crop(given, pooled)]
    for axis, letter in ((0, "y"), (1, "x")):
        if not 0 <= crop[axis][0] < crop[axis][1] <= pooled[axis]:
            raise PlacementError(f"dvs crops {letter} {crop[axis]}, expected a part of (0, {pooled[axis]})")
    mirror = given.get("mirror", (False, False))
    if not (isinstance(mirror, tuple | list) and len(mirror) == 2 and all(isinstance(v, bool) for v in mirror)):
        raise PlacementError(f"dvs mirror is {mirror!r}, expected {DVS_OPTIONS['mirror']}")
    flags = {name: given.get(name, False) for name in ("merge", "swap", "sensor")}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise PlacementError(f"dvs {name} is {value!r}, expected a bool")
    return {
        "input_shape": list(shape),
        "pool": list(pooling),
        "crop": [list(pair) for pair in crop],
        "mirror": list(mirror),
        **flags,
    }


def _require_window(pooling: tuple[int, ...], table: Mapping[str, Any]) -> None:
    allowed = list(table["pooling"])
    for window in pooling:
        if window not in allowed:
            raise PlacementError(f"dvs pools by {window}, expected one of {allowed}")


def _crop(given: Mapping[str, Any], pooled: list[int]) -> Any:
    crop = given.get("crop")
    if crop is None:
        return [(0, n) for n in pooled]
    if not (isinstance(crop, tuple | list) and len(crop) == 2):
        raise PlacementError(f"dvs crop is {crop!r}, expected {DVS_OPTIONS['crop']}")
    return crop


def _whole(given: Mapping[str, Any], name: str, default: tuple[int, ...], count: int) -> tuple[int, ...]:
    value = given.get(name, default)
    try:
        found = tuple(operator.index(v) for v in value)
    except TypeError:
        found = ()
    if len(found) != count or any(isinstance(v, bool) for v in value):
        raise PlacementError(f"dvs {name} is {value!r}, expected {DVS_OPTIONS[name]}")
    return found


def with_options(
    options: Mapping[str, Any], wanted: Map, graph: DvsLayer | None, table: Mapping[str, Any], node: str
) -> DvsLayer:
    """The DVS layer of checked options, the pooling that the graph has behind its Input included.

    Args:
        options: what `dvs_options` gives.
        wanted: (channel, y, x) of the graph's Input.
        graph: the layer that holds the graph's pooling, if it has one there.
        table: `dvs` of the target.
        node: the Input.

    Raises:
        PlacementError: what leaves the layer is not what the Input expects, or no window of the chip does both.
    """
    (top, bottom), (left, right) = options["crop"]
    layer = DvsLayer(
        input_shape=tuple(options["input_shape"]),
        merge=options["merge"],
        pooling=tuple(options["pool"]),
        origin=(top, left),
        cut=(bottom - 1, right - 1),
        mirror=tuple(options["mirror"]),
        swap=options["swap"],
        sensor=options["sensor"],
    )
    if layer.output_shape != wanted:
        raise PlacementError(
            f"dvs gives a map {layer.output_shape} (channel, y, x), the graph's Input is {wanted}",
            node=node,
            remedy="Change crop, pool or merge.",
        )
    if graph is None:
        return layer
    both = layer.before_pooling(graph.pooling, node)
    _require_window(both.pooling, table)
    return both
