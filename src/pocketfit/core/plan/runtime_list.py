"""The list of all runtimes, with facts that are needed before one is loaded. A new one is a line here and a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Listed:
    """A runtime in the list.

    suffix    suffix of its files, with the dot; of two runtimes with one suffix, the first takes a file unless the
              other is named
    for_apps  whether apps ship it, so that `fit` makes files for it; False: it is for analysis only
    module    module with the functions of core.runtime.Runtime; "": pocketfit.runtimes.<name>.runtime
    beside    suffixes of further files of an artifact, which have its name and lie beside it
    """

    suffix: str
    for_apps: bool = True
    module: str = ""
    beside: tuple[str, ...] = ()


RUNTIMES: dict[str, Listed] = {
    "litert": Listed(".tflite"),
    "onnxruntime": Listed(".onnx"),
    "openvino": Listed(".xml", beside=(".bin",)),
    "micro": Listed(".tflite"),
    "torch": Listed(".pt2", for_apps=False),
}


EVERY = "all"  # a user's word for every runtime for apps that is installed and measures


def for_apps() -> tuple[str, ...]:
    """Names of the runtimes that `fit` makes files for.

    >>> for_apps()
    ('litert', 'onnxruntime', 'openvino', 'micro')
    """
    return tuple(name for name, listed in RUNTIMES.items() if listed.for_apps)


def files_of(path: str | Path) -> tuple[Path, ...]:
    """All files of an artifact, by the suffix of its first one.

    >>> [file.name for file in files_of("net.xml")], [file.name for file in files_of("net.onnx")]
    (['net.xml', 'net.bin'], ['net.onnx'])
    """
    first = Path(path)
    beside = next((listed.beside for listed in RUNTIMES.values() if listed.suffix == first.suffix.lower()), ())
    return first, *(first.with_suffix(suffix) for suffix in beside)


def bytes_of(path: str | Path) -> int:
    """The size of all files of an artifact."""
    return sum(file.stat().st_size for file in files_of(path))
