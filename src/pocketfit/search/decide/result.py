"""result.json: the request, the choice, and how it compares. A pure function of the journal and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pocketfit.core.budget import Budget, Prefer
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.prune import Sparsify
from pocketfit.core.trial import Trial
from pocketfit.search.decide.check_limits import Check, check
from pocketfit.search.decide.choose import Choice, baselines, choose
from pocketfit.search.decide.control import control_plan
from pocketfit.search.decide.disturbance import doubts
from pocketfit.search.decide.file_forms import same_network
from pocketfit.search.decide.shortfall import explain_shortfall, say
from pocketfit.search.journal import Record

SCHEMA_VERSION = 1
SLOWER_WORTH_A_WORD = 1.05


@dataclass(frozen=True)
class Result:
    """What `fit` hands over. `data` is result.json; `out` the folder that holds it, the bundle and the report."""

    status: str
    certified: bool
    out: Path
    data: dict[str, Any] = field(repr=False)

    @property
    def comparison(self) -> dict[str, Any] | None:
        comparison: dict[str, Any] | None = self.data["comparison"]
        return comparison

    @property
    def chosen_file(self) -> Path | None:
        """The chosen artifact's file."""
        chosen = self.data["chosen"]
        return self.out / chosen["artifact"]["path"] if chosen else None


def compose(record: Record, budget: Budget, *, finished: bool) -> dict[str, Any]:
    """The dict that result.json holds.

    Where the verdict split was read for the trial that `budget` chooses, its numbers count; else those of the search
    split, and nothing is certified. `finished` False: the search is not over, status "stopped".
    """
    picked = choose(record.trials, budget)
    choice = None if picked is None else final(picked, record, budget)
    verdict_read = choice is not None and _verdict_of(record, choice.trial) is not None
    certified = choice is not None and verdict_read and all(c.certified for c in choice.checks)
    status = "stopped" if not finished else "met" if choice is not None and choice.feasible else "infeasible"
    shortfall = explain_shortfall(record.trials, budget) if status == "infeasible" else None
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "certified": certified and status == "met",
        "budget": budget.to_json(),
        "baseline": None if choice is None else _side(choice.baseline),
        "chosen": None if choice is None else _side(choice.trial),
        "comparison": None if choice is None else _comparison(choice, record, verdict_read),
        "trials": len(record.trials),
        "explanation": _explanation(record, choice, budget, status, verdict_read, certified),
        "limits": [] if choice is None else [c.to_json() for c in choice.checks],
        "shortfall": None if shortfall is None else shortfall.to_json(),
    }


def final(choice: Choice, record: Record, budget: Budget) -> Choice:
    """The choice with the verdict's measurements in place of the search's, where that trial has a verdict."""
    verdict = _verdict_of(record, choice.trial)
    if verdict is None:
        return choice
    trial = _with(choice.trial, verdict["measurements"])
    baseline = _with(choice.baseline, verdict["baseline_measurements"])
    return Choice(trial, baseline, check(trial, baseline, budget))


def _with(trial: Trial, measurements: dict[str, Any]) -> Trial:
    read = {name: Measurement.from_json(m) for name, m in measurements.items()}
    return replace(trial, measurements={**trial.measurements, **read})


def _verdict_of(record: Record, trial: Trial) -> dict[str, Any] | None:
    return record.verdict if record.verdict is not None and record.verdict["trial"] == trial.number else None


def _side(trial: Trial) -> dict[str, Any]:
    assert trial.artifact is not None
    artifact = {k: getattr(trial.artifact, k) for k in ("path", "sha256", "bytes", "download_bytes")}
    return {
        "runtime": trial.runtime,
        "plan": trial.plan.to_json(),
        "code": trial.plan.code,
        "trial": trial.number,
        "artifact": artifact,
        "measurements": {name: m.to_json() for name, m in trial.measurements.items()},
    }


def _comparison(choice: Choice, record: Record, verdict_read: bool) -> dict[str, Any]:
    trial, baseline = choice.trial, choice.baseline
    drop, latency = trial.measurements.get("drop_points"), trial.measurements.get("latency_ratio")
    metric = record.start["inputs"]["metric"] if record.start else "accuracy"
    return {
        "size_ratio": _ratio(trial, baseline, "size_bytes"),
        "download_ratio": _ratio(trial, baseline, "download_bytes"),
        "latency_ratio": None if latency is None else _latency_json(latency),
        "memory_ratio": _ratio(trial, baseline, "memory_bytes"),
        "drop": None
        if drop is None
        else {
            "metric": metric,
            "points": drop.value,
            "low": drop.low,
            "high": drop.high,
            "n": drop.n,
            "split": "verdict" if verdict_read else "search",
        },
        "control": _control(record, verdict_read),
    }


def _control(record: Record, verdict_read: bool) -> dict[str, Any] | None:
    """The chosen file against as much training without pruning; None without a verdict, or without that training."""
    control = (record.verdict or {}).get("control") if verdict_read else None
    if control is None:
        return None
    sides = {side: {k: control[side][k] for k in ("points", "low", "high")} for side in ("gain", "loss")}
    return {"trial": control["trial"], "steps": control["steps"], **sides}


