"""A graph with some of its inputs, or some of its dynamic axes, fixed to values that the user names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx.file.graph import Graph, Value


def specialise(graph: Graph, sizes: Mapping[str, int], fixed: Mapping[str, Any]) -> Graph:
    """The graph with these axes and inputs fixed.

    sizes  axis name, or "input:dimension", -> size
    fixed  input name -> its only value

    Raises UserError for names that the file doesn't have.
    """
    return with_sizes(with_fixed(graph, fixed), sizes)


def with_fixed(graph: Graph, fixed: Mapping[str, Any]) -> Graph:
    inputs = {value.name: value for value in graph.inputs}
    constants = dict(graph.constants)
    for name, number in fixed.items():
        if name not in inputs:
            raise UserError(f"it has no input '{name}' that could be fixed; its inputs are {_listed(inputs)}")
        dtype, shape = getattr(torch, inputs[name].dtype, None), inputs[name].shape
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"its input '{name}' is no tensor of numbers and can't be fixed")
        tensor = number if isinstance(number, Tensor) else torch.as_tensor(number, dtype=dtype)
        if shape is not None and len(shape) != tensor.ndim and tensor.numel() == 1:
            tensor = tensor.reshape([1] * len(shape))
        constants[name] = tensor
    left = tuple(value for value in graph.inputs if value.name not in fixed)
    return replace(graph, inputs=left, constants=constants)


def with_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    used: set[str] = set()

    def fitted(value: Value) -> Value:
        shape = (
            None
            if value.shape is None
            else tuple(_size(value.name, i, s, sizes, used) for i, s in enumerate(value.shape))
        )
        return replace(value, shape=shape)

    result = replace(
        graph, inputs=tuple(map(fitted, graph.inputs)), outputs=tuple(fitted(value) for value in graph.outputs)
    )
    unknown = [axis for axis in sizes if axis not in used]
    if unknown:
        axes = {s: None for value in graph.inputs for s in value.shape or () if isinstance(s, str)}
        shown = _listed(axes) if axes else "none by name (say 'input:dimension')"
        raise UserError(f"it has no dynamic axis '{unknown[0]}'; it has {shown}")
    return result


def _size(name: str, dim: int, size: int | str | None, sizes: Mapping[str, int], used: set[str]) -> int | str | None:
    for key in (size, f"{name}:{dim}"):
        if isinstance(key, str) and key in sizes and not isinstance(size, int):
            if sizes[key] < 1:
                raise UserError(f"its axis '{key}' can't have the size {sizes[key]}")
            used.add(key)
            return sizes[key]
    return size


def _listed(names: Mapping[Any, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
