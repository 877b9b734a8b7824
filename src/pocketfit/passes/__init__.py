"""One idea a file; a pass is given its ratios and steps and carries them out, it never decides."""
