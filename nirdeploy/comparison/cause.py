"""One sentence on why a spike differs, saying no more than the records can tell."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.text import number, shown

__all__ = ["Earlier", "explain"]


class Earlier(NamedTuple):
    """Which other nodes already differ in the same sample.

    Attributes:
        first: the earliest of those that lead to the node, and its first differing step; None: none does.
        differing: how many of those differ.
        compared: how many other nodes have compared spikes.
        elsewhere: whether any other node differs, those that do not lead to the node included.
    """

    first: tuple[str, int] | None
    differing: int
    compared: int
    elsewhere: bool = False


def explain(
    *,
    step: int,
    missing: bool,
    voltages: tuple[NDArray[Any], NDArray[Any]] | None,
    steps: range,
    thresholds: tuple[float | None, float | None],
    earlier: Earlier,
    saturations: int,
) -> str:
    """The sentence for one diverging neuron.

    Args:
        step: reference step of the difference.
        missing: whether the chip has fewer spikes than the reference.
        voltages: v_mem of the neuron on both sides, one for each of `steps`, in model units; None: not compared.
        steps: reference steps of the voltages.
        thresholds: of reference and chip in model units, where recorded.
        earlier: other nodes that already differ in this sample.
        saturations: saturated sums the chip's run counted at this node, over the whole run.
    """
    parts = [_inherited(earlier)]
    if voltages is None:
        parts.append("v_mem of this neuron was not compared, so its state before is unknown")
    else:
        before = len(range(steps.start, min(step, steps.stop), steps.step))
        parts.append(_history(before, steps, voltages, thresholds[0]))
        parts.append(_margin(before, voltages, thresholds, missing) if step in steps else "")
    if saturations:
        parts.append(f"the chip's run counts {number(saturations)} saturations at this node over the whole run")
    sentence = "; ".join(part for part in parts if part)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _inherited(earlier: Earlier) -> str:
    if earlier.first is not None:
        node, step = earlier.first
        more = earlier.differing - 1
        others = f" and {more} more" if more else ""
        return f"probably inherited: {shown(node)!r}{others} already differed in this sample (step {step})"
    if earlier.elsewhere:
        return "not inherited from any compared layer: none that leads to it differed before in this sample"
    if earlier.compared:
        return "not inherited from any compared layer: none differed before in this sample"
    return "spikes of no other layer were compared, so it may be inherited"


def _history(index: int, steps: range, voltages: tuple[NDArray[Any], NDArray[Any]], threshold: float | None) -> str:
    """The largest difference of v_mem at this neuron in the first `index` compared steps."""
    if not index:
        return "it is the first compared step, so no earlier v_mem is known"
    ours, theirs = (np.asarray(side[:index], dtype=np.float64) for side in voltages)
    gap = np.abs(np.subtract(ours, theirs, out=np.zeros(index), where=ours != theirs))  # two infinities are the same
    largest = float(gap.max())
    if largest == 0:
        return "until then v_mem of this neuron was the same on both sides"
    size = (
        f"{number(largest / threshold)} thresholds" if threshold and threshold > 0 else f"{number(largest)} model units"
    )
    return f"before, v_mem of this neuron differed by up to {size} (step {steps[int(gap.argmax())]})"


def _margin(
    index: int,
    voltages: tuple[NDArray[Any], NDArray[Any]],
    thresholds: tuple[float | None, float | None],
    missing: bool,
) -> str:
    """How far below its threshold the side with fewer spikes ended the step, in its own thresholds."""
    side = 1 if missing else 0
    threshold = thresholds[side]
    if threshold is None or not threshold > 0 or not 0 <= index < len(voltages[side]):
        return ""
    margin = (threshold - float(voltages[side][index])) / threshold
    who = "chip" if missing else "reference"
    return f"the {who} ended the step {number(margin)} thresholds below its own threshold" if margin >= 0 else ""
