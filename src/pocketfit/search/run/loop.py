"""The main job: from a model, data and limits to a proven file.

The loop is short: propose the next plan from the journal, try it, write it down, deliver the best so far. Killed at any
moment and started again on the same folder it goes on with the journal that is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from pocketfit import runtimes
from pocketfit.core.errors import Stopped, UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.quantize import QuantTrain
from pocketfit.core.plan.train import Train
from pocketfit.core.support.array_file import forget_arrays
from pocketfit.core.support.files import held
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.trial import Trial
from pocketfit.measurement import latency
from pocketfit.search import journal
from pocketfit.search.decide.choose import baselines, choose
from pocketfit.search.decide.control import control_of
from pocketfit.search.decide.doubtful_latency import doubtful
from pocketfit.search.decide.result import Result, compose
from pocketfit.search.propose.allocate_widths import cubic
from pocketfit.search.propose.propose import Share, best_recipes, propose, ratios
from pocketfit.search.propose.quantization_ladder import awaiting
from pocketfit.search.propose.space import Proposal, Space
from pocketfit.search.run.begin import begin, check, check_out, is_fruitless, refuse_others
from pocketfit.search.run.channel_allocation import allocation_line, allocations
from pocketfit.search.run.clock import Clock
from pocketfit.search.run.job import (
    Job,
    baseline_export,
    prelude,
    recipes,
)
from pocketfit.search.run.layer_sensitivity import sensitive_layers, sensitive_to_four_bits, sensitivity_line
from pocketfit.search.run.resumed import check_resumed
from pocketfit.search.run.run_trial import attempt, timing
from pocketfit.search.run.training_steps import LADDER_SHARE, Pace, grid_seconds, pace_line
from pocketfit.search.run.verdict.disturbed_latencies import best_times, patient, timing_lines
from pocketfit.search.run.verdict.scores_once import was_read
from pocketfit.search.run.verdict.verdict import read_verdict

GRID_RATE = 0.006  # learning rate on the grid, in units of its step; 0.002 is too small (docs/results/notes.md)
ANY_SIZE = ("classification", "binary", "multilabel", "ordinal")  # tasks whose answers do not have the input's size
WITHOUT_TRAINING = ("baselines", "recipes")  # rows of proposals
ALMOST = 0.8  # share of a trial's expected time that must be left to begin it
AGAIN_S = 45.0  # expected time of a careful latency measurement
LESS_PATIENCE = 0.25  # of the verdict's patience, as several trials may be measured again and one is handed over


class Deliver(Protocol):
    """Writes the files beside the journal after every trial; bundle and report live above this floor."""

    def __call__(self, job: Job, data: dict[str, Any], chosen: Trial | None, *, finished: bool) -> None: ...


def fit_job(job: Job, deliver: Deliver, watch: Watch | None = None) -> Result:
    """Run, or go on with, the job in its output folder.

    Raises UserError where the folder belongs to other inputs, Stopped after Ctrl-C (with the best so far delivered).
    """
    watch = watch or Silent()
    path = job.out / "journal.jsonl"
    check_out(job.out)
    record = journal.read(path)
    anew = record.start is None or is_fruitless(job, record)
    if anew:
        check(job)
    else:
        refuse_others(job, record)
        check_resumed(job, record, path)
    with held(job.out):
        if anew:
            if journal.read(path) != record:
                raise UserError(f"Another run has just been in {job.out}: give the same command again")
            path.unlink(missing_ok=True)
            begin(job, path, watch)
        clock = Clock(path, journal.read(path).seconds, job.budget.max_time_s)
        try:
            _search(job, path, clock, deliver, watch)
            _verdict(job, path, clock, watch)
        except KeyboardInterrupt:
            clock.note()
            _deliver(job, path, deliver, finished=False)
            raise Stopped(f"Stopped; the best so far is in {job.out}, and the same command goes on from here") from None
        data = _deliver(job, path, deliver, finished=True)
        forget_arrays(job.cache)
    return Result(data["status"], data["certified"], job.out, data)


def _search(job: Job, path: Path, clock: Clock, deliver: Deliver, watch: Watch) -> None:
    space: Space | None = None
    while (record := journal.read(path)).verdict is None:
        if space is None:
            space = space_of(job, *_steps(record.pace))
        space = replace(
            space,
            sensitive=sensitive_layers(record, space.macs),
            sensitive_4=sensitive_to_four_bits(record, space.params),
            widths=allocations(record),
        )
        waiting = awaiting(space, record.trials, job.budget, Share.of(space, job.budget).ladder)
        proposal = _next(job, space, record, clock) if waiting is None else None
        trains = waiting is not None or (proposal is not None and proposal.row not in WITHOUT_TRAINING)
        if trains and record.pace is None:  # measuring it takes minutes, and the first files do not need it
            journal.append(path, pace_line(job, watch))
            clock.note()
            space = None
            continue
        if waiting is not None and _time_to_climb(job, record, clock.left_s(), waiting.seconds):
            files = baselines(record.trials)[waiting.runtime], waiting
            journal.append(path, sensitivity_line(job, waiting.plan, watch, files))
            clock.note()
            continue
        proposal = proposal or _next(job, space, record, clock)
        if proposal is None or proposal.stage == "control":
            if lines := timing_lines(job, record, watch, clock.left_s()):
                for again in lines:
                    journal.append(path, again)
                clock.note()
                continue
            doubt = doubtful(record.trials, job.budget, record.measured_again)
            if doubt is not None and clock.left_s() > AGAIN_S:
                journal.append(path, _measured_again(job, doubt, record.trials, clock, watch))
                clock.note()
                continue
        if proposal is None:
            return
        if proposal.stage == "pruned" and record.allocation is None and job.allocation != "uniform":
            journal.append(path, _allocation(job, space, record, watch))
            clock.note()
            continue
        number = max((t.number for t in record.trials), default=-1) + 1
        watch.say(f"trial {number}: {proposal.plan.code} in {proposal.plan.export.runtime} ({proposal.stage})")
        trial = attempt(job, proposal, number, record.trials, watch)
        journal.append(path, {"kind": "trial", **trial.to_json()})
        clock.note()
        _speak(trial, job, watch)
        if proposal.stage == "baseline" and trial.status == "failed" and len(job.runtimes) == 1:
            cause = trial.error.splitlines()[0].rstrip(".")
            raise UserError(f"There is no float32 file for {trial.runtime}: {cause} (its log is in {path})")
        _deliver(job, path, deliver, finished=False, watch=watch)


def _allocation(job: Job, space: Space, record: journal.Record, watch: Watch) -> dict[str, Any]:
    """The journal's line with the widths for all ratios that may be asked for; or why there are none, which is said."""
    best = best_recipes(space, record.trials, job.budget)
    ladder = ratios(record.trials, job.budget, best)
    asked = sorted({share for ratio in ladder for share in cubic(space.rounds, ratio)})
    line = allocation_line(job, best[0].export, asked, space.prune.multiple, watch)
    if "error" in line:
        watch.say(f"widths cannot be allocated: {line['error']}")
    return line


