"""What the environments of vendors' SDKs are made of.

They cannot share one interpreter with the package: Lava exists for Python 3.10 and numpy < 2 only, and sinabs pins an
old nir.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """What an environment is made of.

    Attributes:
        name: e.g. 'speck'.
        purpose: one line for people.
        packages: pinned requirements, installed without their dependencies: these would bring CUDA builds, another
            numpy, or samna's installer.
        imports: modules that must import for the environment to count as built.
        shared: packages taken from the interpreter that runs nirdeploy, which has them; nothing is copied.
        needs_310: whether it needs Python 3.10; otherwise it is made from the interpreter that runs nirdeploy.
    """

    name: str
    purpose: str
    packages: tuple[str, ...]
    imports: tuple[str, ...]
    shared: tuple[str, ...] = ()
    needs_310: bool = False


RECIPES = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                "speck",
                "sinabs, the simulator of Speck and DYNAP-CNN",
                # sinabs 3.1.3 pins nir and nirtorch to these, and declares samna, which is left out
                ("sinabs==3.1.3", "pbr==7.1.3", "nir==1.0.4", "nirtorch==2.0.2"),
                ("numpy", "h5py", "torch", "sinabs.layers"),
                shared=("torch", "numpy", "h5py"),
            ),
            Recipe(
                "loihi",
                "Lava, the simulator of Loihi",
                (
                    "lava-nc==0.10.0",
                    "numpy==1.26.4",
                    "scipy==1.15.3",
                    "networkx==2.8.7",
                    "asteval==0.9.31",
                    "h5py==3.14.0",
                ),
                ("numpy", "h5py", "lava.proc.lif.process"),
                needs_310=True,
            ),
        )
    }
)
