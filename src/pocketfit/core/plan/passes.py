"""All passes: a new one is a line here."""

from __future__ import annotations

from typing import get_args

from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Piecewise, Resolution
from pocketfit.core.plan.train import Recalibrate, Train

PassSettings = (
    Prune | Train | Recalibrate | Sparsify | Resolution | Piecewise | Equalize | CorrectBias | Round | QuantTrain
)
KINDS = {settings.FACTS.kind: settings for settings in get_args(PassSettings)}
