"""Pages, words, drawings."""
