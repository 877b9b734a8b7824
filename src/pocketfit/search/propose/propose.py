"""What to try next: a pure function of the space, the budget and the trials so far.

    baselines   the float32 file in every runtime
    recipes     exports without training: static int8 variants, float16, dynamic int8, and static int8 with the first
                and last layer in float where plain static int8 loses more than is allowed; float32 folded, where there
                is anything to fold (every plan but the baselines begins with the fold then)
    ladder      what makes up for quantization, where static int8 loses too much (see quantization_ladder.py)
    pruned      a ladder of pruning ratios, each trained briefly, exported with the best recipe of each runtime, which
                may have passes of its own
    finalists   the best pruned ones, trained longer from where they stopped
    forms       after each of these two: the trained networks, in every other form that could win (see file_forms.py)
    extension   while nothing meets the limits, the best finalist trained longer still
    control     as much training without pruning: what the chosen network is compared with (see control.py)

Nothing here looks at a clock: with the same measurements the same plans come in the same order, so that a run that was
killed and started again tries what an undisturbed one tries. Only `without` (time is running out) skips ahead.
The control belongs to the verdict, so that a limit on trials does not count it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pocketfit.core.budget import Budget
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Stage, Trial
from pocketfit.search.decide.check_limits import cost_excess
from pocketfit.search.decide.choose import Choice, baselines, choose, fold_of, halves, latency_ms
from pocketfit.search.decide.control import control_plan, steps
from pocketfit.search.decide.file_forms import forms, forms_of_the_chosen
from pocketfit.search.propose.allocate_widths import cubic
from pocketfit.search.propose.quantization_ladder import climb
from pocketfit.search.propose.space import Proposal, Space

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


def propose(space: Space, trials: Sequence[Trial], budget: Budget, *, without: Collection[str] = ()) -> Proposal | None:
    """The next thing to try; None when there is nothing left. `without`: rows that there is no time for."""
    tried = {trial.plan.hash for trial in trials}
    full = budget.max_trials is not None and sum(t.stage != "control" for t in trials) >= budget.max_trials
    for row in _rows(space, trials, budget):
        if row.name in without or (full and row.stage != "control"):
            continue
        for plan in row.plans:
            if plan.hash not in tried:
                return Proposal(plan, row.stage, row.name, steps(plan) if row.stage == "control" else row.steps)
    return None


@dataclass(frozen=True)
class Row:
    """Plans of one kind, in order, tried or not. steps: how many training steps in float each of them asks for."""

    name: str
    stage: Stage
    plans: Iterable[Plan]
    steps: int = 0


def _rows(space: Space, trials: Sequence[Trial], budget: Budget) -> list[Row]:
    """All that there is to try, in the order in which it is tried."""
    share = Share.of(space, budget)
    rungs = 0 if share.ladder is None else sum(trial.stage == "ladder" for trial in trials)
    pruned = _pruned(space, trials, budget, share.pruned - rungs)
    rows = [
        Row("baselines", "baseline", _baselines(space)),
        Row("recipes", "recipe", _recipes(space, trials, budget, share.recipes)),
        Row("ladder", "ladder", climb(space, trials, budget, share.ladder)),
        Row("pruned", "pruned", pruned, space.short_steps),
        Row("forms", "pruned", forms(trials, budget, "pruned")),
        Row("finalists", "finalist", _finalists(space, trials, budget), space.long_steps),
        Row("forms of finalists", "finalist", forms(trials, budget, "finalist")),
        Row("extension", "finalist", _extension(space, trials, budget), space.long_steps),
        Row("forms of the chosen", "finalist", forms_of_the_chosen(trials, budget)),
        Row("control", "control", _control(trials, budget)),
    ]
    if budget.max_trials is not None:  # few trials go to more networks first
        rows[4:6] = rows[5:6] + rows[4:5]
    return rows


def _control(trials: Sequence[Trial], budget: Budget) -> Iterator[Plan]:
    choice = choose(trials, budget)
    if choice is not None and (plan := control_plan(choice.trial, trials)) is not None:
        yield plan


@dataclass(frozen=True)
class Share:
    """How many trials each stage may have when their number is limited; baselines come first in any case.

    ladder  None: as many rungs as there are; else they count as trials of pruned networks, half of those at most
    """

    recipes: int
    pruned: int
    ladder: int | None = None

    @classmethod
    def of(cls, space: Space, budget: Budget) -> Share:
        runtimes = len(space.runtimes)
        everything = sum(len(r) for r in space.recipes.values()) + runtimes
        if budget.max_trials is None:
            return cls(everything, RATIOS_WITHOUT_LIMIT * runtimes)
        left = max(0, budget.max_trials - runtimes)
        recipes = min(everything, max(runtimes, left // 2))
        pruned = max(0, left - recipes - min(FINALISTS, (left - recipes) // 2))
        return cls(recipes, pruned, pruned // 2)


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
        plans += [space.plain(space.recipes[r][round_]) for r in working if round_ < len(space.recipes[r])]
    plans += [plan for runtime in working if (plan := _mixed(space, trials, budget, runtime))]
    yield from plans[:most]


def _mixed(space: Space, trials: Sequence[Trial], budget: Budget, runtime: str) -> Plan | None:
    """The best static int8 recipe with the delicate ends in float, where plain static int8 loses too much."""
    allowed = budget.limit_on("drop")
    static = [
        (trial.value("drop_points") or 0.0, trial.number, trial.plan.export)
        for trial in trials
        if trial.stage == "recipe" and trial.status == "ok" and trial.runtime == runtime
        if trial.plan.export.precision == "int8" and trial.plan.export.keep_float == space.keep_float
    ]
    if allowed is None or not static or min(static)[0] <= allowed:
        return None
    return space.plain(space.mixed(min(static)[2], space.ends))


def best_recipe(space: Space, trials: Sequence[Trial], budget: Budget, runtime: str) -> Plan:
    """The plan without pruning whose export, with the passes for it, pruned networks of this runtime get: the one that
    `prefer` picks among those that keep the accuracy; float32 where none does."""
    accuracy_only = replace(budget, limits=tuple(limit for limit in budget.limits if limit.about.of_answers))
    whole = [t for t in trials if t.stage in ("baseline", "recipe", "ladder") and t.runtime == runtime]
    chosen = choose(whole, accuracy_only)
    return chosen.trial.plan if chosen else Plan((), space.baselines[runtime])


def ratios(trials: Sequence[Trial], budget: Budget, best: Collection[Plan] = ()) -> list[float]:
    """Pruning ratios in the order in which they are tried. The first is the smallest one that is expected to meet the
    size limits. Sizes have no noise, so the order is the same in every run.

    best  the best recipes; those of the ladder may have smaller files than exports alone
    """
    first = None
    sizes = [limit for limit in budget.limits if limit.about.exact]
    base, small = (
        baselines(trials),
        [t for t in trials if t.status == "ok" and (t.stage == "recipe" or (t.stage == "ladder" and t.plan in best))],
    )
    if sizes and small:
        wanted = []
        for limit in sizes:
            smallest = min(_in_unit_of(limit.relative, t, base[t.runtime], limit.measurement) for t in small)
            if smallest > 0:
                enough = (r for r in RATIO_LADDER if smallest * (1 - r) ** SIZE_EXPONENT <= limit.value)
                wanted.append(next(enough, RATIO_LADDER[-1]))
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


def best_recipes(space: Space, trials: Sequence[Trial], budget: Budget) -> list[Plan]:
    """`best_recipe` of each runtime whose baseline could be made."""
    working = [runtime for runtime in space.runtimes if runtime in baselines(trials)]
    return [best_recipe(space, trials, budget, runtime) for runtime in working]


def _pruned(space: Space, trials: Sequence[Trial], budget: Budget, most: int) -> Iterator[Plan]:
    best = best_recipes(space, trials, budget)
    plans = [
        Plan((*space.fold, *passes, *halves(recipe.passes)[1]), recipe.export)
        for passes in _prefixes(space, ratios(trials, budget, best))
        for recipe in best
    ]
    yield from plans[: max(0, most)]


def _prefixes(space: Space, ladder: Sequence[float]) -> Iterator[tuple[PassSettings, ...]]:
    smaller = _smaller(space)
    for index, ratio in enumerate(ladder):
        yield _cut(space, ratio)
        if index == 1 and smaller is not None:
            *cuts, last = _cut(space, ladder[0])
            yield (*cuts, smaller, last)


def _cut(space: Space, ratio: float) -> tuple[PassSettings, ...]:
    """Prune and recover, in as many rounds as were asked for; the steps of a brief training are shared between them."""
    passes: list[PassSettings] = []
    before = 0.0
    for number, share in enumerate(cubic(space.rounds, ratio)):
        relative = round(1 - (1 - share) / (1 - before), 4)
        layers = space.prune.layers if number == 0 else tuple((pattern, 0.0) for pattern, _ in space.prune.layers)
        passes.append(replace(space.prune, ratio=relative, layers=layers, keep=space.widths.get(share, ())))
        steps = space.short_steps * (number + 1) // space.rounds - space.short_steps * number // space.rounds
        passes.append(replace(space.train, steps=max(1, steps), seed=space.train.seed + number))
        before = share
    return tuple(passes)


def _smaller(space: Space) -> Resolution | None:
    if space.keep_resolution or min(space.height, space.width) < SMALLEST_SIDE_TO_SHRINK:
        return None

    def shrink(side: int) -> int:
        return max(RESOLUTION_MULTIPLE, round(side * 0.75 / RESOLUTION_MULTIPLE) * RESOLUTION_MULTIPLE)

    return Resolution(shrink(space.height), shrink(space.width))


def _finalists(space: Space, trials: Sequence[Trial], budget: Budget) -> Iterator[Plan]:
    """A safe finalist (least lost) and an ambitious one (the cheapest that is expected to recover), then the next by
    loss; each of another network."""
    base = baselines(trials)
    pruned = [t for t in trials if t.stage == "pruned" and t.status == "ok" and t.value("drop_points") is not None]
    ranked = sorted(pruned, key=lambda t: (cost_excess(t, base[t.runtime], budget), t.value("drop_points"), t.number))
    if not ranked:
        return
    allowed = budget.limit_on("drop")
    least = cost_excess(ranked[0], base[ranked[0].runtime], budget)
    hopeful = [
        t
        for t in ranked
        if cost_excess(t, base[t.runtime], budget) <= least
        and (allowed is None or (t.value("drop_points") or 0.0) * RECOVERY <= allowed)
    ]
    order = [ranked[0]]
    if hopeful:
        order.append(min(hopeful, key=lambda t: (_expense(t, base, budget), t.number)))
    order += [t for t in ranked if t not in order and cost_excess(t, base[t.runtime], budget) <= least]
    of_network: dict[object, Trial] = {}
    for trial in order:
        of_network.setdefault(halves(trial.plan.passes)[0], trial)
    trained = {halves(t.plan.passes)[0] for t in trials if t.stage == "finalist"}
    longer = [_longer(space, trial) for trial in of_network.values()]
    new = [plan for plan in longer if halves(plan.passes)[0] not in trained]
    yield from new[: max(0, FINALISTS - len(trained))]


def _extension(space: Space, trials: Sequence[Trial], budget: Budget) -> Iterator[Plan]:
    """The nearest finalist trained longer still, while nothing meets the limits."""
    base = baselines(trials)
    finalists = [t for t in trials if t.stage == "finalist" and t.status == "ok" and t.runtime in base]
    best = choose(trials, budget)
    if finalists and best is not None and not best.feasible:
        nearest = min(
            finalists, key=lambda t: (cost_excess(t, base[t.runtime], budget), t.value("drop_points") or 0.0, t.number)
        )
        if sum(isinstance(p, Train) for p in nearest.plan.passes) < 2 + MOST_EXTENSIONS:
            yield _longer(space, nearest)


def _longer(space: Space, trial: Trial) -> Plan:
    """The trial's plan, trained further in float; every further training draws its own order of the samples."""
    before, behind = halves(trial.plan.passes)
    stretches = sum(isinstance(p, Train) for p in before)
    longer = replace(space.train, steps=space.long_steps, seed=space.train.seed + stretches)
    return Plan((*fold_of(trial.plan.passes), *before, longer, *behind), trial.plan.export)


def _expense(trial: Trial, base: Mapping[str, Trial], budget: Budget) -> float:
    """The cost that `prefer` looks at: bytes, milliseconds, or their product."""
    size = trial.value("size_bytes") or 1.0
    speed = latency_ms(Choice(trial, base[trial.runtime], ()))[0]
    return {"size": size, "speed": speed}.get(budget.prefer, size * speed)
