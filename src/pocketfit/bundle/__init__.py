"""The chosen file with the host code that calls it."""
