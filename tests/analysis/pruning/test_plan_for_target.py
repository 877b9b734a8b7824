from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.analysis.pruning.exact_costs import Cost, Costs, Parameter
from pocketfit.analysis.pruning.plan_for_target import Target, check_reachable, plan_for, planned
from pocketfit.analysis.pruning.sensitivity import ChannelTable, Curve, Point
from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune

RATIOS = (0.25, 0.5, 0.75)
WIDTH = 32


def table_of(
    rises: dict[str, tuple[float, ...]], *, labelled: bool = True, edges: dict[str, str] | None = None
) -> ChannelTable:
    """A chain of layers of 32 channels: each group is what one layer makes and the next one reads."""
    names = list(rises)
    parameters = [
        Parameter((WIDTH, WIDTH), 10.0, tuple(cut for cut in ((0, n, 1), (1, n - 1, 1)) if 0 <= cut[1] < len(names)))
        for n in range(len(names) + 1)
    ]
    costs = Costs(tuple(parameters), 0)
    curves = []
    for number, (name, values) in enumerate(rises.items()):
        removed = tuple((round(WIDTH * ratio),) for ratio in RATIOS)
        points = tuple(
            Point(
                ratio=ratio,
                kept=WIDTH - lost[0],
                loss=value,
                loss_rise=value,
                loss_rise_se=0.0,
                accuracy=0.9,
                drop_points=100 * value,
                drop_points_se=0.0,
                cost=costs.of({number: lost[0]}),
            )
            for ratio, lost, value in zip(RATIOS, removed, values, strict=True)
        )
        edge = (edges or {}).get(name, "")
        pattern = f"^{re.escape(name)}$"
        curves.append(
            Curve(
                group=name,
                layers=(name,),
                pattern=pattern,
                channels=WIDTH,
                members=((number, WIDTH),),
                removed=removed,
                edge=edge,
                points=points,
            )
        )  # type: ignore[arg-type]
    return ChannelTable(
        model="net",
        labelled=labelled,
        samples=100,
        split="search",
        criterion="l2",
        multiple=8,
        loss=0.0,
        accuracy=1.0,
        cost=costs.of({}),
        curves=tuple(curves),
        costs=costs,
    )


CHAIN = {"a.0": (0.001, 0.002, 0.01), "b.0": (0.1, 0.3, 0.9), "c.0": (0.002, 0.004, 0.02)}


def test_the_cheap_groups_go_first_and_the_target_is_met_exactly() -> None:
    table = table_of(CHAIN)
    found = planned(table, Target("macs", 0.6))
    assert {pattern for pattern, _ in found.layers} == {r"^a\.0$", r"^c\.0$"}
    assert found.cost.macs <= 0.6 * table.cost.macs and found.macs_ratio == found.cost.macs / table.cost.macs
    lost = dict(found.layers)
    a, c = (round(WIDTH * lost[name]) for name in (r"^a\.0$", r"^c\.0$"))
    assert found.cost == table.costs.of({0: a, 2: c})


def test_size_counts_bytes_and_not_macs() -> None:
    """The last layer is carried out at ten times as many places, and the first holds most of the bytes."""
    table = table_of({"a.0": (0.01, 0.02, 0.03), "b.0": (0.01, 0.02, 0.03)})
    heavy = Parameter((10 * WIDTH, WIDTH), 0.1, ((1, 0, 1),))
    costs = Costs((heavy, *table.costs.parameters[2:]), 0)
    table = ChannelTable(**{**vars(table), "costs": costs, "cost": costs.of({})})
    assert plan_for(table, Target("size", 0.8))[0][0] == r"^a\.0$"
    assert [pattern for pattern, _ in plan_for(table, Target("macs", 0.9))] == [r"^b\.0$"]


def test_a_drop_is_spent_and_not_exceeded() -> None:
    table = table_of(CHAIN)
    found = planned(table, Target("drop", 2.5))
    assert found.drop_points <= 2.5
    assert dict(found.layers) == {r"^a\.0$": 0.75, r"^c\.0$": 0.5}  # 1 point and 0.4; c at 0.75 would make it 3
    assert plan_for(table, Target("drop", 0.05)) == ()


