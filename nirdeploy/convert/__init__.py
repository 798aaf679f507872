"""torch <-> NIR: one table of primitives, a tracer for one direction, a graph module for the other."""
