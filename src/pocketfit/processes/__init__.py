"""A function in a process of its own: with limits, and forked where a converter is loaded already."""
