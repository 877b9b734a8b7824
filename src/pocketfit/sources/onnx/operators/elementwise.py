"""Operators that work on each number alone, and their arithmetic on sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pocketfit.sources.onnx import parameters
from pocketfit.sources.onnx.builder import CannotConvert, Constant, Sizes, known, meta
from pocketfit.sources.onnx.call import Call, Handler, Table
from pocketfit.sources.onnx.tensors import DTYPES

Pair = Callable[[Any, Any], Any]


def pair(target: Pair, on_sizes: Pair | None, *, trained: bool = False) -> Handler:
    """A handler for a function of two tensors. `on_sizes`: the same for two Python numbers."""

    def handler(call: Call) -> Any:
        if on_sizes is not None and any(isinstance(value, Sizes) for value in call.values):
            result = arithmetic(call, on_sizes)
            if result is not None:
                return result
        first, second = operands(call, trained=trained)
        return call.emit(target, first, second)

    return handler


def arithmetic(call: Call, function: Pair) -> Sizes | None:
    """Sizes with sizes or small constants, entry by entry; None where a tensor takes part."""
    lists = [host(value) for value in call.values]
    if any(entries is None for entries in lists):
        return None
    length = max(len(entries or ()) for entries in lists)
    if any(len(entries or ()) not in (1, length) for entries in lists):
        raise CannotConvert("its shapes don't fit together")
    first, second = (list(entries or ()) * (length if len(entries or ()) == 1 else 1) for entries in lists)
    results = tuple(call.emit(function, a, b) for a, b in zip(first, second, strict=True))
    return Sizes(results, scalar=all(call.rank(i) == 0 for i in range(2)))


def host(value: Any) -> list[Any] | None:
    """The numbers of sizes, or of a constant with one dimension at most; None for anything else."""
    if isinstance(value, Sizes):
        return list(value.entries)
    if isinstance(value, Constant) and value.tensor.ndim <= 1 and value.tensor.numel() <= 64:
        return list(value.tensor.reshape(-1).tolist())
    return None


def operands(call: Call, *, trained: bool) -> tuple[Any, Any]:
    """Both inputs: one number as a Python number, per-channel numbers as a parameter (parameters.py says which)."""
    found: list[Any] = []
    for i in range(2):
        value, other = call.values[i], call.values[1 - i]
        one = isinstance(value, Sizes) and len(value.entries) == 1
        if isinstance(value, Sizes) and isinstance(other, fx.Node) and one and call.rank(i) <= call.rank(1 - i):
            found.append(value.entries[0])
        elif isinstance(value, Constant) and other is not None and not isinstance(other, Constant):
            found.append(parameters.operand(call, value, call.as_tensor(other), trained=trained))
        else:
            found.append(call.tensor(i))
    return found[0], found[1]


def add(call: Call) -> Any:
    """Add. A constant that is added behind a layer without a bias becomes its bias."""
    for i in range(2):
        layer, constant = call.values[i], call.stored(1 - i)
        if not isinstance(layer, fx.Node) or constant is None or not call.once(i):
            continue
        if parameters.take_as_bias(call, layer, constant):
            return layer
    return _broadcast_first(call, pair(operator.add, operator.add, trained=True))


def _broadcast_first(call: Call, handler: Handler) -> Any:
    """Operator sets before 7 stretch the second input along `axis`."""
    if call.version < 7 and call.get("broadcast", 0) and call.get("axis", None) is not None:
        first, second = call.rank(0), call.rank(1)
        axis = call.get("axis")
        behind = first - (axis + first if axis < 0 else axis) - second
        shaped = call.tensor(1)
        for _ in range(behind):
            shaped = call.emit(torch.unsqueeze, shaped, -1)
        if isinstance(shaped, Constant) and isinstance(call.values[1], Constant):
            shaped = Constant(shaped.tensor, call.values[1].name, call.values[1].stored)
        call.values = [call.values[0], shaped]
    return handler(call)


def broadcasting(handler: Handler) -> Handler:
    return lambda call: _broadcast_first(call, handler)


def divide(first: Any, second: Any) -> Any:
    """Division; of integers it is rounded towards 0, as in ONNX."""
    tensor = first if isinstance(first, Tensor) else second
    if isinstance(tensor, Tensor):
        whole = not tensor.is_floating_point() and not tensor.is_complex()
        return torch.div(first, second, rounding_mode="trunc") if whole else operator.truediv(first, second)
    return first // second if isinstance(second, int | torch.SymInt) else first / second


def div(call: Call) -> Any:
    on_tensors = any(isinstance(v, fx.Node) and isinstance(known(v), Tensor) for v in call.values)
    floating = on_tensors and meta(next(v for v in call.values if isinstance(v, fx.Node))).is_floating_point()
    function = operator.truediv if floating else divide
    return _broadcast_first(call, pair(function, _divide_sizes, trained=True))


def _divide_sizes(first: Any, second: Any) -> Any:
    whole = isinstance(first, int | torch.SymInt) and isinstance(second, int | torch.SymInt)
    return first // second if whole else first / second


def extreme(function: Pair, on_sizes: Pair, bound: str) -> Handler:
    """Max and Min; beside one number it is a clamp."""

    def handler(call: Call) -> Any:
        if len(call.values) == 2:
            for i in range(2):
                number, other = call.stored(i), call.values[1 - i]
                if number is None or number.tensor.numel() != 1 or not isinstance(other, fx.Node):
                    continue
                if number.tensor.ndim <= call.rank(1 - i) and call.meta(1 - i).is_floating_point():
                    return call.emit(torch.clamp, other, **{bound: number.tensor.item()})
        return several(call, function, on_sizes)

    return handler


def several(call: Call, function: Pair, on_sizes: Pair | None = None) -> Any:
    """Max, Min, Sum of any number of inputs, from left to right."""
    if len(call.values) == 1:
        return call.tensor(0)
    values = list(call.values)
    result: Any = values[0]
    for value in values[1:]:
        call.values = [result, value]
        result = pair(function, on_sizes)(call)
    return result


def maximum(first: Any, second: Any) -> Any:
    return _extreme(torch.maximum, first, second)


def minimum(first: Any, second: Any) -> Any:
    return _extreme(torch.minimum, first, second)


def _extreme(function: Any, first: Any, second: Any) -> Any:
    """The function of two tensors; Python numbers become tensors, as torch.maximum takes none."""
    tensor = first if isinstance(first, Tensor) else second
    first, second = (v if isinstance(v, Tensor) else torch.full((), v, dtype=tensor.dtype) for v in (first, second))
    return function(first, second)


def mean(call: Call) -> Any:
    count = len(call.values)
    total = several(call, operator.add)
    return call.emit(operator.truediv, total, count)


def power(first: Any, second: Any) -> Any:
    """The result has the kind of the base, whatever the exponent's is."""
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.dtype != second.dtype:
        kind = torch.promote_types(first.dtype, second.dtype)
        return torch.pow(first.to(kind), second.to(kind)).to(first.dtype)
    return torch.pow(first, second)


