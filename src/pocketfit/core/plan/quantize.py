"""Settings of the passes that make up for quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pocketfit.core.plan.pass_facts import Batch, PassFacts, Rate, Samples, Steps, Weight
from pocketfit.core.support.rules import Between, Seed, Share
from pocketfit.core.support.schema import check_rules

Statistics = Literal["data", "batch-norm"]


@dataclass(frozen=True)
class Equalize:
    """Rescale channels between layers, so that those that share a range use it alike; batch norms are folded first.

    Cross-layer equalization (Nagel et al. 2019, section 4.1) and, with `absorb`, high-bias absorption (section 4.1.3).
    statistics  where the ranges of the activations come from: calibration samples, or what batch norms remember
    samples     how many of the calibration split are looked at
    """

    FACTS: ClassVar[PassFacts] = PassFacts(
        kind="equalize",
        words="channels equalized",
        for_file=True,
        moves_weights=True,
        folds=True,
        on_coarse_grid=True,
        steps_a_sample=5.0,
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
        kind="quant-train", for_file=True, on_grid=True, folds=True, has_teacher=True, steps_a_sample=1.7
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


QuantizeSettings = Equalize | CorrectBias | Round | QuantTrain
