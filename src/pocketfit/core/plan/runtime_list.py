"""The list of all runtimes, with facts that are needed before one is loaded. A new one is a line here and a folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """A runtime in the list.

    suffix    suffix of its files, with the dot
    for_apps  whether apps ship it, so that `fit` makes files for it; False: it is for analysis only
    module    module with the functions of core.runtime.Runtime; "": pocketfit.runtimes.<name>.runtime
    """

    suffix: str
    for_apps: bool = True
    module: str = ""


RUNTIMES: dict[str, Listed] = {
    "litert": Listed(".tflite"),
    "onnxruntime": Listed(".onnx"),
    "torch": Listed(".pt2", for_apps=False),
}


def for_apps() -> tuple[str, ...]:
    """Names of the runtimes that `fit` makes files for.

    >>> for_apps()
    ('litert', 'onnxruntime')
    """
    return tuple(name for name, listed in RUNTIMES.items() if listed.for_apps)
