"""Settings of the passes that write the network in another form, or for another input size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pocketfit.core.plan.pass_facts import PassFacts, Pixels
from pocketfit.core.support.schema import check_rules


@dataclass(frozen=True)
class Resolution:
    """Feed the network a smaller image: height x width in pixels."""

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
    """Write hard-swish as x / 6 * relu6(x + 3): the same outputs, by operators that have int8 kernels in LiteRT."""

    FACTS: ClassVar[PassFacts] = PassFacts(kind="piecewise", words="hard-swish as a product", for_file=True)

    @property
    def code(self) -> str:
        return "pw"


@dataclass(frozen=True)
class Fold:
    """Put operators together by exact algebra: activations and norms that come in pieces, scales and offsets beside
    layers, layouts that cancel. The outputs stay the same; batch norms and dropout stay, as training wants them."""

    FACTS: ClassVar[PassFacts] = PassFacts(kind="fold", words="operators folded", moves_weights=True)

    @property
    def code(self) -> str:
        return "fold"


RewriteSettings = Resolution | Piecewise | Fold
