import numpy as np
import pytest

from pocketfit.measurement import canary


def test_each_work_is_timed_each_time_and_the_median_counts(monkeypatch):
    clock = iter(np.cumsum([0, 1e6, 0, 5e6, 0, 3e6, 0, 5e6, 0, 2e6, 0, 9e6]).astype(int).tolist())
    monkeypatch.setattr(canary.time, "perf_counter_ns", lambda: next(clock))
    done = []
    bird = canary.Canary({"core": lambda: done.append("core"), "cache": lambda: done.append("cache")})
    for _ in range(3):
        bird.sing()
    assert bird.medians_ms() == {"core": 2.0, "cache": 5.0}
    assert done == ["core", "cache", "cache"] * 3  # the cache is filled again first


def test_the_works_of_this_machine_take_milliseconds():
    bird = canary.Canary()
    bird.sing()
    found = bird.medians_ms()
    assert set(found) == {"core", "cache", "memory"}
    assert all(0 < value < 1000 for value in found.values())


@pytest.mark.parametrize(("sizes", "expected"), [(("48K", "2048K", "36M"), 36 * 2**20), (("x", ""), None), ((), None)])
def test_the_largest_cache_counts_and_32_mib_where_none_is_stated(tmp_path, sizes, expected):
    for number, size in enumerate(sizes):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert canary.last_level_cache_bytes(tmp_path) == (expected or canary.DEFAULT_CACHE_BYTES)
    assert canary.last_level_cache_bytes(tmp_path / "gone") == canary.DEFAULT_CACHE_BYTES
