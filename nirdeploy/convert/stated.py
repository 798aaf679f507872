"""The convention that a network's layers state, without a conversion."""

from __future__ import annotations

from torch import nn

from nirdeploy.convert.frameworks.conventions import combined, layer_conventions
from nirdeploy.convert.frameworks.framework import framework_of, row_of
from nirdeploy.convert.trace import called_modules
from nirdeploy.errors import ConventionError
from nirdeploy.reference.convention import Convention

__all__ = ["convention_of"]


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
