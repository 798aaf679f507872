"""The page of the command line, from the application itself."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from generated import table

from nirdeploy.cli import app

__all__ = ["command_page", "verbs"]

_KINDS = {str: "text", int: "whole number", float: "number", Path: "path"}


def verbs() -> dict[str, Any]:
    """Every command by its words, e.g. 'env list'."""
    return dict(_walk(typer.main.get_command(app), ()))


def command_page() -> str:
    """Every verb: what it does, how it is called, arguments, options, example."""
    codes = "Exit code 0: fine; 1: findings or a mismatch; 2: wrong usage, or something that is not there."
    return "\n".join([f"# Command line\n\n{codes}\n", *(_verb(words, command) for words, command in verbs().items())])


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, below in command.commands.items():
        if hasattr(below, "commands"):
            yield from _walk(below, (*words, name))
        else:
            yield " ".join((*words, name)), below


def _verb(words: str, command: Any) -> str:
    types = typing.get_type_hints(command.callback)
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    usage = " ".join(["nirdeploy", words, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    rows = [("argument or option", "value", ""), ("---",) * 3]
    rows += [(f"`{_argument(p)}`", _kind(types[p.name], p), _help(p)) for p in arguments]
    rows += [(_option(p), _kind(types[p.name], p), _help(p)) for p in options]
    text = f"## nirdeploy {words}\n\n{_coded(command.help)}\n\n```text\n{usage}\n```\n\n{table(rows)}\n"
    return text + (f"{command.epilog}.\n" if command.epilog else "")


def _argument(parameter: Any) -> str:
    name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _kind(annotation: Any, parameter: Any) -> str:
    """A word for the values of an argument: path, number, text; nothing for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    inside = [annotation]
    while any(typing.get_args(one) for one in inside):
        inside = [part for one in inside for part in typing.get_args(one) or (one,)]
    (kind,) = {_KINDS[one] for one in inside if one is not type(None)}
    return kind


def _help(parameter: Any) -> str:
    text = _coded(parameter.help)
    if parameter.required and parameter.opts[0].startswith("-"):
        return f"{text} Required."
    if parameter.default is None or getattr(parameter, "is_flag", False):
        return text
    return f"{text} Default: `{parameter.default}`."


def _coded(text: str) -> str:
    """Options named in a sentence as code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"--\w[\w-]*", r"`\g<0>`", part) for part in parts[::2]]
    return "`".join(parts)
