"""Layers of SpikingJelly that no NIR node and no Convention holds, each with its reason."""

from __future__ import annotations

from typing import Any

import nir

from nirdeploy.convert.frameworks.framework import LayerRow
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.errors import ConversionError

__all__ = ["REFUSED"]

_BASE = "spikingjelly.activation_based"
_MAPPED = "Map it with module_map, or train with IFNode, LIFNode, ParametricLIFNode or CUBALIFNode."
_POOLED = "Use layer.AvgPool2d."
_OWN = "Map it with module_map."

# reason, remedy, module: its classes
_TABLE: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "its charge is no linear function of v and x",
        _MAPPED,
        {"neuron.nonlinear_if": "QIFNode EIFNode", "neuron.adapt": "AdaptBaseNode IzhikevichNode"},
    ),
    (
        "its membrane is clipped at 0 and scaled by a learned factor before it fires",
        _MAPPED,
        {"neuron.lif_variants": "KLIFNode"},
    ),
    (
        "it has memories or gates that no NIR neuron has",
        _MAPPED,
        {
            "neuron.lif_variants": "GatedLIFNode ComplementaryLIFNode",
            "neuron.resonate": "RAFNode",
            "neuron.flexsn": "FlexSN",
            "neuron.mpbn": "MPBNBaseNode MPBNLIFNode",
            "neuron.inter_layer_connection": "ILCBaseNode ILCIFNode ILCLIFNode ILCCUBALIFNode",
        },
    ),
    (
        "it sees all steps at once: what it emits may depend on later steps, and it has no reset",
        _MAPPED,
        {"neuron.psn": "PSN MaskedPSN SlidingPSN"},
    ),
    (
        "it emits other values than 0 and 1",
        _MAPPED,
        {
            "neuron.ilif": "ILIFNode",
            "neuron.lif_variants": "LIAFNode",
            "neuron.ternary": "TernaryIFNode TernaryLIFNode",
            "neuron.spikezip": "STBIFNode",
            "neuron.few_spike": "FewSpikeNode HGNode OutlierAwareThresholdNode",
            "neuron.dsr": "DSRIFNode DSRLIFNode",
            "neuron.integrate_and_fire": "NonSpikingIFNode",
            "neuron.lif": "NonSpikingLIFNode",
            "neuron.base_node": "NonSpikingBaseNode",
        },
    ),
    (
        "it adds noise",
        _MAPPED,
        {
            "neuron.noisy": "NoisyBaseNode NoisyCUBALIFNode NoisyILCBaseNode NoisyILCCUBALIFNode "
            "NoisyNonSpikingBaseNode NoisyNonSpikingIFNode"
        },
    ),
    (
        "it starts at half its threshold, where no Convention starts",
        "Use IFNode, or map it with module_map.",
        {"neuron.integrate_and_fire": "HalfThresholdIFNode"},
    ),
    (
        "it has a threshold and an offset a channel, which SpikingJelly keeps for converted networks",
        "Use IFNode, or map it with module_map.",
        {"neuron.integrate_and_fire": "ActivationAwareIFNode"},
    ),
    (
        "it belongs to training online, and its output has traces beside the spikes",
        "Load its weights into a network of LIFNode(tau, decay_input, ...).",
        {
            "neuron.online_learning": "_OnlineLIFNode OTTTLIFNode SLTTLIFNode",
            "layer.online_learning": "GradwithTrace SpikeTraceOp OTTTSequential",
        },
    ),
    (
        "it is the gradient of a spike, and has no memory",
        "Give it to a population as surrogate_function.",
        {"surrogate": "SurrogateFunctionBase"},
    ),
    ("it quantises as Lava does", "Use CUBALIFNode.", {"lava_exchange": "CubaLIFNode BatchNorm2d"}),
    (
        "its decay depends on its input: a step with a spike does not decay",
        "Leave it out, or use CUBALIFNode behind the layer that follows.",
        {"layer.misc": "SynapseFilter"},
    ),
    ("it changes the number of steps", _OWN, {"layer.misc": "SpikeCountToBinary TemporalBinSum"}),
    (
        "NIR has no maximum",
        _POOLED,
        {"layer.stateless_wrapper": "MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d"},
    ),
    (
        "NIR pools in two dimensions, with windows of a fixed size",
        _POOLED,
        {
            "layer.stateless_wrapper": "AvgPool1d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d "
            "Upsample"
        },
    ),
    (
        "NIR has no such convolution",
        "Use layer.Conv1d or layer.Conv2d.",
        {"layer.stateless_wrapper": "Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"},
    ),
    (
        "it normalises by what comes in, or with other numbers in each step, so it cannot be folded into weights",
        "Use layer.BatchNorm1d or layer.BatchNorm2d.",
        {
            "layer.stateless_wrapper": "GroupNorm",
            "layer.bn": "BatchNorm3d NeuNorm ThresholdDependentBatchNorm3d TemporalEffectiveBatchNorm1d "
            "TemporalEffectiveBatchNorm2d TemporalEffectiveBatchNorm3d BatchNormThroughTime1d BatchNormThroughTime2d "
            "BatchNormThroughTime3d _TemporalEffectiveBatchNormBase _BatchNormThroughTimeBase",
        },
    ),
    (
        "it multiplies signals with each other",
        _OWN,
        {
            "layer.attention": "TemporalWiseAttention MultiDimensionalAttention SpikingSelfAttention QKAttention "
            "TokenQKAttention ChannelQKAttention SpikeDrivenSelfAttention",
            "rnn": "SpikingRNNCellBase SpikingRNNBase SpikingLSTMCell SpikingLSTM SpikingVanillaRNNCell "
            "SpikingVanillaRNN SpikingGRUCell SpikingGRU",
        },
    ),
    (
        "it samples its weights",
        "Use layer.Linear.",
        {"layer.dropout": "DropConnectLinear"},
    ),
    (
        "it has time as its last axis",
        "Use SeqToANNContainer or MultiStepContainer, with time first.",
        {"layer.container": "TLastMultiStepContainer TLastSeqToANNContainer"},
    ),
    # last: what nobody above knows, a user's own neuron among them
    (
        "its memory has rules of its own",
        "Derive networks from nn.Module; map a layer of your own with module_map.",
        {"neuron.base_node": "BaseNode SimpleBaseNode", "base": "MemoryModule"},
    ),
)


def _row(reason: str, remedy: str, classes: tuple[str, ...]) -> LayerRow:
    def to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
        raise ConversionError(
            f"{type(module).__name__} cannot be converted: {reason}", node=context.path, remedy=remedy
        )

    return LayerRow(classes, to_nir, axes=_either, refuses=True)


def _either(_module: Any) -> int:
    """What is refused has no say in whether time is an axis."""
    return 0


REFUSED: tuple[LayerRow, ...] = tuple(
    _row(reason, remedy, tuple(f"{_BASE}.{module}.{name}" for module, names in found.items() for name in names.split()))
    for reason, remedy, found in _TABLE
)
