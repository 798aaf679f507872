"""The demo: train a small spiking network on handwritten digits, put it on two chips, compare the states."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nirdeploy import files, io
from nirdeploy.comparison import Comparison, compare
from nirdeploy.comparison.ladder import Ladder, ladder
from nirdeploy.comparison.metrics import accuracy
from nirdeploy.comparison.report import Section, write_report
from nirdeploy.convert.trace import torch_to_nir
from nirdeploy.energy import estimate
from nirdeploy.errors import FileError, UnavailableError
from nirdeploy.pipeline import Deployment, deploy
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.executor import run
from nirdeploy.reference.neurons import IF
from nirdeploy.reference.threads import one_thread
from nirdeploy.trajectory import Trajectory

__all__ = ["CONVENTION", "Demo", "Digits", "DigitsNetwork", "Target", "demo", "digits", "encode", "train"]

ACTIVE_STEPS = 16
SILENT_STEPS = 4
TARGETS = ("speck2f", "loihi2")
CALIBRATION_IMAGES = 96
LADDER_IMAGES = 24
CONVENTION = Convention(dt=1e-3, reset="zero", if_gain="r")

Progress = Callable[[str, int], Any]


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits, split with a fixed seed: rasters [step, image, 1, 8, 8] and labels [image]."""

    train: NDArray[np.int32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.int32]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """What became of one chip."""

    deployment: Deployment
    trajectory: Trajectory
    comparison: Comparison
    accuracy: float
    seconds: float
    ladder: Ladder


@dataclass(frozen=True)
class Demo:
    """Everything the demo found."""

    data: Digits
    reference: Trajectory
    reference_accuracy: float
    targets: dict[str, Target]
    summary: dict[str, Any]
    folder: Path


