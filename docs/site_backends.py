"""Pages of the options that each backend takes, from the tables and dataclasses that check them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from generated import table
from nirdeploy_loihi import place_options
from nirdeploy_speck import dvs, options, place, readout, samna_runner

__all__ = ["TITLES", "backend_pages"]

TITLES = {"speck": "Speck and DYNAP-CNN", "loihi": "Loihi"}


def backend_pages() -> dict[str, str]:
    """One page a backend: what its options are at every stage."""
    return {"api/speck.md": _speck(), "api/loihi.md": _loihi()}


def _speck() -> str:
    event = _fields(options.EventOptions, {"lanes": None})
    lanes = _fields(options.Lanes, {field: name for name, field in options.LANES.items()})
    parts = [
        _head("speck", "speck.md"),
        _stage("Placement", 'nd.deploy(graph, "speck2f", calibration=data, cores={"if1": [3, 4]})'),
        _expected(place.OPTIONS),
        "Entries of `dvs`, the layer before the cores:\n",
        _expected(dvs.DVS_OPTIONS),
        "Entries of `readout`, the layer behind them:\n",
        _expected(readout.READOUT_OPTIONS),
        _entry("nirdeploy_speck.place.place"),
        _stage("Emulator", 'deployment.run(raster, mode="event", leak_clock_hz=1000)'),
        "`mode` is `'step'` (frames, the default) or `'event'`; these are options of the latter:\n",
        event,
        "And of `core_model='two_lanes'`, the two service lanes of cores 0 and 1:\n",
        lanes,
        _entry("nirdeploy_speck.emulator.run"),
        _stage("sinabs", 'deployment.run(raster, on="simulator", timeout=600)'),
        _entry("nirdeploy_speck.simulator.run"),
        _stage("Device", 'deployment.run(raster, on="chip", leak_clock_hz=1000)'),
        _fields(samna_runner.ChipOptions, {}),
        _entry("nirdeploy_speck.samna_runner.run"),
    ]
    return "\n".join(parts)


def _loihi() -> str:
    parts = [
        _head("loihi", "loihi.md"),
        _stage("Placement", 'nd.deploy(graph, "loihi2", calibration=data, solver="cp-sat")'),
        _expected(place_options.OPTIONS),
        _entry("nirdeploy_loihi.place.place_program"),
        _stage("Emulator", 'deployment.run(raster, read_out="chip")'),
        _entry("nirdeploy_loihi.emulator.emulate"),
        _stage("Lava", 'deployment.run(raster, on="simulator", timeout=600)'),
        _entry("nirdeploy_loihi.simulator.run"),
        _stage("Board", 'deployment.run(raster, on="chip", nodes=["if1"], partition="loihi2")'),
        _entry("nirdeploy_loihi.lava_runner.run"),
        _stage("Files of lava-dl", 'deployment = nirdeploy_loihi.netx.read("network.net")'),
        _entry("nirdeploy_loihi.netx.read"),
        _entry("nirdeploy_loihi.netx.write"),
    ]
    return "\n".join(parts)


def _head(name: str, guide: str) -> str:
    title = TITLES[name]
    return f"# Options of {title}\n\nThe [guide](../{guide}) says what they are good for.\n"


def _stage(title: str, call: str) -> str:
    return f"## {title}\n\n```python\n{call}\n```\n"


def _entry(path: str) -> str:
    return f"::: {path}\n    options:\n      heading_level: 3\n"


def _expected(known: Mapping[str, str]) -> str:
    """A table of options whose values are described in words."""
    return table([("option", "value"), ("---",) * 2, *((f"`{name}`", value) for name, value in known.items())])


def _fields(kind: Any, names: Mapping[str, str | None]) -> str:
    """A table of a dataclass's fields: option, default, what its docstring says.

    Args:
        kind: the dataclass; its docstring has the section `Attributes`.
        names: field -> name of the option where it has another; None: none.
    """
    section = (inspect.getdoc(kind) or "").split("Attributes:\n", 1)[1]
    said = {name: " ".join(text.split()) for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.M)}
    rows = [("option", "default", ""), ("---",) * 3]
    for field in dataclasses.fields(kind):
        name = names.get(field.name, field.name)
        if name is not None:
            needed = field.default is dataclasses.MISSING
            rows.append((f"`{name}`", "required" if needed else f"`{field.default!r}`", said[field.name]))
    return table(rows)
