"""Find, check and read the files that verbs are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketfit.cli.arguments import dataset
from pocketfit.core.errors import UserError
from pocketfit.core.support.json_file import load
from pocketfit.core.support.text import readable

if TYPE_CHECKING:
    from pocketfit.core.preprocess import Preprocess
    from pocketfit.core.samples import Samples
    from pocketfit.core.signature import TensorSpec
    from pocketfit.core.support.progress import Watch


def record_of(out: Path) -> Any:
    from pocketfit.search import journal

    path = out / "journal.jsonl"
    if not path.is_file():
        raise UserError(f"{out} is not the output folder of a run: it has no journal.jsonl")
    record = journal.read(path)
    if record.start is None:
        raise UserError(f"{path} does not say what its run is about: its first line is missing")
    return record


def check_files(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.is_file():
            there = "is not a file" if path.exists() else "does not exist"
            raise UserError(f"The file {path} {there}")
        if path is not None and readable(str(path)) != str(path):
            raise UserError(f"The name {readable(str(path))} is not UTF-8, and runtimes open no such files: rename it")


def contract_of(model: str | None, preprocess: str | None, file: Path) -> tuple[Preprocess, tuple[str, ...], int]:
    """How images are prepared, what the classes are called, and the split seed: from a model folder, a bundle, or the
    bundle that the file lies in. --preprocess overrules."""
    from pocketfit.bundle.manifest import read_manifest
    from pocketfit.core.model import ModelFile
    from pocketfit.core.support.schema import checked
    from pocketfit.sources.input_contract import check_preprocess, read_preprocess

    folder = Path(model) if model is not None else file.parent
    given = None if preprocess is None else read_preprocess(preprocess, None)[0]
    if (path := folder / "model.json").is_file():
        mend = "make the folder again"
        told: ModelFile = checked(ModelFile, load(path, "model", mend), str(path), mend)
        return given or told.preprocess, told.labels, told.split_seed
    if (path := folder / "manifest.json").is_file():
        manifest = read_manifest(path)
        return given or check_preprocess(manifest["preprocess"], path), tuple(manifest["labels"]), 0
    if preprocess is None:
        raise UserError(
            f"Nothing says how images are prepared for {file.name}: give --model (a model folder or bundle),"
            " or --preprocess"
        )
    return read_preprocess(preprocess, None)[0], (), 0


def input_of(file: Path) -> TensorSpec:
    """The input of a file."""
    from pocketfit import runtimes

    session = runtimes.for_file(file).load(file, threads=1)
    session.close()
    return session.signature.inputs[0]


def samples_of(
    data: Path,
    contract: tuple[Preprocess, tuple[str, ...], int],
    split: str,
    limit: int | None,
    watch: Watch,
    *fed: TensorSpec,
) -> Samples:
    """The samples of a split, checked against all of these inputs."""
    from pocketfit.core.samples import split_words
    from pocketfit.search.run.job import aligned, order_of_numbers

    preprocess, labels, split_seed = contract
    given = dataset(data, watch)
    for spec in fed:
        given.check_fits(spec, preprocess)
    for sentence in order_of_numbers(given.class_names, labels) if labels else ():
        watch.say(sentence)
    tick = watch.step(f"reading the {split_words(split)} split")
    samples = given.split(split, preprocess, split_seed=split_seed, limit=limit, progress=tick)
    return aligned(samples, given.class_names, labels) if labels else samples
