"""What a module becomes: what the user's maps say of it, else the tables of torch, of the libraries and of our own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import nir
import torch
from torch import nn

from nirdeploy.convert.arrays import array_of
from nirdeploy.convert.frameworks.conventions import combined, layer_conventions
from nirdeploy.convert.frameworks.framework import LayerRow, check_forward, check_layer, framework_of, row_of
from nirdeploy.convert.primitives import MODULES, Primitive, TraceContext, find
from nirdeploy.errors import ConversionError, NirdeployError
from nirdeploy.graph import with_metadata
from nirdeploy.reference.neurons import Stateful

__all__ = ["Maps", "ModuleMap", "refuse_altered"]

ModuleMap = Mapping[type, Callable[..., "nir.NIRNode | None"]]


@dataclass(frozen=True)
class Maps:
    """The maps of one conversion.

    Attributes:
        user: wins over all others.
        default: replaces the tables; None: the tables hold.
        stateful: types whose forward returns (output, state), besides those known.
        dt: seconds a step stands for where layers of a library count steps only; None: not said.
    """

    user: ModuleMap = field(default_factory=dict)
    default: ModuleMap | None = None
    stateful: tuple[type[nn.Module], ...] = ()
    dt: float | None = None

    def function(self, module: nn.Module) -> Callable[..., Any] | None:
        """What the user gave for this module; None where the tables decide."""
        found: Callable[..., Any] | None = find(self.user, type(module))
        if found is None and self.default is not None:
            found = find(self.default, type(module))
        return found

    def is_mapped(self, module: nn.Module) -> bool:
        """Whether a map or a table knows this module."""
        if self.function(module) is not None:
            return True
        return self.default is None and (find(MODULES, type(module)) is not None or row_of(module) is not None)

    def foreign(self, module: nn.Module) -> LayerRow | None:
        """The row of a library's layer that no map of the user's takes."""
        return row_of(module) if self.default is None and self.function(module) is None else None

    def row(self, module: nn.Module) -> LayerRow | Primitive | None:
        """The row of a table that a module is converted by; None where a map of the user's takes it."""
        own = find(MODULES, type(module)) if self.function(module) is None else None
        return self.foreign(module) or own

    def returns_state(self, module: nn.Module) -> bool:
        """Whether forward returns (output, state): ours do, declared ones, and mapped ones that take a state."""
        if isinstance(module, (Stateful, *self.stateful)):
            return True
        foreign = self.foreign(module)
        if foreign is not None:
            return foreign.returns_state(module)
        return self.function(module) is not None and len(inspect.signature(module.forward).parameters) > 1

    def node_of(self, module: nn.Module, context: TraceContext) -> nir.NIRNode | None:
        """The node of a mapped module; None where a map bypasses it.

        Raises:
            ConversionError: a map that gives no node, a layer that computes something else than its class, or one
                without values yet.
        """
        function = self.function(module)
        if function is not None:
            node = function(module)
            if node is not None and not isinstance(node, nir.NIRNode):
                raise ConversionError(f"its map returned a {type(node).__name__}, not a NIR node", node=context.path)
            return _with_arrays(node)
        row: Any = self.foreign(module)
        if row is not None:
            if not row.refuses:
                check_layer(module, row, context.path)
        else:
            row = find(MODULES, type(module))
            refuse_altered(module, row.modules, context.path)
        try:
            with _frozen_parametrizations(module):
                converted: nir.NIRNode = row.to_nir(module, context)
        except NirdeployError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            # lazy and meta parameters have no values yet
            raise ConversionError(
                f"{type(module).__name__} has parameters that cannot be read: {error}",
                node=context.path,
                remedy="Run the module once, so that its parameters exist.",
            ) from error
        return converted

    def alone(self, module: nn.Module, context: TraceContext) -> nir.NIRNode | None:
        """The node of a module that is the whole network; where that is a graph, with its convention."""
        framework, row = framework_of(module), self.foreign(module)
        try:
            node = self.node_of(module, context)
        except AttributeError as error:
            raise self.other_version(error, module, context.path) from error
        if not isinstance(node, nir.NIRGraph) or framework is None or row is None:
            return node
        found = combined(layer_conventions(module, framework, row, self.dt))
        return node if found is None else with_metadata(node, convention=found.to_dict())

    def other_version(self, error: AttributeError, module: nn.Module, path: str) -> Exception:
        """What a library's layer without the attributes of its class means; the error itself for all others."""
        library = framework_of(module) if self.foreign(module) is not None else None
        if library is None:
            return error
        kind = type(module).__name__
        return ConversionError(
            f"{kind} is no {kind} of the {library.name} that is known here: {error}",
            node=path,
            remedy=f"Install the version of {library.name} that docs/frameworks.md names, or map it with "
            f"module_map={{{kind}: lambda m: nir.IF(...)}}.",
            located=True,
        )


@contextmanager
def _frozen_parametrizations(module: nn.Module) -> Iterator[None]:
    """Read parametrised weights without their own steps in training (spectral_norm iterates at each access)."""
    parametrizations = getattr(module, "parametrizations", None)
    parts = parametrizations.modules() if isinstance(parametrizations, nn.Module) else ()
    training = [part for part in parts if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _with_arrays(node: nir.NIRNode | None) -> nir.NIRNode | None:
    """A node of a user's map with tensors turned into arrays, as files need them."""
    if node is not None and not isinstance(node, nir.NIRGraph):
        for name, value in vars(node).items():
            if isinstance(value, torch.Tensor):
                setattr(node, name, array_of(value))
    return node


def refuse_altered(module: nn.Module, known: tuple[type[nn.Module], ...], path: str) -> None:
    """Refuse a subclass that computes something else, and hooks, which no NIR node can hold.

    Raises:
        ConversionError: naming the class and the remedy.
    """
    base = next(kind for kind in known if isinstance(module, kind))
    if isinstance(module, Stateful) and type(module) is not base:
        raise ConversionError(
            f"{type(module).__name__} is a subclass of {base.__name__} that may step differently",
            node=path,
            remedy=f"Map it with module_map={{{type(module).__name__}: ...}}.",
        )
    check_forward(module, base, path)
