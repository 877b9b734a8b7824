"""What each pass is told: frozen settings that a plan holds, one class for each pass."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pocketfit.core.errors import UserError
from pocketfit.core.support.rules import Between, Positive, Seed, Share, shown
from pocketfit.core.support.schema import check_rules
from pocketfit.core.support.user_code import NAME

MOST_PIXELS = 16_384  # of a side of the network's input
LONGEST_PATTERN = 500  # letters of a regular expression
Statistics = Literal["data", "batch-norm"]
Criterion = Literal[
    "l1", "l2", "bn-scale", "fpgm", "lamp", "taylor", "hessian", "activation", "activation-rank", "random"
]
SparsePattern = Literal["unstructured", "2:4", "1:4"]
OptimizerName = Literal["muon", "sgd"]
Cut = Annotated[float, Between(0, 1, below=True)]  # share of what is there that goes: something stays
Steps = Annotated[int, Between(1, 10**7)]
Batch = Annotated[int, Between(1, 10**5)]
Samples = Annotated[int, Between(1, 10**7)]
Rate = Annotated[float, Between(0, 100, above=True)]  # learning rate
Weight = Annotated[float, Between(0, 10**9)]  # of a part of a loss
Pixels = Annotated[int, Between(1, MOST_PIXELS)]


@dataclass(frozen=True, kw_only=True)
class PassFacts:
    """What is true of a pass whatever its settings; each settings class says its own, as FACTS.

    kind            its name in a plan's JSON
    words           what it has done, for a reader; "" where only the settings can say it (report/page/words.py)
    for_file        whether it prepares the network for one quantized file; else all files are made of what it leaves
    on_grid         whether it works for the grid of the plan's export settings
    moves_weights   whether it would take weights that lie on a grid off it again
    folds           whether it begins by folding the batch norms
    steps_a_sample  how long it takes a sample that it looks at, in training steps a sample (forward, backward and the
                    teacher); measured on MobileNetV2 at 96 x 96 pixels, one thread, 64 samples. Training in float is
                    counted apart, by the pace that was measured.
    """

    kind: str
    words: str = ""
    for_file: bool = False
    on_grid: bool = False
    moves_weights: bool = False
    folds: bool = False
    steps_a_sample: float = 0.0


@dataclass(frozen=True)
class Prune:
    """Remove a share of the channels of every coupled group.

    ratio       share of the channels of each prunable group, 0 <= ratio < 1; 0 where `layers` or `keep` say it all
    criterion   which channels of a group go first (passes/prune/criteria.py): one of Criterion, or
                "package.module:function"
    multiple    the channels that stay are rounded to the nearest multiple of this (kernels work in blocks)
    layers      (regular expression, ratio) pairs that overrule `ratio` for layers whose name matches, first wins
    keep        (layer, channels) pairs: the group that this layer makes keeps exactly so many, whatever the ratio says
    samples     how many of the training split a criterion that asks for data looks at
    """

    FACTS: ClassVar[PassFacts] = PassFacts(kind="prune", moves_weights=True)

    ratio: Cut
    criterion: str = "l2"
    multiple: Annotated[int, Between(1, 10**6)] = 8
    layers: tuple[tuple[str, Cut], ...] = ()
    keep: tuple[tuple[str, Positive], ...] = ()
    samples: Samples = 256
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_rules(self)
        for ratio in (self.ratio, *(r for _, r in self.layers)):
            if not 0 <= ratio < 1:
                raise UserError(
                    f"A pruning ratio of {ratio:g} cannot be carried out: give a share from 0 up to, but not"
                    " including, 1"
                )
        _check_patterns(self.layers)
        if self.criterion not in get_args(Criterion) and not self.calls_code:
            raise UserError(
                f"There is no pruning criterion {shown(self.criterion)}: known are {', '.join(get_args(Criterion))}, or"
                " package.module:function"
            )
        for layer, channels in self.keep:
            if channels < 1:
                raise UserError(f"Layer {shown(layer)} cannot keep {channels} channels: give a whole number from 1")

    @property
    def calls_code(self) -> bool:
        """Whether the criterion is a function of the user's own."""
        return NAME.fullmatch(self.criterion) is not None

    @property
    def code(self) -> str:
        return f"prune{round(self.ratio * 100):d}" + (f"k{len(self.keep)}" if self.keep else "")


