"""Which channels of a group matter: plain functions from (one coupled group, its statistics) to scores.

Scores are float64 [n], one for each channel of `group.ids`; channels with higher ones stay. A user's own function has
the same form:

    def widest(group: Group, statistics: Statistics) -> NDArray[np.float64]:
        return np.abs(statistics.makes()).max(1)

Weights that make a channel are those of its filters, in all layers that make the group. Weights that read it are its
columns in the layers behind. A channel acts on the loss only through the weights that read it, so gradients are taken
there: no coupled layer, bias or batch norm is forgotten, and none counts twice (the sum of g w over the weights that
read x equals the sum of g x, as a layer is linear in both).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Prune
from pocketfit.core.samples import Samples
from pocketfit.core.support import user_code
from pocketfit.passes.graph.channel_graph import ChannelGraph, Group
from pocketfit.passes.prune import constant_channels
from pocketfit.passes.prune.criterion_statistics import Statistics, Survey

Scores = NDArray[np.float64]
Criterion = Callable[[Group, Statistics], Scores]
DATA_DRIVEN = ("taylor", "hessian", "activation", "activation-rank")


def l1(group: Group, statistics: Statistics) -> Scores:
    """sum |w| of the weights that make the channel (Li et al. 2017, section 3.1)."""
    total: Scores = np.abs(statistics.makes()).sum(1)
    return total


def l2(group: Group, statistics: Statistics) -> Scores:
    """sqrt(sum w²) of the weights that make the channel (Li et al. 2017, section 4.5)."""
    total: Scores = np.sqrt((statistics.makes() ** 2).sum(1))
    return total


def bn_scale(group: Group, statistics: Statistics) -> Scores:
    """mean |gamma| of the channel in the batch norms that it passes (Liu et al. 2017, section 3, equation 1).

    A group without batch norms has l2 instead, and `apply` says so.
    """
    gammas = statistics.gammas()
    total: Scores = np.abs(gammas).mean(1) if gammas.size else l2(group, statistics)
    return total


def fpgm(group: Group, statistics: Statistics) -> Scores:
    """sum over all other channels of the distance between their filters (He et al. 2019, equation 7): the others can
    replace a filter near their geometric median."""
    filters = torch.from_numpy(statistics.makes())
    distances: Scores = torch.cdist(filters, filters).sum(1).numpy()
    return distances


def lamp(group: Group, statistics: Statistics) -> Scores:
    """w_u² / sum of w_v² over all v that are not smaller (Lee et al. 2021, equation 3), w² that of a whole channel.

    Comparable between groups: the channel's share in what is left when it is the next to go; the strongest one has 1.
    """
    squares = (statistics.makes() ** 2).sum(1)
    order = np.argsort(squares, kind="stable")
    not_smaller = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty(len(squares))
    scores[order] = np.divide(squares[order], not_smaller, out=np.zeros(len(squares)), where=not_smaller > 0)
    return scores


def taylor(group: Group, statistics: Statistics) -> Scores:
    """(sum of g w)² over the weights that read the channel (Molchanov et al. 2019, equations 6 and 8), g the gradient
    of the mean loss of a batch; the mean of all batches. Comparable between groups: the change of the loss, squared."""
    total: Scores = (statistics.first_order() ** 2).mean(0)
    return total


def hessian(group: Group, statistics: Statistics) -> Scores:
    """sum of h w² / 2 over the weights that read the channel (LeCun et al. 1989, equation 5), h the diagonal of the
    empirical Fisher matrix: the mean over the samples of g². Comparable between groups."""
    return statistics.second_order() / 2


def activation(group: Group, statistics: Statistics) -> Scores:
    """mean |a| of the channel as the layers behind it see it (Molchanov et al. 2017, section 2.2, "activation")."""
    return statistics.activation()


def activation_rank(group: Group, statistics: Statistics) -> Scores:
    """mean rank of the channel's feature maps, before any pooling (Lin et al. 2020, equations 4 and 5)."""
    return statistics.rank()


def random(group: Group, statistics: Statistics) -> Scores:
    """Drawn by the seed and the group's name: the floor that every other criterion has to beat."""
    return np.random.default_rng([statistics.seed, zlib.crc32(group.name.encode())]).random(len(group.ids))


CRITERIA: Mapping[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "bn-scale": bn_scale,
    "fpgm": fpgm,
    "lamp": lamp,
    "taylor": taylor,
    "hessian": hessian,
    "activation": activation,
    "activation-rank": activation_rank,
    "random": random,
}


BY_WEIGHTS = (l1, l2, bn_scale, fpgm, lamp)  # they can't see that a channel of zero weights still gives its shift


def group_scores(
    model: Model,
    graph: ChannelGraph,
    settings: Prune,
    samples: Samples | None = None,
    *,
    criterion: Criterion | None = None,
) -> dict[str, Scores]:
    """float64 [n] for each group that may lose channels (that of the first layer, too), by its name; higher stays.

    Data-driven criteria look at `settings.samples` of the samples, drawn by `settings.seed`; a sample without a label
    gets the network's own prediction as label. Raises UserError where samples are missing, and for scores that are NaN,
    infinite or of another shape, naming criterion and layer.
    """
    groups = [group for group in graph.groups if group.prunable]
    return scored(model, graph, groups, settings, samples, criterion)[0]


def scored(
    model: Model,
    graph: ChannelGraph,
    groups: list[Group],
    settings: Prune,
    samples: Samples | None,
    criterion: Criterion | None,
) -> tuple[dict[str, Scores], tuple[str, ...]]:
    """(the scores of these groups, sentences for the user about how they were computed)."""
    name = settings.criterion if criterion is None else getattr(criterion, "__name__", "criterion")
    function = criterion or CRITERIA.get(settings.criterion) or user_code.function(settings.criterion, "criterion")
    survey = Survey(model, graph, settings, samples, name)
    known = {group.name: Statistics(survey, group) for group in groups}
    scores = {group.name: _checked(function(group, known[group.name]), group, name) for group in groups}
    findings = list(survey.findings)
    constant = constant_channels.held(constant_channels.readers(model)) if groups and function in BY_WEIGHTS else set()
    scores, concerned = constant_channels.ranked(groups, scores, constant)
    if concerned:
        findings.append(
            f"Some channels of {', '.join(concerned)} give the same for every input, and that is not zero; what reads"
            " them can't do without it, so that they were not ranked as dead ones."
        )
    if function is bn_scale and groups:
        without = [group.name for group in groups if not known[group.name].gammas().size]
        if len(without) == len(groups):
            raise UserError(
                "The criterion 'bn-scale' finds no batch norm behind any layer that can be pruned: choose another one"
            )
        if without:
            findings.append(f"No batch norm follows {', '.join(without)}: those channels were ranked by 'l2'.")
    return scores, tuple(findings)


def _checked(scores: Any, group: Group, name: str) -> Scores:
    try:
        values = np.asarray(scores, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"The criterion '{name}' gives no numbers for layer '{group.name}': {error}") from error
    if values.shape != (len(group.ids),):
        raise UserError(
            f"The criterion '{name}' gives scores of shape {values.shape} for layer '{group.name}', which has "
            f"{len(group.ids)} channels to rank: give one score for each"
        )
    if not np.isfinite(values).all():
        raise UserError(
            f"The criterion '{name}' gives NaN or infinity for layer '{group.name}': every channel needs a finite score"
        )
    return values
