"""The model folder: weights.safetensors, and model.json that says how to build and feed the network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.scratch import temporary_folder
from pocketfit.core.signature import Signature
from pocketfit.sources.contract import check_preprocess
from pocketfit.sources.fingerprint import fingerprint
from pocketfit.sources.origins import build
from pocketfit.sources.resize import resize_to
from pocketfit.sources.weights import read_weights

FORMAT_VERSION = 1
MAX_JSON_BYTES = 10**7
WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"


def is_model_folder(path: Path) -> bool:
    return (path / DESCRIPTION).is_file()


def save_model(model: Model, folder: str | Path) -> None:
    """Write the model folder; a new one appears whole or not at all.

    An existing model folder gets new files (weights first: a crash in between is noticed on loading, by the hash).
    Raises UserError where `folder` is a file or a folder with anything else in it.
    """
    folder = Path(folder)
    if folder.exists() and not is_model_folder(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no model folder: name another place, nothing was overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as work:
        partial = Path(work, "model")
        partial.mkdir()
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.network.state_dict().items()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / WEIGHTS)
        text = json.dumps(_description(model, _sha256(partial / WEIGHTS)), indent=2, ensure_ascii=False)
        (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        if folder.exists() and any(folder.iterdir()):
            for name in (WEIGHTS, DESCRIPTION):
                (partial / name).replace(folder / name)
        else:
            partial.replace(folder)


def load_model(folder: str | Path, *, unpruned: nn.Module | None = None) -> Model:
    """The Model of a folder: the network is built from its origin and every layer resized to the stored tensors.

    `unpruned` stands in for an origin that can't be built from a name (kind "object"); it is not changed.
    Raises UserError naming the file for anything that is missing, damaged or does not fit together.
    """
    import copy

    folder = Path(folder)
    path, weights = folder / DESCRIPTION, folder / WEIGHTS
    data = _read_description(path)
    try:
        origin = Origin.from_json(data["origin"])
        signature = Signature.from_json(data["signature"])
        preprocess = check_preprocess(data["preprocess"], path)
        labels = tuple(str(label) for label in data["labels"])
        facts = int(data["split_seed"]), str(data["sha256"]), str(data["weights_sha256"])
        learned, findings = dict(data["learned"]), tuple(str(sentence) for sentence in data["findings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({type(error).__name__}: {error}): make the folder again") from error
    split_seed, stored_sha256, weights_sha256 = facts
    tensors = read_weights(weights).state
    if _sha256(weights) != weights_sha256:
        raise UserError(f"{weights} is not the file that {path} describes: make the folder again")
    network = copy.deepcopy(unpruned) if unpruned is not None else build(origin)
    try:
        resize_to(network, tensors)
    except UserError as error:
        raise UserError(f"{weights} doesn't fit the network that {origin.name} builds: {error}") from error
    model = Model(
        network.eval(),
        signature,
        preprocess,
        labels,
        origin,
        split_seed,
        "torch",
        fingerprint(network),
        learned,
        findings,
    )
    if model.sha256 != stored_sha256:
        changed = f"The layers that {origin.name} builds have changed since {folder} was saved; its weights still fit."
        model = replace(model, findings=(*model.findings, changed))
    return model


def _description(model: Model, weights_sha256: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "origin": model.origin.to_json(),
        "signature": model.signature.to_json(),
        "preprocess": model.preprocess.to_json(),
        "labels": list(model.labels),
        "split_seed": model.split_seed,
        "sha256": model.sha256,
        "weights_sha256": weights_sha256,
        "learned": dict(model.learned),
        "findings": list(model.findings),
    }


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no {path}: {path.parent} is no model folder")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path} is too large to describe a model: make the folder again")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error}): make the folder again") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has the format version {version!r}; this pocketfit reads version {FORMAT_VERSION}")
    return data  # type: ignore[no-any-return]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
