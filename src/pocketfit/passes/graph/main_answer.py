"""The output that counts, of networks with several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


def main_answer(answer: object, shape: tuple[int, ...] | None = None) -> Tensor:
    """The output tensor that counts: the first with this shape of one sample (None: any shape), else the first."""
    found = list(tensors(answer))
    if not found:
        raise TypeError(f"the output of the network is {type(answer).__name__} with no tensor in it")
    return next((tensor for tensor in found if shape is None or tensor.shape[1:] == shape), found[0])


def tensors(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        for part in answer.values():
            yield from tensors(part)
    elif isinstance(answer, tuple | list):
        for part in answer:
            yield from tensors(part)
