"""What every traced value of one forward stands for, and the draft that grows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from nirdeploy.convert.arrays import array_of
from nirdeploy.convert.axes import Axes
from nirdeploy.convert.draft import Draft, Key, Signal, StateOf, Value
from nirdeploy.convert.maps import Maps
from nirdeploy.convert.source import refusal
from nirdeploy.errors import ConversionError

__all__ = ["PREVIOUS", "Walk"]

PREVIOUS = "\0previous "  # before the name of what stands for an output of the step before


class Walk:
    """One walk over the operations of a traced forward.

    Attributes:
        root: the network.
        maps: what its modules become.
        axes: in front of those of a sample, at every call.
        assumes_states: whether state arguments were traced as None, and what they are used for is not seen.
        draft: the graph so far.
        env: what each value stands for.
        called: paths of the layers called so far that became nodes.
        reset: paths of the layers that forward resets before it uses them.
        uses: part of the state argument -> what is to come back there.
        keys_of: name of what stands for an output of the step before -> its keys in the state.
        parameters: values that are Parameters: kept as nodes of their own.
        output: everything that forward returns.
        returned: the state in it.
    """

    def __init__(self, root: nn.Module, maps: Maps, axes: Axes, *, assumes_states: bool) -> None:
        self.root, self.maps, self.axes, self.assumes_states = root, maps, axes, assumes_states
        self.draft = Draft()
        self.env: dict[fx.Node, Value] = {}
        self.called: set[str] = set()
        self.reset: set[str] = set()
        self.uses: dict[tuple[Any, ...], StateOf] = {}
        self.keys_of: dict[str, tuple[Any, ...]] = {}
        self.parameters: set[fx.Node] = set()
        self.output: Any = None
        self.returned: Any = None

    def refuse(self, node: fx.Node, why: str = "does not exist in NIR", remedy: str = "") -> ConversionError:
        """The error for an operation, with module and source line; a remedy of its own replaces the usual one."""
        return refusal(self.root, node, why, remedy)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that an operation calls; None where it calls none."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def signal(self, value: Any, node: fx.Node) -> Signal:
        """The signal a value is; a part of the state read as one is an output of the step before.

        Raises:
            ConversionError: a value that is none, naming the operation that takes it for one.
        """
        found = self.env.get(value) if isinstance(value, fx.Node) else None
        if isinstance(found, Signal):
            return found
        if isinstance(found, Key):
            name = f"{PREVIOUS}{found.keys!r}"
            self.keys_of[name] = found.keys
            return Signal((name,), None)
        if isinstance(found, StateOf):
            raise self.refuse(
                node,
                f"uses the state of {found.owner!r} as a signal, which NIR cannot tap",
                "Use what the layer puts out instead; a run records its states (v_mem, i_syn).",
            )
        if isinstance(value, fx.Node) and value not in self.env:
            raise self.refuse(node, "takes what one step of the loop over time gives, where NIR has each step's")
        raise self.refuse(node, f"of the constant {value!r} cannot be a layer's input")

    def constant(self, value: Any) -> np.ndarray | None:
        """A number or tensor known while tracing; None for anything else."""
        if isinstance(value, fx.Node):
            value = self.env.get(value)
            return value if isinstance(value, np.ndarray) else None
        if isinstance(value, torch.Tensor):
            return array_of(value)
        return np.asarray(value) if isinstance(value, int | float) else None
