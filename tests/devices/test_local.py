import os
from pathlib import Path

import pytest

from pocketfit.core.support import cpuinfo
from pocketfit.devices import local

HYPERTHREADS = [frozenset({0, 1}), frozenset({0, 1}), frozenset({2, 3}), frozenset({2, 3})]


def test_describe_names_this_machine():
    device = local.describe(threads=2)
    assert (device.reach, device.threads) == ("local", 2)
    assert device.name
    assert set(device.isa) <= set(cpuinfo.ISA_NAMES.values())


@pytest.mark.parametrize(
    ("load", "count", "expected"),
    [
        ([0, 0, 0, 0], 1, (0,)),
        ([90, 0, 0, 0], 1, (1,)),
        ([0, 0, 50, 60], 2, (0, 2)),  # another physical core goes before an idle hyper-thread
        ([0, 0, 50, 60], 3, (0, 1, 2)),
        ([9, 8, 7, 6], 4, (0, 1, 2, 3)),
    ],
)
def test_the_least_loaded_cores_are_chosen_and_hyperthreads_avoided(load, count, expected):
    assert local.choose_cores([0, 1, 2, 3], load, HYPERTHREADS, count) == expected


def test_only_usable_cores_are_chosen():
    assert local.choose_cores([2, 3], [0, 0, 9, 5], [frozenset({2}), frozenset({3})], 1) == (3,)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes to cores")
def test_pin_holds_inside_and_is_undone_even_after_an_error():
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        with local.pin(1) as cores:
            assert cores == ()
        return
    with pytest.raises(RuntimeError, match="inside"), local.pin(1) as cores:
        assert len(cores) == 1
        assert os.sched_getaffinity(0) == set(cores)
        raise RuntimeError("inside")
    assert os.sched_getaffinity(0) == before


def test_pin_leaves_everything_when_all_cores_are_asked_for():
    before = local.usable_cores()
    with local.pin(len(before)) as cores:
        assert cores == ()
        assert local.usable_cores() == before


@pytest.mark.parametrize(
    ("machine", "told", "wanted"),
    [
        ("x86_64", "flags : avx2 avx512f", True),
        ("x86_64", "flags : avx2 avx_vnni", False),
        ("AMD64", "", True),  # Windows does not tell
        ("aarch64", "Features : asimd", False),
        ("arm64", "", False),
    ],
)
def test_where_products_of_eight_bits_overflow(
    *, machine: str, told: str, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(cpuinfo, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert cpuinfo.saturates() is wanted
