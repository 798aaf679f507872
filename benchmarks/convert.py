"""How fast are import and export, against nirtorch in the same process?

Run `python benchmarks/convert.py`. nirtorch is measured where it is installed, on short chains only: its import time
grows with more than the cube of the number of nodes.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import nir
import numpy as np
from timing import seconds
from torch import nn

import nirdeploy as nd
from nirdeploy.graph import make_graph


def chain(length: int) -> nir.NIRGraph:
    """Linear layers in a row, 4 wide."""
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input(np.array([4]))}
    nodes |= {f"n{i}": nir.Linear(np.eye(4, dtype=np.float32)) for i in range(length)}
    nodes["output"] = nir.Output(np.array([4]))
    names = list(nodes)
    return make_graph(nodes, list(itertools.pairwise(names)))


def import_seconds(statement: str) -> float:
    """Wall time of an import beyond that of torch, in a fresh process."""
    code = f"import torch, time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Measure and print."""
    nd.nir_to_torch(chain(3))  # imports done
    for length in (100, 1000, 10_000):
        graph = chain(length)
        print(f"import a chain of {length:6d} nodes {seconds(lambda graph=graph: nd.nir_to_torch(graph)):8.3f} s")
    if importlib.util.find_spec("nirtorch"):
        import nirtorch

        for length in (50, 100, 200):
            graph = chain(length)
            took = seconds(lambda graph=graph: nirtorch.nir_to_torch(graph, {}), 1)
            print(f"nirtorch: a chain of {length:5d} nodes {took:8.3f} s")
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(1000)])
    print(f"export 1000 layers          {seconds(lambda: nd.torch_to_nir(module)):8.3f} s")

    side = 10_250  # 420 MB of float32
    weight = np.ones((side, side), np.float32)
    wide = make_graph(
        {"input": nir.Input(np.array([side])), "w": nir.Linear(weight), "output": nir.Output(np.array([side]))},
        [("input", "w"), ("w", "output")],
    )
    print(f"copy 420 MB                 {seconds(weight.copy):8.3f} s")
    print(f"import 420 MB from memory   {seconds(lambda: nd.nir_to_torch(wide)):8.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.nir"
        nd.write(path, wide)
        reading = seconds(lambda: nd.read(path), 2)
        print(f"read 420 MB                 {reading:8.3f} s")
        print(f"import it, beyond reading   {seconds(lambda: nd.nir_to_torch(path), 2) - reading:8.3f} s")
    print(f"import nirdeploy            {import_seconds('import nirdeploy'):8.3f} s beyond torch")
    print(
        f"and nir_to_torch            {import_seconds('import nirdeploy; nirdeploy.nir_to_torch'):8.3f} s beyond torch"
    )


if __name__ == "__main__":
    main()