def _steps(pace: Mapping[str, Any] | None) -> tuple[tuple[int, int], float]:
    """Steps of a brief and of a long training, and their learning rate: decided once and kept in the journal, so that a
    resumed run goes on with the plans that it began, with another --max-time too. None: no training is planned yet."""
    if pace is None:
        return (1, 1), Train.learning_rate
    return (pace["short_steps"], pace["long_steps"]), pace.get("learning_rate", Train.learning_rate)


def space_of(job: Job, steps: tuple[int, int], learning_rate: float = Train.learning_rate) -> Space:
    """What may be tried for this job, with this many steps for a brief and for a long training, at this rate."""
    short, long = steps
    rows = [row for row in job.layers if row.macs]
    layers = [row.name for row in rows]
    four_bit = [r for r in job.runtimes for e in recipes(job, r)[:1] if _takes_four_bits(job, e)]
    return Space(
        runtimes=job.runtimes,
        baselines={r: baseline_export(job, r) for r in job.runtimes},
        recipes={r: _recipes(job, r) for r in job.runtimes},
        ends=tuple(dict.fromkeys((layers[0], layers[-1]))),
        keep_float=job.keep_float,
        fold=job.fold,
        prelude={r: prelude(job, r) for r in job.runtimes},
        height=job.model.preprocess.height,
        width=job.model.preprocess.width,
        # of other tasks answers would have another size, and only images can be made smaller
        keep_resolution=job.keep_resolution
        or job.model.task not in ANY_SIZE
        or not job.model.signature.inputs[0].layout,
        train=Train(steps=short, batch_size=job.batch_size, learning_rate=learning_rate, seed=job.seed),
        short_steps=short,
        long_steps=long,
        rounds=job.rounds,
        prune=Prune(0.0, job.criterion, layers=job.layer_ratios, seed=job.seed),
        macs={row.name: row.macs for row in rows},
        params={row.name: row.params for row in rows},
        four_bit=tuple(four_bit),
        quant_train=QuantTrain(steps=short, learning_rate=GRID_RATE, seed=job.seed, inner=1.0),
    )


def _recipes(job: Job, runtime: str) -> tuple[ExportSettings, ...]:
    """The runtime's recipes; with the float32 file behind the first one, where it differs from the baseline's."""
    found = recipes(job, runtime)
    return (*found[:1], baseline_export(job, runtime), *found[1:]) if job.fold else found


def _takes_four_bits(job: Job, export: ExportSettings) -> bool:
    if export.precision != "int8":
        return False
    plan = Plan((), replace(export, weights="int4"))
    return not runtimes.get(export.runtime).why_not(plan, job.model.signature)


