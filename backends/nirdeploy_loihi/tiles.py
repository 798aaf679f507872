"""Ways to cut a population's shape into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations, product

from nirdeploy_loihi.program import Shape
from nirdeploy_loihi.reach import Block

__all__ = ["evenly", "tilings"]


def evenly(length: int, parts: int) -> tuple[tuple[int, int], ...]:
    """Equal sequential slices [first, last); the first ones hold one more where it does not divide."""
    size, more = divmod(length, parts)
    edges = [i * size + min(i, more) for i in range(parts + 1)]
    return tuple(pairwise(edges))


def tilings(shape: Shape, parts: int) -> Iterator[tuple[Block, ...]]:
    """Ways to cut a shape into so many blocks, row-major: all even grids, those along the first axes first, and slabs.

    Slabs cut one axis at every place and spread the parts over them, so that there is a tiling for every number
    of parts up to the number of neurons.
    """
    seen: set[tuple[Block, ...]] = set()
    grids = (
        tuple(product(*(evenly(n, k) for n, k in zip(shape, counts, strict=True))))
        for counts in sorted(_factors(shape, parts), reverse=True)
    )
    slabs = (tuple(sorted(_slabs(shape, parts, order))) for order in permutations(range(len(shape))))
    for found in (*grids, *slabs):
        if found not in seen:
            seen.add(found)
            yield found


def _factors(shape: Shape, parts: int) -> Iterator[tuple[int, ...]]:
    if not shape:
        if parts == 1:
            yield ()
        return
    for count in range(1, min(shape[0], parts) + 1):
        if parts % count == 0:
            for rest in _factors(shape[1:], parts // count):
                yield (count, *rest)


def _slabs(shape: Shape, parts: int, order: Sequence[int]) -> Iterator[Block]:
    if parts == 1:
        yield tuple((0, n) for n in shape)
        return
    axis, *rest = order
    if shape[axis] >= parts:
        for piece in evenly(shape[axis], parts):
            yield tuple(piece if a == axis else (0, n) for a, n in enumerate(shape))
        return
    slab = tuple(1 if a == axis else n for a, n in enumerate(shape))
    for at, (first, last) in enumerate(evenly(parts, shape[axis])):
        for block in _slabs(slab, last - first, rest):
            yield tuple((at, at + 1) if a == axis else piece for a, piece in enumerate(block))
