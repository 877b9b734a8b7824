"""`pocketfit export`: the network for PyTorch, without pocketfit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.arguments import Source, Teacher, dataset
from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.files_in import plan_of
from pocketfit.cli.options import DATA, PATH, data_option, quiet_option, source_options, task_option, teacher_options


@click.command("export")
@click.argument("model")
@click.option(
    "--plan",
    type=PATH,
    help="What is done to MODEL first: the output folder of a fit (its chosen plan), or a plan.json.",
)
@data_option(f"{DATA} For plans that train.", required=False)
@click.option("-o", "--out", required=True, type=PATH, help="Folder for the files.")
@click.option(
    "--to", type=click.Choice(["torch"]), default="torch", show_default=True, expose_value=False, help="For what."
)
@source_options()
@task_option
@teacher_options
@quiet_option
@guarded
def command(as_json: bool, **options: Any) -> int:
    """Write MODEL so that it runs, and trains on, with torch alone: network.py builds its layers, weights.safetensors
    holds their numbers, network.pt2 is torch.export's program for any batch size.

    \b
    pocketfit export model/ --plan out/ --data photos/ -o network/
    """
    print_result(export(**options), as_json, show)
    return 0


def export(
    source: Source, plan: Path | None, data: Path | None, out: Path, task: str, teacher: Teacher, quiet: bool
) -> dict[str, Any]:
    """The network, or what a plan makes of it, as files for PyTorch."""
    from pocketfit.api.export import export as road
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import check_folder
    from pocketfit.handover.folder import FILES

    check_folder(out, FILES)
    agreed = source.agreed(teacher.model)
    run = plan if plan is not None and plan.is_dir() else None
    wanted = None if plan is None else plan_of(plan if run is None else plan / "plan.json", agreed)
    network = source.open(teacher.model)
    taught_by = teacher.open(network, agreed)
    with watch_for_terminal(quiet) as watch:
        samples = None if data is None else dataset(data, watch)
        made = road(network, out, plan=wanted, run=run, samples=samples, task=task, teacher=taught_by, watch=watch)
    return {
        "folder": str(made.folder),
        "files": list(made.files),
        "layers": [dict(row) for row in made.layers],
        "findings": list(made.findings),
    }


def show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table

    console = plain()
    rows = [
        (row["tensor"], row["layer"], "x".join(map(str, row["was"])), "x".join(map(str, row["shape"])))
        for row in data["layers"]
        if "was" in row
    ]
    if rows:
        console.print(table(("tensor", "layer", "was", "is"), rows, left=2))
    for name in data["files"]:
        console.print(escape(str(Path(data["folder"], name))))
    for sentence in data["findings"]:
        console.print(f"• {escape(sentence)}")