def encode(images: NDArray[Any]) -> NDArray[np.int32]:
    """Images of intensity 0 to 16, [image, 8, 8], as spike rasters [step, image, 1, 8, 8].

    A pixel of intensity p fires p times, evenly spread over the first 16 steps: at step t if
    floor(((t + 1) p + 8) / 16) > floor((t p + 8) / 16). Four silent steps let the last spikes through chips
    where each connection costs one step.
    """
    step = np.arange(ACTIVE_STEPS + 1)[:, None, None, None]
    active = np.diff((step * images[None].astype(np.int64) + 8) // 16, axis=0)
    silent = np.zeros((SILENT_STEPS, *active.shape[1:]), dtype=np.int64)
    return np.concatenate([active, silent])[:, :, None].astype(np.int32)


def digits() -> Digits:
    """1,797 real 8x8 images: 1,437 to train on, 360 held out, classes in equal parts, seed 0.

    Raises:
        UnavailableError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UnavailableError("the demo needs scikit-learn", remedy="pip install 'nirdeploy[demo]'") from error
    loaded = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        loaded.images, loaded.target, test_size=360, random_state=0, stratify=loaded.target
    )
    return Digits(encode(train), train_labels, encode(test), test_labels)


class DigitsNetwork(nn.Module):
    """Two convolutions and a matrix, each followed by IF neurons; no bias, reset to zero, one spike a step."""

    def __init__(self, channels: tuple[int, int] = (8, 16)) -> None:
        super().__init__()
        first, second = channels
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.if1 = IF(convention=CONVENTION)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.if2 = IF(convention=CONVENTION)
        self.pool = nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(second * 16, 10, bias=False)
        self.if3 = IF(convention=CONVENTION)
        for neuron in (self.if1, self.if2, self.if3):
            neuron.requires_grad_(requires_grad=False)
        with torch.no_grad():
            self.conv1.weight.mul_(1.5)  # so that a single pixel can make a neuron fire from the start

    def forward(self, x: Tensor, state: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """One step: x [batch, 1, 8, 8] to spikes [batch, 10]."""
        state, new = state or {}, {}
        x, new["if1"] = self.if1(self.conv1(x), state.get("if1"))
        x, new["if2"] = self.if2(self.conv2(x), state.get("if2"))
        x, new["if3"] = self.if3(self.fc(self.flatten(self.pool(x))), state.get("if3"))
        return x, new


def _counts(network: nn.Module, raster: Tensor) -> Tensor:
    state = None
    total = torch.zeros(())
    for frame in raster:
        spikes, state = network(frame, state)
        total = total + spikes
    return total


def train(
    data: Digits, *, epochs: int = 16, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> DigitsNetwork:
    """Train on the output spike counts with cross-entropy, Adam and surrogate gradients.

    Args:
        data: rasters and labels.
        epochs: passes over the training images.
        seed: of weights and order.
        advance: called after every batch, `epochs * batches(data)` times.
    """
    torch.manual_seed(seed)
    network = DigitsNetwork()
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=1e-2)
    per_epoch = batches(data)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * per_epoch)
    raster = torch.tensor(data.train, dtype=torch.float32)
    labels = torch.tensor(data.train_labels)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).tensor_split(per_epoch):
            logits = 0.6 * _counts(network, raster[:, chosen])
            loss = nn.functional.cross_entropy(logits, labels[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            advance()
    return network.eval()


def batches(data: Digits) -> int:
    """Batches of an epoch, of at most 48 images."""
    return -(-len(data.train_labels) // 48)


@contextmanager
def _progress(show: bool) -> Iterator[Progress]:
    if not show:
        yield lambda title, total: lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def start(title: str, total: int) -> Callable[[], None]:
            task = bars.add_task(title, total=total)
            return lambda: bars.advance(task)

        yield start


def demo(folder: str | Path = "out/demo", *, epochs: int = 16, show_progress: bool = True) -> Demo:
    """Train, convert, deploy to every target of the demo, emulate the held-out images, compare, report.

    Args:
        folder: where digits.nir, the trajectories, summary.json and report.html are written.
        epochs: passes over the training images.
        show_progress: progress bars on standard error.

    Raises:
        FileError: the folder cannot be written.
        UnavailableError: scikit-learn is missing.
    """
    started = time.perf_counter()
    out = _folder(folder)
    with _progress(show_progress) as start:
        data = digits()
        with one_thread():
            network = train(data, epochs=epochs, advance=start("train on digits", epochs * batches(data)))
        graph = _through_file(network, out / "digits.nir")
        steps = start("deploy and compare", 1 + 2 * len(TARGETS))
        reference = run(graph, data.test)
        steps()
        reference.save(out / "reference.h5")
        found = {}
        for name in TARGETS:
            deployment = deploy(graph, name, calibration=data.train[:, :CALIBRATION_IMAGES])
            deployment.save(out / name)
            steps()
            found[name] = _target(deployment, reference, data)
            found[name].trajectory.save(out / f"{name}.h5")
            steps()
    right = accuracy(reference.outputs, data.test_labels)
    summary = _summary(data, right, found, time.perf_counter() - started)
    result = Demo(data, reference, right, found, summary, out)
    _report(result)
    summary["seconds"] = round(time.perf_counter() - started, 3)
    files.write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return result


def _folder(folder: str | Path) -> Path:
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make folder {str(out)!r}: {error.strerror or error}") from error
    with files.atomic(out / ".writable"):
        pass
    (out / ".writable").unlink()
    return out


def _through_file(network: nn.Module, path: Path) -> nir.NIRGraph:
    """The graph as a user would have it: traced, written, read back."""
    io.write(path, torch_to_nir(network, input_shape=(1, 8, 8)))
    return io.read(path)


def _target(deployment: Deployment, reference: Trajectory, data: Digits) -> Target:
    started = time.perf_counter()
    trajectory = deployment.run(data.test)
    seconds = time.perf_counter() - started
    comparison = compare(reference, trajectory)
    right = accuracy(trajectory.outputs, data.test_labels)
    few = ladder(deployment, data.test[:, :LADDER_IMAGES], data.test_labels[:LADDER_IMAGES])
    return Target(deployment, trajectory, comparison, right, seconds, few)


def _summary(data: Digits, reference: float, found: dict[str, Target], seconds: float) -> dict[str, Any]:
    return {
        "dataset": "scikit-learn digits",
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "reference": {"accuracy": reference},
        "targets": {name: _target_summary(target) for name, target in found.items()},
        "seconds": round(seconds, 3),
    }


def spike_agreement(comparison: Comparison) -> dict[str, float]:
    """Agreement of every population, 0 to 1; Outputs only repeat the population before them."""
    found = {name: node.spike_agreement for name, node in comparison.per_node.items()}
    return {name: value for name, value in found.items() if value is not None}


def _target_summary(target: Target) -> dict[str, Any]:
    first = target.comparison.first_divergence
    return {
        "accuracy": target.accuracy,
        "spike_agreement": spike_agreement(target.comparison),
        "first_divergence": None
        if first is None
        else {"node": first.node, "neuron": [int(i) for i in first.neuron], "step": int(first.step)},
        "cores": {name: list(cores) for name, cores in target.deployment.placement.cores.items()},
        "seconds": round(target.seconds, 3),
    }


def _report(result: Demo) -> None:
    sections = [
        Section(
            name=name,
            comparison=target.comparison,
            reference=result.reference,
            chip=target.trajectory,
            accuracy=target.accuracy,
            reference_accuracy=result.reference_accuracy,
            labels=result.data.test_labels,
            placement=target.deployment.placement,
            report=target.deployment.report,
            seconds=target.seconds,
            notes=(*target.deployment.quantized.notes, f"the rungs were run on the first {LADDER_IMAGES} images"),
            ladder=target.ladder,
            estimate=estimate(target.trajectory, seconds_per_step=CONVENTION.dt),
        )
        for name, target in result.targets.items()
    ]
    write_report(
        result.folder / "report.html",
        sections,
        title="Handwritten digits on two chips",
        facts={
            "data": f"{result.summary['dataset']}, {len(result.data.test_labels)} held-out images",
            "encoding": f"a pixel of intensity p (0 to 16) fires p times, evenly over {ACTIVE_STEPS} steps; "
            f"{SILENT_STEPS} silent steps follow",
            "reference accuracy": f"{result.reference_accuracy:.4f}",
        },
    )
