"""Placement: populations in tiles, tiles on cores, so that everything fits and few spikes leave their core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import PlacementError, QuantizationError
from nirdeploy.placement import Placement, Usage, require_options
from nirdeploy.quantization import Quantized
from nirdeploy_loihi.assign import assign
from nirdeploy_loihi.cpsat import require_solver, solve
from nirdeploy_loihi.cutting import Cut, cut_program
from nirdeploy_loihi.layout import Layout
from nirdeploy_loihi.place_options import OPTIONS, Options, read_options
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.reach import Fan
from nirdeploy_loihi.resources import REMEDIES, Tile, tile_of
from nirdeploy_loihi.traffic import activity_of, bundles, messages

__all__ = ["Core", "core_contents", "place_network", "place_program"]

Integers = NDArray[np.int64]
# what runs in Lava on the CPU and takes a core's room all the same; whoever reads such a file is warned
_RUN_ELSEWHERE = ("odd_weights", "zero_weights")


def place_network(quantized: Quantized, **options: Any) -> Placement:
    """Cores of every population of a quantised network; as `place_program`.

    Raises:
        PlacementError, UnavailableError: as `place_program`.
        QuantizationError: integers that no register or synapse of the chip holds, e.g. changed by hand.
        UnsupportedError, GraphError, ConventionError: as `lower_program.program_of`.
    """
    from nirdeploy_loihi.integer_rules import integer_findings
    from nirdeploy_loihi.lower_program import program_of

    require_options(options, OPTIONS)
    program = program_of(quantized)
    found = integer_findings(program, quantized.target)
    wrong = [f for f in found if f.severity == "error" and f.code not in _RUN_ELSEWHERE]
    if wrong:
        more = f" ({len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise QuantizationError(f"{wrong[0].problem}{more}", node=wrong[0].node, remedy=wrong[0].remedy)
    return place_program(program, quantized, **options)


def place_program(program: Program, quantized: Quantized, **options: Any) -> Placement:
    """Cores of every population.

    Each population is cut into the fewest blocks that fit a core each by neurons, synaptic memory, input axons (source
    neurons with a synapse on the core), output axons (a neuron takes one for every core it reaches) and
    configurations; among tilings of as many blocks into that which fewest spikes must reach. Blocks of different
    populations then share cores where they fit together. What is minimised are messages: a spike costs one for
    every core it must be sent to other than its own (`Quantized.activity`; 1 a neuron and step where nothing was
    measured); Input and always-on axons are outside the chip. Resources the target's table leaves out are not
    checked. Spikes that leave the chip through an Output are not counted.

    Args:
        program: the network of integers.
        quantized: where it comes from: its target and activity.
        **options: `cores`, {population: [core, ...]}, kept as they are and checked; `solver`, 'greedy' (default) or
            'cp-sat' (OR-tools, starting from the greedy assignment); `one_population_per_core`, default False;
            `refractory`, {population: steps}.

    Returns:
        tiles and cores; options 'traffic' (messages a step, with those of one tile a core for comparison) and
        'refractory'.

    Raises:
        PlacementError: an option that cannot be used; a population that does not fit, or too few cores: naming
            resource, amount, limit and remedy.
        UnavailableError: 'cp-sat' without OR-tools.
    """
    require_options(options, OPTIONS)
    table = quantized.target.table
    count = int(table["cores"]["count"])
    chosen = read_options(options, program, table)
    if chosen.solver == "cp-sat":
        require_solver()
    program = replace(
        program,
        populations=tuple(
            replace(p, refractory=chosen.refractory.get(p.name, p.refractory)) for p in program.populations
        ),
    )
    activity = activity_of(program, quantized.activity)
    cuts = cut_program(program, table, activity, chosen.cores)
    tiles = [tile for cut in cuts.values() for tile in cut.tiles]
    layout = Layout(tiles, bundles(program, tiles, activity), table, separate=chosen.separate)
    fixed = _fixed(tiles, chosen.cores)
    core_of = assign(layout, fixed, count)
    proved = False
    if chosen.solver == "cp-sat":
        core_of, proved = solve(layout, fixed, count, core_of)
    _require_fit(layout, core_of, fixed)
    if core_of is None:
        raise _too_few(cuts, chosen, count)
    return Placement(
        cores={
            name: tuple(int(c) for t, c in zip(tiles, core_of, strict=True) if t.population == name) for name in cuts
        },
        usage=tuple(_usage(layout, core_of)),
        options={
            **({"refractory": dict(chosen.refractory)} if chosen.refractory else {}),
            "traffic": _traffic(layout, core_of, chosen, activity, quantized, proved),
        },
        tiles={name: tuple(tile.block for tile in cut.tiles) for name, cut in cuts.items()},
    )


def _fixed(tiles: Sequence[Tile], given: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
    """Tile -> core, of the populations whose cores the user chose."""
    left = {name: iter(cores) for name, cores in given.items()}
    return {number: next(left[tile.population]) for number, tile in enumerate(tiles) if tile.population in left}


def _usage(layout: Layout, core_of: Integers) -> Iterator[Usage]:
    """What each tile adds to its core, in the tiles' order, so that the rows of a core add up to what it holds.

    Axons and configurations that a tile shares with an earlier one of its core are in the earlier one's row.
    """
    degree = layout.degree(core_of)
    members = layout.members(core_of)
    for number, tile in enumerate(layout.tiles):
        core = int(core_of[number])
        earlier = [other for other in members[core] if other < number]
        found = layout.resources([*earlier, number], degree)
        before = layout.resources(earlier, degree) if earlier else {}
        for resource, used in found.items():
            if resource not in layout.limits:
                continue
            added = used - before.get(resource, 0)
            if resource == "synapse_bits":  # target indices are as long as the core's last neuron needs
                added = tile.synapse_bits[layout.index(members[core])]
            yield Usage(core, tile.population, resource, added, int(layout.limits[resource]))


def _traffic(
    layout: Layout, core_of: Integers, chosen: Options, activity: Mapping[str, Any], quantized: Quantized, proved: bool
) -> dict[str, Any]:
    alone = messages(layout.bundles, np.arange(len(layout.tiles), dtype=np.int64))
    return {
        **messages(layout.bundles, core_of),
        "one_tile_a_core": alone["messages_per_step"],
        "measured": sorted(name for name in activity if np.size(quantized.activity.get(name, ()))),
        "solver": chosen.solver,
        "proved_least": proved,
    }


# ---------------------------------------------------------------- why not


def _require_fit(layout: Layout, core_of: Integers | None, fixed: Mapping[int, int]) -> None:
    """Refuse tiles that the user put together and that do not fit together."""
    if core_of is None:
        core_of = np.array([fixed.get(n, -1 - n) for n in range(len(layout.tiles))], dtype=np.int64)
        core_of[core_of < 0] += len(layout.tiles) + 1 + max(fixed.values(), default=0)
    found = layout.first_misfit(core_of)
    if found is None:
        return
    core, reason = found
    names = [layout.tiles[number].population for number in layout.members(core_of)[core]]
    together = f", which cores gives to {' and '.join(map(repr, names))} together" if len(names) > 1 else ""
    raise PlacementError(
        f"{reason} of core {core}{together}",
        node=names[0],
        remedy=REMEDIES.get(reason.resource, "Give them different cores."),
    )


def _too_few(cuts: Mapping[str, Cut], chosen: Options, count: int) -> PlacementError:
    def said(name: str, cut: Cut) -> str:
        return f"{name}: {len(cut.tiles)}" + (f", as {cut.bound} on fewer" if cut.bound else "")

    needed = sum(len(cut.tiles) for name, cut in cuts.items() if name not in chosen.cores)
    free = count - len({core for cores in chosen.cores.values() for core in cores})
    return PlacementError(
        f"the network takes {needed} cores ({'; '.join(said(*item) for item in cuts.items())}), {free} of {count} are "
        f"free{'' if chosen.separate else ', and too few of its tiles fit a core together'}",
        remedy="Make the largest population smaller"
        + (", or look for a packing with solver='cp-sat'." if chosen.solver == "greedy" else "."),
    )


# ---------------------------------------------------------------- what is where


@dataclass(frozen=True)
class Core:
    """What a core holds.

    Attributes:
        number: of the core.
        tiles: blocks of populations.
        resources: what they take together.
    """

    number: int
    tiles: tuple[Tile, ...]
    resources: Mapping[str, int]


def core_contents(program: Program, placement: Placement, table: Mapping[str, Any]) -> tuple[Core, ...]:
    """Every core in use, by number.

    Raises:
        PlacementError: a placement without the tiles of a population.
    """
    tiles: list[Tile] = []
    cores: list[int] = []
    for population in program.populations:
        if len(placement.tiles.get(population.name, ())) != len(placement.cores.get(population.name, ())) or (
            population.name not in placement.tiles
        ):
            raise PlacementError("the placement has no tiles of it", node=population.name, remedy="Place it again.")
        fans = [Fan(s, population.shape) for s in program.into(population.name)]
        tiles += [tile_of(population, fans, block, table) for block in placement.tiles[population.name]]
        cores += placement.cores[population.name]
    core_of = np.array(cores, dtype=np.int64)
    ones = {name: np.ones(size) for name, size in program.sizes.items()}
    layout = Layout(tiles, bundles(program, tiles, ones), table, separate=False)
    degree = layout.degree(core_of)
    return tuple(
        Core(core, tuple(tiles[n] for n in members), layout.resources(members, degree))
        for core, members in sorted(layout.members(core_of).items())
    )
