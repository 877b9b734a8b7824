"""`pocketfit.sensitivity`: what pruning costs, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.prune import Criterion, Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.user_code import Allowed
from pocketfit.search.run.job import about_order, with_labels

if TYPE_CHECKING:
    from pocketfit.analysis.pruning.plan_for_target import Target
    from pocketfit.analysis.pruning.sensitivity import ChannelTable


from pocketfit.api.inputs import as_dataset, as_model


def sensitivity(
    model: Any,
    samples: Any,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    criterion: Criterion = "l2",
    multiple: int = 8,
    limit: int = 1000,
    workers: int = 1,
    store: Path | None = None,
    target: Target | None = None,
    runtime: str = "onnxruntime",
    threads: int = 1,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> ChannelTable:
    """What each group of coupled channels costs when it alone is pruned, estimated on the search split in PyTorch.

    model, samples, preprocess, labels, allow_code  as for `fit`; at most `limit` samples are looked at
    ratios, criterion, multiple, workers, store  as for analysis.pruning.sensitivity.channel_sensitivity
    target  the target of a plan: raises UserError, before anything is evaluated, where the ratios cannot reach it
    runtime, threads  where a target for the latency counts; its table of costs is measured, in float32, or taken from
            cost_table.cache_folder()
    """
    from pocketfit.analysis.pruning import predicted_latency
    from pocketfit.analysis.pruning.plan_for_target import check_reachable
    from pocketfit.analysis.pruning.sensitivity import channel_sensitivity, checked_ratios
    from pocketfit.measurement.channel_cost_table import cache_folder
    from pocketfit.passes.graph.channel_graph import trace
    from pocketfit.passes.prune.criteria import DATA_DRIVEN
    from pocketfit.search.run.job import aligned

    shares, asked = checked_ratios(ratios), Prune(0.0, criterion, multiple)
    watch = watch or Silent()
    data = as_dataset(samples)
    opened, latency = as_model(model, preprocess, labels, allow_code), None
    network = with_labels(opened, data.class_names)
    data.check_fits(network.signature.inputs[0], network.preprocess)
    for sentence in about_order(opened, network, data.class_names):
        watch.say(sentence)
    if target is not None and target.name == "latency":
        graph, settings = trace(network.network, network.signature), ExportSettings(runtime)
        tables = cache_folder(watch)
        latency = predicted_latency.measured(network, graph, settings, tables, threads=threads, watch=watch)
    with temporary_folder() as work:

        def split(name: str, most: int) -> Samples:
            tick = watch.step(f"reading the {name} split")
            found = data.split(
                name, network.preprocess, split_seed=network.split_seed, limit=most, progress=tick, cache=Path(work)
            )
            return aligned(found, data.class_names, network.labels)

        judged = split("search", limit)
        looked_at = split("train", asked.samples) if criterion in DATA_DRIVEN else None
        return channel_sensitivity(
            network,
            judged,
            shares,
            criterion=criterion,
            multiple=multiple,
            looked_at=looked_at,
            workers=workers,
            store=store,
            progress=watch.step("judging groups of channels"),
            check=None if target is None else lambda table: check_reachable(table, target),
            latency=latency,
        )
