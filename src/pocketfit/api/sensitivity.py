"""`pocketfit.sensitivity`: what pruning costs, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.prune import Criterion, Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.user_code import Allowed

if TYPE_CHECKING:
    from pocketfit.analysis.pruning.plan_for_target import Target
    from pocketfit.analysis.pruning.sensitivity import ChannelTable


from pocketfit.api.inputs import Data, Network, as_dataset, as_model, named, split_for


def sensitivity(
    model: Network,
    samples: Data,
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
    """What each group of coupled channels costs when it alone is pruned, estimated on the validation split in PyTorch.

    model, samples, preprocess, labels, allow_code  as for `fit`; at most `limit` samples are looked at
    ratios     shares of a group's channels that are removed, one after the other
    criterion  which channels go first, as Prune.criterion
    multiple   the channels that stay are rounded to the nearest multiple of this
    workers    processes of one thread that judge groups side by side
    store      folder that keeps what has been judged, so that a stopped run goes on; None: nothing is kept
    target     what a plan shall reach: raises UserError, before anything is evaluated, where the ratios cannot reach it
    runtime, threads  where a target for the latency counts; its table of costs is measured, in float32, or taken from
               the user's cache folder
    """
    from pocketfit.analysis.pruning import predicted_latency
    from pocketfit.analysis.pruning.plan_for_target import check_reachable
    from pocketfit.analysis.pruning.sensitivity import channel_sensitivity, checked_ratios
    from pocketfit.measurement.channel_cost_table import cache_folder
    from pocketfit.passes.graph.channel_graph import trace
    from pocketfit.passes.prune.criteria import DATA_DRIVEN

    shares, asked = checked_ratios(ratios), Prune(0.0, criterion, multiple)
    watch = watch or Silent()
    data = as_dataset(samples, watch)
    network = named(as_model(model, preprocess, labels, allow_code), data, watch)
    latency = None
    if target is not None and target.name == "latency":
        graph, settings = trace(network.network, network.signature), ExportSettings(runtime)
        tables = cache_folder(watch)
        latency = predicted_latency.measured(network, graph, settings, tables, threads=threads, watch=watch)
    with temporary_folder() as work:
        cache = Path(work)
        judged = split_for(network, data, "search", limit, watch, cache)
        looked_at = split_for(network, data, "train", asked.samples, watch, cache) if criterion in DATA_DRIVEN else None
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
