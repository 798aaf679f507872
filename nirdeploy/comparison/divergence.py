"""The first spike that differs, with the states and the input spikes around it, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass

from nirdeploy.comparison.arrivals import Arrival
from nirdeploy.comparison.text import neuron_text, number, several, shown

__all__ = ["Divergence"]


@dataclass(frozen=True)
class Divergence:
    """The first entry of a node, or of a run, whose spike counts differ.

    Attributes:
        node: name in the original graph.
        neuron: index in the node's own shape.
        sample: index in the batch.
        step: step of the reference.
        chip_step: the same moment as a step of the chip's run.
        expected: spikes of the reference in that step.
        observed: spikes of the chip in that step.
        v_reference: v_mem of the reference at the end of that step, after the reset, in model units.
        v_chip: v_mem of the chip at the end of that step, after the reset, in model units.
        threshold_reference: threshold of the reference in model units, where recorded.
        threshold_chip: threshold of the chip in model units, where recorded.
        cause: one sentence on what the records say about why; no more than they can tell.
        core: the chip's core that holds the neuron, where known.
        inputs: spikes that arrived at the neuron in that step on either side; of the first divergence of a comparison,
            where the graph is known.
        inputs_note: what is missing from `inputs`, or why there are none; '' where nothing is.
    """

    node: str
    neuron: tuple[int, ...]
    sample: int
    step: int
    chip_step: int
    expected: int
    observed: int
    v_reference: float | None = None
    v_chip: float | None = None
    threshold_reference: float | None = None
    threshold_chip: float | None = None
    cause: str = ""
    core: int | None = None
    inputs: tuple[Arrival, ...] = ()
    inputs_note: str = ""

    def __str__(self) -> str:
        lagged = f" (chip step {self.chip_step})" if self.chip_step != self.step else ""
        core = "" if self.core is None else f" (core {self.core})"
        text = (
            f"{shown(self.node)} neuron {neuron_text(self.neuron)}{core}, sample {self.sample}, "
            f"step {self.step}{lagged}: {several(self.expected, 'spike')} expected, {self.observed} observed"
        )
        if self.v_reference is not None and self.v_chip is not None:
            text += f"; v_mem after the reset {number(self.v_reference)} against {number(self.v_chip)}"
        if self.threshold_reference is not None and self.threshold_chip is not None:
            text += f"; threshold {number(self.threshold_reference)} against {number(self.threshold_chip)}"
        return text

    def arrived(self, most: int = 6) -> str:
        """One sentence on the spikes that arrived at the neuron in that step; '' where nothing is known of them."""
        if not self.inputs:
            return f"Spikes that arrived: {self.inputs_note}." if self.inputs_note else ""
        drive = [sum(getattr(one, side) * one.weight for one in self.inputs) for side in ("reference", "chip")]
        sums = (
            number(drive[0])
            if drive[0] == drive[1]
            else f"{number(drive[0])} in the reference, {number(drive[1])} on the chip"
        )
        told = [_arrival_text(one) for one in self.inputs[:most]]
        more = f", and {len(self.inputs) - most} more" if len(self.inputs) > most else ""
        note = f" ({self.inputs_note})" if self.inputs_note else ""
        listed = f"{', '.join(told)}{more}{note}"
        return f"In that step {several(len(self.inputs), 'input')} arrived, together {sums}: {listed}."


def _arrival_text(arrival: Arrival) -> str:
    """'if1 (0, 3, 4) 0.41', with the counts where they are not one on both sides, and the delay."""
    ours, theirs = arrival.reference, arrival.chip
    counts = f" x {number(ours)}" if ours == theirs else f" x {number(ours)} against {number(theirs)}"
    counts = "" if ours == theirs == 1 else counts
    late = f" after {several(arrival.delay, 'step')}" if arrival.delay else ""
    return f"{shown(arrival.source)} {neuron_text(arrival.neuron)}{counts} weight {number(arrival.weight)}{late}"
