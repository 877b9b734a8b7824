"""`pocketfit train`: transfer learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketfit.cli.arguments import Source
from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.options import PATH, Finite, data_option, seed_option, source_options
from pocketfit.core.budget import SECONDS, parse_unit
from pocketfit.core.errors import PocketfitError, UserError
from pocketfit.core.support.processes import rank
from pocketfit.core.support.scratch import temporary_folder

if TYPE_CHECKING:
    from pocketfit.core.model import Model


@click.command("train")
@click.argument("model")
@data_option(required=True)
@click.option("-o", "--out", required=True, type=PATH, help="Model folder to write.")
@source_options("labels")
@click.option(
    "--image-size",
    type=click.IntRange(16, 2048),
    help="Side of the square that the network sees; the shorter side of an image becomes as long.",
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
def command(as_json: bool, **options: Any) -> int:
    """Transfer learning: published weights, a new head for the data's classes, fine-tuning.

    MODEL is a zoo name (mobilenet_v2, resnet18, …), a model folder, an .onnx file, or package.module:factory.
    Processes started by `torchrun -m pocketfit train` train together, each on its part of every batch.
    """
    print_result(train(**options), as_json, show)
    return 0


def train(
    source: Source,
    data: Path,
    out: Path,
    image_size: int | None,
    epochs: float,
    max_time: str | None,
    width: float,
    seed: int,
) -> dict[str, Any]:
    """Transfer learning; see `pocketfit train --help`. The accuracy is measured on the validation split, in PyTorch."""
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.plan.rewrite import Resolution
    from pocketfit.core.support.files import check_folder
    from pocketfit.passes.rewrite import resolution
    from pocketfit.passes.train import fine_tune as training
    from pocketfit.passes.train.torch_accuracy import accuracy
    from pocketfit.sources.data.dataset import open_data
    from pocketfit.sources.models.open_model import save_model

    seconds = None if max_time is None else parse_unit(max_time, SECONDS, "--max-time", "10min")
    if rank().first:
        check_folder(out)
    dataset = open_data(data)
    if dataset.form != "classes":
        raise UserError(f"Transfer learning needs a class for each sample, and {data} has none")
    start = _starting_point(source, width, len(dataset.class_names), seed)
    if image_size is not None:
        start = resolution.apply(start, Resolution(image_size, image_size))
        # With --image-size the whole image is used, without the margin that ImageNet's evaluation cuts off.
        start = replace(start, preprocess=replace(start.preprocess, resize="shorter", resize_px=image_size))
    dataset.check_splits(start.split_seed, ("train", "search"))
    dataset.check_fits(start.signature.inputs, start.preprocess)
    with watch_for_terminal() as watch:
        for sentence in (*start.findings, *dataset.findings):
            watch.say(sentence)
        if start.labels != dataset.class_names:
            start = training.replace_head(start, dataset.class_names, seed=seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        # The pixels may not fit into the system's temporary folder, which is in memory here and there.
        with temporary_folder(out.parent if rank().first else None) as cache:
            read = partial(dataset.split, split_seed=start.split_seed, inputs=start.signature.inputs, cache=Path(cache))
            samples = read("train", start.preprocess, progress=watch.step("reading the train split"))
            held_out = read("search", start.preprocess)
            trained = training.transfer(
                start, samples, epochs=epochs, max_time_s=seconds, seed=seed, progress=watch.step("training")
            )
            if not rank().first:
                return {}
            save_model(trained, out)
            said = [sentence for sentence in trained.findings if sentence not in start.findings]
            for sentence in said:
                watch.say(sentence)
            try:
                share = accuracy(trained, held_out, progress=watch.step("checking"))
            except PocketfitError as error:
                raise UserError(f"The model is in {out}, but its accuracy could not be measured: {error}") from error
    return {
        "model": str(out),
        "architecture": trained.origin.name,
        "labels": list(trained.labels),
        "train_samples": len(samples),
        "search_samples": len(held_out),
        "search_accuracy": share,
        "findings": [*dataset.findings, *said],
    }


def _starting_point(source: Source, width: float, classes: int, seed: int) -> Model:
    """The network before transfer: a zoo name without weights starts from random ones, drawn by `seed`."""
    from pocketfit import zoo
    from pocketfit.core.model import Origin
    from pocketfit.sources.models.build_network import check_size
    from pocketfit.sources.models.open_model import model_from_module

    name = source.model
    if name not in zoo.ARCHITECTURES or source.weights is not None:
        if width != 1.0:
            raise UserError("--width is for zoo names without --weights: published weights have their own width")
        return source.open()
    import torch

    check_size(name, {"width": width, "classes": classes})
    torch.manual_seed(seed)
    network = zoo.build(name, width=width, classes=classes)
    origin = Origin("zoo", name, {"width": width, "classes": classes})
    published = source.open()
    return model_from_module(network, preprocess=published.preprocess, origin=origin)


def show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain
    from pocketfit.report.page.words import format_count, format_share

    console = plain()
    console.print(
        f"{escape(data['model'])}: {data['architecture']} for {len(data['labels'])} classes,"
        f" {format_share(data['search_accuracy'])} right on the validation split"
        f" (n = {format_count(data['search_samples'])}, in PyTorch; trained on {format_count(data['train_samples'])})"
    )
