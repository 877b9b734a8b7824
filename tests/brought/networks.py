"""Small networks as people bring them: one table that tests run through whatever pocketfit does.

A new network joins every such test by a row of NETWORKS. All are narrow: a few million multiply-accumulates at most.
Many are written after public bug reports of this field, each anew.

    for name, row in NETWORKS.items():
        model = opened(name)            # a Model; built(name) is the torch.nn.Module
        x, y = arrays(name, 200)        # for pocketfit.from_arrays
        row.shape, row.refused
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from pocketfit.core.model import Model
from pocketfit.core.preprocess import Preprocess
from pocketfit.sources.models.open_model import model_from_module
from tests.brought.attention import Attention, ConvolutionsThenRecurrence, Encoder, Mixer, Recurrent, VisionTransformer
from tests.brought.coupled import (
    ChannelShuffle,
    ChunkAndConcatenate,
    ConvNext,
    Dense,
    FewGroups,
    FlattenAndBack,
    GroupedResidual,
    InPlace,
    NormAfterRelu,
    OneConvolutionThreeTimes,
    PixelShuffle,
    SideHeads,
    SqueezeExcite,
    TiedWeights,
    TwiceInOneConcatenation,
    UNetWithClassifier,
)
from tests.brought.forwards import (
    ActsUnlessTraced,
    HardswishFunction,
    KeepsWhatItSaw,
    LeNet,
    Raises,
    SideBySideSizes,
    TransposedConvolutions,
    TwoInputs,
    Vgg,
    kept_a_graph,
    of_one_dimension,
    of_three_dimensions,
    plain,
    side_by_side,
    without_norms,
)
from tests.brought.parts import CLASSES, Parts, cbr, pooled
from tests.brought.tokens import BagOfTokens, TokenEncoder
from tests.brought.weights import (
    BareLayerNorm,
    NormsThatStayInEval,
    StandardizedWeights,
    UnequalConcatenation,
    all_but_the_head_frozen,
    all_frozen,
    batch_statistics,
    bias_beyond_int32,
    dead_channels,
    dead_scale_live_shift,
    denormal_weights,
    layer_norm_over_all,
    masked_weights,
    normed_weights,
    prelu_face,
    saturating_pairs,
    with_norm,
)


@dataclass(frozen=True)
class Brought:
    """One network that somebody brings.

    build    makes it, with whatever random weights torch gives; `built` seeds them
    shape    of one input sample, without the batch
    refused  check -> key words of the one sentence that refuses it there: "open" (model_from_module), "classes" (who
             wants a classifier), "trace" (whatever looks at its operators), or a runtime's name (export). What isn't
             named is expected to work
    several  whether it has several outputs
    more     further inputs by name: the shape of one sample; `first` is the name of the first one
    tokens   whether the inputs are whole numbers below this; 0: floats
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    several: bool = False
    first: str = ""
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: int = 0


