"""A plan: the passes with their settings, then the export settings. The only thing that the search writes.

The short code of a plan reads from left to right as the work is done; parts that are absent were not done:

    prune30.200.800-r160-eq-round-wi8ai8-mse-mix3      (in front of it all, "fold": operators folded by exact algebra)
    │              │    │  │     │      │   └ three named layers stay in float
    │              │    │  │     │      └ ranges of the activations by least squared error (nothing: min-max)
    │              │    │  │     └ weights int8, activations int8 (fp32, fp16; dwi8: dynamic range; wo8: weights only)
    │              │    │  └ learned rounding ("bias": bias correction; "qat300": 300 steps of training on the grid)
    │              │    └ equalized
    │              └ input resolution 160
    └ 30 % of the channels pruned ("k9": nine groups to widths of their own), then trained for 200 and again 800 steps
      (with "bn": batch norms re-estimated; "sparse50", "sparse2of4": single weights set to zero)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import KINDS, PassSettings
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.quantize import CorrectBias, Round
from pocketfit.core.plan.train import Train
from pocketfit.core.support.rules import shown
from pocketfit.core.support.schema import Violation, at, build, reading

PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """Passes in the order in which they are applied, then the export.

    >>> from pocketfit.core.plan.prune import Prune
    >>> plan = Plan((Prune(0.3), Train(200)), ExportSettings("litert", "int8"))
    >>> plan.code
    'prune30.200-wi8ai8'
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    passes: tuple[PassSettings, ...]
    export: ExportSettings

    def __post_init__(self) -> None:
        on_grid = [number for number, settings in enumerate(self.passes) if settings.FACTS.on_grid]
        if on_grid and self.export.grid is None:
            raise UserError(
                f"The pass '{self.passes[on_grid[0]].code}' works for the grid of a quantized file, and a"
                f" {self.export.precision} file has none: ask for a quantized precision, or leave the pass out"
            )
        if sum(isinstance(settings, Round) for settings in self.passes) > 1:
            raise UserError("A plan rounds its weights once: the second 'round' would find them on the grid already")
        for settings in self.passes[on_grid[0] + 1 :] if on_grid else ():
            if settings.FACTS.moves_weights:
                raise UserError(
                    f"'{settings.FACTS.kind}' behind '{self.passes[on_grid[0]].code}' would take the weights"
                    " off the grid again: put it in front"
                )

    @property
    def code(self) -> str:
        code = ""
        for settings in self.passes:
            if isinstance(settings, Train):  # ".200" behind what it trains
                code += settings.code if code else f"train{settings.code}"
            else:
                code += f"-{settings.code}" if code else settings.code
        return f"{code}-{self.export.code}" if code else self.export.code

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the functions in the Python environment that the plan calls when it is applied."""
        return tuple(p.criterion for p in self.passes if isinstance(p, Prune) and p.calls_code)

    @property
    def corrected_on(self) -> int:
        """How many samples the biases of the finished file are corrected by; 0: they are not."""
        counts = [p.samples for p in self.passes if isinstance(p, CorrectBias) and p.statistics == "file"]
        return counts[-1] if counts else 0

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @property
    def file_stem(self) -> str:
        """Name of the artifact without its extension: <code>-<8 hex of the hash>."""
        return f"{self.code}-{self.hash[:8]}"

    def to_json(self) -> dict[str, Any]:
        return {
            "plan_version": PLAN_VERSION,
            "passes": [{"pass": p.FACTS.kind, **asdict(p)} for p in self.passes],
            "export": self.export.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "The plan", *, allow_code: bool = False) -> Plan:
        """The inverse of `to_json`. Raises UserError, in a sentence that begins with `source`, for anything that is not
        a plan, and unless allow_code for a plan that calls a pruning criterion of the Python environment."""
        with reading(source):
            plan = cls.read(data)
        if plan.called and not allow_code:
            raise UserError(
                f"{source} calls {shown(plan.called[0])} of your Python environment: give allow_code=True to let it"
            )
        return plan

    @classmethod
    def read(cls, data: Any) -> Plan:
        """The inverse of `to_json`, for a plan inside a larger file. Raises Violation."""
        if not isinstance(data, Mapping):
            raise Violation(f"is {shown(data)}: give an object with 'passes' and 'export'")
        version = data.get("plan_version")
        if type(version) is not int or version != PLAN_VERSION:
            raise Violation(
                f"is {shown(version)}: this pocketfit reads plans of version {PLAN_VERSION}", "plan_version"
            )
        if not isinstance(data.get("passes"), list | tuple):
            raise Violation("is no list of objects, each with the key 'pass'", "passes")
        passes = []
        for number, item in enumerate(data["passes"]):
            with at("passes"), at(f"[{number}]"):
                passes.append(_read_pass(item))
        whole = {key: value for key, value in data.items() if key != "plan_version"}
        return build(cls, whole, given={"passes": tuple(passes)}, ignored=("passes",))


def _read_pass(item: Any) -> PassSettings:
    if not isinstance(item, Mapping):
        raise Violation(f"is {shown(item)}: give an object with the key 'pass'")
    name = item.get("pass")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise Violation(f"is {shown(name)}: known passes are {', '.join(KINDS)}", "pass")
    settings: PassSettings = build(kind, {key: value for key, value in item.items() if key != "pass"})
    return settings


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed. Tuples and lists are the same."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
