"""What a training step costs with and without memory that is kept (`passes/train/malloc.py`), and what rounding costs
in it.

    python -m benchmarks.speed.training_step [--rounds 12] [--threads 1]

MobileNetV2 with random weights, forward and backward, at sizes that recovery and training on the grid work with; then
the rounding of one large tensor, by `passes/quantize/simulate/fake_quantize.py` and by torch's own operator. The two
ways take turns in one run, and the ratio has the 95 % interval over the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from pocketfit import zoo
from pocketfit.numerics.latency_intervals import bootstrap_ratio
from pocketfit.passes.quantize.simulate.fake_quantize import fake_activation, grid_of
from pocketfit.passes.train.malloc import kept_memory

SIZES = ((64, 64), (64, 96), (16, 224))  # batch, pixels
TENSOR = (16, 96, 112, 112)  # the largest of MobileNetV2 at 224 pixels
Step = Callable[[], object]
Way = tuple[Step, Callable[[], AbstractContextManager[object]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for batch, pixels in SIZES:
        step = training_step(batch, pixels)
        what = f"a step, {batch} pictures of {pixels} px: memory kept / given back"
        compare(what, (step, kept_memory), (step, nullcontext), options.rounds)
    values, low, high = torch.randn(TENSOR) * 2, torch.zeros(()), torch.full((), 6.0)
    scale, zero = grid_of(0.0, 6.0)

    def ours() -> object:
        return fake_activation(values, low, high)

    def torchs() -> object:
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)

    assert torch.equal(fake_activation(values, low, high), torchs()), "the two must round alike"
    compare(f"rounding {TENSOR}: ours / torch's", (ours, kept_memory), (torchs, kept_memory), options.rounds)


def training_step(batch: int, pixels: int) -> Step:
    network = zoo.build("mobilenet_v2").train().to(memory_format=torch.channels_last)
    inputs = torch.randn(batch, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,))

    def step() -> None:
        network.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(inputs), labels).backward()

    return step


def compare(what: str, first: Way, second: Way, rounds: int) -> None:
    """A way is (what to do, where): the first time in a round only brings the memory."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            step, memory = (first, second)[which]
            with memory():
                step()
                began = time.perf_counter()
                step()
                step()
                taken[which].append((time.perf_counter() - began) / 2 * 1e3)
    ratio = bootstrap_ratio(*taken)
    low, high = min(taken[1]), max(taken[1])
    print(f"{what}: {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] of {low:.0f} to {high:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