def _latency_json(latency: Measurement) -> dict[str, Any]:
    data: dict[str, Any] = {"value": latency.value, "low": latency.low, "high": latency.high}
    return data | ({"disturbed": list(latency.disturbed)} if latency.disturbed else {})


def _ratio(trial: Trial, baseline: Trial, quantity: str) -> float | None:
    value, reference = trial.value(quantity), baseline.value(quantity)
    return None if value is None or not reference else value / reference


def _explanation(
    record: Record, choice: Choice | None, budget: Budget, status: str, verdict_read: bool, certified: bool
) -> list[str]:
    if choice is None:
        return ["No plan has given a file yet."]
    sentences = [_verdict_sentence(choice, status, verdict_read, certified)]
    if status == "infeasible" and verdict_read and choose_was_feasible(record, budget):
        missed = "; ".join(f"{c.limit.quantity} {say(c)} against {c.limit.text}" for c in choice.checks if not c.met)
        sentences.append(
            f"The plan met every limit while searching and misses on the final measurement ({missed}). No second"
            " plan was tried on the test split, because picking the winner there would flatter it."
        )
    sentences += [f"{c.limit.quantity} could not be checked: {c.reason}." for c in choice.checks if c.value is None]
    sentences += _more_training(record, choice, verdict_read)
    sentences += _other_forms(record.trials, choice, budget)
    if record.readings > 1:
        sentences.append(f"The test split was read {record.readings} times, because a reading was interrupted.")
    sentences += doubts(choice, record.trial(choice.trial.number) if verdict_read else None)
    sentences += _not_faster(record.trials, choice)
    sentences += _zeros(record.trials, choice.trial)
    sentences += _left_out(record.trials, choice, budget)
    failed = [t for t in record.trials if t.status == "failed"]
    sentences += [f"{t.plan.code} ({t.runtime}) failed: {t.error}" for t in failed]
    if choice.trial.artifact is not None:
        sentences += list(choice.trial.artifact.notes)
    findings = [f for side in (choice.baseline, choice.trial) for f in side.details.get("findings", ())]
    of_rate = (record.pace or {}).get("finding")
    return sentences + list(dict.fromkeys([*([of_rate] if of_rate else []), *findings]))


def choose_was_feasible(record: Record, budget: Budget) -> bool:
    """Whether the choice met every limit on the search split."""
    picked = choose(record.trials, budget)
    return picked is not None and picked.feasible


def _verdict_sentence(choice: Choice, status: str, verdict_read: bool, certified: bool) -> str:
    name = f"{choice.trial.plan.code} in {choice.trial.runtime}"
    where = "on the test split" if verdict_read else "on the validation split (the test split has not been read for it)"
    if status == "stopped":
        return f"Best so far is {name}; the search is not over, its accuracy was measured on the validation split."
    if status == "met" and not choice.checks:
        return f"{name} was chosen, its accuracy measured {where}; no limits were given."
    if status == "met" and not verdict_read:
        return f"{name} meets every limit on the validation split; the test split has not been read for it."
    if status == "met" and certified:
        return f"{name} meets every limit on the test split, and the 95 % bounds are inside them too."
    if status == "met":
        only_doubted = all(c.bounded for c in choice.checks)
        why = (
            "its latency was taken beside other work"
            if only_doubted
            else "the 95 % bound of at least one is outside or unknown"
        )
        return f"{name} meets every limit on the test split by its value, which is not certified: {why}."
    return f"No plan meets every limit; {name} comes nearest, its accuracy measured {where}."


def _more_training(record: Record, choice: Choice, verdict_read: bool) -> list[str]:
    """What training alone has gained, where the chosen network was trained further after it was pruned."""
    if not verdict_read or control_plan(choice.trial, record.trials) is None:
        return []
    control = (record.verdict or {}).get("control")
    if control is None:
        return [
            "Whether more training alone would have gained as much is not known: no control, a network trained as long"
            " without pruning, was made (it failed, or there was no time left for it)."
        ]
    gain, loss = control["gain"], control["loss"]
    return [
        f"The same {control['steps']:,} steps of training without pruning {_moved(gain['points'])} points"
        f" ({gain['low']:.2f} to {gain['high']:.2f} gained, 95 %); against that control, the chosen file"
        f" {'loses' if loss['points'] >= 0 else 'gains'} {abs(loss['points']):.2f} points"
        f" ({loss['low']:.2f} to {loss['high']:.2f} lost)."
    ]


def _moved(points: float) -> str:
    return f"gain {points:.2f}" if points >= 0 else f"lose {-points:.2f}"


