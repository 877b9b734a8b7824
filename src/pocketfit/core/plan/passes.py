"""All passes that a plan may hold. A new one joins the settings of its kind, in the file where its class is."""

from __future__ import annotations

from typing import get_args

from pocketfit.core.plan.prune import PruneSettings
from pocketfit.core.plan.quantize import QuantizeSettings
from pocketfit.core.plan.rewrite import RewriteSettings
from pocketfit.core.plan.train import TrainSettings

PassSettings = PruneSettings | TrainSettings | RewriteSettings | QuantizeSettings
KINDS = {settings.FACTS.kind: settings for settings in get_args(PassSettings)}
