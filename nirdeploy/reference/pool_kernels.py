"""Pooling over windows side by side; torch's own reads every window through index arithmetic."""

from __future__ import annotations

from nirdeploy.reference.lanes import get, pointer, put
from nirdeploy.reference.native import kernel

__all__ = ["pool"]


@kernel
def pool(x, rows, columns, divisor, out, first, last):
    """Sums over windows divided by `divisor`, row by row of a window as torch adds them up.

    Args:
        x: maps [map, y, x].
        rows: of a window.
        columns: likewise.
        divisor: 1 for sums.
        out: written, [map, y, x].
        first: first map.
        last: map to stop before.
    """
    height, width = x.shape[1], x.shape[2]
    tall, wide = out.shape[1], out.shape[2]
    given, target = pointer(x), pointer(out)
    for n in range(first, last):
        for y in range(tall):
            to = (n * tall + y) * wide
            if rows == 2 and columns == 2:
                above = (n * height + 2 * y) * width
                below = above + width
                for k in range(wide):
                    total = get(given, above + 2 * k) + get(given, above + 2 * k + 1)
                    total = total + get(given, below + 2 * k) + get(given, below + 2 * k + 1)
                    put(target, to + k, total / divisor)
                continue
            for k in range(wide):
                at = (n * height + rows * y) * width + columns * k
                total = get(given, at)
                for j in range(1, rows * columns):
                    total += get(given, at + j // columns * width + j % columns)
                put(target, to + k, total / divisor)
