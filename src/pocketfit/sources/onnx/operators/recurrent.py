"""LSTM, GRU and RNN as torch's own layers: the gates lie in another order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pocketfit.sources.onnx.builder import CannotConvert, Constant, meta
from pocketfit.sources.onnx.call import Call, Table
from pocketfit.sources.onnx.parameters import parameter

# Place of torch's gates among ONNX's. LSTM: ONNX input, output, forget, cell; torch input, forget, cell, output.
# GRU: ONNX update, reset, new; torch reset, update, new.
GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
USUAL = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def recurrent(call: Call) -> Any:
    """Outputs: all steps [steps, directions, batch, hidden], the last hidden state, and the last cell (LSTM)."""
    kind = call.node.operator
    nonlinearity = _check(call, kind)
    weights, recurrences = call.constant(1).tensor, call.constant(2).tensor
    biases = call.constant(3).tensor if call.has(3) else None
    direction = call.get("direction", "forward")
    batch_first = bool(call.get("layout", 0))
    layer = _layer(kind, weights, recurrences, biases, nonlinearity, both=direction == "bidirectional")
    value = call.emit(torch.transpose, call.tensor(0), 0, 1) if batch_first else call.tensor(0)
    value = call.emit(torch.flip, value, [0]) if direction == "reverse" else value
    states = _states(call, kind, batch_first)
    result = call.layer(layer, call.constant(1), value, *([states] if states is not None else []))
    steps, last = call.pick(result, 2)
    lasts = call.pick(last, 2) if kind == "LSTM" else (last,)
    return _outputs(call, steps, lasts, weights.shape[0], recurrences.shape[-1], direction, batch_first)


def _check(call: Call, kind: str) -> str:
    """Refuse what torch's layers can't do; for RNN, which of its two functions it has."""
    directions = 2 if call.get("direction", "forward") == "bidirectional" else 1
    given = [name.lower() for name in call.get("activations", [])]
    nonlinearity = "tanh"
    if kind == "RNN" and given and set(given) == {"relu"}:
        nonlinearity = "relu"
    elif given and given != USUAL[kind] * directions:
        raise CannotConvert(f"its activations are {', '.join(given)}, and torch's are {', '.join(USUAL[kind])}")
    if call.has(4) and not _whole_length(call):
        raise CannotConvert("its sequences have lengths of their own: export it for sequences of one length")
    if call.get("clip", None) or call.has(7) or call.get("input_forget", 0):
        raise CannotConvert("it clips, peeps or couples its gates, which torch's layer does not")
    if kind == "GRU" and not call.get("linear_before_reset", 0):
        raise CannotConvert("it resets before its linear layer (linear_before_reset=0), torch's does so behind it")
    return nonlinearity


def _whole_length(call: Call) -> bool:
    lengths, steps = call.stored(4), call.static(0)[1 if call.get("layout", 0) else 0]
    return lengths is not None and steps is not None and bool((lengths.tensor == steps).all())


def _layer(
    kind: str, weights: Tensor, recurrences: Tensor, biases: Tensor | None, nonlinearity: str, *, both: bool
) -> nn.RNNBase:
    if weights.ndim != 3 or recurrences.ndim != 3 or weights.shape[0] != (2 if both else 1):
        raise CannotConvert("its weights have an impossible shape")
    sizes = (weights.shape[-1], recurrences.shape[-1])
    options = {"bias": biases is not None, "bidirectional": both, "dtype": weights.dtype}
    if kind == "RNN":
        layer: nn.RNNBase = nn.RNN(*sizes, nonlinearity=nonlinearity, **options)
    else:
        layer = (nn.LSTM if kind == "LSTM" else nn.GRU)(*sizes, **options)
    for i, end in enumerate(("", "_reverse")[: weights.shape[0]]):
        setattr(layer, f"weight_ih_l0{end}", parameter(_reordered(kind, weights[i])))
        setattr(layer, f"weight_hh_l0{end}", parameter(_reordered(kind, recurrences[i])))
        if biases is not None:
            for name, part in zip(("ih", "hh"), biases[i].chunk(2), strict=True):
                setattr(layer, f"bias_{name}_l0{end}", parameter(_reordered(kind, part)))
    return layer


def _reordered(kind: str, numbers: Tensor) -> Tensor:
    gates = numbers.chunk(len(GATES[kind]))
    return torch.cat([gates[place] for place in GATES[kind]])


def _states(call: Call, kind: str, batch_first: bool) -> Any:
    if not call.has(5) and not (kind == "LSTM" and call.has(6)):
        return None
    given: list[Any] = []
    for i in (5, 6) if kind == "LSTM" else (5,):
        there = call.tensor(i if call.has(i) else 11 - i)
        there = there if call.has(i) else call.emit(torch.zeros_like, there)
        given.append(call.emit(torch.transpose, there, 0, 1) if batch_first else there)
    if all(isinstance(state, Constant) and not bool(state.tensor.any()) for state in given):
        batch = meta(given[0]).shape[1]
        if batch == 1 or isinstance(meta(call.tensor(0)).shape[0 if batch_first else 1], int):
            return None  # torch starts from zeros anyhow, at any batch size
    return tuple(given) if kind == "LSTM" else given[0]


def _outputs(
    call: Call, steps: Any, lasts: tuple[Any, ...], directions: int, hidden: int, direction: str, batch_first: bool
) -> tuple[Any, ...]:
    steps = call.emit(torch.flip, steps, [0]) if direction == "reverse" else steps
    steps = call.emit(torch.unflatten, steps, -1, (directions, hidden))
    if batch_first:  # [steps, batch, directions, hidden] -> [batch, steps, directions, hidden]
        steps = call.emit(torch.transpose, steps, 0, 1)
        lasts = tuple(call.emit(torch.transpose, last, 0, 1) for last in lasts)
    else:
        steps = call.emit(torch.transpose, steps, 1, 2)
    return (steps, *lasts)


TABLE: Table = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
