"""What may be tried, and what is tried next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.quantize import QuantTrain
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Stage


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may be tried. `recipes`: the exports without training that each runtime supports, the quick ones first.

    keep_float: layers that the user wants in float
    ends: dotted names of the first and last weight-bearing layers, which lose most when quantized
    macs: multiply-accumulates of each layer with weights, by its dotted name
    params: how many numbers each of these layers holds
    four_bit: runtimes that have kernels for 4-bit weights in static int8 files
    quant_train: settings of training on the grid
    fold: what every plan but the float32 baselines begins with, in front of pruning
    prelude: by runtime, what is done to the network before a static int8 file is made of it
    prune: how channels are scored, rounded and limited, for pruned networks
    rounds: how many rounds of pruning and recovery follow each other
    widths: by ratio, the value of `Prune.keep`; a ratio that is not in it is cut uniformly
    sensitive: by runtime, where it has been computed: ever larger sets of layers whose noise is worth their cost in
        float
    sensitive_4: by runtime, for 4-bit weights: each layer's share of the noise, and the bytes that 8 bits take more
    """

    runtimes: tuple[str, ...]
    baselines: Mapping[str, ExportSettings]
    recipes: Mapping[str, tuple[ExportSettings, ...]]
    ends: tuple[str, ...]
    height: int
    width: int
    keep_resolution: bool
    train: Train
    short_steps: int
    long_steps: int
    prune: Prune = Prune(0.0)  # noqa: RUF009 (frozen)
    rounds: int = 1
    widths: Mapping[float, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    params: Mapping[str, int] = field(default_factory=dict)
    four_bit: tuple[str, ...] = ()
    quant_train: QuantTrain = QuantTrain(100)  # noqa: RUF009 (frozen)
    keep_float: tuple[str, ...] = ()
    fold: tuple[PassSettings, ...] = ()
    prelude: Mapping[str, tuple[PassSettings, ...]] = field(default_factory=dict)
    sensitive: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    sensitive_4: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def mixed(self, export: ExportSettings, layers: Collection[str]) -> ExportSettings:
        """The export with these layers in float, beside those that the user wants in float."""
        return replace(export, keep_float=tuple(dict.fromkeys((*self.keep_float, *layers))))

    def plain(self, export: ExportSettings) -> Plan:
        """The plan that only exports; operators without an int8 kernel in the runtime are first replaced by others."""
        prelude = self.prelude.get(export.runtime, ()) if export.precision == "int8" else ()
        return Plan((*self.fold, *prelude), export)


@dataclass(frozen=True)
class Proposal:
    """The next plan.

    stage  the stage that its trial belongs to
    row    name of its Row (propose.py), by which it is skipped when time runs out
    steps  how many training steps in float it asks for beyond those that have been done
    """

    plan: Plan
    stage: Stage
    row: str = ""
    steps: int = 0
