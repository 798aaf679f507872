"""A program as a sequence of layers, which is all that lava-dl's format knows."""

from __future__ import annotations

from dataclasses import dataclass

from nirdeploy.errors import UnsupportedError
from nirdeploy_loihi.program import Compartments, Program, Synapses

__all__ = ["Link", "sequence"]

_OTHERS = "Run it on the emulator or the simulator, which take the whole network."


@dataclass(frozen=True)
class Link:
    """One layer of the sequence.

    Attributes:
        population: its neurons.
        synapses: from the layer before.
        loop: from the population to itself, or None.
    """

    population: Compartments
    synapses: Synapses
    loop: Synapses | None


def sequence(program: Program) -> list[Link]:
    """The populations in a row, each fed by the one before and by itself at most.

    Raises:
        UnsupportedError: skips, branches, larger loops, constant currents, an Output that is not the last layer's
            spikes, or several; naming node and reason.
    """
    _require_output(program)
    order = {name: number for number, name in enumerate((program.input, *(p.name for p in program.populations)))}
    for axons in program.always_on:
        target = next(s.target for s in program.synapses if s.source == axons.name)
        raise UnsupportedError(
            f"a constant current comes by {axons.count} always-on axons, which the format does not have",
            node=target,
            remedy="Use a bias behind which there is no synaptic filter, or none.",
        )
    links: list[Link] = []
    before = program.input
    for population in program.populations:
        into = program.into(population.name)
        for synapses in into:
            if order[synapses.source] > order[population.name]:
                raise UnsupportedError(
                    f"{synapses.source!r} feeds back to it in a loop over several populations; the format has loops "
                    "from a population to itself alone",
                    node=population.name,
                    remedy=_OTHERS,
                )
        links.append(_link(population, into, before))
        before = population.name
    if program.outputs[0].source != before:
        raise UnsupportedError(
            f"the Output shows {program.outputs[0].source!r}, the format shows its last layer, {before!r}",
            node=program.outputs[0].name,
            remedy="Remove what follows the population shown.",
        )
    return links


def _require_output(program: Program) -> None:
    if len(program.outputs) != 1:
        names = ", ".join(repr(shown.name) for shown in program.outputs)
        raise UnsupportedError(f"{len(program.outputs)} Outputs ({names}); the format has one", remedy=_OTHERS)
    shown = program.outputs[0]
    if shown.variable != "spikes":
        raise UnsupportedError(
            f"it only integrates and is shown by {shown.name!r}; the format shows spikes",
            node=shown.source,
            remedy="Let it spike, or read v on the emulator or the simulator.",
        )


def _link(population: Compartments, into: tuple[Synapses, ...], before: str) -> Link:
    loops = [s for s in into if s.source == population.name]
    others = [s for s in into if s.source != population.name]
    if len(others) != 1:
        names = ", ".join(repr(s.source) for s in others)
        raise UnsupportedError(
            f"{len(others)} connections lead into it, from {names}; a layer of the format has one",
            node=population.name,
            remedy=_OTHERS,
        )
    if others[0].source != before:
        raise UnsupportedError(
            f"it is fed by {others[0].source!r} past {before!r}; the format is a sequence without branches",
            node=population.name,
            remedy=_OTHERS,
        )
    if len(loops) > 1 or any(s.window or s.delay.any() for s in loops):
        longest = max(int(s.delay.max()) for s in loops)
        raise UnsupportedError(
            f"it feeds itself by {len(loops)} connections with delays up to {longest} steps; the format has one dense "
            "matrix without delay",
            node=population.name,
            remedy=_OTHERS,
        )
    return Link(population, others[0], loops[0] if loops else None)
