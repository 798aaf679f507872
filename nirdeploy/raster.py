"""Input rasters: reading from files, and checking before a run."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nirdeploy.errors import FileError, RasterError
from nirdeploy.files import MAX_BYTES, atomic, unreadable
from nirdeploy.names import suggest

if TYPE_CHECKING:
    from nirdeploy.binning import Origin

__all__ = ["DAMAGE", "as_array", "check_raster", "load_array", "load_raster", "save_raster"]

DAMAGE = (
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, zlib, lzma and numpy raise for damaged, encrypted or foreign files; RuntimeError is 'encrypted'."""


def load_raster(
    path: str | Path, *, step_us: int | None = None, origin: Origin = "zero", max_bytes: int = MAX_BYTES
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Read a raster of counts, and labels where the file has them.

    Args:
        path: `.npz` with an array 'raster' (and perhaps 'labels'), or `.npy`; or recorded events of one sample in any
            format of `load_events`, which are counted into [step, *shape].
        step_us: microseconds of a step, for files of events and only for them.
        origin: where step 0 of events begins, as of `events_to_raster`; nothing is dropped.
        max_bytes: most bytes the array may take.

    Raises:
        FileError: missing, another format, damaged, encrypted, pickled objects, no 'raster', too large, or
            labels that are no whole numbers in one row; events without step_us, or a raster with it.
    """
    source = Path(path)
    if reason := unreadable(source):
        raise FileError(f"{str(source)!r} {reason}, expected a raster (.npz or .npy)")
    from nirdeploy.event_files import is_event_file

    try:
        events = is_event_file(source)
        if not events:
            found = _read(source, max_bytes)
    except FileError:
        raise
    except DAMAGE as error:
        raise FileError(f"{str(source)!r} is no .npz or .npy raster: {error}") from error
    if events:
        return _load_binned(source, step_us, origin, max_bytes)
    if step_us is not None:
        raise FileError(f"{str(source)!r} holds a raster, which has its steps already", remedy="Leave step_us out.")
    return found


def _read(source: Path, max_bytes: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if zipfile.is_zipfile(source):
        return _load_npz(source, max_bytes)
    with source.open("rb") as stream:
        return load_array(stream, source.name, max_bytes), None


def _load_binned(
    source: Path, step_us: int | None, origin: Origin, max_bytes: int
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    from nirdeploy.binning import events_to_raster
    from nirdeploy.event_files import load_events

    if step_us is None:
        raise FileError(f"{str(source)!r} holds events, not a raster", remedy="Pass step_us=, the length of a step.")
    events = load_events(source, "npz" if zipfile.is_zipfile(source) else None, max_bytes=max_bytes)
    try:
        raster = events_to_raster(events, step_us=step_us, origin=origin, max_bytes=max_bytes)
    except RasterError as error:
        remedy = "load_events and events_to_raster have every option."
        raise FileError(f"{str(source)!r}: {error}", remedy=remedy) from error
    return raster, None if events.label is None else np.array([events.label])


def _load_npz(source: Path, max_bytes: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(source) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if "raster" not in names:
            raise FileError(f"{str(source)!r} has no array 'raster'", remedy=suggest("raster", names))
        for name in ("raster", "labels"):
            if name in names:
                with archive.open(f"{name}.npy") as stream:
                    found[name] = load_array(stream, f"{source.name}:{name}", max_bytes)
    labels = found.get("labels")
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise FileError(
            f"{source.name + ':labels'!r} has shape {labels.shape} and dtype {labels.dtype}, expected one whole "
            "number a sample"
        )
    return found["raster"], labels


def load_array(stream: IO[bytes], label: str, max_bytes: int) -> NDArray[Any]:
    """Read one array after its header has been held against the limit.

    Raises:
        FileError: another version, Python objects, a shape that is none, too large, or cut off; or one of `DAMAGE`.
    """
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FileError(f"{label!r} has .npy version {version}, expected 1 to 3")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise FileError(f"{label!r} holds Python objects, expected numbers")
    if any(n < 0 for n in shape):
        raise FileError(f"{label!r} declares the shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    if size > max_bytes:
        raise FileError(f"{label!r} declares {size} bytes (shape {shape}), at most {max_bytes}")
    data = stream.read(size)
    if len(data) != size:
        raise FileError(f"{label!r} is truncated: {len(data)} of {size} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def save_raster(path: str | Path, raster: NDArray[Any], labels: NDArray[Any] | None = None) -> None:
    """Write a `.npz` that `load_raster` reads."""
    arrays = {"raster": raster} if labels is None else {"raster": raster, "labels": labels}
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def check_raster(
    raster: Any, shape: tuple[int, ...], *, integer: bool, maximum: int | None = None
) -> tuple[NDArray[Any], bool]:
    """Validate an input raster and give it a batch axis.

    Args:
        raster: [step, batch, *shape] or [step, *shape]; array or tensor of counts.
        shape: shape of one sample at one step.
        integer: whether values must be whole numbers.
        maximum: largest count allowed where values must be whole; None: what 32 bits hold.

    Returns:
        The raster as [step, batch, *shape] and whether it came with a batch axis.

    Raises:
        RasterError: wrong rank or shape, no steps, negative, NaN, infinite, fractional or too large counts.
    """
    array = _plain(as_array(raster))
    wanted = f"[step{_text(shape)}] or [step, batch{_text(shape)}]"
    rank = len(shape)
    batched = array.ndim == rank + 2
    if not (batched or array.ndim == rank + 1) or (rank and tuple(array.shape[-rank:]) != tuple(shape)):
        raise RasterError(f"the raster has shape {tuple(array.shape)}, expected {wanted}")
    if 0 in array.shape:
        raise RasterError(f"the raster is empty: shape {tuple(array.shape)}, expected {wanted}")
    floating = array.dtype.kind == "f"
    _refuse(array, ~np.isfinite(array) if floating else None, "expected finite counts")
    _refuse(array, array < 0, "a negative count")
    if integer and floating:
        _refuse(array, array != np.rint(array), "expected whole counts")
    limit = np.iinfo(np.int32).max if maximum is None else maximum
    if integer:
        # in Python's numbers: float32 would round the limit itself up
        if array.max().item() > limit:
            too_large = array.astype(np.float64) > limit
            _refuse(array, too_large, f"at most {limit} a step is possible here; use a shorter time bin")
        array = array.astype(np.int32)  # also of bytes: sums of uint8 would wrap
    return (array if batched else array[:, None]), batched


def as_array(raster: Any) -> NDArray[Any]:
    """A numpy array of what may be a tensor, a list or an array.

    Raises:
        RasterError: it is none of them, or has masked values.
    """
    if isinstance(raster, np.ma.MaskedArray) and np.ma.is_masked(raster):
        raise RasterError("the raster has masked values", remedy="Fill them: raster.filled(0).")
    try:
        if hasattr(raster, "detach"):
            tensor = raster.detach().cpu()
            tensor = tensor.to_dense() if tensor.layout != _strided() else tensor
            # numpy has no bfloat16; float32 holds each of its values
            return np.asarray(tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor)
        array = np.asarray(raster)
        return np.asarray(array.tolist()) if array.dtype.kind == "O" else array
    # ragged lists, quantised tensors, objects whose own conversion fails
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise RasterError(f"the raster is no array of counts: {error}") from error


def _strided() -> Any:
    import torch

    return torch.strided


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """The same counts in the machine's byte order, contiguous, in a type that torch has.

    Raises:
        RasterError: no numbers, or numbers that would change.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "biuf":
        raise RasterError(f"the raster has dtype {array.dtype}, expected counts")
    wanted: Any = array.dtype.newbyteorder("=")
    if kind == "b":
        wanted = np.int32
    elif kind == "u" and size > 1:
        wanted = np.int64
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise RasterError(f"the raster holds {array.max()}: more than 64 bits with a sign can count")
    elif kind == "f" and size > 8:
        wanted = np.float64
        with np.errstate(over="ignore"):
            same = array.astype(wanted) == array
        _refuse(array, ~(same | np.isnan(array)), "more digits than float64 has")
    return np.ascontiguousarray(array, dtype=wanted).reshape(array.shape)


def _text(shape: tuple[int, ...]) -> str:
    return "".join(f", {n}" for n in shape)


def _refuse(array: NDArray[Any], bad: NDArray[np.bool_] | None, why: str) -> None:
    if bad is not None and bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise RasterError(f"the raster holds {array[where]} at {where}: {why}")
