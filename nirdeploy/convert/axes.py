"""Axes in front of those of a sample in one step: the batch, and the steps where layers take all of them at once."""

from __future__ import annotations

from torch import fx, nn

from nirdeploy.convert.frameworks.framework import is_lifted, leading_axes
from nirdeploy.convert.maps import Maps
from nirdeploy.convert.source import path_of
from nirdeploy.errors import ConversionError

__all__ = ["Axes"]

_ONE_STEP = (nn.Conv1d, nn.Conv2d, nn.AvgPool2d)  # torch's own that take no second axis before a sample's


class Axes:
    """Those axes at every call of one traced forward.

    Args:
        root: the network.
        maps: of the conversion.
        traced: its operations.
        sampled: whether the sample's shape was cut from a sample input, by the axes of the layer that was made first.

    Raises:
        ConversionError: the sample input was cut by the axes of another layer than the one called first.
    """

    def __init__(self, root: nn.Module, maps: Maps, traced: fx.Graph, *, sampled: bool) -> None:
        self._root, self._maps = root, maps
        self._changing: dict[fx.Node, int] = {}  # calls that change them -> what they make of them
        self._cuts: dict[str, tuple[int, str]] = {}  # sizes by which layers cut time from samples, and the first's path
        self._leading = self._first_taken(traced, sampled)  # of the input

    def _first_taken(self, traced: fx.Graph, sampled: bool) -> int:
        """What the first layer called with some takes; notes the calls that change them."""
        first, called = leading_axes(self._root) if self._maps.default is None else 1, []
        for node in traced.nodes:
            module = self._root.get_submodule(str(node.target)) if node.op == "call_module" else None
            row = None if module is None else self._maps.foreign(module)
            if row is None or is_lifted(self._root, str(node.target)):
                continue
            called.append((node, row.axes(module)))
            if row.axes_after(module):
                self._changing[node] = row.axes_after(module)
        for node, taken in called:
            if taken and taken != first and sampled:
                raise ConversionError(
                    f"the layer called first takes {taken} axes before those of a sample, the one made first {first}",
                    node=str(node.target),
                    remedy="Pass input_shape= instead of sample_input=.",
                )
            if taken:
                return taken
        return first

    def of(self, node: fx.Node) -> int:
        """Axes in front of those of a sample where an operation or a module is called."""
        path = str(node.target) if node.op == "call_module" else f"{path_of(node)}.".lstrip(".")
        if self._maps.default is not None or is_lifted(self._root, path):
            return 1
        return self._before(node) or self._leading

    def _before(self, node: fx.Node) -> int:
        """What the nearest layer before that changes those axes makes of them; 0 where there is none."""
        waiting = dict.fromkeys(node.all_input_nodes if self._changing else ())
        while waiting:  # first in, first out: the nearest come first
            before = next(iter(waiting))
            del waiting[before]
            if before in self._changing:
                return self._changing[before]
            waiting.update(dict.fromkeys(before.all_input_nodes))
        return 0

    def check(self, module: nn.Module, path: str, node: fx.Node) -> None:
        """Refuse a layer that takes other axes than it gets, or cuts them by another size than the layers before.

        Raises:
            ConversionError: naming the layer and the remedy.
        """
        row = self._maps.foreign(module)
        plain = 1 if self._maps.function(module) is None and isinstance(module, _ONE_STEP) else 0
        wanted, here = plain if row is None else row.axes(module), self.of(node)
        if wanted and self._maps.default is None and wanted != here:
            ways = ("one step of [batch, ...]", "all steps, with batch and step as its first two axes")
            raise ConversionError(
                f"{type(module).__name__} takes {ways[wanted - 1]}, and gets {ways[here - 1]}",
                node=path,
                remedy="Use one of the two in all layers, or the library's layer that turns one into the other.",
            )
        for name, size in {} if row is None else row.cut(module).items():
            first, other = self._cuts.setdefault(name, (size, path))
            if size != first:
                raise ConversionError(
                    f"{type(module).__name__} has {name}={size}, {other!r} {first}, so that its steps are others",
                    node=path,
                    remedy=f"Build all layers with one {name}.",
                )
