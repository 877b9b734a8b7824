"""The bundle: the chosen file with the host code that calls it."""

from pocketfit.bundle.write import write_bundle

__all__ = ["write_bundle"]
