"""Stand-in: its being there is what lava.utils.loihi.is_installed asks for."""
