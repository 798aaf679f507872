"""Layers of sinabs.

sinabs counts time in steps, so a layer has no dt: tau is tau_mem dt seconds with the dt that `torch_to_nir` gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
from torch import nn

from nirdeploy.convert.frameworks.framework import Framework, LayerRow
from nirdeploy.convert.frameworks.sinabs_files import adapt, repair
from nirdeploy.convert.frameworks.sinabs_neurons import fields, to_nir
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_node
from nirdeploy.shapes import pair

__all__ = ["FRAMEWORK"]


def _pool(module: Any, context: TraceContext) -> nir.NIRNode:
    """SumPool2d, the LPPool2d of norm 1, which is a sum for what is not negative."""
    if module.ceil_mode or module.norm_type != 1:
        what = "ceil_mode" if module.ceil_mode else f"norm_type={module.norm_type}"
        raise ConversionError(f"SumPool2d with {what} does not exist in NIR", node=context.path, remedy="Leave it out.")
    size = pair(module.kernel_size)
    stride = size if module.stride is None else pair(module.stride)
    return make_node(nir.SumPool2d, kernel_size=size, stride=stride, padding=(0, 0))


def _nothing(module: nn.Module, context: TraceContext) -> None:
    """What changes no sample: the sum that `adds_inputs` makes, and turning [batch, step] into one axis and back."""


class _Each(nn.Module):
    """`Repeat` as it is for one step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        """Apply what is repeated."""
        return self.module(x)


def _is_repeat(module: nn.Module) -> bool:
    """Whether it is sinabs's Repeat, and not a subclass that does more."""
    return f"{type(module).__module__}.{type(module).__qualname__}" == "sinabs.layers.reshape.Repeat"


def _traceable(module: Any) -> nn.Module | None:
    return _Each(module.module) if _is_repeat(module) else None


def _refused(why: str, remedy: str) -> Callable[[nn.Module, TraceContext], nir.NIRNode | None]:
    def refuse(module: nn.Module, context: TraceContext) -> nir.NIRNode | None:
        raise ConversionError(f"{type(module).__name__} {why}", node=context.path, remedy=remedy)

    return refuse


def _shape(module: Any) -> tuple[int, ...] | None:
    """The shape of a layer that has been run, or was built with one."""
    state = module.v_mem
    return tuple(state.shape[1:]) if state is not None and state.ndim > 1 else None


def _cut(module: Any) -> dict[str, int]:
    """Into how many samples and steps it cuts the axis that holds both; -1, not given, is what is left."""
    given = {name: int(getattr(module, name, -1)) for name in ("batch_size", "num_timesteps")}
    return {name: size for name, size in given.items() if size > 0}


def _neurons(*names: str, axes: int) -> LayerRow:
    classes = tuple(f"sinabs.layers.{name}" for name in names)
    return LayerRow(classes, to_nir, fields=fields, input_shape=_shape, axes=lambda module: axes, cut=_cut)


_CHIP = "sinabs.backend.dynapcnn"
_REFUSED = (
    (
        ("sinabs.layers.alif.ALIF", "sinabs.layers.alif.ALIFRecurrent"),
        "adapts its threshold, which NIR has no node for",
        "Use LIF, or map it with module_map.",
    ),
    (
        ("sinabs.layers.pool2d.SpikingMaxPooling2dLayer",),
        "lets the input through that has spiked most, which NIR has no node for",
        "Use SumPool2d or AvgPool2d.",
    ),
    (
        ("sinabs.layers.neuromorphic_relu.NeuromorphicReLU", "sinabs.layers.quantize.QuantizeLayer"),
        "belongs to a network without spikes",
        "Convert what sinabs.from_torch.from_model makes of it.",
    ),
    (
        ("sinabs.layers.to_spike.Img2SpikeLayer", "sinabs.layers.to_spike.Sig2SpikeLayer"),
        "makes spikes by chance out of numbers, which NIR has no node for",
        "Convert the network behind it, and give that spikes.",
    ),
    (
        ("sinabs.layers.crop2d.Cropping2dLayer",),
        "crops its input, which NIR has no node for",
        "Crop the raster instead.",
    ),
    (
        ("sinabs.layers.channel_shift.ChannelShift",),
        "adds channels of zeros, which NIR has no node for",
        "Use a 1x1 convolution instead.",
    ),
    (
        (f"{_CHIP}.dynapcnn_network.DynapcnnNetwork", f"{_CHIP}.dynapcnn_layer.DynapcnnLayer"),
        "is a network that sinabs has made ready for a chip",
        "Convert the network that it was made from, and deploy that.",
    ),
    (
        ("sinabs.layers.stateful_layer.StatefulLayer",),
        "is no layer that steps",
        "Map it with module_map.",
    ),
)

FRAMEWORK = Framework(
    "sinabs",
    "sinabs",
    rows=(
        _neurons("iaf.IAF", "iaf.IAFRecurrent", "lif.LIF", "lif.LIFRecurrent", "exp_leak.ExpLeak", axes=2),
        _neurons("iaf.IAFSqueeze", "lif.LIFSqueeze", "exp_leak.ExpLeakSqueeze", axes=1),
        LayerRow(("sinabs.layers.pool2d.SumPool2d",), _pool),
        LayerRow(("sinabs.layers.merge.Merge",), _nothing, axes=lambda module: 0, adds_inputs=True),
        LayerRow(("sinabs.layers.reshape.FlattenTime",), _nothing, axes=lambda m: 2, axes_after=lambda m: 1),
        LayerRow(("sinabs.layers.reshape.UnflattenTime",), _nothing, axes_after=lambda m: 2, cut=_cut),
        *(LayerRow(names, _refused(why, remedy), axes=lambda module: 0) for names, why, remedy in _REFUSED),
    ),
    fields={
        "integrator": "exponential",
        "use_r": False,
        "crossing": "inclusive",
        "if_gain": "r",
        "feedback_start": "zero",
    },
    traceable=_traceable,
    lifts=_is_repeat,
    repair=repair,
    adapt=adapt,
)
