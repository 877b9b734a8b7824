"""The ladder of quantization: what is tried where plain int8 loses too much, or is still too large.

    with 8-bit weights, where no static int8 file of a runtime keeps the accuracy
        a  ranges of the activations by least squared error
        b  a, channels equalized, and weights rounded by learning
        c  b, and some layers in float: those that make half of the noise, then two thirds, then five sixths of it
        d  b, then training on the grid
        e  d, and in float the largest set of layers of c whose file costs no more than it may
        Where b lost more than a (a few calibration samples can mislead it), c, d and e build on a instead.
    with 4-bit weights, where every export is larger than allowed and half of the weights' bytes would be enough
        b  as above; channels are rescaled for coarse weights and not shifted
        c  b, and 8 bits for the layers that make half of the noise, or for as many as the size allows
        d  c, or b where c is too large, then training on the grid

Each runtime climbs for itself, one rung at a time, and stops at the first that meets the limits. The layers of c are
those that remove most noise for what they cost. The noise of layers does not add up, so every set is measured as a
whole. A set whose file costs too much is the last one tried, as larger sets cost more. Wider activations (int16) are no
rung, because runtimes have no fast kernels for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pocketfit.core.budget import Budget
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, Round
from pocketfit.core.trial import Trial
from pocketfit.search.decide.check_limits import accurate, check, cost_excess
from pocketfit.search.decide.choose import baselines
from pocketfit.search.propose.space import Space

NOISE_SHARES = (1 / 2, 2 / 3, 5 / 6)  # share of the noise that the layers left in float make, for each rung c
LEAST_COST_SHARE = 0.05  # share of the whole cost that each layer counts as at least, so that none looks free
SAME_DB = 0.5  # dB by which the noise of two files may differ while neither counts as better
EXCESS_TOLERANCE = 0.05  # share of a limit: a file this much further beyond it than the cheapest counts as cheap, too
REPAIRS = (Equalize(), Round())
# Without shifts: with 4-bit weights they make training worse (docs/results/notes.md, "Equalization").
REPAIRS_4 = (Equalize(absorb=False), Round())


def climb(space: Space, trials: Sequence[Trial], budget: Budget, most: int | None) -> Iterator[Plan]:
    """The rungs that are left, round by round over the runtimes.

    most  how many rungs may be tried in all; None: as many as there are. If there are few, rung a, the weakest, is left
          out, and c is one rung
    """
    if most is not None and sum(t.stage == "ladder" for t in trials) >= most:
        return
    ladders = [rungs(space, trials, budget, runtime, sets=_sets(space, most)) for runtime in space.runtimes]
    if most is not None and most < 2 * len(space.runtimes):
        ladders = [[plan for plan in ladder if plan != space.plain(plan.export)] for ladder in ladders]
    for round_ in range(max(map(len, ladders), default=0)):
        yield from (ladder[round_] for ladder in ladders if round_ < len(ladder))


def rungs(
    space: Space, trials: Sequence[Trial], budget: Budget, runtime: str, *, sets: int = len(NOISE_SHARES)
) -> list[Plan]:
    """The rungs of one runtime in order, tried or not, as far as they follow from the trials so far.

    [] where no rung is needed, or where the limits are met. sets: how many rungs c there may be
    """
    start, base = _start(space, trials, runtime), baselines(trials).get(runtime)
    if start is None or base is None:
        return []
    narrow = _four_bits(space, trials, budget, start, base)
    if any(_meets(t, base, budget) for t in _static(trials, runtime, four_bits=True)):
        return []
    wide = _ladder(space, trials, budget, start, base, sets)
    if not _limits_answers(budget):
        return narrow + (wide[1:2] if budget.prefer == "accuracy" else [])
    return narrow + ([] if _keeps_accuracy(trials, budget, base) else wide)


def awaiting(space: Space, trials: Sequence[Trial], budget: Budget, most: int | None) -> Trial | None:
    """The trial of a rung b whose sensitivity must be known before its runtime climbs on, None where nothing waits."""
    if most is not None and sum(t.stage == "ladder" for t in trials) >= most:
        return None
    if not _limits_answers(budget):
        return None
    for runtime in space.runtimes:
        start = _start(space, trials, runtime)
        if start is None:
            continue
        left = rungs(space, trials, budget, runtime)
        repaired, rounded = _better(space, start, trials), _rounded(space, start)
        more = any(plan.export.weights == "int4" and plan != rounded for plan in left)
        for plan, unknown in (
            (rounded, more and runtime not in space.sensitive_4),
            (repaired, _repaired(space, start) in left and runtime not in space.sensitive),
        ):
            done = _trial_of(plan, trials)
            if unknown and done is not None and done.status == "ok":
                return done
    return None


def layers_in_float(shares: Mapping[str, float], costs: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    """Ever larger sets of layers: as few as make half, two thirds and five sixths of the noise, those with the most
    noise for their cost first. A set no larger than the one before is left out, and so is the set of all layers.

    shares  of the noise, by layer
    costs   what each layer takes more in float than in int8: its time, or else its multiply-accumulates

    >>> layers_in_float({"a": 0.3, "b": 0.3, "c": 0.1, "d": 0.3}, {"a": 10, "b": 970, "c": 10, "d": 10})
    (('a', 'd'), ('a', 'd', 'c'))
    """
    order, whole = by_worth(shares, costs), sum(shares.values())
    sets: list[tuple[str, ...]] = []
    for wanted in NOISE_SHARES:
        chosen = _first_of(order, shares, wanted * whole)
        if chosen and len(chosen) < len(shares) and chosen not in sets:
            sets.append(chosen)
    return tuple(sets)


def by_worth(shares: Mapping[str, float], costs: Mapping[str, float]) -> tuple[str, ...]:
    """The layers with any noise, those with the most noise for their cost first; small costs count alike."""
    total = sum(costs.values()) or 1.0

    def worth(layer: str) -> float:
        return shares[layer] / max(LEAST_COST_SHARE, costs.get(layer, 0) / total)

    return tuple(sorted((layer for layer in shares if shares[layer] > 0), key=lambda layer: (-worth(layer), layer)))


def _first_of(order: Sequence[str], shares: Mapping[str, float], wanted: float) -> tuple[str, ...]:
    """The shortest beginning of `order` whose layers make `wanted` of the noise."""
    chosen: list[str] = []
    for layer in order:
        if sum(shares[c] for c in chosen) >= wanted:
            break
        chosen.append(layer)
    return tuple(chosen)


def _sets(space: Space, most: int | None) -> int:
    """How many rungs c there are: one where not all rungs can be climbed."""
    return len(NOISE_SHARES) if most is None or most >= (4 + len(NOISE_SHARES)) * len(space.runtimes) else 1


def _repaired(space: Space, start: Trial) -> Plan:
    """Rung b."""
    export = replace(start.plan.export, ranges="mse")
    return Plan((*space.plain(export).passes, *REPAIRS), export)


def _ladder(space: Space, trials: Sequence[Trial], budget: Budget, start: Trial, base: Trial, sets: int) -> list[Plan]:
    """Rungs a to e; where b could not be carried out, or lost more than a, the others do without its passes."""
    repaired = _repaired(space, start)
    plain = space.plain(repaired.export)
    before = _better(space, start, trials).passes
    found, widest = [plain, repaired], None  # a, b
    for layers in space.sensitive.get(start.runtime, ())[:sets]:  # c
        mixed = Plan(before, space.mixed(repaired.export, layers))
        if mixed.export == repaired.export:  # the user wants these in float in any case
            continue
        found.append(mixed)
        done = _trial_of(mixed, trials)
        if done is None or done.status == "failed" or not _affordable(done, trials, budget, base):
            break
        widest = mixed.export
    found.append(Plan((*before, space.quant_train), repaired.export))  # d
    if widest is not None:
        found.append(Plan((*before, space.quant_train), widest))  # e
    return found


def _better(space: Space, start: Trial, trials: Sequence[Trial]) -> Plan:
    """Rung a or b: the one on which c, d and e build."""
    repaired = _repaired(space, start)
    plain = space.plain(repaired.export)
    done, before = _trial_of(repaired, trials), _trial_of(plain, trials)
    if done is not None and (done.status == "failed" or (before is not None and _loses_more(done, before))):
        return plain
    return repaired


def _loses_more(trial: Trial, other: Trial) -> bool:
    """Whether `trial` is worse than `other`: by the noise in the outputs, which is finer than accuracy; else by the
    drop."""
    ours, theirs = trial.value("sqnr_db"), other.value("sqnr_db")
    if ours is not None and theirs is not None:
        return ours < theirs - SAME_DB
    ours, theirs = trial.value("drop_points"), other.value("drop_points")
    return other.status == "ok" and ours is not None and theirs is not None and ours > theirs


def _rounded(space: Space, start: Trial) -> Plan:
    """Rung b with 4-bit weights. The first layer has 8 bits: few weights, and LiteRT has no 4-bit kernel for it."""
    export = replace(start.plan.export, weights="int4", ranges="mse", keep_int8=space.ends[:1])
    return Plan((*space.plain(export).passes, *REPAIRS_4), export)


def _four_bits(space: Space, trials: Sequence[Trial], budget: Budget, start: Trial, base: Trial) -> list[Plan]:
    """The rungs with 4-bit weights: only where nothing else is small enough, and they could be."""
    runtime = start.runtime
    exports = [t for t in trials if t.stage == "recipe" and t.status == "ok" and t.runtime == runtime]
    if runtime not in space.four_bit or any(_small(t, base, budget) for t in exports):
        return []
    if _room(start, base, budget) + sum(space.params.values()) / 2 < 0:
        return []
    rounded = _rounded(space, start)
    done = _trial_of(rounded, trials)
    if done is None or (done.status == "ok" and not _small(done, base, budget)) or done.status == "failed":
        return [rounded]
    found, export = [rounded], rounded.export  # b
    layers = _as_room_allows(space.sensitive_4.get(runtime, {}), _room(done, base, budget))
    if layers:
        wider = replace(export, keep_int8=tuple(dict.fromkeys((*export.keep_int8, *layers))))
        found.append(Plan(rounded.passes, wider))  # c
        done = _trial_of(found[-1], trials)
        if done is None or (done.status == "ok" and _small(done, base, budget)):
            export = wider
    return [*found, Plan((*rounded.passes, space.quant_train), export)]  # d


def _as_room_allows(layers: Mapping[str, tuple[float, float]], room: float) -> tuple[str, ...]:
    """The layers that get 8 bits: those with the most noise for their bytes, until they make half of the noise or fill
    `room` bytes.

    layers  (share of the noise, bytes that 8 bits take more than 4), by layer

    >>> _as_room_allows({"a": (0.3, 100), "b": (0.4, 1000), "c": (0.2, 50)}, 160)
    ('c', 'a')
    """
    shares = {layer: share for layer, (share, _) in layers.items()}
    order = by_worth(shares, {layer: size for layer, (_, size) in layers.items()})
    chosen: list[str] = []
    for layer in order:
        if sum(shares[c] for c in chosen) >= NOISE_SHARES[0] * sum(shares.values()):
            break
        if layers[layer][1] <= room:
            chosen.append(layer)
            room -= layers[layer][1]
    return tuple(chosen)


def _room(trial: Trial, base: Trial, budget: Budget) -> float:
    """Bytes by which a file may grow before it reaches a limit on its size; below zero where it is too large."""
    room = float("inf")
    for stand in check(trial, base, budget):
        if stand.limit.about.exact:
            unit = (base.value(stand.limit.measurement) or 1.0) if stand.limit.relative else 1.0
            room = min(room, float("-inf") if stand.value is None else (stand.limit.value - stand.value) * unit)
    return room


def _affordable(trial: Trial, trials: Sequence[Trial], budget: Budget, base: Trial) -> bool:
    """Whether a static file costs no more than the limits allow, or hardly more than the cheapest static file."""
    least = min(cost_excess(t, base, budget) for t in _static(trials, base.runtime, four_bits=False))
    return cost_excess(trial, base, budget) <= least + EXCESS_TOLERANCE


def _start(space: Space, trials: Sequence[Trial], runtime: str) -> Trial | None:
    """The plain static int8 trial that loses least."""
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
    """Whether an affordable static file with 8-bit weights keeps the accuracy."""
    static = _static(trials, base.runtime, four_bits=False)
    return any(accurate(t, base, budget) and _affordable(t, trials, budget, base) for t in static)


def _meets(trial: Trial, base: Trial, budget: Budget) -> bool:
    return all(c.met for c in check(trial, base, budget))


def _small(trial: Trial, base: Trial, budget: Budget) -> bool:
    return all(c.met for c in check(trial, base, budget) if c.limit.about.exact)


def _limits_answers(budget: Budget) -> bool:
    return any(limit.about.of_answers for limit in budget.limits)


def _trial_of(plan: Plan, trials: Sequence[Trial]) -> Trial | None:
    return next((t for t in trials if t.plan == plan), None)
