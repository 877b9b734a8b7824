"""No test gets networks that an earlier test left in the cache."""

import pytest

from pocketfit.search.run import apply_passes


@pytest.fixture(autouse=True)
def _no_networks_from_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_passes, "_RECENT", {})
