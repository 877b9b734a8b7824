"""What a run hands over while it goes on: result.json, plan.json, the bundle and the report."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pocketfit.core.support.files import write_json
from pocketfit.core.support.progress import Watch
from pocketfit.core.trial import Trial
from pocketfit.search import journal
from pocketfit.search.run.job import Job

if TYPE_CHECKING:
    pass


GOLDEN_SAMPLES = 4  # images with known answers in a bundle


class Delivery:
    """Writes result.json, plan.json and report.html after every trial, the bundle when the best so far has changed."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._bundled: tuple[str, bool] | None = None

    def __call__(self, job: Job, data: dict[str, Any], chosen: Trial | None, *, finished: bool) -> None:
        from pocketfit.report.run.render import write_report

        write_json(job.out / "result.json", data)
        if chosen is not None and chosen.artifact is not None:
            write_json(job.out / "plan.json", chosen.plan.to_json())
            key = (chosen.artifact.sha256, finished)
            if key != self._bundled:
                bundle(job, chosen, data, self._watch)
                self._bundled = key
        write_report(job.out)


def bundle(job: Job, chosen: Trial, data: dict[str, Any], watch: Watch) -> None:
    """The chosen file with the code that calls it, in `out/bundle`."""
    from pocketfit.bundle.write import write_bundle
    from pocketfit.search.run.apply_passes import carried_out

    assert chosen.artifact is not None
    verdict = journal.read(job.out / "journal.jsonl").verdict
    told = None if verdict is None or verdict["trial"] != chosen.number else verdict.get("verification")
    model = carried_out(job, chosen.plan, watch)
    golden = job.samples("calibration", model.preprocess, watch, limit=GOLDEN_SAMPLES)
    artifact = replace(chosen.artifact, path=str(job.out / chosen.artifact.path))
    write_bundle(
        job.out / "bundle",
        artifact,
        model,
        golden=golden,
        measurements=data["chosen"]["measurements"],
        result=data if data["status"] != "stopped" else None,
        verification=None if told is None else told["after"],
    )
