"""Damaged and hostile files, and what becomes of them; runs in a child process."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx.file.child import limit_memory, prepared

Change = Callable[[onnx.ModelProto, random.Random], None]


def run(path: str, first: int, count: int, log: str) -> dict[str, Any]:
    """What `count` mutations of the file come to: how many are read, refused, and anything else by seed."""
    limit_memory(2 * 2**30)
    whole = Path(path).read_bytes()
    ends: Counter[str] = Counter()
    other: dict[int, str] = {}
    target = Path(path).with_name("mutated.onnx")
    for seed in range(first, first + count):
        Path(log).write_text(str(seed))  # where it died, if it dies
        target.write_bytes(mutated(whole, seed))
        start = time.monotonic()
        try:
            prepared(target, {}, {}, check=seed % 10 == 0)
            ends["read"] += 1
        except UserError as error:
            ends["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 700:
                other[seed] = f"no sentence: {error}"
        except Exception as error:  # anything else is what the test looks for
            other[seed] = f"{type(error).__name__}: {error}"[:300]
        if time.monotonic() - start > 20:
            other[seed] = f"took {time.monotonic() - start:.0f} s"
    return {"ends": dict(ends), "other": other, "too much": too_much()}


def too_much() -> str:
    """What one allocation beyond the limit comes to."""
    import numpy as np

    limit_memory(2**28)
    try:
        np.ones(2**28)
    except MemoryError:
        return "refused"
    return "given"


def mutated(whole: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    kind = seed % 3
    if kind == 0:  # bytes
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 1:  # cut off, or a piece left out or doubled
        a, b = sorted(rng.randrange(len(whole)) for _ in range(2))
        return rng.choice((whole[:a], whole[:a] + whole[b:], whole[:b] + whole[a:]))
    model = onnx.ModelProto.FromString(whole)
    rng.choice(CHANGES)(model, rng)
    return bytes(model.SerializeToString())


def huge_shape(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((2**62, 2**31, -1, 10**9, 0))


def huge_input(model: onnx.ModelProto, rng: random.Random) -> None:
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    rng.choice(sizes).dim_value = rng.choice((2**62, 10**7, -5, 0))


def huge_number(model: onnx.ModelProto, rng: random.Random) -> None:
    """In the constants that say how many, and in attributes."""
    small = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64]
    tensor = rng.choice(small)
    tensor.raw_data = rng.choice((2**62, 10**10, -(10**10), 0, -1)).to_bytes(8, "little", signed=True)
    nodes = [node for node in model.graph.node if node.attribute]
    attribute = rng.choice(rng.choice(nodes).attribute)
    attribute.i = rng.choice((2**62, -(2**40), 10**8))
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((2**60, -(2**40), 10**8))


def circle(model: onnx.ModelProto, rng: random.Random) -> None:
    first, second = rng.choice(model.graph.node), rng.choice(model.graph.node)
    if first.input:
        first.input[0] = second.output[0]


def outside(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    location = rng.choice(("../secret.bin", "/etc/passwd", "..", "", "a/../../secret.bin", "C:\\secret", "nothing.bin"))
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value=rng.choice(("0", "-1", "9" * 30, "x")))


def other_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    names = ("Loop", "If", "NoSuch", "Resize", "ConstantOfShape", "Expand", "Tile", "LSTM", "Pad", "Range", "OneHot")
    rng.choice(model.graph.node).op_type = rng.choice(names)


def other_inputs(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    names = [tensor.name for tensor in model.graph.initializer] + [n.output[0] for n in model.graph.node] + ["", "none"]
    del node.input[:]
    node.input.extend(rng.choice(names) for _ in range(rng.randrange(5)))


def nested(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    for _ in range(rng.randrange(1, 30)):
        attribute = graph.node[0].attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.node.add(op_type="If", input=["x"], output=["y"])
        graph = attribute.g


def other_kind(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.initializer).data_type = rng.randrange(-1, 30)


CHANGES: tuple[Change, ...] = (
    huge_shape,
    huge_input,
    huge_number,
    circle,
    outside,
    other_operator,
    other_inputs,
    nested,
    other_kind,
)
