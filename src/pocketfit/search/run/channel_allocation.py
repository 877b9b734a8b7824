"""Where pruning takes its channels from: decided once a run, for this network and, by latency, for this device.

A ratio of the search, cut uniformly, has a cost; the allocation keeps the most important channels at the same cost
(allocate_widths.py). Cost is multiply-accumulates, or milliseconds predicted from a table measured in the runtime; with
a limit on size it is the parameters too. Multiply-accumulates give the same widths on every machine and in every run,
milliseconds do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pocketfit.core.budget import Budget
from pocketfit.core.errors import PocketfitError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.prune import Prune
from pocketfit.core.support.progress import Watch
from pocketfit.numerics.channel_shapes import Skeleton, Term, mac_terms, parameter_terms
from pocketfit.search.journal import Record
from pocketfit.search.propose import allocate_widths
from pocketfit.search.propose.allocate_widths import Choice, Widths
from pocketfit.search.run.job import Job

WIDTHS = 40  # widths that a group may choose from, at most: with all multiples of 8, ResNet-50 takes long (notes.md)
NETWORKS = 24  # sub-networks in a table of costs
TIGHTENINGS = 6  # how often the target of a joint cost is lowered, until no part is above that of a uniform cut
EXCESS = 0.02  # by which a part may be above it


def allocation_line(
    job: Job, settings: ExportSettings, ratios: Sequence[float], multiple: int, watch: Watch
) -> dict[str, Any]:
    """The journal's "allocation" line: for each ratio the widths, as `Prune.keep` takes them.

    settings  export settings of the files whose latency counts, where the job asks for allocation by latency

    Where it cannot be done the line has no widths and says why; pruning is then uniform.
    """
    from pocketfit.analysis import latency_predictor
    from pocketfit.measurement import channel_cost_table
    from pocketfit.passes.graph.channel_graph import trace
    from pocketfit.passes.prune import criteria, prune_channels
    from pocketfit.passes.prune import subnetworks as widths

    line: dict[str, Any] = {"kind": "allocation", "by": job.allocation, "criterion": job.criterion, "keep": []}
    try:
        graph = trace(job.start.network, job.start.signature)
        known = widths.skeleton(job.start.network, graph)
        asked = Prune(0.0, job.criterion, seed=job.seed)
        watch.step(f"scoring channels by {job.criterion}")
        samples = job.samples("train", job.model.preprocess, watch, limit=asked.samples)
        scores = criteria.group_scores(job.start, graph, asked, samples)
        terms = mac_terms(known)
        if job.allocation == "latency":
            table = channel_cost_table.measure(
                job.start,
                graph,
                settings,
                channel_cost_table.cache_folder(watch),
                threads=job.threads,
                count=NETWORKS,
                watch=watch,
            )
            terms = latency_predictor.fit(table).terms()
            line["held_out"] = vars(latency_predictor.held_out(table))
            if table.disturbed:
                line["disturbed"] = table.disturbed
                watch.say(f"widths by latency are not to be trusted: {table.disturbed}")
    except PocketfitError as error:
        return {**line, "error": str(error)}
    fixed = {
        group.name
        for group in prune_channels.removable(graph)
        if any(re.search(pattern, layer) for pattern, _ in job.layer_ratios for layer in group.layers)
    }
    choices = [
        allocate_widths.from_scores(
            name,
            channel_cost_table.widths_of(full, known.per_id[name], multiple * math.ceil(full / (multiple * WIDTHS))),
            scores[name],
        )
        for name, full in known.full.items()
    ]
    choices = [replace(c, widths=(c.whole,), losses=(0.0,)) if c.layer in fixed else c for c in choices]
    parts = _parts(known, terms, job.budget)
    for ratio in ratios:
        found = allocated(choices, parts, ratio)
        # whole groups are named too: the plan's ratio is that of the uniform cut, and would narrow them
        line["keep"].append([ratio, [[c.layer, found[c.layer]] for c in choices if c.layer not in fixed]])
    return line


def allocations(record: Record) -> dict[float, tuple[tuple[str, int], ...]]:
    """The value of `Prune.keep` for each ratio; {} where channels are cut uniformly."""
    line = record.allocation or {}
    return {ratio: tuple((layer, width) for layer, width in keep) for ratio, keep in line.get("keep", ())}


def allocated(choices: Sequence[Choice], parts: Sequence[Sequence[Term]], ratio: float) -> Widths:
    """The widths that keep most importance while no part of the cost is above that of a uniform cut at this ratio.

    parts  one cost or two. Two are summed, each as a share of the whole network's, and the target of the sum is lowered
           until both fit
    """
    whole = {choice.layer: choice.whole for choice in choices}
    uniform = allocate_widths.uniform(choices, ratio)
    shares = [scaled(part, 1 / allocate_widths.cost_of(part, whole)) for part in parts]
    joint = [term for part in shares for term in part]
    wanted = [allocate_widths.cost_of(part, uniform) for part in shares]
    target = math.fsum(wanted)
    found = allocate_widths.cost_aware(choices, joint, target)
    for _ in range(TIGHTENINGS):
        excess = max(allocate_widths.cost_of(part, found) / most for part, most in zip(shares, wanted, strict=True))
        if excess <= 1 + EXCESS:
            return min(found, uniform, key=lambda widths: allocate_widths.lost(choices, widths))
        target /= excess
        least = allocate_widths.cost_of(joint, {choice.layer: choice.widths[0] for choice in choices})
        found = allocate_widths.cost_aware(choices, joint, max(target, least))
    return uniform


def scaled(terms: Iterable[Term], factor: float) -> tuple[Term, ...]:
    """The same cost in another unit."""

    def times(term: Term) -> Term:
        return Term(term.groups, lambda widths: factor * term.of(widths))

    return tuple(times(term) for term in terms)


def _parts(known: Skeleton, terms: Sequence[Term], budget: Budget) -> list[Sequence[Term]]:
    """The costs that must not be above those of a uniform cut: time, bytes, or both, by the limits and `prefer`."""
    limited = {limit.quantity for limit in budget.limits}
    bytes_count = any(limit.about.exact for limit in budget.limits) or budget.prefer in ("size", "balanced")
    time_counts = "latency" in limited or budget.prefer in ("speed", "balanced")
    parts: list[Sequence[Term]] = [terms] if time_counts or not bytes_count else []
    return parts + ([parameter_terms(known)] if bytes_count else [])
