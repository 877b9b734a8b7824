"""What the layers of a network cost at several widths, measured in the runtime that ships.

The probes are the network itself at random widths: each is exported, profiled operator by operator, and timed in turns
with the whole network. So a layer is measured where it will run (behind its real neighbour, in the layout that the
runtime chose), and one export measures every layer. A layer's time is its share of the profile times the latency
measured in turns: whatever slows the machine down for minutes cancels out.

A table is a folder: table.json says what it belongs to, 0000.json, 0001.json, … hold one sub-network each. A
sub-network that is there is not measured again, unless other work ran beside it and the machine is quiet now.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import numpy as np

from pocketfit import runtimes
from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.json_file import load
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.rules import Between, Positive
from pocketfit.core.support.schema import checked
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.devices import local
from pocketfit.measurement import latency as cost
from pocketfit.measurement import quiet
from pocketfit.measurement.environment import environment
from pocketfit.numerics.channel_shapes import Skeleton, Widths
from pocketfit.passes.prune import subnetworks as forms
from pocketfit.sources.data.random_inputs import noise
from pocketfit.sources.models.fingerprint import fingerprint

if TYPE_CHECKING:
    from pocketfit.passes.graph.channel_graph import ChannelGraph

VERSION = 1
REST = ""  # operators that belong to no layer: sums, pooling, changes of layout
BATCH = 4  # sub-networks that are timed in one go, in turns with the whole network
PROFILE_RUNS = 60
CALIBRATION = 16  # samples of noise for calibration: ranges do not change the time of an int8 kernel
LEAST_SHARE = 0.2  # the smallest share of a group's channels that a sub-network keeps
SPREAD = 0.15  # how far the shares of one sub-network's groups lie from the share drawn for the sub-network
MEND = "remove its folder and start again"
Duration = Annotated[float, Between(1e-9, 1e12)]
FINE_BELOW = 32  # channels: smaller groups are looked at in steps of 4, larger ones in steps of 8


class TableFile(TypedDict):
    """What table.json says: the whole network's latency, and where it was measured."""

    full_ms: Duration
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class SubNetwork:
    """One measured network: its widths, its latency, and how that is spread over layers (microseconds; REST: others).

    latency_ms is the latency ratio to the whole network, measured in turns, times the whole network's latency.
    disturbed: Measurement.disturbed of that ratio.
    """

    widths: Mapping[str, Positive]
    ratio: Duration
    latency_ms: Duration
    layer_us: Mapping[str, Annotated[float, Between(0, 1e12)]]
    disturbed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Measured sub-networks of one network, on one machine, in one runtime; `full_ms`: of the whole network."""

    runtime: str
    threads: int
    precision: str
    skeleton: Skeleton
    full_ms: float
    environment: Mapping[str, Any]
    measured: tuple[SubNetwork, ...]

    @property
    def disturbed(self) -> str:
        """A sentence where other work ran beside the timing, "" where none did."""
        doubted = [one for one in self.measured if one.disturbed]
        reasons = dict.fromkeys(why for one in doubted for why in one.disturbed[:1])
        if not doubted:
            return ""
        return (
            f"{len(doubted)} of {len(self.measured)} sub-networks were timed beside other work ({next(iter(reasons))}):"
            " on a quiet machine the same command times them again"
        )


def measure(
    model: Model,
    graph: ChannelGraph,
    settings: ExportSettings,
    folder: Path,
    *,
    threads: int = 1,
    count: int = 24,
    seed: int = 0,
    effort: cost.Effort = cost.QUICK,
    watch: Watch | None = None,
) -> CostTable:
    """The table of `count` sub-networks; those that `folder` holds already are read.

    Raises UserError where no group of the network may be made narrower, and what the runtime's export raises.
    """
    skeleton = forms.skeleton(model.network, graph)
    if not skeleton.full:
        raise UserError("No channel of this network can be pruned, so there is no table of what channels cost")
    home = folder / key(model, graph, settings, threads)[:24]
    watch = watch or Silent()
    tick = watch.step(f"measuring {count} sub-networks in {settings.runtime}")
    wanted = draw(skeleton, count, seed)
    known = [_read(home, number, widths) for number, widths in enumerate(wanted)]
    again = any(one is not None and one.disturbed for one in known) and quiet.calm_now()
    missing = [number for number, one in enumerate(known) if one is None or (again and one.disturbed)]
    with temporary_folder() as work:
        baseline: Path | None = None
        for start in range(0, len(missing), BATCH):
            tick(count - len(missing) + start, count)
            numbers = missing[start : start + BATCH]
            if baseline is None:
                baseline = _export(model, settings, Path(work))
            if not (home / "table.json").is_file() or (again and start == 0 and "disturbed" in _about(home)):
                _begin(home, settings, threads, baseline, effort)
            files = [_export(_narrowed(model, graph, wanted[number]), settings, Path(work)) for number in numbers]
            compared = cost.compare_latency(
                settings.runtime, baseline, files, threads=threads, effort=effort, seed=start
            )
            full_ms = _table(home)["full_ms"]
            for number, file, latency in zip(numbers, files, compared, strict=True):
                ratio = latency.ratio.value
                assert ratio is not None
                found = _spread(settings.runtime, file, skeleton, threads, ratio, full_ms, wanted[number])
                _write(home / f"{number:04d}.json", asdict(replace(found, disturbed=latency.ratio.disturbed)))
                file.unlink()
        tick(count, count)
    full_ms = _table(home)["full_ms"]
    read = (_read(home, number, widths) for number, widths in enumerate(wanted))
    measured = tuple(_at(one, full_ms) for one in read if one is not None)
    return CostTable(
        runtime=settings.runtime,
        threads=threads,
        precision=settings.precision,
        skeleton=skeleton,
        full_ms=full_ms,
        environment=_about(home),
        measured=measured,
    )


def draw(skeleton: Skeleton, count: int, seed: int) -> list[dict[str, int]]:
    """Widths of `count` sub-networks, small ones, large ones and mixed ones; the first is the whole network.

    A share is drawn for each sub-network, and its groups keep shares near that, so that latencies spread widely.
    Entry i depends on (seed, i) alone.
    """
    found: list[dict[str, int]] = [dict(skeleton.full)] if count else []
    for number in range(1, count):
        random = np.random.default_rng([seed, number])
        middle = random.uniform(LEAST_SHARE, 1.0)
        widths = {}
        for name, full in skeleton.full.items():
            share = min(max(random.normal(middle, SPREAD), LEAST_SHARE), 1.0)
            choices = np.array(widths_of(full, skeleton.per_id[name]))
            widths[name] = int(choices[np.argmin(np.abs(choices - share * full))])
        found.append(widths)
    return found


def widths_of(full: int, per_id: int, step: int = 0) -> tuple[int, ...]:
    """Widths worth a look: multiples of `step` (by default 8; 4 for narrow groups), and the whole.

    >>> widths_of(36, 1), widths_of(24, 1), widths_of(24, 6), widths_of(3, 1)
    ((8, 16, 24, 32, 36), (4, 8, 12, 16, 20, 24), (12, 24), (3,))
    """
    step = int(np.lcm(step or (8 if full >= FINE_BELOW else 4), per_id))
    return tuple(dict.fromkeys((*range(step, full, step), full)))


def key(model: Model, graph: ChannelGraph, settings: ExportSettings, threads: int) -> str:
    """The name of a table: a hash of structure (not the weights' values), input, runtime and version, settings, threads
    and processor."""
    runtime = runtimes.get(settings.runtime)
    facts = {
        "version": VERSION,
        "layers": [(layer.name, layer.type, layer.input_shape, layer.output_shape) for layer in graph.layers],
        "skeleton": forms.skeleton(model.network, graph).to_json(),
        "signature": model.signature.to_json(),
        "runtime": [runtime.NAME, environment(threads)["versions"]],
        "settings": asdict(settings),
        "threads": threads,
        "device": asdict(local.describe(threads)),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cache_folder(watch: Watch | None = None) -> Path:
    """The folder for tables unless another one is given.

    A user of a container may have no home, or none that can be written: then it is in the temporary folder, and `watch`
    is told so.
    """
    with contextlib.suppress(RuntimeError):  # there is no HOME, and no user of this number
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketfit" / "costs"
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            return folder
    folder = Path(tempfile.gettempdir(), f"pocketfit-costs-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    if watch is not None:
        watch.say(f"The home folder can't be written: tables of costs are kept in {folder}.")
    return folder


def per_layer(runtime: str, path: Path, layers: Sequence[str], threads: int) -> dict[str, float]:
    """Microseconds by dotted name of the layer, from the runtime's own profile of a file; REST: everything else.

    Raises CannotRunHere where the runtime has no profile.
    """
    module = runtimes.get(runtime)
    ops = {op.index: op for op in module.inspect(path).ops}
    session = module.load(path, threads=threads)
    inputs = cost.random_inputs(session.signature, 0)
    session.close()
    weighted = [op for op in ops.values() if op.weight_dtype and op.macs > 0]
    in_order = dict(zip((op.index for op in weighted), layers, strict=True)) if len(weighted) == len(layers) else {}
    found: dict[str, float] = defaultdict(float)
    for each in module.profile(path, inputs, threads=threads, runs=PROFILE_RUNS):
        layer = (ops[each.index].layer if each.index in ops else "") or in_order.get(each.index, REST)
        found[layer if layer in layers else REST] += each.time_us
    return dict(found)


def _spread(
    runtime: str, path: Path, skeleton: Skeleton, threads: int, ratio: float, full_ms: float, widths: Widths
) -> SubNetwork:
    times = per_layer(runtime, path, [layer.name for layer in skeleton.layers], threads)
    scale = 1000 * ratio * full_ms / sum(times.values())
    return SubNetwork(dict(widths), ratio, ratio * full_ms, {name: time * scale for name, time in times.items()})


def _narrowed(model: Model, graph: ChannelGraph, widths: Widths) -> Model:
    network = forms.narrowed(model.network, graph, widths)
    return replace(model, network=network, sha256=fingerprint(network), learned=Learned())


def _export(model: Model, settings: ExportSettings, work: Path) -> Path:
    """The file of a network. By-products of the export are removed, because many exports follow."""
    runtime = runtimes.get(settings.runtime)
    handle, name = tempfile.mkstemp(suffix=runtime.EXTENSION, dir=work)
    os.close(handle)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        calibration = None
        if settings.precision == "int8":
            calibration = noise(model.signature.inputs, model.preprocess, CALIBRATION)
        runtime.export(model, Plan((), settings), calibration, Path(name), work=Path(folder))
    return Path(name)


def _begin(home: Path, settings: ExportSettings, threads: int, baseline: Path, effort: cost.Effort) -> None:
    """Time the whole network once: the milliseconds to which all ratios belong."""
    full = cost.latency(settings.runtime, baseline, threads=threads, effort=effort)["latency_ms"]
    _write(home / "table.json", {"full_ms": full.value, "environment": dict(full.environment)})


def _table(home: Path) -> dict[str, Any]:
    path = home / "table.json"
    about: dict[str, Any] = checked(TableFile, load(path, "table of costs", MEND), str(path), MEND)
    return about


def _about(home: Path) -> dict[str, Any]:
    return dict(_table(home)["environment"])


def _at(one: SubNetwork, full_ms: float) -> SubNetwork:
    """The sub-network with the same ratio, after the whole network's latency was measured again."""
    scale = one.ratio * full_ms / one.latency_ms
    if scale == 1:
        return one
    layer_us = {name: scale * time for name, time in one.layer_us.items()}
    return replace(one, latency_ms=one.ratio * full_ms, layer_us=layer_us)


def _read(home: Path, number: int, widths: Widths) -> SubNetwork | None:
    """A sub-network that was measured before, if it has exactly these widths."""
    path = home / f"{number:04d}.json"
    if not path.is_file():
        return None
    found: SubNetwork = checked(SubNetwork, load(path, "table of costs", MEND), str(path), MEND)
    return found if dict(found.widths) == dict(widths) else None


def _write(path: Path, data: Any) -> None:
    with whole_or_not(path) as partial:
        partial.write_text(json.dumps(data, allow_nan=False), encoding="utf-8")
