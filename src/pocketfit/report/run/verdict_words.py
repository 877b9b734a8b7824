"""The comparison on the test split, ready to be shown: its note, its units, and the figures of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketfit.report.page import words

Json = Mapping[str, Any]
GROUPED = {  # what the rows of the table of groups are, by task
    "classification": "Class",
    "detection": "Class",
    "binary": "Class",
    "ordinal": "Class",
    "multilabel": "Tag",
    "regression": "Group",
}
GRADED = ("regression", "image_to_image", "segmentation")  # tasks whose answers are more or less right
AGAINST_ORIGINAL = (
    "The data had no labels: the figures are the agreement with the original network on samples that neither training"
    " nor the search has seen. They prove how near this file is to the original, and not how often the original is"
    " right."
)


def verdict_words(verdict: Json | None, readings: int) -> dict[str, Any] | None:
    """What the page says of the comparison on the test split; None: there was none."""
    if verdict is None:
        return None
    note = "The test split has been read once, for these two files only."
    if max(readings, verdict["reading"]) > 1:
        note = (
            f"The test split has been read {max(readings, verdict['reading'])} times; this is reading"
            f" {verdict['reading']}. Each further reading makes the interval less trustworthy."
        )
    ratio = verdict.get("latency_ratio") or {}
    spread = ratio.get("between_sessions", ratio.get("environment", {}).get("between_sessions"))
    upper = (verdict.get("drop") or {}).get("upper_one_sided")
    return {
        "note": f"{note}{_threshold(verdict)}{_further(verdict)}",
        "n": verdict.get("n"),
        "metric": verdict.get("metric_title") or verdict.get("metric", "accuracy"),
        "grouped": GROUPED.get(verdict.get("task", "classification"), "Kind"),
        "graded": verdict.get("task") in GRADED,
        "figures": [_figure(row) for row in verdict.get("figures") or ()],
        "labelled": verdict.get("labelled", True),
        "proved": "" if verdict.get("labelled", True) else AGAINST_ORIGINAL,
        "between_sessions": "" if spread is None else words.format_ratio(spread),
        "upper": "" if upper is None else words.format_points(upper, 2),
    }


def _further(verdict: Json) -> str:
    """How near the outputs behind the first one are to the old file's, as a further sentence; "" for one output."""
    told = [
        f"'{one['output']}' {'equal' if one['sqnr_db'] is None else format(one['sqnr_db'], '.1f') + ' dB SQNR'},"
        f" cosine {one['cosine']:.4f}"
        for one in verdict.get("further") or ()
    ]
    return f" The other outputs against the old file's: {'; '.join(told)}." if told else ""


def _threshold(verdict: Json) -> str:
    """The threshold of embeddings as a further sentence; "" for other tasks."""
    told = (verdict.get("verification") or {}).get("after")
    if not told:
        return ""
    return (
        f" Two pictures count as the same above a cosine of {told['threshold']:.3f} ({told['low']:.3f} to"
        f" {told['high']:.3f} by chance, 95 %), chosen for a FAR of {100 * told['asked']:g} % on"
        f" {told['impostors']:,} impostor pairs; {told['genuine']:,} genuine pairs were compared with it."
    )


def _figure(row: Json) -> dict[str, str]:
    before, after = (words.format_value(row[side], str(row["unit"])) for side in ("before", "after"))
    return {"name": str(row["name"]), "before": before, "after": after}
