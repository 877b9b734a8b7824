"""The types of a journal's lines, by kind; lines are checked against them when they are read back.

A trial is a core.trial.Trial. The other lines stay dicts; keys of later versions may stand beside those named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pocketfit.core.budget import Budget
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.export import RuntimeName
from pocketfit.core.plan.pass_facts import Rate
from pocketfit.core.support.rules import Between, Count, Positive, Seconds, Text
from pocketfit.core.support.schema import Violation, reader
from pocketfit.core.task.task_list import TaskName
from pocketfit.core.trial import Trial

Number = Annotated[float, Between(-1e15, 1e15)]
Amount = Annotated[float, Between(0, 1e15)]  # bytes, microseconds, multiply-accumulates
Measurements = Mapping[str, Measurement]
Name = Annotated[str, Text(".{1,1000}", "a name")]


class Inputs(TypedDict):
    """The inputs that identify a run (Job.identity); a run that another version began may lack some."""

    model: str
    metric: str
    runtimes: NotRequired[list[RuntimeName]]
    labels: NotRequired[list[str]]
    splits: NotRequired[Mapping[str, Count]]
    preprocess: NotRequired[Mapping[str, Any]]
    criterion: NotRequired[str]


class Start(TypedDict):
    pocketfit: NotRequired[str]
    time: NotRequired[str]
    inputs: Inputs
    budget: Budget
    environment: NotRequired[Mapping[str, Any]]
    findings: NotRequired[list[str]]


class Time(TypedDict):
    seconds: Seconds


class Pace(TypedDict):
    """Steps of the trainings and their learning rate; with a time limit, also how fast training went, and how long the
    verdict takes."""

    short_steps: Positive
    long_steps: Positive
    learning_rate: NotRequired[Rate]
    finding: NotRequired[str]
    steps_per_s: NotRequired[Annotated[float, Between(1e-9, 1e9)]]
    verdict_s: NotRequired[Seconds]


class Allocation(TypedDict):
    """The widths for each ratio, by layer; or why there are none."""

    by: str
    criterion: str
    keep: list[tuple[Annotated[float, Between(0, 1, below=True)], list[tuple[Name, Positive]]]]
    held_out: NotRequired[Mapping[str, Number]]
    error: NotRequired[str]


class SensitiveLayer(TypedDict):
    """One layer: its share of the noise, and what else is known of it (decibels are null where there is no noise)."""

    layer: Name
    bits: NotRequired[Annotated[int, Between(2, 16)]]
    share: Amount
    weights_db: NotRequired[float | None]
    activations_db: NotRequired[float | None]
    widest: NotRequired[float | None]
    cause: NotRequired[str]
    more_us: NotRequired[Number]


class SensitivityTable(TypedDict):
    plan: str
    rows: list[SensitiveLayer]
    whole_db: NotRequired[float | None]
    judged: NotRequired[Count]


class Sensitivity(SensitivityTable):
    runtime: RuntimeName
    weights: NotRequired[Literal["int8", "int7", "int4"]]
    plain: NotRequired[SensitivityTable]
    untimed: NotRequired[str]
    error: NotRequired[str]


class LayerRow(TypedDict):
    """One layer of the chosen file, before and after."""

    name: Name
    type: NotRequired[str]
    macs_before: NotRequired[Amount | None]
    macs: NotRequired[Amount | None]
    bytes_before: NotRequired[Amount | None]
    bytes: NotRequired[Amount | None]
    channels_before: NotRequired[Count | None]
    channels: NotRequired[Count | None]
    time_us_before: NotRequired[Amount | None]
    time_us: NotRequired[Amount | None]
    dtype: NotRequired[str]
    ran_on: NotRequired[str]
    why: NotRequired[str]


class Timing(TypedDict):
    """The latency of a trial, measured again; because: "disturbed" where other work ran beside the first time."""

    trial: Count
    because: NotRequired[str]
    measurements: Measurements


class Layers(TypedDict):
    trial: Count
    rows: list[LayerRow]
    reading: NotRequired[Positive]
    not_possible: NotRequired[list[str]]


class Reading(TypedDict):
    trial: Count
    reading: NotRequired[Positive]


class ClassRow(TypedDict):
    label: str
    n: Count
    before: NotRequired[Number | None]
    after: NotRequired[Number | None]


class Disagreement(TypedDict):
    name: str
    label: str
    before: str
    after: str
    picture: NotRequired[str]


class Drop(TypedDict):
    points: NotRequired[Number | None]
    low: NotRequired[Number | None]
    high: NotRequired[Number | None]
    upper_one_sided: NotRequired[Number | None]


class Moved(TypedDict):
    """Points by which one file is above another, with their interval."""

    points: Number
    low: Number
    high: Number


class Control(TypedDict):
    """What the control gained over the baseline, and what the chosen file loses against it."""

    trial: Count
    steps: Positive
    accuracy: NotRequired[Number | None]
    gain: Moved
    loss: Moved


class FurtherOutput(TypedDict):
    """An output behind the first one, against the baseline's; `sqnr_db` is null where both are equal."""

    output: str
    sqnr_db: Number | None
    cosine: Number


class Verification(TypedDict):
    """A threshold on the cosine of two embeddings, and what it does on the pairs of the test split, as
    OperatingPoint of tasks/common/verification.py has it."""

    asked: Number
    threshold: Number
    low: Number
    high: Number
    tar: Number
    far: Number
    genuine: Count
    impostors: Count


class Verifications(TypedDict):
    before: Verification | None
    after: Verification | None


class Verdict(TypedDict):
    """Scores `before` and `after` are means of the metric on the verdict split. Where the data are not labelled, they
    are against the answers of the original network."""

    reading: Positive
    trial: Count
    baseline: Count
    metric: str
    task: NotRequired[TaskName]
    labelled: NotRequired[bool]
    metric_title: NotRequired[str]
    n: Count
    before: Number
    after: Number
    drop: NotRequired[Drop]
    control: NotRequired[Control | None]
    latency_ratio: NotRequired[Measurement]
    measurements: Measurements
    baseline_measurements: Measurements
    per_class: NotRequired[list[ClassRow]]
    disagreements: NotRequired[list[Disagreement]]
    verification: NotRequired[Verifications | None]
    further: NotRequired[list[FurtherOutput]]


KINDS: Mapping[str, Any] = {
    "start": Start,
    "time": Time,
    "pace": Pace,
    "allocation": Allocation,
    "sensitivity": Sensitivity,
    "layers": Layers,
    "timing": Timing,
    "reading": Reading,
    "verdict": Verdict,
}


def check_line(line: Any) -> Trial | None:
    """Check a line against the type of its kind; kinds of later versions only against the limits of any JSON.

    Returns the trial if the line is one. Raises Violation.
    """
    reader(Mapping[str, Any])(line)
    kind = line.get("kind")
    if not isinstance(kind, str):
        raise Violation("is missing", "kind")
    if kind == "trial":
        return Trial.from_json(line)
    if kind in KINDS:
        reader(KINDS[kind])(line)
        if kind == "pace" and ("steps_per_s" in line) != ("verdict_s" in line):
            raise Violation("is there without the other, 'verdict_s' or 'steps_per_s'", "kind")
        if kind == "sensitivity" and "error" not in line:
            _check_shares(line)
    return None


def _check_shares(line: Mapping[str, Any]) -> None:
    names = [row["layer"] for row in line["rows"]]
    if len(set(names)) != len(names):
        raise Violation("hold a layer twice", "rows")
    if line.get("weights") == "int4" and any("bits" not in row for row in line["rows"]):
        raise Violation("do not say with how many bits", "rows")
