"""Where a traced operation stands in the user's code, and refusals that say so."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx, nn

from nirdeploy.convert.frameworks.framework import hint
from nirdeploy.convert.instead import instead
from nirdeploy.errors import ConversionError

__all__ = ["located", "path_of", "refusal", "where"]

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def path_of(node: fx.Node) -> str:
    """The module whose forward an operation stands in."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed([str(entry[0]) for entry in stack.values()]), "") if stack else ""


def where(root: nn.Module, node: fx.Node) -> str:
    """Module and line of an operation, for people; `root` is the network."""
    path = path_of(node)
    frames = re.findall(r'File "(.+?)", line (\d+)', node.stack_trace or "")
    own = [f"{file}:{line}" for file, line in frames if not file.startswith(_NOT_THE_USERS)]
    return f"in module {path or type(root).__name__!r}" + (f", {own[-1]}" if own else "")


def refusal(root: nn.Module, node: fx.Node, why: str, remedy: str = "") -> ConversionError:
    """The error for an operation, with module and source line; a remedy of its own replaces the usual one."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    kind = {"call_method": "tensor method", "get_attr": "tensor attribute"}.get(node.op, "operation")
    place = where(root, node)
    usual = "Put it into a module of its own and map that with module_map, or remove it."
    known = instead(name)
    usual = f"{usual} {known}." if known else usual
    meant, hinted = hint(place) or ("", usual)
    text = f"{meant}{': ' if meant else ''}{kind} {name!r} {why} ({place})"
    return ConversionError(text, remedy=remedy or hinted, located=True)


def located(root: nn.Module, error: ConversionError, node: fx.Node) -> ConversionError:
    """An error that knows no place, with that of the operation."""
    return ConversionError(f"{error} ({where(root, node)})", located=True)
