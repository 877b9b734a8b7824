"""One file a runtime, the same functions in each (the Protocol is core.runtime.Runtime)."""
