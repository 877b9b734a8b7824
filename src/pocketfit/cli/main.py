"""The command line: parse, call, print.

Results go to stdout (with --json: one JSON object), everything else to stderr. Exit codes: 0 done (fit and choose:
limits met); 1 limits not met, best so far delivered; 2 bad input or usage; 3 our own fault, with a crash file;
130 Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pocketfit import __version__
from pocketfit.cli.exit_codes import LIMITS_NOT_MET, guarded, printed
from pocketfit.cli.options import (
    CRITERIA,
    METRICS,
    PATH,
    PREPROCESS,
    Finite,
    data_option,
    file_options,
    limit_options,
    pruning_options,
    quiet_option,
    seed_option,
    source_options,
    teacher_options,
    threads_option,
)
from pocketfit.core.errors import UserError
from pocketfit.core.support.cpus import limit_threads
from pocketfit.core.support.processes import rank

# Threads of PyTorch's OpenMP library that wait for each other burn their core for milliseconds by default. On two cores
# with a second busy process that made training three to five times slower; short waits cost little on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
limit_threads()

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _print(data: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if rank().first:
        printed(lambda: click.echo(json.dumps(data, allow_nan=False)) if as_json else show(data))


@click.group(context_settings=CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """Make a trained neural network fit a device, and prove that it fits.

    \b
    pocketfit train mobilenet_v2 --weights imagenet.pth --data photos/ -o model/
    pocketfit fit model/ --data photos/ --max-size 3MB --max-latency 0.6x --max-drop 1pt -o out/
    pocketfit report out/
    """


@main.command()
@click.argument("model")
@data_option(required=True)
@click.option("-o", "--out", required=True, type=PATH, help="Model folder to write.")
@source_options("labels")
@click.option(
    "--image-size",
    type=click.IntRange(16, 2048),
    help="Side of the square that the network sees; the shorter side of a picture becomes as long.",
)
@click.option(
    "--epochs",
    type=Finite(10**6),
    default=3.0,
    show_default=True,
    help="Passes over the training split.",
)
@click.option("--max-time", metavar="TIME", help="Stop in time, with the learning rate at its end: 10min.")
@click.option(
    "--width",
    type=Finite(10),
    default=1.0,
    show_default=True,
    help="Width multiplier of a zoo network without weights.",
)
@seed_option
@guarded
def train(as_json: bool, **options: Any) -> int:
    """Transfer learning: published weights, a new head for the data's classes, fine-tuning.

    MODEL is a zoo name (mobilenet_v2, resnet18, …), a model folder, or package.module:factory.
    Processes started by `torchrun -m pocketfit train` train together, each on its part of every batch.
    """
    from pocketfit import verbs
    from pocketfit.cli import terminal as show

    _print(verbs.train(**options), as_json, show.trained)
    return 0


@main.command()
@click.argument("model")
@data_option(required=False)
@click.option(
    "--no-data", is_flag=True, help="One int8 file from what batch norms remember; its accuracy stays unknown."
)
@click.option("-o", "--out", required=True, type=PATH, help="Output folder; a stopped run goes on there.")
@source_options()
@teacher_options
@limit_options
@click.option("--max-time", metavar="TIME", help="Time for the whole run, over all resumes: 10min.")
@click.option("--max-trials", type=int, help="Number of plans to try, baselines included.")
@click.option("--metric", default="accuracy", show_default=True, help=f"{METRICS}.")
@file_options
@pruning_options
@click.option(
    "--device",
    type=click.Choice(["local"]),
    default="local",
    show_default=True,
    expose_value=False,  # there is no other yet
    help="Where to measure.",
)
@threads_option
@seed_option
@quiet_option
@guarded
def fit(as_json: bool, no_data: bool, **options: Any) -> int:
    """The main job: find a plan that meets the limits, and hand over the file with its proof.

    MODEL is a model folder, a zoo name with --weights, or package.module:factory with --weights.
    Started again with the same inputs and output folder, it goes on where it was stopped.
    """
    from pocketfit import verbs
    from pocketfit.cli import terminal as show

    if no_data == (options["data"] is not None):
        raise UserError("Give --data with a folder or an .npz file, or --no-data, and not both")
    data = verbs.fit(**options)
    _print(data, as_json, lambda d: (show.made_without_data if no_data else show.result)(d, options["out"]))
    return 0 if data["status"] == "met" else LIMITS_NOT_MET


@main.command()
@click.argument("out", type=PATH)
@limit_options
@guarded
def choose(out: Path, as_json: bool, **limits: Any) -> int:
    """Decide again from the journal of OUT, with other limits and no new trial.

    Limits that are not given here stay as they were for the run.
    """
    from pocketfit import verbs
    from pocketfit.cli import terminal as show

    data = verbs.choose(out, **limits)
    _print(data, as_json, lambda d: show.result(d, out))
    return 0 if data["status"] == "met" else LIMITS_NOT_MET


@main.command()
@click.argument("plan", type=PATH)
@click.argument("model")
@data_option("Folder of pictures by class, or .npz; not for plans that need none.", required=False)
@click.option("-o", "--out", required=True, type=PATH, help="Folder for the file.")
@source_options()
@teacher_options
@quiet_option
@guarded
def apply(as_json: bool, **options: Any) -> int:
    """Make the artifact of PLAN (a plan.json) from MODEL again.

    Processes started by `torchrun -m pocketfit apply` train together, each on its part of every batch.
    """
    from pocketfit import verbs
    from pocketfit.cli import terminal as show

    _print(verbs.apply(**options), as_json, show.applied)
    return 0


@main.command()
@click.argument("file", type=PATH)
@click.option("--against", type=PATH, help="A second file of the same runtime, timed in turns with FILE.")
@data_option("Adds the accuracy on this data's verdict split.", required=False)
@click.option("--model", help="Model folder or bundle that says how pictures are prepared (with --data).")
@click.option("--preprocess", help=f"{PREPROCESS}; with --data, without --model.")
@click.option("--metric", default="accuracy", show_default=True, help=f"{METRICS}; with --data.")
@threads_option
@seed_option
@guarded
def measure(as_json: bool, **options: Any) -> int:
    """Size, cold start, latency, memory and per-operator cost of any .tflite or .onnx FILE."""
    from pocketfit import verbs_look
    from pocketfit.cli import terminal as show

    _print(verbs_look.measure(**options), as_json, show.measured)
    return 0


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@data_option("Pictures to compare the two on.", required=True)
@click.option("--model", help="Model folder or bundle that says how pictures are prepared.")
@click.option("--preprocess", help=f"{PREPROCESS}; without --model.")
@click.option(
    "--split",
    type=click.Choice(["search", "verdict", "calibration", "train"]),
    default="search",
    show_default=True,
    help="Which part of the data.",
)
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most this many pictures.")
@threads_option
@guarded
def compare(as_json: bool, **options: Any) -> int:
    """Where two files differ: agreement, accuracy, SQNR and cosine of the outputs, first layer that drifts."""
    from pocketfit import verbs_look
    from pocketfit.cli import terminal as show

    _print(verbs_look.compare(**options), as_json, show.compared)
    return 0


@main.command()
@click.argument("model", metavar="MODEL|FILE")
@source_options("labels")
@guarded
def inspect(as_json: bool, **options: Any) -> int:
    """Layers of a network, or operators of a file as read back from it: shapes, parameters, MACs, bytes, dtypes."""
    from pocketfit import verbs_look
    from pocketfit.cli import terminal as show

    _print(verbs_look.inspect(**options), as_json, show.inspected)
    return 0


@main.command()
@click.argument("model")
@data_option(required=True)
@click.option("-o", "--out", type=PATH, help="Folder for explain.json and explain.html.")
@source_options()
@click.option(
    "--runtime",
    type=click.Choice(["litert", "onnxruntime"]),
    default="litert",
    show_default=True,
    help="Whose files are measured.",
)
@click.option("--weight-bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Of most layers.")
@click.option("--keep-float", default="", metavar="NAME[,NAME]", help="Layers that stay in float from the start.")
@click.option(
    "--samples", type=click.IntRange(1), default=500, show_default=True, help="Files are measured on at most this many."
)
@threads_option
@quiet_option
@guarded
def explain(as_json: bool, weight_bits: str, **options: Any) -> int:
    """Which layers cost a plain int8 file its accuracy, why, and what would help.

    Files are measured in their runtime; what a single layer costs on its own is estimated.
    """
    from pocketfit import show_explain, verbs_look

    data = verbs_look.explain(weight_bits=int(weight_bits), **options)
    _print(data, as_json, lambda d: show_explain.explained(d, options["out"]))
    return 0


@main.command()
@click.argument("model")
@data_option(required=True)
@click.option("-o", "--out", type=PATH, help="Folder for the page and the JSON; a stopped run goes on there.")
@source_options()
@click.option(
    "--ratios", default="0.25,0.5,0.75", show_default=True, metavar="SHARE[,SHARE]", help="Of channels to remove."
)
@click.option(
    "--target",
    metavar="TARGET",
    help="Also make a plan: macs:0.5x, size:0.5x, drop:1pt, or latency:0.5x (latency:5ms), estimated from a table of"
    " measured costs.",
)
@click.option(
    "--runtime",
    type=click.Choice(["litert", "onnxruntime"]),
    help="In which a target for the latency counts, in float32 on this machine.  [default: onnxruntime]",
)
@click.option("--threads", type=click.IntRange(1, 64), help="Threads of the runtime.  [default: 1]")
@click.option(
    "--criterion", type=click.Choice(CRITERIA), default="l2", show_default=True, help="Which channels go first."
)
@click.option("--multiple", type=click.IntRange(1), default=8, show_default=True, help="Channels stay in multiples.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Judged on at most this many.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes of one thread.")
@quiet_option
@guarded
def sensitivity(as_json: bool, **options: Any) -> int:
    """Which channels a network can do without: each coupled group alone, pruned at several ratios, without training."""
    from pocketfit import show_prune, verbs_prune

    _print(verbs_prune.sensitivity(**options), as_json, lambda d: show_prune.sensitivity(d, options["out"]))
    return 0


@main.command()
@click.argument("model")
@click.option("-o", "--out", type=PATH, help="JSON file to write.")
@source_options("preprocess", "labels")
@click.option(
    "--runtime",
    type=click.Choice(["litert", "onnxruntime"]),
    default="litert",
    show_default=True,
    help="Whose kernels are measured.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "dynamic-int8", "int8"]),
    default="float32",
    show_default=True,
    help="Of the measured files.",
)
@click.option(
    "--networks",
    type=click.IntRange(6),
    default=24,
    show_default=True,
    help="Sub-networks to measure; those that were measured before count.",
)
@threads_option
@click.option("--cache", type=PATH, help="Where tables are kept.  [default: ~/.cache/pocketfit]")
@seed_option
@quiet_option
@guarded
def costs(as_json: bool, **options: Any) -> int:
    """What channels cost: latency of each layer at several widths, measured in the runtime on this machine.

    Random sub-networks are exported and timed; a stopped run goes on where it was. The error of latencies predicted
    from the table is measured on sub-networks that were left out of it.
    """
    from pocketfit import show_prune, verbs_prune

    _print(verbs_prune.costs(**options), as_json, lambda d: show_prune.costs(d, options["out"]))
    return 0


@main.command()
@click.argument("out", type=PATH)
@click.option("--open/--no-open", "open_", default=True, help="Open it in the browser.")
@guarded
def report(out: Path, open_: bool, as_json: bool) -> int:
    """Write OUT/report.html from the journal, and open it."""
    from pocketfit import verbs

    path = verbs.report(out)
    _print({"report": str(path)}, as_json, lambda d: click.echo(d["report"]))
    if open_ and not as_json and sys.stdout.isatty():
        click.launch(str(path))
    return 0


@main.command()
@guarded
def doctor(as_json: bool) -> int:
    """Run one tiny network on every runtime: PASS, or the cause and the pip line."""
    from pocketfit import verbs
    from pocketfit.cli import terminal as show

    _print(verbs.doctor(), as_json, show.doctored)
    return 0