def pow_(call: Call) -> Any:
    base, exponent = call.values[0], call.stored(1)
    if (
        isinstance(base, fx.Node)
        and exponent is not None
        and exponent.tensor.numel() == 1
        and exponent.tensor.ndim <= 1
    ):
        number = exponent.tensor.item()
        number = int(number) if float(number).is_integer() else number
        floating = isinstance(known(base), Tensor) and meta(base).is_floating_point()
        if call.rank(0) >= exponent.tensor.ndim and (floating or isinstance(number, int)) and number >= 0:
            return call.emit(torch.pow, base, number)
    return call.emit(power, call.tensor(0), call.tensor(1))


def mod(call: Call) -> Any:
    """The sign follows the divisor, or the dividend with fmod."""
    if call.get("fmod", 0):
        return pair(torch.fmod, None)(call)
    return pair(torch.remainder, operator.mod)(call)


def where(call: Call) -> Any:
    """A choice between sizes stays one; between tensors it is torch.where."""
    if any(isinstance(value, Sizes) for value in call.values):
        lists = [host(value) for value in call.values]
        if all(entries is not None for entries in lists):
            length = max(len(entries or ()) for entries in lists)
            spread = [list(e or ()) * (length if len(e or ()) == 1 else 1) for e in lists]
            chosen = tuple(a if call.build.truth(c) else b for c, a, b in zip(*spread, strict=True))
            return Sizes(chosen, scalar=all(call.rank(i) == 0 for i in range(3)))
    first, second = call.tensor(1), call.tensor(2)
    return call.emit(torch.where, call.tensor(0), first, second)


def cast(call: Call) -> Any:
    kind = call.get("to")
    return _cast(call, DTYPES.get(int(kind) if str(kind).isdigit() else OLD_KINDS.get(kind, 0)))


OLD_KINDS = {
    "FLOAT": 1,
    "UINT8": 2,
    "INT8": 3,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BOOL": 9,
    "FLOAT16": 10,
    "DOUBLE": 11,
}


def _cast(call: Call, dtype: torch.dtype | None) -> Any:
    value = call.values[0]
    if dtype is None or call.get("to", 1) in (21, 22):
        raise CannotConvert("it makes texts or numbers of 4 bits")
    if isinstance(value, Sizes):
        if dtype.is_floating_point:
            return Sizes(tuple(call.emit(as_float, entry) for entry in value.entries), value.scalar)
        if dtype in (torch.int64, torch.int32):
            return Sizes(tuple(whole(call, entry) for entry in value.entries), value.scalar)
    tensor = call.tensor(0)
    if meta(tensor).dtype == dtype:
        return tensor
    if dtype.itemsize == 1 and dtype.is_floating_point:
        raise CannotConvert("it rounds to numbers of 8 bits")
    return call.emit(torch.Tensor.to, tensor, dtype)


