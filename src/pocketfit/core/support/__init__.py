"""Helpers that every floor uses: files, processes, progress, loading by name."""