def _other_forms(trials: Sequence[Trial], choice: Choice, budget: Budget) -> list[str]:
    """Sentences on what the chosen network costs in the other forms that were measured, and which preference picks
    them."""
    if choice.trial.stage not in ("pruned", "finalist"):
        return []
    base = baselines(trials)
    sentences = []
    for trial in same_network(choice.trial, trials):
        if trial.number == choice.trial.number or trial.runtime not in base:
            continue
        ratio, lost = trial.value("latency_ratio"), trial.value("drop_points")
        costs = [f"{(trial.value('size_bytes') or 0) / 1e6:.3g} MB"]
        costs += [] if ratio is None else [f"{ratio:.2f}x of float32's latency"]
        costs += [] if lost is None else [f"{lost:.2f} points lost"]
        missed = [c for c in check(trial, base[trial.runtime], budget) if not c.met]
        why = " and ".join(f"{c.limit.quantity} {_quoted(c)} misses {c.limit.text}" for c in missed)
        liked = [p for p in get_args(Prefer) if p != budget.prefer and _picks(trial, trials, replace(budget, prefer=p))]
        why = why or (f"--prefer {liked[0]} would take it" if liked else "the chosen form is preferred")
        sentences.append(
            f"The chosen network as {trial.plan.export.code} in {trial.runtime}: {', '.join(costs)} (validation split);"
            f" it was left, as {why}."
        )
    return sentences


def _picks(trial: Trial, trials: Sequence[Trial], budget: Budget) -> bool:
    picked = choose(trials, budget)
    return picked is not None and picked.trial.number == trial.number


def _not_faster(trials: Sequence[Trial], choice: Choice) -> list[str]:
    """A sentence where static int8 is no faster on this device, in the runtime of the choice."""
    static = [
        t
        for t in trials
        if t.status == "ok" and t.stage in ("recipe", "ladder") and t.runtime == choice.trial.runtime
        if t.plan.export.precision == "int8" and t.value("latency_ratio") is not None
    ]
    if not static:
        return []
    fastest = min(static, key=lambda t: (t.value("latency_ratio") or 0.0, t.number))
    ratio = fastest.measurements["latency_ratio"]
    if ratio.value is None or (ratio.value < 1 and (ratio.high is None or ratio.high < 1)):
        return []
    interval = "" if ratio.low is None or ratio.high is None else f", 95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
    verdict = "is not faster" if ratio.value >= 1 else "cannot be told to be faster"
    return [
        f"Static int8 {verdict} than float32 on this device in {fastest.runtime}: the fastest such file,"
        f" {fastest.plan.code}, takes {ratio.value:.2f}x the time{interval}."
    ]


def _zeros(trials: Sequence[Trial], sparse: Trial) -> list[str]:
    """Sentences on what sparse weights gain, beside the same plan without them where that was tried too."""
    passes = tuple(p for p in sparse.plan.passes if not isinstance(p, Sparsify))
    if passes == sparse.plan.passes or sparse.artifact is None:
        return []
    made = sparse.artifact
    sentence = (
        f"The zeros of {sparse.plan.code} show on download: {made.download_bytes / 1e6:.2f} MB of a file of"
        f" {made.bytes / 1e6:.2f} MB. They are stored and computed like any weight: no sparse kernel runs in"
        f" {sparse.runtime}, so that latency is that of a dense file"
    )
    dense = next(
        (t for t in trials if t.status == "ok" and (t.plan.passes, t.plan.export) == (passes, sparse.plan.export)), None
    )
    ours = sparse.value("latency_ratio")
    theirs = None if dense is None else dense.value("latency_ratio")
    if dense is None or dense.artifact is None or ours is None or not theirs:
        return [f"{sentence}; this run has tried no such plan without them to compare with."]
    return [
        f"{sentence} (measured: {ours / theirs:.2f}x the time of {dense.plan.code}, which downloads as"
        f" {dense.artifact.download_bytes / 1e6:.2f} MB)."
    ]


def _left_out(trials: Sequence[Trial], choice: Choice, budget: Budget) -> list[str]:
    """Sentences on why no plan without pruning was chosen."""
    base = baselines(trials)
    sentences = []
    for trial in trials:
        if (
            trial.stage not in ("recipe", "ladder")
            or trial.status != "ok"
            or trial.number == choice.trial.number
            or trial.runtime not in base
        ):
            continue
        missed = [c for c in check(trial, base[trial.runtime], budget) if not c.met]
        ratio = trial.value("latency_ratio")
        reasons = [f"{c.limit.quantity} {_quoted(c)} misses {c.limit.text}" for c in missed]
        if ratio is not None and ratio > SLOWER_WORTH_A_WORD and (trial.measurements["latency_ratio"].low or 2.0) > 1:
            reasons.append(f"it is slower than float32 ({ratio:.2f}x)")
        if not reasons:
            reasons.append("it meets the limits, but the chosen plan is preferred")
        sentences.append(f"{trial.plan.code} ({trial.runtime}) was left: {' and '.join(reasons)}.")
    return sentences


def _quoted(stand: Check) -> str:
    return say(stand) if stand.value is not None else "unknown"
