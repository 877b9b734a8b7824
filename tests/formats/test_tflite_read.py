"""What a .tflite says about itself; damaged files."""

from pathlib import Path

import numpy as np
import pytest

from pocketfit.core.errors import UserError
from pocketfit.runtimes.litert import runtime
from tests.runtimes.litert.network import CLASSES, LAYERS, SIZE, by_layer, export


def test_layers_keep_their_torch_names_shapes_and_macs() -> None:
    ops = by_layer(export())
    assert tuple(ops) == LAYERS
    half = SIZE // 2
    assert {name: (op.type, op.weight_shape, op.macs) for name, op in ops.items()} == {
        "stem.0": ("CONV_2D", (16, 3, 3, 3), half * half * 16 * 27),
        "depthwise.0": ("DEPTHWISE_CONV_2D", (1, 3, 3, 16), half * half * 16 * 9),
        "project": ("CONV_2D", (16, 1, 1, 16), half * half * 16 * 16),
        "classifier": ("FULLY_CONNECTED", (CLASSES, 16), CLASSES * 16),
    }
    assert [op.weight_bytes for op in ops.values()] == [4 * 432, 4 * 144, 4 * 256, 4 * 80]


def test_what_is_no_tflite_file_is_refused(tmp_path: Path) -> None:
    whole = Path(export("int8").path).read_bytes()
    path = tmp_path / "a.tflite"
    for data, sentence in [(b"", "is not a .tflite"), (b"PK\3\4" + bytes(99), "is not a .tflite"), (None, "not there")]:
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        for reader in (runtime.inspect, runtime.load):
            with pytest.raises(UserError, match=sentence):
                reader(path)
    for length in range(8, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.tflite' is damaged"):
            runtime.inspect(path)


def test_random_damage_is_refused_or_read_but_never_a_crash(tmp_path: Path) -> None:
    whole, random, path = Path(export("int8").path).read_bytes(), np.random.default_rng(0), tmp_path / "a.tflite"
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(8, len(data), 20):
            data[position] = random.integers(256)
        path.write_bytes(bytes(data))
        try:
            runtime.inspect(path)
        except UserError as error:
            assert "a.tflite" in str(error)
