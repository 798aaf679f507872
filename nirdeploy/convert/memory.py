"""Everything that the modules of a network remember, at whatever depth: to see what changed, and to put it back."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Memory"]

_DEPTH = 4  # of containers and objects below an attribute; a trainer that a module knows leads everywhere
_TABLES = ("_buffers", "_parameters", "_modules")  # whose entries are attributes to the user
_WHOLE = (nn.Module, torch.Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, torch.Generator)


@dataclass(frozen=True)
class _Holder:
    """Something that can be changed while what leads to it stays: a module's attributes, a list, a dict, an object's.

    Attributes:
        module: path of the module it belongs to.
        name: of the attribute that leads to it; '' for the attributes themselves.
        held: the dict, list, set or deque itself.
        before: a copy.
    """

    module: str
    name: str
    held: Any
    before: Any

    def changed(self) -> list[str]:
        """Names of what is another object than before."""
        if isinstance(self.held, dict):
            missing = object()
            keys = [*self.before, *(key for key in self.held if key not in self.before)]
            differing = [key for key in keys if self.held.get(key, missing) is not self.before.get(key, missing)]
            return [self._named(str(key)) for key in differing]
        # by identity: what is equal to a traced value is a traced value, too
        now, before = [id(entry) for entry in self.held], [id(entry) for entry in self.before]
        same = sorted(now) == sorted(before) if isinstance(self.held, set) else now == before
        return [] if same else [self._named("")]

    def _named(self, key: str) -> str:
        attribute = key if self.name in ("", *_TABLES) else self.name
        return f"{self.module}.{attribute}".lstrip(".")

    def restore(self) -> None:
        """Put back what was there."""
        self.held.clear()
        if isinstance(self.held, dict | set):
            self.held.update(self.before)
        else:
            self.held.extend(self.before)


class Memory:
    """What all modules of a network hold, and the versions of its tensors, when this is made."""

    def __init__(self, root: nn.Module) -> None:
        seen: set[int] = set()
        self._holders = [
            holder for path, part in root.named_modules() for holder in _holders(path, "", vars(part), seen, _DEPTH)
        ]
        self._versions = [(tensor, tensor._version) for tensor in (*root.parameters(), *root.buffers())]

    def restored(self) -> list[str]:
        """Names of what has changed since, all of which is put back but the values of tensors."""
        found: set[str] = set()
        for holder in self._holders:
            if changed := holder.changed():
                found.update(changed)
                holder.restore()
        found.update("a parameter or buffer" for tensor, version in self._versions if tensor._version != version)
        return sorted(found)


def _holders(module: str, name: str, value: Any, seen: set[int], depth: int) -> Iterator[_Holder]:
    """A value that can be changed in place, and those in it."""
    if depth < 0 or id(value) in seen:
        return
    if isinstance(value, dict | list | set | deque):
        seen.add(id(value))
        yield _Holder(module, name, value, value.copy())
        inner = value.items() if isinstance(value, dict) else (("", entry) for entry in value)
        for key, entry in list(inner):
            yield from _holders(module, name or str(key), entry, seen, depth - bool(name))
    elif isinstance(value, tuple):
        for entry in value:
            yield from _holders(module, name, entry, seen, depth - 1)
    elif isinstance(attributes := getattr(value, "__dict__", None), dict) and not isinstance(value, _WHOLE):
        yield from _holders(module, name, attributes, seen, depth)