@dataclass(frozen=True)
class Train:
    """Fine-tune for a number of steps, with a teacher (the unpruned network, or another) where alpha > 0.

    loss = (1 - alpha) CE + alpha D,  D = T² KL(teacher_T || student_T)   (Hinton et al. 2015, section 2)

    share         train on this share of the training split (a fixed part, drawn by `seed`)
    distillation  "logits": D as above; "decoupled": D = T² (TCKD + beta NCKD)   (Zhao et al. 2022, equation 7)
    features      dotted names of layers that student and teacher share, whose outputs are compared as attention maps
                  (Zagoruyko and Komodakis 2017, equation 2) and weighed by `feature_weight`; channels may differ
    optimizer     "muon" for the matrices among the weights and SGD for all others, or "sgd" for all
    ema           decay of the running average of the weights that is handed over in the end; 0: the last weights
    views         the teacher's answers to so many shifted views of each picture are kept on disk and used again;
                  0: it answers at every step
    guarded       gradients are kept in bounds, answers of unusual size are brought to a usual one, and some samples are
                  held back, by which a training that does harm is noticed and taken back
                  (passes/train/guarded/guard.py)
    """

    FACTS: ClassVar[PassFacts] = PassFacts(kind="train", moves_weights=True)

    steps: Steps
    batch_size: Batch = 64
    learning_rate: Rate = 0.02
    temperature: Annotated[float, Between(0, 1000, above=True)] = 4.0
    alpha: Share = 0.9
    share: Annotated[float, Between(0, 1, above=True)] = 1.0
    seed: Seed = 0
    distillation: Literal["logits", "decoupled"] = "logits"
    beta: Weight = 8.0
    features: tuple[str, ...] = ()
    feature_weight: Weight = 100.0
    ema: Annotated[float, Between(0, 1, below=True)] = 0.0
    views: Annotated[int, Between(0, 1000)] = 0
    optimizer: OptimizerName = "muon"
    guarded: bool = True

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return f".{self.steps}"


@dataclass(frozen=True)
class Recalibrate:
    """Take the statistics of batch norms anew, from samples of the training split, the weights standing still."""

    FACTS: ClassVar[PassFacts] = PassFacts(kind="recalibrate", words="batch norms taken anew", moves_weights=True)

    samples: Annotated[int, Between(2, 10**7)] = 1000
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return "bn"


@dataclass(frozen=True)
class Sparsify:
    """Set weights of convolutions and linear layers to zero; training behind it leaves them there.

    sparsity   share of each layer's weights that is zero ("unstructured"; the patterns have their own)
    pattern    "2:4", "1:4": that many of each four weights that follow each other along the inputs stay
    criterion  "magnitude" (Han et al. 2015), or "movement": first-order, weights that training moves away from zero
               stay (Sanh et al. 2020, section 3), for which `samples` of the training split are looked at
    layers     (regular expression, sparsity) pairs that overrule `sparsity`, first wins
    """

    FACTS: ClassVar[PassFacts] = PassFacts(kind="sparsify", moves_weights=True)

    sparsity: Cut = 0.5
    pattern: SparsePattern = "unstructured"
    criterion: Literal["magnitude", "movement"] = "magnitude"
    layers: tuple[tuple[str, Cut], ...] = ()
    samples: Samples = 256
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_rules(self)
        for sparsity in (self.sparsity, *(s for _, s in self.layers)):
            if not 0 <= sparsity < 1:
                raise UserError(
                    f"A sparsity of {sparsity:g} cannot be carried out: give a share from 0 up to, but not including, 1"
                )
        _check_patterns(self.layers)

    @property
    def code(self) -> str:
        share = f"{round(self.sparsity * 100):d}" if self.pattern == "unstructured" else self.pattern.replace(":", "of")
        return f"sparse{share}"


@dataclass(frozen=True)
class Resolution:
    """Feed the network a smaller picture: height x width in pixels."""

    FACTS: ClassVar[PassFacts] = PassFacts(kind="resolution")

    height: Pixels
    width: Pixels

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return f"r{self.height}" if self.height == self.width else f"r{self.height}x{self.width}"


