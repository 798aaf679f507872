"""What a library's layers do, as the Conventions of their nodes, and one Convention for all nodes of a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from nirdeploy.convert.frameworks.framework import STEP, Framework, LayerRow
from nirdeploy.errors import ConventionError
from nirdeploy.reference.convention import PER_NODE, Convention

__all__ = ["combined", "layer_conventions"]


def layer_conventions(
    module: nn.Module, framework: Framework, row: LayerRow, dt: float | None
) -> dict[str, Convention]:
    """The conventions of a layer's nodes, by their names inside its graph; '' where it is one node.

    Raises:
        ConventionError: the layer has another dt than the one asked for.
    """
    own = framework.step(module)
    if own is not None and dt is not None and own != dt:
        raise ConventionError(
            f"{type(module).__name__} has dt={own}, {dt} is asked for", remedy="Leave dt out, or build it with that dt."
        )
    step = own if own is not None else dt if dt is not None else STEP
    shared = dict(framework.fields)
    overrides = shared.pop("overrides", {})
    return {
        inner: Convention(**{"dt": step, "preset": framework.package, "overrides": overrides, **shared, **values})
        for inner, values in row.fields(module).items()
    }


def combined(conventions: Mapping[str, Convention]) -> Convention | None:
    """One convention for all nodes: the first name's, with what differs elsewhere as overrides; None of none.

    Names in order, so that a network whose forward has another order than its constructor gives the same.

    Raises:
        ConventionError: nodes differ in something that holds for a whole graph, such as dt.
    """
    if not conventions:
        return None
    (first_name, first), *_ = ordered = sorted(conventions.items(), key=lambda item: item[0])
    overrides: dict[str, dict[str, Any]] = {}
    for name, other in ordered:
        for key in (f.name for f in dataclasses.fields(Convention) if f.compare):
            if getattr(other, key) == getattr(first, key):
                continue
            if key not in PER_NODE:
                raise ConventionError(
                    f"its convention has {key}={getattr(other, key)!r}, that of {first_name!r} "
                    f"{getattr(first, key)!r}, and a graph has one",
                    node=name,
                    remedy=f"Build all neurons with one {key}.",
                )
            overrides.setdefault(name, {})[key] = getattr(other, key)
    return dataclasses.replace(first, overrides={**first.overrides, **overrides}) if overrides else first
