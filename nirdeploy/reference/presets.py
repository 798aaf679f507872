"""Named conventions: what each library makes of a NIR file, and what that was held against.

Sources: the libraries' own code, run or read, at norse 1.1.0, snnTorch 1.0.0, sinabs 3.1.3, SpikingJelly 2.0.0,
rockpool 3.1.0, spyx 1.0.0, nengo 4.1.0, lava-nc 0.10.0 and py-spinnaker2's s2_nir.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nirdeploy.errors import ConventionError
from nirdeploy.names import suggest
from nirdeploy.reference.convention import Convention

__all__ = ["PRESETS", "Preset", "convention"]


@dataclass(frozen=True)
class Preset:
    """A named convention.

    Attributes:
        fields: what differs from `Convention`'s defaults.
        verified_against: published traces, the library run live, or documentation only.
        limits: what of the library it does not follow.
    """

    fields: Mapping[str, Any]
    verified_against: str
    limits: str = ""
    goldens: tuple[str, ...] = field(default=(), compare=False)


_TRACES = "published traces of the NIR paper"

PRESETS: Mapping[str, Preset] = {
    "nir": Preset({}, "definition: forward Euler of NIR's equations, reset to v_reset"),
    "norse": Preset(
        {
            "reset": "zero",
            "if_gain": "r",
            "feedback_start": "zero",
            "v_start": "v_leak",
            # norse leaves r out for these two, and uses it for CubaLIF
            "overrides": {"LIF": {"use_r": False}, "IF": {"use_r": False}},
        },
        f"{_TRACES} (LIF: no spike differs, v within 1e-6 of the threshold; recurrent Braille network: none of 9,728 "
        "bits); norse 1.1.0 run live on its own import of LIF, IF, CubaLIF and recurrent graphs",
        "CubaLIF with v_leak other than 0: norse lets the synapse leak to v_leak, too",
        ("LIF", "LIF_r", "IF", "IF_r", "CubaLIF", "CubaLIF_r", "LIF_recurrent", "CubaLIF_recurrent"),
    ),
    "snntorch": Preset(
        {"reset": "zero", "if_gain": "r", "v_unit": "gain"},
        f"{_TRACES} (LIF: no spike differs, v within 1e-6 of the threshold; recurrent Braille network: none of 9,728 "
        "bits); snnTorch 1.0.0 run live: its import of LIF and CubaLIF, Leaky with reset_delay=False",
        "layers as they are by default have reset_delay=True: reset_time='next_step', and "
        "late_reset='after_update' for Synaptic and RLeaky that reset to zero. snnTorch's own import makes IF a neuron "
        "that leaks, divides all thresholds of a layer by its smallest gain, and wires recurrence wrongly",
        ("LIF", "LIF_r1", "CubaLIF", "CubaLIF_w", "IF_leaky", "leaky_zero_same"),
    ),
    "sinabs": Preset(
        {
            "integrator": "exponential",
            "gain": "unit",
            "use_r": False,
            "reset": "subtract",
            "crossing": "inclusive",
            "spikes_per_step": "many",
            "if_gain": "r",
            "feedback_start": "zero",
            "overrides": {"IF": {"v_min": "-threshold"}},
        },
        "published trace lif_sinabs.csv of the NIR paper (with gain='euler', use_r=True), bit for bit; sinabs 3.1.3 "
        "run live on its own import of LIF, IF and a recurrent graph, and on four networks for the integer IF",
        "sinabs reads tau in steps, so its own file has tau / dt; layers built with norm_input=True have gain='decay'; "
        "LIF(tau_syn=...) has synapse_gain='decayed'; its import drops CubaLIF",
        ("LIF", "LIF_r", "IF", "IF_r", "LIF_recurrent"),
    ),
    "rockpool": Preset(
        {
            "integrator": "exponential",
            "gain": "unit",
            "synapse_gain": "decayed",
            "use_r": False,
            "reset": "subtract",
            "crossing": "inclusive",
            "spikes_per_step": "many",
            "if_gain": "r",
            "feedback_start": "zero",
        },
        "rockpool 3.1.0 run live: LIFNeuronTorch, and LIFTorch as its import of CubaLIF makes it",
        "rockpool guesses dt from tau / (1 + r), and adds v_leak to v at every step; its import of LIF fails and that "
        "of IF is refused",
        ("LIF", "CubaLIF"),
    ),
    "spyx": Preset(
        {
            "gain": "unit",
            "use_r": False,
            "reset": "subtract",
            "fires": "before_update",
            "if_gain": "r",
            "overrides": {"CubaLIF": {"late_reset": "before_update"}},
        },
        "spyx 1.0.0 run live on its own import of LIF, IF and CubaLIF",
        "recurrence: spyx drops the recurrent bias and feeds back the spikes of the same step",
        ("LIF", "LIF_r", "IF", "CubaLIF"),
    ),
    "lava": Preset(
        {"reset": "zero", "if_gain": "r", "population_delay": 1},
        f"{_TRACES} (lif_lava_cpu_float.csv: no spike differs, v within 1e-6 of the threshold); Lava 0.10 run live in "
        "floating point: LIF, IF, CubaLIF",
        "floating point; Loihi's integers are those of the targets loihi1 and loihi2",
        ("LIF", "IF", "CubaLIF"),
    ),
    "spinnaker2": Preset(
        {
            "integrator": "exponential",
            "gain": "decay",
            "reset": "subtract",
            "if_gain": "r",
            "v_unit": "gain",
            "population_delay": 1,
        },
        "documentation only: py-spinnaker2's conversion, read; it cannot be installed from a package index",
        "integrator, reset and conn_delay are options of its conversion; the bias of an Affine before CubaLIF goes "
        "straight into its membrane there",
    ),
    "nengo": Preset(
        {
            "integrator": "exponential",
            "gain": "decay",
            "synapse_integrator": "euler",
            "reset": "zero",
            "if_gain": "r",
            "v_unit": "threshold",
            "overrides": {"LIF": {"v_min": 0.0}, "CubaLIF": {"v_min": 0.0}},
        },
        "nengo 4.1.0 run live, layers mapped as for the NIR paper, tau_ref=0: LIF and IF; CubaLIF a step later",
        "a Lowpass synapse is one step late in nengo; with tau_ref=0 what is left of a step after a spike is lost, so "
        "it is not integrator='exact'",
        ("LIF", "IF"),
    ),
    "exact": Preset(
        {"integrator": "exact", "gain": "decay"},
        f"{_TRACES} (lif_exact.csv: no spike differs, v within 1e-6 of the threshold)",
        "CubaLIF is refused: a crossing behind a synapse has no closed form",
    ),
    "spikingjelly": Preset(
        {"crossing": "inclusive", "feedback_start": "zero", "v_start": "v_reset"},
        "SpikingJelly 2.0.0 run live on its own import of LIF, IF, CubaLIF and recurrent graphs",
        "SpikingJelly refuses an r other than 1/dt (IF), 1 or tau/dt (LIF) and tau_mem/dt (CubaLIF)",
        ("LIF", "LIF_r", "IF", "IF_reset", "CubaLIF", "LIF_recurrent", "CubaLIF_recurrent"),
    ),
}


def convention(preset: str = "nir", dt: float | None = None, **fields: Any) -> Convention:
    """A preset with changes.

    Args:
        preset: one of `PRESETS`.
        dt: step in seconds.
        **fields: any field of `Convention`, replacing the preset's.

    Returns:
        The convention; `preset` in it is the name.

    Raises:
        ConventionError: an unknown preset, field or value; the message suggests the nearest name.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConventionError(f"unknown convention preset {preset!r}", remedy=suggest(str(preset), PRESETS))
    for name in ("preset", "dt"):
        if name in fields:
            raise ConventionError(f"{name!r} is no field to change", remedy="Give preset and dt by themselves.")
    return Convention.from_dict({**PRESETS[preset].fields, **fields, "dt": dt, "preset": preset})
