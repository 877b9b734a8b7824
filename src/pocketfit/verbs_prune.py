"""The verbs that look at what pruning would cost and bring: costs, sensitivity. Words in, plain dicts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pocketfit.core.errors import UserError


def sensitivity(
    model: str,
    data: Path,
    out: Path | None,
    weights: Path | None,
    preprocess: str | None,
    labels: Path | None,
    input_shape: str | None,
    ratios: str,
    target: str | None,
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
        curves          one object a group, in the order of the network: group, layers, pattern (for Prune.layers),
                        channels, edge ("first", "last", ""), why_not, points
                        a point: ratio, kept, loss, loss_rise, loss_rise_se, accuracy, drop_points, drop_points_se,
                        macs, size_bytes (of the network with this cut alone), why_not; numbers are null where it
                        does not run
        findings        sentences
        sentences       the headline, then what it stands on
        plan            null, or target, macs, size_bytes, macs_ratio, size_ratio (exact), drop_points, loss_rise (sums
                        of what groups alone cost), multiple, criterion, line (Python), pass (for a plan.json)
    """
    from pocketfit import api
    from pocketfit.analysis.channel_plan import Target, planned
    from pocketfit.analysis.channel_sensitivity import checked_ratios
    from pocketfit.progress import watch_for_terminal
    from pocketfit.report.channel_sensitivity import sentences, write_sensitivity
    from pocketfit.sources.data import open_data
    from pocketfit.sources.models import open_model

    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; nothing was changed: give a folder")
    shares = checked_ratios(_numbers(ratios))
    aim = None if target is None else Target.parse(target)
    network = open_model(model, weights=weights, preprocess=preprocess, labels=labels, input_shape=input_shape)
    with watch_for_terminal(quiet) as watch:
        dataset = open_data(data, progress=watch.step("looking at the data"))
        table = api.sensitivity(
            network,
            dataset,
            shares,
            criterion=criterion,
            multiple=multiple,
            limit=samples,
            workers=workers,
            store=None if out is None else out / "cache",
            target=aim,
            watch=watch,
        )
    plan = None if aim is None else planned(table, aim).to_json()
    result = {"schema_version": 1, "data": data.name, **table.to_json(), "plan": plan}
    result["sentences"] = sentences(result)
    if out is not None:
        write_sensitivity(out, result)
    return result


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--ratios '{text}' cannot be read: give shares with commas, such as 0.25,0.5,0.75") from error
