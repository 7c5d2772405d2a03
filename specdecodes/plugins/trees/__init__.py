"""Tree builders: how the node budget of a step is spent."""