def built(name: str) -> nn.Module:
    """The network of this row, the same weights each time, in eval mode; norms have statistics as after a training."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # older forms of weight norms say that they are older,
        warnings.simplefilter("ignore", DeprecationWarning)  # and so do TorchScript
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # and torch's own quantization
        torch.manual_seed(0)
        network = NETWORKS[name].build()
        network.eval()
    return network


def opened(name: str) -> Model:
    """The network as pocketfit opens it, at the sizes of its row; values of pictures go in as -2 to 2."""
    shape = NETWORKS[name].shape
    if not is_picture(name):
        return model_from_module(built(name), preprocess=Preprocess(resize="none"), input_shape=described(name))
    half, quarter = (0.5,) * shape[0], (0.25,) * shape[0]
    contract = Preprocess(height=shape[1], width=shape[2], resize="none", mean=half, std=quarter)
    contract = contract if shape[0] == 3 else replace(contract, colour="GRAY")
    return model_from_module(built(name), preprocess=contract, input_shape=described(name))


def described(name: str) -> tuple[int, ...] | dict[str, str]:
    """The inputs of this row, as a user describes them."""
    row = NETWORKS[name]
    if not row.more and not row.tokens:
        return row.shape
    kind = ":int64" if row.tokens else ""
    inputs = {row.first: row.shape, **row.more}
    return {key: "x".join(map(str, shape)) + kind for key, shape in inputs.items()}


Array = NDArray[np.generic]


def arrays(name: str, count: int, seed: int = 0) -> tuple[Array | dict[str, Array], NDArray[np.int64]]:
    """(x, y) for pocketfit.from_arrays: x is an array, or arrays by name for several inputs."""
    row = NETWORKS[name]
    x, labels = _first(name, count, seed)
    rng = np.random.default_rng(seed + 1)
    more: dict[str, Array] = {
        key: rng.normal(size=(count, *shape)).astype(np.float32) for key, shape in row.more.items()
    }
    if row.tokens:
        more = {key: (np.arange(shape[0]) < rng.integers(2, shape[0] + 1, (count, 1))).astype(np.int64)
                for key, shape in row.more.items()}  # fmt: skip
    return ({row.first: x, **more} if more else x), labels


def _first(name: str, count: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """uint8 [count, H, W, C] for pictures, int64 [count, n] for tokens, else float32 [count, ...]; a class's samples
    are brighter in places of its own, or have tokens of its own, so that there is something to learn."""
    shape, rng = NETWORKS[name].shape, np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    if tokens := NETWORKS[name].tokens:
        words = rng.integers(0, tokens, (count, *shape))
        own = rng.random(words.shape) < 0.5
        return np.where(own, labels[:, None] + CLASSES * (words // CLASSES % (tokens // CLASSES)), words), labels
    if is_picture(name):
        channels, height, width = shape
        pictures = rng.integers(0, 90, (count, height, width, channels))
        for row, label in zip(pictures, labels, strict=True):
            row[label * height // CLASSES : (label + 1) * height // CLASSES] += 120
        return pictures.astype(np.uint8), labels
    values = rng.normal(size=(count, *shape)).astype(np.float32)
    for row, label in zip(values, labels, strict=True):
        row[label * shape[0] // CLASSES : (label + 1) * shape[0] // CLASSES] += 2
    return values, labels


def is_picture(name: str) -> bool:
    shape = NETWORKS[name].shape
    return len(shape) == 3 and shape[0] in (1, 3)


def _open(*words: str) -> Mapping[str, tuple[str, ...]]:
    return {"open": words}


def _classes(*words: str) -> Mapping[str, tuple[str, ...]]:
    return {"classes": words}


NETWORKS: Mapping[str, Brought] = {
    "twice in one concatenation": Brought(TwiceInOneConcatenation),
    "chunk and concatenate": Brought(ChunkAndConcatenate),
    "pixel shuffle": Brought(PixelShuffle),
    "three groups": Brought(FewGroups),
    "two filters a channel": Brought(lambda: FewGroups(48, 96)),
    "flatten and back": Brought(FlattenAndBack),
    "channel shuffle": Brought(ChannelShuffle),
    "squeeze excite": Brought(SqueezeExcite),
    "densenet": Brought(Dense),
    "resnext": Brought(GroupedResidual),
    "in place": Brought(InPlace),
    "convnext": Brought(ConvNext),
    "u-net": Brought(UNetWithClassifier),
    "side head": Brought(SideHeads),
    "googlenet": Brought(lambda: SideHeads(inceptions=True)),
    "one convolution three times": Brought(OneConvolutionThreeTimes),
    "norm after relu": Brought(NormAfterRelu),
    "tied weights": Brought(TiedWeights),
    "attention": Brought(Attention),
    "vit": Brought(VisionTransformer),
    "frozen vit": Brought(lambda: VisionTransformer().requires_grad_(False)),
    "transformer encoder": Brought(Encoder, (12, 8)),
    "frozen transformer encoder": Brought(lambda: Encoder().requires_grad_(False), (12, 8)),
    "mlp-mixer": Brought(Mixer),
    "lstm": Brought(lambda: Recurrent(nn.LSTM), (12, 8)),
    "gru of two layers": Brought(lambda: Recurrent(nn.GRU, num_layers=2), (12, 8)),
    "lstm of both directions": Brought(lambda: Recurrent(nn.LSTM, bidirectional=True), (12, 8)),
    "convolutions then lstm": Brought(ConvolutionsThenRecurrence, (1, 16, 48)),
    "all frozen": Brought(all_frozen),
    "all but the head frozen": Brought(all_but_the_head_frozen),
    "train returns nothing": Brought(NormsThatStayInEval),
    "narrow": Brought(lambda: side_by_side(8, 16, 16, 64, 3)),
    "dead scale live shift": Brought(lambda: dead_scale_live_shift(0)),
    "dead scale live shift padded": Brought(lambda: dead_scale_live_shift(1)),
    "bias beyond int32": Brought(bias_beyond_int32),
    "dead channels": Brought(dead_channels),
    "unequal concatenation": Brought(UnequalConcatenation),
    "prelu face": Brought(prelu_face, (3, 16, 16)),
    "saturating pairs": Brought(saturating_pairs),
    "denormal weights": Brought(denormal_weights),
    "weight norm": Brought(lambda: normed_weights(parametrizations.weight_norm)),
    "weight norm of old": Brought(lambda: normed_weights(old_weight_norm)),
    "spectral norm": Brought(lambda: normed_weights(parametrizations.spectral_norm)),
    "spectral norm of old": Brought(lambda: normed_weights(old_spectral_norm)),
    "masked weights": Brought(masked_weights),
    "instance norm": Brought(lambda: with_norm(nn.InstanceNorm2d)),
    "instance norm with factors": Brought(lambda: with_norm(lambda width: nn.InstanceNorm2d(width, affine=True))),
    "layer norm without factors": Brought(BareLayerNorm),
    "weight standardization": Brought(StandardizedWeights),
    "group norm": Brought(lambda: with_norm(lambda width: nn.GroupNorm(4, width))),
    "layer norm over all": Brought(layer_norm_over_all),
    "no norms": Brought(without_norms),
    "too small for int8": Brought(
        lambda: nn.Sequential(*[nn.Conv2d(16 if i else 3, 16, 3, 2, 1) for i in range(4)], *pooled(16))
    ),
    "lenet": Brought(LeNet),
    "vgg": Brought(Vgg),
    "vgg with norms": Brought(lambda: Vgg(norms=True)),
    "alexnet": Brought(lambda: Vgg(pool=2)),
    "vgg at small pictures": Brought(lambda: Vgg(pool=7)),
    "pool to 6 x 1": Brought(
        lambda: nn.Sequential(
            *(cbr(3, 16, stride=2), cbr(16, 16, stride=2), nn.AdaptiveAvgPool2d((6, 1))),
            *(nn.Flatten(), nn.Linear(96, CLASSES)),
        )
    ),
    "pools of odd sizes": Brought(SideBySideSizes, (3, 31, 45)),
    "transposed convolutions": Brought(lambda: TransposedConvolutions(1)),
    "grouped transposed convolutions": Brought(TransposedConvolutions),
    "hardswish as a function": Brought(HardswishFunction),
    "mlp on pixels": Brought(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, CLASSES)), (3, 16, 16)
    ),
    "pixel unshuffle first": Brought(
        lambda: nn.Sequential(nn.PixelUnshuffle(2), cbr(12, 16), cbr(16, 32, stride=2), *pooled(32))
    ),
    "one channel": Brought(lambda: LeNet(1), (1, 32, 32)),
    "not square": Brought(plain, (3, 24, 40)),
    "one dimension": Brought(of_one_dimension, (2, 128)),
    "three dimensions": Brought(of_three_dimensions, (1, 8, 16, 16)),
    "data parallel": Brought(lambda: nn.DataParallel(plain())),
    "torch.compile": Brought(lambda: torch.compile(plain(), backend="eager")),
    "keeps what it saw": Brought(KeepsWhatItSaw),
    "kept a graph": Brought(kept_a_graph),
    "branch on values": Brought(ActsUnlessTraced, refused={"trace": ("torch.export cannot follow", "branches")}),
    "half precision": Brought(lambda: plain().half(), refused=_open("float16", ".float()")),
    "one logit": Brought(
        lambda: nn.Sequential(*plain()[:-1], nn.Linear(32, 1)), refused=_classes("one number", "class")
    ),
    "dict of outputs": Brought(
        lambda: Parts(lambda parts, x: {"main": parts.body(x), "half": x * 0.5}, body=plain()), several=True
    ),
    "tuple of outputs": Brought(lambda: Parts(lambda parts, x: (parts.body(x), x * 0.5), body=plain()), several=True),
    "nested outputs": Brought(
        lambda: Parts(lambda parts, x: (parts.body(x), [x, x]), body=plain()),
        refused=_open("a list", "'output_1'", "float"),
    ),
    "answers as integers": Brought(
        lambda: Parts(lambda parts, x: parts.body(x).argmax(1), body=plain()), refused=_open("int64", "float")
    ),
    "mask": Brought(lambda: nn.Conv2d(3, CLASSES, 3, 2, 1), refused=_classes("[batch, 5, 16, 16]", "[batch, classes]")),
    "a class for each step": Brought(
        lambda: Parts(
            lambda parts, x: parts.fc(parts.gru(x)[0]), gru=nn.GRU(8, 16, batch_first=True), fc=nn.Linear(16, CLASSES)
        ),
        (12, 8),
        _classes("[batch, 12, 5]", "[batch, classes]"),
    ),
    "the batch taken for steps": Brought(
        lambda: Parts(lambda parts, x: parts.fc(parts.gru(x)[0][:, -1]), gru=nn.GRU(8, 16), fc=nn.Linear(16, CLASSES)),
        (12, 8),
        _open("depends on what else is in the batch"),
    ),
    "squeeze takes the batch away": Brought(
        lambda: Parts(lambda parts, x: parts.body(x).squeeze(), body=plain()), refused=_open("one sample", "squeeze")
    ),
    "dropout that stays on": Brought(
        lambda: Parts(
            lambda parts, x: parts.fc(F.dropout(parts.body(x).amax((2, 3)), 0.3)),
            body=cbr(3, 32, stride=2),
            fc=nn.Linear(32, CLASSES),
        ),
        refused=_open("different outputs", "training=self.training"),
    ),
    "noise in a layer": Brought(
        lambda: nn.Sequential(cbr(3, 16, stride=2), Parts(lambda _, x: x + torch.randn_like(x)), *pooled(16)),
        refused=_open("different outputs", "layer '1'"),
    ),
    "batch statistics": Brought(batch_statistics, refused=_open("batch", "layer '1'")),
    "two inputs": Brought(TwoInputs, first="picture", more={"facts": (4,)}),
    "two inputs of which one is described": Brought(TwoInputs, refused=_open("2 inputs", "picture", "facts")),
    "token ids": Brought(BagOfTokens, (12,), tokens=40),
    "token ids and a mask": Brought(TokenEncoder, (12,), first="input_ids", more={"attention_mask": (12,)}, tokens=40),
    "forward that raises": Brought(Raises, refused=_open("AttributeError", "head")),
    "layers without weights yet": Brought(
        lambda: nn.Sequential(cbr(3, 16), nn.Flatten(), nn.LazyLinear(CLASSES)), refused=_open("LazyLinear", "weights")
    ),
    "quantized already": Brought(
        lambda: torch.ao.quantization.quantize_dynamic(plain().eval(), {nn.Linear}),
        refused=_open("quantized", "already"),
    ),
    "torchscript": Brought(
        lambda: torch.jit.trace(plain().eval(), torch.zeros(2, 3, 32, 32)), refused=_open("TorchScript")
    ),
}
CLASSIFIERS = tuple(
    name for name, row in NETWORKS.items() if not {"open", "classes"} & set(row.refused) and not row.several
)
