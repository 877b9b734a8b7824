"""The command line: parse, call, print.

Results go to stdout (with --json: one JSON object), everything else to stderr. Exit codes: 0 done (fit and choose:
limits met); 1 limits not met, best so far delivered; 2 bad input or usage; 3 a bug of our own, with a crash file;
130 Ctrl-C.
"""

from __future__ import annotations

import os

import click

from pocketfit import __version__
from pocketfit.cli.commands import (
    apply,
    choose,
    compare,
    costs,
    doctor,
    explain,
    export,
    fit,
    inspect,
    measure,
    report,
    sensitivity,
    train,
)
from pocketfit.core.support.cpus import limit_threads

# By default, threads of PyTorch's OpenMP library that wait for each other keep their core busy for milliseconds. Beside
# another busy process that slows training down a lot (docs/results/notes.md, "Training"); short waits cost little.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
limit_threads()

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """Make a trained neural network fit a device, and prove that it fits.

    \b
    pocketfit train mobilenet_v2 --weights imagenet.pth --data photos/ -o model/
    pocketfit fit model/ --data photos/ --max-size 3MB --max-latency 0.6x --max-drop 1pt -o out/
    pocketfit report out/
    """


for _verb in (
    apply,
    choose,
    compare,
    costs,
    doctor,
    explain,
    export,
    fit,
    inspect,
    measure,
    report,
    sensitivity,
    train,
):
    main.add_command(_verb.command)
