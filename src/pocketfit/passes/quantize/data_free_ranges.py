"""Ranges of a quantized file's tensors without any data: statistics of batch norms, followed through the graph."""

from __future__ import annotations

from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.samples import value_range
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.quantize import batch_norm_moments
from pocketfit.passes.quantize.simulate.observe_ranges import ends_of
from pocketfit.passes.quantize.simulate.simulation import simulate

# Logits have a wider range than the sum of independent inputs from which their deviation is computed. A range of six
# deviations clips the largest ones to the same number (docs/results/notes.md, "Ranges without data").
WIDER_ANSWERS = 2.0


def ranges(model: Model, grid: Grid) -> dict[str, tuple[float, float]]:
    """The lowest and the highest value of each tensor, by the names of `simulation.tensors_of`.

    A channel reaches six deviations from its mean (Nagel et al. 2019, section 5), clipped where the network clips it; a
    tensor's range holds those of all its channels. Images have the range of their pixels, the network's outputs
    WIDER_ANSWERS times the computed range.

    A tensor behind an operator that batch_norm_moments.py does not know is left out. Raises UserError for a network
    without batch norms.
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
