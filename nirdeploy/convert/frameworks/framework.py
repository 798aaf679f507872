"""What a library's table holds, and how its layers are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import nir
from torch import nn

from nirdeploy.convert.primitives import BYPASSED, TraceContext
from nirdeploy.errors import ConfigurationError, ConversionError
from nirdeploy.names import suggest
from nirdeploy.reference.convention import Convention

__all__ = [
    "ONE_STEP",
    "STEP",
    "Fields",
    "Framework",
    "LayerRow",
    "Repair",
    "check_forward",
    "check_layer",
    "check_mode",
    "framework",
    "framework_of",
    "hint",
    "is_lifted",
    "leading_axes",
    "row_of",
    "traceable",
]

STEP = 1e-4
"""Seconds a step stands for where a library counts steps only, unless `torch_to_nir` and `convention_of` get a `dt`."""

ONE_STEP = (
    "If forward loops over time, make the body of its loop a forward of one step, (x, states) -> (output, states), or "
    "let the layers keep their states."
)

Fields = Mapping[str, Mapping[str, Any]]
_TABLES = {
    "norse": "nirdeploy.convert.frameworks.norse",
    "sinabs": "nirdeploy.convert.frameworks.sinabs",
    "snntorch": "nirdeploy.convert.frameworks.snntorch",
    "spikingjelly": "nirdeploy.convert.frameworks.spikingjelly",
}


def _no_fields(_module: nn.Module) -> Fields:
    return {}


class Repair(NamedTuple):
    """What was changed in a file that a library's exporter wrote.

    Attributes:
        node: its node; '' where it is the graph.
        text: one sentence: what the exporter did, and what it was changed to.
    """

    node: str
    text: str


@dataclass(frozen=True)
class LayerRow:
    """One class, or several that are converted alike.

    Attributes:
        classes: full names, e.g. 'snntorch._neurons.leaky.Leaky'.
        to_nir: layer, context -> its node; a graph where it is more than one (a recurrent layer); None to bypass it. It
            refuses by ConversionError, naming `context.path`, what no node and no convention holds.
        fields: layer -> fields of its Convention, by the node's name inside the graph that `to_nir` gives, '' where it
            gives one node; without dt. What differs from the library's own `Framework.fields`.
        returns_state: layer -> whether its forward returns (output, state, ...).
        states: layer -> for each argument of its forward behind the input, the place, in what it returns, of the value
            that is to come back there in the next step; place 0 is the output.
        input_shape: layer -> shape of one sample that it takes, where the layer alone tells.
        axes: layer -> axes in front of those of a sample and a step: 1 (batch), 2 with time, 0 where it takes either.
        allows_subclasses: whether a subclass that keeps this forward is the same layer.
        folds: whether it normalises channels with running statistics, as nn.BatchNorm1d does, and is folded likewise;
            `to_nir` is then asked only where it stands alone.
        refuses: whether `to_nir` always refuses, subclasses included.
        adds_inputs: whether it is nothing but the sum of what it is called with.
        resets: methods by which a forward that loops over time puts the layer at rest; () where it keeps no state, or
            where such a forward is refused.
        axes_after: layer -> those axes of its output, where it changes them; 0: as they came in.
        cut: layer -> numbers, by name, by which it cuts an axis into samples and steps; all layers have to agree.
    """

    classes: tuple[str, ...]
    to_nir: Callable[[Any, TraceContext], nir.NIRNode | None]
    fields: Callable[[Any], Fields] = _no_fields
    returns_state: Callable[[Any], bool] = lambda module: False
    states: Callable[[Any], tuple[int, ...]] = lambda module: (1,)
    input_shape: Callable[[Any], tuple[int, ...] | None] = lambda module: None
    axes: Callable[[Any], int] = lambda module: 1
    allows_subclasses: bool = True
    folds: bool = False
    refuses: bool = False
    adds_inputs: bool = False
    resets: tuple[str, ...] = ()
    axes_after: Callable[[Any], int] = lambda module: 0
    cut: Callable[[Any], Mapping[str, int]] = lambda module: {}


@dataclass(frozen=True)
class Framework:
    """One library.

    Attributes:
        name: for people, e.g. 'snnTorch'.
        package: what it is imported as.
        rows: its layers.
        fields: fields of the Convention that all its layers share; without dt.
        step: layer -> seconds a step where the layer has a dt of its own; None: it counts steps.
        traceable: container of the library -> a module that forward can be traced through, with the same submodule
            paths; None: as it is.
        lifts: container -> whether it applies what it holds to each step of a sequence, so that layers inside take one
            step though the container takes all.
        passes_states: whether its layers keep no state themselves, so that each step has to be given the one before's.
        hints: part of a path of the library's source -> what it means that forward runs an operation there, outside a
            layer that is converted, and the remedy.
        repair: graph of a file that the library's exporter wrote, as stored -> what it stands for, and what was
            changed. UnsupportedError, naming the node, for what the file has lost.
        adapt: graph, its convention -> what the library's importer needs to make the same network of it.
            UnsupportedError, naming the node, for what it would make something else of.
    """

    name: str
    package: str
    rows: tuple[LayerRow, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    step: Callable[[Any], float | None] = lambda module: None
    traceable: Callable[[nn.Module], nn.Module | None] = lambda module: None
    lifts: Callable[[nn.Module], bool] = lambda module: False
    passes_states: bool = False
    hints: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    repair: Callable[[nir.NIRGraph], tuple[nir.NIRGraph, tuple[Repair, ...]]] = lambda graph: (graph, ())
    adapt: Callable[[nir.NIRGraph, Convention | None], nir.NIRGraph] = lambda graph, convention: graph


def framework(package: str) -> Framework:
    """The table of a library by what it is imported as.

    Raises:
        ConfigurationError: none of the known ones.
    """
    if package not in _TABLES:
        raise ConfigurationError(f"unknown library {package!r}", remedy=suggest(package, _TABLES))
    found: Framework = import_module(_TABLES[package]).FRAMEWORK
    return found


def hint(place: str) -> tuple[str, str] | None:
    """What an operation at this place in a source means, and the remedy; None outside the libraries."""
    for package in _TABLES:
        if f"/{package}/" in place:
            return next((found for part, found in framework(package).hints.items() if part in place), None)
    return None


def framework_of(module: nn.Module) -> Framework | None:
    """The library that a module's class, or one of its bases, comes from; None for torch's, ours and the user's own."""
    for kind in type(module).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _TABLES:
            return framework(package)
    return None