def bit_cast(call: Call) -> Any:
    """The same bits as numbers of another kind of the same size."""
    dtype = DTYPES.get(call.get("to"))
    if dtype is None or dtype.itemsize != call.meta(0).dtype.itemsize or torch.bool in (dtype, call.meta(0).dtype):
        raise CannotConvert("it makes numbers of another size, or truth values")
    return call.emit(torch.Tensor.view, call.tensor(0), dtype)


def as_float(size: Any) -> Any:
    return torch.sym_float(size)  # type: ignore[no-untyped-call]  # torch's has no hints


def whole(call: Call, entry: Any) -> Any:
    """The integer part of a size, which is not negative."""
    return entry if isinstance(known(entry), int | torch.SymInt) else call.emit(math.floor, entry)


def cast_like(call: Call) -> Any:
    return _cast(call, call.meta(1).dtype)


def rounding(on_tensor: Any, on_size: Any) -> Handler:
    def handler(call: Call) -> Any:
        value = call.values[0]
        if isinstance(value, Sizes):
            return Sizes(tuple(call.emit(on_size, entry) for entry in value.entries), value.scalar)
        return call.emit(on_tensor, call.tensor(0))

    return handler


def one(target: Callable[..., Any]) -> Handler:
    """A function of one tensor."""
    return lambda call: call.emit(target, call.tensor(0))


def two(target: Callable[..., Any]) -> Handler:
    """A function of two tensors that takes no Python number."""
    return lambda call: call.emit(target, call.tensor(0), call.tensor(1))


def negative(call: Call) -> Any:
    return rounding(torch.neg, operator.neg)(call)


def logical_not(call: Call) -> Any:
    return rounding(torch.logical_not, torch.sym_not)(call)


def is_infinite(call: Call) -> Any:
    up, down = call.get("detect_positive", 1), call.get("detect_negative", 1)
    if up and down:
        return call.emit(torch.isinf, call.tensor(0))
    if up or down:
        return call.emit(torch.isposinf if up else torch.isneginf, call.tensor(0))
    return call.emit(torch.zeros_like, call.tensor(0), dtype=torch.bool)


def shift(call: Call) -> Any:
    left = call.get("direction") == "LEFT"
    function = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return call.emit(function, call.tensor(0), call.tensor(1))


def identity(call: Call) -> Any:
    return call.values[0]


def dropout(call: Call) -> Any:
    """Dropout does nothing in eval mode; its mask, where a file reads it, is all ones."""
    if (call.has(2) and call.number(2)) or (not call.get("is_test", 1) and call.version < 7):
        raise CannotConvert("it is exported for training: export it for inference")
    value = call.tensor(0)
    if len([name for name in call.node.outputs if name]) == 1:
        return value
    return value, call.emit(torch.ones_like, value, dtype=torch.bool)


def clip(call: Call) -> Any:
    if call.version >= 11:
        low, high = call.number(1), call.number(2)
    else:
        low, high = call.get("min", None), call.get("max", None)
    value = call.tensor(0)
    if low == 0 and high == 6:
        return call.activation(nn.ReLU6(), value)
    if low == 0 and high is None and meta(value).is_floating_point():
        return call.activation(nn.ReLU(), value)
    if low is None and high is None:
        return value
    return call.emit(torch.clamp, value, low, high)


ONE = {
    "Abs": torch.abs, "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Round": torch.round,
    "Sign": torch.sign, "Reciprocal": torch.reciprocal, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh,
    "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "IsNaN": torch.isnan,
    "BitwiseNot": torch.bitwise_not, "Det": torch.linalg.det,
}  # fmt: skip
PAIRS = {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
COMPARED = {
    "Equal": operator.eq, "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge,
    "LessOrEqual": operator.le,
}  # fmt: skip

TABLE: Table = {
    **{name: one(target) for name, target in ONE.items()},
    **{name: broadcasting(two(target)) for name, target in PAIRS.items()},
    **{name: broadcasting(pair(target, target)) for name, target in COMPARED.items()},
    "Add": add,
    "Sub": broadcasting(pair(operator.sub, operator.sub, trained=True)),
    "Mul": broadcasting(pair(operator.mul, operator.mul, trained=True)),
    "Div": div,
    "Pow": broadcasting(pow_),
    "Mod": mod,
    "Max": extreme(maximum, torch.sym_max, "min"),
    "Min": extreme(minimum, torch.sym_min, "max"),
    "Sum": lambda call: several(call, operator.add, operator.add),
    "Mean": mean,
    "Where": where,
    "Cast": cast,
    "CastLike": cast_like,
    "Floor": rounding(torch.floor, math.floor),
    "Ceil": rounding(torch.ceil, math.ceil),
    "Neg": negative,
    "Not": logical_not,
    "IsInf": is_infinite,
    "BitShift": shift,
    "BitCast": bit_cast,
    "Identity": identity,
    "Dropout": dropout,
    "Clip": clip,
}
