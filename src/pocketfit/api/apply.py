"""`pocketfit.apply`: the file of a plan, made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pocketfit.core.budget import Budget
from pocketfit.core.model import Model
from pocketfit.core.plan.plan import Plan
from pocketfit.core.support.array_file import forget_arrays
from pocketfit.core.support.files import OF_APPLY, check_folder, held
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.search.run.job import Task, check_teacher, with_labels
from pocketfit.search.run.run_trial import Exported, export
from pocketfit.sources.data.dataset import Dataset

if TYPE_CHECKING:
    pass


from pocketfit.api.fit import stay_in_quota


def apply(
    plan: Plan,
    model: Model,
    data: Dataset,
    out: Path,
    *,
    teacher: Model | None = None,
    threads: int = 1,
    watch: Watch | None = None,
) -> Exported:
    """Make the artifact of a plan again, as `out/<code>-<hash>.<ext>`; trained prefixes are kept in out/cache."""
    watch = watch or Silent()
    check_folder(out, OF_APPLY)
    stay_in_quota()
    named = with_labels(model, data.class_names)
    task = Task(named, data, out, (plan.export.runtime,), Budget(), threads=threads, teacher=teacher)
    check_teacher(task)
    data.check_fits(model.signature.inputs[0], model.preprocess)
    with held(out):
        made = export(task, plan, watch, folder=out)
        forget_arrays(task.cache)
    return made


def take_part(plan: Plan, model: Model, data: Dataset, *, teacher: Model | None = None) -> None:
    """The part in `apply` of all processes but the first, where torchrun has started several: train, write nothing.

    Their by-products are in a folder of their own, which is removed at the end.
    """
    from pocketfit.search.run.run_trial import prepared

    with temporary_folder() as own:
        task = Task(
            with_labels(model, data.class_names), data, Path(own), (plan.export.runtime,), Budget(), teacher=teacher
        )
        check_teacher(task)
        prepared(task, plan, Silent())
