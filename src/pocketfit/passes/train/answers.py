"""How a user's own network is trained: which of its outputs counts, in which memory layout images go in, and which of
its parameters learn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.passes.graph.feed import Fed, all_of, call, each
from pocketfit.passes.graph.main_answer import main_answer, tensors

TRIED_ROWS = 4
THAWED_SHARE = 0.5  # share of frozen parameters above which all are thawed: they were frozen for an earlier training


@dataclass(frozen=True)
class Manner:
    """How a network is called while it trains.

    memory   the layout of images and weights: channels last is faster, but views in a network's code may fail with it
    shape    shape of one sample's logits
    several  how many output tensors it has in training mode
    """

    memory: torch.memory_format
    shape: tuple[int, ...]
    several: int = 1

    def begin(self, network: nn.Module, place: torch.device) -> None:
        """Put the network into training mode, and onto its device. (Its own `train` may return nothing.)"""
        network.train()
        move(network, place, self.memory)

    def laid_out(self, inputs: Fed) -> Fed:
        """Images in this layout; other inputs as they are."""
        return each(inputs, lambda tensor: laid_out(tensor, self.memory) if tensor.ndim == 4 else tensor)

    @property
    def findings(self) -> tuple[str, ...]:
        if self.several == 1:
            return ()
        return (
            f"In training the network has {self.several} output tensors: the main one was trained, and what is only"
            " behind the others (side heads) stayed as it was",
        )


def manner(network: nn.Module, inputs: Fed) -> Manner:
    """The Manner of a network in eval mode, found by a training step with a few rows on a copy.

    Raises UserError, with the network's own error, where a step fails in every layout.
    """
    rows = each(inputs, lambda tensor: tensor[:TRIED_ROWS])
    with torch.inference_mode():
        shape = tuple(main_answer(call(network, each(rows, in_order))).shape[1:])
    if any(tensor.ndim == 4 for tensor in all_of(inputs)):
        with suppress(Exception):  # mostly a view written for the other layout; any other error comes again there
            return Manner(torch.channels_last, shape, _tried(network, rows, torch.channels_last, shape))
    try:
        return Manner(torch.contiguous_format, shape, _tried(network, rows, torch.contiguous_format, shape))
    except Exception as error:
        cause = str(error).partition("\n")[0]
        raise UserError(
            f"The network cannot be trained: forward and backward in training mode end with {type(error).__name__}:"
            f" {cause}"
        ) from error


def _tried(network: nn.Module, rows: Fed, memory: torch.memory_format, shape: tuple[int, ...]) -> int:
    """How many output tensors the network has, after a forward and a backward pass on a copy."""
    tried = copy.deepcopy(network)
    with thawed(tried):
        tried.train()
        move(tried, None, memory)
        answer = call(tried, Manner(memory, shape).laid_out(rows))
        torch.autograd.backward(main_answer(answer, shape).float().sum())
    return len(list(tensors(answer)))


def move(network: nn.Module, place: torch.device | str | None, memory: torch.memory_format) -> None:
    """In place: the network goes to a device (None: it stays where it is), its weights into this memory layout."""
    network.to(place, memory_format=memory)  # type: ignore[call-overload]  # missing in torch's overloads of Module.to


def in_order(inputs: Tensor) -> Tensor:
    """Tensors [n, …] contiguous in memory, in the order of their dimensions."""
    return laid_out(inputs, torch.contiguous_format)


def laid_out(inputs: Tensor, memory: torch.memory_format) -> Tensor:
    """Tensors in this layout, with its strides: images of one channel have both layouts at once, and operators choose
    by the strides.
    """
    blank = torch.empty(inputs.shape, device="meta", memory_format=memory)
    return inputs if inputs.stride() == blank.stride() else inputs.clone(memory_format=memory)


@contextmanager
def thawed(network: nn.Module) -> Iterator[list[str]]:
    """Inside, a network whose parameters are mostly frozen learns with all of them; yields sentences about it. Where
    less than THAWED_SHARE is frozen (a table of positions, a fixed filter), it stays frozen.
    """
    frozen = [p for p in network.parameters() if not p.requires_grad and p.is_floating_point()]
    numbers, of_all = sum(p.numel() for p in frozen), sum(p.numel() for p in network.parameters())
    if not numbers > THAWED_SHARE * of_all:
        yield []
        return
    for parameter in frozen:
        parameter.requires_grad_(True)
    share = "All" if numbers == of_all else f"{numbers / of_all:.0%} of the"
    try:
        yield [f"{share} parameters were frozen (requires_grad=False): training thawed them in its copy of the network"]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
