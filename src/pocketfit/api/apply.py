"""`pocketfit.apply`: the file of a plan, made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pocketfit.api.fit import stay_in_quota
from pocketfit.api.inputs import Data, Network, as_dataset, as_model
from pocketfit.core.budget import Budget
from pocketfit.core.model import Model
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.array_file import forget_arrays
from pocketfit.core.support.files import OF_APPLY, check_folder, held
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.user_code import Allowed
from pocketfit.search.run.job import Job, check_teacher, settled
from pocketfit.search.run.run_trial import Exported, export
from pocketfit.sources.data.dataset import Dataset


def apply(
    plan: Plan,
    model: Network,
    samples: Data,
    out: str | Path,
    *,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    task: str = "",
    teacher: Network | None = None,
    threads: int = 1,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> Exported:
    """Make the file of a plan again, as `out/<code>-<hash>.<suffix>`.

    plan     what is done to the network, and for which runtime it is exported
    model, samples, preprocess, labels, task, teacher, allow_code  as for `fit`
    out      a new or empty folder, or one of an earlier `apply`: trained networks are kept in out/cache
    threads  of the runtime that checks the file
    Raises UserError for input that does not fit together, ExportFailed where the runtime's converter fails.
    """
    watch, folder = watch or Silent(), Path(out)
    check_folder(folder, OF_APPLY)
    stay_in_quota()
    data = as_dataset(samples, watch)
    network = as_model(model, preprocess, labels, allow_code)
    taught_by = None if teacher is None else as_model(teacher, preprocess, labels, allow_code)
    job = settled(
        Job(
            model=network,
            data=data,
            out=folder,
            runtimes=(plan.export.runtime,),
            budget=Budget(),
            task=task,
            threads=threads,
            teacher=taught_by,
        )
    )
    check_teacher(job)
    data.check_fits(network.signature.inputs, network.preprocess)
    with held(folder):
        made = export(job, plan, watch, folder=folder)
        forget_arrays(job.cache)
    return made


def take_part(plan: Plan, model: Model, data: Dataset, *, task: str = "", teacher: Model | None = None) -> None:
    """The part in `apply` of all processes but the first, where torchrun has started several: train, write nothing.

    Their by-products are in a folder of their own, which is removed at the end.
    """
    from pocketfit.search.run.run_trial import prepared

    with temporary_folder() as own:
        job = settled(
            Job(
                model=model,
                data=data,
                out=Path(own),
                runtimes=(plan.export.runtime,),
                budget=Budget(),
                task=task,
                teacher=teacher,
            )
        )
        check_teacher(job)
        prepared(job, plan, Silent())
