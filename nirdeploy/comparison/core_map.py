"""The page's map of the cores: how full each is, and what takes the room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nirdeploy.placement import Placement, Usage
    from nirdeploy.target import Target

__all__ = ["core_map"]

_ON_PAPER = 24
_CARDS = 256  # cores whose bars are on the page
_CELLS = 1024  # of a chip with more cores, only those in use are drawn
_LEVELS = (0.25, 0.5, 0.75, 0.9, 1.0)


def core_map(placement: Placement | None, target: Target | None) -> dict[str, Any]:
    """Cells of all cores, cards of those in use, and what is left out.

    Args:
        placement: usage by core, node and resource.
        target: the chip, for the cores that are not in use.
    """
    by_core: dict[int, dict[str, list[Usage]]] = {}
    for entry in placement.usage if placement else ():
        by_core.setdefault(entry.core, {}).setdefault(entry.resource, []).append(entry)
    cores = [_core(core, resources) for core, resources in sorted(by_core.items())]
    fullest = sorted(cores, key=lambda core: -core["fullest"])  # stable: equally full ones in order of their index
    for rank, core in enumerate(fullest):
        core["on_paper"], core["has_card"] = rank < _ON_PAPER, rank < _CARDS
    there = max(_count(target), max(by_core, default=-1) + 1)
    known = {core["core"]: core for core in cores}
    cells = [known.get(i, {"core": i, "level": "", "nodes": []}) for i in range(there)] if there <= _CELLS else cores
    return {
        "cells": cells if cores else [],
        "cards": [core for core in cores if core["has_card"]],
        "there": there,
        "used": len(cores),
        "left_out": max(0, len(cores) - _ON_PAPER),
        "left_out_fullest": fullest[_ON_PAPER]["fullest"] if len(cores) > _ON_PAPER else 0.0,
    }


def _count(target: Target | None) -> int:
    """Cores of the chip: a count, or as many as there are values a core; 0 where the table does not tell."""
    cores = target.table.get("cores", {}) if target else {}
    if not isinstance(cores, Mapping):
        return 0
    if isinstance(cores.get("count"), int):
        return int(cores["count"])
    return max((len(values) for values in cores.values() if isinstance(values, list | tuple)), default=0)


def _core(core: int, resources: Mapping[str, Iterable[Usage]]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for name, entries in resources.items():
        listed = list(entries)
        used, limit = sum(entry.used for entry in listed), listed[0].limit
        share = used / limit if limit else float(used > 0)
        rows.append({"name": name, "used": used, "limit": limit, "share": share, "segments": _segments(listed, share)})
    fullest = max(row["share"] for row in rows)
    nodes = list(dict.fromkeys(entry.node for entries in resources.values() for entry in entries))
    level = sum(fullest > bound for bound in _LEVELS)
    return {"core": core, "nodes": nodes, "rows": rows, "fullest": fullest, "level": f"f{level}"}


def _segments(entries: Iterable[Usage], share: float) -> list[dict[str, Any]]:
    """Parts of a bar in percent of its width; more than there is still fits the bar."""
    found, x = [], 0.0
    for entry in entries:
        width = 100 * entry.share / max(1.0, share)
        if entry.used:
            found.append({"node": entry.node, "used": entry.used, "x": f"{x:.2f}", "width": f"{width:.2f}"})
        x += width
    return found
