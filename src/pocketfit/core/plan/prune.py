"""Settings of the passes that remove channels or set weights to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pocketfit.core.errors import UserError
from pocketfit.core.plan.pass_facts import Cut, PassFacts, Samples, check_patterns
from pocketfit.core.support.rules import Between, Positive, Seed, shown
from pocketfit.core.support.schema import check_rules
from pocketfit.core.support.user_code import NAME

Criterion = Literal[
    "l1", "l2", "bn-scale", "fpgm", "lamp", "taylor", "hessian", "activation", "activation-rank", "random"
]
SparsePattern = Literal["unstructured", "2:4", "1:4"]


@dataclass(frozen=True)
class Prune:
    """Remove a share of the channels of every coupled group.

    ratio       share of the channels of each prunable group, 0 <= ratio < 1; 0 where `layers` or `keep` say it all
    criterion   which channels of a group go first (passes/prune/criteria.py): one of Criterion, or
                "package.module:function"
    multiple    the channels that stay are rounded to the nearest multiple of this (kernels work in blocks)
    layers      (regular expression, ratio) pairs that overrule `ratio` for layers whose name matches, first wins
    keep        (layer, channels) pairs: the group that this layer makes keeps exactly so many, whatever the ratio says
    samples     how many samples of the training split a data-driven criterion looks at
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
        check_patterns(self.layers)
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
class Sparsify:
    """Set weights of convolutions and linear layers to zero; later trainings keep these zeros.

    sparsity   share of each layer's weights that is zero ("unstructured"; the patterns have their own)
    pattern    "2:4", "1:4": of each four consecutive weights along the inputs, two or one stay
    criterion  "magnitude" (Han et al. 2015), or "movement": weights that training moves away from zero stay (Sanh et
               al. 2020, section 3); it looks at `samples` of the training split
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
        check_patterns(self.layers)

    @property
    def code(self) -> str:
        share = f"{round(self.sparsity * 100):d}" if self.pattern == "unstructured" else self.pattern.replace(":", "of")
        return f"sparse{share}"


PruneSettings = Prune | Sparsify
