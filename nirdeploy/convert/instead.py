"""What to train with in place of torch's own layers and functions that NIR has no node for."""

from __future__ import annotations

__all__ = ["instead"]

_POOL = "Train with AvgPool2d, or with a stride of the convolution before it"
_SPIKE = "Put a spiking population in its place (nirdeploy.reference.neurons.IF or LIF), and train with it"
_NORM = "Train with BatchNorm, which is folded into the weights before it"
_LOSS = "Leave it out of the network: apply it to the spike counts, in the loss"
_PAD = "Use the padding of the layer behind it"

_INSTEAD = {
    **dict.fromkeys(("maxpool", "adaptivemaxpool", "lppool", "fractionalmaxpool"), _POOL),
    "adaptiveavgpool": "Use AvgPool2d with the window that it comes to, as the maps have one size",
    **dict.fromkeys(("relu", "relu6", "leakyrelu", "prelu", "elu", "gelu", "silu", "sigmoid", "tanh"), _SPIKE),
    **dict.fromkeys(("groupnorm", "layernorm", "instancenorm"), _NORM),
    **dict.fromkeys(("softmax", "logsoftmax"), _LOSS),
    **dict.fromkeys(("zeropad", "constantpad", "pad"), _PAD),
}


def instead(name: str) -> str | None:
    """The remedy for a class or function of torch by its name, without a full stop; None where there is none."""
    key = name.lower().replace("_", "")
    return _INSTEAD.get(key) or _INSTEAD.get(key.removesuffix("d").rstrip("123"))
