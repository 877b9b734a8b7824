"""`pocketfit.export`: a network, or what a plan makes of it, for use in PyTorch without pocketfit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pocketfit.api.fit import stay_in_quota
from pocketfit.api.inputs import Data, Network, as_dataset, as_model
from pocketfit.core.budget import Budget
from pocketfit.core.model import Model
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.array_file import forget_arrays
from pocketfit.core.support.files import check_folder, held
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.user_code import Allowed
from pocketfit.handover.folder import FILES, Handed, hand_over
from pocketfit.search.run.job import Job, check_teacher, settled
from pocketfit.sources.data.dataset import no_data


def export(
    model: Network,
    out: str | Path,
    *,
    plan: Plan | None = None,
    run: str | Path | None = None,
    samples: Data | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    task: str = "",
    teacher: Network | None = None,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> Handed:
    """Write a network so that it runs, and trains on, with torch alone: source, weights and torch.export's program.

    model, samples, preprocess, labels, task, teacher, allow_code  as for `fit`
    out    a new or empty folder, or one of an earlier `export`
    plan   what is done to the network first; passes that only make up for quantization are left out
    run    the output folder of the `fit` that made the plan: what was trained there is not trained again
    Raises UserError for input that does not fit together, and where torch.export can't follow the network.
    """
    watch, folder = watch or Silent(), Path(out)
    check_folder(folder, FILES)
    stay_in_quota()
    network = as_model(model, preprocess, labels, allow_code)
    if plan is None:
        return hand_over(network, folder)
    data = no_data(network.labels) if samples is None else as_dataset(samples, watch)
    taught_by = None if teacher is None else as_model(teacher, preprocess, labels, allow_code)
    with temporary_folder() as own:
        job = settled(
            Job(
                model=network,
                data=data,
                out=Path(own if run is None else run),
                runtimes=(plan.export.runtime,),
                budget=Budget(),
                task=task,
                teacher=taught_by,
            )
        )
        check_teacher(job)
        if samples is not None:
            data.check_fits(network.signature.inputs, network.preprocess)
        with held(job.out):
            made = in_float(job, plan, watch)
            forget_arrays(job.cache)
        return hand_over(made, folder, unpruned=job.model.network)


def in_float(job: Job, plan: Plan, watch: Watch) -> Model:
    """The network after those passes of the plan that are not there for a quantized file alone."""
    from pocketfit.search.run.apply_passes import carried_out

    kept = tuple(settings for settings in plan.passes if not settings.FACTS.on_grid and not settings.FACTS.for_file)
    return carried_out(job, replace(plan, passes=kept), watch)
