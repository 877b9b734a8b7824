"""How a network that somebody brought is trained: which tensor of its answers counts, in which memory layout pictures
go in, and which of its parameters learn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError

TRIED_ROWS = 4
THAWED_SHARE = 0.5  # of all numbers: where more of them are frozen, it was for something else than recovery


@dataclass(frozen=True)
class Manner:
    """How a network is asked while it trains.

    memory  the layout of pictures and weights: channels last is faster, and some views do not stand it
    shape   of one sample's answer
    several  in how many tensors it answers in training
    """

    memory: torch.memory_format
    shape: tuple[int, ...]
    several: int = 1

    def begin(self, network: nn.Module, place: torch.device) -> None:
        """The network goes to where it is trained, in training mode. (A `train` of its own may return nothing.)"""
        network.train()
        move(network, place, self.memory)

    def laid_out(self, inputs: Tensor) -> Tensor:
        """Pictures in this layout; what is no picture as it is."""
        return laid_out(inputs, self.memory) if inputs.ndim == 4 else inputs

    @property
    def findings(self) -> tuple[str, ...]:
        if self.several == 1:
            return ()
        return (
            f"In training the network answers with {self.several} tensors: the main one was trained, and what is only"
            " behind the others (side heads) stayed as it was",
        )


def manner(network: nn.Module, inputs: Tensor) -> Manner:
    """How this network, which is in eval mode, is asked while it trains: found out by a step with a few rows on a copy.

    Raises UserError where a step fails in any layout: in words of the network's own error.
    """
    rows = inputs[:TRIED_ROWS]
    with torch.inference_mode():
        shape = tuple(main_answer(network(in_order(rows))).shape[1:])
    if inputs.ndim == 4:
        with suppress(
            Exception
        ):  # a view written for the other layout, most of all; that one tells what else it may be
            return Manner(torch.channels_last, shape, _tried(network, rows, torch.channels_last, shape))
    try:
        return Manner(torch.contiguous_format, shape, _tried(network, rows, torch.contiguous_format, shape))
    except Exception as error:
        cause = str(error).partition("\n")[0]
        raise UserError(
            f"The network cannot be trained: forward and backward in training mode end with {type(error).__name__}:"
            f" {cause}"
        ) from error


def _tried(network: nn.Module, rows: Tensor, memory: torch.memory_format, shape: tuple[int, ...]) -> int:
    """Forward and backward on a copy; how many tensors the answer has."""
    tried = copy.deepcopy(network)
    with thawed(tried):
        tried.train()
        move(tried, None, memory)
        answer = tried(Manner(memory, shape).laid_out(rows))
        torch.autograd.backward(main_answer(answer, shape).float().sum())
    return len(list(_tensors(answer)))


def move(network: nn.Module, place: torch.device | str | None, memory: torch.memory_format) -> None:
    """In place: the network goes to a device (None: it stays where it is), its weights into this memory layout."""
    network.to(place, memory_format=memory)  # type: ignore[call-overload]  # missing in torch's overloads of Module.to


def in_order(inputs: Tensor) -> Tensor:
    """Tensors [n, …] in memory as their dimensions say."""
    return laid_out(inputs, torch.contiguous_format)


def laid_out(inputs: Tensor, memory: torch.memory_format) -> Tensor:
    """Tensors in this layout, strides included: pictures of one channel lie in both layouts at once, and operators go
    by the strides.
    """
    blank = torch.empty(inputs.shape, device="meta", memory_format=memory)
    return inputs if inputs.stride() == blank.stride() else inputs.clone(memory_format=memory)


def main_answer(answer: object, shape: tuple[int, ...] | None = None) -> Tensor:
    """The tensor among an answer's that counts: the first with this shape of one sample (None: any), else the first."""
    found = list(_tensors(answer))
    if not found:
        raise TypeError(f"the network answers with {type(answer).__name__} and no tensor in it")
    return next((tensor for tensor in found if shape is None or tensor.shape[1:] == shape), found[0])


def _tensors(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        for part in answer.values():
            yield from _tensors(part)
    elif isinstance(answer, tuple | list):
        for part in answer:
            yield from _tensors(part)


@contextmanager
def thawed(network: nn.Module) -> Iterator[list[str]]:
    """Inside, a network whose parameters are mostly frozen learns with all of them; yields what is to be said about it.
    Where the smaller part is frozen (a table of positions, a fixed filter), it stays so.
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
