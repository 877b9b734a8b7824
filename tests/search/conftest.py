"""Property tests are not timed: a busy machine is no reason to fail."""

import pytest
from hypothesis import HealthCheck, settings

from pocketfit.search import carry

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_networks_from_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry, "_RECENT", {})
