"""Settings of the passes that make up for quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pocketfit.core.plan.pass_facts import Batch, PassFacts, Rate, Samples, Steps, Weight
from pocketfit.core.support.rules import Between, Seed, Share
from pocketfit.core.support.schema import check_rules

Statistics = Literal["data", "batch-norm"]
BiasStatistics = Literal["data", "batch-norm", "file"]


@dataclass(frozen=True)
class Equalize:
    """Rescale channels between layers, so that those that share a range use it alike; batch norms are folded first.

    Cross-layer equalization (Nagel et al. 2019, section 4.1) and, with `absorb`, high-bias absorption (section 4.1.3).
    statistics  source of the activations' ranges: calibration samples, or the statistics of batch norms
    samples     how many samples of the calibration split are used
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
    """Subtract from each bias the mean error that rounded weights cause at its channel (Nagel et al. 2019, 4.2).

    statistics  source of the mean inputs: calibration samples, or the statistics of batch norms; "file": the error is
                that of the finished file, of weights and tensors alike, and the runtime takes it off while it writes it
    samples     how many samples of the calibration split are used
    """

    FACTS: ClassVar[PassFacts] = PassFacts(
        kind="correct-bias", words="biases corrected", for_file=True, on_grid=True, folds=True, steps_a_sample=1.0
    )

    statistics: BiasStatistics = "data"
    samples: Samples = 200

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return {"data": "bias", "batch-norm": "biasbn", "file": "biasfile"}[self.statistics]


@dataclass(frozen=True)
class Round:
    """Learned rounding: weights go to those grid points that change their layer's outputs least (as AdaRound, Nagel et
    al. 2020). The grid is that of the plan's export settings.

    sweeps   how often each weight of a layer is visited
    samples  how many samples of the split are used
    split    "calibration", or "train" to use more samples
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

    labels     share of the labels in the loss; the rest is the teacher's. 0: samples need no labels
    split      the samples to train on: "train", or "calibration" where there are no others
    inner      weight of the error of tensors inside, against the same network in float: with few images, their many
               positions say more than the logits alone
    layerwise  weight of the error of each layer by itself, with inputs as in float: with few samples, it keeps layers
               from learning to make up for one another's errors on these samples
    guarded    whether a training that does harm is noticed and taken back (passes/train/guarded/guard.py)
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
