"""Intel Loihi 1 and 2: rules, quantisation, placement, an integer emulator, and lava-dl files (`netx`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import nir

from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, TrainingGrid
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target, load_table
from nirdeploy.trajectory import Trajectory
from nirdeploy_loihi import netx as netx

if TYPE_CHECKING:
    from nirdeploy.comparison.ladder import Step

__all__ = ["BACKEND", "LoihiBackend", "netx"]


@cache
def _targets() -> Mapping[str, Target]:
    tables = sorted((Path(__file__).parent / "targets").glob("*.toml"))
    found = [load_table(path, "loihi") for path in tables]
    return MappingProxyType({target.name: target for target in found})


@dataclass(frozen=True)
class LoihiBackend:
    """Backend of the Loihi chips; see `nirdeploy.backend.Backend` for the contract of each method."""

    name: str = "loihi"
    quantizers: tuple[str, ...] = ("calibrated", "max", "exact")

    def targets(self) -> Mapping[str, Target]:
        """loihi1 and loihi2, read from `targets/*.toml`."""
        return _targets()

    def check(self, graph: nir.NIRGraph, target: Target, convention: Convention) -> Iterable[Finding]:
        """Every limit the graph breaks; never raises for what it finds."""
        from nirdeploy_loihi.rules import findings

        return findings(graph, target, convention)

    def quantize(
        self,
        graph: nir.NIRGraph,
        target: Target,
        convention: Convention,
        *,
        quantizer: str,
        calibration: Any,
        weight_bits: int = 8,
    ) -> Quantized:
        """Integers of every layer, by 'calibrated', 'max' or 'exact'; 2 to 8 bits a weight."""
        from nirdeploy_loihi.quantize import quantize_graph

        return quantize_graph(
            graph, target, convention, quantizer=quantizer, calibration=calibration, weight_bits=weight_bits
        )

    def training_grid(
        self,
        graph: nir.NIRGraph,
        target: Target,
        convention: Convention,
        *,
        weight_bits: int | None,
        calibration: Any,
    ) -> TrainingGrid:
        """The values that parameters may have in training."""
        from nirdeploy_loihi import grid

        return grid.training_grid(graph, target, convention, weight_bits=weight_bits, calibration=calibration)

    def differing(
        self, quantized: Quantized, grid: TrainingGrid, integers: Mapping[str, Mapping[str, Any]]
    ) -> str | None:
        """The first node whose integers are not those that were simulated, or None."""
        from nirdeploy_loihi.simulated import differing

        return differing(quantized, grid, integers)

    def place(self, quantized: Quantized, **options: Any) -> Placement:
        """Cores for every population; option `cores`: {population: [core, ...]}."""
        from nirdeploy_loihi.place import place_network

        return place_network(quantized, **options)

    def run(
        self,
        quantized: Quantized,
        placement: Placement,
        raster: Any,
        *,
        on: str,
        mode: str | None,
        record: tuple[str, ...],
        nodes: tuple[str, ...] | None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Trajectory:
        """Run a raster of 0 and 1 on the emulator, in Lava ('simulator') or on a Loihi 2 ('chip').

        Options: of the emulator `read_out` ('registers', or 'chip' for v as the chip shows it), of Lava `timeout`, of
        the chip those of `lava_runner.run`. The emulator alone tells its progress.
        """
        from nirdeploy.errors import UnsupportedError
        from nirdeploy_loihi.lower_program import lowered

        if on not in ("emulator", "simulator", "chip"):
            raise UnsupportedError(f"on={on!r} is unknown", remedy="Use 'emulator', 'simulator' or 'chip'.")
        found = lowered(quantized, placement)
        if on == "emulator":
            from nirdeploy_loihi.emulator import emulate, require_emulator

            require_emulator(mode, options)
            return emulate(quantized, raster, record=record, nodes=nodes, found=found, progress=progress, **options)
        if on == "simulator":
            from nirdeploy_loihi import simulator

            return simulator.run(
                quantized, placement, raster, lowered=found, mode=mode, record=record, nodes=nodes, options=options
            )
        from nirdeploy_loihi import lava_runner

        return lava_runner.run(
            quantized, placement, raster, lowered=found, mode=mode, record=record, nodes=nodes, options=options
        )

    def ladder_steps(self, quantized: Quantized, placement: Placement) -> Sequence[Step]:
        """The rungs from a reference run to the chip."""
        from nirdeploy_loihi import ladder

        return ladder.ladder_steps(quantized, placement)

    def derived_files(self, quantized: Quantized, placement: Placement) -> Mapping[str, Callable[[Path], None]]:
        """`net.net` of a deployment folder, where lava-dl's format can hold the network."""
        return netx.derived_files(quantized, placement)

    def chip_configuration(self, quantized: Quantized, placement: Placement) -> dict[str, Any]:
        """Every field the chip is given, as plain JSON data."""
        from nirdeploy_loihi.config import configuration

        return configuration(quantized, placement)


BACKEND = LoihiBackend()
