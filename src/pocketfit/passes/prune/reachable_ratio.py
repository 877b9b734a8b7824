"""A sentence where a pruning ratio could not be reached, with the ratio that was."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pocketfit.core.support.text import some
from pocketfit.passes.graph.channel_graph import Group

NOTHING_TO_PRUNE = (
    "No channels can go by a ratio: what this network makes is tied to its first layer or its outputs, or is said not"
    " to be prunable. Channels of the first layer go where keep names them."
)
WORTH_SAYING = 0.05  # share of the channels: a smaller difference comes from rounding to whole blocks


def sentences(wanted: Mapping[str, tuple[Group, float]], counts: Mapping[str, int], multiple: int) -> tuple[str, ...]:
    """One sentence where groups are too narrow for their ratio, so that far fewer channels go than were asked for.

    wanted  the group and its ratio, by name
    counts  how many of the group's ids stay, by name
    """
    held = []
    for name, (group, ratio) in wanted.items():
        per_id = math.gcd(*(group.members[place] for place in group.producers))
        step = multiple // math.gcd(multiple, per_id)
        channels = len(group.ids)
        if counts[name] - (1 - ratio) * channels > (step / 2 if channels > step else 0):
            held.append(name)
    channels = sum(len(group.ids) for group, _ in wanted.values()) or 1
    asked = sum(ratio * len(group.ids) for group, ratio in wanted.values()) / channels
    reached = 1 - sum(counts[name] for name in wanted) / channels
    if not held or asked - reached < WORTH_SAYING:
        return ()
    return (
        f"{_percent(asked)} of the channels that can go were asked for, and {_percent(reached)} went: {some(held)}"
        f" keep{'s' if len(held) == 1 else ''} one block of {multiple}, the least that kernels work with, or"
        f" {'has' if len(held) == 1 else 'have'} no more than that.",
    )


def _percent(share: float) -> str:
    """
    >>> _percent(0.5), _percent(0.994)
    ('50 %', '99.4 %')
    """
    return f"{100 * share:.1f}".removesuffix(".0") + " %"