def row_of(module: nn.Module) -> LayerRow | None:
    """The row of a library's layer; None for everything else, containers and functions of a library included."""
    library = framework_of(module)
    if library is None:
        return None
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]
    for name in names:
        for row in library.rows:
            if name in row.classes:
                return row
    return None


def check_layer(module: nn.Module, row: LayerRow, path: str) -> None:
    """Refuse what may compute something else than the class of the row: another forward, and hooks.

    Raises:
        ConversionError: naming the layer and the remedy.
    """
    kind = type(module)
    base: Any = next(c for c in kind.__mro__ if f"{c.__module__}.{c.__qualname__}" in row.classes)
    check_forward(module, base, path, changed=kind is not base and not row.allows_subclasses)


def check_forward(module: nn.Module, base: Any, path: str, *, changed: bool = False) -> None:
    """Refuse a module of which something else than the forward of a class runs, or is known to (`changed`).

    Raises:
        ConversionError: naming the layer and the remedy.
    """
    kind = type(module)
    if changed or getattr(kind, "forward", None) is not base.forward or "forward" in vars(module):
        raise ConversionError(
            f"{kind.__name__} has a forward of its own, so it is no plain {base.__name__}",
            node=path,
            remedy=f"Map it with module_map={{{kind.__name__}: lambda m: nir.IF(...)}}.",
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise ConversionError(
            f"{kind.__name__} has forward hooks, which NIR cannot hold", node=path, remedy="Remove them."
        )


def check_mode(root: nn.Module) -> None:
    """Refuse a library's network in training mode whose dropout or batch statistics would act.

    Raises:
        ConversionError: naming the layer and the remedy.
    """
    modules = dict(root.named_modules())
    if not any(framework_of(module) for module in modules.values()):
        return
    for path, module in modules.items():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        drops = isinstance(module, BYPASSED) and getattr(module, "p", 0.0) > 0
        if module.training and (drops or norm):
            what = "the statistics of its batch" if norm else "chance"
            raise ConversionError(
                f"{type(module).__name__} is in training mode, where its output depends on {what}",
                node=path,
                remedy="Call eval() on the network before it is converted.",
            )


def _lifts(module: nn.Module) -> bool:
    framework = framework_of(module)
    return framework is not None and framework.lifts(module)


def _outermost(root: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules by path, without what stands inside a container that lifts it."""
    yield path, root
    if not _lifts(root):
        for name, child in root.named_children():
            yield from _outermost(child, f"{path}.{name}".lstrip("."))


def leading_axes(root: nn.Module) -> int:
    """Axes of a sample input in front of those of one sample in one step: 1 (batch), or 2 where layers take time.

    Where layers change them, those that the first layer takes, in the order in which the layers were made.

    Raises:
        ConversionError: some layers take time and others do not.
    """
    found: dict[int, str] = {}
    changes = False
    for path, module in _outermost(root):
        row = row_of(module)
        axes = 2 if _lifts(module) else 0 if row is None else row.axes(module)
        changes = changes or (row is not None and row.axes_after(module) > 0)
        if axes:
            found.setdefault(axes, path or type(module).__name__)
    if len(found) > 1 and not changes:
        raise ConversionError(
            f"{found[1]!r} takes one step at a time, {found[2]!r} all steps at once",
            remedy="Use one of the two in all layers.",
        )
    return next(iter(found), 1)


def is_lifted(root: nn.Module, path: str) -> bool:
    """Whether the module at `path` stands inside a container that applies it to each step of a sequence."""
    parts = path.split(".")
    return bool(path) and any(_lifts(root.get_submodule(".".join(parts[:depth]))) for depth in range(len(parts)))


def traceable(root: nn.Module) -> nn.Module:
    """The module to trace instead of a library's container; the module itself where it is none."""
    library = framework_of(root)
    found = None if library is None else library.traceable(root)
    return root if found is None else found
