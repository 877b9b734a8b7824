"""`pocketfit doctor`: does every runtime work here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from pocketfit.cli.exit_codes import guarded, print_result


@click.command("doctor")
@guarded
def command(as_json: bool) -> int:
    """Run one tiny network on every runtime: PASS, or the cause and the pip line."""
    print_result(doctor(), as_json, show)
    return 0


def doctor() -> dict[str, Any]:
    """Probe every runtime."""
    from pocketfit import runtimes
    from pocketfit.core.plan.runtime_list import RUNTIMES
    from pocketfit.measurement.environment import environment

    found = [asdict(runtimes.get(name).probe()) for name in RUNTIMES]
    return {"runtimes": found, "environment": environment(1)}


def show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain

    console = plain()
    for runtime in data["runtimes"]:
        mark = "[green]PASS[/green]" if runtime["ok"] else "[red]FAIL[/red]"
        console.print(f"{mark}  {runtime['name']:12} {runtime['version']:10} {escape(runtime['detail'])}")
    console.print(
        f"\n{escape(', '.join(f'{k} {v}' for k, v in data['environment'].items() if isinstance(v, str | int)))}"
    )