@dataclass(frozen=True)
class Piecewise:
    """Write hard-swish as x / 6 * relu6(x + 3): the same answers, from operators that have int8 kernels in LiteRT."""

    FACTS: ClassVar[PassFacts] = PassFacts(kind="piecewise", words="hard-swish as a product", for_file=True)

    @property
    def code(self) -> str:
        return "pw"


@dataclass(frozen=True)
class Equalize:
    """Rescale channels between layers, so that those that share a range use it alike; batch norms are folded first.

    Cross-layer equalization (Nagel et al. 2019, section 4.1) and, with `absorb`, high-bias absorption (section 4.1.3).
    statistics  where the ranges of the activations come from: calibration samples, or what batch norms remember
    samples     how many of the calibration split are looked at
    """

    FACTS: ClassVar[PassFacts] = PassFacts(
        kind="equalize", words="channels equalized", for_file=True, moves_weights=True, folds=True, steps_a_sample=5.0
    )

    statistics: Statistics = "data"
    absorb: bool = True
    samples: Samples = 200

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return "eq" if self.statistics == "data" else "eqbn"


@dataclass(frozen=True)
class CorrectBias:
    """Take the mean error that rounded weights cause at each output channel off its bias (Nagel et al. 2019, 4.2)."""

    FACTS: ClassVar[PassFacts] = PassFacts(
        kind="correct-bias", words="biases corrected", for_file=True, on_grid=True, folds=True, steps_a_sample=1.0
    )

    statistics: Statistics = "data"
    samples: Samples = 200

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return "bias" if self.statistics == "data" else "biasbn"


@dataclass(frozen=True)
class Round:
    """Learned rounding: each weight goes to the grid point above or below it, so that the layer's outputs change least
    (as AdaRound, Nagel et al. 2020). The grid is that of the plan's export settings.

    sweeps   how often each weight of a layer is looked at
    samples  how many samples of the split are looked at
    split    "calibration", or "train" where that has more to see
    """

    FACTS: ClassVar[PassFacts] = PassFacts(
        kind="round", words="weights rounded by learning", for_file=True, on_grid=True, folds=True, steps_a_sample=7.0
    )

    sweeps: Annotated[int, Between(1, 10**6)] = 20
    samples: Samples = 200
    seed: Seed = 0
    split: Literal["calibration", "train"] = "calibration"

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return "round"


@dataclass(frozen=True)
class QuantTrain:
    """Train with weights and activations on the grid of the plan's export settings (quantization-aware training;
    learned step sizes: Esser et al. 2020). The teacher is the float network, or another one where the user gave one;
    passes/quantize/qat.py says how answers are compared in each case. The learned ranges go into the export.

    labels     share of the loss that the labels have; the rest is the teacher's. 0: unlabelled samples will do
    split      the samples that are trained on: "train", or "calibration" where that is all there is
    inner      weight of what tensors inside are off, against the same network in float: a few hundred pictures say more
               by all their positions than by their answers alone
    layerwise  weight of what each layer by itself is off, fed as in float: where samples are few, it keeps layers from
               making up for one another's errors on these alone
    guarded    a training that does harm is noticed and taken back (passes/train/guarded/guard.py)
    """

    FACTS: ClassVar[PassFacts] = PassFacts(
        kind="quant-train", for_file=True, on_grid=True, folds=True, steps_a_sample=1.7
    )

    steps: Steps
    batch_size: Batch = 32
    learning_rate: Rate = 0.002
    labels: Share = 0.0
    split: Literal["train", "calibration"] = "train"
    seed: Seed = 0
    inner: Weight = 0.0
    layerwise: Weight = 0.0
    guarded: bool = True

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return f"qat{self.steps}"


PassSettings = (
    Prune | Train | Recalibrate | Sparsify | Resolution | Piecewise | Equalize | CorrectBias | Round | QuantTrain
)
KINDS = {settings.FACTS.kind: settings for settings in get_args(PassSettings)}


def _check_patterns(layers: tuple[tuple[str, float], ...]) -> None:
    """Refuse a name of layers that is no regular expression."""
    for pattern, _ in layers:
        if len(pattern) > LONGEST_PATTERN:
            raise UserError(f"The pattern {shown(pattern)} is too long to name layers")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what Python may one day read differently
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{shown(pattern)} is no regular expression for names of layers: {error}") from error
