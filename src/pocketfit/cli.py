"""The command line: parse, call, print.

Results go to stdout (with --json: one JSON object), everything else to stderr. Exit codes: 0 done (fit and choose:
limits met); 1 limits not met, best so far delivered; 2 bad input or usage; 3 our own fault, with a crash file;
130 Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, get_args

import click

from pocketfit import __version__
from pocketfit.core.errors import PocketfitError, Stopped, UserError
from pocketfit.core.pass_settings import Criterion

# Threads of PyTorch's OpenMP library that wait for each other burn their core for milliseconds by default. On two cores
# with a second busy process that made training three to five times slower; short waits cost little on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

LIMITS_NOT_MET, BAD_INPUT, OUR_FAULT, INTERRUPTED = 1, 2, 3, 130
CRITERIA = get_args(Criterion)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that state limits; `fit` and `choose` share them."""
    for option in (
        click.option(
            "--prefer",
            type=click.Choice(["speed", "size", "accuracy", "balanced"]),
            default=None,
            help="What to prefer among plans that meet the limits.  [default: balanced]",
        ),
        click.option("--min-accuracy", metavar="SHARE", help="At least this accuracy: 90% or 0.9."),
        click.option("--max-drop", metavar="POINTS", help="Points of the metric that may be lost: 1pt."),
        click.option("--max-latency", metavar="TIME", help="60ms, p95:60ms, or 0.6x of float32 in the same runtime."),
        click.option("--max-memory", metavar="SIZE", help="Peak resident memory: 40MB or 0.8x."),
        click.option("--max-download", metavar="SIZE", help="Bytes after deflate, as app stores ship it: 2MB or 0.3x."),
        click.option("--max-size", metavar="SIZE", help="Bytes on disk: 3MB (10^6), 3MiB (2^20), or 0.3x of float32."),
    ):
        command = option(command)
    return command


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json and --quiet, and errors as sentences with the right exit code."""

    @wraps(command)
    def guarded(*args: Any, json_: bool, **kwargs: Any) -> None:
        try:
            code = command(*args, as_json=json_, **kwargs)
        except Stopped as stop:
            _fail(str(stop), INTERRUPTED, json_)
        except KeyboardInterrupt:
            _fail("Stopped.", INTERRUPTED, json_)
        except PocketfitError as error:
            _fail(str(error), BAD_INPUT, json_)
        except (BrokenPipeError, click.exceptions.Exit, click.ClickException):
            raise
        except Exception:  # anything else is our own fault: keep what is needed to mend it
            _fail(
                f"This is a fault of pocketfit itself. Please send the file {_crash_file()} with your report.",
                OUR_FAULT,
                json_,
            )
        if code:
            sys.exit(code)

    return click.option("--json", "json_", is_flag=True, help="Print one JSON object on stdout.")(guarded)


def _fail(sentence: str, code: int, as_json: bool) -> NoReturn:
    click.echo(sentence, err=True)
    if as_json:
        click.echo(json.dumps({"error": sentence, "exit_code": code}))
    sys.exit(code)


def _crash_file() -> Path:
    path = Path(f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt")
    facts = [f"pocketfit {__version__}", f"python {sys.version}", f"{sys.platform}, arguments {sys.argv[1:]}", ""]
    text = "\n".join([*facts, traceback.format_exc()])
    try:
        path.write_text(text)
    except OSError:  # the current folder may be read-only
        import tempfile

        path = Path(tempfile.gettempdir()) / path
        path.write_text(text)
    return path


def _print(data: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        click.echo(json.dumps(data, allow_nan=False))
    else:
        show(data)


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
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of pictures by class, or .npz.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Model folder to write.")
@click.option("--weights", type=click.Path(path_type=Path), help="Published weights: .safetensors or a state dict.")
@click.option(
    "--image-size",
    type=click.IntRange(16, 2048),
    help="Side of the square that the network sees; the shorter side of a picture becomes as long.",
)
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Passes over the training split.",
)
@click.option("--max-time", metavar="TIME", help="Stop in time, with the learning rate at its end: 10min.")
@click.option(
    "--width",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Width multiplier of a zoo network without weights.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@common_options
def train(as_json: bool, **options: Any) -> int:
    """Transfer learning: published weights, a new head for the data's classes, fine-tuning.

    MODEL is a zoo name (mobilenet_v2, resnet18, …), a model folder, or package.module:factory.
    """
    from pocketfit import show, verbs

    _print(verbs.train(**options), as_json, show.trained)
    return 0


@main.command()
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of pictures by class, or .npz.")
@click.option(
    "--no-data", is_flag=True, help="One int8 file from what batch norms remember; its accuracy stays unknown."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Output folder; a stopped run goes on there."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weights for a zoo name or a factory.")
@click.option("--preprocess", help="What the network expects: 'imagenet', or a JSON file (see the README).")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Text file with one label a line, in the network's order."
)
@click.option("--input-shape", metavar="CxHxW", help="For a factory: the shape of one input, e.g. 3x224x224.")
@click.option(
    "--teacher",
    metavar="MODEL",
    help="A network for the same classes that pruned ones learn from.  [default: MODEL itself, unpruned]",
)
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="Weights for a teacher by name or factory.")
@click.option(
    "--runtime",
    "runtimes",
    default="litert",
    show_default=True,
    metavar="NAME[,NAME]",
    help="litert, onnxruntime, or both.",
)
@limit_options
@click.option("--max-time", metavar="TIME", help="Time for the whole run, over all resumes: 10min.")
@click.option("--max-trials", type=int, help="Number of plans to try, baselines included.")
@click.option("--metric", default="accuracy", show_default=True, help="accuracy, top5, or package.module:function.")
@click.option(
    "--io",
    type=click.Choice(["float32", "uint8", "int8"]),
    default="float32",
    show_default=True,
    help="Type of the file's input and output.",
)
@click.option(
    "--layout",
    type=click.Choice(["NHWC", "NCHW"]),
    help="Layout of the file's picture input.  [default: the runtime's own]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Prune and recover in so many rounds, less each time, in place of one cut.",
)
@click.option(
    "--ratio",
    "ratios",
    multiple=True,
    metavar="REGEX=SHARE",
    help="Prune this share of the channels of layers whose name matches, whatever the search would do; repeatable.",
)
@click.option(
    "--criterion",
    default="taylor",
    show_default=True,
    help=f"Which channels go first: {', '.join(CRITERIA)}, or package.module:function.",
)
@click.option(
    "--allocation",
    type=click.Choice(["macs", "latency", "uniform"]),
    default="macs",
    show_default=True,
    help="Where channels are taken: by what they cost in multiply-accumulates, in measured latency, or uniformly.",
)
@click.option("--keep-resolution", is_flag=True, help="Never shrink the input picture.")
@click.option("--keep-float", default="", metavar="NAME[,NAME]", help="Layers that int8 files leave in float.")
@click.option("--device", type=click.Choice(["local"]), default="local", show_default=True, help="Where to measure.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the runtime.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@common_options
def fit(as_json: bool, quiet: bool, **options: Any) -> int:
    """The main job: find a plan that meets the limits, and hand over the file with its proof.

    MODEL is a model folder, a zoo name with --weights, or package.module:factory with --weights.
    Started again with the same inputs and output folder, it goes on where it was stopped.
    """
    from pocketfit import show, verbs

    no_data = options.pop("no_data")
    if no_data == (options["data"] is not None):
        raise UserError("Give --data with a folder or an .npz file, or --no-data, and not both")
    data = verbs.fit(quiet=quiet, **options)
    _print(data, as_json, lambda d: (show.made_without_data if no_data else show.result)(d, options["out"]))
    return 0 if data["status"] == "met" else LIMITS_NOT_MET


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@limit_options
@common_options
def choose(out: Path, as_json: bool, **limits: Any) -> int:
    """Decide again from the journal of OUT, with other limits and no new trial.

    Limits that are not given here stay as they were for the run.
    """
    from pocketfit import show, verbs

    data = verbs.choose(out, **limits)
    _print(data, as_json, lambda d: show.result(d, out))
    return 0 if data["status"] == "met" else LIMITS_NOT_MET


@main.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model")
@click.option(
    "--data",
    help="Folder of pictures by class, or .npz; not for plans that need none.",
    type=click.Path(path_type=Path),
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the file.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights for a zoo name or a factory.")
@click.option("--preprocess", help="As for fit.")
@click.option("--labels", type=click.Path(path_type=Path), help="As for fit.")
@click.option("--input-shape", metavar="CxHxW", help="As for fit.")
@click.option("--teacher", metavar="MODEL", help="As for fit.")
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="As for fit.")
@click.option("--allow-code", is_flag=True, help="Let the plan call a pruning criterion of your Python environment.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@common_options
def apply(as_json: bool, **options: Any) -> int:
    """Make the artifact of PLAN (a plan.json) from MODEL again."""
    from pocketfit import show, verbs

    _print(verbs.apply(**options), as_json, show.applied)
    return 0


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against", type=click.Path(path_type=Path), help="A second file of the same runtime, timed in turns with FILE."
)
@click.option("--data", type=click.Path(path_type=Path), help="Adds the accuracy on this data's verdict split.")
@click.option("--model", help="Model folder or bundle that says how pictures are prepared (with --data).")
@click.option("--preprocess", help="As for fit (with --data, without --model).")
@click.option("--metric", default="accuracy", show_default=True)
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@common_options
def measure(as_json: bool, **options: Any) -> int:
    """Size, cold start, latency, memory and per-operator cost of any .tflite or .onnx FILE."""
    from pocketfit import show, verbs_look

    _print(verbs_look.measure(**options), as_json, show.measured)
    return 0


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Pictures to compare the two on.")
@click.option("--model", help="Model folder or bundle that says how pictures are prepared.")
@click.option("--preprocess", help="As for fit (without --model).")
@click.option(
    "--split",
    type=click.Choice(["search", "verdict", "calibration", "train"]),
    default="search",
    show_default=True,
    help="Which part of the data.",
)
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most this many pictures.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True)
@common_options
def compare(as_json: bool, **options: Any) -> int:
    """Where two files differ: agreement, accuracy, SQNR and cosine of the outputs, first layer that drifts."""
    from pocketfit import show, verbs_look

    _print(verbs_look.compare(**options), as_json, show.compared)
    return 0


@main.command()
@click.argument("target", metavar="MODEL|FILE")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights for a zoo name or a factory.")
@click.option("--preprocess", help="As for fit.")
@click.option("--input-shape", metavar="CxHxW", help="As for fit.")
@common_options
def inspect(as_json: bool, **options: Any) -> int:
    """Layers of a network, or operators of a file as read back from it: shapes, parameters, MACs, bytes, dtypes."""
    from pocketfit import show, verbs_look

    _print(verbs_look.inspect(**options), as_json, show.inspected)
    return 0


@main.command()
@click.argument("model")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of pictures by class, or .npz.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for explain.json and explain.html.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights for a zoo name or a factory.")
@click.option("--preprocess", help="As for fit.")
@click.option("--labels", type=click.Path(path_type=Path), help="As for fit.")
@click.option("--input-shape", metavar="CxHxW", help="As for fit.")
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
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the runtime.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@common_options
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
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of pictures by class, or .npz.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the page and the JSON; a stopped run goes on there.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weights for a zoo name or a factory.")
@click.option("--preprocess", help="As for fit.")
@click.option("--labels", type=click.Path(path_type=Path), help="As for fit.")
@click.option("--input-shape", metavar="CxHxW", help="As for fit.")
@click.option(
    "--ratios", default="0.25,0.5,0.75", show_default=True, metavar="SHARE[,SHARE]", help="Of channels to remove."
)
@click.option("--target", metavar="TARGET", help="Also make a plan: macs:0.5x, size:0.5x or drop:1pt.")
@click.option(
    "--criterion", type=click.Choice(CRITERIA), default="l2", show_default=True, help="Which channels go first."
)
@click.option("--multiple", type=click.IntRange(1), default=8, show_default=True, help="Channels stay in multiples.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Judged on at most this many.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes of one thread.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@common_options
def sensitivity(as_json: bool, **options: Any) -> int:
    """Which channels a network can do without: each coupled group alone, pruned at several ratios, without training."""
    from pocketfit import show_prune, verbs_prune

    _print(verbs_prune.sensitivity(**options), as_json, lambda d: show_prune.sensitivity(d, options["out"]))
    return 0


@main.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights for a zoo name or a factory.")
@click.option("--input-shape", metavar="CxHxW", help="As for fit.")
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
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the runtime.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where tables are kept.  [default: ~/.cache/pocketfit]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@common_options
def costs(as_json: bool, **options: Any) -> int:
    """What channels cost: latency of each layer at several widths, measured in the runtime on this machine.

    Random sub-networks are exported and timed; a stopped run goes on where it was. The error of latencies predicted
    from the table is measured on sub-networks that were left out of it.
    """
    from pocketfit import show_prune, verbs_prune

    _print(verbs_prune.costs(**options), as_json, lambda d: show_prune.costs(d, options["out"]))
    return 0


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--open/--no-open", "open_", default=True, help="Open it in the browser.")
@common_options
def report(out: Path, open_: bool, as_json: bool) -> int:
    """Write OUT/report.html from the journal, and open it."""
    from pocketfit import verbs

    path = verbs.report(out)
    _print({"report": str(path)}, as_json, lambda d: click.echo(d["report"]))
    if open_ and not as_json and sys.stdout.isatty():
        click.launch(str(path))
    return 0


@main.command()
@common_options
def doctor(as_json: bool) -> int:
    """Run one tiny network on every runtime: PASS, or the cause and the pip line."""
    from pocketfit import show, verbs

    _print(verbs.doctor(), as_json, show.doctored)
    return 0
