"""Contract suites for what is added to pocketfit; they need pytest."""
