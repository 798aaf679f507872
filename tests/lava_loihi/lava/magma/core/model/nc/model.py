"""Stand-in of the base class that lava's run configurations look for."""


class AbstractNcProcessModel:
    """A model that runs on a neuro-core; there is none here, so Lava's Python models take their place."""
