"""Latency of a network with fewer channels in a runtime: predicted from a table of measured sub-networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketfit.analysis import latency_predictor
from pocketfit.analysis.latency_predictor import Errors, Predictor
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.support.progress import Watch
from pocketfit.measurement import channel_cost_table

if TYPE_CHECKING:
    from pocketfit.passes.graph.channel_graph import ChannelGraph


@dataclass(frozen=True, kw_only=True)
class ChannelLatency:
    """Estimated latencies of the networks in a ChannelTable; that of the whole network, `full_ms`, is measured.

    held_out  errors of such predictions on measured sub-networks that were not used for the fit
    groups    for each of ChannelGraph.groups its name and how many channels it has
    """

    runtime: str
    threads: int
    precision: str
    environment: Mapping[str, Any]
    full_ms: float
    networks: int
    held_out: Errors
    fitted: Predictor
    groups: tuple[tuple[str, int], ...]
    how: Literal["estimated"] = "estimated"
    disturbed: str = ""  # a sentence where other work ran beside the timing

    def ratio(self, removed: Mapping[int, int]) -> float:
        """Predicted latency over the whole network's, after each group, by its number, has lost so many channels.

        NaN where one of them is not in the table of costs: the group that the first layer makes.
        """
        widths = {}
        for number, lost in removed.items():
            name, channels = self.groups[number]
            if lost and name not in self.fitted.skeleton.full:
                return math.nan
            if lost:
                widths[name] = self.fitted.skeleton.full[name] * (channels - lost) // channels
        return self.fitted.ratio(widths)

    def to_json(self) -> dict[str, Any]:
        """The JSON for the result, without the predictor."""
        kept = {key: value for key, value in vars(self).items() if key not in ("fitted", "groups")}
        return {**kept, "held_out": asdict(self.held_out), "environment": dict(self.environment)}


def measured(
    model: Model, graph: ChannelGraph, settings: ExportSettings, folder: Path, *, threads: int, watch: Watch
) -> ChannelLatency:
    """The ChannelLatency from the table of costs in `folder`; missing sub-networks are measured now.

    Raises UserError where no group can be pruned, MissingPackage where the runtime is not installed, and what its
    export raises.
    """
    table = channel_cost_table.measure(model, graph, settings, folder, threads=threads, watch=watch)
    groups = tuple((group.name, len(group.ids)) for group in graph.groups)
    return ChannelLatency(
        runtime=table.runtime,
        threads=threads,
        precision=table.precision,
        environment=table.environment,
        full_ms=table.full_ms,
        networks=len(table.measured),
        held_out=latency_predictor.held_out(table),
        fitted=latency_predictor.fit(table),
        groups=groups,
        disturbed=table.disturbed,
    )
