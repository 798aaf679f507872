"""What a sample input, or shapes given instead of one, say of a network's inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nirdeploy.convert.draft import Shape
from nirdeploy.errors import ConversionError

__all__ = ["Sample", "Shapes", "length_of", "shapes_of"]

Shapes = Shape | Mapping[str, Shape] | list[Shape] | None


@dataclass(frozen=True)
class Sample:
    """What is known of one sample in one step.

    Attributes:
        shapes: its shape, or one for each input by name or by position; None: not known.
        length: of the sample input's first axis; None: only shapes were given.
    """

    shapes: Shapes
    length: int | None

    def shape(self, name: str, position: int, *, several: bool) -> Shape | None:
        """That of one input; with `several` of them, one shape for all would be a guess."""
        if isinstance(self.shapes, Mapping):
            return self.shapes.get(name)
        if isinstance(self.shapes, list):
            return self.shapes[position] if position < len(self.shapes) else None
        return None if several else self.shapes

    def of_a_step(self) -> Sample:
        """The same without the axis over which forward loops, which the sample input has in front."""
        if self.length is None or not isinstance(self.shapes, tuple):
            return self
        return dataclasses.replace(self, shapes=self.shapes[1:])


def shapes_of(sample_input: Any, input_shape: Any, axes: int) -> Shapes:
    """One shape, or one for each input by name or by position.

    Args:
        sample_input: an input of forward, or several; `axes` stand in front of those of a sample.
        input_shape: shape of one sample, instead; likewise.
        axes: 1, the batch, or 2, with steps.

    Raises:
        ConversionError: both are given, or the sample input lacks an axis.
    """
    if sample_input is not None and input_shape is not None:
        raise ConversionError("sample_input and input_shape were both given", remedy="Give one.")

    def sample(value: Any) -> Shape:
        shape = tuple(int(n) for n in np.shape(value))
        if axes > 1 and len(shape) <= axes:
            raise ConversionError(
                f"sample_input has shape {shape}, and layers that take all steps at once need step, batch and neurons",
                remedy=f"Give it a batch axis, or pass input_shape={shape[1:]} instead.",
            )
        return shape[axes:]

    def plain(value: Any) -> Shape:
        return tuple(int(n) for n in value)

    given, one = (sample_input, sample) if sample_input is not None else (input_shape, plain)
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {str(name): one(value) for name, value in given.items()}
    return [one(value) for value in given] if _is_sequence(given) else one(given)


def length_of(sample_input: Any) -> int | None:
    """The first axis of a sample input: its steps, where forward loops over it; that of the first of several."""
    if sample_input is None:
        return None
    first = sample_input
    if isinstance(sample_input, Mapping):
        first = next(iter(sample_input.values()), ())
    elif _is_sequence(sample_input):
        first = sample_input[0]
    return next(iter(np.shape(first)), 0)


def _is_sequence(given: Any) -> bool:
    """Whether there is one for each input, by position."""
    return isinstance(given, list | tuple) and len(given) > 0 and isinstance(given[0], list | tuple | torch.Tensor)
