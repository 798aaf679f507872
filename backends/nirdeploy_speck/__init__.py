"""SynSense Speck and DYNAP-CNN: rules, quantisation, placement and an integer emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nir

from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, TrainingGrid
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target, load_table
from nirdeploy.trajectory import Trajectory

if TYPE_CHECKING:
    from nirdeploy.comparison.ladder import Step

__all__ = ["BACKEND", "SpeckBackend"]


@cache
def _targets() -> dict[str, Target]:
    folder = Path(__file__).parent / "targets"
    found = [load_table(path, "speck") for path in sorted(folder.glob("*.toml"))]
    return {target.name: target for target in found}


@dataclass(frozen=True)
class SpeckBackend:
    """The stages of nirdeploy for the Speck family; each is its module's function."""

    name: str = "speck"
    quantizers: tuple[str, ...] = ("calibrated", "max", "exact")

    def targets(self) -> Mapping[str, Target]:
        """The chips, by name."""
        return _targets()

    def check(self, graph: nir.NIRGraph, target: Target, convention: Convention) -> Iterable[Finding]:
        """Findings of `rules`."""
        from nirdeploy_speck import rules

        return rules.findings(graph, target, convention)

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
        """Integers of every layer; 2 to 8 bits a weight."""
        from nirdeploy_speck import quantize as stage

        return stage.quantize(
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
        from nirdeploy_speck import grid as stage

        return stage.training_grid(graph, target, convention, weight_bits=weight_bits, calibration=calibration)

    def differing(
        self, quantized: Quantized, grid: TrainingGrid, integers: Mapping[str, Mapping[str, Any]]
    ) -> str | None:
        """The first weight node whose integers are not those that were simulated, or None."""
        from nirdeploy_speck import grid as stage

        return stage.differing(quantized, integers)

    def place(self, quantized: Quantized, **options: Any) -> Placement:
        """Cores for every layer; options `avoid_cores`, `cores`, `dvs` and `readout`, as `place.place` says."""
        from nirdeploy_speck import place as stage

        return stage.place(quantized, **options)

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
        """Run a raster, or events, on the emulator, in sinabs ('simulator') or on a device ('chip').

        Options of the emulator are those of its mode 'event' (`options.EventOptions`); it alone tells its progress.
        """
        if on == "chip":
            from nirdeploy_speck import samna_runner

            return samna_runner.run(
                quantized, placement, raster, mode=mode, record=record, nodes=nodes, options=options
            )
        if on == "simulator":
            from nirdeploy_speck import simulator

            return simulator.run(quantized, placement, raster, mode=mode, record=record, nodes=nodes, options=options)
        from nirdeploy_speck import emulator

        return emulator.run(
            quantized,
            placement,
            raster,
            on=on,
            mode=mode,
            record=record,
            nodes=nodes,
            options=options,
            progress=progress,
        )

    def ladder_steps(self, quantized: Quantized, placement: Placement) -> Sequence[Step]:
        """The rungs from a reference run to the chip."""
        from nirdeploy_speck import ladder

        return ladder.ladder_steps(quantized, placement)

    def chip_configuration(self, quantized: Quantized, placement: Placement) -> dict[str, Any]:
        """Every field the chip is given."""
        from nirdeploy_speck import config

        return config.chip_configuration(quantized, placement)


BACKEND = SpeckBackend()
