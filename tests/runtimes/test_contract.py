"""The contract of all runtimes that there are; a new one joins by its line in core/plan/runtime_list.py."""

from pocketfit.testing.runtime_contract import *  # noqa: F403 (all of it)
