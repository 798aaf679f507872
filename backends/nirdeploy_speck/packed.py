"""A ChipProgram as flat arrays, the form the kernels take.

Maps lie with their channels last, [y, x, channel], and weights as [in, y, x, out]: all that an event adds to one
position of the map is then one piece of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy_speck.cores import ChipCore, ChipProgram, Destination
from nirdeploy_speck.fields import FIELDS

__all__ = ["Packed", "pack"]

_INT16 = 1 << 15


@dataclass(frozen=True, eq=False)
class Packed:
    """A program for the kernels.

    Attributes:
        program: what it was made of.
        table: int64 [core, field], `fields.FIELDS`.
        weights: int32, [in, y, x, out] of every core, one behind the other.
        bias: int32 [out] of every core.
        reach: int64 [coordinate, 2], first and last position of the output map that an input row or column reaches.
        destinations: int64 [destination, 3]: core, pooling, feature_shift.
        entry: likewise, of the Input.
        n_cells: neurons of all cores.
    """

    program: ChipProgram
    table: NDArray[np.int64]
    weights: NDArray[np.int32]
    bias: NDArray[np.int32]
    reach: NDArray[np.int64]
    destinations: NDArray[np.int64]
    entry: NDArray[np.int64]
    n_cells: int

    @property
    def arrays(
        self,
    ) -> tuple[
        NDArray[np.int64],
        NDArray[np.int32],
        NDArray[np.int32],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.int64],
    ]:
        """What every kernel takes first."""
        return (self.table, self.weights, self.bias, self.reach, self.destinations, self.entry)

    def column(self, field: str) -> NDArray[np.int64]:
        """One field of all cores."""
        return self.table[:, FIELDS.index(field)]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Neurons of all cores."""
        return self.column("outputs") * self.column("height") * self.column("width")


def pack(program: ChipProgram) -> Packed:
    """Flat arrays of a program.

    Raises:
        QuantizationError: a core whose parts do not fit each other or the chip's integers, or a destination that
            events do not fit; naming population, value and limit.
    """
    for position, core in enumerate(program.cores):
        _check_core(core)
        for destination in core.destinations:
            _check_destination(program, core.layer, core.output_shape, destination, position)
    for destination in program.entry:
        _check_destination(program, "the Input", program.input_map, destination, -1)
    rows, weights, biases, reach, destinations = [], [], [], [], []
    used = dict.fromkeys(("cell", "weight", "bias", "reach", "destination"), 0)
    for core in program.cores:
        (outputs, height, width), (_, in_y, in_x) = core.output_shape, core.input_shape
        kernel_y, kernel_x = core.weight.shape[2:]
        by_row = _reach(in_y, kernel_y, core.stride[0], core.padding[0], height)
        by_column = _reach(in_x, kernel_x, core.stride[1], core.padding[1], width)
        bias = np.zeros(outputs, np.int32) if core.bias is None else core.bias.astype(np.int32)
        row = {
            "outputs": outputs,
            "height": height,
            "width": width,
            "kernel_y": kernel_y,
            "kernel_x": kernel_x,
            "stride_y": core.stride[0],
            "stride_x": core.stride[1],
            "padding_y": core.padding[0],
            "padding_x": core.padding[1],
            "threshold": core.threshold,
            "v_min": core.v_min,
            "subtract": int(core.subtract),
            "many": int(core.many),
            "first_cell": used["cell"],
            "first_weight": used["weight"],
            "first_bias": used["bias"],
            "biased": int(bias.any()),
            "first_row": used["reach"],
            "first_column": used["reach"] + in_y,
            "first_destination": used["destination"],
            "end_destination": used["destination"] + len(core.destinations),
            "largest_weight": int(np.abs(core.weight).max(initial=0)),
            "largest_bias": int(np.abs(bias).max(initial=0)),
        }
        rows.append([row[field] for field in FIELDS])
        weights.append(core.weight.astype(np.int32).transpose(1, 2, 3, 0).reshape(-1))
        biases.append(bias)
        reach += [by_row, by_column]
        destinations += [[to.core, to.pooling, to.feature_shift] for to in core.destinations]
        used["cell"] += outputs * height * width
        used["weight"] += weights[-1].size
        used["bias"] += outputs
        used["reach"] += in_y + in_x
        used["destination"] += len(core.destinations)
    return Packed(
        program,
        np.array(rows, dtype=np.int64).reshape(-1, len(FIELDS)),
        np.concatenate(weights) if weights else np.zeros(0, np.int32),
        np.concatenate(biases) if biases else np.zeros(0, np.int32),
        np.concatenate(reach) if reach else np.zeros((0, 2), np.int64),
        np.array(destinations, dtype=np.int64).reshape(-1, 3),
        np.array([[to.core, to.pooling, to.feature_shift] for to in program.entry], dtype=np.int64).reshape(-1, 3),
        used["cell"],
    )


