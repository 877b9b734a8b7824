"""The ladder of quantization: what is tried where plain int8 loses too much, or is still too large.

    with 8-bit weights, where no static int8 file of a runtime keeps the accuracy
        a  ranges of the activations by least squared error
        b  channels equalized, weights rounded by learning
        c  b, and the layers that cost most in float
        d  b, then training on the grid
        e  d, and the layers of c in float
    with 4-bit weights, where every export is larger than allowed and half of the weights' bytes would be enough
        b  and d without equalization: what it spares the activations, 4-bit weights pay for (the pretrained
           MobileNetV2 kept 82.9 % of its answers with it, 89.0 % without)

Each runtime climbs for itself, one rung at a time, and stops at the first that meets the limits. Wider activations
(int16) are no rung: they have no kernels worth their name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pocketfit.core.budget import Budget
from pocketfit.core.plan import Equalize, ExportSettings, Plan, Round
from pocketfit.core.trial import Trial
from pocketfit.search.choose import baselines
from pocketfit.search.limits import accurate, check, cost_excess
from pocketfit.search.space import Space

MOST_IN_FLOAT = 5  # layers
HALF_THE_NOISE = 0.5
FREE = 0.05  # share of the MACs below which a layer's time in float does not count
NEAR = 0.05  # a file that is this much beyond the cost of the cheapest is as cheap
REPAIRS = (Equalize(), Round())


def climb(space: Space, trials: Sequence[Trial], budget: Budget, most: int | None) -> Iterator[Plan]:
    """The rungs that are left, round by round over the runtimes; `most`: rungs in all, None: as many as it takes.

    With few rungs to climb the first, and weakest, is left out.
    """
    if most is not None and sum(t.stage == "ladder" for t in trials) >= most:
        return
    ladders = [rungs(space, trials, budget, runtime) for runtime in space.runtimes]
    if most is not None and most < 2 * len(space.runtimes):
        ladders = [[plan for plan in ladder if plan != space.plain(plan.export)] for ladder in ladders]
    for round_ in range(max(map(len, ladders), default=0)):
        yield from (ladder[round_] for ladder in ladders if round_ < len(ladder))


def rungs(space: Space, trials: Sequence[Trial], budget: Budget, runtime: str) -> list[Plan]:
    """The ladder of one runtime, in order, those tried included; [] where it is not needed or the limits are met."""
    start, base = _start(space, trials, runtime), baselines(trials).get(runtime)
    if start is None or base is None:
        return []
    narrow = _four_bits(space, trials, budget, start, base)
    if any(_meets(t, base, budget) for t in _static(trials, runtime, four_bits=True)):
        return []
    wide = _ladder(space, trials, replace(start.plan.export, ranges="mse"))
    if not _limited(budget, "drop", "accuracy"):
        return narrow + (wide[1:2] if budget.prefer == "accuracy" else [])
    return narrow + ([] if _keeps_accuracy(trials, budget, base) else wide)


def awaiting(space: Space, trials: Sequence[Trial], budget: Budget, most: int | None) -> Trial | None:
    """The trial of rung b whose sensitivity must be known before its runtime climbs on, None where nothing waits."""
    if most is not None and sum(t.stage == "ladder" for t in trials) >= most:
        return None
    for runtime in space.runtimes:
        start = _start(space, trials, runtime)
        if runtime in space.sensitive or start is None or not _limited(budget, "drop", "accuracy"):
            continue
        repaired = _ladder(space, trials, replace(start.plan.export, ranges="mse"))[1]
        done = _trial_of(repaired, trials)
        if done is not None and done.status == "ok" and repaired in rungs(space, trials, budget, runtime):
            return done
    return None


def layers_in_float(shares: Mapping[str, float], macs: Mapping[str, int]) -> tuple[str, ...]:
    """As few layers as have half of the noise among them, at most five: the most noise for the time they take first.

    shares  of the noise, by layer

    >>> layers_in_float({"a": 0.3, "b": 0.35, "c": 0.05, "d": 0.3}, {"a": 10, "b": 970, "c": 10, "d": 10})
    ('a', 'd')
    """
    total = max(1, sum(macs.values()))

    def worth(layer: str) -> float:
        return shares[layer] / max(FREE, macs.get(layer, 0) / total)

    chosen: list[str] = []
    for layer in sorted(shares, key=lambda layer: (-worth(layer), layer)):
        if len(chosen) == MOST_IN_FLOAT or sum(shares[c] for c in chosen) >= HALF_THE_NOISE or shares[layer] <= 0:
            break
        chosen.append(layer)
    return tuple(chosen)


def _ladder(space: Space, trials: Sequence[Trial], export: ExportSettings) -> list[Plan]:
    """Rungs a to e; where b could not be carried out, the others do without its passes."""
    plain = space.plain(export)
    repaired = Plan((*plain.passes, *REPAIRS), export)
    done = _trial_of(repaired, trials)
    before = plain.passes if done is not None and done.status == "failed" else repaired.passes
    found = [plain, repaired]
    mixed = space.mixed(export, space.sensitive.get(export.runtime, ()))
    if mixed != export:
        found.append(Plan(before, mixed))
    found.append(Plan((*before, space.quant_train), export))
    if mixed != export:
        found.append(Plan((*before, space.quant_train), mixed))
    return found


def _four_bits(space: Space, trials: Sequence[Trial], budget: Budget, start: Trial, base: Trial) -> list[Plan]:
    """The rungs with 4-bit weights: only where nothing else is small enough, and they may be."""
    runtime = start.runtime
    exports = [t for t in trials if t.stage == "recipe" and t.status == "ok" and t.runtime == runtime]
    if runtime not in space.four_bit or any(_small(t, base, budget) for t in exports):
        return []
    saved = space.weights / 2
    for stand in check(start, base, budget):
        if stand.limit.quantity in ("size", "download"):
            unit = (base.value(f"{stand.limit.quantity}_bytes") or 1.0) if stand.limit.relative else 1.0
            if stand.value is None or stand.value - saved / unit > stand.limit.value:
                return []
    # The first layer has few weights and a wide window, for which LiteRT has no 4-bit kernel.
    export = replace(start.plan.export, weights="int4", ranges="mse", keep_int8=space.ends[:1])
    rounded = Plan((*space.plain(export).passes, Round()), export)
    done = _trial_of(rounded, trials)
    if done is None or (done.status == "ok" and not _small(done, base, budget)) or done.status == "failed":
        return [rounded]
    return [rounded, Plan((*rounded.passes, space.quant_train), export)]


def _start(space: Space, trials: Sequence[Trial], runtime: str) -> Trial | None:
    """The plain static int8 file that loses least."""
    plain = [
        t
        for t in trials
        if t.stage == "recipe" and t.status == "ok" and t.runtime == runtime
        if t.plan.export.precision == "int8" and t.plan.export.keep_float == space.keep_float
    ]
    return min(plain, key=lambda t: (t.value("drop_points") or 0.0, t.number), default=None)


def _static(trials: Sequence[Trial], runtime: str, *, four_bits: bool) -> list[Trial]:
    return [
        t
        for t in trials
        if t.stage in ("recipe", "ladder") and t.status == "ok" and t.runtime == runtime
        if t.plan.export.precision == "int8" and (t.plan.export.weights == "int4") == four_bits
    ]


def _keeps_accuracy(trials: Sequence[Trial], budget: Budget, base: Trial) -> bool:
    """Whether a static file with 8-bit weights keeps the accuracy and costs no more than such files must."""
    static = _static(trials, base.runtime, four_bits=False)
    least = min(cost_excess(t, base, budget) for t in static)
    return any(accurate(t, base, budget) and cost_excess(t, base, budget) <= least + NEAR for t in static)


def _meets(trial: Trial, base: Trial, budget: Budget) -> bool:
    return all(c.met for c in check(trial, base, budget))


def _small(trial: Trial, base: Trial, budget: Budget) -> bool:
    return all(c.met for c in check(trial, base, budget) if c.limit.quantity in ("size", "download"))


def _limited(budget: Budget, *quantities: str) -> bool:
    return any(limit.quantity in quantities for limit in budget.limits)


def _trial_of(plan: Plan, trials: Sequence[Trial]) -> Trial | None:
    return next((t for t in trials if t.plan == plan), None)
