"""Settings of the passes that train in float, or re-estimate batch norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pocketfit.core.plan.pass_facts import Batch, PassFacts, Rate, Steps, Weight
from pocketfit.core.support.rules import Between, Seed, Share
from pocketfit.core.support.schema import check_rules

OptimizerName = Literal["muon", "sgd"]


@dataclass(frozen=True)
class Train:
    """Fine-tune for a number of steps, with a teacher (the unpruned network, or another) where alpha > 0.

    loss = (1 - alpha) CE + alpha D,  D = T² KL(teacher_T || student_T)   (Hinton et al. 2015, section 2)

    share         train on this share of the training split (a fixed part, drawn by `seed`)
    distillation  "logits": D as above; "decoupled": D = T² (TCKD + beta NCKD)   (Zhao et al. 2022, equation 7)
    features      dotted names of layers that student and teacher share, whose outputs are compared as attention maps
                  (Zagoruyko and Komodakis 2017, equation 2) and weighed by `feature_weight`; channels may differ
    optimizer     "muon" for pointwise convolutions and SGD for all other weights, or "sgd" for all
    ema           decay of the running average of the weights that is handed over in the end; 0: the last weights
    views         how many shifted views of each image have the teacher's logits kept on disk; 0: none, the teacher
                  runs at every step
    guarded       whether gradients are clipped, logits of unusual size are scaled, and some samples are held out, so
                  that a training that does harm is noticed and taken back (passes/train/guarded/guard.py)
    """

    FACTS: ClassVar[PassFacts] = PassFacts(kind="train", moves_weights=True, has_teacher=True, by_all=True)

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
    """Batch-norm re-estimation: compute running statistics again from training samples; the weights do not change."""

    FACTS: ClassVar[PassFacts] = PassFacts(kind="recalibrate", words="batch norms re-estimated", moves_weights=True)

    samples: Annotated[int, Between(2, 10**7)] = 1000
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return "bn"


TrainSettings = Train | Recalibrate