def _next(job: Job, space: Space, record: journal.Record, clock: Clock) -> Proposal | None:
    """The next proposal that the time left allows; the baselines are made in any case."""
    verdict_s = 0.0 if (pace := _known_pace(record)) is None else pace.verdict_s
    left_s = clock.left_s() - verdict_s
    export_s = median([t.seconds for t in record.trials if t.stage == "recipe"] or [30.0])
    per_step_s = 0.0 if pace is None else 1 / pace.steps_per_s
    control_s = export_s + (space.short_steps + space.long_steps) * per_step_s
    without: list[str] = []
    while (proposal := propose(space, record.trials, job.budget, without=without)) is not None:
        grid_s = grid_seconds(proposal.plan, record.trials, per_step_s / job.batch_size)
        needed_s = export_s + grid_s + proposal.steps * per_step_s
        match proposal.row:
            case "baselines":
                fits = True
            case "ladder":
                fits = _time_to_climb(job, record, left_s, needed_s)
            case "pruned" | "forms":
                fits = left_s >= needed_s + export_s + grid_s + space.long_steps * per_step_s
            case "extension" | "forms of the chosen":
                fits = left_s >= needed_s + control_s
            case _:
                fits = left_s > ALMOST * needed_s
        if fits:
            return proposal
        without.append(proposal.row)
    return None


def _measured_again(job: Job, trial: Trial, trials: Sequence[Trial], clock: Clock, watch: Watch) -> dict[str, Any]:
    """The journal's "timing" line: a trial's latency, measured with the care of the verdict."""
    baseline, best = baselines(trials)[trial.runtime], best_times(trials, trial.runtime)
    assert trial.artifact is not None and baseline.artifact is not None
    watch.step(f"timing {trial.plan.code} again: the limit lies inside its interval")
    reference, path = job.out / baseline.artifact.path, job.out / trial.artifact.path
    effort = patient(latency.CAREFUL, job.budget, clock.left_s(), LESS_PATIENCE)
    measured, _ = timing(trial.runtime, reference, path, job.threads, effort, best)
    return {
        "kind": "timing",
        "trial": trial.number,
        "measurements": {name: m.to_json() for name, m in measured.items()},
    }


def _time_to_climb(job: Job, record: journal.Record, left_s: float, needed_s: float) -> bool:
    """Whether the ladder may take `needed_s` seconds more: pruning needs its share of the time too."""
    if job.budget.max_time_s is None:
        return True
    used_s = sum(t.seconds for t in record.trials if t.stage == "ladder")
    return needed_s <= left_s and used_s + needed_s <= LADDER_SHARE * job.budget.max_time_s


def _known_pace(record: journal.Record) -> Pace | None:
    if record.pace is None or "steps_per_s" not in record.pace:
        return None
    return Pace(record.pace["steps_per_s"], record.pace["verdict_s"])


def _speak(trial: Trial, job: Job, watch: Watch) -> None:
    if trial.status == "failed":
        watch.say(f"trial {trial.number} failed: {trial.error}")
        return
    if trial.stage == "baseline":
        for sentence in trial.details["findings"]:
            watch.say(sentence)


def _verdict(job: Job, path: Path, clock: Clock, watch: Watch) -> None:
    """Read the verdict split for the chosen trial, once: the journal says so before the reading begins, and the scores
    are kept as soon as it ends."""
    record = journal.read(path)
    choice = choose(record.trials, job.budget)
    if record.verdict is not None:
        return
    if choice is None:
        errors = "; ".join(f"{t.runtime}: {t.error}" for t in record.trials if t.status == "failed")
        raise UserError(f"No plan has given a file ({errors or 'nothing was tried'})")
    control, reading = control_of(choice.trial, record.trials), record.readings
    if not was_read(job, choice.baseline, choice.trial, control):
        reading += 1
        journal.append(path, {"kind": "reading", "trial": choice.trial.number, "reading": reading})
    reading = max(reading, 1)
    best = best_times(record.trials, choice.trial.runtime)
    line = read_verdict(job, choice.trial, choice.baseline, control, reading, watch, best=best, left_s=clock.left_s)
    from pocketfit.search.run.verdict.layer_report import layers_line

    journal.append(path, {**layers_line(job, choice.trial, choice.baseline, watch), "reading": reading})
    journal.append(path, line)
    clock.note()


def _deliver(job: Job, path: Path, deliver: Deliver, *, finished: bool, watch: Watch | None = None) -> dict[str, Any]:
    record = journal.read(path)
    data = compose(record, job.budget, finished=finished and record.verdict is not None)
    chosen = None if data["chosen"] is None else record.trial(data["chosen"]["trial"])
    deliver(job, data, chosen, finished=finished)
    if watch is not None and chosen is not None:
        watch.best(chosen.plan.code)
    return data
