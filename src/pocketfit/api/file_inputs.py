"""What functions that look at files need to know of them: how they are fed, and samples for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketfit import runtimes, tasks
from pocketfit.api.inputs import Data, as_dataset
from pocketfit.bundle.manifest import read_manifest
from pocketfit.core.errors import UserError
from pocketfit.core.model import ModelFile
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.json_file import load
from pocketfit.core.support.progress import Watch
from pocketfit.core.support.schema import checked
from pocketfit.core.support.text import readable
from pocketfit.search.run.job import read_split
from pocketfit.sources.data.dataset import for_form
from pocketfit.sources.input_contract import check_preprocess, read_preprocess
from pocketfit.tasks.choose_task import checked_task, task_reading
from pocketfit.tasks.common.class_names import order_of_numbers


@dataclass(frozen=True)
class Contract:
    """How images are prepared for a file, what its labels are ((): unknown), the seed of the splits, and what its
    outputs mean ("": unknown)."""

    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    split_seed: int = 0
    task: str = ""


def check_files(*paths: Path | None) -> None:
    """Raises UserError for a file that is not there, and for a name that runtimes can't open."""
    for path in paths:
        if path is not None and not path.is_file():
            there = "is not a file" if path.exists() else "does not exist"
            raise UserError(f"The file {path} {there}")
        if path is not None and readable(str(path)) != str(path):
            raise UserError(f"The name {readable(str(path))} is not UTF-8, and runtimes open no such files: rename it")


def contract_of(model: str | Path | None, preprocess: Preprocess | str | Path | None, file: Path) -> Contract:
    """The contract of a file: from a model folder, a bundle, or the bundle that the file lies in; `preprocess`
    overrules. Raises UserError where nothing says it."""
    folder = Path(model) if model is not None else file.parent
    given = None if preprocess is None else read_preprocess(preprocess, None)[0]
    if (path := folder / "model.json").is_file():
        mend = "make the folder again"
        told: ModelFile = checked(ModelFile, load(path, "model", mend), str(path), mend)
        return Contract(given or told.preprocess, told.labels, told.split_seed)
    if (path := folder / "manifest.json").is_file():
        manifest = read_manifest(path)
        prepared = given or check_preprocess(manifest["preprocess"], path)
        task = manifest.get("task", "")
        task += f":{manifest['boxes']}" if task and "boxes" in manifest else ""
        return Contract(prepared, tuple(manifest["labels"]), task=task)
    if given is None:
        raise UserError(
            f"Nothing says how images are prepared for {file.name}: give --model (a model folder or bundle),"
            " or --preprocess"
        )
    return Contract(given)


def inputs_of(file: Path) -> tuple[TensorSpec, ...]:
    """What a file takes."""
    session = runtimes.for_file(file).load(file, threads=1)
    session.close()
    return session.signature.inputs


def output_of(file: Path) -> TensorSpec:
    """What a file gives first."""
    session = runtimes.for_file(file).load(file, threads=1)
    session.close()
    return session.signature.outputs[0]


def samples_of(
    data: Data,
    contract: Contract,
    split: str,
    limit: int | None,
    watch: Watch,
    *fed: Sequence[TensorSpec],
    task: str = "",
) -> tuple[Samples, str]:
    """(the samples of a split, which all of these inputs take, with the targets of the task; the name of the task).

    task  what the user named; "": that of the contract, else the one that reads the data's targets, else fidelity
    """
    given = as_dataset(data, watch)
    name = checked_task(task or contract.task or task_reading(given.form))
    given = for_form(given, tasks.get(name).FORM)
    for inputs in fed:
        given.check_fits(inputs, contract.preprocess)
    if given.form == "classes":
        for sentence in order_of_numbers(given.class_names, contract.labels) if contract.labels else ():
            watch.say(sentence)
    labels, seed = contract.labels, contract.split_seed
    found = read_split(
        given,
        split,
        contract.preprocess,
        watch,
        task=name,
        labels=labels,
        split_seed=seed,
        inputs=fed[0] if fed else (),
        limit=limit,
    )
    return found, name
