"""What torchrun's environment says, and what one process alone has to do."""

from __future__ import annotations

import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.support.processes import LAUNCHED, Rank, check_alone, rank


def said(monkeypatch: pytest.MonkeyPatch, **words: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in words.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "3"}, {"WORLD_SIZE": ""}):
        said(monkeypatch, **words)
        assert rank() == Rank() and rank().first and rank().part == slice(None)
        check_alone("fit")


def test_several_share_rows_and_the_first_one_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, WORLD_SIZE="3", RANK="2", LOCAL_RANK="0")
    assert rank() == Rank(2, 3, 0) and not rank().first
    rows = sorted(row for number in range(3) for row in list(range(10))[Rank(number, 3).part])
    assert rows == list(range(10))


def test_what_one_process_does_is_refused_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, WORLD_SIZE="4", RANK="0", LOCAL_RANK="0")
    with pytest.raises(UserError, match=r"pocketfit fit runs in one process, and 4 were started.*pocketfit apply"):
        check_alone("fit")
    for verb in LAUNCHED:
        check_alone(verb)


def test_half_an_environment_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, WORLD_SIZE="2", RANK="0")
    with pytest.raises(UserError, match=r"LOCAL_RANK is ''.*torchrun"):
        rank()
    said(monkeypatch, WORLD_SIZE="two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        rank()
