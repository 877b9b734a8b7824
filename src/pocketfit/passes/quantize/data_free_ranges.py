"""Ranges of a quantized file's tensors without any data: from what batch norms remember, followed through the graph."""

from __future__ import annotations

from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.samples import value_range
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.quantize import batch_norm_moments
from pocketfit.passes.quantize.simulate.observe_ranges import ends_of
from pocketfit.passes.quantize.simulate.simulation import simulate

# Answers depend on each other more than a sum of independent inputs: cut off at six deviations, the largest logits of
# the pretrained MobileNetV2 were all the same, and the agreement with float32 72 % in place of 96 %.
WIDER_ANSWERS = 2.0


def ranges(model: Model, grid: Grid) -> dict[str, tuple[float, float]]:
    """By the names of `simulate.tensors_of`: the lowest and the highest value of any channel, six deviations from its
    mean (Nagel et al. 2019, section 5), clipped as the network clips it; pictures have the range of their pixels, and
    the network's answers twice the range.

    A tensor behind an operator that `moments` does not know is left out. Raises UserError for a network without batch
    norms.
    """
    program = aten.export(fold_batch_norm(model.network, model.signature), model.signature)
    found: dict[str, tuple[float, float]] = {}
    simulation = simulate(model, grid)
    answers = ends_of(simulation)
    for node, known in batch_norm_moments.trace(model, program).items():
        if node.op == "placeholder" and model.signature.inputs[0].layout:
            found[node.name] = value_range(model.preprocess)
        else:
            wider = WIDER_ANSWERS if node.name in answers else 1.0
            found[node.name] = wider * float(known.low.min()), wider * float(known.high.max())
    return {name: found[name] for name in simulation.points if name in found}
