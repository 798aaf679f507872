"""The command line: the same verbs as the library.

Exit codes: 0 fine, 1 findings or a mismatch, 2 wrong usage or something that is not there.
"""

from __future__ import annotations

import sys

try:
    import atexit
    import contextlib
    import os
    import signal
    import warnings
    from typing import Annotated, Any

    import typer

    from nirdeploy.commands import datasets, networks, states, tools
    from nirdeploy.commands.shared import CTRL_C, app, complain, print_report, say
    from nirdeploy.errors import (
        CheckError,
        NirdeployError,
        PlacementError,
        QuantizationWarning,
        StabilityWarning,
    )
    from nirdeploy.version import __version__
except KeyboardInterrupt:  # Ctrl-C while the imports run
    if sys.stderr is not None:
        sys.stderr.write("nirdeploy: interrupted\n")
    raise SystemExit(130) from None

# in the order of `nirdeploy --help`, as a user comes to them; groups stand behind
_VERBS = ("demo", "targets", "check", "deploy", "run", "compare", "ladder", "evaluate", "doctor")
app.registered_commands.sort(key=lambda command: _VERBS.index(command.callback.__name__ if command.callback else ""))

_PYTHON_S_OWN = warnings.showwarning

__all__ = ["app", "datasets", "main", "networks", "states", "tools"]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Options that stand before a verb."""
    if version:
        say(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: every error becomes one line and an exit code."""
    _open_streams()
    before = signal.signal(signal.SIGINT, _interrupt)
    # once the interpreter is leaving there is nothing more to interrupt
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _code()
    except KeyboardInterrupt:
        code = complain("interrupted", 130)
    finally:
        signal.signal(signal.SIGINT, before)
    sys.exit(code)


def _code() -> int:
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except CheckError as error:
        print_report(error.report)
        return complain(f"{error.report.target} cannot hold this graph", 1)
    except PlacementError as error:
        return complain(str(error), 1)
    except NirdeployError as error:
        return complain(str(error), 2)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.Abort:
        return complain("interrupted", 130)
    except BrokenPipeError:
        _forget_output()
        return 2
    except Exception as error:
        if os.environ.get("NIRDEPLOY_DEBUG"):
            raise
        return _unexpected(error)
    return int(code)


def _warn(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
    """Ours in one line as errors are, others as Python has them."""
    if issubclass(category, QuantizationWarning | StabilityWarning):
        complain(f"warning: {message}", 0)
    else:
        _PYTHON_S_OWN(message, category, *where, **rest)


def _interrupt(*_: Any) -> None:
    """Ctrl-C: unwind where a file is half written, else leave at once, as libraries swallow KeyboardInterrupt."""
    files = sys.modules.get("nirdeploy.files")
    if files is not None and files.UNFINISHED:
        if CTRL_C["awaited"] and not CTRL_C["came"]:
            CTRL_C["came"] = True  # the second time it is raised here
            return
        raise KeyboardInterrupt
    if sys.stderr is not None:
        shown = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides the cursor
        os.write(2, shown + b"nirdeploy: interrupted\n")
    os._exit(130)


def _open_streams() -> None:
    """Give closed standard streams (`>&-`) the null device, before a data file gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _forget_output() -> None:
    """The reader of our output has left or its disk is full: leave nothing to flush."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(error: Exception) -> int:
    show = getattr(error, "show", None)
    if callable(show):  # click's own usage errors print themselves
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError):
        _forget_output()
        return complain(str(error), 2)
    if isinstance(error, MemoryError):
        return complain("out of memory; use a smaller raster or fewer recorded nodes", 2)
    return complain(
        f"internal error, please report it: {type(error).__name__}: {error} (NIRDEPLOY_DEBUG=1 shows where)",
        2,
    )
