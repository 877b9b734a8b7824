"""Weights from a file, without running any code in it."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketfit.core.errors import UserError

MAX_BYTES = 4 * 10**9
PLAIN_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
# Prefixes of every name from wrappers for several devices and from torch.compile.
PREFIXES = ("module.", "_orig_mod.")
ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class Weights:
    """Tensors by name, in float or integer as stored, and sentences about how they were found in the file."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a state dict by torch.save; see `read_weights`."""
    return read_weights(path).state


def read_weights(path: str | Path) -> Weights:
    """The tensors of a .safetensors file, or of a state dict by torch.save, bare or in one of the usual wrappers.

    Raises UserError, which names the file and says what to do, for a file that is missing, empty, over 4 GB, cut off, a
    text or a pickled network, has no tensors, or has NaN or infinity in one.
    """
    path = Path(path)
    _check_file(path)
    notes: list[str] = []
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        content = _read_torch(path)
        found = _find_state(content, path.name, notes)
        if found is None:
            raise UserError(
                f"{path} holds no weights (a {type(content).__name__} without tensors by name): save them with "
                "torch.save(model.state_dict(), 'weights.pth')"
            )
        state = found
    state = _without_prefixes(state)
    _check_tensors(state, path)
    return Weights(state, tuple(notes))


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"There is no file {path}: check the path of the weights")
    if not path.is_file():
        raise UserError(f"{path} is not a file: name the file with the weights in it")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty: download or save it again")
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size / 1e9:.1f} GB, more than the {MAX_BYTES / 1e9:.0f} GB that weights may have")
    with path.open("rb") as file:
        head = file.read(512)
    if re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head):
        raise UserError(f"{path} is a text (it may be a web page, or a pointer to the real file): download it again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        return load_file(path) if _is_utf8(path) else load(path.read_bytes())
    except (SafetensorError, KeyError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is no whole safetensors file ({cause}): download or save it again") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file with the permissions of the umask; the library's files are for their owner alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(mode)


def _read_torch(path: Path) -> Any:
    """The content of a torch.save file, if it is tensors and plain containers; argparse's options count as data."""
    mapped = _is_zip(path) and _is_utf8(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # torch warns about the pickle's protocol, beside our own sentence
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)", str(error)):
            raise UserError(
                f"{path} is a pickle of Python objects ({named[1] or named[2]}), and to load it would run its code: "
                "where it can be loaded, save the weights alone with torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise UserError(
            f"{path} holds neither safetensors nor a state dict by torch.save: save the weights with "
            "torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript archive, which holds code: save the weights alone with "
                "torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise UserError(f"{path} is damaged or cut off: download or save it again") from error


def _is_utf8(path: Path) -> bool:
    """Whether the name of the file is UTF-8: torch's and safetensors' own readers open no others."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(4) != ZIP_MAGIC:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is a zip archive that is cut off or damaged: download or save it again") from error
    if unpacked > MAX_BYTES:
        raise UserError(f"{path} unpacks to {unpacked / 1e9:.1f} GB, more than the {MAX_BYTES / 1e9:.0f} GB allowed")
    return True


def _find_state(content: Any, where: str, notes: list[str], depth: int = 3) -> dict[str, Tensor] | None:
    """The dict of tensors inside the usual wrappers. Plain weights are preferred to their moving average (EMA)."""
    if not isinstance(content, Mapping) or depth == 0:
        return None
    inner = {key: content[key] for key in (*PLAIN_KEYS, *EMA_KEYS) if isinstance(content.get(key), Mapping)}
    for key, value in inner.items():
        state = _find_state(value, f"{where}[{key!r}]", notes, depth - 1)
        if state is None:
            continue
        averages = [name for name in inner if name in EMA_KEYS]
        if key in EMA_KEYS:
            notes.append(f"{where} holds a moving average only; its weights under '{key}' were taken.")
        elif averages:
            notes.append(f"{where} holds plain weights and a moving average; those under '{key}' were taken.")
        return state
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors or None


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_tensors(state: dict[str, Tensor], path: Path) -> None:
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.layout != torch.strided:
            raise UserError(f"The tensor {name} in {path} is quantized or sparse: save the float weights instead")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
            raise UserError(
                f"The tensor {name} in {path} contains {what}: take a checkpoint from before training failed"
            )
        if name.endswith("running_var") and tensor.is_floating_point() and bool((tensor < 0).any()):
            raise UserError(f"The tensor {name} in {path} holds negative variances: it was damaged, save it again")
