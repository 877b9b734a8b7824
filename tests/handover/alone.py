"""A process that has no pocketfit: it loads folder by folder what was handed over, compares answers, trains a step.

python alone.py < folders    # one name a line; each answer is a line, "" or what is wrong
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

CLOSE = 1e-5


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("network", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(folder: Path) -> None:
    given = load_file(folder / "given.safetensors")
    inputs = [given[f"input_{i}"] for i in range(sum(name.startswith("input_") for name in given))]
    program = torch.export.load(folder / "network.pt2").module()
    network = module_of(folder / "network.py").load()
    assert isinstance(network, nn.Module) and not network.training
    for one in (program, network):
        same(one(*inputs), given, "answer")
        same(one(*(x[:1] for x in inputs)), {name: x[:1] for name, x in given.items()}, "answer")
    network.train()
    torch.manual_seed(0)
    answers = pytree.tree_leaves(network(*inputs))
    if "training_0" in given:
        same(answers, given, "training")
    step(network, answers)
    same(network.eval()(*inputs), given, "answer", moved=True)


def step(network: nn.Module, answers: list[Tensor]) -> None:
    """One step of training: every weight that the main answer depends on gets a gradient and moves."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    (answers[0] - 1).square().mean().backward()
    optimizer.step()
    moved = [name for name, p in network.named_parameters() if not torch.equal(p, before[name])]
    assert moved and all(bool(p.isfinite().all()) for p in network.parameters()), moved


def same(answers: object, given: dict[str, Tensor], kind: str, *, moved: bool = False) -> None:
    found = pytree.tree_leaves(answers)
    wanted = [given[f"{kind}_{i}"] for i in range(sum(name.startswith(kind) for name in given))]
    assert [x.shape for x in found] == [x.shape for x in wanted]
    off = max(float((x - y).abs().max()) / max(float(y.abs().max()), 1e-3) for x, y in zip(found, wanted, strict=True))
    assert off > 0 if moved else off <= CLOSE, f"{kind}s differ by {off}"


if __name__ == "__main__":
    sys.modules["pocketfit"] = None  # type: ignore[assignment]  # an import of it raises ImportError
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            check(Path(line.strip()))
        except Exception:
            print(repr(traceback.format_exc()), flush=True)
        else:
            print("", flush=True)
