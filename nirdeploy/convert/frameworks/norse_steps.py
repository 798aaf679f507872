"""How Norse's layers go through time: cells a step, the others a sequence, Lift whatever it holds."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from nirdeploy.errors import ConversionError

__all__ = ["Lifted", "axes", "axes_if_any", "check_steps", "is_lift"]

_SEQUENCES = {"norse.torch.module.snn.SNN", "norse.torch.module.snn.SNNRecurrent"}
_LIFT = "norse.torch.module.lift.Lift"
_METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")


def _names(module: nn.Module) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]


def axes(module: nn.Module) -> int:
    """Axes in front of those of a sample: 2 where a layer takes [step, batch, ...], 1 where it takes a step."""
    return 2 if _SEQUENCES & set(_names(module)) else 1


def axes_if_any(module: nn.Module) -> int:
    """As `axes`; 0 for what is neither a cell nor a sequence of Norse."""
    return axes(module) if any(name.startswith("norse.torch.module.snn.") for name in _names(module)) else 0


def is_lift(module: nn.Module) -> bool:
    """Whether it is a Lift, with Lift's own forward."""
    kind: Any = next((k for k in type(module).__mro__ if f"{k.__module__}.{k.__qualname__}" == _LIFT), None)
    return kind is not None and getattr(type(module), "forward", None) is kind.forward


def check_steps(module: Any, steps: tuple[str, ...], path: str) -> None:
    """Refuse a layer whose step or whose state at rest is another than that of its class.

    Raises:
        ConversionError: another function, start or threshold than Norse's own.
    """
    name = _function(module.activation)
    if name not in steps:
        why = "Norse itself cannot run" if "adjoint" in name else "is not the step of its class"
        raise ConversionError(
            f"{type(module).__name__} steps by {name}, which {why}",
            node=path,
            remedy=f"Map it with module_map={{{type(module).__name__}: lambda m: nir.IF(...)}}, or use Norse's "
            "own step.",
        )
    start = getattr(module.state_fallback, "__func__", module.state_fallback)
    if not getattr(start, "__module__", "").startswith("norse.torch.module."):
        raise ConversionError(
            f"{type(module).__name__} starts from a state of its own ({_function(start)})",
            node=path,
            remedy=f"Use Norse's initial_state, or map it with module_map={{{type(module).__name__}: ...}}.",
        )
    method = getattr(getattr(module.p, "lif", module.p), "method", "super")
    if method not in _METHODS:
        raise ConversionError(
            f"method {method!r} is no threshold of Norse", node=path, remedy=f"Use one of {', '.join(_METHODS)}."
        )


def _function(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


class Lifted(nn.Module):
    """One step of a Lift: what it holds, called once."""

    carries_states = True  # from step to step, by the Lift it stands for

    def __init__(self, lift: Any) -> None:
        super().__init__()
        self.lifted_module = lift.lifted_module
        self._keeps_state = bool(lift.is_stateful)

    def forward(self, x: Any) -> Any:
        """The output, with the state where the module has one.

        Raises:
            ConversionError: the state of the layer before would become the start of this one.
        """
        came, x = (True, x[0]) if isinstance(x, tuple) else (_comes_with_state(x), x)
        if not self._keeps_state:
            return self.lifted_module(x)
        if came:
            raise ConversionError(
                f"Lift({type(self.lifted_module).__name__}) comes right after a layer that returns its state, and "
                "would start from that",
                remedy="Put both layers into one Lift(SequentialState(...)).",
            )
        out, state = self.lifted_module(x)
        return out, state


def _comes_with_state(x: Any) -> bool:
    """Whether a traced value is the (output, state) of a layer."""
    from nirdeploy.convert.frameworks.framework import row_of

    if not isinstance(x, fx.Proxy) or x.node.op != "call_module":
        return False
    tracer: Any = x.tracer
    module = tracer.root.get_submodule(str(x.node.target))
    row = row_of(module)
    return row is not None and row.returns_state(module)
