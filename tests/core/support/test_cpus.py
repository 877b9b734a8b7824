"""Affinity and control groups: what the kernel's files say, of both versions, as a container sees them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.support import cpus


def kernel(folder: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    """A made-up /proc and /sys/fs/cgroup; `files` by their path below the latter, "__" for "/", "_in_" for "."."""
    proc, mounts = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroup)
    mounts.mkdir()
    for name, text in files.items():
        path = mounts / name.replace("__", "/").replace("_in_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, mounts


STAT = "usage_usec 5000000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 1500000\n"


def test_version_2_where_the_container_sees_itself_as_the_top(tmp_path: Path) -> None:
    found = kernel(tmp_path, "0::/\n", cgroup_in_controllers="cpu", cpu_in_max="150000 100000\n", cpu_in_stat=STAT)
    assert cpus.quota(*found) == 1.5
    assert [group.throttled_s() for group in cpus.groups(*found)] == [1.5]


def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    found = kernel(
        tmp_path,
        "0::/user/job/part\n",
        cgroup_in_controllers="cpu",
        user__cpu_in_max="300000 100000",
        user__job__cpu_in_max="max 100000",
        user__job__part__cpu_in_max="400000 100000",
    )
    assert cpus.quota(*found) == 3.0
    assert len(cpus.groups(*found)) == 4


@pytest.mark.parametrize("home", ["cpu", "cpu,cpuacct"])
def test_version_1_where_the_path_is_the_hosts(tmp_path: Path, home: str) -> None:
    stat = "nr_periods 9\nnr_throttled 4\nthrottled_time 2500000000\n"
    proc, mounts = kernel(tmp_path, f"7:memory:/x\n4:{home}:/docker/4711\n0::/x\n")
    for name, text in (("cfs_quota_us", "50000\n"), ("cfs_period_us", "100000\n"), ("stat", stat)):
        (mounts / home).mkdir(exist_ok=True)
        (mounts / home / f"cpu.{name}").write_text(text)
    assert cpus.quota(proc, mounts) == 0.5
    assert [group.throttled_s() for group in cpus.groups(proc, mounts)] == [2.5]
    assert cpus.usable(proc, mounts) == 1


@pytest.mark.parametrize("said", ["max 100000", "", "0 100000 7", "-1 100000", "100000 0"])
def test_no_quota(tmp_path: Path, said: str) -> None:
    found = kernel(tmp_path, "0::/\n", cgroup_in_controllers="cpu", cpu_in_max=said)
    assert cpus.quota(*found) is None
    assert cpus.usable(*found) == len(cpus.affinity())


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert cpus.groups(tmp_path / "proc", tmp_path / "cgroup") == ()
    assert cpus.quota(tmp_path / "proc", tmp_path / "cgroup") is None


def test_threads_stay_inside_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "affinity", lambda: tuple(range(8)))
    for quota, threads in (("250000", 3), ("200000", 2), ("50000", 1), ("1600000", 8)):
        found = kernel(tmp_path / quota, "0::/\n", cgroup_in_controllers="cpu", cpu_in_max=f"{quota} 100000")
        assert cpus.usable(*found) == threads


def test_more_threads_than_may_run_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "affinity", lambda: tuple(range(8)))
    monkeypatch.setattr(cpus, "quota", lambda *_: 1.5)
    cpus.check_threads(2)
    with pytest.raises(UserError, match=r"4 threads here: this process may use 2 cores \(the CPU quota .* is 1\.5\)"):
        cpus.check_threads(4)
    monkeypatch.setattr(cpus, "quota", lambda *_: None)
    with pytest.raises(UserError, match=r"may use 8 cores, and"):
        cpus.check_threads(9)


def test_openmp_is_told_of_a_quota_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "affinity", lambda: tuple(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpus, "quota", lambda *_: None)
    cpus.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(cpus, "quota", lambda *_: 2.0)
    cpus.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    cpus.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
