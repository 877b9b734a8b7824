"""The mobile architectures of the field, state-dict compatible with their published weights.

Importing this package does not import torch: the table below can be listed at once, and a network's file
is loaded when it is built.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "Architecture", "build", "head"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network and how it was published.

    Preprocessing: shorter side to `resize` pixels, centre crop of `image_size`, values in 0..1,
    then (x - mean) / std for each of R, G, B.
    """

    name: str
    file: str  # of this folder; its function `name` builds the network: (*, width, classes) -> network
    paper: str
    published_params: int  # at width 1 and 1000 classes
    published_macs: int  # multiply-accumulates of one image of image_size x image_size, as its authors state
    image_size: int = 224  # pixels
    resize: int = 256  # pixels
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


_HALF = (0.5, 0.5, 0.5)

# Parameters and MACs are torchvision's, where it has the network; MobileNetV1's MACs are those of its paper's
# table 8, EfficientNet-Lite0's those of TensorFlow's README.
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="mobilenet_v1",
            file="mobilenet_v1",
            paper="https://arxiv.org/abs/1704.04861",
            published_params=4_231_976,
            published_macs=569_000_000,
            mean=_HALF,
            std=_HALF,
        ),
        Architecture(
            name="mobilenet_v2",
            file="mobilenet_v2",
            paper="https://arxiv.org/abs/1801.04381",
            published_params=3_504_872,
            published_macs=301_000_000,
        ),
        Architecture(
            name="mobilenet_v3_small",
            file="mobilenet_v3",
            paper="https://arxiv.org/abs/1905.02244",
            published_params=2_542_856,
            published_macs=57_000_000,
        ),
        Architecture(
            name="mobilenet_v3_large",
            file="mobilenet_v3",
            paper="https://arxiv.org/abs/1905.02244",
            published_params=5_483_032,
            published_macs=217_000_000,
        ),
        Architecture(
            name="efficientnet_lite0",
            file="efficientnet_lite",
            paper="https://arxiv.org/abs/1905.11946",
            published_params=4_652_008,
            published_macs=407_000_000,
            interpolation="bicubic",
            mean=_HALF,
            std=_HALF,
        ),
        Architecture(
            name="shufflenet_v2",
            file="shufflenet_v2",
            paper="https://arxiv.org/abs/1807.11164",
            published_params=2_278_604,
            published_macs=145_000_000,
        ),
        Architecture(
            name="resnet18",
            file="resnet",
            paper="https://arxiv.org/abs/1512.03385",
            published_params=11_689_512,
            published_macs=1_814_000_000,
        ),
        Architecture(
            name="resnet50",
            file="resnet",
            paper="https://arxiv.org/abs/1512.03385",
            published_params=25_557_032,
            published_macs=4_089_000_000,
        ),
    )
}


def build(name: str, *, width: float = 1.0, classes: int = 1000) -> nn.Module:
    """The network called `name` with random weights: [N, 3, H, W] -> logits [N, classes].

    Raises ValueError for an unknown name, a width that is not positive, or fewer than one class.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"No architecture is called {name!r}. Known ones: {', '.join(sorted(ARCHITECTURES))}.")
    if not width > 0:
        raise ValueError(f"The width multiplier must be above 0, not {width}.")
    if classes < 1:
        raise ValueError(f"A classifier needs at least 1 class, not {classes}.")
    file = importlib.import_module(f"pocketfit.zoo.{ARCHITECTURES[name].file}")
    network: nn.Module = getattr(file, name)(width=width, classes=classes)
    return network


def head(module: nn.Module) -> tuple[str, nn.Linear]:
    """The dotted name and the layer that yields the logits: the last linear layer that was registered.

    For MobileNetV2: ("classifier.1", Linear(1280, classes)). Raises ValueError where there is none.
    """
    from torch import nn

    linears = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise ValueError(f"{type(module).__name__} has no linear layer, so it has no classifier to name.")
    return linears[-1]
