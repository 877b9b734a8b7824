"""Where a file runs: pocketfit's runtimes, or OpenVINO, which stands in a process of its own (openvino_worker.py).

The same three questions to each: what does the file answer, how long does it take, how large is it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import ExportFailed
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.plan import Plan, canonical_json
from pocketfit.core.samples import Samples
from pocketfit.measurement import latency, run_samples
from pocketfit.measurement.environment import environment
from pocketfit.numerics import latency_intervals
from pocketfit.runtimes.common.output_file import artifact_of

OPENVINO = "openvino"
SIDE = Path(__file__).with_name("openvino_worker.py")
TIME_LIMIT_S = 7200.0  # NNCF's accuracy control runs the network hundreds of times


@dataclass(frozen=True)
class Places:
    """python: an interpreter that has nncf and openvino. kept: a folder for answers that need not be asked twice."""

    python: str = ""
    kept: Path | None = None

    def outputs(self, runtime: str, path: Path, samples: Samples) -> NDArray[np.float32]:
        """The file's first output for every sample, [n, classes]."""
        if self.kept is None:
            return self._asked(runtime, path, samples)
        facts = [runtime, _sha256(path), samples.sha256, len(samples), samples.preprocess.to_json()]
        facts.append(environment(threads=1)["versions"])
        stored = self.kept / f"{hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:24]}.npy"
        if stored.exists():
            return np.load(stored, allow_pickle=False)  # type: ignore[no-any-return]
        found = self._asked(runtime, path, samples)
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(".partial.npy")
        np.save(partial, found)
        partial.replace(stored)
        return found

    def _asked(self, runtime: str, path: Path, samples: Samples) -> NDArray[np.float32]:
        if runtime != OPENVINO:
            return run_samples.run_all(runtime, path, samples)
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            inputs, outputs = Path(folder, "inputs.npy"), Path(folder, "outputs.npy")
            np.save(inputs, samples.inputs(slice(None), "NCHW"))
            self.openvino("run", {"path": str(path), "inputs": str(inputs), "outputs": str(outputs)})
            return np.load(outputs, allow_pickle=False)  # type: ignore[no-any-return]

    def times(
        self, runtime: str, base: Path, others: Sequence[Path], effort: latency.Effort
    ) -> tuple[Measurement, list[dict[str, Measurement]]]:
        """(the baseline's latency, by file its latency and ratio), all interleaved in the same sessions."""
        if runtime != OPENVINO:
            found = latency.compare_latency(runtime, base, others, effort=effort)
            own = found[0].baseline if found else latency.latency(runtime, base, effort=effort)
            pairs = [{"latency_ms": one.candidate["latency_ms"], "latency_ratio": one.ratio} for one in found]
            return own["latency_ms"], pairs
        paths, where = [str(base), *map(str, others)], environment(threads=1)
        sessions = [self._session(paths, number, effort) for number in range(effort.sessions)]
        ms = [_over([session[i] for session in sessions], where) for i in range(len(paths))]
        theirs = [session[0] for session in sessions]
        ratios = [_over([session[i] for session in sessions], where, theirs) for i in range(1, len(paths))]
        return ms[0], [{"latency_ms": m, "latency_ratio": r} for m, r in zip(ms[1:], ratios, strict=True)]

    def _session(self, paths: Sequence[str], number: int, effort: latency.Effort) -> list[NDArray[np.float64]]:
        turn = -1 if number % 2 else 1  # as measure.cost: who is loaded first is at a disadvantage
        payload = {"paths": list(paths)[::turn], "seed": number, "seconds": effort.seconds}
        payload |= {"min_rounds": effort.min_rounds, "max_rounds": effort.max_rounds}
        return [np.asarray(calls, np.float64) for calls in self.openvino("times", payload)[::turn]]

    def artifact(self, runtime: str, path: Path, plan: Plan) -> Artifact:
        """Its bytes; OpenVINO keeps the weights in a second file beside the first."""
        made = artifact_of(path, plan, runtime)
        if runtime != OPENVINO:
            return made
        weights = artifact_of(path.with_suffix(".bin"), plan, runtime)
        return replace(
            made, bytes=made.bytes + weights.bytes, download_bytes=made.download_bytes + weights.download_bytes
        )

    def openvino(self, function: str, payload: Mapping[str, Any]) -> Any:
        """Call a function of openvino_worker.py; raises ExportFailed with what it printed."""
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            given, result = Path(folder, "payload.json"), Path(folder, "result.json")
            given.write_text(json.dumps(payload))
            command = [self.python, str(SIDE), function, str(given), str(result)]
            try:
                done = subprocess.run(
                    command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIME_LIMIT_S
                )
            except subprocess.TimeoutExpired as error:
                reason = f"openvino_worker.{function} was stopped after {TIME_LIMIT_S:.0f} s, its time limit"
                raise ExportFailed(reason) from error
            if done.returncode or not result.exists():
                raise ExportFailed(f"openvino_worker.{function} failed", done.stdout.decode(errors="replace")[-3000:])
            return json.loads(result.read_text())


def _over(
    sessions: Sequence[NDArray[np.float64]],
    where: Mapping[str, Any],
    baseline: Sequence[NDArray[np.float64]] | None = None,
) -> Measurement:
    """The median over all sessions with its interval, in ms, or as a ratio to the baseline's."""
    if baseline is None:
        name, unit, over = "latency_ms", "ms", latency_intervals.latency_of_sessions(sessions)
    else:
        name, unit, over = "latency_ratio", "x", latency_intervals.ratio_of_sessions(sessions, baseline)
    n, found = sum(calls.size for calls in sessions), over.interval
    return Measurement(
        quantity=name, unit=unit, value=found.value, n=n, low=found.low, high=found.high, environment=dict(where)
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes())
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.exists():
        digest.update(weights.read_bytes())
    return digest.hexdigest()