def _reach(size: int, kernel: int, stride: int, padding: int, outputs: int) -> NDArray[np.int64]:
    """First and last o with 0 <= i + padding - stride o < kernel, for every input coordinate i; last < first: none."""
    at = np.arange(size, dtype=np.int64) + padding
    first = np.maximum(-((kernel - 1 - at) // stride), 0)
    last = np.minimum(at // stride, outputs - 1)
    return np.stack([first, last], axis=1)


def _check_core(core: ChipCore) -> None:
    outputs, inputs, kernel_y, kernel_x = core.weight.shape
    if (outputs, inputs) != (core.output_shape[0], core.input_shape[0]):
        raise QuantizationError(
            f"weights [out, in, y, x] {core.weight.shape} do not fit maps {core.input_shape} and {core.output_shape} "
            "(channel, y, x)",
            node=core.layer,
        )
    for axis, kernel in ((0, kernel_y), (1, kernel_x)):
        have = core.input_shape[1 + axis] + 2 * core.padding[axis] - kernel
        if have < 0 or have // core.stride[axis] + 1 != core.output_shape[1 + axis]:
            raise QuantizationError(
                f"a kernel {kernel_y}x{kernel_x} with stride {core.stride} and padding {core.padding} does not make "
                f"{core.output_shape} of {core.input_shape} (channel, y, x)",
                node=core.layer,
            )
    for what, value, least, most in (
        ("threshold", core.threshold, 1, _INT16 - 1),
        ("v_min", core.v_min, -_INT16, -1),
        ("the least weight", int(core.weight.min(initial=0)), -128, 127),
        ("the largest weight", int(core.weight.max(initial=0)), -128, 127),
        ("the least bias", 0 if core.bias is None else int(core.bias.min()), -_INT16, _INT16 - 1),
        ("the largest bias", 0 if core.bias is None else int(core.bias.max()), -_INT16, _INT16 - 1),
    ):
        if not least <= value <= most:
            raise QuantizationError(f"{what} is {value}, the chip holds {least} to {most}", node=core.layer)


def _check_destination(
    program: ChipProgram, source: str, size: tuple[int, int, int], to: Destination, position: int
) -> None:
    """Refuse what would be sent to nothing: a core that comes no later, channels or coordinates that it lacks."""
    if not position < to.core < len(program.cores):
        raise QuantizationError(
            f"{source!r} sends events to position {to.core}; {len(program.cores)} cores run in order, and it is at "
            f"{position}"
        )
    target = program.cores[to.core]
    if size[1] % to.pooling or size[2] % to.pooling:
        raise QuantizationError(
            f"events of {source!r} have {size[1]}x{size[2]} positions, which pooling by {to.pooling} does not divide",
            node=target.layer,
            remedy="Make the map a multiple of the pooling.",
        )
    pooled = (size[0], size[1] // to.pooling, size[2] // to.pooling)
    # a smaller map is the upper left corner of the core's
    if any(n > most for n, most in zip((pooled[0] + to.feature_shift, *pooled[1:]), target.input_shape, strict=True)):
        raise QuantizationError(
            f"events of {source!r} come as {pooled} from channel {to.feature_shift} on, the core holds "
            f"{target.input_shape}",
            node=target.layer,
        )
