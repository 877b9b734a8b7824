"""`pocketfit.costs`: what channels cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketfit.analysis import latency_predictor
from pocketfit.analysis.latency_predictor import Predictor
from pocketfit.api.inputs import Network, as_model
from pocketfit.core.plan.export import ExportSettings, Precision
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.user_code import Allowed
from pocketfit.measurement import channel_cost_table
from pocketfit.measurement.channel_cost_table import CostTable, widths_of
from pocketfit.numerics.channel_shapes import LayerShape
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.search.propose.allocate_widths import Choice, on_edges

NETWORKS = 24


@dataclass(frozen=True)
class ChannelCosts:
    """What was measured, and the predictor that was fitted to it; `predictor.latency_ms({group: channels})` tells what
    a narrower network would take."""

    settings: ExportSettings
    threads: int
    table: CostTable
    predictor: Predictor

    def to_json(self) -> dict[str, Any]:
        """The object that `pocketfit costs --json` prints, less the name of the model:

        schema_version  1
        runtime, threads, precision, environment (where it was measured; load_average as of the start)
        disturbed       a sentence where other work ran beside the timing, ""
        full_ms         latency of the whole network
        networks        how many sub-networks the table holds
        steps           by kind of layer the blocks of channels in which its kernels work: [inputs, outputs]
        held_out        errors of predictions of networks that were not fitted on: n, median, worst, share_within
                        (10 %), rank (Spearman's correlation)
        layers          one object a layer: name, kind, inputs, outputs, us (predicted, of the whole network)
        groups          one object a group: layer, channels, widths, ratios (predicted latency of the network with this
                        group alone at each width, over that of the whole), edges (widths at the edges of steps)
        """
        fitted, table = self.predictor, self.table
        return {
            "schema_version": 1,
            "runtime": self.settings.runtime,
            "threads": self.threads,
            "precision": self.settings.precision,
            "environment": dict(table.environment),
            "disturbed": table.disturbed,
            "full_ms": table.full_ms,
            "networks": len(table.measured),
            "steps": {kind: list(steps) for kind, steps in fitted.steps.items()},
            "held_out": asdict(latency_predictor.held_out(table)),
            "layers": [_layer_cost(fitted, layer) for layer in table.skeleton.layers],
            "groups": [_group_cost(fitted, name) for name in table.skeleton.full],
        }


def costs(
    model: Network,
    *,
    runtime: str = "litert",
    precision: Precision = "float32",
    networks: int = NETWORKS,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    threads: int = 1,
    cache: str | Path | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> ChannelCosts:
    """What the channels of a network cost in a runtime on this machine, measured on the network at random widths.

    model, preprocess, labels, allow_code  as for `fit`
    runtime, precision, threads  of the files that are timed
    networks  how many sub-networks are measured
    cache     where tables are kept; None: ~/.cache/pocketfit
    seed      of the random widths
    Raises UserError for a network without groups of channels.
    """
    watch = watch or Silent()
    network = as_model(model, preprocess, labels, allow_code)
    settings = ExportSettings(runtime, precision=precision)
    table = channel_cost_table.measure(
        network,
        trace(network.network, network.signature),
        settings,
        Path(cache) if cache is not None else channel_cost_table.cache_folder(watch),
        threads=threads,
        count=networks,
        seed=seed,
        watch=watch,
    )
    return ChannelCosts(settings, threads, table, latency_predictor.fit(table))


def _layer_cost(fitted: Predictor, layer: LayerShape) -> dict[str, Any]:
    inputs, outputs = fitted.skeleton.shape(layer, {})
    us = fitted.layers[layer.name].us(inputs, outputs)
    return {"name": layer.name, "kind": layer.kind, "inputs": inputs, "outputs": outputs, "us": us}


def _group_cost(fitted: Predictor, name: str) -> dict[str, Any]:

    known = fitted.skeleton
    widths = widths_of(known.full[name], known.per_id[name])
    edges = on_edges(Choice(name, widths, (0.0,) * len(widths)), fitted.terms(), known.full).widths
    full_ms = fitted.latency_ms({})
    ratios = [fitted.latency_ms({name: width}) / full_ms for width in widths]
    return {"layer": name, "channels": known.full[name], "widths": widths, "ratios": ratios, "edges": edges}
