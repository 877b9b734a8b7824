"""The options that verbs share. Options that belong together reach the verb as one argument (see arguments.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click

from pocketfit.cli.arguments import Files, Pruning, Source, Teacher
from pocketfit.core.plan.prune import Criterion
from pocketfit.core.quantities import QUANTITIES
from pocketfit.core.task.task_list import TASKS

Command = Callable[..., Any]
CRITERIA = get_args(Criterion)
MOST_SEED = 2**32 - 1  # the largest seed that numpy, torch and their C libraries all take


class _Named(click.Path):
    """A path that is not empty: an empty one, from an unset variable of a shell, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


class Finite(click.FloatRange):
    """A number above 0 and up to `most`, neither infinite nor nan (click's own range lets nan through)."""

    def __init__(self, most: float) -> None:
        super().__init__(min=0, min_open=True, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


PATH = _Named(path_type=Path)
METRICS = (
    "accuracy, balanced-accuracy (classes count alike) or top5; for text exact-match or character-accuracy; for"
    " segmentation iou or pixel-accuracy; for embedding tar-at-far-1e-2 (1e-1 to 1e-5) or"
    " cosine; for fidelity cosine or nearness; or package.module:function.  [default: the task's first]"
)
PREPROCESS = (
    "What the network expects: 'imagenet', 'text-line' (48 x 320), 'letterbox' (640 x 640), 'log-mel', 'mfcc' or"
    " 'waveform' (.wav of 1 s at 16 kHz), or a JSON file (see the README)"
)

allow_code_option = click.option(
    "--allow-code",
    is_flag=True,
    help="Import and call what files (a model folder, a plan) name as package.module:function. Without it only names"
    " that stand on this command line are; never anything that lies in the folder of such a file.",
)
task_option = click.option(
    "--task",
    default="",
    metavar="TASK",
    help=f"What the outputs mean: {', '.join(TASKS)} (agreement with the original network, for anything);"
    " detection:FORM names the form of boxes."
    "  [default: follows from the data and the outputs]",
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
seed_option = click.option("--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default="0")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the runtime."
)


DATA = (
    "Folder of images, by class or without labels; manifest (.jsonl, .csv: path and label, text, mask or identity;"
    " pairs of pictures; PaddleOCR's .txt); or arrays (.npz, .npy)."
)


def data_option(note: str = DATA, *, required: bool) -> Callable[[Command], Command]:
    """--data, handed on as `data`: a Path, None where it is not given."""
    return click.option("--data", required=required, type=PATH, help=note)


def source_options(*left_out: str) -> Callable[[Command], Command]:
    """The options that describe the argument MODEL. The verb gets MODEL and all of them as `source`, a Source.

    left_out  names of options that the verb does not have: "weights", "labels", …
    """
    options = {
        "weights": click.option("--weights", type=PATH, help="Weights for a zoo name or a factory."),
        "preprocess": click.option("--preprocess", help=f"{PREPROCESS}."),
        "labels": click.option("--labels", type=PATH, help="Text file with one label a line, in the network's order."),
        "input_shape": click.option(
            "--input-shape",
            metavar="CxHxW",
            help="Shape of one input, for a factory or an .onnx file that leaves it open.",
        ),
        "allow_code": allow_code_option,
    }

    def decorated(command: Command) -> Command:
        @wraps(command)
        def called(
            *args: Any,
            model: str,
            weights: Path | None = None,
            preprocess: str | None = None,
            labels: Path | None = None,
            input_shape: str | None = None,
            allow_code: bool = False,
            **more: Any,
        ) -> Any:
            return command(*args, source=Source(model, weights, preprocess, labels, input_shape, allow_code), **more)

        return _with(called, *(option for name, option in options.items() if name not in left_out))

    return decorated


def teacher_options(command: Command) -> Command:
    """The options of the teacher, handed on as `teacher`, a Teacher; `fit` and `apply` share them."""

    @wraps(command)
    def called(*args: Any, teacher: str | None, teacher_weights: Path | None, **more: Any) -> Any:
        return command(*args, teacher=Teacher(teacher, teacher_weights), **more)

    return _with(
        called,
        click.option(
            "--teacher",
            metavar="MODEL",
            help="A network for the same classes that pruned and quantized ones learn from.  [default: MODEL itself]",
        ),
        click.option("--teacher-weights", type=PATH, help="Weights for a teacher by name or factory."),
    )


def pruning_options(command: Command) -> Command:
    """The options that say how channels are pruned, handed on as `pruning`, a Pruning."""

    @wraps(command)
    def called(*args: Any, rounds: int, ratios: tuple[str, ...], criterion: str, allocation: Any, **more: Any) -> Any:
        return command(*args, pruning=Pruning(rounds, ratios, criterion, allocation), **more)

    return _with(
        called,
        click.option(
            "--rounds",
            type=click.IntRange(1, 8),
            default=1,
            show_default=True,
            help="Prune and recover in so many rounds, less each time, in place of one cut.",
        ),
        click.option(
            "--ratio",
            "ratios",
            multiple=True,
            metavar="REGEX=SHARE",
            help="Prune this share of the channels of layers whose name matches, whatever the search would do;"
            " repeatable.",
        ),
        click.option(
            "--criterion",
            default="taylor",
            show_default=True,
            help=f"Which channels go first: {', '.join(CRITERIA)}, or package.module:function.",
        ),
        click.option(
            "--allocation",
            type=click.Choice(["macs", "latency", "uniform"]),
            default="macs",
            show_default=True,
            help="Where channels are taken: by what they cost in multiply-accumulates, in measured latency, or"
            " uniformly.",
        ),
    )


def file_options(command: Command) -> Command:
    """The options of the exported files, handed on as `files`, a Files."""

    @wraps(command)
    def called(
        *args: Any, runtimes: str, io: Any, layout: Any, keep_resolution: bool, keep_float: str, **more: Any
    ) -> Any:
        return command(*args, files=Files(runtimes, io, layout, keep_resolution, keep_float), **more)

    return _with(
        called,
        click.option(
            "--runtime",
            "runtimes",
            default="litert",
            show_default=True,
            metavar="NAME[,NAME]",
            help="litert, onnxruntime, openvino, micro (microcontrollers), or all that run here.",
        ),
        click.option(
            "--io",
            type=click.Choice(["float32", "uint8", "int8"]),
            default="float32",
            show_default=True,
            help="Type of the file's input and output.",
        ),
        click.option(
            "--layout",
            type=click.Choice(["NHWC", "NCHW"]),
            help="Layout of the file's image input.  [default: the runtime's own]",
        ),
        click.option("--keep-resolution", is_flag=True, help="Never shrink the input image."),
        click.option("--keep-float", default="", metavar="NAME[,NAME]", help="Layers that int8 files leave in float."),
    )


def limit_options(command: Command) -> Command:
    """The limits, handed on one by one under their names in Budget.parse ("max_size"), and `prefer`; `fit` and `choose`
    share them."""
    return _with(
        command,
        *(click.option(row.option, metavar=row.metavar, help=row.meaning) for row in QUANTITIES.values()),
        click.option(
            "--prefer",
            type=click.Choice(["speed", "size", "accuracy", "balanced"]),
            default=None,
            help="What to prefer among plans that meet the limits.  [default: balanced]",
        ),
    )


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    """The command with these options, in the order in which `--help` shows them."""
    for option in reversed(options):
        command = option(command)
    return command
