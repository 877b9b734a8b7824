"""The files that the tests of all runtimes look at."""

from pocketfit.testing.runtime_fixtures import *  # noqa: F403 (all of it)
