"""Find the network that a file's weights belong to, or say in a sentence why they don't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.model import Origin
from pocketfit.core.support.text import some
from pocketfit.sources.models.build_network import build, class_argument, counts_classes, factory

Shapes = Mapping[str, tuple[int, ...]]
# Width multipliers of published weights; 1 first, as most have it.
WIDTHS = (1.0, 0.25, 0.35, 0.5, 0.75, 1.3, 1.4, 1.5, 2.0)
# Names that a network has inside a larger one, such as a training harness.
PREFIXES = ("model.", "net.", "network.", "backbone.", "encoder.")
# A counter of training steps that is not used here; files from before PyTorch 0.4.1 lack it.
COUNTER = "num_batches_tracked"


def match(origin: Origin, state: Mapping[str, Tensor], path: Path) -> tuple[nn.Module, Origin, dict[str, Tensor]]:
    """(network, its full origin, the file's tensors under the network's names).

    The class count, and for the zoo the width, are those that fit the tensors' shapes. Raises UserError naming up to
    three tensors that are missing and three that don't fit, and the network of the zoo that they fit, if one does.
    """
    candidates = _zoo_candidates if origin.kind == "zoo" else _factory_candidates
    first: Shapes | None = None
    for candidate, sketch in candidates(origin, state):
        shapes = _shapes(sketch.state_dict())
        first = shapes if first is None else first
        aligned = _aligned(state, shapes)
        if not _misfits(aligned, shapes):
            network = build(candidate)
            own = network.state_dict()
            return network, candidate, {name: aligned.get(name, own[name]) for name in own}
    assert first is not None
    raise UserError(_complaint(origin, state, first, path))


def _zoo_candidates(origin: Origin, state: Mapping[str, Tensor]) -> Iterator[tuple[Origin, nn.Module]]:
    """The architecture at each published width; only at the first one where the tensors' names do not fit."""
    for width in WIDTHS:
        network = _sketch(origin.name, width, 1000)
        classes = _classes(network, state) or 1000
        if classes != 1000:
            network = _sketch(origin.name, width, classes)
        yield replace(origin, arguments={"width": width, "classes": classes}), network
        shapes = _shapes(network.state_dict())
        aligned = _aligned(state, shapes)
        if any(name not in aligned and not name.endswith(COUNTER) for name in shapes) or aligned.keys() - shapes.keys():
            return


def _factory_candidates(origin: Origin, state: Mapping[str, Tensor]) -> Iterator[tuple[Origin, nn.Module]]:
    network = build(origin)
    yield origin, network
    classes = _classes(network, state)
    if classes and class_argument(factory(origin.name)):
        counted = counts_classes(origin, classes)
        yield counted, build(counted)


def _sketch(name: str, width: float, classes: int) -> nn.Module:
    """The network without memory for its tensors: shapes alone."""
    with torch.device("meta"):
        return zoo.build(name, width=width, classes=classes)


def _classes(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier's weight in the file, None where it has none under the expected name."""
    if not any(isinstance(layer, nn.Linear) for layer in network.modules()):
        return None
    weight = _aligned(state, _shapes(network.state_dict())).get(f"{zoo.head(network)[0]}.weight")
    return int(weight.shape[0]) if weight is not None and weight.ndim == 2 else None


def _aligned(state: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """The tensors under the network's names, where a prefix stands before them or before the network's own."""
    best = dict(state)
    for prefix in PREFIXES:
        shorter = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if len(shorter.keys() & shapes.keys()) > len(best.keys() & shapes.keys()):
            best = shorter
    return best


def _misfits(state: Mapping[str, Tensor], shapes: Shapes) -> bool:
    missing, unexpected = _differences(state, shapes)
    return bool(missing or unexpected)


def _differences(state: Mapping[str, Tensor], shapes: Shapes) -> tuple[list[str], list[str]]:
    """(missing, unexpected or of another shape), in words."""
    missing = [name for name in shapes if name not in state and not name.endswith(COUNTER)]
    odd = [
        name if name not in shapes else f"{name} of {_words(tuple(t.shape))} instead of {_words(shapes[name])}"
        for name, t in state.items()
        if name not in shapes or tuple(t.shape) != shapes[name]
    ]
    return missing, odd


def _complaint(origin: Origin, state: Mapping[str, Tensor], shapes: Shapes, path: Path) -> str:
    missing, odd = _differences(_aligned(state, shapes), shapes)
    parts = []
    if missing:
        parts.append(f"missing are {some(missing)}")
    if odd:
        parts.append(f"not expected are {some(odd)}")
    text = f"The weights in {path} don't fit {origin.name}: {'; '.join(parts)}"
    fitting = next((name for name in zoo.ARCHITECTURES if name != origin.name and _fits_zoo(name, state)), None)
    return (
        f"{text}. They fit {fitting}: use that name" if fitting else f"{text}; name the network that they were made for"
    )


def _fits_zoo(name: str, state: Mapping[str, Tensor]) -> bool:
    return any(
        not _misfits(_aligned(state, shapes), shapes)
        for _, network in _zoo_candidates(Origin("zoo", name), state)
        for shapes in [_shapes(network.state_dict())]
    )


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
