"""What a library's network does, as the Convention of its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from nirdeploy.convert.frameworks.framework import STEP, Framework, LayerRow, framework_of, row_of
from nirdeploy.errors import ConventionError
from nirdeploy.reference.convention import PER_NODE, Convention

__all__ = ["combined", "convention_of", "layer_conventions"]


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


def convention_of(module: nn.Module, *, dt: float | None = None) -> Convention:
    """What a network's layers do that NIR does not say: reset and its time, crossing, integrator, gains, dt.

    Args:
        module: a network of snnTorch, Norse, sinabs or SpikingJelly layers, or one layer; of our own, what it was
            built with.
        dt: seconds a step stands for where the library counts steps only; None: 1e-4.

    Returns:
        The convention of the layer whose name comes first, with what differs at other layers as overrides by node name;
        the same that `torch_to_nir` stores in the graph. Layers that forward does not call are left out.

    Raises:
        ConventionError: no layer with a convention, layers that differ in dt, or a dt that a layer does not have.
    """
    from nirdeploy.convert.trace import called_modules

    found: dict[str, Convention] = {}
    called = called_modules(module)
    for path, part in module.named_modules():
        if called is not None and path not in called:
            continue
        own = getattr(part, "convention", None)
        framework, row = framework_of(part), row_of(part)
        if isinstance(own, Convention):
            if path == "":
                return own
            found[path] = own
        elif framework is not None and row is not None:
            for inner, one in layer_conventions(part, framework, row, dt).items():
                found[".".join(p for p in (path, inner) if p)] = one
    result = combined(found)
    if result is None:
        raise ConventionError(
            f"{type(module).__name__} has no layer that states a convention",
            remedy="Give one yourself: nd.convention('snntorch', dt=1e-4), nd.Convention(...).",
        )
    return result
