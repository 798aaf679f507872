"""How much of the accuracy that quantisation to few bits loses does quantisation-aware training win back?

Run `python benchmarks/quantization_aware.py [--target loihi2] [--bits 4 3] [--channels 8 16] [--seeds 3] [--epochs 6]`.
For each seed the demo's network is trained on digits for 16 epochs and judged on 360 held-out images, in percent:

- float: the reference.
- float+: trained on as floats for as many epochs as the last column, so that its gain is not put down to more training.
- rounded, calibrated: its weights rounded after training at the scale that fills their bits, and by the calibrated
  quantiser on 96 training images.
- aware: trained on with `nd.quantization_aware`, from the steps and thresholds of 'rounded', or of 'calibrated'.

The last three run in the emulator of the target (a Speck 2f unless one is named).
"won back" is (aware - calibrated) / (float - calibrated).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import nirdeploy as nd
from nirdeploy.demonstration import Digits, DigitsNetwork, digits
from nirdeploy.reference.threads import one_thread

CALIBRATION = 96
BATCH = 48
COLUMNS = ("float", "float+", "rounded", "calibrated", "aware")


def train_on(network: Any, data: Digits, epochs: int, seed: int, rate: float) -> None:
    """Epochs with cross-entropy of the output counts and Adam, its rate falling to 0."""
    torch.manual_seed(seed)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=rate)
    batches = -(-len(data.train_labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    raster, labels = torch.tensor(data.train, dtype=torch.float32), torch.tensor(data.train_labels)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).tensor_split(batches):
            counts = network.sequence(raster[:, chosen])[0].sum(0)
            loss = nn.functional.cross_entropy(0.6 * counts, labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def right(data: Digits, run: Callable[[Any], Any]) -> int:
    """Held-out images whose class fires most."""
    return int((np.asarray(run(data.test).outputs).sum(0).argmax(1) == data.test_labels).sum())


def trained_floats(data: Digits, channels: tuple[int, int], seed: int) -> Any:
    """The demo's network, with that many channels, trained from scratch."""
    torch.manual_seed(seed)
    module = floats(nd.torch_to_nir(DigitsNetwork(channels), input_shape=(1, 8, 8)))
    train_on(module, data, 16, seed, 1e-2)
    return nd.torch_to_nir(module)


def floats(graph: Any) -> Any:
    """The graph as a module of which weights alone train; the layers of this network have no biases."""
    module = nd.nir_to_torch(graph)
    module.requires_grad_(requires_grad=False)
    for name in ("conv1", "conv2", "fc"):
        module.get((name,)).weight.requires_grad_()
    return module


def experiment(
    data: Digits, channels: tuple[int, int], bits: int, seed: int, epochs: int, start: str, target: str = "speck2f"
) -> list[int]:
    """Images that each of `COLUMNS` gets right."""
    graph = trained_floats(data, channels, seed)
    calibration = data.train[:, :CALIBRATION]
    longer = floats(graph)
    train_on(longer, data, epochs, seed, 2e-3)
    rounded = nd.quantization_aware(graph, target, bits=bits).graph()
    after = nd.deploy(graph, target, calibration=calibration, weight_bits=bits)
    at = calibration if start == "calibrated" else None
    aware = nd.quantization_aware(graph, target, bits=bits, calibration=at)
    train_on(aware, data, epochs, seed, 2e-3)
    trained = aware.graph()
    deployment = nd.deploy(trained, target, quantizer="exact", weight_bits=bits)
    # of some chips every connection costs a step, which the silent steps at the end leave room for
    if not np.array_equal(deployment.run(data.test).outputs.sum(0), nd.run(trained, data.test).outputs.sum(0)):
        raise SystemExit("the emulator's spikes are not those that were trained")
    on_chip = nd.deploy(rounded, target, quantizer="exact", weight_bits=bits)
    runs = (
        lambda x: nd.run(graph, x),
        lambda x: nd.run(nd.torch_to_nir(longer), x),
        on_chip.run,
        after.run,
        deployment.run,
    )
    return [right(data, run) for run in runs]


def main() -> None:
    """Print a row a seed, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--channels", type=int, nargs=2, default=[8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--start", choices=("rounded", "calibrated"), default="rounded")
    parser.add_argument("--target", default="speck2f")
    asked = parser.parse_args()
    data = digits()
    images = len(data.test_labels)
    print(f"{'bits':>4} {'seed':>4}", *(f"{name:>10}" for name in COLUMNS), f"{'won back':>9} {'s':>6}")
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", nd.errors.QuantizationWarning)
        for bits in asked.bits:
            total = np.zeros(len(COLUMNS), np.int64)
            for seed in range(asked.seeds):
                started = time.perf_counter()
                found = np.array(
                    experiment(data, tuple(asked.channels), bits, seed, asked.epochs, asked.start, asked.target)
                )
                total += found
                print(row(bits, str(seed), found, images, time.perf_counter() - started), flush=True)
            print(row(bits, "all", total, images * asked.seeds, 0.0), flush=True)


def row(bits: int, seed: str, found: Any, images: int, seconds: float) -> str:
    """Accuracies in percent, and the share of what was lost that training won back."""
    before, _, _, after, aware = found
    lost = before - after
    share = f"{(aware - after) / lost:9.2f}" if lost > 0 else f"{'none lost':>9}"
    return f"{bits:4d} {seed:>4} " + " ".join(f"{100 * n / images:10.2f}" for n in found) + f" {share} {seconds:6.1f}"


if __name__ == "__main__":
    main()
