"""Columns of the tables that the kernels read and write, by name and by number."""

from __future__ import annotations

FIELDS = (
    "outputs",
    "height",
    "width",
    "kernel_y",
    "kernel_x",
    "stride_y",
    "stride_x",
    "padding_y",
    "padding_x",
    "threshold",
    "v_min",
    "subtract",
    "many",
    "first_cell",  # where its neurons begin in the states
    "first_weight",
    "first_bias",
    "biased",
    "first_row",  # where its rows begin in `reach`, and its columns
    "first_column",
    "first_destination",
    "end_destination",
    "largest_weight",
    "largest_bias",
)
"""Columns of `Packed.table`."""

COUNTERS = ("saturations", "clamps", "synaptic_operations", "input_events", "spikes")
"""Columns of what the kernels count, a row a core."""

# their numbers, which numba takes as literals
(
    OUTPUTS,
    HEIGHT,
    WIDTH,
    KERNEL_Y,
    KERNEL_X,
    STRIDE_Y,
    STRIDE_X,
    PADDING_Y,
    PADDING_X,
    THRESHOLD,
    V_MIN,
    SUBTRACT,
    MANY,
    CELL,
    WEIGHT,
    BIAS,
    BIASED,
    ROW,
    COLUMN,
    TO,
    TO_END,
    LARGEST_WEIGHT,
    LARGEST_BIAS,
) = range(len(FIELDS))
SATURATIONS, CLAMPS, SYNAPTIC_OPERATIONS, INPUT_EVENTS, SPIKES = range(5)
HIGHEST = 32767
LOWEST = -32768
