"""The bundle for Python."""
