"""`pocketfit apply`: the file of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.arguments import Source, Teacher, dataset
from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.files_in import plan_of
from pocketfit.cli.options import DATA, PATH, data_option, quiet_option, source_options, task_option, teacher_options
from pocketfit.core.support.processes import rank


@click.command("apply")
@click.argument("plan", type=PATH)
@click.argument("model")
@data_option(f"{DATA} Not for plans that need none.", required=False)
@click.option("-o", "--out", required=True, type=PATH, help="Folder for the file.")
@source_options()
@task_option
@teacher_options
@quiet_option
@guarded
def command(as_json: bool, **options: Any) -> int:
    """Make the artifact of PLAN (a plan.json) from MODEL again.

    Processes started by `torchrun -m pocketfit apply` train together, each on its part of every batch.
    """
    print_result(apply(**options), as_json, show)
    return 0


def apply(
    plan: Path, source: Source, data: Path | None, out: Path, task: str, teacher: Teacher, quiet: bool
) -> dict[str, Any]:
    """Make a plan's artifact again."""
    from pocketfit.api import apply as road
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import OF_APPLY, check_folder

    if rank().first:
        check_folder(out, OF_APPLY)
    agreed = source.agreed(teacher.model)
    wanted = plan_of(plan, agreed)
    network = source.open(teacher.model)
    taught_by = teacher.open(network, agreed)
    with watch_for_terminal(quiet) as watch:
        samples = dataset(data, watch)
        if not rank().first:
            road.take_part(wanted, network, samples, task=task, teacher=taught_by)
            return {}
        made = road.apply(wanted, network, samples, out, task=task, teacher=taught_by, watch=watch)
    return {
        **made.artifact.to_json(),
        "code": wanted.code,
        "plan": wanted.to_json(),
        "findings": list(made.model.findings),
    }


def show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain
    from pocketfit.report.page.words import format_bytes

    console = plain()
    console.print(f"{escape(data['path'])}  {format_bytes(data['bytes'])}  sha256 {data['sha256']}")
    for sentence in (*data["notes"], *data["findings"]):
        console.print(f"• {escape(sentence)}")
