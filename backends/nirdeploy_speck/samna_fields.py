"""Plain data (`chip.json`) onto samna's configuration objects, field by field, nothing guessed and nothing dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nirdeploy.errors import VendorError
from nirdeploy.names import suggest

__all__ = ["set_fields"]

_REMEDY = "This samna differs from the one nirdeploy was written for; please report both versions."


def set_fields(target: Any, fields: Mapping[str, Any], path: str = "configuration") -> None:
    """Set the attributes of a samna object in place, and read each one back.

    A mapping goes into the object of that name (`Vec2` with x and y, dimensions, ...), or into the elements of a list
    by number; so does a list of mappings. A text becomes the member of the attribute's enumeration. None leaves what
    samna has by default. Everything else is assigned as it is. The reading back tells objects that are copies.

    Args:
        target: e.g. a SpeckConfiguration.
        fields: what `config.chip_configuration` gives, or a part of it.
        path: of `target`, for messages.

    Raises:
        VendorError: samna has no such attribute, element or member, refuses a value, or holds another one afterwards.
    """
    _set(target, fields, path)
    _require_kept(target, fields, path)


def _set(target: Any, fields: Mapping[str, Any], path: str) -> None:
    for name, value in fields.items():
        here = f"{path}.{name}"
        if value is None:
            continue
        if not hasattr(target, name):
            known = [n for n in dir(target) if not n.startswith("_")]
            kind = type(target).__name__
            raise VendorError(f"samna's {kind} has no {here!r}", remedy=f"{suggest(name, known)} {_REMEDY}")
        current = getattr(target, name)
        if isinstance(value, Mapping) and _is_list(current):
            _set_elements(current, {int(number): fields for number, fields in value.items()}, here)
        elif isinstance(value, Mapping):
            _set(current, value, here)
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            if len(value) != len(current):
                raise VendorError(f"samna's {here!r} has {len(current)} elements, {len(value)} are to be set")
            _set_elements(current, dict(enumerate(value)), here)
        else:
            _assign(target, name, _member(current, value, here), here)


def _set_elements(elements: Any, fields: Mapping[int, Mapping[str, Any]], path: str) -> None:
    for number, values in fields.items():
        if not 0 <= number < len(elements):
            raise VendorError(f"samna's {path!r} has {len(elements)} elements, there is no {number}", remedy=_REMEDY)
        _set(elements[number], values, f"{path}[{number}]")


def _member(current: Any, value: Any, path: str) -> Any:
    """A text as member of the enumeration that the attribute holds now; anything else as it is."""
    members = getattr(type(current), "__members__", None)
    if members is None or not isinstance(value, str):
        return value
    if value not in members:
        raise VendorError(f"samna's {path!r} has no value {value!r}", remedy=suggest(value, members))
    return members[value]


def _assign(target: Any, name: str, value: Any, path: str) -> None:
    try:
        setattr(target, name, value)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        shown = repr(value)
        shown = shown if len(shown) < 80 else f"{shown[:77]}..."
        raise VendorError(f"samna refuses {shown} for {path!r}: {error}", remedy=_REMEDY) from error


def _require_kept(target: Any, fields: Mapping[str, Any], path: str) -> None:
    """What was set must be there when it is asked for again: not all bindings hand out their own objects."""
    for name, value in fields.items():
        if value is None:
            continue
        found = getattr(target, name)
        if isinstance(value, Mapping) and not _is_list(found):
            _require_kept(found, value, f"{path}.{name}")
        elif isinstance(value, Mapping):
            for number, part in value.items():
                _require_kept(found[int(number)], part, f"{path}.{name}[{number}]")
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            for number, part in enumerate(value):
                _require_kept(found[number], part, f"{path}.{name}[{number}]")
        elif _plain(found) != _plain(_member(found, value, f"{path}.{name}")):
            raise VendorError(f"samna did not keep {path}.{name}", remedy=_REMEDY)


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | Mapping)


def _plain(value: Any) -> Any:
    """Arrays and vendor's vectors as nested lists."""
    return [_plain(part) for part in value] if _is_list(value) else value
