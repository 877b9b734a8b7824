"""A network as a graph of its own real layers."""
