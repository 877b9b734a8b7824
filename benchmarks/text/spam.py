"""MiniLM with a classifier head on SpamAssassin's mails: float32 and int8 files, scored and timed in one run.

    python benchmarks/text/spam.py [--downloads .downloads] [--out out] [--runtime onnxruntime litert] [--mails 900]

The body is frozen; the head is a logistic regression on the mean of the last layer. A mail is its subject and its text,
without the other headers, which name the list that it came by. Needs `tokenizers`; tools/fetch.py gets MiniLM and the
mails.
"""

from __future__ import annotations

import argparse
import email
import json
import tarfile
from email import policy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.text.minilm import MiniLM
from pocketfit import runtimes
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.samples import Samples
from pocketfit.core.support.loading import require
from pocketfit.measurement.latency import QUICK, compare_latency
from pocketfit.measurement.run_samples import score
from pocketfit.numerics.latency_intervals import paired_drop
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import model_from_module
from pocketfit.sources.models.weights_file import read_state_dict

TOKENS = 64
CLASSES = ("ham", "spam")
MOST_CHARACTERS = 4000  # of a mail that the tokenizer reads: far more than 64 tokens
WEIGHT_DECAY = 1e-3


def mails(archive: Path, count: int, seed: int = 0) -> tuple[list[str], NDArray[np.int64]]:
    """`count` mails, half of them spam, as texts and classes."""
    texts: list[list[str]] = [[], []]
    with tarfile.open(archive) as opened:
        members = [m for m in opened if "/data/" in m.name and m.name.endswith(".json") and m.isfile()]
        kinds = [int("/spam-" in member.name) for member in members]
        rng = np.random.default_rng(seed)
        chosen = {
            int(row)
            for kind in (0, 1)
            for row in rng.permutation(np.flatnonzero(np.array(kinds) == kind))[: count // 2]
        }
        for row, member in enumerate(members):
            file = opened.extractfile(member) if row in chosen else None
            if file is not None:
                texts[kinds[row]].append(_words(json.load(file)["text"]))
    return [*texts[0], *texts[1]], np.repeat([0, 1], [len(texts[0]), len(texts[1])])


def _words(raw: str) -> str:
    """A mail's subject and body."""
    headers, _, body = raw.partition("\n\n")
    subject = str(email.message_from_string(headers, policy=policy.compat32).get("Subject", ""))
    return f"{subject}\n{body}"[:MOST_CHARACTERS]


def tokens(folder: Path, texts: list[str]) -> dict[str, NDArray[np.int64]]:
    """The inputs of the network, int64 [n, TOKENS] each."""
    tokenizer = require("tokenizers", "text").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    found = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in found], np.int64),
        "attention_mask": np.array([one.attention_mask for one in found], np.int64),
    }


def body(folder: Path) -> MiniLM:
    network = MiniLM(len(CLASSES)).eval()
    state = read_state_dict(folder / "model.safetensors")
    known = network.state_dict()
    network.load_state_dict({**known, **{name: tensor for name, tensor in state.items() if name in known}})
    return network


def train_head(network: MiniLM, samples: Samples) -> None:
    """Logistic regression on the body's features, in place."""
    with torch.no_grad():
        given = [torch.from_numpy(array) for array in samples.feeds(slice(None))]
        parts = [network.features(*(one[row : row + 32] for one in given)) for row in range(0, len(samples), 32)]
    features, labels = torch.cat(parts), torch.from_numpy(samples.labels)
    head = network.classifier
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), labels) + WEIGHT_DECAY * head.weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)


def as_model(network: MiniLM) -> Model:
    shapes = dict.fromkeys(("input_ids", "attention_mask"), f"{TOKENS}:int64")
    return model_from_module(network, labels=CLASSES, input_shape=shapes)


def measured(model: Model, test: Samples, runtime: str, out: Path) -> dict[str, Any]:
    """Size, accuracy and latency of the dynamic int8 file beside the float32 one."""
    module, files = runtimes.get(runtime), []
    for precision in ("float32", "dynamic-int8"):
        path = out / f"{precision}{module.EXTENSION}"
        settings = ExportSettings(runtime, precision)  # type: ignore[arg-type]
        files.append(module.export(model, Plan((), settings), None, path, work=out))
    scores = [score(runtime, Path(file.path), test) for file in files]
    drop = paired_drop(scores[0].values, scores[1].values)
    (compared,) = compare_latency(runtime, Path(files[0].path), [Path(files[1].path)], effort=QUICK)
    return {
        "runtime": runtime,
        "tests": len(test),
        "bytes": [file.bytes for file in files],
        "size": files[1].bytes / files[0].bytes,
        "accuracy": [float(one.values.mean()) for one in scores],
        "drop_points": [drop.points, drop.low, drop.high],
        "differing": drop.differing,
        "latency_ms": [one["latency_ms"].value for one in (compared.baseline, compared.candidate)],
        "latency_ratio": [getattr(compared.ratios["latency_ratio"], end) for end in ("value", "low", "high")],
        "notes": [list(file.notes) for file in files],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=Path, default=Path(".downloads"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--runtime", nargs="+", default=["onnxruntime", "litert"])
    parser.add_argument("--mails", type=int, default=900)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.downloads / "minilm"
    texts, labels = mails(given.downloads / "spam-assassin.tgz", given.mails)
    data = from_arrays(tokens(folder, texts), labels, class_names=CLASSES)
    network = body(folder)
    model = as_model(network)
    inputs = model.signature.inputs
    train_head(network, data.split("train", model.preprocess, split_seed=0, inputs=inputs))
    model = as_model(network)
    test = data.split("verdict", model.preprocess, split_seed=0, inputs=inputs)
    for runtime in given.runtime:
        place = given.out / runtime
        place.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measured(model, test, runtime, place), indent=1), flush=True)


if __name__ == "__main__":
    main()
