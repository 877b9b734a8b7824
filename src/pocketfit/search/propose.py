"""What to try next: a pure function of the space, the budget and the trials so far.

    baselines   the float32 file in every runtime
    recipes     exports without training: static int8 variants, float16, dynamic int8, and static int8 with the first
                and last layer in float where plain static int8 loses more than is allowed
    pruned      a ladder of pruning ratios, each trained briefly, exported with the best recipe of each runtime
    finalists   the best pruned ones, trained longer from where they stopped; while nothing meets the limits, the best
                of them longer still

Nothing here looks at a clock: with the same measurements the same plans come in the same order, so that a run that was
killed and started again tries what an undisturbed one tries. Only `hurry` (time is running out) skips ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pocketfit.core.budget import Budget
from pocketfit.core.plan import ExportSettings, PassSettings, Plan, Prune, Resolution, Train
from pocketfit.core.trial import Trial
from pocketfit.search.choose import Choice, baselines, choose, latency_ms
from pocketfit.search.limits import check

FIRST_RATIO = 0.3
RATIO_LADDER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
RATIO_STEPS = (0.0, 0.15, -0.15, 0.3, 0.1, -0.1, 0.4)  # around the first ratio, most telling first
RATIOS_WITHOUT_LIMIT = 3
SIZE_EXPONENT = 1.7  # bytes go with (1 - ratio) to this power: between 1 (depthwise layers) and 2 (pointwise layers)
RECOVERY = 0.5  # a finalist is expected to lose this share of what its brief training lost
FINALISTS = 2
MOST_EXTENSIONS = 3  # how often a finalist is trained on while nothing meets the limits
SMALLEST_SIDE_TO_SHRINK = 128
RESOLUTION_MULTIPLE = 32


@dataclass(frozen=True)
class Space:
    """What may be tried. `recipes`: the exports without training that each runtime supports, the quick ones first.

    ends: dotted names of the first and last weight-bearing layers, which lose most when quantized
    """

    runtimes: tuple[str, ...]
    baselines: Mapping[str, ExportSettings]
    recipes: Mapping[str, tuple[ExportSettings, ...]]
    ends: tuple[str, ...]
    height: int
    width: int
    keep_resolution: bool
    train: Train
    short_steps: int
    long_steps: int
    prune_multiple: int = 8


@dataclass(frozen=True)
class Proposal:
    """The next plan and the stage that it belongs to."""

    plan: Plan
    stage: str


def propose(space: Space, trials: Sequence[Trial], budget: Budget, *, hurry: bool = False) -> Proposal | None:
    """The next thing to try; None when there is nothing left. `hurry` skips to the finalists."""
    if budget.max_trials is not None and len(trials) >= budget.max_trials:
        return None
    tried = {trial.plan.hash for trial in trials}
    share = _Share.of(space, budget)
    for stage, plans in (
        ("baseline", _baselines(space)),
        ("recipe", _recipes(space, trials, budget, share.recipes)),
        ("pruned", iter(()) if hurry else _pruned(space, trials, budget, share.pruned)),
        ("finalist", _finalists(space, trials, budget)),
    ):
        for plan in plans:
            if plan.hash not in tried:
                return Proposal(plan, stage)
    return None


@dataclass(frozen=True)
class _Share:
    """How many trials each stage may have when their number is limited; baselines come first in any case."""

    recipes: int
    pruned: int

    @classmethod
    def of(cls, space: Space, budget: Budget) -> _Share:
        runtimes = len(space.runtimes)
        everything = sum(len(r) for r in space.recipes.values()) + runtimes
        if budget.max_trials is None:
            return cls(everything, RATIOS_WITHOUT_LIMIT * runtimes)
        left = max(0, budget.max_trials - runtimes)
        recipes = min(everything, max(runtimes, left // 2))
        return cls(recipes, max(0, left - recipes - min(FINALISTS, (left - recipes) // 2)))


def _baselines(space: Space) -> Iterator[Plan]:
    for runtime in space.runtimes:
        yield Plan((), space.baselines[runtime])


def _recipes(space: Space, trials: Sequence[Trial], budget: Budget, most: int) -> Iterator[Plan]:
    """Round by round over the runtimes, so that a small number of trials is shared between them.

    A runtime that could not even export the float32 file is left out.
    """
    broken = {t.runtime for t in trials if t.stage == "baseline" and t.status == "failed"}
    working = [runtime for runtime in space.runtimes if runtime not in broken]
    plans = []
    for round_ in range(max((len(r) for r in space.recipes.values()), default=0)):
        plans += [Plan((), space.recipes[r][round_]) for r in working if round_ < len(space.recipes[r])]
    plans += [plan for runtime in working if (plan := _mixed(space, trials, budget, runtime))]
    yield from plans[:most]


def _mixed(space: Space, trials: Sequence[Trial], budget: Budget, runtime: str) -> Plan | None:
    """The best static int8 recipe with the delicate ends in float, where plain static int8 loses too much."""
    allowed = next((limit.value for limit in budget.limits if limit.quantity == "drop"), None)
    static = [
        (trial.value("drop_points") or 0.0, trial.number, trial.plan.export)
        for trial in trials
        if trial.stage == "recipe" and trial.status == "ok" and trial.runtime == runtime
        if trial.plan.export.precision == "int8" and not trial.plan.export.keep_float
    ]
    if allowed is None or not static or min(static)[0] <= allowed:
        return None
    return Plan((), replace(min(static)[2], keep_float=space.ends))


def best_recipe(space: Space, trials: Sequence[Trial], budget: Budget, runtime: str) -> ExportSettings:
    """The export without training that pruned networks of this runtime get: what `prefer` likes among those that
    keep the accuracy; float32 where none does."""
    accuracy_only = replace(
        budget, limits=tuple(limit for limit in budget.limits if limit.quantity in ("drop", "accuracy"))
    )
    chosen = choose([t for t in trials if t.stage in ("baseline", "recipe") and t.runtime == runtime], accuracy_only)
    return chosen.trial.plan.export if chosen else space.baselines[runtime]


def ratios(trials: Sequence[Trial], budget: Budget) -> list[float]:
    """Pruning ratios, the first being the gentlest that is expected to meet the size limits (sizes do not jitter, so
    this order is the same in every run)."""
    first = None
    sizes = [limit for limit in budget.limits if limit.quantity in ("size", "download")]
    base, small = baselines(trials), [t for t in trials if t.stage == "recipe" and t.status == "ok"]
    if sizes and small:
        wanted = [
            next((r for r in RATIO_LADDER if value * (1 - r) ** SIZE_EXPONENT <= limit.value), RATIO_LADDER[-1])
            for limit in sizes
            if (value := min(_in_unit_of(limit.relative, t, base[t.runtime], f"{limit.quantity}_bytes") for t in small))
            > 0
        ]
        first = max(wanted, default=None)
    first = FIRST_RATIO if first is None else first
    found: list[float] = []
    for step in RATIO_STEPS:
        ratio = round(min(max(first + step, RATIO_LADDER[0]), RATIO_LADDER[-1]), 2)
        if ratio not in found:
            found.append(ratio)
    return found


def _in_unit_of(relative: bool, trial: Trial, baseline: Trial, quantity: str) -> float:
    value = trial.value(quantity) or 0.0
    return value / (baseline.value(quantity) or 1.0) if relative else value


def _pruned(space: Space, trials: Sequence[Trial], budget: Budget, most: int) -> Iterator[Plan]:
    working = [runtime for runtime in space.runtimes if runtime in baselines(trials)]
    plans = [
        Plan(passes, best_recipe(space, trials, budget, runtime))
        for passes in _prefixes(space, ratios(trials, budget))
        for runtime in working
    ]
    yield from plans[:most]


def _prefixes(space: Space, ladder: Sequence[float]) -> Iterator[tuple[PassSettings, ...]]:
    brief = replace(space.train, steps=space.short_steps)
    smaller = _smaller(space)
    for index, ratio in enumerate(ladder):
        prune = Prune(ratio, multiple=space.prune_multiple)
        yield (prune, brief)
        if index == 1 and smaller is not None:
            yield (Prune(ladder[0], multiple=space.prune_multiple), smaller, brief)


def _smaller(space: Space) -> Resolution | None:
    if space.keep_resolution or min(space.height, space.width) < SMALLEST_SIDE_TO_SHRINK:
        return None

    def shrink(side: int) -> int:
        return max(RESOLUTION_MULTIPLE, round(side * 0.75 / RESOLUTION_MULTIPLE) * RESOLUTION_MULTIPLE)

    return Resolution(shrink(space.height), shrink(space.width))


def _finalists(space: Space, trials: Sequence[Trial], budget: Budget) -> Iterator[Plan]:
    """A safe one (least lost) and an ambitious one (cheapest that is expected to recover), then the next by loss."""
    base = baselines(trials)
    pruned = [t for t in trials if t.stage == "pruned" and t.status == "ok" and t.value("drop_points") is not None]
    ranked = sorted(pruned, key=lambda t: (_clear_cost_excess(t, base, budget), t.value("drop_points"), t.number))
    if not ranked:
        return
    allowed = next((limit.value for limit in budget.limits if limit.quantity == "drop"), None)
    least = _clear_cost_excess(ranked[0], base, budget)
    hopeful = [
        t
        for t in ranked
        if _clear_cost_excess(t, base, budget) <= least
        and (allowed is None or (t.value("drop_points") or 0.0) * RECOVERY <= allowed)
    ]
    order = [ranked[0]]
    if hopeful:
        order.append(min(hopeful, key=lambda t: (_expense(t, base, budget), t.number)))
    order += [t for t in ranked if t not in order and _clear_cost_excess(t, base, budget) <= least]
    chosen = list(dict.fromkeys(t.number for t in order))[:FINALISTS]
    for number in chosen:
        trial = next(t for t in ranked if t.number == number)
        yield _longer(space, trial)
    finalists = [t for t in trials if t.stage == "finalist" and t.status == "ok"]
    best = choose(trials, budget)
    if finalists and best is not None and not best.feasible:
        nearest = min(
            finalists, key=lambda t: (_clear_cost_excess(t, base, budget), t.value("drop_points") or 0.0, t.number)
        )
        if sum(isinstance(p, Train) for p in nearest.plan.passes) < 2 + MOST_EXTENSIONS:
            yield _longer(space, nearest)


def _longer(space: Space, trial: Trial) -> Plan:
    """The trial's plan, trained on; every stretch draws its own order of the samples."""
    stretches = sum(isinstance(p, Train) for p in trial.plan.passes)
    longer = replace(space.train, steps=space.long_steps, seed=space.train.seed + stretches)
    return Plan((*trial.plan.passes, longer), trial.plan.export)


def _clear_cost_excess(trial: Trial, base: Mapping[str, Trial], budget: Budget) -> float:
    """How far size, download, memory and latency are beyond their limits, latency by the good end of its interval."""
    worst = 0.0
    for stand in check(trial, base[trial.runtime], budget):
        if stand.limit.quantity in ("drop", "accuracy"):
            continue
        excess = stand.excess
        if stand.limit.quantity == "latency" and stand.limit.relative:
            low = trial.measurements["latency_ratio"].low if "latency_ratio" in trial.measurements else None
            excess = excess if low is None else max(0.0, low / stand.limit.value - 1)
        worst = max(worst, excess)
    return worst


def _expense(trial: Trial, base: Mapping[str, Trial], budget: Budget) -> float:
    """Bytes, milliseconds, or their product, as `prefer` weighs them."""
    size = trial.value("size_bytes") or 1.0
    speed = latency_ms(Choice(trial, base[trial.runtime], ()))[0]
    return {"size": size, "speed": speed}.get(budget.prefer, size * speed)