def test_noise_that_looks_like_a_gain_is_none() -> None:
    table = table_of({"a.0": (-0.5, 0.1, 0.2), "b.0": (0.0, 0.0, 0.0)})
    assert plan_for(table, Target("macs", 0.7))[-1][0] == r"^b\.0$"
    assert planned(table, Target("drop", 1.0)).drop_points <= 1.0


def test_the_first_layers_group_and_what_does_not_run_is_left_alone() -> None:
    table = table_of(CHAIN, edges={"a.0": "first"})
    assert r"^a\.0$" not in dict(plan_for(table, Target("macs", 0.8)))
    broken = [
        Curve(**{**vars(c), "points": tuple(Point(**{**vars(p), "why_not": "no"}) for p in c.points)})
        if c.group == "c.0"
        else c
        for c in table.curves
    ]
    table = ChannelTable(**{**vars(table), "curves": tuple(broken)})
    assert set(dict(plan_for(table, Target("macs", 0.9)))) == {r"^b\.0$"}


def test_what_is_out_of_reach_is_said_with_what_is_reached() -> None:
    with pytest.raises(UserError, match=r"fall to 0\.\d\dx.*larger --ratios"):
        plan_for(table_of(CHAIN), Target("macs", 0.01))
    with pytest.raises(UserError, match="labels"):
        check_reachable(table_of(CHAIN, labelled=False), Target("drop", 1))
    check_reachable(table_of(CHAIN, labelled=False), Target("size", 0.9))


@given(
    st.lists(st.tuples(*[st.floats(-0.2, 2.0)] * 3), min_size=1, max_size=5),
    st.floats(0.35, 0.99),
    st.sampled_from(["macs", "size"]),
)
def test_every_plan_meets_its_target_and_needs_each_of_its_steps(rises: list, share: float, quantity: str) -> None:
    table = table_of({f"layer{n}": values for n, values in enumerate(rises)})
    target = Target(quantity, share)  # type: ignore[arg-type]
    try:
        check_reachable(table, target)
    except UserError:
        with pytest.raises(UserError):
            plan_for(table, target)
        return
    found = dict(plan_for(table, target))

    def cost(layers: dict[str, float]) -> Cost:
        numbers = {c.pattern: c.members[0][0] for c in table.curves}
        return table.costs.of({numbers[pattern]: round(WIDTH * ratio) for pattern, ratio in layers.items()})

    def met(layers: dict[str, float]) -> bool:
        one, whole = cost(layers), table.cost
        return (one.macs / whole.macs if quantity == "macs" else one.size_bytes / whole.size_bytes) <= share

    assert met(found)
    for name in found:
        assert not met({other: ratio for other, ratio in found.items() if other != name})


@pytest.mark.parametrize(
    "text",
    [
        *("", "macs", "macs:0.5", "macs:1x", "size:0x", "latency:5", "drop:1x", "macs:-1x", "macs:2x"),
        *("latency:1x", "latency:0x", "latency:0ms", "latency:-5ms", "latency:5pt", "macs:5ms", "latency:1.2x"),
    ],
)
def test_targets_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="target"):
        Target.parse(text)


def test_targets_read_as_they_are_written() -> None:
    assert str(Target.parse("size: 0.25x")) == "size:0.25x" and str(Target.parse("drop:1.5pt")) == "drop:1.5pt"
    assert (
        str(Target.parse("latency:0.5x")) == "latency:0.5x" and str(Target.parse("latency:2.5 ms")) == "latency:2.5ms"
    )
    assert Target.parse("latency:.5x") == Target("latency", 0.5) and Target.parse("drop:1points").quantity == "drop"


def test_the_fragment_and_the_line_are_the_pass() -> None:
    found = planned(table_of(CHAIN), Target("macs", 0.6))
    data = Plan((), ExportSettings("litert")).to_json()
    plan = Plan.from_json({**data, "passes": [found.fragment()]})
    assert plan.passes == (found.settings,) == (eval(found.line, {"Prune": Prune}),)
    assert found.to_json()["pass"] == found.fragment()
