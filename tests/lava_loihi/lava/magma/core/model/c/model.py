"""Stand-in of the base classes that lava's run configurations look for."""


class AbstractCProcessModel:
    """A model that runs on an embedded processor."""


class CLoihiProcessModel(AbstractCProcessModel):
    """The same, in Loihi's phases."""
