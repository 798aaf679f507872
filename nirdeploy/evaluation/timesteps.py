"""A data set at another dt: recorded events are counted anew, steps of a raster are added up; nothing is dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.binning import stack_events, whole_microseconds
from nirdeploy.comparison.text import several
from nirdeploy.errors import RasterError
from nirdeploy.evaluation.datasets import Sample, Samples
from nirdeploy.events import Events
from nirdeploy.raster import check_raster

__all__ = ["added_up", "at_dt", "calibration_at", "factor_of"]

_MOST = np.iinfo(np.int64).max
_ROUNDING = 1e-6  # of a step, as of `whole_microseconds`


def at_dt(samples: Samples, own: float | None, dt: float | None) -> Samples:
    """The data set of a run whose step takes `dt` seconds; its first sample is looked at.

    Recorded events stay as they are: a run counts them into steps of its convention's dt, which must be whole
    microseconds. Rasters have steps of `own` seconds; as many of them as `dt` takes are added up.

    Raises:
        RasterError: recorded events and a dt of no whole microseconds; a raster and a dt that is no whole multiple
            of `own`, or whose number of steps that multiple does not divide.
    """
    if dt == own:
        return samples
    (first, _) = samples.read(0, 1)[0]
    if isinstance(first, Events):
        if whole_microseconds(dt) is None:
            raise RasterError(f"dt={dt} s is no whole number of microseconds, which recorded events have")
        return samples
    factor = factor_of(own, dt, samples.name)

    def read(start: int, stop: int) -> list[Sample]:
        return [
            (added_up(counts, factor, f"sample {start + k}"), label)
            for k, (counts, label) in enumerate(samples.read(start, stop))
        ]

    added_up(first, factor, "sample 0")
    digest = hashlib.sha256(f"{samples.fingerprint} {factor} steps in one".encode()).hexdigest()
    return replace(samples, fingerprint=digest, read=read)


def factor_of(own: float | None, dt: float | None, name: str) -> int:
    """Steps of `own` seconds that one of `dt` takes.

    Raises:
        RasterError: not a whole number of them.
    """
    if own is None or dt is None:
        raise RasterError(
            f"{name} is a raster, and how long its steps are is not known: the convention has no dt",
            remedy="Pass convention= with the dt of the data.",
        )
    factor = round(dt / own)
    if not factor or abs(dt / own - factor) > _ROUNDING * factor:
        what = "finer" if dt < own else "no whole multiple of them"
        raise RasterError(
            f"dt={dt:g} s with {name}, a raster of steps of {own:g} s: {what}",
            remedy=f"Use whole multiples, e.g. {2 * own:g}; recorded events take any whole microseconds.",
        )
    return factor


def added_up(raster: Any, factor: int, name: str) -> NDArray[Any]:
    """[step / factor, ...]: each the sum of `factor` steps, whole numbers in 64 bits, floats in float64.

    Raises:
        RasterError: `factor` does not divide the number of steps, or an entry is recorded events.
    """
    if isinstance(raster, Events):
        raise RasterError(f"{name} is recorded events, sample 0 a raster", remedy="Give one kind for a sweep of dt.")
    array = np.asarray(raster)
    if not array.ndim or array.dtype.kind not in "biuf":
        raise RasterError(f"{name} is {array.dtype} of shape {array.shape}, expected counts [step, ...]")
    if len(array) < factor:
        raise RasterError(
            f"{name} has {several(len(array), 'step')}, fewer than the {factor:.15g} that are added up to one",
            remedy="Use a shorter dt.",
        )
    if left := len(array) % factor:
        raise RasterError(
            f"{name} has {several(len(array), 'step')}; adding up {factor} of them to one leaves {left} over",
            remedy=f"Append {several(factor - left, 'step')} of silence.",
        )
    if (
        array.size
        and array.dtype.kind in "iu"
        and not -_MOST <= factor * int(array.min()) <= factor * int(array.max()) <= _MOST
    ):
        largest = max(int(array.max()), int(array.min()), key=abs)
        raise RasterError(f"{name} holds {largest}: {factor} of them are more than 64 bits with a sign can count")
    kind = np.float64 if array.dtype.kind == "f" else None  # numpy's own choice has 64 bits
    return np.asarray(array.reshape(-1, factor, *array.shape[1:]).sum(axis=1, dtype=kind))


def calibration_at(
    calibration: Any, shape: tuple[int, ...], own: float | None, dt: float | None, step_us: int | None
) -> NDArray[Any] | None:
    """A quantiser's data, [step, batch, *shape], at `dt` seconds a step.

    Args:
        calibration: a raster of steps of `own` seconds, Events or a sequence of them; None stays None.
        shape: of the Input.
        own: seconds of the raster's steps.
        dt: seconds of a step wanted.
        step_us: microseconds of a step for events where dt is not known.

    Raises:
        RasterError: as `at_dt`, or data of another shape.
    """
    if calibration is None:
        return None
    events = [calibration] if isinstance(calibration, Events) else calibration
    if isinstance(events, Sequence) and len(events) and all(isinstance(one, Events) for one in events):
        step = step_us or whole_microseconds(dt)
        if step is None:
            raise RasterError(
                f"the calibration data are recorded events, and dt={dt} s is no whole number of microseconds"
            )
        return _checked(stack_events(events, shape, step_us=step), shape)
    found = _checked(calibration, shape)
    if dt == own:
        return found
    name = "the calibration data"
    return added_up(found, factor_of(own, dt, name), name)


def _checked(calibration: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return check_raster(calibration, shape, integer=True)[0]
    except RasterError as error:
        raise RasterError(f"the calibration data: {error}") from error
