"""The verbs that look at what pruning would cost and bring: costs, sensitivity. Words in, plain dicts out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketfit.cli.arguments import Source, dataset
from pocketfit.core.errors import UserError

if TYPE_CHECKING:
    from pocketfit.analysis.latency_predictor import Predictor
    from pocketfit.numerics.channel_shapes import LayerShape


def sensitivity(
    source: Source,
    data: Path,
    out: Path | None,
    ratios: str,
    target: str | None,
    runtime: str | None,
    threads: int | None,
    criterion: Any,
    multiple: int,
    samples: int,
    workers: int,
    quiet: bool,
) -> dict[str, Any]:
    """Which channels a network can do without, and with `target` a plan that follows; see `pocketfit sensitivity -h`.

    With `out`, sensitivity.json, sensitivity.html and (with a plan) prune.json are written there, and out/cache keeps
    what has been evaluated. Returns

        schema_version  1
        data            name of the data
        model, labelled, samples, split, criterion, multiple, how: what was asked, how = "estimated"
        loss, accuracy, macs, size_bytes   of the whole network (float32; without labels: KL divergence 0, agreement 1)
        latency         null without a target for the latency, or runtime, threads, precision, environment, full_ms (of
                        the whole network, measured), networks (sub-networks measured), held_out (errors of predictions
                        for sub-networks that were not fitted on: n, median, worst, share_within, rank), how =
                        "estimated", disturbed (a sentence where other work ran beside the timing)
        curves          one object a group, in the order of the network: group, layers, pattern (for Prune.layers),
                        channels, edge ("first", "last", ""), why_not, points
                        a point: ratio, kept, loss, loss_rise, loss_rise_se, accuracy, drop_points, drop_points_se,
                        macs, size_bytes (of the network with this cut alone), latency_ratio (of it, predicted; null
                        without `latency`, and for what the first layer makes), why_not; numbers are null where it does
                        not run
        findings        sentences
        sentences       the headline, then what it stands on
        plan            null, or target, macs, size_bytes, macs_ratio, size_ratio (exact), drop_points, loss_rise (sums
                        of what groups alone cost), latency_ratio, latency_ms (predicted; null without
                        `latency`), multiple, criterion, line (Python), pass (for a plan.json)
    """
    from pocketfit import api
    from pocketfit.analysis.pruning.plan_for_target import Target, planned
    from pocketfit.analysis.pruning.sensitivity import checked_ratios
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import OF_A_RUN, OF_LOOKS, check_folder
    from pocketfit.report.pruning.sensitivity import sentences, write_sensitivity

    if out is not None:
        check_folder(out, (*OF_LOOKS, *OF_A_RUN))
    shares = checked_ratios(_numbers(ratios))
    aim = None if target is None else Target.parse(target)
    if (aim is None or aim.name != "latency") and (runtime is not None or threads is not None):
        raise UserError("--runtime and --threads say where a latency counts: give --target latency:0.5x with them")
    network = source.open()
    with watch_for_terminal(quiet) as watch:
        table = api.sensitivity(
            network,
            dataset(data, watch),
            shares,
            criterion=criterion,
            multiple=multiple,
            limit=samples,
            workers=workers,
            store=None if out is None else out / "cache",
            target=aim,
            runtime=runtime or "onnxruntime",
            threads=threads or 1,
            watch=watch,
        )
    plan = None if aim is None else planned(table, aim).to_json()
    result = {"schema_version": 1, "data": data.name, **table.to_json(), "plan": plan}
    result["sentences"] = sentences(result)
    if out is not None:
        write_sensitivity(out, result)
    return result


def costs(
    source: Source,
    out: Path | None,
    runtime: str,
    precision: Any,
    networks: int,
    threads: int,
    cache: Path | None,
    seed: int,
    quiet: bool,
) -> dict[str, Any]:
    """What the channels of a network cost in a runtime on this machine; see `pocketfit costs -h`. Returns

    schema_version  1
    model, runtime, threads, precision, environment (where it was measured; load_average as of the start)
    disturbed       a sentence where other work ran beside the timing, ""
    full_ms         latency of the whole network
    networks        how many sub-networks the table holds
    steps           by kind of layer the blocks of channels in which its kernels work: [inputs, outputs]
    held_out        errors of predictions of networks that were not fitted on: n, median, worst, share_within (10 %),
                    rank (Spearman's correlation)
    layers          one object a layer: name, kind, inputs, outputs, us (predicted, of the whole network)
    groups          one object a group: layer, channels, widths, ratios (predicted latency of the network with this
                    group alone at each width, over that of the whole), edges (widths at the edges of steps)
    """
    from dataclasses import asdict

    from pocketfit.analysis import latency_predictor
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.plan import ExportSettings
    from pocketfit.core.support.files import check_file, check_writable, write_json
    from pocketfit.measure import channel_cost_table
    from pocketfit.passes.graph.channel_graph import trace

    if out is not None:
        check_file(out, ("full_ms", "held_out"))
    if cache is not None:
        check_writable(cache)
    network = source.open()
    with watch_for_terminal(quiet) as watch:
        graph = trace(network.network, network.signature)
        table = channel_cost_table.measure(
            network,
            graph,
            ExportSettings(runtime, precision=precision),
            cache or channel_cost_table.cache_folder(watch),
            threads=threads,
            count=networks,
            seed=seed,
            watch=watch,
        )
    fitted = latency_predictor.fit(table)
    result = {
        "schema_version": 1,
        "model": source.model,
        "runtime": runtime,
        "threads": threads,
        "precision": precision,
        "environment": dict(table.environment),
        "disturbed": table.disturbed,
        "full_ms": table.full_ms,
        "networks": len(table.measured),
        "steps": {kind: list(steps) for kind, steps in fitted.steps.items()},
        "held_out": asdict(latency_predictor.held_out(table)),
        "layers": [_layer_cost(fitted, layer) for layer in table.skeleton.layers],
        "groups": [_group_cost(fitted, name) for name in table.skeleton.full],
    }
    if out is not None:
        write_json(out, result)
    return result


def _layer_cost(fitted: Predictor, layer: LayerShape) -> dict[str, Any]:
    inputs, outputs = fitted.skeleton.shape(layer, {})
    us = fitted.layers[layer.name].us(inputs, outputs)
    return {"name": layer.name, "kind": layer.kind, "inputs": inputs, "outputs": outputs, "us": us}


def _group_cost(fitted: Predictor, name: str) -> dict[str, Any]:
    from pocketfit.measure.channel_cost_table import widths_of
    from pocketfit.search.propose.allocate_widths import Choice, on_edges

    known = fitted.skeleton
    widths = widths_of(known.full[name], known.per_id[name])
    edges = on_edges(Choice(name, widths, (0.0,) * len(widths)), fitted.terms(), known.full).widths
    full_ms = fitted.latency_ms({})
    ratios = [fitted.latency_ms({name: width}) / full_ms for width in widths]
    return {"layer": name, "channels": known.full[name], "widths": widths, "ratios": ratios, "edges": edges}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--ratios '{text}' cannot be read: give shares with commas, such as 0.25,0.5,0.75") from error
